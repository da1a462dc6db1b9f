//! Convolutions with resampling, and convolutions with a folded batch norm.

use super::init::LayerInit;
use super::norm::{BatchNorm, fold, wide};
use super::resample::{Filter, separable};
use crate::backend::{Backend, Conv2d};
use crate::error::Result;
use crate::weights::{Init, Scope};

/// How a convolution changes the resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resample {
    /// Keeps the resolution.
    Keep,
    /// Doubles the resolution before the convolution.
    Up,
    /// Halves the resolution before the convolution.
    Down,
    /// Halves the resolution after the convolution. The padding of the filter is added to that of the convolution.
    FusedDown,
}

/// Configuration of a [`Conv`].
#[derive(Debug, Clone, Copy)]
pub struct ConvConfig<'a> {
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Kernel size; 0 for a layer without weights, which only resamples.
    pub kernel: usize,
    /// Stride.
    pub stride: usize,
    /// Resampling by a filter.
    pub resample: Resample,
    /// One-dimensional resampling filter, before normalisation.
    pub filter: &'a [f64],
    /// Initial weights.
    pub init: LayerInit,
}

impl ConvConfig<'_> {
    /// Stride 1, no resampling.
    #[must_use]
    pub fn plain(inputs: usize, outputs: usize, kernel: usize, init: LayerInit) -> Self {
        Self { inputs, outputs, kernel, stride: 1, resample: Resample::Keep, filter: &[], init }
    }
}

/// Convolution that keeps the resolution at stride 1, with optional up- or downsampling by a filter, like `Conv2d` of
/// EDM.
///
/// Keys: `weight [out, in, k, k]`, `bias [out]` unless the kernel is 0; `resample_filter [1, 1, n, n]` if it resamples.
#[derive(Debug, Clone)]
pub struct Conv<V> {
    scope: Scope,
    weight: Option<(V, V)>,
    kernel: usize,
    stride: usize,
    resample: Resample,
    filter: Option<Filter<V>>,
}

impl<V: Clone> Conv<V> {
    /// Builds the layer from the tensors listed above.
    ///
    /// # Errors
    /// Those of [`Backend::param`].
    pub fn build<B: Backend<Value = V>>(b: &mut B, scope: Scope, cfg: &ConvConfig<'_>) -> Result<Self> {
        let area = cfg.kernel * cfg.kernel;
        let (fan_in, fan_out) = (cfg.inputs * area, cfg.outputs * area);
        let weight = if cfg.kernel == 0 {
            None
        } else {
            let dims = [cfg.outputs, cfg.inputs, cfg.kernel, cfg.kernel];
            let weight = b.param(&scope, "weight", &dims, &cfg.init.of(fan_in, fan_out, cfg.init.weight))?;
            let bias = b.param(&scope, "bias", &[cfg.outputs], &cfg.init.of(fan_in, fan_out, cfg.init.bias))?;
            Some((weight, bias))
        };
        let filter = match cfg.resample {
            Resample::Keep => None,
            resample => {
                let taps = cfg.filter.len();
                let init = Init::Values(separable(cfg.filter));
                let values = b.buffer(&scope, "resample_filter", &[1, 1, taps, taps], &init)?;
                let gain = if resample == Resample::Up { 4.0 } else { 1.0 };
                let channels = if resample == Resample::FusedDown { cfg.outputs } else { cfg.inputs };
                Some(Filter::build(b, &scope, channels, &values, gain)?)
            }
        };
        Ok(Self { scope, weight, kernel: cfg.kernel, stride: cfg.stride, resample: cfg.resample, filter })
    }

    /// `[N, in, H, W]` -> `[N, out, H', W']`.
    ///
    /// # Errors
    /// `Engine` if an operation fails.
    pub fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<V> {
        b.enter(&self.scope);
        let x = match (&self.filter, self.resample) {
            (Some(filter), Resample::Up) => filter.upsample(b, x)?,
            (Some(filter), Resample::Down) => filter.downsample(b, x, filter.pad, None)?,
            _ => x.clone(),
        };
        let Some((weight, bias)) = &self.weight else { return Ok(x) };
        let options = |pad| Conv2d { stride: self.stride, pads: [pad; 4], groups: 1 };
        let pad = self.kernel / 2;
        match &self.filter {
            Some(filter) if self.resample == Resample::FusedDown => {
                let x = b.conv2d(&x, weight, None, options(pad + filter.pad))?;
                filter.downsample(b, &x, 0, Some(bias))
            }
            _ => b.conv2d(&x, weight, Some(bias), options(pad)),
        }
    }
}

/// A convolution with a batch norm with fixed statistics folded into its weights.
#[derive(Debug, Clone)]
pub(crate) struct FoldedConv<V> {
    scope: Scope,
    weight: V,
    bias: V,
}

impl<V: Clone> FoldedConv<V> {
    /// Builds a convolution with `weight` of shape `dims` and `bias [dims[0]]` (0 if `None`), followed by `norm`.
    pub(crate) fn build<B: Backend<Value = V>>(
        b: &mut B,
        scope: Scope,
        dims: &[usize; 4],
        weight: Vec<f32>,
        bias: Option<&[f32]>,
        norm: &BatchNorm,
        eps: f64,
    ) -> Result<Self> {
        let mut weight = wide(weight);
        let bias = fold(&mut weight, bias, norm, eps);
        let weight = b.constant(&scope, "weight", dims, weight)?;
        let bias = b.constant(&scope, "bias", &dims[..1], bias)?;
        Ok(Self { scope, weight, bias })
    }

    /// A convolution without a norm.
    pub(crate) fn from_parts(scope: Scope, weight: V, bias: V) -> Self {
        Self { scope, weight, bias }
    }

    /// `[N, in, H, W]` -> `[N, out, H', W']`.
    pub(crate) fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V, options: Conv2d) -> Result<V> {
        b.enter(&self.scope);
        b.conv2d(x, &self.weight, Some(&self.bias), options)
    }
}
