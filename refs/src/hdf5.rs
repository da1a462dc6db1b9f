//! HDF5: images (`images` u8 [N, H, W, 3], `labels`, `seeds`), chunked and compressed.

use std::ops::Range;
use std::path::{Path, PathBuf};

use ndarray::{Array4, s};

use crate::batch::{ImageDims, ImageSource, check_range};
use crate::error::{Error, Result};

/// Names an image dataset may have, best first.
const IMAGE_NAMES: [&str; 2] = ["images", "arr_0"];
/// Names a class dataset may have, best first.
const LABEL_NAMES: [&str; 2] = ["labels", "arr_1"];
/// Images in a chunk.
const CHUNK: usize = 16;
const GZIP: u8 = 4;

/// Images of an HDF5 file.
#[derive(Debug)]
pub struct Hdf5Images {
    path: PathBuf,
    images: ::hdf5::Dataset,
    len: usize,
    dims: ImageDims,
    labels: Option<Vec<i64>>,
}

impl Hdf5Images {
    /// Opens `path`.
    ///
    /// # Errors
    /// `Hdf5` if it is damaged, `Format` without a u8 image dataset of 3 channels.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::Hdf5 { file: path.to_owned(), source };
        let file = ::hdf5::File::open(path).map_err(failed)?;
        let names = file.member_names().map_err(failed)?;
        let Some(name) = IMAGE_NAMES.into_iter().find(|n| names.iter().any(|m| m == n)) else {
            return Err(Error::format(path, "datasets", "`images`", format!("only {}", names.join(", "))));
        };
        let images = file.dataset(name).map_err(failed)?;
        let u8_type = images.dtype().map_err(failed)?.is::<u8>();
        let (&[len, height, width, 3], true) = (images.shape().as_slice(), u8_type) else {
            return Err(Error::format(path, name, "u8 [N, H, W, 3]", format!("{:?}", images.shape())));
        };
        if len == 0 {
            return Err(Error::Empty { file: path.to_owned() });
        }
        let labels = match LABEL_NAMES.into_iter().find(|n| names.iter().any(|m| m == n)) {
            Some(n) => Some(file.dataset(n).and_then(|d| d.read_raw::<i64>()).map_err(failed)?),
            None => None,
        };
        if let Some(labels) = &labels
            && labels.len() != len
        {
            return Err(Error::format(path, "labels", format!("{len} classes"), labels.len().to_string()));
        }
        let dims = ImageDims { height, width, channels: 3 };
        Ok(Self { path: path.to_owned(), images, len, dims, labels })
    }
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
        self.labels.as_deref()
    }

    fn read(&mut self, range: Range<usize>) -> Result<Array4<u8>> {
        check_range(&self.path, &range, self.len)?;
        self.images.read_slice(s![range, .., .., ..]).map_err(|source| Error::Hdf5 { file: self.path.clone(), source })
    }
}

/// Writes images chunk by chunk; the file gets its name at the end.
#[derive(Debug)]
pub struct Hdf5Writer {
    target: PathBuf,
    partial: tempfile::TempPath,
    file: ::hdf5::File,
    images: ::hdf5::Dataset,
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
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs_err::create_dir_all(folder)?;
        let partial = tempfile::Builder::new().prefix(".d2o-").suffix(".partial").tempfile_in(folder)?.into_temp_path();
        let failed = |source| Error::Hdf5 { file: path.to_owned(), source };
        // No times are kept: equal content gives equal bytes.
        let mut builder = ::hdf5::FileBuilder::new();
        builder.with_fcpl(|plist| plist.obj_track_times(false));
        let file = builder.create(&partial).map_err(failed)?;
        let images = file
            .new_dataset::<u8>()
            .shape((len, dims.height, dims.width, dims.channels))
            .chunk((CHUNK.min(len.max(1)), dims.height, dims.width, dims.channels))
            .deflate(GZIP)
            .obj_track_times(false)
            .create(IMAGE_NAMES[0])
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
            return Err(Error::format(&self.target, IMAGE_NAMES[0], expected, format!("{:?}", images.shape())));
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
            .map_err(|e| Error::format(&self.target, IMAGE_NAMES[0], "whole images", e.to_string()))?;
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
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            fs_err::set_permissions(&partial, std::fs::Permissions::from_mode(0o644))?;
        }
        fs_err::File::open(&partial)?.sync_all()?;
        partial.persist(&target).map_err(|e| e.error)?;
        Ok(())
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
