//! Generators that map latent vectors to images in one evaluation.

use d2o_checkpoint::TensorSource;
use serde_json::{Map, Value};

use crate::backend::Backend;
use crate::error::Result;

/// Sampling options of a generator of the StyleGAN family.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SynthesisOptions {
    /// Truncation towards the average intermediate latent: 1 for no truncation, 0 for the average itself.
    pub truncation_psi: f64,
    /// Number of layers, from the coarsest, whose latents are truncated; `None` for all.
    pub truncation_cutoff: Option<usize>,
    /// Whether the constant noise is added.
    pub noise: bool,
}

impl Default for SynthesisOptions {
    fn default() -> Self {
        Self { truncation_psi: 1.0, truncation_cutoff: None, noise: true }
    }
}

/// The configuration of a generator, with methods that read and build it.
pub trait LatentGenerator: Sized {
    /// Name of the class in checkpoints.
    const CLASS: &'static str;
    /// Names of the positional arguments of the constructor.
    const POSITIONAL: &'static [&'static str];

    /// The network on a backend with values of type `V`. Its method `forward(b, latents, labels, options)` is
    /// documented in [`crate::registry::LatentNet`].
    type Net<V: Clone>;

    /// Name of the class in checkpoints.
    fn class(&self) -> &'static str {
        Self::CLASS
    }

    /// Reads the constructor arguments.
    ///
    /// # Errors
    /// `Config` for an unknown or missing argument, or a value out of range.
    fn read(init_kwargs: &Map<String, Value>) -> Result<Self>;

    /// Reason why a checkpoint with an object of this class cannot be used; `None` if it can.
    fn unsupported(_tensors: &dyn TensorSource) -> Option<&'static str> {
        None
    }

    /// Constructor arguments as they were read.
    fn init_kwargs(&self) -> Value;

    /// Length of a latent vector.
    fn latent_dim(&self) -> usize;

    /// Number of classes; 0 if unconditional.
    fn label_dim(&self) -> usize;

    /// Builds the network and takes all of its tensors.
    ///
    /// # Errors
    /// Those of [`Backend::buffer`].
    fn build<B: Backend>(&self, b: &mut B) -> Result<Self::Net<B::Value>>;
}
