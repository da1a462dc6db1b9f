//! Projected discriminators (Sauer et al. 2021) as D2O uses them: frozen feature networks, frozen random mixing, trained multi-scale heads.

mod backbones;
mod blank_image;
mod class_map;
mod files;
mod heads;
mod projector;
mod sizes;

pub use backbones::Backbone;
pub use class_map::ClassRows;
pub(super) use files::ensure_undamaged;
pub use sizes::{FeatureSize, Sizes};

use std::path::PathBuf;

use anyhow::Context as _;
use d2o_converters::error::Result;
use d2o_converters::weights::{Init, Weights};
use tch::{Device, Kind, Tensor};

use self::backbones::FeatureNetwork;
use self::class_map::CLASSES;
use self::heads::MultiScaleHeads;
use self::projector::Projector;
use super::augment::diff::diff_augment;
use super::libtorch::{LibTorch, Named, Value};

/// Configuration of a discriminator.
#[derive(Debug, Clone)]
pub struct CriticConfig {
    /// Feature networks, in the order of their logits.
    pub backbones: Vec<Backbone>,
    /// Checkpoints of the feature networks, in any order.
    pub weights: Vec<PathBuf>,
    /// Resizing of images before the feature networks.
    pub feature_size: FeatureSize,
    /// Initial rows of the class tables of a conditional discriminator.
    pub classes: Option<ClassRows>,
    /// Whether each feature network sees the images through DiffAugment.
    pub diffaug: bool,
}

/// A projected discriminator: four heads for each feature network.
#[derive(Debug)]
pub struct Critic {
    parts: Vec<(Projector, MultiScaleHeads)>,
    diffaug: bool,
}

impl Critic {
    /// Loads the feature networks and initialises the other tensors from `seed`, for images of `image` pixels with
    /// `label_dim` classes (0 for none), on the given device and with the given element type. The returned tensors are
    /// those of the heads and the random convolutions. Feature networks are neither trained nor saved.
    ///
    /// # Errors
    /// If a file is missing, unreadable or of another network, heads are not defined for the image size, or `classes`
    /// and `label_dim` do not fit together.
    pub fn load(
        config: &CriticConfig,
        image: usize,
        label_dim: usize,
        seed: u64,
        (device, kind): (Device, Kind),
    ) -> anyhow::Result<(Self, Vec<Named>)> {
        anyhow::ensure!(
            label_dim <= CLASSES,
            "the discriminator supports at most {CLASSES} classes, found {label_dim}"
        );
        let classes = match (&config.classes, label_dim) {
            (None, 0) => None,
            (Some(_), 0) => {
                anyhow::bail!("class embeddings require a conditional network, but this network has no classes")
            }
            (Some(rows), _) => Some(rows.init()?),
            (None, _) => return Err(class_map::missing()),
        };
        let sizes = config.feature_size.of(image)?;
        let files = files::open(&config.backbones, &config.weights)?;
        let mut b = LibTorch::with_weights(Weights::initialised(seed), device).in_kind(kind);
        let weights = |backbone| files::weights(&files, backbone);
        let critic = Self::build(&mut b, &config.backbones, &sizes, &weights, classes.as_ref());
        let critic = Self { diffaug: config.diffaug, ..critic.context("cannot build the discriminator")? };
        Ok((critic, b.finish()?.0))
    }

    /// Takes the random convolutions and the heads from `b`, and the weights of a feature network from `weights`.
    /// `classes` gives the initial values of the class tables `[1000, 320]` of a conditional discriminator.
    ///
    /// # Errors
    /// The errors of [`LibTorch::state`].
    pub fn build(
        b: &mut LibTorch,
        backbones: &[Backbone],
        sizes: &Sizes,
        weights: &dyn Fn(Backbone) -> Weights,
        classes: Option<&Init>,
    ) -> Result<Self> {
        let mut parts = Vec::new();
        for backbone in backbones {
            let network = FeatureNetwork::build(b, *backbone, &|| weights(*backbone))?;
            let projector = Projector::build(b, *backbone, sizes, network)?;
            parts.push((projector, MultiScaleHeads::build(b, backbone.name(), sizes, classes)?));
        }
        Ok(Self { parts, diffaug: false })
    }

    /// A discriminator with the same heads and feature networks, but random convolutions drawn from `seed`; and the
    /// tensors of these convolutions. In the original, each process has its own.
    ///
    /// # Errors
    /// The errors of [`LibTorch::state`].
    pub fn redrawn(&self, seed: u64, (device, kind): (Device, Kind)) -> Result<(Self, Vec<Named>)> {
        let mut b = LibTorch::with_weights(Weights::initialised(seed), device).in_kind(kind);
        let part = |(projector, heads): &(Projector, MultiScaleHeads)| Ok((projector.redrawn(&mut b)?, heads.clone()));
        let parts = self.parts.iter().map(part).collect::<Result<_>>()?;
        Ok((Self { parts, diffaug: self.diffaug }, b.finish()?.0))
    }

    /// Logits `[B, L]` of `images [B, C, H, W]` (1 or 3 channels) in [-1, 1], for each feature network. `labels [B, K]`
    /// are one-hot and belong to a conditional discriminator.
    ///
    /// # Errors
    /// `Engine` if libtorch fails.
    pub fn logits(&self, b: &mut LibTorch, images: &Tensor, labels: Option<&Value>) -> Result<Vec<Tensor>> {
        let logits = |(projector, heads): &(Projector, MultiScaleHeads)| {
            let seen = if self.diffaug { b.ok("diff_augment", diff_augment(images))? } else { images.shallow_clone() };
            // Feature networks take three channels.
            let (count, _, height, width) = b.ok("size", seen.size4())?;
            let seen = b.ok("expand", seen.f_expand([count, 3, height, width], false))?;
            let maps = projector.forward(b, &Value(seen))?;
            Ok(heads.forward(b, &maps, labels)?.0)
        };
        self.parts.iter().map(logits).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_need_their_rows() {
        let refused = |classes: Option<ClassRows>, label_dim| {
            let feature_size = FeatureSize::Interp224;
            let config = CriticConfig {
                backbones: vec![Backbone::Lite0],
                weights: Vec::new(),
                feature_size,
                classes,
                diffaug: false,
            };
            Critic::load(&config, 32, label_dim, 0, (Device::Cpu, Kind::Float)).unwrap_err().to_string()
        };
        assert!(refused(None, 10).contains("in_embeddings/tf_efficientnet_lite0.pkl"));
        assert!(refused(Some(ClassRows::Random), 0).contains("this network has no classes"));
        assert!(refused(Some(ClassRows::Random), 1001).contains("at most 1000 classes, found 1001"));
        // Next, the weights of the feature network are required.
        assert!(refused(Some(ClassRows::Random), 10).contains("requires the weights of tf_efficientnet_lite0"));
    }

    /// Each feature network has its own logits and tensors, in the order asked for.
    #[test]
    fn logits_follow_the_list_of_feature_networks() {
        let mut b = LibTorch::with_weights(Weights::initialised(1), Device::Cpu);
        let sizes = FeatureSize::Unchanged.of(32).unwrap();
        let backbones = [Backbone::Vgg16Bn, Backbone::Lite0];
        let critic = Critic::build(&mut b, &backbones, &sizes, &|_| Weights::initialised(2), None).unwrap();
        let (tensors, _) = b.finish().unwrap();
        let trained: Vec<&str> = tensors.iter().filter(|t| t.tensor.requires_grad()).map(|t| t.path.as_str()).collect();
        assert!(trained.iter().all(|p| p.starts_with("discriminators.")), "{trained:?}");
        for part in [
            "feature_networks.vgg16_bn.scratch.layer3_csm.out_conv.weight",
            "feature_networks.tf_efficientnet_lite0.scratch.layer0_ccm.bias",
            "discriminators.vgg16_bn.mini_discs.0.main.0.main.0.weight_orig",
            "discriminators.tf_efficientnet_lite0.mini_discs.3.main.0.weight_u",
        ] {
            assert!(tensors.iter().any(|t| t.path == part), "{part}");
        }
        assert!(tensors.iter().all(|t| t.path.contains(".scratch.") || t.path.starts_with("discriminators.")));
        let images = Tensor::rand([2, 3, 32, 32], (Kind::Float, Device::Cpu));
        let mut b = LibTorch::running(Device::Cpu, true);
        let found = tch::no_grad(|| critic.logits(&mut b, &images, None)).unwrap();
        // The maps of VGG16 are twice as large: its heads end at 4 × 4, those of Lite0 at 2 × 2.
        assert_eq!(found.iter().map(Tensor::size).collect::<Vec<_>>(), [[2, 64], [2, 16]]);
    }

    #[test]
    fn counts_of_logits_follow_the_originals_sizes() {
        use FeatureSize::{Interp224, Pixels, Unchanged};
        for (rule, image, logits) in [
            (Interp224, 32, 64),
            (Interp224, 64, 64),
            (Interp224, 224, 64),
            (Interp224, 256, 100),
            (Unchanged, 32, 16),
            (Unchanged, 64, 36),
            (Unchanged, 224, 64),
            (Unchanged, 256, 100),
            (Pixels(64), 32, 36),
        ] {
            let mut b = LibTorch::with_weights(Weights::initialised(1), Device::Cpu);
            let sizes = rule.of(image).unwrap();
            let weights = |_| Weights::initialised(2);
            let critic = Critic::build(&mut b, &[Backbone::Lite0], &sizes, &weights, None).unwrap();
            let side = i64::try_from(image).unwrap();
            let images = Tensor::rand([2, 3, side, side], (Kind::Float, Device::Cpu));
            let mut b = LibTorch::running(Device::Cpu, true);
            let found = tch::no_grad(|| critic.logits(&mut b, &images, None)).unwrap();
            assert_eq!(found.iter().map(Tensor::size).collect::<Vec<_>>(), [[2, logits]], "{rule:?} of {image}");
        }
    }
}
