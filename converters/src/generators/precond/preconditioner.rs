//! The trait of preconditioners.

use super::levels::Levels;
use crate::backend::Backend;
use crate::error::Result;
use crate::generators::args::Args;
use crate::weights::Scope;
use d2o_onnx::metadata::Quantiser;

/// Names in a constructor for the arguments that every denoiser has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Convention {
    /// Names of EDM: `img_resolution`, `img_channels`, `label_dim`, `model_type`.
    Edm {
        /// Class of the network if `model_type` is absent.
        default_backbone: &'static str,
    },
    /// Names of OpenAI: `image_size`, `in_channels`, `num_classes`. The network is a `UNetModel`. Null arguments count
    /// as absent.
    OpenAi,
}

/// Scalar coefficients at one noise level.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scalars {
    /// Factor of the noisy image in the result.
    pub skip: f64,
    /// Factor of the network output.
    pub out: f64,
    /// Factor of the network input.
    pub input: f64,
    /// Conditioning of the network on the noise level.
    pub noise: f64,
}

/// c_skip, c_out, c_in (each `[N or 1, 1, 1, 1]`) and c_noise (`[N or 1]`) as values of a backend. `None` stands for 1.
#[derive(Debug, Clone)]
pub struct Coefficients<V> {
    /// Factor of the noisy image in the result.
    pub skip: Option<V>,
    /// Factor of the network output.
    pub out: V,
    /// Factor of the network input.
    pub input: Option<V>,
    /// Conditioning of the network on the noise level.
    pub noise: V,
}

/// A preconditioner: the arguments of its class, and its coefficients.
pub trait Preconditioner: Sized {
    /// Name of the class in checkpoints.
    const CLASS: &'static str;
    /// Names of the arguments that every denoiser has.
    const CONVENTION: Convention;
    /// Conversion of images to bytes in the original.
    const QUANTISER: Quantiser = Quantiser::Edm;
    /// All assignments to the listed variables in the source of the class, as (variable, formula). A pickle is refused
    /// if its source of this class has other assignments. Without entries nothing is compared.
    const FORMULAS: &'static [(&'static str, &'static str)] = &[];

    /// Name of the class in checkpoints.
    fn class(&self) -> &'static str {
        Self::CLASS
    }

    /// Conversion of images to bytes in the original.
    fn quantiser(&self) -> Quantiser {
        Self::QUANTISER
    }

    /// Reads the arguments of the preconditioner and removes them from `args`.
    ///
    /// # Errors
    /// `Config` for a missing argument or a value out of range.
    fn read(args: &mut Args) -> Result<Self>;

    /// Takes or computes the noise levels of a discrete schedule; `None` for continuous noise levels.
    ///
    /// # Errors
    /// Those of [`Backend::buffer`].
    fn levels<B: Backend>(&self, _b: &mut B) -> Result<Option<Levels>> {
        Ok(None)
    }

    /// Number of network output channels for images with `channels` channels. Additional channels are not used.
    fn outputs(&self, channels: usize) -> usize {
        channels
    }

    /// Whether the result is clamped to [-1, 1].
    fn clips(&self) -> bool {
        false
    }

    /// Coefficients at the noise level `sigma`, rounded to f32 as in the original.
    fn scalars(&self, sigma: f64, levels: Option<&Levels>) -> Scalars;

    /// Coefficients of the noise levels `sigma [N]`.
    ///
    /// # Errors
    /// `Engine` if an operation fails.
    fn coefficients<B: Backend>(
        &self,
        b: &mut B,
        scope: &Scope,
        sigma: &B::Value,
        levels: Option<&Levels>,
    ) -> Result<Coefficients<B::Value>>;

    /// Lowest and highest noise level that the denoiser accepts: `sigma_min` and `sigma_max` of the original object.
    fn noise_range(&self, levels: Option<&Levels>) -> [f64; 2];
}

/// `sigma` rounded to f32.
#[allow(clippy::cast_possible_truncation, reason = "the originals take sigma as f32")]
pub(super) fn single(sigma: f64) -> f64 {
    f64::from(sigma as f32)
}
