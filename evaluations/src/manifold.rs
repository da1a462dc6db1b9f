//! Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020): exact k-nearest-neighbour balls, computed in blocks.

use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};

use ndarray::{Array2, ArrayView1, ArrayView2, CowArray, Ix2, s};
use rayon::iter::{IntoParallelRefIterator as _, ParallelIterator as _};

use crate::error::{Error, Result, ensure_finite};
use crate::panels::{Element, PANEL, Panels, Products};

/// How the distance of two rows is computed. All are `|u|² - 2uv + |v|²` from left to right, with negative results set
/// to 0. Between the sets, u is the reference row and v is the sample row, as in every reproduced tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distance {
    /// Squared, f32.
    Squared,
    /// Squared, as in guided-diffusion: each block of 10 000 × 10 000 in f16 if all its distances are finite, otherwise
    /// in f32. Products and norms are summed in f32 and rounded to f16 after each operation, as on f16 matrix units.
    SquaredHalfBlocks,
    /// Euclidean, f32, as `torch.cdist`.
    Euclidean,
    /// Euclidean of features rounded to f16, as `torch.cdist` of f16: sums in f32, the squared distance and its root
    /// rounded to f16.
    EuclideanHalf,
    /// Euclidean, as `euclidean_distances` of scikit-learn for f32 rows: products and norms in f64, the squared
    /// distance rounded to f32, its root in f32. Norms are summed in the order of the products, so equal rows have
    /// distance 0.
    EuclideanDouble,
}

impl Distance {
    /// Description for results.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::Squared => "squared distance in f32",
            Self::SquaredHalfBlocks => "squared distance in f16 blocks of 10000, f32 where f16 overflows",
            Self::Euclidean => "distance in f32",
            Self::EuclideanHalf => "distance in f16",
            Self::EuclideanDouble => "distance summed in f64, rounded to f32",
        }
    }
}

/// Whether a point at exactly the radius of a ball lies in the ball.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boundary {
    /// Inside: `<=`.
    Inclusive,
    /// Outside: `<`.
    Exclusive,
}

/// k-nearest-neighbour settings of one tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManifoldRule {
    /// Number of neighbours. The radius of a ball is the element at index k of the sorted distances within the same
    /// set, the point itself included.
    pub k: usize,
    /// The distance.
    pub distance: Distance,
    /// Treatment of points on the boundary.
    pub boundary: Boundary,
}

impl ManifoldRule {
    /// Description for results.
    #[must_use]
    pub fn describe(&self) -> String {
        let boundary = if self.boundary == Boundary::Inclusive { "<=" } else { "<" };
        format!("{} neighbours, {}, {boundary} radius", self.k, self.distance.describe())
    }

    /// Checks that both sets have enough rows, before anything is computed.
    ///
    /// # Errors
    /// `TooFew` unless both sets have more than k rows.
    pub fn check(&self, samples: usize, reference: usize) -> Result<()> {
        for (what, rows) in [("k nearest neighbours, samples", samples), ("k nearest neighbours, reference", reference)]
        {
            if rows <= self.k {
                return Err(Error::TooFew { what, least: self.k + 1, found: rows });
            }
        }
        Ok(())
    }
}

/// Rows per block, in whole panels. Each thread holds one block of products for any N; it fits into the second-level
/// cache of a core.
const BLOCK: usize = 384;
/// Rows per tile: the block size of guided-diffusion. A tile is f16 or f32 as a whole.
const TILE: usize = 10_000;
// Each tile starts a new block, and product ranges start at a panel boundary.
const _: () = assert!(BLOCK.is_multiple_of(PANEL) && TILE.is_multiple_of(PANEL));

/// Precision and recall, with one flag per image.
#[derive(Debug, Clone, PartialEq)]
pub struct PrecisionRecall {
    /// For each sample: whether it lies in a ball of the reference.
    pub sample_inside: Vec<bool>,
    /// For each reference image: whether it lies in a ball of the samples.
    pub reference_inside: Vec<bool>,
}

impl PrecisionRecall {
    /// Share of samples inside the reference manifold.
    #[must_use]
    pub fn precision(&self) -> f64 {
        proportion(&self.sample_inside)
    }

    /// Share of reference images inside the sample manifold.
    #[must_use]
    pub fn recall(&self) -> f64 {
        proportion(&self.reference_inside)
    }
}

/// Density and coverage, with one count per sample and one flag per reference image.
#[derive(Debug, Clone, PartialEq)]
pub struct DensityCoverage {
    /// For each sample: the number of reference balls that contain it.
    pub balls: Vec<u32>,
    /// For each reference image: whether its ball contains a sample.
    pub covered: Vec<bool>,
    /// Number of neighbours that defines a ball.
    pub k: usize,
}

impl DensityCoverage {
    /// Mean number of reference balls around a sample, divided by k.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "counts")]
    pub fn density(&self) -> f64 {
        self.balls.iter().map(|b| f64::from(*b)).sum::<f64>() / (self.k * self.balls.len()) as f64
    }

    /// Share of reference images with a ball that contains a sample.
    #[must_use]
    pub fn coverage(&self) -> f64 {
        proportion(&self.covered)
    }
}

/// All four metrics under one rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifold {
    /// Precision and recall.
    pub precision_recall: PrecisionRecall,
    /// Density and coverage.
    pub density_coverage: DensityCoverage,
}

#[allow(clippy::cast_precision_loss, reason = "counts")]
fn proportion(flags: &[bool]) -> f64 {
    flags.iter().filter(|f| **f).count() as f64 / flags.len() as f64
}

/// Precision and recall of `samples [N, D]` against `reference [M, D]` under `rule`.
///
/// Memory beyond the arguments: one copy of the features in the number format of the distance, and one block of
/// products per thread. [`Distance::SquaredHalfBlocks`] needs a second copy if a block overflows f16;
/// [`Distance::EuclideanDouble`] needs no copy.
///
/// # Errors
/// `DimMismatch`; `TooFew` unless both sets have more than k rows; `NotFinite`.
pub fn precision_recall(
    samples: ArrayView2<'_, f32>,
    reference: ArrayView2<'_, f32>,
    rule: &ManifoldRule,
) -> Result<PrecisionRecall> {
    Ok(manifold(samples, reference, rule)?.precision_recall)
}

/// Density and coverage of `samples [N, D]` against `reference [M, D]` under `rule`. Faster than [`manifold`], because
/// the balls of the samples are not needed. Memory as for [`precision_recall`].
///
/// # Errors
/// Those of [`precision_recall`].
pub fn density_coverage(
    samples: ArrayView2<'_, f32>,
    reference: ArrayView2<'_, f32>,
    rule: &ManifoldRule,
) -> Result<DensityCoverage> {
    Ok(compare(samples, reference, rule, false, TILE)?.density_coverage)
}

/// Precision, recall, density and coverage under one rule, at the cost of precision and recall. Memory as for
/// [`precision_recall`].
///
/// # Errors
/// Those of [`precision_recall`].
pub fn manifold(samples: ArrayView2<'_, f32>, reference: ArrayView2<'_, f32>, rule: &ManifoldRule) -> Result<Manifold> {
    compare(samples, reference, rule, true, TILE)
}

/// Without `sample_balls`, `reference_inside` stays false. `tile` is [`TILE`] except in tests; it must be a multiple of
/// [`PANEL`].
fn compare(
    samples: ArrayView2<'_, f32>,
    reference: ArrayView2<'_, f32>,
    rule: &ManifoldRule,
    sample_balls: bool,
    tile: usize,
) -> Result<Manifold> {
    let k = rule.k;
    if samples.ncols() != reference.ncols() {
        return Err(Error::DimMismatch { what: "samples", expected: reference.ncols(), found: samples.ncols() });
    }
    rule.check(samples.nrows(), reference.nrows())?;
    ensure_finite("samples", samples, 0)?;
    ensure_finite("reference", reference, 0)?;
    let (samples, reference) = (Points::new(samples, rule.distance, tile), Points::new(reference, rule.distance, tile));
    let radii = Radii { reference: reference.radii(k), samples: sample_balls.then(|| samples.radii(k)) };
    let (n, m) = (samples.len(), reference.len());
    let out = Mutex::new(Manifold {
        precision_recall: PrecisionRecall { sample_inside: vec![false; n], reference_inside: vec![false; m] },
        density_coverage: DensityCoverage { balls: vec![0; n], covered: vec![false; m], k },
    });
    reference.blocks(&samples, false).par_iter().for_each_init(Scratch::new, |scratch, block| {
        let found = match rule.boundary {
            Boundary::Inclusive => block.memberships(scratch, &radii, |d, r| d <= r),
            Boundary::Exclusive => block.memberships(scratch, &radii, |d, r| d < r),
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

/// Rows in panels, with their squared lengths.
struct Rows {
    panels: Panels<f32>,
    squares: Vec<f32>,
    /// Largest of `squares`.
    largest: f32,
}

impl Rows {
    fn new(
        rows: ArrayView2<'_, f32>,
        convert: impl Fn(f32) -> f32 + Sync,
        square: impl Fn(ArrayView1<'_, f32>) -> f32,
    ) -> Self {
        let squares: Vec<f32> = rows.outer_iter().map(square).collect();
        let largest = squares.iter().fold(0.0_f32, |m, v| m.max(*v));
        Self { panels: Panels::new(rows, convert), squares, largest }
    }
}

/// One set, packed on demand in the number formats that its distances need.
struct Points<'a> {
    /// In standard layout, so that sums of squares are rounded the same way for every layout of the argument.
    rows: CowArray<'a, f32, Ix2>,
    distance: Distance,
    tile: usize,
    plain: OnceLock<Rows>,
    half: OnceLock<Rows>,
    /// Squared lengths in f64.
    double_squares: OnceLock<Vec<f64>>,
}

impl<'a> Points<'a> {
    fn new(rows: ArrayView2<'a, f32>, distance: Distance, tile: usize) -> Self {
        let rows = if rows.is_standard_layout() { rows.into() } else { rows.as_standard_layout().into_owned().into() };
        let (plain, half, double_squares) = (OnceLock::new(), OnceLock::new(), OnceLock::new());
        Self { rows, distance, tile, plain, half, double_squares }
    }

    fn len(&self) -> usize {
        self.rows.nrows()
    }

    /// The features in f32.
    fn plain(&self) -> &Rows {
        self.plain.get_or_init(|| Rows::new(self.rows.view(), |v| v, |r| r.dot(&r)))
    }

    /// The features rounded to f16.
    fn half(&self) -> &Rows {
        let square = |v: &f32| {
            let v = to_half(*v);
            to_half(v * v)
        };
        self.half.get_or_init(|| Rows::new(self.rows.view(), to_half, |r| to_half(r.iter().map(square).sum())))
    }

    /// The features in f64.
    fn double(&self) -> DoubleRows<'_> {
        let rows = self.rows.view();
        let squares = self.double_squares.get_or_init(|| {
            let pieces: Vec<Range<usize>> = cut(&(0..self.len()), PANEL).collect();
            let squares = |panel: &mut Panels<f64>, piece: &Range<usize>| {
                panel.refill(rows.slice(s![piece.clone(), ..]), f64::from);
                let all = 0..piece.len();
                let products = Products::new(panel, &all, panel, &all, false);
                all.map(|i| products.row(i)[i]).collect::<Vec<f64>>()
            };
            pieces.par_iter().map_init(Panels::empty, squares).collect::<Vec<_>>().concat()
        });
        DoubleRows { rows, squares }
    }

    /// Blocks that contain every pair once. With `both` (a set against itself), blocks of one triangle give `d(i, j)`
    /// and `d(j, i)` at once, if both directions use the same distance kind.
    fn blocks<'b>(&'b self, other: &'b Self, both: bool) -> Vec<Block<'b>> {
        let mut out = Vec::new();
        for is in cut(&(0..self.len()), self.tile) {
            for js in cut(&(0..other.len()), self.tile).filter(|js| !both || js.start >= is.start) {
                let kind = self.kind(other, &is, &js);
                let back = both && js.start > is.start;
                if back && other.kind(self, &js, &is) != kind {
                    out.extend(other.tile(self, &js, &is, other.kind(self, &js, &is), false));
                    out.extend(self.tile(other, &is, &js, kind, false));
                } else {
                    out.extend(self.tile(other, &is, &js, kind, both));
                }
            }
        }
        out
    }

    /// How the distances of a tile are computed.
    fn kind(&self, other: &Self, is: &Range<usize>, js: &Range<usize>) -> DistanceKind {
        match self.distance {
            Distance::SquaredHalfBlocks if all_finite(self.half(), other.half(), is, js) => DistanceKind::HalfSquared,
            Distance::Squared | Distance::SquaredHalfBlocks => DistanceKind::Squared,
            Distance::Euclidean => DistanceKind::Root,
            Distance::EuclideanHalf => DistanceKind::HalfRoot,
            Distance::EuclideanDouble => DistanceKind::DoubleRoot,
        }
    }

    fn tile<'b>(
        &'b self,
        other: &'b Self,
        is: &Range<usize>,
        js: &Range<usize>,
        kind: DistanceKind,
        both: bool,
    ) -> impl Iterator<Item = Block<'b>> + use<'a, 'b> {
        let sides = match kind {
            DistanceKind::Squared | DistanceKind::Root => Sides::Single([self.plain(), other.plain()]),
            DistanceKind::HalfSquared | DistanceKind::HalfRoot => Sides::Single([self.half(), other.half()]),
            DistanceKind::DoubleRoot => Sides::Double([self.double(), other.double()]),
        };
        blocks_of(is, js)
            .filter(move |(rows, columns)| !both || columns.start >= rows.start)
            .map(move |(rows, columns)| Block { sides, both: both && columns.start > rows.start, rows, columns, kind })
    }

    /// Distance of each point to its k-th neighbour: index k of the sorted distances, the point itself included.
    fn radii(&self, k: usize) -> Vec<f32> {
        // Each tile starts a new block, so the tile and the block within it identify a group of rows.
        let per_tile = self.tile.div_ceil(BLOCK);
        let group = |start: usize| start / self.tile * per_tile + start % self.tile / BLOCK;
        let rows = BLOCK.min(self.tile);
        let nearest: Vec<Mutex<Nearest>> =
            (0..self.len().div_ceil(self.tile) * per_tile).map(|_| Mutex::new(Nearest::new(rows, k))).collect();
        let lock = |start: usize| nearest[group(start)].lock().unwrap_or_else(PoisonError::into_inner);
        self.blocks(self, true).par_iter().for_each_init(Scratch::new, |scratch, block| {
            block.distances(scratch, &mut |mirrored, row, distances| {
                if mirrored {
                    lock(block.columns.start).offer_each(distances);
                } else {
                    lock(block.rows.start).offer_row(row, distances);
                }
            });
        });
        (0..self.len()).map(|i| lock(i).last(i % self.tile % BLOCK)).collect()
    }
}

/// The k + 1 smallest distances of each row of a block.
struct Nearest {
    /// Ascending, `[rows, k + 1]`.
    smallest: Array2<f32>,
    /// Last column of `smallest`. Only smaller distances are stored.
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

    /// Adds the distances of one row.
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

    /// Adds one distance for each row.
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

/// Number of distances compared with the bound together, before they are compared one by one.
const CHUNK: usize = 64;

/// How a distance is computed from two squared lengths and a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DistanceKind {
    Squared,
    Root,
    HalfRoot,
    HalfSquared,
    DoubleRoot,
}

/// The two sets of a block.
#[derive(Clone, Copy)]
enum Sides<'a> {
    Single([&'a Rows; 2]),
    Double([DoubleRows<'a>; 2]),
}

/// Rows with their squared lengths. They are packed in f64 block by block, because the whole set in f64 would take
/// twice its memory.
#[derive(Clone, Copy)]
struct DoubleRows<'a> {
    rows: ArrayView2<'a, f32>,
    squares: &'a [f64],
}

impl DoubleRows<'_> {
    fn products(
        self,
        other: Self,
        rows: &Range<usize>,
        columns: &Range<usize>,
        scratch: &mut Scratch,
    ) -> Products<f64> {
        let Scratch { left, packed, right } = scratch;
        let wanted = (self.squares.as_ptr().addr(), rows.clone());
        if packed.as_ref() != Some(&wanted) {
            left.refill(self.rows.slice(s![rows.clone(), ..]), f64::from);
            *packed = Some(wanted);
        }
        let all = 0..rows.len();
        if std::ptr::eq(self.squares, other.squares) && rows == columns {
            return Products::new(left, &all, left, &all, true);
        }
        right.refill(other.rows.slice(s![columns.clone(), ..]), f64::from);
        Products::new(left, &all, right, &(0..columns.len()), false)
    }
}

/// Packed rows of the current block of one thread.
struct Scratch {
    left: Panels<f64>,
    /// Set (identified by the address of its squared lengths) and rows in `left`. Consecutive blocks share them.
    packed: Option<(usize, Range<usize>)>,
    right: Panels<f64>,
}

impl Scratch {
    fn new() -> Self {
        Self { left: Panels::empty(), packed: None, right: Panels::empty() }
    }
}

/// Pairs of the rows `rows` of one set and `columns` of another.
struct Block<'a> {
    sides: Sides<'a>,
    rows: Range<usize>,
    columns: Range<usize>,
    kind: DistanceKind,
    /// Whether the block also gives the mirrored distances.
    both: bool,
}

impl Block<'_> {
    /// Calls `each(false, row in the block, distances to the columns)` for every row. With `both`, it then calls
    /// `each(true, row, distances from the columns)` for every row.
    fn distances(&self, scratch: &mut Scratch, each: &mut impl FnMut(bool, usize, &[f32])) {
        match self.sides {
            Sides::Single([a, b]) => {
                let products = products(a, b, &self.rows, &self.columns);
                let squares = [a.squares.as_slice(), b.squares.as_slice()];
                match self.kind {
                    DistanceKind::Squared => self.measured(&products, squares, squared, each),
                    DistanceKind::HalfSquared => self.measured(&products, squares, half_squared, each),
                    DistanceKind::HalfRoot => {
                        let root = |u, p, v| to_half(to_half(squared(u, p, v)).sqrt());
                        self.measured(&products, squares, root, each);
                    }
                    DistanceKind::Root | DistanceKind::DoubleRoot => {
                        self.measured(&products, squares, |u, p, v| squared(u, p, v).sqrt(), each);
                    }
                }
            }
            Sides::Double([a, b]) => {
                let products = a.products(b, &self.rows, &self.columns, scratch);
                self.measured(&products, [a.squares, b.squares], double_root, each);
            }
        }
    }

    fn measured<T: Element>(
        &self,
        products: &Products<T>,
        [us, vs]: [&[T]; 2],
        measure: impl Fn(T, T, T) -> f32,
        each: &mut impl FnMut(bool, usize, &[f32]),
    ) {
        let (vector, mut out) = (pulp::Arch::new(), vec![0.0; self.columns.len()]);
        let (us, vs) = (&us[self.rows.clone()], &vs[self.columns.clone()]);
        for mirrored in [false, true] {
            if mirrored && !self.both {
                break;
            }
            for (row, u) in us.iter().enumerate() {
                vector.dispatch(|| {
                    for ((d, p), v) in out.iter_mut().zip(products.row(row)).zip(vs) {
                        *d = if mirrored { measure(*v, *p, *u) } else { measure(*u, *p, *v) };
                    }
                });
                each(mirrored, row, &out);
            }
        }
    }

    /// Rows are reference images, columns are samples.
    fn memberships(&self, scratch: &mut Scratch, radii: &Radii, inside: impl Fn(f32, f32) -> bool) -> Memberships {
        let row_radii = &radii.reference[self.rows.clone()];
        let column_radii = radii.samples.as_ref().map_or(&[][..], |r| &r[self.columns.clone()]);
        let mut out = Memberships {
            balls: vec![0; self.columns.len()],
            covered: vec![false; self.rows.len()],
            inside: vec![false; self.rows.len()],
        };
        self.distances(scratch, &mut |_, row, distances| {
            let (radius, mut hits) = (row_radii[row], 0);
            for (d, balls) in distances.iter().zip(&mut out.balls) {
                let hit = u32::from(inside(*d, radius));
                *balls += hit;
                hits += hit;
            }
            out.covered[row] = hits > 0;
            out.inside[row] = distances.iter().zip(column_radii).fold(false, |any, (d, r)| any | inside(*d, *r));
        });
        out
    }
}

/// Radii of the balls; those of the samples only if they are needed.
struct Radii {
    reference: Vec<f32>,
    samples: Option<Vec<f32>>,
}

/// Counts over one block of reference images (rows) and samples (columns).
struct Memberships {
    balls: Vec<u32>,
    covered: Vec<bool>,
    inside: Vec<bool>,
}

impl Memberships {
    fn add_to(&self, all: &mut Manifold, block: &Block<'_>) {
        let Manifold { precision_recall: pr, density_coverage: dc } = all;
        for (j, balls) in block.columns.clone().zip(&self.balls) {
            dc.balls[j] += balls;
            pr.sample_inside[j] |= *balls > 0;
        }
        for ((i, covered), inside) in block.rows.clone().zip(&self.covered).zip(&self.inside) {
            dc.covered[i] |= covered;
            pr.reference_inside[i] |= inside;
        }
    }
}

fn squared(u: f32, product: f32, v: f32) -> f32 {
    (u - 2.0 * product + v).max(0.0)
}

/// Squared distance in f16, before negative values become 0.
fn half_difference(u: f32, product: f32, v: f32) -> f32 {
    to_half(to_half(u - to_half(2.0 * to_half(product))) + v)
}

fn half_squared(u: f32, product: f32, v: f32) -> f32 {
    half_difference(u, product, v).max(0.0)
}

#[allow(clippy::cast_possible_truncation, reason = "the rule rounds to f32")]
fn double_root(u: f64, product: f64, v: f64) -> f32 {
    ((u - 2.0 * product + v).max(0.0) as f32).sqrt()
}

/// Whether the f16 distances of a tile are all finite.
fn all_finite(a: &Rows, b: &Rows, is: &Range<usize>, js: &Range<usize>) -> bool {
    // 2|uv| ≤ |u|² + |v|², so no intermediate value exceeds twice the sum of the largest squares. A tenth is left for
    // rounding.
    const SAFE: f32 = 65504.0 * 0.9 / 2.0;
    if a.largest + b.largest < SAFE {
        return true;
    }
    let blocks: Vec<_> = blocks_of(is, js).collect();
    blocks.par_iter().all(|(rows, columns)| {
        let products = products(a, b, rows, columns);
        rows.clone().enumerate().all(|(row, i)| {
            let products = products.row(row);
            // NaN, from ∞ - ∞, compares false. -∞ becomes 0, which is finite.
            let finite =
                |(at, j): (usize, usize)| half_difference(a.squares[i], products[at], b.squares[j]) < f32::INFINITY;
            columns.clone().enumerate().all(finite)
        })
    })
}

/// Splits a range into pieces of `size`.
fn cut(range: &Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let end = range.end;
    range.clone().step_by(size).map(move |start| start..(start + size).min(end))
}

/// The blocks of a tile.
fn blocks_of(is: &Range<usize>, js: &Range<usize>) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + use<> {
    let js = js.clone();
    cut(is, BLOCK).flat_map(move |rows| cut(&js, BLOCK).map(move |columns| (rows.clone(), columns)))
}

/// Runs on the current thread, because blocks run in parallel.
fn products(a: &Rows, b: &Rows, rows: &Range<usize>, columns: &Range<usize>) -> Products<f32> {
    Products::new(&a.panels, rows, &b.panels, columns, std::ptr::eq(a, b) && rows == columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: ManifoldRule = ManifoldRule { k: 3, distance: Distance::Squared, boundary: Boundary::Inclusive };
    const DISTANCES: [Distance; 5] = [
        Distance::Squared,
        Distance::SquaredHalfBlocks,
        Distance::Euclidean,
        Distance::EuclideanHalf,
        Distance::EuclideanDouble,
    ];

    fn grid(n: usize, shift: f32) -> Array2<f32> {
        Array2::from_shape_fn((n, 2), |(i, j)| if j == 0 { (i % 10) as f32 + shift } else { (i / 10) as f32 })
    }

    fn of(a: &Array2<f32>, b: &Array2<f32>, distance: Distance) -> Manifold {
        manifold(a.view(), b.view(), &ManifoldRule { distance, ..RULE }).unwrap()
    }

    #[test]
    fn a_set_against_itself_is_perfect() {
        let m = of(&grid(100, 0.0), &grid(100, 0.0), Distance::Squared);
        let (pr, dc) = (m.precision_recall, m.density_coverage);
        assert_eq!((pr.precision(), pr.recall(), dc.coverage()), (1.0, 1.0, 1.0));
    }

    #[test]
    fn a_collapsed_generator_has_precision_without_recall() {
        let reference = grid(100, 0.0);
        let samples = Array2::from_shape_fn((100, 2), |(i, _)| 4.0 + i as f32 * 1e-4);
        let m = precision_recall(samples.view(), reference.view(), &RULE).unwrap();
        assert!(m.precision() > 0.99 && m.recall() < 0.05, "{} {}", m.precision(), m.recall());
    }

    #[test]
    fn distant_sets_share_nothing() {
        for distance in DISTANCES {
            let m = of(&grid(100, 50.0), &grid(100, 0.0), distance);
            let (pr, dc) = (m.precision_recall, m.density_coverage);
            assert_eq!((pr.precision(), pr.recall(), dc.density(), dc.coverage()), (0.0, 0.0, 0.0, 0.0));
        }
    }

    #[test]
    fn density_alone_is_density_of_all() {
        let (a, b) = (grid(100, 0.3), grid(90, 0.0));
        for distance in DISTANCES {
            let rule = ManifoldRule { distance, ..RULE };
            let all = manifold(a.view(), b.view(), &rule).unwrap();
            assert_eq!(density_coverage(a.view(), b.view(), &rule).unwrap(), all.density_coverage);
            assert_eq!(precision_recall(a.view(), b.view(), &rule).unwrap(), all.precision_recall);
        }
    }

    /// The documented rule, pair by pair. The features are exact in every format, so the order of sums does not matter.
    struct Naive<'a> {
        rule: ManifoldRule,
        tile: usize,
        sets: [&'a Array2<f32>; 2],
    }

    impl Naive<'_> {
        fn half(x: f32) -> f32 {
            half::f16::from_f32(x).to_f32()
        }

        /// Squared length, each square rounded by `round`.
        fn square(row: ArrayView1<'_, f32>, round: fn(f32) -> f32) -> f32 {
            round(row.iter().map(|v| round(v * v)).sum())
        }

        /// Squared lengths and products.
        fn sums(&self, [a, b]: [usize; 2], round: fn(f32) -> f32) -> impl Fn(usize, usize) -> [f32; 3] {
            let squares =
                |set: usize| -> Vec<f32> { self.sets[set].outer_iter().map(|row| Self::square(row, round)).collect() };
            let (us, products, vs) = (squares(a), self.sets[a].dot(&self.sets[b].t()), squares(b));
            move |i, j| [us[i], products[[i, j]], vs[j]]
        }

        fn in_half([u, p, v]: [f32; 3]) -> f32 {
            let d = Self::half(Self::half(u - Self::half(2.0 * Self::half(p))) + v);
            if d.is_nan() { d } else { d.max(0.0) }
        }

        /// Distances of every row of set `a` to every row of set `b`.
        fn distances(&self, a: usize, b: usize) -> Array2<f32> {
            let (n, m) = (self.sets[a].nrows(), self.sets[b].nrows());
            let starts = |n: usize| (0..n).step_by(self.tile);
            let (sums, halves) = (self.sums([a, b], |v| v), self.sums([a, b], Self::half));
            let plain = |i, j| {
                let [u, p, v] = sums(i, j);
                (u - 2.0 * p + v).max(0.0)
            };
            let mut out = Array2::from_shape_fn((n, m), |(i, j)| match self.rule.distance {
                Distance::Squared | Distance::SquaredHalfBlocks => plain(i, j),
                Distance::Euclidean | Distance::EuclideanDouble => plain(i, j).sqrt(),
                Distance::EuclideanHalf => {
                    let [u, p, v] = halves(i, j);
                    Self::half(Self::half((u - 2.0 * p + v).max(0.0)).sqrt())
                }
            });
            if self.rule.distance == Distance::SquaredHalfBlocks {
                for is in starts(n).map(|s| s..(s + self.tile).min(n)) {
                    for js in starts(m).map(|s| s..(s + self.tile).min(m)) {
                        let block = Array2::from_shape_fn((is.len(), js.len()), |(i, j)| {
                            Self::in_half(halves(is.start + i, js.start + j))
                        });
                        if block.iter().all(|d| d.is_finite()) {
                            out.slice_mut(s![is.clone(), js]).assign(&block);
                        }
                    }
                }
            }
            out
        }

        fn inside(&self, d: f32, radius: f32) -> bool {
            if self.rule.boundary == Boundary::Inclusive { d <= radius } else { d < radius }
        }

        /// `sets[0]` are the samples, `sets[1]` is the reference.
        fn manifold(&self) -> Manifold {
            let radii = |set: usize| -> Vec<f32> {
                let sorted = |row: ArrayView1<'_, f32>| {
                    let mut row = row.to_vec();
                    row.sort_by(f32::total_cmp);
                    row[self.rule.k]
                };
                self.distances(set, set).outer_iter().map(sorted).collect()
            };
            let (samples, reference, d) = (radii(0), radii(1), self.distances(1, 0));
            let (m, n) = d.dim();
            let balls: Vec<u32> =
                (0..n).map(|j| (0..m).map(|i| u32::from(self.inside(d[[i, j]], reference[i]))).sum()).collect();
            let any = |radius: &dyn Fn(usize, usize) -> f32| -> Vec<bool> {
                (0..m).map(|i| (0..n).any(|j| self.inside(d[[i, j]], radius(i, j)))).collect()
            };
            Manifold {
                precision_recall: PrecisionRecall {
                    sample_inside: balls.iter().map(|b| *b > 0).collect(),
                    reference_inside: any(&|_, j| samples[j]),
                },
                density_coverage: DensityCoverage { balls, covered: any(&|i, _| reference[i]), k: self.rule.k },
            }
        }
    }

    /// Features of unequal lengths: sums of products are exact in f32, and f16 rounds them.
    fn exact(n: usize, dims: usize, seed: usize) -> Array2<f32> {
        let draw = |at: usize| (at.wrapping_mul(2_654_435_761) >> 7) % 97;
        Array2::from_shape_fn((n, dims), |(i, j)| {
            let length = 20 + draw(i + seed * 1009) % 4;
            ((10 + draw(i * dims + j + seed * 7919) % 3) * length) as f32 / 64.0
        })
    }

    #[test]
    fn every_rule_equals_a_plain_implementation_across_tiles_and_blocks() {
        // Several tiles in each set, and one tile of several blocks. The last tiles of the second pair overflow f16.
        let far = |x: Array2<f32>, from: usize| {
            Array2::from_shape_fn(x.dim(), |(i, j)| if i >= from { x[[i, j]] * 64.0 } else { x[[i, j]] })
        };
        let near = (exact(90, 40, 1), exact(70, 40, 2));
        let mixed = (far(exact(90, 40, 3), 64), far(exact(70, 40, 4), 48));
        let many = (exact(450, 6, 5), exact(400, 6, 6));
        for ((samples, reference), tiles) in [(&near, &[16, 48, 96][..]), (&mixed, &[16, 48, 96]), (&many, &[416])] {
            for (tile, distance) in tiles.iter().flat_map(|t| DISTANCES.map(|d| (*t, d))) {
                for boundary in [Boundary::Inclusive, Boundary::Exclusive] {
                    let rule = ManifoldRule { k: 3, distance, boundary };
                    let found = compare(samples.view(), reference.view(), &rule, true, tile).unwrap();
                    let expected = Naive { rule, tile, sets: [samples, reference] }.manifold();
                    assert_eq!(found, expected, "{rule:?}, tiles of {tile}, {} samples", samples.nrows());
                }
            }
        }
        // The number format and the tile size change the results of these sets.
        let rule = ManifoldRule { distance: Distance::SquaredHalfBlocks, ..RULE };
        let tiled = |tile| compare(mixed.0.view(), mixed.1.view(), &rule, true, tile).unwrap();
        assert_ne!(tiled(16), tiled(96));
        assert_ne!(of(&near.0, &near.1, Distance::Squared), of(&near.0, &near.1, Distance::SquaredHalfBlocks));
    }

    #[test]
    fn f16_sums_go_from_left_to_right_with_the_reference_first() {
        // 1000.5 - 2100 = -1099.5, rounded to -1100 (halfway, to even), + 2001 (2000 or 2002 in f16) …
        assert_eq!(half_squared(1000.5, 1050.0, 2002.0), to_half(to_half(1000.5 - 2100.0) + 2002.0));
        assert_ne!(half_squared(1000.5, 1050.0, 2002.0), half_squared(2002.0, 1050.0, 1000.5));
    }

    #[test]
    fn tiles_of_guided_diffusion() {
        // Two tiles of small integers, exact in f16, so all rules agree. The second tile is far away and overflows f16.
        let set = |n: usize, step: usize| {
            Array2::from_shape_fn((n, 2), |(i, j)| {
                let place = ((i * step + j * 31 + i / 97) % 16) as f32;
                place + if i >= TILE { 400.0 } else { 0.0 }
            })
        };
        let (a, b) = (set(TILE + 1500, 37), set(TILE + 20, 53));
        let plain = of(&a, &b, Distance::Squared);
        assert!(of(&a, &b, Distance::SquaredHalfBlocks) == plain);
        let distance = |x: &Array2<f32>, i: usize, y: &Array2<f32>, j: usize| {
            (0..2).map(|c| (x[[i, c]] - y[[j, c]]).powi(2)).sum::<f32>()
        };
        let radius = |set: &Array2<f32>, i: usize| {
            let mut all: Vec<f32> = (0..set.nrows()).map(|j| distance(set, i, set, j)).collect();
            all.sort_by(f32::total_cmp);
            all[3]
        };
        let found = Points::new(b.view(), Distance::Squared, TILE).radii(3);
        for i in [0, 700, 1024, TILE - 1, TILE, TILE + 19] {
            assert_eq!(found[i], radius(&b, i), "row {i}");
        }
        for i in [0, 700, TILE - 1, TILE, TILE + 1030] {
            let hits = (0..b.nrows()).filter(|j| distance(&a, i, &b, *j) <= found[*j]).count();
            assert_eq!(plain.density_coverage.balls[i] as usize, hits, "row {i}");
        }
    }

    #[test]
    fn only_the_formats_in_use_are_packed() {
        let (near, far) = (grid(40, 0.0), grid(40, 0.0).mapv(|v| v * 64.0));
        let packed = |rows: &Array2<f32>, distance| {
            let points = Points::new(rows.view(), distance, TILE);
            points.radii(3);
            [points.plain.get().is_some(), points.half.get().is_some(), points.double_squares.get().is_some()]
        };
        assert_eq!(packed(&near, Distance::Squared), [true, false, false]);
        assert_eq!(packed(&near, Distance::SquaredHalfBlocks), [false, true, false]);
        assert_eq!(packed(&far, Distance::SquaredHalfBlocks), [true, true, false]);
        assert_eq!(packed(&near, Distance::EuclideanHalf), [false, true, false]);
        assert_eq!(packed(&near, Distance::EuclideanDouble), [false, false, true]);
    }

    #[test]
    fn equal_rows_are_at_distance_zero_in_f64() {
        // Each row 8 times, with copies in different panels and blocks: every radius is 0, and no point lies strictly
        // inside a ball.
        let row = |i: usize, j: usize| ((i * 7919 + j * 104_729) % 10_007) as f32 * 0.000_317 + 0.1;
        let x = Array2::from_shape_fn((480, 130), |(i, j)| row(i % 60, j));
        let rule = ManifoldRule { k: 5, distance: Distance::EuclideanDouble, boundary: Boundary::Exclusive };
        let found = density_coverage(x.view(), x.view(), &rule).unwrap();
        assert_eq!((found.density(), found.coverage()), (0.0, 0.0));
        let inclusive = ManifoldRule { boundary: Boundary::Inclusive, ..rule };
        assert!(density_coverage(x.view(), x.view(), &inclusive).unwrap().balls.iter().all(|b| *b == 8));
    }

    #[test]
    fn column_major_features_give_the_same() {
        let (a, b) = (exact(50, 9, 7), exact(40, 9, 8));
        let turned = a.t().as_standard_layout().into_owned();
        for distance in DISTANCES {
            let rule = ManifoldRule { distance, ..RULE };
            assert_eq!(manifold(turned.t(), b.view(), &rule).unwrap(), of(&a, &b, distance));
        }
    }

    #[test]
    fn too_few_or_bad_rows_are_errors() {
        let few = manifold(grid(3, 0.0).view(), grid(9, 0.0).view(), &RULE);
        assert!(matches!(few, Err(Error::TooFew { least: 4, found: 3, .. })));
        assert!(matches!(RULE.check(9, 3), Err(Error::TooFew { least: 4, found: 3, .. })));
        assert!(RULE.check(4, 4).is_ok());
        let mut bad = grid(9, 0.0);
        bad[[2, 1]] = f32::NAN;
        let found = manifold(bad.view(), grid(9, 0.0).view(), &RULE);
        assert!(matches!(found, Err(Error::NotFinite { row: 2, .. })));
    }

    #[test]
    fn f16_rounding_equals_the_half_crates() {
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
    fn an_f16_block_that_overflows_is_f32() {
        // All distances on the grid are exact in f16, so all rules agree. Scaled by 64, they overflow f16 and f32 is
        // used.
        let (a, b) = (grid(100, 0.0), grid(100, 1.0));
        let plain = of(&a, &b, Distance::Squared);
        for distance in DISTANCES {
            assert_eq!(of(&a, &b, distance), plain, "{distance:?}");
        }
        let (far_a, far_b) = (a.mapv(|v| v * 64.0), b.mapv(|v| v * 64.0));
        assert_eq!(of(&far_a, &far_b, Distance::SquaredHalfBlocks), plain);
    }

    #[test]
    fn the_boundary_counts_as_the_rule_says() {
        // On a line with steps of 1, every first neighbour lies exactly at the radius.
        let line = Array2::from_shape_fn((10, 1), |(i, _)| i as f32);
        let next = Array2::from_shape_fn((10, 1), |(i, _)| i as f32 + 10.0);
        let precision = |boundary| {
            let rule = ManifoldRule { k: 1, boundary, ..RULE };
            precision_recall(next.view(), line.view(), &rule).unwrap().precision()
        };
        // Only point 10 touches a ball: the ball of point 9.
        assert_eq!((precision(Boundary::Inclusive), precision(Boundary::Exclusive)), (0.1, 0.0));
    }
}
