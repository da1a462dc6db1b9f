//! `d2o dataset`.

use anyhow::Context as _;

use super::ExitStatus;
use crate::cli::{Dataset, LabelsArg, TransformArg};
use crate::dataset::source::{Labels, Selection};
use crate::dataset::transform::{Geometry, Transform};
use crate::dataset::{self, Options};
use crate::printer::Printer;

/// Makes a dataset.
///
/// # Errors
/// If a source cannot be read, the output exists, or the run is interrupted.
pub fn run(args: &Dataset, printer: Printer) -> anyhow::Result<ExitStatus> {
    let options = options(args)?;
    let made = dataset::make(&args.source, &args.out, &options, &printer);
    let summary = made
        .map_err(|error| dataset::when_interrupted(error, &args.out))
        .with_context(|| format!("cannot make a dataset of `{}`", args.source.display()))?;
    if summary.too_small > 0 {
        printer.warn(&format!("skipped {} images smaller than the resolution", summary.too_small));
    }
    if summary.transparent > 0 {
        printer.warn(&format!(
            "{} images have transparent pixels; their alpha channel was dropped (--background RRGGBB blends them)",
            summary.transparent
        ));
    }
    if summary.turned > 0 {
        printer.note(&format!(
            "{} images have an EXIF orientation, which was not applied (--apply-exif does)",
            summary.turned
        ));
    }
    let [height, width] = summary.size;
    printer.note(&format!("{} images of {width}×{height} pixels in `{}`", summary.images, args.out.display()));
    Ok(ExitStatus::Done)
}

fn options(args: &Dataset) -> anyhow::Result<Options> {
    let transform = match args.transform {
        None if args.resolution.is_some() => Transform::CenterCrop,
        None | Some(TransformArg::None) => Transform::Keep,
        Some(TransformArg::Resize) => Transform::Resize,
        Some(TransformArg::CenterCrop) => Transform::CenterCrop,
        Some(TransformArg::CenterCropWide) => Transform::CenterCropWide,
    };
    anyhow::ensure!(
        transform != Transform::Keep || args.resolution.is_none(),
        "--transform none keeps the size of the images; --resolution needs another transform"
    );
    let labels = match args.labels {
        LabelsArg::Auto => Labels::Auto,
        LabelsArg::Source => Labels::Source,
        LabelsArg::Folders => Labels::Folders,
        LabelsArg::None => Labels::None,
    };
    Ok(Options {
        selection: Selection { exclude: args.exclude.clone(), max_images: args.max_images, labels },
        geometry: Geometry::new(transform, args.resolution.map(|r| [r.height, r.width]))?,
        background: args.background.map(|c| c.0),
        grey: args.grey,
        apply_exif: args.apply_exif,
        overwrite: args.output.overwrite,
        any_size: args.any_size,
    })
}
