//! A convolution: its transformed weights, and the division of its images into tasks.

use std::sync::{Mutex, PoisonError};

use pulp::{Simd, WithSimd};

use crate::axis::{Axis, MAX_POINTS};

/// Minimum and maximum number of tiles of a task.
const TASK_TILES: [usize; 2] = [32, 160];
/// Number of transformed inputs and products of a task: they fit in the second-level cache of a core.
const CACHE_FLOATS: usize = 200_000;
/// Number of tasks above which threads that idle during the last ones do not matter.
const MANY_TASKS: usize = 8;
/// Number of tiles that one product computes at least.
const MIN_TILES: usize = 4;

/// A convolution of stride 1 and one group, with an optional bias and ReLU.
#[derive(Debug)]
pub struct Convolution {
    outputs: usize,
    inputs: usize,
    /// Number of channels in a block.
    block: usize,
    axes: [Axis; 2],
    /// Top, left, bottom, right.
    pads: [usize; 4],
    /// `[Co / block, points, Ci, block]`.
    weights: Vec<f32>,
    bias: Vec<f32>,
    relu: bool,
}

/// The input of a convolution.
#[derive(Debug, Clone, Copy)]
pub struct Images<'a> {
    /// `[N, Ci / block, H, W, block]`.
    pub values: &'a [f32],
    /// Added to the output before the ReLU; in the layout of the output.
    pub sum: Option<&'a [f32]>,
    /// Number of images.
    pub batch: usize,
    /// Height, pixels.
    pub height: usize,
    /// Width, pixels.
    pub width: usize,
}

/// Division of a batch: a strip is a row of tiles of one image, a task is a number of strips.
#[derive(Debug, Clone, Copy)]
struct Grid {
    height: usize,
    width: usize,
    strips_of_image: usize,
    tiles_of_strip: usize,
    strips: usize,
    strips_of_task: usize,
}

impl Grid {
    fn tasks(&self) -> usize {
        self.strips.div_ceil(self.strips_of_task)
    }
}

/// Output rows of a task: for each strip those of each block of channels.
type Rows<'a> = Vec<&'a mut [f32]>;

/// Working memory of tasks, kept between runs.
#[derive(Debug, Default)]
pub struct Pool(Mutex<Vec<Scratch>>);

#[derive(Debug, Default)]
struct Scratch {
    /// A row of padding, `[W, block]`.
    zeros: Vec<f32>,
    /// Transformed rows of a block of channels, `[points of the height, W, block]`.
    lines: Vec<f32>,
    /// `[points, Ci / block, tiles, block]`.
    transformed: Vec<f32>,
    /// `[points, tiles, block]`.
    products: Vec<f32>,
}

impl Convolution {
    /// Transforms `weights`, row-major `dims = [Co, Ci, kH, kW]`, for images in blocks of `block` channels (8 or 16). `bias` is `[Co]`; `pads` are top,
    /// left, bottom and right, pixels; `relu` adds a ReLU.
    ///
    /// `None` if the shape is not supported: Co and Ci must be multiples of the block, pads smaller than the filter, kH and kW of 1, 3, 5 or 7, 7 only
    /// with 1, and the number of products less than half of the direct convolution's.
    #[must_use]
    pub fn new(
        weights: &[f32],
        dims: [usize; 4],
        bias: Option<&[f32]>,
        pads: [usize; 4],
        relu: bool,
        block: usize,
    ) -> Option<Self> {
        let [outputs, inputs, height, width] = dims;
        let axes = [Axis::new(height)?, Axis::new(width)?];
        let whole = matches!(block, 8 | 16) && outputs.is_multiple_of(block) && inputs.is_multiple_of(block);
        let padded = pads.iter().zip([height, width, height, width]).all(|(pad, taps)| *pad < taps);
        // Errors of the axes multiply: seven taps on one with several on the other would give 1e-4.
        let exact = height.min(width) == 1 || height.max(width) < 7;
        // With half the products the transforms take the time saved.
        let [products, all] = [Axis::points, |axis: &Axis| axis.tile * axis.taps].map(|n| n(&axes[0]) * n(&axes[1]));
        if !whole || !padded || !exact || all <= 2 * products {
            return None;
        }
        let count = dims.iter().try_fold(1_usize, |n, d| n.checked_mul(*d));
        if count != Some(weights.len()) || bias.is_some_and(|b| b.len() != outputs) {
            return None;
        }
        let bias = bias.map_or_else(|| vec![0.0; outputs], <[f32]>::to_vec);
        let weights = transformed_weights(weights, [outputs, inputs], &axes, block);
        Some(Self { outputs, inputs, block, axes, pads, weights, bias, relu })
    }

    /// Number of input channels.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Number of output channels.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Height and width of the output; `None` if the padded image is smaller than the filter.
    #[must_use]
    pub fn output_size(&self, height: usize, width: usize) -> Option<[usize; 2]> {
        let [top, left, bottom, right] = self.pads;
        let size = |length: usize, axis: &Axis| (length + 1).checked_sub(axis.taps).filter(|n| *n > 0);
        Some([size(height + top + bottom, &self.axes[0])?, size(width + left + right, &self.axes[1])?])
    }

    fn grid(&self, images: &Images<'_>) -> Grid {
        let [height, width] = self.output_size(images.height, images.width).unwrap_or_default();
        assert!(height > 0, "an image smaller than the filter");
        let (strips_of_image, tiles_of_strip) = (height.div_ceil(self.axes[0].tile), width.div_ceil(self.axes[1].tile));
        let points = self.axes[0].points() * self.axes[1].points();
        let tiles = (CACHE_FLOATS / (points * (self.inputs + self.block))).clamp(TASK_TILES[0], TASK_TILES[1]);
        let strips = images.batch * strips_of_image;
        let mut tasks = strips.div_ceil((tiles / tiles_of_strip).max(1)).max(1);
        if tasks < MANY_TASKS {
            tasks = tasks.next_multiple_of(2);
        }
        let strips_of_task = strips.div_ceil(tasks).max(1);
        Grid { height, width, strips_of_image, tiles_of_strip, strips, strips_of_task }
    }

    /// Computes `out [N, Co / block, H', W', block]`. `parallel` gets the number of tasks and must call its closure once with each index, on any thread and
    /// in any order; the result does not depend on them.
    ///
    /// # Errors
    /// Those of `parallel`.
    ///
    /// # Panics
    /// If the padded image is smaller than the filter, or a slice does not have the length of its shape.
    pub fn run<E>(
        &self,
        images: &Images<'_>,
        out: &mut [f32],
        pool: &Pool,
        parallel: impl FnOnce(usize, &(dyn Fn(usize) + Send + Sync)) -> Result<(), E>,
    ) -> Result<(), E> {
        let grid = self.grid(images);
        let pixels = images.batch * images.height * images.width;
        assert_eq!(images.values.len(), pixels * self.inputs, "the length of the images");
        let outputs = images.batch * grid.height * grid.width * self.outputs;
        assert_eq!(out.len(), outputs, "the length of the output");
        assert_eq!(images.sum.map_or(outputs, <[f32]>::len), outputs, "the length of the addend");
        let rows = self.rows(&grid, out);
        parallel(grid.tasks(), &|index| {
            // A task that panicked leaves rows of its own only.
            let mut rows = rows[index].lock().unwrap_or_else(PoisonError::into_inner);
            self.task(grid, index, *images, &mut rows, pool);
        })
    }

    /// One task. Not inlined, so that the kernels are compiled with the profile of this crate.
    #[inline(never)]
    fn task(&self, grid: Grid, index: usize, images: Images<'_>, rows: &mut Rows<'_>, pool: &Pool) {
        let mut scratch = pool.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        let scratch_of = &mut scratch;
        match self.block {
            8 => vectorised::<8>(Task { convolution: self, grid, index, images, rows, scratch: scratch_of }),
            _ => vectorised::<16>(Task { convolution: self, grid, index, images, rows, scratch: scratch_of }),
        }
        pool.0.lock().unwrap_or_else(PoisonError::into_inner).push(scratch);
    }

    /// The rows of `out` that each task writes.
    fn rows<'a>(&self, grid: &Grid, out: &'a mut [f32]) -> Vec<Mutex<Rows<'a>>> {
        let blocks = self.outputs / self.block;
        let strips = |task: usize| (grid.strips - task * grid.strips_of_task).min(grid.strips_of_task);
        let empty = |task| (0..strips(task) * blocks).map(|_| Default::default()).collect();
        let mut rows: Vec<Rows<'a>> = (0..grid.tasks()).map(empty).collect();
        let line = grid.width * self.block;
        for (plane, out) in out.chunks_exact_mut(grid.height * line).enumerate() {
            let (image, block) = (plane / blocks, plane % blocks);
            for (i, part) in out.chunks_mut(self.axes[0].tile * line).enumerate() {
                let strip = image * grid.strips_of_image + i;
                rows[strip / grid.strips_of_task][strip % grid.strips_of_task * blocks + block] = part;
            }
        }
        rows.into_iter().map(Mutex::new).collect()
    }
}

/// G applied to both axes of `weights [Co, Ci, kH, kW]` in f64, rounded once, in the layout of [`Convolution::weights`].
#[allow(clippy::cast_possible_truncation, reason = "kernels compute in f32")]
fn transformed_weights(
    weights: &[f32],
    [outputs, inputs]: [usize; 2],
    [down, across]: &[Axis; 2],
    block: usize,
) -> Vec<f32> {
    let (rows, columns) = (down.filter_transform(), across.filter_transform());
    let taps = down.taps * across.taps;
    let points = rows.len() * columns.len();
    let mut transformed = vec![0.0; points * outputs * inputs];
    let mut half = vec![0.0; rows.len() * across.taps];
    for (pair, filter) in weights.chunks_exact(taps).enumerate() {
        let (output, input) = (pair / inputs, pair % inputs);
        for (row, half) in rows.iter().zip(half.chunks_exact_mut(across.taps)) {
            for (s, half) in half.iter_mut().enumerate() {
                *half = row.iter().enumerate().map(|(r, g)| g * f64::from(filter[r * across.taps + s])).sum::<f64>();
            }
        }
        for (i, half) in half.chunks_exact(across.taps).enumerate() {
            for (j, column) in columns.iter().enumerate() {
                let sum: f64 = column.iter().zip(half).map(|(g, w)| g * w).sum();
                let panel = output / block * points + i * columns.len() + j;
                transformed[(panel * inputs + input) * block + output % block] = sum as f32;
            }
        }
    }
    transformed
}

/// A task with blocks of `B` channels.
struct Task<'a, 'b, const B: usize> {
    convolution: &'a Convolution,
    grid: Grid,
    index: usize,
    images: Images<'a>,
    rows: &'a mut Rows<'b>,
    scratch: &'a mut Scratch,
}

/// Runs `task` with the widest vectors of at most `B` lanes.
fn vectorised<const B: usize>(task: Task<'_, '_, B>) {
    #[cfg(target_arch = "x86_64")]
    if B == 8
        && let Some(simd) = pulp::x86::V3::try_new()
    {
        return Simd::vectorize(simd, task);
    }
    pulp::Arch::new().dispatch(task);
}

/// Calls `$f::<S, B, pairs, tile>` with the constants of `$axis`.
macro_rules! for_axis {
    ($axis:expr, $f:ident::<$s:ty, $b:ident>($($argument:expr),* $(,)?)) => {
        match ($axis.pairs, $axis.tile) {
            (2, 4) => $f::<$s, $b, 2, 4>($($argument),*),
            (2, _) => $f::<$s, $b, 2, 2>($($argument),*),
            (4, _) => $f::<$s, $b, 4, 4>($($argument),*),
            _ => $f::<$s, $b, 0, 1>($($argument),*),
        }
    };
}

impl<const B: usize> WithSimd for Task<'_, '_, B> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { convolution, grid, index, images, rows, scratch } = self;
        let Scratch { zeros, lines, transformed, products } = scratch;
        let [down, across] = &convolution.axes;
        let (high, wide) = (down.points(), across.points());
        let first = index * grid.strips_of_task;
        let strips = (grid.strips - first).min(grid.strips_of_task);
        let tiles = (strips * grid.tiles_of_strip).next_multiple_of(MIN_TILES);
        let (inputs, outputs) = (convolution.inputs / B, convolution.outputs / B);
        let columns = grid.tiles_of_strip * across.tile;
        let line = (columns + across.taps - 1) * B;
        let row_of_image = images.width * B;
        at_least(zeros, row_of_image);
        at_least(lines, high * line);
        at_least(transformed, high * wide * inputs * tiles * B);
        at_least(products, high * wide * tiles * B);

        let [top, left, ..] = convolution.pads;
        let inside = images.width.min(line / B - left);
        for strip in 0..strips {
            let (image, i) = ((first + strip) / grid.strips_of_image, (first + strip) % grid.strips_of_image);
            for block in 0..inputs {
                let plane = images.height * row_of_image;
                let plane = &images.values[(image * inputs + block) * plane..][..plane];
                let row = |row: usize| match (i * down.tile + row).checked_sub(top) {
                    Some(row) if row < images.height => &plane[row * row_of_image..][..inside * B],
                    _ => &zeros[..inside * B],
                };
                let source: [&[f32]; MAX_POINTS] = std::array::from_fn(|k| row(k.min(high - 1)));
                for line in lines.chunks_exact_mut(line).take(high) {
                    line[..left * B].fill(0.0);
                    line[(left + inside) * B..].fill(0.0);
                }
                for_axis!(down, transform_input_rows::<S, B>(simd, down, &source, lines, [line, left * B]));
                for (row, line) in lines.chunks_exact(line).take(high).enumerate() {
                    let at = (row * wide * inputs + block) * tiles + strip * grid.tiles_of_strip;
                    let step = inputs * tiles;
                    let tiles = grid.tiles_of_strip;
                    for_axis!(
                        across,
                        transform_input_columns::<S, B>(simd, across, line, transformed, [at, step, tiles])
                    );
                }
            }
        }

        let points = high * wide;
        let plane = grid.height * grid.width * B;
        for (block, weights) in convolution.weights.chunks_exact(points * inputs * B * B).enumerate() {
            let weights = weights.chunks_exact(inputs * B * B);
            let transformed = transformed.chunks_exact(inputs * tiles * B);
            for ((weights, inputs), products) in weights.zip(transformed).zip(products.chunks_exact_mut(tiles * B)) {
                multiply::<S, B>(simd, inputs, weights, products);
            }
            let bias = &convolution.bias[block * B..][..B];
            for strip in 0..strips {
                let (image, i) = ((first + strip) / grid.strips_of_image, (first + strip) % grid.strips_of_image);
                for (row, line) in lines.chunks_exact_mut(line).take(high).enumerate() {
                    let at = row * wide * tiles + strip * grid.tiles_of_strip;
                    let tiles = [at, tiles, grid.tiles_of_strip];
                    for_axis!(across, transform_output_columns::<S, B>(simd, across, products, tiles, line));
                }
                let out = &mut *rows[strip * outputs + block];
                let begin = (image * outputs + block) * plane + i * down.tile * grid.width * B;
                let sum = images.sum.map(|sum| &sum[begin..][..out.len()]);
                let after = Epilogue { bias, sum, relu: convolution.relu };
                for_axis!(down, transform_output_rows::<S, B>(simd, down, lines, line, &after, out, grid.width * B));
            }
        }
    }
}

/// Operations on the sums.
struct Epilogue<'a> {
    /// Of each channel of the block.
    bias: &'a [f32],
    /// In the layout of the output.
    sum: Option<&'a [f32]>,
    relu: bool,
}

fn at_least(memory: &mut Vec<f32>, length: usize) {
    if memory.len() < length {
        memory.resize(length, 0.0);
    }
}

#[inline(always)]
fn load<S: Simd>(_: S, from: &[f32]) -> S::f32s {
    S::as_simd_f32s(&from[..S::F32_LANES]).0[0]
}

#[inline(always)]
fn store<S: Simd>(_: S, to: &mut [f32], value: S::f32s) {
    S::as_mut_simd_f32s(&mut to[..S::F32_LANES]).0[0] = value;
}

/// Bᵀ along the height: `source`, one row for each point, into `lines`, `line` floats apart, from `left` on.
#[inline(always)]
fn transform_input_rows<S: Simd, const B: usize, const N: usize, const M: usize>(
    simd: S,
    axis: &Axis,
    source: &[&[f32]; MAX_POINTS],
    lines: &mut [f32],
    [line, left]: [usize; 2],
) {
    if N == 0 {
        lines[left..][..source[0].len()].copy_from_slice(source[0]);
        return;
    }
    for at in (0..source[0].len()).step_by(S::F32_LANES) {
        let mut x = [simd.splat_f32s(0.0); MAX_POINTS];
        for (i, x) in x.iter_mut().enumerate().take(2 * N + 2) {
            *x = load(simd, &source[i][at..]);
        }
        let y = axis.input_transform::<S, N>(simd, x);
        for (i, y) in y.iter().enumerate().take(2 * N + 2) {
            store(simd, &mut lines[i * line + left + at..], *y);
        }
    }
}

/// Bᵀ along the width of `line [W, B]`: point j of tile t is block `at + j * step + t` of `to`.
#[inline(always)]
fn transform_input_columns<S: Simd, const B: usize, const N: usize, const M: usize>(
    simd: S,
    axis: &Axis,
    line: &[f32],
    to: &mut [f32],
    [at, step, tiles]: [usize; 3],
) {
    if N == 0 {
        to[at * B..][..tiles * B].copy_from_slice(&line[..tiles * B]);
        return;
    }
    let points = 2 * N + 2;
    for t in 0..tiles {
        for lane in (0..B).step_by(S::F32_LANES) {
            let mut x = [simd.splat_f32s(0.0); MAX_POINTS];
            for (j, x) in x.iter_mut().enumerate().take(points) {
                *x = load(simd, &line[(t * M + j) * B + lane..]);
            }
            let y = axis.input_transform::<S, N>(simd, x);
            for (j, y) in y.iter().enumerate().take(points) {
                store(simd, &mut to[(at + j * step + t) * B + lane..], *y);
            }
        }
    }
}

/// Aᵀ along the width: the products in `from`, in the layout of [`transform_input_columns`], to `line`.
#[inline(always)]
fn transform_output_columns<S: Simd, const B: usize, const N: usize, const M: usize>(
    simd: S,
    axis: &Axis,
    from: &[f32],
    [at, step, tiles]: [usize; 3],
    line: &mut [f32],
) {
    if N == 0 {
        line[..tiles * B].copy_from_slice(&from[at * B..][..tiles * B]);
        return;
    }
    let points = 2 * N + 2;
    for t in 0..tiles {
        for lane in (0..B).step_by(S::F32_LANES) {
            let mut x = [simd.splat_f32s(0.0); MAX_POINTS];
            for (j, x) in x.iter_mut().enumerate().take(points) {
                *x = load(simd, &from[(at + j * step + t) * B + lane..]);
            }
            let y = axis.output_transform::<S, N, M>(simd, x);
            for (j, y) in y.iter().enumerate().take(M) {
                store(simd, &mut line[(t * M + j) * B + lane..], *y);
            }
        }
    }
}

/// Aᵀ along the height, and the epilogue: `lines`, `line` floats apart, to the rows of `out`, each of `width` floats.
#[inline(always)]
fn transform_output_rows<S: Simd, const B: usize, const N: usize, const M: usize>(
    simd: S,
    axis: &Axis,
    lines: &[f32],
    line: usize,
    after: &Epilogue<'_>,
    out: &mut [f32],
    width: usize,
) {
    let (points, zero) = (if N == 0 { 1 } else { 2 * N + 2 }, simd.splat_f32s(0.0));
    let inside = out.len() / width;
    for lane in (0..B).step_by(S::F32_LANES) {
        let bias = load(simd, &after.bias[lane..]);
        for at in (lane..width).step_by(B) {
            let mut x = [zero; MAX_POINTS];
            for (i, x) in x.iter_mut().enumerate().take(points) {
                *x = load(simd, &lines[i * line + at..]);
            }
            let y = axis.output_transform::<S, N, M>(simd, x);
            for (i, y) in y.iter().enumerate().take(M) {
                if i >= inside {
                    break;
                }
                let mut y = simd.add_f32s(*y, bias);
                if let Some(sum) = after.sum {
                    y = simd.add_f32s(y, load(simd, &sum[i * width + at..]));
                }
                // As the second operand of the maximum, NaN is kept, as in ONNX Runtime.
                let y = if after.relu { simd.max_f32s(zero, y) } else { y };
                store(simd, &mut out[i * width + at..], y);
            }
        }
    }
}

/// At one point, the product of `inputs [Ci / B, tiles, B]` and `weights [Ci, B]`: `products [tiles, B]`.
#[inline(always)]
fn multiply<S: Simd, const B: usize>(simd: S, inputs: &[f32], weights: &[f32], products: &mut [f32]) {
    let tiles = products.len() / B;
    for lane in (0..B).step_by(S::F32_LANES) {
        let mut tile = 0;
        // As many sums as fit in registers: there are 32 of 16 lanes, 16 of fewer.
        if S::F32_LANES == 16 {
            while tile + 24 <= tiles {
                some_tiles::<S, B, 24>(simd, inputs, weights, products, [tile, lane]);
                tile += 24;
            }
            if tile + 16 <= tiles {
                some_tiles::<S, B, 16>(simd, inputs, weights, products, [tile, lane]);
                tile += 16;
            }
        }
        while tile + 12 <= tiles {
            some_tiles::<S, B, 12>(simd, inputs, weights, products, [tile, lane]);
            tile += 12;
        }
        if tile + 8 <= tiles {
            some_tiles::<S, B, 8>(simd, inputs, weights, products, [tile, lane]);
            tile += 8;
        }
        if tile + MIN_TILES <= tiles {
            some_tiles::<S, B, MIN_TILES>(simd, inputs, weights, products, [tile, lane]);
        }
    }
}

/// [`multiply`] for `R` tiles and the lanes of one vector. Sums are over the channels in ascending order for every `R`.
#[inline(always)]
fn some_tiles<S: Simd, const B: usize, const R: usize>(
    simd: S,
    inputs: &[f32],
    weights: &[f32],
    products: &mut [f32],
    [tile, lane]: [usize; 2],
) {
    let mut sums = [simd.splat_f32s(0.0); R];
    let blocks = inputs.chunks_exact(products.len()).zip(weights.chunks_exact(B * B));
    for (inputs, weights) in blocks {
        let inputs = &inputs[tile * B..][..R * B];
        let weights = S::as_simd_f32s(weights).0.chunks_exact(B / S::F32_LANES);
        for (channel, weights) in weights.enumerate() {
            let weight = weights[lane / S::F32_LANES];
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = simd.mul_add_f32s(simd.splat_f32s(inputs[r * B + channel]), weight, *sum);
            }
        }
    }
    for (r, sum) in sums.iter().enumerate() {
        store(simd, &mut products[(tile + r) * B + lane..], *sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pseudo-random values in [-1, 1].
    fn values(length: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1_u32 << 23) as f32 - 1.0
        };
        (0..length).map(|_| next()).collect()
    }

    /// The direct convolution, in f64.
    fn direct(
        images: &Images<'_>,
        weights: &[f32],
        [outputs, inputs, high, wide]: [usize; 4],
        [top, left, bottom, right]: [usize; 4],
    ) -> Vec<f64> {
        let (rows, columns) = (images.height + top + bottom + 1 - high, images.width + left + right + 1 - wide);
        let at = |image: usize, channel: usize, y: usize, x: usize| {
            let (y, x) = (y.wrapping_sub(top), x.wrapping_sub(left));
            let index = || ((image * inputs + channel) * images.height + y) * images.width + x;
            if y < images.height && x < images.width { f64::from(images.values[index()]) } else { 0.0 }
        };
        let mut out = Vec::new();
        for i in 0..images.batch * outputs * rows * columns {
            let (image, output) = (i / (outputs * rows * columns), i / (rows * columns) % outputs);
            let (y, x) = (i / columns % rows, i % columns);
            let mut sum = 0.0;
            for input in 0..inputs {
                for tap in 0..high * wide {
                    let weight = weights[(output * inputs + input) * high * wide + tap];
                    sum += f64::from(weight) * at(image, input, y + tap / wide, x + tap % wide);
                }
            }
            out.push(sum);
        }
        out
    }

    /// `planes [N, C, pixels]` as `[N, C / block, pixels, block]`, or the inverse if `back`.
    fn reordered(planes: &[f32], channels: usize, pixels: usize, block: usize, back: bool) -> Vec<f32> {
        let mut out = vec![0.0; planes.len()];
        for i in 0..planes.len() {
            let (plane, pixel) = (i / pixels, i % pixels);
            let (image, channel) = (plane / channels, plane % channels);
            let there = (image * channels + channel / block * block) * pixels + pixel * block + channel % block;
            if back {
                out[i] = planes[there];
            } else {
                out[there] = planes[i];
            }
        }
        out
    }

    /// Runs the convolution on images `[N, C, H, W]`.
    fn run(convolution: &Convolution, images: &Images<'_>, pool: &Pool, backwards: bool) -> Vec<f32> {
        let [height, width] = convolution.output_size(images.height, images.width).unwrap();
        let (block, pixels) = (convolution.block, images.height * images.width);
        let values = reordered(images.values, convolution.inputs, pixels, block, false);
        let sum = images.sum.map(|sum| reordered(sum, convolution.outputs, height * width, block, false));
        let images = &Images { values: &values, sum: sum.as_deref(), ..*images };
        let mut out = vec![f32::NAN; images.batch * convolution.outputs * height * width];
        let order = |tasks: usize, task: &(dyn Fn(usize) + Send + Sync)| {
            for i in 0..tasks {
                task(if backwards { tasks - 1 - i } else { i });
            }
            Ok::<(), ()>(())
        };
        convolution.run(images, &mut out, pool, order).unwrap();
        reordered(&out, convolution.outputs, height * width, block, true)
    }

    #[test]
    fn every_filter_size_and_padding_gives_the_convolution() {
        let pool = Pool::default();
        for (taps, pads, height, width, batch) in [
            ([3, 3], [1; 4], 35, 35, 2),
            ([3, 3], [0; 4], 8, 9, 3),
            ([3, 3], [2, 0, 1, 2], 7, 10, 1),
            ([3, 3], [1; 4], 1, 2, 2),
            ([5, 5], [2; 4], 13, 11, 1),
            ([5, 3], [2, 1, 2, 1], 6, 9, 2),
            ([1, 7], [0, 3, 0, 3], 17, 17, 2),
            ([7, 1], [3, 0, 3, 0], 17, 17, 2),
            ([7, 1], [0; 4], 7, 3, 2),
            ([7, 1], [3, 0, 3, 0], 9, 40, 1),
            ([3, 3], [1; 4], 70, 130, 1),
        ] {
            let dims = [48, 32, taps[0], taps[1]];
            let weights = values(dims.iter().product(), 1);
            let input = values(batch * dims[1] * height * width, 2);
            let images = Images { values: &input, sum: None, batch, height, width };
            let bias = values(dims[0], 3);
            let expected = direct(&images, &weights, dims, pads);
            let peak = expected.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
            let added = values(expected.len(), 4);
            for block in [8, 16] {
                let plain = Convolution::new(&weights, dims, None, pads, false, block).unwrap();
                let found = run(&plain, &images, &pool, false);
                let worst = |whole: &dyn Fn(usize, f64) -> f64, found: &[f32]| {
                    let of = |(i, (e, f)): (usize, (&f64, &f32))| (whole(i, *e) - f64::from(*f)).abs();
                    expected.iter().zip(found).enumerate().map(of).fold(0.0_f64, f64::max)
                };
                let off = worst(&|_, e| e, &found);
                assert!(off < 2e-5 * peak, "{taps:?} {pads:?} {height} x {width} by {block}: {off} of {peak}");
                let whole = Convolution::new(&weights, dims, Some(&bias), pads, true, block).unwrap();
                let with_sum = run(&whole, &Images { sum: Some(&added), ..images }, &pool, true);
                let pixels = expected.len() / batch / dims[0];
                let after =
                    |i: usize, e: f64| (e + f64::from(bias[i / pixels % dims[0]]) + f64::from(added[i])).max(0.0);
                let off = worst(&after, &with_sum);
                assert!(
                    off < 2e-5 * peak,
                    "{taps:?} {pads:?} {height} x {width} by {block}, all of it: {off} of {peak}"
                );

                // The output of an image does not depend on the rest of the batch.
                let alone = Images { values: &input[..dims[1] * height * width], batch: 1, ..images };
                let alone = run(&plain, &alone, &Pool::default(), true);
                assert_eq!(alone, found[..alone.len()]);
            }
        }
    }

    #[test]
    fn unsupported_shapes_are_none() {
        let of =
            |dims: [usize; 4], pads| Convolution::new(&vec![0.0; dims.iter().product()], dims, None, pads, false, 16);
        assert!(of([32, 32, 3, 3], [1; 4]).is_some());
        for (dims, pads) in [
            ([32, 24, 3, 3], [1; 4]),
            ([24, 32, 3, 3], [1; 4]),
            ([32, 32, 1, 1], [0; 4]),
            ([32, 32, 1, 3], [0, 1, 0, 1]),
            ([32, 32, 2, 2], [0; 4]),
            ([32, 32, 3, 9], [0; 4]),
            ([32, 32, 7, 7], [3; 4]),
            ([32, 32, 3, 7], [0; 4]),
            ([32, 32, 3, 3], [1, 3, 1, 1]),
        ] {
            assert!(of(dims, pads).is_none(), "{dims:?} {pads:?}");
        }
        assert_eq!(of([32, 32, 3, 3], [0; 4]).unwrap().output_size(2, 9), None);
    }

    #[test]
    fn nan_stays_nan() {
        let (dims, mut input) = ([32, 32, 3, 3], vec![1.0; 32 * 64]);
        input[0] = f32::NAN;
        let convolution = Convolution::new(&vec![1.0; 32 * 32 * 9], dims, None, [1; 4], true, 16).unwrap();
        let out = run(
            &convolution,
            &Images { values: &input, sum: None, batch: 1, height: 8, width: 8 },
            &Pool::default(),
            false,
        );
        assert!(out[0].is_nan());
    }

    #[test]
    fn lengths_that_do_not_match_panic() {
        let convolution = Convolution::new(&vec![1.0; 8 * 8 * 9], [8, 8, 3, 3], None, [0; 4], false, 8).unwrap();
        let attempt = |values: usize, sum: Option<usize>, out: usize, height: usize| {
            let (values, sum, mut out) = (vec![1.0; values], sum.map(|n| vec![1.0; n]), vec![0.0; out]);
            let images = Images { values: &values, sum: sum.as_deref(), batch: 1, height, width: 4 };
            let run = || {
                let each = |tasks, task: &(dyn Fn(usize) + Send + Sync)| {
                    (0..tasks).for_each(task);
                    Ok::<(), ()>(())
                };
                convolution.run(&images, &mut out, &Pool::default(), each)
            };
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_ok()
        };
        assert!(attempt(8 * 16, Some(8 * 4), 8 * 4, 4));
        for (values, sum, out, height) in
            [(8 * 15, None, 8 * 4, 4), (8 * 16, Some(8 * 3), 8 * 4, 4), (8 * 16, None, 8 * 5, 4), (8 * 8, None, 0, 2)]
        {
            assert!(!attempt(values, sum, out, height), "{values} {sum:?} {out} {height}");
        }
    }
}
