//! Sources of HDF5 virtual datasets, read from the global heaps of the file.
//!
//! HDF5 fills the parts of a missing source with zeros. The safe API of the HDF5 crate cannot read mappings of one
//! block (`Blocks can not overlap`), the common case. Format: HDF5 File Format Specification 4.0, "Global Heap",
//! "Virtual Dataset Layout", "Dataspace Selection".

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use d2o_budget::Budget;

use crate::error::{Error, Result};
use crate::limits::exceeded;
use crate::npy::fill;

/// Signature of a global heap collection.
const SIGNATURE: &[u8; 4] = b"GCOL";
/// Bytes of the file that are searched at a time.
const WINDOW: usize = 1 << 20;
/// Largest collection that is read, bytes.
const MAX_COLLECTION: u64 = 1 << 28;
/// Most axes of a dataset.
const MAX_RANK: usize = 32;
/// Most mappings of a dataset.
const MAX_MAPPINGS: usize = 1 << 20;

/// A part of a source that is mapped into a virtual dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// File name of the source; `.` for the file itself.
    pub(crate) file: String,
    /// Path of the source dataset.
    pub(crate) dataset: String,
    /// Minimum length of each axis of the source; `None` if the whole source is mapped.
    pub(crate) source: Option<Vec<u64>>,
    /// Number of values of the virtual dataset that the mapping covers.
    pub(crate) covered: u64,
}

/// The mappings of every virtual dataset in `file` that can have `shape`. It is an error if there are none.
pub(crate) fn mappings(file: &Path, shape: &[usize]) -> Result<Vec<Vec<Mapping>>> {
    let mut opened = fs_err::File::open(file)?;
    let length = opened.metadata()?.len();
    let mut budget = Budget::of_file(length);
    let (mut found, mut at, mut window) = (Vec::new(), 0, vec![0; WINDOW]);
    while at < length {
        opened.seek(SeekFrom::Start(at))?;
        let filled = fill(&mut opened, &mut window)?;
        if filled < SIGNATURE.len() {
            break;
        }
        for start in (0..=filled - SIGNATURE.len()).filter(|i| window[*i..].starts_with(SIGNATURE)) {
            let bytes = collection(&mut opened, at + start as u64)?;
            // Each signature in other data can claim the rest of the file.
            budget.steps(bytes.len()).map_err(exceeded(file, "virtual datasets"))?;
            for object in objects(&bytes) {
                found.extend(parse(object, shape, &mut budget));
            }
        }
        // A signature can span two windows.
        at += (filled - (SIGNATURE.len() - 1)) as u64;
    }
    if found.is_empty() {
        let place = format!("virtual dataset {shape:?}");
        return Err(Error::format(file, place, "readable mappings to its sources", "none"));
    }
    Ok(found)
}

/// The bytes after the header of the collection at `at`; empty if there is no collection. Header: signature, version 1,
/// 3 reserved bytes, size (u64).
fn collection(file: &mut fs_err::File, at: u64) -> Result<Vec<u8>> {
    const HEAD: usize = 16;
    let mut head = [0; HEAD];
    file.seek(SeekFrom::Start(at))?;
    if fill(file, &mut head)? < HEAD || head[4] != 1 {
        return Ok(Vec::new());
    }
    let size = Cursor(&head[8..]).u64().unwrap_or(0).min(MAX_COLLECTION);
    let mut bytes = Vec::new();
    file.take(size.saturating_sub(HEAD as u64)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Objects of a collection: index, reference count (u16 each), 4 reserved bytes, size (u64), data padded to 8 bytes.
fn objects(bytes: &[u8]) -> Vec<&[u8]> {
    let (mut rest, mut found) = (Cursor(bytes), Vec::new());
    while let (Some(index), Some(_), Some(size)) = (rest.uint(2), rest.take(6), rest.u64()) {
        let Some(data) = usize::try_from(size).ok().filter(|_| index != 0).and_then(|size| rest.take(size)) else {
            break;
        };
        found.push(data);
        if rest.take(data.len().wrapping_neg() % 8).is_none() {
            break;
        }
    }
    found
}

/// The mappings in a heap object; `None` if it does not contain those of a virtual dataset of `shape`, or exceeds
/// `budget`. A name that all mappings share is charged for each of them.
fn parse(object: &[u8], shape: &[usize], budget: &mut Budget) -> Option<Vec<Mapping>> {
    const CHECKSUM: usize = 4;
    const FILE_SHARED: u64 = 1;
    const DATASET_SHARED: u64 = 2;
    const SAME_FILE: u64 = 4;
    let mut rest = Cursor(object);
    let version = rest.uint(1).filter(|v| *v <= 1)?;
    let count = usize::try_from(rest.u64()?).ok().filter(|n| (1..=MAX_MAPPINGS).contains(n))?;
    let mut found: Vec<Mapping> = Vec::new();
    for _ in 0..count {
        let flags = if version == 1 { rest.uint(1).filter(|f| *f < 8)? } else { 0 };
        let earlier = |rest: &mut Cursor<'_>| found.get(usize::try_from(rest.u64()?).ok()?);
        let file = if flags & SAME_FILE != 0 {
            ".".to_owned()
        } else if flags & FILE_SHARED != 0 {
            earlier(&mut rest)?.file.clone()
        } else {
            rest.text()?
        };
        let dataset = if flags & DATASET_SHARED != 0 { earlier(&mut rest)?.dataset.clone() } else { rest.text()? };
        let source = rest.selection()?;
        let target = rest.selection()?;
        let covered = match &target {
            Selection::All => shape.iter().try_fold(1_u64, |n, d| n.checked_mul(*d as u64))?,
            Selection::Part { ends, count } => {
                let inside = ends.iter().zip(shape).all(|(end, d)| end.is_none_or(|end| end <= *d as u64));
                if ends.len() != shape.len() || !inside {
                    return None;
                }
                *count
            }
        };
        let source = match source {
            Selection::All => None,
            Selection::Part { ends, .. } => Some(ends.into_iter().map(|end| end.unwrap_or(0)).collect()),
        };
        budget.bytes(file.len() + dataset.len() + size_of::<Mapping>()).ok()?;
        found.push(Mapping { file, dataset, source, covered });
    }
    (rest.0.len() == CHECKSUM).then_some(found)
}

/// A dataspace selection.
enum Selection {
    All,
    Part {
        /// End of the selection on each axis; `None` if it is unlimited.
        ends: Vec<Option<u64>>,
        /// Number of values.
        count: u64,
    },
}

/// Bytes left to parse.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// A little-endian number of `size` bytes.
    fn uint(&mut self, size: usize) -> Option<u64> {
        let mut wide = [0; 8];
        wide.get_mut(..size)?.copy_from_slice(self.take(size)?);
        Some(u64::from_le_bytes(wide))
    }

    fn u64(&mut self) -> Option<u64> {
        self.uint(8)
    }

    /// Text that ends with a zero byte, without that byte.
    fn text(&mut self) -> Option<String> {
        let end = self.0.iter().position(|b| *b == 0)?;
        let text = std::str::from_utf8(self.take(end)?).ok()?.to_owned();
        self.take(1)?;
        Some(text)
    }

    fn selection(&mut self) -> Option<Selection> {
        const HYPERSLABS: u64 = 2;
        const ALL: u64 = 3;
        match (self.uint(4)?, self.uint(4)?) {
            (ALL, 1) => self.take(8).map(|_| Selection::All),
            (HYPERSLABS, 1) => {
                self.take(8)?;
                let rank = self.rank()?;
                self.blocks(rank, 4)
            }
            (HYPERSLABS, 2) => {
                self.take(5)?;
                let rank = self.rank()?;
                self.regular(rank, 8)
            }
            (HYPERSLABS, 3) => {
                let (flags, size) = (self.uint(1)?, usize::try_from(self.uint(1)?).ok()?);
                let rank = self.rank()?;
                if !matches!(size, 2 | 4 | 8) {
                    return None;
                }
                if flags & 1 != 0 { self.regular(rank, size) } else { self.blocks(rank, size) }
            }
            _ => None,
        }
    }

    fn rank(&mut self) -> Option<usize> {
        usize::try_from(self.uint(4)?).ok().filter(|rank| (1..=MAX_RANK).contains(rank))
    }

    /// Parses the number of blocks, then the first and last position of each.
    fn blocks(&mut self, rank: usize, size: usize) -> Option<Selection> {
        let (mut ends, mut count) = (vec![Some(0); rank], 0_u64);
        for _ in 0..self.uint(size)? {
            let starts: Vec<u64> = (0..rank).map(|_| self.uint(size)).collect::<Option<_>>()?;
            let mut values = 1_u64;
            for (start, end) in starts.into_iter().zip(&mut ends) {
                let after = self.uint(size)?.checked_add(1)?;
                values = values.checked_mul(after.checked_sub(start)?)?;
                *end = (*end).max(Some(after));
            }
            count = count.checked_add(values)?;
        }
        Some(Selection::Part { ends, count })
    }

    /// Parses start, stride, count and block of each axis. The largest number means "unlimited".
    fn regular(&mut self, rank: usize, size: usize) -> Option<Selection> {
        let unlimited = u64::MAX >> (64 - 8 * size);
        let (mut ends, mut total) = (Vec::with_capacity(rank), 1_u64);
        for _ in 0..rank {
            let (start, stride, count, block) =
                (self.uint(size)?, self.uint(size)?, self.uint(size)?, self.uint(size)?);
            if count == unlimited || block == unlimited {
                ends.push(None);
                total = u64::MAX;
            } else {
                let last = start.checked_add(stride.checked_mul(count.checked_sub(1)?)?)?;
                ends.push(Some(last.checked_add(block)?));
                total = total.saturating_mul(count.checked_mul(block)?);
            }
        }
        Some(Selection::Part { ends, count: total })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn signatures_that_each_claim_the_rest_of_the_file_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.h5");
        let one = [&b"GCOL\x01\0\0\0"[..], &(1_u64 << 30).to_le_bytes()].concat();
        fs_err::write(&path, one.repeat(1 << 16)).unwrap();
        let text = mappings(&path, &[4, 4]).unwrap_err().to_string();
        assert!(text.contains("virtual datasets: expected at most") && text.contains("steps"), "{text}");
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_result(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0_u8..4, version in 0_u8..4) {
            let _ = objects(&bytes).len();
            let budget = &mut Budget::of_file(0);
            let _ = parse(&bytes, &[4, 4], budget);
            let mut object = vec![0, 1, 0, 0, 0, 0, 0, 0, 0, b'a', 0, b'b', 0, kind, 0, 0, 0, version, 0, 0, 0];
            object.extend(&bytes);
            let _ = parse(&object, &[4, 4], budget);
        }
    }
}
