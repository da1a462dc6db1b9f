//! `ECMPrecond` of ECT (Geng et al. 2024): EDM's coefficients with the boundary condition D(x; σ_min) = x. Training
//! uses the coefficients without this condition.

use super::consistency::{Boundary, Consistency};
use crate::error::Result;
use crate::generators::args::Args;

/// Arguments of the class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ecm {
    /// Standard deviation of the data.
    pub sigma_data: f64,
    /// Noise level at which the denoiser is the identity, and the highest noise level.
    range: [f64; 2],
}

impl Consistency for Ecm {
    const NAME: &'static str = "ECMPrecond";
    const ASSIGNMENTS: &'static [(&'static str, &'static str)] = &[
        ("c_skip", "self.sigma_data ** 2 / (sigma ** 2 + self.sigma_data ** 2)"),
        ("c_out", "sigma * self.sigma_data / (sigma ** 2 + self.sigma_data ** 2).sqrt()"),
        ("c_skip", "self.sigma_data ** 2 / ((sigma - self.sigma_min) ** 2 + self.sigma_data ** 2)"),
        ("c_out", "(sigma - self.sigma_min) * self.sigma_data / (sigma ** 2 + self.sigma_data ** 2).sqrt()"),
    ];

    fn of(args: &mut Args) -> Result<Self> {
        let range = [args.float("sigma_min", 0.003)?, args.bound("sigma_max", f64::INFINITY)?];
        Ok(Self { sigma_data: args.float("sigma_data", 0.5)?, range })
    }

    fn boundary(&self) -> Boundary {
        Boundary { sigma_data: self.sigma_data, identity_at: Some(self.range[0]) }
    }

    fn range(&self) -> [f64; 2] {
        self.range
    }
}
