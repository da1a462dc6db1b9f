//! LMDB databases of encoded images, as used by LSUN: a read-only walk over the B+ tree, in the order of the keys.
//!
//! Layout: LMDB 0.9, 64-bit, little endian (`mdb.c`, data version 1). Pages have a fixed size and a header of 16 bytes.
//! Pages 0 and 1 are meta pages; the one with the higher transaction number is valid. The file is read page by page and
//! not mapped, so a damaged file gives an error.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use fs_err as fs;

/// The file in an LMDB folder that holds the data.
pub(super) const DATA_FILE: &str = "data.mdb";

const MAGIC: u32 = 0xBEEF_C0DE;
const VERSION: u32 = 1;
/// Size of a page header, bytes.
const HEADER: usize = 16;
/// Page kinds: bits of the flags in a page header.
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const OVERFLOW: u16 = 4;
const META: u16 = 8;
/// Bit of the flags of a node: the value is in overflow pages.
const BIG: u16 = 1;
/// Root of an empty tree.
const NO_PAGE: u64 = u64::MAX;
/// Page sizes that LMDB allows, bytes; powers of two.
const PAGE_SIZES: std::ops::RangeInclusive<usize> = 256..=65536;
/// Offsets in a meta page: the record of the main tree; in it depth, number of entries and root; the transaction
/// number.
const MAIN: usize = HEADER + 24 + 48;
const DEPTH: usize = MAIN + 6;
const ENTRIES: usize = MAIN + 32;
const ROOT: usize = MAIN + 40;
const TRANSACTION: usize = MAIN + 56;
/// Number of bytes of a meta page that are read.
const META_END: usize = TRANSACTION + 8;
/// Largest depth of a tree in LMDB.
const MAX_DEPTH: usize = 32;
/// Largest value accepted, bytes.
const MAX_VALUE: usize = 256 << 20;

/// Entries of the main database of an environment, in the order of their keys.
#[derive(Debug)]
pub(super) struct Lmdb {
    path: PathBuf,
    file: fs::File,
    page_size: usize,
    /// Number of entries.
    pub(super) len: usize,
    /// Number of entries returned so far.
    given: usize,
    /// Number of pages that may still be visited: a tree contains each page of the file at most once.
    pages: u64,
    depth: usize,
    /// Stack of pages from the root down: number, content, and index of the next node.
    open: Vec<(u64, Vec<u8>, usize)>,
}

impl Lmdb {
    /// Opens the environment in folder `path`.
    ///
    /// # Errors
    /// If it is not an LMDB environment of a known version.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let path = path.join(DATA_FILE);
        let mut file = fs::File::open(&path)?;
        let mut first = vec![0; META_END];
        let place = || format!("`{}`: meta page", path.display());
        file.read_exact(&mut first).with_context(place)?;
        check_meta(&first).with_context(place)?;
        // The record of the free list, which precedes the main tree, starts with the page size.
        let page_size = usize::try_from(u32_at(&first, HEADER + 24)?)?;
        ensure!(
            page_size.is_power_of_two() && PAGE_SIZES.contains(&page_size),
            "{}: expected a page size of {} to {} bytes, found {page_size}",
            place(),
            PAGE_SIZES.start(),
            PAGE_SIZES.end()
        );
        let mut second = vec![0; META_END];
        file.seek(SeekFrom::Start(page_size as u64))?;
        file.read_exact(&mut second).with_context(place)?;
        check_meta(&second).with_context(place)?;
        let meta = if u64_at(&second, TRANSACTION)? > u64_at(&first, TRANSACTION)? { second } else { first };
        let bytes = file.metadata()?.len();
        let entries = u64_at(&meta, ENTRIES)?;
        ensure!(entries <= bytes, "{}: {entries} entries in a file of {bytes} bytes", place());
        let len = usize::try_from(entries)?;
        let depth = usize::from(u16_at(&meta, DEPTH)?);
        ensure!(depth <= MAX_DEPTH, "{}: expected a depth of at most {MAX_DEPTH}, found {depth}", place());
        let mut database = Self {
            path: path.clone(),
            file,
            page_size,
            len,
            given: 0,
            pages: bytes / page_size as u64,
            depth,
            open: Vec::new(),
        };
        match u64_at(&meta, ROOT)? {
            NO_PAGE => ensure!(len == 0, "{}: {len} entries in an empty tree", place()),
            root => database.descend(root)?,
        }
        Ok(database)
    }

    /// Reads page `number` and puts it on the stack.
    fn descend(&mut self, number: u64) -> anyhow::Result<()> {
        ensure!(
            self.open.len() < self.depth,
            "`{}`: page {number}: expected {} levels, found more",
            self.path.display(),
            self.depth
        );
        let Some(pages) = self.pages.checked_sub(1) else {
            bail!("`{}`: the tree visits a page twice", self.path.display())
        };
        self.pages = pages;
        let page = self.bytes(number, 0, self.page_size)?;
        let flags = u16_at(&page, 10)?;
        let expected = if self.open.len() + 1 == self.depth { LEAF } else { BRANCH };
        ensure!(
            flags & (BRANCH | LEAF | OVERFLOW | META) == expected,
            "`{}`: page {number}: expected kind {expected}, found {flags}",
            self.path.display()
        );
        self.open.push((number, page, 0));
        Ok(())
    }

    /// Reads `count` bytes at `offset` of page `number`, which may extend into the following pages.
    fn bytes(&mut self, number: u64, offset: usize, count: usize) -> anyhow::Result<Vec<u8>> {
        let start = number.checked_mul(self.page_size as u64).and_then(|s| s.checked_add(offset as u64));
        let start = start.with_context(|| format!("`{}`: no page {number}", self.path.display()))?;
        self.file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        (&mut self.file).take(count as u64).read_to_end(&mut bytes)?;
        ensure!(
            bytes.len() == count,
            "`{}`: page {number}: expected {count} bytes, found {}",
            self.path.display(),
            bytes.len()
        );
        Ok(bytes)
    }

    /// The next entry of the tree.
    fn entry(&mut self) -> anyhow::Result<Option<(Vec<u8>, Vec<u8>)>> {
        while let Some((number, page, at)) = self.open.pop() {
            let index = at;
            let place = format!("`{}`: page {number}, node {index}", self.path.display());
            let nodes = usize::from(u16_at(&page, 12)?).saturating_sub(HEADER) / 2;
            if index == nodes {
                continue;
            }
            let node = usize::from(u16_at(&page, HEADER + 2 * index).with_context(|| place.clone())?);
            let node = page.get(node..).with_context(|| format!("{place}: outside the page"))?;
            let word = |at: usize| u16_at(node, at).with_context(|| place.clone());
            let [low, high, flags, key_length] = [word(0)?, word(2)?, word(4)?, word(6)?];
            let below = u64::from(low) | u64::from(high) << 16;
            // The current page has been removed from the stack.
            if self.open.len() + 1 < self.depth {
                self.open.push((number, page, at + 1));
                self.descend(below | u64::from(flags) << 32).context(place)?;
                continue;
            }
            ensure!(flags & !BIG == 0, "{place}: expected one plain value, found flags {flags}");
            let key_end = 8 + usize::from(key_length);
            let key = node.get(8..key_end).with_context(|| format!("{place}: the key leaves the page"))?.to_vec();
            let size = usize::try_from(below)?;
            ensure!(size <= MAX_VALUE, "{place}: expected at most {MAX_VALUE} bytes, found {size}");
            let value = if flags & BIG == 0 {
                let value = node.get(key_end..key_end + size);
                value.with_context(|| format!("{place}: the value leaves the page"))?.to_vec()
            } else {
                let overflow = u64_at(node, key_end).with_context(|| place.clone())?;
                let kind = u16_at(&self.bytes(overflow, 0, HEADER)?, 10)?;
                ensure!(kind & OVERFLOW != 0, "{place}: expected overflow page {overflow}, found kind {kind}");
                self.bytes(overflow, HEADER, size).context(place)?
            };
            self.open.push((number, page, at + 1));
            return Ok(Some((key, value)));
        }
        Ok(None)
    }
}

impl Iterator for Lmdb {
    type Item = anyhow::Result<(Vec<u8>, Vec<u8>)>;

    /// Key and value of the next entry.
    fn next(&mut self) -> Option<Self::Item> {
        if self.given == self.len {
            return None;
        }
        let entry = match self.entry() {
            Ok(Some(entry)) => Ok(entry),
            Ok(None) => {
                Err(anyhow::anyhow!("`{}`: expected {} entries, found {}", self.path.display(), self.len, self.given))
            }
            Err(error) => Err(error),
        };
        self.given = if entry.is_ok() { self.given + 1 } else { self.len };
        Some(entry)
    }
}

fn check_meta(page: &[u8]) -> anyhow::Result<()> {
    let (flags, magic, version) = (u16_at(page, 10)?, u32_at(page, HEADER)?, u32_at(page, HEADER + 4)?);
    if flags & META == 0 || magic != MAGIC {
        bail!("expected LMDB's magic number {MAGIC:#x} (64-bit, little endian), found {magic:#x}");
    }
    ensure!(version == VERSION, "expected data version {VERSION}, found {version}");
    Ok(())
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> anyhow::Result<[u8; N]> {
    let found = bytes.get(at..).and_then(|b| b.first_chunk::<N>());
    found.copied().with_context(|| format!("expected {N} bytes at {at} of {}", bytes.len()))
}

fn u16_at(bytes: &[u8], at: usize) -> anyhow::Result<u16> {
    Ok(u16::from_le_bytes(array(bytes, at)?))
}

fn u32_at(bytes: &[u8], at: usize) -> anyhow::Result<u32> {
    Ok(u32::from_le_bytes(array(bytes, at)?))
}

fn u64_at(bytes: &[u8], at: usize) -> anyhow::Result<u64> {
    Ok(u64::from_le_bytes(array(bytes, at)?))
}
