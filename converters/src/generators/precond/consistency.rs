//! Coefficients of EDM, without and with the boundary condition D(x; ε) = x of consistency models.

use super::levels::Levels;
use super::preconditioner::{Coefficients, Convention, Preconditioner, Scalars, single};
use crate::backend::{Backend, Ops as _};
use crate::error::Result;
use crate::generators::args::Args;
use crate::weights::Scope;

/// c_noise of EDM: ¼ ln σ.
const EDM_NOISE: f64 = 0.25;

/// c_skip = σ_data²/((σ − ε)² + σ_data²), c_out = (σ − ε) σ_data/√(σ² + σ_data²), c_in = 1/√(σ² + σ_data²). ε is
/// `identity_at`, or 0 if that is `None`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Boundary {
    pub(super) sigma_data: f64,
    pub(super) identity_at: Option<f64>,
}

impl Boundary {
    /// Coefficients at the noise level `sigma`, with c_noise = ¼ ln σ.
    pub(super) fn scalars(self, sigma: f64) -> Scalars {
        let (s, d) = (single(sigma), self.sigma_data);
        let total = s * s + d * d;
        let root = total.sqrt();
        let shifted = s - self.identity_at.unwrap_or(0.0);
        let skip = d * d / (shifted * shifted + d * d);
        Scalars { skip, out: shifted * d / root, input: 1.0 / root, noise: s.ln() * EDM_NOISE }
    }

    /// Coefficients of the noise levels `sigma [N]`. `noise` computes c_noise.
    pub(super) fn coefficients<B: Backend>(
        self,
        b: &mut B,
        scope: &Scope,
        sigma: &B::Value,
        noise: impl FnOnce(&mut B) -> Result<B::Value>,
    ) -> Result<Coefficients<B::Value>> {
        let s = b.reshape(sigma, &[-1, 1, 1, 1])?;
        let var = self.sigma_data * self.sigma_data;
        let square = b.mul(&s, &s)?;
        let total = b.offset(&square, var)?;
        let root = b.sqrt(&total)?;
        let (shifted, below) = if let Some(eps) = self.identity_at {
            let shifted = b.offset(&s, -eps)?;
            let square = b.mul(&shifted, &shifted)?;
            (shifted, b.offset(&square, var)?)
        } else {
            (s, total)
        };
        let one = b.constant(scope, "one", &[1, 1, 1, 1], vec![1.0])?;
        let skip = b.div(&one, &below)?;
        let skip = b.scale(&skip, var)?;
        let out = b.scale(&shifted, self.sigma_data)?;
        let out = b.div(&out, &root)?;
        let input = b.div(&one, &root)?;
        Ok(Coefficients { skip: Some(skip), out, input: Some(input), noise: noise(b)? })
    }
}

/// A class with these coefficients, c_noise = ¼ ln σ, and the argument names of EDM.
pub(crate) trait Consistency: Sized {
    /// Name of the class in checkpoints.
    const NAME: &'static str;
    /// [`Preconditioner::FORMULAS`].
    const ASSIGNMENTS: &'static [(&'static str, &'static str)];

    /// [`Preconditioner::read`].
    fn of(args: &mut Args) -> Result<Self>;

    fn boundary(&self) -> Boundary;

    /// [`Preconditioner::noise_range`].
    fn range(&self) -> [f64; 2];
}

impl<C: Consistency> Preconditioner for C {
    const CLASS: &'static str = C::NAME;
    const CONVENTION: Convention = Convention::Edm { default_backbone: "DhariwalUNet" };
    const FORMULAS: &'static [(&'static str, &'static str)] = C::ASSIGNMENTS;

    fn read(args: &mut Args) -> Result<Self> {
        C::of(args)
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
        self.boundary().coefficients(b, scope, sigma, |b| {
            let noise = b.log(sigma)?;
            b.scale(&noise, EDM_NOISE)
        })
    }

    fn noise_range(&self, _levels: Option<&Levels>) -> [f64; 2] {
        self.range()
    }
}
