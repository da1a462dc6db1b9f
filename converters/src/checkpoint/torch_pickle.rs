//! Plain Python pickles of modules, as EDM, D2O, SiD and StyleGAN publish them: each tensor nests a whole legacy torch file.

use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

use super::Dtype;
use super::objects::{self, Blob, Found};
use super::pickle::{Id, Pickle};
use super::torch_legacy::Legacy;
use super::views::Storage;
use crate::error::{Error, Result};

/// Whether `head`, the first bytes of a file, begin a pickle of protocol 2 to 5.
pub(crate) fn recognises(head: &[u8]) -> bool {
    matches!(head, [0x80, 2..=5, ..])
}

/// The networks of the pickle at `path`, mapped as `bytes`.
///
/// # Errors
/// `Format` naming opcode and offset, or the tensor.
pub(crate) fn networks(path: &Path, bytes: &[u8]) -> Result<Vec<Found>> {
    let (pickle, _) = Pickle::parse(bytes, path, 0)?;
    // Tensors may share a storage; each nested file is read once.
    let mut nested: HashMap<Id, (Option<Dtype>, Storage)> = HashMap::new();
    objects::networks(&pickle, path, &mut |p, id| {
        if let Some(known) = nested.get(&id) {
            return Ok(Some(known.clone()));
        }
        let Some(&[inner]) = p.call(id, "torch.storage._load_from_bytes") else { return Ok(None) };
        let legacy = match objects::blob(p, inner) {
            Some(Blob::InFile(range)) => {
                let part = bytes.get(range.clone());
                let part =
                    part.ok_or_else(|| Error::format(path, "nested tensor", "bytes of the file", "other bytes"))?;
                Legacy::parse(path, part, range.start, None)?
            }
            Some(Blob::Decoded(decoded)) => Legacy::parse(path, &decoded, 0, Some(&Rc::clone(&decoded)))?,
            None => return Ok(None),
        };
        let found = legacy.resolve(&legacy.object, legacy.object.root())?;
        if let Some(found) = &found {
            nested.insert(id, found.clone());
        }
        Ok(found)
    })
}
