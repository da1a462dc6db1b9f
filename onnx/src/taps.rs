//! A written graph's nodes, and copies of it that give intermediate edges as outputs.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use fs_err as fs;
use prost::Message as _;

use crate::compose::prune;
use crate::error::{Error, Result};
use crate::graph::ElementType;
use crate::proto::{GraphProto, ModelProto, TensorTypeProto, TypeProto, ValueInfoProto};
use crate::read::written;

/// A node of a written graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its name: the layer it belongs to, then the operation.
    pub name: String,
    /// ONNX's name of the operation.
    pub op: String,
    /// Edges it reads, weights included.
    pub inputs: Vec<String>,
    /// The first edge it writes.
    pub output: String,
    /// Type of that edge's elements, as far as the node tells.
    pub element: ElementType,
}

/// A written graph whose edges can be asked for.
pub struct Taps {
    model: ModelProto,
    nodes: Vec<Node>,
    /// Positions in `nodes` by the edges they write.
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
    /// `Format` if it is no ONNX model of d2o's, or keeps weights in a side file.
    pub fn open(path: &Path) -> Result<Self> {
        let model = written(path)?;
        let empty = GraphProto::default();
        let graph = model.graph.as_ref().unwrap_or(&empty);
        let declared = graph.input.iter().filter_map(|v| {
            let tensor = v.r#type.as_ref()?.tensor_type.as_ref()?;
            Some((v.name.clone(), ElementType::from_code(tensor.elem_type)?))
        });
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

    /// The nodes, each after those it reads from.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node that writes `edge`.
    #[must_use]
    pub fn writer(&self, edge: &str) -> Option<&Node> {
        self.writers.get(edge).map(|i| &self.nodes[*i])
    }

    /// Whether `edge` is a weight.
    #[must_use]
    pub fn is_weight(&self, edge: &str) -> bool {
        self.weights.contains(edge)
    }

    /// Writes a copy of the graph whose outputs are `edges`, without the nodes these do not need.
    ///
    /// # Errors
    /// `Graph` if no node writes one of `edges`; `Io`.
    pub fn write(&self, edges: &[&str], path: &Path) -> Result<()> {
        let mut model = self.model.clone();
        let Some(graph) = model.graph.as_mut() else { return Ok(()) };
        graph.output = edges
            .iter()
            .map(|edge| {
                let node = self.writer(edge).ok_or_else(|| Error::Graph {
                    graph: graph.name.clone(),
                    what: format!("no node writes `{edge}`"),
                })?;
                let tensor_type = Some(TensorTypeProto { elem_type: node.element.code(), shape: None });
                let kind = TypeProto { tensor_type };
                Ok(ValueInfoProto { name: (*edge).to_owned(), r#type: Some(kind) })
            })
            .collect::<Result<_>>()?;
        prune(graph);
        Ok(fs::write(path, model.encode_to_vec())?)
    }
}
