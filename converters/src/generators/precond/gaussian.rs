//! `GaussianDiffusion` of guided-diffusion: a DDPM that predicts the noise. Predicted variances are not used.

use serde::{Deserialize, Serialize};

use super::discrete;
use super::iddpm::MAX_STEPS;
use super::levels::Levels;
use super::preconditioner::{Coefficients, Convention, Preconditioner, Scalars};
use crate::backend::Backend;
use crate::error::{Result, config};
use crate::generators::args::{Args, missing};
use crate::generators::openai;
use crate::weights::Scope;
use d2o_onnx::metadata::Quantiser;

/// Number of time steps to which `rescale_timesteps` scales.
const RESCALED_STEPS: usize = 1000;

/// The noise schedules of guided-diffusion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum NoiseSchedule {
    /// β rises linearly from 0.1/steps to 20/steps: 1e-4 to 0.02 for 1000 steps (Ho et al. 2020).
    Linear,
    /// ᾱ is a squared cosine (Nichol and Dhariwal 2021).
    Cosine,
}

/// Arguments of the diffusion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gaussian {
    /// The schedule of β.
    pub schedule: NoiseSchedule,
    /// Number of time steps in training.
    pub steps: usize,
    /// Factor of the time step that conditions the network: 1000/steps if time steps are rescaled, else 1.
    pub time_scale: f64,
    /// Whether the result is clamped to [-1, 1].
    pub clip: bool,
}

impl Preconditioner for Gaussian {
    const CLASS: &'static str = openai::GUIDED;
    const CONVENTION: Convention = Convention::OpenAi;
    const QUANTISER: Quantiser = Quantiser::OpenAi;

    fn read(args: &mut Args) -> Result<Self> {
        let clip = args.flag("clip_denoised")?.unwrap_or(true);
        args.ignore(&["sigma_max"]);
        let steps = args.number("diffusion_steps")?.unwrap_or(1000);
        if !(2..=MAX_STEPS).contains(&steps) {
            return Err(config(format!("`diffusion_steps`: expected 2 to {MAX_STEPS}, found {steps}")));
        }
        let rescaled = match args.flag("rescale_timesteps")? {
            Some(rescaled) => rescaled,
            None if steps == RESCALED_STEPS => false,
            None => return Err(missing("rescale_timesteps")),
        };
        let time_scale = if rescaled { RESCALED_STEPS as f64 / steps as f64 } else { 1.0 };
        Ok(Self { schedule: args.parsed("noise_schedule")?, steps, time_scale, clip })
    }

    fn levels<B: Backend>(&self, _b: &mut B) -> Result<Option<Levels>> {
        let sigmas = gaussian_levels(self.schedule, self.steps);
        Ok(Some(Levels { sigmas, first: 0.0, time_scale: self.time_scale }))
    }

    fn clips(&self) -> bool {
        self.clip
    }

    fn scalars(&self, sigma: f64, levels: Option<&Levels>) -> Scalars {
        discrete::scalars(sigma, levels)
    }

    fn coefficients<B: Backend>(
        &self,
        b: &mut B,
        scope: &Scope,
        sigma: &B::Value,
        levels: Option<&Levels>,
    ) -> Result<Coefficients<B::Value>> {
        discrete::coefficients(b, scope, sigma, levels)
    }

    fn noise_range(&self, levels: Option<&Levels>) -> [f64; 2] {
        levels.map_or([0.0, f64::INFINITY], Levels::range)
    }
}

/// Noise levels √((1 − ᾱ)/ᾱ) of the schedules of guided-diffusion, in descending order.
#[allow(clippy::cast_possible_truncation, reason = "thresholds are compared in f32")]
pub(super) fn gaussian_levels(schedule: NoiseSchedule, steps: usize) -> Vec<f32> {
    const MAX_BETA: f64 = 0.999;
    let total = steps as f64;
    let beta = |i: usize| match schedule {
        NoiseSchedule::Linear => {
            let (low, high) = (1000.0 / total * 0.0001, 1000.0 / total * 0.02);
            low + (high - low) * i as f64 / (total - 1.0)
        }
        NoiseSchedule::Cosine => {
            let alpha_bar = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
            (1.0 - alpha_bar((i + 1) as f64 / total) / alpha_bar(i as f64 / total)).min(MAX_BETA)
        }
    };
    let mut alpha_bar = 1.0;
    let mut sigmas: Vec<f32> = (0..steps)
        .map(|i| {
            alpha_bar *= 1.0 - beta(i);
            ((1.0 - alpha_bar) / alpha_bar).sqrt() as f32
        })
        .collect();
    sigmas.reverse();
    sigmas
}
