//! The npy format, versions 1 to 3: one bounded header, then raw little-endian elements.

use std::io::{Read, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// Longest header accepted, bytes.
const MAX_HEADER: usize = 1 << 16;
/// Most axes accepted.
const MAX_AXES: usize = 32;

/// Element types that are read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Dtype {
    U8,
    I8,
    I32,
    I64,
    F16,
    F32,
    F64,
    Bool,
}

impl Dtype {
    const ALL: [(Self, &str, usize); 8] = [
        (Self::U8, "|u1", 1),
        (Self::I8, "|i1", 1),
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

    /// NumPy's name, e.g. `<f4`.
    #[must_use]
    pub fn descr(self) -> &'static str {
        Self::ALL.iter().find(|(d, ..)| *d == self).map_or("|u1", |(_, n, _)| n)
    }
}

/// What an array's header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Element type.
    pub dtype: Dtype,
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
}

/// Reads the magic, version and header of an array called `place` in `file`. The gate of this format.
///
/// # Errors
/// `Format` for anything but a header of at most 64 KiB with a supported type and a shape whose size is below 2^63 bytes.
pub fn read_header(reader: &mut impl Read, file: &Path, place: &str) -> Result<Header> {
    let bad = |expected: &str, found: String| Error::format(file, place, expected, found);
    let mut exact = |buffer: &mut [u8]| {
        reader.read_exact(buffer).map_err(|e| Error::format(file, place, "a complete npy header", e.to_string()))
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
    let quote = descr.chars().next().filter(|c| *c == '\'' || *c == '"').ok_or(("a plain dtype", descr.to_owned()))?;
    let descr = descr[1..].split(quote).next().unwrap_or("");
    let known = Dtype::ALL.iter().find(|(_, n, _)| *n == descr || n[1..] == *descr.trim_start_matches(['=', '<', '|']));
    let big_endian = descr.starts_with('>') && !descr.ends_with('1');
    let Some((dtype, ..)) = known.filter(|_| !big_endian) else {
        return Err(("dtype u1, i1, i4, i8, f2, f4, f8 or b1, little endian", descr.to_owned()));
    };
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
    let bytes = shape.iter().try_fold(dtype.size() as u64, |n, d| n.checked_mul(*d as u64));
    if shape.len() > MAX_AXES || bytes.is_none_or(|n| n > i64::MAX as u64) {
        return Err(("a shape of at most 32 axes and 2^63 bytes", inner.to_owned()));
    }
    Ok(Header { dtype: *dtype, fortran_order, shape })
}

/// Writes a version 1 header for C order, byte for byte as NumPy writes it.
///
/// # Errors
/// The writer's own.
pub fn write_header(writer: &mut impl Write, dtype: Dtype, shape: &[usize]) -> std::io::Result<()> {
    const ALIGN: usize = 64;
    const PREFIX: usize = 10;
    // NumPy leaves room for the first axis to grow to 20 digits.
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

/// Reads `count` elements of `dtype` as f64. Memory grows only as bytes arrive.
///
/// # Errors
/// `Format` if the data end early.
pub fn read_f64(reader: &mut impl Read, dtype: Dtype, count: usize, file: &Path, place: &str) -> Result<Vec<f64>> {
    let wanted = (count as u64).saturating_mul(dtype.size() as u64);
    let mut bytes = Vec::new();
    reader.take(wanted).read_to_end(&mut bytes).map_err(|e| Error::format(file, place, "array data", e.to_string()))?;
    if bytes.len() as u64 != wanted {
        return Err(Error::format(file, place, format!("{wanted} bytes of data"), format!("{} bytes", bytes.len())));
    }
    Ok(bytes.chunks_exact(dtype.size()).map(|b| element(dtype, b)).collect())
}

#[allow(clippy::cast_precision_loss, reason = "integers beyond 2^53 do not occur as statistics or labels")]
fn element(dtype: Dtype, b: &[u8]) -> f64 {
    match (dtype, b) {
        (Dtype::I8, &[x]) => f64::from(i8::from_le_bytes([x])),
        (Dtype::U8 | Dtype::Bool, &[x]) => f64::from(x),
        (Dtype::F16, &[a, b]) => half_to_f64(u16::from_le_bytes([a, b])),
        (Dtype::I32, &[a, b, c, d]) => f64::from(i32::from_le_bytes([a, b, c, d])),
        (Dtype::F32, &[a, b, c, d]) => f64::from(f32::from_le_bytes([a, b, c, d])),
        (Dtype::I64, &[a, b, c, d, e, f, g, h]) => i64::from_le_bytes([a, b, c, d, e, f, g, h]) as f64,
        (Dtype::F64, &[a, b, c, d, e, f, g, h]) => f64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => f64::NAN,
    }
}

fn half_to_f64(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    sign * match exponent {
        0 => fraction * 2.0_f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        e => (1.0 + fraction / 1024.0) * 2.0_f64.powi(e - 15),
    }
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
        // numpy 2.3: np.lib.format.write_array_header_1_0 for shape (3, 4), '<f4'.
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
        assert!(with("{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }").contains("little endian"));
        assert!(with("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }").contains("dtype"));
        assert!(with("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }").contains("whole numbers"));
        assert!(with("{}").contains("fields"));
        assert!(parse_bytes(b"\x93NUMPY\x02\x00\xff\xff\xff\x7f").unwrap_err().to_string().contains("65536"));
        assert!(parse_bytes(b"PK").unwrap_err().to_string().contains("complete npy header"));
    }

    proptest! {
        #[test]
        fn header_round_trip(shape in prop::collection::vec(0_usize..1000, 0..5), which in 0_usize..8) {
            let dtype = Dtype::ALL[which].0;
            let mut bytes = Vec::new();
            write_header(&mut bytes, dtype, &shape).unwrap();
            prop_assert_eq!(bytes.len() % 64, 0);
            prop_assert_eq!(parse_bytes(&bytes).unwrap(), Header { dtype, fortran_order: false, shape });
        }

        #[test]
        fn any_bytes_give_a_result(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut with_magic = b"\x93NUMPY\x01\x00".to_vec();
            with_magic.extend(&bytes);
            let _ = parse_bytes(&with_magic);
            let _ = parse_bytes(&bytes);
        }

        #[test]
        fn halves_match_the_half_crate_rule(bits in any::<u16>()) {
            let v = half_to_f64(bits);
            let exponent = bits >> 10 & 31;
            prop_assert_eq!(v.is_finite(), exponent != 31);
        }
    }
}
