//! `iDDPMPrecond`: improved DDPM (Nichol and Dhariwal 2021) in the form of EDM. Predicted variances are not used.

use super::discrete;
use super::levels::Levels;
use super::preconditioner::{Coefficients, Convention, Preconditioner, Scalars};
use crate::backend::Backend;
use crate::error::{Result, config};
use crate::generators::args::Args;
use crate::weights::{Init, Scope};

/// Maximum number of steps of a schedule.
pub(super) const MAX_STEPS: usize = 1 << 14;

/// Arguments of the class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Iddpm {
    /// Lower bound of the ratio of successive ᾱ.
    c1: f64,
    /// Offset of the cosine schedule.
    c2: f64,
    /// Number of time steps in training.
    steps: usize,
}

impl Preconditioner for Iddpm {
    const CLASS: &'static str = "iDDPMPrecond";
    const CONVENTION: Convention = Convention::Edm { default_backbone: "DhariwalUNet" };

    fn read(args: &mut Args) -> Result<Self> {
        let (c1, c2) = (args.float("C_1", 0.001)?, args.float("C_2", 0.008)?);
        let steps = args.number("M")?.unwrap_or(1000);
        if !(1..=MAX_STEPS).contains(&steps) {
            return Err(config(format!("`M`: expected 1 to {MAX_STEPS}, found {steps}")));
        }
        Ok(Self { c1, c2, steps })
    }

    fn levels<B: Backend>(&self, b: &mut B) -> Result<Option<Levels>> {
        let init = Init::Values(iddpm_levels(self.c1, self.c2, self.steps));
        let sigmas = b.buffer(&Scope::root(), "u", &[self.steps + 1], &init)?;
        Ok(Some(Levels { sigmas, first: -1.0, time_scale: 1.0 }))
    }

    fn outputs(&self, channels: usize) -> usize {
        2 * channels
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

/// The `steps + 1` noise levels u of `iDDPMPrecond` in EDM, in descending order. The last one is 0.
#[allow(clippy::cast_possible_truncation, reason = "the original keeps them as f32")]
pub(super) fn iddpm_levels(c1: f64, c2: f64, steps: usize) -> Vec<f32> {
    let alpha_bar = |j: usize| (0.5 * std::f64::consts::PI * j as f64 / steps as f64 / (c2 + 1.0)).sin().powi(2);
    let mut u = vec![0.0; steps + 1];
    for j in (1..=steps).rev() {
        let ratio = (alpha_bar(j - 1) / alpha_bar(j)).max(c1);
        u[j - 1] = ((f64::from(u[j]) * f64::from(u[j]) + 1.0) / ratio - 1.0).sqrt() as f32;
    }
    u
}
