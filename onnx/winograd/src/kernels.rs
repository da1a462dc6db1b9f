//! Vectorised kernels: transforms of images, and products.

use pulp::{Simd, WithSimd};

use crate::axis::{Axis, MAX_POINTS};
use crate::shape::{Grid, Images, Layout, Shape, TaskMemory, at_least};

/// Minimum number of tiles of a product. [`multiply`] requires a multiple of it.
pub(crate) const MIN_TILES: usize = 4;
/// Number of products in a partial sum. Partial sums are then added up. The rounding error grows with the square root
/// of the length of a sum.
pub(crate) const SUM_LENGTH: usize = 64;

/// Work on blocks of `B` channels with vectors of at most `B` lanes.
pub(crate) trait Work {
    fn run<S: Simd, const B: usize>(self, simd: S);
}

struct Blocks<W, const B: usize>(W);

impl<W: Work, const B: usize> WithSimd for Blocks<W, B> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.0.run::<S, B>(simd);
    }
}

/// Runs `work` on blocks of `block` channels (8 or 16) with the widest vectors that fit in a block.
#[inline(always)]
pub(crate) fn vectorised<W: Work>(block: usize, work: W) {
    if block == 16 {
        return pulp::Arch::new().dispatch(Blocks::<W, 16>(work));
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new() {
        return Simd::vectorize(simd, Blocks::<W, 8>(work));
    }
    pulp::Arch::new().dispatch(Blocks::<W, 8>(work));
}

/// Calls `$f::<S, B, pairs, tile>` with `pairs` and `tile` of `$axis` as constants, followed by `$g` if it is given.
macro_rules! for_axis {
    ($axis:expr, $f:ident::<$s:ty, $b:ident $(, $g:ident)?>($($argument:expr),* $(,)?)) => {
        match ($axis.pairs, $axis.tile) {
            (2, 4) => $f::<$s, $b, 2, 4 $(, $g)?>($($argument),*),
            (2, _) => $f::<$s, $b, 2, 2 $(, $g)?>($($argument),*),
            (4, _) => $f::<$s, $b, 4, 4 $(, $g)?>($($argument),*),
            _ => $f::<$s, $b, 0, 1 $(, $g)?>($($argument),*),
        }
    };
}

pub(crate) use for_axis;

/// Operations after the output transform.
pub(crate) struct Epilogue<'a> {
    /// Bias of each channel of the block.
    pub(crate) bias: &'a [f32],
    /// Addend in the layout of the output.
    pub(crate) sum: Option<&'a [f32]>,
    pub(crate) relu: bool,
}

#[inline(always)]
pub(crate) fn load<S: Simd>(_: S, from: &[f32]) -> S::f32s {
    S::as_simd_f32s(&from[..S::F32_LANES]).0[0]
}

#[inline(always)]
pub(crate) fn store<S: Simd>(_: S, to: &mut [f32], value: S::f32s) {
    S::as_mut_simd_f32s(&mut to[..S::F32_LANES]).0[0] = value;
}

/// Distance between adjacent points, in blocks of channels. It is odd if `blocks * tiles` is even: a power of two would
/// map all points of a tile to the same cache set.
pub(crate) fn step(blocks: usize, tiles: usize) -> usize {
    blocks * tiles + 3
}

/// Transforms the tiles of `strips` strips, starting at `first`, to `to [points, C / B, tiles, B]`, with a distance of
/// [`step`] between points. `images` are the input of the convolution of `shape`, or with `GRADIENT` the gradient of its
/// output.
#[inline(always)]
pub(crate) fn transform_strips<S: Simd, const B: usize, const GRADIENT: bool>(
    simd: S,
    shape: &Shape,
    grid: &Grid,
    images: &Images<'_>,
    [first, strips, tiles]: [usize; 3],
    to: &mut [f32],
    scratch: &mut TaskMemory,
) {
    let TaskMemory { zeros, rows: blocked, lines, .. } = scratch;
    let [down, across] = &shape.axes;
    let (high, wide) = (down.points(), across.points());
    let columns = grid.tiles_of_strip * across.tile;
    let (channels, line, [top, left, ..], window) = match GRADIENT {
        true => (shape.outputs, columns * B, [0; 4], down.tile),
        false => (shape.inputs, (columns + across.taps - 1) * B, shape.pads, high),
    };
    let (blocks, step) = (channels / B, step(channels / B, tiles));
    let (row_of_block, pixels) = (images.width * B, images.height * images.width);
    let zeros = &*at_least(zeros, row_of_block);
    let lines = at_least(lines, high * line);
    let blocked = at_least(blocked, window * row_of_block);
    let inside = images.width.min(line / B - left);
    for strip in 0..strips {
        let (image, i) = ((first + strip) / grid.strips_of_image, (first + strip) % grid.strips_of_image);
        for block in 0..blocks {
            let values = &images.values[(image * channels + block * B) * pixels..][..B * pixels];
            let inner = |row: usize| (i * down.tile + row).checked_sub(top).filter(|row| *row < images.height);
            if images.layout == Layout::Planes {
                for (row, blocked) in blocked.chunks_exact_mut(row_of_block).enumerate() {
                    let Some(row) = inner(row) else { continue };
                    for (lane, plane) in values.chunks_exact(pixels).enumerate() {
                        let plane = &plane[row * images.width..][..images.width];
                        for (to, from) in blocked.chunks_exact_mut(B).zip(plane) {
                            to[lane] = *from;
                        }
                    }
                }
            }
            let source: [&[f32]; MAX_POINTS] = std::array::from_fn(|k| {
                let k = k.min(window - 1);
                let whole = match (inner(k), images.layout) {
                    (None, _) => zeros,
                    (Some(row), Layout::Blocks) => &values[row * row_of_block..],
                    (Some(_), Layout::Planes) => &blocked[k * row_of_block..],
                };
                &whole[..inside * B]
            });
            for line in lines.chunks_exact_mut(line) {
                line[..left * B].fill(0.0);
                line[(left + inside) * B..].fill(0.0);
            }
            for_axis!(down, transform_rows::<S, B, GRADIENT>(simd, down, &source, lines, [line, left * B]));
            for (row, line) in lines.chunks_exact(line).enumerate() {
                let at = [row * wide * step + block * tiles + strip * grid.tiles_of_strip, step];
                for_axis!(across, transform_columns::<S, B, GRADIENT>(simd, across, line, to, at, grid.tiles_of_strip));
            }
        }
    }
}

/// Applies Bᵀ along the height, or A if `GRADIENT`. `source` has one row for each input row of a tile, or for each output row
/// if `GRADIENT`. The results start at `left` in each of `lines`, which are `line` floats apart.
#[inline(always)]
fn transform_rows<S: Simd, const B: usize, const N: usize, const M: usize, const GRADIENT: bool>(
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
        for (i, x) in x.iter_mut().enumerate().take(if GRADIENT { M } else { 2 * N + 2 }) {
            *x = load(simd, &source[i][at..]);
        }
        let y = transform::<S, N, M, GRADIENT>(simd, axis, x);
        for (i, y) in y.iter().enumerate().take(2 * N + 2) {
            store(simd, &mut lines[i * line + left + at..], *y);
        }
    }
}

#[inline(always)]
fn transform<S: Simd, const N: usize, const M: usize, const GRADIENT: bool>(
    simd: S,
    axis: &Axis,
    x: [S::f32s; MAX_POINTS],
) -> [S::f32s; MAX_POINTS] {
    if GRADIENT { axis.gradient_transform::<S, N, M>(simd, x) } else { axis.input_transform::<S, N>(simd, x) }
}

/// Applies Bᵀ along the width of `line [W, B]`, or A if `GRADIENT`. Point j of tile t is the block of `B` floats at
/// `at + j * step + t` in `to`.
#[inline(always)]
fn transform_columns<S: Simd, const B: usize, const N: usize, const M: usize, const GRADIENT: bool>(
    simd: S,
    axis: &Axis,
    line: &[f32],
    to: &mut [f32],
    [at, step]: [usize; 2],
    tiles: usize,
) {
    if N == 0 {
        to[at * B..][..tiles * B].copy_from_slice(&line[..tiles * B]);
        return;
    }
    for t in 0..tiles {
        for lane in (0..B).step_by(S::F32_LANES) {
            let mut x = [simd.splat_f32s(0.0); MAX_POINTS];
            for (j, x) in x.iter_mut().enumerate().take(if GRADIENT { M } else { 2 * N + 2 }) {
                *x = load(simd, &line[(t * M + j) * B + lane..]);
            }
            let y = transform::<S, N, M, GRADIENT>(simd, axis, x);
            for (j, y) in y.iter().enumerate().take(2 * N + 2) {
                store(simd, &mut to[(at + j * step + t) * B + lane..], *y);
            }
        }
    }
}

/// Applies Aᵀ along the width to the products in `from`, which have the layout of `to` in [`transform_columns`]. Writes
/// `line [W, B]`.
#[inline(always)]
pub(crate) fn transform_output_columns<S: Simd, const B: usize, const N: usize, const M: usize>(
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

/// Applies Aᵀ along the height to `lines`, which are `line` floats apart, and then the epilogue. Writes the rows of
/// `out`, each of `width` floats.
#[inline(always)]
pub(crate) fn transform_output_rows<S: Simd, const B: usize, const N: usize, const M: usize>(
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
                // The maximum keeps NaN in its second operand. ONNX Runtime keeps NaN too.
                let y = if after.relu { simd.max_f32s(zero, y) } else { y };
                store(simd, &mut out[i * width + at..], y);
            }
        }
    }
}

/// Multiplies `inputs [Ci / B, tiles, B]` by `weights [Ci, B]` at one point. Writes `products [tiles, B]`.
#[inline(always)]
pub(crate) fn multiply<S: Simd, const B: usize>(simd: S, inputs: &[f32], weights: &[f32], products: &mut [f32]) {
    let tiles = products.len() / B;
    for lane in (0..B).step_by(S::F32_LANES) {
        let mut tile = 0;
        // As many sums as fit in registers: x86 has 32 registers for vectors of 16 lanes, and 16 for narrower vectors.
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

/// [`multiply`] for `R` tiles from `tile` on and one vector of lanes from `lane` on. The order of the sum over the
/// channels does not depend on `R`.
#[inline(always)]
fn some_tiles<S: Simd, const B: usize, const R: usize>(
    simd: S,
    inputs: &[f32],
    weights: &[f32],
    products: &mut [f32],
    [tile, lane]: [usize; 2],
) {
    let (length, group) = (products.len(), SUM_LENGTH / B);
    for (i, inputs) in inputs.chunks(group * length).enumerate() {
        let mut sums = [simd.splat_f32s(0.0); R];
        let weights = &weights[i * group * B * B..];
        for (inputs, weights) in inputs.chunks_exact(length).zip(weights.chunks_exact(B * B)) {
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
            let to = &mut products[(tile + r) * B + lane..];
            let sum = if i == 0 { *sum } else { simd.add_f32s(load(simd, to), *sum) };
            store(simd, to, sum);
        }
    }
}
