//! One convolution by minimal filtering: its weights at the points, and how its images are cut into tasks.

use std::sync::{Mutex, PoisonError};

use pulp::{Simd, WithSimd};

use super::axis::{Axis, MOST};

/// Channels that lie together.
pub(super) const LANES: usize = 16;
/// Pixels and channels that are transposed together.
const SIDE: usize = 4;
/// Tiles of a task, at least and at most.
const TILES: [usize; 2] = [24, 96];
/// Floats of a task's transformed inputs and products: what a core's second cache holds.
const CACHED: usize = 160_000;

/// A convolution of stride 1 and one group, with its bias and, where asked, the ReLU after it.
#[derive(Debug)]
pub(super) struct Convolution {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    axes: [Axis; 2],
    /// Top, left, bottom, right.
    pads: [usize; 4],
    /// `[points, Co / 16, Ci, 16]`.
    weights: Vec<f32>,
    bias: Vec<f32>,
    relu: bool,
}

/// `[N, Ci, H, W]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Images<'a> {
    pub(super) values: &'a [f32],
    pub(super) batch: usize,
    pub(super) height: usize,
    pub(super) width: usize,
}

/// How the tiles of a batch are cut up: a strip is a row of tiles of one image, a task is some strips.
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

/// Rows of a task's outputs: for each strip the rows of each channel.
type Rows<'a> = Vec<&'a mut [f32]>;

/// Working memory, lent to one task at a time.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<Vec<Scratch>>);

#[derive(Debug, Default)]
struct Scratch {
    /// Rows of 16 channels, `[points of the height, W, 16]`.
    lines: Vec<f32>,
    /// `[points, Ci / 16, tiles, 16]`.
    transformed: Vec<f32>,
    /// `[points, Co / 16, tiles, 16]`.
    products: Vec<f32>,
    /// `[16, W']`.
    turned: Vec<f32>,
}

impl Convolution {
    /// Of weights `[Co, Ci, height, width]`; `None` if minimal filtering does not suit their shape.
    pub(super) fn new(
        weights: &[f32],
        dims: [usize; 4],
        bias: Option<&[f32]>,
        pads: [usize; 4],
        relu: bool,
    ) -> Option<Self> {
        let [outputs, inputs, height, width] = dims;
        let axes = [Axis::new(height)?, Axis::new(width)?];
        let whole = outputs.is_multiple_of(LANES) && inputs.is_multiple_of(LANES);
        let padded = pads.iter().zip([height, width, height, width]).all(|(pad, taps)| *pad < taps);
        // Errors of two axes multiply: seven taps by more than one would be off by 1e-4.
        let exact = height.min(width) == 1 || height.max(width) < 7;
        // Half the products are no gain: so much goes into the transforms and the other layout.
        let [products, all] = [Axis::points, |axis: &Axis| axis.tile * axis.taps].map(|n| n(&axes[0]) * n(&axes[1]));
        if !whole || !padded || !exact || all <= 2 * products || weights.len() != dims.iter().product::<usize>() {
            return None;
        }
        let bias = bias.map_or_else(|| vec![0.0; outputs], <[f32]>::to_vec);
        if bias.len() != outputs {
            return None;
        }
        let weights = at_the_points(weights, [outputs, inputs], &axes);
        Some(Self { outputs, inputs, axes, pads, weights, bias, relu })
    }

    /// Height and width of the output; `None` if an image is smaller than the filter.
    pub(super) fn output_size(&self, height: usize, width: usize) -> Option<[usize; 2]> {
        let [top, left, bottom, right] = self.pads;
        let size = |length: usize, axis: &Axis| (length + 1).checked_sub(axis.taps).filter(|n| *n > 0);
        Some([size(height + top + bottom, &self.axes[0])?, size(width + left + right, &self.axes[1])?])
    }

    fn grid(&self, images: &Images<'_>) -> Option<Grid> {
        let [height, width] = self.output_size(images.height, images.width)?;
        let (strips_of_image, tiles_of_strip) = (height.div_ceil(self.axes[0].tile), width.div_ceil(self.axes[1].tile));
        let points = self.axes[0].points() * self.axes[1].points();
        let tiles = (CACHED / (points * (self.inputs + self.outputs))).clamp(TILES[0], TILES[1]);
        let strips_of_task = (tiles / tiles_of_strip).max(1);
        let strips = images.batch * strips_of_image;
        Some(Grid { height, width, strips_of_image, tiles_of_strip, strips, strips_of_task })
    }

    /// Fills `out [N, Co, H', W']`. `parallel` is given the number of tasks and calls the closure once with each; results do not depend on
    /// which thread takes which.
    pub(super) fn run<E>(
        &self,
        images: &Images<'_>,
        out: &mut [f32],
        pool: &Pool,
        parallel: impl FnOnce(usize, &(dyn Fn(usize) + Send + Sync)) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(grid) = self.grid(images) else { return Ok(()) };
        let rows = self.rows(&grid, out);
        let arch = pulp::Arch::new();
        parallel(grid.tasks(), &|index| {
            // A poisoned lock guards nothing here that a panic could have left half done.
            let mut scratch = pool.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
            let mut rows = rows[index].lock().unwrap_or_else(PoisonError::into_inner);
            arch.dispatch(Task {
                convolution: self,
                grid,
                index,
                images: *images,
                rows: &mut rows,
                scratch: &mut scratch,
            });
            pool.0.lock().unwrap_or_else(PoisonError::into_inner).push(scratch);
        })
    }

    /// `out` as each task's own rows.
    fn rows<'a>(&self, grid: &Grid, out: &'a mut [f32]) -> Vec<Mutex<Rows<'a>>> {
        let strips = |task: usize| (grid.strips - task * grid.strips_of_task).min(grid.strips_of_task);
        let empty = |task| (0..strips(task) * self.outputs).map(|_| Default::default()).collect();
        let mut rows: Vec<Rows<'a>> = (0..grid.tasks()).map(empty).collect();
        for (plane, out) in out.chunks_exact_mut(grid.height * grid.width).enumerate() {
            let (image, channel) = (plane / self.outputs, plane % self.outputs);
            for (i, part) in out.chunks_mut(self.axes[0].tile * grid.width).enumerate() {
                let strip = image * grid.strips_of_image + i;
                rows[strip / grid.strips_of_task][strip % grid.strips_of_task * self.outputs + channel] = part;
            }
        }
        rows.into_iter().map(Mutex::new).collect()
    }
}

/// Weights `[Co, Ci, height, width]` at the points, in f64 and rounded once, as [`Convolution::weights`] has them.
#[allow(clippy::cast_possible_truncation, reason = "graphs compute in f32")]
fn at_the_points(weights: &[f32], [outputs, inputs]: [usize; 2], [down, across]: &[Axis; 2]) -> Vec<f32> {
    let (rows, columns) = (down.filter(), across.filter());
    let taps = down.taps * across.taps;
    let mut transformed = vec![0.0; rows.len() * columns.len() * outputs * inputs];
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
                let panel = (i * columns.len() + j) * (outputs / LANES) + output / LANES;
                transformed[(panel * inputs + input) * LANES + output % LANES] = sum as f32;
            }
        }
    }
    transformed
}

/// Some strips of a batch.
struct Task<'a, 'b> {
    convolution: &'a Convolution,
    grid: Grid,
    index: usize,
    images: Images<'a>,
    rows: &'a mut Rows<'b>,
    scratch: &'a mut Scratch,
}

/// Calls `$f::<S, pairs, tile>` for the numbers of `$axis`.
macro_rules! for_axis {
    ($axis:expr, $f:ident::<$s:ty>($($argument:expr),* $(,)?)) => {
        match ($axis.pairs, $axis.tile) {
            (2, 4) => $f::<$s, 2, 4>($($argument),*),
            (2, _) => $f::<$s, 2, 2>($($argument),*),
            (4, _) => $f::<$s, 4, 4>($($argument),*),
            _ => $f::<$s, 0, 1>($($argument),*),
        }
    };
}

impl WithSimd for Task<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { convolution, grid, index, images, rows, scratch } = self;
        let Scratch { lines, transformed, products, turned } = scratch;
        let [down, across] = &convolution.axes;
        let (high, wide) = (down.points(), across.points());
        let first = index * grid.strips_of_task;
        let strips = (grid.strips - first).min(grid.strips_of_task);
        let tiles = (strips * grid.tiles_of_strip).next_multiple_of(SIDE);
        let (inputs, outputs) = (convolution.inputs / LANES, convolution.outputs / LANES);
        let columns = grid.tiles_of_strip * across.tile;
        // Whole blocks to transpose: the last columns may lie outside the image.
        let out_line = columns.next_multiple_of(SIDE) * LANES;
        let line = ((columns + across.taps - 1) * LANES).max(out_line);
        at_least(lines, high * line);
        at_least(transformed, high * wide * inputs * tiles * LANES);
        at_least(products, high * wide * outputs * tiles * LANES);
        at_least(turned, out_line);

        let [top, left, ..] = convolution.pads;
        for strip in 0..strips {
            let (image, i) = ((first + strip) / grid.strips_of_image, (first + strip) % grid.strips_of_image);
            for block in 0..inputs {
                let plane = images.height * images.width;
                let planes = &images.values[(image * inputs + block) * LANES * plane..][..LANES * plane];
                for (row, line) in lines.chunks_exact_mut(line).take(high).enumerate() {
                    let row = (i * down.tile + row).checked_sub(top).filter(|row| *row < images.height);
                    gather(planes, images.width, row, left, line);
                }
                for_axis!(down, analyse_rows::<S>(simd, down, lines, line));
                for (row, line) in lines.chunks_exact(line).take(high).enumerate() {
                    let at = (row * wide * inputs + block) * tiles + strip * grid.tiles_of_strip;
                    let step = inputs * tiles;
                    for_axis!(
                        across,
                        analyse_columns::<S>(simd, across, line, transformed, [at, step, grid.tiles_of_strip])
                    );
                }
            }
        }

        let weights = convolution.weights.chunks_exact(inputs * LANES * LANES);
        let at_point = transformed.chunks_exact(inputs * tiles * LANES).flat_map(|t| std::iter::repeat_n(t, outputs));
        for ((weights, inputs), products) in weights.zip(at_point).zip(products.chunks_exact_mut(tiles * LANES)) {
            multiply(simd, inputs, weights, products);
        }

        let line = out_line;
        for strip in 0..strips {
            let i = (first + strip) % grid.strips_of_image;
            for block in 0..outputs {
                for (row, line) in lines.chunks_exact_mut(line).take(high).enumerate() {
                    let at = (row * wide * outputs + block) * tiles + strip * grid.tiles_of_strip;
                    let step = outputs * tiles;
                    for_axis!(
                        across,
                        synthesise_columns::<S>(simd, across, products, [at, step, grid.tiles_of_strip], line)
                    );
                }
                let bias = &convolution.bias[block * LANES..][..LANES];
                for_axis!(down, synthesise_rows::<S>(simd, down, lines, line, bias, convolution.relu));
                let channels = &mut rows[(strip * outputs + block) * LANES..][..LANES];
                let inside = (grid.height - i * down.tile).min(down.tile);
                for (row, line) in lines.chunks_exact(line).take(inside).enumerate() {
                    scatter(line, turned, channels, row, grid.width);
                }
            }
        }
    }
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

/// Row `row` of 16 planes, padded: `line [W, 16]`; zeros without a row.
#[inline(always)]
fn gather(planes: &[f32], width: usize, row: Option<usize>, left: usize, line: &mut [f32]) {
    let Some(row) = row else { return line.fill(0.0) };
    let plane = planes.len() / LANES;
    let inside = width.min(line.len() / LANES - left);
    line[..left * LANES].fill(0.0);
    line[(left + inside) * LANES..].fill(0.0);
    let line = &mut line[left * LANES..][..inside * LANES];
    for channel in (0..LANES).step_by(SIDE) {
        let rows: [&[f32]; SIDE] = std::array::from_fn(|g| &planes[(channel + g) * plane + row * width..][..inside]);
        let mut blocks = line.chunks_exact_mut(SIDE * LANES);
        for (x, to) in blocks.by_ref().enumerate() {
            let block: [[f32; SIDE]; SIDE] = std::array::from_fn(|g| std::array::from_fn(|j| rows[g][x * SIDE + j]));
            for j in 0..SIDE {
                let column: [f32; SIDE] = std::array::from_fn(|g| block[g][j]);
                to[j * LANES + channel..][..SIDE].copy_from_slice(&column);
            }
        }
        for (x, to) in blocks.into_remainder().chunks_exact_mut(LANES).enumerate() {
            for (g, row) in rows.iter().enumerate() {
                to[channel + g] = row[inside / SIDE * SIDE + x];
            }
        }
    }
}

/// `line [W', 16]` into row `row` of 16 channels. It is turned first, because whole lines are what memory takes fastest.
#[inline(always)]
fn scatter(line: &[f32], turned: &mut [f32], channels: &mut [&mut [f32]], row: usize, width: usize) {
    let columns = line.len() / LANES;
    for (channel, rows) in turned[..line.len()].chunks_exact_mut(SIDE * columns).enumerate() {
        let (a, rest) = rows.split_at_mut(columns);
        let (b, rest) = rest.split_at_mut(columns);
        let (c, d) = rest.split_at_mut(columns);
        let rows = a.chunks_exact_mut(SIDE).zip(b.chunks_exact_mut(SIDE));
        let rows = rows.zip(c.chunks_exact_mut(SIDE).zip(d.chunks_exact_mut(SIDE)));
        for (block, ((a, b), (c, d))) in line.chunks_exact(SIDE * LANES).zip(rows) {
            for j in 0..SIDE {
                let pixel = &block[j * LANES + channel * SIDE..][..SIDE];
                (a[j], b[j], c[j], d[j]) = (pixel[0], pixel[1], pixel[2], pixel[3]);
            }
        }
    }
    for (channel, turned) in channels.iter_mut().zip(turned.chunks_exact(columns)) {
        channel[row * width..][..width].copy_from_slice(&turned[..width]);
    }
}

/// Rows `[points, W, 16]` to their values at the points, in place.
#[inline(always)]
fn analyse_rows<S: Simd, const N: usize, const M: usize>(simd: S, axis: &Axis, lines: &mut [f32], line: usize) {
    if N == 0 {
        return;
    }
    for at in (0..line).step_by(S::F32_LANES) {
        let mut x = [simd.splat_f32s(0.0); MOST];
        for (i, x) in x.iter_mut().enumerate().take(2 * N + 2) {
            *x = load(simd, &lines[i * line + at..]);
        }
        let y = axis.analyse::<S, N>(simd, x);
        for (i, y) in y.iter().enumerate().take(2 * N + 2) {
            store(simd, &mut lines[i * line + at..], *y);
        }
    }
}

/// A line `[W, 16]` to its tiles' values at the points: point j of tile t is vector `at + j * step + t` of `to`.
#[inline(always)]
fn analyse_columns<S: Simd, const N: usize, const M: usize>(
    simd: S,
    axis: &Axis,
    line: &[f32],
    to: &mut [f32],
    [at, step, tiles]: [usize; 3],
) {
    let points = if N == 0 { 1 } else { 2 * N + 2 };
    for t in 0..tiles {
        for lane in (0..LANES).step_by(S::F32_LANES) {
            let mut x = [simd.splat_f32s(0.0); MOST];
            for (j, x) in x.iter_mut().enumerate().take(points) {
                *x = load(simd, &line[(t * M + j) * LANES + lane..]);
            }
            let y = axis.analyse::<S, N>(simd, x);
            for (j, y) in y.iter().enumerate().take(points) {
                store(simd, &mut to[(at + j * step + t) * LANES + lane..], *y);
            }
        }
    }
}

/// [`analyse_columns`] back: products at the points to a line of outputs.
#[inline(always)]
fn synthesise_columns<S: Simd, const N: usize, const M: usize>(
    simd: S,
    axis: &Axis,
    from: &[f32],
    [at, step, tiles]: [usize; 3],
    line: &mut [f32],
) {
    let points = if N == 0 { 1 } else { 2 * N + 2 };
    for t in 0..tiles {
        for lane in (0..LANES).step_by(S::F32_LANES) {
            let mut x = [simd.splat_f32s(0.0); MOST];
            for (j, x) in x.iter_mut().enumerate().take(points) {
                *x = load(simd, &from[(at + j * step + t) * LANES + lane..]);
            }
            let y = axis.synthesise::<S, N, M>(simd, x);
            for (j, y) in y.iter().enumerate().take(M) {
                store(simd, &mut line[(t * M + j) * LANES + lane..], *y);
            }
        }
    }
}

/// [`analyse_rows`] back, in place, with the bias and ReLU.
#[inline(always)]
fn synthesise_rows<S: Simd, const N: usize, const M: usize>(
    simd: S,
    axis: &Axis,
    lines: &mut [f32],
    line: usize,
    bias: &[f32],
    relu: bool,
) {
    let (points, zero) = (if N == 0 { 1 } else { 2 * N + 2 }, simd.splat_f32s(0.0));
    for lane in (0..LANES).step_by(S::F32_LANES) {
        let bias = load(simd, &bias[lane..]);
        for at in (lane..line).step_by(LANES) {
            let mut x = [zero; MOST];
            for (i, x) in x.iter_mut().enumerate().take(points) {
                *x = load(simd, &lines[i * line + at..]);
            }
            let y = axis.synthesise::<S, N, M>(simd, x);
            for (i, y) in y.iter().enumerate().take(M) {
                let y = simd.add_f32s(*y, bias);
                // NaN stays NaN, as in ONNX Runtime: it is the second operand.
                let y = if relu { simd.max_f32s(zero, y) } else { y };
                store(simd, &mut lines[i * line + at..], y);
            }
        }
    }
}

/// At one point, `inputs [Ci / 16, tiles, 16]` by `weights [Ci, 16]`: `products [tiles, 16]`.
#[inline(always)]
fn multiply<S: Simd>(simd: S, inputs: &[f32], weights: &[f32], products: &mut [f32]) {
    let tiles = products.len() / LANES;
    for lane in (0..LANES).step_by(S::F32_LANES) {
        let mut tile = 0;
        // As many sums as there are registers: 32 of 16 lanes, else 16.
        while S::F32_LANES == 16 && tile + 24 <= tiles {
            some_tiles::<S, 24>(simd, inputs, weights, products, [tile, lane]);
            tile += 24;
        }
        while tile + 12 <= tiles {
            some_tiles::<S, 12>(simd, inputs, weights, products, [tile, lane]);
            tile += 12;
        }
        while tile + SIDE <= tiles {
            some_tiles::<S, SIDE>(simd, inputs, weights, products, [tile, lane]);
            tile += SIDE;
        }
    }
}

/// [`multiply`] for `R` tiles and the lanes of a vector. Each tile's sum runs over the channels in their order, whatever `R` is.
#[inline(always)]
fn some_tiles<S: Simd, const R: usize>(
    simd: S,
    inputs: &[f32],
    weights: &[f32],
    products: &mut [f32],
    [tile, lane]: [usize; 2],
) {
    let mut sums = [simd.splat_f32s(0.0); R];
    let blocks = inputs.chunks_exact(products.len()).zip(weights.chunks_exact(LANES * LANES));
    for (inputs, weights) in blocks {
        let inputs = &inputs[tile * LANES..][..R * LANES];
        let weights = S::as_simd_f32s(weights).0.chunks_exact(LANES / S::F32_LANES);
        for (channel, weights) in weights.enumerate() {
            let weight = weights[lane / S::F32_LANES];
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = simd.mul_add_f32s(simd.splat_f32s(inputs[r * LANES + channel]), weight, *sum);
            }
        }
    }
    for (r, sum) in sums.iter().enumerate() {
        store(simd, &mut products[(tile + r) * LANES + lane..], *sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values without a pattern, of about unit size.
    fn values(length: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1_u32 << 23) as f32 - 1.0
        };
        (0..length).map(|_| next()).collect()
    }

    /// The definition, in f64.
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

    fn run(convolution: &Convolution, images: &Images<'_>, pool: &Pool, backwards: bool) -> Vec<f32> {
        let [height, width] = convolution.output_size(images.height, images.width).unwrap();
        let mut out = vec![f32::NAN; images.batch * convolution.outputs * height * width];
        let order = |tasks: usize, task: &(dyn Fn(usize) + Send + Sync)| {
            for i in 0..tasks {
                task(if backwards { tasks - 1 - i } else { i });
            }
            Ok::<(), ()>(())
        };
        convolution.run(images, &mut out, pool, order).unwrap();
        out
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
            let images = Images { values: &input, batch, height, width };
            let bias = values(dims[0], 3);
            let expected = direct(&images, &weights, dims, pads);
            let plain = Convolution::new(&weights, dims, None, pads, false).unwrap();
            let found = run(&plain, &images, &pool, false);
            let peak = expected.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
            let worst = |bias: &dyn Fn(usize) -> f64, relu: bool, found: &[f32]| {
                let of = |(i, (e, f)): (usize, (&f64, &f32))| {
                    let e = e + bias(i / (expected.len() / batch / dims[0]) % dims[0]);
                    (if relu { e.max(0.0) } else { e } - f64::from(*f)).abs()
                };
                expected.iter().zip(found).enumerate().map(of).fold(0.0_f64, f64::max)
            };
            let off = worst(&|_| 0.0, false, &found);
            assert!(off < 2e-5 * peak, "{taps:?} {pads:?} {height} x {width}: {off} of {peak}");
            let whole = Convolution::new(&weights, dims, Some(&bias), pads, true).unwrap();
            let off = worst(&|channel| f64::from(bias[channel]), true, &run(&whole, &images, &pool, true));
            assert!(off < 2e-5 * peak, "{taps:?} {pads:?} {height} x {width} with bias and ReLU: {off} of {peak}");

            // An image's numbers do not depend on those beside it.
            let alone = Images { values: &input[..dims[1] * height * width], batch: 1, ..images };
            let alone = run(&plain, &alone, &Pool::default(), true);
            assert_eq!(alone, found[..alone.len()]);
        }
    }

    #[test]
    fn shapes_that_do_not_suit_are_left() {
        let of = |dims: [usize; 4], pads| Convolution::new(&vec![0.0; dims.iter().product()], dims, None, pads, false);
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
        let convolution = Convolution::new(&vec![1.0; 32 * 32 * 9], dims, None, [1; 4], true).unwrap();
        let out = run(&convolution, &Images { values: &input, batch: 1, height: 8, width: 8 }, &Pool::default(), false);
        assert!(out[0].is_nan());
    }
}
