//! The interface of all runtimes.

use std::borrow::Cow;

use d2o_onnx::graph::ElementType;
use d2o_onnx::read::ModelInfo;

use crate::error::Result;
use crate::tensor::{Tensor, TensorView};

/// A model opened on a runtime.
pub trait Session: Send {
    /// Name of the runtime: `ort-cpu`, `ort-winograd`, `ort-cuda`, `ort-cuda-tf32`, `tract`, or
    /// `ort-<provider>-<kind of device>` for a plugin provider.
    fn runtime(&self) -> &str;

    /// Inputs, outputs and metadata of the model.
    fn model(&self) -> &ModelInfo;

    /// Nodes that ONNX Runtime assigned to its CPU provider although the session is for another device.
    ///
    /// # Errors
    /// `Runtime` if the runtime does not report them.
    fn left_to_cpu(&self) -> Result<Vec<PlacedNode>> {
        Ok(Vec::new())
    }

    /// Runs the model on `inputs`, given by name in any order, and returns the outputs in the order of [`ModelInfo::outputs`].
    ///
    /// # Errors
    /// `Input` if an input is missing, unknown, or of another type or shape; `Runtime` if the runtime fails.
    fn run(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<Tensor>>;

    /// Same as [`Session::run`], with values in any memory. In a session on a CUDA device, the outputs named in `keep`
    /// stay in device memory. All other outputs are in host memory. Names in `keep` that are not outputs are ignored.
    ///
    /// # Errors
    /// Those of [`Session::run`].
    fn run_resident(&mut self, inputs: &[(&str, &SessionValue)], keep: &[&str]) -> Result<Vec<SessionValue>> {
        let _ = keep;
        let hosted = inputs.iter().map(|(_, value)| value.to_host()).collect::<Result<Vec<_>>>()?;
        let views: Vec<(&str, TensorView<'_>)> =
            inputs.iter().zip(&hosted).map(|((name, _), tensor)| (*name, tensor.as_ref().into())).collect();
        Ok(self.run(&views)?.into_iter().map(SessionValue::Host).collect())
    }
}

/// A tensor in host memory or in the memory of a device.
#[derive(Debug)]
#[non_exhaustive]
pub enum SessionValue {
    /// In host memory.
    Host(Tensor),
    /// In memory that ONNX Runtime owns.
    #[cfg(feature = "ort")]
    Ort(crate::ort::OrtTensor),
}

impl SessionValue {
    /// The tensor in host memory. Memory that ONNX Runtime owns is copied.
    ///
    /// # Errors
    /// `Runtime` if the copy fails.
    pub fn into_host(self) -> Result<Tensor> {
        match self {
            Self::Host(tensor) => Ok(tensor),
            #[cfg(feature = "ort")]
            Self::Ort(tensor) => tensor.to_host(),
        }
    }

    /// Same as [`SessionValue::into_host`], but borrows [`SessionValue::Host`].
    ///
    /// # Errors
    /// `Runtime` if the copy fails.
    pub fn to_host(&self) -> Result<Cow<'_, Tensor>> {
        match self {
            Self::Host(tensor) => Ok(Cow::Borrowed(tensor)),
            #[cfg(feature = "ort")]
            Self::Ort(tensor) => tensor.to_host().map(Cow::Owned),
        }
    }

    /// Element type.
    #[must_use]
    pub fn element(&self) -> ElementType {
        match self {
            Self::Host(tensor) => tensor.element(),
            #[cfg(feature = "ort")]
            Self::Ort(tensor) => tensor.element,
        }
    }

    /// Shape.
    #[must_use]
    pub fn dims(&self) -> &[usize] {
        match self {
            Self::Host(tensor) => tensor.dims(),
            #[cfg(feature = "ort")]
            Self::Ort(tensor) => &tensor.dims,
        }
    }
}

impl From<Tensor> for SessionValue {
    fn from(tensor: Tensor) -> Self {
        Self::Host(tensor)
    }
}

/// A node of a graph and the execution provider that ONNX Runtime assigned it to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedNode {
    /// Name of the provider in ONNX Runtime, e.g. `CUDAExecutionProvider`.
    pub provider: String,
    /// Name of the node.
    pub name: String,
    /// Operator of the node.
    pub op: String,
}
