//! Sets of images to measure: images, a generator, or feature files.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use d2o_refs::batch::{self, ImageDims, ImageSource, container_sha256};
use d2o_refs::features::{FeatureFile, MATRICES, Meta};
use d2o_refs::record;
use ndarray::{Array4, Axis, s};
use serde_json::Value;

use super::fused::Fused;
use super::generated::{self, GeneratedImages};
use super::network::{InputRule, Network};
use super::provenance::{Records, records};
use crate::error::with_hint;

/// Images to measure, or their features.
pub enum Source {
    /// Images.
    Images {
        /// The images.
        images: Box<dyn ImageSource>,
        /// Origin of the images.
        origin: Origin,
        /// Record of how they were generated, if known.
        record: Option<Value>,
    },
    /// A generator that passes its images to the networks in device memory.
    Fused {
        /// The generator.
        fused: Box<Fused>,
        /// Origin of its images.
        origin: Origin,
    },
    /// Features, in consecutive files.
    Features {
        /// The files.
        parts: Vec<FeatureFile>,
        /// Networks recorded in the files.
        records: Records,
    },
}

/// Origin of images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A file or folder.
    Container(PathBuf),
    /// A generator, by the hash of its record.
    Generated(String),
}

impl Origin {
    /// Hash of the container, or of the record of the generator.
    ///
    /// # Errors
    /// If reading fails.
    pub fn sha256(&self) -> anyhow::Result<String> {
        match self {
            Self::Container(path) => Ok(container_sha256(path)?),
            Self::Generated(sha256) => Ok(sha256.clone()),
        }
    }
}

/// Images in memory, u8 `[N, H, W, 3]`.
#[derive(Debug)]
pub struct MemoryImages(pub Array4<u8>);

impl ImageSource for MemoryImages {
    fn len(&self) -> usize {
        self.0.len_of(Axis(0))
    }

    fn dims(&self) -> Option<ImageDims> {
        let (_, height, width, channels) = self.0.dim();
        Some(ImageDims { height, width, channels })
    }

    fn labels(&self) -> Option<&[i64]> {
        None
    }

    fn read(&mut self, range: Range<usize>) -> d2o_refs::Result<Array4<u8>> {
        Ok(self.0.slice(s![range, .., .., ..]).to_owned())
    }
}

/// The settings in `meta` that all parts of a set share: `meta` without version, rows, dataset hashes and network
/// paths.
#[must_use]
pub fn settings(meta: &Meta) -> Meta {
    let mut meta = Meta { d2o_features: 0, rows: 0..0, sha256: BTreeMap::new(), ..meta.clone() };
    meta.networks.values_mut().filter_map(Value::as_object_mut).for_each(|network| {
        network.remove("path");
    });
    meta
}

impl Source {
    /// Images in memory. `sha256` identifies their origin.
    #[must_use]
    pub fn of_memory(images: Array4<u8>, sha256: String) -> Self {
        Self::Images { images: Box::new(MemoryImages(images)), origin: Origin::Generated(sha256), record: None }
    }

    /// Images that a generator makes when they are read.
    #[must_use]
    pub fn generated(images: GeneratedImages) -> Self {
        let record = images.record().clone();
        let origin = Origin::Generated(generated::sha256(&record));
        Self::Images { images: Box::new(images), origin, record: Some(record) }
    }

    /// A generator that passes its images to the networks in device memory.
    #[must_use]
    pub fn fused(fused: Fused) -> Self {
        let origin = Origin::Generated(generated::sha256(fused.record()));
        Self::Fused { fused: Box::new(fused), origin }
    }

    /// Opens images, or a feature file.
    ///
    /// # Errors
    /// If the file is of neither kind, is damaged, or is one part of several.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        if FeatureFile::is_feature_file(path) {
            return Self::merge(std::slice::from_ref(&path.to_owned()));
        }
        let images = batch::open(path)?;
        // Only outputs of d2o have a record. A file of this name from another tool is ignored.
        let record = record::read(batch::split_name(path).0).ok().flatten();
        Ok(Self::Images { images, origin: Origin::Container(path.to_owned()), record })
    }

    /// Joins the feature files that `evaluate --shard` wrote.
    ///
    /// # Errors
    /// If a file is damaged, the parts have different sets, networks or settings, or images are missing or duplicated.
    pub fn merge(paths: &[PathBuf]) -> anyhow::Result<Self> {
        Self::joined(paths.iter().map(|path| FeatureFile::open(path)).collect::<Result<_, _>>()?)
    }

    /// Same as [`Source::merge`], for open files.
    ///
    /// # Errors
    /// Those of [`Source::merge`].
    pub fn joined(mut parts: Vec<FeatureFile>) -> anyhow::Result<Self> {
        for part in &parts {
            part.verify()?;
        }
        if parts.len() == 1 && parts[0].meta().is_none() {
            return Ok(Self::Features { parts, records: Records::new() });
        }
        for part in &parts {
            anyhow::ensure!(part.meta().is_some(), "`{}` does not record its images", part.path().display());
        }
        let rows = |part: &FeatureFile| part.meta().map_or(0..0, |m| m.rows.clone());
        parts.sort_by_key(|p| rows(p).start);
        let shared = |part: &FeatureFile| part.meta().map(settings);
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
                    "`{}` and `{}` differ in `{matrix}`",
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
        let records = first.meta().map(|m| records(&m.networks)).transpose()?.unwrap_or_default();
        Ok(Self::Features { parts, records })
    }

    /// Number of images.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Images { images, .. } => images.len(),
            Self::Fused { fused, .. } => fused.len(),
            Self::Features { parts, .. } => parts.iter().map(FeatureFile::len).sum(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size of the images, if known and the same for all.
    #[must_use]
    pub fn image_dims(&self) -> Option<ImageDims> {
        match self {
            Self::Images { images, .. } => images.dims(),
            Self::Fused { fused, .. } => Some(fused.dims()),
            Self::Features { parts, .. } => parts.first()?.meta().and_then(|m| m.images),
        }
    }

    /// Class of each image, if the set has classes.
    #[must_use]
    pub fn labels(&self) -> Option<Vec<i64>> {
        match self {
            Self::Images { images, .. } => images.labels().map(<[i64]>::to_vec),
            Self::Fused { fused, .. } => fused.labels(),
            Self::Features { parts, .. } => {
                let all: Option<Vec<&[i64]>> = parts.iter().map(FeatureFile::labels).collect();
                all.map(|l| l.concat())
            }
        }
    }

    /// Reason why the labels are not classes, if so.
    #[must_use]
    pub fn label_problem(&self) -> Option<&str> {
        match self {
            Self::Images { images, .. } => images.label_problem(),
            Self::Fused { .. } | Self::Features { .. } => None,
        }
    }

    /// Notes on skipped files.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        match self {
            Self::Images { images, .. } => images.notes(),
            Self::Fused { .. } | Self::Features { .. } => &[],
        }
    }

    /// Number of images in subfolders, if the set is a folder.
    #[must_use]
    pub fn nested(&self) -> usize {
        match self {
            Self::Images { images, .. } if images.container().is_dir() => {
                (0..images.len()).filter(|i| images.name(*i).contains('/')).count()
            }
            _ => 0,
        }
    }

    /// Record of how a generator made the images, if present.
    #[must_use]
    pub fn generator_record(&self) -> Option<&Value> {
        match self {
            Self::Images { record, .. } => record.as_ref(),
            Self::Fused { fused, .. } => Some(fused.record()),
            Self::Features { parts, .. } => parts.first()?.meta()?.generator.as_ref(),
        }
    }

    /// Networks recorded in feature files; `None` for other sources.
    #[must_use]
    pub fn records(&self) -> Option<&Records> {
        match self {
            Self::Features { records, .. } => Some(records),
            Self::Images { .. } | Self::Fused { .. } => None,
        }
    }

    /// Width of `matrix`, from the feature files or from one of `networks`.
    #[must_use]
    pub fn width(&self, matrix: &str, networks: &[Network], rule: &InputRule) -> Option<usize> {
        match self {
            Self::Images { .. } | Self::Fused { .. } => networks.iter().find_map(|n| n.spec.width(matrix, rule)),
            Self::Features { parts, .. } => parts.first().and_then(|p| p.width(matrix)),
        }
    }

    /// Range of shard `index` of `count`. Shards consist of whole batches, so a batch holds the same images for every
    /// `count`.
    #[must_use]
    pub fn shard(&self, index: usize, count: usize, batch: usize) -> Range<usize> {
        let batches = self.len().div_ceil(batch);
        let at = |i: usize| (i * batches / count * batch).min(self.len());
        at(index)..at(index + 1)
    }
}

fn ensure_held(missing: Range<usize>, total: usize) -> anyhow::Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let what = format!("images {}..{} of {total} are missing", missing.start, missing.end);
    Err(with_hint(anyhow::anyhow!(what), "pass the files of all shards to `--merge`"))
}

/// What differs between two parts of a set, for messages.
fn difference(a: &FeatureFile, b: &FeatureFile) -> &'static str {
    let (Some(x), Some(y)) = (a.meta(), b.meta()) else { return "their provenance" };
    let runtimes =
        |m: &Meta| -> Vec<Option<Value>> { m.networks.values().map(|n| n.get("runtime").cloned()).collect() };
    let preprocessing =
        |m: &Meta| -> Vec<Option<Value>> { m.networks.values().map(|n| n.get("preprocessing").cloned()).collect() };
    if x.source_sha256 != y.source_sha256 || x.total != y.total || x.images != y.images {
        "their images"
    } else if preprocessing(x) != preprocessing(y) && x.networks.len() == y.networks.len() {
        "the preprocessing of their images"
    } else if runtimes(x) != runtimes(y) && x.networks.len() == y.networks.len() {
        "the runtime of their networks"
    } else if x.networks != y.networks {
        "the networks"
    } else if x.batch != y.batch {
        "the batch size"
    } else {
        "their labels"
    }
}
