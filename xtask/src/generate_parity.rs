//! `cargo xtask generate-parity ORIG`: compares images of the original generate.py with those of d2o, seed by seed.

use std::io::Read as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use fs_err as fs;
use serde::Deserialize;

use crate::paths::{build_d2o, environment, root};
use crate::record::{stamp, write_between};

/// Smallest allowed share of values that differ from the original by at most one step.
const LEAST: f64 = 0.999;
/// Marks around the part of docs/generate.md that the task writes.
const MARKS: [&str; 2] = ["<!-- parity -->\n", "<!-- /parity -->\n"];

/// An entry of `cases.json`.
#[derive(Debug, Deserialize)]
struct Case {
    name: String,
    original: String,
    checkpoint: String,
    seeds: String,
    export: Vec<String>,
    generate: Vec<String>,
}

/// Runs tests/data/gen/generate.py on the checkouts in `orig`, unless its results exist, then `d2o export` and
/// `d2o generate` on its checkpoints, and writes the table in docs/generate.md.
///
/// # Errors
/// If a step fails, the share of a case is below [`LEAST`], or its classes differ.
pub(crate) fn run(orig: &str) -> anyhow::Result<()> {
    let folder = root().join("target/generate-parity");
    fs::create_dir_all(&folder)?;
    // Results of another checkout are made again.
    let of = folder.join("orig");
    if !folder.join("cases.json").exists() || fs::read_to_string(&of).ok().as_deref() != Some(orig) {
        let python = std::env::var_os("D2O_PYTHON").unwrap_or_else(|| "python3".into());
        let script = root().join("tests/data/gen/generate.py");
        let mut command = Command::new(&python);
        command.arg(script).arg(&folder).args(["--orig", orig]);
        let status = command.status().with_context(|| format!("start {}", python.display()))?;
        ensure!(status.success(), "the original code failed ({status})");
        fs::write(&of, orig)?;
    }
    let program = build_d2o(true)?;
    let cases: Vec<Case> = serde_json::from_slice(&fs::read(folder.join("cases.json"))?)?;
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for case in &cases {
        let found = compare(&program, &folder, case).with_context(|| format!("case {}", case.name))?;
        eprintln!("{}: {found:?}", case.name);
        if found.within < LEAST || found.labels == Some(false) {
            failed.push(case.name.as_str());
        }
        let labels = found.labels.map_or("–", |equal| if equal { "equal" } else { "DIFFER" });
        let percent = |share: f64| format!("{:.4} %", 100.0 * share);
        let (equal, within) = (percent(found.equal), percent(found.within));
        let (name, original, seeds, max) = (&case.name, &case.original, &case.seeds, found.max);
        rows.push(format!("| {name} | {original} | {seeds} | {equal} | {within} | {max} | {labels} |\n"));
    }
    let header = "| case | original | seeds | values equal | within one step | largest difference | classes |\n|---|---|---|---|---|---|---|\n";
    write_between(&root().join("docs/generate.md"), MARKS, &format!("{}\n\n{header}{}", stamp()?, rows.concat()))?;
    let bound = 100.0 * LEAST;
    ensure!(failed.is_empty(), "fewer than {bound} % within one step, or other classes: {}", failed.join(", "));
    Ok(())
}

#[derive(Debug)]
struct Found {
    equal: f64,
    within: f64,
    max: u8,
    labels: Option<bool>,
}

fn compare(program: &Path, folder: &Path, case: &Case) -> anyhow::Result<Found> {
    let (graph, out) = (format!("{}.onnx", case.name), format!("{}-d2o.npz", case.name));
    let _ = fs::remove_file(folder.join(&out));
    let _ = fs::remove_dir_all(folder.join(format!("{out}.partial")));
    d2o(program, folder, ["export", &case.checkpoint, "--out", &graph, "--overwrite", "--no-check"], &case.export)?;
    let words = ["generate", &graph, "--seeds", &case.seeds, "--out", &out, "--provider", "cpu"];
    d2o(program, folder, words, &case.generate)?;
    let (theirs, ours) = (folder.join(format!("{}.npz", case.name)), folder.join(&out));
    let (expected, found) = (array(&theirs, "images")?, array(&ours, "arr_0")?);
    let (expected, found) = (expected.context("no images")?, found.context("no images")?);
    ensure!(
        expected.len() == found.len() && !found.is_empty(),
        "found {} bytes, expected {} as in the original",
        found.len(),
        expected.len()
    );
    let count = expected.len() as f64;
    let differences = || expected.iter().zip(&found).map(|(e, f)| e.abs_diff(*f));
    let share = |bound: u8| differences().filter(|d| *d <= bound).count() as f64 / count;
    let forced = case.generate.iter().any(|o| o == "--class");
    let labels = match (array(&theirs, "arr_1")?, array(&ours, "arr_1")?) {
        (Some(expected), Some(found)) if !forced => Some(expected == found),
        _ => None,
    };
    Ok(Found { equal: share(0), within: share(1), max: differences().max().unwrap_or(0), labels })
}

/// Data bytes of the array `name` of an npz; `None` if there is none.
fn array(file: &Path, name: &str) -> anyhow::Result<Option<Vec<u8>>> {
    let mut zip = zip::ZipArchive::new(fs::File::open(file)?)?;
    let Ok(mut entry) = zip.by_name(&format!("{name}.npy")) else { return Ok(None) };
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes)?;
    // Magic, version, then the length of the header in two bytes (version 1).
    let &[0x93, b'N', b'U', b'M', b'P', b'Y', 1, _, low, high, ..] = bytes.as_slice() else {
        bail!("`{}`: array {name} is not an npy of version 1", file.display());
    };
    Ok(bytes.get(10 + usize::from(u16::from_le_bytes([low, high]))..).map(<[u8]>::to_vec))
}

fn d2o<'a>(
    program: &Path,
    folder: &Path,
    words: impl IntoIterator<Item = &'a str>,
    more: &[String],
) -> anyhow::Result<()> {
    let mut command = Command::new(program);
    let status = command.arg("--quiet").args(words).args(more).envs(environment()?).current_dir(folder).status()?;
    ensure!(status.success(), "d2o failed ({status})");
    Ok(())
}
