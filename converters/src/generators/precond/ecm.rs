//! `ECMPrecond` of ECT (Geng et al. 2024): EDM's coefficients with the boundary condition D(x; σ_min) = x; training uses them without it.

use super::consistency::{Boundary, quarter_log};
use super::levels::Levels;
use super::preconditioner::{Coefficients, Convention, Preconditioner, Scalars};
use crate::backend::Backend;
use crate::error::Result;
use crate::generators::args::Args;
use crate::weights::Scope;

/// Arguments of the class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ecm {
    /// Standard deviation of the data.
    pub sigma_data: f64,
    /// Noise level at which the denoiser is the identity, and the highest it takes.
    range: [f64; 2],
}

impl Ecm {
    fn boundary(self) -> Boundary {
        Boundary { sigma_data: self.sigma_data, identity_at: Some(self.range[0]) }
    }
}

impl Preconditioner for Ecm {
    const CLASS: &'static str = "ECMPrecond";
    const CONVENTION: Convention = Convention::Edm { default_backbone: "DhariwalUNet" };
    const FORMULAS: &'static [(&'static str, &'static str)] = &[
        ("c_skip", "self.sigma_data ** 2 / (sigma ** 2 + self.sigma_data ** 2)"),
        ("c_out", "sigma * self.sigma_data / (sigma ** 2 + self.sigma_data ** 2).sqrt()"),
        ("c_skip", "self.sigma_data ** 2 / ((sigma - self.sigma_min) ** 2 + self.sigma_data ** 2)"),
        ("c_out", "(sigma - self.sigma_min) * self.sigma_data / (sigma ** 2 + self.sigma_data ** 2).sqrt()"),
    ];

    fn read(args: &mut Args) -> Result<Self> {
        let range = [args.float("sigma_min", 0.003)?, args.bound("sigma_max", f64::INFINITY)?];
        Ok(Self { sigma_data: args.float("sigma_data", 0.5)?, range })
    }

    fn scalars(&self, sigma: f64, _levels: Option<&Levels>) -> Scalars {
        self.boundary().scalars(sigma)
    }

    fn coefficients<B: Backend>(
        &self,
        b: &mut B,
        scope: &Scope,
        sigma: &B::Value,
        _levels: Option<&Levels>,
    ) -> Result<Coefficients<B::Value>> {
        self.boundary().coefficients(b, scope, sigma, |b| quarter_log(b, sigma))
    }

    fn noise_range(&self, _levels: Option<&Levels>) -> [f64; 2] {
        self.range
    }
}
