//! `VEPrecond`: variance exploding (Song et al. 2021).

use super::levels::Levels;
use super::preconditioner::{Coefficients, Convention, Preconditioner, Scalars, single};
use crate::backend::{Backend, Ops as _};
use crate::error::Result;
use crate::generators::args::Args;
use crate::weights::Scope;

/// Arguments of the class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ve {
    range: [f64; 2],
}

impl Preconditioner for Ve {
    const CLASS: &'static str = "VEPrecond";
    const CONVENTION: Convention = Convention::Edm { default_backbone: "SongUNet" };

    fn read(args: &mut Args) -> Result<Self> {
        Ok(Self { range: [args.bound("sigma_min", 0.02)?, args.bound("sigma_max", 100.0)?] })
    }

    fn scalars(&self, sigma: f64, _levels: Option<&Levels>) -> Scalars {
        let s = single(sigma);
        Scalars { skip: 1.0, out: s, input: 1.0, noise: (0.5 * s).ln() }
    }

    fn coefficients<B: Backend>(
        &self,
        b: &mut B,
        _scope: &Scope,
        sigma: &B::Value,
        _levels: Option<&Levels>,
    ) -> Result<Coefficients<B::Value>> {
        let out = b.reshape(sigma, &[-1, 1, 1, 1])?;
        let noise = b.scale(sigma, 0.5)?;
        let noise = b.log(&noise)?;
        Ok(Coefficients { skip: None, out, input: None, noise })
    }

    fn noise_range(&self, _levels: Option<&Levels>) -> [f64; 2] {
        self.range
    }
}
