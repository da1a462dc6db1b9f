//! Minimal filtering along one axis, for every length of filter that networks have.

use pulp::Simd;

/// Most points of an axis.
pub(crate) const MOST: usize = 10;
/// Most pairs of points ±a.
const PAIRS: usize = 4;
/// Most outputs of a tile.
const TILE: usize = 4;

/// F(`tile`, `taps`): so many neighbouring outputs of a filter from `taps + tile - 1` products instead of `taps * tile`.
///
/// The points are 0, ±a for each a of `pairs`, and ∞ (Winograd 1980; Lavin & Gray 2016). With Q(x) the product of x² - b² over the other pairs, the rows of
/// the input's transform are the coefficients of (x² ± ax)·Q(x) at ±a, and of the product over all pairs at 0, times x at ∞: even and odd inputs are
/// summed apart and serve both points of a pair.
#[derive(Debug, Clone)]
pub(crate) struct Axis {
    /// Length of the filter.
    pub(crate) taps: usize,
    /// Outputs of a tile.
    pub(crate) tile: usize,
    /// How many pairs of points there are.
    pub(crate) pairs: usize,
    /// The pairs' a.
    values: [f64; PAIRS],
    /// For each pair, the coefficients of Q in x², rising.
    others: [[f32; PAIRS]; PAIRS],
    /// The coefficients of the product over all pairs in x², rising.
    all: [f32; PAIRS + 1],
    /// For each pair, a⁰ to a³.
    powers: [[f32; TILE]; PAIRS],
}

impl Axis {
    /// The axis of a filter of `taps`; `None` where minimal filtering is of no use, or would lose too many digits.
    pub(crate) fn new(taps: usize) -> Option<Self> {
        // More outputs a tile need more points, and with them larger coefficients: root mean square errors of these are 1e-6 to 2e-6.
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
            values: [0.0; PAIRS],
            others: [[0.0; PAIRS]; PAIRS],
            all: [0.0; PAIRS + 1],
            powers: [[0.0; TILE]; PAIRS],
        };
        fill(&mut axis.all, &product(pairs.iter()));
        for (i, a) in pairs.iter().enumerate() {
            axis.values[i] = *a;
            fill(&mut axis.others[i], &product(pairs.iter().filter(|b| *b != a)));
            fill(&mut axis.powers[i], &[1.0, *a, a * a, a * a * a]);
        }
        Some(axis)
    }

    /// Products of a tile.
    pub(crate) fn points(&self) -> usize {
        self.taps + self.tile - 1
    }

    /// `[points, taps]`: the filter's taps to its values at the points 0, +a, -a, …, ∞.
    pub(crate) fn filter(&self) -> Vec<Vec<f64>> {
        if self.pairs == 0 {
            return vec![vec![1.0]];
        }
        let pairs = &self.values[..self.pairs];
        let finite: Vec<f64> = std::iter::once(0.0).chain(pairs.iter().flat_map(|a| [*a, -a])).collect();
        let row = |p: &f64| {
            let scale: f64 = finite.iter().filter(|q| *q != p).map(|q| p - q).product();
            std::iter::successors(Some(1.0 / scale), |power| Some(power * p)).take(self.taps).collect()
        };
        let mut rows: Vec<Vec<f64>> = finite.iter().map(row).collect();
        rows.push((1..=self.taps).map(|tap| f64::from(u8::from(tap == self.taps))).collect());
        rows
    }

    /// Inputs of a tile to their values at the points; `N` is `pairs`.
    #[inline(always)]
    pub(crate) fn analyse<S: Simd, const N: usize>(&self, simd: S, x: [S::f32s; MOST]) -> [S::f32s; MOST] {
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

    /// Products at the points to the outputs of a tile; `N` is `pairs`, `M` is `tile`.
    #[inline(always)]
    pub(crate) fn synthesise<S: Simd, const N: usize, const M: usize>(
        &self,
        simd: S,
        x: [S::f32s; MOST],
    ) -> [S::f32s; MOST] {
        if N == 0 {
            return x;
        }
        let zero = simd.splat_f32s(0.0);
        let (mut sums, mut differences) = ([zero; N], [zero; N]);
        for i in 0..N {
            sums[i] = simd.add_f32s(x[2 * i + 1], x[2 * i + 2]);
            differences[i] = simd.sub_f32s(x[2 * i + 1], x[2 * i + 2]);
        }
        let mut y = [zero; MOST];
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
}

/// The coefficients, in x² and rising, of the product of x² - b².
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

#[allow(clippy::cast_possible_truncation, reason = "graphs compute in f32, and these are small dyadic numbers")]
fn fill(to: &mut [f32], from: &[f64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from as f32;
    }
}
