//! `VPPrecond`: variance preserving (Song et al. 2021).

use super::levels::Levels;
use super::preconditioner::{Coefficients, Convention, Preconditioner, Scalars, single};
use crate::backend::{Backend, Ops as _};
use crate::error::Result;
use crate::generators::args::Args;
use crate::weights::Scope;

/// Arguments of the class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Vp {
    /// Extent of the noise level schedule.
    beta_d: f64,
    /// Initial slope of the noise level schedule.
    beta_min: f64,
    /// Number of time steps in training.
    steps: f64,
    /// Minimum time in training.
    epsilon_t: f64,
}

impl Preconditioner for Vp {
    const CLASS: &'static str = "VPPrecond";
    const CONVENTION: Convention = Convention::Edm { default_backbone: "SongUNet" };

    fn read(args: &mut Args) -> Result<Self> {
        Ok(Self {
            epsilon_t: args.float("epsilon_t", 1e-5)?,
            beta_d: args.float("beta_d", 19.9)?,
            beta_min: args.float("beta_min", 0.1)?,
            steps: args.float("M", 1000.0)?,
        })
    }

    fn scalars(&self, sigma: f64, _levels: Option<&Levels>) -> Scalars {
        let (s, Self { beta_d, beta_min, steps, .. }) = (single(sigma), *self);
        let t = ((beta_min * beta_min + 2.0 * beta_d * (s * s).ln_1p()).sqrt() - beta_min) / beta_d;
        Scalars { skip: 1.0, out: -s, input: 1.0 / (s * s + 1.0).sqrt(), noise: (steps - 1.0) * t }
    }

    fn coefficients<B: Backend>(
        &self,
        b: &mut B,
        scope: &Scope,
        sigma: &B::Value,
        _levels: Option<&Levels>,
    ) -> Result<Coefficients<B::Value>> {
        let Self { beta_d, beta_min, steps, .. } = *self;
        let s = b.reshape(sigma, &[-1, 1, 1, 1])?;
        let square = b.mul(&s, &s)?;
        let total = b.offset(&square, 1.0)?;
        let root = b.sqrt(&total)?;
        let one = b.constant(scope, "one", &[1, 1, 1, 1], vec![1.0])?;
        let input = b.div(&one, &root)?;
        let out = b.scale(&s, -1.0)?;
        let t = b.log(&total)?;
        let t = b.reshape(&t, &[-1])?;
        let t = b.scale(&t, 2.0 * beta_d)?;
        let t = b.offset(&t, beta_min * beta_min)?;
        let t = b.sqrt(&t)?;
        let t = b.offset(&t, -beta_min)?;
        let noise = b.scale(&t, (steps - 1.0) / beta_d)?;
        Ok(Coefficients { skip: None, out, input: Some(input), noise })
    }

    #[allow(clippy::cast_possible_truncation, reason = "the original computes its attributes in f32")]
    fn noise_range(&self, _levels: Option<&Levels>) -> [f64; 2] {
        let sigma = |t: f64| {
            let t = t as f32;
            f64::from((((0.5 * self.beta_d) as f32 * (t * t) + self.beta_min as f32 * t).exp() - 1.0).sqrt())
        };
        [sigma(self.epsilon_t), sigma(1.0)]
    }
}
