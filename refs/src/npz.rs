//! npz archives: named arrays, and image packs (`arr_0` u8 NHWC, classes in `arr_1`) read row by row.

use std::io::{Read, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};

use flate2::read::DeflateDecoder;
use fs_err as fs;
use ndarray::{Array4, ArrayD, ArrayViewD, IxDyn};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use crate::atomic::AtomicFile;
use crate::batch::{ImageDims, ImageSource, check_range};
use crate::error::{Error, Result};
use crate::npy::{self, Dtype, Header};

/// Name of the image array.
pub const IMAGES: &str = "arr_0";
/// Name of the class array.
pub const LABELS: &str = "arr_1";

/// An npz archive.
#[derive(Debug)]
pub struct Npz {
    path: PathBuf,
    archive: ZipArchive<fs::File>,
}

impl Npz {
    /// Opens `path`.
    ///
    /// # Errors
    /// `Zip` if it is no zip archive.
    pub fn open(path: &Path) -> Result<Self> {
        let archive = ZipArchive::new(fs::File::open(path)?).map_err(|e| Error::zip(path, e))?;
        Ok(Self { path: path.to_owned(), archive })
    }

    /// Names of the arrays, without `.npy`, in the archive's order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<(usize, String)> = self
            .archive
            .file_names()
            .filter_map(Result::ok)
            .filter_map(|n| Some((self.archive.index_for_name(&n)?, n.strip_suffix(".npy")?.to_owned())))
            .collect();
        names.sort_unstable();
        names.into_iter().map(|(_, n)| n).collect()
    }

    /// Whether there is an array `name`.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.archive.index_for_name(&format!("{name}.npy")).is_some()
    }

    /// Type and shape of array `name`.
    ///
    /// # Errors
    /// `Format` if there is none or its header is bad.
    pub fn header(&mut self, name: &str) -> Result<Header> {
        let path = self.path.clone();
        let mut entry = self.entry(name)?;
        npy::read_header(&mut entry, &path, name)
    }

    /// Whether array `name` is compressed, as `numpy.savez_compressed` writes it.
    ///
    /// # Errors
    /// `Format` if there is none.
    pub fn is_compressed(&mut self, name: &str) -> Result<bool> {
        Ok(self.entry(name)?.compression() != CompressionMethod::Stored)
    }

    /// Array `name` as f64, C order.
    ///
    /// # Errors
    /// `Format` if there is none, or it is damaged.
    pub fn f64(&mut self, name: &str) -> Result<ArrayD<f64>> {
        let path = self.path.clone();
        let mut entry = self.entry(name)?;
        let header = npy::read_header(&mut entry, &path, name)?;
        let values = npy::read_f64(&mut entry, header.dtype, header.count(), &path, name)?;
        let bad = |e: ndarray::ShapeError| Error::format(&path, name, "data of the stated shape", e.to_string());
        if header.fortran_order {
            let reversed: Vec<usize> = header.shape.iter().rev().copied().collect();
            let array = ArrayD::from_shape_vec(IxDyn(&reversed), values).map_err(bad)?;
            Ok(array.reversed_axes().as_standard_layout().into_owned())
        } else {
            ArrayD::from_shape_vec(IxDyn(&header.shape), values).map_err(bad)
        }
    }

    /// Array `name` as f32, C order (f64 values are rounded).
    ///
    /// # Errors
    /// Those of [`Npz::f64`].
    #[allow(clippy::cast_possible_truncation, reason = "asked for")]
    pub fn f32(&mut self, name: &str) -> Result<ArrayD<f32>> {
        Ok(self.f64(name)?.mapv(|v| v as f32))
    }

    /// Array `name` as integers.
    ///
    /// # Errors
    /// Those of [`Npz::f64`]; `Format` if a value is not whole.
    #[allow(clippy::cast_possible_truncation, reason = "checked to be whole")]
    pub fn i64(&mut self, name: &str) -> Result<Vec<i64>> {
        let values = self.f64(name)?;
        if let Some(bad) = values.iter().find(|v| v.fract() != 0.0) {
            return Err(Error::format(&self.path, name, "whole numbers", bad.to_string()));
        }
        Ok(values.iter().map(|v| *v as i64).collect())
    }

    fn entry(&mut self, name: &str) -> Result<zip::read::ZipFile<'_, fs::File>> {
        if !self.contains(name) {
            let found = self.names().join(", ");
            return Err(Error::format(&self.path, "arrays", format!("`{name}`"), format!("only {found}")));
        }
        self.archive.by_name(&format!("{name}.npy")).map_err(|e| Error::zip(&self.path, e))
    }
}

/// Whether the zip at `path` holds npy arrays.
///
/// # Errors
/// `Zip` if it is no zip archive.
pub fn has_arrays(path: &Path) -> Result<bool> {
    Ok(!Npz::open(path)?.names().is_empty())
}

/// Images of an npz or npy file, read in order without holding them all.
pub struct Pack {
    path: PathBuf,
    place: Place,
    len: usize,
    dims: ImageDims,
    labels: Option<Vec<i64>>,
    stream: Option<(usize, Box<dyn Read + Send>)>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    start: u64,
    bytes: u64,
    deflated: bool,
}

impl std::fmt::Debug for Pack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pack").field("path", &self.path).field("len", &self.len).finish_non_exhaustive()
    }
}

impl Pack {
    /// Opens the npz at `path`: `arr_0` (or the only u8 array of four axes) are the images, `arr_1` the classes.
    ///
    /// # Errors
    /// `Format` if there is no u8 image array, or it is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let mut npz = Npz::open(path)?;
        let name = if npz.contains(IMAGES) {
            IMAGES.to_owned()
        } else {
            let mut found = None;
            for name in npz.names() {
                let header = npz.header(&name)?;
                if header.dtype == Dtype::U8 && header.shape.len() == 4 {
                    found = Some(name);
                    break;
                }
            }
            found.ok_or_else(|| {
                Error::format(path, "arrays", "`arr_0`, u8 [N, H, W, 3]", format!("only {}", npz.names().join(", ")))
            })?
        };
        let labels = if npz.contains(LABELS) { Some(npz.i64(LABELS)?) } else { None };
        let entry = npz.entry(&name)?;
        let deflated = match entry.compression() {
            CompressionMethod::Stored => false,
            CompressionMethod::Deflated => true,
            other => return Err(Error::format(path, &name, "stored or deflated", other.to_string())),
        };
        let start = entry.data_start().ok_or_else(|| Error::format(path, &name, "entry data", "none"))?;
        let place = Place { start, bytes: entry.compressed_size(), deflated };
        drop(entry);
        Self::at(path, place, labels)
    }

    /// Opens the npy at `path`.
    ///
    /// # Errors
    /// `Format` if it holds no u8 images.
    pub fn open_npy(path: &Path) -> Result<Self> {
        let bytes = fs::metadata(path)?.len();
        Self::at(path, Place { start: 0, bytes, deflated: false }, None)
    }

    fn at(path: &Path, place: Place, labels: Option<Vec<i64>>) -> Result<Self> {
        let mut reader = open_at(path, place)?;
        let header = npy::read_header(&mut reader, path, IMAGES)?;
        let (&[len, height, width, channels], Dtype::U8, false) =
            (header.shape.as_slice(), header.dtype, header.fortran_order)
        else {
            let found = format!("{} {:?}", header.dtype.descr(), header.shape);
            return Err(Error::format(path, IMAGES, "u8 [N, H, W, 3] in C order", found));
        };
        if channels != 3 {
            return Err(Error::format(path, IMAGES, "3 channels", channels.to_string()));
        }
        if len == 0 {
            return Err(Error::Empty { file: path.to_owned() });
        }
        if let Some(labels) = &labels
            && labels.len() != len
        {
            return Err(Error::format(path, LABELS, format!("{len} classes"), labels.len().to_string()));
        }
        let dims = ImageDims { height, width, channels };
        Ok(Self { path: path.to_owned(), place, len, dims, labels, stream: Some((0, reader)) })
    }
}

fn open_at(path: &Path, place: Place) -> Result<Box<dyn Read + Send>> {
    let mut file = fs::File::open(path)?;
    file.seek(SeekFrom::Start(place.start))?;
    let raw = std::io::BufReader::with_capacity(1 << 18, file.take(place.bytes));
    Ok(if place.deflated { Box::new(DeflateDecoder::new(raw)) } else { Box::new(raw) })
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
        self.labels.as_deref()
    }

    fn read(&mut self, range: Range<usize>) -> Result<Array4<u8>> {
        check_range(&self.path, &range, self.len)?;
        let ImageDims { height, width, channels } = self.dims;
        let row = height * width * channels;
        let (mut at, mut reader) = match self.stream.take() {
            Some((at, reader)) if at <= range.start => (at, reader),
            _ => {
                let mut reader = open_at(&self.path, self.place)?;
                npy::read_header(&mut reader, &self.path, IMAGES)?;
                (0, reader)
            }
        };
        let short = |e: std::io::Error| Error::format(&self.path, IMAGES, "all rows of the array", e.to_string());
        while at < range.start {
            let skipped = std::io::copy(&mut (&mut reader).take(row as u64), &mut std::io::sink()).map_err(short)?;
            if skipped != row as u64 {
                return Err(Error::format(&self.path, IMAGES, format!("{} rows", self.len), format!("{at} rows")));
            }
            at += 1;
        }
        let mut bytes = Vec::new();
        let wanted = range.len() * row;
        (&mut reader).take(wanted as u64).read_to_end(&mut bytes).map_err(short)?;
        if bytes.len() != wanted {
            let found = format!("{} rows", at + bytes.len() / row.max(1));
            return Err(Error::format(&self.path, IMAGES, format!("{} rows", self.len), found));
        }
        self.stream = Some((range.end, reader));
        Array4::from_shape_vec((range.len(), height, width, channels), bytes)
            .map_err(|e| Error::format(&self.path, IMAGES, "rows of one size", e.to_string()))
    }
}

/// Writes an npz: stored arrays with fixed times, so equal content gives equal bytes.
pub struct NpzWriter {
    path: PathBuf,
    zip: ZipWriter<AtomicFile>,
}

impl std::fmt::Debug for NpzWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NpzWriter").field("path", &self.path).finish_non_exhaustive()
    }
}

impl NpzWriter {
    /// Starts writing what will be `path`.
    ///
    /// # Errors
    /// The file system's own.
    pub fn create(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_owned(), zip: ZipWriter::new(AtomicFile::create(path)?) })
    }

    /// Starts array `name`; its rows follow by [`NpzWriter::raw`].
    ///
    /// # Errors
    /// Writing errors.
    pub fn start(&mut self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<()> {
        let bytes = shape.iter().product::<usize>() as u64 * dtype.size() as u64;
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(zip::DateTime::default())
            .unix_permissions(0o644)
            .large_file(bytes > u64::from(u32::MAX) - (1 << 16));
        self.zip.start_file(format!("{name}.npy"), options).map_err(|e| Error::zip(&self.path, e))?;
        npy::write_header(&mut self.zip, dtype, shape)?;
        Ok(())
    }

    /// Little-endian elements of the array started last.
    ///
    /// # Errors
    /// Writing errors.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.zip.write_all(bytes)?)
    }

    /// A whole f64 array.
    ///
    /// # Errors
    /// Writing errors.
    pub fn f64(&mut self, name: &str, array: ArrayViewD<'_, f64>) -> Result<()> {
        self.start(name, Dtype::F64, array.shape())?;
        self.elements(array.iter().map(|v| v.to_le_bytes()))
    }

    /// A whole f32 array.
    ///
    /// # Errors
    /// Writing errors.
    pub fn f32(&mut self, name: &str, array: ArrayViewD<'_, f32>) -> Result<()> {
        self.start(name, Dtype::F32, array.shape())?;
        self.elements(array.iter().map(|v| v.to_le_bytes()))
    }

    /// A list of integers.
    ///
    /// # Errors
    /// Writing errors.
    pub fn i64(&mut self, name: &str, values: &[i64]) -> Result<()> {
        self.start(name, Dtype::I64, &[values.len()])?;
        self.elements(values.iter().map(|v| v.to_le_bytes()))
    }

    /// Bytes as a u8 array of one axis.
    ///
    /// # Errors
    /// Writing errors.
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

    /// Gives the file its name.
    ///
    /// # Errors
    /// Writing errors.
    pub fn finish(self) -> Result<()> {
        let path = self.path;
        let file = self.zip.finish().map_err(|e| Error::zip(&path, e))?;
        Ok(file.commit()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array1, Array2};

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
}
