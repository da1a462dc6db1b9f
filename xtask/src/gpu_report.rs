//! `cargo xtask gpu-report DIR...`: writes `docs/cuda.md` and plots of the GPU utilisation from the results of
//! `xtask/gpu/run.sh`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use fs_err as fs;
use serde_json::Value;

use crate::paths::root;

mod plot;

/// Steps of `xtask/gpu/run.py` in its order, each with the number of its question, from 1.
const STEPS: [(&str, u64); 18] = [
    ("environment", 1),
    ("providers", 1),
    ("graphs", 1),
    ("random numbers", 2),
    ("parity", 3),
    ("first loss", 5),
    ("reduced precision", 1),
    ("resumed run", 5),
    ("features", 4),
    ("generation", 4),
    ("kernels", 4),
    ("training", 5),
    ("evaluation", 4),
    ("fuse", 4),
    ("more features", 4),
    ("more generation", 4),
    ("more training", 5),
    ("fine-tuning", 5),
];
/// Questions of the page.
const QUESTIONS: [&str; 5] = [
    "Node placement, and every kind of graph on CUDA against the CPU",
    "Random numbers of torch's CUDA generators",
    "Parity with torch-fidelity on CUDA",
    "Speed of generation and evaluation",
    "Training",
];
/// Goals: what is measured, the bound, and the end of the names of the steps that measure it.
const GOALS: [(&str, &str, &str); 4] = [
    ("features stage of `d2o evaluate` against a bare ONNX Runtime session", "≥ 0.95", "features"),
    ("one-step generation against PyTorch in the same precision", "≥ 1.0", "generation"),
    ("evaluation of 50 000 images against torch-fidelity on the same GPU", "≥ 2", "evaluation"),
    ("training against the original's step", "≥ 1.2", "training"),
];
const PAGE: &str = "docs/cuda.md";
const PLOTS: [&str; 2] = ["docs/cuda-use.svg", "docs/cuda-memory.svg"];

/// Writes the page from the results in `dirs`, of one run or of several on the same kind of GPU. If a step is in
/// several runs, the one with the most figures counts, the last of equals.
///
/// # Errors
/// If results are missing, have another layout, or are of different GPUs.
pub(crate) fn run(dirs: &[&str]) -> anyhow::Result<()> {
    let read = |dir: &str, name: &str| -> anyhow::Result<Value> {
        let path = Path::new(dir).join(name);
        serde_json::from_slice(&fs::read(&path)?).with_context(|| format!("`{}`", path.display()))
    };
    let (mut results, mut used) = (Value::Null, Value::Null);
    for dir in dirs {
        let next = read(dir, "results.json")?;
        ensure!(next["schema"] == 1, "`{dir}/results.json` has layout {}, not 1", next["schema"]);
        if let Ok(next) = read(dir, "gpu-use.json") {
            join_use(&mut used, next, results["seconds"].as_f64().unwrap_or_default());
        }
        join(&mut results, next)?;
    }
    let plots = plot::of(&used);
    for (i, name) in PLOTS.iter().enumerate() {
        let path = root().join(name);
        match &plots {
            Some(plots) => fs::write(path, &plots[i])?,
            None if path.exists() => fs::remove_file(path)?,
            None => {}
        }
    }
    fs::write(root().join(PAGE), render(&results, plots.is_some()))?;
    eprintln!("gpu-report: {PAGE}");
    Ok(())
}

/// Number of lines of a step with a figure or a verdict on one.
fn figures(step: &Value) -> usize {
    list(&step["lines"]).iter().filter(|l| ["passed", "missed", "measured"].contains(&text(l, "verdict"))).count()
}

/// Merges a later run into `results`.
fn join(results: &mut Value, mut next: Value) -> anyhow::Result<()> {
    if results.is_null() {
        *results = next;
        results["runs"] = 1.into();
        return Ok(());
    }
    let name = |r: &Value| r["environment"]["gpu"]["name"].clone();
    ensure!(name(results) == name(&next), "the runs are of different GPUs: {} and {}", name(results), name(&next));
    ensure!(results["dry_run"] == next["dry_run"], "one of the runs is a rehearsal");
    let steps = std::mem::take(&mut next["steps"]);
    for step in list(&steps) {
        let Some(all) = results["steps"].as_array_mut() else { continue };
        match all.iter_mut().find(|s| s["name"] == step["name"]) {
            Some(old) if figures(step) >= figures(old) => *old = step.clone(),
            Some(_) => {}
            None => all.push(step.clone()),
        }
    }
    let environment = std::mem::take(&mut next["environment"]);
    for (key, value) in environment.as_object().into_iter().flatten() {
        results["environment"][key] = value.clone();
    }
    for name in list(&next["wanted"]).to_vec() {
        if let Some(wanted) = results["wanted"].as_array_mut()
            && !wanted.contains(&name)
        {
            wanted.push(name);
        }
    }
    results["seconds"] =
        (results["seconds"].as_f64().unwrap_or_default() + next["seconds"].as_f64().unwrap_or_default()).into();
    results["runs"] = (results["runs"].as_u64().unwrap_or(1) + 1).into();
    results["kit"] = std::mem::take(&mut next["kit"]);
    Ok(())
}

/// Appends the samples of a later run, shifted by `offset`, the seconds of the earlier runs.
fn join_use(used: &mut Value, mut next: Value, offset: f64) {
    if used.is_null() {
        *used = next;
        return;
    }
    for step in next["steps"].as_array_mut().into_iter().flatten() {
        for key in ["start", "end"] {
            step[key] = (step[key].as_f64().unwrap_or_default() + offset).into();
        }
    }
    for sample in next["samples"].as_array_mut().into_iter().flatten() {
        sample[0] = (sample[0].as_f64().unwrap_or_default() + offset).into();
    }
    for key in ["steps", "samples"] {
        if let (Some(all), Some(more)) = (used[key].as_array_mut(), next[key].as_array_mut()) {
            all.append(more);
        }
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// `verdict` for tables, with failures in bold.
fn marked(verdict: &str) -> String {
    match verdict {
        "missed" | "failed" => format!("**{verdict}**"),
        other => other.to_owned(),
    }
}

/// Four significant digits.
fn number(value: &Value) -> String {
    let Some(v) = value.as_f64() else { return "–".to_owned() };
    if value.is_i64() || value.is_u64() {
        return value.to_string();
    }
    if v == 0.0 {
        return "0".to_owned();
    }
    match v.abs() {
        a if !(1e-3..1e6).contains(&a) => format!("{v:.1e}"),
        a if a >= 1e3 => format!("{v:.0}"),
        a if a >= 1e2 => format!("{v:.1}"),
        a if a >= 1e1 => format!("{v:.2}"),
        a if a >= 1.0 => format!("{v:.3}"),
        _ => format!("{v:.4}"),
    }
}

/// The page.
fn render(results: &Value, plots: bool) -> String {
    let dry = results["dry_run"] == true;
    let mut page = String::from(
        "# CUDA measurements\n\nCorrectness, speed and memory of d2o on a CUDA GPU. [CUDA: findings](cuda-findings.md) summarises the results.\n`cargo xtask gpu-report DIR...` writes this page from the outputs of `xtask/gpu/run.sh` in each DIR.\n\n",
    );
    if dry {
        page += "**CUDA has not run yet: no figure here comes from a GPU.** This page comes from a rehearsal on the CPU (`run.sh … --dry-run`), which ran the steps below\n\
                 with small sizes on the CPU instead of the GPU. It shows that the script works, not that CUDA does. Speeds are not judged, and steps that need a GPU are listed as skipped.\n\n";
    }
    page += &repeat();
    page += &kit(&results["kit"]);
    page += &machine(results);
    if dry {
        page += "## Goals\n\nNone has been judged, since that needs a GPU.\n\n| goal | at least |\n|---|---|\n";
        for (what, goal, _) in GOALS {
            let _ = writeln!(page, "| {what} | {goal} |");
        }
        page.push('\n');
    } else {
        page += &goals(results);
    }
    page += &steps(results);
    for (i, question) in QUESTIONS.iter().enumerate() {
        let _ = write!(page, "## {}. {question}\n\n", i + 1);
        page += &table(results, i as u64 + 1, dry);
    }
    if plots {
        page += "## Use of the GPU over time\n\n![share of time in which the GPU was busy](cuda-use.svg)\n\n![memory in use](cuda-memory.svg)\n\nSampled by nvidia-smi four times per second. Bands mark the steps, numbered as in the table of steps.\n";
    } else {
        page += "## Use of the GPU over time\n\nNo samples: there was no GPU.\n";
    }
    page
}

/// How to repeat the measurements: the commands on both machines.
fn repeat() -> String {
    "## How to repeat\n\n```sh\n\
     cargo xtask gpu-kit --orig DIR            # makes gpu-kit/ and prints which parts to copy for each command:\n\
     bash gpu-kit/unpack.sh /tmp/d2o-gpu                                                    # on the GPU machine, with each part except the last\n\
     bash gpu-kit/unpack.sh /tmp/d2o-gpu && bash xtask/gpu/run.sh /tmp/d2o-gpu \"$OUT\"     # on the GPU machine, with the last part: runs every step below\n\
     cargo xtask gpu-report \"$OUT\"            # writes this page; accepts the folders of several runs\n```\n\n\
     DIR contains a checkout of Zyriix/D2O as `D2O`; without it, the steps that compare with the original's code are skipped. The GPU machine needs x86-64, an NVIDIA GPU of compute capability 9.0\n\
     (H100, H200) with a driver for CUDA 13, and a `python3` with PyTorch 2.11 for CUDA, torchvision, timm, onnx, SciPy, h5py and safetensors. It needs no network. All steps except the last share 7 minutes\n\
     (`--steps-seconds 420`); the last, a fine-tuning run, ends after `--total-seconds` (570). `--only STEP,…` selects steps; `--dry-run` rehearses on a CPU.\n\n"
        .to_owned()
}

/// The parts and the largest files of the kit, and how long unpacking took.
fn kit(kit: &Value) -> String {
    if kit.is_null() {
        return String::new();
    }
    let digest = |value: &Value| text(value, "sha256").get(..12).unwrap_or_default().to_owned();
    let mut page = format!(
        "## Kit\n\nd2o at {}{}, ONNX Runtime {} for {}, torch-fidelity {}: {} files of {} bytes.\n\n| part | bytes | sha256 | unpacking, s |\n|---|---|---|---|\n",
        text(kit, "commit").get(..7).unwrap_or_default(),
        if kit["changed"] == true { " with changes" } else { "" },
        text(kit, "onnxruntime"),
        text(kit, "architecture"),
        text(kit, "torch_fidelity"),
        kit["files"],
        kit["bytes"]
    );
    for part in list(&kit["parts"]) {
        let seconds = list(&kit["unpacked"]).iter().rfind(|u| u["part"] == part["part"]).map(|u| number(&u["seconds"]));
        let seconds = seconds.unwrap_or_else(|| "–".to_owned());
        let _ = writeln!(page, "| {} | {} | {} | {seconds} |", text(part, "part"), part["bytes"], digest(part));
    }
    page += "\n| largest files | bytes | sha256 |\n|---|---|---|\n";
    for file in list(&kit["largest"]) {
        let _ = writeln!(page, "| {} | {} | {} |", text(file, "file"), file["bytes"], digest(file));
    }
    page.push('\n');
    page
}

fn machine(results: &Value) -> String {
    let env = &results["environment"];
    let mut rows: Vec<(&str, String)> = vec![("date", text(results, "started").to_owned())];
    if let Some(gpu) = env["gpu"].as_object() {
        let field = |k: &str| gpu.get(k).and_then(Value::as_str).unwrap_or_default();
        rows.push((
            "GPU",
            format!("{}, {}, compute capability {}", field("name"), field("memory.total"), field("compute_cap")),
        ));
        rows.push(("driver", format!("{}, CUDA {}", field("driver_version"), text(env, "cuda_driver"))));
        rows.push((
            "limits",
            format!("{}, {} SM, {} memory", field("power.limit"), field("clocks.max.sm"), field("clocks.max.mem")),
        ));
    } else {
        rows.push(("GPU", "none".to_owned()));
    }
    rows.push(("CPU", format!("{}, {} cores, {} GiB", text(env, "cpu"), env["cores"], env["memory_gib"])));
    rows.push(("d2o", format!("{}, ONNX Runtime {}", text(env, "d2o_version"), text(env, "onnxruntime"))));
    let mut packages: BTreeMap<&str, &str> = BTreeMap::new();
    for (name, version) in env["packages"].as_object().into_iter().flatten() {
        packages.insert(name, version.as_str().unwrap_or("absent"));
    }
    let packages: Vec<String> = packages.iter().map(|(n, v)| format!("{n} {v}")).collect();
    rows.push(("Python", format!("{}; {}", text(env, "python"), packages.join(", "))));
    for (graph, nodes) in env["nodes"].as_object().into_iter().flatten() {
        let counts: Vec<String> = nodes.as_object().into_iter().flatten().map(|(p, n)| format!("{n} on {p}")).collect();
        rows.push(("nodes", format!("{graph}: {}", counts.join(", "))));
    }
    let mut page = "## Machine\n\n| | |\n|---|---|\n".to_owned();
    for (name, value) in rows {
        let _ = writeln!(page, "| {name} | {value} |");
    }
    page.push('\n');
    page
}

/// Every line with a goal, and a list of the goals that are missed or have no figure.
fn goals(results: &Value) -> String {
    let mut page =
        "## Goals\n\n| goal | at least | figure | peer's figure | ratio | verdict |\n|---|---|---|---|---|---|\n"
            .to_owned();
    let mut short = Vec::new();
    for (what, goal, step) in GOALS {
        let steps: Vec<&Value> = list(&results["steps"]).iter().filter(|s| text(s, "name").ends_with(step)).collect();
        let judged: Vec<&Value> =
            steps.iter().flat_map(|s| list(&s["lines"])).filter(|l| l["goal"].is_number()).collect();
        if judged.is_empty() {
            let why = match steps.first() {
                Some(s) if text(s, "why").is_empty() => format!("no figure: step `{step}` {}", text(s, "verdict")),
                Some(s) => format!("no figure: step `{step}` {}: {}", text(s, "verdict"), text(s, "why")),
                None => format!("no figure: step `{step}` did not run"),
            };
            let _ = writeln!(page, "| {what} | {goal} | – | – | – | **{}** |", cell(&why));
            short.push(format!("{what}: {why}"));
        }
        for line in judged {
            let unit = text(line, "unit");
            let _ = writeln!(
                page,
                "| {} | {goal} | {} {unit} | {} {unit} | {} | {} |",
                cell(text(line, "what")),
                number(&line["figure"]),
                number(&line["peer"]),
                number(&line["ratio"]),
                marked(text(line, "verdict"))
            );
            if text(line, "verdict") != "passed" {
                let ratio = if line["ratio"].is_number() { number(&line["ratio"]) } else { "no ratio".to_owned() };
                short.push(format!("{}: {ratio} instead of {goal}", text(line, "what")));
            }
        }
    }
    page.push('\n');
    if short.is_empty() {
        page += "All goals are met.\n\n";
    } else {
        page += "Missed goals and goals without a figure:\n\n";
        for line in short {
            let _ = writeln!(page, "- {line}");
        }
        page.push('\n');
    }
    page
}

/// The verdict of every step, including steps that did not run.
fn steps(results: &Value) -> String {
    let mut page = format!(
        "## Steps\n\n{} seconds in all, {}.{}\n\n| | step | question | lines passed | missed | failed | skipped | verdict | seconds |\n|---|---|---|---|---|---|---|---|---|\n",
        number(&results["seconds"]),
        if results["runs"].as_u64().unwrap_or(1) == 1 {
            "one run".to_owned()
        } else {
            format!("{} runs", results["runs"])
        },
        if results["finished"] == true { "" } else { " **The run was stopped before its end.**" }
    );
    let wanted: Vec<&str> = list(&results["wanted"]).iter().filter_map(Value::as_str).collect();
    for (i, (name, question)) in STEPS.iter().enumerate() {
        let Some(step) = list(&results["steps"]).iter().find(|s| text(s, "name") == *name) else {
            let why = if wanted.is_empty() || wanted.contains(name) { "did not run" } else { "not asked for" };
            let _ = writeln!(page, "| {} | {name} | {question} | – | – | – | – | {why} | – |", i + 1);
            continue;
        };
        let count = |verdict: &str| list(&step["lines"]).iter().filter(|l| text(l, "verdict") == verdict).count();
        let why = if text(step, "why").is_empty() { String::new() } else { format!(": {}", cell(text(step, "why"))) };
        // A step without a verdict was running when the run ended.
        let verdict =
            if text(step, "verdict").is_empty() { "**stopped**".to_owned() } else { marked(text(step, "verdict")) };
        let _ = writeln!(
            page,
            "| {} | {name} | {question} | {} | {} | {} | {} | {verdict}{why} | {} |",
            i + 1,
            count("passed") + count("measured"),
            count("missed"),
            count("failed"),
            count("skipped"),
            number(&step["seconds"])
        );
    }
    page.push('\n');
    page
}

fn cell(text: &str) -> String {
    text.replace('|', "/").replace('\n', " ")
}

/// The lines of one question.
fn table(results: &Value, question: u64, dry: bool) -> String {
    let mut rows = String::new();
    for step in list(&results["steps"]).iter().filter(|s| s["question"].as_u64() == Some(question)) {
        for line in list(&step["lines"]) {
            let unit = text(line, "unit");
            let with_unit = |value: &Value, unit: &str| {
                let value = number(value);
                if value == "–" || unit.is_empty() { value } else { format!("{value} {unit}") }
            };
            let peer = match text(line, "peer_name") {
                _ if line["peer"].is_null() => "–".to_owned(),
                "" => number(&line["peer"]),
                name => format!("{} ({name})", number(&line["peer"])),
            };
            let note = text(line, "note");
            let _ = writeln!(
                rows,
                "| {} | {} | {peer} | {} | {} | {}{} | {} |",
                cell(text(line, "what")),
                with_unit(&line["figure"], unit),
                number(&line["ratio"]),
                line["goal_text"].as_str().unwrap_or("–"),
                marked(text(line, "verdict")),
                if note.is_empty() { String::new() } else { format!(": {}", cell(note)) },
                number(&line["seconds"])
            );
        }
    }
    if rows.is_empty() {
        return "No step of this question ran.\n\n".to_owned();
    }
    let figure = if dry { "figure, on the CPU" } else { "figure" };
    format!(
        "| what | {figure} | peer's figure | ratio | goal | verdict | seconds |\n|---|---|---|---|---|---|---|\n{rows}\n"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn results(dry: bool, verdict: &str, ratio: f64) -> Value {
        json!({
            "schema": 1, "dry_run": dry, "started": "2026-01-02T03:04:05Z", "seconds": 400.0, "finished": true, "wanted": [],
            "environment": {"gpu": {"name": "NVIDIA H100 80GB HBM3", "driver_version": "580.1"}, "cores": 16, "cpu": "a CPU", "packages": {"torch": "2.11.0", "timm": null}},
            "steps": [
                {"name": "features", "question": 4, "verdict": verdict, "why": "", "seconds": 20.0, "lines": [
                    {"what": "stage", "figure": 1800.0, "unit": "img/s", "peer": 2000.0, "peer_name": "bare session", "ratio": ratio, "goal": 0.95, "goal_text": "≥ 0.95", "verdict": verdict, "note": "a|b", "seconds": 9.0}]},
                {"name": "parity", "question": 3, "verdict": "failed", "why": "d2o evaluate: code 1", "seconds": 3.0, "lines": [{"what": "pool3", "verdict": "failed", "note": "d2o evaluate: code 1"}]},
            ],
        })
    }

    #[test]
    fn a_missed_goal_says_so_and_by_how_much() {
        let page = render(&results(false, "missed", 0.9), true);
        assert!(page.contains("| 0.9000 | **missed** |"), "{page}");
        assert!(page.contains("- stage: 0.9000 instead of ≥ 0.95"), "{page}");
        assert!(!page.contains("All goals are met"));
        assert!(page.contains("| **failed**: d2o evaluate: code 1 |"), "{page}");
        assert!(page.contains("| **missed**: a/b | 9.000 |"), "{page}");
        assert!(
            page.contains("NVIDIA H100 80GB HBM3") && page.contains("580.1") && page.contains("timm absent"),
            "{page}"
        );
        assert!(page.contains("cuda-use.svg") && !page.contains("has not run"));
    }

    #[test]
    fn steps_and_goals_that_are_absent_are_named() {
        let page = render(&results(false, "passed", 0.99), false);
        assert!(page.contains("| 12 | training | 5 | – | – | – | – | did not run | – |"), "{page}");
        assert!(page.contains("**no figure: step `training` did not run**"), "{page}");
        assert!(page.contains("No step of this question ran."), "{page}");
        let mut some = results(false, "passed", 0.99);
        some["wanted"] = json!(["features", "parity"]);
        some["finished"] = json!(false);
        let page = render(&some, false);
        assert!(page.contains("| training | 5 | – | – | – | – | not asked for | – |"), "{page}");
        assert!(page.contains("stopped before its end"), "{page}");
    }

    #[test]
    fn the_kit_is_named_by_its_parts() {
        let mut some = results(false, "passed", 0.99);
        assert!(!render(&some, false).contains("## Kit"));
        some["kit"] = json!({
            "commit": "0123456789", "changed": true, "onnxruntime": "1.31.1", "architecture": "sm_90", "torch_fidelity": "0.4.0", "files": 40, "bytes": 9,
            "parts": [{"part": "part-1", "bytes": 5, "sha256": "abcdef0123456789"}, {"part": "part-2", "bytes": 4, "sha256": "fedcba9876543210"}],
            "unpacked": [{"part": "part-2", "seconds": 9.0}, {"part": "part-2", "seconds": 4.25}], "largest": [{"file": "bin/d2o", "bytes": 3, "sha256": "00112233445566"}],
        });
        let page = render(&some, false);
        assert!(page.contains("d2o at 0123456 with changes"), "{page}");
        assert!(page.contains("| part-1 | 5 | abcdef012345 | – |"), "{page}");
        assert!(page.contains("| part-2 | 4 | fedcba987654 | 4.250 |"), "{page}");
        assert!(page.contains("| bin/d2o | 3 | 001122334455 |"), "{page}");
    }

    #[test]
    fn later_runs_replace_the_steps_they_have() {
        let mut all = Value::Null;
        join(&mut all, results(false, "missed", 0.5)).unwrap();
        let mut later = results(false, "passed", 1.5);
        let mut skipped = later["steps"][0].clone();
        skipped["name"] = "fuse".into();
        later["steps"].as_array_mut().unwrap().push(skipped);
        join(&mut all, later.clone()).unwrap();
        assert_eq!(all["steps"], later["steps"]);
        assert_eq!((all["runs"].as_u64(), all["seconds"].as_f64()), (Some(2), Some(800.0)));
        later["steps"][0]["lines"] = json!([]);
        let before = all["steps"].clone();
        join(&mut all, later.clone()).unwrap();
        assert_eq!(all["steps"], before);
        later["environment"]["gpu"]["name"] = "another".into();
        assert!(join(&mut all, later).is_err());
        let mut used = json!({ "steps": [{ "start": 1, "end": 2 }], "samples": [[1.0, 5.0]] });
        let next = used.clone();
        join_use(&mut used, next, 400.0);
        let expected = json!({ "steps": [{ "start": 1, "end": 2 }, { "start": 401.0, "end": 402.0 }], "samples": [[1.0, 5.0], [401.0, 5.0]] });
        assert_eq!(used, expected);
    }

    #[test]
    fn a_rehearsal_is_no_run() {
        let page = render(&results(true, "passed", 0.5), false);
        assert!(page.contains("**CUDA has not run yet"), "{page}");
        assert!(page.contains("None has been judged") && page.contains("figure, on the CPU"), "{page}");
        assert!(!page.contains("All goals are met"));
        assert!(page.contains("cargo xtask gpu-kit"));
    }

    #[test]
    fn figures_keep_four_digits() {
        let found: Vec<String> =
            [json!(null), json!(0.0), json!(7), json!(0.95123), json!(12.3456), json!(1234.5), json!(3e-7)]
                .iter()
                .map(number)
                .collect();
        assert_eq!(found, ["–", "0", "7", "0.9512", "12.35", "1234", "3.0e-7"]);
    }
}
