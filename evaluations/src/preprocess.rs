//! Converts images to the input of a feature network on the host, with the resize of each tool.
//!
//! Shapes: images u8 `[H, W, 3]`, 0..=255; results f32 `[h, w, 3]`, 0..=255 ([`Scaling::TensorFlow`]) or 0..=256
//! ([`Scaling::Unit`]); u8 for CLIP.

use ndarray::{Array3, ArrayView3, ArrayViewMut3, s};
use serde::{Deserialize, Serialize};

/// Resampling of an image to the input size of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resize {
    /// TensorFlow 1 bilinear: source position `i·in/out`, no half-pixel offset, no antialiasing, all in f32.
    #[serde(rename = "tensorflow")]
    TensorFlow,
    /// PyTorch bilinear: half-pixel centres, no antialiasing, f32.
    Torch,
    /// Pillow bicubic (a = -0.5, antialiased) of f32 channels, clipped to 0..255, not rounded.
    PilBicubic,
}

impl Resize {
    /// Description for results.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::TensorFlow => "bilinear, asymmetric, no antialiasing (TensorFlow 1)",
            Self::Torch => "bilinear, half-pixel, no antialiasing (PyTorch)",
            Self::PilBicubic => "bicubic, antialiased, float, clipped (Pillow)",
        }
    }
}

/// Normalisation of pixel values 0..255 before Inception. The exported network computes `(v - 128)/128`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scaling {
    /// `(v - 128)/128`.
    #[serde(rename = "tensorflow")]
    TensorFlow,
    /// `2·(v/255) - 1`. The exported network gets `256·(v/255)`, for which its own normalisation gives the same f32
    /// number.
    Unit,
}

impl Scaling {
    /// Description for results.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::TensorFlow => "(v - 128)/128",
            Self::Unit => "2 v/255 - 1",
        }
    }
}

/// Resampling of a set of images to the input size of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resampling {
    /// None: the images have the input size of the network.
    None,
    /// A resize to the input size.
    Resize(Resize),
    /// CLIP preprocessing: Pillow bicubic resize of u8, shorter side to the input size, then a centre crop.
    ClipCrop,
    /// Any other method, with its description.
    Other(String),
}

/// Preprocessing of images before a network, in comparable form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preprocessing {
    /// Resampling to the input size of the network.
    pub resampling: Resampling,
    /// Normalisation before Inception; `None` for networks that normalise their input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Scaling>,
    /// Whether the graph resamples.
    #[serde(default)]
    pub in_graph: bool,
}

impl Preprocessing {
    /// Whether both give a network the same input, computed on the host or in the graph. [`Resampling::None`] agrees
    /// with every resampling.
    #[must_use]
    pub fn agrees_with(&self, other: &Self) -> bool {
        let identity = [self, other].iter().any(|p| p.resampling == Resampling::None);
        (identity || self.resampling == other.resampling) && self.scaling == other.scaling
    }

    /// Description for results.
    #[must_use]
    pub fn describe(&self) -> String {
        let resampling = match &self.resampling {
            Resampling::None => "none (the images have the network's size)",
            Resampling::Resize(resize) => resize.describe(),
            Resampling::ClipCrop => "u8 bicubic (Pillow), centre crop",
            Resampling::Other(name) => name,
        };
        let scaling = self.scaling.map_or(String::new(), |s| format!("; {}", s.describe()));
        format!("{resampling}{scaling}{}", if self.in_graph { ", in the graph" } else { "" })
    }
}

/// Weights of the source pixels for each output pixel along one axis.
#[derive(Debug, Clone)]
struct Taps {
    /// First source pixel and number of weights of each output pixel.
    bounds: Vec<(usize, usize)>,
    /// Weights, `width` slots for each output pixel.
    weights: Vec<f64>,
    width: usize,
}

impl Taps {
    /// Pillow weights: the kernel is widened when shrinking, cut at the edges and normalised.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "image sizes"
    )]
    fn pillow(filter: Filter, input: usize, output: usize) -> Self {
        let scale = input as f64 / output as f64;
        let widened = scale.max(1.0);
        let support = filter.support() * widened;
        let width = support.ceil() as usize * 2 + 1;
        let mut weights = vec![0.0; width * output];
        let bounds = (0..output)
            .map(|o| {
                let centre = (o as f64 + 0.5) * scale;
                let first = (centre - support + 0.5).max(0.0) as usize;
                let count = ((centre + support + 0.5) as usize).min(input) - first;
                let slot = &mut weights[o * width..o * width + count];
                for (x, w) in slot.iter_mut().enumerate() {
                    *w = filter.weight(((x + first) as f64 - centre + 0.5) * (1.0 / widened));
                }
                let total: f64 = slot.iter().sum();
                if total != 0.0 {
                    slot.iter_mut().for_each(|w| *w /= total);
                }
                (first, count)
            })
            .collect();
        Self { bounds, weights, width }
    }

    fn of(&self, output: usize) -> (usize, &[f64]) {
        let (first, count) = self.bounds[output];
        (first, &self.weights[output * self.width..output * self.width + count])
    }
}

/// Resampling filter of Pillow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// `Image.BICUBIC`: cubic convolution with a = -0.5, 4 pixels wide.
    Bicubic,
    /// `Image.LANCZOS`: windowed sinc with 3 lobes, 6 pixels wide.
    Lanczos,
}

impl Filter {
    /// Half the filter width when enlarging, in source pixels.
    fn support(self) -> f64 {
        match self {
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Bicubic => bicubic(x),
            Self::Lanczos => lanczos(x),
        }
    }
}

fn lanczos(x: f64) -> f64 {
    const LOBES: f64 = 3.0;
    let sinc = |x: f64| {
        let x = x * std::f64::consts::PI;
        if x == 0.0 { 1.0 } else { x.sin() / x }
    };
    if (-LOBES..LOBES).contains(&x) { sinc(x) * sinc(x / LOBES) } else { 0.0 }
}

fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// The two source neighbours and the weight of the second, for each output pixel along one axis.
#[derive(Debug, Clone)]
struct Neighbours(Vec<(usize, usize, f32)>);

impl Neighbours {
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "image sizes"
    )]
    fn new(input: usize, output: usize, half_pixel: bool) -> Self {
        let scale = input as f32 / output as f32;
        let at = |o: usize| {
            let source = if half_pixel { (scale * (o as f32 + 0.5) - 0.5).max(0.0) } else { o as f32 * scale };
            let low = (source as usize).min(input - 1);
            (low, (low + 1).min(input - 1), source - low as f32)
        };
        Self((0..output).map(at).collect())
    }
}

#[derive(Debug, Clone)]
enum Axes {
    Linear { rows: Neighbours, columns: Neighbours, half_pixel: bool },
    Cubic { rows: Option<Taps>, columns: Option<Taps> },
}

/// A resize between two fixed sizes, with precomputed weights.
#[derive(Debug, Clone)]
pub struct Resizer {
    input: [usize; 2],
    output: [usize; 2],
    scaling: Scaling,
    axes: Axes,
}

impl Resizer {
    /// Prepares a resize from `input` to `output`, both `[height, width]` and not 0.
    #[must_use]
    pub fn new(resize: Resize, scaling: Scaling, input: [usize; 2], output: [usize; 2]) -> Self {
        let linear = |half_pixel| Axes::Linear {
            rows: Neighbours::new(input[0], output[0], half_pixel),
            columns: Neighbours::new(input[1], output[1], half_pixel),
            half_pixel,
        };
        let taps = |axis: usize| {
            (input[axis] != output[axis]).then(|| Taps::pillow(Filter::Bicubic, input[axis], output[axis]))
        };
        let axes = match resize {
            Resize::TensorFlow => linear(false),
            Resize::Torch => linear(true),
            Resize::PilBicubic => Axes::Cubic { rows: taps(0), columns: taps(1) },
        };
        Self { input, output, scaling, axes }
    }

    /// Height and width of the output.
    #[must_use]
    pub fn output(&self) -> [usize; 2] {
        self.output
    }

    /// Resizes u8 `image` into `out`; both must have the sizes given to [`Resizer::new`].
    ///
    /// # Panics
    /// If a size differs from those given to [`Resizer::new`].
    pub fn apply(&self, image: ArrayView3<'_, u8>, mut out: ArrayViewMut3<'_, f32>) {
        let channels = image.dim().2;
        assert_eq!(image.dim(), (self.input[0], self.input[1], channels), "input size");
        assert_eq!(out.dim(), (self.output[0], self.output[1], channels), "output size");
        let value = |v: u8| match self.scaling {
            Scaling::TensorFlow => f32::from(v),
            Scaling::Unit => f32::from(v) / 255.0,
        };
        match &self.axes {
            Axes::Linear { rows, columns, half_pixel } => {
                for (y, (y0, y1, fy)) in rows.0.iter().copied().enumerate() {
                    for (x, (x0, x1, fx)) in columns.0.iter().copied().enumerate() {
                        for c in 0..channels {
                            let at = |y: usize, x: usize| value(image[[y, x, c]]);
                            out[[y, x, c]] = if *half_pixel {
                                let mix = |a: f32, b: f32, f: f32| a * (1.0 - f) + b * f;
                                mix(mix(at(y0, x0), at(y0, x1), fx), mix(at(y1, x0), at(y1, x1), fx), fy)
                            } else {
                                let mix = |a: f32, b: f32, f: f32| a + (b - a) * f;
                                mix(mix(at(y0, x0), at(y0, x1), fx), mix(at(y1, x0), at(y1, x1), fx), fy)
                            };
                        }
                    }
                }
            }
            Axes::Cubic { rows, columns } => {
                let wide = horizontal(image, columns.as_ref(), self.output[1], value);
                vertical(&wide, rows.as_ref(), &mut out);
                let top = if self.scaling == Scaling::Unit { 1.0 } else { 255.0 };
                out.mapv_inplace(|v| v.clamp(0.0, top));
            }
        }
        if self.scaling == Scaling::Unit {
            out.mapv_inplace(|v| v * 256.0);
        }
    }
}

#[allow(clippy::cast_possible_truncation, reason = "Pillow stores f32 between the passes")]
fn horizontal(image: ArrayView3<'_, u8>, taps: Option<&Taps>, wide: usize, value: impl Fn(u8) -> f32) -> Array3<f32> {
    let (h, _, channels) = image.dim();
    let Some(taps) = taps else { return image.mapv(value) };
    Array3::from_shape_fn((h, wide, channels), |(y, x, c)| {
        let (first, weights) = taps.of(x);
        weights.iter().enumerate().map(|(i, w)| f64::from(value(image[[y, first + i, c]])) * w).sum::<f64>() as f32
    })
}

#[allow(clippy::cast_possible_truncation, reason = "Pillow's result is f32")]
fn vertical(image: &Array3<f32>, taps: Option<&Taps>, out: &mut ArrayViewMut3<'_, f32>) {
    let Some(taps) = taps else {
        out.assign(image);
        return;
    };
    for ((y, x, c), slot) in out.indexed_iter_mut() {
        let (first, weights) = taps.of(y);
        *slot = weights.iter().enumerate().map(|(i, w)| f64::from(image[[first + i, x, c]]) * w).sum::<f64>() as f32;
    }
}

/// Fractional bits of the fixed-point weights of Pillow for u8 images.
const PILLOW_BITS: u32 = 22;

/// Fixed-point [`Taps`]: weights times 2^22, rounded half away from zero.
struct FixedTaps {
    bounds: Vec<(usize, usize)>,
    weights: Vec<i32>,
    width: usize,
}

impl FixedTaps {
    fn new(filter: Filter, input: usize, output: usize) -> Self {
        let Taps { bounds, weights, width } = Taps::pillow(filter, input, output);
        #[allow(clippy::cast_possible_truncation, reason = "normalised weights lie in -1..2")]
        let fixed = |v: &f64| (v * f64::from(1_u32 << PILLOW_BITS) + 0.5_f64.copysign(*v)) as i32;
        Self { bounds, weights: weights.iter().map(fixed).collect(), width }
    }

    /// First source pixel and weights of each output pixel.
    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.bounds.iter().zip(self.weights.chunks(self.width)).map(|(&(first, count), w)| (first, &w[..count]))
    }

    /// Range of source pixels that any output pixel uses.
    fn used(&self) -> std::ops::Range<usize> {
        let first = self.bounds.first().map_or(0, |b| b.0);
        let end = self.bounds.iter().map(|(first, count)| first + count).max().unwrap_or(first);
        first..end
    }
}

fn to_u8(sum: i32) -> u8 {
    u8::try_from((sum >> PILLOW_BITS).clamp(0, 255)).unwrap_or(u8::MAX)
}

/// `Image.resize` of Pillow up to version 12 for a u8 image (mode `L` or `RGB`), bit for bit.
///
/// Shapes: `image [H, W, C]`, `output` = `[height, width]`, result `[height, width, C]`. Weights have 22 fractional
/// bits. The horizontal pass runs first, and each pass rounds to u8. An axis that keeps its size is not filtered.
/// Pillow 13 runs the vertical pass first where that is cheaper, which changes results by up to 4 levels.
///
/// # Panics
/// If a side of `image` or `output` is 0.
#[must_use]
pub fn pillow_resize_u8(image: ArrayView3<'_, u8>, output: [usize; 2], filter: Filter) -> Array3<u8> {
    let (h, w, channels) = image.dim();
    assert!(h * w * output[0] * output[1] > 0, "sides above 0");
    let vertical = (output[0] != h).then(|| FixedTaps::new(filter, h, output[0]));
    let wide = (output[1] != w).then(|| {
        // Only the rows that the vertical pass uses.
        let rows = vertical.as_ref().map_or(0..h, FixedTaps::used);
        let taps = FixedTaps::new(filter, w, output[1]);
        let mut wide = Array3::zeros((h, output[1], channels));
        for y in rows {
            let row = image.slice(s![y, .., ..]);
            let row = row.as_standard_layout();
            let out = wide.slice_mut(s![y, .., ..]).into_slice().unwrap_or_default();
            match channels {
                1 => horizontal_u8::<1>(row.as_slice().unwrap_or_default(), &taps, out),
                3 => horizontal_u8::<3>(row.as_slice().unwrap_or_default(), &taps, out),
                _ => {
                    for (x, (first, weights)) in taps.iter().enumerate() {
                        for c in 0..channels {
                            let taps = weights.iter().enumerate();
                            out[x * channels + c] =
                                to_u8(taps.fold(1 << (PILLOW_BITS - 1), |sum, (i, w)| {
                                    sum + i32::from(row[[first + i, c]]) * w
                                }));
                        }
                    }
                }
            }
        }
        wide
    });
    let source = wide.as_ref().map_or(image, |wide| wide.view());
    let Some(taps) = vertical else { return source.to_owned() };
    let mut out = Array3::zeros((output[0], output[1], channels));
    let mut sums = vec![0_i32; output[1] * channels];
    for (y, (first, weights)) in taps.iter().enumerate() {
        sums.fill(1 << (PILLOW_BITS - 1));
        for (i, w) in weights.iter().enumerate() {
            let row = source.slice(s![first + i, .., ..]);
            for (sum, v) in sums.iter_mut().zip(row.as_standard_layout().iter()) {
                *sum += i32::from(*v) * w;
            }
        }
        for (slot, sum) in out.slice_mut(s![y, .., ..]).iter_mut().zip(&sums) {
            *slot = to_u8(*sum);
        }
    }
    out
}

/// Filters one row of `C` channels.
fn horizontal_u8<const C: usize>(row: &[u8], taps: &FixedTaps, out: &mut [u8]) {
    let (row, _) = row.as_chunks::<C>();
    let (out, _) = out.as_chunks_mut::<C>();
    for (slot, (first, weights)) in out.iter_mut().zip(taps.iter()) {
        let mut sums = [1_i32 << (PILLOW_BITS - 1); C];
        for (pixel, w) in row[first..first + weights.len()].iter().zip(weights) {
            for (sum, v) in sums.iter_mut().zip(pixel) {
                *sum += i32::from(*v) * w;
            }
        }
        *slot = sums.map(to_u8);
    }
}

/// CLIP preprocessing: resizes the shorter side to `size` with Pillow bicubic (the longer side is rounded down), then
/// crops the `size`×`size` centre.
#[must_use]
pub fn clip_crop(image: ArrayView3<'_, u8>, size: usize) -> Array3<u8> {
    let (h, w, _) = image.dim();
    let long = |a: usize, b: usize| size * a / b;
    let output = if h <= w { [size, long(w, h)] } else { [long(h, w), size] };
    let resized = pillow_resize_u8(image, output, Filter::Bicubic);
    // As `round` in Python: ties go to the even neighbour.
    let offset = |n: usize| {
        let spare = n - size;
        spare / 2 + usize::from(spare % 4 == 3)
    };
    let (top, left) = (offset(output[0]), offset(output[1]));
    resized.slice(s![top..top + size, left..left + size, ..]).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(h: usize, w: usize) -> Array3<u8> {
        let value =
            |(y, x, c): (usize, usize, usize)| u8::try_from((y * 37 + x * 71 + c * 113 + y * x * 5) % 256).unwrap();
        Array3::from_shape_fn((h, w, 3), value)
    }

    fn resized(resize: Resize, scaling: Scaling, input: [usize; 2], output: [usize; 2]) -> Vec<f32> {
        let resizer = Resizer::new(resize, scaling, input, output);
        let mut out = Array3::zeros((output[0], output[1], 3));
        resizer.apply(image(input[0], input[1]).view(), out.view_mut());
        out.iter().copied().collect()
    }

    /// Every `step`-th value, so that a short list covers the whole image.
    fn thin<T: Copy>(values: &[T], step: usize) -> Vec<T> {
        values.iter().copied().step_by(step).collect()
    }

    fn close(found: &[f32], expected: &[f32], bound: f32) {
        assert_eq!(found.len(), expected.len());
        for (i, (f, e)) in found.iter().zip(expected).enumerate() {
            assert!((f - e).abs() <= bound, "at {i}: {f}, expected {e}");
        }
    }

    // Constants printed by tests/data/gen/preprocess.py: NumPy 2.4.6, torch 2.15.0, Pillow 12.0.0.

    #[test]
    fn tensorflow_bilinear_is_exact() {
        let up = resized(Resize::TensorFlow, Scaling::TensorFlow, [7, 5], [11, 13]);
        assert_eq!(
            thin(&up, 41),
            [
                0.0, 86.63637, 162.99301, 132.5944, 128.5874, 75.00698, 142.02795, 140.46852, 209.37065, 128.55246,
                169.07692
            ]
        );
        let down = resized(Resize::TensorFlow, Scaling::TensorFlow, [30, 40], [9, 11]);
        assert_eq!(
            thin(&down, 37),
            [0.0, 105.18181, 160.90907, 82.00005, 177.00003, 129.4545, 82.5456, 144.09082, 187.21216]
        );
    }

    #[test]
    fn torch_bilinear() {
        let up = resized(Resize::Torch, Scaling::TensorFlow, [7, 5], [11, 13]);
        close(
            &thin(&up, 41),
            &[
                0.0, 126.454544, 157.45456, 100.66434, 95.67832, 80.15384, 185.23074, 182.69229, 192.97902, 146.63635,
                138.0,
            ],
            2e-5,
        );
        let down = resized(Resize::Torch, Scaling::TensorFlow, [30, 40], [9, 11]);
        // Bound 1e-4: torch rounds source positions once, this code rounds them twice.
        close(
            &thin(&down, 37),
            &[144.44698, 108.56818, 182.26512, 150.29535, 119.75, 210.41649, 125.113594, 49.477364, 83.416626],
            1e-4,
        );
        // (256·r - 128)/128 = 2r - 1, the network input of pytorch-fid.
        let unit = resized(Resize::Torch, Scaling::Unit, [7, 5], [11, 13]);
        let seen: Vec<f32> = thin(&unit, 41).iter().map(|v| (v - 128.0) / 128.0).collect();
        close(
            &seen,
            &[
                -1.0,
                -0.008199573,
                0.23493767,
                -0.21047574,
                -0.24958181,
                -0.37134236,
                0.45279026,
                0.43288064,
                0.513561,
                0.15008914,
                0.082352996,
            ],
            3e-7,
        );
    }

    #[test]
    fn pillow_bicubic_of_floats() {
        let up = resized(Resize::PilBicubic, Scaling::TensorFlow, [7, 5], [11, 13]);
        close(
            &thin(&up, 41),
            &[
                0.0, 140.85085, 156.63225, 92.3725, 87.50841, 69.30599, 211.96118, 197.30034, 218.6175, 150.96622,
                141.30469,
            ],
            2e-5,
        );
        let down = resized(Resize::PilBicubic, Scaling::TensorFlow, [30, 40], [9, 11]);
        close(
            &thin(&down, 37),
            &[112.5402, 125.10646, 127.580826, 150.27197, 134.37524, 143.06142, 133.89406, 120.682465, 112.14637],
            2e-5,
        );
        let wide = resized(Resize::PilBicubic, Scaling::TensorFlow, [7, 5], [7, 8]);
        close(
            &thin(&wide, 13),
            &[
                0.0, 207.5, 1.5313653, 13.6875, 113.832855, 35.375, 192.9375, 127.444916, 205.25, 0.0, 222.90625,
                15.487085, 129.875,
            ],
            2e-5,
        );
        assert!(up.iter().all(|v| (0.0..=255.0).contains(v)));
    }

    #[test]
    fn pillow_bicubic_of_bytes_is_identical() {
        let up: Vec<u8> = pillow_resize_u8(image(7, 5).view(), [11, 13], Filter::Bicubic).iter().copied().collect();
        assert_eq!(
            thin(&up, 13),
            [
                0, 207, 162, 10, 212, 205, 32, 186, 227, 56, 52, 97, 79, 11, 63, 102, 56, 110, 124, 99, 106, 155, 137,
                123, 196, 163, 171, 226, 162, 213, 241, 155, 237
            ]
        );
        let down: Vec<u8> = pillow_resize_u8(image(30, 40).view(), [9, 11], Filter::Bicubic).iter().copied().collect();
        assert_eq!(
            thin(&down, 11),
            [
                113, 140, 143, 128, 111, 148, 110, 117, 129, 129, 125, 139, 122, 123, 125, 122, 109, 115, 120, 131,
                103, 126, 129, 129, 134, 124, 131
            ]
        );
    }

    #[test]
    fn pillow_filters_of_bytes_are_identical_at_every_size() {
        use Filter::{Bicubic, Lanczos};
        // Sum of (i + 1)·v over all values, modulo 2^32: one level off anywhere changes it.
        let checksum = |a: &Array3<u8>| {
            a.iter().zip(1_u32..).fold(0_u32, |sum, (v, i)| sum.wrapping_add(u32::from(*v).wrapping_mul(i)))
        };
        for (input, output, filter, rgb, grey) in [
            ([7, 5], [11, 13], Bicubic, 11832004, 1305215),
            ([7, 5], [11, 13], Lanczos, 11841062, 1304636),
            ([30, 40], [9, 11], Bicubic, 5636661, 621799),
            ([30, 40], [9, 11], Lanczos, 5637374, 621901),
            ([101, 67], [32, 32], Bicubic, 601439833, 67159203),
            ([101, 67], [32, 32], Lanczos, 601439355, 67159838),
            ([33, 65], [64, 64], Bicubic, 1038287179, 1061661266),
            ([33, 65], [64, 64], Lanczos, 1044233141, 1062357674),
            ([16, 17], [16, 5], Bicubic, 3630232, 408110),
            ([16, 17], [16, 5], Lanczos, 3628982, 407788),
            ([19, 16], [7, 16], Bicubic, 7127514, 801658),
            ([19, 16], [7, 16], Lanczos, 7128773, 801164),
            ([240, 321], [64, 48], Bicubic, 1129737650, 600056492),
            ([240, 321], [64, 48], Lanczos, 1130179657, 600071671),
            ([1, 9], [4, 4], Bicubic, 157320, 18752),
            ([1, 9], [4, 4], Lanczos, 157364, 18708),
            ([128, 128], [1, 1], Bicubic, 767, 128),
            ([128, 128], [1, 1], Lanczos, 767, 128),
            ([97, 65], [48, 64], Bicubic, 1118174533, 603787099),
            ([97, 65], [48, 64], Lanczos, 1118515287, 603780634),
        ] {
            let source = image(input[0], input[1]);
            let out = pillow_resize_u8(source.view(), output, filter);
            assert_eq!(out.dim(), (output[0], output[1], 3));
            assert_eq!(checksum(&out), rgb, "{input:?} to {output:?}, {filter:?}");
            let one = source.slice(s![.., .., 1..2]);
            assert_eq!(
                checksum(&pillow_resize_u8(one, output, filter)),
                grey,
                "{input:?} to {output:?}, {filter:?}, grey"
            );
        }
    }

    #[test]
    fn pillow_lanczos_of_bytes_is_identical() {
        let up: Vec<u8> = pillow_resize_u8(image(7, 5).view(), [11, 13], Filter::Lanczos).iter().copied().collect();
        assert_eq!(
            thin(&up, 13),
            [
                0, 214, 151, 9, 229, 217, 33, 182, 240, 57, 43, 102, 75, 0, 54, 90, 42, 109, 107, 105, 99, 147, 156,
                106, 207, 180, 169, 243, 169, 227, 251, 155, 250
            ]
        );
        // A view of a crop gives the same result as a copy of it.
        let crop = image(32, 44).slice_move(s![1..31, 2..42, ..]);
        let same = pillow_resize_u8(crop.as_standard_layout().view(), [9, 11], Filter::Lanczos);
        assert_eq!(pillow_resize_u8(crop.view(), [9, 11], Filter::Lanczos), same);
    }

    #[test]
    fn clip_takes_the_centre() {
        for ((h, w), expected) in [
            ((13, 20), [186, 98, 99, 175, 5, 136, 135, 127, 155, 135, 167, 37, 108, 169, 201]),
            ((29, 16), [222, 79, 230, 145, 42, 248, 218, 155, 160, 185, 87, 77, 87, 29, 74]),
            ((16, 16), [0, 83, 174, 29, 152, 42, 208, 115, 60, 25, 121, 51, 1, 169, 154]),
        ] {
            let out = clip_crop(image(h, w).view(), 16);
            assert_eq!(out.dim(), (16, 16, 3));
            assert_eq!(thin(&out.iter().copied().collect::<Vec<u8>>(), 53), expected, "{h}×{w}");
        }
    }
}
