//! Virtual environments for the Python packages of other tools, separate from the system's Python.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::ensure;
use fs_err as fs;

/// The interpreter of the virtual environment in `dir` with `requirements`. Makes the environment if it is missing, and
/// installs the packages if `dir` records other requirements.
///
/// # Errors
/// If the environment cannot be made or a package cannot be installed.
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
