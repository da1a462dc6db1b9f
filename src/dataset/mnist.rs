//! IDX files of MNIST and similar sets, gzipped or not.

use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use d2o_refs::limits::Unpacked;
use flate2::read::GzDecoder;
use fs_err as fs;
use ndarray::{Array3, s};

/// Magic bytes of an IDX file of u8 `[N, H, W]`.
pub(super) const IMAGES_MAGIC: [u8; 4] = [0, 0, 8, 3];
/// Magic bytes of an IDX file of u8 `[N]`.
const LABELS_MAGIC: [u8; 4] = [0, 0, 8, 1];
/// Largest number of labels, which are kept in memory.
const MAX_LABELS: usize = 1 << 28;
/// Largest image accepted, pixels.
const MAX_PIXELS: usize = 1 << 24;
/// Height and width of images that are padded, pixels.
const SIDE: usize = 28;
/// Rows and columns of zeros added on each side: 28 becomes 32, as in EDM's `dataset_tool.py` for MNIST.
const PAD: usize = 2;

/// Images of an IDX file, one after another.
pub(super) struct Idx {
    path: PathBuf,
    reader: Box<dyn Read + Send>,
    /// Number of images.
    pub(super) len: usize,
    height: usize,
    width: usize,
    at: usize,
}

impl std::fmt::Debug for Idx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Idx").field("path", &self.path).field("len", &self.len).finish_non_exhaustive()
    }
}

impl Idx {
    /// Opens an IDX file of images.
    ///
    /// # Errors
    /// If the file is not an IDX file of images, or its images are too large.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let mut reader = plain(path)?;
        let [len, height, width] = header(path, &mut reader, IMAGES_MAGIC)?;
        let pixels = height.checked_mul(width).filter(|n| (1..=MAX_PIXELS).contains(n));
        ensure!(
            pixels.is_some(),
            "`{}`: expected images of 1 to {MAX_PIXELS} pixels, found {width}×{height}",
            path.display()
        );
        let unpacked = (len as u64).saturating_mul((height * width) as u64);
        Unpacked::of(fs::metadata(path)?.len()).add(path, "images", unpacked)?;
        Ok(Self { path: path.to_owned(), reader, len, height, width, at: 0 })
    }

    fn image(&mut self) -> anyhow::Result<Array3<u8>> {
        let mut pixels = vec![0; self.height * self.width];
        let place = || format!("`{}`: image {} of {}", self.path.display(), self.at, self.len);
        self.reader.read_exact(&mut pixels).with_context(place)?;
        let image = Array3::from_shape_vec((self.height, self.width, 1), pixels)?;
        if [self.height, self.width] != [SIDE, SIDE] {
            return Ok(image);
        }
        let mut padded = Array3::zeros((SIDE + 2 * PAD, SIDE + 2 * PAD, 1));
        padded.slice_mut(s![PAD..PAD + SIDE, PAD..PAD + SIDE, ..]).assign(&image);
        Ok(padded)
    }
}

impl Iterator for Idx {
    type Item = anyhow::Result<Array3<u8>>;

    /// The next image, u8 `[H, W, 1]`; 28×28 is padded to 32×32.
    fn next(&mut self) -> Option<Self::Item> {
        if self.at == self.len {
            return None;
        }
        let image = self.image();
        self.at = if image.is_ok() { self.at + 1 } else { self.len };
        Some(image)
    }
}

/// The label file next to the image file `path`, if it exists under MNIST's naming scheme.
#[must_use]
pub(super) fn label_file(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let labels = name.replacen("-images-idx3-ubyte", "-labels-idx1-ubyte", 1);
    let found = path.with_file_name(&labels);
    (labels != name && found.is_file()).then_some(found)
}

/// Reads an IDX file of `len` labels.
///
/// # Errors
/// If the file is not an IDX file of labels, or holds a different number of labels.
pub(super) fn labels(path: &Path, len: usize) -> anyhow::Result<Vec<u8>> {
    let mut reader = plain(path)?;
    let [found] = header(path, &mut reader, LABELS_MAGIC)?;
    ensure!(found == len, "`{}`: expected {len} labels, one for each image, found {found}", path.display());
    ensure!(len <= MAX_LABELS, "`{}`: expected at most {MAX_LABELS} labels, found {len}", path.display());
    let mut labels = Vec::new();
    reader.take(len as u64).read_to_end(&mut labels).with_context(|| format!("`{}`: labels", path.display()))?;
    ensure!(labels.len() == len, "`{}`: expected {len} labels, found {}", path.display(), labels.len());
    Ok(labels)
}

/// Reader of the content of the file, unpacked if it is gzipped.
fn plain(path: &Path) -> anyhow::Result<Box<dyn Read + Send>> {
    let mut file = BufReader::new(d2o_refs::open_file(path, "an IDX file")?);
    let gzipped = file.fill_buf()?.starts_with(&super::source::GZIP);
    Ok(if gzipped { Box::new(BufReader::new(GzDecoder::new(file))) } else { Box::new(file) })
}

/// Checks the magic bytes and reads the dimensions that follow.
fn header<const N: usize>(path: &Path, reader: &mut impl Read, magic: [u8; 4]) -> anyhow::Result<[usize; N]> {
    let place = || format!("`{}`: IDX header", path.display());
    let mut word = [0; 4];
    reader.read_exact(&mut word).with_context(place)?;
    ensure!(word == magic, "{}: expected {magic:02x?}, found {word:02x?}", place());
    let mut dims = [0; N];
    for dim in &mut dims {
        reader.read_exact(&mut word).with_context(place)?;
        *dim = usize::try_from(u32::from_be_bytes(word))?;
    }
    Ok(dims)
}
