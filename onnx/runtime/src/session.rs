//! The interface of all runtimes.

use std::borrow::Cow;

use d2o_onnx::graph::ElementType;
use d2o_onnx::read::ModelInfo;

use crate::error::Result;
use crate::tensor::{Tensor, TensorView};

/// A model opened on a runtime.
pub trait Session: Send {
    /// Name of the runtime: `ort-cpu`, `ort-winograd`, `ort-cuda`, `ort-cuda-tf32`, `tract`, or `ort-` with the name of a plugin provider and the kind of
    /// its device.
    fn runtime(&self) -> &str;

    /// The model's inputs, outputs and metadata.
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

    /// As [`Session::run`] on values of any memory: the outputs named in `keep` stay in the memory of the session's device, the others are copied to the
    /// host. Without a device, all outputs are on the host. Names in `keep` that are not outputs are ignored.
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

/// A tensor in host memory or in the memory of a session's device.
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
    /// The tensor, copied to host memory if it is not there.
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

    /// As [`SessionValue::into_host`], borrowed where it is in host memory already.
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

    /// Its element type.
    #[must_use]
    pub fn element(&self) -> ElementType {
        match self {
            Self::Host(tensor) => tensor.element(),
            #[cfg(feature = "ort")]
            Self::Ort(tensor) => tensor.element,
        }
    }

    /// Its shape.
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
    /// ONNX Runtime's name of the provider, e.g. `CUDAExecutionProvider`.
    pub provider: String,
    /// Name of the node.
    pub name: String,
    /// Its operator.
    pub op: String,
}
