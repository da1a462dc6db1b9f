//! Encoded images to pixels, equal to what Pillow's `Image.open` gives.

mod encode;

use std::io::Cursor;
use std::path::Path;

use image::{DynamicImage, ImageReader, Limits};
use ndarray::{Array2, Array3, Axis};

use crate::error::{Error, Result};

pub use encode::png;

/// Largest width or height accepted.
const MAX_SIDE: u32 = 1 << 15;
/// Most memory one decoded image may take, bytes.
const MAX_ALLOC: u64 = 1 << 30;

/// File name endings of images, in lower case.
pub const EXTENSIONS: [&str; 9] = ["png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm"];

/// Whether `name` has an image's ending, in either case.
pub fn is_image(name: &str) -> bool {
    let ending = name.rsplit_once('.').map(|(_, e)| e.to_ascii_lowercase());
    ending.is_some_and(|e| EXTENSIONS.contains(&e.as_str()))
}

/// A decoded image of 8 bits a channel, in the channels that its file has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// `[H, W]`: Pillow's modes `L` and `1` (0 and 255).
    Grey(Array2<u8>),
    /// `[H, W, 2]`, grey and alpha: Pillow's mode `LA`.
    GreyAlpha(Array3<u8>),
    /// `[H, W, 3]`: Pillow's mode `RGB`; palettes without transparency, CMYK, YCbCr and Lab are converted to it.
    Rgb(Array3<u8>),
    /// `[H, W, 4]`, alpha last and not premultiplied: Pillow's mode `RGBA`; palettes with transparency are converted to it.
    Rgba(Array3<u8>),
}

impl Decoded {
    /// Height and width.
    pub fn dims(&self) -> (usize, usize) {
        match self {
            Self::Grey(a) => a.dim(),
            Self::GreyAlpha(a) | Self::Rgb(a) | Self::Rgba(a) => (a.dim().0, a.dim().1),
        }
    }

    /// u8 `[H, W, 3]`: grey is repeated, alpha dropped, as Pillow's `convert("RGB")`.
    pub fn into_rgb(self) -> Array3<u8> {
        match self {
            Self::Grey(grey) => {
                let (h, w) = grey.dim();
                let mut out = Array3::zeros((h, w, 3));
                for mut channel in out.axis_iter_mut(Axis(2)) {
                    channel.assign(&grey);
                }
                out
            }
            Self::GreyAlpha(both) => Self::Grey(both.index_axis_move(Axis(2), 0)).into_rgb(),
            Self::Rgb(rgb) => rgb,
            Self::Rgba(rgba) => rgba.slice(ndarray::s![.., .., ..3]).to_owned(),
        }
    }
}

/// Decodes `bytes` of `entry` in `file` to u8 `[H, W, 3]`: grey is repeated, alpha dropped (as Pillow's `convert("RGB")`).
///
/// # Errors
/// `Image` if the bytes are no complete image of a supported format, `Format` for what is refused: 16 bits a channel (the
/// evaluators disagree on them), and images beyond the limits of size.
pub fn rgb(file: &Path, entry: &str, bytes: &[u8]) -> Result<Array3<u8>> {
    Ok(image(file, entry, bytes)?.into_rgb())
}

/// Decodes `bytes` of `entry` in `file`, keeping grey and alpha.
///
/// # Errors
/// As [`rgb`].
pub fn image(file: &Path, entry: &str, bytes: &[u8]) -> Result<Decoded> {
    let failed = |source| Error::image(file, entry, source);
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|e| failed(image::ImageError::IoError(e)))?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_ALLOC);
    reader.limits(limits);
    let decoded = reader.decode().map_err(failed)?;
    let (h, w) = (decoded.height() as usize, decoded.width() as usize);
    let shaped = |channels: usize, raw: Vec<u8>| {
        Array3::from_shape_vec((h, w, channels), raw)
            .map_err(|e| Error::format(file, entry, "H·W·channels bytes", e.to_string()))
    };
    match decoded {
        DynamicImage::ImageLuma8(i) => Ok(Decoded::Grey(shaped(1, i.into_raw())?.index_axis_move(Axis(2), 0))),
        DynamicImage::ImageLumaA8(i) => shaped(2, i.into_raw()).map(Decoded::GreyAlpha),
        DynamicImage::ImageRgb8(i) => shaped(3, i.into_raw()).map(Decoded::Rgb),
        DynamicImage::ImageRgba8(i) => shaped(4, i.into_raw()).map(Decoded::Rgba),
        other => Err(Error::format(file, entry, "8 bits a channel", format!("{:?}", other.color()))),
    }
}

/// Height and width of the image `entry` in `file` as [`rgb`] would give them, from its header alone. `bytes` is the whole
/// file or a prefix of it; `None` if the header does not end within `bytes`.
///
/// # Errors
/// As [`rgb`], as far as the header tells.
pub fn dims(file: &Path, entry: &str, bytes: &[u8]) -> Result<Option<(usize, usize)>> {
    let failed = |source| Error::image(file, entry, source);
    let reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|e| failed(image::ImageError::IoError(e)))?;
    match reader.into_dimensions() {
        Ok((w, h)) => Ok(Some((h as usize, w as usize))),
        Err(image::ImageError::IoError(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(failed(e)),
    }
}
