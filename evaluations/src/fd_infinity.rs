//! FD∞: the Fréchet distance extrapolated to infinitely many samples (Chong and Forsyth 2020).

use ndarray::{ArrayView2, Axis};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::frechet::{Gaussian, frechet_distance};
use crate::gaussian::Accumulator;
use crate::numpy_random::RandomState;

/// Number of sample sizes the line is fitted to.
pub const POINTS: usize = 15;

/// Smallest number of samples. From here on, every subset has at least two images and the largest is ten times the
/// smallest.
const LEAST: usize = 20;

/// Least-squares line through the Fréchet distances of subsets, as a function of 1/size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Extrapolation {
    /// Number of images of each subset, ascending. The last subset is the whole set.
    pub sizes: Vec<usize>,
    /// Distance of each subset.
    pub distances: Vec<f64>,
    /// Value of the line at 1/size = 0: FD∞. It can be negative.
    pub intercept: f64,
    /// Slope of the line: distance times images.
    pub slope: f64,
}

/// Checks that there are enough samples, before anything is computed.
///
/// # Errors
/// `TooFew` below 20.
pub fn check(samples: usize) -> Result<()> {
    if samples < LEAST {
        return Err(Error::TooFew { what: "samples", least: LEAST, found: samples });
    }
    Ok(())
}

/// Fits the least-squares line through the Fréchet distances of subsets, as a function of 1/size.
///
/// `features [N, D]` are those of the samples. There are 15 evenly spaced sizes from `min(5000, max(N/10, 2))` to N, as
/// in dgm-eval. All subsets are drawn from one `RandomState(seed)` with `choice(N, size, replace=False)`; dgm-eval sets
/// no seed. Covariances have the divisor `size - ddof`.
///
/// # Errors
/// Those of [`check`] and of [`frechet_distance`].
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sample counts"
)]
pub fn fd_infinity(
    features: ArrayView2<'_, f32>,
    reference: &Gaussian,
    ddof: usize,
    seed: u32,
) -> Result<Extrapolation> {
    let n = features.nrows();
    check(n)?;
    let first = (n / 10).clamp(2, 5000) as f64;
    let step = (n as f64 - first) / (POINTS - 1) as f64;
    let mut rng = RandomState::new(seed);
    let (mut sizes, mut distances) = (Vec::new(), Vec::new());
    for i in 0..POINTS {
        let size = if i + 1 == POINTS { n } else { (step * i as f64 + first) as usize };
        let mut sums = Accumulator::new(features.ncols());
        sums.push(features.select(Axis(0), &rng.choice(n, size)).view())?;
        sizes.push(size);
        distances.push(frechet_distance(&sums.finish(ddof)?, reference)?);
    }
    let xs: Vec<f64> = sizes.iter().map(|size| 1.0 / *size as f64).collect();
    let [intercept, slope] = line(&xs, &distances);
    Ok(Extrapolation { sizes, distances, intercept, slope })
}

/// Intercept and slope of the least-squares line.
#[allow(clippy::cast_precision_loss, reason = "a number of points")]
fn line(xs: &[f64], ys: &[f64]) -> [f64; 2] {
    let n = xs.len() as f64;
    let (mx, my) = (xs.iter().sum::<f64>() / n, ys.iter().sum::<f64>() / n);
    let slope = xs.iter().zip(ys).map(|(x, y)| (x - mx) * (y - my)).sum::<f64>()
        / xs.iter().map(|x| (x - mx) * (x - mx)).sum::<f64>();
    [my - slope * mx, slope]
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    #[test]
    fn intercept_and_slope_of_a_line() {
        let [intercept, slope] = line(&[1.0, 0.5, 0.25], &[5.0, 4.0, 3.5]);
        assert!((intercept - 3.0).abs() < 1e-12 && (slope - 2.0).abs() < 1e-12);
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
            let distance = frechet_distance(&sums.finish(1).unwrap(), &truth).unwrap();
            plain += distance / 20.0;
            let found = fd_infinity(x.view(), &truth, 1, seed).unwrap();
            extrapolated += found.intercept / 20.0;
            // Sizes go from a tenth of the set to the whole set. The last distance equals the plain one up to summation
            // order.
            assert_eq!((found.sizes.len(), found.sizes[0], found.sizes[POINTS - 1]), (POINTS, 60, 600));
            assert!((found.distances[POINTS - 1] - distance).abs() < 1e-9);
        }
        // The mean over sets is tested: a single extrapolation varies by about half of the bias.
        assert!(extrapolated.abs() < 0.4 * plain, "{extrapolated} against {plain}");
        let x = Array2::<f32>::zeros((20, 12));
        let few = fd_infinity(x.slice(ndarray::s![..19, ..]), &truth, 1, 0);
        assert!(matches!(few, Err(Error::TooFew { least: 20, found: 19, .. })));
        assert!(check(20).is_ok());
    }
}
