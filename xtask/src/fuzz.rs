//! `cargo xtask fuzz`: libFuzzer on every reader of files from outside.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail};
use fs_err as fs;

use crate::paths::{environment, root, target};
use crate::record::{stamp, write_between};

/// Targets of checkpoint readers. Their inputs may be long, because some costs appear only after many repetitions.
const CHECKPOINTS: [&str; 7] =
    ["pickle", "torch_zip", "torch_legacy", "torchscript", "safetensors", "graph_def", "export"];
/// Longest input in bytes: of [`CHECKPOINTS`], and of all other targets.
const MAX_LEN: [usize; 2] = [1 << 20, 1 << 16];
/// Targets that decode pixels, and their memory limit in MiB: enough for the largest image that Pillow accepts.
const IMAGES: ([&str; 2], usize) = (["image", "image_zip"], 1400);
/// Memory limit of the other targets, MiB.
const MEMORY_MIB: usize = 256;
/// Time limit of one input, seconds.
const TIMEOUT: usize = 10;
/// Targets of libhdf5. Inputs that exceed its time or memory limit are counted and skipped, because d2o opens such
/// files in a child process first (src/isolation.rs). A crash still ends the run.
const ISOLATED: ([&str; 2], [&str; 3]) = (["features", "hdf5"], ["-fork=1", "-ignore_timeouts=1", "-ignore_ooms=1"]);
/// The flags with which cargo-fuzz records coverage without a sanitizer. Stable Rust supports them.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Clink-dead-code -Ccodegen-units=1";

/// Marks around the record in docs/fuzz.md.
const MARKS: [&str; 2] = ["<!-- record: cargo xtask fuzz -->\n", "<!-- end of record -->\n"];

/// Runs every target, or only the target `only`, for `minutes` each, one after the other. A run of all targets is
/// recorded in docs/fuzz.md.
///
/// # Errors
/// If the target is unknown, the build fails, or an input fails. Failing inputs are kept in the target folder.
pub(crate) fn run(minutes: &str, only: Option<&str>) -> anyhow::Result<()> {
    let seconds =
        minutes.parse::<f64>().ok().filter(|m| *m > 0.0).context("MINUTES: expected a number above 0")? * 60.0;
    let all = targets()?;
    let targets: Vec<&String> = all.iter().filter(|t| only.is_none_or(|o| o == *t)).collect();
    if targets.is_empty() {
        bail!("unknown target `{}`: expected one of {}", only.unwrap_or(""), all.join(", "));
    }
    let dir = target()?.join("fuzz");
    let triple = host()?;
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.current_dir(root().join("fuzz")).envs(environment()?).env("CARGO_TARGET_DIR", &dir).env("RUSTFLAGS", FLAGS);
    // With `--target`, cargo builds build scripts and macros without these flags.
    let status = build.args(["build", "--release", "--bins", "--target", &triple]).status().context("start cargo")?;
    if !status.success() {
        bail!("the fuzz targets do not build");
    }
    let bin = dir.join(&triple).join("release");
    let corpus = dir.join("corpus");
    let mut seeds = Command::new(bin.join("seeds"));
    seeds
        .env("D2O_FIXTURES", root().join("tests/data/checkpoints"))
        .env("D2O_CORPUS", &corpus)
        .stderr(Stdio::inherit());
    let seeds = seeds.status()?;
    if !seeds.success() {
        bail!("cannot write the initial inputs");
    }
    let mut findings = Vec::new();
    let mut rows = String::new();
    for name in targets {
        let found = dir.join("findings").join(name);
        fs::create_dir_all(&found)?;
        let log = dir.join(format!("{name}.log"));
        let memory = if IMAGES.0.contains(&name.as_str()) { IMAGES.1 } else { MEMORY_MIB };
        let length = MAX_LEN[usize::from(!CHECKPOINTS.contains(&name.as_str()))];
        let isolated: &[&str] = if ISOLATED.0.contains(&name.as_str()) { &ISOLATED.1 } else { &[] };
        let clock = Instant::now();
        let status = Command::new(bin.join(name))
            .arg(corpus.join(name))
            .args(isolated)
            .args([
                format!("-max_total_time={seconds:.0}"),
                format!("-max_len={length}"),
                format!("-timeout={TIMEOUT}"),
            ])
            .args([
                format!("-rss_limit_mb={memory}"),
                format!("-malloc_limit_mb={memory}"),
                "-print_final_stats=1".to_owned(),
            ])
            .arg(format!("-artifact_prefix={}/", found.display()))
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?.into_parts().0)
            .status()
            .with_context(|| format!("start {name}"))?;
        let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        let total = |l: &'_ str| l.strip_prefix("stat::number_of_executed_units:").map(|n| n.trim().to_owned());
        // With several processes only the last line has the figures: "#531144: cov: 2757 ft: 4920 … oom/timeout/crash:
        // 0/1/0 …".
        let last = text.lines().rev().find(|l| l.contains(" oom/timeout/crash: ")).unwrap_or_default();
        let so_far = || last.strip_prefix('#').and_then(|l| Some(l.split_once(':')?.0.to_owned()));
        let runs = text.lines().find_map(total).or_else(so_far).unwrap_or("?".to_owned());
        let peak = text.lines().find_map(|l| l.strip_prefix("stat::peak_rss_mb:")).unwrap_or("?").trim();
        let covered = text.lines().rev().find_map(|l| l.split(" cov: ").nth(1)?.split(' ').next()).unwrap_or("?");
        let passed_over = last.split_once("crash: ").and_then(|(_, l)| l.split(' ').next()).filter(|n| *n != "0/0/0");
        let verdict = match passed_over {
            _ if !status.success() => "FINDING".to_owned(),
            Some(counts) => format!("memory/time/crash {counts}"),
            None => "clean".to_owned(),
        };
        let spent = clock.elapsed().as_secs_f64() / 60.0;
        let row = format!("| `{name}` | {verdict} | {spent:.1} min | {runs} | {covered} | {peak} MiB |\n");
        print!("{row}");
        rows += &row;
        if !status.success() {
            findings.push(format!("{name}: see {} and {}", log.display(), found.display()));
        }
    }
    if only.is_none() {
        let header = "| target | verdict | time | inputs | edges covered | peak memory |\n|---|---|---|---|---|---|\n";
        write_between(&root().join("docs/fuzz.md"), MARKS, &format!("{}\n\n{header}{rows}", stamp()?))?;
    }
    if findings.is_empty() { Ok(()) } else { bail!("{}", findings.join("\n")) }
}

/// Names of the targets, sorted: the files in fuzz/fuzz_targets except `seeds`.
fn targets() -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root().join("fuzz/fuzz_targets"))? {
        let path = entry?.path();
        if let Some(stem) = path.file_stem().filter(|s| *s != "seeds") {
            names.push(stem.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The host triple of rustc.
fn host() -> anyhow::Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("start rustc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find_map(|l| l.strip_prefix("host: ")).map(str::to_owned).context("rustc reports no host")
}
