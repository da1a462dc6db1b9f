#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

#[cfg(feature = "ort")]
pub mod cuda;
#[cfg(feature = "ort")]
pub mod ort;
#[cfg(feature = "ort")]
mod placement;
#[cfg(feature = "tract")]
pub mod tract;
#[cfg(feature = "ort")]
mod winograd;

#[cfg(any(feature = "ort", feature = "tract"))]
use d2o_onnx::graph::Dim;
use d2o_onnx::graph::ElementType;
use d2o_onnx::read::ModelInfo;
use ndarray::{ArrayD, ArrayViewD};

mod error;

pub use error::{Error, Result};

/// A tensor given to or taken from a session.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Tensor {
    F32(ArrayD<f32>),
    U8(ArrayD<u8>),
    I64(ArrayD<i64>),
}

impl Tensor {
    /// Type of its elements.
    #[must_use]
    pub fn element(&self) -> ElementType {
        match self {
            Self::F32(_) => ElementType::F32,
            Self::U8(_) => ElementType::U8,
            Self::I64(_) => ElementType::I64,
        }
    }

    /// Its shape.
    #[must_use]
    pub fn dims(&self) -> &[usize] {
        match self {
            Self::F32(a) => a.shape(),
            Self::U8(a) => a.shape(),
            Self::I64(a) => a.shape(),
        }
    }

    /// Its values as f32, if it holds f32.
    #[must_use]
    pub fn as_f32(&self) -> Option<ArrayViewD<'_, f32>> {
        match self {
            Self::F32(a) => Some(a.view()),
            _ => None,
        }
    }

    /// Its values as u8, if it holds u8.
    #[must_use]
    pub fn as_u8(&self) -> Option<ArrayViewD<'_, u8>> {
        match self {
            Self::U8(a) => Some(a.view()),
            _ => None,
        }
    }
}

/// A tensor where a session left it, which may be the memory of a device.
#[derive(Debug)]
pub enum Resident {
    /// In the program's own memory.
    Host(Tensor),
    /// Where ONNX Runtime computes.
    #[cfg(feature = "ort")]
    Ort(ort::Bound),
}

impl Resident {
    /// The tensor in the program's own memory.
    ///
    /// # Errors
    /// `Runtime` if the device fails.
    pub fn into_host(self) -> Result<Tensor> {
        match self {
            Self::Host(tensor) => Ok(tensor),
            #[cfg(feature = "ort")]
            Self::Ort(bound) => bound.to_host(),
        }
    }

    /// A copy of the tensor in the program's own memory.
    ///
    /// # Errors
    /// `Runtime` if the device fails.
    pub fn to_host(&self) -> Result<Tensor> {
        match self {
            Self::Host(tensor) => Ok(tensor.clone()),
            #[cfg(feature = "ort")]
            Self::Ort(bound) => bound.to_host(),
        }
    }
}

/// Type and shape of a tensor.
#[cfg(any(feature = "ort", feature = "tract"))]
pub(crate) trait Shaped {
    fn element(&self) -> ElementType;
    fn dims(&self) -> &[usize];
}

#[cfg(any(feature = "ort", feature = "tract"))]
impl Shaped for Tensor {
    fn element(&self) -> ElementType {
        Self::element(self)
    }

    fn dims(&self) -> &[usize] {
        Self::dims(self)
    }
}

#[cfg(any(feature = "ort", feature = "tract"))]
impl Shaped for &Resident {
    fn element(&self) -> ElementType {
        match self {
            Resident::Host(tensor) => tensor.element(),
            #[cfg(feature = "ort")]
            Resident::Ort(bound) => bound.element,
        }
    }

    fn dims(&self) -> &[usize] {
        match self {
            Resident::Host(tensor) => tensor.dims(),
            #[cfg(feature = "ort")]
            Resident::Ort(bound) => &bound.dims,
        }
    }
}

/// Where ONNX Runtime computes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provider {
    /// The CPU.
    Cpu,
    /// The CPU, with convolutions by Winograd's minimal filtering: faster, and off by 1e-6 to 1e-5 of the outputs' size. A model that has none
    /// suited to it is opened as on `Cpu`.
    Winograd,
    /// A CUDA device.
    Cuda {
        /// Its number.
        device: u32,
        /// Whether products may be computed in TF32.
        tf32: bool,
        /// Whether cuDNN times its convolution algorithms and takes the fastest, which may differ from run to run and so may the last bits of results.
        benchmark: bool,
    },
    /// A device of an execution provider from a library of its own, registered with `OrtRuntime::register`.
    Plugin {
        /// Name under which the library was registered.
        library: String,
        /// Number of the device among those the library brought.
        device: usize,
    },
}

/// A node of a graph and the execution provider that computes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedNode {
    /// ONNX Runtime's name of the provider, e.g. `CUDAExecutionProvider`.
    pub provider: String,
    /// The node.
    pub name: String,
    /// Its operation.
    pub op: String,
}

/// A model ready to run.
pub trait Session: Send {
    /// `ort-cpu`, `ort-winograd`, `ort-cuda`, `ort-cuda-tf32`, `tract`, `libtorch`, or `ort-` and a plugin provider's name and kind of device.
    fn runtime(&self) -> &str;

    /// The model.
    fn model(&self) -> &ModelInfo;

    /// Nodes that ONNX Runtime's CPU provider computes though the session is for another device.
    ///
    /// # Errors
    /// `Runtime` if the runtime does not tell.
    fn left_to_cpu(&self) -> Result<Vec<PlacedNode>> {
        Ok(Vec::new())
    }

    /// Runs the model on `inputs` and gives all outputs in the model's order.
    ///
    /// # Errors
    /// `Input` if an input is missing or does not fit; `Runtime` if the runtime fails.
    fn run(&mut self, inputs: &[(&str, Tensor)]) -> Result<Vec<(String, Tensor)>>;

    /// As [`Session::run`], on inputs wherever they are; outputs in `keep` stay where the session computes, the others come to the host. A session
    /// without a device's memory has everything on the host.
    ///
    /// # Errors
    /// Those of [`Session::run`].
    fn run_resident(&mut self, inputs: &[(&str, &Resident)], keep: &[&str]) -> Result<Vec<(String, Resident)>> {
        let _ = keep;
        let hosted = |(name, value): &(_, &Resident)| Ok((*name, value.to_host()?));
        let inputs: Vec<(&str, Tensor)> = inputs.iter().map(hosted).collect::<Result<_>>()?;
        Ok(self.run(&inputs)?.into_iter().map(|(name, tensor)| (name, Resident::Host(tensor))).collect())
    }
}

/// `inputs` in the model's order, checked against it.
#[cfg(any(feature = "ort", feature = "tract"))]
pub(crate) fn arrange<'a, T: Shaped>(model: &ModelInfo, inputs: &'a [(&str, T)]) -> Result<Vec<&'a T>> {
    for (name, _) in inputs {
        if model.input(name).is_none() {
            let expected = model.inputs.iter().map(|v| v.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(Error::Input { name: (*name).to_owned(), expected, found: "another name".to_owned() });
        }
    }
    // Lengths of the symbolic axes by name.
    let mut lengths: Vec<(&str, usize)> = Vec::new();
    let mut arranged = Vec::with_capacity(inputs.len());
    for wanted in &model.inputs {
        let wrong = |found: String| Error::Input {
            name: wanted.name.clone(),
            expected: format!("{} [{}]", wanted.element, wanted.axes().join(", ")),
            found,
        };
        let Some((_, tensor)) = inputs.iter().find(|(n, _)| *n == wanted.name) else {
            return Err(wrong("nothing".to_owned()));
        };
        let mut fits = tensor.element() == wanted.element && tensor.dims().len() == wanted.dims.len();
        let mut other = None;
        for ((have, want), symbol) in tensor.dims().iter().zip(&wanted.dims).zip(&wanted.symbols) {
            match (want, symbol) {
                (Dim::Known(n), _) => fits &= n == have,
                (Dim::Batch, None) => {}
                (Dim::Batch, Some(symbol)) => match lengths.iter().find(|(name, _)| name == symbol) {
                    Some((_, length)) if length != have => other = Some(format!(" where `{symbol}` is {length}")),
                    Some(_) => {}
                    None => lengths.push((symbol, *have)),
                },
            }
        }
        if !fits || other.is_some() {
            return Err(wrong(format!("{} {:?}{}", tensor.element(), tensor.dims(), other.unwrap_or_default())));
        }
        arranged.push(tensor);
    }
    Ok(arranged)
}

#[cfg(all(test, feature = "tract"))]
mod tests {
    use d2o_onnx::read::ValueInfo;

    use super::*;

    #[test]
    fn symbolic_axes_of_one_name_are_equally_long() {
        let value = |name: &str, axes: &[&str]| {
            let known = |axis: &&str| axis.parse().map_or(Dim::Batch, Dim::Known);
            let symbol = |axis: &&str| Some((*axis).to_owned()).filter(|a| a.parse::<usize>().is_err() && a != "?");
            let (dims, symbols) = (axes.iter().map(known).collect(), axes.iter().map(symbol).collect());
            ValueInfo { name: name.to_owned(), element: ElementType::F32, dims, symbols }
        };
        let inputs =
            vec![value("x", &["batch", "3", "height", "width"]), value("s", &["batch"]), value("f", &["?", "?"])];
        let model = ModelInfo { inputs, ..ModelInfo::default() };
        let text = |x: &[usize], s: usize, f: [usize; 2]| {
            let zeros = |dims: &[usize]| Tensor::F32(ArrayD::zeros(dims));
            let inputs = [("x", zeros(x)), ("s", zeros(&[s])), ("f", zeros(&f))];
            arrange(&model, &inputs).map_or_else(|e| e.to_string(), |_| String::new())
        };
        assert_eq!(text(&[8, 3, 299, 300], 8, [1, 2]), "");
        assert_eq!(
            text(&[8, 3, 299, 299], 4, [1, 2]),
            "input `s`: expected f32 [batch], found f32 [4] where `batch` is 8"
        );
        assert_eq!(
            text(&[8, 4, 299, 299], 8, [1, 2]),
            "input `x`: expected f32 [batch, 3, height, width], found f32 [8, 4, 299, 299]"
        );
    }
}
