//! OpenAI's U-Net: `UNetModel` of guided-diffusion and consistency_models.

use super::config::OpenAiConfig;
use crate::backend::{Backend, Conv2d, Ops as _, signed};
use crate::error::{Error, Result};
use crate::generators::backbone::{Labels, Shape, augmented};
use crate::layers::{
    Conv, ConvConfig, GroupNorm, LayerInit, Linear, NoiseEmbedding, QkvOrder, attend, condition, double, halve,
};
use crate::weights::{Init, Scope};

const EPS: f64 = 1e-5;
const GROUPS: usize = 32;

/// The network. Tensor names are those of OpenAI.
#[derive(Debug, Clone)]
pub struct OpenAiUNet<V> {
    scope: Scope,
    time_freqs: NoiseEmbedding<V>,
    time_embed: [Linear<V>; 2],
    label_emb: Option<V>,
    stem: Conv<V>,
    input_blocks: Vec<Vec<Layer<V>>>,
    middle_block: Vec<Layer<V>>,
    output_blocks: Vec<Vec<Layer<V>>>,
    out_norm: GroupNorm<V>,
    out_conv: Conv<V>,
}

#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "a few dozen entries, built once")]
enum Layer<V> {
    Res(ResBlock<V>),
    Attention(Attention<V>),
    Resample(Change, Option<Conv<V>>, Scope),
}

/// Resampling without a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Keep,
    Up,
    Down,
}

/// Settings that all blocks of a network share.
struct Style<'a> {
    config: &'a OpenAiConfig,
    embedding: usize,
}

#[derive(Debug, Clone)]
struct ResBlock<V> {
    scope: Scope,
    outputs: usize,
    resample: Change,
    scale_shift: bool,
    dropout: f64,
    in_norm: GroupNorm<V>,
    in_conv: Conv<V>,
    emb: Linear<V>,
    out_norm: GroupNorm<V>,
    out_conv: Conv<V>,
    skip: Option<Conv<V>>,
}

impl<V: Clone> ResBlock<V> {
    fn build<B: Backend<Value = V>>(
        b: &mut B,
        scope: Scope,
        [inputs, outputs]: [usize; 2],
        resample: Change,
        style: &Style<'_>,
    ) -> Result<Self> {
        let scale_shift = style.config.use_scale_shift_norm;
        let width = if scale_shift { 2 * outputs } else { outputs };
        let at = |name: &str, i: usize| scope.child(name).child(i);
        let in_norm = norm(b, at("in_layers", 0), inputs)?;
        let in_conv = conv(b, at("in_layers", 2), [inputs, outputs, 3], 1)?;
        let emb = Linear::build(b, at("emb_layers", 1), style.embedding, width, true, LayerInit::TORCH)?;
        let out_norm = norm(b, at("out_layers", 0), outputs)?;
        let out_conv = conv(b, at("out_layers", 3), [outputs, outputs, 3], 1)?;
        let skip = if inputs == outputs {
            None
        } else {
            Some(conv(b, scope.child("skip_connection"), [inputs, outputs, 1], 1)?)
        };
        let dropout = style.config.dropout;
        Ok(Self { scope, outputs, resample, scale_shift, dropout, in_norm, in_conv, emb, out_norm, out_conv, skip })
    }

    /// `emb [N or 1, E]` is the embedding after SiLU.
    fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V, emb: &V) -> Result<V> {
        let h = self.in_norm.forward(b, x)?;
        let h = b.silu(&h)?;
        b.enter(&self.scope);
        let h = resample(b, &h, self.resample)?;
        let x = resample(b, x, self.resample)?;
        let h = self.in_conv.forward(b, &h)?;
        let p = self.emb.forward(b, emb)?;
        let h = condition(b, &self.scope, &self.out_norm, &h, &p, self.outputs, self.scale_shift)?;
        let h = b.silu(&h)?;
        let h = b.dropout(&h, self.dropout)?;
        let h = self.out_conv.forward(b, &h)?;
        let skip = match &self.skip {
            Some(conv) => conv.forward(b, &x)?,
            None => x,
        };
        b.enter(&self.scope);
        b.add(&skip, &h)
    }
}

fn norm<B: Backend>(b: &mut B, scope: Scope, channels: usize) -> Result<GroupNorm<B::Value>> {
    GroupNorm::build_in_groups(b, scope, channels, GROUPS, EPS)
}

fn resample<B: Backend>(b: &mut B, x: &B::Value, change: Change) -> Result<B::Value> {
    match change {
        Change::Keep => Ok(x.clone()),
        Change::Down => halve(b, x),
        Change::Up => double(b, x),
    }
}

fn conv<B: Backend>(
    b: &mut B,
    scope: Scope,
    [inputs, outputs, kernel]: [usize; 3],
    stride: usize,
) -> Result<Conv<B::Value>> {
    Conv::build(b, scope, &ConvConfig { stride, ..ConvConfig::plain(inputs, outputs, kernel, LayerInit::TORCH) })
}

#[derive(Debug, Clone)]
struct Attention<V> {
    scope: Scope,
    channels: usize,
    heads: usize,
    order: QkvOrder,
    conv1d: bool,
    norm: GroupNorm<V>,
    qkv: [V; 2],
    proj_out: [V; 2],
}

impl<V: Clone> Attention<V> {
    fn build<B: Backend<Value = V>>(
        b: &mut B,
        scope: Scope,
        channels: usize,
        heads: usize,
        config: &OpenAiConfig,
    ) -> Result<Self> {
        let norm = norm(b, scope.child("norm"), channels)?;
        let mut pointwise = |name: &str, outputs: usize| -> Result<[V; 2]> {
            let (at, init) = (scope.child(name), Init::torch_default(channels));
            let flat = [outputs, channels, 1];
            let dims = if config.conv1d { &flat[..] } else { &[outputs, channels, 1, 1] };
            let weight = b.param(&at, "weight", dims, &init)?;
            Ok([weight, b.param(&at, "bias", &[outputs], &init)?])
        };
        let qkv = pointwise("qkv", 3 * channels)?;
        let proj_out = pointwise("proj_out", channels)?;
        Ok(Self { scope, channels, heads, order: config.qkv_order(), conv1d: config.conv1d, norm, qkv, proj_out })
    }

    fn pointwise<B: Backend<Value = V>>(&self, b: &mut B, name: &str, [weight, bias]: &[V; 2], x: &V) -> Result<V> {
        b.enter(&self.scope.child(name));
        let weight = if self.conv1d {
            let outputs = b.dim(weight, 0).unwrap_or(0);
            b.reshape(weight, &[signed(outputs), signed(self.channels), 1, 1])?
        } else {
            weight.clone()
        };
        b.conv2d(x, &weight, Some(bias), Conv2d::padded(0))
    }

    fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<V> {
        let (height, width) = (b.dim(x, 2).unwrap_or(0), b.dim(x, 3).unwrap_or(0));
        let channels = self.channels;
        let h = self.norm.forward(b, x)?;
        let h = self.pointwise(b, "qkv", &self.qkv, &h)?;
        b.enter(&self.scope);
        let parts = self.order.split(b, &h, channels, self.heads, height * width)?;
        let a = attend(b, &parts, channels / self.heads)?;
        let a = b.reshape(&a, &[-1, signed(channels), signed(height), signed(width)])?;
        let a = self.pointwise(b, "proj_out", &self.proj_out, &a)?;
        b.enter(&self.scope);
        b.add(x, &a)
    }
}

/// Builds blocks in the order of the original constructor.
struct Builder<'a, 'b, B: Backend> {
    b: &'b mut B,
    style: Style<'a>,
    /// Channels of the current feature map.
    width: usize,
    /// Downsampling rate of the current feature map.
    rate: usize,
}

impl<B: Backend> Builder<'_, '_, B> {
    fn res(&mut self, at: Scope, inputs: usize, outputs: usize, resample: Change) -> Result<Layer<B::Value>> {
        self.width = outputs;
        ResBlock::build(self.b, at, [inputs, outputs], resample, &self.style).map(Layer::Res)
    }

    fn attention(&mut self, at: Scope, upsampling: bool) -> Result<Layer<B::Value>> {
        let (cfg, width) = (self.style.config, self.width);
        let heads = match (cfg.num_head_channels, cfg.num_heads_upsample) {
            (Some(channels), _) if channels > 0 && width.is_multiple_of(channels) => width / channels,
            (Some(channels), _) => {
                let what = format!("`num_head_channels`: {width} channels cannot be split into heads of {channels}");
                return Err(Error::Config { what });
            }
            (None, Some(heads)) if upsampling => heads,
            _ => cfg.num_heads,
        };
        if heads == 0 || !width.is_multiple_of(heads) {
            return Err(Error::Config { what: format!("`num_heads`: {width} channels cannot be split into {heads}") });
        }
        Attention::build(self.b, at, width, heads, cfg).map(Layer::Attention)
    }

    fn resampler(&mut self, at: Scope, change: Change) -> Result<Layer<B::Value>> {
        let (cfg, width) = (self.style.config, self.width);
        if cfg.resblock_updown {
            return self.res(at, width, width, change);
        }
        let conv = match (cfg.conv_resample, change) {
            (false, _) => None,
            (true, Change::Down) => Some(conv(self.b, at.child("op"), [width, width, 3], 2)?),
            (true, _) => Some(conv(self.b, at.child("conv"), [width, width, 3], 1)?),
        };
        Ok(Layer::Resample(change, conv, at))
    }

    /// Builds a residual block, followed by attention if the current resolution has attention.
    fn block(
        &mut self,
        scope: &Scope,
        inputs: usize,
        outputs: usize,
        upsampling: bool,
    ) -> Result<Vec<Layer<B::Value>>> {
        let mut layers = vec![self.res(scope.child(0), inputs, outputs, Change::Keep)?];
        if self.style.config.attention_resolutions.contains(&self.rate) {
            layers.push(self.attention(scope.child(1), upsampling)?);
        }
        Ok(layers)
    }
}

impl<V: Clone> OpenAiUNet<V> {
    /// Builds the network and takes all of its tensors.
    ///
    /// # Errors
    /// `Config` if channels cannot be split into heads or groups; those of [`Backend::param`].
    pub fn build<B: Backend<Value = V>>(b: &mut B, shape: Shape, cfg: &OpenAiConfig) -> Result<Self> {
        let (scope, label_dim) = (Scope::root(), shape.label_dim);
        let model = cfg.model_channels;
        let embedding = 4 * model;
        let time_freqs = NoiseEmbedding::timestep(b, scope.child("time_embed").child("freqs"), model)?;
        let mut linear = |i: usize, inputs: usize| {
            Linear::build(b, scope.child("time_embed").child(i), inputs, embedding, true, LayerInit::TORCH)
        };
        let time_embed = [linear(0, model)?, linear(2, embedding)?];
        let label_emb = if label_dim > 0 {
            let init = Init::Normal { std: 1.0 };
            Some(b.param(&scope.child("label_emb"), "weight", &[label_dim, embedding], &init)?)
        } else {
            None
        };
        let widths = cfg.widths();
        let first = widths.first().copied().unwrap_or(model);
        let inputs = scope.child("input_blocks");
        let stem = conv(b, inputs.child(0).child(0), [shape.inputs, first, 3], 1)?;
        let style = Style { config: cfg, embedding };
        let mut build = Builder { b, style, width: first, rate: 1 };
        let (mut input_blocks, mut skips) = (Vec::new(), vec![first]);
        for (level, width) in widths.iter().enumerate() {
            for _ in 0..cfg.num_res_blocks {
                let at = inputs.child(input_blocks.len() + 1);
                let from = build.width;
                input_blocks.push(build.block(&at, from, *width, false)?);
                skips.push(*width);
            }
            if level + 1 < widths.len() {
                let at = inputs.child(input_blocks.len() + 1).child(0);
                input_blocks.push(vec![build.resampler(at, Change::Down)?]);
                skips.push(*width);
                build.rate *= 2;
            }
        }
        let middle = scope.child("middle_block");
        let width = build.width;
        let middle_block = vec![
            build.res(middle.child(0), width, width, Change::Keep)?,
            build.attention(middle.child(1), false)?,
            build.res(middle.child(2), width, width, Change::Keep)?,
        ];
        let outputs = scope.child("output_blocks");
        let mut output_blocks = Vec::new();
        for (level, width) in widths.iter().enumerate().rev() {
            for i in 0..=cfg.num_res_blocks {
                let at = outputs.child(output_blocks.len());
                let from = build.width + skips.pop().unwrap_or(0);
                let mut layers = build.block(&at, from, *width, true)?;
                if level > 0 && i == cfg.num_res_blocks {
                    layers.push(build.resampler(at.child(layers.len()), Change::Up)?);
                    build.rate /= 2;
                }
                output_blocks.push(layers);
            }
        }
        let width = build.width;
        let out_norm = norm(b, scope.child("out").child(0), width)?;
        let out_conv = conv(b, scope.child("out").child(2), [first, shape.outputs, 3], 1)?;
        Ok(Self {
            scope,
            time_freqs,
            time_embed,
            label_emb,
            stem,
            input_blocks,
            middle_block,
            output_blocks,
            out_norm,
            out_conv,
        })
    }

    /// Maps `x [N, inputs, R, R]`, `time [N or 1]` and `labels` to `[N, outputs, R, R]`.
    ///
    /// # Errors
    /// `Config` if augmentation labels are given, which the network does not take; `Engine` if an operation fails.
    pub fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V, time: &V, labels: Labels<'_, V>) -> Result<V> {
        let emb = self.time_freqs.forward(b, time)?;
        let emb = self.time_embed[0].forward(b, &emb)?;
        let emb = b.silu(&emb)?;
        let emb = self.time_embed[1].forward(b, &emb)?;
        let mut emb = augmented(b, emb, None, labels.augment)?;
        b.enter(&self.scope.child("label_emb"));
        if let (Some(table), Some(labels)) = (&self.label_emb, labels.classes) {
            let label = b.matmul(labels, table)?;
            emb = b.add(&emb, &label)?;
        }
        // Every block applies SiLU to the embedding first, so it is computed once.
        let emb = b.silu(&emb)?;
        let mut x = self.stem.forward(b, x)?;
        let mut skips = vec![x.clone()];
        for layers in &self.input_blocks {
            x = run(b, layers, &x, &emb)?;
            skips.push(x.clone());
        }
        x = run(b, &self.middle_block, &x, &emb)?;
        for layers in &self.output_blocks {
            b.enter(&self.scope);
            if let Some(skip) = skips.pop() {
                x = b.concat(&[x, skip], 1)?;
            }
            x = run(b, layers, &x, &emb)?;
        }
        let x = self.out_norm.forward(b, &x)?;
        let x = b.silu(&x)?;
        self.out_conv.forward(b, &x)
    }
}

fn run<B: Backend>(b: &mut B, layers: &[Layer<B::Value>], x: &B::Value, emb: &B::Value) -> Result<B::Value> {
    let mut x = x.clone();
    for layer in layers {
        x = match layer {
            Layer::Res(block) => block.forward(b, &x, emb)?,
            Layer::Attention(attention) => attention.forward(b, &x)?,
            // The strided convolution already halves the resolution.
            Layer::Resample(Change::Down, Some(conv), _) => conv.forward(b, &x)?,
            Layer::Resample(change, conv, scope) => {
                b.enter(scope);
                let x = resample(b, &x, *change)?;
                match conv {
                    Some(conv) => conv.forward(b, &x)?,
                    None => x,
                }
            }
        };
    }
    Ok(x)
}
