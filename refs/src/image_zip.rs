//! Dataset zips as EDM and StyleGAN have them: images sorted by path, classes in `dataset.json`.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};

use fs_err as fs;
use ndarray::{Array4, ArrayView3, Axis, s};
use rayon::prelude::*;
use serde_json::Value;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use crate::atomic::AtomicFile;
use crate::batch::{ImageDims, ImageSource, check_range};
use crate::decode;
use crate::error::{Error, Result};

/// Largest encoded image accepted, bytes.
const MAX_ENTRY: u64 = 256 << 20;
/// Largest `dataset.json` accepted, bytes.
const MAX_JSON: u64 = 512 << 20;
/// Name of the label file.
pub const LABEL_FILE: &str = "dataset.json";

/// A zip of images, read by index.
#[derive(Debug)]
pub struct ImageZip {
    path: PathBuf,
    archive: ZipArchive<fs::File>,
    names: Vec<String>,
    dims: ImageDims,
    labels: Option<Vec<i64>>,
}

impl ImageZip {
    /// Opens `path` and decodes its first image.
    ///
    /// # Errors
    /// `Zip` if it is damaged, `Empty` without images, `Format` for a bad `dataset.json`, `Image` for a bad first image.
    pub fn open(path: &Path) -> Result<Self> {
        let mut archive = ZipArchive::new(fs::File::open(path)?).map_err(|e| Error::zip(path, e))?;
        let names: Result<Vec<_>, _> = archive.file_names().map(|n| n.map(std::borrow::Cow::into_owned)).collect();
        let mut names = names.map_err(|e| Error::zip(path, e))?;
        names.retain(|n| decode::is_image(n));
        names.sort_unstable();
        let Some(first) = names.first() else { return Err(Error::Empty { file: path.to_owned() }) };
        let pixels = decode::rgb(path, first, &entry(path, &mut archive, first, MAX_ENTRY)?)?;
        let (height, width, channels) = pixels.dim();
        let labels = if archive.index_for_name(LABEL_FILE).is_some() {
            let json = entry(path, &mut archive, LABEL_FILE, MAX_JSON)?;
            labels_of(path, &json, &names)?
        } else {
            None
        };
        Ok(Self { path: path.to_owned(), archive, names, dims: ImageDims { height, width, channels }, labels })
    }
}

fn entry(path: &Path, archive: &mut ZipArchive<fs::File>, name: &str, limit: u64) -> Result<Vec<u8>> {
    let file = archive.by_name(name).map_err(|e| Error::zip(path, e))?;
    if file.size() > limit {
        return Err(Error::format(path, name, format!("at most {limit} bytes"), format!("{} bytes", file.size())));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::format(path, name, "a complete entry", e.to_string()))?;
    Ok(bytes)
}

/// Labels of `names` from a `dataset.json`: `{"labels": [["path", 3], …]}` or null. One-hot vectors become their index.
pub(crate) fn labels_of(path: &Path, json: &[u8], names: &[String]) -> Result<Option<Vec<i64>>> {
    let bad = |expected: &str, found: String| Error::format(path, LABEL_FILE, expected, found);
    let parsed: Value = serde_json::from_slice(json).map_err(|e| bad("JSON", e.to_string()))?;
    let rows = match parsed.get("labels") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(rows)) => rows,
        Some(other) => return Err(bad("`labels` as a list or null", other.to_string())),
    };
    let mut by_name = HashMap::with_capacity(rows.len());
    for row in rows {
        let (Some(name), Some(label)) = (row.get(0).and_then(Value::as_str), row.get(1)) else {
            return Err(bad("rows of [path, class]", row.to_string()));
        };
        let class = match label {
            Value::Array(one_hot) => one_hot.iter().position(|v| v.as_f64() == Some(1.0)).map(|i| i as i64),
            other => other.as_i64(),
        };
        by_name.insert(name, class.ok_or_else(|| bad("a class number or one-hot vector", label.to_string()))?);
    }
    names
        .iter()
        .map(|n| {
            by_name.get(n.as_str()).copied().ok_or_else(|| bad("a label for every image", format!("none for `{n}`")))
        })
        .collect::<Result<_>>()
        .map(Some)
}

/// Decodes `encoded` (name, bytes) into u8 `[N, H, W, 3]`; all must have size `dims`.
pub(crate) fn decode_all(
    path: &Path,
    first: &str,
    dims: ImageDims,
    encoded: &[(String, Vec<u8>)],
) -> Result<Array4<u8>> {
    let mut out = Array4::zeros((encoded.len(), dims.height, dims.width, dims.channels));
    let decoded: Vec<_> =
        encoded.par_iter().map(|(name, bytes)| decode::rgb(path, name, bytes)).collect::<Result<_>>()?;
    for ((mut slot, pixels), (name, _)) in out.axis_iter_mut(Axis(0)).zip(decoded).zip(encoded) {
        let (h, w, c) = pixels.dim();
        if (h, w, c) != (dims.height, dims.width, dims.channels) {
            return Err(Error::MixedSizes {
                file: path.to_owned(),
                first: first.to_owned(),
                first_size: format!("{}×{}", dims.width, dims.height),
                other: name.clone(),
                other_size: format!("{w}×{h}"),
            });
        }
        slot.assign(&pixels);
    }
    Ok(out)
}

impl ImageSource for ImageZip {
    fn len(&self) -> usize {
        self.names.len()
    }

    fn dims(&self) -> Option<ImageDims> {
        Some(self.dims)
    }

    fn container(&self) -> &Path {
        &self.path
    }

    fn labels(&self) -> Option<&[i64]> {
        self.labels.as_deref()
    }

    fn name(&self, index: usize) -> String {
        self.names.get(index).map_or_else(|| format!("image {index}"), |n| format!("`{n}`"))
    }

    fn read(&mut self, range: Range<usize>) -> Result<Array4<u8>> {
        check_range(&self.path, &range, self.names.len())?;
        let mut encoded = Vec::with_capacity(range.len());
        for name in &self.names[range] {
            encoded.push((name.clone(), entry(&self.path, &mut self.archive, name, MAX_ENTRY)?));
        }
        decode_all(&self.path, &self.names[0], self.dims, &encoded)
    }
}

/// Writes a dataset zip: `00000/img00000000.png` …, `dataset.json` last, fixed times, stored: equal images give equal bytes.
pub struct DatasetWriter {
    path: PathBuf,
    zip: ZipWriter<AtomicFile>,
    labels: Vec<Option<Value>>,
}

impl std::fmt::Debug for DatasetWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DatasetWriter").field("path", &self.path).field("images", &self.labels.len()).finish()
    }
}

impl DatasetWriter {
    /// Starts writing what will be `path`.
    ///
    /// # Errors
    /// The file system's own.
    pub fn create(path: &Path) -> Result<Self> {
        let zip = ZipWriter::new(AtomicFile::create(path)?);
        Ok(Self { path: path.to_owned(), zip, labels: Vec::new() })
    }

    /// Appends u8 `images [N, H, W, 3]` and their classes.
    ///
    /// # Errors
    /// Encoding and writing errors.
    pub fn append(&mut self, images: &Array4<u8>, labels: Option<&[i64]>) -> Result<()> {
        let start = self.labels.len();
        let encoded: Vec<Vec<u8>> = (0..images.dim().0)
            .into_par_iter()
            .map(|i| {
                let view: ArrayView3<'_, u8> = images.slice(s![i, .., .., ..]);
                decode::png(&self.path, &name_of(start + i), view)
            })
            .collect::<Result<_>>()?;
        for (i, png) in encoded.iter().enumerate() {
            self.entry(&name_of(start + i), png)?;
            self.labels.push(labels.map(|l| l[i].into()));
        }
        Ok(())
    }

    /// Appends an image encoded as PNG, and its label: an integer, or a list of numbers.
    ///
    /// # Errors
    /// Writing errors.
    pub fn append_png(&mut self, png: &[u8], label: Option<Value>) -> Result<()> {
        self.entry(&name_of(self.labels.len()), png)?;
        self.labels.push(label);
        Ok(())
    }

    /// Writes the labels and gives the file its name.
    ///
    /// # Errors
    /// Writing errors.
    pub fn finish(self) -> Result<()> {
        self.finish_with(None)
    }

    /// As [`DatasetWriter::finish`], with `record`, where the images come from, under `d2o` in `dataset.json`.
    ///
    /// # Errors
    /// Writing errors.
    pub fn finish_with(mut self, record: Option<&Value>) -> Result<()> {
        let labels: Option<Vec<Value>> = std::mem::take(&mut self.labels).into_iter().collect();
        let json = label_file((0..).map(name_of), labels.as_deref(), record);
        self.entry(LABEL_FILE, json.as_bytes())?;
        let file = self.zip.finish().map_err(|e| Error::zip(&self.path, e))?;
        file.commit()?;
        Ok(())
    }

    fn entry(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(zip::DateTime::default())
            .unix_permissions(0o644);
        self.zip.start_file(name, options).map_err(|e| Error::zip(&self.path, e))?;
        self.zip.write_all(bytes)?;
        Ok(())
    }
}

/// The text of `dataset.json` for images `names` with `labels` (classes, or JSON values) of the same number; `record` tells where they come from.
pub fn label_file<L: serde::Serialize>(
    names: impl Iterator<Item = String>,
    labels: Option<&[L]>,
    record: Option<&Value>,
) -> String {
    let rows = labels.filter(|l| !l.is_empty()).map(|l| names.zip(l).map(|(n, l)| serde_json::json!([n, l])));
    let mut json = serde_json::json!({ "labels": rows.map(Iterator::collect::<Vec<_>>) });
    if let Some(record) = record {
        json["d2o"] = record.clone();
    }
    json.to_string()
}

/// Name of image `index` in a dataset: `00000/img00000000.png`.
#[must_use]
pub fn name_of(index: usize) -> String {
    format!("{:05}/img{index:08}.png", index / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(n: usize) -> Array4<u8> {
        Array4::from_shape_fn((n, 4, 5, 3), |(i, y, x, c)| u8::try_from((i * 60 + y * 15 + x * 3 + c) % 256).unwrap())
    }

    #[test]
    fn round_trip_with_labels_and_equal_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let path = dir.path().join(name);
            let mut writer = DatasetWriter::create(&path).unwrap();
            writer.append(&images(3), Some(&[2, 0, 1])).unwrap();
            writer.finish().unwrap();
            path
        };
        let (a, b) = (write("a.zip"), write("b.zip"));
        assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap());
        let mut zip = ImageZip::open(&a).unwrap();
        assert_eq!(zip.labels(), Some(&[2, 0, 1][..]));
        assert_eq!(zip.read(0..3).unwrap(), images(3));
        assert!(zip.read(2..4).unwrap_err().to_string().contains("2..4"));
    }

    #[test]
    fn a_truncated_zip_is_an_error_naming_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.zip");
        let mut writer = DatasetWriter::create(&path).unwrap();
        writer.append(&images(3), None).unwrap();
        writer.finish().unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(ImageZip::open(&path).unwrap_err().to_string().contains("a.zip"));
    }

    #[test]
    fn mixed_sizes_name_both_images() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.zip");
        let mut writer = DatasetWriter::create(&path).unwrap();
        writer.append(&images(1), None).unwrap();
        writer.append(&Array4::zeros((1, 2, 2, 3)), None).unwrap();
        writer.finish().unwrap();
        let text = ImageZip::open(&path).unwrap().read(0..2).unwrap_err().to_string();
        assert!(text.contains("img00000000.png` is 5×4") && text.contains("img00000001.png` is 2×2"), "{text}");
    }
}
