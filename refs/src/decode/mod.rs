//! Encoded images to pixels, equal to what Pillow's `Image.open` gives.

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

/// File name endings of images, in lower case: those that Pillow gives to the formats read here, and to formats refused by
/// name (AVIF), so that such a file among samples is an error and not left out.
pub const EXTENSIONS: [&str; 32] = [
    "png", "apng", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "dib", "gif", "tif", "tiff", "pbm", "pgm", "ppm",
    "pnm", "pfm", "tga", "icb", "vda", "vst", "jp2", "j2k", "jpc", "jpf", "jpx", "j2c", "avif", "avifs", "ico", "cur",
    "mpo",
];

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
            // Without a copy: it may be large.
            Self::Rgba(rgba) if rgba.is_standard_layout() => {
                let (h, w, channels) = rgba.dim();
                let data = drop_alpha(rgba.into_raw_vec_and_offset().0, channels);
                Array3::from_shape_vec((h, w, 3), data).unwrap_or_default()
            }
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

/// Height and width of the image `entry` in `file` as [`rgb`] would give them, from its header alone. `bytes` is the whole
/// file or a prefix of it; `None` if the header does not end within `bytes` (a TIFF's may stand at the file's end).
///
/// # Errors
/// As [`rgb`], as far as the header tells.
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
            pixels::gate(height, width)?;
        }
        Ok(size)
    });
    gated.map_err(|fault| fault.at(file, entry))
}

/// Formats that are read, by content.
enum Format {
    Signed(Image),
    /// It has no signature.
    Tga,
}

impl Format {
    fn of(bytes: &[u8]) -> Result<Self, Fault> {
        if let Some(image) = Image::of(bytes) {
            return Ok(Self::Signed(image));
        }
        // A TGA of RGB begins as a CUR does.
        if tga::size(bytes).is_some() {
            return Ok(Self::Tga);
        }
        const EXPECTED: &str =
            "an image in BMP, GIF, JPEG, JPEG 2000, PBM, PGM, PNG, PPM, TGA, TIFF or WebP (convert others to PNG)";
        Err(Fault::expected(EXPECTED, kind::describe(&bytes[..bytes.len().min(HEAD)])))
    }
}

/// Why an image is not read, before it is known where it stands.
#[derive(Debug)]
enum Fault {
    /// Its bytes are not what a format, or this crate, asks for.
    Expected { expected: String, found: String },
    /// A decoder's own error.
    Decoder(Box<dyn std::error::Error + Send + Sync>),
}

impl Fault {
    fn expected(expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self::Expected { expected: expected.into(), found: found.into() }
    }

    fn decoder(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Decoder(error.into())
    }

    /// 16 bits a channel.
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
