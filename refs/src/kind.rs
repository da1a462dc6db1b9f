//! Identification of files by content; errors for missing and unexpected files.

use std::io::{Read as _, Seek as _};
use std::path::Path;

use d2o_files::kind::{self, HEAD, ZIP};
use fs_err as fs;

use crate::error::{Error, Result};

/// The file at `path`, which must be a regular one: no pipe is opened.
///
/// # Errors
/// `Missing`; `Format` with `expected` for a folder, pipe, socket or device; the file system's own.
pub fn open(path: &Path, expected: &str) -> Result<fs::File> {
    let found = metadata(path)?;
    if found.is_dir() {
        return Err(Error::format(path, "", expected, "a folder"));
    }
    if !found.is_file() {
        return Err(Error::format(path, "", expected, "a pipe, socket or device"));
    }
    Ok(fs::File::open(path)?)
}

/// Metadata of what lies at `path`.
///
/// # Errors
/// `Missing`, the file system's own.
pub fn metadata(path: &Path) -> Result<std::fs::Metadata> {
    fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::Missing { file: path.to_owned() },
        _ => e.into(),
    })
}

/// The error that `file`, which lies at `path`, is not `expected`; it says what the file is.
pub(crate) fn unexpected(file: &mut fs::File, path: &Path, expected: &str) -> Error {
    match head(file) {
        Ok(head) => Error::format(path, "", expected, describe(&head)),
        Err(e) => e,
    }
}

/// The first bytes of `file`, which stands at its start then.
pub(crate) fn head(file: &mut fs::File) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    file.rewind()?;
    file.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    file.rewind()?;
    Ok(head)
}

/// The file `path` as a whole, called `name` in what lies at `root`, where messages place it.
///
/// # Errors
/// Those of [`open`]; `Format` for more than `limit` bytes.
pub fn whole(path: &Path, root: &Path, name: &str, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = open(path, "a file")?;
    let length = file.metadata()?.len();
    if length <= limit {
        // What grows meanwhile is refused too.
        file.take(limit + 1).read_to_end(&mut bytes)?;
    }
    match length.max(bytes.len() as u64) {
        found if found > limit => {
            Err(Error::format(root, name, format!("at most {limit} bytes"), format!("{found} bytes")))
        }
        _ => Ok(bytes),
    }
}

/// What the file that begins with `head` is, where it was no set of images.
fn describe(head: &[u8]) -> String {
    match kind::known(head) {
        // It was looked through as an archive before.
        Some(ZIP) => format!("{ZIP}, truncated"),
        Some(image) if image.ends_with(" image") => format!("{image} (a set of images is a folder or an archive)"),
        _ => kind::describe(head),
    }
}
