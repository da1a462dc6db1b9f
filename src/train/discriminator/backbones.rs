//! Feature networks of discriminators.

use d2o_converters::backend::{Backend as _, Ops as _};
use d2o_converters::error::Result;
use d2o_converters::extractors::conv_trunk::{BlockSpec, ConvTrunk};
use d2o_converters::extractors::efficientnet_lite::{self, Lite0, TAP_CHANNELS};
use d2o_converters::extractors::vgg16::{self, VggConfig};
use d2o_converters::extractors::vision_transformer::{DEIT_TAPS, VitConfig, VitTrunk};
use d2o_converters::registry::Extractor;
use d2o_converters::weights::{Scope, Weights};

use super::blank_image::statistics_after_blank_image;
use super::sizes::{RESIZED, SCALES};
use crate::train::libtorch::{LibTorch, Value};

/// A feature network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backbone {
    /// EfficientNet-Lite0 of TensorFlow.
    Lite0,
    /// VGG16 with batch norms.
    Vgg16Bn,
    /// DeiT-B with a distillation token, patches of 16 pixels.
    DeitBase,
}

/// Properties of a feature network.
struct Facts {
    /// Name in the original, which paths of tensors contain.
    name: &'static str,
    /// Mean and standard deviation for the normalisation of images in [0, 1].
    mean: [f64; 3],
    std: [f64; 3],
    /// Channels of the maps that are mixed, finest first.
    channels: [usize; SCALES],
    /// Prefixes of the names of tensors after the last tap.
    unused: &'static [&'static str],
}

const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];

impl Backbone {
    fn facts(self) -> Facts {
        match self {
            Self::Lite0 => Facts {
                name: "tf_efficientnet_lite0",
                mean: [0.5; 3],
                std: [0.5; 3],
                channels: TAP_CHANNELS,
                unused: &["conv_head.", "bn2.", "classifier."],
            },
            Self::Vgg16Bn => Facts {
                name: "vgg16_bn",
                mean: IMAGENET_MEAN,
                std: IMAGENET_STD,
                channels: [128, 256, 512, 512],
                unused: &["classifier."],
            },
            Self::DeitBase => Facts {
                name: "deit_base_distilled_patch16_224",
                mean: IMAGENET_MEAN,
                std: IMAGENET_STD,
                channels: [96, 192, 384, 768],
                unused: &["norm.", "head.", "head_dist."],
            },
        }
    }

    /// Name in the original, which paths of tensors contain.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// The extractor that checkpoints of this network are recognised as.
    #[must_use]
    pub fn extractor(self) -> Extractor {
        match self {
            Self::Lite0 => Extractor::EfficientNetLite0(Lite0),
            Self::Vgg16Bn => Extractor::Vgg16(VggConfig::torchvision(true)),
            Self::DeitBase => Extractor::VisionTransformer(VitConfig::deit_base_distilled()),
        }
    }

    /// Whether `found` is this network, apart from the layers after the last tap.
    pub(super) fn is_trunk_of(self, found: &Extractor) -> bool {
        match (self.extractor(), found) {
            (Extractor::Vgg16(own), Extractor::Vgg16(found)) => own.has_trunk_of(found),
            (Extractor::VisionTransformer(own), Extractor::VisionTransformer(found)) => {
                own == VitConfig { outputs: own.outputs, ..*found }
            }
            (own, found) => own == *found,
        }
    }

    /// Whether a tensor belongs to the layers after the last tap.
    pub(super) fn leaves_unused(self, tensor: &str) -> bool {
        self.facts().unused.iter().any(|prefix| tensor.starts_with(prefix))
    }

    /// Channels of the maps that are mixed, finest first.
    pub(super) fn channels(self) -> [usize; SCALES] {
        self.facts().channels
    }

    /// Height and width of its input, pixels. `convolutional` is the input size of convolutional networks.
    pub(super) fn input_size(self, convolutional: usize) -> usize {
        if self == Self::DeitBase { RESIZED } else { convolutional }
    }
}

/// A feature network up to its last tap, frozen.
#[derive(Debug, Clone)]
pub(super) struct FeatureNetwork {
    minus_mean: Value,
    std: Value,
    net: Net,
}

#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "two to a run")]
enum Net {
    Convolutional(ConvTrunk<Value>),
    Transformer(VitTrunk<Value>),
}

impl FeatureNetwork {
    /// Builds the network on the device and with the element type of `like`. Calls `weights` up to twice.
    pub(super) fn build(like: &LibTorch, backbone: Backbone, weights: &dyn Fn() -> Weights) -> Result<Self> {
        let (root, facts) = (Scope::root(), backbone.facts());
        let mut b = LibTorch::with_weights(weights(), like.device()).in_kind(like.kind()).frozen();
        let convolutional = |b: &mut LibTorch, blocks: Vec<BlockSpec>| -> Result<Net> {
            let statistics = statistics_after_blank_image(&blocks, weights())?;
            ConvTrunk::build(b, blocks, &statistics).map(Net::Convolutional)
        };
        let net = match backbone {
            Backbone::Lite0 => convolutional(&mut b, efficientnet_lite::trunk(&root))?,
            Backbone::Vgg16Bn => convolutional(&mut b, vgg16::trunk(&root, &VggConfig::torchvision(true)))?,
            Backbone::DeitBase => {
                Net::Transformer(VitTrunk::build(&mut b, &root, &VitConfig::deit_base_distilled(), RESIZED)?)
            }
        };
        let mut image = |name, values: [f64; 3]| b.constant(&root, name, &[1, 3, 1, 1], values.to_vec());
        let (minus_mean, std) = (image("minus_mean", facts.mean.map(|m| -m))?, image("std", facts.std)?);
        b.finish()?;
        Ok(Self { minus_mean, std, net })
    }

    /// Normalises images in [-1, 1] for the network.
    pub(super) fn normalise(&self, b: &mut LibTorch, x: &Value) -> Result<Value> {
        let x = b.offset(x, 1.0)?;
        let x = b.scale(&x, 0.5)?;
        let x = b.add(&x, &self.minus_mean)?;
        b.div(&x, &self.std)
    }

    /// The four taps of normalised images, finest first. The taps of a transformer have equal sizes.
    pub(super) fn taps(&self, b: &mut LibTorch, x: &Value) -> Result<Vec<Value>> {
        match &self.net {
            // VGG16 has a fifth tap before these.
            Net::Convolutional(trunk) => {
                let mut taps = trunk.taps(b, x)?;
                Ok(taps.split_off(taps.len().saturating_sub(SCALES)))
            }
            Net::Transformer(trunk) => Ok(trunk.forward(b, x, &DEIT_TAPS)?.1),
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    #[test]
    fn feature_networks_are_frozen_and_end_at_their_last_taps() {
        let like = LibTorch::running(Device::Cpu, true);
        for (backbone, sizes) in [(Backbone::Lite0, [8, 4, 2, 1]), (Backbone::Vgg16Bn, [16, 8, 4, 2])] {
            let network = FeatureNetwork::build(&like, backbone, &|| Weights::initialised(1)).unwrap();
            let mut b = LibTorch::running(Device::Cpu, true);
            let x = Tensor::zeros([1, 3, 32, 32], (Kind::Float, Device::Cpu));
            let taps = network.taps(&mut b, &Value(x)).unwrap();
            let expected: Vec<_> = backbone.channels().into_iter().zip(sizes).map(|(c, s)| [1, c, s, s]).collect();
            let found: Vec<_> = taps.iter().map(|t| [0, 1, 2, 3].map(|axis| b.dim(t, axis).unwrap())).collect();
            assert_eq!(found, expected, "{backbone:?}");
            // No tensor requires gradients, so autograd keeps nothing.
            assert!(taps.iter().all(|t| !t.0.requires_grad()), "{backbone:?}");
        }
    }

    #[test]
    fn pixels_are_normalised_as_the_networks_expect() {
        let like = LibTorch::running(Device::Cpu, true).in_kind(Kind::Double);
        let network = FeatureNetwork::build(&like, Backbone::DeitBase, &|| Weights::initialised(1)).unwrap();
        let mut b = LibTorch::running(Device::Cpu, true).in_kind(Kind::Double);
        let x = Value(Tensor::full([1, 3, 1, 1], 0.5, (Kind::Double, Device::Cpu)));
        let found = network.normalise(&mut b, &x).unwrap();
        let expected = [(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)].map(|(mean, std)| (0.75 - mean) / std);
        for (found, expected) in b.values(&found).unwrap().iter().zip(expected) {
            assert!((found - expected).abs() < 1e-14, "{found} differs from {expected}");
        }
        // The weights of a transformer require no gradients either.
        let x = Value(Tensor::zeros([1, 3, 224, 224], (Kind::Double, Device::Cpu)));
        let taps = network.taps(&mut b, &x).unwrap();
        assert!(taps.iter().all(|t| !t.0.requires_grad() && t.0.size() == [1, 768, 14, 14]));
    }
}
