//! Files that are complete or absent.

use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fs_err as fs;
use sha2::{Digest as _, Sha256};
use tempfile::{NamedTempFile, TempPath};

use crate::temporary::{Listed, identity, listed_file};

/// Most processes that can write one target at the same time.
const SLOTS: usize = 16;
/// Attempts to create a temporary file while other processes remove stale ones.
const ATTEMPTS: usize = 64;
/// Longest target name, bytes, that is repeated in the temporary name; file systems allow names of 255 bytes.
const MAX_NAME: usize = 200;

/// A file that is written under a temporary name in the folder of its target. [`AtomicFile::commit`] renames it to the
/// target. If it is dropped instead, it is removed.
///
/// The temporary name is `.d2o-NAME.SLOT.partial`. The file is locked while it is written, so the next writer of the
/// same target recognises and removes files of killed processes.
#[derive(Debug)]
pub struct AtomicFile {
    file: io::BufWriter<NamedTempFile>,
    target: PathBuf,
    _listed: Listed,
}

impl AtomicFile {
    /// Starts a file that [`AtomicFile::commit`] renames to `target`. Missing parent folders are created. Permissions
    /// follow the umask.
    ///
    /// # Errors
    /// Those of the file system; `IsADirectory`, `PermissionDenied` or `InvalidInput` if the target is a folder,
    /// read-only or not a regular file.
    pub fn create(target: &Path) -> io::Result<Self> {
        check_target(target)?;
        Self::create_in(folder_of(target), target)
    }

    /// Same as [`AtomicFile::create`], with the temporary file in `folder`, which must be on the file system of the
    /// target. The target is not checked.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create_in(folder: &Path, target: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let (file, listed) = reserve(folder, target)?;
        Ok(Self { file: io::BufWriter::with_capacity(1 << 20, file), target: target.to_owned(), _listed: listed })
    }

    /// Flushes, syncs and renames the file, then syncs its folder.
    ///
    /// # Errors
    /// Those of the file system. The target is unchanged, unless only the sync of its folder fails.
    pub fn commit(self) -> io::Result<()> {
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        file.persist(&self.target).map_err(|e| e.error)?;
        sync_folder(folder_of(&self.target))
    }

    /// Same as [`AtomicFile::commit`], but renames to `target` in the same folder, for a name that is known only at the
    /// end.
    ///
    /// # Errors
    /// Those of [`AtomicFile::commit`].
    pub fn commit_as(mut self, target: &Path) -> io::Result<()> {
        target.clone_into(&mut self.target);
        self.commit()
    }

    /// Same as [`AtomicFile::commit`], without syncs: the file is complete after a crash of the process, but not of the
    /// machine.
    ///
    /// # Errors
    /// Those of the file system; the target is then unchanged.
    pub fn commit_unsynced(self) -> io::Result<()> {
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.persist(&self.target).map_err(|e| e.error)?;
        Ok(())
    }

    /// Writes a file with content `bytes` to `target`.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write_all_to(target: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = Self::create(target)?;
        file.write_all(bytes)?;
        file.commit()
    }
}

impl Write for AtomicFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, pos: SeekFrom) -> io::Result<u64> {
        self.file.seek(pos)
    }
}

/// A temporary file for a library that writes it by path. [`AtomicPath::commit`] renames it to the target.
#[derive(Debug)]
pub struct AtomicPath {
    file: NamedTempFile,
    target: PathBuf,
    _listed: Listed,
}

impl AtomicPath {
    /// Same as [`AtomicFile::create`].
    ///
    /// # Errors
    /// Those of [`AtomicFile::create`].
    pub fn create(target: &Path) -> io::Result<Self> {
        check_target(target)?;
        let folder = folder_of(target);
        fs::create_dir_all(folder)?;
        let (file, listed) = reserve(folder, target)?;
        Ok(Self { file, target: target.to_owned(), _listed: listed })
    }

    /// Path of the temporary file.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Same as [`AtomicFile::commit`].
    ///
    /// # Errors
    /// Those of [`AtomicFile::commit`].
    pub fn commit(self) -> io::Result<()> {
        self.file.as_file().sync_all()?;
        self.file.persist(&self.target).map_err(|e| e.error)?;
        sync_folder(folder_of(&self.target))
    }
}

fn folder_of(target: &Path) -> &Path {
    target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn problem(kind: io::ErrorKind, path: &Path, what: &str) -> io::Error {
    io::Error::new(kind, format!("`{}` is {what}", path.display()))
}

/// Checks that `target` does not exist or can be replaced.
fn check_target(target: &Path) -> io::Result<()> {
    if target.file_name().is_none() {
        return Err(problem(io::ErrorKind::IsADirectory, target, "a folder, not a file"));
    }
    match fs::metadata(target) {
        Ok(found) if found.is_dir() => Err(problem(io::ErrorKind::IsADirectory, target, "a folder, not a file")),
        Ok(found) if !found.is_file() => {
            Err(problem(io::ErrorKind::InvalidInput, target, "not a regular file and cannot be replaced"))
        }
        Ok(found) if found.permissions().readonly() => {
            Err(problem(io::ErrorKind::PermissionDenied, target, "read-only"))
        }
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// Makes renames in `folder` durable. Does nothing on file systems that cannot sync folders.
///
/// # Errors
/// Those of the file system.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    match fs::File::open(folder).and_then(|f| f.sync_all()) {
        Err(e)
            if !matches!(
                e.kind(),
                io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied
            ) =>
        {
            Err(e)
        }
        _ => Ok(()),
    }
}

/// `.d2o-NAME.SLOT.partial` with the name of the target, or its SHA-256 if the name is long.
fn temporary_name(target: &Path, slot: usize) -> std::ffi::OsString {
    let name = target.file_name().unwrap_or_default();
    let mut temporary = std::ffi::OsString::from(".d2o-");
    if name.len() <= MAX_NAME {
        temporary.push(name);
    } else {
        let digest = Sha256::digest(name.as_encoded_bytes());
        temporary.push(crate::hex(&digest));
    }
    temporary.push(format!(".{slot}.partial"));
    temporary
}

/// A new, locked temporary file for `target` in `folder`. Unlocked files of the same target are stale and are removed.
fn reserve(folder: &Path, target: &Path) -> io::Result<(NamedTempFile, Listed)> {
    for slot in 0..SLOTS {
        remove_stale(&folder.join(temporary_name(target, slot)));
    }
    for attempt in 0..ATTEMPTS {
        let path = folder.join(temporary_name(target, attempt % SLOTS));
        match listed_file(&path, |path| std::fs::OpenOptions::new().read(true).write(true).create_new(true).open(path))
        {
            Ok((file, listed)) => {
                let guard = TempPath::try_from_path(path.clone())?;
                // Until the file is locked, another process can treat it as stale.
                let lost = matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock)) || !is_at(&file, &path)?;
                if lost {
                    // A file at the path now belongs to that process.
                    let _ = guard.keep();
                    continue;
                }
                return Ok((NamedTempFile::from_parts(file, guard), listed));
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => {
                return Err(io::Error::new(e.kind(), format!("cannot create `{}`: {e}", path.display())));
            }
        }
    }
    let text = format!("`{}` is being written by {SLOTS} other processes", target.display());
    Err(io::Error::new(io::ErrorKind::ResourceBusy, text))
}

/// Removes the temporary file at `path` if no process holds its lock.
fn remove_stale(path: &Path) {
    let regular = fs::symlink_metadata(path).is_ok_and(|m| m.is_file());
    if regular
        && let Ok(file) = std::fs::OpenOptions::new().read(true).write(true).open(path)
        && file.try_lock().is_ok()
        // The file can have been committed since it was opened; then the path names a file of another writer. While the
        // lock is held and the path names the file, no writer renames it.
        && is_at(&file, path).unwrap_or(false)
    {
        let _ = fs::remove_file(path);
    }
}

/// Whether `path`, with links followed, still names `file`. Another process can have removed or renamed the file since
/// it was opened.
///
/// # Errors
/// If the metadata of `file` cannot be read.
pub fn is_at(file: &std::fs::File, path: &Path) -> io::Result<bool> {
    let held = identity(&file.metadata()?);
    // On systems without file identities, an open file cannot be removed.
    Ok(held.is_none() || fs::metadata(path).is_ok_and(|there| identity(&there) == held))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
        let mut names: Vec<_> = names.collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn absent_until_committed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("sub/x.bin");
        let mut file = AtomicFile::create(&target).unwrap();
        file.write_all(b"abc").unwrap();
        assert!(!target.exists());
        drop(file);
        assert_eq!(fs::read_dir(dir.path().join("sub")).unwrap().count(), 0);
        AtomicFile::write_all_to(&target, b"abc").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"abc");
    }

    #[test]
    fn what_a_killed_process_left_goes_with_the_next_write() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("x.bin");
        // A killed process runs no destructor; its lock ends with it.
        let killed = AtomicFile::create(&target).unwrap();
        let (file, path) = killed.file.into_inner().unwrap().keep().unwrap();
        assert!(path.exists());
        let other = dir.path().join("x.bin.0");
        let second = AtomicFile::create(&other).unwrap();
        let live = AtomicFile::create(&target).unwrap();
        assert_eq!(entries(dir.path()).len(), 3, "the first file is locked still");
        drop((file, live));
        AtomicFile::write_all_to(&target, b"abc").unwrap();
        assert_eq!(entries(dir.path()), [".d2o-x.bin.0.0.partial", "x.bin"], "files of other targets stay");
        drop(second);
        let long = dir.path().join("y".repeat(255));
        AtomicFile::write_all_to(&long, b"abc").unwrap();
        assert_eq!(entries(dir.path()).len(), 2);
    }

    #[test]
    fn writers_of_one_target_do_not_remove_each_others_files() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("x.bin");
        std::thread::scope(|scope| {
            for byte in 0..8_u8 {
                let target = &target;
                scope.spawn(move || {
                    for _ in 0..50 {
                        AtomicFile::write_all_to(target, &[byte; 1000]).unwrap();
                    }
                });
            }
        });
        let found = fs::read(&target).unwrap();
        assert!(found.len() == 1000 && found.iter().all(|b| *b == found[0]));
        assert_eq!(entries(dir.path()), ["x.bin"]);
    }

    #[test]
    fn a_name_may_be_given_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = AtomicFile::create(&dir.path().join("x.bin")).unwrap();
        file.write_all(b"abc").unwrap();
        file.commit_as(&dir.path().join("y.bin")).unwrap();
        assert_eq!(entries(dir.path()), ["y.bin"]);
    }

    #[cfg(unix)]
    #[test]
    fn permissions_follow_the_umask() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let (plain, ours, path) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("c"));
        fs::write(&plain, b"x").unwrap();
        AtomicFile::write_all_to(&ours, b"x").unwrap();
        AtomicPath::create(&path).unwrap().commit().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!([mode(&ours), mode(&path)], [mode(&plain); 2]);
    }

    #[test]
    fn bad_targets_are_found_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let check = |path: &Path| AtomicFile::create(path).map(drop).map_err(|e| e.to_string());
        let folder = dir.path().join("folder");
        fs::create_dir(&folder).unwrap();
        assert!(check(&folder).unwrap_err().contains("is a folder"));
        assert!(check(Path::new("..")).unwrap_err().contains("is a folder"));
        let file = dir.path().join("file");
        fs::write(&file, b"x").unwrap();
        assert!(check(&file.join("under/it")).is_err());
        let mut permissions = fs::metadata(&file).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&file, permissions).unwrap();
        assert!(check(&file).unwrap_err().contains("read-only"));
        #[cfg(unix)]
        assert!(check(Path::new("/dev/null")).unwrap_err().contains("not a regular file"));
        if cfg!(target_os = "linux") {
            assert!(check(Path::new("/proc/x")).is_err());
        }
    }
}
