//! `cargo xtask parity`: runs every original tool and d2o on the same images with the same random weights, and writes
//! docs/parity.md.
//!
//! Not part of the tests: it needs Python packages, and checkouts of the tools that have no package.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use fs_err as fs;
use serde::Deserialize;
use serde_json::Value;

use crate::{paths, record};

/// Allowed relative difference from the original.
const BOUND: f64 = 1e-4;
/// Allowed relative difference of standard deviations. The f32 sums of the tools affect them more than means.
const BOUND_STD: f64 = 1e-3;
/// Pairs of sets, by the suffix of `real-` and `fake-`: sides of 32 and 64 pixels, JPEGs of two qualities, mixed sizes.
const SETS: [&str; 5] = ["32", "64", "jpeg75", "jpeg95", "mixed"];
/// The feature network of most numbers.
const INCEPTION: &str = "inception.onnx";
/// Images per subset of KID. The sets are smaller than the 1000 of the protocols.
const KID_SUBSET: &str = "50";

const TORCH: &[&str] = &[
    "torch==2.15.0",
    "torchvision==0.29.2",
    "torch-fidelity==0.4.0",
    "clean-fid==0.1.35",
    "pytorch-fid==0.3.0",
    "torchmetrics==1.9.0",
    "open_clip_torch==3.3.0",
    "timm==1.0.31",
    "prdc==0.2",
    "scikit-learn==1.9.1",
    "numpy==2.4.6",
    "scipy==1.17.1",
    "pillow==13.0.0",
    "h5py==3.14.0",
    "click",
    "psutil",
    "setuptools",
];
const TENSORFLOW: &[&str] =
    &["tensorflow-cpu==2.21.0", "numpy==2.4.6", "scipy==1.17.1", "pillow==13.0.0", "h5py==3.14.0", "requests", "tqdm"];

/// Original tools: name, environment, and the option that names their checkout.
const TOOLS: [(&str, Env, Option<&str>); 8] = [
    ("torch-fidelity", Env::Torch, None),
    ("pytorch-fid", Env::Torch, None),
    ("clean-fid", Env::Torch, None),
    ("torchmetrics", Env::Torch, None),
    ("prdc", Env::Torch, None),
    ("edm", Env::Torch, Some("--edm")),
    ("stylegan3", Env::Torch, Some("--stylegan3")),
    ("guided-diffusion", Env::TensorFlow, Some("--guided-diffusion")),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Env {
    Torch,
    TensorFlow,
}

/// One number of an original tool.
#[derive(Debug, Deserialize)]
struct Original {
    protocol: String,
    metric: String,
    /// The pair of sets.
    images: String,
    value: f64,
    tool: String,
    /// Whether it is known to differ, for a reason stated on the page.
    #[serde(default)]
    known: bool,
    /// Feature file of the samples, if the number was computed from feature files instead of images.
    #[serde(default)]
    samples: Option<String>,
    /// Network of precision and recall, if it is not Inception.
    #[serde(default)]
    extractor: Option<String>,
    #[serde(default)]
    reference: Option<String>,
}

/// Difference between features of d2o and those of an original.
#[derive(Debug, Deserialize)]
struct Matrix {
    protocol: String,
    shape: [usize; 2],
    relative: f64,
}

/// Runs every tool that is installed or has a checkout, compares, and writes docs/parity.md.
///
/// # Errors
/// If a tool fails, a file cannot be written, or a difference exceeds the bound.
pub(crate) fn run(words: &[&str]) -> anyhow::Result<()> {
    let option = |name: &str| words.iter().position(|w| *w == name).and_then(|i| words.get(i + 1)).copied();
    if let Some(odd) = words.iter().step_by(2).find(|w| !OPTIONS.contains(w)) {
        bail!("unknown option `{odd}`: expected {}, each with a path", OPTIONS.join(", "));
    }
    ensure!(words.len().is_multiple_of(2), "`{}` without a path", words.last().unwrap_or(&""));
    let dir = option("--dir").map_or_else(|| paths::cache().map(|c| c.join("parity")), |d| Ok(PathBuf::from(d)))?;
    fs::create_dir_all(&dir)?;
    let torch = python(option("--python"), &dir.join("torch"), TORCH)?;
    let tensorflow = match (option("--guided-diffusion"), option("--tensorflow-python")) {
        (None, _) => None,
        (Some(_), given) => Some(python(given, &dir.join("tensorflow"), TENSORFLOW)?),
    };
    let d2o = match option("--d2o") {
        Some(path) => PathBuf::from(path),
        None => paths::build_d2o(false)?,
    };
    let script = paths::root().join("xtask/parity/originals.py");
    let interpreter = |env: Env| if env == Env::Torch { Some(&torch) } else { tensorflow.as_ref() };
    let original = |tool: &str, env: Env, checkout: Option<&str>| -> anyhow::Result<String> {
        let python = interpreter(env).context("no interpreter")?;
        let mut command = Command::new(python);
        command.arg(&script).arg(tool).arg(&dir).args(checkout);
        output(&mut command).with_context(|| format!("run `{tool}`"))
    };
    if !dir.join("clip.pth").exists() {
        original("prepare", Env::Torch, None)?;
    }
    if !dir.join("vgg16.pth").exists() {
        original("vgg16", Env::Torch, None)?;
    }
    if !dir.join("fake-mixed").exists() {
        original("folders", Env::Torch, None)?;
    }
    if !dir.join("unequal-fake-jpeg95.h5").exists() {
        original("features", Env::Torch, None)?;
    }
    let ours = Ours { d2o, dir: dir.clone() };
    ours.prepare()?;
    let mut originals: Vec<Original> = Vec::new();
    let mut skipped = Vec::new();
    for (tool, env, checkout) in TOOLS {
        let kept = dir.join(format!("out-{tool}.json"));
        let checkout_dir = checkout.and_then(option);
        if checkout.is_some() && checkout_dir.is_none() && !kept.exists() {
            skipped.push(tool);
            continue;
        }
        // The results of a tool are kept: its images and weights do not change. Delete the file to run the tool again.
        if !kept.exists() {
            fs::write(&kept, original(tool, env, checkout_dir)?)?;
        }
        let found: Vec<Original> =
            serde_json::from_slice(&fs::read(&kept)?).with_context(|| format!("read the output of `{tool}`"))?;
        originals.extend(found);
    }
    if let Some(o) = originals.iter().find(|o| !SETS.contains(&o.images.as_str())) {
        bail!("{}: unknown images `{}`: expected one of {}", o.tool, o.images, SETS.join(", "));
    }
    let matrices: Vec<Matrix> = serde_json::from_str(&original("matrices", Env::Torch, None)?)?;
    let (text, beyond) = ours.compare(&originals, &matrices, &skipped)?;
    fs::write(paths::root().join("docs/parity.md"), text)?;
    eprintln!("parity: {} numbers, {beyond} beyond the bound; see docs/parity.md", originals.len());
    ensure!(beyond == 0, "{beyond} numbers differ from those of the original by more than the bound");
    Ok(())
}

const OPTIONS: [&str; 7] =
    ["--dir", "--python", "--tensorflow-python", "--d2o", "--edm", "--stylegan3", "--guided-diffusion"];

/// The given interpreter, or that of a virtual environment in `dir` with these packages.
fn python(given: Option<&str>, dir: &Path, packages: &[&str]) -> anyhow::Result<PathBuf> {
    given.map_or_else(|| crate::python::environment(dir, packages), |path| Ok(path.into()))
}

/// Standard output of `command`. If it fails, the error contains its standard error.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let out = command.output().with_context(|| format!("start {command:?}"))?;
    if !out.status.success() {
        bail!("{command:?} failed:\n{}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(String::from_utf8(out.stdout)?)
}

/// d2o, run in the folder `dir`.
struct Ours {
    d2o: PathBuf,
    dir: PathBuf,
}

impl Ours {
    fn d2o(&self, args: &[&str]) -> anyhow::Result<String> {
        output(Command::new(&self.d2o).current_dir(&self.dir).envs(paths::environment()?).arg("--quiet").args(args))
    }

    /// Exports the networks and writes the references that the original tools read.
    fn prepare(&self) -> anyhow::Result<()> {
        if !self.dir.join(INCEPTION).exists() {
            self.d2o(&["export", "inception.pth", "--input", "f32", "--out", INCEPTION])?;
        }
        if !self.dir.join("clip.onnx").exists() {
            self.d2o(&["export", "clip.pth", "--activation", "quick-gelu", "--out", "clip.onnx"])?;
        }
        if !self.dir.join("vgg16.onnx").exists() {
            self.d2o(&["export", "vgg16.pth", "--input", "f32", "--out", "vgg16.onnx"])?;
        }
        for layout in ["edm", "adm"] {
            let out = format!("ours-{layout}.npz");
            let args = ["refs", "make", "real-32", "--extractor", INCEPTION, "--protocol", layout, "--layout", layout];
            self.d2o(&[&args[..], &["--cache", "cache", "--overwrite", "--out", &out]].concat())?;
        }
        Ok(())
    }

    fn evaluate(
        &self,
        protocol: &str,
        images: &str,
        reference: &str,
        metrics: &str,
        more: &[&str],
    ) -> anyhow::Result<Value> {
        let fake = format!("fake-{images}");
        // StyleGAN3's precision and recall use Inception's features here, because its VGG16 cannot have random weights.
        let networks = ["--extractor", INCEPTION, "--clip", "clip.onnx", "--allow-deviation", "extractor"];
        let networks = [&networks[..], &["--cache", "cache", "--bootstrap", "0"]].concat();
        let what = ["--protocol", protocol, "--metrics", metrics, "--kid-subset-size", KID_SUBSET, "--json", "-"];
        let args = [&["evaluate", &fake, "--ref", reference][..], &networks[..], &what, more].concat();
        Ok(serde_json::from_str(&self.d2o(&args)?)?)
    }

    /// Evaluates `metric` on feature files.
    fn of_files(&self, protocol: &str, metric: &str, samples: &str, reference: &str) -> anyhow::Result<Value> {
        let args = [
            "evaluate",
            samples,
            "--ref",
            reference,
            "--protocol",
            protocol,
            "--metrics",
            metric,
            "--allow-deviation",
            "extractor,provenance",
            "--bootstrap",
            "0",
            "--json",
            "-",
        ];
        Ok(serde_json::from_str(&self.d2o(&args)?)?)
    }

    /// The page with the table, and the number of rows beyond the bound.
    fn compare(
        &self,
        originals: &[Original],
        matrices: &[Matrix],
        skipped: &[&str],
    ) -> anyhow::Result<(String, usize)> {
        let mut rows = String::new();
        let mut beyond = 0;
        let mut worst = 0.0_f64;
        for protocol in ["edm", "adm", "stylegan3", "torch-fidelity", "clean", "pytorch-fid"] {
            for images in SETS {
                let here: Vec<&Original> =
                    originals.iter().filter(|o| o.protocol == protocol && o.images == images).collect();
                let metrics: BTreeSet<&str> =
                    here.iter().filter(|o| o.samples.is_none()).map(|o| command_metric(&o.metric)).collect();
                if metrics.is_empty() {
                    continue;
                }
                let metrics: Vec<&str> = metrics.into_iter().collect();
                let evaluate = |metrics: &str, more: &[&str]| {
                    self.evaluate(protocol, images, &format!("real-{images}"), metrics, more)
                };
                let ours = evaluate(&metrics.join(","), &[])?;
                for o in here {
                    let value = |of: &Value| {
                        let (name, field) = match o.metric.strip_suffix(" std") {
                            Some(name) => (name, "std"),
                            None => (o.metric.as_str(), "value"),
                        };
                        of["metrics"][name][field]
                            .as_f64()
                            .with_context(|| format!("d2o reports no {} for {protocol}", o.metric))
                    };
                    let found = match (&o.samples, &o.reference, &o.extractor) {
                        (Some(samples), Some(reference), _) => {
                            value(&self.of_files(protocol, command_metric(&o.metric), samples, reference)?)?
                        }
                        (_, _, Some(extractor)) => {
                            value(&evaluate(command_metric(&o.metric), &["--pr-extractor", extractor])?)?
                        }
                        _ => value(&ours)?,
                    };
                    let relative = (found - o.value).abs() / o.value.abs().max(f64::MIN_POSITIVE);
                    let bound = if o.metric.ends_with(" std") { BOUND_STD } else { BOUND };
                    let holds = relative <= bound;
                    beyond += usize::from(!holds && !o.known);
                    if !o.known {
                        worst = worst.max(relative);
                    }
                    let verdict = match (holds, o.known) {
                        (true, _) => "equal",
                        (false, true) => "differs, see above",
                        (false, false) => "DIFFERS",
                    };
                    let (metric, was, tool) = (&o.metric, o.value, &o.tool);
                    writeln!(
                        rows,
                        "| {protocol} | {metric} | {images} | {was:.8} | {found:.8} | {relative:.1e} | {verdict} | {tool} |"
                    )?;
                }
            }
        }
        for (tool, file, protocol) in [
            ("numpy.savez of EDM's fid.py", "stats-edm.npz", "edm"),
            ("numpy.savez of guided-diffusion's statistics and images", "stats-adm.npz", "adm"),
            ("numpy.savez_compressed of clean-fid", "stats-clean.npz", "clean"),
            ("save_fid_stats of pytorch-fid", "stats-pytorch-fid.npz", "pytorch-fid"),
        ] {
            if !self.dir.join(file).exists() {
                continue;
            }
            let fid = |reference: &str| -> anyhow::Result<f64> {
                let found = self.evaluate(protocol, SETS[0], reference, "fid", &[])?;
                found["metrics"]["fid"]["value"].as_f64().context("no fid")
            };
            let (was, found) = (fid("real-32")?, fid(file)?);
            let relative = (found - was).abs() / was.abs();
            let holds = relative <= BOUND;
            beyond += usize::from(!holds);
            let verdict = if holds { "equal" } else { "DIFFERS" };
            writeln!(
                rows,
                "| {protocol} | fid | 32 | {was:.8} | {found:.8} | {relative:.1e} | {verdict} | d2o against images, then against the file by {tool} |"
            )?;
        }
        for Matrix { protocol, shape: [n, d], relative } in matrices {
            let holds = *relative <= BOUND;
            beyond += usize::from(!holds);
            let verdict = if holds { "equal" } else { "DIFFERS" };
            writeln!(
                rows,
                "| {protocol} | features [{n}, {d}] | 32 | – | – | {relative:.1e} | {verdict} | torch-fidelity's Inception; largest difference over largest value |"
            )?;
        }
        let skipped = if skipped.is_empty() { String::new() } else { format!("Not run: {}.\n\n", skipped.join(", ")) };
        let stamp = record::stamp()?;
        let text = format!(
            "{TITLE}{stamp}\n\n{HEAD}{skipped}Largest relative difference without the marked numbers: {worst:.1e}.\n\n{TABLE}{rows}"
        );
        Ok((text, beyond))
    }
}

/// The name of `metric` in `--metrics`.
fn command_metric(metric: &str) -> &str {
    match metric.strip_suffix(" std").unwrap_or(metric) {
        "precision" | "recall" => "pr",
        "density" | "coverage" => "dc",
        "clip_fid" => "clip-fid",
        other => other,
    }
}

const TABLE: &str = "| protocol | metric | images | original | d2o | relative difference | verdict | original tool |\n|---|---|---|---|---|---|---|---|\n";

const TITLE: &str = "# Parity with the original tools\n\n";

const HEAD: &str = "\
`cargo xtask parity` runs each original tool and d2o on the same image files with the same random weights, and writes this page. The allowed difference is 1e-4 relative, and 1e-3 for the
standard deviation over KID's subsets or the Inception Score's splits, which the tools sum in f32.

```sh
cargo xtask parity --edm EDM --stylegan3 STYLEGAN3 --guided-diffusion GUIDED_DIFFUSION
```

The options name local checkouts (here NVlabs/edm@008a4e5, NVlabs/stylegan3@c233a91, openai/guided-diffusion@22e0df8); tools without a checkout are left out.
Packages: torch 2.15.0, torchvision 0.29.2, NumPy 2.4.6, SciPy 1.17.1, Pillow 13.0.0, open_clip 3.3.0, and those in the table.

## Inputs

- **Images:** 110 real and 100 fake of 32×32, 24 and 20 of 64×64, made by `xtask/parity/originals.py`. Having fewer images than features is the hard case for a
  distance, because covariances do not have full rank.
- **`jpeg75`, `jpeg95`:** the 32×32 images as JPEGs written by Pillow (4:2:0, quality 75 and 95). Each tool reads the folders itself; features for EDM's detector are looked up by the
  pixels that EDM's loader returns.
- **`mixed`:** 30 real and 26 fake PNGs with random sides from 16 to 90. clean-fid resizes each image; pytorch-fid and torch-fidelity read
  them in batches of one; the other tools do not accept them.
- **Weights:** Inception, CLIP ViT-B/32 and torchvision's VGG16 with seeded normal weights, so the numbers mean nothing in themselves. d2o runs them exported with `--input f32`
  (Inception) and resizes as the protocol requires, on the default provider: Winograd convolutions (`ort-winograd`) on CPUs with AVX2.
- **Rows of unequal norms:** pool3 features of the 32×32 and 64×64 sets, each row multiplied by a factor between 1/4 and 6, with 7 of every 10 fakes. All blocks are f16 (checked). At 32,
  the results change if the operands are swapped or if nothing is rounded.

## Tools

- **torch-fidelity, pytorch-fid, torchmetrics** run as installed. **clean-fid** does everything except the network: its Inception and CLIP get the random weights.
- **EDM, StyleGAN3:** the original code. The detector is torch-fidelity's Inception, which computes the same function. StyleGAN3's precision and recall use
  Inception's features, since its VGG16 cannot be given random weights; torch-fidelity's use VGG16, which d2o runs beside Inception as `--pr-extractor`.
- **guided-diffusion:** `evaluator.py` runs in TensorFlow 2 (`compat.v1`) on activations of the same images; its softmax graph is replaced by the softmax of these activations' logits.
  Distances, scores, radii and blocks are its own code.
- **prdc** (density and coverage, k = 5) and d2o read the same feature files. The definition is the same under every protocol; the rows are listed under edm.
- **KID** uses subsets of 50 (the sets are smaller than 1000), with `RandomState(2020)` for torch-fidelity and `numpy.random.seed(0)` for the tools that do not seed.

## Known differences

`differs, see above` marks numbers where the original is known to round. A later row has the same original without that rounding and must agree.

- **f16 precision and recall of guided-diffusion:** on the CPU, TensorFlow's `reduce_sum` rounds partial sums of the norms to f16, in an order
  that depends on the processor's vector width. On these features, a third of the norms is off by one f16 step, while the products are summed in f32 and agree.
  Distances here are as small as those steps, so the results change by a few images. d2o sums in f32 and rounds once. So does the NumPy oracle behind
  `tests/data/metrics.json`, which gives the same precision and recall on these features as d2o.
- **KID of torch-fidelity:** the tool sums kernels near 2 in f32, and their difference here is below 1e-3, so its
  last digits are rounding. d2o computes in f64. A later row is the tool's own function on the same features in f64.

## Results

";
