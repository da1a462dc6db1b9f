//! Encoding of pixels as PNG.

use std::path::Path;

use image::ImageEncoder as _;
use ndarray::ArrayView3;

use crate::error::{Error, Result};

/// Encodes u8 `[H, W, C]` as PNG: grey (C = 1), grey and alpha (2), RGB (3) or RGBA (4). Equal pixels give equal bytes.
/// `file` and `entry` name the image in errors.
///
/// # Errors
/// `Format` for another number of channels, `Image` if the pixels cannot be encoded.
pub fn png(file: &Path, entry: &str, pixels: ArrayView3<'_, u8>) -> Result<Vec<u8>> {
    let (height, width, channels) = pixels.dim();
    let colour = match channels {
        1 => image::ExtendedColorType::L8,
        2 => image::ExtendedColorType::La8,
        3 => image::ExtendedColorType::Rgb8,
        4 => image::ExtendedColorType::Rgba8,
        other => return Err(Error::format(file, entry, "1 to 4 channels", other.to_string())),
    };
    let side = |n: usize| u32::try_from(n).map_err(|_| Error::format(file, entry, "a size below 2^32", n.to_string()));
    let pixels = pixels.as_standard_layout();
    let flat = pixels.as_slice().unwrap_or(&[]);
    let mut bytes = Vec::new();
    image::codecs::png::PngEncoder::new(&mut bytes)
        .write_image(flat, side(width)?, side(height)?, colour)
        .map_err(|source| Error::image(file, entry, source))?;
    Ok(bytes)
}
