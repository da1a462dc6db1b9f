//! Constants of TensorFlow GraphDefs (`.pb`), read directly from the protocol buffer wire format
//! (<https://protobuf.dev/programming-guides/encoding/>). Of the other nodes only the names of scaling batch norms are
//! kept.
//!
//! Field numbers are those of `graph.proto`, `node_def.proto`, `attr_value.proto`, `tensor.proto` and
//! `tensor_shape.proto`.

use std::ops::Range;
use std::sync::Arc;

use crate::Dtype;
use crate::error::{Error, Result};
use crate::input::Input;
use crate::views::{Storage, View};

/// Memory charged per constant, without its name, bytes.
const CONSTANT_BYTES: usize = 512;
/// Maximum number of axes of a constant.
const MAX_RANK: usize = 16;

/// The parts of a graph that are read.
#[derive(Debug, Default)]
pub(crate) struct GraphDef {
    /// Numeric constants by node name, in the axis order of TensorFlow.
    pub(crate) constants: Vec<(String, View)>,
    /// Names of batch-norm nodes that scale after normalising.
    pub(crate) scaled_norms: Vec<String>,
}

/// Reads the graph `input`. Checks that every field is inside the message that contains it.
///
/// # Errors
/// `Format` with the byte offset.
pub(crate) fn read(input: &Input<'_>) -> Result<GraphDef> {
    let mut graph = GraphDef::default();
    let mut nodes = 0;
    let reader = Reader { input, bytes: input.bytes };
    reader.fields(0..input.bytes.len(), &mut |number, field| {
        if let (1, Field::Bytes(node)) = (number, field) {
            nodes += 1;
            reader.node(node, &mut graph)?;
        }
        Ok(())
    })?;
    if nodes == 0 {
        return Err(reader.bad(0, "a node", "none"));
    }
    Ok(graph)
}

#[derive(Debug, Clone)]
enum Field {
    Number(u64),
    Fixed(u64),
    Bytes(Range<usize>),
}

struct Reader<'a> {
    input: &'a Input<'a>,
    bytes: &'a [u8],
}

impl Reader<'_> {
    fn bad(&self, at: usize, expected: impl Into<String>, found: impl Into<String>) -> Error {
        self.input.bad(format!("GraphDef, byte {at}"), expected, found)
    }

    fn varint(&self, at: &mut usize, end: usize) -> Result<u64> {
        const MAX_LENGTH: usize = 10;
        let mut value = 0_u64;
        for i in 0..MAX_LENGTH {
            let byte =
                self.bytes.get(*at).filter(|_| *at < end).ok_or_else(|| self.bad(*at, "more bytes", "the end"))?;
            *at += 1;
            value |= u64::from(byte & 0x7f).checked_shl(u32::try_from(7 * i).unwrap_or(u32::MAX)).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.bad(*at, "a number of at most 10 bytes", "a longer one"))
    }

    /// Calls `each` with number and content of each field of the message in `range`.
    fn fields(&self, range: Range<usize>, each: &mut dyn FnMut(u64, Field) -> Result<()>) -> Result<()> {
        let (mut at, end) = (range.start, range.end);
        let fixed = |at: &mut usize, width: usize| -> Result<Field> {
            let raw = at.checked_add(width).filter(|e| *e <= end).map(|e| &self.bytes[*at..e]);
            let raw = raw.ok_or_else(|| self.bad(*at, format!("{width} bytes"), "the end"))?;
            *at += width;
            Ok(Field::Fixed(raw.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))))
        };
        while at < end {
            let start = at;
            let tag = self.varint(&mut at, end)?;
            let field = match tag & 7 {
                0 => Field::Number(self.varint(&mut at, end)?),
                1 => fixed(&mut at, 8)?,
                5 => fixed(&mut at, 4)?,
                2 => {
                    let length = usize::try_from(self.varint(&mut at, end)?).ok();
                    let stop = length.and_then(|l| at.checked_add(l)).filter(|s| *s <= end);
                    let stop = stop.ok_or_else(|| self.bad(start, "a field inside its message", "a longer one"))?;
                    let content = at..stop;
                    at = stop;
                    Field::Bytes(content)
                }
                other => return Err(self.bad(start, "wire type 0, 1, 2 or 5", other.to_string())),
            };
            each(tag >> 3, field)?;
        }
        Ok(())
    }

    fn text(&self, range: Range<usize>) -> Result<&str> {
        let at = range.start;
        std::str::from_utf8(&self.bytes[range]).map_err(|e| self.bad(at, "UTF-8", e.to_string()))
    }

    fn node(&self, range: Range<usize>, graph: &mut GraphDef) -> Result<()> {
        let (mut name, mut op, mut value, mut scaled) = ("", "", None, false);
        self.fields(range.clone(), &mut |number, field| {
            match (number, field) {
                (1, Field::Bytes(r)) => name = self.text(r)?,
                (2, Field::Bytes(r)) => op = self.text(r)?,
                (5, Field::Bytes(entry)) => {
                    let (mut key, mut attribute) = ("", None);
                    self.fields(entry, &mut |number, field| {
                        match (number, field) {
                            (1, Field::Bytes(r)) => key = self.text(r)?,
                            (2, Field::Bytes(r)) => attribute = Some(r),
                            _ => {}
                        }
                        Ok(())
                    })?;
                    let Some(attribute) = attribute else { return Ok(()) };
                    self.fields(attribute, &mut |number, field| {
                        match (key, number, field) {
                            ("value", 8, Field::Bytes(r)) => value = Some(r),
                            ("scale_after_normalization", 5, Field::Number(n)) => scaled = n != 0,
                            _ => {}
                        }
                        Ok(())
                    })?;
                }
                _ => {}
            }
            Ok(())
        })?;
        match (op, value) {
            ("Const", Some(value)) => {
                let start = value.start;
                if let Some(view) = self.tensor(name, value)? {
                    self.input.charge(CONSTANT_BYTES + 4 * name.len(), || format!("GraphDef, byte {start}"))?;
                    graph.constants.push((name.to_owned(), view));
                }
            }
            ("BatchNormWithGlobalNormalization", _) if scaled => {
                self.input.charge(CONSTANT_BYTES + name.len(), || format!("GraphDef, byte {}", range.start))?;
                graph.scaled_norms.push(name.to_owned());
            }
            _ => {}
        }
        Ok(())
    }

    /// The constant in `range`; `None` if its elements are not numbers, or if one listed element represents all of
    /// them.
    fn tensor(&self, name: &str, range: Range<usize>) -> Result<Option<View>> {
        let (mut kind, mut dims, mut content) = (0, Vec::new(), None);
        let mut listed: Vec<u8> = Vec::new();
        let at = range.start;
        let place = || format!("GraphDef, byte {at}");
        self.fields(range, &mut |number, field| {
            match (number, field) {
                (1, Field::Number(n)) => kind = n,
                (2, Field::Bytes(shape)) => self.fields(shape, &mut |number, field| {
                    let (2, Field::Bytes(dim)) = (number, field) else { return Ok(()) };
                    let mut size = 0;
                    let place = dim.start;
                    self.fields(dim, &mut |number, field| {
                        if let (1, Field::Number(n)) = (number, field) {
                            size = n;
                        }
                        Ok(())
                    })?;
                    let size = usize::try_from(size).ok().filter(|s| *s <= self.bytes.len() && dims.len() < MAX_RANK);
                    dims.push(
                        size.ok_or_else(|| {
                            self.bad(place, format!("{MAX_RANK} sizes within the file"), "other sizes")
                        })?,
                    );
                    Ok(())
                })?,
                (4, Field::Bytes(r)) => content = Some(r),
                // Small constants list their elements: floats (5), doubles (6), 32-bit (7) and 64-bit (10) integers.
                (5, Field::Bytes(r)) | (6, Field::Bytes(r)) => listed.extend_from_slice(&self.bytes[r]),
                (5, Field::Fixed(v)) => listed.extend_from_slice(&v.to_le_bytes()[..4]),
                (6, Field::Fixed(v)) => listed.extend_from_slice(&v.to_le_bytes()),
                (7 | 10, Field::Number(v)) => {
                    self.input.charge(2 * size_of::<u64>(), place)?;
                    listed.extend_from_slice(&v.to_le_bytes());
                }
                (7 | 10, Field::Bytes(r)) => {
                    // A varint takes at least one byte.
                    self.input.charge(2 * size_of::<u64>() * r.len(), place)?;
                    let mut at = r.start;
                    while at < r.end {
                        let v = self.varint(&mut at, r.end)?;
                        listed.extend_from_slice(&v.to_le_bytes());
                    }
                }
                _ => {}
            }
            Ok(())
        })?;
        let Some(dtype) = element_type(kind) else { return Ok(None) };
        let whole = matches!(dtype, Dtype::I64 | Dtype::I32 | Dtype::I16 | Dtype::I8 | Dtype::U8);
        let (dtype, storage) = match content {
            Some(r) => (dtype, Storage { owned: None, start: r.start, bytes: r.len(), crc: None }),
            None => {
                let bytes = listed.len();
                // Listed integers were widened to i64 above.
                (
                    if whole { Dtype::I64 } else { dtype },
                    Storage { owned: Some(Arc::new(listed)), start: 0, bytes, crc: None },
                )
            }
        };
        let count = dims.iter().try_fold(1_usize, |n, d| n.checked_mul(*d));
        let held = storage.bytes / dtype.size();
        if count == Some(held) {
            return Ok(Some(View::contiguous(dtype, storage, dims)));
        }
        // One listed element may represent all elements of a larger constant; weights are not written that way.
        if held <= 1 && storage.owned.is_some() {
            return Ok(None);
        }
        Err(self.bad(at, format!("`{name}`: elements for {dims:?}"), format!("{held} of them")))
    }
}

/// Element type of a `DataType` in `types.proto`; `None` if it is not supported.
fn element_type(kind: u64) -> Option<Dtype> {
    Some(match kind {
        1 => Dtype::F32,
        2 => Dtype::F64,
        3 => Dtype::I32,
        4 => Dtype::U8,
        5 => Dtype::I16,
        6 => Dtype::I8,
        9 => Dtype::I64,
        14 => Dtype::BF16,
        19 => Dtype::F16,
        _ => return None,
    })
}
