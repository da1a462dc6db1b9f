//! npz archives: named arrays, and image packs (`arr_0` NHWC, classes in `arr_1`) read row by row.

use std::io::{Read as _, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};

use d2o_budget::Budget;
use ndarray::{Array4, ArrayD, ArrayViewD, Axis, IxDyn};

use crate::archive::{Archive, Checked, Place, SharedFile};
use crate::batch::{ImageDims, ImageSource, check_range};
use crate::error::{Error, Result};
use crate::kind;
use crate::labels::{self, Labels};
use crate::limits::exceeded;
use crate::npy::{self, Dtype, Header};
use crate::pixels::{self, Layout};
use crate::zip_writer::AtomicZip;

/// Name of the image array.
pub const IMAGES: &str = "arr_0";
/// Name of the class array.
pub const LABELS: &str = "arr_1";
/// An npz archive. The CRC-32 of every array that is read is checked.
#[derive(Debug)]
pub struct Npz {
    path: PathBuf,
    archive: Archive,
    /// Memory left for all arrays together.
    budget: Budget,
}

impl Npz {
    /// Opens the npz at `path`.
    ///
    /// # Errors
    /// `Missing`; `Format` if the file is not a zip archive (with its kind) or is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self::of(Archive::open(path, "an npz file")?))
    }

    /// The npz of an open archive.
    pub(crate) fn of(archive: Archive) -> Self {
        Self { path: archive.path().to_owned(), budget: Budget::of_file(archive.packed()), archive }
    }

    /// Names of the arrays, without `.npy`, in archive order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let names = self.archive.in_order().into_iter().map(|i| self.archive.name(i));
        names.filter_map(|name| Some(name.strip_suffix(".npy")?.to_owned())).collect()
    }

    /// Whether there is an array `name`.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.archive.find(&format!("{name}.npy")).is_some()
    }

    /// Type and shape of array `name`.
    ///
    /// # Errors
    /// `Format` if there is no such array or its header is invalid.
    pub fn header(&mut self, name: &str) -> Result<Header> {
        npy::read_header(&mut self.entry(name)?, &self.path, name)
    }

    /// Whether array `name` is compressed, as `numpy.savez_compressed` writes it.
    ///
    /// # Errors
    /// `Format` if there is no such array.
    pub fn is_compressed(&mut self, name: &str) -> Result<bool> {
        Ok(self.entry(name)?.place.deflated)
    }

    /// Array `name` as f64, C order.
    ///
    /// # Errors
    /// Those of [`Npz::f32`]; `Format` if an integer is beyond 2^53.
    pub fn f64(&mut self, name: &str) -> Result<ArrayD<f64>> {
        let (header, values) = self.read::<f64, _>(name, npy::read_f64)?;
        self.shaped(name, &header, values)
    }

    /// Array `name` as f32, C order (f64 values are rounded).
    ///
    /// # Errors
    /// `Format` if there is no such array, it is damaged, needs too much memory for the size of the file, or its CRC-32
    /// is wrong.
    pub fn f32(&mut self, name: &str) -> Result<ArrayD<f32>> {
        let (header, values) = self.read::<f32, _>(name, npy::read_f32)?;
        self.shaped(name, &header, values)
    }

    /// Array `name` as integers, in C order, exact.
    ///
    /// # Errors
    /// Those of [`Npz::f32`]; `Format` if a value is not whole or does not fit i64.
    pub fn i64(&mut self, name: &str) -> Result<Vec<i64>> {
        let (header, values) = self.read::<i64, _>(name, npy::read_integers)?;
        Ok(self.shaped(name, &header, values)?.into_raw_vec_and_offset().0)
    }

    /// Same as [`Npz::i64`], for unsigned integers up to 2^64 − 1.
    ///
    /// # Errors
    /// Those of [`Npz::f32`]; `Format` if a value is not whole or is negative.
    pub fn u64(&mut self, name: &str) -> Result<Vec<u64>> {
        let (header, values) = self.read::<u64, _>(name, npy::read_integers)?;
        Ok(self.shaped(name, &header, values)?.into_raw_vec_and_offset().0)
    }

    /// The bytes of the u8 array `name`.
    ///
    /// # Errors
    /// Those of [`Npz::f32`]; `Format` if the array has another type.
    pub fn bytes(&mut self, name: &str) -> Result<Vec<u8>> {
        let (header, values) = self.read::<u8, _>(name, npy::read_integers)?;
        if header.dtype != Dtype::U8 {
            return Err(Error::format(&self.path, name, "u8", header.descr()));
        }
        Ok(values)
    }

    /// Classes of `count` images from array `name`.
    fn labels(&mut self, name: &str, count: usize) -> Result<Labels> {
        // An array that cannot contain labels is not read.
        let header = match self.header(name) {
            Ok(header) => header,
            Err(Error::Format { found, .. }) => return Ok(Labels::Problem(format!("`{name}` holds {found}"))),
            Err(e) => return Err(e),
        };
        if let Err(problem) = labels::check_shape(name, &header.shape, count) {
            return Ok(Labels::Problem(problem));
        }
        let (header, values) = self.read::<i64, _>(name, npy::read_labels)?;
        if header.fortran_order && header.shape.get(1).is_some_and(|k| *k > 1) {
            return Ok(Labels::Problem(format!("`{name}` is a matrix in Fortran order")));
        }
        Ok(labels::of_array(name, &header.shape, &values, count))
    }

    /// Reads array `name` to the end of its entry, which checks its CRC-32. `T` is the type of its elements in memory.
    fn read<T, V>(
        &mut self,
        name: &str,
        read: impl FnOnce(&mut Checked, &Header, &Path, &str) -> Result<V>,
    ) -> Result<(Header, V)> {
        let mut entry = self.entry(name)?;
        let header = npy::read_header(&mut entry, &self.path, name)?;
        self.budget.bytes(header.count().saturating_mul(size_of::<T>())).map_err(exceeded(&self.path, name))?;
        let values = read(&mut entry, &header, &self.path, name)?;
        entry.finish(&self.path, name)?;
        Ok((header, values))
    }

    fn shaped<T: Clone>(&self, name: &str, header: &Header, values: Vec<T>) -> Result<ArrayD<T>> {
        let bad = |e: ndarray::ShapeError| Error::format(&self.path, name, "data of the stated shape", e.to_string());
        if header.fortran_order {
            let reversed: Vec<usize> = header.shape.iter().rev().copied().collect();
            let array = ArrayD::from_shape_vec(IxDyn(&reversed), values).map_err(bad)?;
            Ok(array.reversed_axes().as_standard_layout().into_owned())
        } else {
            ArrayD::from_shape_vec(IxDyn(&header.shape), values).map_err(bad)
        }
    }

    fn entry(&self, name: &str) -> Result<Checked> {
        match self.archive.find(&format!("{name}.npy")) {
            Some(index) => self.archive.reader(index),
            None => {
                let found = self.names().join(", ");
                Err(Error::format(&self.path, "arrays", format!("`{name}`"), format!("only {found}")))
            }
        }
    }
}

/// Images of an npz or npy file, read in order without holding all of them.
///
/// Layouts: `[N, H, W, 3]`, grey `[N, H, W, 1]` and `[N, H, W]`, RGBA `[N, H, W, 4]` (alpha is dropped), `[N, 3, H, W]` and `[N, 1, H, W]`.
/// Types: integers 0 to 255 of any size and byte order; floats only if all are whole numbers from 0 to 255 and some exceed 1.
pub struct Pack {
    path: PathBuf,
    file: SharedFile,
    array: String,
    place: Place,
    header: Header,
    /// Bytes of the header, before the elements.
    head: u64,
    layout: Layout,
    len: usize,
    dims: ImageDims,
    labels: Labels,
    stream: Option<(usize, Checked)>,
    /// All pixels of a Fortran-ordered array, once they are read.
    whole: Option<ArrayD<u8>>,
    /// Whether the CRC-32 of the entry is checked, or there is none.
    verified: bool,
}

impl std::fmt::Debug for Pack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pack").field("path", &self.path).field("len", &self.len).finish_non_exhaustive()
    }
}

impl Pack {
    /// Opens the npz at `path`: its only image array, and its classes in `arr_1` or, for an array `NAME_images`, `NAME_labels`.
    ///
    /// # Errors
    /// `Format` without an image array, with several of them, or if the array is damaged; `Empty` without images.
    pub fn open(path: &Path) -> Result<Self> {
        Self::of(Npz::open(path)?, None)
    }

    /// Same as [`Pack::open`], for an open npz and the image array `name`; `None` selects the only image array.
    ///
    /// # Errors
    /// Those of [`Pack::open`]; `Format` if there is no array `name`.
    pub(crate) fn of(mut npz: Npz, name: Option<&str>) -> Result<Self> {
        let path = &npz.path.clone();
        let mut headers = Vec::new();
        for name in npz.names() {
            // Arrays of unsupported types (strings, objects) are not images.
            let header = npz.header(&name);
            headers.push((name, header));
        }
        let is_image = |header: &Header| pixels::layout(&header.shape).is_ok();
        let image = |name: &str| headers.iter().any(|(n, h)| n == name && h.as_ref().is_ok_and(is_image));
        let name = match name {
            Some(name) => name.strip_suffix(".npy").unwrap_or(name).to_owned(),
            None => {
                let readable = headers.iter().filter_map(|(n, h)| Some((n.clone(), h.as_ref().ok()?)));
                pixels::choose(path, readable.map(|(n, h)| (n, h.shape.clone(), h.dtype.is_float(), h.to_string())))?
                    .unwrap_or_else(|| IMAGES.to_owned())
            }
        };
        if !npz.contains(&name) {
            let show = |(n, h): &(String, Result<Header>)| match h {
                Ok(header) => match pixels::layout(&header.shape) {
                    Err(problem) if (3..=4).contains(&header.shape.len()) => format!("`{n}` {header}: {problem}"),
                    _ => format!("`{n}` {header}"),
                },
                Err(_) => format!("`{n}`"),
            };
            let found = format!("only {}", headers.iter().map(show).collect::<Vec<_>>().join(", "));
            return Err(Error::format(path, "arrays", format!("images in `{name}`, u8 [N, H, W, 3]"), found));
        }
        let candidates = [LABELS.to_owned(), name.replace("images", "labels")];
        let classes = candidates.into_iter().find(|n| *n != name && npz.contains(n) && !image(n));
        let entry = npz.entry(&name)?.place;
        let mut pack = Self::at(path, name, entry, npz.archive.shared())?;
        if let Some(name) = classes {
            pack.labels = npz.labels(&name, pack.len)?;
        }
        Ok(pack)
    }

    /// Opens the npy at `path`.
    ///
    /// # Errors
    /// `Missing`; `Format` if it does not contain images; `Empty` without images.
    pub fn open_npy(path: &Path) -> Result<Self> {
        const EXPECTED: &str = "an npy file";
        let mut file = kind::open(path, EXPECTED)?;
        if !kind::head(&mut file)?.starts_with(npy::MAGIC) {
            return Err(kind::unexpected(&mut file, path, EXPECTED));
        }
        Self::of_npy(path, file)
    }

    /// Same as [`Pack::open_npy`], for an open file that begins with the npy magic.
    pub(crate) fn of_npy(path: &Path, file: fs_err::File) -> Result<Self> {
        let bytes = file.metadata()?.len();
        let place = Place { start: 0, stored: bytes, bytes, deflated: false, crc: None };
        Self::at(path, "array".to_owned(), place, SharedFile::new(file))
    }

    fn at(path: &Path, array: String, place: Place, file: SharedFile) -> Result<Self> {
        let mut reader = Checked::new(file.clone(), place);
        let header = npy::read_header(&mut reader, path, &array)?;
        let head = reader.count;
        let (layout, dims) = pixels::layout(&header.shape)
            .map_err(|problem| Error::format(path, &array, pixels::EXPECTED, format!("{header}: {problem}")))?;
        let len = header.shape.first().copied().unwrap_or(0);
        if len == 0 {
            return Err(Error::empty(path, ""));
        }
        let data = place.bytes.saturating_sub(head);
        if data < header.bytes() {
            let row = header.bytes() / len as u64;
            let found = format!("{} rows", data / row.max(1));
            return Err(Error::format(path, &array, format!("{len} rows"), found));
        }
        if header.dtype == Dtype::Bool {
            let expected = "u8 (booleans as pixels could mean 0 and 1 or 0 and 255; save (x * 255).astype('uint8'))";
            return Err(Error::format(path, &array, expected, header.to_string()));
        }
        // A Fortran-ordered array is held as a whole.
        if header.fortran_order && Budget::of_file(place.stored).bytes(header.count()).is_err() {
            let expected = "C order (numpy.ascontiguousarray) for an array of this size";
            return Err(Error::format(path, &array, expected, format!("{header} in Fortran order")));
        }
        let mut pack = Self {
            path: path.to_owned(),
            file,
            array,
            verified: place.crc.is_none(),
            place,
            header,
            head,
            layout,
            len,
            dims,
            labels: Labels::None,
            stream: Some((0, reader)),
            whole: None,
        };
        if pack.header.dtype.is_float() {
            let (path, array) = (pack.path.clone(), pack.array.clone());
            pixels::check_floats(&mut pack, usize::MAX, &path, &array)?;
            pack.stream = None;
        } else if pack.header.dtype != Dtype::U8 {
            pack.read(0..1)?;
            pack.stream = None;
        }
        Ok(pack)
    }

    /// Bytes of one image in the file.
    fn row(&self) -> u64 {
        self.header.bytes() / self.len.max(1) as u64
    }

    /// Reads the rest of the entry and compares its CRC-32.
    fn finish(&mut self, reader: Checked) -> Result<()> {
        if reader.finish(&self.path, &self.array)? {
            self.verified = true;
        }
        Ok(())
    }

    /// A reader at image `start`.
    fn reader_at(&mut self, start: usize) -> Result<Checked> {
        let offset = self.head + self.row() * start as u64;
        let short = |e: std::io::Error| Error::format(&self.path, &self.array, "all rows of the array", e.to_string());
        let (at, mut reader) = match self.stream.take() {
            Some((at, reader)) if at <= start => (at, reader),
            // A stored entry with a checked CRC-32 can be read from any offset.
            _ if self.verified && !self.place.deflated => {
                let place =
                    Place { start: self.place.start + offset, stored: self.place.stored - offset, ..self.place };
                let mut reader = Checked::new(self.file.clone(), place);
                reader.whole = false;
                return Ok(reader);
            }
            _ => {
                let mut reader = Checked::new(self.file.clone(), self.place);
                npy::read_header(&mut reader, &self.path, &self.array)?;
                (0, reader)
            }
        };
        let skip = self.row() * (start - at) as u64;
        let skipped = std::io::copy(&mut (&mut reader).take(skip), &mut std::io::sink()).map_err(short)?;
        if skipped != skip {
            let found = format!("{} rows", at as u64 + skipped / self.row().max(1));
            return Err(Error::format(&self.path, &self.array, format!("{} rows", self.len), found));
        }
        Ok(reader)
    }

    /// The elements of images `range` as pixels, in the layout of the array and C order.
    fn pixels(&mut self, range: Range<usize>) -> Result<Vec<u8>> {
        if self.header.fortran_order {
            if self.whole.is_none() {
                let elements = self.elements(0..self.len)?;
                let reversed: Vec<usize> = self.header.shape.iter().rev().copied().collect();
                let array = ArrayD::from_shape_vec(IxDyn(&reversed), elements)
                    .map_err(|e| Error::format(&self.path, &self.array, "data of the stated shape", e.to_string()))?;
                self.whole = Some(array.reversed_axes());
            }
            let Some(whole) = &self.whole else { return Ok(Vec::new()) };
            return Ok(whole.slice_axis(Axis(0), range.into()).iter().copied().collect());
        }
        self.elements(range)
    }

    /// Elements of rows `range` as pixels, in file order.
    fn elements(&mut self, range: Range<usize>) -> Result<Vec<u8>> {
        const BLOCK: usize = 1 << 20;
        let mut reader = self.reader_at(range.start)?;
        let wanted = self.row() * range.len() as u64;
        let size = self.header.dtype.size();
        let (mut block, mut pixels, mut left) = (Vec::new(), Vec::new(), wanted);
        while left > 0 {
            let count = usize::try_from(left).map_or(BLOCK, |left| left.min(BLOCK));
            block.resize(count, 0);
            let filled = npy::fill(&mut reader, &mut block)
                .map_err(|e| Error::format(&self.path, &self.array, "all rows of the array", e.to_string()))?;
            if filled < count {
                let rows = range.start as u64 + (wanted - left + filled as u64) / self.row().max(1);
                return Err(Error::format(
                    &self.path,
                    &self.array,
                    format!("{} rows", self.len),
                    format!("{rows} rows"),
                ));
            }
            let before = pixels.len();
            npy::to_pixels(&self.header, &block, &mut pixels).map_err(|(index, found)| {
                let shape = &self.header.shape;
                let index = range.start * (self.header.count() / self.len.max(1)) + before + index;
                let at = pixels::unravel(index, shape, self.header.fortran_order);
                let expected = if self.header.dtype.is_float() { pixels::FLOATS } else { "pixels from 0 to 255" };
                Error::format(&self.path, format!("{}, value {at:?}", self.array), expected, found)
            })?;
            left -= count as u64;
        }
        debug_assert_eq!(pixels.len() * size, usize::try_from(wanted).unwrap_or(0));
        if range.end == self.len {
            self.finish(reader)?;
        } else {
            self.stream = Some((range.end, reader));
        }
        Ok(pixels)
    }
}

impl ImageSource for Pack {
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

    /// The CRC-32 of the array is compared when its last image has been read, or by [`ImageSource::verify`].
    fn read(&mut self, range: Range<usize>) -> Result<Array4<u8>> {
        check_range(&self.path, &range, self.len)?;
        let count = range.len();
        let pixels = pixels::to_rgb(self.layout, self.dims, self.pixels(range)?);
        Array4::from_shape_vec((count, self.dims.height, self.dims.width, 3), pixels)
            .map_err(|e| Error::format(&self.path, &self.array, "rows of one size", e.to_string()))
    }

    fn verify(&mut self) -> Result<()> {
        if self.verified {
            return Ok(());
        }
        let reader = match self.stream.take() {
            Some((_, reader)) => reader,
            None => Checked::new(self.file.clone(), self.place),
        };
        self.finish(reader)
    }
}

/// Writes an npz: stored arrays with fixed times, so equal content gives equal bytes.
pub struct NpzWriter {
    path: PathBuf,
    zip: AtomicZip,
}

impl std::fmt::Debug for NpzWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NpzWriter").field("path", &self.path).finish_non_exhaustive()
    }
}

impl NpzWriter {
    /// Starts an npz that appears at `path` once it is finished.
    ///
    /// # Errors
    /// `Io` if the file cannot be created.
    pub fn create(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_owned(), zip: AtomicZip::create(path)? })
    }

    /// Starts array `name`. [`NpzWriter::raw`] appends its elements.
    ///
    /// # Errors
    /// If writing fails.
    pub fn start(&mut self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<()> {
        let bytes = shape.iter().product::<usize>() as u64 * dtype.size() as u64;
        self.zip.start(&format!("{name}.npy"), bytes)?;
        npy::write_header(&mut self.zip, dtype, shape)?;
        Ok(())
    }

    /// Appends little-endian elements to the array started last.
    ///
    /// # Errors
    /// If writing fails.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.zip.write_all(bytes)?)
    }

    /// Writes `array` as f64 array `name`.
    ///
    /// # Errors
    /// If writing fails.
    pub fn f64(&mut self, name: &str, array: ArrayViewD<'_, f64>) -> Result<()> {
        self.start(name, Dtype::F64, array.shape())?;
        self.elements(array.iter().map(|v| v.to_le_bytes()))
    }

    /// Writes `array` as f32 array `name`.
    ///
    /// # Errors
    /// If writing fails.
    pub fn f32(&mut self, name: &str, array: ArrayViewD<'_, f32>) -> Result<()> {
        self.start(name, Dtype::F32, array.shape())?;
        self.elements(array.iter().map(|v| v.to_le_bytes()))
    }

    /// Writes `values` as i64 array `name` of one axis.
    ///
    /// # Errors
    /// If writing fails.
    pub fn i64(&mut self, name: &str, values: &[i64]) -> Result<()> {
        self.start(name, Dtype::I64, &[values.len()])?;
        self.elements(values.iter().map(|v| v.to_le_bytes()))
    }

    /// Writes `values` as u64 array `name` of one axis.
    ///
    /// # Errors
    /// If writing fails.
    pub fn u64(&mut self, name: &str, values: &[u64]) -> Result<()> {
        self.start(name, Dtype::U64, &[values.len()])?;
        self.elements(values.iter().map(|v| v.to_le_bytes()))
    }

    /// Writes `values` as u8 array `name` of one axis.
    ///
    /// # Errors
    /// If writing fails.
    pub fn bytes(&mut self, name: &str, values: &[u8]) -> Result<()> {
        self.start(name, Dtype::U8, &[values.len()])?;
        self.raw(values)
    }

    fn elements<const N: usize>(&mut self, values: impl Iterator<Item = [u8; N]>) -> Result<()> {
        let mut buffer = Vec::with_capacity(1 << 16);
        for v in values {
            buffer.extend_from_slice(&v);
            if buffer.len() >= 1 << 16 {
                self.zip.write_all(&buffer)?;
                buffer.clear();
            }
        }
        self.raw(&buffer)
    }

    /// Writes the end of the archive and moves the file to its path.
    ///
    /// # Errors
    /// If writing fails.
    pub fn finish(self) -> Result<()> {
        self.zip.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fs_err as fs;
    use ndarray::{Array1, Array2};
    use zip::CompressionMethod;

    fn pack(path: &Path, n: usize) -> Array4<u8> {
        let images = Array4::from_shape_fn((n, 2, 3, 3), |(i, y, x, c)| {
            u8::try_from((i * 50 + y * 9 + x * 3 + c) % 256).unwrap()
        });
        let mut writer = NpzWriter::create(path).unwrap();
        writer.start(IMAGES, Dtype::U8, images.shape()).unwrap();
        writer.raw(images.as_slice().unwrap()).unwrap();
        writer.i64(LABELS, &(0..i64::try_from(n).unwrap()).collect::<Vec<_>>()).unwrap();
        writer.finish().unwrap();
        images
    }

    #[test]
    fn packs_are_read_in_any_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.npz");
        let images = pack(&path, 7);
        let mut source = crate::batch::open(&path).unwrap();
        assert_eq!(source.labels().unwrap(), [0, 1, 2, 3, 4, 5, 6]);
        for range in [0..7, 5..7, 2..3, 0..1] {
            assert_eq!(source.read(range.clone()).unwrap(), images.slice(ndarray::s![range, .., .., ..]));
        }
    }

    #[test]
    fn truncation_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.npz");
        pack(&path, 7);
        let bytes = fs::read(&path).unwrap();
        for keep in [0, 3, 50, bytes.len() / 2, bytes.len() - 1] {
            fs::write(&path, &bytes[..keep]).unwrap();
            let text = crate::batch::open(&path).err().expect("a truncated file opens").to_string();
            assert!(text.contains("p.npz"), "{text}");
        }
    }

    #[test]
    fn arrays_round_trip_and_bytes_repeat() {
        let dir = tempfile::tempdir().unwrap();
        let (mu, sigma) = (Array1::linspace(-1.0, 1.0, 5), Array2::from_shape_fn((5, 5), |(i, j)| (i * j) as f64));
        let write = |name: &str| {
            let path = dir.path().join(name);
            let mut writer = NpzWriter::create(&path).unwrap();
            writer.f64("mu", mu.view().into_dyn()).unwrap();
            writer.f64("sigma", sigma.view().into_dyn()).unwrap();
            writer.finish().unwrap();
            path
        };
        let (a, b) = (write("a.npz"), write("b.npz"));
        assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap());
        let mut npz = Npz::open(&a).unwrap();
        assert_eq!(npz.names(), ["mu", "sigma"]);
        assert_eq!(npz.f64("sigma").unwrap(), sigma.into_dyn());
        assert!(npz.f64("mu_s").unwrap_err().to_string().contains("only mu, sigma"));
    }

    fn npy(descr: &str, fortran: bool, shape: &[usize], data: &[u8]) -> Vec<u8> {
        let order = if fortran { "True" } else { "False" };
        let shape = shape.iter().map(|n| format!("{n},")).collect::<String>();
        let mut text = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': ({shape}), }}");
        text.push_str(&" ".repeat(63 - (10 + text.len()) % 64));
        text.push('\n');
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend(u16::try_from(text.len()).unwrap().to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn archive(path: &Path, deflated: bool, arrays: &[(&str, Vec<u8>)]) {
        let mut zip = zip::ZipWriter::new(fs::File::create(path).unwrap());
        let method = if deflated { CompressionMethod::Deflated } else { CompressionMethod::Stored };
        for (name, bytes) in arrays {
            let options = zip::write::SimpleFileOptions::default().compression_method(method);
            zip.start_file(format!("{name}.npy"), options).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap();
    }

    /// Four grey images, 5 high and 2 wide.
    fn greys() -> Array4<u8> {
        Array4::from_shape_fn((4, 5, 2, 1), |(i, y, x, _)| u8::try_from(50 * i + 9 * y + x).unwrap())
    }

    #[test]
    fn every_dtype_order_and_layout_gives_the_same_images() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npz");
        let grey = greys();
        let expected = grey.broadcast((4, 5, 2, 3)).unwrap();
        let check = |what: &str, bytes: Vec<u8>| {
            for deflated in [false, true] {
                archive(&path, deflated, &[("x", bytes.clone())]);
                let mut source = crate::batch::open(&path).unwrap_or_else(|e| panic!("{what}: {e}"));
                for range in [0..4, 2..3, 1..4, 0..2] {
                    let found = source.read(range.clone()).unwrap_or_else(|e| panic!("{what}: {e}"));
                    assert_eq!(found, expected.slice(ndarray::s![range, .., .., ..]), "{what}");
                }
                source.verify().unwrap();
            }
            let npy = dir.path().join("x.npy");
            fs::write(&npy, &bytes).unwrap();
            assert_eq!(crate::batch::open(&npy).unwrap().read(0..4).unwrap(), expected, "{what}");
        };
        let data: Vec<u8> = grey.iter().copied().collect();
        let wide = |size: usize, big: bool| -> Vec<u8> {
            let put = |v: &u8| {
                let mut b = vec![0; size];
                b[if big { size - 1 } else { 0 }] = *v;
                b
            };
            data.iter().flat_map(put).collect()
        };
        for (kind, size) in [("u", 1), ("u", 2), ("u", 4), ("u", 8), ("i", 2), ("i", 4), ("i", 8)] {
            for (order, big) in [("<", false), (">", true)] {
                let descr = format!("{order}{kind}{size}");
                check(&descr, npy(&descr, false, &[4, 5, 2], &wide(size, big)));
            }
        }
        for (descr, bytes) in [
            ("<f2", data.iter().flat_map(|v| half::f16::from(*v).to_le_bytes()).collect::<Vec<_>>()),
            (">f2", data.iter().flat_map(|v| half::f16::from(*v).to_be_bytes()).collect()),
            ("<f4", data.iter().flat_map(|v| f32::from(*v).to_le_bytes()).collect()),
            (">f8", data.iter().flat_map(|v| f64::from(*v).to_be_bytes()).collect()),
        ] {
            check(descr, npy(descr, false, &[4, 5, 2], &bytes));
        }
        let rgb: Vec<u8> = expected.iter().copied().collect();
        check("NHWC", npy("|u1", false, &[4, 5, 2, 3], &rgb));
        check("NHW1", npy("|u1", false, &[4, 5, 2, 1], &data));
        let first: Vec<u8> = expected.permuted_axes([0, 3, 1, 2]).iter().copied().collect();
        check("N3HW", npy("|u1", false, &[4, 3, 5, 2], &first));
        check("N1HW", npy("|u1", false, &[4, 1, 5, 2], &data));
        let rgba: Vec<u8> = data.iter().flat_map(|v| [*v, *v, *v, 77]).collect();
        check("RGBA", npy("|u1", false, &[4, 5, 2, 4], &rgba));
        let fortran: Vec<u8> = expected.permuted_axes([3, 2, 1, 0]).iter().copied().collect();
        check("Fortran", npy("|u1", true, &[4, 5, 2, 3], &fortran));
        let fortran: Vec<u8> = grey.view().permuted_axes([3, 2, 1, 0]).iter().flat_map(|v| [0, *v]).collect();
        check("Fortran >u2", npy(">u2", true, &[4, 5, 2], &fortran));
    }

    #[test]
    fn values_that_are_not_pixels_are_refused_by_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npz");
        let fails = |descr: &str, fortran: bool, data: &[u8]| {
            archive(&path, false, &[("x", npy(descr, fortran, &[2, 3, 2], data))]);
            let found = crate::batch::open(&path).and_then(|mut s| s.read(0..2).and_then(|_| s.read(1..2)));
            found.unwrap_err().to_string()
        };
        let mut ints = [7_i16; 12];
        ints[9] = 256;
        let bytes = |v: &[i16; 12]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
        let text = fails("<i2", false, &bytes(&ints));
        assert!(text.contains("x, value [1, 1, 1]: expected pixels from 0 to 255, found 256"), "{text}");
        let text = fails("<i2", true, &bytes(&ints));
        assert!(text.contains("value [1, 1, 1]"), "{text}");
        ints[9] = -1;
        assert!(fails("<i2", false, &bytes(&ints)).contains("found -1"));
        let floats = |v: &[f32; 12]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
        let mut values = [9.0_f32; 12];
        values[11] = 0.5;
        let text = fails("<f4", false, &floats(&values));
        assert!(
            text.contains("value [1, 2, 1]") && text.contains("astype('uint8')") && text.contains("found 0.5"),
            "{text}"
        );
        for bad in [f32::NAN, 256.0, -1.0, f32::INFINITY] {
            values[11] = bad;
            assert!(fails("<f4", false, &floats(&values)).contains("[0, 1]"));
        }
        assert!(fails("<f4", false, &floats(&[1.0; 12])).contains("floats of 0 and 1 only"));
        assert!(fails("|b1", false, &[1; 12]).contains("booleans"));
        for (shape, text) in [
            (&[3_usize, 2, 2, 1, 1][..], "no channel axis"),
            (&[2, 2, 3], "without the axis N"),
            (&[12], "no channel axis"),
        ] {
            let npy = npy("|u1", false, shape, &[1; 12]);
            fs::write(dir.path().join("x.npy"), &npy).unwrap();
            let found = crate::batch::open(&dir.path().join("x.npy")).err().unwrap().to_string();
            assert!(found.contains(text), "{found}");
        }
    }

    #[test]
    fn a_wrong_crc_is_found_by_whoever_reads_to_the_end_or_verifies() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npz");
        let data: Vec<u8> = greys().iter().copied().collect();
        for (deflated, fortran) in [(false, false), (true, false), (false, true)] {
            archive(&path, deflated, &[("x", npy("|u1", fortran, &[4, 5, 2], &data))]);
            let mut bytes = fs::read(&path).unwrap();
            // Readers compare the CRC-32 of the central directory.
            let at = bytes.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
            bytes[at + 16] ^= 1;
            fs::write(&path, &bytes).unwrap();
            let open = || crate::batch::open(&path).unwrap();
            let text = open().read(0..4).unwrap_err().to_string();
            assert!(text.contains("x.npz") && text.contains(": x:") && text.contains("CRC-32"), "{text}");
            if !fortran {
                let mut source = open();
                source.read(0..1).unwrap();
                source.read(1..2).unwrap();
                assert!(source.read(2..4).is_err());
                let mut source = open();
                source.read(1..2).unwrap();
                source.read(0..1).unwrap();
                assert!(source.verify().unwrap_err().to_string().contains("CRC-32"));
            }
        }
        let mut writer = NpzWriter::create(&path).unwrap();
        writer.f64("mu", Array1::zeros(2).view().into_dyn()).unwrap();
        writer.f64("sigma", Array2::<f64>::eye(2).view().into_dyn()).unwrap();
        writer.finish().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.windows(8).rposition(|w| w == 1.0_f64.to_le_bytes()).unwrap();
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let text = crate::stats::ReferenceStats::read(&path).unwrap_err().to_string();
        assert!(text.contains("sigma") && text.contains("CRC-32"), "{text}");
    }

    #[test]
    fn several_image_arrays_need_a_choice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.npz");
        let data: Vec<u8> = greys().iter().copied().collect();
        let labels = |n: usize| npy("|u1", false, &[n, 1], &vec![1; n]);
        archive(
            &path,
            false,
            &[
                ("train_images", npy("|u1", false, &[4, 5, 2], &data)),
                ("val_images", npy("|u1", false, &[2, 5, 2, 1], &data[20..])),
                ("train_labels", labels(4)),
                ("val_labels", labels(2)),
                ("noise", npy("<f4", false, &[1, 3, 2, 2], &[0; 48])),
            ],
        );
        let text = crate::batch::open(&path).err().unwrap().to_string();
        assert!(text.contains("m.npz::train_images") && text.contains("`val_images` |u1 [2, 5, 2, 1]"), "{text}");
        assert!(!text.contains("noise") && text.contains("2: `train"), "{text}");
        let named = |name: &str| dir.path().join(format!("m.npz::{name}"));
        let mut source = crate::batch::open(&named("val_images")).unwrap();
        assert_eq!((source.len(), source.labels()), (2, Some(&[1, 1][..])));
        assert_eq!(source.read(1..2).unwrap()[[0, 0, 1, 2]], data[31]);
        let hash = |path: &Path| crate::batch::container_sha256(path).unwrap();
        assert_ne!(hash(&named("val_images")), hash(&named("train_images")));
        let text = crate::batch::open(&named("test_images")).err().unwrap().to_string();
        assert!(text.contains("`test_images`") && text.contains("`noise` <f4"), "{text}");
        fs::copy(&path, named("val_images")).unwrap();
        let text = crate::batch::open(&named("val_images")).err().unwrap().to_string();
        assert!(text.contains("2: `train_images`"), "a path that exists comes first: {text}");
        archive(
            &path,
            false,
            &[("arr_0", npy("|u1", false, &[4, 5, 2], &data)), ("arr_1", npy("|u1", false, &[4, 5, 2], &data))],
        );
        assert!(crate::batch::open(&path).err().unwrap().to_string().contains("`arr_1` |u1"));
        let mut source = crate::batch::open(&named("arr_0")).unwrap();
        assert!(source.labels().is_none() && source.label_problem().is_none() && source.read(0..4).is_ok());
        assert!(crate::batch::open(&dir.path().join("absent::x")).is_err());
    }

    #[test]
    fn label_arrays_of_any_type_leave_the_images_usable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npz");
        let data: Vec<u8> = greys().iter().copied().collect();
        let read = |descr: &str, shape: &[usize], bytes: &[u8]| {
            archive(
                &path,
                true,
                &[(IMAGES, npy("|u1", false, &[4, 5, 2], &data)), (LABELS, npy(descr, false, shape, bytes))],
            );
            let mut source = crate::batch::open(&path).unwrap();
            source.read(0..4).unwrap();
            (source.labels().map(<[i64]>::to_vec), source.label_problem().map(str::to_owned))
        };
        let classes = vec![0_i64, 1, 2, 1];
        for (descr, size) in
            [("|u1", 1), ("|i1", 1), ("<u2", 2), ("<i2", 2), (">u4", 4), ("<i4", 4), (">i8", 8), ("<u8", 8)]
        {
            let put = |v: &i64| {
                let b = v.to_le_bytes()[..size].to_vec();
                if descr.starts_with('>') { b.into_iter().rev().collect() } else { b }
            };
            let bytes: Vec<u8> = classes.iter().flat_map(put).collect();
            for shape in [&[4][..], &[4, 1]] {
                assert_eq!(read(descr, shape, &bytes), (Some(classes.clone()), None), "{descr}");
            }
        }
        let floats = |v: &[f32]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
        assert_eq!(read("<f4", &[4], &floats(&[0.0, 1.0, 2.0, 1.0])).0, Some(classes.clone()));
        let one_hot = [1., 0., 0., 0., 1., 0., 0., 0., 1., 0., 1., 0.];
        assert_eq!(read("<f4", &[4, 3], &floats(&one_hot)).0, Some(classes));
        assert_eq!(read("|b1", &[4], &[0, 1, 1, 0]).0, Some(vec![0, 1, 1, 0]));
        for (descr, shape, bytes, text) in [
            ("<f4", &[4][..], floats(&[0.75, 1.2, 2.9, 0.1]), "row 0 of `arr_1` is 0.75"),
            ("|i1", &[4], vec![0, 255, 0, 0], "row 1 of `arr_1` is -1"),
            ("|u1", &[3], vec![0; 3], "3 rows for 4 images"),
            ("<U1", &[4], vec![0; 16], "strings, <U1"),
            ("|O", &[4], vec![0; 16], "Python objects, |O"),
            ("<u8", &[4], [0xff; 32].to_vec(), "18446744073709551615"),
        ] {
            let (classes, problem) = read(descr, shape, &bytes);
            assert!(classes.is_none() && problem.as_ref().is_some_and(|p| p.contains(text)), "{problem:?}");
        }
    }

    #[test]
    fn arrays_that_their_file_does_not_explain_are_refused_before_they_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npz");
        let data: Vec<u8> = greys().iter().copied().collect();
        let images = (IMAGES, npy("|u1", false, &[4, 5, 2], &data));
        archive(&path, true, &[images.clone(), (LABELS, npy("|u1", false, &[4, 1 << 26], &[]))]);
        let text = crate::batch::open(&path).err().unwrap().to_string();
        assert!(text.contains("arr_1: expected at most 64 MiB of memory"), "{text}");
        for (name, shape) in [("mu", &[1 << 26][..]), ("sigma", &[6000, 6000]), ("features", &[1 << 27, 1])] {
            let of = |n: &str, default: &[usize]| {
                if n == name { npy("<f8", false, shape, &[]) } else { npy("<f8", false, default, &[0; 8]) }
            };
            archive(
                &path,
                true,
                &[("mu", of("mu", &[1])), ("sigma", of("sigma", &[1, 1])), ("features", of("features", &[1, 1]))],
            );
            let text = crate::stats::ReferenceStats::read(&path).unwrap_err().to_string();
            assert!(text.contains(&format!("{name}: expected at most 64 MiB of memory")), "{text}");
        }
        archive(&path, true, &[(IMAGES, npy("|u1", true, &[40, 5000, 5000, 3], &[]))]);
        let mut bytes = fs::read(&path).unwrap();
        let patch = |bytes: &mut Vec<u8>, size: u32| {
            let at = bytes.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
            bytes[at + 24..at + 28].copy_from_slice(&size.to_le_bytes());
        };
        patch(&mut bytes, 700 << 20);
        fs::write(&path, &bytes).unwrap();
        assert!(crate::batch::open(&path).is_err());
        patch(&mut bytes, u32::MAX - 1);
        fs::write(&path, &bytes).unwrap();
        let text = crate::batch::open(&path).err().unwrap().to_string();
        assert!(text.contains("arr_0.npy: expected at most") && text.contains("bytes when unpacked"), "{text}");
    }

    #[test]
    fn arrays_without_elements_have_few_rows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npz");
        archive(
            &path,
            false,
            &[("a", npy("<f4", false, &[1000, 0], &[])), ("b", npy("<f4", false, &[1 << 40, 0], &[]))],
        );
        let mut npz = Npz::open(&path).unwrap();
        assert_eq!(npz.f32("a").unwrap().shape(), [1000, 0]);
        let text = npz.f32("b").unwrap_err().to_string();
        assert!(text.contains("without elements of at most 2^20 rows"), "{text}");
    }

    #[test]
    fn large_integers_and_feature_matrices_are_exact() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npz");
        let (signed, seeds) = ([(1_i64 << 53) + 1, i64::MIN], [u64::MAX, (1 << 53) + 1]);
        let mut writer = NpzWriter::create(&path).unwrap();
        writer.i64("signed", &signed).unwrap();
        writer.u64("seeds", &seeds).unwrap();
        writer.bytes("bytes", b"{}").unwrap();
        let x = Array2::from_shape_fn((300, 200), |(i, j)| (i * j) as f32 / 7.0);
        writer.f32("x", x.view().into_dyn()).unwrap();
        writer.finish().unwrap();
        let mut npz = Npz::open(&path).unwrap();
        assert_eq!((npz.i64("signed").unwrap(), npz.u64("seeds").unwrap()), (signed.to_vec(), seeds.to_vec()));
        assert!(npz.i64("seeds").is_err() && npz.u64("signed").is_err() && npz.f64("seeds").is_err());
        assert_eq!((npz.bytes("bytes").unwrap(), npz.f32("x").unwrap()), (b"{}".to_vec(), x.into_dyn()));
        assert!(npz.bytes("x").is_err());
    }
}
