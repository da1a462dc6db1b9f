//! Transforms of filters and of their gradients.

use std::sync::{Mutex, PoisonError};

use pulp::Simd;

use crate::axis::{Axis, MAX_POINTS, MAX_TAPS};
use crate::kernels::{SUM_LENGTH, Work, load, step, store, transform_strips, vectorised};
use crate::shape::{Grid, Images, Pool, Shape, Task, TaskMemory, at_least};

/// Maximum number of taps of a filter: kH · kW.
const MAX_FILTER: usize = 25;
/// Maximum number of transformed inputs and gradients in memory at a time, unless one task alone has more.
const RUN_FLOATS: usize = if cfg!(test) { 1 << 19 } else { 12 << 20 };

/// Applies G to both axes of `weights` in f64 and rounds once. Writes `out [Co / block, points, Ci, block]` for the
/// convolution of `shape`. `weights` are row-major `[Co, Ci, kH, kW]`. With `flipped`, `shape` is a result of
/// [`Shape::transposed`], and `weights` are the filters of the original convolution, `[Ci, Co, kH, kW]`.
///
/// # Panics
/// If the length of `weights` does not match its shape.
pub(crate) fn transformed_filters<E>(
    shape: &Shape,
    weights: &[f32],
    flipped: bool,
    out: &mut [f32],
    parallel: &impl Fn(usize, &Task<'_>) -> Result<(), E>,
) -> Result<(), E> {
    assert_eq!(weights.len(), shape.outputs * shape.inputs * shape.taps(), "the length of the filters");
    in_parts(out, shape.points() * shape.inputs * shape.block, parallel, &|index, panel| {
        Panel { shape, weights, flipped, index, panel }.compute();
    })
}

/// Runs `task` on each part of `out` with `length` floats.
fn in_parts<E>(
    out: &mut [f32],
    length: usize,
    parallel: &impl Fn(usize, &Task<'_>) -> Result<(), E>,
    task: &(dyn Fn(usize, &mut [f32]) + Send + Sync),
) -> Result<(), E> {
    let parts: Vec<_> = out.chunks_exact_mut(length).map(Mutex::new).collect();
    // Each part is locked by its own task only.
    parallel(parts.len(), &|index| task(index, &mut parts[index].lock().unwrap_or_else(PoisonError::into_inner)))
}

/// The task that transforms the filters of one block of output channels.
struct Panel<'a> {
    shape: &'a Shape,
    weights: &'a [f32],
    flipped: bool,
    index: usize,
    /// `[points, Ci, block]`.
    panel: &'a mut [f32],
}

impl Panel<'_> {
    #[inline(never)]
    fn compute(self) {
        vectorised(self.shape.block, self);
    }
}

impl Work for Panel<'_> {
    #[inline(always)]
    fn run<S: Simd, const B: usize>(self, _: S) {
        // With constant sizes, the compiler unrolls the loops.
        match sizes(&self.shape.axes) {
            ([3, 3], [6, 6]) => self.transform::<B>([3, 3], [6, 6]),
            (taps, points) => self.transform::<B>(taps, points),
        }
    }
}

/// Taps and points of both axes.
fn sizes([down, across]: &[Axis; 2]) -> ([usize; 2], [usize; 2]) {
    ([down.taps, across.taps], [down.points(), across.points()])
}

impl Panel<'_> {
    #[inline(always)]
    fn transform<const B: usize>(self, [tall, wide]: [usize; 2], [rows, columns]: [usize; 2]) {
        let Self { shape, weights, flipped, index, panel } = self;
        let ([down, across], taps) = (&shape.axes, tall * wide);
        let mut filters = [[0.0; B]; MAX_FILTER];
        let mut half = [[0.0; B]; MAX_TAPS];
        for input in 0..shape.inputs {
            for lane in 0..B {
                let output = index * B + lane;
                let at = if flipped { input * shape.outputs + output } else { output * shape.inputs + input };
                let filter = &weights[at * taps..][..taps];
                for (tap, to) in filters.iter_mut().enumerate().take(taps) {
                    to[lane] = f64::from(filter[if flipped { taps - 1 - tap } else { tap }]);
                }
            }
            for i in 0..rows {
                for s in 0..wide {
                    half[s] = sum((0..tall).map(|r| (down.filter[i][r], &filters[r * wide + s])));
                }
                for j in 0..columns {
                    let at = (i * columns + j) * shape.inputs + input;
                    let sum = sum((0..wide).map(|s| (across.filter[j][s], &half[s])));
                    rounded(&sum, &mut panel[at * B..][..B]);
                }
            }
        }
    }
}

/// Sum of factors times vectors.
#[inline(always)]
fn sum<'a, const B: usize>(terms: impl Iterator<Item = (f64, &'a [f64; B])>) -> [f64; B] {
    let mut sum = [0.0; B];
    for (factor, values) in terms {
        for lane in 0..B {
            sum[lane] += factor * values[lane];
        }
    }
    sum
}

#[allow(clippy::cast_possible_truncation, reason = "kernels compute in f32")]
#[inline(always)]
fn rounded<const B: usize>(from: &[f64; B], to: &mut [f32]) {
    for lane in 0..B {
        to[lane] = from[lane] as f32;
    }
}

impl Shape {
    /// [`step`] of transformed images, and of transformed gradients.
    fn steps(&self, tiles: usize) -> [usize; 2] {
        [self.inputs, self.outputs].map(|channels| step(channels / self.block, tiles))
    }

    /// Computes the gradient of the filters, `out [Co, Ci, kH, kW]`, from `images [N, Ci, H, W]` and the gradient of
    /// the output, `gradients [N, Co, H', W']`, in the layout of `images`. `parallel` is as in
    /// [`crate::Convolution::run`], but is called several times, or not at all for an empty batch.
    ///
    /// # Errors
    /// Those of `parallel`.
    ///
    /// # Panics
    /// If the padded image is smaller than the filter, or the length of a slice does not match its shape.
    pub fn filter_gradient<E>(
        &self,
        images: &Images<'_>,
        gradients: &[f32],
        out: &mut [f32],
        pool: &Pool,
        parallel: &impl Fn(usize, &Task<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (grid, points) = (self.grid(images), self.points());
        let pixels = images.batch * grid.height * grid.width;
        assert_eq!(gradients.len(), pixels * self.outputs, "the length of the gradients");
        assert_eq!(out.len(), self.outputs * self.inputs * self.taps(), "the length of the filters");
        let gradients = Images { values: gradients, height: grid.height, width: grid.width, ..*images };
        let tiles = grid.strips_of_task * grid.tiles_of_strip;
        let chunk = points * self.block * self.steps(tiles).iter().sum::<usize>();
        let tasks = grid.tasks();
        if tasks == 0 {
            out.fill(0.0);
            return Ok(());
        }
        let at_a_time = tasks.div_ceil(tasks.div_ceil((RUN_FLOATS / chunk).max(1)));
        pool.memory(|memory| {
            let chunks = at_least(&mut memory.tiles, at_a_time * chunk);
            let sums = at_least(&mut memory.filters, points * self.outputs * self.inputs);
            for first in (0..tasks).step_by(at_a_time) {
                let count = at_a_time.min(tasks - first);
                let chunks = &mut chunks[..count * chunk];
                in_parts(chunks, chunk, parallel, &|i, to| {
                    pool.scratch(|scratch| {
                        let images = [*images, gradients];
                        Tiles { shape: self, grid, images, index: first + i, to, scratch }.compute();
                    });
                })?;
                let last = grid.strips_of(first + count - 1) * grid.tiles_of_strip;
                let from = &*chunks;
                in_parts(sums, self.block * self.inputs, parallel, &|index, sums| {
                    let (tiles, add) = ([tiles, last], first > 0);
                    Products { shape: self, from, chunk, tiles, index, add, sums }.compute();
                })?;
            }
            let sums = &*sums;
            in_parts(out, self.block * self.inputs * self.taps(), parallel, &|index, out| {
                Inverse { shape: self, sums, index, out }.compute();
            })
        })
    }
}

/// A task that transforms tiles of images and gradients.
struct Tiles<'a> {
    shape: &'a Shape,
    grid: Grid,
    /// Images, and gradients of the output.
    images: [Images<'a>; 2],
    index: usize,
    /// Transformed images `[points, Ci / block, tiles, block]` and gradients `[points, Co / block, tiles, block]`.
    to: &'a mut [f32],
    scratch: &'a mut TaskMemory,
}

impl Tiles<'_> {
    #[inline(never)]
    fn compute(self) {
        vectorised(self.shape.block, self);
    }
}

impl Work for Tiles<'_> {
    #[inline(always)]
    fn run<S: Simd, const B: usize>(self, simd: S) {
        let Tiles { shape, grid, images: [images, gradients], index, to, scratch } = self;
        let (first, strips) = (index * grid.strips_of_task, grid.strips_of(index));
        let strips = [first, strips, strips * grid.tiles_of_strip];
        let (of_images, of_gradients) = to.split_at_mut(shape.points() * shape.steps(strips[2])[0] * B);
        transform_strips::<S, B, false>(simd, shape, &grid, &images, strips, of_images, scratch);
        transform_strips::<S, B, true>(simd, shape, &grid, &gradients, strips, of_gradients, scratch);
    }
}

/// A task that sums the products of one point and one block of output channels over all tiles.
struct Products<'a> {
    shape: &'a Shape,
    /// Transformed tiles.
    from: &'a [f32],
    /// Length of the transformed tiles of one task of [`Tiles`].
    chunk: usize,
    /// Number of tiles of a task of [`Tiles`], and of the last of these tasks.
    tiles: [usize; 2],
    index: usize,
    /// Whether to add to `sums` instead of overwriting them.
    add: bool,
    /// `[block, Ci]`.
    sums: &'a mut [f32],
}

impl Products<'_> {
    #[inline(never)]
    fn compute(self) {
        vectorised(self.shape.block, self);
    }
}

impl Work for Products<'_> {
    #[inline(always)]
    fn run<S: Simd, const B: usize>(self, simd: S) {
        let Products { shape, from, chunk, tiles: [tiles, last], index, add, sums } = self;
        let (points, outputs) = (shape.points(), shape.outputs / B);
        let (point, output) = (index / outputs, index % outputs);
        let tasks = from.len() / chunk;
        for at in (0..shape.inputs).step_by(S::F32_LANES) {
            let (input, lane) = (at / B, at % B);
            let mut add = add;
            for (task, chunk) in from.chunks_exact(chunk).enumerate() {
                let tiles = if task + 1 == tasks { last } else { tiles };
                let [of_images, of_gradients] = shape.steps(tiles);
                let (images, gradients) = chunk.split_at(points * of_images * B);
                let images = &images[(point * of_images + input * tiles) * B..][..tiles * B];
                let gradients = &gradients[(point * of_gradients + output * tiles) * B..][..tiles * B];
                for (images, gradients) in images.chunks(SUM_LENGTH * B).zip(gradients.chunks(SUM_LENGTH * B)) {
                    let mut products = [simd.splat_f32s(0.0); B];
                    for (images, gradients) in images.chunks_exact(B).zip(gradients.chunks_exact(B)) {
                        let image = load(simd, &images[lane..]);
                        for (product, gradient) in products.iter_mut().zip(gradients) {
                            *product = simd.mul_add_f32s(simd.splat_f32s(*gradient), image, *product);
                        }
                    }
                    for (product, sums) in products.iter().zip(sums.chunks_exact_mut(shape.inputs)) {
                        let to = &mut sums[at..];
                        store(simd, to, if add { simd.add_f32s(load(simd, to), *product) } else { *product });
                    }
                    add = true;
                }
            }
        }
    }
}

/// A task that applies Gᵀ to both axes of the sums of one block of output channels, in f64, and rounds once.
struct Inverse<'a> {
    shape: &'a Shape,
    /// `[points, Co, Ci]`.
    sums: &'a [f32],
    index: usize,
    /// `[block, Ci, kH, kW]`.
    out: &'a mut [f32],
}

impl Inverse<'_> {
    #[inline(never)]
    fn compute(self) {
        vectorised(self.shape.block, self);
    }
}

impl Work for Inverse<'_> {
    #[inline(always)]
    fn run<S: Simd, const B: usize>(self, _: S) {
        match sizes(&self.shape.axes) {
            ([3, 3], [6, 6]) => self.transform::<B>([3, 3], [6, 6]),
            (taps, points) => self.transform::<B>(taps, points),
        }
    }
}

impl Inverse<'_> {
    #[inline(always)]
    fn transform<const B: usize>(self, [tall, wide]: [usize; 2], [rows, columns]: [usize; 2]) {
        let Self { shape, sums, index, out } = self;
        let ([down, across], taps) = (&shape.axes, tall * wide);
        let mut column = [[0.0; B]; MAX_POINTS];
        let mut half = [[0.0; B]; MAX_TAPS * MAX_POINTS];
        for output in 0..B {
            for input in (0..shape.inputs).step_by(B) {
                for j in 0..columns {
                    for (i, column) in column.iter_mut().enumerate().take(rows) {
                        let point = i * columns + j;
                        let at = (point * shape.outputs + index * B + output) * shape.inputs + input;
                        column.iter_mut().zip(&sums[at..][..B]).for_each(|(to, sum)| *to = f64::from(*sum));
                    }
                    for r in 0..tall {
                        half[r * columns + j] = sum((0..rows).map(|i| (down.filter[i][r], &column[i])));
                    }
                }
                let out = &mut out[(output * shape.inputs + input) * taps..][..B * taps];
                for r in 0..tall {
                    for s in 0..wide {
                        let sum = sum((0..columns).map(|j| (across.filter[j][s], &half[r * columns + j])));
                        let mut lanes = [0.0; B];
                        rounded(&sum, &mut lanes);
                        for (lane, value) in lanes.iter().enumerate() {
                            out[lane * taps + r * wide + s] = *value;
                        }
                    }
                }
            }
        }
    }
}
