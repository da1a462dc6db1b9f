//! Feature networks, one folder each: configuration, names of tensors, network.

pub mod conv_trunk;
pub mod efficientnet_lite;
pub mod inception_v3;
pub mod vgg16;
pub mod vision_transformer;

use std::sync::Arc;

use d2o_checkpoint::TensorSource;

use crate::backend::Backend;
use crate::error::Result;
use crate::preprocess::Preprocessing;
use crate::recognise::Recognised;

/// Activation of a transformer's MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// x·Φ(x), with the error function.
    Gelu,
    /// x·σ(1.702x).
    QuickGelu,
}

impl Activation {
    /// Name in metadata and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gelu => "gelu",
            Self::QuickGelu => "quick-gelu",
        }
    }

    /// The activation of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Gelu, Self::QuickGelu].into_iter().find(|a| a.name() == name)
    }
}

/// Hyperparameters that tensors do not determine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hyperparameters {
    /// Activation of a CLIP tower.
    pub activation: Option<Activation>,
    /// Width of a vision transformer's attention heads, channels.
    pub head_width: Option<usize>,
}

/// Which options have an effect on a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Takes {
    /// [`Hyperparameters::activation`].
    pub activation: bool,
    /// [`Hyperparameters::head_width`].
    pub head_width: bool,
    /// Intermediate activations as further outputs.
    pub taps: bool,
}

/// Part of a network that a tensor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Everything up to the features.
    Trunk,
    /// The classifier after the features.
    Head,
    /// Nothing that is evaluated.
    Unused,
}

/// Named outputs of a network.
pub type Named<V> = Vec<(String, V)>;

/// A tensor in the canonical layout of a network: name, dimensions, values.
pub type Canonical<'a> = (String, Vec<usize>, &'a [f32]);

/// The configuration of a feature network: how it is recognised, named, built and evaluated.
pub trait FeatureNetwork: Sized {
    /// The network on a backend with values of type `V`. Its `forward(b, x, taps)` is that of [`crate::registry::ExtractorNet`].
    type Net<V: Clone>;

    /// Recognises the network by the names of its tensors.
    fn recognise(tensors: &Arc<dyn TensorSource>) -> Recognised<Self>;

    /// Name of the extractor in metadata and records.
    fn name(&self) -> String;

    /// Height and width of the images the network is used with, pixels.
    fn input_size(&self) -> usize;

    /// Whether it also runs on images of other sizes.
    fn any_size(&self) -> bool {
        false
    }

    /// Normalisation and resizing of its images.
    fn preprocessing(&self) -> Preprocessing;

    /// Which options have an effect.
    fn takes(&self) -> Takes {
        Takes::default()
    }

    /// Takes over hyperparameters that the file does not determine.
    ///
    /// # Errors
    /// `Config` if the file determines another value.
    fn complete(&mut self, _given: &Hyperparameters) -> Result<()> {
        Ok(())
    }

    /// Activation of its MLPs, where networks of the same shapes differ in it.
    fn activation(&self) -> Option<Activation> {
        None
    }

    /// Part of the network that the tensor `name` belongs to.
    fn part(&self, name: &str) -> Part;

    /// The tensor `name` in the layout that digests of weights are computed in, which is the same for all published layouts.
    fn canonical<'a>(&self, name: &str, dims: &[usize], values: &'a [f32]) -> Vec<Canonical<'a>> {
        vec![(name.to_owned(), dims.to_vec(), values)]
    }

    /// Takes all tensors, for images of `input_size` pixels.
    ///
    /// # Errors
    /// `Config` if a hyperparameter is missing or the size does not fit; those of [`Backend::param`].
    fn build<B: Backend>(&self, b: &mut B, input_size: usize) -> Result<Self::Net<B::Value>>;
}
