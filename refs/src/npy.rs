//! The npy format, versions 1 to 3: one header of bounded size, then raw elements.

use std::io::{Read, Write};
use std::path::Path;

use half::f16;

use crate::error::{Error, Result};
use crate::labels::Values;
use crate::pixels;

/// First bytes of an npy file.
pub(crate) const MAGIC: &[u8] = b"\x93NUMPY";
/// Longest header accepted, bytes.
const MAX_HEADER: usize = 1 << 16;
/// Most axes accepted.
const MAX_AXES: usize = 32;

/// Longest axis of an array without elements. The size of the file does not limit it.
const MAX_EMPTY: usize = 1 << 20;

/// Bytes of elements that are converted at a time.
const BLOCK: usize = 1 << 16;
/// 2^53. f64 represents every integer up to it.
const MAX_EXACT: u64 = 1 << 53;

/// Supported element types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Dtype {
    U8,
    U16,
    U32,
    U64,
    I8,
    I16,
    I32,
    I64,
    F16,
    F32,
    F64,
    Bool,
}

impl Dtype {
    const ALL: [(Self, &str, usize); 12] = [
        (Self::U8, "|u1", 1),
        (Self::U16, "<u2", 2),
        (Self::U32, "<u4", 4),
        (Self::U64, "<u8", 8),
        (Self::I8, "|i1", 1),
        (Self::I16, "<i2", 2),
        (Self::I32, "<i4", 4),
        (Self::I64, "<i8", 8),
        (Self::F16, "<f2", 2),
        (Self::F32, "<f4", 4),
        (Self::F64, "<f8", 8),
        (Self::Bool, "|b1", 1),
    ];

    /// Size of an element in bytes.
    #[must_use]
    pub fn size(self) -> usize {
        Self::ALL.iter().find(|(d, ..)| *d == self).map_or(1, |(.., s)| *s)
    }

    /// NumPy name of the little-endian type, e.g. `<f4`.
    #[must_use]
    pub fn descr(self) -> &'static str {
        Self::ALL.iter().find(|(d, ..)| *d == self).map_or("|u1", |(_, n, _)| n)
    }

    /// Whether it is a floating-point type.
    #[must_use]
    pub fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::F32 | Self::F64)
    }
}

/// Header of an array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Element type.
    pub dtype: Dtype,
    /// Whether the most significant byte of an element comes first.
    pub big_endian: bool,
    /// Whether the first axis varies fastest.
    pub fortran_order: bool,
    /// Length of each axis.
    pub shape: Vec<usize>,
}

impl Header {
    /// Number of elements.
    #[must_use]
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Size of all elements in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.count() as u64).saturating_mul(self.dtype.size() as u64)
    }

    /// NumPy name of the type with byte order, e.g. `>f4`.
    #[must_use]
    pub fn descr(&self) -> String {
        let little = self.dtype.descr();
        if self.big_endian { little.replace('<', ">") } else { little.to_owned() }
    }
}

/// `<f4 [3, 4]`.
impl std::fmt::Display for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.descr(), self.shape)
    }
}

/// Reads and checks the magic, version and header of an array. Messages call it `place` in `file`.
///
/// # Errors
/// `Format` unless the header has at most 64 KiB, a supported type, and a shape of at most 32 axes and less than 2^63
/// bytes. The axes of an array without elements are limited to 2^20.
pub fn read_header(reader: &mut impl Read, file: &Path, place: &str) -> Result<Header> {
    let bad = |expected: &str, found: String| Error::format(file, place, expected, found);
    let mut exact = |buffer: &mut [u8]| {
        reader.read_exact(buffer).map_err(|e| {
            let found = match e.kind() {
                std::io::ErrorKind::UnexpectedEof => "the end of the data".to_owned(),
                _ => e.to_string(),
            };
            Error::format(file, place, "a complete npy header", found)
        })
    };
    let mut magic = [0; 8];
    exact(&mut magic)?;
    if &magic[..6] != b"\x93NUMPY" {
        return Err(bad("the npy magic", format!("{:02x?}", &magic[..6])));
    }
    let length = match magic[6] {
        1 => {
            let mut n = [0; 2];
            exact(&mut n)?;
            usize::from(u16::from_le_bytes(n))
        }
        2 | 3 => {
            let mut n = [0; 4];
            exact(&mut n)?;
            usize::try_from(u32::from_le_bytes(n)).unwrap_or(usize::MAX)
        }
        v => return Err(bad("npy version 1, 2 or 3", v.to_string())),
    };
    if length > MAX_HEADER {
        return Err(bad("a header of at most 65536 bytes", length.to_string()));
    }
    let mut text = vec![0; length];
    exact(&mut text)?;
    let text = String::from_utf8(text).map_err(|e| bad("text", e.to_string()))?;
    parse(&text).map_err(|(expected, found)| bad(expected, found))
}

fn parse(text: &str) -> Result<Header, (&'static str, String)> {
    let field = |name: &str| {
        let quoted = [format!("'{name}':"), format!("\"{name}\":")];
        let at = quoted.iter().find_map(|q| text.find(q.as_str()).map(|i| i + q.len()));
        at.map(|i| text[i..].trim_start()).ok_or(("the fields descr, fortran_order and shape", text.to_owned()))
    };
    let descr = field("descr")?;
    let quote = descr.chars().next().filter(|c| *c == '\'' || *c == '"');
    let quote = quote.ok_or(("a plain dtype", descr.chars().take(60).collect::<String>()))?;
    let descr = descr[1..].split(quote).next().unwrap_or("");
    let (order, kind) = match descr.as_bytes().first() {
        Some(b'<' | b'>' | b'|' | b'=') => descr.split_at(1),
        _ => ("", descr),
    };
    let Some((dtype, _, size)) = Dtype::ALL.iter().find(|(_, name, _)| name[1..] == *kind) else {
        let expected = "an integer, float or boolean dtype (u1 to u8, i1 to i8, f2 to f8, b1)";
        return Err((expected, describe_dtype(descr)));
    };
    let big_endian = order == ">" && *size > 1;
    let fortran_order = match field("fortran_order")? {
        f if f.starts_with("False") => false,
        f if f.starts_with("True") => true,
        other => return Err(("True or False", other.to_owned())),
    };
    let shape = field("shape")?;
    let inner = shape.strip_prefix('(').and_then(|s| s.split_once(')')).ok_or(("a tuple", shape.to_owned()))?.0;
    let shape = inner
        .split(',')
        .map(str::trim)
        .filter(|s| !s.is_empty())
        .map(|s| s.trim_end_matches('L').parse::<usize>().map_err(|_| ("whole numbers in shape", inner.to_owned())))
        .collect::<Result<Vec<_>, _>>()?;
    let bytes = shape.iter().try_fold(*size as u64, |n, d| n.checked_mul(*d as u64));
    if shape.len() > MAX_AXES || bytes.is_none_or(|n| n > i64::MAX as u64) {
        return Err(("a shape of at most 32 axes and 2^63 bytes", inner.to_owned()));
    }
    if shape.contains(&0) && shape.iter().any(|rows| *rows > MAX_EMPTY) {
        return Err(("an array without elements of at most 2^20 rows", inner.to_owned()));
    }
    Ok(Header { dtype: *dtype, big_endian, fortran_order, shape })
}

/// Description of an unsupported dtype.
fn describe_dtype(descr: &str) -> String {
    let what = match descr.trim_start_matches(['<', '>', '|', '=']).chars().next() {
        Some('O') => "Python objects, ",
        Some('U' | 'S' | 'a') => "strings, ",
        Some('c') => "complex numbers, ",
        Some('M' | 'm') => "dates or times, ",
        Some('V') => "records, ",
        _ => "",
    };
    format!("{what}{}", descr.chars().take(40).collect::<String>())
}

/// Writes a version 1 header for C order, byte for byte as NumPy writes it.
///
/// # Errors
/// Errors of `writer`; a header of more than 65535 bytes.
pub fn write_header(writer: &mut impl Write, dtype: Dtype, shape: &[usize]) -> std::io::Result<()> {
    const ALIGN: usize = 64;
    const PREFIX: usize = 10;
    // NumPy pads the header so that the first axis can grow to 21 digits.
    const GROWTH: usize = 21;
    let list = shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    let tuple = if shape.len() == 1 { format!("({list},)") } else { format!("({list})") };
    let mut text = format!("{{'descr': '{}', 'fortran_order': False, 'shape': {tuple}, }}", dtype.descr());
    if let Some(first) = shape.first() {
        text.push_str(&" ".repeat(GROWTH - first.to_string().len().min(GROWTH)));
    }
    let pad = (ALIGN - (PREFIX + text.len() + 1) % ALIGN) % ALIGN;
    text.push_str(&" ".repeat(pad));
    text.push('\n');
    let length = u16::try_from(text.len()).map_err(|_| std::io::Error::other("npy header too long"))?;
    writer.write_all(b"\x93NUMPY\x01\x00")?;
    writer.write_all(&length.to_le_bytes())?;
    writer.write_all(text.as_bytes())
}

/// The value of one element.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Element {
    /// An integer or boolean; covers u64 too.
    Integer(i128),
    /// A float; f16 and f32 are exact in f64.
    Float(f64),
}

impl std::fmt::Display for Element {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Integer(v) => v.fmt(f),
            Self::Float(v) => v.fmt(f),
        }
    }
}

/// The element in `bytes`, which has the size of the type.
fn element(dtype: Dtype, big_endian: bool, bytes: &[u8]) -> Element {
    let mut wide = [0; 8];
    for (i, to) in wide.iter_mut().take(bytes.len()).enumerate() {
        *to = bytes[if big_endian { bytes.len() - 1 - i } else { i }];
    }
    let [a, b, c, d, ..] = wide;
    match dtype {
        Dtype::U8 | Dtype::Bool => Element::Integer(a.into()),
        Dtype::U16 => Element::Integer(u16::from_le_bytes([a, b]).into()),
        Dtype::U32 => Element::Integer(u32::from_le_bytes([a, b, c, d]).into()),
        Dtype::U64 => Element::Integer(u64::from_le_bytes(wide).into()),
        Dtype::I8 => Element::Integer(i8::from_le_bytes([a]).into()),
        Dtype::I16 => Element::Integer(i16::from_le_bytes([a, b]).into()),
        Dtype::I32 => Element::Integer(i32::from_le_bytes([a, b, c, d]).into()),
        Dtype::I64 => Element::Integer(i64::from_le_bytes(wide).into()),
        Dtype::F16 => Element::Float(f16::from_le_bytes([a, b]).to_f64()),
        Dtype::F32 => Element::Float(f32::from_le_bytes([a, b, c, d]).into()),
        Dtype::F64 => Element::Float(f64::from_le_bytes(wide)),
    }
}

/// Reads the elements that follow `header`, in file order, block by block. Memory grows only as bytes arrive. `convert`
/// returns the value, or what was expected instead.
pub(crate) fn read_as<T>(
    reader: &mut impl Read,
    header: &Header,
    file: &Path,
    place: &str,
    mut convert: impl FnMut(Element) -> Result<T, &'static str>,
) -> Result<Vec<T>> {
    let (size, mut left) = (header.dtype.size(), header.bytes());
    let (mut block, mut values) = (vec![0; BLOCK / size * size], Vec::new());
    while left > 0 {
        let wanted = usize::try_from(left).map_or(block.len(), |left| left.min(block.len()));
        let filled =
            fill(reader, &mut block[..wanted]).map_err(|e| Error::format(file, place, "array data", e.to_string()))?;
        if filled < wanted {
            let found = header.bytes() - left + filled as u64;
            let expected = format!("{} bytes of data", header.bytes());
            return Err(Error::format(file, place, expected, format!("{found} bytes")));
        }
        for bytes in block[..wanted].chunks_exact(size) {
            let found = element(header.dtype, header.big_endian, bytes);
            match convert(found) {
                Ok(value) => values.push(value),
                Err(expected) => {
                    let place = format!("{place}, value {}", values.len());
                    return Err(Error::format(file, place, expected, found.to_string()));
                }
            }
        }
        left -= wanted as u64;
    }
    Ok(values)
}

/// Reads until `buffer` is full or the data end; returns the number of bytes read.
pub(crate) fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// Reads the elements that follow `header` as f64.
///
/// # Errors
/// `Format` if the data end early, or for an integer beyond 2^53, which f64 does not hold exactly.
pub fn read_f64(reader: &mut impl Read, header: &Header, file: &Path, place: &str) -> Result<Vec<f64>> {
    #[allow(clippy::cast_precision_loss, reason = "checked to be exact")]
    read_as(reader, header, file, place, |found| match found {
        Element::Float(v) => Ok(v),
        Element::Integer(v) if v.unsigned_abs() <= MAX_EXACT.into() => Ok(v as f64),
        Element::Integer(_) => Err("integers up to 2^53"),
    })
}

/// Reads the elements that follow `header` as f32; f64 values and integers are rounded.
///
/// # Errors
/// `Format` if the data end early.
pub fn read_f32(reader: &mut impl Read, header: &Header, file: &Path, place: &str) -> Result<Vec<f32>> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "rounding is asked for")]
    read_as(reader, header, file, place, |found| match found {
        Element::Float(v) => Ok(v as f32),
        Element::Integer(v) => Ok(v as f32),
    })
}

/// Reads the elements that follow `header` as integers, exactly. Floats must be whole, with a magnitude of at most
/// 2^53.
///
/// # Errors
/// `Format` if the data end early; `Format` naming the first value that does not fit `T`.
pub fn read_integers<T: TryFrom<i128>>(
    reader: &mut impl Read,
    header: &Header,
    file: &Path,
    place: &str,
) -> Result<Vec<T>> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "checked to be whole and small")]
    read_as(reader, header, file, place, |found| match found {
        Element::Integer(v) => T::try_from(v).map_err(|_| "integers in range"),
        Element::Float(v) if v.fract() == 0.0 && v.abs() <= MAX_EXACT as f64 => {
            T::try_from(v as i128).map_err(|_| "integers in range")
        }
        Element::Float(_) => Err("whole numbers"),
    })
}

/// Reads the elements that follow `header` as labels.
pub(crate) fn read_labels(reader: &mut impl Read, header: &Header, file: &Path, place: &str) -> Result<Values> {
    Ok(match header.dtype {
        Dtype::U64 => Values::Unsigned(read_integers(reader, header, file, place)?),
        dtype if dtype.is_float() => Values::Floats(read_f64(reader, header, file, place)?),
        _ => Values::Integers(read_integers(reader, header, file, place)?),
    })
}

/// Appends the elements in `bytes` to `pixels`. The error is the index and the text of the first element that is not a
/// whole number from 0 to 255.
pub(crate) fn to_pixels(header: &Header, bytes: &[u8], pixels: &mut Vec<u8>) -> Result<(), (usize, String)> {
    if header.dtype == Dtype::U8 {
        pixels.extend_from_slice(bytes);
        return Ok(());
    }
    for (index, bytes) in bytes.chunks_exact(header.dtype.size()).enumerate() {
        let found = element(header.dtype, header.big_endian, bytes);
        let pixel = match found {
            Element::Integer(v) => u8::try_from(v).ok(),
            Element::Float(v) => pixels::from_float(v),
        };
        pixels.push(pixel.ok_or_else(|| (index, found.to_string()))?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse_bytes(bytes: &[u8]) -> Result<Header> {
        read_header(&mut &bytes[..], Path::new("x.npy"), "header")
    }

    #[test]
    fn header_is_numpys() {
        // From numpy 2.3: np.lib.format.write_array_header_1_0 for shape (3, 4), '<f4'.
        let mut bytes = Vec::new();
        write_header(&mut bytes, Dtype::F32, &[3, 4]).unwrap();
        assert_eq!(bytes.len(), 128);
        let text = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }";
        assert_eq!(&bytes[..10], b"\x93NUMPY\x01\x00\x76\x00");
        assert_eq!(std::str::from_utf8(&bytes[10..127]).unwrap().trim_end(), text);
        assert_eq!(bytes[127], b'\n');
    }

    #[test]
    fn hostile_headers_are_errors() {
        let with = |text: &str| {
            let mut b = b"\x93NUMPY\x01\x00".to_vec();
            b.extend(u16::try_from(text.len()).unwrap().to_le_bytes());
            b.extend(text.as_bytes());
            parse_bytes(&b).unwrap_err().to_string()
        };
        assert!(
            with("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 99999999999), }").contains("2^63")
        );
        assert!(with("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }").contains("Python objects, |O"));
        assert!(with("{'descr': '<U3', 'fortran_order': False, 'shape': (1,), }").contains("strings, <U3"));
        assert!(with("{'descr': '<c8', 'fortran_order': False, 'shape': (1,), }").contains("complex"));
        assert!(with("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }").contains("a plain dtype"));
        assert!(with("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }").contains("whole numbers"));
        assert!(with("{}").contains("fields"));
        assert!(parse_bytes(b"\x93NUMPY\x02\x00\xff\xff\xff\x7f").unwrap_err().to_string().contains("65536"));
        assert!(parse_bytes(b"PK").unwrap_err().to_string().contains("complete npy header"));
    }

    proptest! {
        #[test]
        fn header_round_trip(shape in prop::collection::vec(0_usize..1000, 0..5), which in 0_usize..12, big in any::<bool>()) {
            let dtype = Dtype::ALL[which].0;
            let mut bytes = Vec::new();
            write_header(&mut bytes, dtype, &shape).unwrap();
            prop_assert_eq!(bytes.len() % 64, 0);
            let big_endian = big && dtype.size() > 1;
            if big_endian {
                let at = bytes.iter().position(|b| *b == b'<').unwrap();
                bytes[at] = b'>';
            }
            let expected = Header { dtype, big_endian, fortran_order: false, shape };
            prop_assert_eq!(parse_bytes(&bytes).unwrap(), expected);
        }

        #[test]
        fn values_survive_in_both_byte_orders(values in prop::collection::vec(any::<i64>(), 0..50), width in 0_u32..4, big in any::<bool>()) {
            let (size, shift) = (1_usize << width, 64 - 8 * (1 << width));
            let (signed, unsigned) = [(Dtype::I8, Dtype::U8), (Dtype::I16, Dtype::U16), (Dtype::I32, Dtype::U32), (Dtype::I64, Dtype::U64)][width as usize];
            let write = |v: i64| { let mut b = v.to_le_bytes()[..size].to_vec(); if big { b.reverse(); } b };
            let header = |dtype| Header { dtype, big_endian: big, fortran_order: false, shape: vec![values.len()] };
            let bytes: Vec<u8> = values.iter().flat_map(|v| write(v >> shift)).collect();
            let file = Path::new("x");
            let found: Vec<i64> = read_integers(&mut &bytes[..], &header(signed), file, "x").unwrap();
            prop_assert_eq!(&found, &values.iter().map(|v| v >> shift).collect::<Vec<_>>());
            let found: Vec<u64> = read_integers(&mut &bytes[..], &header(unsigned), file, "x").unwrap();
            prop_assert_eq!(&found, &values.iter().map(|v| v.cast_unsigned() >> shift).collect::<Vec<_>>());
        }

        #[test]
        fn any_bytes_give_a_result(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut with_magic = b"\x93NUMPY\x01\x00".to_vec();
            with_magic.extend(&bytes);
            let _ = parse_bytes(&with_magic);
            let _ = parse_bytes(&bytes);
        }
    }

    fn header(dtype: Dtype, count: usize) -> Header {
        Header { dtype, big_endian: false, fortran_order: false, shape: vec![count] }
    }

    #[test]
    fn integers_are_exact_or_refused() {
        let file = Path::new("x");
        let values = [(1_i64 << 53) + 1, i64::MAX, i64::MIN, -1];
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let found: Vec<i64> = read_integers(&mut &bytes[..], &header(Dtype::I64, 4), file, "x").unwrap();
        assert_eq!(found, values);
        let seeds: Vec<u64> = read_integers(&mut &bytes[..], &header(Dtype::U64, 4), file, "x").unwrap();
        assert_eq!(seeds[3], u64::MAX);
        let text = read_integers::<i64>(&mut &bytes[..], &header(Dtype::U64, 4), file, "x").unwrap_err().to_string();
        assert!(text.contains("value 2") && text.contains("9223372036854775808"), "{text}");
        let text = read_f64(&mut &bytes[..], &header(Dtype::I64, 4), file, "x").unwrap_err().to_string();
        assert!(text.contains("9007199254740993"), "{text}");
        let bytes: Vec<u8> = [1.0_f64, 2.5].iter().flat_map(|v| v.to_le_bytes()).collect();
        let text = read_integers::<i64>(&mut &bytes[..], &header(Dtype::F64, 2), file, "x").unwrap_err().to_string();
        assert!(text.contains("value 1") && text.contains("whole numbers, found 2.5"), "{text}");
    }

    #[test]
    fn floats_of_all_sizes_are_read() {
        let file = Path::new("x");
        let half: Vec<u8> = [f16::from_f32(0.5), f16::INFINITY].iter().flat_map(|v| v.to_be_bytes()).collect();
        let big = Header { big_endian: true, ..header(Dtype::F16, 2) };
        assert_eq!(read_f32(&mut &half[..], &big, file, "x").unwrap(), [0.5, f32::INFINITY]);
        let single: Vec<u8> = 0.1_f32.to_be_bytes().to_vec();
        let big = Header { big_endian: true, ..header(Dtype::F32, 1) };
        assert_eq!(read_f64(&mut &single[..], &big, file, "x").unwrap(), [f64::from(0.1_f32)]);
        assert!(read_f64(&mut &single[..3], &big, file, "x").unwrap_err().to_string().contains("3 bytes"));
        let huge = header(Dtype::F64, 1 << 59);
        assert!(read_f64(&mut &single[..], &huge, file, "x").is_err());
    }
}
