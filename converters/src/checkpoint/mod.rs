//! Checkpoint files as sources of named tensors, one format a file.

use crate::error::Result;

/// Element type of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Dtype {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Dtype {
    /// Size of one element in bytes.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }
}

/// Type and shape of a stored tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type in the file.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub dims: Vec<usize>,
}

/// A bag of named tensors, read lazily.
pub trait TensorSource {
    /// Tensor names in the file's order.
    fn names(&self) -> Vec<String>;

    /// Type and shape of `name`, if it is there.
    fn info(&self, name: &str) -> Option<TensorInfo>;

    /// Values of `name` in row-major order, converted to f32 (exact for f16, bf16 and f32; f64 and integers are rounded).
    ///
    /// # Errors
    /// `MissingTensor` if there is none; `Format` or `Io` if its bytes cannot be read.
    fn read_f32(&self, name: &str) -> Result<Vec<f32>>;
}
