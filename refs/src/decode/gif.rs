//! GIF by the `gif` crate: the first frame, on the same canvas as in Pillow.

use std::io::Cursor;
use std::num::NonZeroU64;

use gif::{ColorOutput, DecodeOptions, DecodingError, MemoryLimit};

use super::Fault;
use super::memory;
use super::pixels::{MAX_ALLOC, Palette, Pixels};

/// Height and width of the canvas, which is enlarged if the first frame reaches beyond it; `None` if `bytes` end before
/// that frame.
pub(super) fn size(bytes: &[u8]) -> Result<Option<(usize, usize)>, Fault> {
    let first = |bytes| -> Result<_, DecodingError> {
        let mut decoder = options().read_info(Cursor::new(bytes))?;
        let (height, width) = (usize::from(decoder.height()), usize::from(decoder.width()));
        let frame = decoder.next_frame_info()?.map(|f| (f.top, f.height, f.left, f.width));
        Ok(frame.map(|(top, h, left, w)| canvas((height, width), (top, h, left, w))))
    };
    match first(bytes) {
        Ok(size) => Ok(size),
        Err(DecodingError::UnexpectedEof) => Ok(None),
        Err(DecodingError::Io(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(Fault::decoder(error)),
    }
}

fn options() -> DecodeOptions {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.check_frame_consistency(false);
    options.set_memory_limit(NonZeroU64::new(MAX_ALLOC).map_or(MemoryLimit::Unlimited, MemoryLimit::Bytes));
    options
}

fn canvas((height, width): (usize, usize), (top, h, left, w): (u16, u16, u16, u16)) -> (usize, usize) {
    (height.max(usize::from(top) + usize::from(h)), width.max(usize::from(left) + usize::from(w)))
}

/// Whether a palette differs from the grey ramp, in which index i is grey i.
fn is_needed(triples: &[u8]) -> bool {
    triples.chunks(3).enumerate().any(|(i, rgb)| rgb.iter().any(|c| usize::from(*c) != i))
}

/// Decodes the first frame. Pixels outside the frame get the transparent index, or index 0 if there is none.
pub(super) fn decode(bytes: &[u8]) -> Result<Pixels, Fault> {
    let mut decoder = options().read_info(Cursor::new(bytes)).map_err(Fault::decoder)?;
    let screen = (usize::from(decoder.height()), usize::from(decoder.width()));
    let frame = decoder.next_frame_info().map_err(Fault::decoder)?;
    let Some(frame) = frame else { return Err(Fault::expected("an image", "none")) };
    let (top, left) = (usize::from(frame.top), usize::from(frame.left));
    let (h, w) = (usize::from(frame.height), usize::from(frame.width));
    let (height, width) = canvas(screen, (frame.top, frame.height, frame.left, frame.width));
    let transparent = frame.transparent;
    let local = frame.palette.clone();
    // Bytes per pixel: the index and its colour.
    let _reservation = memory::reserve(height, width, 5, bytes.len())?;
    let mut covered = vec![0; h * w];
    decoder.read_into_buffer(&mut covered).map_err(Fault::decoder)?;
    let mut indices = vec![transparent.unwrap_or(0); height * width];
    for (row, line) in covered.chunks_exact(w.max(1)).enumerate() {
        let from = (top + row) * width + left;
        indices[from..from + w].copy_from_slice(line);
    }
    drop(covered);
    // Pillow ignores a palette that is a grey ramp; instead of a local one it uses the global one.
    let local = local.filter(|triples| is_needed(triples));
    let triples = local.or_else(|| decoder.global_palette().filter(|t| is_needed(t)).map(<[u8]>::to_vec));
    let Some(triples) = triples else { return Ok(Pixels { height, width, channels: 1, data: indices }) };
    let mut palette = Palette::rgb(&triples);
    if let Some(index) = transparent {
        palette.set_alpha(usize::from(index), 0);
    }
    Ok(palette.apply(height, width, &indices))
}
