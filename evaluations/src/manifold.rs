//! Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020): exact nearest neighbours in blocks.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use ndarray::{Array2, ArrayView2};

use crate::error::{Error, Result};

/// How the distance of two rows is computed. All are `|u|² - 2uv + |v|²`, negative results 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distance {
    /// Squared, f32.
    Squared,
    /// Squared, as guided-diffusion: a block of 10 000 × 10 000 in f16 where all of it is finite, else in f32. Products and norms are summed
    /// in f32 and rounded to f16 after each operation, as f16 matrix units do.
    SquaredHalfBlocks,
    /// Euclidean, f32, as `torch.cdist`.
    Euclidean,
    /// Euclidean of features rounded to f16, as `torch.cdist` of f16: sums in f32, the square and its root rounded to f16.
    EuclideanHalf,
}

impl Distance {
    /// In words.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::Squared => "squared distance in f32",
            Self::SquaredHalfBlocks => "squared distance in f16 blocks of 10000, f32 where f16 overflows",
            Self::Euclidean => "distance in f32",
            Self::EuclideanHalf => "distance in f16",
        }
    }
}

/// Whether a point at exactly a ball's radius lies inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ties {
    /// `<=`.
    Inside,
    /// `<`.
    Outside,
}

/// One tool's precision and recall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManifoldRule {
    /// A ball reaches to the k-th neighbour within its own set: the element at index k of the sorted distances, the point's own included.
    pub k: usize,
    /// The distance.
    pub distance: Distance,
    /// Points on the boundary.
    pub ties: Ties,
}

impl ManifoldRule {
    /// In words.
    #[must_use]
    pub fn describe(&self) -> String {
        let ties = if self.ties == Ties::Inside { "inside" } else { "outside" };
        format!("{} neighbours, {}, ties {ties}", self.k, self.distance.describe())
    }
}

/// Rows of a block; memory is two blocks of distances whatever N.
const BLOCK: usize = 1024;
/// Rows of guided-diffusion's blocks, which are f16 or f32 as a whole.
const TILE: usize = 10_000;

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

/// Compares `samples [N, D]` with `reference [M, D]` under `rule`.
///
/// Memory is the features, their f16 roundings where the rule asks for them, and two blocks of distances.
///
/// # Errors
/// `DimMismatch`; `TooFew` unless both sets have more than k rows; `NotFinite`.
pub fn manifold(samples: ArrayView2<'_, f32>, reference: ArrayView2<'_, f32>, rule: &ManifoldRule) -> Result<Manifold> {
    let k = rule.k;
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
    let (samples, reference) = (Points::new(samples, rule.distance), Points::new(reference, rule.distance));
    let (sample_radii, reference_radii) = (samples.radii(k), reference.radii(k));
    let (n, m) = (samples.len(), reference.len());
    let mut out = Manifold {
        sample_inside: vec![false; n],
        reference_inside: vec![false; m],
        balls: vec![0; n],
        covered: vec![false; m],
        k,
    };
    let inside = |distance: f32, radius: f32| match rule.ties {
        Ties::Inside => distance <= radius,
        Ties::Outside => distance < radius,
    };
    samples.blocks(&reference, |i, j, distance| {
        if inside(distance, reference_radii[j]) {
            out.sample_inside[i] = true;
            out.balls[i] += 1;
            out.covered[j] = true;
        }
        if inside(distance, sample_radii[i]) {
            out.reference_inside[j] = true;
        }
    });
    Ok(out)
}

/// `x` rounded to f16 (to nearest, ties to even), as f32.
#[must_use]
fn to_half(x: f32) -> f32 {
    const LARGEST: f32 = 65504.0;
    const SMALLEST_NORMAL: f32 = 6.103_515_6e-5;
    const SUBNORMALS: f32 = 16_777_216.0;
    let size = x.abs();
    if size >= SMALLEST_NORMAL {
        let bits = x.to_bits();
        let rounded = f32::from_bits(bits.wrapping_add(0xfff + ((bits >> 13) & 1)) & !0x1fff);
        if rounded.abs() > LARGEST { f32::INFINITY.copysign(x) } else { rounded }
    } else {
        // Also keeps NaN.
        (x * SUBNORMALS).round_ties_even() / SUBNORMALS
    }
}

/// Rows with their squared lengths.
struct Rows {
    rows: Array2<f32>,
    squares: Vec<f32>,
    /// Largest of `squares`.
    largest: f32,
}

impl Rows {
    fn new(rows: Array2<f32>, square: impl Fn(ndarray::ArrayView1<'_, f32>) -> f32) -> Self {
        let squares: Vec<f32> = rows.outer_iter().map(square).collect();
        let largest = squares.iter().fold(0.0_f32, |m, v| m.max(*v));
        Self { rows, squares, largest }
    }

    fn block(&self, start: usize, end: usize) -> MatRef<'_, f32> {
        let d = self.rows.ncols();
        let flat = self.rows.as_slice().unwrap_or(&[]);
        MatRef::from_row_major_slice(&flat[start * d..end * d], end - start, d)
    }
}

struct Points {
    distance: Distance,
    /// What the features are compared in; f16 values for `EuclideanHalf`.
    plain: Rows,
    /// Features rounded to f16, for `SquaredHalfBlocks`.
    half: Option<Rows>,
}

impl Points {
    fn new(rows: ArrayView2<'_, f32>, distance: Distance) -> Self {
        let rows = rows.as_standard_layout().into_owned();
        let half_square = |r: ndarray::ArrayView1<'_, f32>| to_half(r.iter().map(|v| to_half(v * v)).sum());
        let half = |rows: &Array2<f32>| Rows::new(rows.mapv(to_half), half_square);
        match distance {
            Distance::Squared | Distance::Euclidean => {
                Self { distance, plain: Rows::new(rows, |r| r.dot(&r)), half: None }
            }
            Distance::SquaredHalfBlocks => {
                let half = Some(half(&rows));
                Self { distance, plain: Rows::new(rows, |r| r.dot(&r)), half }
            }
            Distance::EuclideanHalf => Self { distance, plain: half(&rows), half: None },
        }
    }

    fn len(&self) -> usize {
        self.plain.squares.len()
    }

    /// Calls `each(i, j, distance)` for every pair.
    fn blocks(&self, other: &Self, mut each: impl FnMut(usize, usize, f32)) {
        for i0 in (0..self.len()).step_by(TILE) {
            let is = (i0, (i0 + TILE).min(self.len()));
            for j0 in (0..other.len()).step_by(TILE) {
                let js = (j0, (j0 + TILE).min(other.len()));
                match (&self.half, &other.half) {
                    (Some(a), Some(b)) if all_finite(a, b, is, js) => tile(a, b, is, js, half_squared, &mut each),
                    _ => match self.distance {
                        Distance::Squared | Distance::SquaredHalfBlocks => {
                            tile(&self.plain, &other.plain, is, js, squared, &mut each);
                        }
                        Distance::Euclidean => {
                            let root = |u, p, v| squared(u, p, v).sqrt();
                            tile(&self.plain, &other.plain, is, js, root, &mut each);
                        }
                        Distance::EuclideanHalf => {
                            let root = |u, p, v| to_half(to_half(squared(u, p, v)).sqrt());
                            tile(&self.plain, &other.plain, is, js, root, &mut each);
                        }
                    },
                }
            }
        }
    }

    /// Distance of each point to its k-th neighbour: index k of the sorted row, the point itself included.
    fn radii(&self, k: usize) -> Vec<f32> {
        let mut nearest = vec![Vec::<f32>::with_capacity(k + 2); self.len()];
        self.blocks(self, |i, _, d| {
            let list = &mut nearest[i];
            if list.len() <= k || list.last().is_some_and(|l| d < *l) {
                let at = list.partition_point(|v| *v <= d);
                list.insert(at, d);
                list.truncate(k + 1);
            }
        });
        nearest.iter().map(|l| l.last().copied().unwrap_or(0.0)).collect()
    }
}

fn squared(u: f32, product: f32, v: f32) -> f32 {
    (u - 2.0 * product + v).max(0.0)
}

fn half_squared(u: f32, product: f32, v: f32) -> f32 {
    to_half(to_half(u - to_half(2.0 * to_half(product))) + v).max(0.0)
}

/// Whether the f16 distances of a tile are all finite.
fn all_finite(a: &Rows, b: &Rows, is: (usize, usize), js: (usize, usize)) -> bool {
    // 2|uv| ≤ |u|² + |v|², so no value on the way exceeds twice the sum of the largest squares; a tenth is left for rounding.
    const SAFE: f32 = 65504.0 * 0.9 / 2.0;
    if a.largest + b.largest < SAFE {
        return true;
    }
    let mut finite = true;
    // `max` drops NaN, which ∞ - ∞ gives, so the unclamped value decides.
    let unclamped = |u: f32, p: f32, v: f32| to_half(to_half(u - to_half(2.0 * to_half(p))) + v);
    tile(a, b, is, js, unclamped, &mut |_, _, d: f32| finite &= d.is_finite());
    finite
}

/// Calls `each(i, j, measure(|a_i|², a_i·b_j, |b_j|²))` for the pairs of a tile.
fn tile(
    a: &Rows,
    b: &Rows,
    is: (usize, usize),
    js: (usize, usize),
    measure: impl Fn(f32, f32, f32) -> f32,
    each: &mut impl FnMut(usize, usize, f32),
) {
    for i0 in (is.0..is.1).step_by(BLOCK) {
        let i1 = (i0 + BLOCK).min(is.1);
        for j0 in (js.0..js.1).step_by(BLOCK) {
            let j1 = (j0 + BLOCK).min(js.1);
            // Columns are the rows of `a`, so the inner loop below walks memory in order.
            let mut products = Mat::<f32>::zeros(j1 - j0, i1 - i0);
            let (left, right) = (a.block(i0, i1), b.block(j0, j1));
            matmul(&mut products, Accum::Replace, right, left.transpose(), 1.0, Par::rayon(0));
            for i in i0..i1 {
                let column = products.col(i - i0);
                for j in j0..j1 {
                    each(i, j, measure(a.squares[i], column[j - j0], b.squares[j]));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: ManifoldRule = ManifoldRule { k: 3, distance: Distance::Squared, ties: Ties::Inside };

    fn grid(n: usize, shift: f32) -> Array2<f32> {
        Array2::from_shape_fn((n, 2), |(i, j)| if j == 0 { (i % 10) as f32 + shift } else { (i / 10) as f32 })
    }

    #[test]
    fn a_set_against_itself_is_perfect() {
        let m = manifold(grid(100, 0.0).view(), grid(100, 0.0).view(), &RULE).unwrap();
        assert_eq!((m.precision(), m.recall(), m.coverage()), (1.0, 1.0, 1.0));
    }

    #[test]
    fn a_collapsed_generator_has_precision_without_recall() {
        let reference = grid(100, 0.0);
        let samples = Array2::from_shape_fn((100, 2), |(i, _)| 4.0 + i as f32 * 1e-4);
        let m = manifold(samples.view(), reference.view(), &RULE).unwrap();
        assert!(m.precision() > 0.99 && m.recall() < 0.05, "{} {}", m.precision(), m.recall());
    }

    #[test]
    fn distant_sets_share_nothing() {
        let m = manifold(grid(100, 50.0).view(), grid(100, 0.0).view(), &RULE).unwrap();
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
        let m = manifold(a.view(), b.view(), &RULE).unwrap();
        let radii: Vec<f32> = (0..1050).map(radius).collect();
        for i in (0..1100).step_by(97) {
            let near = (0..1050).any(|j| distance(a.view(), i, b.view(), j) <= radii[j] * (1.0 + 1e-5) + 1e-5);
            let surely = (0..1050).any(|j| distance(a.view(), i, b.view(), j) < radii[j] * (1.0 - 1e-5) - 1e-5);
            assert!((!m.sample_inside[i] || near) && (m.sample_inside[i] || !surely), "row {i}");
        }
    }

    #[test]
    fn too_few_or_bad_rows_are_errors() {
        assert!(matches!(manifold(grid(3, 0.0).view(), grid(9, 0.0).view(), &RULE), Err(Error::TooFew { .. })));
        let mut bad = grid(9, 0.0);
        bad[[2, 1]] = f32::NAN;
        assert!(matches!(manifold(bad.view(), grid(9, 0.0).view(), &RULE), Err(Error::NotFinite { row: 2, .. })));
    }

    #[test]
    fn halves_round_as_the_half_crate_has_them() {
        for bits in (0..=u32::MAX).step_by(40_009) {
            let x = f32::from_bits(bits);
            let expected = half::f16::from_f32(x).to_f32();
            assert!(to_half(x).to_bits() == expected.to_bits() || (x.is_nan() && to_half(x).is_nan()), "{x:e}");
        }
        for x in [65519.996, 65520.0, -65520.0, 6.1e-5, 5.96e-8, 2.98e-8, 2.99e-8, 0.0, -0.0, 1.000_488_3] {
            assert_eq!(to_half(x).to_bits(), half::f16::from_f32(x).to_f32().to_bits(), "{x:e}");
        }
    }

    #[test]
    fn half_blocks_fall_back_as_a_whole() {
        // On the grid every distance is exact in f16, so all rules agree; far out f16 overflows and f32 must step in.
        let (a, b) = (grid(100, 0.0), grid(100, 1.0));
        let of = |a: &Array2<f32>, b: &Array2<f32>, distance| {
            manifold(a.view(), b.view(), &ManifoldRule { distance, ..RULE }).unwrap()
        };
        let plain = of(&a, &b, Distance::Squared);
        for distance in [Distance::SquaredHalfBlocks, Distance::Euclidean, Distance::EuclideanHalf] {
            assert_eq!(of(&a, &b, distance), plain, "{distance:?}");
        }
        let (far_a, far_b) = (a.mapv(|v| v * 64.0), b.mapv(|v| v * 64.0));
        assert_eq!(of(&far_a, &far_b, Distance::SquaredHalfBlocks), plain);
    }

    #[test]
    fn ties_count_as_the_rule_says() {
        // On a line with steps of 1 every first neighbour lies at the radius exactly.
        let line = Array2::from_shape_fn((10, 1), |(i, _)| i as f32);
        let next = Array2::from_shape_fn((10, 1), |(i, _)| i as f32 + 10.0);
        let rule = |ties| ManifoldRule { k: 1, ties, ..RULE };
        // Only 10 touches the ball of 9.
        assert_eq!(manifold(next.view(), line.view(), &rule(Ties::Inside)).unwrap().precision(), 0.1);
        assert_eq!(manifold(next.view(), line.view(), &rule(Ties::Outside)).unwrap().precision(), 0.0);
    }
}
