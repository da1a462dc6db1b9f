//! The partial file of a download: next to its target, locked while it is open, and kept until it is complete.

use std::fs::TryLockError;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use d2o_files::{hex, is_at, sync_folder};
use fs_err as fs;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};
use crate::hash;
use crate::progress::Watch;
use crate::record::{read_sidecar, remove, sidecar, write_sidecar};

/// Extension of a partial file, after the name of its target.
pub(crate) const PARTIAL: &str = ".d2o-partial";
/// Extension of the file with the [`Entity`], after the name of the target.
pub(crate) const ENTITY: &str = ".d2o-partial.json";
/// Attempts to open a file that other processes rename or remove.
const ATTEMPTS: usize = 64;

/// The file of which a partial file is the beginning.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entity {
    /// The source of the bytes.
    pub(crate) source: String,
    /// Validator from the server, for `If-Range`: a strong ETag, or a `Last-Modified` before the `Date` of the
    /// response.
    pub(crate) validator: Option<String>,
    /// Length of the whole file.
    pub(crate) length: Option<u64>,
    /// SHA-256 that the server announced.
    pub(crate) announced: Option<String>,
}

/// A locked partial file.
#[derive(Debug)]
pub(crate) struct Partial {
    file: fs::File,
    target: PathBuf,
    /// Bytes in the file.
    done: u64,
    /// Hash of these bytes.
    state: Sha256,
    /// Whether the bytes come from more than one response.
    pieced: bool,
    entity: Option<Entity>,
}

impl Partial {
    /// Opens and locks the partial file of `target`; `None` if another process has locked it.
    pub(crate) fn open(target: &Path) -> Result<Option<Self>> {
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder)?;
        }
        let path = sidecar(target, PARTIAL);
        for _ in 0..ATTEMPTS {
            if fs::symlink_metadata(&path).is_ok_and(|found| !found.is_file()) {
                let text = format!("`{}` is not a regular file", path.display());
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text).into());
            }
            let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            match claim(&file, &path)? {
                Claim::Ours => {}
                Claim::Theirs => return Ok(None),
                Claim::Stale => continue,
            }
            let done = file.metadata()?.len();
            let entity = if done == 0 { None } else { read_sidecar(&sidecar(target, ENTITY))? };
            let target = target.to_owned();
            return Ok(Some(Self { file, target, done, state: Sha256::new(), pieced: false, entity }));
        }
        Ok(None)
    }

    pub(crate) fn path(&self) -> PathBuf {
        sidecar(&self.target, PARTIAL)
    }

    pub(crate) const fn done(&self) -> u64 {
        self.done
    }

    pub(crate) const fn entity(&self) -> Option<&Entity> {
        self.entity.as_ref()
    }

    pub(crate) const fn is_pieced(&self) -> bool {
        self.pieced
    }

    /// The bytes appended from now on come from another response.
    pub(crate) const fn continue_with_another(&mut self) {
        self.pieced = true;
    }

    /// Hashes the bytes of an earlier run.
    pub(crate) fn resume(&mut self, watch: &mut Watch<'_>) -> Result<()> {
        let path = self.path();
        self.file.seek(SeekFrom::Start(0))?;
        self.state = Sha256::new();
        self.pieced = true;
        self.done = hash::of_reader(&mut self.file, &path, self.done, &mut self.state, watch)?;
        Ok(())
    }

    /// Discards all bytes.
    pub(crate) fn clear(&mut self) -> Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        (self.done, self.state, self.pieced, self.entity) = (0, Sha256::new(), false, None);
        remove(&sidecar(&self.target, ENTITY))?;
        Ok(())
    }

    /// Records the file to which the following bytes, from the first on, belong.
    pub(crate) fn begin(&mut self, entity: Entity) -> Result<()> {
        write_sidecar(&sidecar(&self.target, ENTITY), &entity)?;
        self.entity = Some(entity);
        Ok(())
    }

    /// Appends `bytes`; `total` is for the error.
    pub(crate) fn append(&mut self, bytes: &[u8], total: Option<u64>) -> Result<()> {
        if let Err(source) = self.file.write_all(bytes) {
            // It is unknown how many of `bytes` were written.
            let _ = self.file.set_len(self.done).and_then(|()| self.file.seek(SeekFrom::Start(self.done)).map(drop));
            return Err(match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                    Error::NoSpace { file: self.path(), done: self.done, total, source }
                }
                _ => source.into(),
            });
        }
        self.state.update(bytes);
        self.done += bytes.len() as u64;
        Ok(())
    }

    /// Hash of all bytes.
    pub(crate) fn sha256(&self) -> String {
        hex(&self.state.clone().finalize())
    }

    /// Syncs the file and renames it to the target.
    pub(crate) fn commit(self) -> Result<()> {
        self.file.sync_all()?;
        fs::rename(self.path(), &self.target)?;
        remove(&sidecar(&self.target, ENTITY))?;
        if let Some(folder) = self.target.parent() {
            sync_folder(folder)?;
        }
        Ok(())
    }

    /// Removes the file and its entity.
    pub(crate) fn discard(self) -> Result<()> {
        remove(&sidecar(&self.target, ENTITY))?;
        remove(&self.path())?;
        Ok(())
    }
}

/// The owner of an open file.
#[derive(Debug, PartialEq, Eq)]
enum Claim {
    Ours,
    Theirs,
    /// The previous owner has renamed or removed the file since it was opened.
    Stale,
}

/// Locks `file`, which was opened at `path`.
fn claim(file: &fs::File, path: &Path) -> Result<Claim> {
    match file.file().try_lock() {
        Ok(()) if is_at(file.file(), path)? => Ok(Claim::Ours),
        Ok(()) => Ok(Claim::Stale),
        Err(TryLockError::WouldBlock) => Ok(Claim::Theirs),
        Err(TryLockError::Error(source)) => Err(Error::NoLocks { file: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_ours_if_it_is_locked_and_still_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let open = || fs::OpenOptions::new().write(true).create(true).truncate(false).open(&path).unwrap();
        let (first, second) = (open(), open());
        assert_eq!(claim(&first, &path).unwrap(), Claim::Ours);
        assert_eq!(claim(&second, &path).unwrap(), Claim::Theirs);
        fs::rename(&path, dir.path().join("y")).unwrap();
        drop(first);
        assert_eq!(claim(&second, &path).unwrap(), Claim::Stale);
        assert_eq!(claim(&open(), &path).unwrap(), Claim::Ours);
        assert_eq!(claim(&second, &path).unwrap(), Claim::Stale, "another file is there");
    }

    /// The process with the lock has the file at the path, while others lock, rename, remove and open it.
    #[test]
    fn no_two_have_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("x.bin");
        std::thread::scope(|scope| {
            for own in 0..8_u8 {
                let target = &target;
                scope.spawn(move || {
                    for turn in 0..300 {
                        let Some(mut partial) = Partial::open(target).unwrap() else { continue };
                        assert_eq!(partial.done(), 0);
                        partial.append(&[own; 100], None).unwrap();
                        assert_eq!(fs::read(partial.path()).unwrap(), [own; 100]);
                        if turn % 2 == 0 { partial.commit().unwrap() } else { partial.discard().unwrap() }
                    }
                });
            }
        });
    }
}
