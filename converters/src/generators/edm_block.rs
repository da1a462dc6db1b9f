//! The residual block of both U-Nets of EDM.

use crate::backend::{Backend, Ops as _, signed};
use crate::error::Result;
use crate::layers::{Conv, ConvConfig, GroupNorm, LayerInit, Linear, QkvOrder, Resample, attend, condition};
use crate::weights::Scope;

/// Settings that all blocks of a U-Net share.
#[derive(Debug, Clone)]
pub(super) struct BlockStyle {
    /// Width of the noise embedding.
    pub(super) embedding: usize,
    /// Probability of dropout before the second convolution.
    pub(super) dropout: f64,
    /// Factor after each residual sum.
    pub(super) skip_scale: f64,
    /// ε of group norms.
    pub(super) eps: f64,
    /// Resampling filter.
    pub(super) filter: Vec<f64>,
    /// Whether a resampling skip path has a 1×1 convolution.
    pub(super) resample_proj: bool,
    /// Whether the embedding gives scale and shift (ADM) or a bias (Song).
    pub(super) adaptive_scale: bool,
    /// Number or width of the attention heads.
    pub(super) heads: Heads,
    /// Initial weights of the other layers.
    pub(super) init: LayerInit,
    /// Initial weights of the last convolution of a branch.
    pub(super) init_zero: LayerInit,
    /// Initial weights of `qkv`.
    pub(super) init_attention: LayerInit,
}

/// How channels are split into attention heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heads {
    /// Number of heads.
    Count(usize),
    /// Channels per head.
    Width(usize),
}

/// Residual block with resampling and attention, like `UNetBlock` of EDM.
#[derive(Debug, Clone)]
pub(super) struct UNetBlock<V> {
    scope: Scope,
    channels: usize,
    style: BlockStyle,
    norm0: GroupNorm<V>,
    conv0: Conv<V>,
    affine: Linear<V>,
    norm1: GroupNorm<V>,
    conv1: Conv<V>,
    skip: Option<Conv<V>>,
    attention: Option<Attention<V>>,
}

#[derive(Debug, Clone)]
struct Attention<V> {
    heads: usize,
    norm2: GroupNorm<V>,
    qkv: Conv<V>,
    proj: Conv<V>,
}

impl<V: Clone> UNetBlock<V> {
    /// Builds the block from the tensors below `scope`.
    ///
    /// # Errors
    /// Those of [`Backend::param`].
    pub(super) fn build<B: Backend<Value = V>>(
        b: &mut B,
        scope: Scope,
        inputs: usize,
        outputs: usize,
        resample: Resample,
        attention: bool,
        style: &BlockStyle,
    ) -> Result<Self> {
        let conv = |inputs, outputs, kernel, resample, init| ConvConfig {
            resample,
            filter: &style.filter,
            ..ConvConfig::plain(inputs, outputs, kernel, init)
        };
        let norm0 = GroupNorm::build(b, scope.child("norm0"), inputs, style.eps)?;
        let conv0 = Conv::build(b, scope.child("conv0"), &conv(inputs, outputs, 3, resample, style.init))?;
        let width = if style.adaptive_scale { 2 * outputs } else { outputs };
        let affine = Linear::build(b, scope.child("affine"), style.embedding, width, true, style.init)?;
        let norm1 = GroupNorm::build(b, scope.child("norm1"), outputs, style.eps)?;
        let conv1 = Conv::build(b, scope.child("conv1"), &ConvConfig::plain(outputs, outputs, 3, style.init_zero))?;
        let skip = if inputs != outputs || resample != Resample::Keep {
            let kernel = usize::from(style.resample_proj || inputs != outputs);
            Some(Conv::build(b, scope.child("skip"), &conv(inputs, outputs, kernel, resample, style.init))?)
        } else {
            None
        };
        let attention = if attention {
            let heads = match style.heads {
                Heads::Count(n) => n,
                Heads::Width(w) => outputs / w,
            };
            Attention::build(b, &scope, outputs, heads, style)?
        } else {
            None
        };
        let style = style.clone();
        Ok(Self { scope, channels: outputs, style, norm0, conv0, affine, norm1, conv1, skip, attention })
    }

    /// `x [N, in, H, W]`, `embedding [N or 1, E]` -> `[N, out, H', W']`.
    ///
    /// # Errors
    /// `Engine` if an operation fails.
    pub(super) fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V, embedding: &V) -> Result<V> {
        let h = self.norm0.forward(b, x)?;
        let h = b.silu(&h)?;
        let h = self.conv0.forward(b, &h)?;
        let p = self.affine.forward(b, embedding)?;
        let h = condition(b, &self.scope, &self.norm1, &h, &p, self.channels, self.style.adaptive_scale)?;
        let h = b.silu(&h)?;
        let h = b.dropout(&h, self.style.dropout)?;
        let h = self.conv1.forward(b, &h)?;
        let skip = match &self.skip {
            Some(conv) => conv.forward(b, x)?,
            None => x.clone(),
        };
        b.enter(&self.scope);
        let h = residual(b, &h, &skip, self.style.skip_scale)?;
        let Some(attention) = &self.attention else { return Ok(h) };
        let a = attention.forward(b, &h, self.channels)?;
        b.enter(&self.scope);
        residual(b, &a, &h, self.style.skip_scale)
    }
}

fn residual<B: Backend>(b: &mut B, branch: &B::Value, skip: &B::Value, scale: f64) -> Result<B::Value> {
    let sum = b.add(branch, skip)?;
    if scale == 1.0 { Ok(sum) } else { b.scale(&sum, scale) }
}

impl<V: Clone> Attention<V> {
    fn build<B: Backend<Value = V>>(
        b: &mut B,
        scope: &Scope,
        channels: usize,
        heads: usize,
        style: &BlockStyle,
    ) -> Result<Option<Self>> {
        if heads == 0 {
            return Ok(None);
        }
        let conv = |outputs, init| ConvConfig::plain(channels, outputs, 1, init);
        let norm2 = GroupNorm::build(b, scope.child("norm2"), channels, style.eps)?;
        let qkv = Conv::build(b, scope.child("qkv"), &conv(3 * channels, style.init_attention))?;
        let proj = Conv::build(b, scope.child("proj"), &conv(channels, style.init_zero))?;
        Ok(Some(Self { heads, norm2, qkv, proj }))
    }

    fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V, channels: usize) -> Result<V> {
        let (height, width) = (b.dim(x, 2).unwrap_or(0), b.dim(x, 3).unwrap_or(0));
        let h = self.norm2.forward(b, x)?;
        let h = self.qkv.forward(b, &h)?;
        let parts = QkvOrder::Interleaved.split(b, &h, channels, self.heads, height * width)?;
        let a = attend(b, &parts, channels / self.heads)?;
        let a = b.reshape(&a, &[-1, signed(channels), signed(height), signed(width)])?;
        self.proj.forward(b, &a)
    }
}
