//! What a file is, by its content; the errors for files that are missing or are not what was expected.

use std::io::{Read as _, Seek as _};
use std::path::Path;

use fs_err as fs;

use crate::decode;
use crate::error::{Error, Result};

/// Bytes that tell what a file is: the signature of a tar archive ends at 262.
const HEAD: u64 = 512;
/// Bytes of a text that a message repeats.
const SHOWN: usize = 40;

/// Files that hold others, by their beginning.
const PACKED: [(&[u8], &str); 6] = [
    (b"\x1f\x8b", "a gzip file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\x00", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
];

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
pub(crate) fn metadata(path: &Path) -> Result<std::fs::Metadata> {
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
    file.by_ref().take(HEAD).read_to_end(&mut head)?;
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

/// What the file that begins with `head` is, in words.
pub(crate) fn describe(head: &[u8]) -> String {
    if head.is_empty() {
        return "an empty file".to_owned();
    }
    let packed = PACKED.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, what)| *what);
    let tar = (head.get(257..262) == Some(b"ustar")).then_some("a tar archive");
    if let Some(what) = packed.or(tar) {
        return format!("{what}; unpack it first");
    }
    if head.starts_with(b"PK\x03\x04") {
        return "a zip archive cut short".to_owned();
    }
    if head.starts_with(b"\x80") && matches!(head.get(1), Some(2..=5)) {
        return "a pickle".to_owned();
    }
    if let Some(image) = decode::known(head) {
        return if image.ends_with(" image") {
            format!("{image} (a set of images is a folder or an archive)")
        } else {
            image.to_owned()
        };
    }
    let text = String::from_utf8_lossy(&head[..head.len().min(SHOWN)]);
    let text = text.trim_matches(['\u{fffd}', '\0']);
    if !text.is_empty() && !head.contains(&0) && !text.contains(|c: char| c.is_control() && !c.is_whitespace()) {
        return format!("a text that begins {text:?}");
    }
    format!("a file that begins {:02x?}", &head[..head.len().min(8)])
}
