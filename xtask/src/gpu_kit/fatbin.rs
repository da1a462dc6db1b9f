//! Reduces the CUDA fat binaries in a library to the machine code of one architecture. Everything else is zeroed.
//!
//! Sizes, offsets and headers stay the same, so the library loads as before, and zeros compress well. It then runs on
//! the kept architecture only.
//!
//! A fat binary is a header of 16 bytes (magic `BA55ED50`, version u16, size of the header u16, size of the entries u64) and entries, each with a header of
//! its own: kind u16 (1 PTX, 2 machine code), version u16, size of the header u32, size of the code u64, …, architecture u32 at byte 28. All little-endian.

use std::collections::BTreeMap;

use anyhow::bail;

const MAGIC: [u8; 4] = 0xBA55_ED50_u32.to_le_bytes();
const VERSION: u16 = 1;
/// Bytes of the header of a fat binary.
const HEADER: usize = 16;
/// Bytes of an entry header in every version seen.
const ENTRY: usize = 64;
/// Longest plausible entry header, bytes.
const MAX_ENTRY: usize = 256;
/// Offset of the architecture in an entry header, bytes.
const ARCHITECTURE: usize = 28;

/// Result of [`keep`].
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Trimmed {
    /// Fat binaries that were read.
    pub(crate) binaries: usize,
    /// Bytes of code that were zeroed.
    pub(crate) zeroed_bytes: usize,
    /// Bytes of code by kind and architecture (`sm_90`, `ptx_90`), before zeroing.
    pub(crate) found: BTreeMap<String, usize>,
}

/// One entry of a fat binary, with the range of its code in the library.
struct Entry {
    machine_code: bool,
    architecture: u32,
    code: std::ops::Range<usize>,
}

/// Zeroes all PTX, and the machine code of every architecture except `sm_{architecture}`, in `library`. Fat binaries
/// with invalid headers are left unchanged.
///
/// # Errors
/// If there is no machine code for that architecture. The message lists what is there, and `library` is unchanged.
pub(crate) fn keep(library: &mut [u8], architecture: u32) -> anyhow::Result<Trimmed> {
    let mut trimmed = Trimmed::default();
    let (mut unwanted, mut kept) = (Vec::new(), 0_usize);
    let mut at = 0;
    while let Some(step) = library[at..].windows(MAGIC.len()).position(|w| w == MAGIC) {
        at += step;
        let Some((entries, end)) = read(library, at) else {
            at += MAGIC.len();
            continue;
        };
        trimmed.binaries += 1;
        for entry in entries {
            let kind = if entry.machine_code { "sm" } else { "ptx" };
            *trimmed.found.entry(format!("{kind}_{}", entry.architecture)).or_default() += entry.code.len();
            if entry.machine_code && entry.architecture == architecture {
                kept += 1;
            } else {
                unwanted.push(entry.code);
            }
        }
        at = end;
    }
    if kept == 0 {
        let found: Vec<_> = trimmed.found.keys().map(String::as_str).collect();
        let found = if found.is_empty() { "no GPU code".to_owned() } else { found.join(", ") };
        bail!("no machine code for sm_{architecture}; there is {found}");
    }
    for code in unwanted {
        trimmed.zeroed_bytes += code.len();
        library[code].fill(0);
    }
    Ok(trimmed)
}

/// The entries of the fat binary at byte `at`, and the offset of the byte after it; `None` if a header is invalid.
fn read(library: &[u8], at: usize) -> Option<(Vec<Entry>, usize)> {
    let header = usize::from(u16_at(library, at + 6)?);
    if u16_at(library, at + 4)? != VERSION || header != HEADER {
        return None;
    }
    let size = size_at(library, at + 8)?;
    let mut next = at + header;
    let end = next.checked_add(size).filter(|end| size > 0 && *end <= library.len())?;
    let mut entries = Vec::new();
    // A rest that is shorter than a header is padding.
    while end - next >= ENTRY {
        let machine_code = match u16_at(library, next)? {
            1 => false,
            2 => true,
            _ => return None,
        };
        let header = usize::try_from(u32_at(library, next + 4)?).ok().filter(|h| (ENTRY..=MAX_ENTRY).contains(h))?;
        let architecture = u32_at(library, next + ARCHITECTURE)?;
        let code = next + header..(next + header).checked_add(size_at(library, next + 8)?)?;
        if code.end > end {
            return None;
        }
        next = code.end;
        entries.push(Entry { machine_code, architecture, code });
    }
    Some((entries, end))
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_le_bytes)
}

fn size_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(bytes_at(bytes, at)?)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fat binary with `entries` of (kind, architecture, fill byte of the code, bytes of code).
    fn fat_binary(entries: &[(u16, u32, u8, usize)]) -> Vec<u8> {
        let mut body = Vec::new();
        for &(kind, architecture, fill, len) in entries {
            let mut header = vec![0_u8; ENTRY];
            header[..2].copy_from_slice(&kind.to_le_bytes());
            header[4..8].copy_from_slice(&u32::try_from(ENTRY).unwrap().to_le_bytes());
            header[8..16].copy_from_slice(&(len as u64).to_le_bytes());
            header[ARCHITECTURE..ARCHITECTURE + 4].copy_from_slice(&architecture.to_le_bytes());
            body.extend(header);
            body.resize(body.len() + len, fill);
        }
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend(u16::try_from(HEADER).unwrap().to_le_bytes());
        out.extend((body.len() as u64).to_le_bytes());
        out.extend(body);
        out
    }

    /// Two fat binaries between other bytes, as in a library.
    fn library() -> Vec<u8> {
        let first = fat_binary(&[(2, 80, 0x80, 200), (2, 90, 0x90, 100), (1, 90, 0x11, 40)]);
        let second = fat_binary(&[(2, 90, 0x91, 72)]);
        [&[7; 33][..], &first, &[7; 5], &second, &[7; 9]].concat()
    }

    fn count(bytes: &[u8], of: u8) -> usize {
        bytes.iter().filter(|b| **b == of).count()
    }

    #[test]
    fn one_architecture_stays_and_sizes_do_too() {
        let before = library();
        let mut after = before.clone();
        let trimmed = keep(&mut after, 90).unwrap();
        assert_eq!((trimmed.binaries, trimmed.zeroed_bytes), (2, 240));
        let found = [("ptx_90", 40), ("sm_80", 200), ("sm_90", 172)];
        assert_eq!(trimmed.found, found.map(|(n, b)| (n.to_owned(), b)).into());
        assert_eq!(after.len(), before.len());
        assert_eq!((count(&after, 0x90), count(&after, 0x91)), (100, 72));
        assert_eq!((count(&after, 0x80), count(&after, 0x11)), (0, 0));
        // Only code has changed.
        let changed = before.iter().zip(&after).filter(|(b, a)| b != a).count();
        assert_eq!(changed, 240);
        assert_eq!(keep(&mut after.clone(), 90).unwrap().found, trimmed.found, "headers still tell what was there");
    }

    #[test]
    fn an_architecture_that_is_not_there_is_an_error_that_lists_the_others() {
        let before = library();
        let mut after = before.clone();
        let message = keep(&mut after, 100).unwrap_err().to_string();
        assert_eq!(message, "no machine code for sm_100; there is ptx_90, sm_80, sm_90");
        assert_eq!(after, before);
        let message = keep(&mut [1, 2, 3], 90).unwrap_err().to_string();
        assert_eq!(message, "no machine code for sm_90; there is no GPU code");
    }

    #[test]
    fn headers_that_make_no_sense_are_left_alone() {
        let sound = fat_binary(&[(2, 90, 0x90, 100)]);
        let other = fat_binary(&[(2, 80, 0x80, 50), (2, 80, 0x80, 50)]);
        let entry = HEADER;
        // (offset, bytes written there): version, header size, size (twice), kind, header size and code size (twice) of
        // the first entry, kind of the second entry.
        let faults: [(usize, &[u8]); 9] = [
            (4, &[9]),
            (6, &[0]),
            (8, &[0; 8]),
            (8, &[0xff; 8]),
            (entry, &[3]),
            (entry + 4, &[0xff; 4]),
            (entry + 8, &[0xff; 8]),
            (entry + 8, &[0xff, 0xff]),
            (entry + ENTRY + 50, &[9]),
        ];
        for (at, bytes) in faults {
            let mut broken = other.clone();
            broken[at..at + bytes.len()].copy_from_slice(bytes);
            let mut library = [broken.clone(), sound.clone()].concat();
            let trimmed = keep(&mut library, 90).unwrap();
            assert_eq!(library, [broken, sound.clone()].concat(), "byte {at}");
            assert_eq!((trimmed.binaries, trimmed.zeroed_bytes), (1, 0), "byte {at}");
        }
    }

    #[test]
    fn no_cut_panics() {
        let whole = library();
        for len in 0..whole.len() {
            // It only has to return.
            let _ = keep(&mut whole[..len].to_vec(), 90);
        }
    }
}
