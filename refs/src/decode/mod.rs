//! Decoding of images to pixels equal to those of Pillow (`Image.open`).

mod bmp;
mod encode;
mod gif;
mod jpeg;
mod jpeg2000;
mod memory;
mod pixels;
mod png;
mod pnm;
mod tga;
mod tiff;
mod webp;

use std::path::Path;

use d2o_files::kind::{self, HEAD, Image};
use ndarray::{Array2, Array3, Axis};

use crate::error::{Error, Result};
use crate::pixels::drop_alpha;

pub use encode::png;

/// File name extensions of images, in lower case: those that Pillow assigns to the supported formats, and those of
/// formats that are rejected by name (AVIF). A file of such a format in a set is an error and is not skipped.
pub const EXTENSIONS: [&str; 32] = [
    "png", "apng", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "dib", "gif", "tif", "tiff", "pbm", "pgm", "ppm",
    "pnm", "pfm", "tga", "icb", "vda", "vst", "jp2", "j2k", "jpc", "jpf", "jpx", "j2c", "avif", "avifs", "ico", "cur",
    "mpo",
];

/// Whether `name` has one of the [`EXTENSIONS`], in either case.
pub fn is_image(name: &str) -> bool {
    let ending = name.rsplit_once('.').map(|(_, e)| e.to_ascii_lowercase());
    ending.is_some_and(|e| EXTENSIONS.contains(&e.as_str()))
}

/// A decoded image with 8 bits per channel and the channels of its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// `[H, W]`: modes `L` and `1` (0 and 255) of Pillow.
    Grey(Array2<u8>),
    /// `[H, W, 2]`, grey and alpha: mode `LA` of Pillow.
    GreyAlpha(Array3<u8>),
    /// `[H, W, 3]`: mode `RGB` of Pillow. Palettes without transparency, CMYK and YCbCr are converted to it.
    Rgb(Array3<u8>),
    /// `[H, W, 4]`, alpha last and not premultiplied: mode `RGBA` of Pillow. Palettes with transparency are converted
    /// to it.
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

    /// u8 `[H, W, 3]`: grey is repeated, alpha dropped, as in `convert("RGB")` of Pillow.
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
            // The image can be large, so it is not copied.
            Self::Rgba(rgba) if rgba.is_standard_layout() => {
                let (h, w, channels) = rgba.dim();
                let data = drop_alpha(rgba.into_raw_vec_and_offset().0, channels);
                Array3::from_shape_vec((h, w, 3), data).unwrap_or_default()
            }
            Self::Rgba(rgba) => rgba.slice(ndarray::s![.., .., ..3]).to_owned(),
        }
    }
}

/// Decodes `bytes` of `entry` in `file` to u8 `[H, W, 3]`: grey is repeated, alpha dropped (as in `convert("RGB")` of
/// Pillow).
///
/// # Errors
/// `Image` for errors of a decoder. `Format` if the format is unknown, the data are incomplete or not supported, the
/// image has 16 bits per channel (which the evaluators read differently), or it exceeds the size limits.
pub fn rgb(file: &Path, entry: &str, bytes: &[u8]) -> Result<Array3<u8>> {
    Ok(image(file, entry, bytes)?.into_rgb())
}

/// Decodes `bytes` of `entry` in `file`, keeping grey and alpha.
///
/// # Errors
/// Those of [`rgb`].
pub fn image(file: &Path, entry: &str, bytes: &[u8]) -> Result<Decoded> {
    let decoded = Format::of(bytes).and_then(|format| match format {
        Format::Signed(Image::Bmp) => bmp::decode(bytes),
        Format::Signed(Image::Gif) => gif::decode(bytes),
        Format::Signed(Image::Jpeg) => jpeg::decode(bytes),
        Format::Signed(Image::Jpeg2000) => jpeg2000::decode(bytes),
        Format::Signed(Image::Png) => png::decode(bytes),
        Format::Signed(Image::Pnm) => pnm::decode(bytes),
        Format::Tga => tga::decode(bytes),
        Format::Signed(Image::Tiff) => tiff::decode(bytes),
        Format::Signed(Image::WebP) => webp::decode(bytes),
    });
    decoded.and_then(pixels::Pixels::decoded).map_err(|fault| fault.at(file, entry))
}

/// Height and width of the image `entry` in `file`, equal to those of [`rgb`], from its header only. `bytes` is the
/// whole file or a prefix of it; `None` if the header does not end within `bytes` (a TIFF header can be at the end of
/// the file).
///
/// # Errors
/// Those of [`rgb`] that the header shows.
pub fn dims(file: &Path, entry: &str, bytes: &[u8]) -> Result<Option<(usize, usize)>> {
    let size = Format::of(bytes).and_then(|format| match format {
        Format::Signed(Image::Bmp) => bmp::size(bytes),
        Format::Signed(Image::Gif) => gif::size(bytes),
        Format::Signed(Image::Jpeg) => Ok(jpeg::frame(bytes)?.map(|f| (f.height, f.width))),
        Format::Signed(Image::Jpeg2000) => jpeg2000::size(bytes),
        Format::Signed(Image::Png) => png::size(bytes),
        Format::Signed(Image::Pnm) => pnm::size(bytes),
        Format::Tga => Ok(tga::size(bytes)),
        Format::Signed(Image::Tiff) => tiff::size(bytes),
        Format::Signed(Image::WebP) => webp::size(bytes),
    });
    let gated = size.and_then(|size| {
        if let Some((height, width)) = size {
            pixels::check_size(height, width)?;
        }
        Ok(size)
    });
    gated.map_err(|fault| fault.at(file, entry))
}

/// Supported formats, recognised by content.
enum Format {
    Signed(Image),
    /// TGA has no signature.
    Tga,
}

impl Format {
    fn of(bytes: &[u8]) -> Result<Self, Fault> {
        if let Some(image) = Image::of(bytes) {
            return Ok(Self::Signed(image));
        }
        // An RGB TGA begins like a CUR, so TGA is checked before `kind::describe` is called.
        if tga::size(bytes).is_some() {
            return Ok(Self::Tga);
        }
        const EXPECTED: &str =
            "an image in BMP, GIF, JPEG, JPEG 2000, PBM, PGM, PNG, PPM, TGA, TIFF or WebP (convert others to PNG)";
        Err(Fault::expected(EXPECTED, kind::describe(&bytes[..bytes.len().min(HEAD)])))
    }
}

/// Why an image cannot be decoded, without its file and entry.
#[derive(Debug)]
enum Fault {
    /// The bytes do not follow the format, or are not supported.
    Expected { expected: String, found: String },
    /// An error of a decoder.
    Decoder(Box<dyn std::error::Error + Send + Sync>),
}

impl Fault {
    fn expected(expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self::Expected { expected: expected.into(), found: found.into() }
    }

    fn decoder(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Decoder(error.into())
    }

    /// The fault for 16 bits per channel.
    fn sixteen(found: impl Into<String>) -> Self {
        Self::expected("8 bits per channel (evaluators read 16 bits differently; convert the images first)", found)
    }

    fn at(self, file: &Path, entry: &str) -> Error {
        match self {
            Self::Expected { expected, found } => Error::format(file, entry, expected, found),
            Self::Decoder(source) => Error::image(file, entry, source),
        }
    }
}
