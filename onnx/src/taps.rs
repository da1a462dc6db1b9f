//! Nodes of a graph file, and copies of the graph with intermediate tensors as outputs.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use fs_err as fs;
use prost::Message as _;

use crate::compose::prune;
use crate::error::{Result, invalid};
use crate::graph::ElementType;
use crate::proto::{GraphProto, ModelProto, ValueInfoProto};
use crate::read::written;

/// A node of a graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Name: the path of the layer, then the operator.
    pub name: String,
    /// Operator.
    pub op: String,
    /// Names of the inputs, including initializers.
    pub inputs: Vec<String>,
    /// Name of the first output.
    pub output: String,
    /// Element type of the first output, inferred from the operator and its inputs.
    pub element: ElementType,
}

/// A loaded graph whose intermediate tensors can be exposed as outputs.
pub struct Taps {
    model: ModelProto,
    nodes: Vec<Node>,
    /// Indices of `nodes` by the names of their outputs.
    writers: HashMap<String, usize>,
    weights: HashSet<String>,
}

impl std::fmt::Debug for Taps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Taps").field("nodes", &self.nodes.len()).finish_non_exhaustive()
    }
}

impl Taps {
    /// Reads the graph at `path`.
    ///
    /// # Errors
    /// `Format` if the file is not an ONNX model that d2o wrote with all weights in the file. `Io` if it cannot be
    /// read.
    pub fn open(path: &Path) -> Result<Self> {
        let model = written(path)?;
        let empty = GraphProto::default();
        let graph = model.graph.as_ref().unwrap_or(&empty);
        let declared =
            graph.input.iter().filter_map(|v| Some((v.name.clone(), ElementType::from_code(v.tensor()?.elem_type)?)));
        let weights =
            graph.initializer.iter().filter_map(|t| Some((t.name.clone(), ElementType::from_code(t.data_type)?)));
        let mut elements: HashMap<String, ElementType> = declared.chain(weights).collect();
        let mut nodes = Vec::with_capacity(graph.node.len());
        for node in &graph.node {
            let first = node.input.first().and_then(|n| elements.get(n)).copied().unwrap_or(ElementType::F32);
            let element = match node.op_type.as_str() {
                "Cast" => {
                    let to = node.attribute.iter().find(|a| a.name == "to");
                    to.and_then(|a| i32::try_from(a.i).ok()).and_then(ElementType::from_code).unwrap_or(first)
                }
                "Shape" | "Size" | "ArgMax" => ElementType::I64,
                "Where" => node.input.get(1).and_then(|n| elements.get(n)).copied().unwrap_or(first),
                _ => first,
            };
            for output in &node.output {
                elements.insert(output.clone(), element);
            }
            if let Some(output) = node.output.first() {
                nodes.push(Node {
                    name: node.name.clone(),
                    op: node.op_type.clone(),
                    inputs: node.input.clone(),
                    output: output.clone(),
                    element,
                });
            }
        }
        let weights = graph.initializer.iter().map(|t| t.name.clone()).collect();
        let writers = nodes.iter().enumerate().map(|(i, n)| (n.output.clone(), i)).collect();
        Ok(Self { model, nodes, writers, weights })
    }

    /// The nodes in topological order.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node that writes `edge`.
    #[must_use]
    pub fn writer(&self, edge: &str) -> Option<&Node> {
        self.writers.get(edge).map(|i| &self.nodes[*i])
    }

    /// Whether `edge` is an initializer.
    #[must_use]
    pub fn is_weight(&self, edge: &str) -> bool {
        self.weights.contains(edge)
    }

    /// Writes a copy of the graph with `edges` as its outputs, without nodes that they do not depend on.
    ///
    /// # Errors
    /// `Graph` if `edges` is empty, or one of them is not the first output of a node. `Io` if the file cannot be
    /// written.
    pub fn write(&self, edges: &[&str], path: &Path) -> Result<()> {
        let mut model = self.model.clone();
        let graph = model.graph.get_or_insert_default();
        if edges.is_empty() {
            return Err(invalid(&graph.name, "outputs".to_owned(), "at least one", "none"));
        }
        graph.output = edges
            .iter()
            .map(|edge| {
                let node = self
                    .writer(edge)
                    .ok_or_else(|| invalid(&graph.name, format!("`{edge}`"), "a node that writes it", "none"))?;
                Ok(ValueInfoProto::new(edge, node.element.code(), None))
            })
            .collect::<Result<_>>()?;
        prune(graph);
        Ok(fs::write(path, model.encode_to_vec())?)
    }
}
