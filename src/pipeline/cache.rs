//! Cache of features: a folder of feature files named by a hash of everything the features depend on.

use std::ops::Range;
use std::path::{Path, PathBuf};

use d2o_files::hex;
use d2o_refs::features::FeatureFile;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::provenance::NetworkRecord;
use crate::progress::Reporter;

/// Cache file for the features of `network` under `role`, for images `range` of a source, extracted in batches of
/// `batch`.
#[must_use]
pub fn path(
    folder: &Path,
    source_sha256: &str,
    role: &str,
    network: &NetworkRecord,
    range: &Range<usize>,
    batch: usize,
) -> PathBuf {
    let NetworkRecord { sha256, output, preprocessing, runtime, .. } = network;
    let version = env!("CARGO_PKG_VERSION");
    let key =
        json!([version, source_sha256, role, sha256, output, preprocessing, runtime, range.start, range.end, batch]);
    folder.join(format!("{}.h5", hex(&Sha256::digest(key.to_string().as_bytes()))))
}

/// Opens the file at `path` if it exists, is intact and holds `matrices`. Otherwise the caller writes a new file.
pub fn open(path: &Path, matrices: &[&str], reporter: &dyn Reporter) -> Option<FeatureFile> {
    if !path.exists() {
        return None;
    }
    let whole = || -> anyhow::Result<FeatureFile> {
        let file = FeatureFile::open(path)?;
        file.verify()?;
        Ok(file)
    };
    let damaged = |error| reporter.warn(&format!("corrupt cache entry, recomputing its features: {error:#}"));
    whole().map_err(damaged).ok().filter(|file| matrices.iter().all(|m| file.width(m).is_some()))
}
