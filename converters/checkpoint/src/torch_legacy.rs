//! `torch.save` files from before PyTorch 1.6: five pickles, then raw storages. Python pickles of modules contain such
//! a file for each tensor.

use std::sync::Arc;

use crate::Dtype;
use crate::error::{Error, Result};
use crate::input::Input;
use crate::objects::{self, Contents, Keyed};
use crate::pickle::{Id, Node, Pickle};
use crate::views::Storage;

/// First pickle of a file: protocol 2, LONG1, ten bytes of 0x1950a86a20f9469cfc6c.
const MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
const PROTOCOL: i64 = 1001;
/// Memory charged per storage description, without the name, bytes.
const STORAGE_BYTES: usize = 128;

/// Whether a file that starts with `head` is such a file.
pub(crate) fn recognises(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// The networks of the file `input`.
///
/// # Errors
/// `Format` naming the place.
pub(crate) fn networks(input: &Input<'_>) -> Result<Contents> {
    let legacy = Legacy::parse(input, input.bytes, 0, None)?;
    objects::networks(&legacy.object, input, &mut |p, id| Ok(legacy.resolve(p, id)))
}

/// A parsed file, or one nested in a pickle.
#[derive(Debug)]
pub(crate) struct Legacy {
    /// The saved object.
    pub(crate) object: Pickle,
    storages: Keyed,
}

impl Legacy {
    /// Reads `bytes`, which begin at offset `base` of the file, or are `owned` because they had to be decoded. Checks
    /// that every storage is inside `bytes`.
    ///
    /// # Errors
    /// `Format` naming the place.
    pub(crate) fn parse(input: &Input<'_>, bytes: &[u8], base: usize, owned: Option<&Arc<Vec<u8>>>) -> Result<Self> {
        if !recognises(bytes) {
            return Err(input.bad(format!("byte {base}"), "a legacy torch.save file", "other bytes"));
        }
        let mut at = MAGIC.len();
        let mut next = |what: &str| -> Result<Pickle> {
            let (pickle, used) = Pickle::read(input, &bytes[at..], base + at).map_err(|e| match e {
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
            let found = objects::describe(&version, version.root());
            return Err(input.bad("protocol version", PROTOCOL.to_string(), found));
        }
        let system = next("system information")?;
        if system.get(system.root(), "little_endian").map(|v| system.node(v)) != Some(&Node::Bool(true)) {
            return Err(input.bad("system information", "little_endian true", "another byte order"));
        }
        let object = next("object")?;
        let keys = next("storage keys")?;

        let mut sizes = std::collections::HashMap::new();
        for id in 0..object.nodes().len() {
            if let Some(outside) = objects::outside(&object, id) {
                sizes.insert(outside.key, outside.size());
            }
        }
        let mut storages = Keyed::new();
        for key in keys.sequence(keys.root()).unwrap_or(&[]) {
            let name = keys.text(*key).ok_or_else(|| input.bad("storage keys", "text", "another value"))?;
            let place = || format!("storage `{name}` at byte {}", base + at);
            let count = bytes.get(at..at + 8).and_then(|b| b.first_chunk::<8>());
            let count = count.ok_or_else(|| input.bad(place(), "an element count", "end of file"))?;
            let elements = usize::try_from(i64::from_le_bytes(*count))
                .map_err(|_| input.bad(place(), "a count of at least 0", "a negative one"))?;
            let Some(size) = sizes.get(name) else {
                return Err(input.bad(place(), "a storage some tensor uses", "one of unknown type"));
            };
            let length = elements.checked_mul(*size).filter(|n| *n <= bytes.len() - at - 8);
            let length = length.ok_or_else(|| {
                input.bad(place(), format!("{elements} elements"), format!("{} bytes left", bytes.len() - at - 8))
            })?;
            let start = if owned.is_some() { at + 8 } else { base + at + 8 };
            input.charge(STORAGE_BYTES + name.len(), place)?;
            storages.insert(name.to_owned(), Storage { owned: owned.cloned(), start, bytes: length, crc: None });
            at += 8 + length;
        }
        Ok(Self { object, storages })
    }

    /// Element type and bytes of the storage that value `id` of `pickle` refers to.
    pub(crate) fn resolve(&self, pickle: &Pickle, id: Id) -> Option<(Option<Dtype>, Storage)> {
        let outside = objects::outside(pickle, id)?;
        let mut storage = self.storages.get(outside.key)?.clone();
        if let Some((_, offset, count)) = outside.part {
            let size = outside.size();
            let (skip, length) = (offset.checked_mul(size)?, count.checked_mul(size)?);
            skip.checked_add(length).filter(|end| *end <= storage.bytes)?;
            storage.start += skip;
            storage.bytes = length;
        }
        Some((outside.dtype, storage))
    }
}

#[cfg(test)]
mod tests {
    use fs_err as fs;

    use super::*;
    use crate::TensorSource as _;
    use crate::views::Views;

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

    fn open(bytes: &[u8]) -> Result<Views> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pth");
        fs::write(&path, bytes).unwrap();
        let map = crate::views::map(&path)?;
        let input = Input::new(&path, &map);
        let found = networks(&input)?.networks.remove(0);
        Views::new(&input, Arc::clone(&map), found.tensors)
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
        assert!(fails(&sample(3, 4)).contains("b: expected a view inside its storage: shape [2]"));
        assert!(fails(&sample(2, -1)).contains("a count of at least 0"));
        assert!(fails(&sample(2, i64::MAX)).contains("storage `0`"));
        let whole = sample(2, 4);
        for keep in MAGIC.len()..whole.len() {
            assert!(open(&whole[..keep]).is_err(), "opens when cut at {keep}");
        }
    }
}
