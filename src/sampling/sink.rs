//! Where images go: npz, HDF5, dataset zip or a folder of PNGs, and a grid of the first ones.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use d2o_refs::atomic::AtomicFile;
use d2o_refs::batch::ImageDims;
use d2o_refs::hdf5::Hdf5Writer;
use d2o_refs::image_zip::{DatasetWriter, LABEL_FILE, label_file};
use d2o_refs::npy::Dtype;
use d2o_refs::npz::{IMAGES, LABELS, NpzWriter};
use d2o_refs::png;
use fs_err as fs;
use ndarray::{Array3, Array4, Axis, s};
use rayon::prelude::*;
use serde_json::Value;

/// Name of the array or dataset that tells where images come from.
const RECORD: &str = "d2o";

/// The form of an output, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `arr_0`, and `arr_1` if conditional.
    Npz,
    /// `images`, `seeds`, and `labels` if conditional.
    Hdf5,
    /// PNGs and `dataset.json`.
    Zip,
    /// PNGs named after their seeds, and `dataset.json`.
    Folder,
}

impl Form {
    /// From the ending of `path`.
    ///
    /// # Errors
    /// Any other ending.
    pub fn of(path: &Path) -> anyhow::Result<Self> {
        let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        Ok(match ending.as_deref() {
            Some("npz") => Self::Npz,
            Some("h5" | "hdf5") => Self::Hdf5,
            Some("zip") => Self::Zip,
            None => Self::Folder,
            Some(other) => anyhow::bail!("--out: expected .npz, .h5, .zip or a folder, found .{other}"),
        })
    }
}

/// An output being written. It appears under its name when it is finished; a folder's images appear one by one.
pub struct Sink<'a> {
    kind: Kind,
    out: &'a Path,
    seeds: &'a [u64],
    at: usize,
    labels: Vec<i64>,
}

enum Kind {
    Npz(NpzWriter, PathBuf),
    Hdf5(Hdf5Writer, PathBuf),
    Zip(DatasetWriter, PathBuf),
    Folder { subdirs: bool, scratch: PathBuf },
}

impl<'a> Sink<'a> {
    /// Starts writing images of `seeds` to `out`; unfinished files lie in `scratch`, on the same file system.
    ///
    /// # Errors
    /// The container's.
    pub fn create(
        out: &'a Path,
        scratch: &Path,
        seeds: &'a [u64],
        dims: ImageDims,
        subdirs: bool,
    ) -> anyhow::Result<Self> {
        let form = Form::of(out)?;
        anyhow::ensure!(!subdirs || form == Form::Folder, "--subdirs: the output is no folder");
        let file = scratch.join(format!(".d2o-out.{}", out.extension().unwrap_or_default().to_string_lossy()));
        let kind = match form {
            Form::Npz => {
                let mut npz = NpzWriter::create(&file)?;
                npz.start(IMAGES, Dtype::U8, &[seeds.len(), dims.height, dims.width, dims.channels])?;
                Kind::Npz(npz, file)
            }
            Form::Hdf5 => Kind::Hdf5(Hdf5Writer::create(&file, seeds.len(), dims)?, file),
            Form::Zip => Kind::Zip(DatasetWriter::create(&file)?, file),
            Form::Folder => {
                fs::create_dir_all(out)?;
                Kind::Folder { subdirs, scratch: scratch.to_owned() }
            }
        };
        Ok(Self { kind, out, seeds, at: 0, labels: Vec::new() })
    }

    /// Appends `images [n, H, W, 3]` of the next seeds.
    ///
    /// # Errors
    /// Encoding and writing errors.
    pub fn append(&mut self, images: &Array4<u8>, labels: Option<&[i64]>) -> anyhow::Result<()> {
        let seeds = &self.seeds[self.at..self.at + images.dim().0];
        match &mut self.kind {
            Kind::Npz(npz, _) => npz.raw(images.as_slice().context("contiguous images")?)?,
            Kind::Hdf5(h5, _) => h5.append(images)?,
            Kind::Zip(zip, _) => zip.append(images, labels)?,
            Kind::Folder { subdirs, scratch } => {
                let (out, subdirs, scratch) = (self.out, *subdirs, scratch.as_path());
                let write = |(image, seed): (ndarray::ArrayView3<'_, u8>, &u64)| -> anyhow::Result<()> {
                    let target = out.join(name_of(*seed, subdirs));
                    if let Some(folder) = target.parent() {
                        fs::create_dir_all(folder)?;
                    }
                    let mut file = AtomicFile::create_in(scratch, &target)?;
                    file.write_all(&png(&target, "", image)?)?;
                    Ok(file.commit_unsynced()?)
                };
                images.axis_iter(Axis(0)).into_par_iter().zip(seeds.par_iter()).try_for_each(write)?;
            }
        }
        self.labels.extend(labels.unwrap_or(&[]));
        self.at += images.dim().0;
        Ok(())
    }

    /// Adds classes, seeds and `record`, which tells where the images come from, and gives the output its name.
    ///
    /// # Errors
    /// Writing errors.
    pub fn finish(self, record: &Value) -> anyhow::Result<()> {
        let text = record.to_string();
        let file = match self.kind {
            Kind::Npz(mut npz, file) => {
                if !self.labels.is_empty() {
                    npz.i64(LABELS, &self.labels)?;
                }
                npz.bytes(RECORD, text.as_bytes())?;
                npz.finish()?;
                file
            }
            Kind::Hdf5(mut h5, file) => {
                if !self.labels.is_empty() {
                    h5.i64("labels", &self.labels)?;
                }
                h5.i64("seeds", &self.seeds.iter().map(|s| s.cast_signed()).collect::<Vec<_>>())?;
                h5.bytes(RECORD, text.as_bytes())?;
                h5.finish()?;
                file
            }
            Kind::Zip(zip, file) => {
                zip.finish_with(Some(record))?;
                file
            }
            Kind::Folder { subdirs, .. } => {
                let names = || self.seeds.iter().map(|s| name_of(*s, subdirs));
                // The journal that could restore them goes next.
                let sync = |seed: &u64| fs::File::open(self.out.join(name_of(*seed, subdirs)))?.sync_all();
                self.seeds.par_iter().try_for_each(sync)?;
                let labels = (!self.labels.is_empty()).then_some(self.labels.as_slice());
                let json = label_file(names(), labels, Some(record));
                return Ok(AtomicFile::write_all_to(&self.out.join(LABEL_FILE), json.as_bytes())?);
            }
        };
        Ok(fs::rename(file, self.out)?)
    }
}

/// EDM's name for the image of `seed`: `000123.png`, or `001000/001234.png` with a folder for every 1000 seeds.
#[must_use]
pub fn name_of(seed: u64, subdirs: bool) -> String {
    if subdirs { format!("{:06}/{seed:06}.png", seed - seed % 1000) } else { format!("{seed:06}.png") }
}

/// The first images, side by side.
pub struct Grid {
    path: PathBuf,
    columns: usize,
    canvas: Array3<u8>,
    placed: usize,
}

impl Grid {
    /// `columns` times as many images of size `dims`.
    #[must_use]
    pub fn new(path: &Path, columns: usize, dims: ImageDims) -> Self {
        let canvas = Array3::from_elem((columns * dims.height, columns * dims.width, 3), 255);
        Self { path: path.to_owned(), columns, canvas, placed: 0 }
    }

    /// Places the next images while there is room.
    pub fn add(&mut self, images: &Array4<u8>) {
        let (_, h, w, _) = images.dim();
        for image in images.outer_iter() {
            let (row, column) = (self.placed / self.columns, self.placed % self.columns);
            if row < self.columns {
                let (top, left) = (row * h, column * w);
                self.canvas.slice_mut(s![top..top + h, left..left + w, ..]).assign(&image);
                self.placed += 1;
            }
        }
    }

    /// Writes the PNG.
    ///
    /// # Errors
    /// Writing errors.
    pub fn save(self) -> anyhow::Result<()> {
        AtomicFile::write_all_to(&self.path, &png(&self.path, "", self.canvas.view())?)
            .with_context(|| format!("write `{}`", self.path.display()))
    }
}
