//! Requests for files, and their results.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::hash::PublishedHash;
use crate::partial::{ENTITY, PARTIAL};
use crate::record::RECORD;
use crate::source::{Source, is_part};

/// Longest part of a name, bytes. The names of sidecars are longer.
const MAX_PART: usize = 230;

/// A request for a published file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Sources, best first. Without a source, the file must be in the cache.
    pub sources: Vec<Source>,
    /// Path below the cache, with `/` as separator; each name identifies one file.
    pub name: String,
    /// Published hash.
    pub sha256: PublishedHash,
    /// Published length, bytes.
    pub bytes: Option<u64>,
}

impl Request {
    /// A request for the file of one source, without published hash and length.
    #[must_use]
    pub fn of(source: Source) -> Self {
        Self { name: source.cache_name(), sources: vec![source], sha256: PublishedHash::NONE, bytes: None }
    }

    /// The path of the file below the cache.
    pub(crate) fn path(&self) -> Result<PathBuf> {
        let wrong = |problem| Error::Name { name: self.name.clone(), problem };
        let parts: Vec<&str> = self.name.split('/').collect();
        if !parts.iter().all(|part| is_part(part)) {
            return Err(wrong(
                "expected components separated by slashes, without `..`, `.`, control characters and backslashes",
            ));
        }
        if parts.iter().any(|part| part.len() > MAX_PART) {
            return Err(wrong("a component is longer than 230 bytes"));
        }
        if [RECORD, PARTIAL, ENTITY].iter().any(|ending| self.name.ends_with(ending)) {
            return Err(wrong("this extension is reserved for sidecar files"));
        }
        Ok(parts.iter().collect())
    }
}

/// A local file, complete and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fetched {
    /// Path of the file.
    pub path: PathBuf,
    /// Its SHA-256, in lower case.
    pub sha256: String,
    /// Length, bytes.
    pub bytes: u64,
    /// Where it was found.
    pub origin: Origin,
    /// What its hash was compared with.
    pub hash: HashCheck,
    /// The [`Source`] from which d2o downloaded it, if it did.
    pub source: Option<String>,
}

/// Where a file was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// In the cache of d2o.
    Cache,
    /// In the cache of the Hugging Face Hub.
    HuggingFaceCache,
    /// Downloaded by this call.
    Download,
}

/// What the hash of a file was compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HashCheck {
    /// The published hash.
    Published {
        /// Number of published bits: 256 for the whole hash, 4 per digit of a prefix.
        bits: usize,
    },
    /// No hash is published. The file has the hash of the one that was downloaded or found first.
    LearnedBefore,
    /// No hash is published or recorded. The hash is recorded now.
    LearnedNow,
}
