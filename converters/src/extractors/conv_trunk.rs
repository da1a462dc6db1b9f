//! A sequence of convolutions with batch norms, skips, pools and taps: EfficientNet-Lite0 and VGG16 up to their last
//! tap.

use std::collections::BTreeMap;

use crate::backend::{Backend, Conv2d, Ops as _, Pool};
use crate::error::Result;
use crate::layers::{BatchNorm, FoldedConv};
use crate::weights::{Init, Scope};

/// The pool before a block: 2×2 pixels, stride 2.
pub const POOL: Pool = Pool { kernel: 2, stride: 2, pad: 0 };

/// Activation after a convolution and its norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// No activation.
    Linear,
    /// max(x, 0).
    Relu,
    /// x clamped to [0, 6].
    Relu6,
}

impl Activation {
    /// Applies the activation to `x`.
    ///
    /// # Errors
    /// `Engine` if an operation fails.
    pub fn apply<B: Backend>(self, b: &mut B, x: &B::Value) -> Result<B::Value> {
        match self {
            Self::Linear => Ok(x.clone()),
            Self::Relu => b.relu(x),
            Self::Relu6 => b.clamp(x, 0.0, 6.0),
        }
    }
}

/// A batch norm with fixed statistics; keys `weight`, `bias`, `running_mean`, `running_var`, each `[outputs]`.
#[derive(Debug, Clone)]
pub struct NormSpec {
    /// Scope of the norm.
    pub scope: Scope,
    /// ε.
    pub eps: f64,
}

/// A convolution with TensorFlow's SAME padding, its batch norm and its activation.
#[derive(Debug, Clone)]
pub struct LayerSpec {
    /// Scope of the convolution; keys `weight [outputs, inputs per group, kernel, kernel]` and `bias [outputs]`, if
    /// there is a bias.
    pub conv: Scope,
    /// Whether a convolution with a norm has a bias. A convolution without a norm always has one.
    pub bias: bool,
    /// Batch norm after the convolution. Without a norm, weight and bias are trainable parameters.
    pub norm: Option<NormSpec>,
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Kernel size.
    pub kernel: usize,
    /// Stride.
    pub stride: usize,
    /// Whether the convolution is depthwise.
    pub depthwise: bool,
    /// Activation after the norm.
    pub activation: Activation,
    /// Standard deviation of the initial weights.
    pub init_std: f64,
}

impl LayerSpec {
    /// Shape of the weight of the convolution.
    #[must_use]
    pub fn dims(&self) -> [usize; 4] {
        [self.outputs, if self.depthwise { 1 } else { self.inputs }, self.kernel, self.kernel]
    }

    /// Initial weights of the convolution. Initial biases are 0.
    #[must_use]
    pub fn init(&self) -> Init {
        Init::Normal { std: self.init_std }
    }

    /// Attributes of the convolution for images of `height` and `width` pixels.
    #[must_use]
    pub fn options(&self, [height, width]: [usize; 2]) -> Conv2d {
        let [(top, bottom), (left, right)] = [height, width].map(|size| same_padding(size, self.kernel, self.stride));
        let groups = if self.depthwise { self.outputs } else { 1 };
        Conv2d { stride: self.stride, pads: [top, left, bottom, right], groups }
    }
}

/// TensorFlow's SAME padding: (before, after).
fn same_padding(size: usize, kernel: usize, stride: usize) -> (usize, usize) {
    let out = size.div_ceil(stride);
    let total = (out.saturating_sub(1) * stride + kernel).saturating_sub(size);
    (total / 2, total - total / 2)
}

/// A sequence of layers, with a skip connection around them if `residual`.
#[derive(Debug, Clone)]
pub struct BlockSpec {
    /// Scope of the block.
    pub scope: Scope,
    /// Whether the max pooling [`POOL`] precedes the layers.
    pub pool: bool,
    /// The layers.
    pub layers: Vec<LayerSpec>,
    /// Whether the input is added to the output of the layers.
    pub residual: bool,
    /// Whether the output is a tap.
    pub tap: bool,
}

/// Running mean and variance of batch norms, by scope, which replace those of the weights.
pub type Statistics = BTreeMap<Scope, [Vec<f64>; 2]>;

#[derive(Debug, Clone)]
struct Block<V> {
    spec: BlockSpec,
    convs: Vec<FoldedConv<V>>,
}

/// The network. Batch norms are folded in f64.
#[derive(Debug, Clone)]
pub struct ConvTrunk<V> {
    blocks: Vec<Block<V>>,
}

impl<V: Clone> ConvTrunk<V> {
    /// Builds the network of `blocks` and takes its tensors. A norm that is not in `statistics` keeps those of the
    /// weights.
    ///
    /// # Errors
    /// Those of [`Backend::param`].
    pub fn build<B: Backend<Value = V>>(b: &mut B, blocks: Vec<BlockSpec>, statistics: &Statistics) -> Result<Self> {
        let build = |spec: BlockSpec, b: &mut B| {
            let convs = spec.layers.iter().map(|layer| folded(b, layer, statistics)).collect::<Result<_>>()?;
            Ok(Block { spec, convs })
        };
        Ok(Self { blocks: blocks.into_iter().map(|spec| build(spec, b)).collect::<Result<_>>()? })
    }

    /// The feature maps after the blocks that are taps.
    ///
    /// # Errors
    /// `Engine` if an operation fails.
    pub fn taps<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<Vec<V>> {
        let (mut x, mut taps) = (x.clone(), Vec::new());
        for Block { spec, convs } in &self.blocks {
            let mut h = if spec.pool { b.max_pool2d(&x, POOL)? } else { x.clone() };
            for (layer, conv) in spec.layers.iter().zip(convs) {
                let options = layer.options([2, 3].map(|axis| b.dim(&h, axis).unwrap_or(0)));
                h = conv.forward(b, &h, options)?;
                h = layer.activation.apply(b, &h)?;
            }
            x = if spec.residual {
                b.enter(&spec.scope);
                b.add(&h, &x)?
            } else {
                h
            };
            if spec.tap {
                taps.push(x.clone());
            }
        }
        Ok(taps)
    }
}

fn folded<B: Backend>(b: &mut B, layer: &LayerSpec, statistics: &Statistics) -> Result<FoldedConv<B::Value>> {
    let LayerSpec { conv, outputs, .. } = layer;
    let (dims, zero) = (layer.dims(), Init::Constant(0.0));
    let Some(NormSpec { scope, eps }) = &layer.norm else {
        let weight = b.param(conv, "weight", &dims, &layer.init())?;
        return Ok(FoldedConv::from_parts(conv.clone(), weight, b.param(conv, "bias", &[*outputs], &zero)?));
    };
    let weight = b.buffer(conv, "weight", &dims, &layer.init())?;
    let bias = if layer.bias { Some(b.buffer(conv, "bias", &[*outputs], &zero)?) } else { None };
    let mut norm = BatchNorm::take(b, scope, *outputs)?;
    if let Some([mean, var]) = statistics.get(scope) {
        (norm.mean, norm.var) = (mean.clone(), var.clone());
    }
    FoldedConv::build(b, conv.clone(), &dims, weight, bias.as_deref(), &norm, *eps)
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
}
