//! Tensors in host memory: owned, or borrowed as inputs of a run.

use d2o_onnx::graph::ElementType;
use ndarray::{Array, ArrayBase, ArrayD, ArrayView, ArrayViewD, Dimension, IxDyn, ViewRepr};

/// A tensor in host memory.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the names say it")]
pub enum Tensor {
    F32(ArrayD<f32>),
    U8(ArrayD<u8>),
    I64(ArrayD<i64>),
}

/// A borrowed tensor in host memory, with any strides.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the names say it")]
pub enum TensorView<'a> {
    F32(View<'a, f32>),
    U8(View<'a, u8>),
    I64(View<'a, i64>),
}

/// Same type as [`ArrayViewD`]. The alias refers to the element type through a projection, which would make
/// [`TensorView`] invariant in `'a`.
type View<'a, T> = ArrayBase<ViewRepr<&'a T>, IxDyn, T>;

impl Tensor {
    /// Element type.
    #[must_use]
    pub fn element(&self) -> ElementType {
        TensorView::from(self).element()
    }

    /// Shape.
    #[must_use]
    pub fn dims(&self) -> &[usize] {
        match self {
            Self::F32(a) => a.shape(),
            Self::U8(a) => a.shape(),
            Self::I64(a) => a.shape(),
        }
    }

    /// The values, if they are f32.
    #[must_use]
    pub fn as_f32(&self) -> Option<ArrayViewD<'_, f32>> {
        match self {
            Self::F32(a) => Some(a.view()),
            _ => None,
        }
    }

    /// The values, if they are u8.
    #[must_use]
    pub fn as_u8(&self) -> Option<ArrayViewD<'_, u8>> {
        match self {
            Self::U8(a) => Some(a.view()),
            _ => None,
        }
    }
}

impl<'a> TensorView<'a> {
    /// Element type.
    #[must_use]
    pub fn element(&self) -> ElementType {
        match self {
            Self::F32(_) => ElementType::F32,
            Self::U8(_) => ElementType::U8,
            Self::I64(_) => ElementType::I64,
        }
    }

    /// Shape.
    #[must_use]
    pub fn dims(&self) -> &[usize] {
        match self {
            Self::F32(a) => a.shape(),
            Self::U8(a) => a.shape(),
            Self::I64(a) => a.shape(),
        }
    }

    /// The values, if they are f32.
    #[must_use]
    pub fn as_f32(&self) -> Option<ArrayViewD<'a, f32>> {
        match self {
            Self::F32(a) => Some(a.clone()),
            _ => None,
        }
    }
}

impl<'a> From<&'a Tensor> for TensorView<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        match tensor {
            Tensor::F32(a) => Self::F32(a.view()),
            Tensor::U8(a) => Self::U8(a.view()),
            Tensor::I64(a) => Self::I64(a.view()),
        }
    }
}

macro_rules! from_arrays {
    ($($variant:ident $element:ty),*) => {$(
        impl<D: Dimension> From<Array<$element, D>> for Tensor {
            fn from(array: Array<$element, D>) -> Self {
                Self::$variant(array.into_dyn())
            }
        }

        impl<'a, D: Dimension> From<ArrayView<'a, $element, D>> for TensorView<'a> {
            fn from(view: ArrayView<'a, $element, D>) -> Self {
                Self::$variant(view.into_dyn())
            }
        }
    )*};
}

from_arrays!(F32 f32, U8 u8, I64 i64);
