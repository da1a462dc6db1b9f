//! Sizes of convolutions and of images, and the division of images into tasks.

use std::sync::{Mutex, PoisonError};

use crate::axis::Axis;

/// Minimum and maximum of the intended number of tiles of a task. A task has at least one strip.
const TASK_TILES: [usize; 2] = [32, 160];
/// Intended maximum number of transformed inputs and products of a task, which fit in the L2 cache of a core.
const CACHE_FLOATS: usize = 200_000;
/// Number of tasks from which threads that idle during the last tasks do not matter. Smaller numbers are rounded up to
/// even.
const MANY_TASKS: usize = 8;

/// Sizes of a convolution of stride 1 and one group.
#[derive(Debug, Clone)]
pub struct Shape {
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    /// Number of channels in a block.
    pub(crate) block: usize,
    /// The axes of the height and of the width.
    pub(crate) axes: [Axis; 2],
    /// Zero padding, pixels: top, left, bottom, right.
    pub(crate) pads: [usize; 4],
}

/// Order of the values of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `[N, C / block, H, W, block]`.
    Blocks,
    /// `[N, C, H, W]`.
    Planes,
}

/// Images: the input of a convolution, or the gradient of its output.
#[derive(Debug, Clone, Copy)]
pub struct Images<'a> {
    /// Values in the order of `layout`.
    pub values: &'a [f32],
    /// Order of `values` and of the results computed from them.
    pub layout: Layout,
    /// Number of images.
    pub batch: usize,
    /// Height, pixels.
    pub height: usize,
    /// Width, pixels.
    pub width: usize,
}

/// A closure that runs the task with the given index.
pub type Task<'a> = dyn Fn(usize) + Send + Sync + 'a;

/// Division of a batch into tasks. A strip is a row of tiles of one image; a task is a range of strips.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) strips_of_image: usize,
    pub(crate) tiles_of_strip: usize,
    pub(crate) strips: usize,
    pub(crate) strips_of_task: usize,
}

impl Grid {
    pub(crate) fn tasks(&self) -> usize {
        self.strips.div_ceil(self.strips_of_task)
    }

    /// Number of strips of `task`.
    pub(crate) fn strips_of(&self, task: usize) -> usize {
        (self.strips - task * self.strips_of_task).min(self.strips_of_task)
    }
}

/// Working memory, kept between runs.
#[derive(Debug, Default)]
pub struct Pool {
    tasks: Mutex<Vec<TaskMemory>>,
    runs: Mutex<Vec<RunMemory>>,
}

/// Working memory of a task.
#[derive(Debug, Default)]
pub(crate) struct TaskMemory {
    /// A row of padding, `[W, block]`.
    pub(crate) zeros: Vec<f32>,
    /// Input or output rows of a strip in blocks, `[rows, W, block]`, if the images are in planes.
    pub(crate) rows: Vec<f32>,
    /// Transformed rows of a block of channels, `[points of the height, W, block]`.
    pub(crate) lines: Vec<f32>,
    /// `[points, Ci / block, tiles, block]`.
    pub(crate) transformed: Vec<f32>,
    /// `[points, tiles, block]`.
    pub(crate) products: Vec<f32>,
}

/// Working memory of a run.
#[derive(Debug, Default)]
pub(crate) struct RunMemory {
    /// Transformed filters or their gradients.
    pub(crate) filters: Vec<f32>,
    /// Transformed images and gradients.
    pub(crate) tiles: Vec<f32>,
}

impl Pool {
    pub(crate) fn scratch<T>(&self, run: impl FnOnce(&mut TaskMemory) -> T) -> T {
        borrowed(&self.tasks, run)
    }

    pub(crate) fn memory<T>(&self, run: impl FnOnce(&mut RunMemory) -> T) -> T {
        borrowed(&self.runs, run)
    }
}

fn borrowed<M: Default, T>(pool: &Mutex<Vec<M>>, run: impl FnOnce(&mut M) -> T) -> T {
    let mut memory = pool.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
    let out = run(&mut memory);
    pool.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
    out
}

/// The first `length` floats of `memory`, which grows if necessary.
pub(crate) fn at_least(memory: &mut Vec<f32>, length: usize) -> &mut [f32] {
    if memory.len() < length {
        memory.resize(length, 0.0);
    }
    &mut memory[..length]
}

impl Shape {
    /// Sizes of a convolution with filters of shape `dims = [Co, Ci, kH, kW]`. `pads` are the zero padding at top,
    /// left, bottom and right, pixels. `block` is the number of channels in a block (8 or 16). Images in planes are
    /// processed in groups of `block` channels.
    ///
    /// `None` if the convolution is not supported. Co and Ci must be multiples of `block`, and pads smaller than the
    /// filter. kH and kW must be 1, 3, 5 or 7, and 7 is supported only with 1. The number of products must be less than
    /// half that of the direct convolution.
    #[must_use]
    pub fn new(dims: [usize; 4], pads: [usize; 4], block: usize) -> Option<Self> {
        let [outputs, inputs, height, width] = dims;
        let axes = [Axis::new(height)?, Axis::new(width)?];
        let whole = matches!(block, 8 | 16) && outputs.is_multiple_of(block) && inputs.is_multiple_of(block);
        let padded = pads.iter().zip([height, width, height, width]).all(|(pad, taps)| *pad < taps);
        // The errors of the axes multiply: 7 taps on one axis and several on the other give an error of 1e-4.
        let exact = height.min(width) == 1 || height.max(width) < 7;
        // With half the products, the transforms take as much time as is saved.
        let [products, all] = [Axis::points, |axis: &Axis| axis.tile * axis.taps].map(|n| n(&axes[0]) * n(&axes[1]));
        let counted = dims.iter().try_fold(1_usize, |n, d| n.checked_mul(*d)).is_some();
        (whole && padded && exact && counted && all > 2 * products).then_some(Self {
            outputs,
            inputs,
            block,
            axes,
            pads,
        })
    }

    /// The convolution that computes the input gradient of this convolution. Its filters are flipped; its input
    /// channels are the output channels of this convolution, and vice versa.
    pub(crate) fn transposed(&self) -> Self {
        let [top, left, bottom, right] = self.pads;
        let [high, wide] = [self.axes[0].taps - 1, self.axes[1].taps - 1];
        let pads = [high - top, wide - left, high - bottom, wide - right];
        Self { outputs: self.inputs, inputs: self.outputs, pads, ..self.clone() }
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

    /// Height and width of the output; `None` if the image is empty, or smaller than the filter after padding.
    #[must_use]
    pub fn output_size(&self, height: usize, width: usize) -> Option<[usize; 2]> {
        if height == 0 || width == 0 {
            return None;
        }
        let [top, left, bottom, right] = self.pads;
        let size = |length: usize, axis: &Axis| (length + 1).checked_sub(axis.taps).filter(|n| *n > 0);
        Some([size(height + top + bottom, &self.axes[0])?, size(width + left + right, &self.axes[1])?])
    }

    /// Number of products of a tile.
    pub(crate) fn points(&self) -> usize {
        self.axes[0].points() * self.axes[1].points()
    }

    /// Length of a filter: kH · kW.
    pub(crate) fn taps(&self) -> usize {
        self.axes[0].taps * self.axes[1].taps
    }

    /// Divides `images` into tasks.
    ///
    /// # Panics
    /// If an image is empty or, after padding, smaller than the filter, or the length of `images` does not match its shape.
    pub(crate) fn grid(&self, images: &Images<'_>) -> Grid {
        let [height, width] = self.output_size(images.height, images.width).unwrap_or_default();
        assert!(height > 0, "an image that is empty or smaller than the filter");
        let pixels = images.batch * images.height * images.width;
        assert_eq!(images.values.len(), pixels * self.inputs, "the length of the images");
        let (strips_of_image, tiles_of_strip) = (height.div_ceil(self.axes[0].tile), width.div_ceil(self.axes[1].tile));
        let tiles = (CACHE_FLOATS / (self.points() * (self.inputs + self.block))).clamp(TASK_TILES[0], TASK_TILES[1]);
        let strips = images.batch * strips_of_image;
        let mut tasks = strips.div_ceil((tiles / tiles_of_strip).max(1)).max(1);
        if tasks < MANY_TASKS {
            tasks = tasks.next_multiple_of(2);
        }
        let strips_of_task = strips.div_ceil(tasks).max(1);
        Grid { height, width, strips_of_image, tiles_of_strip, strips, strips_of_task }
    }
}
