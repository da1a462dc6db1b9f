//! Winograd convolutions as an operator of ONNX Runtime on CPUs.
//!
//! The graph on disk is not changed. When a session opens it, ONNX Runtime first optimises it. The convolutions of the
//! optimised graph work on images in blocks of channels ([`nchwc`]) and include the ReLUs and sums that follow. Each
//! convolution of a supported shape is replaced by a node of the domain `d2o` on the same blocks, which takes a quarter
//! (3 × 3) to 36 % (5 × 5) of the multiplications. Rounding differs from a direct convolution: the relative error is
//! 1e-6 to 1e-5.

use std::path::Path;
use std::sync::Arc;

use d2o_onnx::nchwc::{self, INDEX};
use d2o_winograd::{Convolution, Images, Layout, Pool};
use ort::Result as OrtResult;
use ort::operator::{
    BoxedKernel, ComputeContext, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
    ShapeInferenceContext,
};
use ort::session::Session;
use ort::value::{TensorElementType, TensorRef, ValueType};

/// Domain and name of the operator that replaces convolutions.
const DOMAIN: &str = "d2o";
const NAME: &str = "Winograd";
/// Minimum number of input and of output channels for which the operator is faster.
const MIN_CHANNELS: usize = 32;
/// Numbers of channels in a block of ONNX Runtime; on x86, without and with AVX-512.
const BLOCKS: [usize; 2] = [8, 16];

/// Number of channels in a block on this machine. `session` opens a model from memory.
pub(super) fn block(session: impl FnOnce(&[u8]) -> OrtResult<Session>) -> OrtResult<usize> {
    const CHANNELS: usize = 64;
    const WIDTH: usize = 2;
    let mut session = session(&nchwc::reorder_input(CHANNELS, WIDTH))?;
    let x: Vec<f32> = (0..CHANNELS * WIDTH).map(|i| if i == 1 { 1.0 } else { 0.0 }).collect();
    let dims = [1, CHANNELS, 1, WIDTH];
    let outputs = session.run([TensorRef::from_array_view((dims, x.as_slice()))?.into()].as_slice())?;
    let (_, y) = outputs[0].try_extract_tensor::<f32>()?;
    // The second pixel of the first channel comes after the first pixel of all channels of its block.
    let block = y.iter().position(|v| *v == 1.0).filter(|block| BLOCKS.contains(block));
    block.ok_or_else(|| ort::Error::new("this build of ONNX Runtime uses channel blocks of a size other than 8 or 16"))
}

/// Replaces the supported convolutions of the optimised model at `path`. Returns the model and the operator that
/// computes them.
pub(super) fn rewritten(path: &Path, block: usize) -> d2o_onnx::Result<(Vec<u8>, Winograd)> {
    let mut convolutions = Vec::new();
    let bytes = nchwc::replace(path, block, DOMAIN, NAME, |c| {
        let supported = (c.dims[0].min(c.dims[1]) >= MIN_CHANNELS)
            .then(|| Convolution::new(&c.weights(), c.dims, c.bias().as_deref(), c.pads, c.relu, block))
            .flatten();
        let found = supported.is_some();
        convolutions.extend(supported);
        found
    })?;
    Ok((bytes, Winograd { convolutions: convolutions.into(), pool: Arc::default() }))
}

/// The operator. Its inputs are the images `[N, Ci, H, W]` and an optional addend `[N, Co, H', W']`, its output is
/// `[N, Co, H', W']`, all in blocks of channels. The attribute [`INDEX`] selects the convolution, which has the
/// weights, bias, padding and ReLU.
pub(super) struct Winograd {
    convolutions: Arc<[Convolution]>,
    pool: Arc<Pool>,
}

impl Winograd {
    pub(super) fn into_domain(self) -> OrtResult<OperatorDomain> {
        OperatorDomain::new(DOMAIN)?.add(self)
    }

    fn at(&self, index: i64) -> OrtResult<usize> {
        let index = usize::try_from(index).ok().filter(|i| *i < self.convolutions.len());
        index.ok_or_else(|| ort::Error::new("no such convolution"))
    }
}

impl Operator for Winograd {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        NAME
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [OperatorInput::required(TensorElementType::Float32), OperatorInput::optional(TensorElementType::Float32)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> OrtResult<BoxedKernel<'attr>> {
        let index = self.at(context.get::<i64>(INDEX).unwrap_or(-1))?;
        let (convolutions, pool) = (Arc::clone(&self.convolutions), Arc::clone(&self.pool));
        Ok(Box::new(move |context: &ComputeContext| compute(&convolutions[index], &pool, context)))
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> OrtResult<()> {
        let convolution = &self.convolutions[self.at(context.attr::<i64>(INDEX)?)?];
        let inputs = context.inputs();
        let Some(ValueType::Tensor { ty, shape, dimension_symbols }) = inputs.first() else { return Ok(()) };
        let (&[batch, _, height, width], Some(symbol)) = (&shape[..], dimension_symbols.first()) else { return Ok(()) };
        let size = |v: i64| usize::try_from(v).ok();
        let Some([height, width]) =
            size(height).zip(size(width)).and_then(|(h, w)| convolution.shape().output_size(h, w))
        else {
            return Ok(());
        };
        let [channels, height, width] = [convolution.shape().outputs(), height, width].map(signed);
        let symbols = [symbol.as_str(), "", "", ""];
        let output = ValueType::Tensor {
            ty: *ty,
            shape: [batch, channels, height, width].into_iter().collect(),
            dimension_symbols: ort::value::SymbolicDimensions::new(symbols.map(str::to_owned)),
        };
        context.set_output(0, &output)
    }
}

fn compute(convolution: &Convolution, pool: &Pool, context: &ComputeContext) -> OrtResult<()> {
    let input = context.input(0)?.ok_or_else(|| ort::Error::new("no input"))?;
    let (shape, values) = input.try_extract_tensor::<f32>()?;
    let dims: Vec<usize> = shape.iter().map(|d| usize::try_from(*d).unwrap_or(0)).collect();
    let refused = || ort::Error::new(format!("an input of {dims:?} is incompatible with the convolution"));
    let &[batch, channels, height, width] = &dims[..] else { return Err(refused()) };
    let size = convolution.shape().output_size(height, width).filter(|_| channels == convolution.shape().inputs());
    let [rows, columns] = size.ok_or_else(refused)?;
    let shape = [batch, convolution.shape().outputs(), rows, columns].map(signed);
    let added = context.input(1)?;
    let sum = match &added {
        Some(value) => Some(value.try_extract_tensor::<f32>()?.1),
        None => None,
    };
    if sum.is_some_and(|sum| sum.len() != batch * convolution.shape().outputs() * rows * columns) {
        return Err(refused());
    }
    let mut output = context.output(0, shape)?.ok_or_else(|| ort::Error::new("no output"))?;
    let (_, out) = output.try_extract_tensor_mut::<f32>()?;
    let images = Images { values, layout: Layout::Blocks, batch, height, width };
    convolution.run(&images, sum, out, pool, &|tasks, task| context.par_for(tasks, tasks, task))
}

/// A size as an i64, the type in ONNX Runtime.
fn signed(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}
