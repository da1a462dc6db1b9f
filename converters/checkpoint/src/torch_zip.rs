//! Zip archives of `torch.save` (since PyTorch 1.6) and TorchScript: `data.pkl`, and one entry per storage.
//!
//! Of TorchScript only weights and attributes are read, not the code.

use std::collections::HashMap;
use std::io::{Cursor, Read as _};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use zip::read::{ArchiveOffset, Config};
use zip::{CompressionMethod, ZipArchive};

use crate::Dtype;
use crate::error::Result;
use crate::input::Input;
use crate::objects::{self, Contents};
use crate::pickle::{Id, Pickle};
use crate::views::{Checksum, Storage};

/// Memory charged per entry description, without the name, bytes.
const ENTRY_BYTES: usize = 256;

/// An entry of the archive.
#[derive(Debug)]
struct Entry {
    index: usize,
    /// Range of the bytes in the file, if they are not compressed.
    place: Option<Range<usize>>,
    size: usize,
    /// 0 if the checksum was not computed.
    crc32: u32,
}

type Zip<'a> = ZipArchive<Cursor<&'a [u8]>>;

/// An opened archive. All entries are inside the file and have different names.
struct Archive<'a> {
    input: &'a Input<'a>,
    zip: Zip<'a>,
    entries: HashMap<String, Entry>,
    /// Storages by entry name. Tensors share them.
    storages: HashMap<String, Storage>,
}

/// Whether a file that starts with `head` is a zip archive.
pub(crate) fn recognises(head: &[u8]) -> bool {
    head.starts_with(b"PK\x03\x04")
}

/// The networks of the archive `input`, and whether it is TorchScript.
///
/// # Errors
/// `Format` naming the entry, opcode and offset, or tensor.
pub(crate) fn networks(input: &Input<'_>) -> Result<(Contents, bool)> {
    let mut archive = Archive::open(input)?;
    let mut roots =
        archive.entries.keys().filter_map(|n| n.strip_suffix("data.pkl")).filter(|r| r.is_empty() || r.ends_with('/'));
    let root = match (roots.next(), roots.next()) {
        (Some(root), None) => root.to_owned(),
        (None, _) => return Err(input.bad("archive", "an entry `data.pkl`", "none")),
        (Some(_), Some(_)) => return Err(input.bad("archive", "one entry `data.pkl`", "several")),
    };
    let script = archive.entries.contains_key(&format!("{root}constants.pkl"))
        || archive.entries.keys().any(|n| n.strip_prefix(&root).is_some_and(|n| n.starts_with("code/")));
    let byteorder = format!("{root}byteorder");
    if archive.entries.contains_key(&byteorder) {
        let order = archive.content(&byteorder)?;
        if order.bytes(input) != b"little" {
            let found = String::from_utf8_lossy(&order.bytes(input)[..order.bytes(input).len().min(16)]).into_owned();
            return Err(input.bad("entry `byteorder`", "little", found));
        }
    }
    let content = archive.content(&format!("{root}data.pkl"))?;
    if let Some(crc) = content.crc() {
        crc.check(input.path, input.bytes)?;
    }
    let (pickle, _) = Pickle::read(input, content.bytes(input), content.base())?;
    let found = objects::networks(&pickle, input, &mut |p, id| archive.resolve(&root, p, id))?;
    Ok((found, script))
}

/// The bytes of an entry.
enum Content {
    InFile(Range<usize>, Option<Arc<Checksum>>),
    Inflated(Arc<Vec<u8>>),
}

impl Content {
    fn bytes<'a>(&'a self, input: &Input<'a>) -> &'a [u8] {
        match self {
            Self::InFile(place, _) => &input.bytes[place.clone()],
            Self::Inflated(bytes) => bytes,
        }
    }

    /// Offset of the first byte in the file; 0 if the entry was inflated.
    fn base(&self) -> usize {
        match self {
            Self::InFile(place, _) => place.start,
            Self::Inflated(_) => 0,
        }
    }

    fn crc(&self) -> Option<&Arc<Checksum>> {
        match self {
            Self::InFile(_, crc) => crc.as_ref(),
            Self::Inflated(_) => None,
        }
    }
}

impl<'a> Archive<'a> {
    fn open(input: &'a Input<'a>) -> Result<Self> {
        let bad = |e: zip::result::ZipError| {
            let found = match e {
                zip::result::ZipError::InvalidArchive(_) => format!("{e}: the file is truncated or damaged"),
                e => e.to_string(),
            };
            input.bad("archive", "a zip archive", found)
        };
        // Archives of torch start at offset 0 of the file. Without this setting the parser guesses the start. It then
        // mistakes the 76 bytes of zip64 records that torch writes after the directory for bytes before the archive, if
        // the first header of the directory has the same length.
        let config = Config { archive_offset: ArchiveOffset::Known(0) };
        let mut zip = ZipArchive::with_config(config, Cursor::new(input.bytes)).map_err(bad)?;
        let mut entries = HashMap::new();
        for index in 0..zip.len() {
            let entry = zip.by_index_raw(index).map_err(bad)?;
            let name = entry.name().map_err(bad)?.into_owned();
            let place = || format!("entry `{name}`");
            input.charge(ENTRY_BYTES + name.len(), place)?;
            if entry.encrypted() {
                return Err(input.bad(place(), "an entry that is not encrypted", "an encrypted one"));
            }
            let (start, size) =
                (entry.data_start().and_then(|s| usize::try_from(s).ok()), usize::try_from(entry.size()));
            let range = |length: u64| {
                let end = start?.checked_add(usize::try_from(length).ok()?)?;
                (end <= input.bytes.len()).then(|| start.unwrap_or(end)..end)
            };
            let (Some(packed), Ok(size)) = (range(entry.compressed_size()), size) else {
                return Err(input.bad(place(), "an entry inside the file", "a larger one"));
            };
            let stored = entry.compression() == CompressionMethod::Stored;
            if stored && packed.len() != size {
                return Err(input.bad(place(), format!("{size} stored bytes"), format!("{} of them", packed.len())));
            }
            let entry = Entry { index, place: stored.then_some(packed), size, crc32: entry.crc32() };
            if entries.insert(name.clone(), entry).is_some() {
                return Err(input.bad(place(), "one entry of this name", "two"));
            }
        }
        Ok(Self { input, zip, entries, storages: HashMap::new() })
    }

    fn content(&mut self, name: &str) -> Result<Content> {
        let input = self.input;
        let place = || format!("entry `{name}`");
        let entry = self.entries.get(name).ok_or_else(|| input.bad("archive", place(), "none"))?;
        if let Some(place) = &entry.place {
            let crc = (entry.crc32 != 0).then(|| Checksum {
                entry: name.to_owned(),
                place: place.clone(),
                crc32: entry.crc32,
                holds: AtomicBool::new(false),
            });
            return Ok(Content::InFile(place.clone(), crc.map(Arc::new)));
        }
        let bad = |e: &dyn std::fmt::Display| input.bad(place(), "compressed bytes", e.to_string());
        input.charge(entry.size, place)?;
        let mut bytes = Vec::with_capacity(entry.size);
        let reader = self.zip.by_index(entry.index).map_err(|e| bad(&e))?;
        reader.take(entry.size as u64 + 1).read_to_end(&mut bytes).map_err(|e| bad(&e))?;
        if bytes.len() != entry.size {
            return Err(input.bad(place(), format!("{} bytes after decompression", entry.size), "another number"));
        }
        Ok(Content::Inflated(Arc::new(bytes)))
    }

    fn resolve(&mut self, root: &str, p: &Pickle, id: Id) -> Result<Option<(Option<Dtype>, Storage)>> {
        let Some(outside) = objects::outside(p, id) else { return Ok(None) };
        let name = format!("{root}data/{}", outside.key);
        let mut storage = if let Some(storage) = self.storages.get(&name) {
            storage.clone()
        } else {
            let storage = match self.content(&name)? {
                Content::InFile(place, crc) => Storage { owned: None, start: place.start, bytes: place.len(), crc },
                Content::Inflated(bytes) => Storage { start: 0, bytes: bytes.len(), owned: Some(bytes), crc: None },
            };
            self.storages.insert(name.clone(), storage.clone());
            storage
        };
        let needed = outside.count.checked_mul(outside.size()).filter(|n| *n <= storage.bytes);
        storage.bytes = needed.ok_or_else(|| {
            let expected = format!("{} elements of {} bytes", outside.count, outside.size());
            self.input.bad(format!("entry `{name}`"), expected, format!("{} bytes", storage.bytes))
        })?;
        Ok(Some((outside.dtype, storage)))
    }
}
