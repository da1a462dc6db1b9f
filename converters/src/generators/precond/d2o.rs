//! `D2OPrecond`: EDM's coefficients with the boundary condition D(x; 0.002) = x.

use super::consistency::{Boundary, Consistency};
use crate::error::{Result, config};
use crate::generators::args::Args;

/// Noise level at which the denoiser is the identity.
pub const EPS: f64 = 2e-3;

/// Arguments of the class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct D2o {
    /// Standard deviation of the data.
    pub sigma_data: f64,
    sigma_max: f64,
}

impl Consistency for D2o {
    const NAME: &'static str = "D2OPrecond";
    const ASSIGNMENTS: &'static [(&'static str, &'static str)] = &[
        ("c_skip", "self.sigma_data ** 2 / ((sigma - self.eps) ** 2 + self.sigma_data ** 2)"),
        ("c_out", "(sigma - self.eps) * self.sigma_data / (sigma ** 2 + self.sigma_data ** 2).sqrt()"),
    ];

    fn of(args: &mut Args) -> Result<Self> {
        let sigma_min = args.float("sigma_min", 0.0)?;
        if sigma_min != 0.0 {
            return Err(config(format!(
                "`sigma_min`: D2OPrecond does not use it (its D(x; σ) is the identity at σ = {EPS}), found {sigma_min}"
            )));
        }
        let sigma_max = args.bound("sigma_max", f64::INFINITY)?;
        Ok(Self { sigma_data: args.float("sigma_data", 0.5)?, sigma_max })
    }

    fn boundary(&self) -> Boundary {
        Boundary { sigma_data: self.sigma_data, identity_at: Some(EPS) }
    }

    fn range(&self) -> [f64; 2] {
        [0.0, self.sigma_max]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generators::precond::Preconditioner as _;

    const D2O: D2o = D2o { sigma_data: 0.5, sigma_max: f64::INFINITY };

    #[test]
    fn coefficients_at_a_published_point() {
        let c = D2O.scalars(80.0, None);
        for (found, expected) in [
            (c.skip, 3.906_292_723e-5),
            (c.out, 0.499_977_734_9),
            (c.input, 0.012_499_755_87),
            (c.noise, 1.095_506_659),
        ] {
            assert!((found - expected).abs() <= 1e-8, "{found} differs from {expected}");
        }
    }

    #[test]
    fn the_denoiser_is_the_identity_at_eps() {
        let c = D2O.scalars(EPS, None);
        assert!(c.out.abs() < 1e-9 && (c.skip - 1.0).abs() < 1e-9);
    }
}
