//! The network of the StyleGAN2 generator.
//!
//! A modulated convolution multiplies its input by the styles s, convolves it with W, and multiplies the result by
//! 1/√(Σ (W·s)² + ε). The sum is the matrix product of s² and the sum of W² over the kernel. The result equals that of
//! weights modulated for each image, for any batch size.
//!
//! Noise is the constant noise or none. The original draws new noise for each evaluation by default, which a graph
//! cannot do.

use super::config::{BlockKind, StyleGan2Config, SynthesisKwargs};
use crate::backend::{Backend, Conv2d, Ops as _, signed};
use crate::error::{Result, config};
use crate::generators::latent::SynthesisOptions;
use crate::layers::{Filter, Linear, separable};
use crate::weights::{Init, Scope};

const SLOPE: f64 = 0.2;
const GAIN: f64 = std::f64::consts::SQRT_2;
const EPS: f64 = 1e-8;

/// A fully connected layer with the equalised learning rate of the original (multiplier `lr`) folded into its weights.
/// `gain` multiplies the result.
fn equalised<B: Backend>(
    b: &mut B,
    scope: Scope,
    [inputs, outputs]: [usize; 2],
    lr: f64,
    gain: f64,
    bias: f32,
) -> Result<Linear<B::Value>> {
    let init = Init::Normal { std: 1.0 / lr };
    let scale = lr / (inputs as f64).sqrt() * gain;
    let weight = scaled(b, &scope, "weight", &[outputs, inputs], scale, &init)?;
    let bias = scaled(b, &scope, "bias", &[outputs], lr * gain, &Init::Constant(bias))?;
    Ok(Linear::from_parts(scope, weight, Some(bias)))
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

/// The filter `scope.resample_filter` times 4 for `channels` channels. `flipped` is for use in a convolution; a
/// transposed convolution flips the filter itself.
fn strong_filter<B: Backend>(
    b: &mut B,
    scope: &Scope,
    channels: usize,
    filter: &[f64],
    flipped: bool,
) -> Result<Filter<B::Value>> {
    let mut values = resample_filter(b, scope, filter)?;
    if flipped {
        values.reverse();
    }
    Filter::build(b, scope, channels, &values, 4.0)
}

/// Divides the `n` weights of each output by their largest magnitude and by √n. Demodulation cancels this factor, and
/// the sums before it stay within the range of f16.
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
    let taps = filter.len();
    b.buffer(scope, "resample_filter", &[taps, taps], &Init::Values(separable(filter)))
}

/// Modulated convolution, noise, bias and activation.
#[derive(Debug, Clone)]
struct SynthesisLayer<V> {
    scope: Scope,
    affine: Linear<V>,
    weight: V,
    /// Σ W² over the kernel, `[outputs, inputs]`.
    energy: V,
    /// Constant noise times its strength, row-major; empty if there is none.
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
        let affine = equalised(b, scope.child("affine"), [net.w_dim, inputs], 1.0, 1.0, 1.0)?;
        let dims = [outputs, inputs, TAPS, TAPS];
        let values = b.buffer(&scope, "weight", &dims, &Init::Normal { std: 1.0 })?;
        let area = TAPS * TAPS;
        let values = normalised(&values, inputs * area);
        #[allow(clippy::cast_possible_truncation, reason = "summed in f64, kept in f32")]
        let energy = values.chunks(area).map(|k| k.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() as f32).collect();
        let energy = b.constant(&scope, "weight_energy", &[outputs, inputs], energy)?;
        let weight = if up {
            // Weights of a transposed convolution have the input axis first.
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
            Some(strong_filter(b, &scope, outputs, &cfg.resample_filter, true)?)
        } else {
            // In the original, layers without resampling have this tensor too, with the default length.
            resample_filter(b, &scope, &SynthesisKwargs::default().resample_filter)?;
            None
        };
        let (gain, clamp) = (GAIN * gain, cfg.conv_clamp.map(|c| c * gain));
        Ok(Self { scope, affine, weight, energy, noise, resolution, bias, up, inputs, outputs, gain, clamp })
    }

    fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V, w: &V, noise: bool) -> Result<V> {
        let styles = self.affine.forward(b, w)?;
        b.enter(&self.scope);
        // Styles are divided by their root mean square, so that sums stay within the range of f16. The division by the
        // norm below cancels this factor.
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

/// Modulated 1×1 convolution to colour channels, without demodulation.
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
        let affine = equalised(b, scope.child("affine"), [net.w_dim, inputs], 1.0, gain, 1.0)?;
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

/// The residual path of a block.
#[derive(Debug, Clone)]
struct Skip<V> {
    scope: Scope,
    weight: V,
    filter: Filter<V>,
}

/// The layers of one resolution.
#[derive(Debug, Clone)]
struct Block<V> {
    scope: Scope,
    constant: Option<V>,
    conv0: Option<SynthesisLayer<V>>,
    conv1: SynthesisLayer<V>,
    torgb: Option<ToRgb<V>>,
    skip: Option<Skip<V>>,
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
            Some(strong_filter(b, &scope, net.img_channels, &cfg.resample_filter, false)?)
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
            let filter = strong_filter(b, &at, outputs, &cfg.resample_filter, false)?;
            Some(Skip { scope: at, weight, filter })
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
    /// Builds the network and takes all of its tensors.
    ///
    /// # Errors
    /// Those of [`Backend::buffer`].
    pub fn build<B: Backend<Value = V>>(b: &mut B, config: &StyleGan2Config) -> Result<Self> {
        let (m, w_dim) = (&config.mapping, config.w_dim);
        let scope = Scope::root().child("mapping");
        let embedded = if config.c_dim > 0 { m.embed_features.unwrap_or(w_dim) } else { 0 };
        let embed = if config.c_dim > 0 {
            Some(equalised(b, scope.child("embed"), [config.c_dim, embedded], 1.0, 1.0, 0.0)?)
        } else {
            None
        };
        let (mut mapping, mut width) = (Vec::new(), config.z_dim + embedded);
        for i in 0..m.num_layers {
            let outputs = if i + 1 == m.num_layers { w_dim } else { m.layer_features.unwrap_or(w_dim) };
            // Leaky ReLU preserves a positive factor, so the gain of the activation is folded into the weights.
            let layer = equalised(b, scope.child(format!("fc{i}")), [width, outputs], m.lr_multiplier, GAIN, 0.0)?;
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

    /// The configuration of the generator.
    #[must_use]
    pub fn config(&self) -> &StyleGan2Config {
        &self.config
    }

    /// Maps `latents [N, z_dim]` of unit variance and one-hot `labels [N, c_dim]` to images `[N, C, R, R]`,
    /// approximately in [-1, 1].
    ///
    /// # Errors
    /// `Config` if the result is truncated and there is no average latent, or if labels are missing; `Engine` if an
    /// operation fails.
    pub fn forward<B: Backend<Value = V>>(
        &self,
        b: &mut B,
        latents: &V,
        labels: Option<&V>,
        options: &SynthesisOptions,
    ) -> Result<V> {
        let w = self.map(b, latents, labels)?;
        let pulled =
            if options.truncation_psi == 1.0 { w.clone() } else { self.truncate(b, &w, options.truncation_psi)? };
        let at = |index: usize| if options.truncation_cutoff.is_none_or(|c| index < c) { &pulled } else { &w };
        let (mut x, mut image, mut index) = (None, None, 0);
        for block in &self.blocks {
            let input = match (&block.constant, x.take()) {
                (Some(constant), _) => constant.clone(),
                (None, Some(x)) => x,
                (None, None) => latents.clone(),
            };
            let mut h = input.clone();
            if let Some(conv0) = &block.conv0 {
                h = conv0.forward(b, &h, at(index), options.noise)?;
                index += 1;
            }
            h = block.conv1.forward(b, &h, at(index), options.noise)?;
            index += 1;
            if let Some(skip) = &block.skip {
                b.enter(&skip.scope);
                let narrow = b.conv2d(&input, &skip.weight, None, Conv2d::padded(0))?;
                let side = skip.filter.upsample(b, &narrow)?;
                b.enter(&block.scope);
                h = b.add(&side, &h)?;
            }
            if let (Some(small), Some(filter)) = (image.take(), &block.upsample) {
                b.enter(&block.scope);
                image = Some(filter.upsample(b, &small)?);
            }
            if let Some(torgb) = &block.torgb {
                // The first layer of the next block takes the same latent.
                let rgb = torgb.forward(b, &h, at(index))?;
                b.enter(&block.scope);
                image = Some(match image.take() {
                    Some(sum) => b.add(&sum, &rgb)?,
                    None => rgb,
                });
            }
            x = Some(h);
        }
        image.ok_or_else(|| config("`img_resolution`: expected at least one block"))
    }

    fn map<B: Backend<Value = V>>(&self, b: &mut B, latents: &V, labels: Option<&V>) -> Result<V> {
        b.enter(&self.scope);
        let mut x = unit(b, latents)?;
        if let Some(embed) = &self.embed {
            let labels = labels.ok_or_else(|| config("the generator is conditional and requires labels"))?;
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
            return Err(config("truncation: the generator has no average latent (`w_avg_beta` is None)"));
        };
        b.enter(&self.scope.child("truncate"));
        let near = b.scale(w, psi)?;
        let rest = b.constant(&self.scope, "w_avg", &[1, average.len()], times(average, 1.0 - psi))?;
        b.add(&near, &rest)
    }
}

/// Divides each row by its root mean square.
fn unit<B: Backend>(b: &mut B, x: &B::Value) -> Result<B::Value> {
    let square = b.mul(x, x)?;
    let mean = b.mean(&square, &[1], true)?;
    let mean = b.offset(&mean, EPS)?;
    let root = b.sqrt(&mean)?;
    b.div(x, &root)
}
