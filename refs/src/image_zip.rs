//! Dataset zips as EDM and StyleGAN have them: images sorted by path, classes in `dataset.json`.

use std::io::{Read, Seek, SeekFrom, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fs_err as fs;
use ndarray::{Array3, Array4, ArrayView3, Axis, s};
use rayon::prelude::*;
use serde_json::Value;
use zip::ZipArchive;

use crate::atomic::AtomicZip;
use crate::batch::{ImageDims, ImageSource, check_range, mixed_sizes};
use crate::decode;
use crate::error::{Error, Result};
pub use crate::labels::LABEL_FILE;
use crate::labels::{Labels, of_folders, of_json};
use crate::listing::LeftOut;

/// Largest encoded image accepted, bytes.
pub const MAX_ENTRY: u64 = 256 << 20;
/// Largest `dataset.json` accepted, bytes.
pub const MAX_JSON: u64 = 512 << 20;
/// Bytes of an image that are read first for its size.
pub(crate) const HEAD: u64 = 1 << 16;

/// A zip of images, read by index. Hidden files and files with other endings are left out, as in [`crate::folder::Folder`].
#[derive(Debug)]
pub struct ImageZip {
    path: PathBuf,
    archive: ZipArchive<SharedFile>,
    /// Name and index in the archive, by name.
    entries: Vec<(String, usize)>,
    sizes: Sizes,
    labels: Labels,
    notes: Vec<String>,
}

impl ImageZip {
    /// Opens `path` and reads the header of every image.
    ///
    /// # Errors
    /// `Zip` if it is damaged, `Empty` without images, `Image` or `Format` for an image whose size cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let mut archive = ZipArchive::new(SharedFile::open(path)?).map_err(|e| Error::zip(path, e))?;
        let (mut left, mut entries) = (LeftOut::default(), Vec::new());
        for index in 0..archive.len() {
            let entry = archive.by_index_raw(index).map_err(|e| Error::zip(path, e))?;
            // Names that are not UTF-8 are shown with replacements; entries are read by index.
            let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
            if !entry.is_dir() && left.takes(&name) {
                entries.push((name, index));
            }
        }
        entries.sort_unstable();
        if entries.is_empty() {
            return Err(Error::Empty { file: path.to_owned() });
        }
        let sizes = entries
            .par_iter()
            .map_with(archive.clone(), |archive, (name, index)| {
                size_of(path, name, |limit| read(path, archive, name, *index, limit))
            })
            .collect::<Result<Vec<_>>>()?;
        let names: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
        let labels = match archive.index_for_name(LABEL_FILE) {
            Some(index) => of_json(&whole(path, &mut archive, LABEL_FILE, index, MAX_JSON)?, &names),
            None => of_folders(&names),
        };
        Ok(Self { path: path.to_owned(), archive, sizes: Sizes::of(sizes), labels, notes: left.notes(), entries })
    }

    fn decode(&self, range: Range<usize>) -> Result<Vec<Array3<u8>>> {
        check_range(&self.path, &range, self.entries.len())?;
        let entries = self.entries[range].par_iter();
        let encoded = entries.map_with(self.archive.clone(), |archive, (name, index)| {
            (name.as_str(), whole(&self.path, archive, name, *index, MAX_ENTRY))
        });
        decode_each(&self.path, encoded)
    }
}

/// The first `limit` bytes of an entry, and whether that is all of it; the CRC-32 of a whole one is checked.
fn read(
    path: &Path,
    archive: &mut ZipArchive<SharedFile>,
    name: &str,
    index: usize,
    limit: u64,
) -> Result<(Vec<u8>, bool)> {
    let mut entry = archive.by_index(index).map_err(|e| Error::zip(path, e))?;
    let mut bytes = Vec::new();
    let failed = |e: std::io::Error| Error::format(path, name, "a complete entry", e.to_string());
    (&mut entry).take(limit).read_to_end(&mut bytes).map_err(failed)?;
    let complete = (bytes.len() as u64) < limit || entry.read(&mut [0]).map_err(failed)? == 0;
    Ok((bytes, complete))
}

fn whole(path: &Path, archive: &mut ZipArchive<SharedFile>, name: &str, index: usize, limit: u64) -> Result<Vec<u8>> {
    match read(path, archive, name, index, limit)? {
        (bytes, true) => Ok(bytes),
        (_, false) => Err(Error::format(path, name, format!("at most {limit} bytes"), "more")),
    }
}

/// Height and width of one encoded image. `read` gives its first bytes, and whether that is all of them.
pub(crate) fn size_of(
    file: &Path,
    name: &str,
    mut read: impl FnMut(u64) -> Result<(Vec<u8>, bool)>,
) -> Result<(usize, usize)> {
    let (head, complete) = read(HEAD)?;
    // An error may only mean that the header goes on.
    match decode::dims(file, name, &head) {
        Ok(Some(size)) => return Ok(size),
        Err(e) if complete => return Err(e),
        _ => {}
    }
    let bytes = if complete {
        head
    } else {
        match read(MAX_ENTRY)? {
            (bytes, true) => bytes,
            (_, false) => return Err(Error::format(file, name, format!("at most {MAX_ENTRY} bytes"), "more")),
        }
    };
    match decode::dims(file, name, &bytes)? {
        Some(size) => Ok(size),
        None => decode::rgb(file, name, &bytes).map(|image| (image.dim().0, image.dim().1)),
    }
}

/// Decodes images, given by name and encoded bytes, to u8 `[H, W, 3]` each.
pub(crate) fn decode_each<'a>(
    path: &Path,
    encoded: impl IndexedParallelIterator<Item = (&'a str, Result<Vec<u8>>)>,
) -> Result<Vec<Array3<u8>>> {
    encoded.map(|(name, bytes)| decode::rgb(path, name, &bytes?)).collect()
}

/// `images`, which are images `range` of `source`, as u8 `[N, H, W, 3]`.
pub(crate) fn stack(source: &dyn ImageSource, range: Range<usize>, images: Vec<Array3<u8>>) -> Result<Array4<u8>> {
    let size = |image: &Array3<u8>| ImageDims { height: image.dim().0, width: image.dim().1, channels: 3 };
    let first = images.first().map(size).or_else(|| source.dims());
    let Some(dims) = first else {
        let empty = ImageDims { height: 0, width: 0, channels: 3 };
        return Ok(Array4::zeros((0, empty.height, empty.width, empty.channels)));
    };
    if let Some(other) = images.iter().position(|image| size(image) != dims) {
        let (first, index) = (range.start, range.start + other);
        return Err(mixed_sizes(source, (first, dims), (index, size(&images[other]))));
    }
    let mut out = Array4::zeros((images.len(), dims.height, dims.width, dims.channels));
    for (mut slot, image) in out.axis_iter_mut(Axis(0)).zip(&images) {
        slot.assign(image);
    }
    Ok(out)
}

/// Sizes of the images of a set.
#[derive(Debug, Clone)]
pub(crate) enum Sizes {
    /// Height and width of every image.
    Shared(usize, usize),
    /// Height and width of each image.
    Each(Vec<(usize, usize)>),
}

impl Sizes {
    pub(crate) fn of(sizes: Vec<(usize, usize)>) -> Self {
        match sizes.first() {
            Some(&(height, width)) if sizes.iter().all(|s| *s == (height, width)) => Self::Shared(height, width),
            _ => Self::Each(sizes),
        }
    }

    pub(crate) fn shared(&self) -> Option<ImageDims> {
        match *self {
            Self::Shared(height, width) => Some(ImageDims { height, width, channels: 3 }),
            Self::Each(_) => None,
        }
    }

    /// Size of image `index`, which must lie in the set.
    pub(crate) fn get(&self, index: usize) -> Option<ImageDims> {
        match self {
            Self::Shared(..) => self.shared(),
            Self::Each(sizes) => sizes.get(index).map(|&(height, width)| ImageDims { height, width, channels: 3 }),
        }
    }
}

/// A file that several threads read at their own positions.
#[derive(Debug, Clone)]
pub(crate) struct SharedFile {
    file: Arc<fs::File>,
    length: u64,
    at: u64,
}

impl SharedFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = fs::File::open(path)?;
        Ok(Self { length: file.metadata()?.len(), file: Arc::new(file), at: 0 })
    }
}

impl Read for SharedFile {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        #[cfg(unix)]
        let count = std::os::unix::fs::FileExt::read_at(self.file.file(), buffer, self.at)?;
        #[cfg(windows)]
        let count = std::os::windows::fs::FileExt::seek_read(self.file.file(), buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for SharedFile {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidInput, "seek before the start"))?;
        Ok(self.at)
    }
}

impl ImageSource for ImageZip {
    fn len(&self) -> usize {
        self.entries.len()
    }

    fn dims(&self) -> Option<ImageDims> {
        self.sizes.shared()
    }

    fn size(&self, index: usize) -> Option<ImageDims> {
        self.sizes.get(index).filter(|_| index < self.entries.len())
    }

    fn container(&self) -> &Path {
        &self.path
    }

    fn labels(&self) -> Option<&[i64]> {
        self.labels.classes()
    }

    fn label_problem(&self) -> Option<&str> {
        self.labels.problem()
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn name(&self, index: usize) -> String {
        self.entries.get(index).map_or_else(|| format!("image {index}"), |(name, _)| format!("`{name}`"))
    }

    fn read(&mut self, range: Range<usize>) -> Result<Array4<u8>> {
        stack(self, range.clone(), self.decode(range)?)
    }

    fn read_each(&mut self, range: Range<usize>) -> Result<Vec<Array3<u8>>> {
        self.decode(range)
    }
}

/// Writes a dataset zip: `00000/img00000000.png` …, `dataset.json` last, fixed times, stored: equal images give equal bytes.
pub struct DatasetWriter {
    path: PathBuf,
    zip: AtomicZip,
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
        Ok(Self { path: path.to_owned(), zip: AtomicZip::create(path)?, labels: Vec::new() })
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
        self.zip.finish()
    }

    fn entry(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.zip.start(name, bytes.len() as u64)?;
        self.zip.writer()?.write_all(bytes)?;
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
    fn hidden_entries_are_left_out_and_a_wrong_crc_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.zip");
        let mut writer = DatasetWriter::create(&path).unwrap();
        writer.append(&images(2), None).unwrap();
        for name in ["__MACOSX/00000/._img00000000.png", ".hidden/x.png", "notes.txt"] {
            writer.entry(name, b"not an image").unwrap();
        }
        writer.finish().unwrap();
        let mut zip = ImageZip::open(&path).unwrap();
        assert_eq!(zip.notes(), ["left out 3 files (2 hidden, 1 .txt)"]);
        assert_eq!(zip.read(0..2).unwrap(), images(2));
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.windows(4).position(|w| w == b"IEND").unwrap();
        bytes[at + 5] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let text = ImageZip::open(&path).and_then(|mut z| z.read(0..2)).unwrap_err().to_string();
        assert!(text.contains("img00000000.png") && text.contains("checksum"), "{text}");
    }

    #[test]
    fn labels_that_are_not_classes_leave_the_images_usable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.zip");
        let mut writer = DatasetWriter::create(&path).unwrap();
        writer.append(&images(2), Some(&[3, -1])).unwrap();
        writer.finish().unwrap();
        let mut zip = ImageZip::open(&path).unwrap();
        assert_eq!(zip.labels(), None);
        assert!(zip.label_problem().unwrap().contains("img00000001.png` in `dataset.json` is -1"));
        assert_eq!(zip.read(0..2).unwrap(), images(2));
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
