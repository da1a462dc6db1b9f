//! Coefficients of DDPMs. The network is conditioned on the index of a noise level.

use super::levels::Levels;
use super::preconditioner::{Coefficients, Scalars, single};
use crate::backend::{Backend, Ops as _};
use crate::error::Result;
use crate::weights::Scope;

/// Factor that makes every positive difference of two noise levels larger than 1.
const STEP: f64 = 1e30;

/// Coefficients at one noise level.
pub(super) fn scalars(sigma: f64, levels: Option<&Levels>) -> Scalars {
    let s = single(sigma);
    let noise = levels.map_or(f64::NAN, |levels| levels.noise(sigma));
    Scalars { skip: 1.0, out: -s, input: 1.0 / (s * s + 1.0).sqrt(), noise }
}

/// Coefficients of the noise levels `sigma [N]`.
pub(super) fn coefficients<B: Backend>(
    b: &mut B,
    scope: &Scope,
    sigma: &B::Value,
    levels: Option<&Levels>,
) -> Result<Coefficients<B::Value>> {
    let s = b.reshape(sigma, &[-1, 1, 1, 1])?;
    let square = b.mul(&s, &s)?;
    let total = b.offset(&square, 1.0)?;
    let root = b.sqrt(&total)?;
    let one = b.constant(scope, "one", &[1, 1, 1, 1], vec![1.0])?;
    let input = b.div(&one, &root)?;
    let out = b.scale(&s, -1.0)?;
    // Counts the thresholds at or below sigma: the exact sum of 1 - (1 if sigma < threshold).
    let (thresholds, first, time_scale) =
        levels.map_or((Vec::new(), 0.0, 1.0), |l| (l.thresholds(), l.first, l.time_scale));
    let count = thresholds.len();
    let minus = b.constant(scope, "thresholds", &[1, count], thresholds)?;
    let column = b.reshape(sigma, &[-1, 1])?;
    let column = b.scale(&column, -1.0)?;
    let above = b.add(&minus, &column)?;
    let above = b.scale(&above, STEP)?;
    let above = b.clamp(&above, 0.0, 1.0)?;
    let ones = b.constant(scope, "ones", &[1, count], vec![1.0; count])?;
    let above = b.linear(&above, &ones, None)?;
    let noise = b.scale(&above, -1.0)?;
    let mut noise = b.offset(&noise, count as f64 + first)?;
    if time_scale != 1.0 {
        noise = b.scale(&noise, time_scale)?;
    }
    let noise = b.reshape(&noise, &[-1])?;
    Ok(Coefficients { skip: None, out, input: Some(input), noise })
}
