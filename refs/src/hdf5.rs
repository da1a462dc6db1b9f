//! HDF5: images (`images` u8 [N, H, W, 3], `labels`, `seeds`), chunked and compressed.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use ::hdf5::types::TypeDescriptor;
use ::hdf5::{Dataset, H5Type};
use ndarray::{Array4, s};

use crate::atomic::AtomicPath;
use crate::batch::{ImageDims, ImageSource, check_range};
use crate::error::{Error, Result};
use crate::features::MATRICES;
use crate::labels::{self, Labels, Values};
use crate::pixels::{self, Layout};

/// Name of the image dataset that is written.
const IMAGES: &str = "images";
/// Names a class dataset may have, best first.
const LABEL_NAMES: [&str; 2] = ["labels", "arr_1"];
/// Images in a chunk.
const CHUNK: usize = 16;
const GZIP: u8 = 4;
/// First bytes of an HDF5 file or, after a user block, of its superblock.
const MAGIC: &[u8; 8] = b"\x89HDF\r\n\x1a\n";
/// Smallest user block; others are a power of two times it.
const USER_BLOCK: u64 = 512;
/// Virtual datasets of virtual datasets that are followed.
const MAX_VIRTUAL: usize = 8;
/// Most values of a label dataset.
const MAX_LABELS: usize = 1 << 28;
/// Values that are converted to pixels at a time.
const BLOCK: usize = 1 << 22;

/// Whether the file at `path` is HDF5, with or without a user block.
///
/// # Errors
/// Reading errors.
pub fn is_hdf5(path: &Path) -> Result<bool> {
    let mut file = fs_err::File::open(path)?;
    let length = file.metadata()?.len();
    let (mut at, mut found) = (0, [0; MAGIC.len()]);
    while at + MAGIC.len() as u64 <= length {
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut found)?;
        if found == *MAGIC {
            return Ok(true);
        }
        at = if at == 0 { USER_BLOCK } else { 2 * at };
    }
    Ok(false)
}

/// Opens an HDF5 file for reading. The library does not print its errors.
pub(crate) fn open(path: &Path) -> Result<::hdf5::File> {
    ::hdf5::silence_errors(true);
    ::hdf5::File::open(path).map_err(|source| Error::Hdf5 { file: path.to_owned(), source })
}

/// Creates an HDF5 file for writing. No times are kept: equal content gives equal bytes.
pub(crate) fn create(partial: &AtomicPath) -> Result<::hdf5::File> {
    ::hdf5::silence_errors(true);
    let mut builder = ::hdf5::FileBuilder::new();
    builder.with_fcpl(|plist| plist.obj_track_times(false));
    // The temporary file is locked already.
    builder.with_fapl(|plist| plist.file_locking(false));
    builder.create(partial.path()).map_err(|source| Error::Hdf5 { file: partial.target().to_owned(), source })
}

/// How values of a dataset are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// u8.
    Bytes,
    /// Integers that fit i64, and booleans.
    Integers,
    /// u64.
    Unsigned,
    Floats,
}

fn kind(data: &Dataset) -> Option<Kind> {
    use ::hdf5::types::IntSize;
    match data.dtype().and_then(|t| t.to_descriptor()).ok()? {
        TypeDescriptor::Unsigned(IntSize::U1) => Some(Kind::Bytes),
        TypeDescriptor::Unsigned(IntSize::U8) => Some(Kind::Unsigned),
        TypeDescriptor::Integer(_) | TypeDescriptor::Unsigned(_) | TypeDescriptor::Boolean => Some(Kind::Integers),
        TypeDescriptor::Float(_) => Some(Kind::Floats),
        _ => None,
    }
}

/// Type and shape, for messages.
fn describe(data: &Dataset) -> String {
    let kind = data.dtype().and_then(|t| t.to_descriptor()).map_or_else(|_| "unknown type".to_owned(), |t| t.to_string());
    format!("{kind} {:?}", data.shape())
}

/// Whether all of dataset `name` was written: every chunk is there, and every file that holds parts of it. Where one is missing, HDF5 gives
/// zeros without an error.
///
/// # Errors
/// `Format` naming what is missing.
pub(crate) fn check_complete(file: &Path, name: &str, data: &Dataset) -> Result<()> {
    check_parts(file, name, data, 0)
}

fn check_parts(file: &Path, name: &str, data: &Dataset, depth: usize) -> Result<()> {
    use ::hdf5::plist::dataset_create::Layout as Storage;
    let failed = |source| Error::Hdf5 { file: file.to_owned(), source };
    let shape = data.get_shape().map_err(failed)?;
    let plist = data.dcpl().map_err(failed)?;
    let elements = shape.iter().try_fold(1_usize, |n, d| n.checked_mul(*d));
    let Some(elements) = elements else {
        return Err(Error::format(file, name, "a dataset of at most 2^64 values", format!("{shape:?}")));
    };
    match plist.get_layout().map_err(failed)? {
        Storage::Chunked => {
            let chunk = data.chunk().unwrap_or_default();
            let expected = shape.iter().zip(&chunk).try_fold(1_usize, |n, (d, c)| n.checked_mul(d.div_ceil((*c).max(1))));
            let found = data.num_chunks().unwrap_or(0);
            if expected != Some(found) {
                let expected = expected.map_or("more".to_owned(), |n| n.to_string());
                let found = format!("{found}: the file was not written to its end");
                return Err(Error::format(file, name, format!("{expected} chunks"), found));
            }
        }
        Storage::Virtual => check_sources(file, name, &plist, &shape, elements, depth)?,
        Storage::Contiguous => {
            let parts = plist.get_external().map_err(failed)?;
            for part in &parts {
                check_external(file, name, part)?;
            }
            if parts.is_empty() && data.storage_size() == 0 && elements > 0 {
                return Err(Error::format(file, name, "data", "none: the dataset was never written"));
            }
        }
        Storage::Compact => {}
    }
    Ok(())
}

/// HDF5 looks for external files in the current folder and reads zeros beyond their end.
fn check_external(file: &Path, name: &str, part: &::hdf5::plist::dataset_create::ExternalFile) -> Result<()> {
    let expected = |what: &str| format!("{what} external file `{}`, relative to the current folder", part.name);
    let Ok(found) = fs_err::metadata(&part.name) else {
        let beside = file.parent().is_some_and(|folder| folder.join(&part.name).exists());
        let hint = if beside { "; it lies beside the HDF5 file: run d2o in that folder" } else { "" };
        return Err(Error::format(file, name, expected("the"), format!("no such file{hint}")));
    };
    // A size beyond any file means "to its end".
    let end = (part.offset as u64).checked_add(part.size as u64).filter(|end| i64::try_from(*end).is_ok());
    if end.is_some_and(|end| end > found.len()) {
        let end = end.unwrap_or(0);
        return Err(Error::format(file, name, format!("{end} bytes in the {}", expected("")), found.len().to_string()));
    }
    Ok(())
}

fn check_sources(
    file: &Path,
    name: &str,
    plist: &::hdf5::plist::DatasetCreate,
    shape: &[usize],
    elements: usize,
    depth: usize,
) -> Result<()> {
    let failed = |source| Error::Hdf5 { file: file.to_owned(), source };
    if depth >= MAX_VIRTUAL {
        return Err(Error::format(file, name, format!("at most {MAX_VIRTUAL} nested virtual datasets"), "more"));
    }
    let mut mapped = 0_usize;
    for part in plist.get_virtual_map().map_err(failed)? {
        let covered = part.vds_selection.out_shape(shape).map_err(failed)?;
        mapped = mapped.saturating_add(covered.iter().product());
        // `%b` stands for the number of a source; HDF5 sizes such a dataset by the sources that are there.
        if part.src_filename.contains('%') {
            continue;
        }
        let place = format!("{name}, part `{}` of `{}`", part.src_dataset, part.src_filename);
        let path = if part.src_filename == "." { Some(file.to_owned()) } else { source_path(file, &part.src_filename) };
        let Some(path) = path else {
            return Err(Error::format(file, place, "the source of a virtual dataset", "no such file"));
        };
        let source = open(&path)?;
        let Ok(data) = source.dataset(&part.src_dataset) else {
            return Err(Error::format(file, place, "the source of a virtual dataset", "no such dataset"));
        };
        let (expected, found) = (part.src_extents.dims(), data.shape());
        if expected.len() != found.len() || expected.iter().zip(&found).any(|(e, f)| f < e) {
            return Err(Error::format(file, place, format!("shape {expected:?}"), format!("{found:?}")));
        }
        check_parts(&path, &part.src_dataset, &data, depth + 1)?;
    }
    if mapped < elements {
        let expected = format!("sources for all {elements} values of the virtual dataset");
        return Err(Error::format(file, name, expected, format!("sources for {mapped}")));
    }
    Ok(())
}

/// Where HDF5 finds the source `name` of a virtual dataset in `file`.
fn source_path(file: &Path, name: &str) -> Option<PathBuf> {
    let folder = file.parent().unwrap_or(Path::new(""));
    let name = Path::new(name);
    let beside = name.file_name().map(|n| folder.join(n));
    let candidates = [Some(name.to_owned()).filter(|n| n.is_absolute()), Some(folder.join(name)), beside, Some(name.to_owned())];
    candidates.into_iter().flatten().find(|path| path.is_file())
}

/// Classes of `count` images from dataset `name`; its size is checked before it is read.
pub(crate) fn labels_of(path: &Path, name: &str, data: &Dataset, count: usize) -> Labels {
    let shape = data.shape();
    if let Err(problem) = labels::check_shape(name, &shape, count) {
        return Labels::Problem(problem);
    }
    if shape.iter().try_fold(1_usize, |n, d| n.checked_mul(*d)).is_none_or(|n| n > MAX_LABELS) {
        return Labels::Problem(format!("`{name}` has shape {shape:?}"));
    }
    if let Err(e) = check_complete(path, name, data) {
        return Labels::Problem(e.to_string());
    }
    let values = match kind(data) {
        Some(Kind::Bytes | Kind::Integers) => data.read_raw().map(Values::Integers),
        Some(Kind::Unsigned) => data.read_raw().map(Values::Unsigned),
        Some(Kind::Floats) => data.read_raw().map(Values::Floats),
        None => return Labels::Problem(format!("`{name}` holds {}", describe(data))),
    };
    match values {
        Ok(values) => labels::of_array(name, &shape, &values, count),
        Err(e) => Labels::Problem(format!("`{name}` cannot be read: {e}")),
    }
}

/// Images of an HDF5 file, in the layouts and types of [`crate::npz::Pack`].
#[derive(Debug)]
pub struct Hdf5Images {
    path: PathBuf,
    name: String,
    images: Dataset,
    kind: Kind,
    layout: Layout,
    len: usize,
    dims: ImageDims,
    labels: Labels,
}

impl Hdf5Images {
    /// Opens the only image dataset of `path`, and its classes in `labels` or `arr_1`.
    ///
    /// # Errors
    /// `Hdf5` if it is damaged; `Format` without an image dataset, with several of them, or if parts of it are missing.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_dataset(path, None)
    }

    /// As [`Hdf5Images::open`], with the image dataset `name`, which may lie in a group; `None` takes the only one.
    ///
    /// # Errors
    /// Those of [`Hdf5Images::open`]; `Format` if there is no dataset `name`.
    pub fn open_dataset(path: &Path, name: Option<&str>) -> Result<Self> {
        let failed = |source| Error::Hdf5 { file: path.to_owned(), source };
        let file = open(path)?;
        let names = file.member_names().map_err(failed)?;
        let name = match name {
            Some(name) => name.to_owned(),
            None => choose(path, &file, &names)?,
        };
        let Ok(images) = file.dataset(&name) else {
            let found = format!("only {}", names.join(", "));
            return Err(Error::format(path, "datasets", format!("images in `{name}`"), found));
        };
        let shape = images.get_shape().map_err(failed)?;
        let (layout, dims) = pixels::layout(&shape).map_err(|problem| {
            Error::format(path, &name, pixels::EXPECTED, format!("{}: {problem}", describe(&images)))
        })?;
        let Some(kind) = kind(&images) else {
            return Err(Error::format(path, &name, "integers or floats", describe(&images)));
        };
        let len = shape.first().copied().unwrap_or(0);
        if len == 0 {
            return Err(Error::Empty { file: path.to_owned() });
        }
        check_complete(path, &name, &images)?;
        let candidates = LABEL_NAMES.map(str::to_owned).into_iter().chain([name.replace("images", "labels")]);
        let labels = candidates
            .filter(|n| *n != name)
            .find_map(|n| file.dataset(&n).ok().filter(|d| pixels::layout(&d.shape()).is_err()).map(|d| (n, d)))
            .map_or(Labels::None, |(n, data)| labels_of(path, &n, &data, len));
        let mut opened = Self { path: path.to_owned(), name, images, kind, layout, len, dims, labels };
        if kind == Kind::Floats {
            opened.check_floats()?;
        } else if kind != Kind::Bytes {
            opened.read(0..1)?;
        }
        Ok(opened)
    }

    /// As the check of float arrays in npz files.
    fn check_floats(&mut self) -> Result<()> {
        let mut largest = 0;
        for start in (0..self.len).step_by(CHUNK) {
            let images = self.read(start..(start + CHUNK).min(self.len))?;
            largest = largest.max(images.iter().copied().max().unwrap_or(0));
        }
        if largest > 1 {
            return Ok(());
        }
        Err(Error::format(&self.path, &self.name, pixels::FLOATS, "floats of 0 and 1 only"))
    }

    fn slice<T: H5Type>(&self, range: Range<usize>) -> Result<Vec<T>> {
        let read = match self.images.ndim() {
            3 => self.images.read_slice::<T, _, ndarray::Ix3>(s![range, .., ..]).map(|a| a.into_raw_vec_and_offset().0),
            _ => self.images.read_slice::<T, _, ndarray::Ix4>(s![range, .., .., ..]).map(|a| a.into_raw_vec_and_offset().0),
        };
        read.map_err(|source| Error::Hdf5 { file: self.path.clone(), source })
    }

    /// Values of images `range` as pixels: whole numbers from 0 to 255 only.
    fn converted<T: H5Type + Copy + std::fmt::Display>(
        &self,
        range: Range<usize>,
        expected: &str,
        convert: impl Fn(T) -> Option<u8>,
    ) -> Result<Vec<u8>> {
        let shape = self.images.shape();
        let row: usize = shape.iter().skip(1).product();
        let rows = (BLOCK / row.max(1)).max(1);
        let mut out = Vec::new();
        for start in range.clone().step_by(rows) {
            for value in self.slice::<T>(start..(start + rows).min(range.end))? {
                let pixel = convert(value).ok_or_else(|| {
                    let at = pixels::unravel(range.start * row + out.len(), &shape, false);
                    Error::format(&self.path, format!("{}, value {at:?}", self.name), expected, value.to_string())
                })?;
                out.push(pixel);
            }
        }
        Ok(out)
    }
}

/// The only image dataset among the members `names` of `file`.
fn choose(path: &Path, file: &::hdf5::File, names: &[String]) -> Result<String> {
    let members: Vec<_> = names.iter().filter_map(|n| Some((n.clone(), file.dataset(n).ok()?))).collect();
    let arrays = members.iter().filter_map(|(n, data)| {
        let kind = kind(data)?;
        Some((n.clone(), data.shape(), kind == Kind::Floats, describe(data)))
    });
    if let Some(name) = pixels::choose(path, arrays)? {
        return Ok(name);
    }
    let show = |(name, data): &(String, Dataset)| format!("`{name}` {}", describe(data));
    let features: Vec<_> = members.iter().filter(|(n, _)| MATRICES.contains(&n.as_str())).map(show).collect();
    if !features.is_empty() {
        let found = format!("features of images: {}", features.join(", "));
        return Err(Error::format(path, "datasets", "images", found));
    }
    let lost = names.iter().filter(|n| !members.iter().any(|(m, _)| m == *n)).map(|n| format!("`{n}`, not a dataset"));
    let found: Vec<_> = members.iter().map(show).chain(lost).collect();
    Err(Error::format(path, "datasets", "`images`, u8 [N, H, W, 3]", format!("only {}", found.join(", "))))
}

impl ImageSource for Hdf5Images {
    fn len(&self) -> usize {
        self.len
    }

    fn dims(&self) -> Option<ImageDims> {
        Some(self.dims)
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

    fn read(&mut self, range: Range<usize>) -> Result<Array4<u8>> {
        check_range(&self.path, &range, self.len)?;
        ::hdf5::silence_errors(true);
        let (count, whole) = (range.len(), "pixels from 0 to 255");
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be whole and in range")]
        let float = |v: f64| (v.fract() == 0.0 && (0.0..=255.0).contains(&v)).then_some(v as u8);
        let values = match self.kind {
            Kind::Bytes => self.slice(range)?,
            Kind::Integers => self.converted(range, whole, |v: i64| u8::try_from(v).ok())?,
            Kind::Unsigned => self.converted(range, whole, |v: u64| u8::try_from(v).ok())?,
            Kind::Floats => self.converted(range, pixels::FLOATS, float)?,
        };
        Array4::from_shape_vec((count, self.dims.height, self.dims.width, 3), pixels::to_rgb(self.layout, self.dims, values))
            .map_err(|e| Error::format(&self.path, &self.name, "images of one size", e.to_string()))
    }
}

/// Writes images chunk by chunk; the file gets its name at the end.
#[derive(Debug)]
pub struct Hdf5Writer {
    target: PathBuf,
    partial: AtomicPath,
    file: ::hdf5::File,
    images: Dataset,
    at: usize,
    /// Images that do not fill a chunk yet: only whole chunks are written, so bytes do not depend on how images arrive.
    waiting: Vec<u8>,
    dims: ImageDims,
}

impl Hdf5Writer {
    /// Starts writing `len` images of size `dims` to what will be `path`.
    ///
    /// # Errors
    /// `Hdf5`.
    pub fn create(path: &Path, len: usize, dims: ImageDims) -> Result<Self> {
        let partial = AtomicPath::create(path)?;
        let failed = |source| Error::Hdf5 { file: path.to_owned(), source };
        let file = create(&partial)?;
        let images = file
            .new_dataset::<u8>()
            .shape((len, dims.height, dims.width, dims.channels))
            .chunk((CHUNK.min(len.max(1)), dims.height, dims.width, dims.channels))
            .deflate(GZIP)
            .obj_track_times(false)
            .create(IMAGES)
            .map_err(failed)?;
        Ok(Self { target: path.to_owned(), partial, file, images, at: 0, waiting: Vec::new(), dims })
    }

    /// Appends u8 `images [n, H, W, 3]`.
    ///
    /// # Errors
    /// `Hdf5`, also if more images come than were announced.
    pub fn append(&mut self, images: &Array4<u8>) -> Result<()> {
        let ImageDims { height, width, channels } = self.dims;
        if images.shape()[1..] != [height, width, channels] {
            let expected = format!("[N, {height}, {width}, {channels}]");
            return Err(Error::format(&self.target, IMAGES, expected, format!("{:?}", images.shape())));
        }
        self.waiting.extend(images.iter());
        let chunk = CHUNK * height * width * channels;
        let whole = self.waiting.len() / chunk * chunk;
        let ready: Vec<u8> = self.waiting.drain(..whole).collect();
        self.write(ready)
    }

    fn write(&mut self, pixels: Vec<u8>) -> Result<()> {
        let ImageDims { height, width, channels } = self.dims;
        let count = pixels.len() / (height * width * channels).max(1);
        let array = Array4::from_shape_vec((count, height, width, channels), pixels)
            .map_err(|e| Error::format(&self.target, IMAGES, "whole images", e.to_string()))?;
        for start in (0..count).step_by(CHUNK) {
            let chunk = array.slice(s![start..(start + CHUNK).min(count), .., .., ..]);
            let end = self.at + chunk.dim().0;
            self.images
                .write_slice(chunk, s![self.at..end, .., .., ..])
                .map_err(|source| Error::Hdf5 { file: self.target.clone(), source })?;
            self.at = end;
        }
        Ok(())
    }

    /// Adds a dataset of integers, e.g. `labels` or `seeds`.
    ///
    /// # Errors
    /// `Hdf5`.
    pub fn i64(&mut self, name: &str, values: &[i64]) -> Result<()> {
        let failed = |source| Error::Hdf5 { file: self.target.clone(), source };
        let data =
            self.file.new_dataset::<i64>().obj_track_times(false).shape(values.len()).create(name).map_err(failed)?;
        data.write_raw(values).map_err(failed)
    }

    /// Adds a dataset of bytes.
    ///
    /// # Errors
    /// `Hdf5`.
    pub fn bytes(&mut self, name: &str, values: &[u8]) -> Result<()> {
        let failed = |source| Error::Hdf5 { file: self.target.clone(), source };
        let data =
            self.file.new_dataset::<u8>().obj_track_times(false).shape(values.len()).create(name).map_err(failed)?;
        data.write_raw(values).map_err(failed)
    }

    /// Closes the file and gives it its name.
    ///
    /// # Errors
    /// `Hdf5`, or the file system's own.
    pub fn finish(mut self) -> Result<()> {
        let rest = std::mem::take(&mut self.waiting);
        self.write(rest)?;
        let Self { target, partial, file, images, .. } = self;
        drop(images);
        file.close().map_err(|source| Error::Hdf5 { file: target.clone(), source })?;
        Ok(partial.commit()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.h5");
        let images = Array4::from_shape_fn((20, 4, 4, 3), |(i, y, x, c)| u8::try_from(i + y + x + c).unwrap());
        let mut writer = Hdf5Writer::create(&path, 20, ImageDims { height: 4, width: 4, channels: 3 }).unwrap();
        writer.append(&images.slice(s![..13, .., .., ..]).to_owned()).unwrap();
        writer.append(&images.slice(s![13.., .., .., ..]).to_owned()).unwrap();
        writer.i64("labels", &(0..20).collect::<Vec<_>>()).unwrap();
        assert!(!path.exists());
        writer.finish().unwrap();
        let mut source = crate::batch::open(&path).unwrap();
        assert_eq!(source.read(3..19).unwrap(), images.slice(s![3..19, .., .., ..]));
        assert_eq!(source.labels().unwrap()[7], 7);
    }

    #[test]
    fn bytes_do_not_depend_on_how_images_arrive() {
        let dir = tempfile::tempdir().unwrap();
        let images =
            Array4::from_shape_fn((50, 8, 8, 3), |(i, y, x, c)| u8::try_from((i * 7 + y * x + c) % 256).unwrap());
        let write = |name: &str, step: usize| {
            let path = dir.path().join(name);
            let mut writer = Hdf5Writer::create(&path, 50, ImageDims { height: 8, width: 8, channels: 3 }).unwrap();
            for start in (0..50).step_by(step) {
                writer.append(&images.slice(s![start..(start + step).min(50), .., .., ..]).to_owned()).unwrap();
            }
            writer.i64("labels", &[3; 50]).unwrap();
            writer.bytes("d2o", b"{}").unwrap();
            writer.finish().unwrap();
            fs_err::read(path).unwrap()
        };
        let first = write("a.h5", 50);
        // HDF5 can keep times, in seconds.
        std::thread::sleep(std::time::Duration::from_millis(1100));
        for step in [50, 1, 3, 16, 40] {
            let found = write("b.h5", step);
            let differing: Vec<usize> = (0..found.len().min(first.len())).filter(|i| found[*i] != first[*i]).collect();
            let sizes = (found.len(), first.len());
            assert!(
                found == first,
                "in steps of {step}: {sizes:?} bytes, {} differ, first at {:?}",
                differing.len(),
                differing.first()
            );
        }
    }

    #[test]
    fn truncated_is_an_error_naming_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.h5");
        fs_err::write(&path, b"\x89HDF\r\n\x1a\n broken").unwrap();
        assert!(crate::batch::open(&path).err().expect("opens").to_string().contains("x.h5"));
    }
}
