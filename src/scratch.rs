//! Temporary folders that do not outlive the process, however a signal ends it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tempfile::TempDir;

static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A temporary folder. It is removed when it is dropped, and where a signal ends the process at once.
#[derive(Debug)]
pub struct Scratch(TempDir);

impl Scratch {
    /// A new one, where the system keeps temporary files.
    ///
    /// # Errors
    /// The file system's own.
    pub fn new() -> io::Result<Self> {
        Self::new_in(&std::env::temp_dir())
    }

    /// A new one in `parent`.
    ///
    /// # Errors
    /// The file system's own.
    pub fn new_in(parent: &Path) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("d2o-").tempdir_in(parent)?;
        FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).push(folder.path().to_owned());
        Ok(Self(folder))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).retain(|f| f != self.0.path());
    }
}

/// Removes all of them: the process ends without their destructors.
pub(crate) fn remove_all() {
    for folder in FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let _ = fs_err::remove_dir_all(folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removed_with_and_without_its_destructor() {
        let (dropped, kept) = (Scratch::new().unwrap(), Scratch::new().unwrap());
        let paths = [dropped.path().to_owned(), kept.path().to_owned()];
        drop(dropped);
        assert!(!paths[0].exists() && paths[1].exists());
        fs_err::write(kept.path().join("x"), "x").unwrap();
        remove_all();
        assert!(!paths[1].exists());
    }
}
