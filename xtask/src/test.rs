//! `cargo xtask test`: every test, with a total at the end. `cargo xtask lint`: formatting, lints, tidy, dependencies, documentation.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use crate::paths::{cache, cargo, component, root};
use crate::tidy;

/// Runs every test, training included.
///
/// # Errors
/// If a test or the build fails.
pub(crate) fn run() -> anyhow::Result<()> {
    tests(cargo()?.args(["test", "--workspace", "--features", "d2o/train", "--no-fail-fast"]))
}

/// Runs every check except the tests. The first failing step ends the run.
///
/// # Errors
/// If a step fails.
pub(crate) fn lint() -> anyhow::Result<()> {
    step("formatting", cargo()?.args(["fmt", "--all", "--check"]))?;
    tidy::run()?;
    deny()?;
    // First without libtorch: evaluation, export and verification must not need it.
    step(
        "lints without training",
        cargo()?.args(["clippy", "--package", "d2o", "--", "-D", "warnings"]).env_remove("LIBTORCH"),
    )?;
    step(
        "lints",
        cargo()?.args(["clippy", "--workspace", "--all-targets", "--features", "d2o/train", "--", "-D", "warnings"]),
    )?;
    for alone in ALONE {
        let lint = ["clippy", "--quiet", "--package"];
        step(
            &format!("lints of {alone} alone"),
            cargo()?.args(lint).args(alone.split(' ')).args(["--", "-D", "warnings"]),
        )?;
    }
    let doc = ["doc", "--quiet", "--no-deps", "--workspace", "--features", "d2o/train"];
    step("documentation", cargo()?.args(doc).env("RUSTDOCFLAGS", "-D warnings"))
}

/// Arguments of `--package`: each library crate alone, and `d2o-runtime` with each of its feature sets.
const ALONE: [&str; 12] = [
    "d2o-budget",
    "d2o-fetch",
    "d2o-files",
    "d2o-winograd",
    "d2o-onnx",
    "d2o-runtime --no-default-features",
    "d2o-runtime --no-default-features --features ort",
    "d2o-runtime --no-default-features --features tract",
    "d2o-checkpoint",
    "d2o-converters",
    "d2o-refs",
    "d2o-evaluations",
];

/// Checks licences, sources and versions of all dependencies against deny.toml. Several versions of one dependency are
/// a warning.
///
/// # Errors
/// If deny.toml does not allow a dependency.
pub(crate) fn deny() -> anyhow::Result<()> {
    let mut command = Command::new(cache()?.join(component::CARGO_DENY).join("bin/cargo-deny"));
    command.current_dir(root()).args(["--locked", "check", "--hide-inclusion-graph", "licenses", "bans", "sources"]);
    step("dependencies", &mut command)
}

fn step(name: &str, command: &mut Command) -> anyhow::Result<()> {
    eprintln!("lint: {name}");
    let status = command.status().with_context(|| format!("start {name}"))?;
    if !status.success() {
        bail!("{name} failed ({status})");
    }
    Ok(())
}

/// Runs `cargo test`, passes its output on and adds up its summaries.
fn tests(command: &mut Command) -> anyhow::Result<()> {
    eprintln!("test: tests");
    let mut child = command.stdout(Stdio::piped()).spawn().context("start cargo test")?;
    let output = child.stdout.take().context("the output of cargo test")?;
    let mut totals = Totals::default();
    for line in BufReader::new(output).lines() {
        let line = line?;
        totals.add(&line);
        println!("{line}");
    }
    let status = child.wait()?;
    println!("{} passed, {} failed, {} skipped", totals.passed, totals.failed, totals.ignored);
    if !status.success() {
        bail!("cargo test failed ({status})");
    }
    if totals.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

#[derive(Debug, Default, PartialEq)]
struct Totals {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Totals {
    /// Adds a line like `test result: ok. 3 passed; 0 failed; 1 ignored; …`; ignores other lines.
    fn add(&mut self, line: &str) {
        let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|l| l.split_once(". ")) else { return };
        for part in counts.split("; ") {
            let Some((number, what)) = part.split_once(' ') else { continue };
            let number: u64 = number.parse().unwrap_or(0);
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Totals;

    #[test]
    fn summaries_add_up() {
        let mut totals = Totals::default();
        totals.add("test result: ok. 19 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.12s");
        totals.add("test x ... ok");
        totals.add("test result: FAILED. 1 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s");
        assert_eq!(totals, Totals { passed: 20, failed: 3, ignored: 2 });
    }
}
