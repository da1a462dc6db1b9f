//! Layers shared by the EDM family: linear, convolution with resampling, group norm, embeddings, the U-Net block.

use std::f64::consts::PI;

use crate::error::{Error, Result};
use crate::nn::backend::{Backend, Conv2d};
use crate::weights::{Init, Scope};

/// How fresh weights of a layer are drawn, in EDM's terms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerInit {
    /// Distribution.
    pub mode: InitMode,
    /// Gain of the weight.
    pub weight: f64,
    /// Gain of the bias; 0 makes it zero.
    pub bias: f64,
}

/// The distributions EDM names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the field's own")]
pub enum InitMode {
    XavierUniform,
    KaimingUniform,
    KaimingNormal,
    Torch,
}

impl LayerInit {
    /// PyTorch's default, weight and bias.
    pub const TORCH: Self = Self { mode: InitMode::Torch, weight: 1.0, bias: 1.0 };

    /// `mode` with this weight gain and a zero bias.
    #[must_use]
    pub const fn new(mode: InitMode, weight: f64) -> Self {
        Self { mode, weight, bias: 0.0 }
    }

    fn draw(self, fan_in: usize, fan_out: usize, gain: f64) -> Init {
        if gain == 0.0 {
            return Init::Constant(0.0);
        }
        match self.mode {
            InitMode::XavierUniform => Init::xavier_uniform(fan_in, fan_out, gain),
            InitMode::KaimingUniform => Init::kaiming_uniform(fan_in, gain),
            InitMode::KaimingNormal => Init::Normal { std: gain / (fan_in as f64).sqrt() },
            InitMode::Torch => Init::Uniform { bound: gain / (fan_in as f64).sqrt() },
        }
    }
}

/// Fully connected layer; weight `[out, in]`.
#[derive(Debug, Clone)]
pub struct Linear<V> {
    scope: Scope,
    weight: V,
    bias: Option<V>,
}

impl<V: Clone> Linear<V> {
    /// Takes `weight [outputs, inputs]` and, if asked, `bias [outputs]`.
    ///
    /// # Errors
    /// Those of [`Backend::param`].
    pub fn build<B: Backend<Value = V>>(
        b: &mut B,
        scope: Scope,
        inputs: usize,
        outputs: usize,
        bias: bool,
        init: LayerInit,
    ) -> Result<Self> {
        let weight = b.param(&scope, "weight", &[outputs, inputs], &init.draw(inputs, outputs, init.weight))?;
        let bias = if bias {
            Some(b.param(&scope, "bias", &[outputs], &init.draw(inputs, outputs, init.bias))?)
        } else {
            None
        };
        Ok(Self { scope, weight, bias })
    }

    /// `[N, in]` -> `[N, out]`.
    ///
    /// # Errors
    /// `Engine`.
    pub fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<V> {
        b.enter(&self.scope);
        b.linear(x, &self.weight, self.bias.as_ref())
    }
}

/// What a convolution does to the resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resample {
    /// Nothing.
    Keep,
    /// Doubles it before the convolution.
    Up,
    /// Halves it before the convolution.
    Down,
    /// Halves it after the convolution, whose padding grows by the filter's.
    FusedDown,
}

/// Sizes of a [`Conv`].
#[derive(Debug, Clone, Copy)]
pub struct ConvConfig<'a> {
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Kernel size; 0 for a layer that only resamples and owns no weight.
    pub kernel: usize,
    /// Change of resolution.
    pub resample: Resample,
    /// One-dimensional resampling filter, before normalisation.
    pub filter: &'a [f64],
    /// Fresh weights.
    pub init: LayerInit,
}

/// Convolution with optional up- or downsampling, as EDM's `Conv2d`.
///
/// Keys: `weight [out, in, k, k]`, `bias [out]` unless the kernel is 0; `resample_filter [1, 1, n, n]` if it resamples.
#[derive(Debug, Clone)]
pub struct Conv<V> {
    scope: Scope,
    weight: Option<(V, V)>,
    kernel: usize,
    resample: Resample,
    filter: Option<Filter<V>>,
}

#[derive(Debug, Clone)]
struct Filter<V> {
    kernel: V,
    channels: usize,
    pad: usize,
}

impl<V: Clone> Conv<V> {
    /// Takes the tensors listed on the type.
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
            let weight = b.param(&scope, "weight", &dims, &cfg.init.draw(fan_in, fan_out, cfg.init.weight))?;
            let bias = b.param(&scope, "bias", &[cfg.outputs], &cfg.init.draw(fan_in, fan_out, cfg.init.bias))?;
            Some((weight, bias))
        };
        let filter = match cfg.resample {
            Resample::Keep => None,
            how => {
                let taps = cfg.filter.len();
                let values = b.buffer(&scope, "resample_filter", &[1, 1, taps, taps], &separable(cfg.filter))?;
                let gain = if how == Resample::Up { 4.0 } else { 1.0 };
                let channels = if how == Resample::FusedDown { cfg.outputs } else { cfg.inputs };
                let tiled = values.iter().map(|v| v * gain).cycle().take(channels * taps * taps).collect();
                let kernel = b.constant(&scope, "resample_kernel", &[channels, 1, taps, taps], tiled)?;
                Some(Filter { kernel, channels, pad: (taps - 1) / 2 })
            }
        };
        Ok(Self { scope, weight, kernel: cfg.kernel, resample: cfg.resample, filter })
    }

    /// `[N, in, H, W]` -> `[N, out, H', W']`.
    ///
    /// # Errors
    /// `Engine`.
    pub fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<V> {
        b.enter(&self.scope);
        let mut x = x.clone();
        let mut pad = self.kernel / 2;
        if let Some(f) = &self.filter {
            let how = Conv2d { stride: 2, pads: [f.pad; 4], groups: f.channels };
            match self.resample {
                Resample::Up => x = b.conv_transpose2d(&x, &f.kernel, how)?,
                Resample::Down => x = b.conv2d(&x, &f.kernel, None, how)?,
                Resample::FusedDown => pad += f.pad,
                Resample::Keep => {}
            }
        }
        let Some((weight, bias)) = &self.weight else { return Ok(x) };
        let how = Conv2d::padded(pad);
        match &self.filter {
            Some(f) if self.resample == Resample::FusedDown => {
                let x = b.conv2d(&x, weight, None, how)?;
                b.conv2d(&x, &f.kernel, Some(bias), Conv2d { stride: 2, pads: [0; 4], groups: f.channels })
            }
            _ => b.conv2d(&x, weight, Some(bias), how),
        }
    }
}

/// `(f ⊗ f) / (Σf)²`, row-major.
#[allow(clippy::cast_possible_truncation, reason = "the filter is stored as f32")]
fn separable(filter: &[f64]) -> Init {
    let sum: f64 = filter.iter().sum();
    Init::Values(filter.iter().flat_map(|a| filter.iter().map(move |b| (a * b / (sum * sum)) as f32)).collect())
}

/// Group normalisation; keys `weight [C]`, `bias [C]`.
#[derive(Debug, Clone)]
pub struct GroupNorm<V> {
    scope: Scope,
    groups: usize,
    eps: f64,
    weight: V,
    bias: V,
}

impl<V: Clone> GroupNorm<V> {
    /// Takes `weight` and `bias` for min(32, C/4) groups, EDM's rule.
    ///
    /// # Errors
    /// Those of [`GroupNorm::build_in_groups`].
    pub fn build<B: Backend<Value = V>>(b: &mut B, scope: Scope, channels: usize, eps: f64) -> Result<Self> {
        const MAX_GROUPS: usize = 32;
        const MIN_CHANNELS: usize = 4;
        Self::build_in_groups(b, scope, channels, MAX_GROUPS.min(channels / MIN_CHANNELS), eps)
    }

    /// Takes `weight` and `bias` for this number of groups.
    ///
    /// # Errors
    /// `Config` if the channels cannot be divided into the groups; those of [`Backend::param`].
    pub fn build_in_groups<B: Backend<Value = V>>(
        b: &mut B,
        scope: Scope,
        channels: usize,
        groups: usize,
        eps: f64,
    ) -> Result<Self> {
        if groups == 0 || !channels.is_multiple_of(groups) {
            let what = format!(
                "`{scope}`: {channels} channels cannot be divided into {groups} groups; choose other `model_channels`"
            );
            return Err(Error::Config { what });
        }
        let weight = b.param(&scope, "weight", &[channels], &Init::Constant(1.0))?;
        let bias = b.param(&scope, "bias", &[channels], &Init::Constant(0.0))?;
        Ok(Self { scope, groups, eps, weight, bias })
    }

    /// Same shape as `x [N, C, H, W]`.
    ///
    /// # Errors
    /// `Engine`.
    pub fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<V> {
        b.enter(&self.scope);
        b.group_norm(x, self.groups, self.eps, &self.weight, &self.bias)
    }
}

/// A batch norm with fixed statistics, to be folded into the convolution before it.
#[derive(Debug, Clone)]
pub(crate) struct Norm {
    /// Scale of each channel; `None` for 1.
    pub(crate) gamma: Option<Vec<f32>>,
    pub(crate) beta: Vec<f32>,
    pub(crate) mean: Vec<f32>,
    pub(crate) var: Vec<f32>,
}

impl Norm {
    /// PyTorch's `weight`, `bias`, `running_mean`, `running_var` at `scope`, each `[channels]`.
    pub(crate) fn take<B: Backend>(b: &mut B, scope: &Scope, channels: usize) -> Result<Self> {
        let mut of = |name, value| b.buffer(scope, name, &[channels], &Init::Constant(value));
        let (gamma, beta) = (Some(of("weight", 1.0)?), of("bias", 0.0)?);
        Ok(Self { gamma, beta, mean: of("running_mean", 0.0)?, var: of("running_var", 1.0)? })
    }
}

/// Multiplies each row of `weight` by γ/√(var+ε) and gives the bias β + (bias − mean)·γ/√(var+ε), computed in f64.
#[allow(clippy::cast_possible_truncation, reason = "weights are f32")]
pub(crate) fn fold_norm(weight: &mut [f32], bias: Option<&[f32]>, norm: &Norm, eps: f64) -> Vec<f32> {
    let row = (weight.len() / norm.beta.len().max(1)).max(1);
    let mut folded = Vec::with_capacity(norm.beta.len());
    for (o, row) in weight.chunks_mut(row).enumerate() {
        let gain = norm.gamma.as_ref().map_or(1.0, |g| f64::from(g[o])) / (f64::from(norm.var[o]) + eps).sqrt();
        row.iter_mut().for_each(|w| *w = (f64::from(*w) * gain) as f32);
        let bias = bias.map_or(0.0, |b| f64::from(b[o]));
        folded.push((f64::from(norm.beta[o]) + (bias - f64::from(norm.mean[o])) * gain) as f32);
    }
    folded
}

/// Embedding of the noise level: `[N]` -> `[N, channels]`.
#[derive(Debug, Clone)]
pub struct NoiseEmbedding<V> {
    scope: Scope,
    freqs: V,
    sin_first: bool,
}

impl<V: Clone> NoiseEmbedding<V> {
    /// Fixed frequencies 10000^(-i/(channels/2 - e)), e = 1 if `endpoint`. `sin_first` gives `[sin | cos]`, else `[cos | sin]`.
    ///
    /// # Errors
    /// `Engine`.
    pub fn positional<B: Backend<Value = V>>(
        b: &mut B,
        scope: Scope,
        channels: usize,
        endpoint: bool,
        sin_first: bool,
    ) -> Result<Self> {
        // In f32, as the original computes them.
        let half = channels / 2;
        #[allow(clippy::cast_precision_loss, reason = "small counts")]
        let freqs = (0..half).map(|i| 1e-4_f32.powf(i as f32 / (half - usize::from(endpoint)) as f32)).collect();
        let freqs = b.constant(&scope, "freqs", &[1, half], freqs)?;
        Ok(Self { scope, freqs, sin_first })
    }

    /// Fixed frequencies exp(-ln 10000 · i/(channels/2)) for times of up to thousands, `[cos | sin]`.
    ///
    /// # Errors
    /// `Config` for an odd number of channels; `Engine`.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "in f32 step by step, as the original: a last-place error of a frequency times a thousand is an error of the angle"
    )]
    pub fn timestep<B: Backend<Value = V>>(b: &mut B, scope: Scope, channels: usize) -> Result<Self> {
        const PERIOD: f64 = 10000.0;
        if channels < 2 || !channels.is_multiple_of(2) {
            return Err(Error::Config { what: format!("`model_channels`: expected an even number, found {channels}") });
        }
        let half = channels / 2;
        let freqs = (0..half).map(|i| f64::from(-PERIOD.ln() as f32 * i as f32 / half as f32).exp() as f32).collect();
        let freqs = b.constant(&scope, "freqs", &[1, half], freqs)?;
        Ok(Self { scope, freqs, sin_first: false })
    }

    /// Random frequencies from the buffer `freqs [channels/2]`; 2π times them, then times the noise level.
    ///
    /// # Errors
    /// Those of [`Backend::buffer`].
    pub fn fourier<B: Backend<Value = V>>(b: &mut B, scope: Scope, channels: usize, sin_first: bool) -> Result<Self> {
        const SCALE: f64 = 16.0;
        #[allow(clippy::cast_possible_truncation, reason = "the original multiplies in f32")]
        const TAU: f32 = (2.0 * PI) as f32;
        let half = channels / 2;
        let freqs = b.buffer(&scope, "freqs", &[half], &Init::Normal { std: SCALE })?;
        let freqs = b.constant(&scope, "angular_freqs", &[1, half], freqs.iter().map(|f| TAU * f).collect())?;
        Ok(Self { scope, freqs, sin_first })
    }

    /// `t [N]` -> `[N, channels]`.
    ///
    /// # Errors
    /// `Engine`.
    pub fn forward<B: Backend<Value = V>>(&self, b: &mut B, t: &V) -> Result<V> {
        b.enter(&self.scope);
        let t = b.reshape(t, &[-1, 1])?;
        let angle = b.mul(&t, &self.freqs)?;
        let (cos, sin) = (b.cos(&angle)?, b.sin(&angle)?);
        let parts = if self.sin_first { [sin, cos] } else { [cos, sin] };
        b.concat(&parts, 1)
    }
}

/// What all blocks of one U-Net share.
#[derive(Debug, Clone)]
pub struct BlockStyle {
    /// Width of the noise embedding.
    pub embedding: usize,
    /// Probability of dropout before the second convolution.
    pub dropout: f64,
    /// Factor after each residual sum.
    pub skip_scale: f64,
    /// Group norm's ε.
    pub eps: f64,
    /// Resampling filter.
    pub filter: Vec<f64>,
    /// Whether a resampling skip path has a 1×1 convolution of its own.
    pub resample_proj: bool,
    /// Whether the embedding gives scale and shift (ADM) or a bias (Song).
    pub adaptive_scale: bool,
    /// Attention heads for a channel count.
    pub heads: Heads,
    /// Fresh weights in general.
    pub init: LayerInit,
    /// Fresh weights of the last convolution of a branch.
    pub init_zero: LayerInit,
    /// Fresh weights of `qkv`.
    pub init_attention: LayerInit,
}

/// How channels are split into attention heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heads {
    /// This many.
    Count(usize),
    /// As many as this width of a head gives.
    Width(usize),
}

/// Residual block with resampling and attention, as EDM's `UNetBlock`.
#[derive(Debug, Clone)]
pub struct UNetBlock<V> {
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
    /// Takes the block's tensors below `scope`.
    ///
    /// # Errors
    /// Those of [`Backend::param`].
    pub fn build<B: Backend<Value = V>>(
        b: &mut B,
        scope: Scope,
        inputs: usize,
        outputs: usize,
        resample: Resample,
        attention: bool,
        style: &BlockStyle,
    ) -> Result<Self> {
        let conv = |inputs, outputs, kernel, resample, init| ConvConfig {
            inputs,
            outputs,
            kernel,
            resample,
            filter: &style.filter,
            init,
        };
        let plain = |inputs, outputs, kernel, init| conv(inputs, outputs, kernel, Resample::Keep, init);
        let norm0 = GroupNorm::build(b, scope.child("norm0"), inputs, style.eps)?;
        let conv0 = Conv::build(b, scope.child("conv0"), &conv(inputs, outputs, 3, resample, style.init))?;
        let width = if style.adaptive_scale { 2 * outputs } else { outputs };
        let affine = Linear::build(b, scope.child("affine"), style.embedding, width, true, style.init)?;
        let norm1 = GroupNorm::build(b, scope.child("norm1"), outputs, style.eps)?;
        let conv1 = Conv::build(b, scope.child("conv1"), &plain(outputs, outputs, 3, style.init_zero))?;
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
    /// `Engine`.
    pub fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V, embedding: &V) -> Result<V> {
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
        let conv = |outputs, init| ConvConfig {
            inputs: channels,
            outputs,
            kernel: 1,
            resample: Resample::Keep,
            filter: &[],
            init,
        };
        let norm2 = GroupNorm::build(b, scope.child("norm2"), channels, style.eps)?;
        let qkv = Conv::build(b, scope.child("qkv"), &conv(3 * channels, style.init_attention))?;
        let proj = Conv::build(b, scope.child("proj"), &conv(channels, style.init_zero))?;
        Ok(Some(Self { heads, norm2, qkv, proj }))
    }

    /// `qkv`'s output channel of tensor j (q, k, v), head h and in-head channel c is `h·3·d + 3·c + j`.
    fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V, channels: usize) -> Result<V> {
        let (height, width) = (b.dim(x, 2).unwrap_or(0), b.dim(x, 3).unwrap_or(0));
        let (area, depth) = (height * width, channels / self.heads);
        let h = self.norm2.forward(b, x)?;
        let h = self.qkv.forward(b, &h)?;
        let h = b.reshape(&h, &[-1, signed(depth), 3, signed(area)])?;
        let mut part = |j| {
            let t = b.slice(&h, 2, j, 1)?;
            b.reshape(&t, &[-1, signed(depth), signed(area)])
        };
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        let q = b.transpose(&q, &[0, 2, 1])?;
        let k = b.scale(&k, 1.0 / (depth as f64).sqrt())?;
        let logits = b.matmul(&q, &k)?;
        let weights = b.softmax(&logits, 2)?;
        let weights = b.transpose(&weights, &[0, 2, 1])?;
        let a = b.matmul(&v, &weights)?;
        let a = b.reshape(&a, &[-1, signed(channels), signed(height), signed(width)])?;
        self.proj.forward(b, &a)
    }
}

/// A size as an entry of [`Backend::reshape`].
pub(crate) fn signed(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// How a block's second norm takes the embedding `p [N or 1, C or 2C]`: `adaptive`, the normalised `h [N, C, H, W]` is scaled by 1 plus the
/// first half of `p` and shifted by the second; else `p` is added before the norm.
pub(crate) fn condition<B: Backend>(
    b: &mut B,
    scope: &Scope,
    norm: &GroupNorm<B::Value>,
    h: &B::Value,
    p: &B::Value,
    channels: usize,
    adaptive: bool,
) -> Result<B::Value> {
    let p = b.reshape(p, &[-1, signed(channels) * if adaptive { 2 } else { 1 }, 1, 1])?;
    if adaptive {
        let scale = b.slice(&p, 1, 0, channels)?;
        let shift = b.slice(&p, 1, channels, channels)?;
        let h = norm.forward(b, h)?;
        b.enter(scope);
        let scale = b.offset(&scale, 1.0)?;
        let h = b.mul(&h, &scale)?;
        b.add(&h, &shift)
    } else {
        b.enter(scope);
        let h = b.add(h, &p)?;
        norm.forward(b, &h)
    }
}
