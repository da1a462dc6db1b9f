//! Commands in the documentation: this program or `cargo xtask` must accept each of them. The commands of the pages
//! about jobs are run in order, on small files with the names that the pages use.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Instant;

use clap::Parser as _;
use d2o::cli::Cli;
use d2o_converters::known;
use d2o_refs::image_zip::DatasetWriter;
use fs_err as fs;
use tempfile::TempDir;
use test_support::golden_dir;

mod common;

/// Every page of docs/, README.md, CONTRIBUTING.md, SECURITY.md and xtask/demo/README.md.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut pages: Vec<PathBuf> = docs.filter(|p| p.extension().is_some_and(|e| e == "md")).collect();
    pages.extend(["README.md", "CONTRIBUTING.md", "SECURITY.md", "xtask/demo/README.md"].map(|name| root.join(name)));
    pages.sort();
    pages
}

/// Lines of the shell blocks of `text`. Continued lines are joined. In blocks with prompts, lines without a prompt are
/// output and are left out.
fn shell_lines(text: &str) -> Vec<String> {
    let (mut inside, mut lines, mut block, mut open) = (false, Vec::new(), Vec::new(), String::new());
    for line in text.lines() {
        let fence = line.trim_start().strip_prefix("```");
        if let Some(language) = fence {
            inside = !inside && ["sh", "bash", "console", "shell"].contains(&language.trim());
            let prompts = block.iter().any(|line: &String| line.starts_with("$ "));
            lines.extend(block.drain(..).filter(|line| !prompts || line.starts_with("$ ")));
        } else if inside {
            match line.trim_end().strip_suffix('\\') {
                Some(start) => open += start,
                None => block.push(std::mem::take(&mut open) + line),
            }
        }
    }
    lines
}

/// The words of every command in `line`, without assignments of variables and redirections.
fn commands(line: &str) -> Vec<Vec<String>> {
    let spaced = line.replace(" | ", " \u{1} ").replace("&&", " \u{1} ").replace("; ", " \u{1} ");
    let words = shlex::split(spaced.trim_start_matches("$ ")).unwrap_or_else(|| panic!("not a shell command: {line}"));
    let words = words.into_iter().take_while(|w| !w.starts_with('#'));
    let words: Vec<String> = words.map(|w| w.split('/').map(valued).collect::<Vec<_>>().join("/")).collect();
    let commands = words.split(|w| w == "\u{1}").map(|words| {
        let set = |w: &&String| {
            w.split_once('=').is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        };
        let words = words.iter().skip_while(|w| set(w) || *w == "do").cloned();
        let redirected = |w: &String| [">", "<", ">>", "2>&1", "&"].contains(&w.as_str()) || w.starts_with("2>");
        words.take_while(|w| !redirected(w)).collect()
    });
    commands.collect()
}

/// `text`, or a value if it is a variable of the shell.
fn valued(text: &str) -> &str {
    match text.strip_prefix('$') {
        Some(name) if name.ends_with("COUNT") => "8",
        Some(_) => "0",
        None => text,
    }
}

#[test]
fn every_command_in_the_documentation_is_one() {
    let tasks = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("xtask/src/main.rs")).unwrap();
    let (mut parsed, mut wrong) = (0, Vec::new());
    for page in pages() {
        let name = page.file_name().unwrap().to_string_lossy().into_owned();
        for line in shell_lines(&fs::read_to_string(&page).unwrap()) {
            for words in commands(&line) {
                match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
                    // Training needs another build.
                    ["d2o", "train", ..] if cfg!(not(feature = "train")) => {}
                    ["d2o", rest @ ..] if !rest.contains(&"…") => {
                        parsed += 1;
                        if let Err(e) = Cli::try_parse_from(&words)
                            && e.use_stderr()
                        {
                            wrong.push(format!("{name}: {line}\n{e}"));
                        }
                    }
                    ["cargo", "xtask", task, ..] => {
                        parsed += 1;
                        if !tasks.contains(&format!("[\"{task}\"")) {
                            wrong.push(format!("{name}: no task `{task}`: {line}"));
                        }
                    }
                    _ => {}
                }
            }
        }
    }
    println!("{parsed} commands");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(parsed >= 60, "{parsed} commands were found");
}

/// The table of docs/paper.md must contain the rows of `d2o known`.
#[test]
fn published_numbers_are_those_of_the_known_files() {
    let mut table = String::from("| data set | generator | published | statistic | source |\n|---|---|---|---|---|\n");
    for dataset in ["CIFAR-10", "FFHQ", "AFHQv2", "ImageNet"] {
        for (known, generator) in known::all().iter().filter_map(|k| Some((k, k.generator()?))) {
            if generator.dataset != dataset || generator.resolution > 64 {
                continue;
            }
            for number in &generator.published {
                let metric = if number.metric == "clip_fid" { "CLIP-FID" } else { "FID" };
                let side = generator.resolution;
                let (name, value, statistic) = (&known.name, number.value, &number.statistic);
                let source = &number.source;
                table +=
                    &format!("| {dataset} {side}×{side} | `{name}` | {metric} {value} | {statistic} | {source} |\n");
            }
        }
    }
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/paper.md")).unwrap();
    assert!(page.contains(&table), "{table}");
}

/// The reason why a command of the documentation is not run here, if there is one.
fn not_run(words: &[String]) -> Option<&'static str> {
    let published = |word: &str| {
        let file = word.rsplit('/').next().unwrap_or(word);
        known::find(word).is_some() || known::all().iter().any(|k| k.file == file)
    };
    let has = |what: &str| words.iter().any(|w| w.split(',').any(|w| w == what));
    if words.iter().any(|w| published(w) || w.contains("://")) {
        Some("published files")
    } else if has("ort-cuda") || has("cuda") || has("--device") || has("--ep-library") {
        Some("a GPU")
    } else if words[1] == "train" && !has("--duration") {
        Some("training in full")
    } else if cfg!(not(feature = "train")) && (words[1] == "train" || has("libtorch")) {
        Some("a build with training")
    } else {
        None
    }
}

/// A new folder with a copy of the [`stand_ins`].
fn folder_of_stand_ins() -> TempDir {
    static MADE: OnceLock<TempDir> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        stand_ins(dir.path());
        dir
    });
    let dir = tempfile::tempdir().unwrap();
    let status = Command::new("cp").arg("-r").arg(made.path().join(".")).arg(dir.path()).status().unwrap();
    assert!(status.success());
    dir
}

/// Writes files with the names that the pages use: images, a feature network and a generator with random weights.
fn stand_ins(dir: &Path) {
    let images = |file: &str, seeds: std::ops::Range<u64>| common::write_images(&dir.join(file), seeds);
    images("samples.npz", 0..128);
    images("photos.npz", 200..260);
    images("before.npz", 0..64);
    images("after.npz", 64..128);
    for (folder, seeds) in [("photos", 200..260), ("samples", 0..64)] {
        fs::create_dir(dir.join(folder)).unwrap();
        for seed in seeds {
            common::write_png(&dir.join(folder).join(format!("{seed}.png")), &common::image(seed));
        }
    }
    let mut data = DatasetWriter::create(&dir.join("data.zip")).unwrap();
    for seed in 300..400 {
        data.append(&common::image(seed).insert_axis(ndarray::Axis(0)), None).unwrap();
    }
    data.finish().unwrap();
    common::write_lite0(dir, 1, "inception");
    let network = ["export", "inception.safetensors", "--kind", "features", "--input", "f32", "--input-size", "32"];
    common::d2o(dir, &[&network[..], &["--out", "inception.onnx", "--overwrite", "--no-check"]].concat());
    let generator = golden_dir().join("d2o-ncsnpp-uncond.safetensors");
    fs::create_dir(dir.join("run")).unwrap();
    for name in ["edm.safetensors", "run/network-snapshot-005000.safetensors"] {
        fs::copy(&generator, dir.join(name)).unwrap();
    }
    common::d2o(dir, &["export", "edm.safetensors", "--out", "one-step.onnx", "--no-check"]);
    common::write_changed(&generator, "model.dec.8x8_in0.conv1.weight", &dir.join("changed.safetensors"));
    common::d2o(dir, &["export", "changed.safetensors", "--out", "changed.onnx", "--no-check"]);
    fs::copy(dir.join("one-step.onnx"), dir.join("after.onnx")).unwrap();
    let log = |file: &str, names: [&str; 2]| {
        let line = |kimg: f64| {
            let names = names.map(|name| format!(r#""{name}": {{"num": 1, "mean": {}, "std": 0}}"#, 2.0 / kimg));
            format!(r#"{{"Progress/kimg": {{"num": 1, "mean": {kimg}, "std": 0}}, {}}}"#, names.join(", "))
        };
        let lines: Vec<String> = [1.0, 2.0, 3.0].map(line).to_vec();
        fs::write(dir.join("run").join(file), lines.join("\n") + "\n").unwrap();
    };
    log("stats.jsonl", ["Loss/G/loss", "Loss/D/loss"]);
    log("metrics.jsonl", ["Metrics/fd", "Metrics/is"]);
    if let Some(lite0) = test_support::lite0() {
        fs::copy(lite0, dir.join("lite0.pth")).unwrap();
    }
}

/// Runs the commands of `page` in order in a folder of [`stand_ins`]; at least `least` must run. A comment
/// `exit code N` gives an expected code other than 0.
fn run_page(page: &str, least: usize) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = folder_of_stand_ins();
    let dir = dir.path();
    let programs = Path::new(env!("CARGO_BIN_EXE_d2o")).parent().unwrap().to_owned();
    let path = std::env::join_paths(
        std::iter::once(programs).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let path = path.unwrap();
    let (mut run, mut seconds) = (0, 0.0);
    for line in shell_lines(&fs::read_to_string(root.join(page)).unwrap()) {
        let own: Vec<_> =
            commands(&line).into_iter().filter(|words| words.first().is_some_and(|w| w == "d2o")).collect();
        if own.is_empty() {
            continue;
        }
        if let Some(reason) = own.iter().find_map(|words| not_run(words)) {
            println!("{page}: {reason}: {line}");
            continue;
        }
        let shorter = line.trim_start_matches("$ ").replace("0-49999", "0-31");
        let clock = Instant::now();
        let output = Command::new("sh")
            .args(["-e", "-c", &shorter])
            .current_dir(dir)
            .env("PATH", &path)
            .env("D2O_CACHE", dir.join("cache-of-d2o"))
            .env("D2O_OFFLINE", "1")
            .env("SLURM_ARRAY_TASK_ID", "0")
            .env("SLURM_ARRAY_TASK_COUNT", "8")
            .output()
            .unwrap();
        seconds += clock.elapsed().as_secs_f64();
        let expected = line.split_once("exit code ").map_or(0, |(_, code)| code[..1].parse().unwrap());
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(expected), "{page}: {shorter}\n{text}");
        run += 1;
    }
    println!("{page}: {run} commands, {seconds:.0} s");
    assert!(run >= least, "{page}: {run} commands were run");
}

#[test]
fn the_readme_runs() {
    run_page("README.md", 6);
}

#[test]
fn export_runs() {
    run_page("docs/export.md", 5);
}

#[test]
fn generation_runs() {
    run_page("docs/generate.md", 8);
}

#[test]
fn training_runs() {
    run_page("docs/train.md", 3);
}

#[test]
fn evaluation_runs() {
    run_page("docs/evaluate.md", 10);
}

#[test]
fn verification_runs() {
    run_page("docs/verify.md", 7);
}

#[test]
fn many_machines_run() {
    run_page("docs/scale.md", 5);
}

#[test]
fn reports_run() {
    run_page("docs/report.md", 4);
}
