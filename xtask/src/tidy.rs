//! `cargo xtask tidy`: what the compiler cannot check.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use fs_err as fs;

use crate::paths::root;
use crate::setup::hash;

/// Folders of fixtures; each has a README.md with a row `` | `file` | … | `sha256` | `` for every file.
const FIXTURES: [&str; 4] = ["tests/data", "xtask/demo", "refs/tests/data", "refs/fetch/tests/data"];
/// Crates of the workspace that use their README as crate documentation.
const CRATES: [&str; 8] =
    ["onnx", "onnx/runtime", "onnx/winograd", "converters", "refs", "refs/fetch", "evaluations", "test-support"];

/// Checks the tracked files.
///
/// # Errors
/// If there are faults. The message lists them, one per line.
pub(crate) fn run() -> anyhow::Result<()> {
    eprintln!("lint: tidy");
    let files = tracked()?;
    let mut faults = Vec::new();
    for dir in FIXTURES {
        provenance(dir, &files, &mut faults)?;
    }
    for file in files.iter().filter(|f| f.starts_with("onnx/src/ops/") && !f.ends_with("mod.rs")) {
        let head: String =
            fs::read_to_string(root().join(file))?.lines().take_while(|l| l.starts_with("//!")).collect();
        if !head.contains("opset") {
            faults.push(format!("{}: the header does not state the opset", file.display()));
        }
    }
    for name in CRATES {
        let lib = fs::read_to_string(root().join(name).join("src/lib.rs"))?;
        for wanted in ["#![doc = include_str!(\"../README.md\")]", "#![deny(missing_docs)]"] {
            if !lib.contains(wanted) {
                faults.push(format!("{name}/src/lib.rs: no `{wanted}`"));
            }
        }
    }
    for file in &files {
        if file.file_name().is_some_and(|n| n == "utils.rs") {
            faults.push(format!("{}: choose a name that describes the content", file.display()));
        }
    }
    if faults.is_empty() { Ok(()) } else { bail!("tidy:\n{}", faults.join("\n")) }
}

/// Files that git tracks or would add, relative to the root.
fn tracked() -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .current_dir(root())
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .output()
        .context("listing the files requires git")?;
    if !output.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let names = String::from_utf8(output.stdout).context("file names in UTF-8")?;
    Ok(names.split('\0').filter(|n| !n.is_empty()).map(PathBuf::from).filter(|f| root().join(f).exists()).collect())
}

/// Every file under `dir` needs a row with its hash in the README of `dir`, except that README, generators and Rust
/// sources.
fn provenance(dir: &str, files: &[PathBuf], faults: &mut Vec<String>) -> anyhow::Result<()> {
    let readme = fs::read_to_string(root().join(dir).join("README.md"))?;
    for file in files.iter().filter(|f| f.starts_with(dir)) {
        let name = file.strip_prefix(dir).unwrap_or(Path::new(""));
        let source = name.starts_with("gen") || file.extension().is_some_and(|e| e == "rs" || e == "md");
        if source {
            continue;
        }
        let row = readme.lines().find(|l| l.starts_with(&format!("| `{}` |", name.display())));
        match row {
            None => faults.push(format!("{}: no row in {dir}/README.md", file.display())),
            Some(row) => {
                let (sha256, _) = hash(&root().join(file))?;
                if !row.contains(&sha256) {
                    faults.push(format!("{}: its row in {dir}/README.md lacks its sha256, {sha256}", file.display()));
                }
            }
        }
    }
    Ok(())
}
