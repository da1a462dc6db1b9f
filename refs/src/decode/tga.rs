//! TGA by the rules of Pillow. The format has no magic number: data that no other format claims and that begin with a
//! valid header are a TGA, same as in Pillow. The `image` crate widens five-bit channels in another way.

use super::Fault;
use super::memory;
use super::pixels::{self, Palette, Pixels};

const HEADER: usize = 18;
/// Length of the version 2 footer, and its last bytes.
const FOOTER: usize = 26;
const SIGNATURE: &[u8] = b"TRUEVISION-XFILE.\0";
/// Offset in the extension area of the byte that defines the content of the alpha channel.
const ATTRIBUTES: usize = 494;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bits,
    Grey,
    GreyAlpha,
    Indexed,
    Bgra5551,
    Bgr,
    Bgra,
}

struct Header {
    height: usize,
    width: usize,
    kind: Kind,
    run_lengths: bool,
    top_down: bool,
    right_to_left: bool,
    /// First index, number of colours, and bits of each.
    palette: Option<(usize, usize, usize)>,
    /// Offset of the palette.
    end: usize,
}

fn header(bytes: &[u8]) -> Option<Header> {
    let h = bytes.get(..HEADER)?;
    let word = |at: usize| usize::from(u16::from_le_bytes([h[at], h[at + 1]]));
    let (mapped, width, height) = (h[1], word(12), word(14));
    if mapped > 1 || width == 0 || height == 0 || !matches!(h[2], 1..=3 | 9..=11) {
        return None;
    }
    let kind = match (h[2] & 7, h[16]) {
        (1, 8) if mapped == 1 => Kind::Indexed,
        (3, 1) => Kind::Bits,
        (3, 8) => Kind::Grey,
        (3, 16) => Kind::GreyAlpha,
        (2, 16) => Kind::Bgra5551,
        (2, 24) => Kind::Bgr,
        (2, 32) => Kind::Bgra,
        _ => return None,
    };
    let palette = (mapped == 1).then(|| (word(3), word(5), usize::from(h[7])));
    if palette.is_some_and(|(_, _, bits)| !matches!(bits, 16 | 24 | 32)) {
        return None;
    }
    Some(Header {
        height,
        width,
        kind,
        run_lengths: h[2] & 8 != 0,
        top_down: h[17] & 0x20 != 0,
        right_to_left: h[17] & 0x10 != 0,
        palette,
        end: HEADER + usize::from(h[0]),
    })
}

/// Height and width, if `bytes` begin with a valid TGA header.
pub(super) fn size(bytes: &[u8]) -> Option<(usize, usize)> {
    header(bytes).map(|h| (h.height, h.width))
}

/// RGBA of a 16-bit pixel: five bits per colour, rounded down, and the inverted bit of alpha.
fn bgra5551(p: &[u8]) -> [u8; 4] {
    let pixel = u16::from_le_bytes([p[0], p[1]]);
    let part = |shift: u32| u8::try_from(((pixel >> shift) & 31) * 255 / 31).unwrap_or(255);
    [part(10), part(5), part(0), if pixel >> 15 == 1 { 0 } else { 255 }]
}

/// Decodes a whole file.
pub(super) fn decode(bytes: &[u8]) -> Result<Pixels, Fault> {
    let end = || Fault::expected("a complete image", format!("the end of the data after {} bytes", bytes.len()));
    let h = header(bytes).ok_or_else(|| Fault::expected("a TGA header", "another"))?;
    let (height, width) = (h.height, h.width);
    let (mut palette, mut at) = (Palette::default(), h.end);
    if let Some((first, colours, bits)) = h.palette {
        let each = bits / 8;
        let entries = bytes.get(at..at + colours * each).ok_or_else(end)?;
        at += entries.len();
        palette = palette_of(first, entries, each);
    }
    let bits: usize = match h.kind {
        Kind::Bits => 1,
        Kind::Grey | Kind::Indexed => 8,
        Kind::GreyAlpha | Kind::Bgra5551 => 16,
        Kind::Bgr => 24,
        Kind::Bgra => 32,
    };
    // Bytes per pixel: unpacked run lengths, and pixels.
    let each = 2 * bits.div_ceil(8) + if matches!(h.kind, Kind::Indexed | Kind::Bgra5551) { 3 } else { 0 };
    let _reservation = memory::reserve(height, width, each, bytes.len())?;
    let stride = (width * bits).div_ceil(8);
    let body = bytes.get(at..).ok_or_else(end)?;
    let unpacked = h.run_lengths.then(|| run_lengths(body, stride, height, bits.div_ceil(8))).transpose()?;
    let rows = unpacked.as_deref().unwrap_or(body);
    let rows = rows.get(..stride * height).ok_or_else(end)?;
    let mut data = Vec::new();
    for y in 0..height {
        let from = stride * if h.top_down { y } else { height - 1 - y };
        let row = &rows[from..from + stride];
        let begin = data.len();
        match h.kind {
            Kind::Bits => data.extend(pixels::unpack(row, 1, width, 1).iter().map(|bit| bit * 255)),
            Kind::Grey | Kind::Indexed | Kind::GreyAlpha => data.extend(row),
            Kind::Bgra5551 => data.extend(row.chunks_exact(2).flat_map(bgra5551)),
            Kind::Bgr => data.extend(row.chunks_exact(3).flat_map(|p| [p[2], p[1], p[0]])),
            Kind::Bgra => data.extend(row.chunks_exact(4).flat_map(|p| [p[2], p[1], p[0], p[3]])),
        }
        if h.right_to_left {
            let each = (data.len() - begin) / width;
            let line = &mut data[begin..];
            line.reverse();
            line.chunks_exact_mut(each).for_each(<[u8]>::reverse);
        }
    }
    let channels = data.len() / (height * width);
    if matches!(h.kind, Kind::Bgra | Kind::Bgra5551) && ignores_alpha(bytes) {
        data.chunks_exact_mut(4).for_each(|p| p[3] = 255);
    }
    Ok(match h.kind {
        Kind::Indexed => palette.apply(height, width, &data),
        _ => Pixels { height, width, channels, data },
    })
}

fn palette_of(first: usize, entries: &[u8], each: usize) -> Palette {
    let mut triples = vec![0; first * 3];
    let mut alphas = Vec::new();
    for entry in entries.chunks_exact(each) {
        let colour = match *entry {
            [b, g, r] => [r, g, b, 255],
            [b, g, r, a] => [r, g, b, a],
            _ => bgra5551(entry),
        };
        triples.extend(&colour[..3]);
        alphas.push(colour[3]);
    }
    let mut palette = Palette::rgb(&triples);
    if each != 3 {
        alphas.iter().enumerate().for_each(|(i, alpha)| palette.set_alpha(first + i, *alpha));
    }
    palette
}

/// Whether the version 2 footer says that the fourth channel is not alpha.
fn ignores_alpha(bytes: &[u8]) -> bool {
    let footer = &bytes[bytes.len().saturating_sub(FOOTER)..];
    if footer.len() < FOOTER || !footer.ends_with(SIGNATURE) {
        return false;
    }
    let offset = u32::from_le_bytes([footer[0], footer[1], footer[2], footer[3]]) as usize;
    offset != 0 && bytes.get(offset + ATTRIBUTES) == Some(&0)
}

/// Decodes run-length coded rows of `stride` bytes, with `each` bytes per pixel. A run must not cross rows; a literal
/// may, same as in Pillow.
fn run_lengths(body: &[u8], stride: usize, height: usize, each: usize) -> Result<Vec<u8>, Fault> {
    let (mut rows, mut at) = (Vec::new(), 0);
    while rows.len() < stride * height {
        let end = || Fault::expected("complete run-length data", "the end of the data");
        let packet = *body.get(at).ok_or_else(end)?;
        let length = (usize::from(packet & 0x7f) + 1) * each;
        if packet & 0x80 == 0 {
            rows.extend(body.get(at + 1..at + 1 + length).ok_or_else(end)?);
            at += 1 + length;
        } else {
            if rows.len() % stride + length > stride {
                return Err(Fault::expected("runs within a row", "a longer one"));
            }
            let pixel = body.get(at + 1..at + 1 + each).ok_or_else(end)?;
            rows.extend(pixel.iter().cycle().take(length));
            at += 1 + each;
        }
    }
    Ok(rows)
}
