//! 95 % bootstrap intervals of metrics for another set of as many samples: samples are drawn with replacement, the
//! reference is fixed.
//!
//! | metric | what a resample recomputes |
//! |---|---|
//! | Fréchet distance | mean and covariance of the samples |
//! | precision, density | the mean over samples; the balls of the reference do not depend on the samples |
//! | recall, coverage | no interval: they are means over reference images, and each flag depends on all samples |
//!
//! Resampling the flags of recall and coverage would estimate the uncertainty over another set of reference images with
//! fixed samples, which is a different quantity. Resampling the samples omits about a third of them and repeats others.
//! This shrinks the balls of recall (a copy is a neighbour at distance 0) and uncovers balls of coverage. Therefore
//! neither has an interval.

use std::fmt;

use faer::Mat;
use ndarray::{Array1, Array2, ArrayView2};

use crate::error::Result;
use crate::frechet::{Factor, Gaussian, RootSum};

/// SplitMix64 (Steele et al. 2014). Intervals depend only on the seed.
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

    /// Number of times each of `n` rows is sampled in `n` draws with replacement.
    fn counts(&mut self, n: usize) -> Vec<u32> {
        let mut counts = vec![0; n];
        for _ in 0..n {
            counts[self.below(n)] += 1;
        }
        counts
    }
}

/// Reason why a metric has no interval. `Display` gives the note for users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoInterval {
    /// No resamples were requested.
    NotRequested,
    /// There are at most as many samples as features, so the covariance does not have full rank. Resamples have even
    /// lower rank, and the interval would be meaningless.
    FewSamples {
        /// Number of samples.
        samples: usize,
        /// Number of features.
        dims: usize,
    },
}

impl NoInterval {
    /// Reason why the Fréchet distance of `samples` samples has no interval, before anything is computed.
    #[must_use]
    pub fn of_frechet(samples: usize, dims: usize, resamples: u32) -> Option<Self> {
        if resamples == 0 {
            Some(Self::NotRequested)
        } else {
            (samples <= dims).then_some(Self::FewSamples { samples, dims })
        }
    }
}

impl fmt::Display for NoInterval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRequested => f.write_str("no interval: no resamples requested"),
            Self::FewSamples { samples, dims } => {
                write!(
                    f,
                    "no interval for the Fréchet distance: expected more samples than features, found {samples} for {dims}"
                )
            }
        }
    }
}

/// 95 % bootstrap interval of the Fréchet distance: `value` plus the 2.5 and 97.5 % quantiles of the resampled
/// distances minus their mean, at least 0.
///
/// Repeated rows lower the rank, so resampled distances are larger than `value` on average. They determine the width of
/// the interval, not its centre. The bias of a distance from few samples is not part of the interval. `G = X Σᵣ Xᵀ` of
/// the samples is computed once; a resample then costs the eigenvalues of a matrix with one row per distinct sample.
///
/// `features [N, D]` are those of the samples, `value` is their distance from `reference`. Covariances have the divisor
/// `N - ddof`. The inner `Err` is the reason why there is no interval.
///
/// # Errors
/// `Eigen` if a solver does not converge.
pub fn frechet_interval(
    features: ArrayView2<'_, f32>,
    reference: &Gaussian,
    value: f64,
    ddof: usize,
    resamples: u32,
    seed: u64,
) -> Result<Result<[f64; 2], NoInterval>> {
    let (n, d) = features.dim();
    if let Some(reason) = NoInterval::of_frechet(n, d, resamples) {
        return Ok(Err(reason));
    }
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
        values.push(resampled(&rng.counts(n), &gram, &rows, &squares, trace, ddof)?);
    }
    Ok(Ok(percentile_interval(value, values).map(|v| v.max(0.0))))
}

/// Fréchet distance of a resample in which row i occurs `counts[i]` times. `rows` are relative to the mean of the
/// reference.
#[allow(clippy::cast_precision_loss, reason = "sample counts")]
fn resampled(
    counts: &[u32],
    gram: &Mat<f64>,
    rows: &Array2<f64>,
    squares: &[f64],
    trace: f64,
    ddof: usize,
) -> Result<f64> {
    let n = counts.len() as f64;
    let weights: Vec<f64> = counts.iter().map(|c| f64::from(*c) / n).collect();
    let mean = Array1::from_vec(weights.clone()).dot(rows);
    let mean_square = mean.dot(&mean);
    let variance: f64 = weights.iter().zip(squares).map(|(w, s)| w * s).sum::<f64>() - mean_square;
    let scale = n / (n - ddof as f64);
    let drawn: Vec<usize> = (0..counts.len()).filter(|i| counts[*i] > 0).collect();
    // Centred on the mean of the resample: G_ij − (Gw)_i − (Gw)_j + wᵀGw.
    let row_means: Vec<f64> =
        drawn.iter().map(|i| drawn.iter().map(|j| weights[*j] * gram[(*i, *j)]).sum::<f64>()).collect();
    let total: f64 = drawn.iter().zip(&row_means).map(|(i, m)| weights[*i] * m).sum();
    let roots: Vec<f64> = drawn.iter().map(|i| (weights[*i] * scale).sqrt()).collect();
    let centred = Mat::from_fn(drawn.len(), drawn.len(), |a, b| {
        roots[a] * roots[b] * (gram[(drawn[a], drawn[b])] - row_means[a] - row_means[b] + total)
    });
    Ok(mean_square + variance * scale + trace - 2.0 * RootSum::of(&centred)?.value)
}

/// 95 % interval of a proportion of the samples (precision), from one flag per sample; `None` without resamples or
/// samples.
#[must_use]
pub fn proportion_interval(flags: &[bool], resamples: u32, seed: u64) -> Option<[f64; 2]> {
    let interval = mean_interval(flags.len(), |i| f64::from(u8::from(flags[i])), resamples, seed)?;
    Some(interval.map(|v| v.min(1.0)))
}

/// 95 % interval of a mean count over the samples divided by `k` (density), from one count per sample; `None` without
/// resamples or samples.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "a number of neighbours")]
pub fn mean_count_interval(counts: &[u32], k: usize, resamples: u32, seed: u64) -> Option<[f64; 2]> {
    mean_interval(counts.len(), |i| f64::from(counts[i]) / k as f64, resamples, seed)
}

/// 95 % interval of the mean of `n` values that are not negative.
#[allow(clippy::cast_precision_loss, reason = "sample counts")]
fn mean_interval(n: usize, value: impl Fn(usize) -> f64, resamples: u32, seed: u64) -> Option<[f64; 2]> {
    if n == 0 || resamples == 0 {
        return None;
    }
    let mut rng = SplitMix64(seed);
    let values = (0..resamples).map(|_| (0..n).map(|_| value(rng.below(n))).sum::<f64>() / n as f64).collect();
    Some(percentile_interval((0..n).map(&value).sum::<f64>() / n as f64, values).map(|v| v.max(0.0)))
}

/// `value` plus the 2.5 and 97.5 % quantiles of `values` minus their mean.
#[allow(clippy::cast_precision_loss, reason = "resample counts")]
fn percentile_interval(value: f64, mut values: Vec<f64>) -> [f64; 2] {
    values.sort_by(f64::total_cmp);
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    [0.025, 0.975].map(|q| value + quantile(&values, q) - mean)
}

/// Quantile `q`, interpolated linearly between order statistics.
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

    fn gaussian(x: &Array2<f32>, ddof: usize) -> Gaussian {
        let mut a = Accumulator::new(x.ncols());
        a.push(x.view()).unwrap();
        a.finish(ddof).unwrap()
    }

    #[test]
    fn a_resample_equals_the_distance_of_its_rows() {
        let x = normal(40, 6, 1);
        let counts = SplitMix64(3).counts(40);
        let repeated: Vec<usize> = (0..40).flat_map(|i| vec![i; counts[i] as usize]).collect();
        for ddof in [0, 1] {
            let reference = gaussian(&normal(300, 6, 2), ddof);
            let factor = Factor::of(&reference.sigma).unwrap().matrix;
            let drawn = gaussian(&x.select(ndarray::Axis(0), &repeated), ddof);
            let expected = frechet_distance(&drawn, &reference).unwrap();
            let centred = Mat::from_fn(40, 6, |i, j| f64::from(x[[i, j]]) - reference.mu[j]);
            let projected = &centred * &factor;
            let gram = &projected * projected.transpose();
            let rows = Array2::from_shape_fn((40, 6), |(i, j)| centred[(i, j)]);
            let squares: Vec<f64> = rows.outer_iter().map(|r| r.dot(&r)).collect();
            let trace = reference.sigma.diag().sum();
            let found = resampled(&counts, &gram, &rows, &squares, trace, ddof).unwrap();
            assert!((found - expected).abs() < 1e-9, "ddof {ddof}: {found} differs from {expected}");
        }
    }

    #[test]
    fn intervals_cover_the_spread_of_fresh_sets() {
        let reference = gaussian(&normal(4000, 5, 9), 1);
        let fresh: Vec<f64> =
            (0..60).map(|s| frechet_distance(&gaussian(&normal(200, 5, 100 + s), 1), &reference).unwrap()).collect();
        let centre = fresh.iter().sum::<f64>() / 60.0;
        let covered = (0..60)
            .filter(|s| {
                let x = normal(200, 5, 100 + s);
                let value = fresh[usize::try_from(*s).unwrap()];
                let [low, high] = frechet_interval(x.view(), &reference, value, 1, 100, *s).unwrap().unwrap();
                low <= centre && centre <= high
            })
            .count();
        assert!(covered >= 50, "{covered} of 60 intervals hold the mean distance");
    }

    #[test]
    fn an_interval_is_not_negative_and_takes_more_samples_than_features() {
        let x = normal(30, 6, 4);
        let own = gaussian(&x, 1);
        let [low, high] = frechet_interval(x.view(), &own, 0.0, 1, 100, 1).unwrap().unwrap();
        assert!(low == 0.0 && high > 0.0, "{low} {high}");
        let few = normal(6, 6, 4);
        let found = frechet_interval(few.view(), &gaussian(&few, 1), 0.0, 1, 100, 1).unwrap();
        assert_eq!(found, Err(NoInterval::FewSamples { samples: 6, dims: 6 }));
        let note = "no interval for the Fréchet distance: expected more samples than features, found 6 for 6";
        assert_eq!(found.unwrap_err().to_string(), note);
        let none = frechet_interval(x.view(), &own, 0.0, 1, 0, 1).unwrap();
        assert_eq!(none, Err(NoInterval::NotRequested));
    }

    #[test]
    fn means_over_samples() {
        let flags: Vec<bool> = (0..1000).map(|i| i % 4 == 0).collect();
        let [low, high] = proportion_interval(&flags, 500, 1).unwrap();
        // Binomial: 0.25 ± 1.96·√(0.25·0.75/1000) = ±0.0268.
        assert!((low - 0.223).abs() < 0.006 && (high - 0.277).abs() < 0.006, "{low} {high}");
        assert_eq!(proportion_interval(&[true; 9], 100, 1), Some([1.0, 1.0]));
        assert_eq!((proportion_interval(&flags, 0, 1), proportion_interval(&[], 9, 1)), (None, None));
        // Counts 0 and 8 equally often: standard deviation 4, mean 4 ± 1.96·4/√1000 = ±0.248, divided by k = 5.
        let counts: Vec<u32> = (0..1000).map(|i| i % 2 * 8).collect();
        let [low, high] = mean_count_interval(&counts, 5, 500, 1).unwrap();
        assert!((low - 0.7504).abs() < 0.011 && (high - 0.8496).abs() < 0.011, "{low} {high}");
        // Density may exceed 1.
        assert_eq!(mean_count_interval(&[10; 9], 5, 100, 1), Some([2.0, 2.0]));
        assert_eq!(mean_count_interval(&counts, 5, 0, 1), None);
    }
}
