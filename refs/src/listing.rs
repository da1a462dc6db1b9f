//! Which files of a folder or zip belong to the set, and which are skipped.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::decode;
use crate::error::{Error, Result};
use crate::labels::LABEL_FILE;

/// Deepest accepted nesting of folders.
const MAX_DEPTH: usize = 64;
/// Most files of one set.
const MAX_FILES: usize = 1 << 26;
/// Most file name endings that a note lists.
const MAX_ENDINGS: usize = 8;
/// Longest ending that a note lists, bytes.
const MAX_ENDING: usize = 12;

/// Files and folders that operating systems, file managers and NAS devices add to image folders.
const SYSTEM_NAMES: [&str; 7] =
    ["__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "Thumbs.db", "desktop.ini"];

/// Whether the file or folder `name` is hidden (`.ipynb_checkpoints`, `._a.png`) or created by a system (`Thumbs.db`).
fn is_hidden(name: &str) -> bool {
    name.starts_with('.') || SYSTEM_NAMES.iter().any(|n| n.eq_ignore_ascii_case(name))
}

/// Counts skipped files, by reason.
#[derive(Debug, Clone, Default)]
pub struct LeftOut {
    hidden: usize,
    hidden_folders: usize,
    endings: BTreeMap<String, usize>,
    special: usize,
    links: usize,
}

impl LeftOut {
    /// Whether the file at `path`, separated by `/` or `\`, belongs to a set of images. A file that does not is
    /// counted.
    pub fn takes(&mut self, path: &str) -> bool {
        self.takes_if(path, decode::is_image)
    }

    /// Same as [`LeftOut::takes`], for a set of the files for whose paths `wanted` returns true.
    pub fn takes_if(&mut self, path: &str, wanted: impl Fn(&str) -> bool) -> bool {
        let separators = ['/', '\\'];
        if path.split(separators).any(is_hidden) {
            self.hidden += 1;
            return false;
        }
        if wanted(path) {
            return true;
        }
        if path != LABEL_FILE {
            let name = path.rsplit(separators).next().unwrap_or(path);
            let ending = match name.rsplit_once('.') {
                Some((_, e)) if !e.is_empty() && e.len() <= MAX_ENDING => format!(".{}", e.to_ascii_lowercase()),
                _ => "without an extension".to_owned(),
            };
            *self.endings.entry(ending).or_default() += 1;
        }
        false
    }

    /// One line with all counts, or none if nothing was skipped.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        let mut endings: Vec<_> = self.endings.iter().collect();
        endings.sort_by_key(|(ending, count)| (std::cmp::Reverse(**count), ending.as_str()));
        let rest: usize = endings.iter().skip(MAX_ENDINGS).map(|(_, count)| **count).sum();
        let files = self.hidden + self.special + self.endings.values().sum::<usize>();
        reasons.extend((self.hidden > 0).then(|| format!("{} hidden", self.hidden)));
        reasons.extend(endings.iter().take(MAX_ENDINGS).map(|(ending, count)| format!("{count} {ending}")));
        reasons.extend((rest > 0).then(|| format!("{rest} with other extensions")));
        reasons.extend((self.special > 0).then(|| format!("{} not regular (pipes, sockets or devices)", self.special)));
        let mut parts = Vec::new();
        parts.extend((files > 0).then(|| format!("{} ({})", plural(files, "file"), reasons.join(", "))));
        parts.extend((self.hidden_folders > 0).then(|| plural(self.hidden_folders, "hidden folder")));
        parts.extend((self.links > 0).then(|| format!("{} to folders already listed", plural(self.links, "link"))));
        if parts.is_empty() { Vec::new() } else { vec![format!("skipped {}", parts.join("; "))] }
    }

    /// [`Error::Empty`] for `path`, which contains no image. The message includes the notes.
    pub(crate) fn empty(&self, path: &Path) -> Error {
        let mut text = self.notes().concat();
        if !self.endings.is_empty() {
            text.push_str("; images are recognised by their extension, such as .png or .jpg");
        }
        Error::empty(path, text)
    }
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A file below a folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// Path below the folder, separated by `/`; bytes that are not UTF-8 are replaced.
    pub name: String,
    /// Path below the folder.
    pub path: PathBuf,
}

/// Files below a folder, sorted by name. A file takes 16 bytes plus its name.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// All names, concatenated.
    text: String,
    names: Vec<Name>,
    /// Paths that are not UTF-8.
    odd: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy)]
struct Name {
    at: u64,
    bytes: u32,
    /// Index into `Listing::odd`, counted from 1; 0 if the path equals the name.
    odd: u32,
}

impl Listing {
    fn push(&mut self, path: PathBuf) {
        let at = self.text.len();
        for (i, part) in path.iter().enumerate() {
            if i > 0 {
                self.text.push('/');
            }
            self.text.push_str(&part.to_string_lossy());
        }
        let bytes = u32::try_from(self.text.len() - at).unwrap_or(u32::MAX);
        let odd = if path.to_str().is_some() {
            0
        } else {
            self.odd.push(path);
            u32::try_from(self.odd.len()).unwrap_or(u32::MAX)
        };
        self.names.push(Name { at: at as u64, bytes, odd });
    }

    fn sort(&mut self) {
        let (text, odd) = (&self.text, &self.odd);
        let path = |n: &Name| odd.get((n.odd as usize).wrapping_sub(1));
        self.names.sort_unstable_by(|a, b| text_of(text, a).cmp(text_of(text, b)).then_with(|| path(a).cmp(&path(b))));
    }

    /// Number of files.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// Name of file `index`, same as [`Found::name`].
    pub(crate) fn name(&self, index: usize) -> &str {
        self.names.get(index).map_or("", |n| text_of(&self.text, n))
    }

    /// Path of file `index` below the folder.
    pub(crate) fn path(&self, index: usize) -> &Path {
        let odd = self.names.get(index).and_then(|n| self.odd.get((n.odd as usize).wrapping_sub(1)));
        odd.map_or_else(|| Path::new(self.name(index)), PathBuf::as_path)
    }

    /// Keeps only the files for whose names `keep` returns true.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        let text = &self.text;
        self.names.retain(|n| keep(text_of(text, n)));
        self.names.shrink_to_fit();
    }
}

fn text_of<'a>(text: &'a str, name: &Name) -> &'a str {
    text_at(text, name.at, name.bytes)
}

/// The `bytes` bytes at offset `at` of concatenated names; empty if they are out of range.
pub(crate) fn text_at(text: &str, at: u64, bytes: u32) -> &str {
    let at = usize::try_from(at).unwrap_or(usize::MAX);
    text.get(at..at.saturating_add(bytes as usize)).unwrap_or("")
}

/// All regular files below `root` that are not hidden, sorted by name, and the counts of skipped files. Links to files
/// are followed. Links to folders are followed unless the folder is listed already, so loops end.
///
/// # Errors
/// `Format` if the tree is too deep or too large; errors of the file system.
pub fn files(root: &Path) -> Result<(Vec<Found>, LeftOut)> {
    let (listing, left) = list(root)?;
    let found = |i| Found { name: listing.name(i).to_owned(), path: listing.path(i).to_owned() };
    Ok(((0..listing.len()).map(found).collect(), left))
}

/// Same as [`files`], with less memory.
pub(crate) fn list(root: &Path) -> Result<(Listing, LeftOut)> {
    let (mut files, mut left) = (Listing::default(), LeftOut::default());
    let mut seen = HashSet::from([identity(root)?]);
    let mut folders = vec![(PathBuf::new(), 0)];
    let mut links: Vec<(PathBuf, usize)> = Vec::new();
    // Links are followed after all real folders. Therefore the path under which a folder is listed does not depend on
    // the order of entries.
    while let Some((folder, depth)) = folders.pop().or_else(|| next_link(root, &mut links, &mut seen, &mut left)) {
        if depth > MAX_DEPTH {
            let expected = format!("at most {MAX_DEPTH} levels of folders");
            return Err(Error::format(root, folder.display().to_string(), expected, "more"));
        }
        for entry in fs::read_dir(root.join(&folder))? {
            let entry = entry?;
            let name = entry.file_name();
            let (path, shown) = (folder.join(&name), name.to_string_lossy());
            let mut kind = entry.file_type()?;
            let link = kind.is_symlink();
            if is_hidden(&shown) {
                *(if kind.is_dir() { &mut left.hidden_folders } else { &mut left.hidden }) += 1;
                continue;
            }
            if link {
                kind = match fs::metadata(root.join(&path)) {
                    Ok(found) => found.file_type(),
                    Err(e) if decode::is_image(&shown) => return Err(e.into()),
                    // A dangling link, or one to itself.
                    Err(_) => {
                        left.special += 1;
                        continue;
                    }
                };
            }
            if kind.is_dir() && link {
                links.push((path, depth + 1));
            } else if kind.is_dir() {
                seen.insert(identity(&root.join(&path))?);
                folders.push((path, depth + 1));
            } else if kind.is_file() {
                files.push(path);
            } else {
                left.special += 1;
            }
            if files.len() + folders.len() + links.len() > MAX_FILES {
                return Err(Error::format(root, "folder", format!("at most {MAX_FILES} files"), "more"));
            }
        }
    }
    files.text.shrink_to_fit();
    files.sort();
    Ok((files, left))
}

/// The first link, by path, to a folder that is not listed yet. Links to listed folders are removed and counted.
fn next_link(
    root: &Path,
    links: &mut Vec<(PathBuf, usize)>,
    seen: &mut HashSet<Identity>,
    left: &mut LeftOut,
) -> Option<(PathBuf, usize)> {
    links.sort_unstable_by(|a, b| b.cmp(a));
    while let Some((path, depth)) = links.pop() {
        if identity(&root.join(&path)).is_ok_and(|id| seen.insert(id)) {
            return Some((path, depth));
        }
        left.links += 1;
    }
    None
}

#[cfg(unix)]
type Identity = (u64, u64);
#[cfg(not(unix))]
type Identity = PathBuf;

/// Identity of the folder at `path`: device and inode on Unix, the canonical path elsewhere.
fn identity(path: &Path) -> Result<Identity> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let found = fs::metadata(path)?;
        Ok((found.dev(), found.ino()))
    }
    #[cfg(not(unix))]
    Ok(fs::canonicalize(path)?)
}
