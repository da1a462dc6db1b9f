//! Resolves inputs before a command runs. Addresses and names of `d2o known` are downloaded into the cache; checkpoints
//! given in place of graphs are exported into the cache.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use d2o_converters::known;
use d2o_converters::{Architecture, Checkpoint};
use d2o_fetch::{Request, Source};
use d2o_files::{Scratch, hex};
use d2o_refs::batch::container_sha256;
use fs_err as fs;
use sha2::{Digest as _, Sha256};

use super::known::published;
use super::{ExitStatus, export, parsed};
use crate::cli::{Command, Global, Input, Sampler, Takes};
use crate::downloads::{cache, download, fetch, settings};
use crate::error::with_hint;
use crate::printer::Printer;

/// File extensions of checkpoints. No image container has one of these.
const CHECKPOINTS: [&str; 7] = ["bin", "ckpt", "pb", "pkl", "pt", "pth", "safetensors"];

/// Replaces arguments of `command`: addresses and names by files in the cache, and checkpoints by exported graphs where
/// a graph is expected.
///
/// # Errors
/// If a download fails, or a checkpoint cannot be exported.
pub(super) fn resolve(command: &mut Command, global: &Global, printer: Printer) -> anyhow::Result<()> {
    let sampling = match command {
        Command::Generate(args) => Some(&args.sampling),
        Command::Evaluate(args) => Some(&args.sampling),
        _ => None,
    };
    let sampler = sampling.and_then(|s| s.sampler);
    for Input { path, takes } in command.inputs() {
        if let Some(local) = local(path, printer)? {
            *path = local;
        }
        let graph = path.extension().is_some_and(|e| e == "onnx") || !path.is_file();
        if takes == Takes::File || graph || (takes == Takes::Samples && !is_checkpoint(path)) {
            continue;
        }
        *path = exported(path, takes, sampler, global, printer)
            .with_context(|| format!("cannot use the checkpoint `{}` as a graph", path.display()))?;
    }
    Ok(())
}

/// The downloaded file if `path` is an address or, if no such file exists, a name of `d2o known`.
fn local(path: &Path, printer: Printer) -> anyhow::Result<Option<PathBuf>> {
    let Some(text) = path.to_str() else { return Ok(None) };
    if let Some(source) = Source::parse(text) {
        return Ok(Some(download(&Request::of(source?), &settings()?, text, printer)?.path));
    }
    if path.exists() {
        return Ok(None);
    }
    let Some(known) = known::find(text) else { return Ok(None) };
    Ok(Some(fetch(known, &settings()?, printer)?.path))
}

fn is_checkpoint(path: &Path) -> bool {
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    extension.is_some_and(|e| CHECKPOINTS.contains(&e.as_str()))
}

/// Path of the graph of the checkpoint at `path` in the cache. Exports the graph if the cache lacks it.
fn exported(
    path: &Path,
    takes: Takes,
    sampler: Option<Sampler>,
    global: &Global,
    printer: Printer,
) -> anyhow::Result<PathBuf> {
    let asked: Option<&[&str]> = match (takes, sampler) {
        (Takes::Extractor, _) => Some(&["--input", "f32"]),
        (_, Some(Sampler::OneStep | Sampler::Sid)) => Some(&["--kind", "one-step"]),
        (_, Some(_)) => Some(&["--kind", "denoiser"]),
        (_, None) => None,
    };
    let exports = cache()?.join("exports");
    let folder = exports.join(cache_name(path, asked)?);
    let name = path.with_extension("onnx");
    let name = name.file_name().context("the path of a checkpoint has no file name")?;
    let out = folder.join(name);
    if out.exists() {
        printer.note(&format!("using the cached export of `{}`: `{}`", path.display(), out.display()));
        return Ok(out);
    }
    let options = asked.map_or_else(|| export_options(path), Ok)?;
    let how = if options.is_empty() { String::new() } else { format!(" ({})", options.join(" ")) };
    printer.note(&format!("exporting `{}` into the cache{how}", path.display()));
    // The graph is moved into the cache after it has passed the check.
    let unchecked = fs::create_dir_all(&exports)
        .and_then(|()| Scratch::new_in(&exports))
        .map_err(|error| with_hint(error.into(), "set D2O_CACHE to a writable folder"))?;
    let mut words: Vec<OsString> = vec!["d2o".into(), "export".into()];
    words.extend(options.iter().map(Into::into));
    words.extend(["--out".into(), unchecked.path().join(name).into(), "--".into(), path.into()]);
    let args = parsed(words, Command::export)?;
    let status = export::run(&args, global, printer)?;
    anyhow::ensure!(status == ExitStatus::Done, "the exported graph differs between the runtimes");
    match unchecked.persist(&folder) {
        // Another process has exported it in the meantime; the bytes are the same.
        Err(_) if out.exists() => {}
        other => other?,
    }
    Ok(out)
}

/// Options of `d2o export` for the kind of graph if no sampler is given. A denoiser is exported for sampling in several
/// steps, unless its class is `D2OPrecond` or it is a published checkpoint, for which `d2o export` knows the kind.
fn export_options(path: &Path) -> anyhow::Result<&'static [&'static str]> {
    let checkpoint = Checkpoint::open(path)?;
    let network = checkpoint.network(None)?;
    let Architecture::Denoiser(config) = &network.architecture else { return Ok(&[]) };
    let one_step = config.class() == "D2OPrecond" || published(path, config.class())?.is_some();
    Ok(if one_step { &[] } else { &["--kind", "denoiser"] })
}

/// Folder name of a graph in the cache: the name of the checkpoint, and a digest of its content, the options and this
/// program.
fn cache_name(path: &Path, options: Option<&[&str]>) -> anyhow::Result<String> {
    let program = std::env::current_exe().and_then(fs::metadata);
    let program = program.map(|m| (m.len(), m.modified().ok())).ok();
    let mut hash = Sha256::new();
    hash.update(format!("{} {program:?} {options:?} {}", env!("CARGO_PKG_VERSION"), container_sha256(path)?));
    let digest = hex(&hash.finalize()[..8]);
    // The name is included because `d2o export` may recognise a published checkpoint by it.
    let file = path.file_name().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(format!("{file}-{digest}"))
}
