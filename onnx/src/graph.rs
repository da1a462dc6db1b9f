//! Graph construction: edges with a type and shape, initializers, and nodes named after their layer.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use crate::check;
use crate::error::{Error, Result, invalid};
use crate::metadata::Metadata;
use crate::opset::{IR_VERSION, OPSET};
use crate::proto::{
    AttributeProto, DimensionProto, DimensionValue, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, ValueInfoProto,
};

/// Symbol of the batch axis.
pub const BATCH: &str = "N";

/// `producer_name` of the graphs built here.
pub const PRODUCER: &str = "d2o";

/// Element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
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

/// Length of an axis of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dim {
    /// Fixed.
    Known(usize),
    /// The batch size N, which is known when the graph runs.
    Batch,
    /// N times a factor of at least 2: another axis is merged into the batch.
    BatchTimes(usize),
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(n) => write!(f, "{n}"),
            Self::Batch => f.write_str(BATCH),
            Self::BatchTimes(factor) => write!(f, "{factor}*{BATCH}"),
        }
    }
}

/// The shape as text, e.g. `[N, 3, 32, 32]`.
pub(crate) fn show(dims: &[Dim]) -> String {
    format!("[{}]", dims.iter().map(Dim::to_string).collect::<Vec<_>>().join(", "))
}

/// A value in a graph under construction; clones are cheap.
#[derive(Debug, Clone)]
pub struct Edge(Arc<EdgeData>);

#[derive(Debug)]
struct EdgeData {
    /// Name of the graph that the edge belongs to. Shared with the builder: its address identifies the graph.
    graph: Arc<str>,
    name: String,
    element: ElementType,
    dims: Vec<Dim>,
}

impl Edge {
    /// Name in the graph.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Element type.
    #[must_use]
    pub fn element(&self) -> ElementType {
        self.0.element
    }

    /// Shape.
    #[must_use]
    pub fn dims(&self) -> &[Dim] {
        &self.0.dims
    }

    /// Element type and shape as text, e.g. `f32 [N, 3]`.
    pub(crate) fn describe(&self) -> String {
        format!("{} {}", self.element(), show(self.dims()))
    }
}

/// Whether both edges have the same float type.
pub(crate) fn same_floats(a: &Edge, b: &Edge) -> bool {
    a.element() == b.element() && a.element().is_float()
}

/// A finished, checked graph.
#[derive(Debug, Clone)]
pub struct Model {
    pub(crate) proto: ModelProto,
    /// Height of the input of each convolution, pixels, by the name of the output; `None` if the heights are not known.
    pub(crate) conv_heights: Option<HashMap<String, usize>>,
}

impl Model {
    /// The metadata of the model.
    ///
    /// # Errors
    /// `Metadata` if a value does not have the type of its key.
    pub fn metadata(&self) -> Result<Metadata> {
        let entries = self.proto.metadata_props.iter().map(|e| (e.key.clone(), e.value.clone()));
        Metadata::read(&entries.collect())
    }

    /// This model with the entries of `metadata` added. They replace entries of the same keys.
    #[must_use]
    pub fn with_metadata(mut self, metadata: &Metadata) -> Self {
        let props = std::mem::take(&mut self.proto.metadata_props).into_iter();
        let mut entries: BTreeMap<String, String> = props.map(|e| (e.key, e.value)).collect();
        entries.extend(metadata.entries());
        let entry = |(key, value)| StringStringEntryProto { key, value };
        self.proto.metadata_props = entries.into_iter().map(entry).collect();
        self
    }
}

/// A graph under construction.
#[derive(Debug)]
pub struct GraphBuilder {
    name: Arc<str>,
    /// Description of the first edge of another graph that was used in this one.
    foreign: Option<String>,
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
    /// Maximum size of constants that are stored once if they are equal, bytes.
    const SHARE_UP_TO: usize = 1 << 14;

    /// An empty graph called `name`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            foreign: None,
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

    /// Sets the layer of the nodes added from now on, e.g. `model.enc.32x32_block0.conv0`. Their names start with it,
    /// with `/` in place of `.`.
    pub fn set_scope(&mut self, scope: &str) {
        scope.clone_into(&mut self.scope);
    }

    /// Adds `metadata` to the model.
    pub fn describe(&mut self, metadata: &Metadata) {
        self.metadata.extend(metadata.entries());
    }

    /// Adds an input to the graph.
    ///
    /// # Errors
    /// `Graph` if the name is empty or in use; `Shape` if an axis is longer than ONNX can store (`i64::MAX`).
    pub fn input(&mut self, name: &str, element: ElementType, dims: &[Dim]) -> Result<Edge> {
        let fits = |d: &Dim| match d {
            Dim::Known(n) | Dim::BatchTimes(n) => storable(*n),
            Dim::Batch => true,
        };
        if !dims.iter().all(fits) {
            return Err(self.mismatch("input", format!("`{name}` with axes of at most 2^63 - 1"), show(dims)));
        }
        self.reserve(name)?;
        self.inputs.push(value_info(name, element, dims));
        Ok(self.edge(name.to_owned(), element, dims.to_vec()))
    }

    /// Makes `edge` an output called `name`.
    ///
    /// # Errors
    /// `Graph` if the name is empty or in use.
    pub fn output(&mut self, name: &str, edge: &Edge) -> Result<()> {
        self.reserve(name)?;
        self.note_foreign(edge);
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

    /// Adds an f32 initializer called `name`, row-major. Equal initializers of up to 16 KiB are stored once. `name`
    /// gets a suffix if it is in use.
    ///
    /// # Errors
    /// `Shape` if `name` is empty, or the number of elements of `data` is not the product of `dims`.
    pub fn constant(&mut self, name: &str, dims: &[usize], data: Vec<f32>) -> Result<Edge> {
        if product(dims.iter().copied()) != Some(data.len()) || name.is_empty() {
            let found = format!("{} elements called `{name}`", data.len());
            return Err(self.mismatch("constant", format!("a name and the elements of {dims:?}"), found));
        }
        let bytes = data.iter().flat_map(|v| v.to_le_bytes()).collect();
        Ok(self.initializer(name, ElementType::F32, dims, bytes))
    }

    pub(crate) fn integers(&mut self, values: &[i64]) -> Edge {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let name = format!("shape.{}", values.iter().map(i64::to_string).collect::<Vec<_>>().join("_"));
        self.initializer(&name, ElementType::I64, &[values.len()], bytes)
    }

    /// `value` as an f32 initializer without axes. Errors name the operation `op`.
    pub(crate) fn scalar(&mut self, op: &'static str, value: f64) -> Result<Edge> {
        Ok(self.single_constant(self.single(op, value)?))
    }

    pub(crate) fn single_constant(&mut self, value: f32) -> Edge {
        self.initializer(&format!("scalar.{value:e}"), ElementType::F32, &[], value.to_le_bytes().to_vec())
    }

    /// `value` rounded to f32, which must be finite. Errors name the operation `op`.
    pub(crate) fn single(&self, op: &'static str, value: f64) -> Result<f32> {
        #[allow(clippy::cast_possible_truncation, reason = "graphs compute in f32")]
        let single = value as f32;
        if !single.is_finite() {
            return Err(self.mismatch(op, "a number that is finite in f32", value.to_string()));
        }
        Ok(single)
    }

    fn initializer(&mut self, name: &str, element: ElementType, dims: &[usize], bytes: Vec<u8>) -> Edge {
        let shape: Vec<i64> = dims.iter().map(|d| signed(*d)).collect();
        let key = (bytes.len() <= Self::SHARE_UP_TO).then(|| (shape.clone(), element.code(), bytes.clone()));
        if let Some(edge) = key.as_ref().and_then(|k| self.shared.get(k)) {
            return edge.clone();
        }
        let name = self.unique(name);
        let edge = self.edge(name.clone(), element, dims.iter().map(|d| Dim::Known(*d)).collect());
        self.initializers.push(TensorProto::new(&name, element.code(), shape, bytes));
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
        inputs.iter().for_each(|edge| self.note_foreign(edge));
        let edge = self.edge(format!("{name}:0"), element, dims);
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

    pub(crate) fn mismatch(&self, op: &'static str, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::Shape { scope: self.scope.clone(), op, expected: expected.into(), found: found.into() }
    }

    fn edge(&self, name: String, element: ElementType, dims: Vec<Dim>) -> Edge {
        Edge(Arc::new(EdgeData { graph: Arc::clone(&self.name), name, element, dims }))
    }

    /// Records the first edge of another graph, which [`GraphBuilder::finish`] reports.
    fn note_foreign(&mut self, edge: &Edge) {
        if !Arc::ptr_eq(&edge.0.graph, &self.name) {
            self.foreign.get_or_insert_with(|| format!("edge `{}` of another graph, `{}`", edge.name(), edge.0.graph));
        }
    }

    fn reserve(&mut self, name: &str) -> Result<()> {
        let found = if name.is_empty() { "an empty one" } else { "one in use" };
        if name.is_empty() || self.names.insert(name.to_owned(), 1).is_some() {
            return Err(invalid(&self.name, format!("`{name}`"), "a new name", found));
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

    /// Checks the graph and returns it as a model.
    ///
    /// # Errors
    /// `Graph` if there is no output, an input, initializer or node output is not used, or an edge belongs to another
    /// graph.
    pub fn finish(self) -> Result<Model> {
        if let Some(found) = self.foreign {
            return Err(invalid(&self.name, "operands".to_owned(), "edges of this graph", found));
        }
        let entry = |(key, value)| StringStringEntryProto { key, value };
        let proto = ModelProto {
            ir_version: IR_VERSION,
            producer_name: PRODUCER.to_owned(),
            producer_version: env!("CARGO_PKG_VERSION").to_owned(),
            graph: Some(GraphProto {
                node: self.nodes,
                name: self.name.to_string(),
                initializer: self.initializers,
                input: self.inputs,
                output: self.outputs,
            }),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
            metadata_props: self.metadata.into_iter().map(entry).collect(),
        };
        check::check(&proto)?;
        Ok(Model { proto, conv_heights: Some(self.conv_heights) })
    }
}

fn value_info(name: &str, element: ElementType, dims: &[Dim]) -> ValueInfoProto {
    let dim = |d: &Dim| DimensionProto {
        value: Some(match d {
            Dim::Known(n) => DimensionValue::DimValue(signed(*n)),
            symbolic => DimensionValue::DimParam(symbolic.to_string()),
        }),
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
    ValueInfoProto::new(name, element.code(), Some(shape))
}

/// The product of `sizes`, if ONNX can store it.
pub(crate) fn product(mut sizes: impl Iterator<Item = usize>) -> Option<usize> {
    sizes.try_fold(1, usize::checked_mul).filter(|n| storable(*n))
}

/// Whether ONNX can store the size, as an i64.
pub(crate) fn storable(n: usize) -> bool {
    i64::try_from(n).is_ok()
}

/// A size as an i64, the type in ONNX.
pub(crate) fn signed(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
