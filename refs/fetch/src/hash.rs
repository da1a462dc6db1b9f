//! SHA-256 of files, and published hashes.

use std::fmt;
use std::io::Read;
use std::path::Path;

use d2o_files::hex;
use fs_err as fs;
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};
use crate::progress::{Event, Watch};

/// Digits of a whole hash.
const DIGITS: usize = 64;
/// Fewest digits of a published hash: 32 bits.
const MIN_DIGITS: usize = 8;
/// Bytes read at a time.
const BLOCK: usize = 1 << 20;

/// The published SHA-256 of a file: all of it, its first digits, or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PublishedHash(String);

impl PublishedHash {
    /// Nothing is published.
    pub const NONE: Self = Self(String::new());

    /// Parses 8 to 64 hexadecimal digits. Fewer than 64 are the beginning of the hash.
    ///
    /// # Errors
    /// [`Error::Hash`] for anything else.
    pub fn parse(digits: &str) -> Result<Self> {
        if (MIN_DIGITS..=DIGITS).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(Self(digits.to_ascii_lowercase()))
        } else {
            Err(Error::Hash { text: digits.to_owned() })
        }
    }

    /// The published digits, in lower case.
    #[must_use]
    pub fn digits(&self) -> &str {
        &self.0
    }

    /// Bits that a comparison checks: 256, fewer for a prefix, 0 if nothing is published.
    #[must_use]
    pub const fn bits(&self) -> usize {
        self.0.len() * 4
    }

    /// Whether the whole hash is published.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.0.len() == DIGITS
    }

    /// Whether a file with this hash, in lower case, can be the published one.
    #[must_use]
    pub fn allows(&self, sha256: &str) -> bool {
        sha256.starts_with(&self.0)
    }
}

impl fmt::Display for PublishedHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            0 => f.write_str("no published sha256"),
            DIGITS => write!(f, "sha256 {}", self.0),
            _ => write!(f, "a sha256 that begins {}", self.0),
        }
    }
}

/// Whether `text` is a whole SHA-256 in lower case.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == DIGITS && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'))
}

/// SHA-256 and length of the file at `path`.
pub(crate) fn of_file(path: &Path, watch: &mut Watch<'_>) -> Result<(String, u64)> {
    let mut file = fs::File::open(path)?;
    let total = file.metadata()?.len();
    let mut state = Sha256::new();
    let bytes = of_reader(&mut file, path, total, &mut state, watch)?;
    Ok((hex(&state.finalize()), bytes))
}

/// Adds all bytes of `file` to `state`; returns their number. `path` and `total`, the length of the file, are for
/// progress.
pub(crate) fn of_reader(
    file: &mut impl Read,
    path: &Path,
    total: u64,
    state: &mut Sha256,
    watch: &mut Watch<'_>,
) -> Result<u64> {
    let mut block = vec![0_u8; BLOCK];
    let mut done = 0;
    loop {
        watch.report(&Event::Verifying { path, done, total })?;
        match file.read(&mut block)? {
            0 => return Ok(done),
            count => {
                state.update(&block[..count]);
                done += count as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_checked_as_far_as_they_go() {
        let found = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2";
        for (digits, bits, allowed) in
            [(found, 256, true), ("6726825D", 32, true), ("6726825d1", 36, false), (&"0".repeat(64), 256, false)]
        {
            let hash = PublishedHash::parse(digits).unwrap();
            assert_eq!((hash.bits(), hash.is_full(), hash.allows(found)), (bits, bits == 256, allowed), "{digits}");
        }
        assert!(PublishedHash::NONE.allows(found) && PublishedHash::NONE.bits() == 0);
        for digits in ["", "6726825", "6726825g", &"0".repeat(65)] {
            assert!(PublishedHash::parse(digits).is_err(), "{digits}");
        }
    }
}
