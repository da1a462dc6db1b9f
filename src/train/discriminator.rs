//! Projected discriminator (Sauer et al. 2021) as D2O uses it: frozen features, frozen random mixing, trained multi-scale heads.

use d2o_converters::backend::{Backend as _, Conv2d, Ops as _, Sampling};
use d2o_converters::error::Result;
use d2o_converters::extractors::efficientnet_lite::{LiteTrunk, TAP_CHANNELS};
use d2o_converters::weights::{Init, Scope};

use super::libtorch::{LibTorch, Value, int};

/// Name of the backbone in tensor paths.
pub const BACKBONE: &str = "tf_efficientnet_lite0";
/// Feature resolution of the original recipe, whose nominal sizes are those of 256 pixels.
pub const RECIPE_RESOLUTION: usize = 224;

const NOMINAL_AT_224: usize = 256;
const WIDTH: usize = 64;
const SCALES: usize = 4;
const CLASS_MAP: usize = 64;
const EMBEDDINGS: usize = 1000;
const EMBEDDING: usize = 320;

/// Sizes of the discriminator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiscriminatorConfig {
    /// Height and width the images are resized to before the backbone, pixels; a multiple of 32 (224 in the recipe).
    pub feature_resolution: usize,
    /// Whether the heads see class labels.
    pub conditional: bool,
}

impl DiscriminatorConfig {
    /// Nominal sizes of the four mixed maps, from which the depth of the heads follows. They are those of a 256-pixel image at
    /// the recipe's 224 and those of the image itself otherwise.
    #[must_use]
    pub fn nominal_sizes(&self) -> [usize; SCALES] {
        let r = if self.feature_resolution == RECIPE_RESOLUTION { NOMINAL_AT_224 } else { self.feature_resolution };
        [r / 2, r / 4, r / 8, r / 16]
    }
}

/// Frozen part: backbone, cross-channel and cross-scale mixing.
#[derive(Debug, Clone)]
pub struct Projector {
    resolution: usize,
    scope: Scope,
    trunk: LiteTrunk<Value>,
    channel_mixing: Vec<Pointwise>,
    scale_mixing: Vec<Pointwise>,
}

#[derive(Debug, Clone)]
struct Pointwise {
    scope: Scope,
    weight: Value,
    bias: Value,
}

impl Pointwise {
    fn build(b: &mut LibTorch, scope: Scope, inputs: usize, outputs: usize) -> Result<Self> {
        let init = Init::torch_default(inputs);
        let weight = b.state(&scope, "weight", &[outputs, inputs, 1, 1], &init)?;
        let bias = b.state(&scope, "bias", &[outputs], &init)?;
        Ok(Self { scope, weight, bias })
    }

    fn forward(&self, b: &mut LibTorch, x: &Value) -> Result<Value> {
        b.enter(&self.scope);
        b.conv2d(x, &self.weight, Some(&self.bias), Conv2d::padded(0))
    }
}

impl Projector {
    /// Takes the mixing convolutions below `feature_networks.<backbone>.scratch`; `trunk` brings weights of its own.
    ///
    /// # Errors
    /// Those of [`LibTorch::state`].
    pub fn build(b: &mut LibTorch, cfg: &DiscriminatorConfig, trunk: LiteTrunk<Value>) -> Result<Self> {
        let bone = Scope::root().child("feature_networks").child(BACKBONE);
        let scratch = bone.child("scratch");
        let mut channel_mixing = Vec::new();
        for (i, inputs) in TAP_CHANNELS.into_iter().enumerate() {
            channel_mixing.push(Pointwise::build(b, scratch.child(format!("layer{i}_ccm")), inputs, WIDTH << i)?);
        }
        let mut scale_mixing = Vec::new();
        for i in 0..SCALES {
            let scope = scratch.child(format!("layer{i}_csm")).child("out_conv");
            let inputs = WIDTH << i;
            scale_mixing.push(Pointwise::build(b, scope, inputs, if i == 0 { inputs } else { inputs / 2 })?);
        }
        Ok(Self { resolution: cfg.feature_resolution, scope: bone, trunk, channel_mixing, scale_mixing })
    }

    /// Images `[N, 3, H, W]` in [-1, 1] -> four maps with 64, 64, 128 and 256 channels, finest first.
    ///
    /// # Errors
    /// `Engine`.
    pub fn forward(&self, b: &mut LibTorch, x: &Value) -> Result<Vec<Value>> {
        b.enter(&self.scope);
        // Lite0's normalisation with mean and deviation 0.5 after (x + 1)/2 is the identity.
        let x = if b.dim(x, 2) == Some(self.resolution) && b.dim(x, 3) == Some(self.resolution) {
            x.clone()
        } else {
            b.resize_bilinear(x, [self.resolution; 2], Sampling::HalfPixel)?
        };
        let taps = self.trunk.taps(b, &x)?;
        let mut maps = Vec::with_capacity(SCALES);
        let mut coarser: Option<Value> = None;
        for i in (0..SCALES).rev() {
            let mixed = self.channel_mixing[i].forward(b, &taps[i])?;
            let sum = match &coarser {
                Some(c) => b.add(c, &mixed)?,
                None => mixed,
            };
            b.enter(&self.scale_mixing[i].scope);
            let size = [2 * b.dim(&sum, 2).unwrap_or(0), 2 * b.dim(&sum, 3).unwrap_or(0)];
            let up = b.resize_bilinear(&sum, size, Sampling::AlignCorners)?;
            let map = self.scale_mixing[i].forward(b, &up)?;
            maps.push(map.clone());
            coarser = Some(map);
        }
        maps.reverse();
        Ok(maps)
    }
}

/// Trained part: one small discriminator on each map.
#[derive(Debug, Clone)]
pub struct MultiScaleHeads {
    heads: Vec<Head>,
}

#[derive(Debug, Clone)]
struct Head {
    downs: Vec<Down>,
    last: NormedConv,
    classes: Option<ClassMap>,
}

#[derive(Debug, Clone)]
struct Down {
    conv: NormedConv,
    weight: Value,
    bias: Value,
}

#[derive(Debug, Clone)]
struct ClassMap {
    scope: Scope,
    embedding: Value,
    weight: Value,
    bias: Value,
}

/// Spectrally normalised convolution: `weight_orig`, `weight_u [out]`, `weight_v [in·k·k]`, optional `bias`.
#[derive(Debug, Clone)]
struct NormedConv {
    scope: Scope,
    weight: Value,
    u: Value,
    v: Value,
    bias: Option<Value>,
    options: Conv2d,
}

impl NormedConv {
    fn build(
        b: &mut LibTorch,
        scope: Scope,
        inputs: usize,
        outputs: usize,
        kernel: usize,
        bias: bool,
        options: Conv2d,
    ) -> Result<Self> {
        let fan_in = inputs * kernel * kernel;
        let init = Init::torch_default(fan_in);
        let bias = if bias { Some(b.param(&scope, "bias", &[outputs], &init)?) } else { None };
        let weight = b.param(&scope, "weight_orig", &[outputs, inputs, kernel, kernel], &init)?;
        let unit = |n: usize| Init::Normal { std: 1.0 / (n as f64).sqrt() };
        let u = b.state(&scope, "weight_u", &[outputs], &unit(outputs))?;
        let v = b.state(&scope, "weight_v", &[fan_in], &unit(fan_in))?;
        Ok(Self { scope, weight, u, v, bias, options })
    }

    fn forward(&self, b: &mut LibTorch, x: &Value) -> Result<Value> {
        b.enter(&self.scope);
        let w = b.spectral_norm(&self.weight, &self.u, &self.v)?;
        b.conv2d(x, &w, self.bias.as_ref(), self.options)
    }
}

impl MultiScaleHeads {
    /// Takes `discriminators.<backbone>.mini_discs.*`; `embeddings` are the initial rows `[1000, 320]` of a conditional
    /// discriminator's class table, row-major.
    ///
    /// # Errors
    /// Those of [`d2o_converters::backend::Backend::param`].
    pub fn build(b: &mut LibTorch, cfg: &DiscriminatorConfig, embeddings: Option<&[f32]>) -> Result<Self> {
        const MAP_CHANNELS: [usize; SCALES] = [WIDTH, WIDTH, 2 * WIDTH, 4 * WIDTH];
        let sizes = cfg.nominal_sizes();
        let end = sizes[SCALES - 1].min(8);
        let kernel = if end >= 8 { 4 } else { (end / 2).max(1) };
        let discs = Scope::root().child("discriminators").child(BACKBONE).child("mini_discs");
        let mut heads = Vec::new();
        for (k, (inputs, start)) in MAP_CHANNELS.into_iter().zip(sizes).enumerate() {
            let scope = discs.child(k);
            let mut size = nearest_size(start);
            let (mut downs, mut width) = (Vec::new(), inputs);
            while size > end {
                size /= 2;
                let layer = scope.child("main").child(downs.len()).child("main");
                let outputs = table_width(size);
                let options = Conv2d { stride: 2, pads: [1; 4], groups: 1 };
                let conv = NormedConv::build(b, layer.child(0), width, outputs, 4, true, options)?;
                let norm = layer.child(1);
                let weight = b.param(&norm, "weight", &[outputs], &Init::Constant(1.0))?;
                let bias = b.param(&norm, "bias", &[outputs], &Init::Constant(0.0))?;
                downs.push(Down { conv, weight, bias });
                width = outputs;
            }
            let options = Conv2d::padded(0);
            let (last, classes) = if cfg.conditional {
                let last = NormedConv::build(b, scope.child("cls"), width, CLASS_MAP, kernel, false, options)?;
                (last, Some(ClassMap::build(b, scope, embeddings)?))
            } else {
                let layer = scope.child("main").child(downs.len());
                (NormedConv::build(b, layer, width, 1, kernel, false, options)?, None)
            };
            heads.push(Head { downs, last, classes });
        }
        Ok(Self { heads })
    }

    /// Maps of [`Projector::forward`], `labels [N, label_dim]` one-hot for a conditional one -> logits `[N, L]`, head 0 first.
    ///
    /// # Errors
    /// `Engine`.
    pub fn forward(&self, b: &mut LibTorch, maps: &[Value], labels: Option<&Value>) -> Result<Value> {
        let mut logits = Vec::new();
        for (head, map) in self.heads.iter().zip(maps) {
            let mut x = map.clone();
            for down in &head.downs {
                x = down.conv.forward(b, &x)?;
                x = b.batch_norm(&x, 1e-5, &down.weight, &down.bias)?;
                x = b.leaky_relu(&x, 0.2)?;
            }
            x = head.last.forward(b, &x)?;
            if let (Some(classes), Some(labels)) = (&head.classes, labels) {
                x = classes.forward(b, &x, labels)?;
            }
            let count = b.dim(&x, 2).unwrap_or(0) * b.dim(&x, 3).unwrap_or(0);
            logits.push(b.reshape(&x, &[-1, int(count)])?);
        }
        b.concat(&logits, 1)
    }
}

impl ClassMap {
    fn build(b: &mut LibTorch, scope: Scope, embeddings: Option<&[f32]>) -> Result<Self> {
        let rows = match embeddings {
            Some(values) => Init::Values(values.to_vec()),
            None => Init::Normal { std: 1.0 },
        };
        let embedding = b.param(&scope.child("embed"), "weight", &[EMBEDDINGS, EMBEDDING], &rows)?;
        let proj = scope.child("embed_proj");
        let weight = b.param(&proj, "weight", &[CLASS_MAP, EMBEDDING], &Init::Normal { std: 1.0 })?;
        let bias = b.param(&proj, "bias", &[CLASS_MAP], &Init::Constant(0.0))?;
        Ok(Self { scope, embedding, weight, bias })
    }

    /// Σ_c x_c·m_c / 8 with m = √2·lrelu(E·Wᵀ/√320 + b); E is the row of the image's class.
    fn forward(&self, b: &mut LibTorch, x: &Value, labels: &Value) -> Result<Value> {
        b.enter(&self.scope);
        let classes = b.dim(labels, 1).unwrap_or(0);
        let rows = b.slice(&self.embedding, 0, 0, classes)?;
        let rows = b.matmul(labels, &rows)?;
        let weight = b.scale(&self.weight, 1.0 / (EMBEDDING as f64).sqrt())?;
        let map = b.linear(&rows, &weight, Some(&self.bias))?;
        let map = b.leaky_relu(&map, 0.2)?;
        let map = b.scale(&map, std::f64::consts::SQRT_2)?;
        let map = b.reshape(&map, &[-1, int(CLASS_MAP), 1, 1])?;
        let product = b.mul(x, &map)?;
        let mean = b.mean(&product, &[1], true)?;
        b.scale(&mean, (CLASS_MAP as f64).sqrt())
    }
}

/// Channels of a head at a nominal size (the width table of MiDaS, as Projected GAN has it).
fn table_width(size: usize) -> usize {
    const TABLE: [(usize, usize); 11] = [
        (1, 2048),
        (2, 1024),
        (4, 512),
        (8, 512),
        (16, 256),
        (32, 128),
        (64, 64),
        (128, 64),
        (256, 32),
        (512, 16),
        (1024, 8),
    ];
    TABLE.iter().find(|(s, _)| *s == size).map_or(8, |(_, w)| *w)
}

/// The power of two from 1 to 1024 nearest to `size`, the smaller one of two equally near.
fn nearest_size(size: usize) -> usize {
    (0..=10).map(|e| 1_usize << e).min_by_key(|p| p.abs_diff(size)).unwrap_or(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nominal_sizes_follow_the_recipe_at_224_only() {
        let at = |feature_resolution| DiscriminatorConfig { feature_resolution, conditional: false }.nominal_sizes();
        assert_eq!(at(224), [128, 64, 32, 16]);
        assert_eq!(at(64), [32, 16, 8, 4]);
        assert_eq!(nearest_size(112), 128);
        assert_eq!(nearest_size(24), 16);
    }
}
