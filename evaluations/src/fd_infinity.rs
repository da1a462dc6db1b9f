//! FD∞: the Fréchet distance extrapolated to infinitely many samples (Chong and Forsyth 2020).

use ndarray::{ArrayView2, Axis};

use crate::error::{Error, Result};
use crate::frechet::{Gaussian, frechet_distance};
use crate::gaussian::Accumulator;
use crate::numpy_random::RandomState;

/// Number of sample sizes the line is fitted to.
pub const POINTS: usize = 15;

/// Fewest samples the line is fitted to: all subsets have two images and the largest is ten times the smallest.
const LEAST: usize = 20;

/// Whether this many samples are enough; costs nothing.
///
/// # Errors
/// `TooFew` below 20.
pub fn check(samples: usize) -> Result<()> {
    if samples < LEAST {
        return Err(Error::TooFew { what: "samples", least: LEAST, found: samples });
    }
    Ok(())
}

/// Intercept of the line through the distances of subsets over 1/size.
///
/// `features [N, D]` of the samples. Fifteen sizes from `min(5000, max(N/10, 2))` to N, as in dgm-eval; each subset is
/// `RandomState(seed).choice(N, size, replace=False)` (dgm-eval does not seed). Covariances over `size - ddof`. An extrapolation, so it may be negative.
///
/// # Errors
/// Those of [`check`] and of the distance.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sample counts"
)]
pub fn fd_infinity(features: ArrayView2<'_, f32>, reference: &Gaussian, ddof: usize, seed: u32) -> Result<f64> {
    let n = features.nrows();
    check(n)?;
    let first = (n / 10).clamp(2, 5000) as f64;
    let step = (n as f64 - first) / (POINTS - 1) as f64;
    let mut rng = RandomState::new(seed);
    let (mut xs, mut ys) = (Vec::new(), Vec::new());
    for i in 0..POINTS {
        let size = if i + 1 == POINTS { n } else { (step * i as f64 + first) as usize };
        let mut sums = Accumulator::new(features.ncols());
        sums.push(features.select(Axis(0), &rng.choice(n, size)).view())?;
        xs.push(1.0 / size as f64);
        ys.push(frechet_distance(&sums.finish(ddof)?, reference)?);
    }
    Ok(intercept(&xs, &ys))
}

/// Intercept of the least-squares line.
#[allow(clippy::cast_precision_loss, reason = "a number of points")]
fn intercept(xs: &[f64], ys: &[f64]) -> f64 {
    let n = xs.len() as f64;
    let (mx, my) = (xs.iter().sum::<f64>() / n, ys.iter().sum::<f64>() / n);
    let slope = xs.iter().zip(ys).map(|(x, y)| (x - mx) * (y - my)).sum::<f64>()
        / xs.iter().map(|x| (x - mx) * (x - mx)).sum::<f64>();
    my - slope * mx
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    #[test]
    fn the_intercept_of_a_line() {
        assert!((intercept(&[1.0, 0.5, 0.25], &[5.0, 4.0, 3.5]) - 3.0).abs() < 1e-12);
    }

    #[test]
    fn extrapolation_removes_the_bias_of_few_samples() {
        let mut state = 1_u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32
        };
        // The true Gaussian: mean 3/2, variance 3/12, independent.
        let truth = Gaussian { mu: ndarray::Array1::from_elem(12, 1.5), sigma: Array2::eye(12) * 0.25 };
        let (mut plain, mut extrapolated) = (0.0, 0.0);
        for seed in 0..20 {
            let x = Array2::from_shape_simple_fn((600, 12), || uniform() + uniform() + uniform());
            let mut sums = Accumulator::new(12);
            sums.push(x.view()).unwrap();
            plain += frechet_distance(&sums.finish(1).unwrap(), &truth).unwrap() / 20.0;
            extrapolated += fd_infinity(x.view(), &truth, 1, seed).unwrap() / 20.0;
        }
        // Mean over sets: one extrapolation scatters by about half of the bias.
        assert!(extrapolated.abs() < 0.4 * plain, "{extrapolated} against {plain}");
        let x = Array2::<f32>::zeros((20, 12));
        let few = fd_infinity(x.slice(ndarray::s![..19, ..]), &truth, 1, 0);
        assert!(matches!(few, Err(Error::TooFew { least: 20, found: 19, .. })));
        assert!(check(20).is_ok());
    }
}
