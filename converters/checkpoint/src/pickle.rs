//! Reader of Python pickles, protocols 2 to 5. An opcode machine records what a pickle would build and never calls
//! anything.
//!
//! Calls of unknown classes and functions are recorded like all others. The consumer of the values decides which calls
//! it interprets.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use crate::error::{Error, Result};
use crate::input::Input;

/// Memory charged per value, bytes: twice its size, because vectors reserve capacity.
const NODE_BYTES: usize = 2 * size_of::<Node>();
/// Memory charged per id in a sequence, in a dict or on the stack, bytes.
const ELEMENT_BYTES: usize = 2 * size_of::<Id>();
/// Memory charged per memo entry, bytes.
const MEMO_BYTES: usize = 48;
/// Longest integer, bytes.
const MAX_INT: usize = 256;
/// Longest byte string that is copied into [`Pickle`], bytes.
const MAX_INLINE: usize = 16;
/// Longest name of a class or function, bytes.
const MAX_NAME: usize = 1 << 10;

/// Classes that are read as dicts.
const MAPPINGS: [&str; 4] =
    ["collections.OrderedDict", "collections.defaultdict", "collections.Counter", "dnnlib.util.EasyDict"];

/// Index of a value in its [`Pickle`].
pub type Id = usize;

/// A value of a pickle. A shared value has one id.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Node {
    /// `None`.
    None,
    /// A truth value.
    Bool(bool),
    /// An integer of at most 64 bits.
    Int(i64),
    /// A longer integer, little-endian two's complement.
    Long(Vec<u8>),
    /// A float.
    Float(f64),
    /// Text.
    Text(String),
    /// Bytes, as a range of the file, or of the decoded bytes if the pickle was decoded in memory. [`Pickle::inline`]
    /// returns short byte strings.
    Bytes(Range<usize>),
    /// A list, tuple or set.
    Sequence(Vec<Id>),
    /// A dict.
    Dict(Vec<(Id, Id)>),
    /// A class or function, `module.name`.
    Global(String),
    /// A recorded call, with the state and the items that later opcodes set.
    Call {
        /// The callable.
        function: Id,
        /// Its arguments.
        arguments: Id,
        /// Argument of BUILD.
        state: Option<Id>,
        /// Arguments of SETITEM(S).
        items: Vec<(Id, Id)>,
    },
    /// A reference (persistent id) to an object outside the pickle.
    Persistent(Id),
}

/// A parsed pickle.
#[derive(Debug, Clone)]
pub struct Pickle {
    nodes: Vec<Node>,
    inline: HashMap<Id, Vec<u8>>,
    root: Id,
    in_file: bool,
}

impl Pickle {
    /// Reads one pickle from the start of `bytes`, the content of `file`. Returns the pickle and its length in bytes.
    ///
    /// # Errors
    /// `Format` with opcode and byte offset, if the pickle is damaged or exceeds the memory budget for its size.
    pub fn parse(bytes: &[u8], file: &Path) -> Result<(Self, usize)> {
        Self::read(&Input::new(file, bytes), bytes, 0)
    }

    /// Reads one pickle from the start of `bytes`, which begin at offset `base` of the file or of a decoded part of it.
    pub(crate) fn read(input: &Input<'_>, bytes: &[u8], base: usize) -> Result<(Self, usize)> {
        let of_file = input.bytes.get(base..).and_then(|rest| rest.get(..bytes.len()));
        let in_file = of_file.is_some_and(|same| std::ptr::eq(same, bytes));
        let mut machine = Machine::new(input, bytes, base);
        loop {
            if let Some(root) = machine.step()? {
                return Ok((Self { nodes: machine.nodes, inline: machine.inline, root, in_file }, machine.at));
            }
        }
    }

    /// Whether ranges of [`Node::Bytes`] are offsets in the file; false if the pickle was inflated or decoded.
    pub(crate) fn in_file(&self) -> bool {
        self.in_file
    }

    /// Id of the pickled value.
    #[must_use]
    pub fn root(&self) -> Id {
        self.root
    }

    /// Value `id`; [`Node::None`] if there is no such id.
    #[must_use]
    pub fn node(&self, id: Id) -> &Node {
        self.nodes.get(id).unwrap_or(&Node::None)
    }

    /// Value `id`, if it is text.
    #[must_use]
    pub fn text(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Text(t) => Some(t),
            _ => None,
        }
    }

    /// Value `id`, if it is a non-negative integer.
    #[must_use]
    pub fn size(&self, id: Id) -> Option<usize> {
        match self.node(id) {
            Node::Int(i) => usize::try_from(*i).ok(),
            _ => None,
        }
    }

    /// Elements of value `id`, if it is a list, tuple or set.
    #[must_use]
    pub fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::Sequence(s) => Some(s),
            _ => None,
        }
    }

    /// Items of value `id`, if it is a dict, OrderedDict, defaultdict, Counter or EasyDict.
    #[must_use]
    pub fn items(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.node(id) {
            Node::Dict(items) => Some(items),
            Node::Call { function, items, .. } if self.global(*function).is_some_and(|f| MAPPINGS.contains(&f)) => {
                Some(items)
            }
            _ => None,
        }
    }

    /// All values in the order in which they were read. The index is the id.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Value `id`, if it is a byte string of at most 16 bytes, as in numpy scalars.
    #[must_use]
    pub fn inline(&self, id: Id) -> Option<&[u8]> {
        self.inline.get(&id).map(Vec::as_slice)
    }

    /// Name of value `id`, if it is a class or function.
    #[must_use]
    pub fn global(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Global(name) => Some(name),
            _ => None,
        }
    }

    /// Value of the text `key` in dict `id`. If the key occurs several times, the last value counts.
    #[must_use]
    pub fn get(&self, id: Id, key: &str) -> Option<Id> {
        self.items(id)?.iter().rev().find(|(k, _)| self.text(*k) == Some(key)).map(|(_, v)| *v)
    }

    /// Arguments of value `id`, if it is a call of `called`.
    #[must_use]
    pub fn call(&self, id: Id, called: &str) -> Option<&[Id]> {
        match self.node(id) {
            Node::Call { function, arguments, .. } if self.global(*function) == Some(called) => {
                self.sequence(*arguments)
            }
            _ => None,
        }
    }
}

struct Machine<'a> {
    input: &'a Input<'a>,
    bytes: &'a [u8],
    at: usize,
    base: usize,
    /// Current opcode and its offset in `bytes`.
    opcode: (u8, usize),
    nodes: Vec<Node>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    inline: HashMap<Id, Vec<u8>>,
}

impl<'a> Machine<'a> {
    fn new(input: &'a Input<'a>, bytes: &'a [u8], base: usize) -> Self {
        Self {
            input,
            bytes,
            at: 0,
            base,
            opcode: (0, 0),
            nodes: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            inline: HashMap::new(),
        }
    }

    fn place(&self) -> String {
        let (code, at) = self.opcode;
        format!("pickle opcode {} (0x{code:02x}) at byte {}", opcode_name(code), self.base + at)
    }

    fn bad(&self, expected: impl Into<String>, found: impl Into<String>) -> Error {
        self.input.bad(self.place(), expected, found)
    }

    fn charge(&self, bytes: usize) -> Result<()> {
        self.input.charge(bytes, || self.place())
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(count).filter(|e| *e <= self.bytes.len());
        let Some(end) = end else {
            return Err(self.bad(format!("{count} more bytes"), format!("{}", self.bytes.len() - self.at)));
        };
        let slice = &self.bytes[self.at..end];
        self.at = end;
        Ok(slice)
    }

    fn u(&mut self, width: usize) -> Result<u64> {
        Ok(self.take(width)?.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
    }

    fn length(&mut self, width: usize) -> Result<usize> {
        let n = self.u(width)?;
        // This also rejects negative lengths, which read as large unsigned numbers.
        usize::try_from(n)
            .ok()
            .filter(|n| *n <= self.bytes.len())
            .ok_or_else(|| self.bad("a length within the file", n.to_string()))
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.at..];
        let Some(end) = rest.iter().position(|b| *b == b'\n') else { return Err(self.bad("a line", "no line end")) };
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|e| self.bad("text", e.to_string()))
    }

    fn push(&mut self, node: Node) -> Result<()> {
        self.charge(NODE_BYTES)?;
        self.nodes.push(node);
        self.push_id(self.nodes.len() - 1)
    }

    fn push_id(&mut self, id: Id) -> Result<()> {
        if self.stack.len() == self.stack.capacity() {
            self.charge(self.stack.len().max(64) * ELEMENT_BYTES)?;
        }
        self.stack.push(id);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(self.bad("a value on the stack", "none"));
        }
        self.stack.pop().ok_or_else(|| self.bad("a value on the stack", "none"))
    }

    fn top(&self) -> Result<Id> {
        self.stack.last().copied().ok_or_else(|| self.bad("a value on the stack", "none"))
    }

    fn since_mark(&mut self) -> Result<Vec<Id>> {
        let Some(mark) = self.marks.pop() else { return Err(self.bad("a mark", "none")) };
        Ok(self.stack.split_off(mark))
    }

    fn text(&mut self, length: usize) -> Result<()> {
        let bytes = self.take(length)?;
        self.charge(length)?;
        let text = std::str::from_utf8(bytes).map_err(|e| self.bad("UTF-8", e.to_string()))?.to_owned();
        self.push(Node::Text(text))
    }

    fn data(&mut self, length: usize) -> Result<()> {
        let start = self.base + self.at;
        let bytes = self.take(length)?;
        if length <= MAX_INLINE {
            self.inline.insert(self.nodes.len(), bytes.to_vec());
        }
        self.push(Node::Bytes(start..start + length))
    }

    /// A `str` of Python 2: text if it is UTF-8, which is how `torch.load` decodes it, otherwise bytes.
    fn old_string(&mut self, length: usize) -> Result<()> {
        let start = self.base + self.at;
        let bytes = self.take(length)?;
        if let Ok(text) = std::str::from_utf8(bytes) {
            self.charge(length)?;
            return self.push(Node::Text(text.to_owned()));
        }
        if length <= MAX_INLINE {
            self.inline.insert(self.nodes.len(), bytes.to_vec());
        }
        self.push(Node::Bytes(start..start + length))
    }

    fn tuple(&mut self, count: usize) -> Result<()> {
        self.charge(count * ELEMENT_BYTES)?;
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Node::Sequence(items))
    }

    fn store(&mut self, index: u64) -> Result<()> {
        let key = u32::try_from(index).map_err(|_| self.bad("a memo index of 32 bits", index.to_string()))?;
        let top = self.top()?;
        if self.memo.insert(key, top).is_none() {
            self.charge(MEMO_BYTES)?;
        }
        Ok(())
    }

    fn recall(&mut self, index: u64) -> Result<()> {
        let id = u32::try_from(index).ok().and_then(|i| self.memo.get(&i).copied());
        let Some(id) = id else { return Err(self.bad("a memo index in use", index.to_string())) };
        self.push_id(id)
    }

    fn integer(&mut self, length: usize) -> Result<()> {
        if length > MAX_INT {
            return Err(self.bad(format!("an integer of at most {MAX_INT} bytes"), length.to_string()));
        }
        let bytes = self.take(length)?;
        if length > 8 {
            return self.push(Node::Long(bytes.to_vec()));
        }
        let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [fill; 8];
        wide[..length].copy_from_slice(bytes);
        self.push(Node::Int(i64::from_le_bytes(wide)))
    }

    fn set_items(&mut self, pairs: &[Id]) -> Result<()> {
        if !pairs.len().is_multiple_of(2) {
            return Err(self.bad("pairs", format!("{} values", pairs.len())));
        }
        self.charge(pairs.len() * ELEMENT_BYTES)?;
        let target = self.top()?;
        let pairs = pairs.chunks_exact(2).map(|p| (p[0], p[1]));
        match &mut self.nodes[target] {
            Node::Dict(items) | Node::Call { items, .. } => {
                items.extend(pairs);
                Ok(())
            }
            _ => Err(self.bad("a dict", "another value")),
        }
    }

    fn append(&mut self, values: Vec<Id>) -> Result<()> {
        self.charge(values.len() * ELEMENT_BYTES)?;
        let target = self.top()?;
        match &mut self.nodes[target] {
            Node::Sequence(list) => {
                list.extend(values);
                Ok(())
            }
            // An object of a list or set subclass. Its elements are not needed.
            Node::Call { .. } => Ok(()),
            _ => Err(self.bad("a list or set", "another value")),
        }
    }

    fn record_call(&mut self, function: Id, arguments: Id) -> Result<()> {
        // dill creates types by calling the result of a call. Such calls are recorded too.
        if !matches!(self.nodes[function], Node::Global(_) | Node::Call { .. }) {
            return Err(self.bad("a class or function to call", "another value"));
        }
        self.push(Node::Call { function, arguments, state: None, items: Vec::new() })
    }

    /// Charges the name of a class or function. STACK_GLOBAL can take module and name from the memo, so a few bytes of
    /// the file can request a long text.
    fn charge_name(&self, length: usize) -> Result<()> {
        if length > MAX_NAME {
            return Err(self.bad(format!("a name of at most {MAX_NAME} bytes"), format!("{length} bytes")));
        }
        self.charge(length)
    }

    /// The class in a persistent id `('module', class, file, source)`, with which old torch files store module classes.
    fn class_kept_outside(&self, id: Id) -> Option<Id> {
        match self.nodes.get(id)? {
            Node::Sequence(s)
                if s.first().is_some_and(|t| self.nodes.get(*t) == Some(&Node::Text("module".into()))) =>
            {
                s.get(1).copied()
            }
            _ => None,
        }
    }

    /// Executes one opcode. Returns the id of the result at STOP.
    fn step(&mut self) -> Result<Option<Id>> {
        self.opcode = (0, self.at);
        let code = self.take(1)?[0];
        self.opcode.0 = code;
        match code {
            0x80 => {
                let version = self.u(1)?;
                if !(2..=5).contains(&version) {
                    return Err(self.bad("protocol 2 to 5", version.to_string()));
                }
            }
            b'.' => return self.pop().map(Some),
            b'(' => {
                self.charge(ELEMENT_BYTES)?;
                self.marks.push(self.stack.len());
            }
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                self.since_mark()?;
            }
            b'2' => {
                let top = self.top()?;
                self.push_id(top)?;
            }
            b'N' => self.push(Node::None)?,
            0x88 => self.push(Node::Bool(true))?,
            0x89 => self.push(Node::Bool(false))?,
            b'J' => self.integer(4)?,
            b'K' => {
                let v = self.u(1)?;
                self.push(Node::Int(v.cast_signed()))?;
            }
            b'M' => {
                let v = self.u(2)?;
                self.push(Node::Int(v.cast_signed()))?;
            }
            0x8a => {
                let n = self.length(1)?;
                self.integer(n)?;
            }
            0x8b => {
                let n = self.length(4)?;
                self.integer(n)?;
            }
            b'G' => {
                let bits = self.take(8)?.iter().fold(0_u64, |n, b| n << 8 | u64::from(*b));
                self.push(Node::Float(f64::from_bits(bits)))?;
            }
            b'X' => {
                let n = self.length(4)?;
                self.text(n)?;
            }
            0x8c => {
                let n = self.length(1)?;
                self.text(n)?;
            }
            0x8d => {
                let n = self.length(8)?;
                self.text(n)?;
            }
            b'U' => {
                let n = self.length(1)?;
                self.old_string(n)?;
            }
            b'T' => {
                let n = self.length(4)?;
                self.old_string(n)?;
            }
            b'C' => {
                let n = self.length(1)?;
                self.data(n)?;
            }
            b'B' => {
                let n = self.length(4)?;
                self.data(n)?;
            }
            0x8e | 0x96 => {
                let n = self.length(8)?;
                self.data(n)?;
            }
            b')' | b']' | 0x8f => self.push(Node::Sequence(Vec::new()))?,
            b'}' => self.push(Node::Dict(Vec::new()))?,
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b't' | b'l' | 0x91 => {
                let items = self.since_mark()?;
                self.charge(items.len() * ELEMENT_BYTES)?;
                self.push(Node::Sequence(items))?;
            }
            b'd' => {
                let pairs = self.since_mark()?;
                self.push(Node::Dict(Vec::new()))?;
                self.set_items(&pairs)?;
            }
            b'a' => {
                let value = self.pop()?;
                self.append(vec![value])?;
            }
            b'e' | 0x90 => {
                let values = self.since_mark()?;
                self.append(values)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let pairs = self.since_mark()?;
                self.set_items(&pairs)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.charge_name(module.len() + name.len())?;
                self.push(Node::Global(format!("{module}.{name}")))?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Node::Text(module), Node::Text(name)) = (&self.nodes[module], &self.nodes[name]) else {
                    return Err(self.bad("module and name", "other values"));
                };
                self.charge_name(module.len() + name.len())?;
                let global = format!("{module}.{name}");
                self.push(Node::Global(global))?;
            }
            b'R' | 0x81 => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.record_call(function, arguments)?;
            }
            0x92 => {
                let (_, arguments, function) = (self.pop()?, self.pop()?, self.pop()?);
                self.record_call(function, arguments)?;
            }
            b'b' => {
                let (given, target) = (self.pop()?, self.top()?);
                match &mut self.nodes[target] {
                    Node::Call { state, .. } => *state = Some(given),
                    Node::Dict(_) | Node::Persistent(_) => {}
                    _ => return Err(self.bad("an object to give its state", "another value")),
                }
            }
            b'q' => {
                let i = self.u(1)?;
                self.store(i)?;
            }
            b'r' => {
                let i = self.u(4)?;
                self.store(i)?;
            }
            0x94 => self.store(self.memo.len() as u64)?,
            b'h' => {
                let i = self.u(1)?;
                self.recall(i)?;
            }
            b'j' => {
                let i = self.u(4)?;
                self.recall(i)?;
            }
            b'Q' => {
                let id = self.pop()?;
                match self.class_kept_outside(id) {
                    Some(class) => self.push_id(class)?,
                    None => self.push(Node::Persistent(id))?,
                }
            }
            0x95 => {
                self.take(8)?;
            }
            other => return Err(self.bad("an opcode of protocols 2 to 5", format!("0x{other:02x}"))),
        }
        Ok(None)
    }
}

/// Python name of an opcode.
fn opcode_name(code: u8) -> &'static str {
    match code {
        b'(' => "MARK",
        b'.' => "STOP",
        b'0' => "POP",
        b'1' => "POP_MARK",
        b'2' => "DUP",
        b'F' => "FLOAT",
        b'I' => "INT",
        b'J' => "BININT",
        b'K' => "BININT1",
        b'L' => "LONG",
        b'M' => "BININT2",
        b'N' => "NONE",
        b'P' => "PERSID",
        b'Q' => "BINPERSID",
        b'R' => "REDUCE",
        b'S' => "STRING",
        b'T' => "BINSTRING",
        b'U' => "SHORT_BINSTRING",
        b'V' => "UNICODE",
        b'X' => "BINUNICODE",
        b'a' => "APPEND",
        b'b' => "BUILD",
        b'c' => "GLOBAL",
        b'd' => "DICT",
        b'}' => "EMPTY_DICT",
        b'e' => "APPENDS",
        b'g' => "GET",
        b'h' => "BINGET",
        b'i' => "INST",
        b'j' => "LONG_BINGET",
        b'l' => "LIST",
        b']' => "EMPTY_LIST",
        b'o' => "OBJ",
        b'p' => "PUT",
        b'q' => "BINPUT",
        b'r' => "LONG_BINPUT",
        b's' => "SETITEM",
        b't' => "TUPLE",
        b')' => "EMPTY_TUPLE",
        b'u' => "SETITEMS",
        b'G' => "BINFLOAT",
        b'B' => "BINBYTES",
        b'C' => "SHORT_BINBYTES",
        0x80 => "PROTO",
        0x81 => "NEWOBJ",
        0x82 => "EXT1",
        0x83 => "EXT2",
        0x84 => "EXT4",
        0x85 => "TUPLE1",
        0x86 => "TUPLE2",
        0x87 => "TUPLE3",
        0x88 => "NEWTRUE",
        0x89 => "NEWFALSE",
        0x8a => "LONG1",
        0x8b => "LONG4",
        0x8c => "SHORT_BINUNICODE",
        0x8d => "BINUNICODE8",
        0x8e => "BINBYTES8",
        0x8f => "EMPTY_SET",
        0x90 => "ADDITEMS",
        0x91 => "FROZENSET",
        0x92 => "NEWOBJ_EX",
        0x93 => "STACK_GLOBAL",
        0x94 => "MEMOIZE",
        0x95 => "FRAME",
        0x96 => "BYTEARRAY8",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(bytes: &[u8]) -> Result<(Pickle, usize)> {
        Pickle::parse(bytes, Path::new("x.pkl"))
    }

    #[test]
    fn values_are_read() {
        // Python: pickle.dumps({"a": [1, -2, 2.5], "b": (True, None)}, 2)
        let bytes = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffG@\x04\x00\x00\x00\x00\x00\x00eX\x01\x00\x00\x00bq\x03\x88N\x86q\x04u.";
        let (p, used) = parse(bytes).unwrap();
        assert_eq!(used, bytes.len());
        let items = p.items(p.root()).unwrap();
        assert_eq!(p.text(items[0].0), Some("a"));
        let list: Vec<_> = p.sequence(items[0].1).unwrap().iter().map(|i| p.node(*i).clone()).collect();
        assert_eq!(list, [Node::Int(1), Node::Int(-2), Node::Float(2.5)]);
        let pair: Vec<_> = p.sequence(items[1].1).unwrap().iter().map(|i| p.node(*i).clone()).collect();
        assert_eq!(pair, [Node::Bool(true), Node::None]);
    }

    #[test]
    fn hostile_pickles_are_errors_with_opcode_and_offset() {
        let fails = |bytes: &[u8]| parse(bytes).unwrap_err().to_string();
        let call = fails(b"\x80\x02X\x02\x00\x00\x00lsNR.");
        assert!(call.contains("opcode REDUCE (0x52) at byte 10: expected a class or function to call"), "{call}");
        // Python: dill.dumps(set(), 2). The type is the result of a call.
        let set = b"\x80\x02cdill._dill\n_load_type\nX\x03\x00\x00\x00set\x85R]\x85R.";
        assert!(parse(set).is_ok());
        assert!(fails(b"\x80\x02X\xff\xff\xff\xffa.").contains("within the file"));
        assert!(fails(b"\x80\x02\x8b\xff\xff\xff\xff.").contains("within the file"));
        assert!(fails(b"\x80\x02h\x07.").contains("memo index in use"));
        assert!(fails(b"\x80\x02.").contains("a value on the stack"));
        assert!(fails(b"\x80\x07.").contains("protocol 2 to 5"));
        assert!(fails(b"\x80\x02K\x01").contains("more bytes"));
        assert!(fails(b"\x80\x02I01\n.").contains("opcode INT"));
        assert!(fails(b"\x80\x02]K\x01s.").contains("a value on the stack"));
        assert!(fails(b"\x80\x02K\x01K\x02a.").contains("a list or set"));
        assert!(fails(b"\x80\x02NNb.").contains("an object to give its state"));
        assert!(fails(b"\x80\x02u.").contains("a mark"));
    }

    #[test]
    fn calls_are_recorded_and_never_made() {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("made");
        let command = format!("touch {}", made.display());
        let mut bytes = b"\x80\x02cos\nsystem\nX".to_vec();
        bytes.extend(u32::try_from(command.len()).unwrap().to_le_bytes());
        bytes.extend(command.as_bytes());
        bytes.extend(b"\x85R.");
        let (p, _) = parse(&bytes).unwrap();
        let arguments = p.call(p.root(), "os.system").unwrap();
        assert_eq!((p.text(arguments[0]), made.exists()), (Some(command.as_str()), false));
        let (p, _) = parse(b"\x80\x04\x8c\x0asubprocess\x8c\x05Popen\x93)\x81.").unwrap();
        assert!(p.call(p.root(), "subprocess.Popen").unwrap().is_empty());
    }

    /// Repeating a few bytes cannot exceed the memory budget for the file size.
    #[test]
    fn memory_is_bounded_by_the_size_of_the_file() {
        let repeated = |start: &[u8], unit: &[u8], times: usize| {
            let mut bytes = start.to_vec();
            bytes.extend(unit.repeat(times));
            parse(&bytes).unwrap_err().to_string()
        };
        let limit = "of memory for a file of";
        let values = repeated(b"\x80\x02N", b"N0", 1 << 22);
        assert!(values.contains(limit) && values.contains("opcode NONE"), "{values}");
        // One long text is module and name of many classes.
        let mut names = b"\x80\x04X\x00\x00\x10\x00".to_vec();
        names.resize(names.len() + (1 << 20), b'a');
        names.extend(b"q\x000");
        let long = repeated(&names, b"h\x00h\x00\x930", 4096);
        assert!(long.contains("opcode STACK_GLOBAL") && long.contains("a name of at most 1024 bytes"), "{long}");
    }

    #[test]
    fn repeated_sharing_stays_small() {
        // x = (x, x), forty times: 2^40 values if expanded.
        let mut bytes = b"\x80\x04K\x01".to_vec();
        for _ in 0..40 {
            bytes.extend(b"2\x86");
        }
        bytes.push(b'.');
        assert_eq!(parse(&bytes).unwrap().0.nodes.len(), 41);
    }

    #[test]
    fn deep_nesting_neither_overflows_nor_hangs() {
        let mut bytes = b"\x80\x02K\x01".to_vec();
        bytes.extend([0x85; 300_000]);
        bytes.push(b'.');
        assert_eq!(parse(&bytes).unwrap().0.nodes.len(), 300_001);
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_result(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
