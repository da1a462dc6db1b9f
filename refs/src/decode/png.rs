//! PNG by the `png` crate, its first image.

use std::io::{BufRead, Cursor, Seek};

use png::{BitDepth, ColorType, Decoder, Limits, Transformations};

use super::Fault;
use super::pixels::{self, Palette, Pixels};

/// Where the image header ends.
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
    let mut decoder = Decoder::new_with_limits(reader, Limits { bytes: limit });
    decoder.set_transformations(Transformations::IDENTITY);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder
}

fn check_depth(depth: BitDepth, colour: ColorType) -> Result<(), Fault> {
    if depth == BitDepth::Sixteen {
        return Err(Fault::sixteen(format!("a 16-bit PNG ({colour:?})")));
    }
    Ok(())
}

/// Decodes a whole file. Palettes become RGB, or RGBA if they have transparency; the transparent colour of grey and RGB
/// images is ignored, as Pillow's `convert("RGB")` does.
pub(super) fn decode(bytes: &[u8]) -> Result<Pixels, Fault> {
    let mut reader = decoder(Cursor::new(bytes));
    let info = reader.read_header_info().map_err(Fault::decoder)?;
    let (height, width) = (info.height as usize, info.width as usize);
    check_depth(info.bit_depth, info.color_type)?;
    pixels::gate(height, width, info.color_type.samples())?;
    let mut reader = reader.read_info().map_err(Fault::decoder)?;
    let length = reader.output_buffer_size().ok_or_else(|| Fault::expected("a size within the limits", "a larger one"))?;
    let mut data = vec![0; length];
    reader.next_frame(&mut data).map_err(Fault::decoder)?;
    let info = reader.info();
    let bits = info.bit_depth as usize;
    match info.color_type {
        ColorType::Grayscale => {
            let mut samples = if bits == 8 { data } else { pixels::unpack(&data, height, width, bits) };
            pixels::widen(&mut samples, bits);
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
