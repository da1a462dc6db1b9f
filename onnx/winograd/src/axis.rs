//! Winograd's F(tile, taps) along one axis, for common filter lengths.

use pulp::Simd;

/// Maximum number of points of an axis.
pub(crate) const MAX_POINTS: usize = 10;
/// Maximum number of pairs of points ±a.
const MAX_PAIRS: usize = 4;
/// Maximum length of a filter.
pub(crate) const MAX_TAPS: usize = 7;
/// Maximum number of outputs of a tile.
const MAX_TILE: usize = 4;

/// F(`tile`, `taps`): `tile` adjacent outputs of a filter of `taps` from `taps + tile - 1` products instead of `taps * tile`.
///
/// The interpolation points are 0, ±a for each pair, and ∞ (Winograd 1980; Lavin & Gray 2016). Let Q(x) be the product
/// of x² - b² over the other pairs, and P(x) the product over all pairs. The rows of the input transform Bᵀ are the
/// coefficients of (x² ± ax)·Q(x) for the points ±a, of P(x) for 0, and of x·P(x) for ∞. Both points of a pair share
/// the sums of even and of odd inputs.
#[derive(Debug, Clone)]
pub(crate) struct Axis {
    /// Length of the filter.
    pub(crate) taps: usize,
    /// Number of outputs of a tile.
    pub(crate) tile: usize,
    /// Number of pairs of points.
    pub(crate) pairs: usize,
    /// For each pair, the coefficients of Q in ascending powers of x².
    others: [[f32; MAX_PAIRS]; MAX_PAIRS],
    /// The coefficients of P in ascending powers of x².
    all: [f32; MAX_PAIRS + 1],
    /// a⁰ to a³ of each pair.
    powers: [[f32; MAX_TILE]; MAX_PAIRS],
    /// G, `[points, taps]`, with the points in the order 0, +a, -a, …, ∞.
    pub(crate) filter: [[f64; MAX_TAPS]; MAX_POINTS],
}

impl Axis {
    /// The axis for filters of length `taps`; `None` if the length is not supported.
    pub(crate) fn new(taps: usize) -> Option<Self> {
        // Larger tiles need more points. Their larger coefficients increase the rounding error. The RMS errors of these
        // tiles are 1e-6 to 2e-6.
        let (tile, pairs): (usize, &[f64]) = match taps {
            1 => (1, &[]),
            3 => (4, &[1.0, 2.0]),
            5 => (2, &[1.0, 2.0]),
            7 => (4, &[1.0, 2.0, 0.5, 1.5]),
            _ => return None,
        };
        let mut axis = Self {
            taps,
            tile,
            pairs: pairs.len(),
            others: [[0.0; MAX_PAIRS]; MAX_PAIRS],
            all: [0.0; MAX_PAIRS + 1],
            powers: [[0.0; MAX_TILE]; MAX_PAIRS],
            filter: [[0.0; MAX_TAPS]; MAX_POINTS],
        };
        fill(&mut axis.all, &product(pairs.iter()));
        for (i, a) in pairs.iter().enumerate() {
            fill(&mut axis.others[i], &product(pairs.iter().filter(|b| *b != a)));
            fill(&mut axis.powers[i], &[1.0, *a, a * a, a * a * a]);
        }
        if pairs.is_empty() {
            axis.filter[0][0] = 1.0;
            return Some(axis);
        }
        let finite: Vec<f64> = std::iter::once(0.0).chain(pairs.iter().flat_map(|a| [*a, -a])).collect();
        for (row, p) in axis.filter.iter_mut().zip(&finite) {
            let scale: f64 = finite.iter().filter(|q| *q != p).map(|q| p - q).product();
            let powers = std::iter::successors(Some(1.0 / scale), |power| Some(power * p));
            row[..taps].iter_mut().zip(powers).for_each(|(to, power)| *to = power);
        }
        axis.filter[finite.len()][taps - 1] = 1.0;
        Some(axis)
    }

    /// Number of points, which is the number of products of a tile.
    pub(crate) fn points(&self) -> usize {
        self.taps + self.tile - 1
    }

    /// Bᵀx for the inputs `x` of a tile. `N` is `pairs`.
    #[inline(always)]
    pub(crate) fn input_transform<S: Simd, const N: usize>(
        &self,
        simd: S,
        x: [S::f32s; MAX_POINTS],
    ) -> [S::f32s; MAX_POINTS] {
        if N == 0 {
            return x;
        }
        let mut y = x;
        let lowest = simd.splat_f32s(self.all[0]);
        (y[0], y[2 * N + 1]) = (simd.mul_f32s(lowest, x[0]), simd.mul_f32s(lowest, x[1]));
        for k in 1..=N {
            let c = simd.splat_f32s(self.all[k]);
            y[0] = simd.mul_add_f32s(c, x[2 * k], y[0]);
            y[2 * N + 1] = simd.mul_add_f32s(c, x[2 * k + 1], y[2 * N + 1]);
        }
        for i in 0..N {
            let lowest = simd.splat_f32s(self.others[i][0]);
            let (mut even, mut odd) = (simd.mul_f32s(lowest, x[2]), simd.mul_f32s(lowest, x[1]));
            for k in 1..N {
                let c = simd.splat_f32s(self.others[i][k]);
                even = simd.mul_add_f32s(c, x[2 * k + 2], even);
                odd = simd.mul_add_f32s(c, x[2 * k + 1], odd);
            }
            odd = simd.mul_f32s(simd.splat_f32s(self.powers[i][1]), odd);
            y[2 * i + 1] = simd.add_f32s(even, odd);
            y[2 * i + 2] = simd.sub_f32s(even, odd);
        }
        y
    }

    /// Aᵀx for the products `x` of a tile. `N` is `pairs`, `M` is `tile`.
    #[inline(always)]
    pub(crate) fn output_transform<S: Simd, const N: usize, const M: usize>(
        &self,
        simd: S,
        x: [S::f32s; MAX_POINTS],
    ) -> [S::f32s; MAX_POINTS] {
        if N == 0 {
            return x;
        }
        let zero = simd.splat_f32s(0.0);
        let (mut sums, mut differences) = ([zero; N], [zero; N]);
        for i in 0..N {
            sums[i] = simd.add_f32s(x[2 * i + 1], x[2 * i + 2]);
            differences[i] = simd.sub_f32s(x[2 * i + 1], x[2 * i + 2]);
        }
        let mut y = [zero; MAX_POINTS];
        y[0] = x[0];
        for (j, out) in y.iter_mut().enumerate().take(M) {
            let terms = if j % 2 == 0 { &sums } else { &differences };
            for (powers, term) in self.powers.iter().zip(terms) {
                *out = simd.mul_add_f32s(simd.splat_f32s(powers[j]), *term, *out);
            }
        }
        y[M - 1] = simd.add_f32s(y[M - 1], x[2 * N + 1]);
        y
    }

    /// A x for the output gradients `x` of a tile: the transpose of [`Self::output_transform`]. `N` is `pairs`, `M` is
    /// `tile`.
    #[inline(always)]
    pub(crate) fn gradient_transform<S: Simd, const N: usize, const M: usize>(
        &self,
        simd: S,
        x: [S::f32s; MAX_POINTS],
    ) -> [S::f32s; MAX_POINTS] {
        if N == 0 {
            return x;
        }
        let mut y = x;
        for i in 0..N {
            let (mut even, mut odd) = (x[0], simd.mul_f32s(simd.splat_f32s(self.powers[i][1]), x[1]));
            for (j, x) in x.iter().enumerate().take(M).skip(2) {
                let sum = if j % 2 == 0 { &mut even } else { &mut odd };
                *sum = simd.mul_add_f32s(simd.splat_f32s(self.powers[i][j]), *x, *sum);
            }
            y[2 * i + 1] = simd.add_f32s(even, odd);
            y[2 * i + 2] = simd.sub_f32s(even, odd);
        }
        y[2 * N + 1] = x[M - 1];
        y
    }
}

/// The coefficients of the product of x² - b² over the `values` b, in ascending powers of x².
fn product<'a>(values: impl Iterator<Item = &'a f64>) -> Vec<f64> {
    let mut product = vec![1.0];
    for b in values {
        product.push(0.0);
        for k in (0..product.len()).rev() {
            let lower = if k == 0 { 0.0 } else { product[k - 1] };
            product[k] = lower - b * b * product[k];
        }
    }
    product
}

#[allow(clippy::cast_possible_truncation, reason = "kernels compute in f32, and these are small dyadic numbers")]
fn fill(to: &mut [f32], from: &[f64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from as f32;
    }
}
