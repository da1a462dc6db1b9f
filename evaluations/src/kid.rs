//! Kernel Inception Distance (Bińkowski et al. 2018): unbiased MMD² with `k(x, y) = (x·y/D + 1)³` over random subsets.

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, Par};
use ndarray::ArrayView2;

use crate::error::{Error, Result, ensure_finite};
use crate::numpy_random::RandomState;

/// What a tool does with a set smaller than a subset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SmallSets {
    /// Subsets shrink to the smaller set.
    Shrink,
    /// A smaller set is an error.
    Refuse,
}

/// KID settings of one tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KidRule {
    /// Number of subsets.
    pub subsets: usize,
    /// Rows per subset.
    pub subset_size: usize,
    /// Seed of the `RandomState` that draws the subsets, samples first; `None` if the tool does not set a seed.
    pub seed: Option<u32>,
    /// Treatment of sets smaller than a subset.
    pub small_sets: SmallSets,
}

impl KidRule {
    /// Description for results.
    #[must_use]
    pub fn describe(&self) -> String {
        let seed = self.seed.map_or("the tool does not seed".to_owned(), |s| format!("RandomState({s})"));
        let small = if self.small_sets == SmallSets::Shrink { "at most " } else { "" };
        format!("{} subsets of {small}{}, {seed}, cubic kernel, f64", self.subsets, self.subset_size)
    }

    /// Checks that the sets have enough rows, before anything is computed.
    ///
    /// # Errors
    /// `TooFew` if a set has fewer than 2 rows, if it has fewer rows than a subset and the rule refuses small sets, if
    /// the rule has no subsets, or if a subset has fewer than 2 rows.
    pub fn check(&self, samples: usize, reference: usize) -> Result<()> {
        let least = if self.small_sets == SmallSets::Refuse { self.subset_size.max(2) } else { 2 };
        for (what, least, found) in [
            ("KID, number of subsets", 1, self.subsets),
            ("KID, subset", 2, self.subset_size),
            ("KID, samples", least, samples),
            ("KID, reference", least, reference),
        ] {
            if found < least {
                return Err(Error::TooFew { what, least, found });
            }
        }
        Ok(())
    }
}

/// Mean and standard deviation of MMD² over the subsets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kid {
    /// Mean MMD². Lower is better; it can be slightly negative for equal distributions.
    pub mean: f64,
    /// Standard deviation of MMD² (ddof 0).
    pub std: f64,
}

/// KID of `samples [N, D]` and `reference [M, D]`. `seed` is used if the rule has none.
///
/// Kernels and sums are f64. Each subset is drawn with `RandomState.choice(N, size, replace=False)`, samples first.
///
/// # Errors
/// `DimMismatch`; `NotFinite`; those of [`KidRule::check`].
pub fn kid(samples: ArrayView2<'_, f32>, reference: ArrayView2<'_, f32>, rule: &KidRule, seed: u32) -> Result<Kid> {
    if samples.ncols() != reference.ncols() {
        return Err(Error::DimMismatch { what: "samples", expected: reference.ncols(), found: samples.ncols() });
    }
    rule.check(samples.nrows(), reference.nrows())?;
    ensure_finite("samples", samples, 0)?;
    ensure_finite("reference", reference, 0)?;
    let size = rule.subset_size.min(samples.nrows()).min(reference.nrows());
    let mut rng = RandomState::new(rule.seed.unwrap_or(seed));
    let values: Vec<f64> = (0..rule.subsets)
        .map(|_| {
            let x = gather(samples, &rng.choice(samples.nrows(), size));
            let y = gather(reference, &rng.choice(reference.nrows(), size));
            mmd(&x, &y)
        })
        .collect();
    #[allow(clippy::cast_precision_loss, reason = "a number of subsets")]
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let std = (values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n).sqrt();
    Ok(Kid { mean, std })
}

/// Gathers rows `indices` as the columns of a matrix.
fn gather(rows: ArrayView2<'_, f32>, indices: &[usize]) -> Mat<f64> {
    Mat::from_fn(rows.ncols(), indices.len(), |j, i| f64::from(rows[[indices[i], j]]))
}

/// Unbiased MMD² of two sets of equal size, given as columns.
#[allow(clippy::cast_precision_loss, reason = "matrix sizes")]
fn mmd(x: &Mat<f64>, y: &Mat<f64>) -> f64 {
    let (d, m) = (x.nrows() as f64, x.ncols() as f64);
    let cubed = |product: f64| (product + 1.0).powi(3);
    let mut k = Mat::<f64>::zeros(x.ncols(), y.ncols());
    matmul(&mut k, Accum::Replace, x.transpose(), y, 1.0 / d, Par::rayon(0));
    let across: f64 = k.col_iter().map(|column| column.iter().map(|v| cubed(*v)).sum::<f64>()).sum();
    // The kernel is symmetric, so the triangle below the diagonal is enough.
    let mut within = |a: &Mat<f64>| -> f64 {
        let lower = BlockStructure::TriangularLower;
        let full = BlockStructure::Rectangular;
        triangular::matmul(&mut k, lower, Accum::Replace, a.transpose(), full, a, full, 1.0 / d, Par::rayon(0));
        let below = |j: usize| (j + 1..a.ncols()).map(|i| cubed(k[(i, j)])).sum::<f64>();
        2.0 * (0..a.ncols()).map(below).sum::<f64>()
    };
    (within(x) + within(y)) / (m * (m - 1.0)) - 2.0 * across / (m * m)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    const RULE: KidRule = KidRule { subsets: 3, subset_size: 4, seed: Some(2020), small_sets: SmallSets::Shrink };

    fn rows(n: usize, shift: f32) -> Array2<f32> {
        Array2::from_shape_fn((n, 3), |(i, j)| ((i * 13 + j * 7) % 11) as f32 / 4.0 + shift)
    }

    #[test]
    fn a_plain_sum_over_pairs_gives_the_same() {
        let (x, y) = (rows(9, 0.0), rows(7, 0.6));
        let k = |a: usize, p: &Array2<f32>, b: usize, q: &Array2<f32>| {
            ((0..3).map(|j| f64::from(p[[a, j]]) * f64::from(q[[b, j]])).sum::<f64>() / 3.0 + 1.0).powi(3)
        };
        let mut rng = RandomState::new(2020);
        let mut expected = 0.0;
        for _ in 0..3 {
            let (a, b) = (rng.choice(9, 4), rng.choice(7, 4));
            for i in 0..4 {
                for j in 0..4 {
                    if i != j {
                        expected += (k(a[i], &x, a[j], &x) + k(b[i], &y, b[j], &y)) / 12.0 / 3.0;
                    }
                    expected -= 2.0 * k(a[i], &x, b[j], &y) / 16.0 / 3.0;
                }
            }
        }
        let found = kid(x.view(), y.view(), &RULE, 0).unwrap();
        assert!((found.mean - expected).abs() < 1e-12, "{} {expected}", found.mean);
        assert!(found.std > 0.0);
        // The seed of the rule takes precedence; without one, the argument is used.
        assert_eq!(found, kid(x.view(), y.view(), &KidRule { seed: None, ..RULE }, 2020).unwrap());
    }

    #[test]
    fn small_sets() {
        let (x, y) = (rows(3, 0.0), rows(7, 0.6));
        assert!(kid(x.view(), y.view(), &RULE, 0).is_ok());
        let strict = KidRule { small_sets: SmallSets::Refuse, ..RULE };
        assert!(matches!(kid(x.view(), y.view(), &strict, 0), Err(Error::TooFew { least: 4, found: 3, .. })));
        assert!(matches!(kid(rows(1, 0.0).view(), y.view(), &RULE, 0), Err(Error::TooFew { .. })));
        assert!(strict.check(4, 4).is_ok() && RULE.check(2, 3).is_ok());
        let text = strict.check(9, 3).unwrap_err().to_string();
        assert_eq!(text, "KID, reference: expected at least 4 images, found 3");
        for (subsets, subset_size) in [(0, 4), (3, 1)] {
            let rule = KidRule { subsets, subset_size, ..RULE };
            assert!(matches!(kid(x.view(), y.view(), &rule, 0), Err(Error::TooFew { .. })), "{rule:?}");
        }
    }
}
