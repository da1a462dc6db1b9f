//! Feature networks, one folder each: configuration, tensor names, network.

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

/// Activation of the MLPs of a transformer.
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

/// Hyperparameters that names and shapes of tensors do not determine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hyperparameters {
    /// Activation of a CLIP image encoder.
    pub activation: Option<Activation>,
    /// Channels per attention head of a vision transformer.
    pub head_width: Option<usize>,
}

/// Options that have an effect on a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Takes {
    /// [`Hyperparameters::activation`].
    pub activation: bool,
    /// [`Hyperparameters::head_width`].
    pub head_width: bool,
    /// Intermediate activations as additional outputs.
    pub taps: bool,
}

/// Part of a network that a tensor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Everything up to the features.
    Trunk,
    /// The classifier after the features.
    Head,
    /// Tensors that are not evaluated.
    Unused,
}

/// Named outputs of a network.
pub type Named<V> = Vec<(String, V)>;

/// A tensor in the canonical layout of a network: name, dimensions, values.
pub type Canonical<'a> = (String, Vec<usize>, &'a [f32]);

/// The configuration of a feature network, with methods that recognise, describe and build it.
pub trait FeatureNetwork: Sized {
    /// The network on a backend with values of type `V`. Its method `forward(b, x, taps)` is documented in
    /// [`crate::registry::ExtractorNet`].
    type Net<V: Clone>;

    /// Recognises the network by the names of its tensors.
    fn recognise(tensors: &Arc<dyn TensorSource>) -> Recognised<Self>;

    /// Name of the extractor in metadata and records.
    fn name(&self) -> String;

    /// Default height and width of the input images, pixels.
    fn input_size(&self) -> usize;

    /// Whether the network also accepts images of other sizes.
    fn any_size(&self) -> bool {
        false
    }

    /// Normalisation and resizing of the input images.
    fn preprocessing(&self) -> Preprocessing;

    /// Options that have an effect on the network.
    fn takes(&self) -> Takes {
        Takes::default()
    }

    /// Sets hyperparameters that the file does not determine.
    ///
    /// # Errors
    /// `Config` if the file determines another value.
    fn complete(&mut self, _given: &Hyperparameters) -> Result<()> {
        Ok(())
    }

    /// Activation of the MLPs of a vision transformer, if it is known.
    fn activation(&self) -> Option<Activation> {
        None
    }

    /// Part of the network that the tensor `name` belongs to.
    fn part(&self, name: &str) -> Part;

    /// The tensor `name` in the canonical layout, from which digests are computed. It is the same for all published
    /// layouts.
    fn canonical<'a>(&self, name: &str, dims: &[usize], values: &'a [f32]) -> Vec<Canonical<'a>> {
        vec![(name.to_owned(), dims.to_vec(), values)]
    }

    /// Builds the network for images of `input_size` pixels and takes all of its tensors.
    ///
    /// # Errors
    /// `Config` if a hyperparameter is missing or the network does not accept the size; those of [`Backend::param`].
    fn build<B: Backend>(&self, b: &mut B, input_size: usize) -> Result<Self::Net<B::Value>>;
}
