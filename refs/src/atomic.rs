//! Files that are complete or absent.

use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fs_err as fs;

/// A file written under a temporary name beside its target and renamed by [`AtomicFile::commit`]; dropped, it vanishes.
#[derive(Debug)]
pub struct AtomicFile {
    file: io::BufWriter<tempfile::NamedTempFile>,
    target: PathBuf,
}

impl AtomicFile {
    /// Starts writing what will be `target`. Missing parent folders are made.
    ///
    /// # Errors
    /// The file system's own.
    pub fn create(target: &Path) -> io::Result<Self> {
        let folder = match target.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        Self::create_in(folder, target)
    }

    /// As [`AtomicFile::create`], with the temporary file in `folder`, which must be of the target's file system.
    ///
    /// # Errors
    /// The file system's own.
    pub fn create_in(folder: &Path, target: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(".d2o-").suffix(".partial");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            builder.permissions(std::fs::Permissions::from_mode(0o644));
        }
        let file = builder.tempfile_in(folder)?;
        Ok(Self { file: io::BufWriter::with_capacity(1 << 20, file), target: target.to_owned() })
    }

    /// Flushes, syncs and gives the file its name.
    ///
    /// # Errors
    /// The file system's own; the target is then untouched.
    pub fn commit(self) -> io::Result<()> {
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        file.persist(&self.target).map_err(|e| e.error)?;
        Ok(())
    }

    /// As [`AtomicFile::commit`] without the sync: the file is whole after a crash of the process, not of the machine.
    ///
    /// # Errors
    /// The file system's own; the target is then untouched.
    pub fn commit_unsynced(self) -> io::Result<()> {
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.persist(&self.target).map_err(|e| e.error)?;
        Ok(())
    }

    /// Writes `bytes` to `target` as a whole.
    ///
    /// # Errors
    /// The file system's own.
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
