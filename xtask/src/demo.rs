//! `cargo xtask demo`: fine-tune → export → generate → evaluate → verify → report, on real images.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use fs_err as fs;
use serde_json::Value;

use crate::paths::{build_d2o, cache, component, environment, root};
use crate::record::stamp;

/// Seconds of fine-tuning, including about 50 for evaluations of its snapshots.
const FINE_TUNE: &str = "275";
/// Ticks between two evaluated snapshots of fine-tuning.
const SNAPSHOTS: &str = "2";
/// Images per evaluation of a snapshot: as many as [`SEEDS`] has.
const SNAPSHOT_IMAGES: &str = "500";
/// Samples of each set that the report shows next to their nearest drawings.
const NEAREST: &str = "6";
/// Seeds of the images behind every number.
const SEEDS: &str = "0-499";
/// Steps of the Heun sampler.
const STEPS: &str = "10";
/// Resolution of the discriminator's backbone. The 224 of the recipe has twelve times the pixels.
const FEATURE_RESOLUTION: &str = "64";
/// Resolution of the extractor of the metrics.
const EXTRACTOR_RESOLUTION: &str = "224";
/// Code points of skin tones in file names: such a drawing repeats another one in a different skin tone.
const SKIN_TONES: [&str; 5] = ["1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"];

/// Runs the demo, prints a summary and writes it to `target/demo/summary.md`.
///
/// # Errors
/// If a step fails, the fine-tuned generator is not clearly better than before, or runtimes differ.
pub(crate) fn run() -> anyhow::Result<()> {
    let start = Instant::now();
    eprintln!("demo: building (the first build takes about a quarter of an hour on two cores)");
    let mut demo = Demo::new(build_d2o(true)?)?;
    let cache = cache()?;
    let (emoji, lite0) = (
        cache.join(component::OPENMOJI).join("svg"),
        cache.join(component::LITE0).join("efficientnet-lite0-57934424.pth"),
    );
    let pretrained = root().join("xtask/demo/openmoji-32-edm.safetensors");
    let longer = root().join("xtask/demo/openmoji-32-d2o.safetensors");

    let skin = SKIN_TONES.iter().flat_map(|tone| ["--exclude", tone]);
    demo.d2o(
        "dataset",
        args(["dataset", "--overwrite"]).path(&emoji).with(["--resolution", "32", "--out", "data.zip"]).with(skin),
    )?;
    demo.export(&pretrained, "one-step", "before")?;
    demo.generate("before")?;
    let first = demo.dir.join("before.png");
    eprintln!("demo: first picture, with the build: {:.0} s; see {}", start.elapsed().as_secs_f64(), first.display());
    let resolution = ["--input-size", EXTRACTOR_RESOLUTION, "--image-size", "32"];
    demo.d2o("export", args(["export", "--overwrite"]).path(&lite0).with(["--out", "lite0.onnx"]).with(resolution))?;

    demo.d2o(
        "reference",
        args(["refs", "make", "data.zip", "--overwrite", "--extractor", "lite0.onnx", "--out", "reference.npz"]),
    )?;
    let _ = fs::remove_dir_all(demo.dir.join("run"));
    let adversary = [
        "--feature-resolution",
        FEATURE_RESOLUTION,
        "--batch",
        "16",
        "--lr",
        "1.5e-4",
        "--dlr",
        "3e-4",
        "--freeze",
        "0",
    ];
    let fine_tune =
        args(["train", "--loss", "d2o", "--data", "data.zip", "--outdir", "run", "--max-seconds", FINE_TUNE])
            .with(adversary)
            .with(["--xflip", "--ema", "0.002", "--ema-warmup", "0.2", "--dump", "0", "--tick", "0.25"])
            .with(["--snap", SNAPSHOTS, "--eval-ref", "reference.npz", "--eval-extractor", "lite0.onnx"])
            .with(["--eval-images", SNAPSHOT_IMAGES, "--transfer"])
            .path(&pretrained)
            .with(["--backbone"])
            .path(&lite0);
    let printed = demo.d2o("fine-tune", fine_tune)?;
    let tuned = demo.dir.join(printed.lines().last().unwrap_or_default());

    for (checkpoint, kind, name) in
        [(&pretrained, "denoiser", "denoiser"), (&tuned, "one-step", "after"), (&longer, "one-step", "longer")]
    {
        demo.export(checkpoint, kind, name)?;
    }
    for name in ["after", "longer"] {
        demo.generate(name)?;
    }
    demo.remove_partial("heun.npz");
    let heun = args([
        "generate",
        "--overwrite",
        "denoiser.onnx",
        "--sampler",
        "heun",
        "--num-steps",
        STEPS,
        "--seeds",
        SEEDS,
        "--out",
        "heun.npz",
    ]);
    demo.d2o("generate, Heun", heun)?;

    let sets = [
        ("before", "one step, before"),
        ("after", "one step, after"),
        ("longer", "one step, longer fine-tuning"),
        ("heun", "EDM Heun, 10 steps"),
    ];
    for (name, title) in sets {
        let (samples, json) = (format!("{name}.npz"), format!("{name}.json"));
        let command =
            args(["evaluate", "--overwrite", &samples, "--ref", "reference.npz", "--extractor", "lite0.onnx"]);
        demo.d2o("evaluate", command.with(["--nearest", NEAREST, "--title", title, "--json", &json]))?;
    }
    demo.d2o("verify", args(["verify", "--overwrite", "after.onnx", "--samples", "64", "--json", "verify.json"]))?;
    let images = ["data=data.zip", "one step, before=before.npz", "one step, after=after.npz"];
    let images = images.into_iter().chain(["one step, longer fine-tuning=longer.npz", "EDM Heun, 10 steps=heun.npz"]);
    demo.d2o(
        "report",
        args([
            "report",
            "--overwrite",
            "before.json",
            "after.json",
            "longer.json",
            "heun.json",
            "verify.json",
            "--out",
            "report.html",
        ])
        .with(["--title", "d2o demo: OpenMoji, 32 × 32", "--baseline", "one step, before", "--references", "data.zip"])
        .with(["--losses", "fine-tuning=run/stats.jsonl", "--losses", "fine-tuning=run/metrics.jsonl"])
        .with(images.flat_map(|i| ["--images", i])),
    )?;

    demo.summarise(&sets)?;
    eprintln!("demo: {:.0} s; see {}", demo.start.elapsed().as_secs_f64(), demo.dir.join("report.html").display());
    demo.judge()
}

/// Arguments of one d2o command.
struct Args(Vec<OsString>);

fn args<'a>(words: impl IntoIterator<Item = &'a str>) -> Args {
    Args(words.into_iter().map(OsString::from).collect())
}

impl Args {
    fn with<'a>(mut self, words: impl IntoIterator<Item = &'a str>) -> Self {
        self.0.extend(words.into_iter().map(OsString::from));
        self
    }

    fn path(mut self, path: &Path) -> Self {
        self.0.push(path.into());
        self
    }
}

struct Demo {
    dir: PathBuf,
    binary: PathBuf,
    start: Instant,
    /// Seconds by stage, in order.
    stages: Vec<(String, f64)>,
}

impl Demo {
    fn new(binary: PathBuf) -> anyhow::Result<Self> {
        let dir = root().join("target/demo");
        fs::create_dir_all(&dir)?;
        Ok(Self { dir, binary, start: Instant::now(), stages: Vec::new() })
    }

    /// Runs d2o in the folder of the demo and returns its standard output.
    fn d2o(&mut self, stage: &str, args: Args) -> anyhow::Result<String> {
        let shown: Vec<_> = args.0.iter().map(|a| quoted(a)).collect();
        eprintln!("demo: d2o {}", shown.join(" "));
        let start = Instant::now();
        let output = Command::new(&self.binary)
            .current_dir(&self.dir)
            .envs(environment()?)
            .args(&args.0)
            .stderr(std::process::Stdio::inherit())
            .output()
            .with_context(|| format!("start {}", self.binary.display()))?;
        let seconds = start.elapsed().as_secs_f64();
        match self.stages.iter_mut().find(|(name, _)| name == stage) {
            Some((_, sum)) => *sum += seconds,
            None => self.stages.push((stage.to_owned(), seconds)),
        }
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        print!("{printed}");
        if !output.status.success() {
            bail!("`d2o {}` failed ({})", shown.join(" "), output.status);
        }
        Ok(printed)
    }

    fn export(&mut self, checkpoint: &Path, kind: &str, name: &str) -> anyhow::Result<String> {
        let out = format!("{name}.onnx");
        self.d2o("export", args(["export", "--overwrite"]).path(checkpoint).with(["--kind", kind, "--out", &out]))
    }

    /// Removes the unfinished output of a demo that was killed. Its generator differs from the present one.
    fn remove_partial(&self, out: &str) {
        let _ = fs::remove_dir_all(self.dir.join(format!("{out}.partial")));
    }

    /// Generates `NAME.npz` and a grid of samples, `NAME.png`, with `NAME.onnx`, one step for each image.
    fn generate(&mut self, name: &str) -> anyhow::Result<String> {
        let [graph, out, grid] = ["onnx", "npz", "png"].map(|extension| format!("{name}.{extension}"));
        self.remove_partial(&out);
        let words = ["generate", "--overwrite", &graph, "--seeds", SEEDS, "--out", &out, "--grid", &grid];
        self.d2o("generate, one step", args(words))
    }

    fn json(&self, name: &str) -> anyhow::Result<Value> {
        let path = self.dir.join(format!("{name}.json"));
        serde_json::from_slice(&fs::read(&path)?).with_context(|| format!("read `{}`", path.display()))
    }

    /// Writes and prints the tables of `docs/demo.md`.
    fn summarise(&self, sets: &[(&str, &str)]) -> anyhow::Result<()> {
        let mut lines = vec![
            "| images | FD (Lite0) ↓ | IS (Lite0) ↑ | precision ↑ | recall ↑ |".to_owned(),
            "|---|---|---|---|---|".to_owned(),
        ];
        for (name, title) in sets {
            let json = self.json(name)?;
            let cell = |metric: &str| -> anyhow::Result<String> {
                let m = &json["metrics"][metric];
                let number = |v: &Value| v.as_f64().map(|v| format!("{v:.3}"));
                let value = number(&m["value"]).with_context(|| format!("{name}: no `{metric}`"))?;
                Ok(match (number(&m["ci95"][0]), number(&m["ci95"][1]), number(&m["std"])) {
                    (Some(low), Some(high), _) => format!("{value} [{low}, {high}]"),
                    (_, _, Some(std)) => format!("{value} ± {std}"),
                    _ => value,
                })
            };
            lines.push(format!(
                "| {title} | {} | {} | {} | {} |",
                cell("fd")?,
                cell("is")?,
                cell("precision")?,
                cell("recall")?
            ));
        }
        lines.extend([
            String::new(),
            "| output | max abs | max rel | SNR | verdict |".to_owned(),
            "|---|---|---|---|---|".to_owned(),
        ]);
        for o in self.json("verify")?["outputs"].as_array().into_iter().flatten() {
            let number = |key: &str| o[key].as_f64().unwrap_or(f64::NAN);
            let verdict = if o["agrees"] == true { "agrees" } else { "differs" };
            lines.push(format!(
                "| `{}`, {} | {:.2e} | {:.2e} | {:.1} dB | {verdict} |",
                o["name"].as_str().unwrap_or_default(),
                o["runtime"].as_str().unwrap_or_default(),
                number("max_abs"),
                number("max_rel"),
                number("snr_db")
            ));
        }
        lines.extend([String::new(), "| stage | seconds |".to_owned(), "|---|---|".to_owned()]);
        lines.extend(self.stages.iter().map(|(stage, seconds)| format!("| {stage} | {seconds:.1} |")));
        lines.push(format!("| all | {:.1} |", self.start.elapsed().as_secs_f64()));
        lines.extend([String::new(), stamp()?]);
        let text = lines.join("\n");
        println!("{text}");
        Ok(fs::write(self.dir.join("summary.md"), format!("{text}\n"))?)
    }

    /// Fails unless fine-tuning lowered the distance by more than a tenth. The distance has no interval here, because
    /// there are fewer samples than features.
    fn judge(&self) -> anyhow::Result<()> {
        const CLEARLY: f64 = 0.9;
        let distance = |name: &str| -> anyhow::Result<f64> {
            self.json(name)?["metrics"]["fd"]["value"].as_f64().with_context(|| format!("{name}: no distance"))
        };
        let (before, after) = (distance("before")?, distance("after")?);
        ensure!(
            after < CLEARLY * before,
            "fine-tuning did not clearly lower the distance: {after:.3} after, {before:.3} before"
        );
        Ok(())
    }
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    if word.contains(' ') { format!("'{word}'") } else { word.into_owned() }
}
