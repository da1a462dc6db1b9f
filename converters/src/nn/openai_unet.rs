//! OpenAI's U-Net (Dhariwal and Nichol 2021; Song et al. 2023): `UNetModel` of guided-diffusion and consistency_models.
//!
//! Their files hold tensors and nothing else. [`FromShapes`] is what their shapes tell of the constructor's arguments; the size of the images,
//! the split into attention heads and the diffusion around the network are not in the shapes.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use d2o_checkpoint::TensorSource;
use serde_json::{Map, Value, json};

use crate::config::{NetConfig, OpenAiConfig};
use crate::error::{Error, Result};
use crate::nn::backend::{Backend, Conv2d, Pool};
use crate::nn::layers::{GroupNorm, LayerInit, Linear, NoiseEmbedding, condition, signed};
use crate::registry::Recognised;
use crate::weights::{Init, Scope};

const EPS: f64 = 1e-5;
const GROUPS: usize = 32;
/// Width of an attention head in every published file.
const HEAD_CHANNELS: usize = 64;

/// The network; tensors have OpenAI's names.
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
    Resample(Resample, Option<Conv<V>>, Scope),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resample {
    Keep,
    Up,
    Down,
}

/// Convolution with bias; keys `weight`, `bias`.
#[derive(Debug, Clone)]
struct Conv<V> {
    scope: Scope,
    weight: V,
    bias: V,
    how: Conv2d,
}

impl<V: Clone> Conv<V> {
    fn build<B: Backend<Value = V>>(
        b: &mut B,
        scope: Scope,
        [inputs, outputs, kernel]: [usize; 3],
        stride: usize,
    ) -> Result<Self> {
        let init = Init::torch_default(inputs * kernel * kernel);
        let weight = b.param(&scope, "weight", &[outputs, inputs, kernel, kernel], &init)?;
        let bias = b.param(&scope, "bias", &[outputs], &init)?;
        Ok(Self { scope, weight, bias, how: Conv2d { stride, pads: [kernel / 2; 4], groups: 1 } })
    }

    fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<V> {
        b.enter(&self.scope);
        b.conv2d(x, &self.weight, Some(&self.bias), self.how)
    }
}

/// How the attention blocks of one of the two repositories store queries, keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QkvLayout {
    /// Whether all queries come first, then all keys, then all values (the "new" order); else they are grouped by head.
    pub split_first: bool,
    /// Whether the 1×1 convolutions are one-dimensional, `[outputs, inputs, 1]`.
    pub conv1d: bool,
}

/// What all blocks of one network share.
struct Style<'a> {
    config: &'a OpenAiConfig,
    embedding: usize,
    layout: QkvLayout,
}

#[derive(Debug, Clone)]
struct ResBlock<V> {
    scope: Scope,
    outputs: usize,
    resample: Resample,
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
        resample: Resample,
        style: &Style<'_>,
    ) -> Result<Self> {
        let scale_shift = style.config.use_scale_shift_norm;
        let width = if scale_shift { 2 * outputs } else { outputs };
        let at = |name: &str, i: usize| scope.child(name).child(i);
        let in_norm = norm(b, at("in_layers", 0), inputs)?;
        let in_conv = Conv::build(b, at("in_layers", 2), [inputs, outputs, 3], 1)?;
        let emb = Linear::build(b, at("emb_layers", 1), style.embedding, width, true, LayerInit::TORCH)?;
        let out_norm = norm(b, at("out_layers", 0), outputs)?;
        let out_conv = Conv::build(b, at("out_layers", 3), [outputs, outputs, 3], 1)?;
        let skip = if inputs == outputs {
            None
        } else {
            Some(Conv::build(b, scope.child("skip_connection"), [inputs, outputs, 1], 1)?)
        };
        let dropout = style.config.dropout;
        Ok(Self { scope, outputs, resample, scale_shift, dropout, in_norm, in_conv, emb, out_norm, out_conv, skip })
    }

    /// `emb [N or 1, E]` has been through SiLU.
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

/// Nearest-neighbour doubling, or the mean of 2×2 pixels.
fn resample<B: Backend>(b: &mut B, x: &B::Value, how: Resample) -> Result<B::Value> {
    match how {
        Resample::Keep => Ok(x.clone()),
        Resample::Down => b.avg_pool2d(x, Pool { kernel: 2, stride: 2, pad: 0 }),
        Resample::Up => {
            let [c, h, w] = [1, 2, 3].map(|axis| b.dim(x, axis).unwrap_or(0));
            // Each pixel beside itself, then each row below itself.
            let columns = b.reshape(x, &[-1, signed(c * h * w), 1])?;
            let doubled = b.concat(&[columns.clone(), columns], 2)?;
            let rows = b.reshape(&doubled, &[-1, signed(c * h), signed(2 * w)])?;
            let doubled = b.concat(&[rows.clone(), rows], 2)?;
            b.reshape(&doubled, &[-1, signed(c), signed(2 * h), signed(2 * w)])
        }
    }
}

#[derive(Debug, Clone)]
struct Attention<V> {
    scope: Scope,
    channels: usize,
    heads: usize,
    layout: QkvLayout,
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
        style: &Style<'_>,
    ) -> Result<Self> {
        let norm = norm(b, scope.child("norm"), channels)?;
        let mut pointwise = |name: &str, outputs: usize| -> Result<[V; 2]> {
            let (at, init) = (scope.child(name), Init::torch_default(channels));
            let flat = [outputs, channels, 1];
            let dims = if style.layout.conv1d { &flat[..] } else { &[outputs, channels, 1, 1] };
            let weight = b.param(&at, "weight", dims, &init)?;
            Ok([weight, b.param(&at, "bias", &[outputs], &init)?])
        };
        let qkv = pointwise("qkv", 3 * channels)?;
        let proj_out = pointwise("proj_out", channels)?;
        Ok(Self { scope, channels, heads, layout: style.layout, norm, qkv, proj_out })
    }

    fn pointwise<B: Backend<Value = V>>(&self, b: &mut B, name: &str, [weight, bias]: &[V; 2], x: &V) -> Result<V> {
        b.enter(&self.scope.child(name));
        let weight = if self.layout.conv1d {
            let outputs = b.dim(weight, 0).unwrap_or(0);
            b.reshape(weight, &[signed(outputs), signed(self.channels), 1, 1])?
        } else {
            weight.clone()
        };
        b.conv2d(x, &weight, Some(bias), Conv2d::padded(0))
    }

    /// `qkv`'s output channel of tensor j (q, k, v), head h and in-head channel c is `j·C + h·d + c` if split first, else
    /// `h·3·d + j·d + c`.
    fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<V> {
        let (height, width) = (b.dim(x, 2).unwrap_or(0), b.dim(x, 3).unwrap_or(0));
        let (area, depth, channels) = (height * width, self.channels / self.heads, self.channels);
        let h = self.norm.forward(b, x)?;
        let h = self.pointwise(b, "qkv", &self.qkv, &h)?;
        b.enter(&self.scope);
        let per_head = [-1, signed(depth), signed(area)];
        let mut part = |j| {
            if self.layout.split_first {
                let h = b.reshape(&h, &[-1, signed(3 * channels), signed(area)])?;
                let t = b.slice(&h, 1, j * channels, channels)?;
                b.reshape(&t, &per_head)
            } else {
                let h = b.reshape(&h, &[-1, signed(3 * depth), signed(area)])?;
                b.slice(&h, 1, j * depth, depth)
            }
        };
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        let q = b.transpose(&q, &[0, 2, 1])?;
        let k = b.scale(&k, 1.0 / (depth as f64).sqrt())?;
        let logits = b.matmul(&q, &k)?;
        let weights = b.softmax(&logits, 2)?;
        let weights = b.transpose(&weights, &[0, 2, 1])?;
        let a = b.matmul(&v, &weights)?;
        let a = b.reshape(&a, &[-1, signed(channels), signed(height), signed(width)])?;
        let a = self.pointwise(b, "proj_out", &self.proj_out, &a)?;
        b.enter(&self.scope);
        b.add(x, &a)
    }
}

/// Lays blocks out in the order of the original's constructor.
struct Builder<'a, 'b, B: Backend> {
    b: &'b mut B,
    style: Style<'a>,
    /// Channels of the value that flows.
    width: usize,
    /// Pixels of an image's side over those of the value that flows.
    rate: usize,
}

impl<B: Backend> Builder<'_, '_, B> {
    fn res(&mut self, at: Scope, inputs: usize, outputs: usize, resample: Resample) -> Result<Layer<B::Value>> {
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
        Attention::build(self.b, at, width, heads, &self.style).map(Layer::Attention)
    }

    fn resampler(&mut self, at: Scope, how: Resample) -> Result<Layer<B::Value>> {
        let (cfg, width) = (self.style.config, self.width);
        if cfg.resblock_updown {
            return self.res(at, width, width, how);
        }
        let conv = match (cfg.conv_resample, how) {
            (false, _) => None,
            (true, Resample::Down) => Some(Conv::build(self.b, at.child("op"), [width, width, 3], 2)?),
            (true, _) => Some(Conv::build(self.b, at.child("conv"), [width, width, 3], 1)?),
        };
        Ok(Layer::Resample(how, conv, at))
    }

    /// A residual block at the next place of `layers`, with attention after it if this resolution has any.
    fn block(
        &mut self,
        scope: &Scope,
        inputs: usize,
        outputs: usize,
        upsampling: bool,
    ) -> Result<Vec<Layer<B::Value>>> {
        let mut layers = vec![self.res(scope.child(0), inputs, outputs, Resample::Keep)?];
        if self.style.config.attention_resolutions.contains(&self.rate) {
            layers.push(self.attention(scope.child(1), upsampling)?);
        }
        Ok(layers)
    }
}

impl<V: Clone> OpenAiUNet<V> {
    /// Takes the tensors of a network; `channels` are those of its input and of its output.
    ///
    /// # Errors
    /// `Config` if channels do not split into heads or groups; those of [`Backend::param`].
    pub fn build<B: Backend<Value = V>>(
        b: &mut B,
        scope: Scope,
        channels: [usize; 2],
        label_dim: usize,
        cfg: &OpenAiConfig,
        layout: QkvLayout,
    ) -> Result<Self> {
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
        let stem = Conv::build(b, inputs.child(0).child(0), [channels[0], first, 3], 1)?;
        let style = Style { config: cfg, embedding, layout };
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
                input_blocks.push(vec![build.resampler(at, Resample::Down)?]);
                skips.push(*width);
                build.rate *= 2;
            }
        }
        let middle = scope.child("middle_block");
        let width = build.width;
        let middle_block = vec![
            build.res(middle.child(0), width, width, Resample::Keep)?,
            build.attention(middle.child(1), false)?,
            build.res(middle.child(2), width, width, Resample::Keep)?,
        ];
        let outputs = scope.child("output_blocks");
        let mut output_blocks = Vec::new();
        for (level, width) in widths.iter().enumerate().rev() {
            for i in 0..=cfg.num_res_blocks {
                let at = outputs.child(output_blocks.len());
                let from = build.width + skips.pop().unwrap_or(0);
                let mut layers = build.block(&at, from, *width, true)?;
                if level > 0 && i == cfg.num_res_blocks {
                    layers.push(build.resampler(at.child(layers.len()), Resample::Up)?);
                    build.rate /= 2;
                }
                output_blocks.push(layers);
            }
        }
        let width = build.width;
        let out_norm = norm(b, scope.child("out").child(0), width)?;
        let out_conv = Conv::build(b, scope.child("out").child(2), [first, channels[1], 3], 1)?;
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

    /// `x [N, C, R, R]`, `time [N or 1]`, `labels [N, label_dim]` one-hot -> `[N, outputs, R, R]`.
    ///
    /// # Errors
    /// `Engine`.
    pub fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V, time: &V, labels: Option<&V>) -> Result<V> {
        let emb = self.time_freqs.forward(b, time)?;
        let emb = self.time_embed[0].forward(b, &emb)?;
        let emb = b.silu(&emb)?;
        let mut emb = self.time_embed[1].forward(b, &emb)?;
        b.enter(&self.scope.child("label_emb"));
        if let (Some(table), Some(labels)) = (&self.label_emb, labels) {
            let label = b.matmul(labels, table)?;
            emb = b.add(&emb, &label)?;
        }
        // Every block starts from SiLU of the embedding.
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
            // The strided convolution is the whole downsampling.
            Layer::Resample(Resample::Down, Some(conv), _) => conv.forward(b, &x)?,
            Layer::Resample(how, conv, scope) => {
                b.enter(scope);
                let x = resample(b, &x, *how)?;
                match conv {
                    Some(conv) => conv.forward(b, &x)?,
                    None => x,
                }
            }
        };
    }
    Ok(x)
}

/// A file of such a network: what its shapes tell, and the whole if its name tells the rest.
#[derive(Debug, Clone, PartialEq)]
pub struct FromShapes {
    /// `KarrasDenoiser` for the layout of consistency_models, `GaussianDiffusion` for that of guided-diffusion.
    pub class: &'static str,
    /// Arguments of `UNetModel`. `num_head_channels` is that of most published files; [`FromShapes::completed`] asks for it.
    pub kwargs: Map<String, Value>,
    /// The configuration, if nothing is left open.
    pub config: Option<NetConfig>,
}

impl FromShapes {
    /// The configuration with what `class` and `kwargs` add to the shapes; what they say goes first.
    ///
    /// # Errors
    /// `Config` for what is still missing.
    pub fn completed(&self, class: &str, kwargs: &Map<String, Value>) -> Result<NetConfig> {
        let mut all = self.kwargs.clone();
        if !kwargs.contains_key("num_head_channels") {
            if !kwargs.contains_key("num_heads") {
                let what = format!(
                    "`num_head_channels` or `num_heads` is missing: shapes do not show attention heads ({HEAD_CHANNELS} channels each in most published files)"
                );
                return Err(Error::Config { what });
            }
            all.remove("num_head_channels");
        }
        all.extend(kwargs.clone());
        NetConfig::new(class, &Value::Object(all))
    }

    /// What has to be said beside the shapes.
    #[must_use]
    pub fn question(&self) -> String {
        let example = match self.class {
            "KarrasDenoiser" => json!({"image_size": 64, "distillation": true, "num_head_channels": HEAD_CHANNELS}),
            _ => {
                json!({"image_size": 64, "noise_schedule": "cosine", "use_new_attention_order": true, "num_head_channels": HEAD_CHANNELS})
            }
        };
        let example = json!({"class": self.class, "init_kwargs": example});
        format!(
            "the shapes of OpenAI's U-Net show neither its images, nor its diffusion, nor its attention heads; give them as NET.json, e.g. {example}"
        )
    }
}

/// This network, if `tensors` have its names; a published `file` name tells what their shapes do not.
pub(crate) fn recognise(tensors: &Arc<dyn TensorSource>, file: &str) -> Recognised<FromShapes> {
    let (class, kwargs) = shapes(tensors)?;
    let mut found = FromShapes { class, kwargs, config: None };
    found.config = published(file, class, &found.kwargs).and_then(|more| found.completed(class, &more).ok());
    Some((Ok(found), Arc::clone(tensors)))
}

fn shapes(tensors: &dyn TensorSource) -> Option<(&'static str, Map<String, Value>)> {
    let dims = |name: &str| tensors.info(name).map(|i| i.dims);
    let at = |name: &str, axis: usize| dims(name)?.get(axis).copied().filter(|n| *n > 0);
    let names: BTreeSet<String> = tensors.names().into_iter().collect();
    let has = |prefix: &str| {
        names.range::<str, _>((Bound::Included(prefix), Bound::Unbounded)).next().is_some_and(|n| n.starts_with(prefix))
    };
    let class = if dims("middle_block.1.qkv.weight")?.len() == 4 { "KarrasDenoiser" } else { "GaussianDiffusion" };
    let model = at("time_embed.0.weight", 1)?;
    let count = |list: &str| {
        let index = |n: &String| n.strip_prefix(list)?.split('.').next()?.parse::<usize>().ok();
        names.iter().filter_map(index).max().filter(|last| *last < names.len()).map(|last| last + 1)
    };
    let (inputs, outputs) = (count("input_blocks.")?, count("output_blocks.")?);
    // A level ends where an output block holds a second residual block or a convolution, or an input block holds nothing.
    let ends = |what: &str| {
        (0..outputs).filter(|i| [1, 2].iter().any(|k| has(&format!("output_blocks.{i}.{k}.{what}.")))).count()
    };
    let (blocks, convs) = (ends("in_layers"), ends("conv"));
    let bare = (0..inputs).filter(|i| !has(&format!("input_blocks.{i}."))).count();
    let levels = 1 + blocks.max(convs).max(bare);
    let num_res_blocks = (inputs / levels).checked_sub(1).filter(|n| *n > 0 && inputs.is_multiple_of(levels))?;
    let first = |level: usize| format!("input_blocks.{}", level * (num_res_blocks + 1) + 1);
    let (mut mult, mut attention) = (Vec::new(), Vec::new());
    for level in 0..levels {
        let width = at(&format!("{}.0.out_layers.3.weight", first(level)), 0)?;
        mult.push(if width.is_multiple_of(model) { json!(width / model) } else { json!(ratio(width, model)) });
        if has(&format!("{}.1.qkv.", first(level))) {
            attention.push(1_u64 << level.min(32));
        }
    }
    let width = at(&format!("{}.0.out_layers.3.weight", first(0)), 0)?;
    let scale_shift = at(&format!("{}.0.emb_layers.1.weight", first(0)), 0)? == 2 * width;
    let kwargs = json!({
        "in_channels": at("input_blocks.0.0.weight", 1)?, "model_channels": model, "out_channels": at("out.2.weight", 0)?,
        "num_res_blocks": num_res_blocks, "attention_resolutions": attention, "channel_mult": mult, "conv_resample": bare == 0,
        "num_classes": at("label_emb.weight", 0), "num_head_channels": HEAD_CHANNELS, "use_scale_shift_norm": scale_shift,
        "resblock_updown": blocks > 0,
    });
    if let Value::Object(map) = kwargs { Some((class, map)) } else { None }
}

/// The multiple of `model` that, rounded down as the constructor does, is `width`.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "as the constructor computes it, of numbers of channels"
)]
fn ratio(width: usize, model: usize) -> f64 {
    let ratio = width as f64 / model as f64;
    if ((ratio * model as f64) as usize) < width { ratio.next_up() } else { ratio }
}

/// What the name of a published file adds to its shapes: `{cd,ct,edm}_{imagenet64,bedroom256,cat256}….pt` of consistency_models,
/// `{64x64,128x128,…}_diffusion….pt` and `lsun_{bedroom,cat,horse}….pt` of guided-diffusion.
fn published(stem: &str, class: &str, shapes: &Map<String, Value>) -> Option<Map<String, Value>> {
    let (start, rest) = stem.split_once('_')?;
    let next = rest.split('_').next()?;
    let (owner, image_size, more) = match (start, next) {
        ("cd" | "ct" | "edm", "imagenet64") => ("KarrasDenoiser", 64, json!({"distillation": start != "edm"})),
        ("cd" | "ct" | "edm", "bedroom256" | "cat256") => {
            ("KarrasDenoiser", 256, json!({"distillation": start != "edm"}))
        }
        ("64x64", "diffusion") => {
            ("GaussianDiffusion", 64, json!({"noise_schedule": "cosine", "use_new_attention_order": true}))
        }
        ("128x128", "diffusion") => {
            let heads = json!({"num_heads": 4, "num_head_channels": null});
            (
                "GaussianDiffusion",
                128,
                merged(heads, json!({"noise_schedule": "linear", "use_new_attention_order": false})),
            )
        }
        ("256x256" | "512x512", "diffusion") | ("lsun", "bedroom" | "cat" | "horse") => {
            let image_size = if start == "512x512" { 512 } else { 256 };
            let more = json!({"noise_schedule": "linear", "use_new_attention_order": false});
            ("GaussianDiffusion", image_size, more)
        }
        _ => return None,
    };
    // All of them attend at 32, 16 and 8 pixels.
    let rates = [32, 16, 8].map(|pixels| image_size / pixels);
    let fits = owner == class && shapes.get("attention_resolutions") == Some(&json!(rates));
    let more = merged(json!({"num_head_channels": HEAD_CHANNELS}), more);
    match merged(more, json!({"image_size": image_size})) {
        Value::Object(map) if fits => Some(map),
        _ => None,
    }
}

fn merged(mut a: Value, b: Value) -> Value {
    if let (Value::Object(a), Value::Object(b)) = (&mut a, b) {
        a.extend(b);
    }
    a
}
