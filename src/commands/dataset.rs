//! `d2o dataset`.

use anyhow::Context as _;
use d2o_refs::image_zip::DatasetWriter;

use super::ExitStatus;
use crate::cli::Dataset;
use crate::dataset::{Source, images_of};
use crate::interrupt;
use crate::printer::Printer;

/// Images decoded and written together.
const CHUNK: usize = 256;

/// Makes a dataset zip.
///
/// # Errors
/// Unreadable sources, naming the file.
pub fn run(args: &Dataset, printer: Printer) -> anyhow::Result<ExitStatus> {
    let mut source = Source::open(&args.source, &args.exclude, args.background.0)
        .with_context(|| format!("cannot make a dataset of `{}`", args.source.display()))?;
    let count = args.max_images.map_or(source.len(), |n| n.min(source.len()));
    let resolution = args.resolution as usize;
    let mut writer = DatasetWriter::create(&args.out)?;
    let mut progress = printer.progress("dataset", count as u64);
    for start in (0..count).step_by(CHUNK) {
        anyhow::ensure!(!interrupt::asked(), "interrupted; `{}` was not written", args.out.display());
        let range = start..(start + CHUNK).min(count);
        let (images, labels) = images_of(&mut source, range.clone(), resolution)?;
        writer.append(&images, labels.as_deref())?;
        progress.advance(range.len() as u64);
    }
    progress.finish();
    writer.finish()?;
    printer.note(&format!("{count} images of {resolution}×{resolution} pixels in `{}`", args.out.display()));
    Ok(ExitStatus::Done)
}
