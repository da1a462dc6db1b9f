//! TIFF: the first image. The `tiff` crate reads containers and compression, libjpeg-turbo reads JPEG strips. Colours
//! and orientation follow the rules of Pillow.

use std::io::{Cursor, ErrorKind};

use ::tiff::decoder::{ChunkType, Decoder, DecodingResult, Limits};
use ::tiff::tags::Tag;
use ::tiff::{TiffError, TiffResult};

use super::pixels::{self, Ink, MAX_ALLOC, Palette, Pixels};
use super::{Fault, jpeg, memory};

const WHITE_IS_ZERO: u16 = 0;
const BLACK_IS_ZERO: u16 = 1;
const RGB: u16 = 2;
const PALETTE: u16 = 3;
const CMYK: u16 = 5;
const YCBCR: u16 = 6;
const LAB: u16 = 8;
const PHOTOMETRIC: usize = 262;
/// `Compression` of JPEG strips.
const JPEG: u16 = 7;
/// Most bytes of the values of one tag.
const MAX_TAG: usize = 4 << 20;
/// Most channels that Pillow reads.
const MAX_SAMPLES: usize = 6;

type File<'a> = Decoder<Cursor<&'a [u8]>>;

fn open(bytes: &[u8]) -> TiffResult<File<'_>> {
    let mut limits = Limits::default();
    limits.decoding_buffer_size = usize::try_from(MAX_ALLOC).unwrap_or(usize::MAX);
    limits.intermediate_buffer_size = limits.decoding_buffer_size;
    limits.ifd_value_size = MAX_TAG;
    Ok(Decoder::new(Cursor::new(bytes))?.with_limits(limits))
}

/// Height and width after the orientation is applied; `None` if `bytes` end before the first directory does.
pub(super) fn size(bytes: &[u8]) -> Result<Option<(usize, usize)>, Fault> {
    let sizes = |bytes| -> TiffResult<_> {
        let mut file = open(bytes)?;
        let (width, height) = file.dimensions()?;
        let orientation = file.find_tag_unsigned::<u16>(Tag::Orientation)?.unwrap_or(1);
        Ok(if is_transposed(orientation) { (width, height) } else { (height, width) })
    };
    match sizes(bytes) {
        Ok((height, width)) => Ok(Some((height as usize, width as usize))),
        Err(TiffError::IoError(e)) if e.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(Fault::decoder(error)),
    }
}

fn is_transposed(orientation: u16) -> bool {
    matches!(orientation, 5..=8)
}

/// Tags by which Pillow selects the mode.
struct Layout {
    photometric: u16,
    bits: usize,
    samples: usize,
    extra: Vec<u16>,
}

fn layout(file: &mut File<'_>) -> Result<Layout, Fault> {
    let mut numbers = |tag| file.find_tag_unsigned_vec::<u16>(tag).map_err(Fault::decoder);
    let one = |numbers: Option<Vec<u16>>| numbers.and_then(|n| n.first().copied());
    if let Some(other) = one(numbers(Tag::FillOrder)?).filter(|f| *f != 1) {
        return Err(Fault::expected("a TIFF with the highest bit first", format!("FillOrder {other}")));
    }
    let photometric = one(numbers(Tag::PhotometricInterpretation)?)
        .ok_or_else(|| Fault::expected("a TIFF with PhotometricInterpretation", "none"))?;
    let formats = numbers(Tag::SampleFormat)?.unwrap_or_default();
    let bits = numbers(Tag::BitsPerSample)?.unwrap_or_else(|| vec![1]);
    let samples = usize::from(one(numbers(Tag::SamplesPerPixel)?).unwrap_or(1));
    let extra = numbers(Tag::ExtraSamples)?.unwrap_or_default();
    let first = usize::from(bits.first().copied().unwrap_or(1));
    if first == 16 {
        return Err(Fault::sixteen("a 16-bit TIFF"));
    }
    if formats.iter().any(|f| *f != 1) || !matches!(first, 1 | 2 | 4 | 8) {
        return Err(Fault::expected(
            "a TIFF of unsigned integers of 1, 2, 4 or 8 bits",
            format!("{first} bits, sample formats {formats:?}"),
        ));
    }
    if samples == 0 || samples > MAX_SAMPLES || bits.iter().any(|b| usize::from(*b) != first) {
        return Err(Fault::expected(
            format!("1 to {MAX_SAMPLES} channels of one number of bits"),
            format!("{samples} of {bits:?}"),
        ));
    }
    Ok(Layout { photometric, bits: first, samples, extra })
}

/// Decodes the first image of a whole file.
pub(super) fn decode(bytes: &[u8]) -> Result<Pixels, Fault> {
    let mut file = open(bytes).map_err(Fault::decoder)?;
    let layout = layout(&mut file)?;
    let (width, height) = file.dimensions().map_err(Fault::decoder)?;
    let (height, width) = (height as usize, width as usize);
    let orientation = file.find_tag_unsigned(Tag::Orientation).map_err(Fault::decoder)?.unwrap_or(1);
    let compression: u16 = file.find_tag_unsigned(Tag::Compression).map_err(Fault::decoder)?.unwrap_or(1);
    let planar = file.find_tag_unsigned(Tag::PlanarConfiguration).map_err(Fault::decoder)? == Some(2u16);
    // Bytes per pixel: the samples; a second time if they are planar, turned or packed; 4 more if they are converted.
    let plain = matches!((layout.photometric, &layout.extra[..]), (WHITE_IS_ZERO | BLACK_IS_ZERO | RGB | YCBCR, []));
    let copies = planar || matches!(orientation, 2..=8) || layout.bits < 8;
    let each = layout.samples * (1 + usize::from(copies)) + if plain { 0 } else { 4 };
    let _reservation = memory::reserve(height, width, each, 2 * bytes.len())?;
    let stored = if compression == JPEG {
        if planar || layout.bits != 8 {
            return Err(Fault::expected("JPEG strips of interleaved 8-bit channels", "others"));
        }
        jpeg_chunks(&mut file, bytes, &layout, height, width)?
    } else if layout.photometric == YCBCR && layout.samples > 1 {
        return Err(Fault::expected("a TIFF with YCbCr in JPEG strips", format!("compression {compression}")));
    } else {
        samples(bytes, &layout, planar, height, width)?
    };
    let stored = Pixels { height, width, channels: layout.samples, data: stored };
    Ok(turn(colours(&mut file, &layout, stored)?, orientation))
}

/// The samples as stored, one per byte, interleaved.
fn samples(bytes: &[u8], layout: &Layout, planar: bool, height: usize, width: usize) -> Result<Vec<u8>, Fault> {
    // The crate returns samples for some interpretations only. For grey it returns all of them.
    let mut grey = bytes.to_vec();
    set_photometric(&mut grey, BLACK_IS_ZERO)?;
    let mut file = open(&grey).map_err(Fault::decoder)?;
    let mut result = DecodingResult::U8(Vec::new());
    file.read_image_to_buffer(&mut result).map_err(Fault::decoder)?;
    let DecodingResult::U8(data) = result else { return Err(Fault::expected("samples of 8 bits", "others")) };
    let row = (width * layout.bits * if planar { 1 } else { layout.samples }).div_ceil(8);
    let wanted = row * height * if planar { layout.samples } else { 1 };
    if data.len() != wanted {
        return Err(Fault::expected(format!("{wanted} bytes"), data.len().to_string()));
    }
    if planar && layout.samples > 1 {
        if layout.bits != 8 {
            return Err(Fault::expected("planes of 8 bits", format!("{} bits", layout.bits)));
        }
        let plane = height * width;
        return Ok((0..plane).flat_map(|i| (0..layout.samples).map(move |c| c * plane + i)).map(|i| data[i]).collect());
    }
    Ok(if layout.bits == 8 {
        data
    } else {
        pixels::unpack(&data, height, width * layout.samples, layout.bits).into_owned()
    })
}

/// Sets the value of `PhotometricInterpretation` in the first directory.
fn set_photometric(bytes: &mut [u8], value: u16) -> Result<(), Fault> {
    let lost = || Fault::expected("PhotometricInterpretation as one short number", "another");
    let little = bytes.starts_with(b"II");
    let number = |bytes: &[u8], at: usize, length: usize| -> Option<usize> {
        let field = bytes.get(at..at.checked_add(length)?)?;
        let add = |sum: usize, b: &u8| sum << 8 | usize::from(*b);
        Some(if little { field.iter().rev().fold(0, add) } else { field.iter().fold(0, add) })
    };
    // Version 43 has 64-bit offsets.
    let (offset, long) = if number(bytes, 2, 2) == Some(43) { (8, 8) } else { (4, 4) };
    let entry = 4 + 2 * long;
    let count_length = if long == 8 { 8 } else { 2 };
    let directory = number(bytes, offset, long).ok_or_else(lost)?;
    let count = number(bytes, directory, count_length).ok_or_else(lost)?;
    for i in 0..count.min(usize::from(u16::MAX)) {
        let at = directory + count_length + i * entry;
        if number(bytes, at, 2).ok_or_else(lost)? != PHOTOMETRIC {
            continue;
        }
        if number(bytes, at + 2, 2) != Some(3) || number(bytes, at + 4, long) != Some(1) {
            return Err(lost());
        }
        let field = bytes.get_mut(at + 4 + long..at + 6 + long).ok_or_else(lost)?;
        field.copy_from_slice(&if little { value.to_le_bytes() } else { value.to_be_bytes() });
        return Ok(());
    }
    Err(lost())
}

/// JPEG strips or tiles, interleaved; YCbCr is converted to RGB.
fn jpeg_chunks(
    file: &mut File<'_>,
    bytes: &[u8],
    layout: &Layout,
    height: usize,
    width: usize,
) -> Result<Vec<u8>, Fault> {
    let tables = file.find_tag(Tag::JPEGTables).map_err(Fault::decoder)?;
    let tables = tables.map(|t| t.into_u8_vec().map_err(Fault::decoder)).transpose()?.unwrap_or_default();
    let tables = tables.strip_prefix(&[0xff, 0xd8]).unwrap_or(&tables);
    let tables = tables.strip_suffix(&[0xff, 0xd9]).unwrap_or(tables);
    let (offset_tag, length_tag) = match file.get_chunk_type() {
        ChunkType::Strip => (Tag::StripOffsets, Tag::StripByteCounts),
        ChunkType::Tile => (Tag::TileOffsets, Tag::TileByteCounts),
    };
    let offsets = file.get_tag_u64_vec(offset_tag).map_err(Fault::decoder)?;
    let lengths = file.get_tag_u64_vec(length_tag).map_err(Fault::decoder)?;
    let (across, down) = file.chunk_dimensions();
    let (across, down) = (across as usize, down as usize);
    let channels = layout.samples;
    let columns = width.div_ceil(across.max(1));
    if across == 0 || down == 0 || offsets.len() != columns * height.div_ceil(down) || lengths.len() != offsets.len() {
        return Err(Fault::expected("as many JPEG strips as the size asks for", format!("{}", offsets.len())));
    }
    let read =
        if layout.photometric == YCBCR && channels == 3 { jpeg::Colours::Converted } else { jpeg::Colours::Stored };
    let mut data = vec![0; height * width * channels];
    for (i, (offset, length)) in offsets.iter().zip(&lengths).enumerate() {
        let (x, y) = (i % columns * across, i / columns * down);
        let (h, w) = (down.min(height - y), across.min(width - x));
        let range = usize::try_from(*offset).ok().zip(usize::try_from(offset.saturating_add(*length)).ok());
        let chunk = range.and_then(|(from, to)| bytes.get(from..to)).and_then(|c| c.strip_prefix(&[0xff, 0xd8]));
        let chunk =
            chunk.ok_or_else(|| Fault::expected(format!("a JPEG in strip {i}"), "none, or the end of the data"))?;
        let stream = [&[0xff, 0xd8], tables, chunk].concat();
        let (frame, pixels) = jpeg::raw(&stream, read)?;
        if frame.height < h || frame.width < w || usize::from(frame.components) != channels {
            let found = format!("{}×{} of {}", frame.width, frame.height, frame.components);
            return Err(Fault::expected(format!("strip {i} of {w}×{h} pixels of {channels} channels"), found));
        }
        for (row, line) in pixels.chunks_exact(frame.width * channels).take(h).enumerate() {
            let from = ((y + row) * width + x) * channels;
            data[from..from + w * channels].copy_from_slice(&line[..w * channels]);
        }
    }
    Ok(data)
}

/// Converts stored samples to grey, RGB and alpha.
fn colours(file: &mut File<'_>, layout: &Layout, mut stored: Pixels) -> Result<Pixels, Fault> {
    let Layout { photometric, bits, samples, extra } = layout;
    let refused = || {
        let found = format!(
            "photometric interpretation {photometric}, {samples} channels of {bits} bits, extra channels {extra:?}"
        );
        Fault::expected("a TIFF of grey, palette, RGB, CMYK or JPEG's YCbCr, with or without alpha", found)
    };
    if !matches!((*bits, *samples), (8, _) | (1 | 2 | 4, 1)) {
        return Err(refused());
    }
    let padding = |extra: &[u16]| extra.iter().all(|e| *e == 0);
    match (*photometric, *samples, &extra[..]) {
        (WHITE_IS_ZERO | BLACK_IS_ZERO, 1, []) => {
            pixels::scale_to_8_bits(&mut stored.data, *bits);
            if *photometric == WHITE_IS_ZERO {
                stored.data.iter_mut().for_each(|v| *v = 255 - *v);
            }
            Ok(stored)
        }
        (BLACK_IS_ZERO, 2, [2]) | (YCBCR, 1, []) if *bits == 8 => Ok(stored),
        (PALETTE, 1, []) | (PALETTE, 2, [0 | 2]) => {
            let indices: Vec<u8> = stored.data.chunks_exact(*samples).map(|p| p[0]).collect();
            let rgb = colour_map(file, *bits)?.apply(stored.height, stored.width, &indices);
            if extra[..] != [2] {
                return Ok(rgb);
            }
            let alphas = stored.data.chunks_exact(2).map(|p| p[1]);
            let data = rgb.data.chunks_exact(3).zip(alphas).flat_map(|(c, a)| [c[0], c[1], c[2], a]).collect();
            Ok(Pixels { channels: 4, data, ..rgb })
        }
        (RGB, 3, []) | (RGB, 4, [] | [2 | 999]) | (YCBCR, 3, []) => Ok(stored),
        (RGB, 4..=6, [0, rest @ ..]) if rest.len() + 4 == *samples && padding(rest) => Ok(first(stored, 3)),
        (RGB, 5..=6, [2, rest @ ..]) if rest.len() + 4 == *samples && padding(rest) => Ok(first(stored, 4)),
        (RGB, 4..=6, [1, rest @ ..]) if rest.len() + 4 == *samples && padding(rest) => {
            let mut rgba = first(stored, 4);
            rgba.data.chunks_exact_mut(4).for_each(divide_alpha);
            Ok(rgba)
        }
        (CMYK, 4..=6, extra) if extra.len() + 4 == *samples && padding(extra) => {
            Ok(pixels::cmyk_to_rgb(stored, Ink::Plain))
        }
        (LAB, ..) => Err(Fault::expected(
            "a TIFF of grey, palette, RGB or CMYK",
            "one of Lab, which Pillow converts with colour profiles",
        )),
        _ => Err(refused()),
    }
}

fn first(pixels: Pixels, channels: usize) -> Pixels {
    let data = pixels.data.chunks_exact(pixels.channels).flat_map(|p| p[..channels].iter().copied()).collect();
    Pixels { channels, data, ..pixels }
}

/// Converts associated alpha to plain alpha, with the rounding of Pillow.
fn divide_alpha(p: &mut [u8]) {
    let alpha = u32::from(p[3]);
    for c in &mut p[..3] {
        *c = (u32::from(*c) * 255).checked_div(alpha).map_or(0, |v| u8::try_from(v).unwrap_or(255));
    }
}

/// The palette in `ColorMap`: all reds, greens, blues, of 16 bits. Pillow uses the upper eight bits.
fn colour_map(file: &mut File<'_>, bits: usize) -> Result<Palette, Fault> {
    let map = file.get_tag_u16_vec(Tag::ColorMap).map_err(Fault::decoder)?;
    let colours = 1 << bits;
    if map.len() != 3 * colours {
        return Err(Fault::expected(format!("a colour map of {colours} colours"), format!("{} numbers", map.len())));
    }
    let triples: Vec<u8> = (0..colours)
        .flat_map(|i| [map[i], map[colours + i], map[2 * colours + i]])
        .map(|v| v.to_be_bytes()[0])
        .collect();
    Ok(Palette::rgb(&triples))
}

/// Turns and mirrors by the value of `Orientation`. Pillow does this for TIFF only.
fn turn(pixels: Pixels, orientation: u16) -> Pixels {
    if !matches!(orientation, 2..=8) {
        return pixels;
    }
    let Pixels { height, width, channels, data } = pixels;
    let (h, w) = if is_transposed(orientation) { (width, height) } else { (height, width) };
    let mut out = Vec::with_capacity(data.len());
    for y in 0..h {
        for x in 0..w {
            let (from_y, from_x) = match orientation {
                2 => (y, width - 1 - x),
                3 => (height - 1 - y, width - 1 - x),
                4 => (height - 1 - y, x),
                5 => (x, y),
                6 => (height - 1 - x, y),
                7 => (height - 1 - x, width - 1 - y),
                _ => (x, width - 1 - y),
            };
            let from = (from_y * width + from_x) * channels;
            out.extend_from_slice(&data[from..from + channels]);
        }
    }
    Pixels { height: h, width: w, channels, data: out }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A grey TIFF of 2×1 pixels with `bits` per sample in a single strip.
    fn grey(bits: u16) -> Vec<u8> {
        let tags: [(u16, u16, u32); 8] = [
            (256, 3, 2),
            (257, 3, 1),
            (258, 3, u32::from(bits)),
            (259, 3, 1),
            (262, 3, u32::from(BLACK_IS_ZERO)),
            (273, 4, 8),
            (278, 3, 1),
            (279, 4, u32::from(bits * 2).div_ceil(8)),
        ];
        let mut file = b"II*\0\x0c\0\0\0\xe4\x12\0\0\x08\0".to_vec();
        for (tag, kind, value) in tags {
            file.extend(tag.to_le_bytes().into_iter().chain(kind.to_le_bytes()));
            file.extend(1_u32.to_le_bytes().into_iter().chain(value.to_le_bytes()));
        }
        file.extend([0; 4]);
        file
    }

    #[test]
    fn samples_have_1_2_4_or_8_bits() {
        for bits in 1..=16 {
            let read = decode(&grey(bits))
                .map(|p| p.data)
                .map_err(|fault| fault.at(std::path::Path::new("a"), "").to_string());
            let expected = match bits {
                1 => [255, 255],
                2 => [255, 170],
                4 => [14 * 17, 4 * 17],
                8 => [0xe4, 0x12],
                16 => continue,
                _ => {
                    assert!(read.as_ref().is_err_and(|e| e.contains("1, 2, 4 or 8 bits")), "{bits}: {read:?}");
                    continue;
                }
            };
            assert_eq!(read.unwrap(), expected, "{bits}");
        }
    }
}
