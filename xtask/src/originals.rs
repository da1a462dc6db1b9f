//! `cargo xtask originals`: exports full-size checkpoints written by the original projects and compares the outputs on
//! every engine.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use fs_err as fs;
use serde_json::{Map, Value, json};

use crate::paths::{build_d2o, cache, cargo, component, environment, root, target};
use crate::python;
use crate::record::{stamp, write_between};

/// Python packages of the originals.
const REQUIREMENTS: [&str; 12] = [
    "torch==2.15.0",
    "torchvision==0.29.2",
    "timm==1.0.31",
    "transformers==5.24.0",
    "open_clip_torch==3.3.0",
    "torch-fidelity==0.4.0",
    "pytorch-fid==0.3.0",
    "safetensors",
    "numpy==2.4.6",
    "scipy",
    "onnxruntime==1.32.0",
    "onnxscript==0.7.2",
];
/// Marks around the table in docs/export.md.
const MARKS: [&str; 2] = ["<!-- table: cargo xtask originals -->\n", "<!-- end of table -->\n"];

/// Options of the command line.
struct Options {
    orig: PathBuf,
    only: Vec<String>,
    python: Option<PathBuf>,
    keep: bool,
}

fn options(words: &[&str]) -> anyhow::Result<Options> {
    let (mut orig, mut only, mut python, mut keep) = (None, Vec::new(), None, false);
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let mut value = || rest.next().with_context(|| format!("{word}: missing value"));
        match *word {
            "--orig" => orig = Some(std::path::absolute(value()?)?),
            "--only" => only.push((*value()?).to_owned()),
            "--python" => python = Some(std::path::absolute(value()?)?),
            "--keep" => keep = true,
            other => bail!("`{other}`: expected --orig DIR, --only NAME, --python PROGRAM or --keep"),
        }
    }
    Ok(Options {
        orig: orig.context("--orig DIR is missing: the folder with checkouts of the originals")?,
        only,
        python,
        keep,
    })
}

/// Makes, exports and compares every case, or those named with `--only`. Adds the rows to those of earlier runs and
/// writes the table of docs/export.md.
///
/// # Errors
/// If a case cannot be made, exported or reproduced. The other cases are finished first.
pub(crate) fn run(words: &[&str]) -> anyhow::Result<()> {
    let options = options(words)?;
    let python = match &options.python {
        Some(python) => python.clone(),
        None => interpreter()?,
    };
    let script = root().join("tests/data/gen/originals.py");
    let listed = text(Command::new(&python).arg(&script).arg("--list"))?;
    let names: Vec<&str> = listed.lines().collect();
    if let Some(unknown) = options.only.iter().find(|n| !names.contains(&n.as_str())) {
        bail!("unknown case `{unknown}`: expected one of {}", names.join(", "));
    }
    let target = target()?;
    let (out, record) = (target.join("originals"), target.join("originals.json"));
    let program = build_d2o(true)?;
    let mut faults = Vec::new();
    for name in names.iter().filter(|n| options.only.is_empty() || options.only.iter().any(|o| o == *n)) {
        eprintln!("originals: {name}");
        match case(name, &python, &script, &options, &out, &program) {
            Ok(row) => {
                eprintln!("originals: {row}");
                let mut rows = recorded(&record)?;
                rows.insert((*name).to_owned(), row);
                fs::write(&record, serde_json::to_vec_pretty(&rows)?)?;
            }
            Err(error) => faults.push(format!("{name}: {error:#}")),
        }
        if !options.keep && out.is_dir() {
            fs::remove_dir_all(&out)?;
        }
    }
    render(&names, &recorded(&record)?)?;
    if faults.is_empty() { Ok(()) } else { bail!("{}", faults.join("\n")) }
}

fn case(
    name: &str,
    python: &Path,
    script: &Path,
    options: &Options,
    out: &Path,
    program: &Path,
) -> anyhow::Result<Value> {
    let mut make = Command::new(python);
    make.arg(script).arg(out).arg("--orig").arg(&options.orig).args(["--case", name]);
    // Nothing is downloaded: weights are random.
    make.envs([("OMP_NUM_THREADS", "1"), ("HF_HUB_OFFLINE", "1"), ("PYTHONPATH", "")]);
    if !make.stdout(Stdio::null()).status()?.success() {
        bail!("originals.py failed");
    }
    let facts: Value = serde_json::from_slice(&fs::read(out.join(format!("{name}.json")))?)?;
    let field = |key: &str| facts[key].as_str().with_context(|| format!("no `{key}`"));
    let (source, graph) = (out.join(field("file")?), out.join(format!("{name}.onnx")));
    let mut export = Command::new(python);
    export.arg(script).arg("--measure").arg(program).arg("export").arg(&source).arg("--out").arg(&graph);
    export
        .args(["--overwrite", "--no-check"])
        .args(facts["options"].as_array().into_iter().flatten().filter_map(Value::as_str));
    export.envs(environment()?);
    let measured: Value = serde_json::from_str(text(&mut export)?.trim())?;
    if measured["code"] != 0 {
        bail!("d2o export failed: {measured}");
    }
    let mut compare = cargo()?;
    compare.args(["test", "-q", "-p", "d2o", "--features", "train", "--test", "originals", "--", "--nocapture"]);
    let output = compare.env("D2O_ORIGINAL", out.join(format!("{name}.json"))).output()?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{printed}{}", String::from_utf8_lossy(&output.stderr));
    }
    let mut runtimes = Map::new();
    for line in printed.lines().filter_map(|l| l.split_once("original: ")) {
        let of: Value = serde_json::from_str(line.1)?;
        runtimes.insert(of["runtime"].as_str().unwrap_or_default().to_owned(), of["relative"].clone());
    }
    Ok(json!({
        "kind": facts["kind"], "network": facts["network"], "parameters": facts["parameters"], "seconds": measured["seconds"], "cpu_seconds": measured["cpu_seconds"],
        "peak_kib": measured["peak_kib"], "source_bytes": fs::metadata(&source)?.len(), "graph_bytes": fs::metadata(&graph)?.len(),
        "graph_sha256": crate::setup::hash(&graph)?.0, "relative": runtimes,
    }))
}

/// Times ONNX Runtime on three graphs of the CIFAR-10 NCSN++: d2o's export, plain and with `--winograd`, and PyTorch's
/// export. They take turns in one process.
///
/// # Errors
/// If a step fails or outputs differ.
pub(crate) fn bench(words: &[&str]) -> anyhow::Result<()> {
    const NAME: &str = "cifar10-ncsnpp";
    let options = options(words)?;
    let python = match &options.python {
        Some(python) => python.clone(),
        None => interpreter()?,
    };
    let (script, target) = (root().join("tests/data/gen/originals.py"), target()?);
    let out = target.join("bench-export");
    let script = || {
        let mut command = Command::new(&python);
        command.arg(&script).arg(&out).arg("--orig").arg(&options.orig).args(["--case", NAME]);
        command
    };
    if !script().status()?.success() {
        bail!("originals.py failed");
    }
    let (source, graph) = (out.join(format!("{NAME}.pkl")), out.join(format!("{NAME}.onnx")));
    let filtered = out.join(format!("{NAME}-winograd.onnx"));
    let program = build_d2o(true)?;
    for (to, options) in [(&graph, &[][..]), (&filtered, &["--winograd"][..])] {
        let mut export = Command::new(&program);
        export
            .current_dir(root())
            .envs(environment()?)
            .args(["export", "--overwrite", "--no-check"])
            .args(options)
            .arg(&source)
            .arg("--out")
            .arg(to);
        if !export.status()?.success() {
            bail!("d2o export failed");
        }
    }
    let threads = std::thread::available_parallelism()?.to_string();
    println!("{}", text(script().arg("--bench").arg(&graph).args(["--threads", &threads]))?.trim());
    Ok(())
}

/// Times one training step of D2O on the network of CIFAR-10 with batch 8, for each choice of feature networks. The
/// original code and `d2o train` take turns.
///
/// # Errors
/// If a step fails.
pub(crate) fn bench_train(words: &[&str]) -> anyhow::Result<()> {
    const NAME: &str = "cifar10-ncsnpp";
    const ROUNDS: usize = 2;
    let options = options(words)?;
    let python = match &options.python {
        Some(python) => python.clone(),
        None => interpreter()?,
    };
    let (scripts, out) = (root().join("tests/data/gen"), target()?.join("bench-train"));
    fs::create_dir_all(&out)?;
    let source = out.join(format!("{NAME}.pkl"));
    if !source.exists() {
        let mut make = Command::new(&python);
        make.arg(scripts.join("originals.py")).arg(&out).arg("--orig").arg(&options.orig).args(["--case", NAME]);
        if !make.status()?.success() {
            bail!("originals.py failed");
        }
    }
    let program = build_d2o(true)?;
    let lite0 = cache()?.join(component::LITE0).join("efficientnet-lite0-57934424.pth");
    let vgg = out.join("vgg16_bn.pth");
    let cases = [("lite0", &[&lite0][..]), ("vgg16_bn+lite0", &[&vgg, &lite0])];
    let chosen = |name: &str| options.only.is_empty() || options.only.iter().any(|o| o == name);
    for (backbones, weights) in cases.into_iter().filter(|(name, _)| chosen(name)) {
        for _ in 0..ROUNDS {
            let mut timed = Command::new(&python);
            timed.arg(scripts.join("recipe.py")).arg("--orig").arg(&options.orig).arg("--time").arg(&out);
            if weights.contains(&&vgg) {
                timed.arg("--vgg");
            }
            let (printed, their_peak) = measured(&mut timed)?;
            let printed: Value = serde_json::from_str(printed.trim())?;
            let theirs = printed["images_per_second"].as_f64().context("a speed")?;
            let (ours, our_peak) = train(&program, &out, &source, backbones, weights)?;
            println!(
                "{}",
                json!({
                    "backbones": backbones, "batch": 8,
                    "images_per_second": { "d2o": ours, "original": theirs, "ratio": ours / theirs },
                    "peak_mib": { "d2o": our_peak, "original": their_peak },
                })
            );
        }
    }
    Ok(())
}

/// Images per second of `d2o train` (the median of its ticks after the first), and its peak memory, MiB.
fn train(
    program: &Path,
    out: &Path,
    source: &Path,
    backbones: &str,
    weights: &[&PathBuf],
) -> anyhow::Result<(f64, u64)> {
    let run = out.join("run");
    if run.exists() {
        fs::remove_dir_all(&run)?;
    }
    let mut command = Command::new(program);
    command.current_dir(root()).envs(environment()?).args(["train", "--quiet", "--loss", "d2o"]);
    command.args(["--batch", "8", "--freeze", "0", "--r1-gamma", "0", "--tick", "0.008", "--duration", "0.000048"]);
    command.arg("--transfer").arg(source).arg("--data").arg(out.join("images.npz")).arg("--outdir").arg(&run);
    command.args(["--backbones", backbones]);
    for path in weights {
        command.arg("--backbone-weights").arg(path);
    }
    let (_, peak) = measured(&mut command)?;
    let speed = |line: &str| -> anyhow::Result<f64> {
        let line: Value = serde_json::from_str(line)?;
        Ok(1e3 / line["Timing/sec_per_kimg"]["mean"].as_f64().context("a speed")?)
    };
    let log = fs::read_to_string(run.join("stats.jsonl"))?;
    let mut speeds = log.lines().skip(1).map(speed).collect::<anyhow::Result<Vec<f64>>>()?;
    speeds.sort_by(f64::total_cmp);
    Ok((*speeds.get(speeds.len() / 2).context("no iteration was logged")?, peak))
}

/// Standard output of `command`, and the peak of its resident memory in MiB, sampled every 100 ms.
fn measured(command: &mut Command) -> anyhow::Result<(String, u64)> {
    let program = format!("{:?}", command.get_program());
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("start {program}"))?;
    let (status, mut peak) = (format!("/proc/{}/status", child.id()), 0);
    while child.try_wait()?.is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let kib = line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0) >> 10);
        std::thread::sleep(Duration::from_millis(100));
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{program} failed");
    }
    Ok((String::from_utf8(output.stdout)?, peak))
}

/// Standard output of `command`.
fn text(command: &mut Command) -> anyhow::Result<String> {
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("start {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{:?} failed", command.get_program());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// The interpreter of a virtual environment in the cache with [`REQUIREMENTS`].
fn interpreter() -> anyhow::Result<PathBuf> {
    python::environment(&cache()?.join("originals-python"), &REQUIREMENTS)
}

fn recorded(path: &Path) -> anyhow::Result<Map<String, Value>> {
    if !path.exists() {
        return Ok(Map::new());
    }
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// Writes the rows into docs/export.md, in the order of `names`.
fn render(names: &[&str], rows: &Map<String, Value>) -> anyhow::Result<()> {
    let mut table = vec![
        "| file | network | parameters | export | processor | peak memory | of the file | file | graph | ort | tract | libtorch |"
            .to_owned(),
        "|---|---|---|---|---|---|---|---|---|---|---|---|".to_owned(),
    ];
    for row in names.iter().filter_map(|n| rows.get(*n)) {
        let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
        const MIB: f64 = (1 << 20) as f64;
        let relative =
            |runtime: &str| row["relative"][runtime].as_f64().map_or_else(|| "–".to_owned(), |r| format!("{r:.1e}"));
        table.push(format!(
            "| {} | {} | {:.2} M | {:.2} s | {:.2} s | {:.0} MiB | {:.2} × | {:.0} MiB | {:.0} MiB | {} | {} | {} |",
            row["kind"].as_str().unwrap_or_default(),
            row["network"].as_str().unwrap_or_default(),
            number("parameters") / 1e6,
            number("seconds"),
            number("cpu_seconds"),
            number("peak_kib") / 1024.0,
            number("peak_kib") * 1024.0 / number("source_bytes"),
            number("source_bytes") / MIB,
            number("graph_bytes") / MIB,
            relative("ort-cpu"),
            relative("tract"),
            relative("libtorch"),
        ));
    }
    let text = format!("{}\n\n{}\n", stamp()?, table.join("\n"));
    write_between(&root().join("docs/export.md"), MARKS, &text)
}
