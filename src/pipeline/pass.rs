//! Sets of images as sums: the one loop in which features of samples and of references are taken, whether networks run or files are read.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use d2o_evaluations::gaussian::Accumulator;
use d2o_evaluations::inception_score::{ScoreRule, ScoreSums};
use d2o_evaluations::protocol::Protocol;
use d2o_refs::batch::{self, ContentHash, ImageDims, ImageSource, container_sha256, hex};
use d2o_refs::features::{FeatureFile, FeatureWriter, MATRICES, Meta, NetworkMeta};
use ndarray::Array2;
use sha2::{Digest as _, Sha256};

use crate::error::with_hint;
use crate::interrupt;
use crate::pipeline::fused::Fused;
use crate::pipeline::network::{Network, Role, Rows, Seconds, extract};
use crate::printer::Printer;

/// Images to be measured, or what networks said of them.
pub enum Set {
    /// Images.
    Images {
        /// The images.
        source: Box<dyn ImageSource>,
        /// What they come from.
        origin: Origin,
    },
    /// A generator whose images feed the networks on the device.
    Fused {
        /// The generator.
        fused: Box<Fused>,
        /// What it makes.
        origin: Origin,
    },
    /// Features, in files that follow one another.
    Features(Vec<FeatureFile>),
}

/// What images come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A file or folder.
    Container(PathBuf),
    /// Something of this hash.
    Made(String),
}

impl Origin {
    fn sha256(&self) -> anyhow::Result<String> {
        match self {
            Self::Container(path) => Ok(container_sha256(path)?),
            Self::Made(sha256) => Ok(sha256.clone()),
        }
    }
}

/// How a set is walked.
#[derive(Debug, Clone, Copy)]
pub struct How<'a> {
    /// Images in a batch.
    pub batch: usize,
    /// Whose preprocessing.
    pub protocol: &'static Protocol,
    /// Folder of features computed before.
    pub cache: Option<&'a Path>,
    /// Progress.
    pub printer: Printer,
}

/// What a walk found out on the way.
#[derive(Debug, Default)]
pub struct Walk {
    /// Hash of the images, as `batch::content_sha256`; of the files where they do not carry their images' hashes.
    pub sha256: String,
    /// The networks, by role.
    pub networks: BTreeMap<String, NetworkMeta>,
    /// Seconds of each stage.
    pub seconds: Seconds,
}

impl Set {
    /// Opens images, or a file of features.
    ///
    /// # Errors
    /// A file of neither kind, a damaged one, one part of several.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        if FeatureFile::is_one(path) {
            return Self::merge(std::slice::from_ref(&path.to_owned()));
        }
        Ok(Self::Images { source: batch::open(path)?, origin: Origin::Container(path.to_owned()) })
    }

    /// Joins the parts that `evaluate --shard` wrote.
    ///
    /// # Errors
    /// A damaged file; parts of different sets, networks or settings; missing or double images.
    pub fn merge(paths: &[PathBuf]) -> anyhow::Result<Self> {
        let mut parts = Vec::new();
        for path in paths {
            let part = FeatureFile::open(path)?;
            part.verify()?;
            parts.push(part);
        }
        if parts.len() == 1 && parts[0].meta().is_none() {
            return Ok(Self::Features(parts));
        }
        for part in &parts {
            anyhow::ensure!(part.meta().is_some(), "`{}` does not say which images it holds", part.path().display());
        }
        let rows = |part: &FeatureFile| part.meta().map_or(0..0, |m| m.rows.clone());
        parts.sort_by_key(|p| rows(p).start);
        let shared = |part: &FeatureFile| {
            let mut meta = part.meta().cloned()?;
            // Where a network's file lay does not matter.
            meta.networks.values_mut().for_each(|n| n.path.clear());
            Some(Meta { rows: 0..0, sha256: BTreeMap::new(), ..meta })
        };
        let Some(first) = parts.first() else { anyhow::bail!("no parts") };
        let total = first.meta().map_or(0, |m| m.total);
        let mut at = 0;
        for (i, part) in parts.iter().enumerate() {
            if shared(part) != shared(first) || part.labels().is_some() != first.labels().is_some() {
                let differs = difference(first, part);
                anyhow::bail!("`{}` and `{}` differ in {differs}", first.path().display(), part.path().display());
            }
            for matrix in MATRICES {
                anyhow::ensure!(
                    part.width(matrix) == first.width(matrix),
                    "`{}` and `{}` differ in their `{matrix}`",
                    first.path().display(),
                    part.path().display()
                );
            }
            let here = rows(part);
            if here.start < at && i > 0 {
                let before = parts[i - 1].path().display();
                anyhow::bail!("`{before}` and `{}` both hold image {}", part.path().display(), here.start);
            }
            ensure_held(at..here.start, total)?;
            at = here.end;
        }
        ensure_held(at..total, total)?;
        Ok(Self::Features(parts))
    }

    /// Number of images.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Images { source, .. } => source.len(),
            Self::Fused { fused, .. } => fused.len(),
            Self::Features(parts) => parts.iter().map(FeatureFile::len).sum(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size of the images, unless the set is features that do not tell it.
    #[must_use]
    pub fn image_dims(&self) -> Option<ImageDims> {
        match self {
            Self::Images { source, .. } => source.dims(),
            Self::Fused { fused, .. } => Some(fused.dims()),
            Self::Features(parts) => parts.first()?.meta().map(|m| m.images),
        }
    }

    /// Class of each image, if the set has classes.
    #[must_use]
    pub fn labels(&self) -> Option<Vec<i64>> {
        match self {
            Self::Images { source, .. } => source.labels().map(<[i64]>::to_vec),
            Self::Fused { fused, .. } => fused.labels(),
            Self::Features(parts) => {
                let all: Option<Vec<&[i64]>> = parts.iter().map(FeatureFile::labels).collect();
                all.map(|l| l.concat())
            }
        }
    }

    /// Length of the rows of `matrix`: what the files hold, or one of `networks` gives.
    #[must_use]
    pub fn width(&self, matrix: &str, networks: &[Network]) -> Option<usize> {
        match self {
            Self::Images { .. } | Self::Fused { .. } => networks.iter().find_map(|n| n.spec.width(matrix)),
            Self::Features(parts) => parts.first().and_then(|p| p.width(matrix)),
        }
    }

    /// Part `index` of `count`, in whole batches, so that a batch holds the same images however the set is divided.
    #[must_use]
    pub fn shard(&self, index: usize, count: usize, batch: usize) -> Range<usize> {
        let batches = self.len().div_ceil(batch);
        let at = |i: usize| (i * batches / count * batch).min(self.len());
        at(index)..at(index + 1)
    }

    /// Hands rows `range` of the matrices `wanted` to `each`, batch by batch in order.
    ///
    /// # Errors
    /// Those of [`extract`] and of feature files; networks other than a feature file's.
    pub fn rows(
        &mut self,
        range: Range<usize>,
        networks: &mut [Network],
        wanted: &[&'static str],
        how: &How<'_>,
        each: &mut dyn FnMut(Rows) -> anyhow::Result<()>,
    ) -> anyhow::Result<Walk> {
        match self {
            Self::Images { source, origin } => images(source.as_mut(), origin, range, networks, wanted, how, each),
            Self::Fused { fused, .. } => fused.rows(range, networks, how, each),
            Self::Features(parts) => features(parts, networks, wanted, how, each),
        }
    }
}

fn ensure_held(missing: Range<usize>, total: usize) -> anyhow::Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let what = format!("images {}..{} of {total} are in none of the files", missing.start, missing.end);
    Err(with_hint(anyhow::anyhow!(what), "give the files of all shards to `--merge`"))
}

/// What two parts of a set disagree on.
fn difference(a: &FeatureFile, b: &FeatureFile) -> &'static str {
    let (Some(x), Some(y)) = (a.meta(), b.meta()) else { return "what they are" };
    if x.source_sha256 != y.source_sha256 || x.total != y.total || x.images != y.images {
        "the images they come from"
    } else if x.networks != y.networks {
        "the networks or their preprocessing"
    } else if x.batch != y.batch {
        "the batch"
    } else {
        "their labels"
    }
}

/// Rows of images: networks run, except those whose features the cache holds.
fn images(
    source: &mut dyn ImageSource,
    origin: &Origin,
    range: Range<usize>,
    networks: &mut [Network],
    wanted: &[&'static str],
    how: &How<'_>,
    each: &mut dyn FnMut(Rows) -> anyhow::Result<()>,
) -> anyhow::Result<Walk> {
    let (dims, total) = (batch::uniform(source)?, source.len());
    let mut walk = Walk::default();
    let mut hash = ContentHash::new(range.len(), dims);
    let (mut held, mut missing, mut writers) = (Vec::new(), Vec::new(), Vec::new());
    let source_sha256 = if how.cache.is_some() { origin.sha256()? } else { String::new() };
    for network in networks.iter_mut() {
        let role = network.spec.role;
        let meta = network.spec.meta(dims, how.protocol)?;
        walk.networks.insert(role.name().to_owned(), meta.clone());
        let Some(folder) = how.cache else {
            missing.push(network);
            continue;
        };
        let path = folder.join(format!("{}.h5", cache_key(&source_sha256, &meta, &range)));
        match cached(&path, how.printer) {
            Some(file) => held.push(file),
            None => {
                let networks = BTreeMap::from([(role.name().to_owned(), meta)]);
                let (source_sha256, batch, sha256) = (source_sha256.clone(), how.batch, BTreeMap::new());
                let meta = Meta {
                    d2o_features: 0,
                    source_sha256,
                    total,
                    rows: range.clone(),
                    images: dims,
                    batch,
                    networks,
                    sha256,
                };
                writers.push((role, FeatureWriter::create(&path, meta)?));
                missing.push(network);
            }
        }
    }
    let first = range.start;
    let mut add = |mut rows: Rows| -> anyhow::Result<()> {
        let here = rows.start - first..rows.start - first + rows.digests.len();
        for (role, writer) in &mut writers {
            let own = |name: &str| Role::of(name) == *role;
            let matrices: Vec<_> = rows.matrices.iter().filter(|(n, _)| own(n)).map(|(n, m)| (*n, m.view())).collect();
            writer.append(&rows.digests, &matrices)?;
        }
        for file in &held {
            for name in wanted.iter().filter(|n| file.width(n).is_some()) {
                rows.matrices.push((name, file.read(name, here.clone())?));
            }
        }
        hash.update(&rows.digests);
        each(rows)
    };
    let _section = interrupt::cooperative();
    if missing.is_empty() && !held.is_empty() {
        let clock = Instant::now();
        how.printer.note(&format!("features of {} images from the cache", range.len()));
        let digests = held[0].digests().context("the cache holds no hashes")?;
        for start in range.clone().step_by(how.batch) {
            interrupt::check()?;
            let end = (start + how.batch).min(range.end);
            add(Rows { start, digests: digests[start - first..end - first].to_vec(), matrices: Vec::new() })?;
        }
        walk.seconds.insert("cache".to_owned(), clock.elapsed().as_secs_f64());
    } else {
        let (batch, protocol, printer) = (how.batch, how.protocol, how.printer);
        walk.seconds = extract(&mut missing, source, range, batch, protocol, printer, &mut add)?;
    }
    for (_, writer) in writers {
        writer.finish(None)?;
    }
    walk.sha256 = hash.finish();
    Ok(walk)
}

/// The name of what `network` says of images `range` of a source: whatever the numbers depend on.
fn cache_key(source_sha256: &str, network: &NetworkMeta, range: &Range<usize>) -> String {
    let NetworkMeta { sha256, preprocessing, runtime, .. } = network;
    let version = env!("CARGO_PKG_VERSION");
    let text = serde_json::json!([version, source_sha256, sha256, preprocessing, runtime, range.start, range.end]);
    hex(&Sha256::digest(text.to_string().as_bytes()))
}

/// The cache's file at `path`, if it is there and whole. One that is not is written anew.
fn cached(path: &Path, printer: Printer) -> Option<FeatureFile> {
    if !path.exists() {
        return None;
    }
    let whole = || -> anyhow::Result<FeatureFile> {
        let file = FeatureFile::open(path)?;
        file.verify()?;
        Ok(file)
    };
    let damaged = |error| printer.warn(&format!("the cache is damaged and its features are computed anew: {error:#}"));
    whole().map_err(damaged).ok()
}

/// Rows of feature files.
fn features(
    parts: &[FeatureFile],
    networks: &[Network],
    wanted: &[&'static str],
    how: &How<'_>,
    each: &mut dyn FnMut(Rows) -> anyhow::Result<()>,
) -> anyhow::Result<Walk> {
    let clock = Instant::now();
    let mut walk = Walk::default();
    let Some(first) = parts.first() else { anyhow::bail!("no feature files") };
    if let Some(meta) = first.meta() {
        walk.networks = meta.networks.clone();
    }
    for network in networks {
        let (role, own) = (network.spec.role.name(), &network.spec.extractor);
        match walk.networks.get(role) {
            Some(of_file) => anyhow::ensure!(
                of_file.sha256 == own.sha256,
                "`{}` holds features of {} ({}), not of `{}`",
                first.path().display(),
                of_file.name,
                of_file.path,
                own.path
            ),
            None => {
                let preprocessing = format!("not stated by `{}`", first.path().display());
                let (name, path, sha256) = (own.name.clone(), own.path.clone(), own.sha256.clone());
                let meta =
                    NetworkMeta { name, path, sha256, dims: own.dims, preprocessing, runtime: "unknown".to_owned() };
                walk.networks.insert(role.to_owned(), meta);
            }
        }
    }
    let total = parts.iter().map(FeatureFile::len).sum();
    let mut hash = first.meta().map(|m| ContentHash::new(total, m.images));
    let mut done = 0;
    for part in parts {
        for start in (0..part.len()).step_by(how.batch) {
            interrupt::check()?;
            let range = start..(start + how.batch).min(part.len());
            let digests = part.digests().map(|d| d[range.clone()].to_vec()).unwrap_or_default();
            if let Some(hash) = &mut hash {
                hash.update(&digests);
            }
            let mut matrices = Vec::new();
            for name in wanted.iter().filter(|n| part.width(n).is_some()) {
                let rows = part.read(name, range.clone())?;
                if let Some(bad) = rows.outer_iter().position(|r| r.iter().any(|v| !v.is_finite())) {
                    let row = start + bad;
                    anyhow::bail!("`{}`: row {row} of `{name}` holds NaN or infinity", part.path().display());
                }
                matrices.push((*name, rows));
            }
            each(Rows { start: done + range.start, digests, matrices })?;
        }
        done += part.len();
    }
    walk.sha256 = match hash {
        Some(hash) => hash.finish(),
        None => container_sha256(first.path())?,
    };
    walk.seconds.insert("files".to_owned(), clock.elapsed().as_secs_f64());
    Ok(walk)
}

/// What is to be summed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wants {
    /// Moments of the features.
    pub features: bool,
    /// The features themselves.
    pub keep: bool,
    /// The Inception Score.
    pub score: Option<ScoreRule>,
    /// Moments of the spatial features.
    pub spatial: bool,
    /// Moments of CLIP's features.
    pub clip: bool,
    /// The features that enter precision and recall instead.
    pub manifold: bool,
}

/// Sums over a set.
#[derive(Debug)]
pub struct Sums {
    /// Of the features.
    pub features: Option<Accumulator>,
    /// The features, `[N, D]`.
    pub kept: Option<Array2<f32>>,
    /// Of class probabilities.
    pub score: Option<ScoreSums>,
    /// Of the spatial features.
    pub spatial: Option<Accumulator>,
    /// Of CLIP's features.
    pub clip: Option<Accumulator>,
    /// What enters precision and recall instead of the features, `[N, D]`.
    pub manifold: Option<Array2<f32>>,
    /// What was found on the way.
    pub walk: Walk,
}

/// Walks all of `set` and sums what `wants` says; rows also go to `writer`.
///
/// # Errors
/// Those of [`Set::rows`]; a set without what is wanted.
pub fn sums(
    set: &mut Set,
    networks: &mut [Network],
    wants: &Wants,
    how: &How<'_>,
    mut writer: Option<&mut FeatureWriter>,
) -> anyhow::Result<Sums> {
    let width = |matrix: &str| {
        let needed = format!("no network or file gives `{matrix}`, which the metrics need");
        set.width(matrix, networks).context(needed)
    };
    let moments = |matrix: &str, wanted: bool| wanted.then(|| width(matrix).map(Accumulator::new)).transpose();
    let mut features = moments("features", wants.features)?;
    let mut spatial = moments("spatial", wants.spatial)?;
    let mut clip = moments("clip", wants.clip)?;
    let len = set.len();
    let mut score = match wants.score {
        Some(rule) => Some(ScoreSums::new(rule, len, width("logits")?)?),
        None => None,
    };
    let rows = |matrix: &str, wanted: bool| {
        let dims = wanted.then(|| width(matrix)).transpose()?;
        anyhow::Ok(dims.map(|dims| (dims, Vec::with_capacity(len * dims))))
    };
    let (mut kept, mut manifold) = (rows("features", wants.keep)?, rows("manifold", wants.manifold)?);
    let mut wanted = Vec::new();
    let needed = [wants.features || wants.keep, score.is_some(), wants.spatial, wants.clip, wants.manifold];
    for (name, needed) in MATRICES.into_iter().zip(needed) {
        if needed || writer.is_some() {
            wanted.push(name);
        }
    }
    let walk = set.rows(0..len, networks, &wanted, how, &mut |rows| {
        for (name, sums) in [("features", &mut features), ("spatial", &mut spatial), ("clip", &mut clip)] {
            if let (Some(sums), Some(rows)) = (sums, rows.get(name)) {
                sums.push(rows)?;
            }
        }
        if let (Some(sums), Some(rows)) = (&mut score, rows.get("logits")) {
            sums.push(rows)?;
        }
        for (name, kept) in [("features", &mut kept), ("manifold", &mut manifold)] {
            if let (Some((_, kept)), Some(rows)) = (kept, rows.get(name)) {
                kept.extend(rows.iter());
            }
        }
        if let Some(writer) = &mut writer {
            let matrices: Vec<_> = rows.matrices.iter().map(|(n, m)| (*n, m.view())).collect();
            writer.append(&rows.digests, &matrices)?;
        }
        Ok(())
    })?;
    let matrix = |kept: Option<(usize, Vec<f32>)>| {
        kept.map(|(dims, rows)| Array2::from_shape_vec((len, dims), rows)).transpose()
    };
    Ok(Sums { features, kept: matrix(kept)?, score, spatial, clip, manifold: matrix(manifold)?, walk })
}

/// Writes what `networks` say of images `range` of `set` to `path`.
///
/// # Errors
/// A set that is no images; those of [`Set::rows`]; writing errors.
pub fn save(
    set: &mut Set,
    range: Range<usize>,
    networks: &mut [Network],
    how: &How<'_>,
    path: &Path,
) -> anyhow::Result<()> {
    let meta = meta_of(set, range.clone(), networks, how)?;
    let labels = set.labels().map(|l| l[range.clone()].to_vec());
    let mut writer = FeatureWriter::create(path, meta)?;
    set.rows(range, networks, &MATRICES, how, &mut |rows| {
        let matrices: Vec<_> = rows.matrices.iter().map(|(n, m)| (*n, m.view())).collect();
        Ok(writer.append(&rows.digests, &matrices)?)
    })?;
    Ok(writer.finish(labels.as_deref())?)
}

/// What a feature file of images `range` of `set` says of itself.
///
/// # Errors
/// A set that is no images, or not ones the networks take; reading errors.
pub fn meta_of(set: &Set, range: Range<usize>, networks: &[Network], how: &How<'_>) -> anyhow::Result<Meta> {
    let (images, origin) = match set {
        Set::Images { source, origin } => (batch::uniform(source.as_ref())?, origin),
        Set::Fused { fused, origin } => (fused.dims(), origin),
        Set::Features(_) => anyhow::bail!("features can be saved of images only, and these are features already"),
    };
    let describe = |n: &Network| Ok((n.spec.role.name().to_owned(), n.spec.meta(images, how.protocol)?));
    Ok(Meta {
        d2o_features: 0,
        source_sha256: origin.sha256()?,
        total: set.len(),
        rows: range,
        images,
        batch: how.batch,
        networks: networks.iter().map(describe).collect::<anyhow::Result<_>>()?,
        sha256: BTreeMap::new(),
    })
}
