//! 95 % intervals by resampling the samples; the reference is held fixed.

use faer::Mat;
use ndarray::{Array1, Array2, ArrayView2};

use crate::error::Result;
use crate::frechet::{Factor, Gaussian, RootSum};

/// A small documented generator (SplitMix64, Steele et al. 2014): intervals depend on the seed alone.
#[derive(Debug, Clone)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let wide = u128::from(z) * bound as u128;
        usize::try_from(wide >> 64).unwrap_or(0)
    }

    /// How often each of `n` rows is drawn in `n` draws with replacement.
    fn counts(&mut self, n: usize) -> Vec<u32> {
        let mut counts = vec![0; n];
        for _ in 0..n {
            counts[self.below(n)] += 1;
        }
        counts
    }
}

/// 95 % interval of the Fréchet distance at this number of samples: `value` plus the 2.5 and 97.5 % quantiles of the resampled distances
/// about their own mean.
///
/// The resampled distances lie above `value` on average (repeated rows lower the rank), which is why they give the spread and not the
/// place. The bias a distance from few samples has for itself is not in the interval. With `G = X Σᵣ Xᵀ` of the samples computed once, a
/// resample costs the eigenvalues of a matrix as large as its distinct rows.
///
/// `features [N, D]` of the samples; `value` their distance from `reference`.
///
/// # Errors
/// `Eigen` if a solver does not converge.
pub fn frechet_interval(
    features: ArrayView2<'_, f32>,
    reference: &Gaussian,
    value: f64,
    resamples: u32,
    seed: u64,
) -> Result<[f64; 2]> {
    let (n, d) = features.dim();
    let factor = Factor::of(&reference.sigma)?.matrix;
    let x = Mat::from_fn(n, d, |i, j| f64::from(features[[i, j]]) - reference.mu[j]);
    let projected = &x * &factor;
    let gram = &projected * projected.transpose();
    let squares: Vec<f64> = (0..n).map(|i| (0..d).map(|j| x[(i, j)] * x[(i, j)]).sum()).collect();
    let rows = Array2::from_shape_fn((n, d), |(i, j)| x[(i, j)]);
    let trace = reference.sigma.diag().sum();
    let mut rng = SplitMix64(seed);
    let mut values = Vec::new();
    for _ in 0..resamples {
        values.push(resampled(&rng.counts(n), &gram, &rows, &squares, trace)?);
    }
    Ok(about(value, values))
}

/// The distance of a resample in which row i occurs `counts[i]` times. Rows are relative to the reference's mean.
#[allow(clippy::cast_precision_loss, reason = "sample counts")]
fn resampled(counts: &[u32], gram: &Mat<f64>, rows: &Array2<f64>, squares: &[f64], trace: f64) -> Result<f64> {
    let n = counts.len() as f64;
    let weights: Vec<f64> = counts.iter().map(|c| f64::from(*c) / n).collect();
    let mean = Array1::from_vec(weights.clone()).dot(rows);
    let mean_square = mean.dot(&mean);
    let variance: f64 = weights.iter().zip(squares).map(|(w, s)| w * s).sum::<f64>() - mean_square;
    let unbiased = n / (n - 1.0);
    let drawn: Vec<usize> = (0..counts.len()).filter(|i| counts[*i] > 0).collect();
    // Centring about the resample's mean: G_ij − (Gw)_i − (Gw)_j + wᵀGw.
    let row_means: Vec<f64> =
        drawn.iter().map(|i| drawn.iter().map(|j| weights[*j] * gram[(*i, *j)]).sum::<f64>()).collect();
    let total: f64 = drawn.iter().zip(&row_means).map(|(i, m)| weights[*i] * m).sum();
    let roots: Vec<f64> = drawn.iter().map(|i| (weights[*i] * unbiased).sqrt()).collect();
    let centred = Mat::from_fn(drawn.len(), drawn.len(), |a, b| {
        roots[a] * roots[b] * (gram[(drawn[a], drawn[b])] - row_means[a] - row_means[b] + total)
    });
    Ok(mean_square + variance * unbiased + trace - 2.0 * RootSum::of(&centred)?.value)
}

/// 95 % interval of a share (precision, recall, coverage) over the images `flags` stands for; `None` without resamples.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "sample counts")]
pub fn share_interval(flags: &[bool], resamples: u32, seed: u64) -> Option<[f64; 2]> {
    let n = flags.len();
    let value = flags.iter().filter(|f| **f).count() as f64 / n as f64;
    let mut rng = SplitMix64(seed);
    let values: Vec<f64> =
        (0..resamples).map(|_| (0..n).filter(|_| flags[rng.below(n)]).count() as f64 / n as f64).collect();
    (resamples > 0).then(|| about(value, values).map(|v| v.clamp(0.0, 1.0)))
}

#[allow(clippy::cast_precision_loss, reason = "resample counts")]
fn about(value: f64, mut values: Vec<f64>) -> [f64; 2] {
    values.sort_by(f64::total_cmp);
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    [0.025, 0.975].map(|q| value + quantile(&values, q) - mean)
}

/// Linear interpolation between order statistics.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small indices"
)]
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * sorted.len().saturating_sub(1) as f64;
    let (low, fraction) = (at.floor() as usize, at.fract());
    let get = |i: usize| sorted.get(i.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN);
    get(low) * (1.0 - fraction) + get(low + 1) * fraction
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frechet::frechet_distance;
    use crate::gaussian::Accumulator;

    fn normal(n: usize, d: usize, seed: u64) -> Array2<f32> {
        let mut rng = SplitMix64(seed);
        Array2::from_shape_simple_fn((n, d), || {
            (0..12).map(|_| rng.below(1 << 20) as f32 / (1 << 20) as f32).sum::<f32>() - 6.0
        })
    }

    fn gaussian(x: &Array2<f32>) -> Gaussian {
        let mut a = Accumulator::new(x.ncols());
        a.push(x.view()).unwrap();
        a.finish(1).unwrap()
    }

    #[test]
    fn a_resample_equals_the_distance_of_its_rows() {
        let (x, reference) = (normal(40, 6, 1), gaussian(&normal(300, 6, 2)));
        let factor = Factor::of(&reference.sigma).unwrap().matrix;
        let counts = SplitMix64(3).counts(40);
        let repeated: Vec<usize> = (0..40).flat_map(|i| vec![i; counts[i] as usize]).collect();
        let expected = frechet_distance(&gaussian(&x.select(ndarray::Axis(0), &repeated)), &reference).unwrap();
        let centred = Mat::from_fn(40, 6, |i, j| f64::from(x[[i, j]]) - reference.mu[j]);
        let projected = &centred * &factor;
        let gram = &projected * projected.transpose();
        let rows = Array2::from_shape_fn((40, 6), |(i, j)| centred[(i, j)]);
        let squares: Vec<f64> = rows.outer_iter().map(|r| r.dot(&r)).collect();
        let found = resampled(&counts, &gram, &rows, &squares, reference.sigma.diag().sum()).unwrap();
        assert!((found - expected).abs() < 1e-9, "{found} differs from {expected}");
    }

    #[test]
    fn intervals_cover_the_spread_of_fresh_sets() {
        let reference = gaussian(&normal(4000, 5, 9));
        let fresh: Vec<f64> =
            (0..60).map(|s| frechet_distance(&gaussian(&normal(200, 5, 100 + s)), &reference).unwrap()).collect();
        let centre = fresh.iter().sum::<f64>() / 60.0;
        let covered = (0..60)
            .filter(|s| {
                let x = normal(200, 5, 100 + s);
                let value = fresh[usize::try_from(*s).unwrap()];
                let [low, high] = frechet_interval(x.view(), &reference, value, 100, *s).unwrap();
                low <= centre && centre <= high
            })
            .count();
        assert!(covered >= 50, "{covered} of 60 intervals hold the mean distance");
    }

    #[test]
    fn shares() {
        let flags: Vec<bool> = (0..1000).map(|i| i % 4 == 0).collect();
        let [low, high] = share_interval(&flags, 500, 1).unwrap();
        // Binomial: 0.25 ± 1.96·√(0.25·0.75/1000) = ±0.0268.
        assert!((low - 0.223).abs() < 0.006 && (high - 0.277).abs() < 0.006, "{low} {high}");
        assert_eq!(share_interval(&flags, 0, 1), None);
    }
}
