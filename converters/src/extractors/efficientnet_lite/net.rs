//! The network EfficientNet-Lite0.

use crate::backend::{Backend, signed};
use crate::error::Result;
use crate::extractors::Named;
use crate::extractors::conv_trunk::{Activation, BlockSpec, ConvTrunk, LayerSpec, NormSpec, Statistics};
use crate::layers::{LayerInit, Linear};
use crate::weights::Scope;

/// Channels of the four taps, at 1/4, 1/8, 1/16 and 1/32 of the input.
pub const TAP_CHANNELS: [usize; 4] = [24, 40, 112, 320];
/// Height and width of the training images, pixels.
pub const INPUT_SIZE: usize = 224;
/// Length of the pooled features.
pub const FEATURES: usize = 1280;
/// Number of ImageNet classes.
pub const CLASSES: usize = 1000;
/// ε of the batch norms.
const BN_EPS: f64 = 1e-3;

const STEM: usize = 32;

/// The configuration, of which there is only one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lite0;

pub(super) struct Stage {
    pub(super) blocks: usize,
    kernel: usize,
    stride: usize,
    expansion: usize,
    channels: usize,
}

pub(super) const STAGES: [Stage; 7] = [
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

/// The blocks below `scope` up to the last tap, in order, for images normalised to [-1, 1] (mean and standard deviation
/// 0.5). The four taps have no activation: `[N, TAP_CHANNELS[i], S/2^(i+2), S/2^(i+2)]` for images of S×S pixels.
#[must_use]
pub fn trunk(scope: &Scope) -> Vec<BlockSpec> {
    let stem = layer(scope, "conv_stem", "bn1", [3, STEM], 3, 2, true);
    let block =
        |scope: &Scope, layers| BlockSpec { scope: scope.clone(), pool: false, layers, residual: false, tap: false };
    let mut blocks = vec![block(scope, vec![stem])];
    let mut width = STEM;
    for (s, stage) in STAGES.iter().enumerate() {
        for i in 0..stage.blocks {
            let at = scope.child("blocks").child(s).child(i);
            let stride = if i == 0 { stage.stride } else { 1 };
            let (wide, out) = (width * stage.expansion, stage.channels);
            let depthwise = |norm| LayerSpec {
                depthwise: true,
                init_std: (2.0 / (stage.kernel * stage.kernel) as f64).sqrt(),
                ..layer(&at, "conv_dw", norm, [wide, wide], stage.kernel, stride, true)
            };
            let layers = if stage.expansion == 1 {
                vec![depthwise("bn1"), layer(&at, "conv_pw", "bn2", [wide, out], 1, 1, false)]
            } else {
                vec![
                    layer(&at, "conv_pw", "bn1", [width, wide], 1, 1, true),
                    depthwise("bn2"),
                    layer(&at, "conv_pwl", "bn3", [wide, out], 1, 1, false),
                ]
            };
            let tap = TAP_STAGES.contains(&s) && i + 1 == stage.blocks;
            blocks.push(BlockSpec { residual: stride == 1 && width == out, tap, ..block(&at, layers) });
            width = out;
        }
    }
    blocks
}

fn layer(
    scope: &Scope,
    conv: &str,
    norm: &str,
    [inputs, outputs]: [usize; 2],
    kernel: usize,
    stride: usize,
    relu6: bool,
) -> LayerSpec {
    LayerSpec {
        conv: scope.child(conv),
        bias: false,
        norm: Some(NormSpec { scope: scope.child(norm), eps: BN_EPS }),
        inputs,
        outputs,
        kernel,
        stride,
        depthwise: false,
        activation: if relu6 { Activation::Relu6 } else { Activation::Linear },
        init_std: (2.0 / (inputs * kernel * kernel) as f64).sqrt(),
    }
}

/// The network with its classifier.
#[derive(Debug, Clone)]
pub struct EfficientNetLite0<V> {
    /// The blocks up to and including `conv_head`. Its output is the last tap.
    trunk: ConvTrunk<V>,
    classifier: Linear<V>,
}

impl<V: Clone> EfficientNetLite0<V> {
    /// Builds the network and takes all of its tensors below `scope`.
    ///
    /// # Errors
    /// Those of [`Backend::buffer`].
    pub fn build<B: Backend<Value = V>>(b: &mut B, scope: &Scope) -> Result<Self> {
        let head = layer(scope, "conv_head", "bn2", [TAP_CHANNELS[3], FEATURES], 1, 1, true);
        let head = BlockSpec { scope: scope.clone(), pool: false, layers: vec![head], residual: false, tap: true };
        let blocks = trunk(scope).into_iter().chain([head]).collect();
        let trunk = ConvTrunk::build(b, blocks, &Statistics::new())?;
        let classifier = Linear::build(b, scope.child("classifier"), FEATURES, CLASSES, true, LayerInit::TORCH)?;
        Ok(Self { trunk, classifier })
    }

    /// Maps `x [N, 3, S, S]` in [-1, 1] to `features [N, 1280]` and `logits [N, 1000]`. Taps are not returned.
    ///
    /// # Errors
    /// `Engine` if an operation fails.
    pub fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V, _taps: bool) -> Result<Named<V>> {
        let taps = self.trunk.taps(b, x)?;
        let features = b.mean(taps.last().unwrap_or(x), &[2, 3], false)?;
        let logits = self.classifier.forward(b, &features)?;
        let features = b.reshape(&features, &[-1, signed(FEATURES)])?;
        Ok(vec![("features".to_owned(), features), ("logits".to_owned(), logits)])
    }
}
