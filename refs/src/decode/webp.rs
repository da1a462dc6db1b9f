//! WebP by the `image` crate: the first frame.

use std::io::Cursor;

use image::codecs::webp::WebPDecoder;
use image::{ColorType, ImageDecoder as _};

use super::Fault;
use super::memory;
use super::pixels::Pixels;

/// Height and width; `None` if `bytes` end in the header.
pub(super) fn size(bytes: &[u8]) -> Result<Option<(usize, usize)>, Fault> {
    let (Some(kind), Some(h)) = (bytes.get(12..16), bytes.get(20..30)) else { return Ok(None) };
    let word = |at: usize| usize::from(u16::from_le_bytes([h[at], h[at + 1]]));
    let (height, width) = match kind {
        b"VP8X" => (1 + word(7) + (usize::from(h[9]) << 16), 1 + word(4) + (usize::from(h[6]) << 16)),
        b"VP8 " => (word(8) & 0x3fff, word(6) & 0x3fff),
        b"VP8L" => {
            let sizes = word(1) | word(3) << 16;
            (1 + (sizes >> 14 & 0x3fff), 1 + (sizes & 0x3fff))
        }
        other => {
            return Err(Fault::expected("a VP8, VP8L or VP8X chunk", format!("`{}`", String::from_utf8_lossy(other))));
        }
    };
    Ok(Some((height, width)))
}

/// Decodes a whole file.
pub(super) fn decode(bytes: &[u8]) -> Result<Pixels, Fault> {
    let end = || Fault::expected("a complete header", format!("the end of the data after {} bytes", bytes.len()));
    let (height, width) = size(bytes)?.ok_or_else(end)?;
    // Besides the result, the decoder holds lossless pixels as RGBA, and for an animation a frame and its canvas.
    let each = if bytes.get(12..16) == Some(b"VP8 ") { 5 } else { 8 };
    let _reservation = memory::reserve(height, width, each, bytes.len())?;
    // The decoder fills in missing data at the end of a lossy image. libwebp requires the whole file.
    let claimed = bytes.get(4..8).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize + 8);
    if bytes.len() < claimed {
        return Err(Fault::expected(format!("{claimed} bytes"), format!("the end of the data after {}", bytes.len())));
    }
    let decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(Fault::decoder)?;
    let channels = if decoder.color_type() == ColorType::Rgba8 { 4 } else { 3 };
    if decoder.dimensions() != (u32::try_from(width).unwrap_or(0), u32::try_from(height).unwrap_or(0)) {
        return Err(Fault::expected(format!("{width}×{height} pixels"), format!("{:?}", decoder.dimensions())));
    }
    let mut data = vec![0; height * width * channels];
    decoder.read_image(&mut data).map_err(Fault::decoder)?;
    Ok(Pixels { height, width, channels, data })
}
