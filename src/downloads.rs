//! Downloads into the cache, and where the cache is.

use std::ops::ControlFlow;
use std::path::PathBuf;

use d2o_converters::known::{FileHash, Known};
use d2o_fetch::{Event, Fetched, PublishedHash, Request, Settings, Source};

use crate::error::with_hint;
use crate::interrupt;
use crate::printer::{Printer, Progress};

/// d2o's folder for what can be made again: `D2O_CACHE`, else `d2o` in the user's cache.
///
/// # Errors
/// If no variable says where that is.
pub fn cache() -> anyhow::Result<PathBuf> {
    Ok(d2o_fetch::cache_folder(|name| std::env::var_os(name))?)
}

/// Settings of downloads, from the environment.
///
/// # Errors
/// Values that cannot be read.
pub fn settings() -> anyhow::Result<Settings> {
    Ok(Settings::from_env(|name| std::env::var_os(name))?)
}

/// Path of a published file below the folder of downloads.
#[must_use]
pub fn name_of(known: &Known) -> String {
    format!("known/{}/{}", known.name, known.file)
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
    let request = Request { sources, name: name_of(known), sha256, bytes: known.bytes };
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
    // The failures that were told last; a state is told again as long as it lasts.
    let mut told = 0;
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
                told = 0;
            }
            Event::Retrying { error, failures, of, wait } if *failures != told => {
                told = *failures;
                printer.note(&format!("{error}; attempt {} of {of} in {:.0} s", failures + 1, wait.as_secs_f64()));
            }
            Event::StartedOver { reason } => {
                shown = None;
                printer.note(&format!("restarting the download: {reason}"));
            }
            Event::NextSource { error } => printer.note(&format!("{error}; trying the next address")),
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
