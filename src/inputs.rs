//! Inputs that are not local files yet, or not in the form that a command takes: before it begins, addresses and names of `d2o known` become files of
//! the cache, and checkpoints that stand for graphs are exported into it.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Parser as _;
use d2o_converters::known::{self, FileHash, Known};
use d2o_converters::{Architecture, Checkpoint};
use d2o_fetch::{Event, Fetched, PublishedHash, Request, Settings, Source};
use d2o_refs::batch::container_sha256;
use fs_err as fs;
use sha2::{Digest as _, Sha256};

use crate::cli::{Cli, Command, Global, Input, Sampler, Takes};
use crate::commands::{ExitStatus, export};
use crate::error::with_hint;
use crate::interrupt;
use crate::printer::{Printer, Progress};

/// Extensions of checkpoints, which no container of images has.
const CHECKPOINTS: [&str; 7] = ["bin", "ckpt", "pb", "pkl", "pt", "pth", "safetensors"];

/// d2o's folder for what can be made again: `D2O_CACHE`, else `d2o` in the user's cache.
///
/// # Errors
/// If no variable says where that is.
pub fn cache() -> anyhow::Result<PathBuf> {
    let downloads = settings()?.cache;
    Ok(downloads.parent().map_or_else(|| downloads.clone(), Path::to_owned))
}

/// Settings of downloads, from the environment.
///
/// # Errors
/// Values that cannot be read.
pub fn settings() -> anyhow::Result<Settings> {
    Ok(Settings::from_env(|name| std::env::var_os(name))?)
}

/// Replaces the arguments of `command` that are addresses or names by files of the cache, and checkpoints where it takes graphs by their exports.
///
/// # Errors
/// Downloads that fail; checkpoints that cannot be exported.
pub fn resolve(command: &mut Command, global: &Global, printer: Printer) -> anyhow::Result<()> {
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

/// The file that `path` stands for, if it is an address or, where there is no such file, a name.
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

/// Brings a published file into the cache, unless it is there.
///
/// # Errors
/// A download that fails; a file without an address that is not there.
pub fn fetch(known: &Known, settings: &Settings, printer: Printer) -> anyhow::Result<Fetched> {
    let sources = known.urls.iter().filter_map(|url| Source::parse(url)).collect::<Result<Vec<_>, _>>()?;
    let sha256 = match known.hash() {
        FileHash::Full(digits) | FileHash::Prefix(digits) => PublishedHash::parse(digits)?,
        _ => PublishedHash::NONE,
    };
    let name = format!("known/{}/{}", known.name, known.file);
    let request = Request { sources, name, sha256, bytes: known.bytes };
    download(&request, settings, &known.name, printer)
        .map_err(|e| with_hint(e, format!("`{}` is published at {}", known.file, known.page)))
}

/// Carries out `request`, shown under the name `what`.
///
/// # Errors
/// Those of [`d2o_fetch::fetch`], with its hint; an interruption, after which the next call continues the file.
pub fn download(request: &Request, settings: &Settings, what: &str, printer: Printer) -> anyhow::Result<Fetched> {
    let section = interrupt::cooperative();
    let mut shown: Option<(Progress, u64)> = None;
    let mut watch = |event: &Event<'_>| {
        match event {
            Event::Receiving { done, total: Some(total) } => {
                let (progress, before) = shown.get_or_insert_with(|| {
                    let mut progress = printer.progress_of(&format!("fetch {what}"), "bytes", *total);
                    progress.skip(*done);
                    (progress, *done)
                });
                progress.advance(done.saturating_sub(*before));
                *before = *done;
            }
            Event::Retrying { error, failures, of, wait } if wait.subsec_millis() == 0 && !wait.is_zero() => {
                printer.note(&format!("{error}; attempt {} of {} in {} s", failures + 1, of + 1, wait.as_secs()));
            }
            Event::StartedOver { reason } => printer.note(&format!("the download begins again: {reason}")),
            Event::NextSource { error } => printer.note(&format!("{error}; the next address is tried")),
            Event::Unusable { error } => printer.warn(&error.to_string()),
            _ => {}
        }
        if interrupt::asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let fetched = d2o_fetch::fetch(request, settings, &mut watch);
    drop(shown);
    match fetched {
        Ok(fetched) => {
            section.complete();
            Ok(fetched)
        }
        Err(error) => {
            interrupt::check()
                .map_err(|_| interrupt::Interrupted::then("the same command continues the download".to_owned()))?;
            section.complete();
            let hint = error.hint();
            let error = anyhow::Error::new(error).context(format!("cannot fetch `{what}`"));
            Err(match hint {
                Some(hint) => with_hint(error, hint),
                None => error,
            })
        }
    }
}

fn is_checkpoint(path: &Path) -> bool {
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    extension.is_some_and(|e| CHECKPOINTS.contains(&e.as_str()))
}

/// The graph of the checkpoint at `path` in the cache, exported now unless it is there.
fn exported(
    path: &Path,
    takes: Takes,
    sampler: Option<Sampler>,
    global: &Global,
    printer: Printer,
) -> anyhow::Result<PathBuf> {
    let options: &[&str] = match (takes, sampler) {
        (Takes::Extractor, _) => &["--input", "f32"],
        (_, Some(Sampler::OneStep | Sampler::Sid)) => &["--kind", "one-step"],
        (_, Some(_)) => &["--kind", "denoiser"],
        (_, None) => kind_of(path)?,
    };
    let out = cache()?.join("exports").join(cache_name(path, options)?);
    if out.exists() {
        printer.note(&format!("`{}` as exported before: `{}`", path.display(), out.display()));
        return Ok(out);
    }
    fs::create_dir_all(out.parent().unwrap_or(Path::new("")))?;
    printer.note(&format!("export `{}` into the cache: {}", path.display(), options.join(" ")));
    let mut words: Vec<std::ffi::OsString> = vec!["d2o".into(), "export".into()];
    words.extend(options.iter().map(Into::into));
    // Another process may have written it in the meantime; the bytes are the same.
    words.extend(["--overwrite".into(), "--out".into(), out.clone().into(), "--".into(), path.into()]);
    let Command::Export(args) = Cli::try_parse_from(words)?.command else {
        anyhow::bail!("the export was not understood");
    };
    let status = export::run(&args, global, printer)?;
    if status != ExitStatus::Done {
        fs::remove_file(&out)?;
        anyhow::bail!("the exported graph differs between the runtimes");
    }
    Ok(out)
}

/// Options that say what graph of a generator is wanted where no sampler is named: a denoiser of another class than D2O's is sampled in several steps,
/// unless it is a published one that is not.
fn kind_of(path: &Path) -> anyhow::Result<&'static [&'static str]> {
    let checkpoint = Checkpoint::open(path)?;
    let network = checkpoint.network(None)?;
    let Architecture::Denoiser(config) = &network.architecture else { return Ok(&[]) };
    let file = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let bytes = fs::metadata(path)?.len();
    let published = known::recognise(&file, config.class(), bytes, || container_sha256(path))?.is_some();
    Ok(if published || config.class() == "D2OPrecond" { &[] } else { &["--kind", "denoiser"] })
}

/// Name of a graph in the cache: that of the checkpoint, and a digest of its content, of the options and of this program.
fn cache_name(path: &Path, options: &[&str]) -> anyhow::Result<String> {
    let program = std::env::current_exe().and_then(|p| Ok(fs::metadata(p)?));
    let program = program.map(|m| (m.len(), m.modified().ok())).ok();
    let mut hash = Sha256::new();
    hash.update(format!("{} {program:?} {options:?} {}", env!("CARGO_PKG_VERSION"), container_sha256(path)?));
    let digest: String = hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect();
    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(format!("{stem}-{digest}.onnx"))
}
