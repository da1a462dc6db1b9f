//! `cargo xtask hostile`: gives files made to exhaust, crash or hang a reader to every command that reads their kind,
//! and writes docs/hostile.md.

use std::path::Path;
use std::process::Command;

use anyhow::ensure;
use fs_err as fs;

use crate::paths::{build_d2o, cache, environment, root, target};
use crate::python;
use crate::record::stamp;

const REQUIREMENTS: [&str; 4] = ["numpy==2.4.6", "onnx==1.23.1", "pillow==13.0.0", "h5py==3.16.0"];
const PAGE: &str = "docs/hostile.md";

/// Builds d2o and runs every input. `--json JSON` keeps the figures; `--before JSON` compares with those of another
/// build.
///
/// # Errors
/// If the build fails, the inputs cannot be made, or a run exceeds the bounds.
pub(crate) fn run(options: &[&str]) -> anyhow::Result<()> {
    let program = build_d2o(false)?;
    let python = python::environment(&cache()?.join("hostile-python"), &REQUIREMENTS)?;
    let work = target()?.join("hostile");
    let mut command = Command::new(python);
    command.envs(environment()?).arg(root().join("xtask/hostile/run.py")).arg(&work);
    let output = command.arg(program).args(options).stderr(std::process::Stdio::inherit()).output()?;
    ensure!(output.status.success(), "run.py failed ({})", output.status);
    let tables = format!("{}\n\n{}", stamp()?, String::from_utf8(output.stdout)?);
    fs::write(root().join(PAGE), page(&tables))?;
    eprintln!("hostile: {}", Path::new(PAGE).display());
    let clean = tables.lines().filter(|l| l.contains("outside the bounds")).all(|l| l.ends_with(" 0 now."));
    ensure!(clean, "runs outside the bounds: see {PAGE}");
    Ok(())
}

fn page(tables: &str) -> String {
    format!(
        "# Hostile files\n\n\
         How d2o behaves on files made to exhaust or crash a reader: files of at most a few MiB that demand much more memory, work or time than their size \
         explains, that point to something else (pipes, links, other files), or that would execute code. `cargo xtask hostile` makes the inputs with the \
         scripts in `xtask/hostile`, runs them and writes this page.\n\n\
         Each file is given to every command that reads its kind, with a limit of 6 GiB of address space and one minute. A run is within bounds if it ends by \
         itself, with a result or an error, within 10 s and below 1 GiB + 4 times the file size. *Before* is d2o of 2026-11-26, before these readers had a \
         budget.\n\n{tables}"
    )
}
