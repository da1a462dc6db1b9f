//! The pass that gives the features of samples and references, from networks, the cache or feature files.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use anyhow::Context as _;
use d2o_evaluations::error::first_non_finite_row;
use d2o_refs::batch::{ContentHash, Digest, ImageDims, ImageSource, container_sha256, parts};
use d2o_refs::features::{FeatureFile, FeatureWriter, Meta};
use d2o_runtime::{Session, Tensor};
use ndarray::{Array2, ArrayView2};

use super::cache;
use super::network::{InputRule, Network, Role, Sessions, Spec, by_device};
use super::preprocess::{Images, Preparation, joined};
use super::provenance::Records;
use super::source::{Origin, Source};
use super::turns::in_turn;
use crate::interrupt;
use crate::progress::Reporter;

/// Most bytes of images in a batch that is read at once. Larger batches are read in parts.
const MAX_READ: usize = 256 << 20;
/// Batches read and resized ahead of the networks, per device.
const AHEAD: usize = 2;

/// Settings of a pass.
#[derive(Debug, Clone, Copy)]
pub struct PassOptions<'a> {
    /// Images per batch.
    pub batch: usize,
    /// Determines the inputs and outputs of networks.
    pub rule: InputRule,
    /// Folder of the feature cache.
    pub cache: Option<&'a Path>,
    /// Receives progress.
    pub reporter: &'a dyn Reporter,
}

/// Seconds of each stage. Stages overlap, so their sum exceeds the total time.
pub type Seconds = BTreeMap<String, f64>;

/// Summary of a pass.
#[derive(Debug, Default)]
pub struct PassSummary {
    /// Hash of the images, as `batch::content_sha256`; for a feature file of another tool, the hash of the file.
    pub sha256: String,
    /// Networks, by role.
    pub networks: Records,
    /// Seconds of each stage.
    pub seconds: Seconds,
}

/// Features of a batch of images, one row per image.
#[derive(Debug)]
pub struct Rows {
    /// Index of the first image in the set.
    pub start: usize,
    /// Hash of each image.
    pub digests: Vec<Digest>,
    /// Matrices by name, with the names of `d2o_refs::features`.
    pub matrices: Vec<(&'static str, Array2<f32>)>,
}

impl Rows {
    /// Matrix `name`, if present.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<ArrayView2<'_, f32>> {
        self.matrices.iter().find(|(n, _)| *n == name).map(|(_, m)| m.view())
    }
}

/// Receives batches of rows in order.
pub type Each<'a> = dyn FnMut(Rows) -> anyhow::Result<()> + 'a;

impl Source {
    /// Passes rows `range` of the matrices `wanted` to `each`, batch by batch in order. Feature files are always passed
    /// as a whole; a fused generator gives all matrices of its networks.
    ///
    /// # Errors
    /// If images cannot be read, features are not finite (with the name of the image), the runtime fails, a feature
    /// file is damaged, or a signal interrupts the pass.
    pub fn pass(
        &mut self,
        range: Range<usize>,
        networks: &mut [Network],
        wanted: &[&'static str],
        options: &PassOptions<'_>,
        each: &mut Each<'_>,
    ) -> anyhow::Result<PassSummary> {
        let _section = interrupt::cooperative();
        match self {
            Self::Images { images, origin, .. } => {
                pass_images(images.as_mut(), origin, range, networks, wanted, options, each)
            }
            Self::Fused { fused, .. } => fused.pass(range, networks, options, each),
            Self::Features { parts, records } => pass_features(parts, records, wanted, options, each),
        }
    }
}

/// A cache file in progress. A write error causes a warning and does not affect the result.
struct CacheWriter<'a> {
    role: Role,
    writer: Option<FeatureWriter>,
    reporter: &'a dyn Reporter,
}

impl CacheWriter<'_> {
    fn attempt<T>(&mut self, step: impl FnOnce(&mut FeatureWriter) -> d2o_refs::Result<T>) {
        if let Some(writer) = &mut self.writer
            && let Err(error) = step(writer)
        {
            self.writer = None;
            self.failed(error);
        }
    }

    fn failed(&self, error: d2o_refs::Error) {
        self.reporter.warn(&format!("the feature cache cannot be written: {:#}", anyhow::Error::new(error)));
    }

    fn finish(mut self) {
        if let Some(writer) = self.writer.take()
            && let Err(error) = writer.finish(None)
        {
            self.failed(error);
        }
    }
}

/// Rows of images. Networks run, except those with features in the cache.
fn pass_images(
    images: &mut dyn ImageSource,
    origin: &Origin,
    range: Range<usize>,
    networks: &mut [Network],
    wanted: &[&'static str],
    options: &PassOptions<'_>,
    each: &mut Each<'_>,
) -> anyhow::Result<PassSummary> {
    let (dims, total, reporter) = (images.dims(), images.len(), options.reporter);
    let mut summary = PassSummary::default();
    let mut hash = content_hash(range.len(), dims);
    let (mut held, mut running, mut writers) = (Vec::new(), Vec::new(), Vec::new());
    let source_sha256 = if options.cache.is_some() { origin.sha256()? } else { String::new() };
    for network in networks.iter_mut() {
        let role = network.spec.role;
        let record = network.spec.record(dims, &options.rule)?;
        summary.networks.insert(role.name().to_owned(), record.clone());
        let Some(folder) = options.cache else {
            running.push(network);
            continue;
        };
        let path = cache::path(folder, &source_sha256, role.name(), &record, &range, options.batch);
        let needed: Vec<&str> =
            network.spec.matrices(&options.rule).into_iter().map(|(m, _)| m).filter(|m| wanted.contains(m)).collect();
        match cache::open(&path, &needed, reporter) {
            Some(file) => held.push(file),
            None => {
                let meta = Meta {
                    d2o_features: 0,
                    source_sha256: source_sha256.clone(),
                    total,
                    rows: range.clone(),
                    images: dims,
                    batch: options.batch,
                    generator: None,
                    networks: BTreeMap::from([(role.name().to_owned(), serde_json::to_value(record)?)]),
                    sha256: BTreeMap::new(),
                };
                let mut writer = CacheWriter { role, writer: None, reporter };
                match FeatureWriter::create(&path, meta) {
                    Ok(file) => writer.writer = Some(file),
                    Err(error) => writer.failed(error),
                }
                writers.push(writer);
                running.push(network);
            }
        }
    }
    let first = range.start;
    let mut add = |mut rows: Rows| -> anyhow::Result<()> {
        let here = rows.start - first..rows.start - first + rows.digests.len();
        for cache in &mut writers {
            let role = cache.role;
            let own = rows.matrices.iter().filter(|(n, _)| Role::of(n) == role);
            let matrices: Vec<_> = own.map(|(n, m)| (*n, m.view())).collect();
            cache.attempt(|writer| writer.append(&rows.digests, &matrices));
        }
        for file in &held {
            for name in wanted.iter().filter(|n| file.width(n).is_some()) {
                rows.matrices.push((name, file.read(name, here.clone())?));
            }
        }
        hash.update(&rows.digests);
        each(rows)
    };
    if running.is_empty() && !held.is_empty() {
        let clock = Instant::now();
        reporter.note(&format!("read the features of {} images from the cache", range.len()));
        let digests = held[0].digests().context("the cache holds no hashes")?;
        for start in range.clone().step_by(options.batch) {
            interrupt::check()?;
            let end = (start + options.batch).min(range.end);
            add(Rows { start, digests: digests[start - first..end - first].to_vec(), matrices: Vec::new() })?;
        }
        summary.seconds.insert("cache".to_owned(), clock.elapsed().as_secs_f64());
    } else {
        let partial = range.start > 0 || range.end < total;
        summary.seconds = extract(&mut running, images, range, options, &mut add)?;
        if partial {
            images.verify()?;
        }
    }
    writers.into_iter().for_each(CacheWriter::finish);
    summary.sha256 = hash.finish();
    Ok(summary)
}

/// Rows of feature files.
fn pass_features(
    parts: &[FeatureFile],
    records: &Records,
    wanted: &[&'static str],
    options: &PassOptions<'_>,
    each: &mut Each<'_>,
) -> anyhow::Result<PassSummary> {
    let clock = Instant::now();
    let Some(first) = parts.first() else { anyhow::bail!("no feature files") };
    let mut summary = PassSummary { networks: records.clone(), ..PassSummary::default() };
    let total = parts.iter().map(FeatureFile::len).sum();
    let mut hash = first.meta().map(|m| content_hash(total, m.images));
    let mut done = 0;
    for part in parts {
        for start in (0..part.len()).step_by(options.batch) {
            interrupt::check()?;
            let range = start..(start + options.batch).min(part.len());
            let digests = part.digests().map(|d| d[range.clone()].to_vec()).unwrap_or_default();
            if let Some(hash) = &mut hash {
                hash.update(&digests);
            }
            let mut matrices = Vec::new();
            for name in wanted.iter().filter(|n| part.width(n).is_some()) {
                let rows = part.read(name, range.clone())?;
                if let Some(bad) = first_non_finite_row(rows.view()) {
                    let row = start + bad;
                    anyhow::bail!("`{}`: row {row} of `{name}` contains NaN or infinity", part.path().display());
                }
                matrices.push((*name, rows));
            }
            each(Rows { start: done + range.start, digests, matrices })?;
        }
        done += part.len();
    }
    summary.sha256 = match hash {
        Some(hash) => hash.finish(),
        None => container_sha256(first.path())?,
    };
    summary.seconds.insert("files".to_owned(), clock.elapsed().as_secs_f64());
    Ok(summary)
}

/// A batch prepared for the networks.
struct Prepared {
    start: usize,
    /// Names of its images.
    names: Vec<String>,
    digests: Vec<Digest>,
    /// One per network.
    tensors: Vec<Tensor>,
}

/// Reads and prepares the batch `range` of large images in parts.
fn in_parts(
    source: &mut dyn ImageSource,
    dims: Option<ImageDims>,
    range: Range<usize>,
    preparations: &[Preparation],
    [reading, resizing]: [&mut f64; 2],
) -> anyhow::Result<Prepared> {
    let (mut all_digests, mut tensors) = (Vec::new(), vec![Vec::new(); preparations.len()]);
    for part in parts(source, range.clone(), range.len()) {
        let clock = Instant::now();
        let images = read(source, dims, part)?;
        all_digests.extend(images.digests());
        *reading += clock.elapsed().as_secs_f64();
        let clock = Instant::now();
        for (preparation, tensors) in preparations.iter().zip(&mut tensors) {
            tensors.push(preparation.apply(&images.views())?);
        }
        *resizing += clock.elapsed().as_secs_f64();
    }
    let tensors = tensors.into_iter().map(joined).collect::<anyhow::Result<_>>()?;
    let names = range.clone().map(|i| source.name(i)).collect();
    Ok(Prepared { start: range.start, names, digests: all_digests, tensors })
}

/// Content hash of `len` images of size `dims`, or of different sizes.
fn content_hash(len: usize, dims: Option<ImageDims>) -> ContentHash {
    dims.map_or_else(|| ContentHash::mixed(len), |dims| ContentHash::new(len, dims))
}

/// Reads images `range`: all of size `dims`, or each with its own size.
fn read(source: &mut dyn ImageSource, dims: Option<ImageDims>, range: Range<usize>) -> d2o_refs::Result<Images> {
    Ok(match dims {
        Some(_) => Images::Uniform(source.read(range)?),
        None => Images::Mixed(source.read_each(range)?),
    })
}

/// Runs images `range` of `source` through `networks` and passes the outputs to `each`, in the order of the source. A
/// separate thread reads and resizes a few batches ahead of the networks. Batches are assigned to the devices in turn.
fn extract(
    networks: &mut [&mut Network],
    source: &mut dyn ImageSource,
    range: Range<usize>,
    options: &PassOptions<'_>,
    each: &mut Each<'_>,
) -> anyhow::Result<Seconds> {
    let (batch, rule, dims) = (options.batch, &options.rule, source.dims());
    let (specs, sessions): (Vec<&Spec>, Vec<&mut Sessions>) = networks.iter_mut().map(|n| n.parts()).unzip();
    let mut devices = by_device(sessions);
    let preparations: Vec<Preparation> =
        specs.iter().map(|n| n.preparation(dims, rule)).collect::<anyhow::Result<_>>()?;
    let mut progress = options.reporter.count("features", "images", range.len() as u64);
    let stop = AtomicBool::new(false);
    let mut network_seconds = 0.0;
    // As many batches at once as there are devices, so that a generator can use all devices.
    let ahead = batch * devices.len();
    let (sender, receiver) = sync_channel::<anyhow::Result<Prepared>>(AHEAD * devices.len());
    let (reading, resizing) = std::thread::scope(|scope| -> anyhow::Result<(f64, f64)> {
        let stop = &stop;
        let reader = scope.spawn(move || {
            let (mut reading, mut resizing) = (0.0, 0.0);
            let bytes = |i| source.size(i).map_or(0, |d| d.height.saturating_mul(d.width).saturating_mul(d.channels));
            let is_large = |first: usize| {
                let all = first..(first + ahead).min(range.end);
                all.step_by(batch)
                    .any(|i| (i..(i + batch).min(range.end)).map(bytes).fold(0, usize::saturating_add) > MAX_READ)
            };
            let large: Vec<bool> = range.clone().step_by(ahead).map(is_large).collect();
            for (first, is_large) in range.clone().step_by(ahead).zip(large) {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                if is_large {
                    let all = first..(first + ahead).min(range.end);
                    for start in all.clone().step_by(batch) {
                        let here = start..(start + batch).min(all.end);
                        let prepared = in_parts(source, dims, here, &preparations, [&mut reading, &mut resizing]);
                        let failed = prepared.is_err();
                        if sender.send(prepared).is_err() || failed {
                            return (reading, resizing);
                        }
                    }
                    continue;
                }
                let clock = Instant::now();
                let images = match read(source, dims, first..(first + ahead).min(range.end)) {
                    Ok(images) => images,
                    Err(error) => {
                        let _ = sender.send(Err(error.into()));
                        break;
                    }
                };
                let digests = images.digests();
                reading += clock.elapsed().as_secs_f64();
                for (i, (images, digests)) in images.views().chunks(batch).zip(digests.chunks(batch)).enumerate() {
                    let start = first + i * batch;
                    let names = (start..start + images.len()).map(|i| source.name(i)).collect();
                    let digests = digests.to_vec();
                    let clock = Instant::now();
                    let tensors: anyhow::Result<_> = preparations.iter().map(|p| p.apply(images)).collect();
                    resizing += clock.elapsed().as_secs_f64();
                    let prepared = tensors.map(|tensors| Prepared { start, names, digests, tensors });
                    let failed = prepared.is_err();
                    if sender.send(prepared).is_err() || failed {
                        return (reading, resizing);
                    }
                }
            }
            (reading, resizing)
        });
        let work = |sessions: &mut Vec<&mut dyn Session>, prepared: Prepared| {
            interrupt::check()?;
            let Prepared { start, names, digests, tensors } = prepared;
            let clock = Instant::now();
            let mut matrices = Vec::new();
            for ((spec, session), tensor) in specs.iter().zip(sessions).zip(&tensors) {
                let outputs = session.run(&[(spec.input(), tensor.into())]);
                let outputs = outputs.with_context(|| format!("cannot run `{}`", spec.path))?;
                matrices.extend(spec.take(session.model().output_names().zip(outputs), &names, rule)?);
            }
            Ok((Rows { start, digests, matrices }, clock.elapsed().as_secs_f64()))
        };
        let result = in_turn(&mut devices, &receiver, work, |(rows, seconds)| {
            network_seconds += seconds;
            let count = rows.digests.len() as u64;
            each(rows)?;
            progress.advance(count);
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        drop(receiver);
        let read = reader.join().map_err(|_| anyhow::anyhow!("reading images failed"))?;
        result.map(|()| read)
    })?;
    let seconds = [("read", reading), ("resize", resizing), ("network", network_seconds)];
    Ok(seconds.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
}
