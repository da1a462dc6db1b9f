//! Datasets of images of one size from images of any size, as made by EDM's `dataset_tool.py`.

mod cifar;
mod drawing;
mod lmdb;
mod mnist;
pub mod output;
pub mod source;
pub mod transform;

use std::path::Path;

use anyhow::Context as _;
use d2o_refs::decode::{self, Decoded};
use image::{ImageDecoder as _, ImageReader};
use ndarray::{Array3, Axis, s};
use rayon::prelude::*;
use serde_json::Value;

use self::output::Output;
use self::source::{Content, Item, Selection, Source};
use self::transform::{Geometry, oriented};
use crate::error::with_hint;
use crate::interrupt;
use crate::progress::Reporter;

/// Largest number of images processed together.
const MAX_BATCH: usize = 64;
/// Largest size of the encoded and decoded images in memory, bytes, unless a single image needs more.
const MAX_BATCH_BYTES: usize = 256 << 20;
/// Default background of drawings.
const WHITE: [u8; 3] = [255; 3];

/// Options of [`make`].
#[derive(Debug, Clone)]
pub struct Options {
    /// Selection of images and labels.
    pub selection: Selection,
    /// Crop and size.
    pub geometry: Geometry,
    /// Colour behind transparent pixels. Without it, drawings are rendered on white and bitmaps lose their alpha
    /// channel, as with Pillow's `convert("RGB")`.
    pub background: Option<[u8; 3]>,
    /// Whether to store one channel. Colour images are then an error.
    pub grey: bool,
    /// Whether to apply the EXIF orientation of images.
    pub apply_exif: bool,
    /// Whether to replace an output that exists.
    pub overwrite: bool,
    /// Whether to accept sizes that are not squares with a power of two as side.
    pub any_size: bool,
}

/// Summary of a dataset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Number of images stored.
    pub images: usize,
    /// Height and width of the images, pixels.
    pub size: [usize; 2],
    /// Number of images skipped because they are smaller than the resolution of
    /// [`transform::Transform::CenterCropWide`].
    pub too_small: usize,
    /// Number of images with an EXIF orientation that was not applied.
    pub turned: usize,
    /// Number of images with transparent pixels that lost their alpha channel.
    pub transparent: usize,
}

/// An image ready to be stored.
struct Prepared {
    png: Vec<u8>,
    /// Height and width, pixels.
    size: [usize; 2],
}

/// Result of [`prepare`] for an item.
struct Outcome {
    name: String,
    label: Option<Value>,
    /// `None` if the image is too small.
    image: Option<Prepared>,
    turned: bool,
    transparent: bool,
}

/// Makes a dataset of the images at `path` and writes it to `out`: a zip if it has the extension `.zip`, otherwise a
/// folder.
///
/// # Errors
/// If an image cannot be read, naming the file, or the results differ in size. [`interrupt::Interrupted`] after a
/// signal; `out` is then not written.
pub fn make(path: &Path, out: &Path, options: &Options, reporter: &dyn Reporter) -> anyhow::Result<Summary> {
    output::ensure_new(path, out, options.overwrite)?;
    let mut source = Source::open(path, &options.selection)?;
    source.notes.iter().for_each(|note| reporter.note(note));
    let mut output = Output::create(out)?;
    let section = interrupt::cooperative();
    let mut count = reporter.count("dataset", "images", source.len as u64);
    let mut summary = Summary::default();
    let mut first: Option<(String, [usize; 2])> = None;
    let mut waiting = None;
    loop {
        interrupt::check()?;
        let batch = next_batch(path, &mut source, &mut waiting)?;
        if batch.is_empty() {
            break;
        }
        let prepared: Vec<anyhow::Result<Outcome>> =
            batch.into_par_iter().map(|item| prepare(path, item, options)).collect();
        for outcome in prepared {
            let Outcome { name, label, image, turned, transparent } = outcome?;
            summary.turned += usize::from(turned);
            summary.transparent += usize::from(transparent);
            count.advance(1);
            let Some(Prepared { png, size }) = image else {
                summary.too_small += 1;
                continue;
            };
            match &first {
                None => {
                    ensure_trainable(&name, size, options.any_size)?;
                    first = Some((name, size));
                }
                Some((first, expected)) if *expected != size => {
                    let [h, w] = *expected;
                    let error = anyhow::anyhow!(
                        "{}: `{first}` is {w}×{h}, `{name}` is {}×{}; all images of a dataset must have one size",
                        path.display(),
                        size[1],
                        size[0]
                    );
                    return Err(with_hint(error, "--resolution N crops and resizes each image"));
                }
                Some(_) => {}
            }
            output.append(&png, label)?;
            summary.images += 1;
        }
    }
    drop(count);
    let Some((_, size)) = first else {
        anyhow::bail!("`{}`: all {} images are smaller than the resolution", path.display(), summary.too_small)
    };
    summary.size = size;
    output.finish()?;
    section.complete();
    Ok(summary)
}

/// The next images of `source`, as many as the limits allow. An image that exceeds them is kept in `waiting`.
fn next_batch(path: &Path, source: &mut Source, waiting: &mut Option<Item>) -> anyhow::Result<Vec<Item>> {
    let (mut batch, mut bytes) = (Vec::new(), 0_usize);
    while batch.len() < MAX_BATCH {
        let is_new = waiting.is_none();
        let Some(item) = waiting.take().map(Ok).or_else(|| source.items.next()).transpose()? else { break };
        let here = match &item.content {
            // Decoded images have up to four channels.
            Content::Encoded(encoded) => {
                let (h, w) = decode::dims(path, &item.name, encoded).ok().flatten().unwrap_or((0, 0));
                let pixels = h.saturating_mul(w).saturating_mul(4);
                if is_new {
                    source.unpacked.add(path, &item.name, pixels as u64)?;
                }
                encoded.len().saturating_add(pixels)
            }
            Content::Drawing(svg) => svg.len(),
            Content::Pixels(pixels) => pixels.len(),
        };
        bytes = bytes.saturating_add(here);
        if bytes > MAX_BATCH_BYTES && !batch.is_empty() {
            *waiting = Some(item);
            break;
        }
        batch.push(item);
    }
    Ok(batch)
}

/// Decodes, rotates, crops, resizes and encodes one image.
fn prepare(path: &Path, item: Item, options: &Options) -> anyhow::Result<Outcome> {
    interrupt::check()?;
    let Item { name, content, label } = item;
    let (mut turned, mut transparent) = (false, false);
    let pixels = match content {
        Content::Drawing(svg) => {
            let place = || format!("{}: cannot render `{name}`", path.display());
            let size = options
                .geometry
                .drawing()
                .context("an SVG has no size in pixels: pass --resolution")
                .with_context(place)?;
            let drawing = drawing::render(svg, size, options.background.unwrap_or(WHITE)).with_context(place)?;
            Some(options.geometry.frame(drawing))
        }
        Content::Pixels(pixels) => options.geometry.apply(pixels),
        Content::Encoded(bytes) => {
            let orientation = orientation(&bytes);
            let (mut pixels, dropped) = flat(decode::image(path, &name, &bytes)?, options.background);
            drop(bytes);
            transparent = dropped;
            if options.apply_exif {
                pixels = oriented(pixels, orientation);
            } else {
                turned = orientation > 1;
            }
            options.geometry.apply(pixels)
        }
    };
    let Some(pixels) = pixels else { return Ok(Outcome { name, label, image: None, turned, transparent }) };
    let pixels = if options.grey {
        one_channel(pixels).with_context(|| {
            format!("{}: `{name}` is a colour image; --grey requires greyscale images", path.display())
        })?
    } else {
        three_channels(pixels)
    };
    let (h, w, _) = pixels.dim();
    let png = decode::png(path, &name, pixels.view())?;
    Ok(Outcome { name, label, image: Some(Prepared { png, size: [h, w] }), turned, transparent })
}

/// EXIF orientation, 1..=8; 1 if there is none.
fn orientation(bytes: &[u8]) -> u8 {
    let reader = ImageReader::new(std::io::Cursor::new(bytes)).with_guessed_format();
    let Ok(reader) = reader else { return 1 };
    // The decoder applies the orientation of TIFFs.
    if reader.format() == Some(image::ImageFormat::Tiff) {
        return 1;
    }
    reader.into_decoder().and_then(|mut decoder| decoder.orientation()).map_or(1, |o| o.to_exif())
}

/// Blends `image` over `background`, u8 `[H, W, 1 or 3]`; without a background, drops the alpha channel. Also returns
/// whether transparent pixels lost it.
fn flat(image: Decoded, background: Option<[u8; 3]>) -> (Array3<u8>, bool) {
    match image {
        Decoded::Grey(grey) => (grey.insert_axis(Axis(2)), false),
        Decoded::Rgb(rgb) => (rgb, false),
        Decoded::GreyAlpha(image) | Decoded::Rgba(image) => {
            let colours = image.dim().2 - 1;
            let alpha = image.slice(s![.., .., colours]);
            let opaque = alpha.iter().all(|a| *a == u8::MAX);
            match background {
                Some(background) if !opaque => {
                    let (h, w) = alpha.dim();
                    let colours_at = |y, x, c: usize| image[[y, x, c.min(colours - 1)]];
                    let blended = Array3::from_shape_fn((h, w, 3), |(y, x, c)| {
                        blend(colours_at(y, x, c), background[c], alpha[[y, x]])
                    });
                    (blended, false)
                }
                // `into_rgb` drops the alpha channel without a copy, because the image may be large.
                _ if colours == 3 => (Decoded::Rgba(image).into_rgb(), !opaque),
                _ => (image.slice(s![.., .., ..colours]).to_owned(), !opaque),
            }
        }
    }
}

/// Blends `above` over `below`, rounded like Pillow's `Image.paste` with a mask.
fn blend(above: u8, below: u8, alpha: u8) -> u8 {
    let sum = u32::from(above) * u32::from(alpha) + u32::from(below) * u32::from(u8::MAX - alpha) + 128;
    u8::try_from(((sum >> 8) + sum) >> 8).unwrap_or(u8::MAX)
}

/// The first channel, if all channels are equal.
fn one_channel(pixels: Array3<u8>) -> Option<Array3<u8>> {
    let grey = pixels.slice(s![.., .., ..1]);
    let same = pixels.axis_iter(Axis(2)).all(|channel| channel == grey.index_axis(Axis(2), 0));
    same.then(|| grey.to_owned())
}

fn three_channels(pixels: Array3<u8>) -> Array3<u8> {
    let (h, w, channels) = pixels.dim();
    if channels == 3 { pixels } else { Array3::from_shape_fn((h, w, 3), |(y, x, _)| pixels[[y, x, 0]]) }
}

/// Checks the requirements of EDM's tool, unless `any_size` is set: squares with a power of two as side.
fn ensure_trainable(name: &str, [height, width]: [usize; 2], any_size: bool) -> anyhow::Result<()> {
    let hint = "--any-size writes the dataset anyway; networks may not support it";
    let wrong = if height != width {
        format!("expected square images, found {width}×{height} (`{name}`)")
    } else if !width.is_power_of_two() {
        format!("expected a power of two as width and height, found {width}×{height} (`{name}`)")
    } else {
        return Ok(());
    };
    if any_size { Ok(()) } else { Err(with_hint(anyhow::anyhow!(wrong), hint)) }
}

/// Adds to `error` that `out` was not written, if it is an interruption.
#[must_use]
pub fn when_interrupted(error: anyhow::Error, out: &Path) -> anyhow::Error {
    crate::error::when_interrupted(error, || format!("`{}` was not written", out.display()))
}
