//! Fréchet distance between Gaussians (Dowson and Landau 1982), with symmetric solvers only.

use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, Scale, Side};
use ndarray::{Array1, Array2, ArrayView2};

use crate::error::{Error, Result, ensure_finite};
use crate::gaussian::Accumulator;

/// Checks that `count` rows have a covariance with the divisor `N - ddof`, before anything is computed.
///
/// # Errors
/// `TooFew` for fewer than two or fewer than `ddof + 1` rows.
pub fn check(count: usize, ddof: usize) -> Result<()> {
    let least = (ddof + 1).max(2);
    if count < least {
        return Err(Error::TooFew { what: "covariance", least, found: count });
    }
    Ok(())
}

/// Mean `[D]` and covariance `[D, D]` of features.
#[derive(Debug, Clone, PartialEq)]
pub struct Gaussian {
    /// Mean.
    pub mu: Array1<f64>,
    /// Covariance.
    pub sigma: Array2<f64>,
}

/// Root factor `A [D, r]` of a covariance Σ, with `A Aᵀ = Σ`; r is its rank, or D.
#[derive(Debug, Clone)]
pub(crate) struct Factor {
    pub(crate) matrix: Mat<f64>,
    /// Lower triangular, or dense.
    structure: BlockStructure,
}

impl Factor {
    /// The Cholesky factor or, if the covariance does not have full rank, the factor from the eigenvectors with
    /// eigenvalues above rounding.
    pub(crate) fn of(sigma: &Array2<f64>) -> Result<Self> {
        let d = sigma.nrows();
        let Some(scaled) = Scaled::new(&Mat::from_fn(d, d, |i, j| sigma[[i, j]])) else {
            return Ok(Self { matrix: Mat::zeros(d, 0), structure: BlockStructure::Rectangular });
        };
        if let Ok(cholesky) = scaled.matrix.llt(Side::Lower) {
            let matrix = cholesky.L() * Scale(scaled.peak.sqrt());
            return Ok(Self { matrix, structure: BlockStructure::TriangularLower });
        }
        let (eigen, reversed) = match scaled.matrix.self_adjoint_eigen(Side::Lower) {
            Ok(eigen) => (eigen, false),
            Err(_) => {
                let again = scaled.reversed().self_adjoint_eigen(Side::Lower);
                (again.map_err(|_| Error::Eigen { what: "a covariance" })?, true)
            }
        };
        let (u, s) = (eigen.U(), eigen.S());
        let floor = floor((0..d).map(|i| s[i]), d);
        let kept: Vec<usize> = (0..d).filter(|i| s[*i] > floor).collect();
        let root = |k: usize| (s[kept[k]] * scaled.peak).sqrt();
        Ok(Self {
            matrix: Mat::from_fn(d, kept.len(), |i, k| u[(if reversed { d - 1 - i } else { i }, kept[k])] * root(k)),
            structure: BlockStructure::Rectangular,
        })
    }

    /// `Aᵀ B [r, q]` of two factors.
    fn times(&self, other: &Self) -> Mat<f64> {
        self.matrix.transpose() * &other.matrix
    }

    /// `Aᵀ Σ A [r, r]` of a symmetric `sigma [D, D]`; only the lower triangle is computed.
    fn around(&self, sigma: &Array2<f64>) -> Mat<f64> {
        use BlockStructure::{Rectangular, TriangularLower, TriangularUpper};
        let (d, r) = (self.matrix.nrows(), self.matrix.ncols());
        let sigma = Mat::from_fn(d, d, |i, j| sigma[[i, j]]);
        let (mut half, mut whole) = (Mat::zeros(d, r), Mat::zeros(r, r));
        let transposed = if self.structure == TriangularLower { TriangularUpper } else { Rectangular };
        let (a, par) = (&self.matrix, faer::get_global_parallelism());
        triangular::matmul(&mut half, Rectangular, Accum::Replace, &sigma, Rectangular, a, self.structure, 1.0, par);
        let replace = Accum::Replace;
        triangular::matmul(
            &mut whole,
            TriangularLower,
            replace,
            a.transpose(),
            transposed,
            &half,
            Rectangular,
            1.0,
            par,
        );
        whole
    }
}

/// A matrix divided by its largest absolute element, so that solvers and thresholds work on numbers near 1.
struct Scaled {
    matrix: Mat<f64>,
    peak: f64,
}

impl Scaled {
    /// `None` if every element is 0.
    fn new(matrix: &Mat<f64>) -> Option<Self> {
        let peak = matrix.norm_max();
        (peak > 0.0)
            .then(|| Self { matrix: Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| matrix[(i, j)] / peak), peak })
    }

    /// Eigenvalues in units of `peak`. Only the lower triangle is read. `what` names the matrix in errors.
    fn eigenvalues(&self, what: &'static str) -> Result<Vec<f64>> {
        self.matrix
            .self_adjoint_eigenvalues(Side::Lower)
            .or_else(|_| self.reversed().self_adjoint_eigenvalues(Side::Lower))
            .map_err(|_| Error::Eigen { what })
    }

    /// The matrix with rows and columns reversed. It has the same eigenvalues, for a retry if the solver did not
    /// converge.
    fn reversed(&self) -> Mat<f64> {
        let d = self.matrix.nrows();
        Mat::from_fn(d, d, |i, j| self.matrix[(d - 1 - i.min(j), d - 1 - i.max(j))])
    }
}

/// Largest value that rounding can give to a zero eigenvalue.
#[allow(clippy::cast_precision_loss, reason = "a matrix size")]
fn floor(values: impl Iterator<Item = f64>, d: usize) -> f64 {
    values.fold(0.0_f64, f64::max) * d as f64 * f64::EPSILON
}

/// Σ √λ over the eigenvalues of a positive semidefinite matrix. Only the lower triangle is read.
pub(crate) struct RootSum {
    /// Sum over the eigenvalues above rounding.
    pub(crate) value: f64,
    /// Whether all eigenvalues are above rounding. The root of one that is not can be as large as √(D ε) ≈ 10⁻⁶ of the
    /// largest root, and thousands of them add up.
    complete: bool,
}

impl RootSum {
    pub(crate) fn of(matrix: &Mat<f64>) -> Result<Self> {
        let Some(scaled) = Scaled::new(matrix) else { return Ok(Self { value: 0.0, complete: true }) };
        let values = scaled.eigenvalues("a product of covariances")?;
        let floor = floor(values.iter().copied(), values.len());
        let clear = values.iter().filter(|v| **v > floor);
        let value = clear.clone().map(|v| (v * scaled.peak).sqrt()).sum();
        Ok(Self { value, complete: clear.count() == values.len() })
    }
}

/// Sum of the singular values of `matrix`. The error of each is at most the rounding of the largest, so zeros need no
/// threshold.
fn nuclear_norm(matrix: &Mat<f64>) -> Result<f64> {
    const WHAT: &str = "a product of covariance factors";
    let Some(scaled) = Scaled::new(matrix) else { return Ok(0.0) };
    // The transpose has the same singular values. If the solver does not converge on one, it can converge on the other.
    let values = scaled.matrix.singular_values().or_else(|_| scaled.matrix.transpose().singular_values());
    Ok(values.map_err(|_| Error::Eigen { what: WHAT })?.iter().sum::<f64>() * scaled.peak)
}

/// Fréchet distance between Gaussians fitted to two feature sets (FID for pool3 features).
///
/// Unit: squared feature distance. Lower is better. A result that is negative by rounding is 0; a larger negative
/// result occurs only if a covariance is not positive semidefinite. Computes
/// `|μ₁ − μ₂|² + tr Σ₁ + tr Σ₂ − 2 Σ √λ(A₁ᵀ Σ₂ A₁)` with `A₁ A₁ᵀ = Σ₁`. These eigenvalues are those of `Σ₁ Σ₂`. No root
/// of an asymmetric matrix is taken, so no complex numbers occur. If some eigenvalues are below rounding, the roots are
/// computed as the singular values of `A₁ᵀ A₂` with `A₂ A₂ᵀ = Σ₂`, which takes twice the time and gives twice the
/// digits. Source: Heusel et al. 2017; same convention as `fid.py` of EDM.
///
/// # Errors
/// `DimMismatch` if D differs; `NotFinite`; `Eigen` if a solver does not converge.
pub fn frechet_distance(a: &Gaussian, b: &Gaussian) -> Result<f64> {
    if a.mu.len() != b.mu.len() {
        return Err(Error::DimMismatch { what: "second Gaussian", expected: a.mu.len(), found: b.mu.len() });
    }
    for g in [a, b] {
        let count = g.mu.iter().chain(&g.sigma).filter(|v| !v.is_finite()).count();
        if count > 0 {
            return Err(Error::NotFinite { what: "Gaussian", count, row: 0 });
        }
    }
    let factor = Factor::of(&a.sigma)?;
    let roots = RootSum::of(&factor.around(&b.sigma))?;
    let roots = if roots.complete { roots.value } else { nuclear_norm(&factor.times(&Factor::of(&b.sigma)?))? };
    let mean: f64 = a.mu.iter().zip(&b.mu).map(|(x, y)| (x - y) * (x - y)).sum();
    Ok(distance(mean, a.sigma.diag().sum() + b.sigma.diag().sum(), roots, a.mu.len()))
}

/// `mean + traces − 2 roots`, or 0 if that is negative within rounding. A larger negative value, from a covariance that
/// is not positive semidefinite, is returned unchanged.
#[allow(clippy::cast_precision_loss, reason = "a matrix size")]
fn distance(mean: f64, traces: f64, roots: f64, dims: usize) -> f64 {
    let value = mean + traces - 2.0 * roots;
    let rounding = dims as f64 * f64::EPSILON * (mean + traces);
    if value < 0.0 && -value <= rounding { 0.0 } else { value }
}

/// Summary of the eigenvalues of a covariance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spectrum {
    /// Smallest eigenvalue.
    pub smallest: f64,
    /// Largest eigenvalue.
    pub largest: f64,
    /// Number of eigenvalues above rounding.
    pub rank: usize,
}

/// Eigenvalues of the lower triangle of `sigma [D, D]`.
///
/// # Errors
/// `NotFinite`; `Eigen` if the solver does not converge.
pub fn spectrum(sigma: &Array2<f64>) -> Result<Spectrum> {
    let count = sigma.iter().filter(|v| !v.is_finite()).count();
    if count > 0 {
        return Err(Error::NotFinite { what: "covariance", count, row: 0 });
    }
    let matrix = Mat::from_fn(sigma.nrows(), sigma.nrows(), |i, j| sigma[[i, j]]);
    let Some(scaled) = Scaled::new(&matrix) else { return Ok(Spectrum { smallest: 0.0, largest: 0.0, rank: 0 }) };
    let values = scaled.eigenvalues("a covariance")?;
    let floor = floor(values.iter().copied(), values.len());
    let fold = |start: f64, pick: fn(f64, f64) -> f64| values.iter().copied().fold(start, pick) * scaled.peak;
    Ok(Spectrum {
        smallest: fold(f64::INFINITY, f64::min),
        largest: fold(f64::NEG_INFINITY, f64::max),
        rank: values.iter().filter(|v| **v > floor).count(),
    })
}

/// [`frechet_distance`] of the Gaussians of two feature sets `[N, D]` and `[M, D]`, with covariances over `N − ddof`
/// and `M − ddof`.
///
/// It is faster if a set has fewer rows than features, as a single class usually has. With `Σ₁ = A₁ᵀA₁` and
/// `Σ₂ = A₂ᵀA₂` of the centred, scaled rows, `Σ √λ(Σ₁ Σ₂)` is the sum of the singular values of `A₁ A₂ᵀ [N, M]`.
///
/// # Errors
/// `DimMismatch`; `TooFew` unless both sets have more than `ddof` rows; `NotFinite`; `Eigen`.
pub fn frechet_distance_of(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, ddof: usize) -> Result<f64> {
    if a.ncols() != b.ncols() {
        return Err(Error::DimMismatch { what: "second set", expected: a.ncols(), found: b.ncols() });
    }
    let gaussian = |rows: ArrayView2<'_, f32>| {
        let mut sums = Accumulator::new(rows.ncols());
        sums.push(rows)?;
        sums.finish(ddof)
    };
    if a.nrows().min(b.nrows()) >= a.ncols() {
        return frechet_distance(&gaussian(a)?, &gaussian(b)?);
    }
    let centred = |rows: ArrayView2<'_, f32>| {
        let n = rows.nrows();
        if n <= ddof {
            return Err(Error::TooFew { what: "covariance", least: ddof + 1, found: n });
        }
        ensure_finite("features", rows, 0)?;
        #[allow(clippy::cast_precision_loss, reason = "sample counts")]
        let (count, scale) = (n as f64, ((n - ddof) as f64).sqrt());
        let mean: Vec<f64> =
            rows.columns().into_iter().map(|c| c.iter().map(|v| f64::from(*v)).sum::<f64>() / count).collect();
        let matrix = Mat::from_fn(n, rows.ncols(), |i, j| (f64::from(rows[[i, j]]) - mean[j]) / scale);
        Ok((mean, matrix))
    };
    let ((mean_a, x), (mean_b, y)) = (centred(a)?, centred(b)?);
    let product = if x.nrows() <= y.nrows() { &x * y.transpose() } else { &y * x.transpose() };
    let roots = nuclear_norm(&product)?;
    let mean: f64 = mean_a.iter().zip(&mean_b).map(|(p, q)| (p - q) * (p - q)).sum();
    Ok(distance(mean, x.squared_norm_l2() + y.squared_norm_l2(), roots, a.ncols()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn known_gaussians() {
        let a = Gaussian { mu: array![1.0, 2.0], sigma: array![[4.0, 0.0], [0.0, 9.0]] };
        let b = Gaussian { mu: array![0.0, 0.0], sigma: array![[1.0, 0.0], [0.0, 16.0]] };
        // Commuting covariances: |μ|² + Σ (√a − √b)².
        let expected = 5.0 + 1.0 + 1.0;
        assert!((frechet_distance(&a, &b).unwrap() - expected).abs() < 1e-12);
        assert!((frechet_distance(&b, &a).unwrap() - expected).abs() < 1e-12);
    }

    #[test]
    fn scipys_value() {
        // scipy.linalg.sqrtm(sigma1 @ sigma2).
        let a =
            Gaussian { mu: array![0.1, -0.2, 0.3], sigma: array![[2.0, 0.5, 0.1], [0.5, 1.5, -0.3], [0.1, -0.3, 0.8]] };
        let b =
            Gaussian { mu: array![0.0, 0.4, 0.2], sigma: array![[1.0, -0.2, 0.3], [-0.2, 2.5, 0.4], [0.3, 0.4, 1.2]] };
        assert!((frechet_distance(&a, &b).unwrap() - 1.073922592121523).abs() < 1e-10);
    }

    #[test]
    fn a_set_has_no_distance_from_itself_even_without_full_rank() {
        let x = array![[1.0_f32, 2.0, 3.0, 4.0], [0.0, 1.0, 0.5, 2.0]];
        let mut acc = crate::gaussian::Accumulator::new(4);
        acc.push(x.view()).unwrap();
        let g = acc.finish(1).unwrap();
        assert!(frechet_distance(&g, &g).unwrap().abs() < 1e-12);
    }

    #[test]
    fn a_distance_is_not_negative() {
        let rows = crate::gaussian::tests::rows;
        for (n, d) in [(30, 6), (300, 40), (90, 40), (41, 40), (20, 40), (2, 40)] {
            for seed in 1..6 {
                let x = rows(n, d, seed);
                let mut sums = Accumulator::new(d);
                sums.push(x.view()).unwrap();
                let g = sums.finish(1).unwrap();
                for value in [frechet_distance(&g, &g).unwrap(), frechet_distance_of(x.view(), x.view(), 1).unwrap()] {
                    assert!((0.0..1e-10).contains(&value), "{n} rows of {d}: {value}");
                }
            }
        }
        assert_eq!(distance(0.0, 2.0, 1.0 + 1e-16, 2), 0.0);
        // More than rounding: the matrix is not a covariance.
        assert!(distance(0.0, 2.0, 1.1, 2) < -0.1);
    }

    #[test]
    fn one_row_has_no_covariance() {
        for ddof in [0, 1] {
            assert!(matches!(check(1, ddof), Err(Error::TooFew { least: 2, found: 1, .. })));
            assert!(check(2, ddof).is_ok());
        }
    }

    #[test]
    fn a_repeated_image_is_a_point() {
        // The covariance is 0. With rounding noise instead, the solver would not converge.
        let image = ndarray::Array1::from_shape_fn(600, |j| ((j * 37 % 101) as f32).sin().abs() * 0.37);
        let mut point = crate::gaussian::Accumulator::new(600);
        let mut spread = crate::gaussian::Accumulator::new(600);
        let rows = ndarray::Array2::from_shape_fn((40, 600), |(_, j)| image[j]);
        point.push(rows.view()).unwrap();
        spread.push(crate::gaussian::tests::rows(40, 600, 7).view()).unwrap();
        let (point, spread) = (point.finish(1).unwrap(), spread.finish(1).unwrap());
        let expected: f64 =
            (&point.mu - &spread.mu).mapv(|v| v * v).sum() + spread.sigma.diag().sum() + point.sigma.diag().sum();
        for found in [frechet_distance(&point, &spread), frechet_distance(&spread, &point)] {
            let found = found.unwrap();
            assert!((found - expected).abs() < 1e-5 * expected, "{found} differs from {expected}");
        }
    }

    #[test]
    fn cholesky_and_eigenvectors_give_one_distance() {
        let gaussian = |seed| {
            let mut sums = Accumulator::new(40);
            sums.push(crate::gaussian::tests::rows(90, 40, seed).view()).unwrap();
            sums.finish(1).unwrap()
        };
        let (a, b) = (gaussian(1), gaussian(2));
        assert_eq!(Factor::of(&a.sigma).unwrap().structure, BlockStructure::TriangularLower);
        let by_cholesky = frechet_distance(&a, &b).unwrap();
        // The same Gaussians with one more dimension that is constant, so that the covariances do not have full rank.
        let wider = |g: &Gaussian| {
            let at = |i: usize, j: usize| if i.max(j) < 40 { g.sigma[[i, j]] } else { 0.0 };
            Gaussian {
                mu: Array1::from_shape_fn(41, |i| if i < 40 { g.mu[i] } else { 1.0 }),
                sigma: Array2::from_shape_fn((41, 41), |(i, j)| at(i, j)),
            }
        };
        let factor = Factor::of(&wider(&a).sigma).unwrap();
        assert_eq!((factor.structure, factor.matrix.ncols()), (BlockStructure::Rectangular, 40));
        let by_eigenvectors = frechet_distance(&wider(&a), &wider(&b)).unwrap();
        assert!((by_cholesky - by_eigenvectors).abs() < 1e-9 * by_cholesky, "{by_cholesky} and {by_eigenvectors}");
    }

    /// A diagonal covariance, transformed by the reflection at a pseudo-random plane.
    fn reflected(diagonal: impl Fn(usize) -> f64, d: usize) -> Gaussian {
        let v = crate::gaussian::tests::rows(1, d, 11).row(0).mapv(f64::from);
        let v = &v / v.dot(&v).sqrt();
        let q = |i: usize, j: usize| f64::from(u8::from(i == j)) - 2.0 * v[i] * v[j];
        let at = |i: usize, j: usize| (0..d).map(|k| q(i, k) * diagonal(k) * q(j, k)).sum::<f64>();
        let sigma = Array2::from_shape_fn((d, d), |(i, j)| at(i.max(j), i.min(j)));
        Gaussian { mu: Array1::zeros(d), sigma }
    }

    #[test]
    fn small_eigenvalues_count() {
        // Nine decades between the largest and the smallest eigenvalue, eighteen for the product; with and without full
        // rank.
        let d = 64;
        for rank in [64, 50] {
            let first = |k: usize| if k < rank { 10_f64.powf(-9.0 * k as f64 / 63.0) } else { 0.0 };
            let second = |k: usize| first(k) * (1.0 + 0.1 * (k as f64).sin());
            let expected: f64 = (0..d).map(|k| (first(k).sqrt() - second(k).sqrt()).powi(2)).sum();
            let (a, b) = (reflected(first, d), reflected(second, d));
            for found in [frechet_distance(&a, &b), frechet_distance(&b, &a)] {
                let found = found.unwrap();
                assert!((found - expected).abs() < 1e-12, "{rank}: {found} differs from {expected}");
            }
        }
    }

    #[test]
    fn the_second_try_sees_the_same_eigenvalues() {
        let rows = crate::gaussian::tests::rows(30, 12, 3);
        let mut sums = Accumulator::new(12);
        sums.push(rows.view()).unwrap();
        let sigma = sums.finish(1).unwrap().sigma;
        // The upper triangle must not be read.
        let lower = Mat::from_fn(12, 12, |i, j| if j <= i { sigma[[i, j]] } else { 0.0 });
        let scaled = Scaled::new(&lower).unwrap();
        let first = scaled.matrix.self_adjoint_eigenvalues(Side::Lower).unwrap();
        for side in [Side::Lower, Side::Upper] {
            let second = scaled.reversed().self_adjoint_eigenvalues(side).unwrap();
            assert!(first.iter().zip(&second).all(|(a, b)| (a - b).abs() < 1e-12), "{first:?} and {second:?}");
        }
    }

    #[test]
    fn spectra() {
        let x = crate::gaussian::tests::rows(4, 9, 5);
        let mut sums = Accumulator::new(9);
        sums.push(x.view()).unwrap();
        let found = spectrum(&sums.finish(1).unwrap().sigma).unwrap();
        assert!(found.rank == 3 && found.smallest.abs() < 1e-12 && found.largest > 0.0, "{found:?}");
        let bad = array![[1.0, 0.0], [0.0, -2.0]];
        assert_eq!(spectrum(&bad).unwrap(), Spectrum { smallest: -2.0, largest: 1.0, rank: 1 });
    }

    #[test]
    fn few_rows_give_the_distance_of_their_gaussians() {
        let rows = crate::gaussian::tests::rows;
        for (n, m, d) in [(5, 60, 40), (60, 7, 40), (30, 35, 40), (60, 50, 9)] {
            let (a, b) = (rows(n, d, 3), rows(m, d, 4).mapv(|v| 1.5 * v + 0.1));
            let fit = |x: &ndarray::Array2<f32>| {
                let mut sums = Accumulator::new(d);
                sums.push(x.view()).unwrap();
                sums.finish(1).unwrap()
            };
            let expected = frechet_distance(&fit(&a), &fit(&b)).unwrap();
            let found = frechet_distance_of(a.view(), b.view(), 1).unwrap();
            assert!((found - expected).abs() < 1e-9 * expected, "{n} and {m} of {d}: {found}, expected {expected}");
        }
        let one = rows(1, 4, 1);
        assert!(matches!(frechet_distance_of(one.view(), rows(9, 4, 1).view(), 1), Err(Error::TooFew { .. })));
    }

    #[test]
    fn bad_operands_are_errors() {
        let a = Gaussian { mu: array![1.0], sigma: array![[1.0]] };
        let b = Gaussian { mu: array![1.0, 2.0], sigma: array![[1.0, 0.0], [0.0, 1.0]] };
        assert!(matches!(frechet_distance(&a, &b), Err(Error::DimMismatch { .. })));
        let nan = Gaussian { mu: array![f64::NAN], sigma: array![[1.0]] };
        assert!(matches!(frechet_distance(&a, &nan), Err(Error::NotFinite { .. })));
    }
}
