//! Python pickles of modules, as published by EDM, D2O, SiD and StyleGAN. Each tensor contains a complete legacy torch
//! file.

use std::collections::HashMap;
use std::sync::Arc;

use crate::Dtype;
use crate::error::Result;
use crate::input::Input;
use crate::objects::{self, Blob, Contents};
use crate::pickle::Pickle;
use crate::torch_legacy::Legacy;
use crate::views::Storage;

/// Whether a file that starts with `head` is a pickle of protocol 2 to 5.
pub(crate) fn recognises(head: &[u8]) -> bool {
    matches!(head, [0x80, 2..=5, ..])
}

/// The networks of the pickle `input`.
///
/// # Errors
/// `Format` with opcode and offset, or with the name of the tensor.
pub(crate) fn networks(input: &Input<'_>) -> Result<Contents> {
    let (pickle, _) = Pickle::read(input, input.bytes, 0)?;
    // Tensors may share a storage, and storages may share a nested file. Each nested file is read once.
    let mut nested: HashMap<Blob, Option<(Option<Dtype>, Storage)>> = HashMap::new();
    objects::networks(&pickle, input, &mut |p, id| {
        let Some(&[inner]) = p.call(id, "torch.storage._load_from_bytes") else { return Ok(None) };
        let Some(blob) = objects::blob(p, inner) else { return Ok(None) };
        if let Some(known) = nested.get(&blob) {
            return Ok(known.clone());
        }
        let legacy = match &blob {
            Blob::InFile(range) => {
                let part = input.bytes.get(range.clone());
                let part = part.ok_or_else(|| input.bad("nested tensor", "bytes of the file", "other bytes"))?;
                Legacy::parse(input, part, range.start, None)?
            }
            Blob::Text(text) => {
                let Some(decoded) = objects::decoded(p, input, *text)?.map(Arc::new) else { return Ok(None) };
                Legacy::parse(input, &decoded, 0, Some(&decoded))?
            }
        };
        let found = legacy.resolve(&legacy.object, legacy.object.root());
        nested.insert(blob, found.clone());
        Ok(found)
    })
}
