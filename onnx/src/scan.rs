//! One pass over the messages of an ONNX file. It reads the summary, and bounds the memory and time of decoding the
//! file.
//!
//! Weights are skipped. A message of two bytes takes a hundred bytes or more when it is decoded, here or in a runtime.
//! Each message is therefore charged to the [`Budget`] of the file.
//! <https://github.com/onnx/onnx/blob/v1.19.0/onnx/onnx.proto>

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead as _, BufReader, Read, Seek};
use std::path::Path;

use d2o_budget::Budget;

use crate::error::{Error, Result};
use crate::expansion::{self, Expansion, MAX_INTEGERS};
use crate::proto::{ValueInfoProto, decoded};

/// Maximum nesting depth of messages, equal to the limit of protobuf.
const MAX_DEPTH: u32 = 100;
/// Maximum number of nodes, of tensors and of values in all graphs and functions of a file, and of nodes with functions
/// inlined. The time that runtimes take is quadratic in these numbers.
const MAX_COUNT: usize = 1 << 15;
/// Maximum number of inputs of a node, for the same reason.
const MAX_INPUTS: usize = 1 << 12;
/// Memory that a field takes in addition to its content, bytes.
const FIELD: usize = 32;

/// Summary of an ONNX file.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) producer: String,
    /// Opset of the default domain.
    pub(crate) opset: Option<i64>,
    pub(crate) metadata: BTreeMap<String, String>,
    /// Whether the model has a graph.
    pub(crate) graph: bool,
    /// Whether any node is a `Loop` or `Scan`.
    pub(crate) loops: bool,
    /// Numbers of nodes, tensors and values in all graphs and functions.
    counts: [usize; 3],
    /// All graphs outside functions as the first entry, then each function.
    bodies: Vec<Body>,
    /// Nodes with an output size that is the value of an operand, and nodes that propagate such values.
    expansions: Vec<Expansion>,
    /// Values of small integer tensors, by name.
    integers: HashMap<String, Vec<i64>>,
    pub(crate) inputs: Vec<ValueInfoProto>,
    pub(crate) outputs: Vec<ValueInfoProto>,
    /// Number of nodes of the main graph.
    pub(crate) nodes: usize,
    pub(crate) parameters: u64,
    /// Initializers of the main graph.
    pub(crate) weights: HashMap<String, Weight>,
    /// Names of the weights of convolutions of one group and stride 1.
    pub(crate) dense: Vec<Option<String>>,
    /// Tensors outside the file.
    pub(crate) external: Vec<External>,
}

/// Size of a weight.
#[derive(Debug)]
pub(crate) struct Weight {
    elements: u64,
    /// Product of the lengths of the axes after the second: the number of taps of a convolution.
    pub(crate) taps: u64,
}

/// Location of a tensor outside the file.
#[derive(Debug)]
pub(crate) struct External {
    pub(crate) tensor: String,
    pub(crate) location: String,
    pub(crate) offset: String,
    pub(crate) length: String,
}

/// Nodes of a function, or of all graphs outside functions.
#[derive(Debug, Default)]
struct Body {
    name: Option<[String; 2]>,
    nodes: usize,
    /// Number of nodes that may call a function, by domain and operator.
    calls: HashMap<[String; 2], usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Sparse,
    Value,
    Type,
    /// The types inside a sequence, an optional or a map.
    ContainerType,
    TensorType,
    Shape,
    /// A dimension, an opset or a pair of strings; contains no messages.
    Entry,
    Annotation,
    Training,
    Function,
}

/// Content of a length-delimited field.
enum Part {
    Message(Kind),
    /// Packed integers, with the number of bytes of each in memory.
    Integers(usize),
    /// A string or raw values.
    Plain,
    Unknown,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Graph => "graph",
            Self::Node => "node",
            Self::Attribute => "attribute",
            Self::Tensor | Self::Sparse => "tensor",
            Self::Value | Self::Type | Self::ContainerType | Self::TensorType => "value",
            Self::Shape => "shape",
            Self::Entry | Self::Annotation => "entry",
            Self::Training => "training information",
            Self::Function => "function",
        }
    }

    /// Memory of a message in addition to its fields, here and in a runtime, bytes. ONNX Runtime 1.32 takes about 4 KiB for a node, 1 KiB for a weight.
    fn cost(self) -> usize {
        match self {
            Self::Node | Self::Function | Self::Graph | Self::Training => 4096,
            Self::Tensor | Self::Sparse | Self::Value => 1024,
            Self::Attribute => 256,
            _ => 64,
        }
    }

    /// The highest field number in ONNX 1.19.
    fn last(self) -> u32 {
        match self {
            Self::Model => 25,
            Self::Attribute => 23,
            Self::Graph | Self::Tensor => 16,
            Self::Function => 14,
            Self::Node | Self::Type => 9,
            _ => 4,
        }
    }

    fn part(self, field: u32) -> Part {
        match (self, field) {
            (Self::Model, 7) | (Self::Attribute, 6 | 11) | (Self::Training, 1 | 2) => Part::Message(Self::Graph),
            (Self::Graph, 1) | (Self::Function, 7) => Part::Message(Self::Node),
            (Self::Node, 5) | (Self::Function, 11) => Part::Message(Self::Attribute),
            (Self::Graph, 5) | (Self::Attribute, 5 | 10) | (Self::Sparse, 1 | 2) => Part::Message(Self::Tensor),
            (Self::Graph, 15) | (Self::Attribute, 22 | 23) => Part::Message(Self::Sparse),
            (Self::Graph, 11..=13) | (Self::Function, 12) => Part::Message(Self::Value),
            (Self::Value, 2) | (Self::Attribute, 14 | 15) | (Self::ContainerType, 1 | 2) => Part::Message(Self::Type),
            (Self::Type, 1 | 8) => Part::Message(Self::TensorType),
            (Self::Type, 4 | 5 | 9) => Part::Message(Self::ContainerType),
            (Self::TensorType, 2) => Part::Message(Self::Shape),
            (Self::Graph, 14) => Part::Message(Self::Annotation),
            (Self::Model, 20) => Part::Message(Self::Training),
            (Self::Model, 25) => Part::Message(Self::Function),
            (Self::Model, 8 | 14) | (Self::Function, 9 | 14) | (Self::Graph, 16) | (Self::Node, 9) => {
                Part::Message(Self::Entry)
            }
            (Self::Tensor, 13 | 16) | (Self::Value, 4) | (Self::Training, 3 | 4) | (Self::Annotation, 2) => {
                Part::Message(Self::Entry)
            }
            (Self::Shape, 1) => Part::Message(Self::Entry),
            (Self::Tensor, 5) => Part::Integers(4),
            (Self::Tensor, 1 | 7 | 11) | (Self::Attribute, 8) | (Self::Sparse, 3) => Part::Integers(8),
            _ if field <= self.last() => Part::Plain,
            _ => Part::Unknown,
        }
    }
}

enum Content {
    Number(u64),
    /// Four or eight bytes, skipped.
    Fixed,
    /// Bytes up to this position.
    UpTo(u64),
}

/// A pair of strings, or a name and a number.
#[derive(Debug, Default)]
struct Entry {
    key: String,
    value: String,
    number: i64,
}

#[derive(Debug, Default)]
struct Node {
    domain: String,
    op: String,
    inputs: Vec<String>,
    output: String,
    attributes: Vec<Attribute>,
}

#[derive(Debug, Default)]
struct Attribute {
    name: String,
    i: i64,
    ints: Vec<i64>,
    tensor: Option<Tensor>,
}

#[derive(Debug, Default)]
struct Tensor {
    name: String,
    dims: Vec<i64>,
    /// The elements, if they are integers and at most [`MAX_INTEGERS`].
    integers: Option<Vec<i64>>,
}

/// Scans the model of `length` bytes in `from`. Errors name it `file`.
pub(crate) fn model<R: Read + Seek>(from: R, length: u64, file: &Path) -> Result<Summary> {
    let from = BufReader::with_capacity(1 << 16, from);
    let found = Summary { bodies: vec![Body::default()], ..Summary::default() };
    let mut scan = Scan { from, at: 0, budget: Budget::of_file(length), file, body: 0, found };
    scan.model(length)?;
    scan.charge_expansions()?;
    if inlined(&scan.found.bodies).is_none_or(|nodes| nodes > MAX_COUNT) {
        return Err(scan.bad(
            "functions".to_owned(),
            format!("at most {MAX_COUNT} nodes with functions inlined"),
            "more",
        ));
    }
    Ok(scan.found)
}

struct Scan<'a, R> {
    from: BufReader<R>,
    /// Position in the file.
    at: u64,
    budget: Budget,
    file: &'a Path,
    /// Index of the body that nodes are counted for.
    body: usize,
    found: Summary,
}

/// Number of nodes of the first of `bodies` with every call inlined; `None` if functions are recursive, or the number overflows.
fn inlined(bodies: &[Body]) -> Option<usize> {
    let mut by_name = HashMap::new();
    for (i, body) in bodies.iter().enumerate() {
        by_name.extend(body.name.as_ref().map(|name| (name, i)));
    }
    // For each body: not visited, being visited, or its size.
    let mut sizes: Vec<Option<Option<usize>>> = vec![None; bodies.len()];
    let mut stack = vec![0];
    while let Some(i) = stack.last().copied() {
        let callees = || bodies[i].calls.iter().filter_map(|(name, n)| Some((*by_name.get(name)?, *n)));
        if sizes[i].is_none() {
            sizes[i] = Some(None);
            for (callee, _) in callees() {
                match sizes[callee] {
                    None => stack.push(callee),
                    Some(None) => return None,
                    Some(Some(_)) => {}
                }
            }
            continue;
        }
        stack.pop();
        if sizes[i] == Some(None) {
            let mut size = bodies[i].nodes;
            for (callee, count) in callees() {
                size = size.checked_add(sizes[callee]??.checked_mul(count)?)?;
            }
            sizes[i] = Some(Some(size));
        }
    }
    sizes[0]?
}

impl<R: Read + Seek> Scan<'_, R> {
    fn bad(&self, place: String, expected: impl Into<String>, found: impl Into<String>) -> Error {
        let (expected, found) = (expected.into(), found.into());
        Error::Format { file: self.file.to_owned(), place, expected, found, source: None }
    }

    fn broken(&self, found: impl Into<String>) -> Error {
        self.bad(format!("byte {}", self.at), "an ONNX model", found)
    }

    fn charge(&mut self, bytes: usize, of: Kind) -> Result<()> {
        let charged = self.budget.bytes(bytes);
        charged.map_err(|e| self.bad(format!("{} at byte {}", of.name(), self.at), e.expected(), "more"))
    }

    fn byte(&mut self, end: u64) -> Result<u8> {
        if self.at >= end {
            return Err(self.broken("the end of a message"));
        }
        let Some(byte) = self.from.fill_buf()?.first().copied() else {
            return Err(self.broken("the end of the file"));
        };
        self.from.consume(1);
        self.at += 1;
        Ok(byte)
    }

    fn varint(&mut self, end: u64) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(end)?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.broken("an integer of more than ten bytes"))
    }

    /// The next field of a message of kind `of` that ends at `end`. The caller reads or skips the content of [`Content::UpTo`].
    fn field(&mut self, of: Kind, end: u64) -> Result<Option<(u32, Content)>> {
        if self.at == end {
            return Ok(None);
        }
        let key = self.varint(end)?;
        let number = u32::try_from(key >> 3).ok().filter(|n| *n > 0);
        let number = number.ok_or_else(|| self.broken(format!("field {}", key >> 3)))?;
        self.charge(8, of)?;
        let content = match key & 7 {
            0 => Content::Number(self.varint(end)?),
            2 => {
                let length = self.varint(end)?;
                let last = self.at.checked_add(length).filter(|last| *last <= end);
                Content::UpTo(last.ok_or_else(|| self.broken(format!("a field of {length} bytes")))?)
            }
            fixed @ (1 | 5) => {
                let last = self.at + if fixed == 1 { 8 } else { 4 };
                if last > end {
                    return Err(self.broken("the end of a message"));
                }
                self.skip(last)?;
                Content::Fixed
            }
            other => return Err(self.broken(format!("wire type {other}"))),
        };
        Ok(Some((number, content)))
    }

    /// Skips to `end`.
    fn skip(&mut self, end: u64) -> Result<()> {
        let far = i64::try_from(end.saturating_sub(self.at)).map_err(|_| self.broken("a field beyond the file"))?;
        self.from.seek_relative(far)?;
        self.at = end;
        Ok(())
    }

    fn bytes(&mut self, of: Kind, end: u64) -> Result<Vec<u8>> {
        let length = usize::try_from(end - self.at).map_err(|_| self.broken("a field beyond the memory"))?;
        self.charge(length, of)?;
        let mut bytes = vec![0; length];
        self.from.read_exact(&mut bytes)?;
        self.at = end;
        Ok(bytes)
    }

    fn text(&mut self, of: Kind, end: u64) -> Result<String> {
        self.charge(FIELD, of)?;
        String::from_utf8(self.bytes(of, end)?).map_err(|_| self.broken("text that is not UTF-8"))
    }

    /// Appends the integers up to `end`.
    fn integers(&mut self, of: Kind, end: u64, to: &mut Vec<i64>) -> Result<()> {
        while self.at < end {
            self.charge(8, of)?;
            to.push(self.varint(end)?.cast_signed());
        }
        Ok(())
    }

    fn exceeds(&self, of: Kind, limit: usize, what: &str) -> Error {
        self.bad(format!("{} at byte {}", of.name(), self.at), format!("at most {limit} {what}"), "more")
    }

    /// Charges and counts a message; returns the depth of its content.
    fn enter(&mut self, of: Kind, depth: u32) -> Result<u32> {
        self.charge(of.cost(), of)?;
        if depth == MAX_DEPTH {
            return Err(self.exceeds(of, MAX_DEPTH as usize, "nested messages"));
        }
        let counted = match of {
            Kind::Node => Some((0, "nodes")),
            Kind::Tensor => Some((1, "tensors")),
            Kind::Value => Some((2, "values")),
            _ => None,
        };
        if let Some((i, what)) = counted {
            self.found.counts[i] += 1;
            if self.found.counts[i] > MAX_COUNT {
                return Err(self.exceeds(of, MAX_COUNT, what));
            }
        }
        Ok(depth + 1)
    }

    /// Passes over a field that is not read: charges its messages and skips the rest.
    fn skip_field(&mut self, of: Kind, field: u32, end: u64, depth: u32) -> Result<()> {
        let length = usize::try_from(end - self.at).unwrap_or(usize::MAX);
        match of.part(field) {
            Part::Message(Kind::Graph) => self.graph(end, depth, false),
            Part::Message(Kind::Node) => self.node(end, depth).map(drop),
            Part::Message(Kind::Attribute) => self.attribute(end, depth).map(drop),
            Part::Message(Kind::Tensor) => self.tensor(end, depth).map(drop),
            Part::Message(Kind::Function) => self.function(end, depth),
            Part::Message(kind) => self.message(kind, end, depth),
            Part::Integers(bytes) => {
                while self.at < end {
                    self.charge(bytes, of)?;
                    self.varint(end)?;
                }
                Ok(())
            }
            Part::Plain => {
                self.charge(FIELD, of)?;
                self.skip(end)
            }
            // The content may consist of messages of minimum size.
            Part::Unknown => {
                self.charge(length.saturating_add(1).saturating_mul(FIELD), of)?;
                self.skip(end)
            }
        }
    }

    fn message(&mut self, kind: Kind, end: u64, depth: u32) -> Result<()> {
        let depth = self.enter(kind, depth)?;
        while let Some((number, content)) = self.field(kind, end)? {
            if let Content::UpTo(end) = content {
                self.skip_field(kind, number, end, depth)?;
            }
        }
        Ok(())
    }

    /// Charges tensors of constant size, and the iterations of loops with a constant count.
    fn charge_expansions(&mut self) -> Result<()> {
        let nodes = std::mem::take(&mut self.found.expansions);
        let integers = std::mem::take(&mut self.found.integers);
        let weights = &self.found.weights;
        let elements = |name: &str| weights.get(name).and_then(|w| usize::try_from(w.elements).ok());
        let sizes: Vec<_> = expansion::sizes(&nodes, integers, elements).collect();
        for (op, output, count) in sizes {
            let (charged, found) = match op {
                "Loop" => (self.budget.steps(count), format!("{count} iterations")),
                _ => (self.budget.bytes(count.saturating_mul(4)), format!("a tensor of {count} elements")),
            };
            charged.map_err(|e| self.bad(format!("{op} of `{output}`"), e.expected(), found))?;
        }
        Ok(())
    }

    fn model(&mut self, end: u64) -> Result<()> {
        while let Some((number, content)) = self.field(Kind::Model, end)? {
            let Content::UpTo(end) = content else { continue };
            match number {
                2 => self.found.producer = self.text(Kind::Model, end)?,
                7 => self.graph(end, 1, true)?,
                8 => {
                    let opset = self.entry(end, 1)?;
                    if opset.key.is_empty() {
                        self.found.opset.get_or_insert(opset.number);
                    }
                }
                14 => {
                    let Entry { key, value, .. } = self.entry(end, 1)?;
                    self.found.metadata.insert(key, value);
                }
                _ => self.skip_field(Kind::Model, number, end, 1)?,
            }
        }
        Ok(())
    }

    fn entry(&mut self, end: u64, depth: u32) -> Result<Entry> {
        let depth = self.enter(Kind::Entry, depth)?;
        let mut entry = Entry::default();
        while let Some((number, content)) = self.field(Kind::Entry, end)? {
            match (number, content) {
                (1, Content::UpTo(end)) => entry.key = self.text(Kind::Entry, end)?,
                (2, Content::UpTo(end)) => entry.value = self.text(Kind::Entry, end)?,
                (2, Content::Number(n)) => entry.number = n.cast_signed(),
                (_, Content::UpTo(end)) => self.skip_field(Kind::Entry, number, end, depth)?,
                _ => {}
            }
        }
        Ok(entry)
    }

    fn function(&mut self, end: u64, depth: u32) -> Result<()> {
        let depth = self.enter(Kind::Function, depth)?;
        let mut name = [String::new(), String::new()];
        self.body = self.found.bodies.len();
        self.found.bodies.push(Body::default());
        while let Some((number, content)) = self.field(Kind::Function, end)? {
            let Content::UpTo(end) = content else { continue };
            match number {
                1 => name[1] = self.text(Kind::Function, end)?,
                10 => name[0] = self.text(Kind::Function, end)?,
                _ => self.skip_field(Kind::Function, number, end, depth)?,
            }
        }
        self.found.bodies[self.body].name = Some(name);
        self.body = 0;
        Ok(())
    }

    fn graph(&mut self, end: u64, depth: u32, whole: bool) -> Result<()> {
        let depth = self.enter(Kind::Graph, depth)?;
        self.found.graph |= whole;
        while let Some((number, content)) = self.field(Kind::Graph, end)? {
            let Content::UpTo(end) = content else { continue };
            match number {
                1 => {
                    let node = self.node(end, depth)?;
                    if whole {
                        self.found.nodes += 1;
                        self.found.dense.extend(node.dense());
                    }
                }
                5 => {
                    let tensor = self.tensor(end, depth)?;
                    if let Some(integers) = &tensor.integers {
                        self.found.integers.insert(tensor.name.clone(), integers.clone());
                    }
                    if whole {
                        let size = |dims: &[i64]| {
                            let known = dims.iter().map(|d| u64::try_from(*d).unwrap_or(0));
                            known.fold(1_u64, u64::saturating_mul)
                        };
                        let elements = size(&tensor.dims);
                        self.found.parameters = self.found.parameters.saturating_add(elements);
                        let taps = size(tensor.dims.get(2..).unwrap_or(&[]));
                        self.found.weights.insert(tensor.name, Weight { elements, taps });
                    }
                }
                11 | 12 if whole => {
                    let value = self.value(end)?;
                    let to = if number == 11 { &mut self.found.inputs } else { &mut self.found.outputs };
                    to.push(value);
                }
                _ => self.skip_field(Kind::Graph, number, end, depth)?,
            }
        }
        Ok(())
    }

    fn value(&mut self, end: u64) -> Result<ValueInfoProto> {
        self.enter(Kind::Value, 1)?;
        // The smallest messages inside are dimensions of two bytes.
        let length = usize::try_from(end - self.at).unwrap_or(usize::MAX);
        self.charge(length.saturating_mul(FIELD), Kind::Value)?;
        let bytes = self.bytes(Kind::Value, end)?;
        decoded(&bytes, self.file, &format!("value before byte {}", self.at))
    }

    fn node(&mut self, end: u64, depth: u32) -> Result<Node> {
        let depth = self.enter(Kind::Node, depth)?;
        let mut node = Node::default();
        while let Some((number, content)) = self.field(Kind::Node, end)? {
            let Content::UpTo(end) = content else { continue };
            match number {
                1 if node.inputs.len() == MAX_INPUTS => return Err(self.exceeds(Kind::Node, MAX_INPUTS, "inputs")),
                1 => node.inputs.push(self.text(Kind::Node, end)?),
                2 if node.output.is_empty() => node.output = self.text(Kind::Node, end)?,
                4 => node.op = self.text(Kind::Node, end)?,
                5 => node.attributes.push(self.attribute(end, depth)?),
                7 => node.domain = self.text(Kind::Node, end)?,
                _ => self.skip_field(Kind::Node, number, end, depth)?,
            }
        }
        self.found.loops |= matches!(node.op.as_str(), "Loop" | "Scan");
        if expansion::is_followed(&node.op) {
            let Node { op, inputs, output, .. } = &node;
            let length = inputs.iter().chain([op, output]).map(|name| name.len() + FIELD).sum();
            self.charge(length, Kind::Node)?;
            let value = node.attributes.iter().find_map(Attribute::integers);
            let (op, inputs, output) = (op.clone(), inputs.clone(), output.clone());
            self.found.expansions.push(Expansion { op, inputs, output, value });
        }
        let body = &mut self.found.bodies[self.body];
        body.nodes += 1;
        if !node.domain.is_empty() {
            *body.calls.entry([node.domain.clone(), node.op.clone()]).or_default() += 1;
        }
        Ok(node)
    }

    fn attribute(&mut self, end: u64, depth: u32) -> Result<Attribute> {
        let depth = self.enter(Kind::Attribute, depth)?;
        let mut attribute = Attribute::default();
        while let Some((number, content)) = self.field(Kind::Attribute, end)? {
            match (number, content) {
                (1, Content::UpTo(end)) => attribute.name = self.text(Kind::Attribute, end)?,
                (3, Content::Number(i)) => attribute.i = i.cast_signed(),
                (8, Content::Number(i)) => attribute.ints.push(i.cast_signed()),
                (5, Content::UpTo(end)) => attribute.tensor = Some(self.tensor(end, depth)?),
                (8, Content::UpTo(end)) => self.integers(Kind::Attribute, end, &mut attribute.ints)?,
                (_, Content::UpTo(end)) => self.skip_field(Kind::Attribute, number, end, depth)?,
                _ => {}
            }
        }
        Ok(attribute)
    }

    fn tensor(&mut self, end: u64, depth: u32) -> Result<Tensor> {
        const EXTERNAL: u64 = 1;
        const INT32: u64 = 6;
        const INT64: u64 = 7;
        let depth = self.enter(Kind::Tensor, depth)?;
        let (mut tensor, mut entries, mut outside) = (Tensor::default(), BTreeMap::new(), false);
        let (mut element, mut raw, mut numbers) = (0, Vec::new(), Vec::new());
        while let Some((number, content)) = self.field(Kind::Tensor, end)? {
            match (number, content) {
                (1, Content::Number(d)) => tensor.dims.push(d.cast_signed()),
                (1, Content::UpTo(end)) => self.integers(Kind::Tensor, end, &mut tensor.dims)?,
                (2, Content::Number(code)) => element = code,
                (5 | 7, Content::Number(n)) if numbers.len() < MAX_INTEGERS => numbers.push(n.cast_signed()),
                // An integer takes up to ten bytes.
                (5 | 7, Content::UpTo(end)) if end - self.at <= 10 * MAX_INTEGERS as u64 => {
                    self.integers(Kind::Tensor, end, &mut numbers)?;
                }
                (9, Content::UpTo(end)) if end - self.at <= 8 * MAX_INTEGERS as u64 => {
                    raw = self.bytes(Kind::Tensor, end)?;
                }
                (8, Content::UpTo(end)) => tensor.name = self.text(Kind::Tensor, end)?,
                (13, Content::UpTo(end)) => {
                    let Entry { key, value, .. } = self.entry(end, depth)?;
                    entries.insert(key, value);
                }
                (14, Content::Number(place)) => outside = place == EXTERNAL,
                (_, Content::UpTo(end)) => self.skip_field(Kind::Tensor, number, end, depth)?,
                _ => {}
            }
        }
        let filled = tensor.dims.iter().try_fold(1_usize, |n, d| n.checked_mul(usize::try_from(*d).ok()?));
        let values = match element {
            INT32 if !raw.is_empty() => {
                raw.chunks_exact(4).map(|b| i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
            }
            INT64 if !raw.is_empty() => raw
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
                .collect(),
            _ => numbers,
        };
        let whole = matches!(element, INT32 | INT64) && Some(values.len()) == filled && values.len() <= MAX_INTEGERS;
        tensor.integers = whole.then_some(values);
        if outside || !entries.is_empty() {
            let mut take = |key: &str| entries.remove(key).unwrap_or_default();
            let [location, offset, length] = ["location", "offset", "length"].map(&mut take);
            self.charge(FIELD * 8 + location.len() + tensor.name.len(), Kind::Tensor)?;
            self.found.external.push(External { tensor: tensor.name.clone(), location, offset, length });
        }
        Ok(tensor)
    }
}

impl Attribute {
    /// The value, if this is the attribute of an integer `Constant` or a shape.
    fn integers(&self) -> Option<Vec<i64>> {
        match self.name.as_str() {
            "value" => self.tensor.as_ref()?.integers.clone(),
            "value_int" => Some(vec![self.i]),
            "value_ints" | "shape" => Some(self.ints.clone()),
            _ => None,
        }
    }
}

impl Node {
    fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attributes.iter().find(|a| a.name == name)
    }

    /// Name of the weight, if this is a convolution of one group and stride 1. The inner `None` is a convolution
    /// without a weight.
    fn dense(&self) -> Option<Option<String>> {
        let one_group = self.attribute("group").is_none_or(|a| a.i == 1);
        let steps = self.attribute("strides").is_some_and(|a| a.ints.iter().any(|v| *v != 1));
        (self.op == "Conv" && one_group && !steps).then(|| self.inputs.get(1).cloned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_count_once_per_call() {
        let name = |i: usize| ["d".to_owned(), i.to_string()];
        // Body i has two nodes. Both call body i + 1 if it exists.
        let chain = |levels: usize| -> Vec<Body> {
            let body = |i| Body { name: (i > 0).then(|| name(i)), nodes: 2, calls: HashMap::from([(name(i + 1), 2)]) };
            (0..levels).map(body).collect()
        };
        assert_eq!(inlined(&chain(1)), Some(2));
        assert_eq!(inlined(&chain(4)), Some(2 + 2 * (2 + 2 * (2 + 2 * 2))));
        assert_eq!(inlined(&chain(200)), None);
        let mut circle = chain(3);
        circle[2].calls.insert(name(1), 1);
        assert_eq!(inlined(&circle), None);
    }
}
