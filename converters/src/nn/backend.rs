//! The small set of primitives a network is written in.

use crate::error::{Error, Result};
use crate::weights::{Init, Scope};

/// How a convolution walks: strides, zero padding, groups. Dilation is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2d {
    /// Step along height and width.
    pub stride: usize,
    /// Zero padding: top, left, bottom, right.
    pub pads: [usize; 4],
    /// Channel groups.
    pub groups: usize,
}

impl Conv2d {
    /// Stride 1, equal padding, one group.
    #[must_use]
    pub fn padded(pad: usize) -> Self {
        Self { stride: 1, pads: [pad; 4], groups: 1 }
    }
}

/// How a pooling window walks: square, the same step and padding along both axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// Height and width of the window.
    pub kernel: usize,
    /// Step.
    pub stride: usize,
    /// Padding on each side.
    pub pad: usize,
}

/// Where a network is laid out: executed now (libtorch) or written as nodes (ONNX).
///
/// Images are f32 `[N, C, H, W]`. Only the batch N may be unknown while a network is laid out. Every primitive has a parity
/// case of its name in `tests/parity.rs`.
#[allow(clippy::missing_errors_doc, reason = "every primitive fails in one way: `Engine`, naming scope and operation")]
pub trait Backend {
    /// One value in flight: a tensor, or an edge of a graph.
    type Value: Clone;

    /// Trainable parameter `scope.name`, exactly `dims` or an error naming path, expected and found.
    ///
    /// # Errors
    /// Those of [`crate::weights::Weights::take`].
    fn param(&mut self, scope: &Scope, name: &str, dims: &[usize], init: &Init) -> Result<Self::Value>;

    /// Values of the fixed tensor `scope.name` (a buffer), for a layer that derives constants from them.
    ///
    /// # Errors
    /// Those of [`crate::weights::Weights::take`].
    fn buffer(&mut self, scope: &Scope, name: &str, dims: &[usize], init: &Init) -> Result<Vec<f32>>;

    /// Tensor `scope.name` that a layer keeps up to date itself instead of by gradients (spectral norm's `u`, `v`).
    ///
    /// # Errors
    /// Those of [`crate::weights::Weights::take`].
    fn state(&mut self, scope: &Scope, name: &str, dims: &[usize], init: &Init) -> Result<Self::Value>;

    /// A fixed value known while the network is laid out, called `scope.name` where the back end has names.
    ///
    /// # Errors
    /// `Engine` if `data` does not fill `dims`.
    fn constant(&mut self, scope: &Scope, name: &str, dims: &[usize], data: Vec<f32>) -> Result<Self::Value>;

    /// Says which layer the following primitives belong to: node names and errors carry it.
    fn enter(&mut self, scope: &Scope);

    /// Size of the axis `axis` of `x`; `None` for the batch of a graph.
    fn dim(&self, x: &Self::Value, axis: usize) -> Option<usize>;

    /// `x [N, Ci, H, W]`, `w [Co, Ci/groups, kH, kW]`, `bias [Co]` -> `[N, Co, H', W']`.
    fn conv2d(
        &mut self,
        x: &Self::Value,
        w: &Self::Value,
        bias: Option<&Self::Value>,
        how: Conv2d,
    ) -> Result<Self::Value>;
    /// `x [N, Ci, H, W]`, `w [Ci, Co/groups, kH, kW]` -> `[N, Co, stride*(H-1)+kH-2*pad, ..]`; `pads` must be equal.
    fn conv_transpose2d(&mut self, x: &Self::Value, w: &Self::Value, how: Conv2d) -> Result<Self::Value>;
    /// Largest value in each window of `x [N, C, H, W]`; padding never wins. The last windows lie inside the padded image.
    fn max_pool2d(&mut self, x: &Self::Value, how: Pool) -> Result<Self::Value>;
    /// Mean of each window of `x [N, C, H, W]` over the pixels of the image it covers: padding is not counted.
    fn avg_pool2d(&mut self, x: &Self::Value, how: Pool) -> Result<Self::Value>;
    /// `x [N, I]`, `w [O, I]`, `bias [O]` -> `x wᵀ + bias [N, O]`.
    fn linear(&mut self, x: &Self::Value, w: &Self::Value, bias: Option<&Self::Value>) -> Result<Self::Value>;
    /// Batched matrix product of the last two axes.
    fn matmul(&mut self, a: &Self::Value, b: &Self::Value) -> Result<Self::Value>;

    /// Normalises each of `groups` channel groups of `x [N, C, H, W]` over its channels and pixels (biased variance).
    fn group_norm(
        &mut self,
        x: &Self::Value,
        groups: usize,
        eps: f64,
        weight: &Self::Value,
        bias: &Self::Value,
    ) -> Result<Self::Value>;
    /// Normalises each channel of `x [N, C, H, W]` with the statistics of this very batch (biased variance).
    fn batch_norm(
        &mut self,
        x: &Self::Value,
        eps: f64,
        weight: &Self::Value,
        bias: &Self::Value,
    ) -> Result<Self::Value>;
    /// `w [O, ..]` divided by `uᵀ W v`, its spectral norm as `u [O]` and `v [I·k·k]` estimate it.
    ///
    /// In libtorch's train mode `u` and `v` first advance by one power iteration (Miyato et al. 2018; eps 1e-12).
    fn spectral_norm(&mut self, w: &Self::Value, u: &Self::Value, v: &Self::Value) -> Result<Self::Value>;
    /// Zeroes elements with probability `p` and scales the rest in libtorch's train mode; the identity elsewhere.
    fn dropout(&mut self, x: &Self::Value, p: f64) -> Result<Self::Value>;

    /// `x · sigmoid(x)`.
    fn silu(&mut self, x: &Self::Value) -> Result<Self::Value>;
    /// `x · Φ(x)`, Φ the normal distribution function by way of the error function.
    fn gelu(&mut self, x: &Self::Value) -> Result<Self::Value>;
    /// `x` limited to `[low, high]`; `high` may be infinite (ReLU).
    fn clamp(&mut self, x: &Self::Value, low: f64, high: f64) -> Result<Self::Value>;
    /// `x` where positive, `slope·x` elsewhere.
    fn leaky_relu(&mut self, x: &Self::Value, slope: f64) -> Result<Self::Value>;
    /// Elementwise natural logarithm.
    fn log(&mut self, x: &Self::Value) -> Result<Self::Value>;
    /// Elementwise square root.
    fn sqrt(&mut self, x: &Self::Value) -> Result<Self::Value>;
    /// Elementwise cosine, argument in radians.
    fn cos(&mut self, x: &Self::Value) -> Result<Self::Value>;
    /// Elementwise sine, argument in radians.
    fn sin(&mut self, x: &Self::Value) -> Result<Self::Value>;
    /// Elementwise sum with broadcasting.
    fn add(&mut self, a: &Self::Value, b: &Self::Value) -> Result<Self::Value>;
    /// Elementwise product with broadcasting.
    fn mul(&mut self, a: &Self::Value, b: &Self::Value) -> Result<Self::Value>;
    /// Elementwise quotient with broadcasting.
    fn div(&mut self, a: &Self::Value, b: &Self::Value) -> Result<Self::Value>;
    /// `x · factor`.
    fn scale(&mut self, x: &Self::Value, factor: f64) -> Result<Self::Value>;
    /// `x + term`.
    fn offset(&mut self, x: &Self::Value, term: f64) -> Result<Self::Value>;
    /// Mean and unbiased variance of each channel of `x [N, C, H, W]`, over N, H and W.
    ///
    /// # Errors
    /// `Engine`; `Config` from a back end that does not compute as it lays out.
    fn channel_statistics(&mut self, _x: &Self::Value) -> Result<(Vec<f32>, Vec<f32>)> {
        Err(Error::Config { what: "values of a graph that has not run".to_owned() })
    }
    /// Softmax along `axis`.
    fn softmax(&mut self, x: &Self::Value, axis: usize) -> Result<Self::Value>;
    /// Mean over `axes`, which stay with size 1 if `keep`.
    fn mean(&mut self, x: &Self::Value, axes: &[usize], keep: bool) -> Result<Self::Value>;

    /// Joins `parts` along `axis`.
    fn concat(&mut self, parts: &[Self::Value], axis: usize) -> Result<Self::Value>;
    /// Elements `start..start+len` along `axis`.
    fn slice(&mut self, x: &Self::Value, axis: usize, start: usize, len: usize) -> Result<Self::Value>;
    /// Same elements, new shape; one entry may be -1 and takes what is left (the batch).
    fn reshape(&mut self, x: &Self::Value, dims: &[i64]) -> Result<Self::Value>;
    /// Axis `i` of the result is axis `perm[i]` of `x`.
    fn transpose(&mut self, x: &Self::Value, perm: &[usize]) -> Result<Self::Value>;
    /// Bilinear interpolation of `x [N, C, H, W]` to `[N, C, size[0], size[1]]` without antialiasing.
    fn resize_bilinear(&mut self, x: &Self::Value, size: [usize; 2], align_corners: bool) -> Result<Self::Value>;

    /// u8 image batch `[N, H, W, C]` -> f32 of the same shape and values 0..=255.
    fn u8_to_f32(&mut self, x: &Self::Value) -> Result<Self::Value>;
    /// f32 `x`, limited to 0..=255 and truncated, as u8.
    fn f32_to_u8(&mut self, x: &Self::Value) -> Result<Self::Value>;
}
