//! The frozen part of a discriminator: feature network, cross-channel and cross-scale mixing.

use d2o_converters::backend::{Backend as _, Conv2d, Ops as _, Sampling};
use d2o_converters::error::Result;
use d2o_converters::weights::{Init, Scope};

use super::backbones::{Backbone, FeatureNetwork};
use super::sizes::{SCALES, Sizes};
use crate::train::libtorch::{LibTorch, Value};

/// Channels of the finest mixed map.
pub(super) const WIDTH: usize = 64;

/// A feature network followed by random convolutions (Sauer et al. 2021).
#[derive(Debug, Clone)]
pub(super) struct Projector {
    backbone: Backbone,
    sizes: Sizes,
    scope: Scope,
    input: usize,
    network: FeatureNetwork,
    /// Convolutions that bring the maps of a transformer to the sizes of those of a convolutional network.
    adapters: Vec<Vec<Mixing>>,
    channel_mixing: Vec<Mixing>,
    scale_mixing: Vec<Mixing>,
}

/// A convolution with fixed random weights: `weight`, `bias`.
#[derive(Debug, Clone)]
struct Mixing {
    scope: Scope,
    weight: Value,
    bias: Value,
    how: How,
}

#[derive(Debug, Clone, Copy)]
enum How {
    /// 1×1.
    Pointwise,
    /// 3×3, stride 2.
    Halving,
    /// Transposed convolution; kernel size and stride are this value.
    Enlarging(usize),
}

impl Mixing {
    fn build(b: &mut LibTorch, scope: Scope, inputs: usize, outputs: usize, how: How) -> Result<Self> {
        let (dims, fan_in) = match how {
            How::Pointwise => ([outputs, inputs, 1, 1], inputs),
            How::Halving => ([outputs, inputs, 3, 3], inputs * 9),
            How::Enlarging(k) => ([inputs, outputs, k, k], outputs * k * k),
        };
        let init = Init::torch_default(fan_in);
        let weight = b.state(&scope, "weight", &dims, &init)?;
        let bias = b.state(&scope, "bias", &[outputs], &init)?;
        Ok(Self { scope, weight, bias, how })
    }

    fn forward(&self, b: &mut LibTorch, x: &Value) -> Result<Value> {
        b.enter(&self.scope);
        let options = |stride, pad| Conv2d { stride, pads: [pad; 4], groups: 1 };
        match self.how {
            How::Pointwise => b.conv2d(x, &self.weight, Some(&self.bias), options(1, 0)),
            How::Halving => b.conv2d(x, &self.weight, Some(&self.bias), options(2, 1)),
            How::Enlarging(k) => {
                let x = b.conv_transpose2d(x, &self.weight, options(k, 0))?;
                let bias = b.reshape(&self.bias, &[1, -1, 1, 1])?;
                b.add(&x, &bias)
            }
        }
    }
}

impl Projector {
    /// Takes the mixing convolutions below `feature_networks.<backbone>.scratch` and the adapters of a transformer
    /// below `feature_networks.<backbone>.pretrained`. `network` already has its weights.
    pub(super) fn build(b: &mut LibTorch, backbone: Backbone, sizes: &Sizes, network: FeatureNetwork) -> Result<Self> {
        let scope = Scope::root().child("feature_networks").child(backbone.name());
        let channels = backbone.channels();
        let mut adapters = Vec::new();
        if backbone == Backbone::DeitBase {
            let resize = [Some(How::Enlarging(4)), Some(How::Enlarging(2)), None, Some(How::Halving)];
            for (i, (outputs, resize)) in channels.into_iter().zip(resize).enumerate() {
                let layer = scope.child("pretrained").child(format!("layer{}", i + 1));
                // In the original, layers without weights precede these.
                let mut convs = vec![Mixing::build(b, layer.child(3), channels[SCALES - 1], outputs, How::Pointwise)?];
                if let Some(how) = resize {
                    convs.push(Mixing::build(b, layer.child(4), outputs, outputs, how)?);
                }
                adapters.push(convs);
            }
        }
        let scratch = scope.child("scratch");
        let mut mix = |name: String, inputs, outputs| {
            let scope = if name.ends_with("csm") { scratch.child(name).child("out_conv") } else { scratch.child(name) };
            Mixing::build(b, scope, inputs, outputs, How::Pointwise)
        };
        let channel_mixing =
            (0..SCALES).map(|i| mix(format!("layer{i}_ccm"), channels[i], WIDTH << i)).collect::<Result<_>>()?;
        let scale_mixing = (0..SCALES)
            .map(|i| mix(format!("layer{i}_csm"), WIDTH << i, if i == 0 { WIDTH } else { WIDTH << (i - 1) }))
            .collect::<Result<_>>()?;
        let input = backbone.input_size(sizes.input);
        Ok(Self { backbone, sizes: *sizes, scope, input, network, adapters, channel_mixing, scale_mixing })
    }

    /// A projector with the same feature network and the random convolutions that `b` gives.
    pub(super) fn redrawn(&self, b: &mut LibTorch) -> Result<Self> {
        Self::build(b, self.backbone, &self.sizes, self.network.clone())
    }

    /// Four maps with 64, 64, 128 and 256 channels, finest first, of images `[N, 3, H, W]` in [-1, 1].
    pub(super) fn forward(&self, b: &mut LibTorch, x: &Value) -> Result<Vec<Value>> {
        b.enter(&self.scope);
        let mut x = self.network.normalise(b, x)?;
        if [2, 3].iter().any(|axis| b.dim(&x, *axis) != Some(self.input)) {
            x = b.resize_bilinear(&x, [self.input; 2], Sampling::HalfPixel)?;
        }
        let mut taps = self.network.taps(b, &x)?;
        for (tap, convs) in taps.iter_mut().zip(&self.adapters) {
            for conv in convs {
                *tap = conv.forward(b, tap)?;
            }
        }
        let mut maps = Vec::with_capacity(SCALES);
        let mut coarser: Option<Value> = None;
        for i in (0..SCALES).rev() {
            let mixed = self.channel_mixing[i].forward(b, &taps[i])?;
            let sum = match &coarser {
                Some(c) => b.add(c, &mixed)?,
                None => mixed,
            };
            b.enter(&self.scale_mixing[i].scope);
            let size = [2, 3].map(|axis| 2 * b.dim(&sum, axis).unwrap_or(0));
            let up = b.resize_bilinear(&sum, size, Sampling::AlignCorners)?;
            let map = self.scale_mixing[i].forward(b, &up)?;
            maps.push(map.clone());
            coarser = Some(map);
        }
        maps.reverse();
        Ok(maps)
    }
}
