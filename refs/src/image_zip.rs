//! Dataset zips in the layout of EDM and StyleGAN: images sorted by path, classes in `dataset.json`.

use std::ops::Range;
use std::path::{Path, PathBuf};

use ndarray::{Array3, Array4, ArrayView3, Axis, s};
use rayon::prelude::*;
use serde_json::Value;

use crate::archive::Archive;
use crate::batch::{ImageDims, ImageSource, check_range, mixed_sizes};
use crate::decode;
use crate::error::{Error, Result};
pub use crate::labels::LABEL_FILE;
use crate::labels::{Labels, of_folders, of_json};
use crate::limits::Unpacked;
use crate::listing::LeftOut;
use crate::zip_writer::AtomicZip;

/// Largest encoded image accepted, bytes.
pub const MAX_ENTRY: u64 = 256 << 20;
/// Largest `dataset.json` accepted, bytes.
pub const MAX_JSON: u64 = 512 << 20;
/// Bytes of an image that are read first to find its size.
pub(crate) const HEAD: u64 = 1 << 16;

/// A zip of images, read by index. Hidden files and files with other extensions are skipped, as in [`crate::folder::Folder`].
#[derive(Debug)]
pub struct ImageZip {
    path: PathBuf,
    archive: Archive,
    sizes: Sizes,
    labels: Labels,
    notes: Vec<String>,
}

impl ImageZip {
    /// Opens the zip at `path` and reads the header of every image.
    ///
    /// # Errors
    /// `Missing`. `Format` if the file is not a zip archive, is damaged, or its images decode to more than [`Unpacked`]
    /// allows. `Empty` without images. `Image` or `Format` if the size of an image cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        Self::of(Archive::open(path, "a zip archive of images")?)
    }

    /// Same as [`ImageZip::open`], for an open archive.
    pub(crate) fn of(mut archive: Archive) -> Result<Self> {
        let path = archive.path().to_owned();
        let json = archive.label_file()?;
        let mut left = LeftOut::default();
        archive.retain(|name| !name.ends_with(['/', '\\']) && left.takes(name));
        if archive.is_empty() {
            return Err(left.empty(&path));
        }
        let size = |i| size_of(&path, archive.name(i), |limit| archive.read(i, limit));
        let sizes = (0..archive.len()).into_par_iter().map(size).collect::<Result<Vec<_>>>()?;
        let names: Vec<&str> = (0..archive.len()).map(|i| archive.name(i)).collect();
        let labels = match json {
            Some(json) => of_json(&json, &names),
            None => of_folders(&names),
        };
        let opened = Self { path, archive, sizes: Sizes::of(sizes), labels, notes: left.notes() };
        Unpacked::of(opened.archive.packed()).images(&opened)?;
        Ok(opened)
    }

    fn decode(&self, range: Range<usize>) -> Result<Vec<Array3<u8>>> {
        check_range(&self.path, &range, self.archive.len())?;
        let encoded = |i| (self.archive.name(i), self.archive.whole(i, MAX_ENTRY));
        decode_each(&self.path, range.into_par_iter().map(encoded))
    }
}

/// Height and width of one encoded image. `read(limit)` returns at most its first `limit` bytes, and whether these are
/// all.
pub(crate) fn size_of(
    file: &Path,
    name: &str,
    mut read: impl FnMut(u64) -> Result<(Vec<u8>, bool)>,
) -> Result<(usize, usize)> {
    let (head, complete) = read(HEAD)?;
    // For incomplete bytes, an error can mean that the header is longer than `HEAD`.
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

/// `images`, the images `range` of `source`, as u8 `[N, H, W, 3]`.
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
    // A single image can be large, so it is not copied.
    let images = match <[Array3<u8>; 1]>::try_from(images) {
        Ok([image]) => return Ok(image.insert_axis(Axis(0))),
        Err(images) => images,
    };
    let mut out = Array4::zeros((images.len(), dims.height, dims.width, dims.channels));
    for (mut slot, image) in out.axis_iter_mut(Axis(0)).zip(&images) {
        slot.assign(image);
    }
    Ok(out)
}

/// Name of image `index` in messages: its file name `name`, or its index if `name` is empty.
pub(crate) fn shown(index: usize, name: &str) -> String {
    if name.is_empty() { format!("image {index}") } else { format!("`{name}`") }
}

/// Sizes of the images of a set.
#[derive(Debug, Clone)]
pub(crate) enum Sizes {
    /// Height and width shared by all images.
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

    /// Size of image `index`. The caller checks that `index` is below the number of images.
    pub(crate) fn get(&self, index: usize) -> Option<ImageDims> {
        match self {
            Self::Shared(..) => self.shared(),
            Self::Each(sizes) => sizes.get(index).map(|&(height, width)| ImageDims { height, width, channels: 3 }),
        }
    }
}

impl ImageSource for ImageZip {
    fn len(&self) -> usize {
        self.archive.len()
    }

    fn dims(&self) -> Option<ImageDims> {
        self.sizes.shared()
    }

    fn size(&self, index: usize) -> Option<ImageDims> {
        self.sizes.get(index).filter(|_| index < self.archive.len())
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
        shown(index, self.archive.name(index))
    }

    fn read(&mut self, range: Range<usize>) -> Result<Array4<u8>> {
        stack(self, range.clone(), self.decode(range)?)
    }

    fn read_each(&mut self, range: Range<usize>) -> Result<Vec<Array3<u8>>> {
        self.decode(range)
    }
}

/// Writes a dataset zip: `00000/img00000000.png` …, then `dataset.json`. Entries are stored with fixed times, so equal
/// images give equal bytes.
pub struct DatasetWriter {
    path: PathBuf,
    zip: AtomicZip,
    images: usize,
    /// The rows of the label file, as JSON.
    rows: String,
    /// Whether every image has a label.
    labelled: bool,
}

impl std::fmt::Debug for DatasetWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DatasetWriter").field("path", &self.path).field("images", &self.images).finish()
    }
}

impl DatasetWriter {
    /// Starts a zip that appears at `path` once it is finished.
    ///
    /// # Errors
    /// `Io` if the file cannot be created.
    pub fn create(path: &Path) -> Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            zip: AtomicZip::create(path)?,
            images: 0,
            rows: String::new(),
            labelled: true,
        })
    }

    /// Appends u8 `images [N, H, W, 3]` and their classes.
    ///
    /// # Errors
    /// If an image cannot be encoded or written.
    pub fn append(&mut self, images: &Array4<u8>, labels: Option<&[i64]>) -> Result<()> {
        let start = self.images;
        let encoded: Vec<Vec<u8>> = (0..images.dim().0)
            .into_par_iter()
            .map(|i| {
                let view: ArrayView3<'_, u8> = images.slice(s![i, .., .., ..]);
                decode::png(&self.path, &name_of(start + i), view)
            })
            .collect::<Result<_>>()?;
        for (i, png) in encoded.iter().enumerate() {
            self.append_png(png, labels.map(|l| l[i].into()))?;
        }
        Ok(())
    }

    /// Appends an image encoded as PNG, and its label: an integer or a list of numbers.
    ///
    /// # Errors
    /// If writing fails.
    pub fn append_png(&mut self, png: &[u8], label: Option<Value>) -> Result<()> {
        let name = name_of(self.images);
        self.zip.whole(&name, png)?;
        self.images += 1;
        match label {
            Some(label) if self.labelled => push_row(&mut self.rows, &name, &label),
            _ => {
                self.labelled = false;
                self.rows = String::new();
            }
        }
        Ok(())
    }

    /// Writes the label file and moves the zip to its path.
    ///
    /// # Errors
    /// If writing fails.
    pub fn finish(self) -> Result<()> {
        self.finish_with(None)
    }

    /// Same as [`DatasetWriter::finish`]. Also writes `record`, the origin of the images, under `d2o` in
    /// `dataset.json`.
    ///
    /// # Errors
    /// If writing fails.
    pub fn finish_with(mut self, record: Option<&Value>) -> Result<()> {
        self.zip.whole(LABEL_FILE, label_text(std::mem::take(&mut self.rows), record).as_bytes())?;
        self.zip.finish()
    }
}

/// Adds `["name",label]` to the JSON `rows`.
fn push_row(rows: &mut String, name: &str, label: &impl serde::Serialize) {
    if !rows.is_empty() {
        rows.push(',');
    }
    rows.push_str(&serde_json::json!([name, label]).to_string());
}

/// The text of a label file with `rows`; `labels` is null if `rows` is empty.
fn label_text(rows: String, record: Option<&Value>) -> String {
    let mut text = String::with_capacity(rows.len() + 64);
    text.push_str("{\"labels\":");
    if rows.is_empty() {
        text.push_str("null");
    } else {
        text.push('[');
        text.push_str(&rows);
        text.push(']');
    }
    drop(rows);
    if let Some(record) = record {
        text.push_str(",\"d2o\":");
        text.push_str(&record.to_string());
    }
    text.push('}');
    text
}

/// The text of `dataset.json` for images `names` and as many `labels` (classes or JSON values). `record` is the origin
/// of the images.
pub fn label_file<L: serde::Serialize>(
    names: impl Iterator<Item = String>,
    labels: Option<&[L]>,
    record: Option<&Value>,
) -> String {
    let mut rows = String::new();
    for (name, label) in names.zip(labels.unwrap_or_default()) {
        push_row(&mut rows, &name, label);
    }
    label_text(rows, record)
}

/// Name of image `index` in a dataset: `00000/img00000000.png`.
#[must_use]
pub fn name_of(index: usize) -> String {
    format!("{:05}/img{index:08}.png", index / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fs_err as fs;

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
    fn a_label_file_is_no_larger_than_its_images_explain() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.zip");
        let mut zip = zip::ZipWriter::new(fs::File::create(&path).unwrap());
        zip.start_file(LABEL_FILE, zip::write::SimpleFileOptions::default()).unwrap();
        std::io::Write::write_all(&mut zip, &vec![b' '; 65 << 20]).unwrap();
        zip.finish().unwrap();
        let text = ImageZip::open(&path).unwrap_err().to_string();
        assert!(text.contains("dataset.json: expected at most 67"), "{text}");
    }

    #[test]
    fn images_decode_to_no_more_than_their_zip_explains() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.zip");
        // Only the header contains the size.
        let mut png = decode::png(&path, "", Array3::zeros((1, 1, 3)).view()).unwrap();
        png[16..24].copy_from_slice(&[0, 0, 0x20, 0, 0, 0, 0x20, 0]);
        let crc = crc32fast::hash(&png[12..29]);
        png[29..33].copy_from_slice(&crc.to_be_bytes());
        let write = |count: usize| {
            let mut writer = DatasetWriter::create(&path).unwrap();
            (0..count).for_each(|_| writer.append_png(&png, None).unwrap());
            writer.finish().unwrap();
            ImageZip::open(&path)
        };
        assert_eq!(write(3).unwrap().len(), 3);
        let text = write(5).unwrap_err().to_string();
        assert!(text.contains("images: expected at most 8") && text.contains("when unpacked"), "{text}");
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
            writer.zip.whole(name, b"not an image").unwrap();
        }
        writer.finish().unwrap();
        let mut zip = ImageZip::open(&path).unwrap();
        assert_eq!(zip.notes(), ["skipped 3 files (2 hidden, 1 .txt)"]);
        assert_eq!(zip.read(0..2).unwrap(), images(2));
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.windows(4).position(|w| w == b"IEND").unwrap();
        bytes[at + 5] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let text = ImageZip::open(&path).and_then(|mut z| z.read(0..2)).unwrap_err().to_string();
        assert!(text.contains("img00000000.png: expected data of CRC-32"), "{text}");
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
