//! The network. Batch norms (eps 1e-3) are folded in f64.

use crate::backend::{Backend, Conv2d, Ops as _, signed};
use crate::error::Result;
use crate::extractors::Named;
use crate::layers::{BatchNorm, FoldedConv, LayerInit, Linear};
use crate::weights::{Init, Scope};

/// Channels of the four taps, at 1/4, 1/8, 1/16 and 1/32 of the input.
pub const TAP_CHANNELS: [usize; 4] = [24, 40, 112, 320];
/// Height and width it was trained at, pixels.
pub const INPUT_SIZE: usize = 224;
/// Length of the pooled features.
pub const FEATURES: usize = 1280;
/// Number of ImageNet classes.
pub const CLASSES: usize = 1000;
/// ε of its batch norms.
pub const BN_EPS: f64 = 1e-3;

const STEM: usize = 32;

/// The configuration: there is one.
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

/// A convolution without bias, its batch norm, and an optional ReLU6.
#[derive(Debug, Clone)]
pub struct LayerSpec {
    /// Scope of the convolution; key `weight [outputs, inputs per group, kernel, kernel]`.
    pub conv: Scope,
    /// Scope of the batch norm; keys `weight`, `bias`, `running_mean`, `running_var`, each `[outputs]`.
    pub norm: Scope,
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Kernel size.
    pub kernel: usize,
    /// Stride.
    pub stride: usize,
    /// Whether each channel is a group of its own.
    pub depthwise: bool,
    /// Whether ReLU6 follows.
    pub relu6: bool,
}

impl LayerSpec {
    /// Shape of the convolution's weight.
    #[must_use]
    pub fn dims(&self) -> [usize; 4] {
        [self.outputs, if self.depthwise { 1 } else { self.inputs }, self.kernel, self.kernel]
    }

    /// Fresh weights of the convolution.
    #[must_use]
    pub fn init(&self) -> Init {
        let [_, per_group, kernel, _] = self.dims();
        Init::Normal { std: (2.0 / (per_group * kernel * kernel) as f64).sqrt() }
    }

    /// The convolution of images of `height` and `width` pixels, with TensorFlow's SAME padding.
    #[must_use]
    pub fn options(&self, [height, width]: [usize; 2]) -> Conv2d {
        let [(top, bottom), (left, right)] = [height, width].map(|size| same_padding(size, self.kernel, self.stride));
        let groups = if self.depthwise { self.outputs } else { 1 };
        Conv2d { stride: self.stride, pads: [top, left, bottom, right], groups }
    }
}

/// TensorFlow's SAME padding: (before, after).
pub(super) fn same_padding(size: usize, kernel: usize, stride: usize) -> (usize, usize) {
    let out = size.div_ceil(stride);
    let total = (out.saturating_sub(1) * stride + kernel).saturating_sub(size);
    (total / 2, total - total / 2)
}

/// Layers in a row, with a skip connection around them if `residual`.
#[derive(Debug, Clone)]
pub struct BlockSpec {
    /// Scope of the block.
    pub scope: Scope,
    /// The layers.
    pub layers: Vec<LayerSpec>,
    /// Whether the input is added to the result.
    pub residual: bool,
    /// Whether the result is a tap.
    pub tap: bool,
}

/// The blocks up to the last tap, in order, below `scope`.
#[must_use]
pub fn trunk(scope: &Scope) -> Vec<BlockSpec> {
    let stem = layer(scope, "conv_stem", "bn1", [3, STEM], 3, 2, true);
    let mut blocks = vec![BlockSpec { scope: scope.clone(), layers: vec![stem], residual: false, tap: false }];
    let mut width = STEM;
    for (s, stage) in STAGES.iter().enumerate() {
        for i in 0..stage.blocks {
            let at = scope.child("blocks").child(s).child(i);
            let stride = if i == 0 { stage.stride } else { 1 };
            let (wide, out) = (width * stage.expansion, stage.channels);
            let depthwise = |norm| LayerSpec {
                depthwise: true,
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
            blocks.push(BlockSpec { scope: at, layers, residual: stride == 1 && width == out, tap });
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
    let (conv, norm) = (scope.child(conv), scope.child(norm));
    LayerSpec { conv, norm, inputs, outputs, kernel, stride, depthwise: false, relu6 }
}

#[derive(Debug, Clone)]
struct Layer<V> {
    spec: LayerSpec,
    conv: FoldedConv<V>,
}

impl<V: Clone> Layer<V> {
    fn build<B: Backend<Value = V>>(b: &mut B, spec: LayerSpec) -> Result<Self> {
        let weight = b.buffer(&spec.conv, "weight", &spec.dims(), &spec.init())?;
        let norm = BatchNorm::take(b, &spec.norm, spec.outputs)?;
        let conv = FoldedConv::build(b, spec.conv.clone(), &spec.dims(), weight, None, &norm, BN_EPS)?;
        Ok(Self { spec, conv })
    }

    fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<V> {
        let options = self.spec.options([2, 3].map(|axis| b.dim(x, axis).unwrap_or(0)));
        let x = self.conv.forward(b, x, options)?;
        if self.spec.relu6 { b.clamp(&x, 0.0, 6.0) } else { Ok(x) }
    }
}

#[derive(Debug, Clone)]
struct Block<V> {
    scope: Scope,
    layers: Vec<Layer<V>>,
    residual: bool,
    tap: bool,
}

/// The layers up to the last tap. Input is normalised to [-1, 1] (mean and deviation 0.5).
#[derive(Debug, Clone)]
pub struct LiteTrunk<V> {
    blocks: Vec<Block<V>>,
}

impl<V: Clone> LiteTrunk<V> {
    /// Takes `conv_stem`, `bn1` and `blocks.*` below `scope`.
    ///
    /// # Errors
    /// Those of [`Backend::buffer`].
    pub fn build<B: Backend<Value = V>>(b: &mut B, scope: &Scope) -> Result<Self> {
        let mut blocks = Vec::new();
        for BlockSpec { scope, layers, residual, tap } in trunk(scope) {
            let layers = layers.into_iter().map(|spec| Layer::build(b, spec)).collect::<Result<_>>()?;
            blocks.push(Block { scope, layers, residual, tap });
        }
        Ok(Self { blocks })
    }

    /// `x [N, 3, S, S]` -> four taps `[N, TAP_CHANNELS[i], S/2^(i+2), …]`, linear (no activation).
    ///
    /// # Errors
    /// `Engine`.
    pub fn taps<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<Vec<V>> {
        let (mut x, mut taps) = (x.clone(), Vec::new());
        for block in &self.blocks {
            let mut h = x.clone();
            for layer in &block.layers {
                h = layer.forward(b, &h)?;
            }
            b.enter(&block.scope);
            x = if block.residual { b.add(&h, &x)? } else { h };
            if block.tap {
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
    head: Layer<V>,
    classifier: Linear<V>,
}

impl<V: Clone> EfficientNetLite0<V> {
    /// Takes all tensors below `scope`.
    ///
    /// # Errors
    /// Those of [`Backend::buffer`].
    pub fn build<B: Backend<Value = V>>(b: &mut B, scope: &Scope) -> Result<Self> {
        let trunk = LiteTrunk::build(b, scope)?;
        let head = Layer::build(b, layer(scope, "conv_head", "bn2", [TAP_CHANNELS[3], FEATURES], 1, 1, true))?;
        let classifier = Linear::build(b, scope.child("classifier"), FEATURES, CLASSES, true, LayerInit::TORCH)?;
        Ok(Self { trunk, head, classifier })
    }

    /// `x [N, 3, S, S]` in [-1, 1] to `features [N, 1280]` and `logits [N, 1000]`; there are no taps.
    ///
    /// # Errors
    /// `Engine`.
    pub fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V, _taps: bool) -> Result<Named<V>> {
        let taps = self.trunk.taps(b, x)?;
        let last = taps.last().unwrap_or(x);
        let h = self.head.forward(b, last)?;
        let features = b.mean(&h, &[2, 3], false)?;
        let logits = self.classifier.forward(b, &features)?;
        let features = b.reshape(&features, &[-1, signed(FEATURES)])?;
        Ok(vec![("features".to_owned(), features), ("logits".to_owned(), logits)])
    }
}
