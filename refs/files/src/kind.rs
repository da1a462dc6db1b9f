//! Kinds of files by their first bytes, for the error messages of readers that expected another format.

/// Number of bytes from the start of a file that identify it: the signature of a tar archive ends at 262.
pub const HEAD: usize = 512;
/// Name of a zip archive in [`known`].
pub const ZIP: &str = "a zip archive";
/// Name of an ONNX model in [`known`].
pub const ONNX: &str = "an ONNX model";
/// Most bytes of a text that [`describe`] shows.
const SHOWN: usize = 40;

/// Image formats with a signature. TGA has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Image {
    Bmp,
    Gif,
    Jpeg,
    Jpeg2000,
    Png,
    Pnm,
    Tiff,
    WebP,
}

/// Lengths of a BMP header; an image without a file header begins with one of them.
pub const DIB_HEADERS: [u32; 7] = [12, 40, 52, 56, 64, 108, 124];
/// First box of a JPEG 2000 file.
pub const JPEG_2000: &[u8] = b"\x00\x00\x00\x0cjP  \r\n\x87\n";
/// First bytes of a JPEG 2000 codestream: the SOC and SIZ markers.
pub const CODESTREAM: [u8; 4] = [0xff, 0x4f, 0xff, 0x51];

impl Image {
    /// The format of the image that begins with `head`.
    #[must_use]
    pub fn of(head: &[u8]) -> Option<Self> {
        Some(match head {
            [0xff, 0xd8, 0xff, ..] => Self::Jpeg,
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Self::Png,
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Self::Gif,
            [b'B', b'M', ..] => Self::Bmp,
            [b'P', b'0'..=b'6' | b'f' | b'y', ..] => Self::Pnm,
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Self::WebP,
            [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Self::Tiff,
            _ if head.starts_with(JPEG_2000) || head.starts_with(&CODESTREAM) => Self::Jpeg2000,
            [a, b, c, d, ..] if DIB_HEADERS.contains(&u32::from_le_bytes([*a, *b, *c, *d])) => Self::Bmp,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Bmp => "a BMP image",
            Self::Gif => "a GIF image",
            Self::Jpeg => "a JPEG image",
            Self::Jpeg2000 => "a JPEG 2000 image",
            Self::Png => "a PNG image",
            Self::Pnm => "a PBM, PGM or PPM image",
            Self::Tiff => "a TIFF image",
            Self::WebP => "a WebP image",
        }
    }
}

/// Magic bytes of file formats. A longer entry precedes a shorter one that is its prefix.
const BEGINNINGS: [(&[u8], &str); 29] = [
    (b"version https://git-lfs", "a Git LFS pointer; `git lfs pull` fetches the file itself"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML file, perhaps the error response of a server"),
    (b"<", "a web page or XML file, perhaps the login or error page of a server"),
    (b"PK\x03\x04", ZIP),
    (b"PK\x05\x06", "a zip archive without entries"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"MATLAB 5.0", "a MATLAB 5 file"),
    (b"\x1f\x8b", "a gzip file; unpack it first"),
    (b"BZh", "a bzip2 file; unpack it first"),
    (b"\xfd7zXZ\x00", "an xz file; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"Rar!\x1a\x07", "a RAR archive; unpack it first"),
    (b"\x7fELF", "a program or library"),
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript drawing"),
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
    (b"SIMPLE  =", "a FITS image"),
];

/// Kind of the file that begins with `head`; `None` if it is unknown. `head` has the first [`HEAD`] bytes, or all bytes
/// of a shorter file.
#[must_use]
pub fn known(head: &[u8]) -> Option<&'static str> {
    // A web page can begin with a byte order mark and empty lines.
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let trimmed = text.trim_ascii_start();
    let begins = if trimmed.starts_with(b"<") { trimmed } else { text };
    match head {
        [] => return Some("an empty file"),
        _ if head.iter().all(|b| *b == 0) => return Some("zeros only: the file was not written completely"),
        [0x80, 2..=5, ..] => return Some("a pickle"),
        [_, _, _, _, 0, 0, 0, 0, b'{', b'"', ..] => return Some("a safetensors file"),
        [8, ..] if head.windows(4).any(|w| w == b"onnx" || w == b"orch") => return Some(ONNX),
        [_, _, _, _, b'f', b't', b'y', b'p', brand @ ..] => return Some(iso_media(brand)),
        _ => {}
    }
    let beginning = BEGINNINGS.iter().find(|(magic, _)| begins.starts_with(magic)).map(|(_, what)| *what);
    let tar = || (head.get(257..262) == Some(b"ustar")).then_some("a tar archive; unpack it first");
    beginning.or_else(tar).or_else(|| Image::of(head).map(Image::name))
}

/// Kind of an ISO base media file with `brand`.
fn iso_media(brand: &[u8]) -> &'static str {
    match brand.get(..4) {
        Some(b"avif" | b"avis") => "an AVIF image",
        Some(b"heic" | b"heix" | b"mif1" | b"msf1" | b"hevc") => "a HEIF image",
        _ => "a video or another ISO media file",
    }
}

/// Kind of the file that begins with `head`, as in [`known`], else its first bytes.
#[must_use]
pub fn describe(head: &[u8]) -> String {
    if let Some(what) = known(head) {
        return what.to_owned();
    }
    let head = &head[..head.len().min(HEAD)];
    let text = String::from_utf8_lossy(&head[..head.len().min(SHOWN)]);
    let text = text.trim_matches(['\u{fffd}', '\0']);
    if !text.is_empty() && !head.contains(&0) && !text.contains(|c: char| c.is_control() && !c.is_whitespace()) {
        return format!("a text that begins with {text:?}");
    }
    if is_graph_def(head) {
        return "a TensorFlow graph".to_owned();
    }
    format!("a file that begins with {:02x?}", &head[..head.len().min(8)])
}

/// Whether `head` can begin a TensorFlow GraphDef: a node, whose first field is its name.
#[must_use]
pub fn is_graph_def(head: &[u8]) -> bool {
    const NODE: u8 = 0x0a;
    const NAME: u8 = 0x0a;
    let Some((&NODE, rest)) = head.split_first() else { return false };
    let length = rest.iter().take(5).position(|b| b & 0x80 == 0);
    length
        .and_then(|l| rest.get(l + 1..))
        .is_some_and(|r| r.first() == Some(&NAME) && r.get(2).is_some_and(u8::is_ascii))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_by_how_they_begin() {
        let tar = [&b"a.png"[..], &[0; 252], b"ustar\0"].concat();
        let onnx = b"\x08\x0a\x12\x07pytorch\x1a\x052.0.1";
        for (head, what) in [
            (&b""[..], "an empty file"),
            (&[0; 100], "zeros only: the file was not written completely"),
            (
                b"version https://git-lfs.github.com/spec/v1\n",
                "a Git LFS pointer; `git lfs pull` fetches the file itself",
            ),
            (b"\n\n<!DOCTYPE html>", "a web page or XML file, perhaps the login or error page of a server"),
            (b"\xef\xbb\xbf<?xml", "an XML file, perhaps the error response of a server"),
            (b"<svg>", "an SVG drawing"),
            (b"PK\x03\x04\x14", "a zip archive"),
            (&tar, "a tar archive; unpack it first"),
            (b"\x80\x04\x95", "a pickle"),
            (b"\x40\0\0\0\0\0\0\0{\"w\":", "a safetensors file"),
            (onnx, ONNX),
            (b"\0\0\0\x20ftypavif", "an AVIF image"),
            (b"\0\0\0\x20ftypisom", "a video or another ISO media file"),
            (b"\x89PNG\r\n\x1a\n", "a PNG image"),
            (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
            (&[40, 0, 0, 0, 1], "a BMP image"),
            (b"a,b\n1,2\n", "a text that begins with \"a,b\\n1,2\\n\""),
            (b"\x0a\x9f\x04\x0a\x05input\x12\x0bPlaceholder", "a TensorFlow graph"),
            (&[1, 2, 3], "a file that begins with [01, 02, 03]"),
        ] {
            assert_eq!(describe(head), what, "{head:?}");
        }
    }

    /// No beginning hides a longer one after it.
    #[test]
    fn longer_beginnings_come_first() {
        for (i, (long, _)) in BEGINNINGS.iter().enumerate() {
            let hidden = BEGINNINGS[..i].iter().find(|(short, _)| long.starts_with(short));
            assert_eq!(hidden, None, "{long:?}");
        }
    }
}
