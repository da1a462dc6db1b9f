//! `KarrasDenoiser` of consistency_models (Song et al. 2023): EDM's coefficients, with the network conditioned on 250 ln σ.

use super::consistency::Boundary;
use super::levels::Levels;
use super::preconditioner::{Coefficients, Convention, Preconditioner, Scalars, single};
use crate::backend::{Backend, Ops as _};
use crate::error::Result;
use crate::generators::args::{Args, missing};
use crate::generators::openai;
use crate::weights::Scope;
use d2o_onnx::metadata::Quantiser;

/// c_noise = 1000 · ¼ ln(σ + 1e-44).
const TIME: f64 = 250.0;
/// Keeps the logarithm finite at σ = 0.
const TINY: f64 = 1e-44;

/// Arguments of the class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Karras {
    /// Standard deviation of the data.
    pub sigma_data: f64,
    /// Noise level at which a consistency model is the identity; `None` for a denoiser.
    pub identity_at: Option<f64>,
    /// Whether the result is clamped to [-1, 1].
    pub clip: bool,
    range: [f64; 2],
}

impl Karras {
    fn boundary(self) -> Boundary {
        Boundary { sigma_data: self.sigma_data, identity_at: self.identity_at }
    }
}

impl Preconditioner for Karras {
    const CLASS: &'static str = openai::CONSISTENCY;
    const CONVENTION: Convention = Convention::OpenAi;
    const QUANTISER: Quantiser = Quantiser::OpenAi;

    fn read(args: &mut Args) -> Result<Self> {
        let clip = args.flag("clip_denoised")?.unwrap_or(true);
        let sigma_data = args.float("sigma_data", 0.5)?;
        let given = args.has("sigma_min");
        let sigma_min = args.float("sigma_min", 0.002)?;
        let range = [if given { sigma_min } else { 0.0 }, args.float("sigma_max", f64::INFINITY)?];
        let distillation = args.flag("distillation")?.ok_or_else(|| missing("distillation"))?;
        Ok(Self { sigma_data, identity_at: distillation.then_some(sigma_min), clip, range })
    }

    fn clips(&self) -> bool {
        self.clip
    }

    fn scalars(&self, sigma: f64, _levels: Option<&Levels>) -> Scalars {
        // In f32 step by step, as in the original: c_noise is in the hundreds, so rounding changes the sine of the
        // embedding.
        #[allow(clippy::cast_possible_truncation, reason = "the original computes it in f32")]
        let noise = (single(sigma) + TINY).ln() as f32 * TIME as f32;
        Scalars { noise: noise.into(), ..self.boundary().scalars(sigma) }
    }

    fn coefficients<B: Backend>(
        &self,
        b: &mut B,
        scope: &Scope,
        sigma: &B::Value,
        _levels: Option<&Levels>,
    ) -> Result<Coefficients<B::Value>> {
        self.boundary().coefficients(b, scope, sigma, |b| {
            let above_zero = b.offset(sigma, TINY)?;
            let noise = b.log(&above_zero)?;
            b.scale(&noise, TIME)
        })
    }

    fn noise_range(&self, _levels: Option<&Levels>) -> [f64; 2] {
        self.range
    }
}
