//! Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020): exact nearest neighbours in blocks.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use ndarray::{Array2, ArrayView2};
use rayon::iter::{IntoParallelRefIterator as _, ParallelIterator as _};

use crate::error::{Error, Result};
use crate::panels::{PANEL, Panels, Products};

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

/// Rows of a block, in whole panels; memory is one block of products for each thread, whatever N, and a core's second cache holds it.
const BLOCK: usize = 384;
/// Rows of guided-diffusion's blocks, which are f16 or f32 as a whole.
const TILE: usize = 10_000;
// Blocks start anew in each tile, and products are of ranges that begin with a panel.
const _: () = assert!(BLOCK.is_multiple_of(PANEL) && TILE.is_multiple_of(PANEL));

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
/// Memory is the features, their f16 roundings where the rule asks for them, and one block of products for each thread.
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
    let out = Mutex::new(Manifold {
        sample_inside: vec![false; n],
        reference_inside: vec![false; m],
        balls: vec![0; n],
        covered: vec![false; m],
        k,
    });
    samples.blocks(&reference, false).par_iter().for_each(|block| {
        let (rows, columns) = (block.rows.clone(), block.columns.clone());
        let found = match rule.ties {
            Ties::Inside => block.memberships(&sample_radii[rows], &reference_radii[columns], |d, r| d <= r),
            Ties::Outside => block.memberships(&sample_radii[rows], &reference_radii[columns], |d, r| d < r),
        };
        found.add_to(&mut out.lock().unwrap_or_else(PoisonError::into_inner), block);
    });
    Ok(out.into_inner().unwrap_or_else(PoisonError::into_inner))
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
    panels: Panels,
    squares: Vec<f32>,
    /// Largest of `squares`.
    largest: f32,
}

impl Rows {
    fn new(rows: ArrayView2<'_, f32>, square: impl Fn(ndarray::ArrayView1<'_, f32>) -> f32) -> Self {
        let squares: Vec<f32> = rows.outer_iter().map(square).collect();
        let largest = squares.iter().fold(0.0_f32, |m, v| m.max(*v));
        Self { panels: Panels::new(rows), squares, largest }
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
        // Sums of squares are rounded alike whatever the caller's layout is.
        let rows = rows.as_standard_layout();
        let rows = rows.view();
        let half_square = |r: ndarray::ArrayView1<'_, f32>| to_half(r.iter().map(|v| to_half(v * v)).sum());
        let half = || Rows::new(rows.mapv(to_half).view(), half_square);
        match distance {
            Distance::Squared | Distance::Euclidean => {
                Self { distance, plain: Rows::new(rows, |r| r.dot(&r)), half: None }
            }
            Distance::SquaredHalfBlocks => {
                let half = Some(half());
                Self { distance, plain: Rows::new(rows, |r| r.dot(&r)), half }
            }
            Distance::EuclideanHalf => Self { distance, plain: half(), half: None },
        }
    }

    fn len(&self) -> usize {
        self.plain.squares.len()
    }

    /// Blocks that hold every pair once; with `both`, where a set meets itself, half of them, for `d(i, j)` and `d(j, i)` at once.
    fn blocks<'a>(&'a self, other: &'a Self, both: bool) -> Vec<Block<'a>> {
        let mut out = Vec::new();
        let tiles = |n: usize| (0..n).step_by(TILE).map(move |start| start..(start + TILE).min(n));
        for is in tiles(self.len()) {
            for js in tiles(other.len()).filter(|js| !both || js.start >= is.start) {
                let measure = self.measure(other, &is, &js);
                let back = both && js.start > is.start;
                if back && other.measure(self, &js, &is) != measure {
                    out.extend(other.tile(self, &js, &is, other.measure(self, &js, &is), false));
                    out.extend(self.tile(other, &is, &js, measure, false));
                } else {
                    out.extend(self.tile(other, &is, &js, measure, both));
                }
            }
        }
        out
    }

    /// How the distances of a tile are measured.
    fn measure(&self, other: &Self, is: &Range<usize>, js: &Range<usize>) -> Measure {
        match (&self.half, &other.half) {
            (Some(a), Some(b)) if all_finite(a, b, is, js) => Measure::HalfSquared,
            _ => match self.distance {
                Distance::Squared | Distance::SquaredHalfBlocks => Measure::Squared,
                Distance::Euclidean => Measure::Root,
                Distance::EuclideanHalf => Measure::HalfRoot,
            },
        }
    }

    fn tile<'a>(
        &'a self,
        other: &'a Self,
        is: &Range<usize>,
        js: &Range<usize>,
        measure: Measure,
        both: bool,
    ) -> impl Iterator<Item = Block<'a>> + use<'a> {
        let (a, b) = match (measure, &self.half, &other.half) {
            (Measure::HalfSquared, Some(a), Some(b)) => (a, b),
            _ => (&self.plain, &other.plain),
        };
        blocks_of(is, js).filter(move |(rows, columns)| !both || columns.start >= rows.start).map(
            move |(rows, columns)| Block { a, b, both: both && columns.start > rows.start, rows, columns, measure },
        )
    }

    /// Distance of each point to its k-th neighbour: index k of the sorted row, the point itself included.
    fn radii(&self, k: usize) -> Vec<f32> {
        // Blocks start anew in each tile, so the tile and the block in it name a group of rows.
        let per_tile = TILE.div_ceil(BLOCK);
        let group = |start: usize| start / TILE * per_tile + start % TILE / BLOCK;
        let nearest: Vec<Mutex<Nearest>> =
            (0..self.len().div_ceil(TILE) * per_tile).map(|_| Mutex::new(Nearest::new(BLOCK, k))).collect();
        let lock = |start: usize| nearest[group(start)].lock().unwrap_or_else(PoisonError::into_inner);
        self.blocks(self, true).par_iter().for_each(|block| {
            let products = block.products();
            block.distances(&products, false, |i, distances| lock(block.rows.start).offer_row(i, distances));
            if block.both {
                block.distances(&products, true, |_, distances| lock(block.columns.start).offer_each(distances));
            }
        });
        (0..self.len()).map(|i| lock(i).last(i % TILE % BLOCK)).collect()
    }
}

/// The k + 1 smallest distances of each row of a block.
struct Nearest {
    /// Ascending, `[rows, k + 1]`.
    smallest: Array2<f32>,
    /// Its last column: what a distance must beat.
    bound: Vec<f32>,
}

impl Nearest {
    fn new(rows: usize, k: usize) -> Self {
        Self { smallest: Array2::from_elem((rows, k + 1), f32::INFINITY), bound: vec![f32::INFINITY; rows] }
    }

    fn offer(&mut self, row: usize, distance: f32) {
        let mut list = self.smallest.row_mut(row);
        let mut at = list.len() - 1;
        while at > 0 && list[at - 1] > distance {
            list[at] = list[at - 1];
            at -= 1;
        }
        list[at] = distance;
        self.bound[row] = list[list.len() - 1];
    }

    /// Distances of one row.
    fn offer_row(&mut self, row: usize, distances: &[f32]) {
        for chunk in distances.chunks(CHUNK) {
            let bound = self.bound[row];
            if chunk.iter().fold(false, |any, d| any | (*d < bound)) {
                for d in chunk {
                    if *d < self.bound[row] {
                        self.offer(row, *d);
                    }
                }
            }
        }
    }

    /// One distance for each row.
    fn offer_each(&mut self, distances: &[f32]) {
        for (start, chunk) in (0..).step_by(CHUNK).zip(distances.chunks(CHUNK)) {
            let bounds = &self.bound[start..start + chunk.len()];
            if chunk.iter().zip(bounds).fold(false, |any, (d, bound)| any | (d < bound)) {
                for (row, d) in (start..).zip(chunk) {
                    if *d < self.bound[row] {
                        self.offer(row, *d);
                    }
                }
            }
        }
    }

    fn last(&self, row: usize) -> f32 {
        self.bound[row]
    }
}

/// Distances looked at together before any of them is looked at alone.
const CHUNK: usize = 64;

/// How a distance comes from two squared lengths and a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Measure {
    Squared,
    Root,
    HalfRoot,
    HalfSquared,
}

/// Pairs of some rows of one set with some of another.
struct Block<'a> {
    a: &'a Rows,
    b: &'a Rows,
    rows: Range<usize>,
    columns: Range<usize>,
    measure: Measure,
    /// Whether the block also stands for its mirror image.
    both: bool,
}

impl Block<'_> {
    fn products(&self) -> Products {
        products(self.a, self.b, &self.rows, &self.columns)
    }

    /// Calls `each(row in the block, distances to the columns)`, or, `mirrored`, with the distances from the columns.
    fn distances(&self, products: &Products, mirrored: bool, mut each: impl FnMut(usize, &[f32])) {
        match self.measure {
            Measure::Squared => self.measured(products, mirrored, squared, &mut each),
            Measure::Root => self.measured(products, mirrored, |u, p, v| squared(u, p, v).sqrt(), &mut each),
            Measure::HalfRoot => {
                let root = |u, p, v| to_half(to_half(squared(u, p, v)).sqrt());
                self.measured(products, mirrored, root, &mut each);
            }
            Measure::HalfSquared => self.measured(products, mirrored, half_squared, &mut each),
        }
    }

    fn measured(
        &self,
        products: &Products,
        mirrored: bool,
        measure: impl Fn(f32, f32, f32) -> f32,
        each: &mut impl FnMut(usize, &[f32]),
    ) {
        let (vector, mut out) = (pulp::Arch::new(), vec![0.0; self.columns.len()]);
        for (row, i) in self.rows.clone().enumerate() {
            let (u, vs) = (self.a.squares[i], &self.b.squares[self.columns.clone()]);
            vector.dispatch(|| {
                for ((d, p), v) in out.iter_mut().zip(products.row(row)).zip(vs) {
                    *d = if mirrored { measure(*v, *p, u) } else { measure(u, *p, *v) };
                }
            });
            each(row, &out);
        }
    }

    fn memberships(&self, row_radii: &[f32], column_radii: &[f32], inside: impl Fn(f32, f32) -> bool) -> Memberships {
        let mut out = Memberships {
            balls: vec![0; row_radii.len()],
            covered: vec![false; column_radii.len()],
            inside: vec![false; column_radii.len()],
        };
        self.distances(&self.products(), false, |row, distances| {
            let mut balls = 0;
            for ((d, radius), covered) in distances.iter().zip(column_radii).zip(&mut out.covered) {
                let hit = inside(*d, *radius);
                balls += u32::from(hit);
                *covered |= hit;
            }
            out.balls[row] = balls;
            for (d, found) in distances.iter().zip(&mut out.inside) {
                *found |= inside(*d, row_radii[row]);
            }
        });
        out
    }
}

/// What one block tells of samples (rows) and reference images (columns).
struct Memberships {
    balls: Vec<u32>,
    covered: Vec<bool>,
    inside: Vec<bool>,
}

impl Memberships {
    fn add_to(&self, all: &mut Manifold, block: &Block<'_>) {
        for (i, balls) in block.rows.clone().zip(&self.balls) {
            all.balls[i] += balls;
            all.sample_inside[i] |= *balls > 0;
        }
        for ((j, covered), inside) in block.columns.clone().zip(&self.covered).zip(&self.inside) {
            all.covered[j] |= covered;
            all.reference_inside[j] |= inside;
        }
    }
}

fn squared(u: f32, product: f32, v: f32) -> f32 {
    (u - 2.0 * product + v).max(0.0)
}

fn half_squared(u: f32, product: f32, v: f32) -> f32 {
    to_half(to_half(u - to_half(2.0 * to_half(product))) + v).max(0.0)
}

/// Whether the f16 distances of a tile are all finite.
fn all_finite(a: &Rows, b: &Rows, is: &Range<usize>, js: &Range<usize>) -> bool {
    // 2|uv| ≤ |u|² + |v|², so no value on the way exceeds twice the sum of the largest squares; a tenth is left for rounding.
    const SAFE: f32 = 65504.0 * 0.9 / 2.0;
    if a.largest + b.largest < SAFE {
        return true;
    }
    // `max` drops NaN, which ∞ - ∞ gives, so the unclamped value decides.
    let unclamped = |u: f32, p: f32, v: f32| to_half(to_half(u - to_half(2.0 * to_half(p))) + v);
    let blocks: Vec<_> = blocks_of(is, js).collect();
    blocks.par_iter().all(|(rows, columns)| {
        let products = products(a, b, rows, columns);
        rows.clone().enumerate().all(|(row, i)| {
            let products = products.row(row);
            columns.clone().enumerate().all(|(at, j)| unclamped(a.squares[i], products[at], b.squares[j]).is_finite())
        })
    })
}

/// The blocks of a tile.
fn blocks_of(is: &Range<usize>, js: &Range<usize>) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + use<> {
    let cut = |r: Range<usize>| r.clone().step_by(BLOCK).map(move |start| start..(start + BLOCK).min(r.end));
    let js = js.clone();
    cut(is.clone()).flat_map(move |rows| cut(js.clone()).map(move |columns| (rows.clone(), columns)))
}

/// On this thread alone: blocks are what runs in parallel.
fn products(a: &Rows, b: &Rows, rows: &Range<usize>, columns: &Range<usize>) -> Products {
    Products::new(&a.panels, rows, &b.panels, columns, std::ptr::eq(a, b) && rows == columns)
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
    fn tiles_do_not_show() {
        // Two tiles of small integers, exact in f16, so every rule must find the same; with the second tile far off, f16 must give way there.
        let set = |n: usize, step: usize| {
            Array2::from_shape_fn((n, 2), |(i, j)| {
                let place = ((i * step + j * 31 + i / 97) % 16) as f32;
                place + if i >= TILE { 400.0 } else { 0.0 }
            })
        };
        let (a, b) = (set(TILE + 1500, 37), set(TILE + 20, 53));
        let of = |distance| manifold(a.view(), b.view(), &ManifoldRule { distance, ..RULE }).unwrap();
        let plain = of(Distance::Squared);
        assert!(of(Distance::SquaredHalfBlocks) == plain);
        let distance = |x: &Array2<f32>, i: usize, y: &Array2<f32>, j: usize| {
            (0..2).map(|c| (x[[i, c]] - y[[j, c]]).powi(2)).sum::<f32>()
        };
        let radius = |set: &Array2<f32>, i: usize| {
            let mut all: Vec<f32> = (0..set.nrows()).map(|j| distance(set, i, set, j)).collect();
            all.sort_by(f32::total_cmp);
            all[3]
        };
        let found = Points::new(b.view(), Distance::Squared).radii(3);
        for i in [0, 700, 1024, TILE - 1, TILE, TILE + 19] {
            assert_eq!(found[i], radius(&b, i), "row {i}");
        }
        for i in [0, 700, TILE - 1, TILE, TILE + 1030] {
            let hits = (0..b.nrows()).filter(|j| distance(&a, i, &b, *j) <= found[*j]).count();
            assert_eq!(plain.balls[i] as usize, hits, "row {i}");
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
