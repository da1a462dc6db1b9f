//! Sizes of convolutions and of images, and the division of images into tasks.

use std::sync::{Mutex, PoisonError};

use crate::axis::Axis;

/// Minimum and maximum number of tiles of a task.
const TASK_TILES: [usize; 2] = [32, 160];
/// Number of transformed inputs and products of a task: they fit in the second-level cache of a core.
const CACHE_FLOATS: usize = 200_000;
/// Number of tasks above which threads that idle during the last ones do not matter.
const MANY_TASKS: usize = 8;

/// Sizes of a convolution of stride 1 and one group.
#[derive(Debug, Clone)]
pub struct Shape {
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    /// Number of channels in a block.
    pub(crate) block: usize,
    /// Of the height and of the width.
    pub(crate) axes: [Axis; 2],
    /// Top, left, bottom, right.
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

/// Images, the input of a convolution or the gradient of its output.
#[derive(Debug, Clone, Copy)]
pub struct Images<'a> {
    /// In `layout`.
    pub values: &'a [f32],
    /// Order of `values` and of what is computed from them.
    pub layout: Layout,
    /// Number of images.
    pub batch: usize,
    /// Height, pixels.
    pub height: usize,
    /// Width, pixels.
    pub width: usize,
}

/// Work on a task, by its index.
pub type Task<'a> = dyn Fn(usize) + Send + Sync + 'a;

/// Division of a batch: a strip is a row of tiles of one image, a task is a number of strips.
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

    /// Number of strips of a task.
    pub(crate) fn strips_of(&self, task: usize) -> usize {
        (self.strips - task * self.strips_of_task).min(self.strips_of_task)
    }
}

/// Working memory, kept between runs.
#[derive(Debug, Default)]
pub struct Pool {
    tasks: Mutex<Vec<Scratch>>,
    runs: Mutex<Vec<Memory>>,
}

/// Of a task.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// A row of padding, `[W, block]`.
    pub(crate) zeros: Vec<f32>,
    /// Rows of a strip in blocks, `[rows, W, block]`, if the images are in planes.
    pub(crate) rows: Vec<f32>,
    /// Transformed rows of a block of channels, `[points of the height, W, block]`.
    pub(crate) lines: Vec<f32>,
    /// `[points, Ci / block, tiles, block]`.
    pub(crate) transformed: Vec<f32>,
    /// `[points, tiles, block]`.
    pub(crate) products: Vec<f32>,
}

/// Of a run.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Transformed filters or their gradients.
    pub(crate) filters: Vec<f32>,
    /// Transformed images and gradients.
    pub(crate) tiles: Vec<f32>,
}

impl Pool {
    pub(crate) fn scratch<T>(&self, run: impl FnOnce(&mut Scratch) -> T) -> T {
        borrowed(&self.tasks, run)
    }

    pub(crate) fn memory<T>(&self, run: impl FnOnce(&mut Memory) -> T) -> T {
        borrowed(&self.runs, run)
    }
}

fn borrowed<M: Default, T>(pool: &Mutex<Vec<M>>, run: impl FnOnce(&mut M) -> T) -> T {
    let mut memory = pool.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
    let out = run(&mut memory);
    pool.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
    out
}

/// The first `length` floats of `memory`, which grows if need be.
pub(crate) fn at_least(memory: &mut Vec<f32>, length: usize) -> &mut [f32] {
    if memory.len() < length {
        memory.resize(length, 0.0);
    }
    &mut memory[..length]
}

impl Shape {
    /// A convolution by filters of `dims = [Co, Ci, kH, kW]` on images in blocks of `block` channels (8 or 16), or in planes by as many at a time. `pads`
    /// are top, left, bottom and right, pixels.
    ///
    /// `None` if it is not supported: Co and Ci must be multiples of the block, pads smaller than the filter, kH and kW of 1, 3, 5 or 7, 7 only
    /// with 1, and the number of products less than half of the direct convolution's.
    #[must_use]
    pub fn new(dims: [usize; 4], pads: [usize; 4], block: usize) -> Option<Self> {
        let [outputs, inputs, height, width] = dims;
        let axes = [Axis::new(height)?, Axis::new(width)?];
        let whole = matches!(block, 8 | 16) && outputs.is_multiple_of(block) && inputs.is_multiple_of(block);
        let padded = pads.iter().zip([height, width, height, width]).all(|(pad, taps)| *pad < taps);
        // Errors of the axes multiply: seven taps on one with several on the other would give 1e-4.
        let exact = height.min(width) == 1 || height.max(width) < 7;
        // With half the products the transforms take the time saved.
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

    /// The convolution that computes the gradient of this one's input: its filters are flipped, inputs and outputs change places.
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

    /// Height and width of the output; `None` if the padded image is smaller than the filter.
    #[must_use]
    pub fn output_size(&self, height: usize, width: usize) -> Option<[usize; 2]> {
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

    /// # Panics
    /// If the padded image is smaller than the filter, or `images` does not have the length of its shape.
    pub(crate) fn grid(&self, images: &Images<'_>) -> Grid {
        let [height, width] = self.output_size(images.height, images.width).unwrap_or_default();
        assert!(height > 0, "an image smaller than the filter");
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
