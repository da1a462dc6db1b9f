//! Image sets, addressed by index, independent of the container.

use std::ops::Range;
use std::path::Path;

use d2o_files::hex;
use fs_err as fs;
use ndarray::{Array3, Array4, ArrayView4, Axis};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::archive::Archive;
use crate::error::{Error, Result};
use crate::limits::HELD;
use crate::{folder, hdf5, image_zip, kind, listing, npy, npz};

/// Size of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDims {
    /// Rows, pixels.
    pub height: usize,
    /// Columns, pixels.
    pub width: usize,
    /// Colour channels; 3 after decoding.
    pub channels: usize,
}

/// `W×H`.
impl std::fmt::Display for ImageDims {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}×{}", self.width, self.height)
    }
}

/// A set of RGB images, addressed by index.
pub trait ImageSource: Send {
    /// Number of images.
    fn len(&self) -> usize;

    /// Whether there are no images.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size shared by all images; `None` if sizes differ.
    fn dims(&self) -> Option<ImageDims>;

    /// Size of image `index`; `None` if there is no such image.
    fn size(&self, index: usize) -> Option<ImageDims> {
        self.dims().filter(|_| index < self.len())
    }

    /// The file or folder with the images, for messages.
    fn container(&self) -> &Path {
        Path::new("images")
    }

    /// Class of each image; `None` without labels, or with labels that are not classes ([`ImageSource::label_problem`]).
    fn labels(&self) -> Option<&[i64]>;

    /// Why the labels of the container are not classes, e.g. "row 3 of `labels` is 0.7".
    fn label_problem(&self) -> Option<&str> {
        None
    }

    /// Skipped files of the set and the reasons, one line per kind, e.g. "skipped 5 files (2 hidden, 3 .txt)".
    fn notes(&self) -> &[String] {
        &[]
    }

    /// Name of image `index` in messages: its file name if it has one.
    fn name(&self, index: usize) -> String {
        format!("image {index}")
    }

    /// Images `range`, u8 `[N, H, W, 3]`, in the order of the set.
    ///
    /// # Errors
    /// `Format` if the range lies outside the set; `MixedSizes` naming two images if their sizes differ; reading and decoding errors
    /// naming the image.
    fn read(&mut self, range: Range<usize>) -> Result<Array4<u8>>;

    /// Checks the CRC-32 of an array that the reads so far did not read to its end. A set that was read to its end is
    /// not read again.
    ///
    /// # Errors
    /// `Format` for damaged data.
    fn verify(&mut self) -> Result<()> {
        Ok(())
    }

    /// Images `range`, each u8 `[H, W, 3]`, of any sizes, in the order of the set.
    ///
    /// # Errors
    /// Those of [`ImageSource::read`] except `MixedSizes`.
    fn read_each(&mut self, range: Range<usize>) -> Result<Vec<Array3<u8>>> {
        let images = self.read(range)?;
        // A single image can be large, so it is not copied.
        Ok(if images.dim().0 == 1 {
            vec![images.index_axis_move(Axis(0), 0)]
        } else {
            images.outer_iter().map(|image| image.to_owned()).collect()
        })
    }
}

/// Splits `range` of `source` into parts of at most `most` images and [`HELD`] bytes of RGB pixels. A larger image is a
/// part of its own.
pub fn parts(source: &dyn ImageSource, range: Range<usize>, most: usize) -> Vec<Range<usize>> {
    let bytes = |d: ImageDims| d.height.saturating_mul(d.width).saturating_mul(3);
    if let Some(dims) = source.dims() {
        let step = most.clamp(1, (HELD / bytes(dims).max(1)).max(1));
        return range.clone().step_by(step).map(|start| start..(start + step).min(range.end)).collect();
    }
    let (mut found, mut start, mut held) = (Vec::new(), range.start, 0_usize);
    for i in range.clone() {
        let here = source.size(i).map_or(0, bytes);
        held = held.saturating_add(here);
        if i > start && (held > HELD || i - start == most) {
            found.push(start..i);
            (start, held) = (i, here);
        }
    }
    found.extend((start < range.end).then_some(start..range.end));
    found
}

/// Size shared by all images of `source`.
///
/// # Errors
/// `MixedSizes` with the first image and the first one of another size; `Empty` without images.
pub fn uniform(source: &dyn ImageSource) -> Result<ImageDims> {
    if let Some(dims) = source.dims() {
        return Ok(dims);
    }
    let Some(first) = source.size(0) else { return Err(Error::empty(source.container(), "")) };
    let other = (1..source.len()).find_map(|i| Some((i, source.size(i).filter(|size| *size != first)?)));
    other.map_or(Ok(first), |other| Err(mixed_sizes(source, (0, first), other)))
}

/// `MixedSizes` for two images of `source`, given by index and size.
pub(crate) fn mixed_sizes(source: &dyn ImageSource, first: (usize, ImageDims), other: (usize, ImageDims)) -> Error {
    let name = |index| source.name(index).trim_matches('`').to_owned();
    Error::MixedSizes {
        file: source.container().to_owned(),
        first: name(first.0),
        first_size: first.1.to_string().into(),
        other: name(other.0),
        other_size: other.1.to_string().into(),
    }
}

/// Splits `FILE::NAME` into the file and the name of the array in it. A path that exists is not split, nor one whose
/// `FILE` does not exist.
#[must_use]
pub fn split_name(path: &Path) -> (&Path, Option<&str>) {
    match path.to_str().and_then(|text| text.rsplit_once("::")) {
        Some((file, name)) if !name.is_empty() && fs::symlink_metadata(path).is_err() && Path::new(file).exists() => {
            (Path::new(file), Some(name))
        }
        _ => (path, None),
    }
}

/// Opens an npz or npy pack, an HDF5 file, a dataset zip or a folder of images. The content determines the format.
/// `FILE::NAME` selects one array of an npz or one dataset of an HDF5 file.
///
/// # Errors
/// `Missing`; `Format` with the kind of the file if it is none of these; `Empty` without images; those of the
/// container.
pub fn open(path: &Path) -> Result<Box<dyn ImageSource>> {
    let (path, name) = split_name(path);
    let whole = |kind: &str| match name {
        Some(name) => Err(Error::format(path, name, "an array of an npz or HDF5 file", kind)),
        None => Ok(()),
    };
    const EXPECTED: &str = "an npz, npy, HDF5 or zip file, or a folder of images";
    if kind::metadata(path)?.is_dir() {
        whole("a folder")?;
        return Ok(Box::new(folder::Folder::open(path)?));
    }
    let mut file = kind::open(path, EXPECTED)?;
    let head = kind::head(&mut file)?;
    if head.starts_with(npy::MAGIC) {
        whole("a single array")?;
        Ok(Box::new(npz::Pack::of_npy(path, file)?))
    } else if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
        let archive = Archive::of(path, file, EXPECTED)?;
        if archive.has_arrays() {
            Ok(Box::new(npz::Pack::of(npz::Npz::of(archive), name)?))
        } else {
            whole("a zip of images")?;
            Ok(Box::new(image_zip::ImageZip::of(archive)?))
        }
    } else if hdf5::is_hdf5(&mut file)? {
        Ok(Box::new(hdf5::Hdf5Images::open_dataset(path, name)?))
    } else {
        Err(kind::unexpected(&mut file, path, EXPECTED))
    }
}

/// SHA-256 of the pixels of one image.
pub type Digest = [u8; 32];

/// SHA-256 over `[N, H, W, C]` (each u64, little endian) and the SHA-256 of the pixels of each image. The hash does not
/// depend on the container, and parts of a set can be hashed separately. For images of different sizes see
/// [`ContentHash::mixed`] and [`digests_each`].
///
/// # Errors
/// Those of [`ImageSource::read`].
pub fn content_sha256(source: &mut dyn ImageSource) -> Result<String> {
    const CHUNK: usize = 256;
    let dims = source.dims();
    let mut hash = dims.map_or_else(|| ContentHash::mixed(source.len()), |dims| ContentHash::new(source.len(), dims));
    for range in parts(source, 0..source.len(), CHUNK) {
        hash.update(&match dims {
            Some(_) => digests(&source.read(range)?.view()),
            None => digests_each(&source.read_each(range)?),
        });
    }
    Ok(hash.finish())
}

/// SHA-256 of the pixels of each of `images [N, H, W, 3]`.
#[must_use]
pub fn digests(images: &ArrayView4<'_, u8>) -> Vec<Digest> {
    let images = images.as_standard_layout();
    let size = images.len() / images.dim().0.max(1);
    images.as_slice().unwrap_or(&[]).par_chunks(size.max(1)).map(|pixels| Sha256::digest(pixels).into()).collect()
}

/// SHA-256 of each of `images`, of any sizes: over height and width (u64, little endian) and the pixels.
#[must_use]
pub fn digests_each(images: &[Array3<u8>]) -> Vec<Digest> {
    let digest = |image: &Array3<u8>| {
        let mut hash = Sha256::new();
        let (height, width, _) = image.dim();
        for n in [height, width] {
            hash.update((n as u64).to_le_bytes());
        }
        hash.update(image.as_standard_layout().as_slice().unwrap_or(&[]));
        hash.finalize().into()
    };
    images.par_iter().map(digest).collect()
}

/// Computes [`content_sha256`] from images that are read in order.
#[derive(Debug, Clone)]
pub struct ContentHash(Sha256);

impl ContentHash {
    /// Starts the hash of `len` images of size `dims`.
    #[must_use]
    pub fn new(len: usize, dims: ImageDims) -> Self {
        let mut hash = Sha256::new();
        for n in [len, dims.height, dims.width, dims.channels] {
            hash.update((n as u64).to_le_bytes());
        }
        Self(hash)
    }

    /// Starts the hash of `len` images of different sizes, to be added by [`digests_each`]. Same as
    /// [`ContentHash::new`] with height and width 0.
    #[must_use]
    pub fn mixed(len: usize) -> Self {
        Self::new(len, ImageDims { height: 0, width: 0, channels: 3 })
    }

    /// Adds the digests of the next images.
    pub fn update(&mut self, digests: &[Digest]) {
        digests.iter().for_each(|d| self.0.update(d));
    }

    /// The hash, in hexadecimal.
    #[must_use]
    pub fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

/// SHA-256 of the file at `path`. For a folder, the hash covers the name, length and bytes of each file in it that is
/// not hidden, sorted by path. For `FILE::NAME` the name is hashed too.
///
/// # Errors
/// If reading fails; `Format` if the length of a file in a folder changes while it is read.
pub fn container_sha256(path: &Path) -> Result<String> {
    let (path, name) = split_name(path);
    let mut hash = Sha256::new();
    if kind::metadata(path)?.is_dir() {
        for found in listing::files(path)?.0 {
            let mut file = kind::open(&path.join(&found.path), "a file")?;
            let length = file.metadata()?.len();
            hash.update((found.name.len() as u64).to_le_bytes());
            hash.update(&found.name);
            hash.update(length.to_le_bytes());
            let copied = std::io::copy(&mut file, &mut HashWriter(&mut hash))?;
            if copied != length {
                let (expected, found_length) = (format!("{length} bytes"), format!("{copied} bytes"));
                return Err(Error::format(path, found.name, expected, found_length));
            }
        }
    } else {
        std::io::copy(&mut kind::open(path, "a file")?, &mut HashWriter(&mut hash))?;
    }
    if let Some(name) = name {
        // Different arrays of one file are different sets.
        hash.update(format!("::{name}"));
    }
    Ok(hex(&hash.finalize()))
}

struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// `Format` unless `range` lies in a set of `len` images.
pub(crate) fn check_range(file: &Path, range: &Range<usize>, len: usize) -> Result<()> {
    if range.start <= range.end && range.end <= len {
        Ok(())
    } else {
        Err(Error::format(file, "image index", format!("0 to {len}"), format!("{}..{}", range.start, range.end)))
    }
}
