//! Writer of zip archives that are complete or absent.

use std::io::{self, Seek as _, SeekFrom, Write};
use std::path::Path;

use d2o_files::AtomicFile;

use crate::error::Result;
use crate::zip_format;

/// A zip archive that is complete or absent: stored entries with fixed times, so equal content gives equal bytes.
///
/// Only the central directory is kept in memory, as it will be written: 46 bytes plus the name per entry.
pub(crate) struct AtomicZip {
    file: AtomicFile,
    table: Vec<u8>,
    entries: u64,
    /// Highest version of the format that an entry needs.
    version: u16,
    /// Bytes written so far.
    at: u64,
    current: Option<Entry>,
}

/// The entry that is being written.
struct Entry {
    name: String,
    /// Offset of the local header.
    header: u64,
    crc: crc32fast::Hasher,
    bytes: u64,
    /// Whether the local header has room for 64-bit sizes.
    large: bool,
}

/// 1 January 1980, the earliest date of the format.
const DATE: u16 = 0x21;
/// Mode of a regular file that the owner can write and all can read, in the upper half of the attributes.
const MODE: u32 = 0o100_644 << 16;
/// Host system Unix, in the upper byte of "version made by".
const UNIX: u16 = 3 << 8;
/// Versions of the format needed to extract an entry: any; with 64-bit sizes.
const VERSION: u16 = 10;
const VERSION_64: u16 = 45;
/// Flag of UTF-8 names, for names that are not ASCII.
const UTF_8: u16 = 1 << 11;
/// Placeholder for a value that is stored as 64 bits elsewhere.
const ZIP64_MARKER: u32 = u32::MAX;

fn low(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(ZIP64_MARKER)
}

impl AtomicZip {
    /// Starts an archive; see [`AtomicFile::create`].
    pub(crate) fn create(path: &Path) -> Result<Self> {
        Ok(Self {
            file: AtomicFile::create(path)?,
            table: Vec::new(),
            entries: 0,
            version: VERSION,
            at: 0,
            current: None,
        })
    }

    /// Starts entry `name` of about `bytes` bytes. The bytes written next are its content.
    pub(crate) fn start(&mut self, name: &str, bytes: u64) -> Result<()> {
        const SLACK: u64 = 1 << 16;
        self.end()?;
        let large = bytes > u64::from(u32::MAX) - SLACK;
        self.current = Some(self.header(name, large, 0, 0)?);
        Ok(())
    }

    /// Writes entry `name` with content `bytes`.
    pub(crate) fn whole(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 >= u64::from(ZIP64_MARKER) {
            self.start(name, bytes.len() as u64)?;
            return Ok(self.write_all(bytes)?);
        }
        self.end()?;
        let mut crc = crc32fast::Hasher::new();
        crc.update(bytes);
        let entry = self.header(name, false, crc.clone().finalize(), bytes.len() as u64)?;
        self.put(bytes)?;
        self.list(Entry { crc, bytes: bytes.len() as u64, ..entry })
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Writes the local header of an entry. Its content comes next.
    fn header(&mut self, name: &str, large: bool, crc: u32, bytes: u64) -> Result<Entry> {
        let header = self.at;
        let size = if large { ZIP64_MARKER } else { low(bytes) };
        let mut out = Vec::with_capacity(64 + name.len());
        out.extend(zip_format::LOCAL.to_le_bytes());
        for n in [if large { VERSION_64 } else { VERSION }, flags(name), 0, 0, DATE] {
            out.extend(n.to_le_bytes());
        }
        for n in [crc, size, size] {
            out.extend(n.to_le_bytes());
        }
        out.extend(name_bytes(name)?.to_le_bytes());
        out.extend(if large { 20_u16 } else { 0 }.to_le_bytes());
        out.extend(name.as_bytes());
        if large {
            out.extend([1, 0, 16, 0]);
            out.extend([0; 16]);
        }
        self.put(&out)?;
        Ok(Entry { name: name.to_owned(), header, crc: crc32fast::Hasher::new(), bytes: 0, large })
    }

    /// Completes the local header of the current entry and adds the entry to the table.
    fn end(&mut self) -> Result<()> {
        let Some(entry) = self.current.take() else { return Ok(()) };
        if !entry.large && entry.bytes >= u64::from(ZIP64_MARKER) {
            return Err(io::Error::other(format!("`{}` has more bytes than announced", entry.name)).into());
        }
        self.file.seek(SeekFrom::Start(entry.header + 14))?;
        self.file.write_all(&entry.crc.clone().finalize().to_le_bytes())?;
        if entry.large {
            self.file.seek(SeekFrom::Start(entry.header + 30 + entry.name.len() as u64 + 4))?;
            self.file.write_all(&[entry.bytes.to_le_bytes(); 2].concat())?;
        } else {
            self.file.write_all(&[low(entry.bytes).to_le_bytes(); 2].concat())?;
        }
        self.file.seek(SeekFrom::Start(self.at))?;
        self.list(entry)
    }

    /// Adds an entry to the table.
    fn list(&mut self, entry: Entry) -> Result<()> {
        let mut extra = Vec::new();
        if entry.large {
            extra.extend([entry.bytes.to_le_bytes(), entry.bytes.to_le_bytes()].concat());
        }
        if low(entry.header) == ZIP64_MARKER {
            extra.extend(entry.header.to_le_bytes());
        }
        let size = if entry.large { ZIP64_MARKER } else { low(entry.bytes) };
        let version = if extra.is_empty() { VERSION } else { VERSION_64 };
        if !extra.is_empty() {
            let length = u16::try_from(extra.len()).unwrap_or(0).to_le_bytes();
            extra.splice(0..0, [1, 0, length[0], length[1]]);
        }
        let out = &mut self.table;
        out.extend(zip_format::CENTRAL.to_le_bytes());
        for n in [UNIX | version, version, flags(&entry.name), 0, 0, DATE] {
            out.extend(n.to_le_bytes());
        }
        for n in [entry.crc.finalize(), size, size] {
            out.extend(n.to_le_bytes());
        }
        let lengths = [name_bytes(&entry.name)?, u16::try_from(extra.len()).unwrap_or(0)];
        for n in lengths.into_iter().chain([0; 3]) {
            out.extend(n.to_le_bytes());
        }
        out.extend(MODE.to_le_bytes());
        out.extend(low(entry.header).to_le_bytes());
        out.extend(entry.name.as_bytes());
        out.extend(extra);
        self.entries += 1;
        self.version = self.version.max(version);
        Ok(())
    }

    /// Writes the end of the archive and moves the file to its path.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.end()?;
        let (start, bytes, entries) = (self.at, self.table.len() as u64, self.entries);
        let mut end = std::mem::take(&mut self.table);
        let few = u16::try_from(entries).unwrap_or(u16::MAX);
        let large = few == u16::MAX || low(bytes) == ZIP64_MARKER || low(start) == ZIP64_MARKER;
        if large {
            end.extend(zip_format::END_64.to_le_bytes());
            end.extend(44_u64.to_le_bytes());
            end.extend([self.version, self.version].map(u16::to_le_bytes).concat());
            end.extend([0; 8]);
            end.extend([entries, entries, bytes, start].map(u64::to_le_bytes).concat());
            end.extend(zip_format::LOCATOR_64.to_le_bytes());
            end.extend([0; 4]);
            end.extend((start + bytes).to_le_bytes());
            end.extend(1_u32.to_le_bytes());
        }
        end.extend(zip_format::END.to_le_bytes());
        end.extend([0; 4]);
        end.extend([few, few].map(u16::to_le_bytes).concat());
        end.extend([if large { ZIP64_MARKER } else { low(bytes) }, low(start)].map(u32::to_le_bytes).concat());
        end.extend([0; 2]);
        self.put(&end)?;
        Ok(self.file.commit()?)
    }
}

fn flags(name: &str) -> u16 {
    if name.is_ascii() { 0 } else { UTF_8 }
}

fn name_bytes(name: &str) -> io::Result<u16> {
    u16::try_from(name.len()).map_err(|_| io::Error::other(format!("a name of {} bytes in a zip archive", name.len())))
}

impl Write for AtomicZip {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let Some(entry) = &mut self.current else { return Err(io::Error::other("no entry was started")) };
        let count = self.file.write(buf)?;
        entry.crc.update(&buf[..count]);
        entry.bytes += count as u64;
        self.at += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use fs_err as fs;

    use super::*;

    fn entries(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
        let mut names: Vec<_> = names.collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn an_abandoned_zip_writes_nothing_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.zip");
        let mut zip = AtomicZip::create(&path).unwrap();
        zip.start("a", 1).unwrap();
        zip.write_all(b"abc").unwrap();
        drop(zip);
        assert!(entries(dir.path()).is_empty());
    }

    /// Earlier versions of d2o wrote archives with the zip crate. The bytes and hashes of files stay the same.
    #[test]
    fn zips_are_those_of_the_zip_crate() {
        use zip::write::SimpleFileOptions;
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (dir.path().join("a.zip"), dir.path().join("b.zip"));
        for (what, large, count) in [
            ("few", false, 3),
            ("64 bits", true, 2),
            ("none", false, 0),
            ("many", false, 70_000),
            ("many of 64 bits", true, 66_000),
        ] {
            let mut zip = AtomicZip::create(&ours).unwrap();
            let mut reference = zip::ZipWriter::new(io::BufWriter::new(fs::File::create(&theirs).unwrap()));
            for i in 0..count {
                let (name, bytes) = (crate::image_zip::name_of(i), vec![u8::try_from(i % 251).unwrap(); i % 50]);
                let options = SimpleFileOptions::default()
                    .compression_method(zip::CompressionMethod::Stored)
                    .last_modified_time(zip::DateTime::default())
                    .unix_permissions(0o644)
                    .large_file(large);
                reference.start_file(name.clone(), options).unwrap();
                reference.write_all(&bytes).unwrap();
                if large || i % 2 == 0 {
                    zip.start(&name, if large { u64::MAX } else { 0 }).unwrap();
                    bytes.chunks(7).for_each(|part| zip.write_all(part).unwrap());
                } else {
                    zip.whole(&name, &bytes).unwrap();
                }
            }
            zip.finish().unwrap();
            drop(reference.finish().unwrap().into_inner().unwrap());
            let (found, expected) = (fs::read(&ours).unwrap(), fs::read(&theirs).unwrap());
            let first = found.iter().zip(&expected).position(|(a, b)| a != b);
            assert!(found == expected, "{what}: {} and {} bytes, first at {first:?}", found.len(), expected.len());
            zip::ZipArchive::new(fs::File::open(&ours).unwrap()).unwrap();
            assert_eq!(crate::archive::Archive::open(&ours, "a zip").unwrap().len(), count);
        }
    }
}
