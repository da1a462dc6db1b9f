//! Inner products of every row of one set with every row of another, in f32.
//!
//! Rows lie in panels of sixteen, turned: sixteen neighbouring numbers are one dimension of sixteen rows. A panel serves both sides, as vectors on one and as
//! single numbers on the other, so nothing is packed for each block.

use std::ops::Range;

use ndarray::ArrayView2;
use pulp::{Simd, WithSimd};
use rayon::iter::{IndexedParallelIterator as _, ParallelIterator as _};
use rayon::slice::ParallelSliceMut as _;

/// Rows of a panel.
pub(crate) const PANEL: usize = 16;
/// Dimensions that are summed in registers: so much of two panels stays in a core's first cache.
const DEPTH: usize = 128;
/// Rows on the left whose sums are in registers, with two vectors each: 16 registers.
const LEFT: usize = 8;

/// Rows `[N, D]` in panels.
pub(crate) struct Panels {
    /// `[N / 16, lines, 16]`, and one panel of zeros.
    values: Vec<f32>,
    dims: usize,
    /// Lines of a panel: its dimensions and some zeros, so that neighbouring panels fall into different sets of the caches.
    lines: usize,
}

impl Panels {
    pub(crate) fn new(rows: ArrayView2<'_, f32>) -> Self {
        let dims = rows.ncols();
        let lines = (dims.div_ceil(DEPTH) | 1) * DEPTH;
        let mut values = vec![0.0; (rows.nrows().div_ceil(PANEL) + 1) * lines * PANEL];
        values.par_chunks_exact_mut(lines * PANEL).enumerate().for_each(|(panel, values)| {
            for at in 0..PANEL.min(rows.nrows().saturating_sub(panel * PANEL)) {
                for (value, place) in rows.row(panel * PANEL + at).iter().zip(values[at..].iter_mut().step_by(PANEL)) {
                    *place = *value;
                }
            }
        });
        Self { values, dims, lines }
    }

    /// Some dimensions of a panel; zeros beyond the last.
    fn part(&self, panel: usize, depth: &Range<usize>) -> &[[f32; PANEL]] {
        let (lines, _) = self.values.as_chunks();
        let start = panel.min(lines.len() / self.lines - 1) * self.lines;
        &lines[start + depth.start..start + depth.end]
    }
}

/// Products of some rows of two sets.
pub(crate) struct Products {
    /// `[rows, columns]`, both in whole panels.
    values: Vec<f32>,
    stride: usize,
    columns: usize,
}

impl Products {
    /// Of rows of `a` and rows of `b`, its columns; both ranges begin with a panel. Every product is summed in the same order, whatever lies beside it. With
    /// `symmetric`, where both sides are the same rows, half of them are computed.
    pub(crate) fn new(a: &Panels, rows: &Range<usize>, b: &Panels, columns: &Range<usize>, symmetric: bool) -> Self {
        let stride = columns.len().next_multiple_of(2 * PANEL);
        let mut values = vec![0.0; rows.len().next_multiple_of(PANEL) * stride];
        let first = [rows.start / PANEL, columns.start / PANEL];
        pulp::Arch::new().dispatch(Multiply { a, b, first, symmetric, values: &mut values, stride });
        if symmetric {
            for i in 0..rows.len() {
                for j in 0..i {
                    values[i * stride + j] = values[j * stride + i];
                }
            }
        }
        Self { values, stride, columns: columns.len() }
    }

    /// Those of one row, counted from the first of the range.
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.stride..][..self.columns]
    }
}

struct Multiply<'a> {
    a: &'a Panels,
    b: &'a Panels,
    /// First panels of both sides.
    first: [usize; 2],
    symmetric: bool,
    values: &'a mut [f32],
    stride: usize,
}

impl WithSimd for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { a, b, first, symmetric, values, stride } = self;
        // Two vectors side by side.
        let group = 2 * S::F32_LANES;
        for start in (0..a.dims).step_by(DEPTH) {
            let depth = start..(start + DEPTH).min(a.dims);
            for column in (0..stride).step_by(group) {
                let (x, y) = (column, column + S::F32_LANES);
                let right = [b.part(first[1] + x / PANEL, &depth), b.part(first[1] + y / PANEL, &depth)];
                let at = [x % PANEL, y % PANEL];
                for (panel, values) in values.chunks_exact_mut(PANEL * stride).enumerate() {
                    if symmetric && column + group <= panel * PANEL {
                        break;
                    }
                    let left = a.part(first[0] + panel, &depth);
                    let (upper, lower) = values.split_at_mut(LEFT * stride);
                    add_products::<S, 0>(simd, left, right, at, &mut upper[column..], stride);
                    add_products::<S, LEFT>(simd, left, right, at, &mut lower[column..], stride);
                }
            }
        }
    }
}

/// Adds the products of the panel's rows from `FIRST` on, and of one vector of each panel on the right, from the row `at` on.
#[inline(always)]
fn add_products<S: Simd, const FIRST: usize>(
    simd: S,
    left: &[[f32; PANEL]],
    [x, y]: [&[[f32; PANEL]]; 2],
    at: [usize; 2],
    values: &mut [f32],
    stride: usize,
) {
    let mut sums = [[simd.splat_f32s(0.0); 2]; LEFT];
    for ((left, x), y) in left.iter().zip(x).zip(y) {
        let x = S::as_simd_f32s(&x[at[0]..]).0[0];
        let y = S::as_simd_f32s(&y[at[1]..]).0[0];
        for i in 0..LEFT {
            let value = simd.splat_f32s(left[FIRST + i]);
            sums[i][0] = simd.mul_add_f32s(value, x, sums[i][0]);
            sums[i][1] = simd.mul_add_f32s(value, y, sums[i][1]);
        }
    }
    for (values, sums) in values.chunks_mut(stride).zip(&sums) {
        let places = S::as_mut_simd_f32s(values).0;
        places[0] = simd.add_f32s(places[0], sums[0]);
        places[1] = simd.add_f32s(places[1], sums[1]);
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;

    #[test]
    fn products_are_those_of_f64() {
        for (n, m, dims) in [(1, 1, 1), (16, 32, 128), (40, 33, 300), (70, 16, 129), (5, 90, 7)] {
            let fill = |rows: usize, step: usize| {
                Array2::from_shape_fn((rows, dims), |(i, j)| ((i * step + j * 31) % 101) as f32 / 37.0 - 1.0)
            };
            let (a, b) = (fill(n, 7), fill(m, 13));
            let (panels_a, panels_b) = (Panels::new(a.view()), Panels::new(b.view()));
            let found = Products::new(&panels_a, &(0..n), &panels_b, &(0..m), false);
            let exact = |x: &Array2<f32>, i: usize, y: &Array2<f32>, j: usize| {
                x.row(i).iter().zip(y.row(j)).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>()
            };
            let most = (dims as f64) * 4.0;
            for i in 0..n {
                assert_eq!(found.row(i).len(), m);
                for j in 0..m {
                    let off = (f64::from(found.row(i)[j]) - exact(&a, i, &b, j)).abs();
                    assert!(off <= 1e-6 * most, "{n} x {m} x {dims}: [{i}, {j}] is off by {off}");
                }
            }
            // The half that is computed and the other, and parts of a set, are the same to the bit.
            let own = Products::new(&panels_a, &(0..n), &panels_a, &(0..n), false);
            let half = Products::new(&panels_a, &(0..n), &panels_a, &(0..n), true);
            assert!((0..n).all(|i| own.row(i) == half.row(i)));
            for start in (0..n).step_by(PANEL) {
                let part = Products::new(&panels_a, &(start..n), &panels_b, &(0..m), false);
                assert!((start..n).all(|i| part.row(i - start) == found.row(i)));
            }
        }
    }
}
