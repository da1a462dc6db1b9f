//! Pythons of their own for the other tools, apart from the system's.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::ensure;
use fs_err as fs;

/// The interpreter of a virtual environment in `dir` with `requirements`, which is made, or brought up to date, if it has others.
///
/// # Errors
/// Packages that cannot be installed.
pub(crate) fn environment(dir: &Path, requirements: &[&str]) -> anyhow::Result<PathBuf> {
    let (python, done) = (dir.join("bin/python3"), dir.join("d2o-requirements"));
    let wanted = requirements.join("\n");
    if fs::read_to_string(&done).is_ok_and(|found| found == wanted) {
        return Ok(python);
    }
    eprintln!("installing {} into {}", requirements.join(" "), dir.display());
    let made = Command::new("python3").args(["-m", "venv"]).arg(dir).status()?.success();
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(requirements);
    ensure!(made && pip.status()?.success(), "the packages could not be installed into {}", dir.display());
    fs::write(done, wanted)?;
    Ok(python)
}
