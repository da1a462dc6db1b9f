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
        Format::Bmp => bmp::decode(bytes),
        Format::Gif => gif::decode(bytes),
        Format::Jpeg => jpeg::decode(bytes),
        Format::Jpeg2000 => jpeg2000::decode(bytes),
        Format::Png => png::decode(bytes),
        Format::Pnm => pnm::decode(bytes),
        Format::Tga => tga::decode(bytes),
        Format::Tiff => tiff::decode(bytes),
        Format::WebP => webp::decode(bytes),
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
        Format::Bmp => bmp::size(bytes),
        Format::Gif => gif::size(bytes),
        Format::Jpeg => Ok(jpeg::frame(bytes)?.map(|f| (f.height, f.width))),
        Format::Jpeg2000 => jpeg2000::size(bytes),
        Format::Png => png::size(bytes),
        Format::Pnm => pnm::size(bytes),
        Format::Tga => Ok(tga::size(bytes)),
        Format::Tiff => tiff::size(bytes),
        Format::WebP => webp::size(bytes),
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Bmp,
    Gif,
    Jpeg,
    Jpeg2000,
    Png,
    Pnm,
    Tga,
    Tiff,
    WebP,
}

/// Files that are known and not read: how they begin, and what they are.
const OTHERS: [(&[u8], &str); 21] = [
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (b"\xff\x0a", "a JPEG XL codestream"),
    (b"\x00\x00\x01\x00", "an ICO icon, which holds several images"),
    (b"\x00\x00\x02\x00", "a CUR cursor, which holds several images"),
    (b"8BPS", "a Photoshop document"),
    (b"qoif", "a QOI image"),
    (b"DDS ", "a DDS texture"),
    (b"icns", "an ICNS icon, which holds several images"),
    (b"v/1\x01", "an OpenEXR image of floats"),
    (b"#?RADIANCE", "a Radiance image of floats"),
    (b"%!PS", "a PostScript drawing"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "a gzip file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"version https://git-lfs", "a Git LFS pointer; `git lfs pull` fetches the file itself"),
    (b"<svg", "an SVG drawing"),
    (b"MATLAB 5.0", "a MATLAB 5 file"),
    (b"<?xml", "an XML file"),
    (b"<", "a web page or XML file"),
];

/// What a file that is known and not read is.
fn other(bytes: &[u8]) -> Option<&'static str> {
    // A web page may begin with a byte order mark and empty lines.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let trimmed = bytes.trim_ascii_start();
    let bytes = if trimmed.starts_with(b"<") { trimmed } else { bytes };
    OTHERS.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, what)| *what)
}

/// What an ISO base media file is.
fn iso_media(bytes: &[u8]) -> Option<&'static str> {
    let [_, _, _, _, b'f', b't', b'y', b'p', brand @ ..] = bytes else { return None };
    Some(match brand.get(..4) {
        Some(b"avif" | b"avis") => "an AVIF image",
        Some(b"heic" | b"heix" | b"mif1" | b"msf1" | b"hevc") => "a HEIF image",
        _ => "a video or another ISO media file",
    })
}

/// What the file that begins with `bytes` is, in words, if it is an image or another file that is known by its beginning.
pub(crate) fn known(bytes: &[u8]) -> Option<&'static str> {
    iso_media(bytes).or_else(|| other(bytes)).or_else(|| Format::of(bytes).ok().map(Format::name))
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Bmp => "a BMP image",
            Self::Gif => "a GIF image",
            Self::Jpeg => "a JPEG image",
            Self::Jpeg2000 => "a JPEG 2000 image",
            Self::Png => "a PNG image",
            Self::Pnm => "a PBM, PGM or PPM image",
            Self::Tga => "a TGA image",
            Self::Tiff => "a TIFF image",
            Self::WebP => "a WebP image",
        }
    }

    fn of(bytes: &[u8]) -> Result<Self, Fault> {
        match bytes {
            [0xff, 0xd8, 0xff, ..] => Ok(Self::Jpeg),
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Ok(Self::Png),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Ok(Self::Gif),
            [b'B', b'M', ..] => Ok(Self::Bmp),
            [b'P', b'0'..=b'6' | b'f' | b'y', ..] => Ok(Self::Pnm),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok(Self::WebP),
            [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Ok(Self::Tiff),
            _ if bytes.starts_with(jpeg2000::SIGNATURE) || bytes.starts_with(&jpeg2000::CODESTREAM) => {
                Ok(Self::Jpeg2000)
            }
            [a, b, c, d, ..] if bmp::HEADERS.contains(&u32::from_le_bytes([*a, *b, *c, *d])) => Ok(Self::Bmp),
            _ => Self::unmarked(bytes),
        }
    }

    /// What has no magic number of a format read here.
    fn unmarked(bytes: &[u8]) -> Result<Self, Fault> {
        let refused = |found: &str| {
            Err(Fault::expected(
                "an image in BMP, GIF, JPEG, JPEG 2000, PBM, PGM, PNG, PPM, TGA, TIFF or WebP (convert others to PNG)",
                found,
            ))
        };
        if bytes.is_empty() {
            return refused("an empty file");
        }
        if let Some(what) = iso_media(bytes) {
            return refused(what);
        }
        // A TGA of RGB begins as a CUR does.
        if tga::size(bytes).is_some() {
            return Ok(Self::Tga);
        }
        if let Some(what) = other(bytes) {
            return refused(what);
        }
        refused(&format!("a file that begins {:02x?}", &bytes[..bytes.len().min(8)]))
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
        Self::expected("8 bits a channel: the evaluators read 16 bits differently, so convert the images first", found)
    }

    fn at(self, file: &Path, entry: &str) -> Error {
        match self {
            Self::Expected { expected, found } => Error::format(file, entry, expected, found),
            Self::Decoder(source) => Error::image(file, entry, source),
        }
    }
}
