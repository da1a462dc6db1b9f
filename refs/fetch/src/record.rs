//! Records of files: the hash, and the length and modification time by which a file is recognised.

use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use d2o_files::AtomicFile;
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::hash;

/// Extension of a record, after the name of its file.
pub(crate) const RECORD: &str = ".d2o-record.json";
/// Longest sidecar, bytes.
const MAX_BYTES: u64 = 1 << 16;

/// The content of `NAME.d2o-record.json`. It outlives the file, so a later download is compared with the first one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) sha256: String,
    pub(crate) bytes: u64,
    /// Modification time, nanoseconds since 1970.
    modified_ns: Option<i64>,
    /// Path of the file, if it is not next to the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
    /// Source of the download; `None` for a file that d2o did not download.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<String>,
}

impl Record {
    /// The record of `file`, with the hash that was just computed. `beside` is the path next to the record.
    pub(crate) fn new(file: &Path, beside: &Path, sha256: &str, source: Option<String>) -> io::Result<Self> {
        let found = fs::metadata(file)?;
        let elsewhere = (file != beside).then(|| file.to_owned());
        let modified_ns = modified_ns(&found);
        Ok(Self { sha256: sha256.to_owned(), bytes: found.len(), modified_ns, file: elsewhere, source })
    }

    /// The record next to `target`, if there is a valid one.
    pub(crate) fn read(target: &Path) -> Result<Option<Self>> {
        let record: Option<Self> = read_sidecar(&sidecar(target, RECORD))?;
        Ok(record.filter(|record| hash::is_sha256(&record.sha256)))
    }

    /// Writes the record next to `target`.
    pub(crate) fn write(&self, target: &Path) -> io::Result<()> {
        write_sidecar(&sidecar(target, RECORD), self)
    }

    /// Whether `file`, with metadata `found`, is the file that was hashed.
    pub(crate) fn is_of(&self, file: &Path, beside: &Path, found: &Metadata) -> bool {
        self.file.as_deref().unwrap_or(beside) == file
            && self.bytes == found.len()
            && self.modified_ns.is_some()
            && self.modified_ns == modified_ns(found)
    }
}

fn modified_ns(found: &Metadata) -> Option<i64> {
    let since = found.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since.as_nanos()).ok()
}

/// `target` with `ending` after its name.
pub(crate) fn sidecar(target: &Path, ending: &str) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(ending);
    target.with_file_name(name)
}

/// The content of a sidecar; `None` if it does not exist or is not valid.
pub(crate) fn read_sidecar<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Option<T>> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() && found.len() <= MAX_BYTES => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn write_sidecar(path: &Path, content: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(content)?;
    text.push(b'\n');
    AtomicFile::write_all_to(path, &text)
}

/// Removes a file if it exists.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
