//! Identification of files by content; errors for missing and unexpected files.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use d2o_files::kind::{self, HEAD, ZIP};
use fs_err as fs;

use crate::error::{Error, Result};
use crate::zip_format::{END, END_WINDOW};

/// Opens the regular file at `path`. Pipes are not opened.
///
/// # Errors
/// `Missing`; `Format` with `expected` for a folder, pipe, socket or device; `Io` if opening fails.
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

/// Metadata of the file or folder at `path`. Links are followed.
///
/// # Errors
/// `Missing`, or `Io` if the metadata cannot be read.
pub fn metadata(path: &Path) -> Result<std::fs::Metadata> {
    fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::Missing { file: path.to_owned() },
        _ => e.into(),
    })
}

/// `Format` for `file` at `path`, which is not `expected`. The error names the kind of the file.
pub(crate) fn unexpected(file: &mut fs::File, path: &Path, expected: &str) -> Error {
    let found = head(file).and_then(|head| {
        let truncated = kind::known(&head) == Some(ZIP) && !has_end_record(file)?;
        Ok(if truncated { format!("{ZIP}, truncated") } else { describe(&head) })
    });
    found.map_or_else(|error| error, |found| Error::format(path, "", expected, found))
}

/// Whether the end of `file` contains the end record of a zip archive.
fn has_end_record(file: &mut fs::File) -> Result<bool> {
    let length = file.metadata()?.len();
    let mut end = Vec::new();
    file.seek(SeekFrom::Start(length.saturating_sub(END_WINDOW)))?;
    file.by_ref().take(END_WINDOW).read_to_end(&mut end)?;
    Ok(end.windows(4).any(|bytes| bytes == END.to_le_bytes()))
}

/// The first [`HEAD`] bytes of `file`. The position is at the start of the file afterwards.
pub(crate) fn head(file: &mut fs::File) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    file.rewind()?;
    file.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    file.rewind()?;
    Ok(head)
}

/// All bytes of the file at `path`. Messages call it `name` in `root`.
///
/// # Errors
/// Those of [`open`]; `Format` for more than `limit` bytes.
pub fn whole(path: &Path, root: &Path, name: &str, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = open(path, "a file")?;
    let length = file.metadata()?.len();
    if length <= limit {
        // A file that grows during the read is rejected too.
        file.take(limit + 1).read_to_end(&mut bytes)?;
    }
    match length.max(bytes.len() as u64) {
        found if found > limit => {
            Err(Error::format(root, name, format!("at most {limit} bytes"), format!("{found} bytes")))
        }
        _ => Ok(bytes),
    }
}

/// Kind of the file that begins with `head`, which is not a set of images.
fn describe(head: &[u8]) -> String {
    match kind::known(head) {
        Some(image) if image.ends_with(" image") => format!("{image} (a set of images is a folder or an archive)"),
        _ => kind::describe(head),
    }
}
