//! safetensors: a JSON header, then raw little-endian tensors. Files are memory-mapped for reading; writing is
//! deterministic.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use d2o_files::AtomicFile;
use memmap2::Mmap;
use safetensors::tensor::Metadata;
use safetensors::{Dtype as Stored, SafeTensors};

use crate::error::{Error, Result};
use crate::views::{map, release};
use crate::{Dtype, TensorInfo, TensorSource};

/// Whether a file that starts with `head` may be a safetensors file.
pub(crate) fn recognises(head: &[u8]) -> bool {
    const MAX_HEADER: u64 = 100_000_000;
    let (Some(length), Some(b'{')) = (head.first_chunk::<8>(), head.get(8)) else { return false };
    u64::from_le_bytes(*length) <= MAX_HEADER
}

/// A memory-mapped safetensors file.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    map: Arc<Mmap>,
    start: usize,
    header: Metadata,
    names: Vec<String>,
    metadata: Vec<(String, String)>,
}

impl SafetensorsFile {
    /// Maps `path` and checks its header: sizes, gaps, overlaps and the end of the file.
    ///
    /// # Errors
    /// `Format` if the header is invalid; `Io` if the file cannot be mapped.
    pub fn open(path: &Path) -> Result<Self> {
        let map = map(path)?;
        let bad = |e: safetensors::SafeTensorError| {
            use safetensors::SafeTensorError as E;
            let (expected, found) = match e {
                E::MetadataIncompleteBuffer | E::InvalidHeaderLength => {
                    let found = format!("{} bytes: truncated, or with trailing data", map.len());
                    ("a file of the length given by its header", found)
                }
                e => ("a valid safetensors header", e.to_string()),
            };
            Error::format(path, "header", expected, found)
        };
        let (length, header) = SafeTensors::read_metadata(&map).map_err(bad)?;
        let names = header.offset_keys();
        let mut metadata: Vec<(String, String)> =
            header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        metadata.sort_unstable();
        Ok(Self { path: path.to_owned(), map, start: length + 8, header, names, metadata })
    }

    /// Metadata of the file, sorted by key.
    #[must_use]
    pub fn metadata(&self) -> &[(String, String)] {
        &self.metadata
    }
}

fn dtype(stored: Stored) -> Dtype {
    match stored {
        Stored::F64 => Dtype::F64,
        Stored::F32 => Dtype::F32,
        Stored::F16 => Dtype::F16,
        Stored::BF16 => Dtype::BF16,
        Stored::I64 => Dtype::I64,
        Stored::I32 => Dtype::I32,
        Stored::I16 => Dtype::I16,
        Stored::I8 => Dtype::I8,
        Stored::U64 => Dtype::U64,
        Stored::U32 => Dtype::U32,
        Stored::U16 => Dtype::U16,
        Stored::U8 => Dtype::U8,
        Stored::BOOL => Dtype::Bool,
        Stored::F8_E4M3 => Dtype::Other("F8_E4M3"),
        Stored::F8_E5M2 => Dtype::Other("F8_E5M2"),
        Stored::F8_E8M0 => Dtype::Other("F8_E8M0"),
        Stored::C64 => Dtype::Other("C64"),
        _ => Dtype::Other("of a type below one byte"),
    }
}

impl TensorSource for SafetensorsFile {
    fn names(&self) -> Vec<String> {
        self.names.clone()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let info = self.header.info(name)?;
        Some(TensorInfo { dtype: dtype(info.dtype), dims: info.shape.clone() })
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let missing = || Error::Missing { name: name.to_owned() };
        let info = self.header.info(name).ok_or_else(missing)?;
        let dtype = dtype(info.dtype);
        if let Dtype::Other(_) = dtype {
            let expected = "floating point numbers of 16 to 64 bits, or integers";
            return Err(Error::format(&self.path, name, expected, format!("{:?}", info.dtype)));
        }
        let (from, to) = info.data_offsets;
        let range = self.start + from..self.start + to;
        let values = self.map[range.clone()].chunks_exact(dtype.size()).map(|b| dtype.element(b)).collect();
        release(&self.map, range);
        Ok(values)
    }
}

/// A tensor to write, as f32.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// Name in the file.
    pub name: String,
    /// Dimensions, outermost first.
    pub dims: Vec<usize>,
    /// Row-major values.
    pub values: Vec<f32>,
}

/// Writes `tensors` in the given order with `metadata`. Equal arguments give equal bytes. The file is complete or
/// absent.
///
/// # Errors
/// `Io` if writing fails; `Duplicate` if two tensors have the same name; `Shape` if the number of values does not match
/// the dimensions.
pub fn write(path: &Path, tensors: &[Tensor], metadata: &BTreeMap<String, String>) -> Result<()> {
    let shapes: Vec<(&str, &[usize])> = tensors.iter().map(|t| (t.name.as_str(), t.dims.as_slice())).collect();
    write_each(path, &shapes, metadata, |i| Ok::<_, Error>(&tensors[i].values))
}

/// Writes tensors of the given names and dimensions like [`write()`]. `values` returns the values of the tensor with
/// the given index. It is called in order, so that only one tensor is in memory at a time.
///
/// # Errors
/// Those of [`write()`] and of `values`.
pub fn write_each<E: From<Error>, V: AsRef<[f32]>>(
    path: &Path,
    tensors: &[(&str, &[usize])],
    metadata: &BTreeMap<String, String>,
    mut values: impl FnMut(usize) -> Result<V, E>,
) -> Result<(), E> {
    const ALIGN: usize = 8;
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), serde_json::json!(metadata));
    let mut offset = 0;
    for (name, dims) in tensors {
        let end = offset + 4 * dims.iter().product::<usize>();
        let entry = serde_json::json!({"dtype": "F32", "shape": dims, "data_offsets": [offset, end]});
        if header.insert((*name).to_owned(), entry).is_some() {
            return Err(Error::Duplicate { name: (*name).to_owned() }.into());
        }
        offset = end;
    }
    let mut text = serde_json::Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(ALIGN), b' ');

    let mut out = AtomicFile::create(path).map_err(Error::from)?;
    out.write_all(&(text.len() as u64).to_le_bytes()).map_err(Error::from)?;
    out.write_all(&text).map_err(Error::from)?;
    for (i, (name, dims)) in tensors.iter().enumerate() {
        let values = values(i)?;
        let values = values.as_ref();
        if dims.iter().product::<usize>() != values.len() {
            return Err(Error::Shape { name: (*name).to_owned(), dims: dims.to_vec(), values: values.len() }.into());
        }
        for value in values {
            out.write_all(&value.to_le_bytes()).map_err(Error::from)?;
        }
    }
    out.commit().map_err(Error::from)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use fs_err as fs;

    use super::*;
    use proptest::prelude::*;

    fn sample() -> (Vec<Tensor>, BTreeMap<String, String>) {
        let t = |name: &str, dims: &[usize]| Tensor {
            name: name.to_owned(),
            dims: dims.to_vec(),
            values: (0..dims.iter().product::<usize>()).map(|i| i as f32 * 0.5).collect(),
        };
        let metadata = BTreeMap::from([("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())]);
        (vec![t("z.weight", &[2, 3]), t("a.bias", &[4]), t("s", &[])], metadata)
    }

    #[test]
    fn round_trip_in_order_with_equal_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (tensors, metadata) = sample();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        write(&a, &tensors, &metadata).unwrap();
        write(&b, &tensors, &metadata).unwrap();
        assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap());
        let file = SafetensorsFile::open(&a).unwrap();
        assert_eq!(file.metadata(), [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);
        for t in tensors {
            assert_eq!(file.info(&t.name).unwrap(), TensorInfo { dtype: Dtype::F32, dims: t.dims });
            assert_eq!(file.read_f32(&t.name).unwrap(), t.values);
        }
        assert!(matches!(file.read_f32("x"), Err(Error::Missing { .. })));
    }

    #[test]
    fn bad_arguments_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let t = |values| Tensor { name: "x".to_owned(), dims: vec![2], values };
        assert!(matches!(write(&path, &[t(vec![1.0])], &BTreeMap::new()), Err(Error::Shape { .. })));
        let twice = [t(vec![1.0, 2.0]), t(vec![1.0, 2.0])];
        assert!(matches!(write(&path, &twice, &BTreeMap::new()), Err(Error::Duplicate { .. })));
        assert!(!path.exists());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn mutated_files_give_a_result(at in 0_usize..400, byte in any::<u8>(), keep in 0_usize..400) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("a");
            let (tensors, metadata) = sample();
            write(&path, &tensors, &metadata).unwrap();
            let mut bytes = fs::read(&path).unwrap();
            let length = bytes.len();
            bytes[at % length] = byte;
            bytes.truncate(keep.max(1));
            fs::write(&path, &bytes).unwrap();
            if let Ok(file) = SafetensorsFile::open(&path) {
                for name in file.names() {
                    let _ = file.read_f32(&name);
                }
            }
        }
    }

    /// Runs in a child process, because the umask applies to the whole process.
    #[cfg(unix)]
    #[test]
    fn permissions_follow_the_umask() {
        use std::os::unix::fs::PermissionsExt as _;
        const CHILD: &str = "D2O_TEST_UMASK";
        if std::env::var_os(CHILD).is_some() {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("x.safetensors");
            write(&path, &[], &BTreeMap::new()).unwrap();
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o640);
            return;
        }
        let this = std::env::current_exe().unwrap();
        let mut child = std::process::Command::new("sh");
        child.args(["-c", "umask 027; exec \"$0\" --exact safetensors::tests::permissions_follow_the_umask"]);
        let output = child.arg(this).env(CHILD, "").output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}");
    }
}
