//! Reader of zip archives: a compact index of the entries. Entry data are read by offset, and their CRC-32 is checked.
//!
//! An entry takes 48 bytes plus its name in the index, because image sets have millions of entries. The "table of
//! entries" is the central directory of the format. Format: PKWARE APPNOTE 6.3.10.

use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::bufread::DeflateDecoder;
use fs_err as fs;

use crate::error::{Error, Result};
use crate::image_zip::MAX_JSON;
use crate::kind;
use crate::labels::LABEL_FILE;
use crate::limits::Unpacked;
use crate::listing::text_at;
use crate::npy::fill;
use crate::zip_format::{CENTRAL, END, END_64, END_SIZE, END_WINDOW, LOCAL, LOCATOR_64};

/// Sizes of records without their variable parts, bytes.
const LOCAL_SIZE: usize = 30;
const CENTRAL_SIZE: usize = 46;
const END_64_SIZE: usize = 56;
const LOCATOR_64_SIZE: usize = 20;
/// IDs of extra fields: ZIP64 sizes and offset; name in UTF-8.
const EXTRA_64: u16 = 1;
const EXTRA_NAME: u16 = 0x7075;
const STORED: u16 = 0;
const DEFLATED: u16 = 8;
/// Size limit of the label file: `FREE_JSON` bytes plus `JSON_PER_BYTE` bytes per byte of the archive, at most
/// [`MAX_JSON`]. The label row of an image is shorter than the image.
const FREE_JSON: u64 = 64 << 20;
const JSON_PER_BYTE: u64 = 4;
/// Bytes of an entry that are read at a time.
const BLOCK: u64 = 1 << 18;

/// An open zip archive. Several threads can read it at the same time.
#[derive(Debug)]
pub struct Archive {
    path: PathBuf,
    file: SharedFile,
    /// Bytes of the file.
    packed: u64,
    /// All names, concatenated.
    names: String,
    /// Sorted by name. Of entries with the same name, only the last in the archive is kept.
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Offset of the name in `Archive::names`.
    name: u64,
    name_bytes: u32,
    crc: u32,
    /// Offset of the local header in the file.
    header: u64,
    stored: u64,
    bytes: u64,
    /// Position in the archive.
    order: u32,
    method: u16,
    encrypted: bool,
}

/// Location, size and encoding of data in a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// Offset of the first byte.
    pub(crate) start: u64,
    /// Bytes in the file.
    pub(crate) stored: u64,
    /// Bytes after inflation.
    pub(crate) bytes: u64,
    pub(crate) deflated: bool,
    pub(crate) crc: Option<u32>,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Location and size of the table of entries.
struct Table {
    start: u64,
    bytes: u64,
    entries: u64,
    /// Bytes before the archive. Offsets in the archive do not include them.
    prefix: u64,
}

impl Archive {
    /// Opens the archive at `path` and reads its table of entries. Messages name `expected` as the requested kind of
    /// file.
    ///
    /// # Errors
    /// `Missing`. `Format` if the file is not a zip archive or is truncated, the table of entries is damaged, entries
    /// overlap, or they unpack to more than [`Unpacked`] allows.
    pub fn open(path: &Path, expected: &str) -> Result<Self> {
        Self::of(path, kind::open(path, expected)?, expected)
    }

    /// Same as [`Archive::open`], for an open file.
    pub(crate) fn of(path: &Path, mut file: fs::File, expected: &str) -> Result<Self> {
        let packed = file.metadata()?.len();
        let shared = SharedFile::new(file.try_clone()?);
        let mut archive =
            Self { path: path.to_owned(), file: shared, packed, names: String::new(), entries: Vec::new() };
        let Some(table) = archive.table(packed)? else { return Err(kind::unexpected(&mut file, path, expected)) };
        archive.read_table(&table)?;
        Ok(archive)
    }

    fn damaged(&self, found: impl Into<String>) -> Error {
        Error::format(&self.path, "", "a zip archive with a complete table of entries", found)
    }

    fn at(&self, start: u64, bytes: u64) -> std::io::Take<SharedFile> {
        SharedFile { at: start, ..self.file.clone() }.take(bytes)
    }

    /// `count` bytes from `start`, fewer at the end of the file.
    fn bytes(&self, start: u64, count: usize) -> Result<Vec<u8>> {
        let mut found = vec![0; count];
        let filled = fill(&mut self.at(start, count as u64), &mut found)?;
        found.truncate(filled);
        Ok(found)
    }

    /// Finds the table; `None` if there is no end record.
    fn table(&self, length: u64) -> Result<Option<Table>> {
        let from = length.saturating_sub(END_WINDOW);
        let tail = self.bytes(from, usize::try_from(length - from).unwrap_or(usize::MAX))?;
        let last = tail.len().saturating_sub(END_SIZE - 1);
        let ends: Vec<_> = (0..last).rev().filter(|at| u32_at(&tail, *at) == END).collect();
        // The archive comment can contain the signature too, and other bytes can follow the archive. A record that ends
        // with the file is preferred.
        let fits = |at: &&usize| **at + END_SIZE + usize::from(u16_at(&tail, **at + 20)) == tail.len();
        let Some(&at) = ends.iter().find(fits).or(ends.first()) else { return Ok(None) };
        let (record, end) = (&tail[at..], from + at as u64);
        let part = u16_at(record, 4);
        if part != 0 && part != u16::MAX {
            return Err(self.damaged(format!("part {} of a split archive", u32::from(part) + 1)));
        }
        let (mut entries, mut bytes, mut offset) =
            (u64::from(u16_at(record, 10)), u64::from(u32_at(record, 12)), u64::from(u32_at(record, 16)));
        let mut after = end;
        if let Some((found, record)) = self.end_64(end)? {
            (entries, bytes, offset, after) = (u64_at(&record, 32), u64_at(&record, 40), u64_at(&record, 48), found);
        }
        let start = after.checked_sub(bytes);
        let Some((start, prefix)) = start.and_then(|start| Some((start, start.checked_sub(offset)?))) else {
            return Err(self.damaged(format!("a table of {bytes} bytes at {offset} before its end at {after}")));
        };
        Ok(Some(Table { start, bytes, entries, prefix }))
    }

    /// The ZIP64 end record and its offset, if a ZIP64 locator precedes the end record at `end`.
    fn end_64(&self, end: u64) -> Result<Option<(u64, Vec<u8>)>> {
        let Some(locator) = end.checked_sub(LOCATOR_64_SIZE as u64) else { return Ok(None) };
        let found = self.bytes(locator, LOCATOR_64_SIZE)?;
        if u32_at(&found, 0) != LOCATOR_64 {
            return Ok(None);
        }
        let beside = locator.checked_sub(END_64_SIZE as u64);
        for at in [beside, Some(u64_at(&found, 8))].into_iter().flatten() {
            let record = self.bytes(at, END_64_SIZE)?;
            if record.len() == END_64_SIZE && u32_at(&record, 0) == END_64 {
                return Ok(Some((at, record)));
            }
        }
        Err(self.damaged("no end record of 64 bits where its locator points"))
    }

    fn read_table(&mut self, table: &Table) -> Result<()> {
        let mut reader = BufReader::with_capacity(1 << 16, self.at(table.start, table.bytes));
        let (mut order, mut unpacked, mut packed) = (0_u32, Unpacked::of(self.packed), 0_u64);
        let mut variable = Vec::new();
        while !reader.fill_buf()?.is_empty() {
            let mut fixed = [0; CENTRAL_SIZE];
            let filled = fill(&mut reader, &mut fixed)?;
            let sizes = [28, 30, 32].map(|at| usize::from(u16_at(&fixed, at)));
            variable.resize(sizes.iter().sum(), 0);
            if filled < CENTRAL_SIZE
                || u32_at(&fixed, 0) != CENTRAL
                || fill(&mut reader, &mut variable)? < variable.len()
            {
                return Err(self.damaged(format!("entry {order} of {} damaged", table.entries)));
            }
            let (name, rest) = variable.split_at(sizes[0]);
            self.push(&fixed, name, &rest[..sizes[1]], order, table.prefix)?;
            if let Some(entry) = self.entries.last() {
                unpacked.add(&self.path, name_of(&self.names, entry), entry.bytes)?;
                packed = packed.saturating_add(entry.stored).saturating_add(LOCAL_SIZE as u64);
            }
            order = order.checked_add(1).ok_or_else(|| self.damaged("more than 2^32 entries"))?;
        }
        if packed > self.packed {
            return Err(self.damaged(format!("entries of {packed} bytes in {}: they overlap", self.packed)));
        }
        // Without a ZIP64 end record, the archive stores the number of entries modulo 2^16.
        if u64::from(order) != table.entries && u64::from(order) % (1 << 16) != table.entries {
            return Err(self.damaged(format!("{order} of {} entries", table.entries)));
        }
        let names = &self.names;
        let name = |e: &Entry| name_of(names, e);
        self.entries.sort_unstable_by(|a, b| name(a).cmp(name(b)).then(b.order.cmp(&a.order)));
        self.entries.dedup_by(|later, kept| name(later) == name(kept));
        self.entries.shrink_to_fit();
        self.names.shrink_to_fit();
        Ok(())
    }

    /// Adds the entry of a central header.
    fn push(&mut self, fixed: &[u8], name: &[u8], extra: &[u8], order: u32, prefix: u64) -> Result<()> {
        let (mut stored, mut bytes, mut header) =
            (u64::from(u32_at(fixed, 20)), u64::from(u32_at(fixed, 24)), u64::from(u32_at(fixed, 42)));
        let mut shown = String::from_utf8_lossy(name);
        let mut rest = extra;
        while rest.len() >= 4 {
            let (id, size) = (u16_at(rest, 0), usize::from(u16_at(rest, 2)));
            let Some(field) = rest.get(4..4 + size) else { break };
            match id {
                EXTRA_64 => {
                    let mut at = 0;
                    for value in [&mut bytes, &mut stored, &mut header] {
                        if *value == u64::from(u32::MAX) && field.len() >= at + 8 {
                            *value = u64_at(field, at);
                            at += 8;
                        }
                    }
                }
                // Content of the field: version 1, CRC-32 of the plain name, name in UTF-8.
                EXTRA_NAME if field.len() > 5 && field[0] == 1 && u32_at(field, 1) == crc32fast::hash(name) => {
                    shown = String::from_utf8_lossy(&field[5..]);
                }
                _ => {}
            }
            rest = &rest[4 + size..];
        }
        let header = header.checked_add(prefix);
        let header = header.ok_or_else(|| self.damaged(format!("`{shown}` beyond any file")))?;
        let entry = Entry {
            name: self.names.len() as u64,
            name_bytes: u32::try_from(shown.len()).unwrap_or(0),
            crc: u32_at(fixed, 16),
            header,
            stored,
            bytes,
            order,
            method: u16_at(fixed, 10),
            encrypted: u16_at(fixed, 8) & 1 == 1,
        };
        self.names.push_str(&shown);
        self.entries.push(entry);
        Ok(())
    }

    /// Path of the archive.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    pub(crate) fn shared(&self) -> SharedFile {
        self.file.clone()
    }

    /// Bytes of the file.
    #[must_use]
    pub fn packed(&self) -> u64 {
        self.packed
    }

    /// Content of the label file, if there is one.
    ///
    /// # Errors
    /// Those of [`Archive::whole`]; `Format` if the file is larger than 64 MiB plus 4 bytes per byte of the archive, or
    /// than [`MAX_JSON`].
    pub fn label_file(&self) -> Result<Option<Vec<u8>>> {
        self.file(LABEL_FILE, MAX_JSON.min(FREE_JSON.saturating_add(self.packed.saturating_mul(JSON_PER_BYTE))))
    }

    /// Whether the archive contains npy arrays.
    #[must_use]
    pub fn has_arrays(&self) -> bool {
        (0..self.len()).any(|i| self.name(i).ends_with(".npy"))
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Name of entry `index`; entries are sorted by name. Bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn name(&self, index: usize) -> &str {
        self.entries.get(index).map_or("", |e| name_of(&self.names, e))
    }

    /// Index of the entry `name`.
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.entries.binary_search_by(|e| name_of(&self.names, e).cmp(name)).ok()
    }

    /// Indices of the entries, in archive order.
    pub(crate) fn in_order(&self) -> Vec<usize> {
        let mut indices: Vec<usize> = (0..self.len()).collect();
        indices.sort_unstable_by_key(|i| self.entries[*i].order);
        indices
    }

    /// Keeps only the entries for whose names `keep` returns true.
    pub fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        let names = &self.names;
        self.entries.retain(|e| keep(name_of(names, e)));
        self.entries.shrink_to_fit();
    }

    /// Location of the data of entry `index`.
    ///
    /// # Errors
    /// `Format` if the entry is encrypted, is neither stored nor deflated, or has no local header.
    pub(crate) fn place(&self, index: usize) -> Result<Place> {
        let bad = |expected: &str, found: String| Error::format(&self.path, self.name(index), expected, found);
        let Some(entry) = self.entries.get(index) else { return Err(bad("an entry", "none".to_owned())) };
        if entry.encrypted {
            return Err(bad("data without a password", "encrypted data".to_owned()));
        }
        if entry.method != STORED && entry.method != DEFLATED {
            let name = match entry.method {
                9 => " (Deflate64)",
                12 => " (bzip2)",
                14 => " (LZMA)",
                93 => " (Zstandard)",
                95 => " (xz)",
                _ => "",
            };
            return Err(bad("stored or deflated data", format!("method {}{name}", entry.method)));
        }
        let header = self.bytes(entry.header, LOCAL_SIZE)?;
        if header.len() < LOCAL_SIZE || u32_at(&header, 0) != LOCAL {
            return Err(bad("a local header where the table of entries points", "none".to_owned()));
        }
        let skipped = LOCAL_SIZE as u64 + u64::from(u16_at(&header, 26)) + u64::from(u16_at(&header, 28));
        let start = entry.header + skipped;
        let deflated = entry.method == DEFLATED;
        Ok(Place { start, stored: entry.stored, bytes: entry.bytes, deflated, crc: Some(entry.crc) })
    }

    /// A reader of the data of entry `index`.
    ///
    /// # Errors
    /// Those of [`Archive::place`].
    pub(crate) fn reader(&self, index: usize) -> Result<Checked> {
        Ok(Checked::new(self.file.clone(), self.place(index)?))
    }

    /// The first `limit` bytes of entry `index`, and whether these are all. The CRC-32 is checked if the entry is
    /// complete.
    ///
    /// # Errors
    /// `Format` for damaged data; those of [`Archive::place`].
    pub(crate) fn read(&self, index: usize, limit: u64) -> Result<(Vec<u8>, bool)> {
        let name = self.name(index);
        let mut reader = self.reader(index)?;
        let mut bytes = Vec::with_capacity(usize::try_from(limit.min(reader.place.bytes).min(BLOCK)).unwrap_or(0));
        (&mut reader).take(limit).read_to_end(&mut bytes).map_err(|e| incomplete(&self.path, name, &e))?;
        let complete = reader.place.bytes <= bytes.len() as u64 || (bytes.len() as u64) < limit;
        if complete {
            reader.finish(&self.path, name)?;
        }
        Ok((bytes, complete))
    }

    /// All bytes of the entry `name`, if it exists; at most `limit`.
    ///
    /// # Errors
    /// Those of [`Archive::whole`].
    pub fn file(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        self.find(name).map(|index| self.whole(index, limit)).transpose()
    }

    /// All bytes of entry `index`.
    ///
    /// # Errors
    /// Those of `Archive::read`; `Format` if the entry has more than `limit` bytes.
    pub fn whole(&self, index: usize, limit: u64) -> Result<Vec<u8>> {
        match self.read(index, limit)? {
            (bytes, true) => Ok(bytes),
            (_, false) => Err(Error::format(&self.path, self.name(index), format!("at most {limit} bytes"), "more")),
        }
    }
}

fn name_of<'a>(names: &'a str, entry: &Entry) -> &'a str {
    text_at(names, entry.name, entry.name_bytes)
}

fn incomplete(path: &Path, name: &str, error: &std::io::Error) -> Error {
    Error::format(path, name, "a complete entry", error.to_string())
}

/// A file that several threads read, each at its own position.
#[derive(Debug, Clone)]
pub(crate) struct SharedFile {
    file: Arc<fs::File>,
    at: u64,
}

impl SharedFile {
    pub(crate) fn new(file: fs::File) -> Self {
        Self { file: Arc::new(file), at: 0 }
    }
}

impl Read for SharedFile {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        #[cfg(unix)]
        let count = std::os::unix::fs::FileExt::read_at(self.file.file(), buffer, self.at)?;
        #[cfg(windows)]
        let count = std::os::windows::fs::FileExt::seek_read(self.file.file(), buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// Reader of the data at a [`Place`]: inflates them, counts the bytes and computes their CRC-32.
pub(crate) struct Checked {
    inner: Box<dyn Read + Send>,
    crc: crc32fast::Hasher,
    pub(crate) place: Place,
    /// Bytes read so far.
    pub(crate) count: u64,
    /// Whether reading began at the start of the entry.
    pub(crate) whole: bool,
}

impl Read for Checked {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if self.whole {
            self.crc.update(&buffer[..count]);
        }
        self.count += count as u64;
        Ok(count)
    }
}

impl Checked {
    pub(crate) fn new(file: SharedFile, place: Place) -> Self {
        let raw = SharedFile { at: place.start, ..file }.take(place.stored);
        let block = usize::try_from(place.stored.clamp(1, BLOCK)).unwrap_or(1);
        let raw = BufReader::with_capacity(block, raw);
        // Inflation stops one byte after the stated size. The extra byte shows that the data are too long.
        let limit = place.bytes.saturating_add(1);
        let inner: Box<dyn Read + Send> =
            if place.deflated { Box::new(DeflateDecoder::new(raw).take(limit)) } else { Box::new(raw) };
        Self { inner, crc: crc32fast::Hasher::new(), place, count: 0, whole: true }
    }

    /// Reads the remaining data and compares length and CRC-32. Returns false, without a comparison, if there is no
    /// CRC-32 or reading did not begin at the start of the entry.
    ///
    /// # Errors
    /// `Format` for damaged data. The error names entry `name` of the file at `path`.
    pub(crate) fn finish(mut self, path: &Path, name: &str) -> Result<bool> {
        std::io::copy(&mut self, &mut std::io::sink()).map_err(|e| incomplete(path, name, &e))?;
        let Some(expected) = self.place.crc.filter(|_| self.whole) else { return Ok(false) };
        if self.count != self.place.bytes {
            let found = if self.count > self.place.bytes { "more".to_owned() } else { self.count.to_string() };
            return Err(Error::format(path, name, format!("{} bytes of data", self.place.bytes), found));
        }
        let found = self.crc.finalize();
        if found != expected {
            let (expected, found) = (format!("data of CRC-32 {expected:08x}"), format!("{found:08x}: damaged data"));
            return Err(Error::format(path, name, expected, found));
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use zip::write::SimpleFileOptions;

    fn archive(path: &Path, prefix: &[u8], names: &[&str], method: zip::CompressionMethod) -> Vec<u8> {
        let mut out = std::io::Cursor::new(Vec::new());
        let mut zip = zip::ZipWriter::new(&mut out);
        for (i, name) in names.iter().enumerate() {
            zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
            zip.write_all(&vec![u8::try_from(i).unwrap(); 300 * i]).unwrap();
        }
        zip.set_comment("PK\x05\x06 in a comment that is longer than the record").unwrap();
        zip.finish().unwrap();
        let bytes = [prefix, out.get_ref()].concat();
        fs::write(path, &bytes).unwrap();
        bytes
    }

    fn open(path: &Path) -> Result<Archive> {
        Archive::open(path, "a zip archive")
    }

    #[test]
    fn entries_are_read_whatever_stands_before_the_archive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.zip");
        for method in [zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated] {
            for prefix in [&b""[..], b"#!/bin/sh\n"] {
                archive(&path, prefix, &["b", "a/", "ä", "a"], method);
                let found = open(&path).unwrap();
                let names: Vec<_> = (0..found.len()).map(|i| found.name(i)).collect();
                assert_eq!(names, ["a", "a/", "b", "ä"]);
                assert_eq!(found.in_order(), [2, 1, 3, 0]);
                for (name, value) in [("b", 0), ("a/", 1), ("ä", 2), ("a", 3)] {
                    let index = found.find(name).unwrap();
                    let expected = vec![value; 300 * usize::from(value)];
                    assert_eq!(found.whole(index, 1000).unwrap(), expected, "{name}");
                    assert_eq!(found.read(index, 10).unwrap().1, value == 0);
                }
                assert_eq!(found.find("c"), None);
                assert!(found.whole(0, 899).unwrap_err().to_string().contains("a: expected at most 899 bytes"));
                assert_eq!(found.whole(0, 900).unwrap().len(), 900);
            }
        }
    }

    #[test]
    fn of_entries_with_one_name_the_last_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.zip");
        let mut bytes = archive(&path, b"", &["a", "b", "c"], zip::CompressionMethod::Stored);
        let central = bytes.windows(4).position(|w| w == CENTRAL.to_le_bytes()).unwrap();
        let at = bytes[central..].iter().position(|b| *b == b'b').unwrap();
        bytes[central + at] = b'c';
        fs::write(&path, &bytes).unwrap();
        let found = open(&path).unwrap();
        assert_eq!((found.len(), found.whole(1, 1000).unwrap()), (2, vec![2; 600]));
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.zip");
        let bytes = archive(&path, b"", &["a", "b"], zip::CompressionMethod::Stored);
        let central = bytes.windows(4).rposition(|w| w == CENTRAL.to_le_bytes()).unwrap();
        let end = bytes.windows(4).position(|w| w == END.to_le_bytes()).unwrap();
        let cases: [(usize, &[u8], &str); 9] = [
            (central + 8, &[1], "b: expected data without a password, found encrypted data"),
            (central + 10, &[14], "b: expected stored or deflated data, found method 14 (LZMA)"),
            (central + 42, &[9], "b: expected a local header where the table of entries points, found none"),
            (central + 16, &[1, 2, 3, 4], "b: expected data of CRC-32 04030201, found "),
            (central + 24, &[0xff, 0xff], "b: expected 65535 bytes of data, found 300"),
            (central, b"XX", "found entry 1 of 2 damaged"),
            (central + 28, &[0xff, 0xff], "found entry 1 of 2 damaged"),
            (end + 4, &[1], "found part 2 of a split archive"),
            (
                end + 12,
                &[0xff, 0xff, 0xff],
                "expected a zip archive with a complete table of entries, found a table of",
            ),
        ];
        for (at, patch, text) in cases {
            let mut changed = bytes.clone();
            changed[at..at + patch.len()].copy_from_slice(patch);
            fs::write(&path, &changed).unwrap();
            let found = open(&path).and_then(|a| a.whole(1, 1 << 20)).unwrap_err().to_string();
            assert!(found.contains("x.zip: ") && found.contains(text), "{found}");
        }
    }

    #[test]
    fn damaged_bytes_are_an_archive_or_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.zip");
        let bytes = archive(&path, b"", &["a", "b", "dataset.json"], zip::CompressionMethod::Deflated);
        let mut seed = 1_u64;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(seed >> 33).unwrap() % below
        };
        for round in 0..600 {
            let mut damaged = bytes.clone();
            if round % 4 == 0 {
                damaged.truncate(random(bytes.len()));
            } else {
                for _ in 0..round % 4 {
                    damaged[random(bytes.len())] = u8::try_from(random(256)).unwrap();
                }
            }
            fs::write(&path, &damaged).unwrap();
            if let Ok(found) = open(&path) {
                for i in 0..found.len() {
                    let _ = found.whole(i, 1 << 20);
                }
            }
        }
    }

    #[test]
    fn entries_that_overlap_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.zip");
        let mut bytes = archive(&path, b"", &["a", "b"], zip::CompressionMethod::Stored);
        assert_eq!(Archive::open(&path, "a zip archive").unwrap().len(), 2);
        let at = bytes.windows(4).rposition(|w| w == CENTRAL.to_le_bytes()).unwrap();
        bytes[at + 20..at + 24].copy_from_slice(&5000_u32.to_le_bytes());
        fs::write(&path, bytes).unwrap();
        let text = Archive::open(&path, "a zip archive").unwrap_err().to_string();
        assert!(text.contains("they overlap"), "{text}");
    }
}
