//! Inner products of every row of one set with every row of another, in f32 or f64.
//!
//! Rows are packed in transposed panels of sixteen: sixteen consecutive numbers are one dimension of sixteen rows. The
//! same layout is used for the left operand (numbers are broadcast) and the right operand (numbers form vectors), so a
//! set is packed once for both.

use std::ops::Range;

use ndarray::ArrayView2;
use pulp::{Simd, WithSimd};
use rayon::iter::{IndexedParallelIterator as _, ParallelIterator as _};
use rayon::slice::ParallelSliceMut as _;

/// Rows per panel.
pub(crate) const PANEL: usize = 16;
/// Dimensions summed in registers at a time. This part of two panels fits into the first-level cache of a core.
const DEPTH: usize = 128;
/// Left rows summed at a time. Each has two accumulator vectors: 16 registers.
const LEFT: usize = 8;

/// Number type of products and sums, with its vector operations.
pub(crate) trait Element: Copy + Default + Send + Sync + 'static {
    type Vector<S: Simd>: Copy;

    fn lanes<S: Simd>() -> usize;
    fn splat<S: Simd>(simd: S, value: Self) -> Self::Vector<S>;
    fn add<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    fn mul_add<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>, c: Self::Vector<S>) -> Self::Vector<S>;
    fn vectors<S: Simd>(values: &[Self]) -> &[Self::Vector<S>];
    fn vectors_mut<S: Simd>(values: &mut [Self]) -> &mut [Self::Vector<S>];
}

macro_rules! element {
    ($type:ty, $vector:ident, $lanes:ident, $splat:ident, $add:ident, $mul_add:ident, $vectors:ident, $vectors_mut:ident) => {
        impl Element for $type {
            type Vector<S: Simd> = S::$vector;

            #[inline(always)]
            fn lanes<S: Simd>() -> usize {
                S::$lanes
            }

            #[inline(always)]
            fn splat<S: Simd>(simd: S, value: Self) -> Self::Vector<S> {
                simd.$splat(value)
            }

            #[inline(always)]
            fn add<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S> {
                simd.$add(a, b)
            }

            #[inline(always)]
            fn mul_add<S: Simd>(
                simd: S,
                a: Self::Vector<S>,
                b: Self::Vector<S>,
                c: Self::Vector<S>,
            ) -> Self::Vector<S> {
                simd.$mul_add(a, b, c)
            }

            #[inline(always)]
            fn vectors<S: Simd>(values: &[Self]) -> &[Self::Vector<S>] {
                S::$vectors(values).0
            }

            #[inline(always)]
            fn vectors_mut<S: Simd>(values: &mut [Self]) -> &mut [Self::Vector<S>] {
                S::$vectors_mut(values).0
            }
        }
    };
}

element!(f32, f32s, F32_LANES, splat_f32s, add_f32s, mul_add_f32s, as_simd_f32s, as_mut_simd_f32s);
element!(f64, f64s, F64_LANES, splat_f64s, add_f64s, mul_add_f64s, as_simd_f64s, as_mut_simd_f64s);

/// Rows `[N, D]`, packed in panels.
pub(crate) struct Panels<T> {
    /// `[ceil(N / 16) + 1, lines, 16]`. The last panel is zero.
    values: Vec<T>,
    dims: usize,
    /// Lines per panel: the dimensions, padded to an odd multiple of `DEPTH` so that neighbouring panels fall into
    /// different cache sets.
    lines: usize,
}

impl<T: Element> Panels<T> {
    /// Packs `rows` in parallel. `convert` is applied to every number.
    pub(crate) fn new(rows: ArrayView2<'_, f32>, convert: impl Fn(f32) -> T + Sync) -> Self {
        let (dims, lines, len) = Self::shape(rows);
        let mut values = vec![T::default(); len];
        values
            .par_chunks_exact_mut(lines * PANEL)
            .enumerate()
            .for_each(|(panel, values)| fill(values, rows, panel, &convert));
        Self { values, dims, lines }
    }

    /// Packs other rows into the same memory, on the current thread.
    pub(crate) fn refill(&mut self, rows: ArrayView2<'_, f32>, convert: impl Fn(f32) -> T) {
        let (dims, lines, len) = Self::shape(rows);
        // With the same shape and full panels, all numbers except the padding are overwritten. A partial last panel can
        // hold numbers of the previous set.
        if (self.dims, self.lines, self.values.len()) != (dims, lines, len) || !rows.nrows().is_multiple_of(PANEL) {
            self.values.clear();
            self.values.resize(len, T::default());
            (self.dims, self.lines) = (dims, lines);
        }
        for (panel, values) in self.values.chunks_exact_mut(lines * PANEL).enumerate() {
            fill(values, rows, panel, &convert);
        }
    }

    /// A set without rows.
    pub(crate) fn empty() -> Self {
        Self { values: Vec::new(), dims: 0, lines: 0 }
    }

    /// Number of dimensions, lines per panel, and numbers in all panels.
    fn shape(rows: ArrayView2<'_, f32>) -> (usize, usize, usize) {
        let dims = rows.ncols();
        let lines = (dims.div_ceil(DEPTH) | 1) * DEPTH;
        (dims, lines, (rows.nrows().div_ceil(PANEL) + 1) * lines * PANEL)
    }

    /// The dimensions `depth` of a panel; zeros for a panel beyond the last.
    fn part(&self, panel: usize, depth: &Range<usize>) -> &[[T; PANEL]] {
        let (lines, _) = self.values.as_chunks();
        let start = panel.min(lines.len() / self.lines - 1) * self.lines;
        &lines[start + depth.start..start + depth.end]
    }
}

fn fill<T: Element>(values: &mut [T], rows: ArrayView2<'_, f32>, panel: usize, convert: &impl Fn(f32) -> T) {
    for at in 0..PANEL.min(rows.nrows().saturating_sub(panel * PANEL)) {
        for (value, place) in rows.row(panel * PANEL + at).iter().zip(values[at..].iter_mut().step_by(PANEL)) {
            *place = convert(*value);
        }
    }
}

/// Inner products of some rows of two sets.
pub(crate) struct Products<T> {
    /// `[rows, columns]`: rows padded to a multiple of 16, columns to a multiple of 32.
    values: Vec<T>,
    stride: usize,
    columns: usize,
}

impl<T: Element> Products<T> {
    /// Products of rows of `a` with rows of `b` (the columns of the result). Both ranges must start at a panel
    /// boundary. Every product is summed in the same order, independent of the ranges. With `symmetric`, both sides are
    /// the same rows; one triangle is computed and mirrored.
    pub(crate) fn new(
        a: &Panels<T>,
        rows: &Range<usize>,
        b: &Panels<T>,
        columns: &Range<usize>,
        symmetric: bool,
    ) -> Self {
        let stride = columns.len().next_multiple_of(2 * PANEL);
        let mut values = vec![T::default(); rows.len().next_multiple_of(PANEL) * stride];
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

    /// Products of row `row`, counted from the start of the row range.
    pub(crate) fn row(&self, row: usize) -> &[T] {
        &self.values[row * self.stride..][..self.columns]
    }
}

struct Multiply<'a, T> {
    a: &'a Panels<T>,
    b: &'a Panels<T>,
    /// First panel of each side.
    first: [usize; 2],
    symmetric: bool,
    values: &'a mut [T],
    stride: usize,
}

impl<T: Element> WithSimd for Multiply<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { a, b, first, symmetric, values, stride } = self;
        let lanes = T::lanes::<S>();
        // Two vectors side by side.
        let group = 2 * lanes;
        for start in (0..a.dims).step_by(DEPTH) {
            let depth = start..(start + DEPTH).min(a.dims);
            for column in (0..stride).step_by(group) {
                let (x, y) = (column, column + lanes);
                let right = [b.part(first[1] + x / PANEL, &depth), b.part(first[1] + y / PANEL, &depth)];
                let at = [x % PANEL, y % PANEL];
                for (panel, values) in values.chunks_exact_mut(PANEL * stride).enumerate() {
                    if symmetric && column + group <= panel * PANEL {
                        break;
                    }
                    let left = a.part(first[0] + panel, &depth);
                    let (upper, lower) = values.split_at_mut(LEFT * stride);
                    add_products::<T, S, 0>(simd, left, right, at, &mut upper[column..], stride);
                    add_products::<T, S, LEFT>(simd, left, right, at, &mut lower[column..], stride);
                }
            }
        }
    }
}

/// Adds the products of the left panel rows from `FIRST` on with one vector of each right panel, which starts at row
/// `at`.
#[inline(always)]
fn add_products<T: Element, S: Simd, const FIRST: usize>(
    simd: S,
    left: &[[T; PANEL]],
    [x, y]: [&[[T; PANEL]]; 2],
    at: [usize; 2],
    values: &mut [T],
    stride: usize,
) {
    let mut sums = [[T::splat(simd, T::default()); 2]; LEFT];
    for ((left, x), y) in left.iter().zip(x).zip(y) {
        let x = T::vectors::<S>(&x[at[0]..])[0];
        let y = T::vectors::<S>(&y[at[1]..])[0];
        for i in 0..LEFT {
            let value = T::splat(simd, left[FIRST + i]);
            sums[i][0] = T::mul_add(simd, value, x, sums[i][0]);
            sums[i][1] = T::mul_add(simd, value, y, sums[i][1]);
        }
    }
    for (values, sums) in values.chunks_mut(stride).zip(&sums) {
        let places = T::vectors_mut::<S>(values);
        places[0] = T::add(simd, places[0], sums[0]);
        places[1] = T::add(simd, places[1], sums[1]);
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;

    /// `worst` is the allowed rounding error, relative to the largest possible sum.
    fn check<T: Element + PartialEq + Into<f64> + std::fmt::Debug>(convert: fn(f32) -> T, worst: f64) {
        for (n, m, dims) in [(1, 1, 1), (16, 32, 128), (40, 33, 300), (70, 16, 129), (5, 90, 7)] {
            let numbers = |rows: usize, step: usize| {
                Array2::from_shape_fn((rows, dims), |(i, j)| ((i * step + j * 31) % 101) as f32 / 37.0 - 1.0)
            };
            let (a, b) = (numbers(n, 7), numbers(m, 13));
            let (panels_a, mut panels_b) = (Panels::new(a.view(), convert), Panels::empty());
            for rows in [&a, &b, &a, &numbers(m, 29), &b] {
                panels_b.refill(rows.view(), convert);
            }
            let found = Products::new(&panels_a, &(0..n), &panels_b, &(0..m), false);
            let exact = |x: &Array2<f32>, i: usize, y: &Array2<f32>, j: usize| {
                x.row(i).iter().zip(y.row(j)).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>()
            };
            let most = (dims as f64) * 4.0;
            for i in 0..n {
                assert_eq!(found.row(i).len(), m);
                for j in 0..m {
                    let off = (found.row(i)[j].into() - exact(&a, i, &b, j)).abs();
                    assert!(off <= worst * most, "{n} x {m} x {dims}: [{i}, {j}] is off by {off}");
                }
            }
            // The mirrored triangle and partial row ranges give bit-identical products.
            let own = Products::new(&panels_a, &(0..n), &panels_a, &(0..n), false);
            let half = Products::new(&panels_a, &(0..n), &panels_a, &(0..n), true);
            assert!((0..n).all(|i| own.row(i) == half.row(i)));
            for start in (0..n).step_by(PANEL) {
                let part = Products::new(&panels_a, &(start..n), &panels_b, &(0..m), false);
                assert!((start..n).all(|i| part.row(i - start) == found.row(i)));
            }
        }
    }

    #[test]
    fn products_equal_sums_in_f64() {
        check(|v| v, 1e-6);
        check(f64::from, 1e-15);
    }
}
