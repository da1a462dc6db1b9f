//! Python pickles, protocols 2 to 5, as data: an opcode machine that records what a pickle would build and never calls anything.

use std::collections::HashMap;
use std::path::Path;

use crate::error::{Error, Result};

/// Most values one pickle may hold.
const MAX_NODES: usize = 1 << 22;
/// Deepest nesting of marks.
const MAX_MARKS: usize = 1 << 12;
/// Highest memo index.
const MAX_MEMO: u32 = 1 << 22;
/// Longest integer, bytes.
const MAX_INT: usize = 256;

/// Callables whose calls are recorded; a call of anything else is refused. A trailing dot admits a whole module.
const KNOWN_CALLS: [&str; 15] = [
    "collections.OrderedDict",
    "torch._utils.",
    "torch.storage._load_from_bytes",
    "torch.Size",
    "torch.device",
    "torch.nn.",
    "torch_utils.persistence._reconstruct_persistent_obj",
    "dnnlib.util.EasyDict",
    "builtins.set",
    "__builtin__.set",
    "dill._dill._load_type",
    "copyreg._reconstructor",
    "_codecs.encode",
    "numpy.",
    "__torch__.",
];

/// Index of a value in its [`Pickle`].
pub type Id = usize;

/// A value as the pickle describes it; shared values have one id.
#[derive(Debug, Clone, PartialEq)]
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
    /// Bytes.
    Bytes(Vec<u8>),
    /// A list, tuple or set.
    Sequence(Vec<Id>),
    /// A dict.
    Dict(Vec<(Id, Id)>),
    /// A class or function, `module.name`.
    Global(String),
    /// A call that was not made: callable, arguments, the state given later, the items set later.
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
    /// An object kept outside the pickle.
    Persistent(Id),
}

/// A parsed pickle.
#[derive(Debug, Clone)]
pub struct Pickle {
    nodes: Vec<Node>,
    root: Id,
}

impl Pickle {
    /// Reads one pickle from the start of `bytes`, which lie at `base` in `file`; also gives its length. The gate of this format.
    ///
    /// # Errors
    /// `Format` naming opcode and byte offset.
    pub fn parse(bytes: &[u8], file: &Path, base: usize) -> Result<(Self, usize)> {
        let mut m = Machine { bytes, at: 0, file, base, opcode: (0, 0), ..Machine::new(file) };
        loop {
            if let Some(root) = m.step()? {
                return Ok((Self { nodes: m.nodes, root }, m.at));
            }
        }
    }

    /// The value that was pickled.
    #[must_use]
    pub fn root(&self) -> Id {
        self.root
    }

    /// Value `id`.
    #[must_use]
    pub fn node(&self, id: Id) -> &Node {
        self.nodes.get(id).unwrap_or(&Node::None)
    }

    /// Value `id` as text.
    #[must_use]
    pub fn text(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Text(t) => Some(t),
            _ => None,
        }
    }

    /// Value `id` as a count.
    #[must_use]
    pub fn size(&self, id: Id) -> Option<usize> {
        match self.node(id) {
            Node::Int(i) => usize::try_from(*i).ok(),
            _ => None,
        }
    }

    /// Elements of list, tuple or set `id`.
    #[must_use]
    pub fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::Sequence(s) => Some(s),
            _ => None,
        }
    }

    /// Items of dict or OrderedDict `id`.
    #[must_use]
    pub fn items(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.node(id) {
            Node::Dict(items) => Some(items),
            Node::Call { function, items, .. }
                if *self.node(*function) == Node::Global("collections.OrderedDict".into()) =>
            {
                Some(items)
            }
            _ => None,
        }
    }

    /// Arguments of `id` if it is a call of `function`.
    #[must_use]
    pub fn call(&self, id: Id, called: &str) -> Option<&[Id]> {
        match self.node(id) {
            Node::Call { function, arguments, .. } if *self.node(*function) == Node::Global(called.to_owned()) => {
                self.sequence(*arguments)
            }
            _ => None,
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    file: &'a Path,
    base: usize,
    opcode: (u8, usize),
    nodes: Vec<Node>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    fn new(file: &'a Path) -> Self {
        Self {
            bytes: &[],
            at: 0,
            file,
            base: 0,
            opcode: (0, 0),
            nodes: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        }
    }

    fn bad(&self, expected: impl Into<String>, found: impl Into<String>) -> Error {
        let (code, at) = self.opcode;
        Error::format(self.file, format!("pickle opcode 0x{code:02x} at byte {}", self.base + at), expected, found)
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
        // A signed length below zero, or one no file could hold, ends here.
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

    fn add(&mut self, node: Node) -> Result<Id> {
        if self.nodes.len() >= MAX_NODES {
            return Err(self.bad(format!("at most {MAX_NODES} values"), "more"));
        }
        self.nodes.push(node);
        Ok(self.nodes.len() - 1)
    }

    fn push(&mut self, node: Node) -> Result<()> {
        let id = self.add(node)?;
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
        let text = std::str::from_utf8(bytes).map_err(|e| self.bad("UTF-8", e.to_string()))?.to_owned();
        self.push(Node::Text(text))
    }

    fn data(&mut self, length: usize) -> Result<()> {
        let bytes = self.take(length)?.to_vec();
        self.push(Node::Bytes(bytes))
    }

    fn tuple(&mut self, count: usize) -> Result<()> {
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Node::Sequence(items))
    }

    fn store(&mut self, index: u64) -> Result<()> {
        let key = u32::try_from(index).ok().filter(|i| *i <= MAX_MEMO);
        let Some(key) = key else { return Err(self.bad(format!("a memo index up to {MAX_MEMO}"), index.to_string())) };
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, index: u64) -> Result<()> {
        let id = u32::try_from(index).ok().and_then(|i| self.memo.get(&i).copied());
        let Some(id) = id else { return Err(self.bad("a memo index in use", index.to_string())) };
        self.stack.push(id);
        Ok(())
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
        let target = self.top()?;
        match &mut self.nodes[target] {
            Node::Sequence(list) => {
                list.extend(values);
                Ok(())
            }
            _ => Err(self.bad("a list or set", "another value")),
        }
    }

    fn record_call(&mut self, function: Id, arguments: Id) -> Result<()> {
        let Node::Global(name) = &self.nodes[function] else {
            return Err(self.bad("a class or function to call", "another value"));
        };
        let known = KNOWN_CALLS.iter().any(|k| if k.ends_with('.') { name.starts_with(k) } else { name == k });
        if !known {
            return Err(self.bad("a constructor of tensors or modules", format!("a call of `{name}`")));
        }
        self.push(Node::Call { function, arguments, state: None, items: Vec::new() })
    }

    /// Runs one opcode; gives the result at STOP.
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
                if self.marks.len() >= MAX_MARKS {
                    return Err(self.bad(format!("at most {MAX_MARKS} open marks"), "more"));
                }
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
                self.stack.push(top);
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
            b'U' | b'C' => {
                let n = self.length(1)?;
                self.data(n)?;
            }
            b'T' | b'B' => {
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
                self.push(Node::Global(format!("{module}.{name}")))?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Node::Text(module), Node::Text(name)) = (&self.nodes[module], &self.nodes[name]) else {
                    return Err(self.bad("module and name", "other values"));
                };
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
                    Node::Dict(_) => {}
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
                self.push(Node::Persistent(id))?;
            }
            0x95 => {
                self.take(8)?;
            }
            other => return Err(self.bad("an opcode of protocols 2 to 5", format!("0x{other:02x}"))),
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(bytes: &[u8]) -> Result<(Pickle, usize)> {
        Pickle::parse(bytes, Path::new("x.pkl"), 0)
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
        let system = fails(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.");
        assert!(system.contains("opcode 0x52 at byte 21") && system.contains("os.system"), "{system}");
        assert!(fails(b"\x80\x02X\xff\xff\xff\xffa.").contains("within the file"));
        assert!(fails(b"\x80\x02\x8b\xff\xff\xff\xff.").contains("within the file"));
        assert!(fails(b"\x80\x02K\x01r\xff\xff\xff\xff.").contains("memo index"));
        assert!(fails(b"\x80\x02h\x07.").contains("memo index in use"));
        assert!(fails(b"\x80\x02.").contains("a value on the stack"));
        assert!(fails(b"\x80\x07.").contains("protocol 2 to 5"));
        assert!(fails(b"\x80\x02K\x01").contains("more bytes"));
        assert!(fails(&[b'('; 100_000]).contains("open marks"));
    }

    #[test]
    fn repeated_sharing_stays_small() {
        // x = (x, x) forty times over: 2^40 values if it were expanded.
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
        bytes.extend([0x85; 1_000_000]);
        bytes.push(b'.');
        assert_eq!(parse(&bytes).unwrap().0.nodes.len(), 1_000_001);
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_result(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
