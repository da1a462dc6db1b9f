//! Temporary files and folders that do not outlive the process, even where it ends without destructors.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fs_err as fs;
use tempfile::TempDir;

/// Attempts to remove a folder in which other threads still make files.
const ATTEMPTS: usize = 16;

/// What is there, by the number of its [`Listed`].
static LIST: Mutex<List> = Mutex::new(List { next: 0, entries: BTreeMap::new() });

#[derive(Debug)]
struct List {
    next: u64,
    entries: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
enum Entry {
    /// A file. It is removed only if the path still names it: once it was renamed, another process may have a file there.
    File(PathBuf, Option<Identity>),
    Folder(PathBuf),
}

/// Device and inode, where the system has them.
pub(crate) type Identity = (u64, u64);

fn list() -> MutexGuard<'static, List> {
    LIST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place in the list of temporary files and folders, given up when this is dropped.
#[derive(Debug)]
pub(crate) struct Listed(u64);

impl Drop for Listed {
    fn drop(&mut self) {
        list().entries.remove(&self.0);
    }
}

impl List {
    fn add(&mut self, entry: Entry) -> Listed {
        self.next += 1;
        self.entries.insert(self.next, entry);
        Listed(self.next)
    }
}

/// The file that `open` makes at `path`. [`remove_temporary`] removes it as long as the second value lives.
///
/// # Errors
/// Those of `open`.
pub(crate) fn listed_file(
    path: &Path,
    open: impl FnOnce(&Path) -> io::Result<std::fs::File>,
) -> io::Result<(std::fs::File, Listed)> {
    // Locked before the file is made: either it is in the list, or it is not made.
    let mut list = list();
    let file = open(path)?;
    let identity = file.metadata().ok().and_then(|found| identity(&found));
    let listed = list.add(Entry::File(path.to_owned(), identity));
    Ok((file, listed))
}

#[cfg(unix)]
#[allow(clippy::unnecessary_wraps, reason = "as where there are none")]
pub(crate) fn identity(found: &std::fs::Metadata) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt as _;
    Some((found.dev(), found.ino()))
}

#[cfg(not(unix))]
fn identity(_: &std::fs::Metadata) -> Option<Identity> {
    None
}

/// A temporary folder. It is removed when it is dropped, and by [`remove_temporary`].
#[derive(Debug)]
pub struct Scratch {
    folder: TempDir,
    listed: Listed,
}

impl Scratch {
    /// A new one, where the system keeps temporary files.
    ///
    /// # Errors
    /// The file system's own.
    pub fn new() -> io::Result<Self> {
        Self::new_in(&std::env::temp_dir())
            .map_err(|error| io::Error::new(error.kind(), format!("{error}; TMPDIR may name another folder")))
    }

    /// A new one in `parent`.
    ///
    /// # Errors
    /// The file system's own.
    pub fn new_in(parent: &Path) -> io::Result<Self> {
        Self::make(tempfile::Builder::new().prefix("d2o-"), parent)
    }

    /// A new one in `parent`, which becomes a folder that stays, by [`Scratch::persist`]: hidden until then, and readable as the user's other folders.
    ///
    /// # Errors
    /// The file system's own.
    pub fn partial_in(parent: &Path) -> io::Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".d2o-").suffix(".partial");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            builder.permissions(std::fs::Permissions::from_mode(0o755));
        }
        Self::make(&builder, parent)
    }

    fn make(builder: &tempfile::Builder<'_, '_>, parent: &Path) -> io::Result<Self> {
        let mut list = list();
        let folder = builder.tempdir_in(parent).map_err(|error| {
            let text = format!("cannot make a temporary folder in `{}`: {}", parent.display(), without_name(&error));
            io::Error::new(error.kind(), text)
        })?;
        let listed = list.add(Entry::Folder(folder.path().to_owned()));
        Ok(Self { folder, listed })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Gives it the name `target`, on the same file system, under which it stays.
    ///
    /// # Errors
    /// The file system's own; the folder is then removed.
    pub fn persist(self, target: &Path) -> io::Result<()> {
        let Self { folder, listed } = self;
        fs::rename(folder.path(), target)?;
        // It has moved.
        let _ = folder.keep();
        drop(listed);
        Ok(())
    }
}

/// The text of an error of `tempfile` without ` at path "…"`, a random name.
#[must_use]
pub fn without_name(error: &io::Error) -> String {
    let text = error.to_string();
    text.split_once(" at path \"").map_or(text.as_str(), |(text, _)| text).to_owned()
}

/// The proof that the temporary files and folders of this process are gone. As long as it lives, threads that would make new ones wait.
#[derive(Debug)]
#[must_use = "others are made once this is dropped"]
pub struct Removed {
    _list: MutexGuard<'static, List>,
}

/// Removes the temporary files and folders of this process, as their destructors would; for a process that ends without them.
pub fn remove_temporary() -> Removed {
    let list = list();
    for entry in list.entries.values() {
        match entry {
            Entry::File(path, made) => {
                let there = fs::symlink_metadata(path).ok();
                if there.is_some_and(|found| identity(&found) == *made) {
                    let _ = fs::remove_file(path);
                }
            }
            Entry::Folder(path) => {
                let _ = (0..ATTEMPTS).find(|_| fs::remove_dir_all(path).is_ok() || fs::symlink_metadata(path).is_err());
            }
        }
    }
    Removed { _list: list }
}
