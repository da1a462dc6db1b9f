//! Mean and covariance in f64, independent of the batch size.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use ndarray::{Array1, Array2, ArrayView2};

use crate::error::{Error, Result, ensure_finite};
use crate::frechet::Gaussian;

/// Rows added to the sums at once.
const BLOCK: usize = 512;

/// Running sums over feature rows.
///
/// The first row is subtracted from all rows, so a large common offset costs no precision and equal rows have
/// covariance 0. Rows are buffered until a block of fixed length is full. The order of additions, and with it every bit
/// of the result, then depends only on the order of the rows.
#[derive(Debug, Clone)]
pub struct Accumulator {
    dims: usize,
    count: usize,
    /// The first row.
    origin: Vec<f64>,
    sum: Vec<f64>,
    outer: Mat<f64>,
    waiting: Vec<f64>,
}

impl Accumulator {
    /// Empty sums for rows of `dims` features.
    #[must_use]
    pub fn new(dims: usize) -> Self {
        let (origin, sum) = (vec![0.0; dims], vec![0.0; dims]);
        Self { dims, count: 0, origin, sum, outer: Mat::zeros(dims, dims), waiting: Vec::new() }
    }

    /// Number of rows so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Adds rows `[N, D]`.
    ///
    /// # Errors
    /// `DimMismatch`; `NotFinite` naming the row.
    pub fn push(&mut self, rows: ArrayView2<'_, f32>) -> Result<()> {
        if rows.ncols() != self.dims {
            return Err(Error::DimMismatch { what: "features", expected: self.dims, found: rows.ncols() });
        }
        ensure_finite("features", rows, self.count)?;
        for row in rows.outer_iter() {
            if self.count == 0 {
                self.origin = row.iter().map(|v| f64::from(*v)).collect();
            }
            self.waiting.extend(row.iter().zip(&self.origin).map(|(v, o)| f64::from(*v) - o));
            self.count += 1;
            if self.waiting.len() == BLOCK * self.dims {
                self.flush();
            }
        }
        Ok(())
    }

    /// Adds the buffered rows of an incomplete block, so that [`Accumulator::finish`] needs no copy. Call it after the
    /// last row only: rows pushed later fall into other blocks.
    pub fn flush(&mut self) {
        let rows = self.waiting.len() / self.dims.max(1);
        let block = MatRef::from_row_major_slice(&self.waiting, rows, self.dims);
        matmul(&mut self.outer, Accum::Add, block.transpose(), block, 1.0, Par::rayon(0));
        for row in self.waiting.chunks_exact(self.dims.max(1)) {
            for (s, v) in self.sum.iter_mut().zip(row) {
                *s += v;
            }
        }
        self.waiting.clear();
    }

    /// Mean and covariance, with the divisor `N − ddof`.
    ///
    /// # Errors
    /// `TooFew` unless there are more than `ddof` rows.
    pub fn finish(&self, ddof: usize) -> Result<Gaussian> {
        if self.count <= ddof {
            return Err(Error::TooFew { what: "covariance", least: ddof + 1, found: self.count });
        }
        if !self.waiting.is_empty() {
            let mut complete = self.clone();
            complete.flush();
            return complete.finish(ddof);
        }
        #[allow(clippy::cast_precision_loss, reason = "sample counts")]
        let (n, divisor) = (self.count as f64, (self.count - ddof) as f64);
        let mean: Vec<f64> = self.sum.iter().map(|s| s / n).collect();
        let sigma = Array2::from_shape_fn((self.dims, self.dims), |(i, j)| {
            // Both triangles are read from the lower one, so the result is exactly symmetric.
            let (i, j) = (i.max(j), i.min(j));
            (self.outer[(i, j)] - n * mean[i] * mean[j]) / divisor
        });
        let mu = Array1::from_iter(self.origin.iter().zip(&mean).map(|(o, m)| o + m));
        Ok(Gaussian { mu, sigma })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use ndarray::s;

    #[allow(clippy::cast_possible_truncation, reason = "test values")]
    pub(crate) fn rows(n: usize, d: usize, seed: u32) -> Array2<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).max(1);
        Array2::from_shape_simple_fn((n, d), || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (f64::from(state) / f64::from(u32::MAX)) as f32 * 2.0 - 0.7
        })
    }

    #[test]
    fn every_batch_size_gives_the_same_bits() {
        let x = rows(1300, 17, 3);
        let run = |batch: usize| {
            let mut a = Accumulator::new(17);
            for start in (0..1300).step_by(batch) {
                a.push(x.slice(s![start..(start + batch).min(1300), ..])).unwrap();
            }
            a.finish(1).unwrap()
        };
        let whole = run(1300);
        for batch in [1, 7, 512, 600] {
            assert_eq!(run(batch), whole, "batch {batch}");
        }
        let n = 1300.0;
        for (i, j) in [(0, 0), (3, 11)] {
            let column = |k: usize| x.column(k).mapv(f64::from);
            let (a, b) = (column(i), column(j));
            let expected = (&a - a.sum() / n).dot(&(&b - b.sum() / n)) / (n - 1.0);
            assert!((whole.sigma[[i, j]] - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn bad_rows_are_named() {
        let mut x = rows(5, 3, 1);
        x[[4, 1]] = f32::NAN;
        let text = Accumulator::new(3).push(x.view()).unwrap_err().to_string();
        assert!(text.contains("row 4"), "{text}");
        assert!(matches!(Accumulator::new(2).push(x.view()), Err(Error::DimMismatch { .. })));
        assert!(matches!(Accumulator::new(2).finish(1), Err(Error::TooFew { .. })));
    }
}
