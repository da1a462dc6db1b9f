//! Building a graph: edges with types and shapes, weights, nodes named after the scope they belong to.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::rc::Rc;

use crate::check;
use crate::error::{Error, Result};
use crate::opset::{IR_VERSION, OPSET};
use crate::proto::{
    AttributeProto, DimensionProto, DimensionValue, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};

/// Name of the symbolic axis.
pub const BATCH: &str = "N";

/// `producer_name` of the graphs built here.
pub const PRODUCER: &str = "d2o";

/// Element types of edges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum ElementType {
    F32,
    U8,
    I32,
    I64,
    Bool,
    F16,
    F64,
}

impl ElementType {
    const CODES: [(Self, i32); 7] = [
        (Self::F32, 1),
        (Self::U8, 2),
        (Self::I32, 6),
        (Self::I64, 7),
        (Self::Bool, 9),
        (Self::F16, 10),
        (Self::F64, 11),
    ];

    pub(crate) fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::F32 | Self::F64)
    }

    pub(crate) fn code(self) -> i32 {
        Self::CODES.iter().find(|(t, _)| *t == self).map_or(0, |(_, c)| *c)
    }

    pub(crate) fn from_code(code: i32) -> Option<Self> {
        Self::CODES.iter().find(|(_, c)| *c == code).map(|(t, _)| *t)
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::U8 => "u8",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::Bool => "bool",
            Self::F16 => "f16",
            Self::F64 => "f64",
        })
    }
}

/// Length of one axis of an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dim {
    /// Fixed.
    Known(usize),
    /// The batch, known when the graph runs.
    Batch,
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(n) => write!(f, "{n}"),
            Self::Batch => f.write_str(BATCH),
        }
    }
}

/// `[N, 3, 32, 32]`.
pub(crate) fn show(dims: &[Dim]) -> String {
    format!("[{}]", dims.iter().map(Dim::to_string).collect::<Vec<_>>().join(", "))
}

/// A value in a graph; clones are cheap.
#[derive(Debug, Clone)]
pub struct Edge(Rc<EdgeData>);

#[derive(Debug)]
struct EdgeData {
    name: String,
    element: ElementType,
    dims: Vec<Dim>,
}

impl Edge {
    /// Its name in the graph.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Type of its elements.
    #[must_use]
    pub fn element(&self) -> ElementType {
        self.0.element
    }

    /// Its shape.
    #[must_use]
    pub fn dims(&self) -> &[Dim] {
        &self.0.dims
    }

    /// `f32 [N, 3]`.
    pub(crate) fn describe(&self) -> String {
        format!("{} {}", self.element(), show(self.dims()))
    }
}

/// Whether both hold floats of one type.
pub(crate) fn same_floats(a: &Edge, b: &Edge) -> bool {
    a.element() == b.element() && a.element().is_float()
}

/// A finished, checked graph.
#[derive(Debug, Clone)]
pub struct Model {
    pub(crate) proto: ModelProto,
    /// Height of the input of each convolution, pixels, by the name of its output.
    pub(crate) conv_heights: HashMap<String, usize>,
}

/// A graph under construction.
#[derive(Debug)]
pub struct GraphBuilder {
    name: String,
    scope: String,
    nodes: Vec<NodeProto>,
    pub(crate) conv_heights: HashMap<String, usize>,
    initializers: Vec<TensorProto>,
    shared: HashMap<(Vec<i64>, i32, Vec<u8>), Edge>,
    names: HashMap<String, usize>,
    inputs: Vec<ValueInfoProto>,
    outputs: Vec<ValueInfoProto>,
    metadata: BTreeMap<String, String>,
}

impl GraphBuilder {
    /// Largest constant that is shared with an equal one, bytes.
    const SHARE_BELOW: usize = 1 << 14;

    /// An empty graph called `name`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            scope: String::new(),
            nodes: Vec::new(),
            conv_heights: HashMap::new(),
            initializers: Vec::new(),
            shared: HashMap::new(),
            names: HashMap::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            metadata: BTreeMap::new(),
        }
    }

    /// Layer the following nodes belong to, e.g. `model.enc.32x32_block0.conv0`; their names begin with it.
    pub fn set_scope(&mut self, scope: &str) {
        scope.clone_into(&mut self.scope);
    }

    /// Adds metadata to the model.
    pub fn metadata(&mut self, key: &str, value: impl Into<String>) {
        self.metadata.insert(key.to_owned(), value.into());
    }

    /// An input of the graph.
    ///
    /// # Errors
    /// `Graph` if the name is taken.
    pub fn input(&mut self, name: &str, element: ElementType, dims: &[Dim]) -> Result<Edge> {
        self.reserve(name)?;
        self.inputs.push(value_info(name, element, dims));
        Ok(Edge(Rc::new(EdgeData { name: name.to_owned(), element, dims: dims.to_vec() })))
    }

    /// Makes `edge` an output called `name`.
    ///
    /// # Errors
    /// `Graph` if the name is taken.
    pub fn output(&mut self, name: &str, edge: &Edge) -> Result<()> {
        self.reserve(name)?;
        self.outputs.push(value_info(name, edge.element(), edge.dims()));
        let node = self.unique(&format!("{name}/Identity"));
        self.nodes.push(NodeProto {
            input: vec![edge.name().to_owned()],
            output: vec![name.to_owned()],
            name: node,
            op_type: "Identity".to_owned(),
            attribute: Vec::new(),
            ..NodeProto::default()
        });
        Ok(())
    }

    /// A fixed f32 tensor called `name`, row-major. Small equal ones become one.
    ///
    /// # Errors
    /// `Shape` if `data` does not fill `dims`.
    pub fn constant(&mut self, name: &str, dims: &[usize], data: Vec<f32>) -> Result<Edge> {
        if product(dims.iter().copied()) != Some(data.len()) {
            return Err(self.mismatch("constant", format!("`{name}`: {} values for {dims:?}", data.len())));
        }
        let bytes = data.iter().flat_map(|v| v.to_le_bytes()).collect();
        Ok(self.initializer(name, ElementType::F32, dims, bytes))
    }

    pub(crate) fn integers(&mut self, values: &[i64]) -> Edge {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let name = format!("shape.{}", values.iter().map(i64::to_string).collect::<Vec<_>>().join("_"));
        self.initializer(&name, ElementType::I64, &[values.len()], bytes)
    }

    pub(crate) fn scalar(&mut self, value: f64) -> Edge {
        #[allow(clippy::cast_possible_truncation, reason = "graphs compute in f32")]
        let value = value as f32;
        self.initializer(&format!("scalar.{value:e}"), ElementType::F32, &[], value.to_le_bytes().to_vec())
    }

    fn initializer(&mut self, name: &str, element: ElementType, dims: &[usize], bytes: Vec<u8>) -> Edge {
        let shape: Vec<i64> = dims.iter().map(|d| signed(*d)).collect();
        let key = (bytes.len() <= Self::SHARE_BELOW).then(|| (shape.clone(), element.code(), bytes.clone()));
        if let Some(edge) = key.as_ref().and_then(|k| self.shared.get(k)) {
            return edge.clone();
        }
        let name = self.unique(name);
        let edge = Edge(Rc::new(EdgeData {
            name: name.clone(),
            element,
            dims: dims.iter().map(|d| Dim::Known(*d)).collect(),
        }));
        self.initializers.push(TensorProto {
            dims: shape,
            data_type: element.code(),
            name,
            raw_data: bytes,
            external_data: Vec::new(),
            data_location: 0,
        });
        if let Some(key) = key {
            self.shared.insert(key, edge.clone());
        }
        edge
    }

    /// Adds a node with one output of type `element` and shape `dims`.
    pub(crate) fn node(
        &mut self,
        op: &str,
        inputs: &[&Edge],
        attributes: Vec<AttributeProto>,
        element: ElementType,
        dims: Vec<Dim>,
    ) -> Edge {
        let path = self.scope.replace('.', "/");
        let base = if path.is_empty() { op.to_owned() } else { format!("{path}/{op}") };
        let name = self.unique(&base);
        let edge = Edge(Rc::new(EdgeData { name: format!("{name}:0"), element, dims }));
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|e| e.name().to_owned()).collect(),
            output: vec![edge.name().to_owned()],
            name,
            op_type: op.to_owned(),
            attribute: attributes,
            ..NodeProto::default()
        });
        edge
    }

    pub(crate) fn mismatch(&self, op: &'static str, what: impl Into<String>) -> Error {
        Error::Shape { scope: self.scope.clone(), op, what: what.into() }
    }

    fn reserve(&mut self, name: &str) -> Result<()> {
        if self.names.insert(name.to_owned(), 1).is_some() {
            return Err(Error::Graph { graph: self.name.clone(), what: format!("the name `{name}` is taken") });
        }
        Ok(())
    }

    fn unique(&mut self, base: &str) -> String {
        let mut name = base.to_owned();
        while self.names.contains_key(&name) {
            let count = self.names.entry(base.to_owned()).or_insert(1);
            name = format!("{base}_{count}");
            *count += 1;
        }
        self.names.insert(name.clone(), 1);
        name
    }

    /// Ends the graph and checks it.
    ///
    /// # Errors
    /// `Graph` if an invariant is broken.
    pub fn finish(self) -> Result<Model> {
        let entry = |(key, value)| StringStringEntryProto { key, value };
        let proto = ModelProto {
            ir_version: IR_VERSION,
            producer_name: PRODUCER.to_owned(),
            producer_version: env!("CARGO_PKG_VERSION").to_owned(),
            graph: Some(GraphProto {
                node: self.nodes,
                name: self.name,
                initializer: self.initializers,
                input: self.inputs,
                output: self.outputs,
            }),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
            metadata_props: self.metadata.into_iter().map(entry).collect(),
        };
        check::check(&proto)?;
        Ok(Model { proto, conv_heights: self.conv_heights })
    }
}

fn value_info(name: &str, element: ElementType, dims: &[Dim]) -> ValueInfoProto {
    let dim = |d: &Dim| DimensionProto {
        value: Some(match d {
            Dim::Known(n) => DimensionValue::DimValue(signed(*n)),
            Dim::Batch => DimensionValue::DimParam(BATCH.to_owned()),
        }),
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
    let tensor = TensorTypeProto { elem_type: element.code(), shape: Some(shape) };
    ValueInfoProto { name: name.to_owned(), r#type: Some(TypeProto { tensor_type: Some(tensor) }) }
}

/// The product of `sizes`, if it is no larger than sizes are.
pub(crate) fn product(mut sizes: impl Iterator<Item = usize>) -> Option<usize> {
    sizes.try_fold(1, usize::checked_mul)
}

/// A size as ONNX has it.
pub(crate) fn signed(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
