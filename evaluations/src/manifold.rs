//! Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020): exact nearest neighbours in blocks.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use ndarray::{Array2, ArrayView2};

use crate::error::{Error, Result};

/// Rows of a block; memory is two blocks of distances whatever N.
const BLOCK: usize = 1024;

/// Flags and counts behind the four numbers, for each sample and each reference image.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifold {
    /// For each sample: whether it lies in a ball of the reference.
    pub sample_inside: Vec<bool>,
    /// For each reference image: whether it lies in a ball of the samples.
    pub reference_inside: Vec<bool>,
    /// For each sample: in how many balls of the reference it lies.
    pub balls: Vec<u32>,
    /// For each reference image: whether its ball holds a sample.
    pub covered: Vec<bool>,
    /// Neighbours of a ball.
    pub k: usize,
}

impl Manifold {
    /// Share of samples inside the reference's manifold.
    #[must_use]
    pub fn precision(&self) -> f64 {
        share(&self.sample_inside)
    }

    /// Share of reference images inside the samples' manifold.
    #[must_use]
    pub fn recall(&self) -> f64 {
        share(&self.reference_inside)
    }

    /// Mean number of reference balls around a sample, over k.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "counts")]
    pub fn density(&self) -> f64 {
        self.balls.iter().map(|b| f64::from(*b)).sum::<f64>() / (self.k * self.balls.len()) as f64
    }

    /// Share of reference images whose ball holds a sample.
    #[must_use]
    pub fn coverage(&self) -> f64 {
        share(&self.covered)
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts")]
fn share(flags: &[bool]) -> f64 {
    flags.iter().filter(|f| **f).count() as f64 / flags.len() as f64
}

/// Compares `samples [N, D]` with `reference [M, D]`; a ball reaches to the k-th neighbour within its own set, ties included.
///
/// Squared distances `|u|² − 2uv + |v|²` in f32, negative ones 0.
///
/// # Errors
/// `DimMismatch`; `TooFew` unless both sets have more than k rows; `NotFinite`.
pub fn manifold(samples: ArrayView2<'_, f32>, reference: ArrayView2<'_, f32>, k: usize) -> Result<Manifold> {
    if samples.ncols() != reference.ncols() {
        return Err(Error::DimMismatch { what: "samples", expected: reference.ncols(), found: samples.ncols() });
    }
    for (what, rows) in [("samples", &samples), ("reference", &reference)] {
        if rows.nrows() <= k {
            return Err(Error::TooFew { what: "precision and recall", least: k + 1, found: rows.nrows() });
        }
        if let Some(row) = rows.outer_iter().position(|r| r.iter().any(|v| !v.is_finite())) {
            let count = rows.iter().filter(|v| !v.is_finite()).count();
            return Err(Error::NotFinite { what, count, row });
        }
    }
    let (samples, reference) = (Points::new(samples), Points::new(reference));
    let (sample_radii, reference_radii) = (samples.radii(k), reference.radii(k));
    let (n, m) = (samples.len(), reference.len());
    let mut out = Manifold {
        sample_inside: vec![false; n],
        reference_inside: vec![false; m],
        balls: vec![0; n],
        covered: vec![false; m],
        k,
    };
    samples.blocks(&reference, |i, j, distance| {
        if distance <= reference_radii[j] {
            out.sample_inside[i] = true;
            out.balls[i] += 1;
            out.covered[j] = true;
        }
        if distance <= sample_radii[i] {
            out.reference_inside[j] = true;
        }
    });
    Ok(out)
}

struct Points {
    rows: Array2<f32>,
    squares: Vec<f32>,
}

impl Points {
    fn new(rows: ArrayView2<'_, f32>) -> Self {
        let rows = rows.as_standard_layout().into_owned();
        let squares = rows.outer_iter().map(|r| r.dot(&r)).collect();
        Self { rows, squares }
    }

    fn len(&self) -> usize {
        self.squares.len()
    }

    fn block(&self, start: usize, end: usize) -> MatRef<'_, f32> {
        let d = self.rows.ncols();
        let flat = self.rows.as_slice().unwrap_or(&[]);
        MatRef::from_row_major_slice(&flat[start * d..end * d], end - start, d)
    }

    /// Calls `each(i, j, squared distance)` for every pair.
    fn blocks(&self, other: &Self, mut each: impl FnMut(usize, usize, f32)) {
        for i0 in (0..self.len()).step_by(BLOCK) {
            let i1 = (i0 + BLOCK).min(self.len());
            for j0 in (0..other.len()).step_by(BLOCK) {
                let j1 = (j0 + BLOCK).min(other.len());
                // Columns are the rows of `self`, so the inner loop below walks memory in order.
                let mut products = Mat::<f32>::zeros(j1 - j0, i1 - i0);
                let (a, b) = (self.block(i0, i1), other.block(j0, j1));
                matmul(&mut products, Accum::Replace, b, a.transpose(), 1.0, Par::rayon(0));
                for i in i0..i1 {
                    let column = products.col(i - i0);
                    for j in j0..j1 {
                        let d = self.squares[i] - 2.0 * column[j - j0] + other.squares[j];
                        each(i, j, d.max(0.0));
                    }
                }
            }
        }
    }

    /// Squared distance of each point to its k-th neighbour among the others.
    fn radii(&self, k: usize) -> Vec<f32> {
        let mut nearest = vec![Vec::<f32>::with_capacity(k + 1); self.len()];
        self.blocks(self, |i, j, d| {
            if i != j {
                let list = &mut nearest[i];
                if list.len() < k || list.last().is_some_and(|l| d < *l) {
                    let at = list.partition_point(|v| *v <= d);
                    list.insert(at, d);
                    list.truncate(k);
                }
            }
        });
        nearest.iter().map(|l| l.last().copied().unwrap_or(0.0)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(n: usize, shift: f32) -> Array2<f32> {
        Array2::from_shape_fn((n, 2), |(i, j)| if j == 0 { (i % 10) as f32 + shift } else { (i / 10) as f32 })
    }

    #[test]
    fn a_set_against_itself_is_perfect() {
        let m = manifold(grid(100, 0.0).view(), grid(100, 0.0).view(), 3).unwrap();
        assert_eq!((m.precision(), m.recall(), m.coverage()), (1.0, 1.0, 1.0));
    }

    #[test]
    fn a_collapsed_generator_has_precision_without_recall() {
        let reference = grid(100, 0.0);
        let samples = Array2::from_shape_fn((100, 2), |(i, _)| 4.0 + i as f32 * 1e-4);
        let m = manifold(samples.view(), reference.view(), 3).unwrap();
        assert!(m.precision() > 0.99 && m.recall() < 0.05, "{} {}", m.precision(), m.recall());
    }

    #[test]
    fn distant_sets_share_nothing() {
        let m = manifold(grid(100, 50.0).view(), grid(100, 0.0).view(), 3).unwrap();
        assert_eq!((m.precision(), m.recall(), m.density(), m.coverage()), (0.0, 0.0, 0.0, 0.0));
    }

    #[test]
    fn blocks_do_not_show() {
        // More rows than a block holds, against a plain double loop.
        let a = Array2::from_shape_fn((1100, 3), |(i, j)| ((i * 37 + j * 11) % 101) as f32 / 10.0);
        let b = Array2::from_shape_fn((1050, 3), |(i, j)| ((i * 53 + j * 29) % 97) as f32 / 9.0);
        let distance = |x: ArrayView2<'_, f32>, i: usize, y: ArrayView2<'_, f32>, j: usize| {
            (0..3).map(|c| (x[[i, c]] - y[[j, c]]).powi(2)).sum::<f32>()
        };
        let radius = |j: usize| {
            let mut all: Vec<f32> = (0..1050).filter(|i| *i != j).map(|i| distance(b.view(), i, b.view(), j)).collect();
            all.sort_by(f32::total_cmp);
            all[2]
        };
        let m = manifold(a.view(), b.view(), 3).unwrap();
        let radii: Vec<f32> = (0..1050).map(radius).collect();
        for i in (0..1100).step_by(97) {
            let near = (0..1050).any(|j| distance(a.view(), i, b.view(), j) <= radii[j] * (1.0 + 1e-5) + 1e-5);
            let surely = (0..1050).any(|j| distance(a.view(), i, b.view(), j) < radii[j] * (1.0 - 1e-5) - 1e-5);
            assert!((!m.sample_inside[i] || near) && (m.sample_inside[i] || !surely), "row {i}");
        }
    }

    #[test]
    fn too_few_or_bad_rows_are_errors() {
        assert!(matches!(manifold(grid(3, 0.0).view(), grid(9, 0.0).view(), 3), Err(Error::TooFew { .. })));
        let mut bad = grid(9, 0.0);
        bad[[2, 1]] = f32::NAN;
        assert!(matches!(manifold(bad.view(), grid(9, 0.0).view(), 3), Err(Error::NotFinite { row: 2, .. })));
    }
}
