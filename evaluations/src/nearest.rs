//! Nearest reference images of single samples, for visual inspection. They show whether a generator repeats training
//! images, which a distance between sets does not.

use ndarray::{ArrayView1, ArrayView2};
use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, ensure_finite};

/// A reference row with its distance from a sample.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Index of the row in the reference, from 0.
    pub index: usize,
    /// Euclidean distance of the features.
    pub distance: f64,
}

/// Finds the `k` rows of `reference [M, D]` nearest to each row of `samples [N, D]`, nearest first; ties in the order
/// of the index.
///
/// Distances are Euclidean: differences and their squares in f64, summed over the features in order. All N·M pairs are
/// computed, so this is meant for few samples.
///
/// # Errors
/// `DimMismatch`; `TooFew` if the reference has fewer than `k` rows; `NotFinite`.
pub fn nearest(samples: ArrayView2<'_, f32>, reference: ArrayView2<'_, f32>, k: usize) -> Result<Vec<Vec<Neighbour>>> {
    if samples.ncols() != reference.ncols() {
        return Err(Error::DimMismatch { what: "samples", expected: reference.ncols(), found: samples.ncols() });
    }
    if reference.nrows() < k {
        return Err(Error::TooFew { what: "nearest reference images", least: k, found: reference.nrows() });
    }
    ensure_finite("samples", samples, 0)?;
    ensure_finite("reference", reference, 0)?;
    Ok((0..samples.nrows()).into_par_iter().map(|i| nearest_to(samples.row(i), reference, k)).collect())
}

fn nearest_to(sample: ArrayView1<'_, f32>, reference: ArrayView2<'_, f32>, k: usize) -> Vec<Neighbour> {
    let mut found: Vec<Neighbour> = Vec::with_capacity(k + 1);
    for (index, row) in reference.outer_iter().enumerate() {
        let square = |(a, b): (&f32, &f32)| {
            let difference = f64::from(*a) - f64::from(*b);
            difference * difference
        };
        let distance = sample.iter().zip(row).map(square).sum::<f64>().sqrt();
        let at = found.partition_point(|n| n.distance <= distance);
        if at < k {
            found.insert(at, Neighbour { index, distance });
            found.truncate(k);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn the_nearest_come_first_and_equals_by_index() {
        let reference = array![[3.0_f32, 4.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0]];
        let found = nearest(array![[0.0_f32, 0.0], [3.0, 4.0]].view(), reference.view(), 3).unwrap();
        let shown = |i: usize| found[i].iter().map(|n| (n.index, n.distance)).collect::<Vec<_>>();
        assert_eq!(shown(0), [(2, 0.0), (1, 1.0), (3, 1.0)]);
        assert_eq!(shown(1), [(0, 0.0), (3, 18.0_f64.sqrt()), (1, 20.0_f64.sqrt())]);
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let rows = array![[0.0_f32, 1.0], [2.0, 3.0]];
        assert!(matches!(nearest(rows.view(), array![[1.0_f32]].view(), 1), Err(Error::DimMismatch { .. })));
        let few = nearest(rows.view(), rows.view(), 3);
        assert!(matches!(few, Err(Error::TooFew { least: 3, found: 2, .. })));
        let broken = array![[0.0_f32, f32::NAN]];
        assert!(matches!(nearest(rows.view(), broken.view(), 1), Err(Error::NotFinite { what: "reference", .. })));
    }
}
