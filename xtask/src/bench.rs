//! `cargo xtask bench`: compares speed and memory with other tools in one run, for the tables of `docs/performance.md`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use fs_err as fs;
use serde_json::Value;

use crate::paths::{cargo, environment, root, target};
use crate::record::stamp;

/// Repetitions of the short measurements. d2o and the other tool take turns, and the best of each counts.
const ROUNDS: usize = 3;
/// Images per measurement of a feature network.
const IMAGES: usize = 512;

/// Providers to measure: `auto`, and ONNX Runtime's own kernels.
const PROVIDERS: [&str; 2] = ["auto", "cpu"];

/// Names of the measurements on the command line.
const PARTS: [&str; 4] = ["inception", "frechet", "precision-recall", "end-to-end"];

/// Runs the named measurements, or all. `--python PY` names a Python with the other tools, `--images N` the number of
/// images per set of `end-to-end`.
///
/// # Errors
/// If a tool is missing or fails.
pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<()> {
    let mut bench = Bench {
        dir: root().join("target/bench"),
        python: "python3".into(),
        images: "5000".to_owned(),
        rows: vec![stamp()?],
    };
    let (mut parts, mut words) = (Vec::new(), arguments.iter());
    while let Some(word) = words.next() {
        match *word {
            "--python" => bench.python = words.next().context("--python needs a path")?.into(),
            "--images" => bench.images = (*words.next().context("--images needs a number")?).to_owned(),
            part if PARTS.contains(&part) => parts.push(part),
            other => bail!("`{other}`: expected one of {}", PARTS.join(", ")),
        }
    }
    if parts.is_empty() {
        parts = PARTS.to_vec();
    }
    fs::create_dir_all(&bench.dir)?;
    let built = cargo()?.args(["build", "--release", "--workspace", "--features", "d2o/train"]).status()?;
    ensure!(built.success(), "the build failed");
    for part in parts {
        let first = bench.rows.len();
        bench.rows.push(format!("\n{part}\n"));
        match part {
            "inception" => bench.inception()?,
            "frechet" => bench.frechet()?,
            "precision-recall" => bench.precision_recall()?,
            _ => bench.end_to_end()?,
        }
        println!("{}", bench.rows[first..].join("\n"));
        fs::write(bench.dir.join("summary.md"), format!("{}\n", bench.rows.join("\n")))?;
    }
    Ok(())
}

struct Bench {
    dir: PathBuf,
    python: OsString,
    images: String,
    rows: Vec<String>,
}

impl Bench {
    /// Runs a command of `xtask/peers/bench.py` and returns its last line of JSON.
    fn peer(&self, words: &[&str]) -> anyhow::Result<Value> {
        eprintln!("bench: {}", words.join(" "));
        let script = root().join("xtask/peers/bench.py");
        let output = Command::new(&self.python)
            .arg(script)
            .args(words)
            .current_dir(&self.dir)
            .envs(environment()?)
            .stderr(std::process::Stdio::inherit())
            .output()
            .with_context(|| format!("start {}", self.python.display()))?;
        ensure!(
            output.status.success(),
            "`{}` failed; xtask/peers/bench.py lists the packages it requires",
            words.join(" ")
        );
        let printed = String::from_utf8_lossy(&output.stdout);
        let line = printed.lines().rfind(|l| l.starts_with('{')).context("the script printed no result")?;
        Ok(serde_json::from_str(line)?)
    }

    /// Runs d2o, timed by `xtask/peers/bench.py`.
    fn d2o(&self, words: &[&str]) -> anyhow::Result<Value> {
        let binary = root().join(target()?).join("release/d2o");
        let binary = binary.to_string_lossy().into_owned();
        self.peer(&[&["run", "--", &binary], words].concat())
    }

    fn json(&self, name: &str) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&fs::read(self.dir.join(name))?)?)
    }

    fn weights(&self) -> anyhow::Result<()> {
        if !self.dir.join("inception.onnx").exists() {
            self.peer(&["weights", "inception.pth"])?;
            let export = ["export", "inception.pth", "--fuse-resize", "--image-size", "32", "--out", "inception.onnx"];
            self.d2o(&export)?;
            self.d2o(&["export", "inception.pth", "--input", "f32", "--out", "inception-f32.onnx"])?;
        }
        Ok(())
    }

    fn samples(&self, name: &str, first: usize, count: usize) -> anyhow::Result<()> {
        let demo = root().join("xtask/demo/openmoji-32-d2o.safetensors");
        if !self.dir.join("demo.onnx").exists() {
            self.d2o(&["export", &demo.to_string_lossy(), "--out", "demo.onnx"])?;
        }
        if !self.dir.join(name).exists() {
            let seeds = format!("{first}-{}", first + count - 1);
            self.d2o(&["generate", "demo.onnx", "--seeds", &seeds, "--out", name])?;
        }
        Ok(())
    }

    /// Features of Inception: the whole features stage of `d2o evaluate` against a bare session.
    fn inception(&mut self) -> anyhow::Result<()> {
        self.weights()?;
        self.samples("inception.npz", 0, IMAGES)?;
        let (mut bare, mut ours) = (0.0_f64, [0.0_f64; 2]);
        for _ in 0..ROUNDS {
            let peer = self.peer(&["ort", "inception.onnx", &IMAGES.to_string(), "64"])?;
            bare = bare.max(number(&peer["images"]) / number(&peer["seconds"]));
            for (best, provider) in ours.iter_mut().zip(PROVIDERS) {
                let files = ["evaluate", "inception.npz", "--ref", "inception.npz", "--extractor", "inception.onnx"];
                let options = ["--metrics", "fid", "--bootstrap", "0", "--overwrite", "--json", "inception.json"];
                self.d2o(&[&files[..], &options, &["--provider", provider]].concat())?;
                let timings = &self.json("inception.json")?["timings"];
                *best = best.max(count(IMAGES) / number(&timings["features"]));
            }
        }
        self.rows.extend([
            "| Inception's pool3, logits and spatial at 299² | img/s | ratio |".to_owned(),
            "|---|---|---|".to_owned(),
            format!("| bare ONNX Runtime | {bare:.1} | |"),
        ]);
        let row = |(rate, provider): (f64, &str)| {
            format!("| d2o's features stage, `--provider {provider}` | {rate:.1} | {:.3} |", rate / bare)
        };
        self.rows.extend(ours.into_iter().zip(PROVIDERS).map(row));
        Ok(())
    }

    fn frechet(&mut self) -> anyhow::Result<()> {
        // divan repeats the measurement.
        let (peer, ours) = (self.peer(&["frechet", "2048"])?, divan("frechet/2048")?);
        let (sqrtm, cholesky) = (number(&peer["seconds"]), number(&peer["cholesky_seconds"]));
        self.rows.extend([
            "| two 2048-d Gaussians | seconds |".to_owned(),
            "|---|---|".to_owned(),
            format!("| pytorch-fid (scipy sqrtm) | {sqrtm:.2} |"),
            format!("| NumPy, Cholesky and symmetric eigenvalues | {cholesky:.2} |"),
            format!("| d2o | {ours:.2} |"),
        ]);
        Ok(())
    }

    fn precision_recall(&mut self) -> anyhow::Result<()> {
        let (mut numpy, mut memory, mut ours) = (f64::INFINITY, 0.0_f64, f64::INFINITY);
        for _ in 0..ROUNDS {
            let peer = self.peer(&["precision-recall", "10000", "2048"])?;
            numpy = numpy.min(number(&peer["seconds"]));
            memory = memory.max(number(&peer["peak_mb"]));
            ours = ours.min(divan("precision_recall_10k_by_10k/Squared")?);
        }
        self.rows.extend([
            "| 10 000 × 10 000 × 2048, f32 | seconds | peak, MB |".to_owned(),
            "|---|---|---|".to_owned(),
            format!("| NumPy | {numpy:.2} | {memory:.0} |"),
            format!("| d2o | {ours:.2} | `cargo bench -p d2o-evaluations` counts every byte |"),
        ]);
        Ok(())
    }

    /// PNG folders to FID, IS, KID, precision and recall.
    fn end_to_end(&mut self) -> anyhow::Result<()> {
        self.weights()?;
        let images: usize = self.images.parse().context("--images")?;
        let (samples, reference) = (format!("samples-{images}"), format!("reference-{images}"));
        self.samples(&samples, 0, images)?;
        self.samples(&reference, images, images)?;
        let mut ours = Vec::new();
        for (protocol, metrics) in [("torch-fidelity", "fid,is,kid,pr"), ("clean", "fid,kid")] {
            for provider in PROVIDERS {
                let json = format!("{protocol}-{provider}.json");
                let files = ["evaluate", &samples, "--ref", &reference, "--extractor", "inception-f32.onnx"];
                let options = ["--protocol", protocol, "--metrics", metrics, "--bootstrap", "0", "--json", &json];
                let options = [&options[..], &["--overwrite", "--allow-deviation", "extractor"]].concat();
                let timed = self.d2o(&[&files[..], &options, &["--provider", provider]].concat())?;
                ours.push((provider, timed, self.json(&json)?));
            }
        }
        self.rows.extend([
            format!("| {images} + {images} PNG of 32×32 | seconds | img/s | peak, MB | FID |"),
            "|---|---|---|---|---|".to_owned(),
        ]);
        let peers = [("torch-fidelity", "torch-fidelity"), ("clean-fid", "clean")];
        for ((peer, protocol), ours) in peers.iter().zip(ours.chunks(2)) {
            let theirs = self.peer(&[peer, &samples, &reference, "inception.pth"])?;
            let fid = theirs.get("frechet_inception_distance").unwrap_or(&theirs["fid"]);
            let row = |name: &str, run: &Value, fid: f64| {
                let seconds = number(&run["seconds"]);
                let rate = 2.0 * count(images) / seconds;
                format!("| {name} | {seconds:.1} | {rate:.1} | {:.0} | {fid:.6} |", number(&run["peak_mb"]))
            };
            self.rows.push(row(peer, &theirs, number(fid)));
            for (provider, timed, result) in ours {
                let ratio = number(&theirs["seconds"]) / number(&timed["seconds"]);
                let name = format!("d2o, `--protocol {protocol} --provider {provider}`, {ratio:.2} ×");
                self.rows.push(row(&name, timed, number(&result["metrics"]["fid"]["value"])));
            }
        }
        Ok(())
    }
}

/// Fastest time of a bench of `evaluations/benches`, seconds. `name` is `FUNCTION/ARGUMENT`.
fn divan(name: &str) -> anyhow::Result<f64> {
    eprintln!("bench: {name}");
    let (function, argument) = name.split_once('/').context("a bench has an argument")?;
    let output = cargo()?
        .args(["bench", "--package", "d2o-evaluations", "--bench", "metrics", "--", function])
        .stderr(std::process::Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "`cargo bench` failed");
    let printed = String::from_utf8_lossy(&output.stdout);
    let line = printed.lines().find_map(|l| l.split_once("─ ")?.1.strip_prefix(argument)?.strip_prefix(' '));
    let mut words = line.with_context(|| format!("no `{name}` in the output"))?.split_whitespace();
    let (value, unit) = (words.next().unwrap_or_default().parse::<f64>()?, words.next().unwrap_or_default());
    Ok(match unit {
        "s" => value,
        "ms" => value / 1e3,
        "µs" => value / 1e6,
        other => bail!("unit `{other}`"),
    })
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

#[allow(clippy::cast_precision_loss, reason = "a number of images")]
fn count(images: usize) -> f64 {
    images as f64
}
