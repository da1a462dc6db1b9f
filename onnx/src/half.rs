//! Conversion of an f32 graph to mixed precision: f16 weights, convolutions and matrix products. Cast,
//! <https://onnx.ai/onnx/operators/onnx__Cast.html>, opset 13.
//!
//! Normalisation, softmax, roots, quotients and transcendental functions remain in f32. So do inputs, outputs, and
//! nodes of the scopes that the caller names. Sums and elementwise products are in f16 if all operands except constants
//! are.

use std::collections::{HashMap, HashSet};

use ::half::f16;

use crate::check;
use crate::compose::prune;
use crate::error::{Result, invalid};
use crate::graph::{ElementType, Model};
use crate::proto::{AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto};

/// Operators computed in f16.
const HALF: [&str; 4] = ["Conv", "ConvTranspose", "Gemm", "MatMul"];
/// Operators computed in f16 if all operands except constants are f16; for `Concat`, one such operand is enough.
const EITHER: [&str; 12] = [
    "Add",
    "Sub",
    "Mul",
    "Sigmoid",
    "Relu",
    "LeakyRelu",
    "Clip",
    "Concat",
    "MaxPool",
    "AveragePool",
    "Identity",
    "Pad",
];
/// Operators that rearrange elements. The first operand is the data, the others are shapes.
const LAYOUT: [&str; 4] = ["Reshape", "Transpose", "Slice", "Squeeze"];

impl Model {
    /// Converts the graph to mixed precision. Nodes of the scopes `keep` (first components of node names, e.g.
    /// `precond`) remain in f32.
    ///
    /// # Errors
    /// `Graph` if a weight is outside the range of f16.
    pub fn to_f16(&self, keep: &[&str]) -> Result<Self> {
        let mut proto = self.proto.clone();
        let Some(graph) = proto.graph.take() else { return Ok(self.clone()) };
        proto.graph = Some(Rewriter::new(graph, keep).run()?);
        check::check(&proto)?;
        Ok(Self { proto, conv_heights: None })
    }
}

struct Rewriter<'a> {
    graph: GraphProto,
    keep: &'a [&'a str],
    /// Edges in f16.
    halves: HashSet<String>,
    /// f32 initializers by name, and rearranged initializers with the node that rearranges them.
    constants: HashMap<String, Option<NodeProto>>,
    /// f16 copies of f32 edges (`true`), and f32 copies of f16 edges (`false`).
    copies: HashMap<(String, bool), String>,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
}

impl<'a> Rewriter<'a> {
    fn new(graph: GraphProto, keep: &'a [&'a str]) -> Self {
        let f32s = graph.initializer.iter().filter(|t| t.data_type == ElementType::F32.code());
        let constants = f32s.map(|t| (t.name.clone(), None)).collect();
        Self {
            graph,
            keep,
            halves: HashSet::new(),
            constants,
            copies: HashMap::new(),
            nodes: Vec::new(),
            initializers: Vec::new(),
        }
    }

    fn run(mut self) -> Result<GraphProto> {
        let outputs: HashSet<String> = self.graph.output.iter().map(|o| o.name.clone()).collect();
        // Edges that are f32 in the original graph. Others (shapes, bytes) are not converted.
        let mut floats: HashSet<String> = self.constants.keys().cloned().collect();
        let is_float = |v: &&ValueInfoProto| v.tensor().is_some_and(|t| t.elem_type == ElementType::F32.code());
        floats.extend(self.graph.input.iter().filter(is_float).map(|v| v.name.clone()));
        for mut node in std::mem::take(&mut self.graph.node) {
            let to_float = node.op_type != "Cast"
                || node.attribute.iter().any(|a| a.name == "to" && a.i == i64::from(ElementType::F32.code()));
            let kept = self.keep.iter().any(|k| node.name.strip_prefix(k).is_some_and(|rest| rest.starts_with('/')));
            let is_output = node.output.iter().any(|o| outputs.contains(o));
            let operands: Vec<usize> = (0..node.input.len()).filter(|i| floats.contains(&node.input[*i])).collect();
            let deciding: Vec<&String> =
                operands.iter().map(|i| &node.input[*i]).filter(|n| !self.constants.contains_key(*n)).collect();
            let op = node.op_type.as_str();
            let half = !operands.is_empty()
                && !kept
                && !is_output
                && match op {
                    _ if HALF.contains(&op) => true,
                    "Concat" => deciding.iter().any(|n| self.halves.contains(*n)),
                    _ if EITHER.contains(&op) => {
                        !deciding.is_empty() && deciding.iter().all(|n| self.halves.contains(*n))
                    }
                    _ if LAYOUT.contains(&op) => self.halves.contains(&node.input[0]),
                    _ => false,
                };
            if LAYOUT.contains(&op) && deciding.is_empty() && !operands.is_empty() {
                for output in &node.output {
                    self.constants.insert(output.clone(), Some(node.clone()));
                }
            }
            for i in operands {
                node.input[i] = self.typed(&node.input[i].clone(), half)?;
            }
            for output in &node.output {
                if to_float {
                    floats.insert(output.clone());
                }
                if half {
                    self.halves.insert(output.clone());
                }
            }
            if half && node.op_type == "Gemm" {
                self.split_gemm(node);
            } else {
                self.nodes.push(node);
            }
        }
        self.graph.node = self.nodes;
        self.graph.initializer.append(&mut self.initializers);
        // Removes f32 weights and their rearrangements if only f16 copies are used.
        prune(&mut self.graph);
        Ok(self.graph)
    }

    /// Adds `Gemm` of `x`, transposed `w` and an optional bias as `Transpose`, `MatMul` and `Add`, because tract
    /// assumes f32 operands of `Gemm`.
    fn split_gemm(&mut self, gemm: NodeProto) {
        let NodeProto { input, output, name, .. } = gemm;
        let mut node = |op: &str, input: Vec<String>, output: Vec<String>, attribute: Vec<AttributeProto>| {
            self.nodes.push(NodeProto {
                input,
                output,
                name: format!("{name}/{op}"),
                op_type: op.to_owned(),
                attribute,
                ..NodeProto::default()
            });
        };
        let (turned, product) = (format!("{name}/Transpose:0"), format!("{name}/MatMul:0"));
        let perm = AttributeProto::ints("perm", vec![1, 0]);
        node("Transpose", vec![input[1].clone()], vec![turned.clone()], vec![perm]);
        match input.get(2) {
            Some(bias) => {
                node("MatMul", vec![input[0].clone(), turned], vec![product.clone()], Vec::new());
                node("Add", vec![product, bias.clone()], output, Vec::new());
            }
            None => node("MatMul", vec![input[0].clone(), turned], output, Vec::new()),
        }
    }

    /// Name of the edge `name` in f16 (`half`) or f32. If it has the other type, this is a cast or a converted copy.
    fn typed(&mut self, name: &str, half: bool) -> Result<String> {
        if self.halves.contains(name) == half {
            return Ok(name.to_owned());
        }
        if let Some(copy) = self.copies.get(&(name.to_owned(), half)) {
            return Ok(copy.clone());
        }
        let base = name.strip_suffix(":0").unwrap_or(name);
        let copy = match (half, self.constants.get(name).cloned()) {
            (true, Some(None)) => self.narrowed(name, &format!("{base}.f16"))?,
            (true, Some(Some(mut node))) => {
                node.input[0] = self.typed(&node.input[0].clone(), true)?;
                node.name.push_str("_f16");
                node.output = vec![format!("{}:0", node.name)];
                let copy = node.output[0].clone();
                self.nodes.push(node);
                copy
            }
            _ => {
                let (to, suffix) = if half { (ElementType::F16, "to_f16") } else { (ElementType::F32, "to_f32") };
                let node = format!("{base}/{suffix}");
                let copy = format!("{node}:0");
                self.nodes.push(NodeProto {
                    input: vec![name.to_owned()],
                    output: vec![copy.clone()],
                    name: node,
                    op_type: "Cast".to_owned(),
                    attribute: vec![AttributeProto::int("to", i64::from(to.code()))],
                    ..NodeProto::default()
                });
                copy
            }
        };
        if half {
            self.halves.insert(copy.clone());
        }
        self.copies.insert((name.to_owned(), half), copy.clone());
        Ok(copy)
    }

    /// Adds the f32 initializer `name` in f16, called `copy`.
    fn narrowed(&mut self, name: &str, copy: &str) -> Result<String> {
        let found = self.graph.initializer.iter().find(|t| t.name == name);
        let Some(tensor) = found else {
            return Err(invalid(&self.graph.name, format!("`{name}`"), "an initializer", "another edge"));
        };
        let mut bytes = Vec::with_capacity(tensor.raw_data.len() / 2);
        for v in tensor.f32_values() {
            let narrow = f16::from_f32(v);
            if narrow.is_infinite() && v.is_finite() {
                return Err(invalid(
                    &self.graph.name,
                    format!("`{name}`"),
                    "weights in the range of f16",
                    v.to_string(),
                ));
            }
            bytes.extend(narrow.to_le_bytes());
        }
        self.initializers.push(TensorProto::new(copy, ElementType::F16.code(), tensor.dims.clone(), bytes));
        Ok(copy.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Dim, GraphBuilder};
    use crate::ops::ConvAttributes;

    /// A convolution, a softmax, a residual sum, and a product in a separate scope.
    fn model() -> Model {
        let mut g = GraphBuilder::new("g");
        let x = g.input("x", ElementType::F32, &[Dim::Batch, Dim::Known(2), Dim::Known(4), Dim::Known(4)]).unwrap();
        g.set_scope("model.conv");
        let w = g.constant("model.conv.weight", &[2, 2], vec![0.1, 0.2, -0.3, 1.0]).unwrap();
        let w = g.reshape(&w, &[2, 2, 1, 1]).unwrap();
        let how = ConvAttributes::padded(0);
        let h = g.conv2d(&x, &w, None, how).unwrap();
        let s = g.softmax(&h, 3).unwrap();
        let twice = g.scale(&h, 2.0).unwrap();
        let y = g.conv2d(&s, &w, None, how).unwrap();
        let y = g.add(&y, &twice).unwrap();
        g.set_scope("precond");
        let y = g.scale(&y, 0.5).unwrap();
        let y = g.add(&y, &x).unwrap();
        g.output("y", &y).unwrap();
        g.finish().unwrap()
    }

    #[test]
    fn convolutions_are_f16_and_softmax_is_f32() {
        let half = model().to_f16(&["precond"]).unwrap();
        let graph = half.proto.graph.as_ref().unwrap();
        let casts: Vec<_> = graph.node.iter().filter(|n| n.op_type == "Cast").map(|n| n.name.as_str()).collect();
        assert_eq!(casts, ["x/to_f16", "model/conv/Conv/to_f32", "model/conv/Softmax/to_f16", "model/conv/Add/to_f32"]);
        let names: Vec<_> = graph.initializer.iter().map(|t| (t.name.as_str(), t.data_type)).collect();
        // The weight exists in f16 only and is rearranged as before. The factor in `model` is f16, the factor in
        // `precond` f32.
        assert_eq!(
            names,
            [("shape.2_2_1_1", 7), ("scalar.5e-1", 1), ("model.conv.weight.f16", 10), ("scalar.2e0.f16", 10)]
        );
    }

    #[test]
    fn weights_outside_the_range_are_errors() {
        let mut g = GraphBuilder::new("g");
        let x = g.input("x", ElementType::F32, &[Dim::Batch, Dim::Known(1)]).unwrap();
        let w = g.constant("w", &[1, 1], vec![1e6]).unwrap();
        let y = g.linear(&x, &w, None).unwrap();
        g.output("y", &y).unwrap();
        let text = g.finish().unwrap().to_f16(&[]).unwrap_err().to_string();
        assert!(text.contains("`w`: expected weights in the range of f16, found 1000000"), "{text}");
    }
}
