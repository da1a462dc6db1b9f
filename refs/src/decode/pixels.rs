//! Conversion of samples to pixels: palettes, packed bits and inks; size limits.

use std::borrow::Cow;

use ndarray::Array3;

use super::{Decoded, Fault};
use crate::pixels::drop_alpha;

/// Largest width or height accepted.
const MAX_SIDE: usize = 1 << 15;
/// Most pixels accepted: twice `MAX_IMAGE_PIXELS` of Pillow, which raises `DecompressionBombError` beyond it.
const MAX_PIXELS: usize = 2 * 89_478_485;
/// Most memory that one decoded image can take, bytes.
pub(super) const MAX_ALLOC: u64 = 1 << 30;

/// Interleaved samples of 8 bits: `data` is `[height, width, channels]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pixels {
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) channels: usize,
    pub(super) data: Vec<u8>,
}

impl Pixels {
    /// Keeps the first channel as grey.
    pub(super) fn first_channel(self) -> Self {
        Self { channels: 1, data: self.data.chunks_exact(self.channels).map(|p| p[0]).collect(), ..self }
    }

    /// Converts to the public type. Channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA.
    pub(super) fn decoded(self) -> Result<Decoded, Fault> {
        let Self { height, width, channels, data } = self;
        let found = data.len();
        let shaped = Array3::from_shape_vec((height, width, channels), data)
            .map_err(|_| Fault::expected(format!("{height}·{width}·{channels} samples"), found.to_string()))?;
        match channels {
            1 => Ok(Decoded::Grey(shaped.index_axis_move(ndarray::Axis(2), 0))),
            2 => Ok(Decoded::GreyAlpha(shaped)),
            3 => Ok(Decoded::Rgb(shaped)),
            4 => Ok(Decoded::Rgba(shaped)),
            other => Err(Fault::expected("1 to 4 channels", other.to_string())),
        }
    }
}

/// Rejects sizes beyond the limits before memory is allocated for them.
pub(super) fn check_size(height: usize, width: usize) -> Result<(), Fault> {
    let size = || format!("{width}×{height}");
    if height == 0 || width == 0 {
        return Err(Fault::expected("at least one pixel", size()));
    }
    if height > MAX_SIDE || width > MAX_SIDE {
        return Err(Fault::expected(format!("at most {MAX_SIDE} pixels per side"), size()));
    }
    if height * width > MAX_PIXELS {
        return Err(Fault::expected(format!("at most {MAX_PIXELS} pixels"), size()));
    }
    Ok(())
}

/// How inks are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ink {
    /// 255 is full ink.
    Plain,
    /// 0 is full ink.
    Inverted,
}

/// Converts CMYK to RGB in place, by the formula of Pillow, which ignores colour profiles. Channels after the fourth
/// are dropped.
pub(super) fn cmyk_to_rgb(mut cmyk: Pixels, ink: Ink) -> Pixels {
    let flip = if ink == Ink::Inverted { 0xff } else { 0 };
    for p in cmyk.data.chunks_exact_mut(cmyk.channels) {
        let white = u32::from(255 - (p[3] ^ flip));
        for c in &mut p[..3] {
            let product = u32::from(*c ^ flip) * white + 128;
            // The product divided by 255, rounded; at most `white`.
            let covered = ((product >> 8) + product) >> 8;
            *c = u8::try_from(white.saturating_sub(covered)).unwrap_or(0);
        }
    }
    Pixels { data: drop_alpha(cmyk.data, cmyk.channels), channels: 3, ..cmyk }
}

/// Colours by index. Undefined colours are black, same as in Pillow.
#[derive(Debug, Clone)]
pub(super) struct Palette {
    colours: [[u8; 4]; 256],
    /// Whether any alpha was set.
    alpha: bool,
}

impl Default for Palette {
    fn default() -> Self {
        Self { colours: [[0, 0, 0, 255]; 256], alpha: false }
    }
}

impl Palette {
    /// A palette of RGB triples.
    pub(super) fn rgb(triples: &[u8]) -> Self {
        let mut palette = Self::default();
        for (colour, rgb) in palette.colours.iter_mut().zip(triples.chunks_exact(3)) {
            colour[..3].copy_from_slice(rgb);
        }
        palette
    }

    /// Sets the alpha of `index`.
    pub(super) fn set_alpha(&mut self, index: usize, alpha: u8) {
        if let Some(colour) = self.colours.get_mut(index) {
            colour[3] = alpha;
            self.alpha = true;
        }
    }

    /// Colours of `indices`: RGB, or RGBA if an alpha was set.
    pub(super) fn apply(&self, height: usize, width: usize, indices: &[u8]) -> Pixels {
        let channels = if self.alpha { 4 } else { 3 };
        let mut data = Vec::with_capacity(indices.len() * channels);
        for i in indices {
            data.extend_from_slice(&self.colours[usize::from(*i)][..channels]);
        }
        Pixels { height, width, channels, data }
    }
}

/// Unpacks rows of `width` samples of `bits` (1, 2, 4, 8). The first sample has the highest bits. Each row begins on a
/// byte.
pub(super) fn unpack(rows: &[u8], height: usize, width: usize, bits: usize) -> Cow<'_, [u8]> {
    if bits == 8 {
        return rows.into();
    }
    let (stride, mask) = ((width * bits).div_ceil(8), (1u8 << bits) - 1);
    let mut samples = Vec::with_capacity(height * width);
    for row in rows.chunks_exact(stride.max(1)).take(height) {
        samples.extend((0..width).map(|x| (row[x * bits / 8] >> (8 - bits - x * bits % 8)) & mask));
    }
    samples.into()
}

/// Scales grey samples of `bits` (1, 2, 4, 8) to 0…255.
pub(super) fn scale_to_8_bits(samples: &mut [u8], bits: usize) {
    let factor = match bits {
        1 => 255,
        2 => 85,
        4 => 17,
        _ => return,
    };
    for sample in samples {
        *sample *= factor;
    }
}
