//! Convolutions by Winograd's minimal filtering, as an operator of ONNX Runtime on CPUs.
//!
//! A graph stays as it is on disk. When it is opened, each convolution whose shape is suited becomes a node of the domain `d2o` that computes it, and the ReLU
//! after it, from a half (filters of 7 taps) to a quarter (3 × 3) of the products. Rounding differs: outputs are off by 1e-6 to 1e-5 of their size.

mod axis;
mod convolution;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ort::Result as OrtResult;
use ort::operator::{
    BoxedKernel, ComputeContext, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
    ShapeInferenceContext,
};
use ort::value::{TensorElementType, ValueType};

use self::convolution::{Convolution, Images, Pool};
use crate::graph::ElementType;
use crate::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto};

/// Domain and name of the operator.
const DOMAIN: &str = "d2o";
const NAME: &str = "Winograd";
/// Which convolution of the model a node stands for.
const INDEX: &str = "index";
/// Least input and output channels for which it is faster.
const PAYS_FROM: usize = 32;

/// `model` with its suited convolutions replaced, and the operator they became.
pub(super) fn rewritten(mut model: ModelProto) -> OrtResult<(ModelProto, OperatorDomain)> {
    let mut convolutions = Vec::new();
    if let Some(graph) = &mut model.graph {
        convolutions = replace(graph);
    }
    model.opset_import.push(OperatorSetIdProto { domain: DOMAIN.to_owned(), version: 1 });
    let operator = Winograd { convolutions: convolutions.into(), pool: Arc::default() };
    Ok((model, OperatorDomain::new(DOMAIN)?.add(operator)?))
}

/// Replaces nodes of `graph`, and takes out the weights that no other node uses.
fn replace(graph: &mut GraphProto) -> Vec<Convolution> {
    let tensors: HashMap<&str, &TensorProto> = graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect();
    let mut readers: HashMap<&str, Vec<&NodeProto>> = HashMap::new();
    for node in &graph.node {
        for input in &node.input {
            readers.entry(input).or_default().push(node);
        }
    }
    let given: HashSet<&str> = graph.output.iter().map(|o| o.name.as_str()).collect();
    let (mut convolutions, mut nodes, mut gone) = (Vec::new(), Vec::new(), HashSet::new());
    for node in &graph.node {
        if gone.contains(node.name.as_str()) {
            continue;
        }
        let relu =
            node.output.first().filter(|o| !given.contains(o.as_str())).and_then(|o| match readers.get(o.as_str()) {
                Some(readers) if readers.len() == 1 && readers[0].op_type == "Relu" => Some(readers[0]),
                _ => None,
            });
        let Some(convolution) = suited(node, &tensors, relu.is_some()) else {
            nodes.push(node.clone());
            continue;
        };
        gone.extend(relu.map(|r| r.name.as_str()));
        nodes.push(NodeProto {
            input: node.input[..1].to_vec(),
            output: relu.unwrap_or(node).output.clone(),
            name: node.name.clone(),
            op_type: NAME.to_owned(),
            attribute: vec![AttributeProto::int(INDEX, crate::graph::signed(convolutions.len()))],
            domain: DOMAIN.to_owned(),
        });
        convolutions.push(convolution);
    }
    let used: HashSet<String> =
        nodes.iter().flat_map(|n| n.input.iter().cloned()).chain(given.into_iter().map(str::to_owned)).collect();
    graph.node = nodes;
    graph.initializer.retain(|t| used.contains(&t.name));
    convolutions
}

/// The convolution `node` is, if minimal filtering makes it faster.
fn suited(node: &NodeProto, tensors: &HashMap<&str, &TensorProto>, relu: bool) -> Option<Convolution> {
    let of = |name: &str| node.attribute.iter().find(|a| a.name == name);
    let ones = |name: &str| of(name).is_none_or(|a| a.ints.iter().all(|v| *v == 1));
    let plain = node.op_type == "Conv" && of("group").is_none_or(|a| a.i == 1) && of("auto_pad").is_none();
    if !plain || !ones("strides") || !ones("dilations") {
        return None;
    }
    let size = |v: &i64| usize::try_from(*v).ok();
    let weight = tensors.get(node.input.get(1)?.as_str())?;
    let dims: [usize; 4] = weight.dims.iter().map(size).collect::<Option<Vec<_>>>()?.try_into().ok()?;
    if dims[0].min(dims[1]) < PAYS_FROM {
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
    Convolution::new(&values(weight)?, dims, bias.as_deref(), pads, relu)
}

fn values(tensor: &TensorProto) -> Option<Vec<f32>> {
    let floats = tensor.raw_data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    (tensor.data_type == ElementType::F32.code()).then(|| floats.collect())
}

/// The operator: one input `[N, Ci, H, W]`, one output `[N, Co, H', W']`; the rest is in the convolution that the attribute `index` names.
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
        [OperatorInput::required(TensorElementType::Float32)]
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
        let [channels, height, width] = [convolution.outputs, height, width].map(crate::graph::signed);
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
    let size = convolution.output_size(height, width).filter(|_| channels == convolution.inputs);
    let [rows, columns] = size.ok_or_else(refused)?;
    let shape = [batch, convolution.outputs, rows, columns].map(crate::graph::signed);
    let mut output = context.output(0, shape)?.ok_or_else(|| ort::Error::new("no output"))?;
    let (_, out) = output.try_extract_tensor_mut::<f32>()?;
    let images = Images { values, batch, height, width };
    convolution.run(&images, out, pool, |tasks, task| context.par_for(tasks, tasks, task))
}
