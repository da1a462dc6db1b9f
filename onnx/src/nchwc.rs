//! Convolutions on images in blocks of channels (NCHWc), the layout of graphs that ONNX Runtime optimises for CPUs.
//!
//! The domain is `com.microsoft.nchwc`. Images are `[N, C / block, H, W, block]`, weights
//! `[Co / block, Ci / block, kH, kW, block of Ci, block of Co]`. The file declares the shapes of the plain layout.
//! <https://github.com/microsoft/onnxruntime/blob/v1.23.0/onnxruntime/core/optimizer/nchwc_transformer.cc>

use std::collections::{HashMap, HashSet};
use std::path::Path;

use fs_err as fs;
use prost::Message as _;

use crate::error::{Error, Result};
use crate::graph::{ElementType, signed};
use crate::opset::{IR_VERSION, OPSET};
use crate::proto::{
    AttributeProto, DimensionProto, DimensionValue, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, ValueInfoProto, decoded,
};

const DOMAIN: &str = "com.microsoft.nchwc";
/// Attribute of a replaced node: the number of nodes replaced before it.
pub const INDEX: &str = "index";

/// A model with one node, `ReorderInput`. It converts `x [1, C, 1, W]` from the plain layout to `y` in blocks.
///
/// Running it shows the number of channels in a block, which depends on the CPU and on the build of ONNX Runtime.
#[must_use]
pub fn reorder_input(channels: usize, width: usize) -> Vec<u8> {
    let dims = [1, channels, 1, width].map(signed);
    let dim = dims.iter().map(|d| DimensionProto { value: Some(DimensionValue::DimValue(*d)) }).collect();
    let shape = TensorShapeProto { dim };
    let value = |name: &str| ValueInfoProto::new(name, ElementType::F32.code(), Some(shape.clone()));
    let node = NodeProto {
        input: vec!["x".to_owned()],
        output: vec!["y".to_owned()],
        op_type: "ReorderInput".to_owned(),
        domain: DOMAIN.to_owned(),
        ..NodeProto::default()
    };
    let graph = GraphProto {
        node: vec![node],
        name: "reorder".to_owned(),
        input: vec![value("x")],
        output: vec![value("y")],
        ..GraphProto::default()
    };
    let opset = |domain: &str, version| OperatorSetIdProto { domain: domain.to_owned(), version };
    let model = ModelProto {
        ir_version: IR_VERSION,
        graph: Some(graph),
        opset_import: vec![opset("", OPSET), opset(DOMAIN, 1)],
        ..ModelProto::default()
    };
    model.encode_to_vec()
}

/// A convolution on blocked images with one group, strides and dilations of 1, and ReLU or no activation.
#[derive(Debug)]
pub struct Convolution<'a> {
    /// Shape of the weights: `[Co, Ci, kH, kW]`; Co and Ci are multiples of the block.
    pub dims: [usize; 4],
    /// Zero padding: top, left, bottom, right.
    pub pads: [usize; 4],
    /// Whether a ReLU follows.
    pub relu: bool,
    block: usize,
    weights: &'a TensorProto,
    bias: Option<&'a TensorProto>,
}

impl<'a> Convolution<'a> {
    fn new(node: &NodeProto, tensors: &HashMap<&str, &'a TensorProto>, block: usize) -> Option<Self> {
        let of = |name: &str| node.attribute.iter().find(|a| a.name == name);
        let ones = |name: &str| of(name).is_none_or(|a| a.ints.iter().all(|v| *v == 1));
        let text = |name: &str| of(name).map_or(&b""[..], |a| &a.s);
        let relu = text("activation") == b"Relu";
        let supported = node.op_type == "Conv"
            && node.domain == DOMAIN
            && of("group").is_none_or(|a| a.i == 1)
            && ones("strides")
            && ones("dilations")
            && (relu || text("activation").is_empty())
            && matches!(text("auto_pad"), b"" | b"NOTSET");
        if !supported {
            return None;
        }
        let sizes = |all: &[i64]| -> Option<[usize; 4]> {
            all.iter().map(|v| usize::try_from(*v).ok()).collect::<Option<Vec<_>>>()?.try_into().ok()
        };
        let holds = |t: &TensorProto, count: usize| {
            t.data_type == ElementType::F32.code() && Some(t.raw_data.len()) == count.checked_mul(4)
        };
        let weights = *tensors.get(node.input.get(1)?.as_str())?;
        let dims = sizes(&weights.dims)?;
        let count = dims.iter().try_fold(1_usize, |n, d| n.checked_mul(*d))?;
        let blocked = dims[..2].iter().all(|n| n.is_multiple_of(block));
        let bias = match node.input.get(2).filter(|name| !name.is_empty()) {
            Some(name) => Some(*tensors.get(name.as_str())?),
            None => None,
        };
        if !blocked || !holds(weights, count) || bias.is_some_and(|b| !holds(b, dims[0])) {
            return None;
        }
        let pads = of("pads").map_or(Some([0; 4]), |pads| sizes(&pads.ints))?;
        Some(Self { dims, pads, relu, block, weights, bias })
    }

    /// The weights in the plain layout, `[Co, Ci, kH, kW]`.
    #[must_use]
    pub fn weights(&self) -> Vec<f32> {
        let [_, inputs, height, width] = self.dims;
        let (block, taps) = (self.block, height * width);
        let mut plain = vec![0.0; self.weights.raw_data.len() / 4];
        for (i, weight) in self.weights.f32_values().enumerate() {
            let (output, input, rest) = (i % block, i / block % block, i / block / block);
            let (tap, rest) = (rest % taps, rest / taps);
            let (input, output) = (rest % (inputs / block) * block + input, rest / (inputs / block) * block + output);
            plain[(output * inputs + input) * taps + tap] = weight;
        }
        plain
    }

    /// The bias, `[Co]`.
    #[must_use]
    pub fn bias(&self) -> Option<Vec<f32>> {
        self.bias.map(|bias| bias.f32_values().collect())
    }
}

/// Replaces each convolution that `accept` accepts in the model at `path`, an optimised graph of ONNX Runtime, by a
/// node with operator `op` of `domain`.
///
/// The new node reads and writes the same blocked images. Its inputs are the image and, if the convolution has one, the
/// addend. Its attribute [`INDEX`] is the number of earlier calls of `accept` that returned true. Initializers that are
/// no longer used are removed.
///
/// # Errors
/// `Format` if the file is not an ONNX model, or contains data that the rewritten copy would lose. `Io` if it cannot be
/// read.
pub fn replace(
    path: &Path,
    block: usize,
    domain: &str,
    op: &str,
    mut accept: impl FnMut(&Convolution<'_>) -> bool,
) -> Result<Vec<u8>> {
    let mut model: ModelProto = decoded(&fs::read(path)?, path, "ONNX message")?;
    if let Some(graph) = &mut model.graph {
        if let Some(name) = lossy(graph) {
            return Err(Error::Format {
                file: path.to_owned(),
                place: format!("`{name}`"),
                expected: "values in `raw_data`, attributes that are numbers or strings".to_owned(),
                found: "others".to_owned(),
                source: None,
            });
        }
        let tensors: HashMap<&str, &TensorProto> = graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect();
        let mut replaced = 0;
        for node in &mut graph.node {
            if !Convolution::new(node, &tensors, block).is_some_and(|c| accept(&c)) {
                continue;
            }
            let addend = node.input.get(3).filter(|name| !name.is_empty()).cloned();
            node.input.truncate(1);
            node.input.extend(addend);
            op.clone_into(&mut node.op_type);
            domain.clone_into(&mut node.domain);
            node.attribute = vec![AttributeProto::int(INDEX, replaced)];
            replaced += 1;
        }
        let used: HashSet<&str> = graph.node.iter().flat_map(|n| n.input.iter().map(String::as_str)).collect();
        let used: HashSet<&str> = used.into_iter().chain(graph.output.iter().map(|o| o.name.as_str())).collect();
        graph.initializer.retain(|t| used.contains(t.name.as_str()));
    }
    model.opset_import.push(OperatorSetIdProto { domain: domain.to_owned(), version: 1 });
    Ok(model.encode_to_vec())
}

/// Name of the first tensor or node of `graph` with content that the messages of `proto` do not represent.
fn lossy(graph: &GraphProto) -> Option<&str> {
    let filled = |t: &TensorProto| t.dims.iter().all(|d| *d > 0);
    let tensor = graph.initializer.iter().find(|t| filled(t) && t.raw_data.is_empty()).map(|t| &t.name);
    let known = |a: &AttributeProto| AttributeProto::TYPES.contains(&a.r#type);
    let node = graph.node.iter().find(|n| !n.attribute.iter().all(known)).map(|n| &n.name);
    tensor.or(node).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 8;

    fn tensor(name: &str, dims: &[i64], values: impl Iterator<Item = f32>) -> TensorProto {
        let raw_data = values.flat_map(f32::to_le_bytes).collect();
        TensorProto::new(name, ElementType::F32.code(), dims.to_vec(), raw_data)
    }

    /// A graph of one convolution of 16 input and 8 output channels with a bias and an addend.
    fn convolution() -> GraphProto {
        let names = |all: &[&str]| all.iter().map(|n| (*n).to_owned()).collect();
        let node = NodeProto {
            input: names(&["x", "w", "b", "z"]),
            output: names(&["y"]),
            name: "conv".to_owned(),
            op_type: "Conv".to_owned(),
            domain: DOMAIN.to_owned(),
            attribute: vec![AttributeProto::ints("pads", vec![1, 0, 1, 0])],
        };
        // At [Co, Ci, tap]: 1000 co + 10 ci + tap.
        let at = |i: usize| {
            let (output, input, tap, block) = (i % 8, i / 8 % 8, i / 64 % 3, i / 192);
            (1000 * output + 10 * (8 * block + input) + tap) as f32
        };
        let initializer =
            vec![tensor("w", &[8, 16, 3, 1], (0..8 * 16 * 3).map(at)), tensor("b", &[8], (0..8).map(|i| i as f32))];
        GraphProto { node: vec![node], name: "g".to_owned(), initializer, ..GraphProto::default() }
    }

    /// `graph` after [`replace`], and the number of calls of `accept`, which returns `answer`.
    fn replaced(graph: GraphProto, answer: bool) -> Result<(GraphProto, usize)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.onnx");
        fs::write(&path, ModelProto { graph: Some(graph), ..ModelProto::default() }.encode_to_vec()).unwrap();
        let mut calls = 0;
        let bytes = replace(&path, BLOCK, "own", "Fast", |c| {
            calls += 1;
            assert_eq!((c.dims, c.pads, c.relu), ([8, 16, 3, 1], [1, 0, 1, 0], false));
            let expected = |i: usize| (1000 * (i / 48) + 10 * (i / 3 % 16) + i % 3) as f32;
            assert_eq!(c.weights(), (0..8 * 16 * 3).map(expected).collect::<Vec<_>>());
            assert_eq!(c.bias().unwrap(), (0..8).map(|i| i as f32).collect::<Vec<_>>());
            answer
        })?;
        Ok((ModelProto::decode(bytes.as_slice()).unwrap().graph.unwrap(), calls))
    }

    #[test]
    fn a_convolution_becomes_a_node_without_weights() {
        let (graph, calls) = replaced(convolution(), true).unwrap();
        let node = &graph.node[0];
        assert_eq!((calls, node.op_type.as_str(), node.domain.as_str()), (1, "Fast", "own"));
        assert_eq!((&node.input[..], graph.initializer.len()), (&["x".to_owned(), "z".to_owned()][..], 0));
        assert_eq!(node.attribute, [AttributeProto::int(INDEX, 0)]);
        assert_eq!(replaced(convolution(), false).unwrap(), (convolution(), 1));
    }

    #[test]
    fn other_nodes_stay() {
        let changed = |change: fn(&mut GraphProto)| {
            let mut graph = convolution();
            change(&mut graph);
            let (same, calls) = replaced(graph.clone(), true).unwrap();
            assert_eq!((same.node, calls), (graph.node, 0));
        };
        changed(|g| g.node[0].domain.clear());
        changed(|g| g.node[0].attribute.push(AttributeProto::int("group", 2)));
        changed(|g| g.node[0].attribute.push(AttributeProto::ints("strides", vec![1, 2])));
        changed(|g| g.initializer[0].dims[0] = 7);
        changed(|g| g.initializer[0].dims[0] = 16);
        changed(|g| g.initializer[1].raw_data.truncate(4));
    }

    #[test]
    fn what_a_copy_would_lose_is_an_error() {
        let mut graph = convolution();
        graph.initializer[1].raw_data.clear();
        assert!(replaced(graph, true).unwrap_err().to_string().contains("x.onnx: `b`: expected values in `raw_data`"));
        let mut graph = convolution();
        graph.node[0].attribute[0].r#type = 5;
        assert!(replaced(graph, true).unwrap_err().to_string().contains("x.onnx: `conv`: "));
    }
}
