//! The trait of preconditioners.

use super::levels::Levels;
use crate::backend::Backend;
use crate::error::Result;
use crate::generators::args::Args;
use crate::weights::Scope;
use d2o_onnx::metadata::Quantiser;

/// Names that a constructor gives the arguments that every denoiser has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Convention {
    /// EDM's: `img_resolution`, `img_channels`, `label_dim`, `model_type`.
    Edm {
        /// Class of the network if `model_type` is absent.
        default_backbone: &'static str,
    },
    /// OpenAI's: `image_size`, `in_channels`, `num_classes`; the network is a `UNetModel`. Null arguments are absent ones.
    OpenAi,
}

/// Scalar coefficients at one noise level.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scalars {
    /// Factor of the noisy image in the result.
    pub skip: f64,
    /// Factor of the network's output.
    pub out: f64,
    /// Factor of the network's input.
    pub input: f64,
    /// The network's conditioning on the noise level.
    pub noise: f64,
}

/// c_skip, c_out, c_in (each `[N or 1, 1, 1, 1]`) and c_noise (`[N or 1]`) as values of a backend; `None` is 1.
#[derive(Debug, Clone)]
pub struct Coefficients<V> {
    /// Factor of the noisy image in the result.
    pub skip: Option<V>,
    /// Factor of the network's output.
    pub out: V,
    /// Factor of the network's input.
    pub input: Option<V>,
    /// The network's conditioning on the noise level.
    pub noise: V,
}

/// A preconditioner: the arguments of its class, and its coefficients.
pub trait Preconditioner: Sized {
    /// Name of the class in checkpoints.
    const CLASS: &'static str;
    /// Names of the arguments that every denoiser has.
    const CONVENTION: Convention;
    /// The original's conversion of images to bytes.
    const QUANTISER: Quantiser = Quantiser::Edm;
    /// Assignments in the class's source, as (variable, formula), all of them: a pickle that carries another source under this name is refused.
    const FORMULAS: &'static [(&'static str, &'static str)] = &[];

    /// Name of the class in checkpoints.
    fn class(&self) -> &'static str {
        Self::CLASS
    }

    /// The original's conversion of images to bytes.
    fn quantiser(&self) -> Quantiser {
        Self::QUANTISER
    }

    /// Takes the arguments that belong to the preconditioner.
    ///
    /// # Errors
    /// `Config` for a missing argument or a value out of range.
    fn read(args: &mut Args) -> Result<Self>;

    /// Takes or computes the noise levels of a discrete schedule.
    ///
    /// # Errors
    /// Those of [`Backend::buffer`].
    fn levels<B: Backend>(&self, _b: &mut B) -> Result<Option<Levels>> {
        Ok(None)
    }

    /// Channels of the network's output for images of `channels`; those beyond are not used.
    fn outputs(&self, channels: usize) -> usize {
        channels
    }

    /// Whether the result is limited to [-1, 1].
    fn clips(&self) -> bool {
        false
    }

    /// Coefficients at the noise level `sigma`, which the original holds in f32.
    fn scalars(&self, sigma: f64, levels: Option<&Levels>) -> Scalars;

    /// Coefficients of the noise levels `sigma [N]`.
    ///
    /// # Errors
    /// `Engine`.
    fn coefficients<B: Backend>(
        &self,
        b: &mut B,
        scope: &Scope,
        sigma: &B::Value,
        levels: Option<&Levels>,
    ) -> Result<Coefficients<B::Value>>;

    /// Lowest and highest noise level the denoiser takes: `sigma_min` and `sigma_max` of the original's object.
    fn noise_range(&self, levels: Option<&Levels>) -> [f64; 2];
}

/// `sigma` as f32 holds it.
#[allow(clippy::cast_possible_truncation, reason = "the originals take sigma as f32")]
pub(super) fn single(sigma: f64) -> f64 {
    f64::from(sigma as f32)
}
