//! BMP and DIB by the rules of Pillow: five- and six-bit channels round down, and 32-bit pixels without masks have no
//! alpha. The `image` crate rounds to nearest and accepts other masks.

use d2o_files::kind::DIB_HEADERS;

use super::Fault;
use super::memory;
use super::pixels::{self, Palette, Pixels};

/// Length of the file header, bytes. A DIB has none.
const FILE_HEADER: usize = 14;
const RAW: u32 = 0;
const RLE8: u32 = 1;
const RLE4: u32 = 2;
const BITFIELDS: u32 = 3;

/// Offsets of the channels in a 32-bit pixel, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    red: usize,
    green: usize,
    blue: usize,
    alpha: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Palette indices, with the number of bits of each.
    Indexed(usize),
    Bgr,
    Bgr555,
    Bgr565,
    Bytes(Layout),
}

struct Header {
    height: usize,
    width: usize,
    top_down: bool,
    compression: u32,
    kind: Kind,
    /// Number of colours, and bytes of each.
    palette: Option<(usize, usize)>,
    /// Offset of the end of the header and its masks.
    end: usize,
    /// Offset of the pixels.
    data: usize,
}

fn le16(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from(u16::from_le_bytes([*bytes.get(at)?, *bytes.get(at + 1)?])))
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(le16(bytes, at)? | le16(bytes, at + 2)? << 16)
}

/// The header; `None` if `bytes` end in it.
fn header(bytes: &[u8]) -> Result<Option<Header>, Fault> {
    let start = if bytes.starts_with(b"BM") { FILE_HEADER } else { 0 };
    let Some(length) = le32(bytes, start) else { return Ok(None) };
    if !DIB_HEADERS.contains(&length) {
        return Err(Fault::expected(format!("a BMP header of {DIB_HEADERS:?} bytes"), length.to_string()));
    }
    let mut end = start + length as usize;
    if bytes.len() < end {
        return Ok(None);
    }
    let word = |at| le16(bytes, start + at).unwrap_or(0);
    let long = |at| le32(bytes, start + at).unwrap_or(0);
    let core = length == 12;
    let (width, height, bits) = if core { (word(4), word(6), word(10)) } else { (long(4), long(8), word(14)) };
    // Pillow checks only the highest byte of the height.
    let top_down = !core && bytes[start + 11] == 0xff;
    let height = if top_down { height.wrapping_neg() } else { height };
    let (compression, mut colours) = if core { (RAW, 0) } else { (long(16), long(32) as usize) };
    if bits <= 8 && colours == 0 {
        colours = 1 << bits;
    }
    let masks = if compression == BITFIELDS {
        let alpha = if length >= 56 { long(52) } else { 0 };
        if length == 40 {
            end += 12;
        }
        match (le32(bytes, end - 12), le32(bytes, end - 8), le32(bytes, end - 4)) {
            (Some(r), Some(g), Some(b)) if length == 40 => Some((r, g, b, 0)),
            _ if length == 40 => return Ok(None),
            _ => Some((long(40), long(44), long(48), alpha)),
        }
    } else {
        None
    };
    let kind = kind_of(bits, compression, masks)?;
    let palette = matches!(kind, Kind::Indexed(_)).then_some((colours, if core { 3 } else { 4 }));
    if colours > 1 << 16 && palette.is_some() {
        return Err(Fault::expected("at most 65536 colours", colours.to_string()));
    }
    let after = end + palette.map_or(0, |(colours, each)| colours * each);
    let given = if start == 0 { 0 } else { long_at(bytes, 10) };
    // Some writers do not count the palette in the offset of the pixels.
    let data = if given == 0 || (given == start + length as usize && palette.is_some()) { after } else { given };
    let (height, width) = (height as usize, width as usize);
    Ok(Some(Header { height, width, top_down, compression, kind, palette, end, data }))
}

fn long_at(bytes: &[u8], at: usize) -> usize {
    le32(bytes, at).unwrap_or(0) as usize
}

fn kind_of(bits: u32, compression: u32, masks: Option<(u32, u32, u32, u32)>) -> Result<Kind, Fault> {
    let bytes = |red, green, blue, alpha| Kind::Bytes(Layout { red, green, blue, alpha });
    let kind = match (bits, compression, masks) {
        (1 | 4 | 8, RAW, _) => Kind::Indexed(bits as usize),
        (8, RLE8, _) | (4, RLE4, _) => Kind::Indexed(8),
        (16, RAW, _) | (16, BITFIELDS, Some((0x7c00, 0x3e0, 0x1f, _))) => Kind::Bgr555,
        (16, BITFIELDS, Some((0xf800, 0x7e0, 0x1f, _))) => Kind::Bgr565,
        (24, RAW, _) | (24, BITFIELDS, Some((0xff_0000, 0xff00, 0xff, _))) => Kind::Bgr,
        (32, RAW, _) => bytes(2, 1, 0, None),
        (32, BITFIELDS, Some(masks)) => match masks {
            (0xff_0000, 0xff00, 0xff, 0) => bytes(2, 1, 0, None),
            (0xff00_0000, 0xff_0000, 0xff00, 0) => bytes(3, 2, 1, None),
            (0xff00_0000, 0xff00, 0xff, 0) => bytes(3, 1, 0, None),
            (0xff00_0000, 0xff_0000, 0xff00, 0xff) => bytes(3, 2, 1, Some(0)),
            (0xff, 0xff00, 0xff_0000, 0xff00_0000) => bytes(0, 1, 2, Some(3)),
            (0xff_0000, 0xff00, 0xff, 0xff00_0000) | (0, 0, 0, 0) => bytes(2, 1, 0, Some(3)),
            (0xff00_0000, 0xff00, 0xff, 0xff_0000) => bytes(3, 1, 0, Some(2)),
            other => return Err(Fault::expected("BMP masks that Pillow reads", format!("{other:x?}"))),
        },
        _ => {
            let found = format!("{bits} bits per pixel, compression {compression}");
            return Err(Fault::expected(
                "a BMP that Pillow reads (1, 4, 8, 16, 24 or 32 bits per pixel, raw, RLE or masks)",
                found,
            ));
        }
    };
    Ok(kind)
}

/// Height and width; `None` if `bytes` end in the header.
pub(super) fn size(bytes: &[u8]) -> Result<Option<(usize, usize)>, Fault> {
    Ok(header(bytes)?.map(|h| (h.height, h.width)))
}

/// Decodes a whole file.
pub(super) fn decode(bytes: &[u8]) -> Result<Pixels, Fault> {
    let end = || Fault::expected("a complete image", format!("the end of the data after {} bytes", bytes.len()));
    let h = header(bytes)?.ok_or_else(end)?;
    let (height, width) = (h.height, h.width);
    // Bytes per pixel: indices, twice while they are unpacked, and their colours; otherwise the pixels.
    let _reservation = memory::reserve(height, width, 5, bytes.len())?;
    let palette = h.palette.map(|(colours, each)| palette_of(bytes, &h, colours, each)).transpose()?;
    let bits = match h.kind {
        Kind::Indexed(bits) => bits,
        Kind::Bgr => 24,
        Kind::Bgr555 | Kind::Bgr565 => 16,
        Kind::Bytes(_) => 32,
    };
    let stride = if h.compression == RLE8 || h.compression == RLE4 { width } else { (width * bits).div_ceil(32) * 4 };
    let unpacked;
    let rows = if stride == width && h.compression != RAW && palette.is_some() {
        unpacked = run_lengths(bytes, &h);
        &unpacked[..]
    } else {
        // The padding of the last row can be missing.
        let length = stride * (height - 1) + (width * bits).div_ceil(8);
        bytes.get(h.data..).and_then(|b| b.get(..length)).ok_or_else(end)?
    };
    if rows.len() < stride * (height - 1) + (width * bits).div_ceil(8) {
        return Err(end());
    }
    let row = |y: usize| {
        let from = stride * if h.top_down { y } else { height - 1 - y };
        &rows[from..rows.len().min(from + stride)]
    };
    let mut channels = 3;
    let mut data = Vec::with_capacity(height * width * 3);
    match h.kind {
        Kind::Indexed(bits) => {
            for y in 0..height {
                data.extend_from_slice(&pixels::unpack(&row(y)[..(width * bits).div_ceil(8)], 1, width, bits));
            }
            let (palette, is_grey) = palette.unwrap_or_default();
            let coloured = palette.apply(height, width, &data);
            return Ok(if is_grey { coloured.first_channel() } else { coloured });
        }
        Kind::Bgr => {
            (0..height).for_each(|y| data.extend(row(y).chunks_exact(3).take(width).flat_map(|p| [p[2], p[1], p[0]])));
        }
        Kind::Bgr555 | Kind::Bgr565 => {
            let green = if h.kind == Kind::Bgr555 { 31 } else { 63 };
            let shift = if h.kind == Kind::Bgr555 { 10 } else { 11 };
            for y in 0..height {
                for p in row(y).chunks_exact(2).take(width) {
                    let pixel = u16::from_le_bytes([p[0], p[1]]);
                    let part = |shift: u32, max: u16| u8::try_from(((pixel >> shift) & max) * 255 / max).unwrap_or(255);
                    data.extend([part(shift, 31), part(5, green), part(0, 31)]);
                }
            }
        }
        Kind::Bytes(at) => {
            channels += usize::from(at.alpha.is_some());
            for y in 0..height {
                for p in row(y).chunks_exact(4).take(width) {
                    data.extend([p[at.red], p[at.green], p[at.blue]]);
                    data.extend(at.alpha.map(|alpha| p[alpha]));
                }
            }
        }
    }
    Ok(Pixels { height, width, channels, data })
}

/// The palette, and whether it is a grey ramp.
fn palette_of(bytes: &[u8], h: &Header, colours: usize, each: usize) -> Result<(Palette, bool), Fault> {
    let entries = bytes.get(h.end..).and_then(|b| b.get(..colours * each));
    let entries =
        entries.ok_or_else(|| Fault::expected(format!("a palette of {colours} colours"), "the end of the data"))?;
    let triples: Vec<u8> = entries.chunks_exact(each).flat_map(|c| [c[2], c[1], c[0]]).collect();
    // Pillow reads an image with a grey ramp as 8-bit grey (1-bit for two colours), whatever its bits per pixel are,
    // and misreads its rows if they differ.
    let ramp = |i: usize| if colours == 2 { i * 255 } else { i & 0xff };
    let is_ramp = triples.chunks_exact(3).enumerate().all(|(i, c)| c.iter().all(|c| usize::from(*c) == ramp(i)));
    let misread = match h.kind {
        Kind::Indexed(1) => colours != 2,
        Kind::Indexed(4) => true,
        _ => colours == 2,
    };
    if is_ramp && misread {
        return Err(Fault::expected(
            "a palette, or 1 or 8 bits per pixel",
            format!("{colours} colours, a ramp of grey"),
        ));
    }
    Ok((Palette::rgb(&triples[..triples.len().min(256 * 3)]), is_ramp))
}

/// Decodes run-length coded indices from the first stored row on, until the image is full or the data end.
fn run_lengths(bytes: &[u8], h: &Header) -> Vec<u8> {
    let wanted = h.height * h.width;
    let (mut data, mut x, mut at) = (Vec::new(), 0, h.data);
    while data.len() < wanted {
        let (Some(count), Some(value)) = (bytes.get(at), bytes.get(at + 1)) else { break };
        let (count, value) = (usize::from(*count), *value);
        at += 2;
        let nibbles = [value >> 4, value & 15];
        match (count, value) {
            (0, 0) => {
                data.resize(data.len().next_multiple_of(h.width), 0);
                x = 0;
            }
            (0, 1) => break,
            (0, 2) => {
                let (Some(right), Some(up)) = (bytes.get(at), bytes.get(at + 1)) else { break };
                at += 2;
                let skipped = usize::from(*right) + usize::from(*up) * h.width;
                x = (data.len() + skipped) % h.width;
                data.resize((data.len() + skipped).min(wanted), 0);
            }
            (0, count) => {
                let count = usize::from(count);
                let held = count.min(wanted - data.len());
                let length = if h.compression == RLE4 { held.div_ceil(2) } else { held };
                let literal = &bytes[at.min(bytes.len())..(at + length).min(bytes.len())];
                at += literal.len();
                if h.compression == RLE4 {
                    data.extend(literal.iter().flat_map(|b| [b >> 4, b & 15]).take(held));
                } else {
                    data.extend(literal);
                }
                if literal.len() < length || data.len() == wanted {
                    break;
                }
                x += count;
                at += at % 2;
            }
            (count, _) => {
                let held = count.min(h.width.saturating_sub(x));
                if h.compression == RLE4 {
                    data.extend(nibbles.iter().cycle().take(held));
                } else {
                    data.resize(data.len() + held, value);
                }
                x += held;
            }
        }
    }
    data.truncate(wanted);
    data
}
