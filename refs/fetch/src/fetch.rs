//! Fetching a file: from the cache, from the cache of the Hub, or from its sources.

use std::io;
use std::path::Path;

use fs_err as fs;

use crate::download::Job;
use crate::error::{Error, Result};
use crate::hash;
use crate::hub;
use crate::partial::Partial;
use crate::progress::{Event, Progress, TICK, Watch};
use crate::record::Record;
use crate::request::{Fetched, Origin, Request};
use crate::settings::Settings;
use crate::source::Source;

/// Result of examining a path.
enum Found {
    Nothing,
    File(Fetched),
    /// A file that is not the requested one.
    Other(Error),
}

/// Fetches the file of `request`: from the cache, from the cache of the Hugging Face Hub, or by a download into the
/// cache.
///
/// A cached file is hashed once. After that, its length and modification time show that it is unchanged. A file in the
/// cache of d2o that is not the requested one is replaced by a download. Processes that request the same file wait for
/// the download of the first one.
///
/// # Errors
/// See [`Error`]. Bytes received before an interruption, a lost connection or a full disk are kept next to the target
/// file, and the next call continues them. A file with a wrong length or hash is removed.
pub fn fetch(request: &Request, settings: &Settings, progress: &mut dyn Progress) -> Result<Fetched> {
    let target = settings.cache.join(request.path()?);
    let record = Record::read(&target)?;
    let mut job = Job { request, settings, watch: Watch::new(progress), target, record };
    let (mut other, mut replaced) = (None, false);
    match job.look(&job.target.clone(), Origin::Cache)? {
        Found::File(file) => return Ok(file),
        Found::Other(error) => {
            job.watch.report(&Event::Unusable { error: &error })?;
            (other, replaced) = (Some(error), true);
        }
        Found::Nothing => {}
    }
    if let Some(cache) = &settings.hf_cache {
        for path in request.sources.iter().filter_map(|source| hub::cached(cache, source.hub()?)) {
            match job.look(&path, Origin::HuggingFaceCache)? {
                Found::File(file) => return Ok(file),
                Found::Other(error) => {
                    job.watch.report(&Event::Unusable { error: &error })?;
                    other = other.or(Some(error));
                }
                Found::Nothing => {}
            }
        }
    }
    let allowed = |source: &&Source| !(settings.offline || settings.hf_offline && source.hub().is_some());
    let sources: Vec<&Source> = request.sources.iter().filter(allowed).collect();
    if sources.is_empty() {
        return Err(match other {
            Some(error) => error,
            None => job.offline()?,
        });
    }
    job.download_locked(&sources, replaced)
}

impl Job<'_> {
    /// Examines the file at `path`.
    fn look(&mut self, path: &Path, origin: Origin) -> Result<Found> {
        let found = match fs::metadata(path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(error.into()),
        };
        if !found.is_file() {
            let text = format!("`{}` is not a regular file", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text).into());
        }
        let place = path.display().to_string();
        if let Some(expected) = self.request.bytes.filter(|expected| *expected != found.len()) {
            return Ok(Found::Other(Error::WrongSize { place, expected, found: found.len(), content_type: None }));
        }
        let known = self.record.as_ref().filter(|record| record.is_of(path, &self.target, &found));
        let (sha256, bytes, hashed) = match known {
            Some(record) => (record.sha256.clone(), record.bytes, false),
            None => {
                let (sha256, bytes) = hash::of_file(path, &mut self.watch)?;
                (sha256, bytes, true)
            }
        };
        let hash = match self.check(&sha256, &place, None) {
            Ok(hash) => hash,
            Err(error) => return Ok(Found::Other(error)),
        };
        let source = self.record.as_ref().filter(|record| record.sha256 == sha256).and_then(|r| r.source.clone());
        if hashed {
            // A cache that cannot be written can still be read. Its files are then hashed every time.
            let _ = Record::new(path, &self.target, &sha256, source.clone()).and_then(|r| r.write(&self.target));
        }
        Ok(Found::File(Fetched { path: path.to_owned(), sha256, bytes, origin, hash, source }))
    }

    /// The error for a file that is not in the cache and cannot be downloaded.
    fn offline(&self) -> Result<Error> {
        let mut urls = Vec::new();
        for source in &self.request.sources {
            urls.push(source.url(self.settings)?.to_string());
        }
        Ok(Error::Offline {
            file: self.target.clone(),
            urls,
            bytes: self.request.bytes,
            sha256: self.request.sha256.clone(),
            learned: self.record.as_ref().map(|record| record.sha256.clone()),
        })
    }

    /// Downloads the file, unless another process has done so while this one waits for the partial file. If `replaced`,
    /// the file at the target is known not to be the requested one.
    fn download_locked(&mut self, sources: &[&Source], replaced: bool) -> Result<Fetched> {
        let target = self.target.clone();
        let mut partial = loop {
            match Partial::open(&target)? {
                Some(partial) => break partial,
                None => self.watch.sleep(TICK, |_| Event::Waiting { path: &target })?,
            }
        };
        self.record = Record::read(&target)?;
        let known = || {
            let found = fs::metadata(&target).ok()?;
            Some(self.record.as_ref()?.is_of(&target, &target, &found))
        };
        if (!replaced || known() == Some(true))
            && let Found::File(file) = self.look(&target, Origin::Cache)?
        {
            partial.discard()?;
            return Ok(file);
        }
        match self.download(sources, &mut partial) {
            Ok((source, hash)) => {
                let (sha256, bytes) = (partial.sha256(), partial.done());
                partial.commit()?;
                let source = Some(source.to_string());
                Record::new(&target, &target, &sha256, source.clone())?.write(&target)?;
                Ok(Fetched { path: target, sha256, bytes, origin: Origin::Download, hash, source })
            }
            Err(error) => {
                if partial.done() == 0 {
                    partial.discard()?;
                }
                Err(error)
            }
        }
    }
}
