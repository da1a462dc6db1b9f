#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// How far a computed array may lie from the expected one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tol {
    /// Not at all.
    Exact,
    /// 1e-6 absolute: single operations in f32.
    Close,
    /// 2e-5 of the largest expected value: whole networks in f32 on the CPU.
    Parity,
    /// 1e-4 relative to the largest expected value: features and metrics.
    Features,
    /// 1e-3 of the largest expected value: gradients.
    Gradients,
}

impl Tol {
    /// The bound for an array whose largest absolute value is `peak`.
    #[must_use]
    pub fn bound(self, peak: f64) -> f64 {
        match self {
            Self::Exact => 0.0,
            Self::Close => 1e-6 * peak.max(1.0),
            Self::Parity => 2e-5 * peak,
            Self::Features => 1e-4 * peak,
            Self::Gradients => 1e-3 * peak,
        }
    }
}

/// The worst difference of two arrays: its index and both values; `None` if they are within `tol`.
///
/// # Errors
/// Text for the test's message.
pub fn compare(found: &[f32], expected: &[f32], tol: Tol) -> Result<f64, String> {
    if found.len() != expected.len() {
        return Err(format!("{} values, expected {}", found.len(), expected.len()));
    }
    let peak = expected.iter().fold(0.0_f64, |m, v| m.max(f64::from(v.abs())));
    let bound = tol.bound(peak);
    let mut worst = (0, 0.0);
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let d = (f64::from(*f) - f64::from(*e)).abs();
        if d > worst.1 || d.is_nan() {
            worst = (i, d);
        }
        if d.is_nan() {
            break;
        }
    }
    let (i, d) = worst;
    if d <= bound {
        Ok(if peak > 0.0 { d / peak } else { d })
    } else {
        Err(format!(
            "{tol:?}: at {i} found {}, expected {} (difference {d:e}, allowed {bound:e})",
            found[i], expected[i]
        ))
    }
}

/// Fails the test unless `found` lies within `tol` of `expected`; gives the largest difference over the largest expected value.
///
/// # Panics
/// If it does not.
pub fn assert_close(what: &str, found: &[f32], expected: &[f32], tol: Tol) -> f64 {
    match compare(found, expected, tol) {
        Ok(relative) => relative,
        Err(text) => panic!("{what}: {text}"),
    }
}

/// Folder of the golden files: outputs of the official networks.
#[must_use]
pub fn golden_dir() -> PathBuf {
    // Asked at run time: checkouts that share a target folder share what was compiled.
    let package =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    let held = |dir: &Path| dir.join("tests/data/golden");
    package.ancestors().map(held).find(|d| d.is_dir()).unwrap_or_else(|| held(&package))
}

/// The ONNX Runtime library for tests, which `D2O_ONNXRUNTIME` names; `None` only where tests may be skipped.
///
/// # Panics
/// If it is missing and `D2O_ALLOW_SKIP` is not set.
#[must_use]
pub fn onnxruntime() -> Option<PathBuf> {
    needed("ONNX Runtime (D2O_ONNXRUNTIME)", std::env::var_os("D2O_ONNXRUNTIME").map(PathBuf::from))
}

/// The OpenVINO execution provider's library for tests, which `D2O_OPENVINO` names; `None` only where tests may be skipped.
///
/// # Panics
/// If it is missing and `D2O_ALLOW_SKIP` is not set.
#[must_use]
pub fn openvino() -> Option<PathBuf> {
    needed("OpenVINO's provider (D2O_OPENVINO)", std::env::var_os("D2O_OPENVINO").map(PathBuf::from))
}

/// The MPI library for tests and its mpiexec, where `cargo xtask setup` puts them; `None` only where tests may be skipped.
///
/// # Panics
/// If one is missing and `D2O_ALLOW_SKIP` is not set.
#[must_use]
pub fn mpi() -> Option<(PathBuf, PathBuf)> {
    let installed = |file| cache().map(|c| c.join("mpich-5.0.2").join(file));
    Some((needed("MPICH", installed("lib/libmpi_abi.so.1"))?, needed("mpiexec", installed("bin/mpiexec"))?))
}

/// EfficientNet-Lite0's published weights, where `cargo xtask setup` puts them; `None` only where tests may be skipped.
///
/// # Panics
/// If they are missing and `D2O_ALLOW_SKIP` is not set.
#[must_use]
pub fn lite0() -> Option<PathBuf> {
    needed("EfficientNet-Lite0's weights", cache().map(|c| c.join("lite0-0.1.0/efficientnet-lite0-57934424.pth")))
}

/// Kaleido, a Chromium that renders what it is told on standard input, where `cargo xtask setup` puts it: its folder. `None` only where tests may be
/// skipped.
///
/// # Panics
/// If it is missing and `D2O_ALLOW_SKIP` is not set.
#[must_use]
pub fn kaleido() -> Option<PathBuf> {
    needed("Kaleido", cache().map(|c| c.join("kaleido-0.2.1")))
}

/// `D2O_CACHE`, else `d2o` in `XDG_CACHE_HOME` or `~/.cache`.
fn cache() -> Option<PathBuf> {
    let path = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let user = || path("XDG_CACHE_HOME").filter(|p| p.is_absolute()).or_else(|| Some(path("HOME")?.join(".cache")));
    path("D2O_CACHE").or_else(|| Some(user()?.join("d2o")))
}

/// `path` if it exists. A test that cannot run without it fails, unless `D2O_ALLOW_SKIP` is set.
#[allow(clippy::print_stdout, reason = "the output of a test")]
fn needed(what: &str, path: Option<PathBuf>) -> Option<PathBuf> {
    let found = path.filter(|p| p.exists());
    if found.is_none() {
        let allowed = std::env::var_os("D2O_ALLOW_SKIP").is_some();
        assert!(allowed, "{what} is missing: `cargo xtask test` provides it; D2O_ALLOW_SKIP=1 skips what needs it");
        println!("skipped: {what} is missing");
    }
    found
}

/// What a command printed and how it ended, with volatile parts replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit code {}\n--- stdout\n{}--- stderr\n{}", self.code, self.stdout, self.stderr)
    }
}

/// Runs `program` in `dir` and replaces the folder's path by `DIR`.
///
/// # Panics
/// If it cannot be started.
#[must_use]
pub fn run(program: &Path, dir: &Path, args: &[&str]) -> Outcome {
    let output = Command::new(program)
        .args(args)
        .current_dir(dir)
        .env_remove("RUST_BACKTRACE")
        .env("COLUMNS", "100")
        .env("NO_COLOR", "1")
        .output()
        .unwrap_or_else(|e| panic!("cannot start {}: {e}", program.display()));
    let clean = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&dir.display().to_string(), "DIR");
    Outcome { code: output.status.code().unwrap_or(-1), stdout: clean(&output.stdout), stderr: clean(&output.stderr) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_found_and_located() {
        assert!(compare(&[1.0, 2.0], &[1.0, 2.0], Tol::Exact).is_ok());
        let text = compare(&[1.0, 2.5], &[1.0, 2.0], Tol::Parity).unwrap_err();
        assert!(text.starts_with("Parity: at 1 found 2.5, expected 2"), "{text}");
        assert!(compare(&[f32::NAN], &[1.0], Tol::Gradients).is_err());
        assert!(compare(&[1.0], &[1.0, 2.0], Tol::Exact).is_err());
    }
}
