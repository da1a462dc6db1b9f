//! Convolutions, and their division into tasks.

use std::sync::{Mutex, PoisonError};

use pulp::Simd;

use crate::filters::transformed_filters;
use crate::kernels::{
    Epilogue, MIN_TILES, Work, for_axis, multiply, step, transform_output_columns, transform_output_rows,
    transform_strips, vectorised,
};
use crate::shape::{Grid, Images, Layout, Pool, Shape, Task, TaskMemory, at_least};

/// A convolution with fixed filters, an optional bias and ReLU.
#[derive(Debug)]
pub struct Convolution {
    shape: Shape,
    weights: Vec<f32>,
    bias: Vec<f32>,
    relu: bool,
}

/// Output rows of a task: for each strip, the rows of each block of channels, or of each channel if the images are in
/// planes.
type Rows<'a> = Vec<&'a mut [f32]>;

impl Convolution {
    /// Transforms `weights`, row-major `dims = [Co, Ci, kH, kW]`. `bias` is `[Co]`. `relu` adds a ReLU. `pads` and
    /// `block` are as in [`Shape::new`].
    ///
    /// `None` if the shape is not supported, or the length of `weights` or `bias` does not match it.
    #[must_use]
    pub fn new(
        weights: &[f32],
        dims: [usize; 4],
        bias: Option<&[f32]>,
        pads: [usize; 4],
        relu: bool,
        block: usize,
    ) -> Option<Self> {
        let shape = Shape::new(dims, pads, block)?;
        if dims.iter().product::<usize>() != weights.len() || bias.is_some_and(|b| b.len() != shape.outputs) {
            return None;
        }
        let bias = bias.map_or_else(|| vec![0.0; shape.outputs], <[f32]>::to_vec);
        let mut transformed = vec![0.0; shape.points() * shape.outputs * shape.inputs];
        let in_turn = |tasks, task: &Task<'_>| {
            (0..tasks).for_each(task);
            Ok::<(), std::convert::Infallible>(())
        };
        let Ok(()) = transformed_filters(&shape, weights, false, &mut transformed, &in_turn);
        Some(Self { shape, weights: transformed, bias, relu })
    }

    /// Sizes of the convolution.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Computes `out [N, Co, H', W']` in the layout of `images`. `sum`, in the layout of `out`, is added before the
    /// ReLU and requires [`Layout::Blocks`]. `parallel` gets the number of tasks and a closure. It must call the
    /// closure once with each index, on any thread and in any order. The result does not depend on threads or order.
    ///
    /// # Errors
    /// Those of `parallel`.
    ///
    /// # Panics
    /// If the padded image is smaller than the filter, the length of a slice does not match its shape, or `sum` is
    /// given with [`Layout::Planes`].
    pub fn run<E>(
        &self,
        images: &Images<'_>,
        sum: Option<&[f32]>,
        out: &mut [f32],
        pool: &Pool,
        parallel: &impl Fn(usize, &Task<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let Self { shape, weights, bias, relu } = self;
        let relu = *relu;
        Filtering { shape, weights, bias: Some(bias), relu, sum, images: *images }.run(out, pool, parallel)
    }
}

/// Convolutions with filters that change between runs.
impl Shape {
    /// Convolves `images [N, Ci, H, W]` with `weights [Co, Ci, kH, kW]` and adds `bias [Co]`. Writes
    /// `out [N, Co, H', W']` in the layout of `images`. `parallel` is as in [`Convolution::run`], but is called twice.
    ///
    /// # Errors
    /// Those of `parallel`.
    ///
    /// # Panics
    /// If the padded image is smaller than the filter, or the length of a slice does not match its shape.
    pub fn forward<E>(
        &self,
        images: &Images<'_>,
        weights: &[f32],
        bias: Option<&[f32]>,
        out: &mut [f32],
        pool: &Pool,
        parallel: &impl Fn(usize, &Task<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.filtered(images, weights, false, bias, out, pool, parallel)
    }

    /// Computes the gradient of the input, `out [N, Ci, H, W]`, from the gradient of the output,
    /// `gradients [N, Co, H', W']`. The other arguments are as in [`Shape::forward`].
    ///
    /// # Errors
    /// Those of `parallel`.
    ///
    /// # Panics
    /// If the length of a slice does not match its shape.
    pub fn input_gradient<E>(
        &self,
        gradients: &Images<'_>,
        weights: &[f32],
        out: &mut [f32],
        pool: &Pool,
        parallel: &impl Fn(usize, &Task<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.transposed().filtered(gradients, weights, true, None, out, pool, parallel)
    }

    #[allow(clippy::too_many_arguments, reason = "slices of a convolution")]
    fn filtered<E>(
        &self,
        images: &Images<'_>,
        weights: &[f32],
        flipped: bool,
        bias: Option<&[f32]>,
        out: &mut [f32],
        pool: &Pool,
        parallel: &impl Fn(usize, &Task<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        pool.memory(|memory| {
            let transformed = at_least(&mut memory.filters, self.points() * self.outputs * self.inputs);
            transformed_filters(self, weights, flipped, transformed, parallel)?;
            let (weights, images) = (&*transformed, *images);
            Filtering { shape: self, weights, bias, relu: false, sum: None, images }.run(out, pool, parallel)
        })
    }
}

/// A run of a convolution.
#[derive(Clone, Copy)]
struct Filtering<'a> {
    shape: &'a Shape,
    /// `[Co / block, points, Ci, block]`.
    weights: &'a [f32],
    bias: Option<&'a [f32]>,
    relu: bool,
    /// Added to the output before the ReLU; in blocks, like the output.
    sum: Option<&'a [f32]>,
    images: Images<'a>,
}

impl Filtering<'_> {
    fn run<E>(
        self,
        out: &mut [f32],
        pool: &Pool,
        parallel: &impl Fn(usize, &Task<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (Self { shape, bias, sum, images, .. }, grid) = (self, self.shape.grid(&self.images));
        let outputs = images.batch * grid.height * grid.width * shape.outputs;
        assert_eq!(out.len(), outputs, "the length of the output");
        assert_eq!(bias.map_or(shape.outputs, <[f32]>::len), shape.outputs, "the length of the bias");
        assert_eq!(sum.map_or(outputs, <[f32]>::len), outputs, "the length of the addend");
        assert!(sum.is_none() || images.layout == Layout::Blocks, "an addend of images in planes");
        let rows = self.rows(&grid, out);
        parallel(grid.tasks(), &|index| {
            // Each task locks only its own rows, so rows that a panicked task left do not matter.
            let mut rows = rows[index].lock().unwrap_or_else(PoisonError::into_inner);
            pool.scratch(|scratch| Strips { filtering: self, grid, index, rows: &mut rows, scratch }.compute());
        })
    }

    /// The rows of `out` that each task writes.
    fn rows<'b>(&self, grid: &Grid, out: &'b mut [f32]) -> Vec<Mutex<Rows<'b>>> {
        let Self { shape, images, .. } = self;
        let (planes, line) = match images.layout {
            Layout::Blocks => (shape.outputs / shape.block, grid.width * shape.block),
            Layout::Planes => (shape.outputs, grid.width),
        };
        let empty = |task| (0..grid.strips_of(task) * planes).map(|_| Default::default()).collect();
        let mut rows: Vec<Rows<'b>> = (0..grid.tasks()).map(empty).collect();
        for (i, out) in out.chunks_exact_mut(grid.height * line).enumerate() {
            let (image, plane) = (i / planes, i % planes);
            for (i, part) in out.chunks_mut(shape.axes[0].tile * line).enumerate() {
                let strip = image * grid.strips_of_image + i;
                rows[strip / grid.strips_of_task][strip % grid.strips_of_task * planes + plane] = part;
            }
        }
        rows.into_iter().map(Mutex::new).collect()
    }
}

/// A task of a run.
struct Strips<'a, 'b> {
    filtering: Filtering<'a>,
    grid: Grid,
    index: usize,
    rows: &'a mut Rows<'b>,
    scratch: &'a mut TaskMemory,
}

impl Strips<'_, '_> {
    /// Neither inlined nor generic, so that the kernels are compiled with the profile of this crate. The same applies
    /// to `compute` of the other tasks.
    #[inline(never)]
    fn compute(self) {
        vectorised(self.filtering.shape.block, self);
    }
}

impl Work for Strips<'_, '_> {
    #[inline(always)]
    fn run<S: Simd, const B: usize>(self, simd: S) {
        let Self { filtering: Filtering { shape, weights, bias, relu, sum, images }, grid, index, rows, scratch } =
            self;
        let [down, across] = &shape.axes;
        let (high, wide) = (down.points(), across.points());
        let (first, strips) = (index * grid.strips_of_task, grid.strips_of(index));
        let tiles = (strips * grid.tiles_of_strip).next_multiple_of(MIN_TILES);
        let (inputs, outputs) = (shape.inputs / B, shape.outputs / B);
        let points = high * wide;
        let mut transformed = std::mem::take(&mut scratch.transformed);
        let step = step(inputs, tiles);
        at_least(&mut transformed, points * step * B);
        transform_strips::<S, B, false>(simd, shape, &grid, &images, [first, strips, tiles], &mut transformed, scratch);

        let TaskMemory { rows: blocked, lines, products, .. } = scratch;
        at_least(products, points * tiles * B);
        let line = grid.tiles_of_strip * across.tile * B;
        at_least(lines, high * line);
        let plane = grid.height * grid.width * B;
        for (block, weights) in weights.chunks_exact(points * inputs * B * B).enumerate() {
            let weights = weights.chunks_exact(inputs * B * B);
            let transformed = transformed.chunks_exact(step * B);
            for ((weights, images), products) in weights.zip(transformed).zip(products.chunks_exact_mut(tiles * B)) {
                multiply::<S, B>(simd, &images[..inputs * tiles * B], weights, products);
            }
            let bias = bias.map_or(&[0.0; B][..], |bias| &bias[block * B..][..B]);
            for strip in 0..strips {
                let (image, i) = ((first + strip) / grid.strips_of_image, (first + strip) % grid.strips_of_image);
                for (row, line) in lines.chunks_exact_mut(line).take(high).enumerate() {
                    let at = row * wide * tiles + strip * grid.tiles_of_strip;
                    let tiles = [at, tiles, grid.tiles_of_strip];
                    for_axis!(across, transform_output_columns::<S, B>(simd, across, products, tiles, line));
                }
                let height = (grid.height - i * down.tile).min(down.tile);
                let begin = (image * outputs + block) * plane + i * down.tile * grid.width * B;
                let sum = sum.map(|sum| &sum[begin..][..height * grid.width * B]);
                let after = Epilogue { bias, sum, relu };
                let width = grid.width * B;
                let rows = &mut rows[..];
                match images.layout {
                    Layout::Blocks => {
                        let out = &mut *rows[strip * outputs + block];
                        for_axis!(down, transform_output_rows::<S, B>(simd, down, lines, line, &after, out, width));
                    }
                    Layout::Planes => {
                        let out = at_least(blocked, height * width);
                        for_axis!(down, transform_output_rows::<S, B>(simd, down, lines, line, &after, out, width));
                        for (lane, plane) in rows[(strip * outputs + block) * B..][..B].iter_mut().enumerate() {
                            for (to, from) in plane.iter_mut().zip(out.chunks_exact(B)) {
                                *to = from[lane];
                            }
                        }
                    }
                }
            }
        }
        scratch.transformed = transformed;
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

    fn in_turn(tasks: usize, task: &Task<'_>) -> Result<(), ()> {
        (0..tasks).for_each(task);
        Ok(())
    }

    /// Runs the convolution on images `[N, C, H, W]`, reordered into blocks.
    fn run(
        convolution: &Convolution,
        images: &Images<'_>,
        sum: Option<&[f32]>,
        pool: &Pool,
        backwards: bool,
    ) -> Vec<f32> {
        let shape = convolution.shape();
        let [height, width] = shape.output_size(images.height, images.width).unwrap();
        let (block, pixels) = (shape.block, images.height * images.width);
        let values = reordered(images.values, shape.inputs, pixels, block, false);
        let sum = sum.map(|sum| reordered(sum, shape.outputs, height * width, block, false));
        let images = &Images { values: &values, layout: Layout::Blocks, ..*images };
        let mut out = vec![f32::NAN; images.batch * shape.outputs * height * width];
        let order = |tasks: usize, task: &Task<'_>| {
            for i in 0..tasks {
                task(if backwards { tasks - 1 - i } else { i });
            }
            Ok::<(), ()>(())
        };
        convolution.run(images, sum.as_deref(), &mut out, pool, &order).unwrap();
        reordered(&out, shape.outputs, height * width, block, true)
    }

    /// Filter, pads, height, width and number of images.
    type Case = ([usize; 2], [usize; 4], usize, usize, usize);

    const CASES: [Case; 11] = [
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
    ];

    /// Small images get more input channels than `SUM_LENGTH`, so that several partial sums are added.
    fn dims(taps: [usize; 2], pixels: usize) -> [usize; 4] {
        let [outputs, inputs] = if pixels < 100 { [80, 96] } else { [48, 32] };
        [outputs, inputs, taps[0], taps[1]]
    }

    #[test]
    fn every_filter_size_and_padding_gives_the_convolution() {
        let pool = Pool::default();
        for (taps, pads, height, width, batch) in CASES {
            let dims = dims(taps, height * width);
            let weights = values(dims.iter().product(), 1);
            let input = values(batch * dims[1] * height * width, 2);
            let images = Images { values: &input, layout: Layout::Planes, batch, height, width };
            let bias = values(dims[0], 3);
            let expected = direct(&images, &weights, dims, pads);
            let peak = expected.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
            let added = values(expected.len(), 4);
            for block in [8, 16] {
                let plain = Convolution::new(&weights, dims, None, pads, false, block).unwrap();
                let found = run(&plain, &images, None, &pool, false);
                let worst = |whole: &dyn Fn(usize, f64) -> f64, found: &[f32]| {
                    let of = |(i, (e, f)): (usize, (&f64, &f32))| (whole(i, *e) - f64::from(*f)).abs();
                    expected.iter().zip(found).enumerate().map(of).fold(0.0_f64, f64::max)
                };
                let off = worst(&|_, e| e, &found);
                assert!(off < 2e-5 * peak, "{taps:?} {pads:?} {height} x {width} by {block}: {off} of {peak}");
                let whole = Convolution::new(&weights, dims, Some(&bias), pads, true, block).unwrap();
                let with_sum = run(&whole, &images, Some(&added), &pool, true);
                let pixels = expected.len() / batch / dims[0];
                let after =
                    |i: usize, e: f64| (e + f64::from(bias[i / pixels % dims[0]]) + f64::from(added[i])).max(0.0);
                let off = worst(&after, &with_sum);
                assert!(
                    off < 2e-5 * peak,
                    "{taps:?} {pads:?} {height} x {width} by {block}, all of it: {off} of {peak}"
                );

                // Images in planes, and filters transformed in the same run.
                let mut planes = vec![f32::NAN; expected.len()];
                plain.shape().forward(&images, &weights, None, &mut planes, &pool, &in_turn).unwrap();
                assert!(planes == found, "{taps:?} {pads:?} {height} x {width} by {block}, planes");

                // The output of an image does not depend on the rest of the batch.
                let alone = Images { values: &input[..dims[1] * height * width], batch: 1, ..images };
                let alone = run(&plain, &alone, None, &Pool::default(), true);
                assert_eq!(alone, found[..alone.len()]);
            }
        }
    }

    /// Gradients of the input and of the filters, in f64, for the output gradient `gradients`.
    fn direct_gradients(
        images: &Images<'_>,
        weights: &[f32],
        gradients: &[f32],
        [outputs, inputs, high, wide]: [usize; 4],
        [top, left, bottom, right]: [usize; 4],
    ) -> [Vec<f64>; 2] {
        let (rows, columns) = (images.height + top + bottom + 1 - high, images.width + left + right + 1 - wide);
        let (mut of_input, mut of_filters) = (vec![0.0; images.values.len()], vec![0.0; weights.len()]);
        for (i, gradient) in gradients.iter().enumerate() {
            let (image, output) = (i / (outputs * rows * columns), i / (rows * columns) % outputs);
            let (y, x) = (i / columns % rows, i % columns);
            for input in 0..inputs {
                for tap in 0..high * wide {
                    let (y, x) = ((y + tap / wide).wrapping_sub(top), (x + tap % wide).wrapping_sub(left));
                    if y < images.height && x < images.width {
                        let pixel = ((image * inputs + input) * images.height + y) * images.width + x;
                        let weight = (output * inputs + input) * high * wide + tap;
                        of_input[pixel] += f64::from(*gradient) * f64::from(weights[weight]);
                        of_filters[weight] += f64::from(*gradient) * f64::from(images.values[pixel]);
                    }
                }
            }
        }
        [of_input, of_filters]
    }

    #[test]
    fn gradients_are_those_of_the_convolution() {
        let pool = Pool::default();
        for (taps, pads, height, width, batch) in CASES {
            let dims = dims(taps, height * width);
            let weights = values(dims.iter().product(), 1);
            let input = values(batch * dims[1] * height * width, 2);
            for block in [8, 16] {
                let shape = Shape::new(dims, pads, block).unwrap();
                let [rows, columns] = shape.output_size(height, width).unwrap();
                let gradients = values(batch * dims[0] * rows * columns, 3);
                let images = Images { values: &input, layout: Layout::Planes, batch, height, width };
                let of_output = Images { values: &gradients, height: rows, width: columns, ..images };
                let expected = direct_gradients(&images, &weights, &gradients, dims, pads);
                let run = |backwards: bool, pool: &Pool| {
                    let order = |tasks: usize, task: &Task<'_>| {
                        (0..tasks).for_each(|i| task(if backwards { tasks - 1 - i } else { i }));
                        Ok::<(), ()>(())
                    };
                    let (mut of_input, mut of_filters) = (vec![f32::NAN; input.len()], vec![f32::NAN; weights.len()]);
                    shape.input_gradient(&of_output, &weights, &mut of_input, pool, &order).unwrap();
                    shape.filter_gradient(&images, &gradients, &mut of_filters, pool, &order).unwrap();
                    [of_input, of_filters]
                };
                let found = run(false, &pool);
                for ((expected, found), what) in expected.iter().zip(&found).zip(["input", "filters"]) {
                    let peak = expected.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
                    let off = expected.iter().zip(found).map(|(e, f)| (e - f64::from(*f)).abs()).fold(0.0, f64::max);
                    assert!(
                        off < 2e-5 * peak,
                        "{taps:?} {pads:?} {height} x {width} by {block}, {what}: {off} of {peak}"
                    );
                }
                assert!(run(true, &Pool::default()) == found, "{taps:?} {pads:?} {height} x {width} by {block}");
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
        assert_eq!(of([32, 32, 3, 3], [0; 4]).unwrap().shape().output_size(2, 9), None);
        let padded = of([32, 32, 3, 3], [2; 4]).unwrap();
        assert_eq!((padded.shape().output_size(4, 0), padded.shape().output_size(0, 4)), (None, None), "empty images");
    }

    #[test]
    fn nan_stays_nan() {
        let (dims, mut input) = ([32, 32, 3, 3], vec![1.0; 32 * 64]);
        input[0] = f32::NAN;
        let convolution = Convolution::new(&vec![1.0; 32 * 32 * 9], dims, None, [1; 4], true, 16).unwrap();
        let out = run(
            &convolution,
            &Images { values: &input, layout: Layout::Planes, batch: 1, height: 8, width: 8 },
            None,
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
            let images = Images { values: &values, layout: Layout::Blocks, batch: 1, height, width: 4 };
            let run = || convolution.run(&images, sum.as_deref(), &mut out, &Pool::default(), &in_turn);
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
