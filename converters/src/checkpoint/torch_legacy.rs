//! `torch.save` files from before PyTorch 1.6: five pickles, then raw storages.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use fs_err as fs;
use memmap2::Mmap;

use super::pickle::{Id, Node, Pickle};
use super::{Dtype, TensorInfo, TensorSource};
use crate::error::{Error, Result};

/// First pickle of a file: protocol 2, LONG1, ten bytes of 0x1950a86a20f9469cfc6c.
const MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
const PROTOCOL: i64 = 1001;
/// Most tensors accepted.
const MAX_TENSORS: usize = 1 << 20;

/// Whether `head`, the first bytes of a file, begin such a file.
pub(crate) fn recognises(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// A state dict; tensors may be strided views that share storages.
#[derive(Debug)]
pub struct LegacyFile {
    path: PathBuf,
    map: Mmap,
    storages: HashMap<String, Storage>,
    tensors: Vec<(String, View)>,
}

#[derive(Debug, Clone, Copy)]
struct Storage {
    start: usize,
    elements: usize,
}

#[derive(Debug, Clone)]
struct View {
    dtype: Dtype,
    storage: String,
    offset: usize,
    dims: Vec<usize>,
    strides: Vec<usize>,
}

impl LegacyFile {
    /// Maps `path` and reads its pickles. The gate of this format: every view lies inside its storage, every storage inside the file.
    ///
    /// # Errors
    /// `Format` naming the place.
    pub fn open(path: &Path) -> Result<Self> {
        let file = fs::File::open(path)?;
        #[allow(
            unsafe_code,
            reason = "a map of a file opened for reading; another process truncating it is outside our model"
        )]
        // SAFETY: the map is only read, and lives as long as the struct that owns it.
        let map = unsafe { Mmap::map(file.file())? };
        let mut at = MAGIC.len().min(map.len());
        let mut next = |what: &str| -> Result<Pickle> {
            let (pickle, used) = Pickle::parse(&map[at..], path, at).map_err(|e| match e {
                Error::Format { file, place, expected, found } => {
                    Error::Format { file, place: format!("{what}: {place}"), expected, found }
                }
                other => other,
            })?;
            at += used;
            Ok(pickle)
        };
        let version = next("protocol version")?;
        if *version.node(version.root()) != Node::Int(PROTOCOL) {
            let found = format!("{:?}", version.node(version.root()));
            return Err(Error::format(path, "protocol version", PROTOCOL.to_string(), found));
        }
        let system = next("system information")?;
        let little = system
            .items(system.root())
            .unwrap_or(&[])
            .iter()
            .any(|(k, v)| system.text(*k) == Some("little_endian") && *system.node(*v) == Node::Bool(true));
        if !little {
            return Err(Error::format(path, "system information", "little_endian true", "another byte order"));
        }
        let object = next("object")?;
        let keys = next("storage keys")?;
        let tensors = state_dict(&object, path)?;

        let mut types: HashMap<&str, Dtype> = HashMap::new();
        for (_, view) in &tensors {
            types.insert(&view.storage, view.dtype);
        }
        let mut storages = HashMap::new();
        for key in keys.sequence(keys.root()).unwrap_or(&[]) {
            let name = keys.text(*key).ok_or_else(|| Error::format(path, "storage keys", "text", "another value"))?;
            let place = || format!("storage `{name}` at byte {at}");
            let count = map.get(at..at + 8).and_then(|b| b.first_chunk::<8>());
            let count = count.ok_or_else(|| Error::format(path, place(), "an element count", "end of file"))?;
            let elements = usize::try_from(i64::from_le_bytes(*count))
                .map_err(|_| Error::format(path, place(), "a count of at least 0", "a negative one"))?;
            let Some(dtype) = types.get(name) else {
                return Err(Error::format(path, place(), "a storage some tensor uses", "one of unknown type"));
            };
            let end =
                elements.checked_mul(dtype.size()).and_then(|n| n.checked_add(at + 8)).filter(|e| *e <= map.len());
            let end = end.ok_or_else(|| {
                Error::format(path, place(), format!("{elements} elements"), format!("{} bytes left", map.len() - at))
            })?;
            storages.insert(name.to_owned(), Storage { start: at + 8, elements });
            at = end;
        }
        for (name, view) in &tensors {
            let storage = storages
                .get(&view.storage)
                .ok_or_else(|| Error::format(path, name, "a storage in the file", format!("key `{}`", view.storage)))?;
            let last = view.dims.iter().zip(&view.strides).try_fold(view.offset, |n, (d, s)| {
                d.saturating_sub(1).checked_mul(*s).and_then(|step| n.checked_add(step))
            });
            let empty = view.dims.contains(&0);
            if !empty && last.is_none_or(|l| l >= storage.elements) {
                let found = format!("{} elements", storage.elements);
                return Err(Error::format(path, name, "a view inside its storage", found));
            }
        }
        Ok(Self { path: path.to_owned(), map, storages, tensors })
    }

    fn view(&self, name: &str) -> Option<&View> {
        self.tensors.iter().find(|(n, _)| n == name).map(|(_, v)| v)
    }
}

/// The tensors of a state dict, or of the one under `state_dict` or `model`.
fn state_dict(object: &Pickle, path: &Path) -> Result<Vec<(String, View)>> {
    let mut root = object.root();
    let wrapped = object
        .items(root)
        .unwrap_or(&[])
        .iter()
        .find(|(k, v)| matches!(object.text(*k), Some("state_dict" | "model")) && object.items(*v).is_some());
    if let Some((_, inner)) = wrapped {
        root = *inner;
    }
    let items =
        object.items(root).ok_or_else(|| Error::format(path, "object", "a dict of tensors", "another object"))?;
    if items.len() > MAX_TENSORS {
        return Err(Error::format(path, "object", format!("at most {MAX_TENSORS} tensors"), items.len().to_string()));
    }
    let mut tensors = Vec::new();
    for (key, value) in items {
        let name = object.text(*key).ok_or_else(|| Error::format(path, "object", "text keys", "another key"))?;
        let value =
            object.call(*value, "torch._utils._rebuild_parameter").and_then(|a| a.first().copied()).unwrap_or(*value);
        let view = tensor(object, value).ok_or_else(|| Error::format(path, name, "a tensor", "another value"))?;
        tensors.push((name.to_owned(), view));
    }
    Ok(tensors)
}

fn tensor(object: &Pickle, id: Id) -> Option<View> {
    let arguments = object.call(id, "torch._utils._rebuild_tensor_v2")?;
    let [storage, offset, dims, strides, ..] = arguments else { return None };
    let Node::Persistent(persistent) = object.node(*storage) else { return None };
    let [tag, class, key, _, _, ..] = object.sequence(*persistent)? else { return None };
    if object.text(*tag)? != "storage" {
        return None;
    }
    let Node::Global(class) = object.node(*class) else { return None };
    let sizes = |id: Id| object.sequence(id)?.iter().map(|d| object.size(*d)).collect::<Option<Vec<_>>>();
    let (dims, strides) = (sizes(*dims)?, sizes(*strides)?);
    let count = dims.iter().try_fold(1_usize, |n, d| n.checked_mul(*d))?;
    if dims.len() != strides.len() || count > 1 << 40 {
        return None;
    }
    let storage = object.text(*key)?.to_owned();
    Some(View { dtype: storage_type(class)?, storage, offset: object.size(*offset)?, dims, strides })
}

/// Element type of a `torch.<X>Storage`.
fn storage_type(class: &str) -> Option<Dtype> {
    Some(match class.strip_prefix("torch.")?.strip_suffix("Storage")? {
        "Double" => Dtype::F64,
        "Float" => Dtype::F32,
        "Half" => Dtype::F16,
        "BFloat16" => Dtype::BF16,
        "Long" => Dtype::I64,
        "Int" => Dtype::I32,
        "Short" => Dtype::I16,
        "Char" => Dtype::I8,
        "Byte" => Dtype::U8,
        "Bool" => Dtype::Bool,
        _ => return None,
    })
}

impl TensorSource for LegacyFile {
    fn names(&self) -> Vec<String> {
        self.tensors.iter().map(|(n, _)| n.clone()).collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.view(name).map(|v| TensorInfo { dtype: v.dtype, dims: v.dims.clone() })
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let missing = || Error::MissingTensor { path: name.to_owned(), similar: Vec::new() };
        let view = self.view(name).ok_or_else(missing)?;
        let storage = self.storages.get(&view.storage).ok_or_else(missing)?;
        let count = view.dims.iter().product::<usize>();
        let size = view.dtype.size();
        let mut values = Vec::new();
        values
            .try_reserve_exact(count)
            .map_err(|e| Error::format(&self.path, name, "a tensor that fits in memory", e.to_string()))?;
        let mut index = vec![0_usize; view.dims.len()];
        for _ in 0..count {
            let element: usize = view.offset + index.iter().zip(&view.strides).map(|(i, s)| i * s).sum::<usize>();
            let at = storage.start + element * size;
            values.push(view.dtype.element(&self.map[at..at + size]));
            for (i, d) in index.iter_mut().zip(&view.dims).rev() {
                *i += 1;
                if *i < *d {
                    break;
                }
                *i = 0;
            }
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file like torch.save(OrderedDict(w=[[0, 2], [1, 3]] strided, b=[2, 3] sharing its storage)).
    fn sample(offset: u8, count: i64) -> Vec<u8> {
        let mut b = MAGIC.to_vec();
        b.extend(b"\x80\x02M\xe9\x03.");
        b.extend(b"\x80\x02}X\x0d\x00\x00\x00little_endian\x88s.");
        b.extend(b"\x80\x02ccollections\nOrderedDict\n)R(");
        for (name, dims, strides, offset) in
            [("w", &[2_u8, 2][..], &[1_u8, 2][..], 0), ("b", &[2][..], &[1][..], offset)]
        {
            b.extend(b"X\x01\x00\x00\x00");
            b.extend(name.as_bytes());
            b.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04NtQ");
            b.extend([b'K', offset]);
            for list in [dims, strides] {
                b.push(b'(');
                b.extend(list.iter().flat_map(|d| [b'K', *d]));
                b.push(b't');
            }
            b.extend(b"\x89ccollections\nOrderedDict\n)RtR");
        }
        b.extend(b"u.");
        b.extend(b"\x80\x02]X\x01\x00\x00\x000a.");
        b.extend(count.to_le_bytes());
        b.extend([0.0_f32, 1.0, 2.0, 3.0].iter().flat_map(|v| v.to_le_bytes()));
        b
    }

    fn open(bytes: &[u8]) -> Result<LegacyFile> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pth");
        fs::write(&path, bytes).unwrap();
        LegacyFile::open(&path)
    }

    #[test]
    fn strides_and_offsets_are_honoured() {
        let file = open(&sample(2, 4)).unwrap();
        assert_eq!(file.names(), ["w", "b"]);
        assert_eq!(file.read_f32("w").unwrap(), [0.0, 2.0, 1.0, 3.0]);
        assert_eq!(file.read_f32("b").unwrap(), [2.0, 3.0]);
    }

    #[test]
    fn damage_is_an_error_naming_the_place() {
        let fails = |bytes: &[u8]| open(bytes).unwrap_err().to_string();
        assert!(fails(&sample(3, 4)).contains("b: expected a view inside its storage"));
        assert!(fails(&sample(2, -1)).contains("a count of at least 0"));
        assert!(fails(&sample(2, i64::MAX)).contains("storage `0`"));
        let whole = sample(2, 4);
        for keep in MAGIC.len()..whole.len() {
            assert!(open(&whole[..keep]).is_err(), "opens when cut at {keep}");
        }
    }
}
