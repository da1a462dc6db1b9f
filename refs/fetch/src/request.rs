//! What is wanted, and what is handed out.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::hash::PublishedHash;
use crate::partial::{ENTITY, PARTIAL};
use crate::record::RECORD;
use crate::source::{Source, is_part};

/// Longest part of a name, bytes: sidecars have longer ones.
const MAX_PART: usize = 230;

/// A published file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Where it is published, best first. Without any it must be in the cache.
    pub sources: Vec<Source>,
    /// Path below the cache, with `/` as separator; each name identifies one file.
    pub name: String,
    /// What is published about its hash.
    pub sha256: PublishedHash,
    /// Its length, if that is published.
    pub bytes: Option<u64>,
}

impl Request {
    /// The file of one source, of which nothing else is known.
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

/// A file that is here, complete and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fetched {
    /// Where it lies.
    pub path: PathBuf,
    /// Its SHA-256, in lower case.
    pub sha256: String,
    /// Its length.
    pub bytes: u64,
    /// Where it was found.
    pub origin: Origin,
    /// What its hash was compared with.
    pub hash: HashCheck,
    /// The [`Source`] it was once downloaded from, if d2o did so.
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
    /// It was downloaded now.
    Download,
}

/// What the hash of a file was compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HashCheck {
    /// The published hash.
    Published {
        /// How much of it is published: 256 bits for all of it, 4 for each digit of a prefix.
        bits: usize,
    },
    /// None is published; the file is the one that was downloaded or found first.
    LearnedBefore,
    /// None is published, and none was known: the hash is remembered from now on.
    LearnedNow,
}
