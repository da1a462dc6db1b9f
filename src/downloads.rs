//! Downloads into the cache, and the location of the cache.

use std::ops::ControlFlow;
use std::path::PathBuf;

use d2o_converters::known::{FileHash, Known};
use d2o_fetch::{Event, Fetched, PublishedHash, Request, Settings, Source};

use crate::error::with_hint;
use crate::interrupt;
use crate::printer::{Printer, Progress};

/// Cache folder of d2o: `D2O_CACHE`, or `d2o` in the cache folder of the user.
///
/// # Errors
/// If no environment variable determines the folder.
pub fn cache() -> anyhow::Result<PathBuf> {
    Ok(d2o_fetch::cache_folder(|name| std::env::var_os(name))?)
}

/// Download settings, read from the environment.
///
/// # Errors
/// If a variable has an invalid value.
pub fn settings() -> anyhow::Result<Settings> {
    Ok(Settings::from_env(|name| std::env::var_os(name))?)
}

/// Path of a published file, relative to the download folder.
#[must_use]
pub fn name_of(known: &Known) -> String {
    format!("known/{}/{}", known.name, known.file)
}

/// Downloads a published file into the cache, unless the cache contains it.
///
/// # Errors
/// If the download fails, or the file has no address and is not in the cache.
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

/// Runs the download `request`, which progress and errors call `what`.
///
/// # Errors
/// Same as [`d2o_fetch::fetch`], with its hint. [`interrupt::Interrupted`] after a signal; the next call continues the
/// download.
pub fn download(request: &Request, settings: &Settings, what: &str, printer: Printer) -> anyhow::Result<Fetched> {
    let section = interrupt::cooperative();
    let mut shown: Option<(Progress, u64)> = None;
    // Number of failures in the last printed note. The event is repeated while the wait lasts.
    let mut last_failures = 0;
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
                last_failures = 0;
            }
            Event::Retrying { error, failures, of, wait } if *failures != last_failures => {
                last_failures = *failures;
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
