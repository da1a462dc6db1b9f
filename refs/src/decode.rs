//! Encoded images to RGB pixels.

use std::io::Cursor;
use std::path::Path;

use image::{DynamicImage, ImageReader, Limits};
use ndarray::Array3;

use crate::error::{Error, Result};

/// Largest width or height accepted.
const MAX_SIDE: u32 = 1 << 15;
/// Most memory one decoded image may take, bytes.
const MAX_ALLOC: u64 = 1 << 30;

/// File name endings taken for images.
pub(crate) const EXTENSIONS: [&str; 9] = ["png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm"];

/// Whether `name` ends like an image's.
pub(crate) fn is_image(name: &str) -> bool {
    let ending = name.rsplit_once('.').map(|(_, e)| e.to_ascii_lowercase());
    ending.is_some_and(|e| EXTENSIONS.contains(&e.as_str()))
}

/// Decodes `bytes` of `entry` in `file` to u8 `[H, W, 3]`: grey is repeated, alpha dropped (as PIL's `convert("RGB")`).
/// Images of 16 bits a channel are refused: the evaluators disagree on them.
pub(crate) fn rgb(file: &Path, entry: &str, bytes: &[u8]) -> Result<Array3<u8>> {
    let failed = |source| Error::Image { file: file.to_owned(), entry: entry.to_owned(), source };
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|e| failed(image::ImageError::IoError(e)))?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_ALLOC);
    reader.limits(limits);
    let decoded = reader.decode().map_err(failed)?;
    if !matches!(
        decoded,
        DynamicImage::ImageLuma8(_)
            | DynamicImage::ImageLumaA8(_)
            | DynamicImage::ImageRgb8(_)
            | DynamicImage::ImageRgba8(_)
    ) {
        return Err(Error::format(file, entry, "8 bits a channel", format!("{:?}", decoded.color())));
    }
    let rgb = match decoded {
        DynamicImage::ImageRgba8(image) => {
            let mut out = image::RgbImage::new(image.width(), image.height());
            for (o, p) in out.pixels_mut().zip(image.pixels()) {
                o.0 = [p.0[0], p.0[1], p.0[2]];
            }
            out
        }
        DynamicImage::ImageLumaA8(image) => {
            let mut out = image::RgbImage::new(image.width(), image.height());
            for (o, p) in out.pixels_mut().zip(image.pixels()) {
                o.0 = [p.0[0]; 3];
            }
            out
        }
        other => other.into_rgb8(),
    };
    let dims = (rgb.height() as usize, rgb.width() as usize, 3);
    Array3::from_shape_vec(dims, rgb.into_raw()).map_err(|e| Error::format(file, entry, "H·W·3 bytes", e.to_string()))
}

/// Encodes u8 `[H, W, 3]` as PNG, the same bytes each time.
pub(crate) fn png(file: &Path, entry: &str, pixels: ndarray::ArrayView3<'_, u8>) -> Result<Vec<u8>> {
    use image::ImageEncoder as _;
    let (height, width, _) = pixels.dim();
    let side = |n: usize| u32::try_from(n).map_err(|_| Error::format(file, entry, "a size below 2^32", n.to_string()));
    let pixels = pixels.as_standard_layout();
    let flat = pixels.as_slice().unwrap_or(&[]);
    let mut bytes = Vec::new();
    image::codecs::png::PngEncoder::new(&mut bytes)
        .write_image(flat, side(width)?, side(height)?, image::ExtendedColorType::Rgb8)
        .map_err(|source| Error::Image { file: file.to_owned(), entry: entry.to_owned(), source })?;
    Ok(bytes)
}
