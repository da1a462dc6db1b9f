//! The operations of which networks consist, and the trait of the engines that execute them.

pub use d2o_onnx::ops::{ConvAttributes as Conv2d, PoolAttributes as Pool, Sampling};

use crate::error::Result;
use crate::weights::{Init, Scope};

/// Elementwise functions of one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unary {
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · Φ(x)` with the standard normal distribution function Φ, computed with the error function.
    Gelu,
    /// Natural logarithm.
    Log,
    /// Square root.
    Sqrt,
    /// Cosine of an angle in radians.
    Cos,
    /// Sine of an angle in radians.
    Sin,
}

impl Unary {
    /// All variants.
    pub const ALL: [Self; 6] = [Self::Silu, Self::Gelu, Self::Log, Self::Sqrt, Self::Cos, Self::Sin];

    /// Name in errors.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::Gelu => "gelu",
            Self::Log => "log",
            Self::Sqrt => "sqrt",
            Self::Cos => "cos",
            Self::Sin => "sin",
        }
    }
}

/// Elementwise functions of two tensors, which broadcast as in NumPy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Binary {
    /// Sum.
    Add,
    /// Product.
    Mul,
    /// Quotient.
    Div,
}

impl Binary {
    /// All variants.
    pub const ALL: [Self; 3] = [Self::Add, Self::Mul, Self::Div];

    /// Name in errors.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Mul => "mul",
            Self::Div => "div",
        }
    }
}

/// Reduction of a pooling window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PoolKind {
    /// Maximum; padding is ignored.
    Max,
    /// Mean over the pixels in the window; padding is not counted.
    Average,
}

impl PoolKind {
    /// All variants.
    pub const ALL: [Self; 2] = [Self::Max, Self::Average];

    /// Name in errors.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Max => "max_pool2d",
            Self::Average => "avg_pool2d",
        }
    }
}

/// Conversions between bytes and floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cast {
    /// u8 to f32 with the same values.
    ToF32,
    /// f32 to u8: clamped to 0..=255, then truncated.
    ToU8,
}

impl Cast {
    /// All variants.
    pub const ALL: [Self; 2] = [Self::ToF32, Self::ToU8];
}

/// An engine for which networks are built: eager execution (libtorch) or graph construction (ONNX).
///
/// Images are f32 `[N, C, H, W]`. Only the batch size N may be unknown while a network is built. Every operation has
/// parity cases in `tests/parity.rs`, which wraps this trait to count the operations that the cases reach. [`Ops`] has
/// shorthands.
#[allow(clippy::missing_errors_doc, reason = "every operation has one error: `Engine`, naming scope and operation")]
pub trait Backend {
    /// A tensor, or an edge of a graph.
    type Value: Clone;

    /// Trainable parameter `scope.name` of shape `dims`.
    ///
    /// # Errors
    /// Those of [`crate::weights::Weights::take`].
    fn param(&mut self, scope: &Scope, name: &str, dims: &[usize], init: &Init) -> Result<Self::Value>;

    /// Parameter `scope.name` of shape `dims` that is used only in training. A backend that does not train takes the
    /// tensor and returns `None`.
    ///
    /// # Errors
    /// Those of [`crate::weights::Weights::take`].
    fn training_param(
        &mut self,
        scope: &Scope,
        name: &str,
        dims: &[usize],
        init: &Init,
    ) -> Result<Option<Self::Value>> {
        self.buffer(scope, name, dims, init)?;
        Ok(None)
    }

    /// Values, row-major, of the tensor `scope.name` of shape `dims`, which is not trained. Layers derive constants
    /// from them.
    ///
    /// # Errors
    /// Those of [`crate::weights::Weights::take`].
    fn buffer(&mut self, scope: &Scope, name: &str, dims: &[usize], init: &Init) -> Result<Vec<f32>>;

    /// A constant of shape `dims`, rounded to the precision of the backend. Its name is `scope.name`, if the backend
    /// names values.
    ///
    /// # Errors
    /// `Engine` if the number of values in `data` does not match `dims`.
    fn constant<T: Into<f64>>(
        &mut self,
        scope: &Scope,
        name: &str,
        dims: &[usize],
        data: Vec<T>,
    ) -> Result<Self::Value>;

    /// Whether the backend computes in f64. If so, constants that the originals derive in f32 are derived in f64, as
    /// the originals do in f64.
    fn in_f64(&self) -> bool {
        false
    }

    /// Sets the scope of the following operations. Node names and errors contain it.
    fn enter(&mut self, scope: &Scope);

    /// Size of the axis `axis` of `x`; `None` for the batch axis of a graph.
    fn dim(&self, x: &Self::Value, axis: usize) -> Option<usize>;

    /// `x [N, Ci, H, W]`, `w [Co, Ci/groups, kH, kW]`, `bias [Co]` -> `[N, Co, H', W']`.
    fn conv2d(
        &mut self,
        x: &Self::Value,
        w: &Self::Value,
        bias: Option<&Self::Value>,
        options: Conv2d,
    ) -> Result<Self::Value>;
    /// `x [N, Ci, H, W]`, `w [Ci, Co/groups, kH, kW]` -> `[N, Co, stride·(H−1)+kH−2·pad, …]`; all four `pads` are equal.
    fn conv_transpose2d(&mut self, x: &Self::Value, w: &Self::Value, options: Conv2d) -> Result<Self::Value>;
    /// `x [N, C, H, W]` -> `[N, C, H', W']`; all windows are inside the padded image.
    fn pool2d(&mut self, kind: PoolKind, x: &Self::Value, window: Pool) -> Result<Self::Value>;
    /// `x [N, I]`, `w [O, I]`, `bias [O]` -> `x wᵀ + bias [N, O]`.
    fn linear(&mut self, x: &Self::Value, w: &Self::Value, bias: Option<&Self::Value>) -> Result<Self::Value>;
    /// Batched matrix product of the last two axes.
    fn matmul(&mut self, a: &Self::Value, b: &Self::Value) -> Result<Self::Value>;

    /// Normalises each of `groups` channel groups of `x [N, C, H, W]` over its channels and pixels (biased variance), then scales each channel by
    /// `weight [C]` and adds `bias [C]`.
    fn group_norm(
        &mut self,
        x: &Self::Value,
        groups: usize,
        eps: f64,
        weight: &Self::Value,
        bias: &Self::Value,
    ) -> Result<Self::Value>;
    /// Normalises each row of `x [M, C]` (biased variance), then scales column c by `weight [C]` and adds `bias [C]`.
    fn layer_norm(
        &mut self,
        x: &Self::Value,
        eps: f64,
        weight: &Self::Value,
        bias: &Self::Value,
    ) -> Result<Self::Value>;
    /// In the training mode of libtorch, zeroes elements with probability `p` and scales the others by 1/(1 − p).
    /// Otherwise the identity.
    fn dropout(&mut self, x: &Self::Value, p: f64) -> Result<Self::Value>;

    /// `function` of each element.
    fn unary(&mut self, function: Unary, x: &Self::Value) -> Result<Self::Value>;
    /// `function` of each pair of elements.
    fn binary(&mut self, function: Binary, a: &Self::Value, b: &Self::Value) -> Result<Self::Value>;
    /// `x` clamped to `[low, high]`; `high` may be infinite.
    fn clamp(&mut self, x: &Self::Value, low: f64, high: f64) -> Result<Self::Value>;
    /// `x` if positive, else `slope·x`.
    fn leaky_relu(&mut self, x: &Self::Value, slope: f64) -> Result<Self::Value>;
    /// `x · factor`.
    fn scale(&mut self, x: &Self::Value, factor: f64) -> Result<Self::Value>;
    /// `x + term`.
    fn offset(&mut self, x: &Self::Value, term: f64) -> Result<Self::Value>;
    /// Softmax along `axis`.
    fn softmax(&mut self, x: &Self::Value, axis: usize) -> Result<Self::Value>;
    /// Mean over `axes`, which are kept with size 1 if `keep`.
    fn mean(&mut self, x: &Self::Value, axes: &[usize], keep: bool) -> Result<Self::Value>;

    /// Joins `parts` along `axis`.
    fn concat(&mut self, parts: &[Self::Value], axis: usize) -> Result<Self::Value>;
    /// Elements `start..start+len` along `axis`.
    fn slice(&mut self, x: &Self::Value, axis: usize, start: usize, len: usize) -> Result<Self::Value>;
    /// The same elements in another shape. One entry may be -1: its size follows from the number of elements (the
    /// batch).
    fn reshape(&mut self, x: &Self::Value, dims: &[i64]) -> Result<Self::Value>;
    /// Axis `i` of the result is axis `perm[i]` of `x`.
    fn transpose(&mut self, x: &Self::Value, perm: &[usize]) -> Result<Self::Value>;
    /// Bilinear interpolation of `x [N, C, H, W]` to `[N, C, size[0], size[1]]` without antialiasing.
    fn resize_bilinear(&mut self, x: &Self::Value, size: [usize; 2], sampling: Sampling) -> Result<Self::Value>;

    /// `x` converted to the element type of `other`, if the backend computes in several types.
    ///
    /// # Errors
    /// `Engine` if the conversion fails.
    fn like(&mut self, x: &Self::Value, _other: &Self::Value) -> Result<Self::Value> {
        Ok(x.clone())
    }

    /// Converts the element type of `x` as `cast` specifies.
    fn cast(&mut self, cast: Cast, x: &Self::Value) -> Result<Self::Value>;
}

/// Shorthands for operations of [`Backend`].
#[allow(clippy::missing_errors_doc, missing_docs, reason = "each is the operation of its name")]
pub trait Ops: Backend {
    fn silu(&mut self, x: &Self::Value) -> Result<Self::Value> {
        self.unary(Unary::Silu, x)
    }

    fn gelu(&mut self, x: &Self::Value) -> Result<Self::Value> {
        self.unary(Unary::Gelu, x)
    }

    fn log(&mut self, x: &Self::Value) -> Result<Self::Value> {
        self.unary(Unary::Log, x)
    }

    fn sqrt(&mut self, x: &Self::Value) -> Result<Self::Value> {
        self.unary(Unary::Sqrt, x)
    }

    fn cos(&mut self, x: &Self::Value) -> Result<Self::Value> {
        self.unary(Unary::Cos, x)
    }

    fn sin(&mut self, x: &Self::Value) -> Result<Self::Value> {
        self.unary(Unary::Sin, x)
    }

    fn add(&mut self, a: &Self::Value, b: &Self::Value) -> Result<Self::Value> {
        self.binary(Binary::Add, a, b)
    }

    fn mul(&mut self, a: &Self::Value, b: &Self::Value) -> Result<Self::Value> {
        self.binary(Binary::Mul, a, b)
    }

    fn div(&mut self, a: &Self::Value, b: &Self::Value) -> Result<Self::Value> {
        self.binary(Binary::Div, a, b)
    }

    fn relu(&mut self, x: &Self::Value) -> Result<Self::Value> {
        self.clamp(x, 0.0, f64::INFINITY)
    }

    fn max_pool2d(&mut self, x: &Self::Value, window: Pool) -> Result<Self::Value> {
        self.pool2d(PoolKind::Max, x, window)
    }

    fn avg_pool2d(&mut self, x: &Self::Value, window: Pool) -> Result<Self::Value> {
        self.pool2d(PoolKind::Average, x, window)
    }
}

impl<B: Backend> Ops for B {}

/// `size` as an entry of the `dims` of [`Backend::reshape`].
pub(crate) fn signed(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}
