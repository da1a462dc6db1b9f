//! `EDMPrecond` (Karras et al. 2022).

use super::consistency::{Boundary, Consistency};
use crate::error::Result;
use crate::generators::args::Args;

/// Arguments of the class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Edm {
    /// Standard deviation of the data.
    pub sigma_data: f64,
    /// Lowest and highest noise level.
    range: [f64; 2],
}

impl Consistency for Edm {
    const NAME: &'static str = "EDMPrecond";
    const ASSIGNMENTS: &'static [(&'static str, &'static str)] = &[
        ("c_skip", "self.sigma_data ** 2 / (sigma ** 2 + self.sigma_data ** 2)"),
        ("c_out", "sigma * self.sigma_data / (sigma ** 2 + self.sigma_data ** 2).sqrt()"),
    ];

    fn of(args: &mut Args) -> Result<Self> {
        let range = [args.bound("sigma_min", 0.0)?, args.bound("sigma_max", f64::INFINITY)?];
        Ok(Self { sigma_data: args.float("sigma_data", 0.5)?, range })
    }

    fn boundary(&self) -> Boundary {
        Boundary { sigma_data: self.sigma_data, identity_at: None }
    }

    fn range(&self) -> [f64; 2] {
        self.range
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generators::precond::Preconditioner as _;

    #[test]
    fn coefficients_at_a_published_point() {
        let edm = Edm { sigma_data: 0.5, range: [0.0, f64::INFINITY] };
        let c = edm.scalars(2.5, None);
        for (found, expected) in
            [(c.skip, 0.038_461_538_46), (c.out, 0.490_290_337_8), (c.input, 0.392_232_270_3), (c.noise, 0.229_072_683)]
        {
            assert!((found - expected).abs() <= 1e-8, "{found} differs from {expected}");
        }
    }
}
