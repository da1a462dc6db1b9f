//! Zip archives of `torch.save` (since PyTorch 1.6) and TorchScript: `data.pkl`, and one stored entry for each storage.
//!
//! Of TorchScript only weights and attributes are read; its code is not.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;

use zip::read::{ArchiveOffset, Config};
use zip::{CompressionMethod, ZipArchive};

use super::Dtype;
use super::objects::{self, Found};
use super::pickle::{Id, Pickle};
use super::views::Storage;
use crate::error::{Error, Result};

/// Most entries of an archive.
const MAX_ENTRIES: usize = 1 << 17;

/// Where an entry lies.
#[derive(Debug)]
struct Entry {
    place: Range<usize>,
    stored: bool,
}

impl Entry {
    /// Its bytes in the file.
    fn place(&self, path: &Path, name: &str) -> Result<Range<usize>> {
        if self.stored {
            return Ok(self.place.clone());
        }
        let place = format!("entry `{name}`");
        Err(Error::format(path, place, "a stored entry, as torch writes", "a compressed or encrypted one"))
    }
}

/// Whether `head`, the first bytes of a file, begin a zip archive.
pub(crate) fn recognises(head: &[u8]) -> bool {
    head.starts_with(b"PK\x03\x04")
}

/// The networks of the archive at `path`, mapped as `bytes`, and whether it is TorchScript.
///
/// # Errors
/// `Format` naming the entry, opcode and offset, or tensor.
pub(crate) fn networks(path: &Path, bytes: &[u8]) -> Result<(Vec<Found>, bool)> {
    let entries = entries(path, bytes)?;
    let mut roots =
        entries.keys().filter_map(|n| n.strip_suffix("data.pkl")).filter(|r| r.is_empty() || r.ends_with('/'));
    let root = match (roots.next(), roots.next()) {
        (Some(root), None) => root,
        (None, _) => return Err(Error::format(path, "archive", "an entry `data.pkl`", "none")),
        (Some(_), Some(_)) => return Err(Error::format(path, "archive", "one entry `data.pkl`", "several")),
    };
    let script = entries.contains_key(&format!("{root}constants.pkl"))
        || entries.keys().any(|n| n.strip_prefix(root).is_some_and(|n| n.starts_with("code/")));
    if let Some(order) = entries.get(&format!("{root}byteorder")) {
        let order = order.place(path, "byteorder")?;
        if &bytes[order.clone()] != b"little" {
            let found = String::from_utf8_lossy(&bytes[order.start..order.end.min(order.start + 16)]).into_owned();
            return Err(Error::format(path, "entry `byteorder`", "little", found));
        }
    }
    let place = entries[&format!("{root}data.pkl")].place(path, "data.pkl")?;
    let (pickle, _) = Pickle::parse(&bytes[place.clone()], path, place.start)?;
    let found = objects::networks(&pickle, path, &mut |p, id| resolve(path, &entries, root, p, id))?;
    Ok((found, script))
}

/// Name and place of each entry. The gate of this format: entries lie inside the file under different names; what is read of them is
/// stored as it is (TorchScript compresses its code, which is not read).
fn entries(path: &Path, bytes: &[u8]) -> Result<HashMap<String, Entry>> {
    let bad = |e: zip::result::ZipError| Error::format(path, "archive", "a zip archive", e.to_string());
    // torch's archives begin with the file. Told so, the parser need not guess where they begin: it would take the 76 bytes of zip64 records
    // that torch puts after the directory for bytes before the archive, if the directory's first header happens to be as long.
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let mut archive = ZipArchive::with_config(config, Cursor::new(bytes)).map_err(bad)?;
    if archive.len() > MAX_ENTRIES {
        return Err(Error::format(
            path,
            "archive",
            format!("at most {MAX_ENTRIES} entries"),
            archive.len().to_string(),
        ));
    }
    let mut entries = HashMap::new();
    for i in 0..archive.len() {
        let entry = archive.by_index_raw(i).map_err(bad)?;
        let name = entry.name().map_err(bad)?.into_owned();
        let stored = entry.compression() == CompressionMethod::Stored && !entry.encrypted();
        let start = entry.data_start().and_then(|s| usize::try_from(s).ok());
        let size = usize::try_from(entry.size()).ok();
        let end = start.zip(size).and_then(|(s, n)| s.checked_add(n)).filter(|e| *e <= bytes.len());
        let place = match (start, end) {
            (Some(start), Some(end)) => start..end,
            _ if !stored => 0..0,
            _ => {
                return Err(Error::format(path, format!("entry `{name}`"), "an entry inside the file", "a larger one"));
            }
        };
        if entries.insert(name.clone(), Entry { place, stored }).is_some() {
            return Err(Error::format(path, format!("entry `{name}`"), "one entry of this name", "two"));
        }
    }
    Ok(entries)
}

fn resolve(
    path: &Path,
    entries: &HashMap<String, Entry>,
    root: &str,
    p: &Pickle,
    id: Id,
) -> Result<Option<(Option<Dtype>, Storage)>> {
    let Some(outside) = objects::outside(p, id) else { return Ok(None) };
    let name = format!("{root}data/{}", outside.key);
    let Some(place) = entries.get(&name) else {
        return Err(Error::format(path, "archive", format!("an entry `{name}`"), "none"));
    };
    let place = place.place(path, &name)?;
    let needed = outside.count.checked_mul(outside.size());
    if needed.is_none_or(|n| n > place.len()) {
        let expected = format!("{} elements of {} bytes", outside.count, outside.size());
        return Err(Error::format(path, format!("entry `{name}`"), expected, format!("{} bytes", place.len())));
    }
    Ok(Some((outside.dtype, Storage { owned: None, start: place.start, bytes: needed.unwrap_or(0) })))
}
