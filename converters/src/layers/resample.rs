//! Resampling: separable filters, nearest-neighbour doubling, means of 2×2 pixels.

use crate::backend::{Backend, Conv2d, Ops as _, Pool, signed};
use crate::error::{Result, config};
use crate::weights::Scope;

/// `(f ⊗ f) / (Σf)²`, row-major.
#[allow(clippy::cast_possible_truncation, reason = "filters are stored as f32")]
pub(crate) fn separable(filter: &[f64]) -> Vec<f32> {
    let sum: f64 = filter.iter().sum();
    filter.iter().flat_map(|a| filter.iter().map(move |b| (a * b / (sum * sum)) as f32)).collect()
}

/// Checks the taps of a resampling filter.
///
/// # Errors
/// `Config` unless their number is even and 2 to 16, and their sum is finite and not 0.
pub(crate) fn check_filter(taps: &[f64]) -> Result<()> {
    const MAX_TAPS: usize = 16;
    let count = taps.len();
    if !(2..=MAX_TAPS).contains(&count) || !count.is_multiple_of(2) {
        return Err(config(format!(
            "`resample_filter`: expected an even number of values, at most {MAX_TAPS}, found {count}"
        )));
    }
    let sum: f64 = taps.iter().sum();
    if !sum.is_finite() || sum == 0.0 {
        return Err(config(format!("`resample_filter`: expected values whose sum is finite and not 0, found {sum}")));
    }
    Ok(())
}

/// A filter that is applied to each channel separately (depthwise convolution).
#[derive(Debug, Clone)]
pub(crate) struct Filter<V> {
    kernel: V,
    channels: usize,
    /// Padding with which [`Filter::upsample`] exactly doubles and [`Filter::downsample`] exactly halves the
    /// resolution.
    pub(crate) pad: usize,
}

impl<V: Clone> Filter<V> {
    /// Builds the filter for `channels` channels from the square kernel `values` (row-major), multiplied by `gain`.
    pub(crate) fn build<B: Backend<Value = V>>(
        b: &mut B,
        scope: &Scope,
        channels: usize,
        values: &[f32],
        gain: f32,
    ) -> Result<Self> {
        let taps = values.len().isqrt();
        let tiled = values.iter().map(|v| v * gain).cycle().take(channels * values.len()).collect();
        let kernel = b.constant(scope, "resample_kernel", &[channels, 1, taps, taps], tiled)?;
        Ok(Self { kernel, channels, pad: taps.saturating_sub(1) / 2 })
    }

    fn options(&self, stride: usize, pad: usize) -> Conv2d {
        Conv2d { stride, pads: [pad; 4], groups: self.channels }
    }

    /// Doubles the resolution.
    pub(crate) fn upsample<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<V> {
        b.conv_transpose2d(x, &self.kernel, self.options(2, self.pad))
    }

    /// Pads `x` by `pad`, filters it with stride 2 and adds `bias [channels]`, if given.
    pub(crate) fn downsample<B: Backend<Value = V>>(
        &self,
        b: &mut B,
        x: &V,
        pad: usize,
        bias: Option<&V>,
    ) -> Result<V> {
        b.conv2d(x, &self.kernel, bias, self.options(2, pad))
    }

    /// Filters with stride 1. An even number of taps reduces height and width by 1.
    pub(crate) fn smooth<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<V> {
        b.conv2d(x, &self.kernel, None, self.options(1, self.pad))
    }
}

/// Halves the resolution: the mean of 2×2 pixels.
pub(crate) fn halve<B: Backend>(b: &mut B, x: &B::Value) -> Result<B::Value> {
    b.avg_pool2d(x, Pool { kernel: 2, stride: 2, pad: 0 })
}

/// Doubles the resolution with nearest-neighbour interpolation.
pub(crate) fn double<B: Backend>(b: &mut B, x: &B::Value) -> Result<B::Value> {
    let [c, h, w] = [1, 2, 3].map(|axis| b.dim(x, axis).unwrap_or(0));
    // Repeats each pixel in its row, then each row.
    let columns = b.reshape(x, &[-1, signed(c * h * w), 1])?;
    let doubled = b.concat(&[columns.clone(), columns], 2)?;
    let rows = b.reshape(&doubled, &[-1, signed(c * h), signed(2 * w)])?;
    let doubled = b.concat(&[rows.clone(), rows], 2)?;
    b.reshape(&doubled, &[-1, signed(c), signed(2 * h), signed(2 * w)])
}
