//! `d2o fetch`.

use d2o_converters::known;
use d2o_fetch::{Fetched, HashCheck, Origin, PublishedHash, Request, Source};

use super::ExitStatus;
use super::known::unknown;
use crate::cli::Fetch;
use crate::downloads;
use crate::printer::Printer;

/// Downloads files into the cache and prints their paths, one per line.
///
/// # Errors
/// If a name is unknown, an address is malformed, or a download fails.
pub fn run(args: &Fetch, printer: Printer) -> anyhow::Result<ExitStatus> {
    let mut settings = downloads::settings()?;
    settings.offline |= args.offline;
    let sha256 = args.sha256.as_deref().map(PublishedHash::parse).transpose()?;
    anyhow::ensure!(
        sha256.is_none() || args.files.len() == 1,
        "--sha256: expected one file, found {}",
        args.files.len()
    );
    for text in &args.files {
        let fetched = match Source::parse(text) {
            Some(source) => {
                let request = Request { sha256: sha256.clone().unwrap_or_default(), ..Request::of(source?) };
                downloads::download(&request, &settings, text, printer)?
            }
            None => {
                let known = known::find(text).ok_or_else(|| unknown(text))?;
                anyhow::ensure!(
                    sha256.is_none(),
                    "--sha256 requires an address; the hash of `{text}` is known ({})",
                    known.page
                );
                downloads::fetch(known, &settings, printer)?
            }
        };
        printer.note(&describe(&fetched));
        printer.data(&fetched.path.display().to_string())?;
    }
    Ok(ExitStatus::Done)
}

/// Where a file came from, and what its hash was compared with.
fn describe(fetched: &Fetched) -> String {
    let origin = match fetched.origin {
        Origin::HuggingFaceCache => "in the Hugging Face cache",
        Origin::Download => "downloaded",
        _ => "in the cache",
    };
    let hash = match fetched.hash {
        HashCheck::Published { bits: 256 } => "as published".to_owned(),
        HashCheck::Published { bits } => format!("its published first {bits} bits agree"),
        HashCheck::LearnedBefore => "not published; same as at the first download".to_owned(),
        _ => "not published; recorded for later downloads".to_owned(),
    };
    format!("{origin}: {} bytes, SHA-256 {} ({hash})", fetched.bytes, fetched.sha256)
}
