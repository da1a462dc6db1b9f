//! Feature files: outputs of feature networks for a set of images in HDF5, one row per image.
//!
//! | dataset | content |
//! |---|---|
//! | `features`, `logits`, `spatial`, `clip`, `manifold` f32 `[N, D]` | outputs of the feature networks; a file can contain any of them |
//! | `labels` i64 `[N]` | classes, if the images have them |
//! | `image_sha256` u8 `[N, 32]` | SHA-256 of the pixels of each image |
//! | `d2o_meta` u8 | JSON, [`Meta`]; absent in files of other tools |

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use d2o_budget::Budget;
use d2o_files::hex;
use ndarray::{Array2, ArrayView2, s};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::batch::{Digest, ImageDims, check_range};
use crate::error::{Error, Result};
use crate::hdf5;
use crate::labels::Labels;
use crate::limits::exceeded;

/// Names of the matrices that a feature file can contain.
pub const MATRICES: [&str; 5] = ["features", LOGITS, "spatial", "clip", MANIFOLD];
const LOGITS: &str = "logits";
const MANIFOLD: &str = "manifold";
const LABELS: &str = "labels";
const DIGESTS: &str = "image_sha256";
const META: &str = "d2o_meta";
/// Version of the layout.
const VERSION: u32 = 2;
/// Approximate size of a chunk, bytes.
const CHUNK_BYTES: usize = 1 << 20;
/// Rows read at a time by [`FeatureFile::verify`].
const ROWS: usize = 256;
/// Longest metadata accepted, bytes.
const MAX_META: u64 = 1 << 24;
/// Largest number of features accepted for a file of any size. The limit concerns the covariance, a square matrix.
const MAX_WIDTH: usize = 2896;

/// Metadata of a feature file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// Version of the layout.
    #[serde(default)]
    pub d2o_features: u32,
    /// Hash of the container of the images, same as `batch::container_sha256`, or of the record of the generator.
    pub source_sha256: String,
    /// Number of images in that container.
    pub total: usize,
    /// Range of these images that the file covers.
    pub rows: Range<usize>,
    /// Size of the images; absent if they differ in size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<ImageDims>,
    /// Batch size of the networks.
    pub batch: usize,
    /// Descriptions of the networks by role: `features`, `clip`, `manifold`.
    pub networks: BTreeMap<String, Value>,
    /// How a generator made the images, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generator: Option<Value>,
    /// SHA-256 of the values of each dataset (little endian).
    #[serde(default)]
    pub sha256: BTreeMap<String, String>,
}

/// An open feature file.
#[derive(Debug)]
pub struct FeatureFile {
    path: PathBuf,
    len: usize,
    matrices: BTreeMap<String, (hdf5::Data, usize)>,
    labels: Labels,
    digests: Option<Vec<Digest>>,
    meta: Option<Meta>,
}

impl FeatureFile {
    /// Whether `path` is an HDF5 file with a feature matrix.
    #[must_use]
    pub fn is_feature_file(path: &Path) -> bool {
        path.is_file() && hdf5::Opened::open(path).is_ok_and(|file| MATRICES.iter().any(|m| file.has(m)))
    }

    /// Opens `path` and reads everything except the matrices.
    ///
    /// # Errors
    /// `Hdf5` if the file is damaged. `Format` if there is no matrix, matrices have different lengths or are too large
    /// for the file size, or the metadata do not match the matrices. `Empty` without rows.
    pub fn open(path: &Path) -> Result<Self> {
        let file = hdf5::Opened::open(path)?;
        let mut budget = Budget::of_file(file.packed);
        let mut matrices = BTreeMap::new();
        let mut len = None;
        for name in MATRICES.into_iter().filter(|n| file.has(n)) {
            let data = file.dataset(name)?;
            let &[rows, width] = data.shape().as_slice() else {
                return Err(Error::format(path, name, "two axes", format!("{:?}", data.shape())));
            };
            let expected = *len.get_or_insert(rows);
            if rows != expected || width == 0 {
                let found = format!("[{rows}, {width}]");
                return Err(Error::format(path, name, format!("{expected} rows of at least one number"), found));
            }
            // Metrics keep and decompose the covariance of these matrices, which has `width` × `width` values.
            let most = (MAX_WIDTH * MAX_WIDTH).max(usize::try_from(file.packed / 4).unwrap_or(usize::MAX));
            if !matches!(name, LOGITS | MANIFOLD) && width.saturating_mul(width) > most {
                let expected = format!("a covariance of at most {most} values for a file of this size");
                return Err(Error::format(path, name, expected, format!("[{rows}, {width}]")));
            }
            let bytes = rows.saturating_mul(width).saturating_mul(size_of::<f32>());
            budget.bytes(bytes.max(data.row_chunk_bytes)).map_err(exceeded(path, name))?;
            matrices.insert(name.to_owned(), (data, width));
        }
        let Some(len) = len else {
            let expected = format!("one of {}", MATRICES.join(", "));
            return Err(Error::format(path, "datasets", expected, format!("only {}", file.shown())));
        };
        if len == 0 {
            return Err(Error::empty(path, ""));
        }
        let labels =
            if file.has(LABELS) { hdf5::labels_of(&file, LABELS, file.member(LABELS)?, len) } else { Labels::None };
        let digests = if file.has(DIGESTS) {
            let data = file.dataset(DIGESTS)?;
            if data.shape() != [len, 32] {
                return Err(Error::format(path, DIGESTS, format!("[{len}, 32]"), format!("{:?}", data.shape())));
            }
            budget.bytes(len.saturating_mul(2 * 32)).map_err(exceeded(path, DIGESTS))?;
            let bytes = data.all::<u8>()?;
            Some(bytes.chunks_exact(32).map(|c| std::array::from_fn(|i| c[i])).collect())
        } else {
            None
        };
        let meta = if file.has(META) {
            let text = file.bytes(META, MAX_META)?;
            let meta: Meta =
                serde_json::from_slice(&text).map_err(|e| Error::format(path, META, "JSON", e.to_string()))?;
            if meta.d2o_features != VERSION {
                return Err(Error::format(path, META, format!("version {VERSION}"), meta.d2o_features.to_string()));
            }
            if meta.rows.len() != len || meta.rows.end > meta.total || digests.is_none() {
                let expected = format!("{len} rows of {}, each with the hash of its image", meta.total);
                return Err(Error::format(path, META, expected, format!("{:?}", meta.rows)));
            }
            Some(meta)
        } else {
            None
        };
        Ok(Self { path: path.to_owned(), len, matrices, labels, digests, meta })
    }

    /// Path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Class of each image; `None` without classes.
    #[must_use]
    pub fn labels(&self) -> Option<&[i64]> {
        self.labels.classes()
    }

    /// Why the labels of the file are not classes.
    #[must_use]
    pub fn label_problem(&self) -> Option<&str> {
        self.labels.problem()
    }

    /// SHA-256 of the pixels of each image.
    #[must_use]
    pub fn digests(&self) -> Option<&[Digest]> {
        self.digests.as_deref()
    }

    /// Metadata; `None` for a file of another tool.
    #[must_use]
    pub fn meta(&self) -> Option<&Meta> {
        self.meta.as_ref()
    }

    /// Length of the rows of matrix `name`; `None` if there is no such matrix.
    #[must_use]
    pub fn width(&self, name: &str) -> Option<usize> {
        self.matrices.get(name).map(|(_, w)| *w)
    }

    /// Rows `range` of matrix `name`.
    ///
    /// # Errors
    /// `Format` if there is no such matrix or row; `Hdf5` for a damaged file.
    pub fn read(&self, name: &str, range: Range<usize>) -> Result<Array2<f32>> {
        check_range(&self.path, &range, self.len)?;
        let Some((data, _)) = self.matrices.get(name) else {
            let found = format!("only {}", self.matrices.keys().cloned().collect::<Vec<_>>().join(", "));
            return Err(Error::format(&self.path, "datasets", format!("`{name}`"), found));
        };
        data.slice(s![range, ..])
    }

    /// Compares the SHA-256 of every dataset with that in the metadata. A file without metadata passes.
    ///
    /// # Errors
    /// `Format` naming the dataset that differs; `Hdf5` for a damaged file.
    pub fn verify(&self) -> Result<()> {
        let Some(meta) = &self.meta else { return Ok(()) };
        let check = |name: &str, hash: Sha256| {
            let found = hex(&hash.finalize());
            match meta.sha256.get(name) {
                Some(expected) if *expected == found => Ok(()),
                expected => {
                    let expected = expected.map_or("no such dataset".to_owned(), |e| format!("sha256 {e}"));
                    Err(Error::format(&self.path, name, expected, format!("sha256 {found}")))
                }
            }
        };
        for name in self.matrices.keys() {
            let mut hash = Sha256::new();
            for start in (0..self.len).step_by(ROWS) {
                hash_rows(&mut hash, self.read(name, start..(start + ROWS).min(self.len))?.view());
            }
            check(name, hash)?;
        }
        if let Some(labels) = self.labels() {
            check(LABELS, hash_of(labels.iter().map(|l| l.to_le_bytes())))?;
        }
        if let Some(digests) = &self.digests {
            check(DIGESTS, hash_of(digests.iter().copied()))?;
        }
        let here = |name: &str| match name {
            LABELS => self.labels().is_some(),
            DIGESTS => self.digests.is_some(),
            other => self.matrices.contains_key(other),
        };
        match meta.sha256.keys().find(|n| !here(n)) {
            Some(name) => Err(Error::format(&self.path, "datasets", format!("`{name}`"), "no such dataset")),
            None => Ok(()),
        }
    }
}

fn hash_of<const N: usize>(values: impl Iterator<Item = [u8; N]>) -> Sha256 {
    let mut hash = Sha256::new();
    values.for_each(|v| hash.update(v));
    hash
}

fn hash_rows(hash: &mut Sha256, rows: ArrayView2<'_, f32>) {
    let mut bytes = Vec::with_capacity(4 * rows.ncols());
    for row in rows.outer_iter() {
        bytes.clear();
        bytes.extend(row.iter().flat_map(|v| v.to_le_bytes()));
        hash.update(&bytes);
    }
}

/// Writes a feature file batch by batch. The file appears at its path once it is complete.
pub struct FeatureWriter {
    target: PathBuf,
    matrices: BTreeMap<String, (::hdf5::Dataset, Sha256)>,
    output: hdf5::Output,
    digests: Vec<Digest>,
    meta: Meta,
}

impl std::fmt::Debug for FeatureWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FeatureWriter").field("target", &self.target).field("rows", &self.digests.len()).finish()
    }
}

impl FeatureWriter {
    /// Starts a feature file with the rows `meta.rows` that appears at `path` once it is finished.
    /// [`FeatureWriter::finish`] sets the version and the hashes of `meta`.
    ///
    /// # Errors
    /// `Hdf5` or `Io` if the file cannot be created.
    pub fn create(path: &Path, meta: Meta) -> Result<Self> {
        Ok(Self {
            target: path.to_owned(),
            matrices: BTreeMap::new(),
            output: hdf5::Output::create(path)?,
            digests: Vec::with_capacity(meta.rows.len()),
            meta,
        })
    }

    /// Appends one batch: the digest of each image, and for each matrix one row per image.
    ///
    /// # Errors
    /// `Hdf5` or `Io` if writing fails; `Hdf5` also for more rows than `meta.rows`.
    pub fn append(&mut self, digests: &[Digest], matrices: &[(&str, ArrayView2<'_, f32>)]) -> Result<()> {
        let (at, len) = (self.digests.len(), self.meta.rows.len());
        let failed = |source| hdf5::failed(&self.target, source);
        for (name, rows) in matrices {
            if !self.matrices.contains_key(*name) {
                let width = rows.ncols();
                let chunk = (CHUNK_BYTES / (4 * width.max(1))).clamp(1, len.max(1));
                let data = self.output.dataset(|file| {
                    file.new_dataset::<f32>().shape((len, width)).chunk((chunk, width)).fletcher32().create(*name)
                })?;
                self.matrices.insert((*name).to_owned(), (data, Sha256::new()));
            }
            let Some((data, hash)) = self.matrices.get_mut(*name) else { continue };
            data.write_slice(rows, s![at..at + rows.nrows(), ..]).map_err(failed)?;
            hash_rows(hash, *rows);
        }
        self.digests.extend_from_slice(digests);
        Ok(())
    }

    /// Writes the classes of the rows and the metadata, closes the file and moves it to its path.
    ///
    /// # Errors
    /// `Format` if there are fewer or more rows than `meta.rows`; `Hdf5` or `Io` if writing fails.
    pub fn finish(self, labels: Option<&[i64]>) -> Result<()> {
        let Self { target, matrices, mut output, digests, mut meta } = self;
        let failed = |source| hdf5::failed(&target, source);
        if digests.len() != meta.rows.len() {
            let expected = format!("{} rows", meta.rows.len());
            return Err(Error::format(&target, "features", expected, format!("{} rows", digests.len())));
        }
        meta.d2o_features = VERSION;
        meta.sha256 = matrices.into_iter().map(|(name, (_, hash))| (name, hex(&hash.finalize()))).collect();
        if let Some(labels) = labels {
            let data = output.dataset(|file| file.new_dataset::<i64>().shape(labels.len()).create(LABELS))?;
            data.write_raw(labels).map_err(failed)?;
            meta.sha256.insert(LABELS.to_owned(), hex(&hash_of(labels.iter().map(|l| l.to_le_bytes())).finalize()));
        }
        let bytes: Vec<u8> = digests.iter().flatten().copied().collect();
        let data = output.dataset(|file| file.new_dataset::<u8>().shape((digests.len(), 32)).create(DIGESTS))?;
        data.write_raw(&bytes).map_err(failed)?;
        drop(data);
        meta.sha256.insert(DIGESTS.to_owned(), hex(&hash_of(digests.into_iter()).finalize()));
        let text = serde_json::to_vec(&meta).map_err(|e| Error::format(&target, META, "JSON", e.to_string()))?;
        // A checksum protects the hashes themselves.
        let data = output
            .dataset(|file| file.new_dataset::<u8>().shape(text.len()).chunk(text.len()).fletcher32().create(META))?;
        data.write_raw(&text).map_err(failed)?;
        drop(data);
        output.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(rows: Range<usize>) -> Meta {
        Meta {
            d2o_features: 0,
            source_sha256: "s".to_owned(),
            total: 700,
            rows,
            images: Some(ImageDims { height: 2, width: 2, channels: 3 }),
            batch: 64,
            networks: BTreeMap::new(),
            generator: None,
            sha256: BTreeMap::new(),
        }
    }

    #[test]
    fn widths_whose_covariance_the_file_does_not_explain_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.h5");
        for (name, width, most) in
            [("features", 3000, "covariance"), ("logits", 3000, ""), ("manifold", 1 << 26, "MiB of memory")]
        {
            let file = ::hdf5::File::create(&path).unwrap();
            let chunk = (1, width.min(1 << 20));
            let data = file.new_dataset::<f32>().shape((2, width)).chunk(chunk).deflate(9).create(name).unwrap();
            data.write(&Array2::<f32>::zeros((2, width))).unwrap();
            drop((data, file));
            match FeatureFile::open(&path) {
                Ok(file) => assert!(most.is_empty() && file.width(name) == Some(width), "{name}"),
                Err(e) => assert!(!most.is_empty() && e.to_string().contains(most), "{name}: {e}"),
            }
        }
    }

    fn write(path: &Path, rows: Range<usize>) -> Array2<f32> {
        let n = rows.len();
        let x = Array2::from_shape_fn((n, 5), |(i, j)| i as f32 + j as f32 / 8.0);
        let mut writer = FeatureWriter::create(path, meta(rows)).unwrap();
        for start in (0..n).step_by(64) {
            let end = (start + 64).min(n);
            let part = x.slice(s![start..end, ..]);
            writer.append(&vec![[7; 32]; end - start], &[("features", part), ("clip", part)]).unwrap();
        }
        writer.finish(Some(&vec![3; n])).unwrap();
        x
    }

    #[test]
    fn round_trip_and_equal_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.h5");
        let x = write(&path, 100..650);
        let file = FeatureFile::open(&path).unwrap();
        file.verify().unwrap();
        assert!(FeatureFile::is_feature_file(&path));
        assert_eq!((file.len(), file.width("clip"), file.width("logits")), (550, Some(5), None));
        assert_eq!(file.read("features", 200..400).unwrap(), x.slice(s![200..400, ..]));
        assert_eq!(file.labels().unwrap()[549], 3);
        assert_eq!(file.meta().unwrap().rows, 100..650);
        assert!(file.read("logits", 0..1).unwrap_err().to_string().contains("only clip, features"));
        // If HDF5 stored the time of writing, in seconds, the files would differ.
        std::thread::sleep(std::time::Duration::from_millis(1100));
        let again = dir.path().join("again.h5");
        write(&again, 100..650);
        assert!(fs_err::read(&path).unwrap() == fs_err::read(&again).unwrap(), "the same content in other bytes");
    }

    #[test]
    fn a_changed_byte_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.h5");
        write(&path, 0..300);
        let bytes = fs_err::read(&path).unwrap();
        let pattern: Vec<u8> = 77.125_f32.to_le_bytes().to_vec();
        let at = bytes.windows(4).position(|w| w == pattern).unwrap();
        for (position, mask) in [(at + 1, 0x10), (at + 3, 0x01)] {
            let mut changed = bytes.clone();
            changed[position] ^= mask;
            fs_err::write(&path, &changed).unwrap();
            let found = FeatureFile::open(&path).and_then(|f| f.verify());
            assert!(found.is_err_and(|e| e.to_string().contains("f.h5")));
        }
        for keep in [0, 100, bytes.len() / 2, bytes.len() - 1] {
            fs_err::write(&path, &bytes[..keep]).unwrap();
            assert!(FeatureFile::open(&path).and_then(|f| f.verify()).is_err(), "{keep} bytes");
        }
        let text = bytes.windows(13).position(|w| w == b"source_sha256").unwrap();
        let mut changed = bytes;
        changed[text + 17] ^= 1;
        fs_err::write(&path, &changed).unwrap();
        assert!(FeatureFile::open(&path).is_err());
    }

    #[test]
    fn files_of_other_tools_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.h5");
        let file = ::hdf5::File::create(&path).unwrap();
        let data = file.new_dataset::<f64>().shape((3, 2)).create("features").unwrap();
        data.write_raw(&[0.5, 1.5, 2.5, 3.5, 4.5, 5.5]).unwrap();
        file.close().unwrap();
        let file = FeatureFile::open(&path).unwrap();
        assert_eq!(file.read("features", 1..3).unwrap(), ndarray::array![[2.5, 3.5], [4.5, 5.5]]);
        assert!(file.meta().is_none() && file.verify().is_ok());
    }
}
