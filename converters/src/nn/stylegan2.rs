//! StyleGAN2's generator (Karras et al. 2020) as StyleGAN2-ADA and StyleGAN3's repository have it: latents to images in one evaluation.
//!
//! A modulated convolution scales its input by the styles, convolves, and scales the result by 1/√(Σ (W·s)² + ε), whose sum is a matrix
//! product of s² with the sum of W² over the kernel: the same algebra as weights of their own for each image, for any batch. Noise is the
//! constant one, or none; what the original draws afresh for each call has no place in a graph.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::config::check_filter;
use crate::error::{Error, Result};
use crate::nn::backend::{Backend, Conv2d};
use crate::nn::layers::signed;
use crate::weights::{Init, Scope};

const SLOPE: f64 = 0.2;
const GAIN: f64 = std::f64::consts::SQRT_2;
const EPS: f64 = 1e-8;
const MAX_RESOLUTION: usize = 4096;
const MAX_CHANNELS: usize = 1 << 14;

/// What carries from one resolution to the next beside the activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlockKind {
    /// Nothing.
    Orig,
    /// The image so far, upsampled.
    Skip,
    /// A residual path.
    Resnet,
}

/// Arguments of the class `Generator`.
#[derive(Debug, Clone, PartialEq)]
pub struct StyleGan2Config {
    /// Length of the latents.
    pub z_dim: usize,
    /// Number of classes; 0 if unconditional.
    pub c_dim: usize,
    /// Length of the intermediate latents.
    pub w_dim: usize,
    /// Height and width of the images, pixels.
    pub img_resolution: usize,
    /// Colour channels.
    pub img_channels: usize,
    mapping: MappingKwargs,
    synthesis: SynthesisKwargs,
    init_kwargs: Map<String, Value>,
}

/// Arguments of `MappingNetwork`; what plays no part in a generated image is read and left.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct MappingKwargs {
    num_layers: usize,
    embed_features: Option<usize>,
    layer_features: Option<usize>,
    activation: String,
    lr_multiplier: f64,
    w_avg_beta: Option<f64>,
}

impl Default for MappingKwargs {
    fn default() -> Self {
        Self {
            num_layers: 8,
            embed_features: None,
            layer_features: None,
            activation: "lrelu".to_owned(),
            lr_multiplier: 0.01,
            w_avg_beta: Some(0.995),
        }
    }
}

/// Arguments of `SynthesisNetwork` and its blocks; those about half precision are read and left.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SynthesisKwargs {
    channel_base: usize,
    channel_max: usize,
    architecture: BlockKind,
    resample_filter: Vec<f64>,
    conv_clamp: Option<f64>,
    kernel_size: usize,
    use_noise: bool,
    activation: String,
    num_fp16_res: Value,
    fp16_channels_last: Value,
    fused_modconv_default: Value,
}

impl Default for SynthesisKwargs {
    fn default() -> Self {
        Self {
            channel_base: 32768,
            channel_max: 512,
            architecture: BlockKind::Skip,
            resample_filter: vec![1.0, 3.0, 3.0, 1.0],
            conv_clamp: None,
            kernel_size: 3,
            use_noise: true,
            activation: "lrelu".to_owned(),
            num_fp16_res: Value::Null,
            fp16_channels_last: Value::Null,
            fused_modconv_default: Value::Null,
        }
    }
}

/// Name of the class in checkpoints.
pub const CLASS: &str = "Generator";

fn wrong(what: String) -> Error {
    Error::Config { what }
}

impl StyleGan2Config {
    /// Reads the constructor's arguments. StyleGAN2-ADA gives those of the synthesis network as `synthesis_kwargs`; StyleGAN3's repository
    /// gives them among the others and clamps by default.
    ///
    /// # Errors
    /// `Config` for an unknown or missing argument, or a value out of range.
    pub fn new(init_kwargs: &Map<String, Value>) -> Result<Self> {
        const FLAT_CLAMP: f64 = 256.0;
        let mut left = init_kwargs.clone();
        let mut number = |name: &str, default: Option<usize>| {
            let value = left.remove(name).filter(|v| !v.is_null());
            let read = |v: Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or(v);
            match value.map(read) {
                Some(Ok(n)) if n <= MAX_CHANNELS => Ok(n),
                Some(Ok(n)) => Err(wrong(format!("`{name}`: expected at most {MAX_CHANNELS}, found {n}"))),
                Some(Err(v)) => Err(wrong(format!("`{name}`: expected a whole number, found {v}"))),
                None => default.ok_or_else(|| wrong(format!("`{name}` is missing"))),
            }
        };
        let (z_dim, c_dim, w_dim) = (number("z_dim", None)?, number("c_dim", Some(0))?, number("w_dim", None)?);
        let (img_resolution, img_channels) = (number("img_resolution", None)?, number("img_channels", None)?);
        let mapping = left.remove("mapping_kwargs").unwrap_or_else(|| Value::Object(Map::new()));
        let mapping: MappingKwargs =
            serde_json::from_value(mapping).map_err(|e| wrong(format!("`mapping_kwargs`: {e}")))?;
        let synthesis = match left.remove("synthesis_kwargs") {
            Some(nested) if left.is_empty() => nested,
            Some(_) => return Err(wrong(format!("unknown arguments of `{CLASS}`: {:?}", left.keys()))),
            None => {
                left.entry("conv_clamp").or_insert_with(|| FLAT_CLAMP.into());
                Value::Object(left)
            }
        };
        let synthesis: SynthesisKwargs =
            serde_json::from_value(synthesis).map_err(|e| wrong(format!("`synthesis_kwargs`: {e}")))?;
        let config = Self {
            z_dim,
            c_dim,
            w_dim,
            img_resolution,
            img_channels,
            mapping,
            synthesis,
            init_kwargs: init_kwargs.clone(),
        };
        config.check()?;
        Ok(config)
    }

    /// The constructor's arguments as they were read.
    #[must_use]
    pub fn init_kwargs(&self) -> Value {
        Value::Object(self.init_kwargs.clone())
    }

    fn check(&self) -> Result<()> {
        let (r, m, s) = (self.img_resolution, &self.mapping, &self.synthesis);
        if !(4..=MAX_RESOLUTION).contains(&r) || !r.is_power_of_two() {
            return Err(wrong(format!("`img_resolution`: expected a power of two, 4 to {MAX_RESOLUTION}, found {r}")));
        }
        for (name, value) in [("z_dim", self.z_dim), ("w_dim", self.w_dim), ("img_channels", self.img_channels)] {
            if value == 0 {
                return Err(wrong(format!("`{name}`: expected at least 1, found 0")));
            }
        }
        if !(1..=64).contains(&m.num_layers) {
            return Err(wrong(format!("`num_layers`: expected 1 to 64, found {}", m.num_layers)));
        }
        let features =
            [m.embed_features, m.layer_features].into_iter().flatten().chain([s.channel_max, s.channel_base / r]);
        if features.clone().any(|n| n == 0) || features.take(3).any(|n| n > MAX_CHANNELS) {
            return Err(wrong(format!("numbers of features and channels: expected 1 to {MAX_CHANNELS}")));
        }
        for (name, activation) in [("mapping", &m.activation), ("synthesis", &s.activation)] {
            if activation != "lrelu" {
                return Err(wrong(format!("`activation` of the {name} network: expected lrelu, found {activation}")));
            }
        }
        check_filter(&s.resample_filter).map_err(wrong)?;
        if s.kernel_size != 3 {
            return Err(wrong(format!("`kernel_size`: expected 3, found {}", s.kernel_size)));
        }
        Ok(())
    }

    fn channels(&self, resolution: usize) -> usize {
        (self.synthesis.channel_base / resolution).min(self.synthesis.channel_max)
    }

    fn resolutions(&self) -> impl Iterator<Item = usize> {
        let last = self.img_resolution;
        std::iter::successors(Some(4), |r| Some(2 * r)).take_while(move |r| *r <= last)
    }
}

/// How images are drawn from a generator.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drawing {
    /// Pull towards the average intermediate latent: 1 for none, 0 for the average itself.
    pub truncation_psi: f64,
    /// Number of layers, from the coarsest, whose latents are pulled; `None` for all.
    pub truncation_cutoff: Option<usize>,
    /// Whether the constant noise is added.
    pub noise: bool,
}

impl Default for Drawing {
    fn default() -> Self {
        Self { truncation_psi: 1.0, truncation_cutoff: None, noise: true }
    }
}

/// Fully connected layer with the original's equalised learning rate folded into its weights.
#[derive(Debug, Clone)]
struct Linear<V> {
    scope: Scope,
    weight: V,
    bias: V,
}

impl<V: Clone> Linear<V> {
    /// `gain` scales the result.
    fn build<B: Backend<Value = V>>(
        b: &mut B,
        scope: Scope,
        [inputs, outputs]: [usize; 2],
        lr: f64,
        gain: f64,
        bias: f32,
    ) -> Result<Self> {
        let init = Init::Normal { std: 1.0 / lr };
        let scale = lr / (inputs as f64).sqrt() * gain;
        let weight = scaled(b, &scope, "weight", &[outputs, inputs], scale, &init)?;
        let bias = scaled(b, &scope, "bias", &[outputs], lr * gain, &Init::Constant(bias))?;
        Ok(Self { scope, weight, bias })
    }

    fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<V> {
        b.enter(&self.scope);
        b.linear(x, &self.weight, Some(&self.bias))
    }
}

/// Tensor `scope.name` times `factor`, as a constant.
fn scaled<B: Backend>(
    b: &mut B,
    scope: &Scope,
    name: &str,
    dims: &[usize],
    factor: f64,
    init: &Init,
) -> Result<B::Value> {
    let values = b.buffer(scope, name, dims, init)?;
    b.constant(scope, name, dims, times(&values, factor))
}

#[allow(clippy::cast_possible_truncation, reason = "weights are f32")]
fn times(values: &[f32], factor: f64) -> Vec<f32> {
    values.iter().map(|v| (f64::from(*v) * factor) as f32).collect()
}

/// The filter `scope.resample_filter`, 4 times as strong, for each of `channels`: a depthwise kernel.
#[derive(Debug, Clone)]
struct Filter<V> {
    scope: Scope,
    kernel: V,
    channels: usize,
    pad: usize,
}

impl<V: Clone> Filter<V> {
    /// With `flipped` for a convolution; a transposed convolution flips by itself.
    fn build<B: Backend<Value = V>>(
        b: &mut B,
        scope: &Scope,
        channels: usize,
        filter: &[f64],
        flipped: bool,
    ) -> Result<Self> {
        let taps = filter.len();
        let mut values = resample_filter(b, scope, filter)?;
        if flipped {
            values.reverse();
        }
        let tiled = times(&values, 4.0).into_iter().cycle().take(channels * taps * taps).collect();
        let kernel = b.constant(scope, "resample_kernel", &[channels, 1, taps, taps], tiled)?;
        Ok(Self { scope: scope.clone(), kernel, channels, pad: taps / 2 - 1 })
    }

    /// Filters what a transposed convolution has spread.
    fn smooth<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<V> {
        b.conv2d(x, &self.kernel, None, Conv2d { stride: 1, pads: [self.pad; 4], groups: self.channels })
    }

    /// Doubles the resolution.
    fn upsample<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<V> {
        b.enter(&self.scope);
        b.conv_transpose2d(x, &self.kernel, Conv2d { stride: 2, pads: [self.pad; 4], groups: self.channels })
    }
}

/// Weights of each output divided by their largest magnitude and by √n of its n weights: demodulation cancels a factor of an output, and the sums
/// before it stay within f16's range.
#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "computed in f64, kept in f32")]
fn normalised(values: &[f32], n: usize) -> Vec<f32> {
    let one = |weights: &[f32]| {
        let peak = weights.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        let factor = if peak > 0.0 { 1.0 / (f64::from(peak) * (n as f64).sqrt()) } else { 1.0 };
        weights.iter().map(|v| (f64::from(*v) * factor) as f32).collect::<Vec<_>>()
    };
    values.chunks(n).flat_map(one).collect()
}

fn resample_filter<B: Backend>(b: &mut B, scope: &Scope, filter: &[f64]) -> Result<Vec<f32>> {
    let (taps, sum) = (filter.len(), filter.iter().sum::<f64>());
    #[allow(clippy::cast_possible_truncation, reason = "the filter is stored as f32")]
    let values = filter.iter().flat_map(|y| filter.iter().map(move |x| (y * x / (sum * sum)) as f32)).collect();
    b.buffer(scope, "resample_filter", &[taps, taps], &Init::Values(values))
}

/// Modulated convolution, noise, bias and activation.
#[derive(Debug, Clone)]
struct SynthesisLayer<V> {
    scope: Scope,
    affine: Linear<V>,
    weight: V,
    /// Σ W² over the kernel, `[outputs, inputs]`.
    energy: V,
    /// Constant noise, row-major; empty if there is none.
    noise: Vec<f32>,
    resolution: usize,
    bias: V,
    up: Option<Filter<V>>,
    inputs: usize,
    outputs: usize,
    gain: f64,
    clamp: Option<f64>,
}

impl<V: Clone> SynthesisLayer<V> {
    fn build<B: Backend<Value = V>>(
        b: &mut B,
        scope: Scope,
        [inputs, outputs]: [usize; 2],
        resolution: usize,
        up: bool,
        gain: f64,
        net: &StyleGan2Config,
    ) -> Result<Self> {
        const TAPS: usize = 3;
        let cfg = &net.synthesis;
        let affine = Linear::build(b, scope.child("affine"), [net.w_dim, inputs], 1.0, 1.0, 1.0)?;
        let dims = [outputs, inputs, TAPS, TAPS];
        let values = b.buffer(&scope, "weight", &dims, &Init::Normal { std: 1.0 })?;
        let area = TAPS * TAPS;
        let values = normalised(&values, inputs * area);
        #[allow(clippy::cast_possible_truncation, reason = "summed in f64, kept in f32")]
        let energy = values.chunks(area).map(|k| k.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() as f32).collect();
        let energy = b.constant(&scope, "weight_energy", &[outputs, inputs], energy)?;
        let weight = if up {
            // A transposed convolution has its inputs first.
            let kernel = |i: usize, o: usize| values[(o * inputs + i) * area..][..area].iter().copied();
            let swapped = (0..inputs).flat_map(|i| (0..outputs).flat_map(move |o| kernel(i, o))).collect();
            b.constant(&scope, "weight", &[inputs, outputs, TAPS, TAPS], swapped)?
        } else {
            b.constant(&scope, "weight", &dims, values)?
        };
        let noise = if cfg.use_noise {
            let square = [resolution, resolution];
            let constant = b.buffer(&scope, "noise_const", &square, &Init::Normal { std: 1.0 })?;
            let strength = b.buffer(&scope, "noise_strength", &[], &Init::Constant(0.0))?;
            times(&constant, strength.first().copied().unwrap_or(0.0).into())
        } else {
            Vec::new()
        };
        let bias = b.buffer(&scope, "bias", &[outputs], &Init::Constant(0.0))?;
        let bias = b.constant(&scope, "bias", &[1, outputs, 1, 1], bias)?;
        let up = if up {
            Some(Filter::build(b, &scope, outputs, &cfg.resample_filter, true)?)
        } else {
            // The class has one of its default length even where it resamples nothing.
            resample_filter(b, &scope, &SynthesisKwargs::default().resample_filter)?;
            None
        };
        let (gain, clamp) = (GAIN * gain, cfg.conv_clamp.map(|c| c * gain));
        Ok(Self { scope, affine, weight, energy, noise, resolution, bias, up, inputs, outputs, gain, clamp })
    }

    fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V, w: &V, noise: bool) -> Result<V> {
        let styles = self.affine.forward(b, w)?;
        b.enter(&self.scope);
        // Their size cancels against the norm below; at one, sums stay within f16's range.
        let square = b.mul(&styles, &styles)?;
        let mean = b.mean(&square, &[1], true)?;
        let mean = b.offset(&mean, EPS)?;
        let size = b.sqrt(&mean)?;
        let styles = b.div(&styles, &size)?;
        let square = b.mul(&styles, &styles)?;
        let energy = b.linear(&square, &self.energy, None)?;
        let energy = b.offset(&energy, EPS)?;
        let norm = b.sqrt(&energy)?;
        let norm = b.reshape(&norm, &[-1, signed(self.outputs), 1, 1])?;
        let styles = b.reshape(&styles, &[-1, signed(self.inputs), 1, 1])?;
        let x = b.mul(x, &styles)?;
        let x = match &self.up {
            None => b.conv2d(&x, &self.weight, None, Conv2d::padded(1))?,
            Some(filter) => {
                let spread = b.conv_transpose2d(&x, &self.weight, Conv2d { stride: 2, pads: [0; 4], groups: 1 })?;
                filter.smooth(b, &spread)?
            }
        };
        let mut x = b.div(&x, &norm)?;
        if noise && !self.noise.is_empty() {
            let dims = [1, 1, self.resolution, self.resolution];
            let noise = b.constant(&self.scope, "noise", &dims, self.noise.clone())?;
            x = b.add(&x, &noise)?;
        }
        let x = b.add(&x, &self.bias)?;
        let x = b.leaky_relu(&x, SLOPE)?;
        let x = b.scale(&x, self.gain)?;
        limit(b, x, self.clamp)
    }
}

fn limit<B: Backend>(b: &mut B, x: B::Value, clamp: Option<f64>) -> Result<B::Value> {
    clamp.map_or(Ok(x.clone()), |c| b.clamp(&x, -c, c))
}

/// Modulated 1×1 convolution to colours.
#[derive(Debug, Clone)]
struct ToRgb<V> {
    scope: Scope,
    affine: Linear<V>,
    weight: V,
    bias: V,
    inputs: usize,
    clamp: Option<f64>,
}

impl<V: Clone> ToRgb<V> {
    fn build<B: Backend<Value = V>>(b: &mut B, scope: Scope, inputs: usize, net: &StyleGan2Config) -> Result<Self> {
        let gain = 1.0 / (inputs as f64).sqrt();
        let affine = Linear::build(b, scope.child("affine"), [net.w_dim, inputs], 1.0, gain, 1.0)?;
        let dims = [net.img_channels, inputs, 1, 1];
        let weight = scaled(b, &scope, "weight", &dims, 1.0, &Init::Normal { std: 1.0 })?;
        let bias = scaled(b, &scope, "bias", &[net.img_channels], 1.0, &Init::Constant(0.0))?;
        Ok(Self { scope, affine, weight, bias, inputs, clamp: net.synthesis.conv_clamp })
    }

    fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V, w: &V) -> Result<V> {
        let styles = self.affine.forward(b, w)?;
        b.enter(&self.scope);
        let styles = b.reshape(&styles, &[-1, signed(self.inputs), 1, 1])?;
        let x = b.mul(x, &styles)?;
        let rgb = b.conv2d(&x, &self.weight, Some(&self.bias), Conv2d::padded(0))?;
        limit(b, rgb, self.clamp)
    }
}

/// One resolution.
#[derive(Debug, Clone)]
struct Block<V> {
    scope: Scope,
    constant: Option<V>,
    conv0: Option<SynthesisLayer<V>>,
    conv1: SynthesisLayer<V>,
    torgb: Option<ToRgb<V>>,
    skip: Option<(V, Filter<V>)>,
    upsample: Option<Filter<V>>,
}

impl<V: Clone> Block<V> {
    fn build<B: Backend<Value = V>>(b: &mut B, scope: Scope, resolution: usize, net: &StyleGan2Config) -> Result<Self> {
        let cfg = &net.synthesis;
        let (first, last) = (resolution == 4, resolution == net.img_resolution);
        let outputs = net.channels(resolution);
        let inputs = if first { 0 } else { net.channels(resolution / 2) };
        let residual = !first && cfg.architecture == BlockKind::Resnet;
        let upsample = if first || cfg.architecture != BlockKind::Skip {
            resample_filter(b, &scope, &cfg.resample_filter)?;
            None
        } else {
            Some(Filter::build(b, &scope, net.img_channels, &cfg.resample_filter, false)?)
        };
        let constant = if first {
            let values = b.buffer(&scope, "const", &[outputs, 4, 4], &Init::Normal { std: 1.0 })?;
            Some(b.constant(&scope, "const", &[1, outputs, 4, 4], values)?)
        } else {
            None
        };
        let conv0 = if first {
            None
        } else {
            Some(SynthesisLayer::build(b, scope.child("conv0"), [inputs, outputs], resolution, true, 1.0, net)?)
        };
        let half = std::f64::consts::FRAC_1_SQRT_2;
        let gain = if residual { half } else { 1.0 };
        let conv1 = SynthesisLayer::build(b, scope.child("conv1"), [outputs, outputs], resolution, false, gain, net)?;
        let torgb = if last || cfg.architecture == BlockKind::Skip {
            Some(ToRgb::build(b, scope.child("torgb"), outputs, net)?)
        } else {
            None
        };
        let skip = if residual {
            let at = scope.child("skip");
            let scale = half / (inputs as f64).sqrt();
            let weight = scaled(b, &at, "weight", &[outputs, inputs, 1, 1], scale, &Init::Normal { std: 1.0 })?;
            Some((weight, Filter::build(b, &at, outputs, &cfg.resample_filter, false)?))
        } else {
            None
        };
        Ok(Self { scope, constant, conv0, conv1, torgb, skip, upsample })
    }
}

/// The generator.
#[derive(Debug, Clone)]
pub struct StyleGan2<V> {
    config: StyleGan2Config,
    scope: Scope,
    embed: Option<Linear<V>>,
    mapping: Vec<Linear<V>>,
    w_avg: Option<Vec<f32>>,
    blocks: Vec<Block<V>>,
}

impl<V: Clone> StyleGan2<V> {
    /// Takes all tensors.
    ///
    /// # Errors
    /// Those of [`Backend::buffer`].
    pub fn build<B: Backend<Value = V>>(b: &mut B, config: &StyleGan2Config) -> Result<Self> {
        let (m, w_dim) = (&config.mapping, config.w_dim);
        let scope = Scope::root().child("mapping");
        let embedded = if config.c_dim > 0 { m.embed_features.unwrap_or(w_dim) } else { 0 };
        let embed = if config.c_dim > 0 {
            Some(Linear::build(b, scope.child("embed"), [config.c_dim, embedded], 1.0, 1.0, 0.0)?)
        } else {
            None
        };
        let (mut mapping, mut width) = (Vec::new(), config.z_dim + embedded);
        for i in 0..m.num_layers {
            let outputs = if i + 1 == m.num_layers { w_dim } else { m.layer_features.unwrap_or(w_dim) };
            // Leaky ReLU lets a factor through.
            let layer = Linear::build(b, scope.child(format!("fc{i}")), [width, outputs], m.lr_multiplier, GAIN, 0.0)?;
            mapping.push(layer);
            width = outputs;
        }
        let w_avg = if m.w_avg_beta.is_some() {
            Some(b.buffer(&scope, "w_avg", &[w_dim], &Init::Constant(0.0))?)
        } else {
            None
        };
        let synthesis = Scope::root().child("synthesis");
        let at = |r: usize| synthesis.child(format!("b{r}"));
        let blocks = config.resolutions().map(|r| Block::build(b, at(r), r, config)).collect::<Result<_>>()?;
        Ok(Self { config: config.clone(), scope, embed, mapping, w_avg, blocks })
    }

    /// The configuration it was built from.
    #[must_use]
    pub fn config(&self) -> &StyleGan2Config {
        &self.config
    }

    /// `latents [N, z_dim]` of unit variance, `labels [N, c_dim]` one-hot -> images `[N, C, R, R]` about [-1, 1].
    ///
    /// # Errors
    /// `Config` if there is no average to truncate towards, or labels are missing; `Engine`.
    pub fn forward<B: Backend<Value = V>>(
        &self,
        b: &mut B,
        latents: &V,
        labels: Option<&V>,
        drawing: &Drawing,
    ) -> Result<V> {
        let w = self.map(b, latents, labels)?;
        let pulled =
            if drawing.truncation_psi == 1.0 { w.clone() } else { self.truncate(b, &w, drawing.truncation_psi)? };
        let at = |index: usize| if drawing.truncation_cutoff.is_none_or(|c| index < c) { &pulled } else { &w };
        let (mut x, mut image, mut index) = (None, None, 0);
        for block in &self.blocks {
            let input = match (&block.constant, x.take()) {
                (Some(constant), _) => constant.clone(),
                (None, Some(x)) => x,
                (None, None) => latents.clone(),
            };
            let mut h = input.clone();
            if let Some(conv0) = &block.conv0 {
                h = conv0.forward(b, &h, at(index), drawing.noise)?;
                index += 1;
            }
            h = block.conv1.forward(b, &h, at(index), drawing.noise)?;
            index += 1;
            if let Some((weight, filter)) = &block.skip {
                b.enter(&filter.scope);
                let narrow = b.conv2d(&input, weight, None, Conv2d::padded(0))?;
                let side = filter.upsample(b, &narrow)?;
                b.enter(&block.scope);
                h = b.add(&side, &h)?;
            }
            if let (Some(small), Some(filter)) = (image.take(), &block.upsample) {
                image = Some(filter.upsample(b, &small)?);
            }
            if let Some(torgb) = &block.torgb {
                // The next layer takes the same latent.
                let rgb = torgb.forward(b, &h, at(index))?;
                b.enter(&block.scope);
                image = Some(match image.take() {
                    Some(sum) => b.add(&sum, &rgb)?,
                    None => rgb,
                });
            }
            x = Some(h);
        }
        image.ok_or_else(|| wrong("`img_resolution`: there is no block".to_owned()))
    }

    fn map<B: Backend<Value = V>>(&self, b: &mut B, latents: &V, labels: Option<&V>) -> Result<V> {
        b.enter(&self.scope);
        let mut x = unit(b, latents)?;
        if let Some(embed) = &self.embed {
            let labels = labels.ok_or_else(|| wrong("the generator is conditional: labels are missing".to_owned()))?;
            let y = embed.forward(b, labels)?;
            b.enter(&self.scope);
            let y = unit(b, &y)?;
            x = b.concat(&[x, y], 1)?;
        }
        for layer in &self.mapping {
            x = layer.forward(b, &x)?;
            x = b.leaky_relu(&x, SLOPE)?;
        }
        Ok(x)
    }

    fn truncate<B: Backend<Value = V>>(&self, b: &mut B, w: &V, psi: f64) -> Result<V> {
        let Some(average) = &self.w_avg else {
            return Err(wrong("truncation: the generator has no average latent (`w_avg_beta` is None)".to_owned()));
        };
        b.enter(&self.scope.child("truncate"));
        let near = b.scale(w, psi)?;
        let rest = b.constant(&self.scope, "w_avg", &[1, average.len()], times(average, 1.0 - psi))?;
        b.add(&near, &rest)
    }
}

/// Each row over the root of its mean square.
fn unit<B: Backend>(b: &mut B, x: &B::Value) -> Result<B::Value> {
    let square = b.mul(x, x)?;
    let mean = b.mean(&square, &[1], true)?;
    let mean = b.offset(&mean, EPS)?;
    let root = b.sqrt(&mean)?;
    b.div(x, &root)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::nn::OnnxBackend;
    use crate::weights::Weights;

    fn config(kwargs: &Value) -> Result<StyleGan2Config> {
        StyleGan2Config::new(kwargs.as_object().unwrap())
    }

    #[test]
    fn ffhq_has_its_published_size() {
        let ffhq = json!({"z_dim": 512, "c_dim": 0, "w_dim": 512, "img_resolution": 1024, "img_channels": 3, "mapping_kwargs": {},
            "synthesis_kwargs": {"channel_base": 32768, "channel_max": 512, "num_fp16_res": 4, "conv_clamp": 256}});
        let mut b = OnnxBackend::new("x", Weights::initialised(0));
        StyleGan2::build(&mut b, &config(&ffhq).unwrap()).unwrap();
        let parameters = |(name, dims): (&str, &[usize])| {
            let buffer = ["resample_filter", "noise_const", "w_avg"].iter().any(|b| name.ends_with(b));
            if buffer { 0 } else { dims.iter().product::<usize>() }
        };
        assert_eq!(b.taken().map(parameters).sum::<usize>(), 30_370_060);
    }

    #[test]
    fn the_two_repositories_give_arguments_in_their_own_way() {
        let base = json!({"z_dim": 8, "c_dim": 0, "w_dim": 8, "img_resolution": 8, "img_channels": 3});
        let with = |more: Value| {
            let mut all = base.clone();
            all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            config(&all)
        };
        let nested = with(json!({"synthesis_kwargs": {"channel_base": 64}})).unwrap();
        assert_eq!((nested.synthesis.conv_clamp, nested.channels(8)), (None, 8));
        let flat = with(json!({"channel_base": 64, "fused_modconv_default": "inference_only"})).unwrap();
        assert_eq!((flat.synthesis.conv_clamp, flat.channels(8)), (Some(256.0), 8));
        let fails = |more: Value| with(more).unwrap_err().to_string();
        assert!(fails(json!({"synthesis_kwargs": {"chanel_base": 64}})).contains("chanel_base"));
        assert!(fails(json!({"synthesis_kwargs": {}, "other": 1})).contains("other"));
        assert!(fails(json!({"img_resolution": 12})).contains("power of two"));
        assert!(fails(json!({"synthesis_kwargs": {"activation": "relu"}})).contains("expected lrelu"));
    }
}
