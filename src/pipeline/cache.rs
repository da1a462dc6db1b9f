//! Features taken before, in a folder of feature files named after everything the numbers depend on.

use std::ops::Range;
use std::path::{Path, PathBuf};

use d2o_refs::batch::hex;
use d2o_refs::features::FeatureFile;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::provenance::NetworkRecord;
use crate::progress::Reporter;

/// File of the features that `network`, there for `role`, gives of images `range` of a source, taken `batch` images at a time.
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

/// The file at `path`, if it is there, whole, and holds `matrices`; another one is written anew.
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
