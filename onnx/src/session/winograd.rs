//! Convolutions by Winograd's minimal filtering, as an operator of ONNX Runtime on CPUs.
//!
//! A graph stays as it is on disk. When it is opened, ONNX Runtime optimises it first: its convolutions then have images in blocks of channels
//! (`com.microsoft.nchwc`), and the ReLUs and sums after them inside. Each convolution whose shape is suited becomes a node of the domain `d2o` that takes and
//! gives the same blocks, and computes from a half (filters of 7 taps) to a quarter (3 × 3) of the products; everything else stays ONNX Runtime's. Rounding
//! differs: outputs are off by 1e-6 to 1e-5 of their size.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use d2o_winograd::{Convolution, Images, Pool};
use ort::Result as OrtResult;
use ort::operator::{
    BoxedKernel, ComputeContext, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
    ShapeInferenceContext,
};
use ort::session::Session;
use ort::value::{TensorElementType, TensorRef, ValueType};
use prost::Message as _;

use crate::graph::ElementType;
use crate::proto::{
    AttributeProto, DimensionProto, DimensionValue, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};

/// Domain and name of the operator.
const DOMAIN: &str = "d2o";
const NAME: &str = "Winograd";
/// Which convolution of the model a node stands for.
const INDEX: &str = "index";
/// ONNX Runtime's domain of images in blocks of channels.
const BLOCKED: &str = "com.microsoft.nchwc";
/// Least input and output channels for which it is faster.
const PAYS_FROM: usize = 32;
/// Channels in a block, as ONNX Runtime has them on CPUs with and without AVX-512.
const BLOCKS: [usize; 2] = [8, 16];

/// Channels in a block on this machine; `session` opens a model in memory.
pub(super) fn block(session: impl FnOnce(&[u8]) -> OrtResult<Session>) -> OrtResult<usize> {
    const CHANNELS: usize = 64;
    const PIXELS: usize = 2;
    let dims = [1, CHANNELS, 1, PIXELS].map(crate::graph::signed);
    let dim = dims.iter().map(|d| DimensionProto { value: Some(DimensionValue::DimValue(*d)) }).collect();
    let shape = Some(TensorShapeProto { dim });
    let tensor = TensorTypeProto { elem_type: ElementType::F32.code(), shape };
    let r#type = Some(TypeProto { tensor_type: Some(tensor) });
    let value = |name: &str| ValueInfoProto { name: name.to_owned(), r#type: r#type.clone() };
    let reorder = NodeProto {
        input: vec!["x".to_owned()],
        output: vec!["y".to_owned()],
        op_type: "ReorderInput".to_owned(),
        domain: BLOCKED.to_owned(),
        ..NodeProto::default()
    };
    let graph = GraphProto {
        node: vec![reorder],
        name: "block".to_owned(),
        input: vec![value("x")],
        output: vec![value("y")],
        ..GraphProto::default()
    };
    let opset = |domain: &str, version| OperatorSetIdProto { domain: domain.to_owned(), version };
    let model = ModelProto {
        ir_version: crate::opset::IR_VERSION,
        graph: Some(graph),
        opset_import: vec![opset("", crate::opset::OPSET), opset(BLOCKED, 1)],
        ..ModelProto::default()
    };
    let mut session = session(&model.encode_to_vec())?;
    let x: Vec<f32> = (0..CHANNELS * PIXELS).map(|i| if i == 1 { 1.0 } else { 0.0 }).collect();
    let outputs = session.run([TensorRef::from_array_view((dims, x.as_slice()))?.into()].as_slice())?;
    let (_, y) = outputs[0].try_extract_tensor::<f32>()?;
    // The second pixel of the first channel lies behind the first pixel of all channels of its block.
    let block = y.iter().position(|v| *v == 1.0).filter(|block| BLOCKS.contains(block));
    block.ok_or_else(|| ort::Error::new("this build of ONNX Runtime keeps images in blocks of another size"))
}

/// `optimised`, a model as ONNX Runtime writes it, with its suited convolutions replaced, and the operator they became.
pub(super) fn rewritten(optimised: &[u8], block: usize) -> OrtResult<(Vec<u8>, OperatorDomain)> {
    let model = ModelProto::decode(optimised);
    let mut model = model.map_err(|e| ort::Error::new(format!("the optimised graph cannot be read: {e}")))?;
    let mut convolutions = Vec::new();
    if let Some(graph) = &mut model.graph {
        if let Some(name) = unread(graph) {
            return Err(ort::Error::new(format!("`{name}` cannot be read in the optimised graph")));
        }
        convolutions = replace(graph, block);
    }
    model.opset_import.push(OperatorSetIdProto { domain: DOMAIN.to_owned(), version: 1 });
    let operator = Winograd { convolutions: convolutions.into(), pool: Arc::default() };
    Ok((model.encode_to_vec(), OperatorDomain::new(DOMAIN)?.add(operator)?))
}

/// A tensor or node of `graph` that holds what our messages leave out.
fn unread(graph: &GraphProto) -> Option<&str> {
    let filled = |t: &TensorProto| t.dims.iter().all(|d| *d > 0);
    let tensor = graph.initializer.iter().find(|t| filled(t) && t.raw_data.is_empty()).map(|t| &t.name);
    let known = |a: &AttributeProto| AttributeProto::TYPES.contains(&a.r#type);
    let node = graph.node.iter().find(|n| !n.attribute.iter().all(known)).map(|n| &n.name);
    tensor.or(node).map(String::as_str)
}

/// Replaces nodes of `graph`, and takes out the weights that no other node uses.
fn replace(graph: &mut GraphProto, block: usize) -> Vec<Convolution> {
    let tensors: HashMap<&str, &TensorProto> = graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect();
    let mut convolutions = Vec::new();
    for node in &mut graph.node {
        let Some(convolution) = suited(node, &tensors, block) else { continue };
        let sum = node.input.get(3).filter(|name| !name.is_empty()).cloned();
        node.input.truncate(1);
        node.input.extend(sum);
        NAME.clone_into(&mut node.op_type);
        DOMAIN.clone_into(&mut node.domain);
        node.attribute = vec![AttributeProto::int(INDEX, crate::graph::signed(convolutions.len()))];
        convolutions.push(convolution);
    }
    let used: HashSet<&str> = graph.node.iter().flat_map(|n| n.input.iter().map(String::as_str)).collect();
    let used: HashSet<&str> = used.into_iter().chain(graph.output.iter().map(|o| o.name.as_str())).collect();
    graph.initializer.retain(|t| used.contains(t.name.as_str()));
    convolutions
}

/// The convolution `node` is, if minimal filtering makes it faster.
fn suited(node: &NodeProto, tensors: &HashMap<&str, &TensorProto>, block: usize) -> Option<Convolution> {
    let of = |name: &str| node.attribute.iter().find(|a| a.name == name);
    let ones = |name: &str| of(name).is_none_or(|a| a.ints.iter().all(|v| *v == 1));
    let text = |name: &str| of(name).map_or(&b""[..], |a| &a.s);
    let plain = node.op_type == "Conv" && node.domain == BLOCKED && of("group").is_none_or(|a| a.i == 1);
    let relu = text("activation") == b"Relu";
    if !plain || !ones("strides") || !ones("dilations") {
        return None;
    }
    if !(relu || text("activation").is_empty()) || !matches!(text("auto_pad"), b"" | b"NOTSET") {
        return None;
    }
    let size = |v: &i64| usize::try_from(*v).ok();
    let weight = tensors.get(node.input.get(1)?.as_str())?;
    let dims: [usize; 4] = weight.dims.iter().map(size).collect::<Option<Vec<_>>>()?.try_into().ok()?;
    if dims[0].min(dims[1]) < PAYS_FROM || dims[..2].iter().any(|n| !n.is_multiple_of(block)) {
        return None;
    }
    let pads = match of("pads") {
        Some(pads) => pads.ints.iter().map(size).collect::<Option<Vec<_>>>()?.try_into().ok()?,
        None => [0; 4],
    };
    let bias = match node.input.get(2).filter(|name| !name.is_empty()) {
        Some(name) => Some(values(tensors.get(name.as_str())?)?),
        None => None,
    };
    let weights = unblocked(&values(weight)?, dims, block)?;
    Convolution::new(&weights, dims, bias.as_deref(), pads, relu, block)
}

fn values(tensor: &TensorProto) -> Option<Vec<f32>> {
    let floats = tensor.raw_data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    (tensor.data_type == ElementType::F32.code()).then(|| floats.collect())
}

/// Weights `[Co / block, Ci / block, height, width, Ci, Co]` as `[Co, Ci, height, width]`.
fn unblocked(weights: &[f32], [outputs, inputs, height, width]: [usize; 4], block: usize) -> Option<Vec<f32>> {
    let taps = height.checked_mul(width)?;
    if outputs.checked_mul(inputs)?.checked_mul(taps)? != weights.len() {
        return None;
    }
    let mut plain = vec![0.0; weights.len()];
    for (i, weight) in weights.iter().enumerate() {
        let (output, input, rest) = (i % block, i / block % block, i / block / block);
        let (tap, rest) = (rest % taps, rest / taps);
        let (input, output) = (rest % (inputs / block) * block + input, rest / (inputs / block) * block + output);
        plain[(output * inputs + input) * taps + tap] = *weight;
    }
    Some(plain)
}

/// The operator: inputs `[N, Ci, H, W]` and, where there is one, what is added, one output `[N, Co, H', W']`, all in blocks of channels; the rest is in
/// the convolution that the attribute `index` names.
struct Winograd {
    convolutions: Arc<[Convolution]>,
    pool: Arc<Pool>,
}

impl Winograd {
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
        let Some([height, width]) = size(height).zip(size(width)).and_then(|(h, w)| convolution.output_size(h, w))
        else {
            return Ok(());
        };
        let [channels, height, width] = [convolution.outputs(), height, width].map(crate::graph::signed);
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
    let refused = || ort::Error::new(format!("an input of {dims:?} does not suit the convolution"));
    let &[batch, channels, height, width] = &dims[..] else { return Err(refused()) };
    let size = convolution.output_size(height, width).filter(|_| channels == convolution.inputs());
    let [rows, columns] = size.ok_or_else(refused)?;
    let shape = [batch, convolution.outputs(), rows, columns].map(crate::graph::signed);
    let added = context.input(1)?;
    let sum = match &added {
        Some(value) => Some(value.try_extract_tensor::<f32>()?.1),
        None => None,
    };
    if sum.is_some_and(|sum| sum.len() != batch * convolution.outputs() * rows * columns) {
        return Err(refused());
    }
    let mut output = context.output(0, shape)?.ok_or_else(|| ort::Error::new("no output"))?;
    let (_, out) = output.try_extract_tensor_mut::<f32>()?;
    let images = Images { values, sum, batch, height, width };
    convolution.run(&images, out, pool, |tasks, task| context.par_for(tasks, tasks, task))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graphs_that_cannot_be_read_in_whole_are_found() {
        let tensor = |dims: &[i64], raw_data: &[u8]| TensorProto {
            name: "w".to_owned(),
            dims: dims.to_vec(),
            raw_data: raw_data.to_vec(),
            ..TensorProto::default()
        };
        let found = |attribute: AttributeProto, weight: TensorProto| {
            let node = NodeProto { name: "n".to_owned(), attribute: vec![attribute], ..NodeProto::default() };
            let graph = GraphProto { node: vec![node], initializer: vec![weight], ..GraphProto::default() };
            unread(&graph).map(str::to_owned)
        };
        let float = || AttributeProto::float("alpha", 0.5);
        assert_eq!(found(float(), tensor(&[1], &[0; 4])), None);
        assert_eq!(found(float(), tensor(&[0, 3], &[])), None);
        // Values in `float_data` or in another file; a tensor, a graph, floats, strings or a sparse tensor as an attribute.
        for dims in [&[1][..], &[]] {
            assert_eq!(found(float(), tensor(dims, &[])).as_deref(), Some("w"), "{dims:?}");
        }
        for r#type in [0, 4, 5, 6, 8, 11] {
            let attribute = AttributeProto { r#type, ..AttributeProto::default() };
            assert_eq!(found(attribute, tensor(&[1], &[0; 4])).as_deref(), Some("n"), "type {type}", type = r#type);
        }
    }
}
