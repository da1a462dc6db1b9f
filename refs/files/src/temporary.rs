//! Temporary files and folders that do not outlive the process, even if it ends without running destructors.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fs_err as fs;
use tempfile::TempDir;

/// Attempts to remove a folder in which other threads still create files.
const ATTEMPTS: usize = 16;

/// Existing temporary files and folders, by the number of their [`Listed`].
static LIST: Mutex<List> = Mutex::new(List { next: 0, entries: BTreeMap::new() });

#[derive(Debug)]
struct List {
    next: u64,
    entries: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
enum Entry {
    /// A file. It is removed only if the path still names it: after a rename, another process can have a file there.
    File(PathBuf, Option<Identity>),
    Folder(PathBuf),
}

/// Device and inode, if the system has them.
pub(crate) type Identity = (u64, u64);

fn list() -> MutexGuard<'static, List> {
    LIST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An entry in the list of temporary files and folders, removed when this is dropped.
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

/// Creates a file at `path` with `open`. [`remove_temporary`] removes it as long as the second value exists.
///
/// # Errors
/// Those of `open`.
pub(crate) fn listed_file(
    path: &Path,
    open: impl FnOnce(&Path) -> io::Result<std::fs::File>,
) -> io::Result<(std::fs::File, Listed)> {
    // The list is locked before the file is created: a file that exists is in the list.
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
pub(crate) fn identity(_: &std::fs::Metadata) -> Option<Identity> {
    None
}

/// A temporary folder. It is removed when this is dropped, and by [`remove_temporary`].
#[derive(Debug)]
pub struct Scratch {
    folder: TempDir,
    listed: Listed,
}

impl Scratch {
    /// Creates a folder in the temporary folder of the system.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn new() -> io::Result<Self> {
        Self::new_in(&std::env::temp_dir())
            .map_err(|error| io::Error::new(error.kind(), format!("{error}; TMPDIR may name another folder")))
    }

    /// Creates a folder in `parent`.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn new_in(parent: &Path) -> io::Result<Self> {
        Self::make(tempfile::Builder::new().prefix("d2o-"), parent)
    }

    /// Creates a hidden folder in `parent` that [`Scratch::persist`] makes permanent. On Unix, everyone can read it, as
    /// far as the umask allows.
    ///
    /// # Errors
    /// Those of the file system.
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

    /// Path of the folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Renames the folder to `target`, on the same file system, and keeps it.
    ///
    /// # Errors
    /// Those of the file system; the folder is then removed.
    pub fn persist(self, target: &Path) -> io::Result<()> {
        let Self { folder, listed } = self;
        fs::rename(folder.path(), target)?;
        // The folder has moved, so there is nothing to remove.
        let _ = folder.keep();
        drop(listed);
        Ok(())
    }
}

/// The text of an error of `tempfile` without ` at path "…"`, which contains a random name.
#[must_use]
pub fn without_name(error: &io::Error) -> String {
    let text = error.to_string();
    text.split_once(" at path \"").map_or(text.as_str(), |(text, _)| text).to_owned()
}

/// Proof that the temporary files and folders of this process are removed. While it exists, threads that create others
/// wait.
#[derive(Debug)]
#[must_use = "others are made once this is dropped"]
pub struct Removed {
    _list: MutexGuard<'static, List>,
}

/// Removes the temporary files and folders of this process, as their destructors do. For a process that ends without
/// running destructors.
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
