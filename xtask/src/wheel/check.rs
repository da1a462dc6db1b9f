//! The wheel as users get it: installed by pip into a new virtual environment, without cargo and without the cache and
//! the variables of set-up.

use std::time::Instant;

use super::*;

/// Limit in seconds from the start of the installation to the end of the first evaluation.
const LIMIT: f64 = 60.0;
/// Images of each set, and their height and width in pixels.
const IMAGES: usize = 64;
const SIZE: usize = 32;

/// Evaluates through the module, compares with the result of the command, and checks an unmet condition and an error.
const SCRIPT: &str = r#"
import json, sys
import d2o

first = json.load(open("first.json"))
again = d2o.evaluate("a.npy", ref="b.npy", extractor="lite0.onnx", metrics=["fid", "pr"])
assert again["metrics"] == first["metrics"], (again["metrics"], first["metrics"])
same = d2o.evaluate("a.npy", ref="a.npy", extractor="lite0.onnx", metrics="fid")
distance, other = (r["metrics"]["fd"]["value"] for r in (same, first))
assert abs(distance) < 1e-3 * other, (distance, other)
assert str(d2o.binary()).startswith(sys.prefix), d2o.binary()
[graph] = d2o.inspect("lite0.onnx")
assert graph["file"] == "lite0.onnx", graph
try:
    d2o.evaluate("missing.npy", ref="a.npy", extractor="lite0.onnx")
    raise SystemExit("a missing file was accepted")
except d2o.D2OError as error:
    assert error.code == 2 and "missing.npy" in str(error), error
try:
    d2o.evaluate("a.npy", ref="b.npy", extractor="lite0.onnx", metrics="fid", expect="fd<=0")
    raise SystemExit("a condition that does not hold was met")
except d2o.AnswerNo as no:
    assert no.result["metrics"]["fd"]["value"] == other, no.result
print(f"the module agrees with the command: FD {other:.6g}")
"#;

/// A virtual environment in a folder of its own, with an empty home and an empty cache.
struct Clean {
    folder: Staging,
}

impl Clean {
    fn new() -> anyhow::Result<Self> {
        let folder = Staging::new(target()?.join(format!("wheel-check-{}", std::process::id())))?;
        for name in ["home", "cache", "work"] {
            fs::create_dir_all(folder.0.join(name))?;
        }
        let made = Command::new("python3").args(["-m", "venv"]).arg(folder.0.join("env")).status()?;
        ensure!(made.success(), "python3 could not make a virtual environment");
        Ok(Self { folder })
    }

    /// Runs `program` of the environment with `arguments`. Returns whether it succeeded, and its standard output
    /// followed by its standard error.
    fn try_run(&self, program: &str, arguments: &[&str]) -> anyhow::Result<(bool, String)> {
        let bin = self.folder.0.join("env/bin");
        let mut command = Command::new(bin.join(program));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["D2O_", "CARGO", "RUST", "PYTHON", "ORT_"].iter().any(|own| text.starts_with(own)) {
                command.env_remove(&name);
            }
        }
        for name in ["VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH", "CMAKE", "LIBTORCH"] {
            command.env_remove(name);
        }
        let output = command
            .current_dir(self.folder.0.join("work"))
            .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
            .env("HOME", self.folder.0.join("home"))
            .env("D2O_CACHE", self.folder.0.join("cache"))
            .args(arguments)
            .output()
            .with_context(|| format!("start {program}"))?;
        let written = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&written).into_owned()))
    }

    fn run(&self, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let (success, written) = self.try_run(program, arguments)?;
        ensure!(success, "{program} {} failed:\n{written}", arguments.join(" "));
        Ok(written)
    }
}

/// Installs `wheel`, exports and evaluates with it, and runs [`SCRIPT`].
///
/// # Errors
/// If a step fails, or if installation and first evaluation take longer than [`LIMIT`].
pub(super) fn run(wheel: &Path) -> anyhow::Result<()> {
    setup::only(&[component::LITE0])?;
    let clean = Clean::new()?;
    let work = clean.folder.0.join("work");
    let weights = cache()?.join(component::LITE0).join("efficientnet-lite0-57934424.pth");
    for (name, contrast) in [("a.npy", 128), ("b.npy", 255)] {
        fs::write(work.join(name), images(contrast)?)?;
    }
    let weights = weights.to_string_lossy();
    let export = |out| ["export", &weights, "--kind", "features", "--image-size", "32", "--out", out];
    let wheel = wheel.to_string_lossy();
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];

    clean.run("python", &[&pip[..], &[&wheel]].concat())?;
    let (success, without) = clean.try_run("d2o", &export("unchecked.onnx"))?;
    ensure!(!success && without.contains("pip install 'onnxruntime>="), "without ONNX Runtime:\n{without}");
    clean.run("python", &["-m", "pip", "uninstall", "--quiet", "--yes", "d2o"])?;

    let start = Instant::now();
    clean.run("python", &[&pip[..], &[&format!("{wheel}[cpu]")]].concat())?;
    let installed = start.elapsed().as_secs_f64();
    print!("{}", clean.run("d2o", &["--version"])?);
    clean.run("d2o", &export("lite0.onnx"))?;
    let measure = ["evaluate", "a.npy", "--ref", "b.npy", "--extractor", "lite0.onnx", "--metrics", "fid,pr"];
    print!("{}", clean.run("d2o", &[&measure[..], &["--json", "first.json"]].concat())?);
    let all = start.elapsed().as_secs_f64();
    println!("{installed:.1} s to install, {all:.1} s from the start of the installation to the first evaluation");

    let result: Value = serde_json::from_slice(&fs::read(work.join("first.json"))?)?;
    let count = result["samples"]["count"].as_u64();
    ensure!(count == Some(IMAGES as u64), "the result has {count:?} samples");
    let library = result["runtime"]["onnxruntime"].as_str().unwrap_or_default();
    ensure!(library.contains("ORT Build Info"), "the result does not record ONNX Runtime: {}", result["runtime"]);
    print!("{}", clean.run("python", &["-c", SCRIPT])?);
    ensure!(clean.run("python", &["-m", "d2o", "--version"])?.starts_with("d2o "), "`python -m d2o` is not d2o");
    ensure!(all <= LIMIT, "expected at most {LIMIT} s; is the connection slow?");
    Ok(())
}

/// [`IMAGES`] images as npy, u8 `[N, H, W, 3]`: gradients with noise up to `contrast`.
fn images(contrast: u32) -> anyhow::Result<Vec<u8>> {
    let header = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({IMAGES}, {SIZE}, {SIZE}, 3), }}");
    // Magic, version and header length take 10 bytes. With the header they fill a multiple of 64, ended by a line feed.
    let padded = format!("{header:<117}\n");
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend(u16::try_from(padded.len())?.to_le_bytes());
    file.extend(padded.bytes());
    let mut state = contrast;
    for i in 0..IMAGES * SIZE * SIZE * 3 {
        // The linear congruential generator of Numerical Recipes. Its high bits are the random ones.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let noise = (state >> 24) * contrast / 255;
        let gradient = u32::try_from(i / 3 % SIZE * (i / (SIZE * SIZE * 3) % 8))?;
        file.push(u8::try_from((gradient + noise).min(255))?);
    }
    Ok(file)
}
