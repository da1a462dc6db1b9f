//! PNG by the `png` crate: the first image.

use std::io::{BufRead, Cursor, Seek};

use png::{BitDepth, ColorType, DecodeOptions, Decoder, InterlaceInfo, Limits, Transformations};

use super::Fault;
use super::memory;
use super::pixels::{self, Palette, Pixels};

/// Offset of the end of the image header.
const HEADER: usize = 33;

/// Height and width; `None` if `bytes` end in the header.
pub(super) fn size(bytes: &[u8]) -> Result<Option<(usize, usize)>, Fault> {
    if bytes.len() < HEADER {
        return Ok(None);
    }
    let mut reader = decoder(Cursor::new(bytes));
    let info = reader.read_header_info().map_err(Fault::decoder)?;
    check_depth(info.bit_depth, info.color_type)?;
    Ok(Some((info.height as usize, info.width as usize)))
}

fn decoder<R: BufRead + Seek>(reader: R) -> Decoder<R> {
    let limit = usize::try_from(pixels::MAX_ALLOC).unwrap_or(usize::MAX);
    let mut options = DecodeOptions::default();
    options.set_skip_ancillary_crc_failures(false);
    options.set_ignore_adler32(false);
    let mut decoder = Decoder::new_with_options(reader, options);
    decoder.set_limits(Limits { bytes: limit });
    decoder.set_transformations(Transformations::IDENTITY);
    decoder.set_ignore_iccp_chunk(true);
    decoder
}

fn check_depth(depth: BitDepth, colour: ColorType) -> Result<(), Fault> {
    if depth == BitDepth::Sixteen {
        return Err(Fault::sixteen(format!("a 16-bit PNG ({colour:?})")));
    }
    Ok(())
}

/// Rows of the seven passes of an interlaced image.
fn passes(height: usize, width: usize) -> usize {
    let pass = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)];
    let count = |n: usize, from: usize, step: usize| n.saturating_sub(from).div_ceil(step);
    pass.iter().map(|&(y, dy, x, dx)| if count(width, x, dx) == 0 { 0 } else { count(height, y, dy) }).sum()
}

/// Decodes a whole file. Palettes become RGB, or RGBA if they have transparency. The transparent colour of grey and RGB
/// images is ignored, as in `convert("RGB")` of Pillow.
pub(super) fn decode(bytes: &[u8]) -> Result<Pixels, Fault> {
    let mut reader = decoder(Cursor::new(bytes));
    let info = reader.read_header_info().map_err(Fault::decoder)?;
    let (height, width) = (info.height as usize, info.width as usize);
    check_depth(info.bit_depth, info.color_type)?;
    // Bytes per pixel: the samples; for a palette also the colours; below 8 bits also the packed samples.
    let each = info.color_type.samples() + if info.color_type == ColorType::Indexed { 4 } else { 0 };
    let _reservation =
        memory::reserve(height, width, each + usize::from(info.bit_depth != BitDepth::Eight), bytes.len())?;
    let mut reader = reader.read_info().map_err(Fault::decoder)?;
    let beyond = || Fault::expected("a size within the limits", "a larger one");
    let stride = reader.output_line_size(reader.info().width).ok_or_else(beyond)?;
    let bits_per_pixel = reader.info().bits_per_pixel();
    let mut data = vec![0; reader.output_buffer_size().ok_or_else(beyond)?];
    // Pillow does not check the data after the last row either: a wrong checksum or a missing end chunk is accepted.
    if reader.info().interlaced {
        let pixel = u8::try_from(bits_per_pixel).map_err(|_| Fault::expected("8 bits per channel", "more"))?;
        for _ in 0..passes(height, width) {
            let row = reader.next_interlaced_row().map_err(Fault::decoder)?;
            let row = row.ok_or_else(|| Fault::expected("all rows of seven passes", "fewer"))?;
            if let InterlaceInfo::Adam7(pass) = row.interlace() {
                png::expand_interlaced_row(&mut data, stride, row.data(), pass, pixel);
            }
        }
    } else {
        for row in data.chunks_exact_mut(stride.max(1)) {
            reader.read_row(row).map_err(Fault::decoder)?;
        }
    }
    let info = reader.info();
    let bits = info.bit_depth as usize;
    match info.color_type {
        ColorType::Grayscale => {
            let mut samples = if bits == 8 { data } else { pixels::unpack(&data, height, width, bits).into_owned() };
            pixels::scale_to_8_bits(&mut samples, bits);
            Ok(Pixels { height, width, channels: 1, data: samples })
        }
        ColorType::Indexed => {
            let mut palette = Palette::rgb(info.palette.as_deref().unwrap_or(&[]));
            for (i, alpha) in info.trns.as_deref().unwrap_or(&[]).iter().enumerate() {
                palette.set_alpha(i, *alpha);
            }
            Ok(palette.apply(height, width, &pixels::unpack(&data, height, width, bits)))
        }
        other => Ok(Pixels { height, width, channels: other.samples(), data }),
    }
}
