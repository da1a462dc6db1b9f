//! Outputs of images: npz, HDF5, dataset zip or a folder of PNGs, and a grid of the first images.

use std::io::Write as _;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use d2o_files::AtomicFile;
use d2o_refs::batch::ImageDims;
use d2o_refs::hdf5::Hdf5Writer;
use d2o_refs::image_zip::{DatasetWriter, LABEL_FILE, label_file};
use d2o_refs::npy::Dtype;
use d2o_refs::npz::{IMAGES, LABELS, NpzWriter};
use d2o_refs::png;
use d2o_refs::record::{self, RECORD};
use fs_err as fs;
use ndarray::{Array3, Array4, Axis, s};
use rayon::prelude::*;
use serde_json::Value;

use super::latents::{SEEDS, signed};
use crate::error::with_hint;

/// File in `OUT.partial`: the `dataset.json` of a folder that is being replaced, until its images are removed.
const REPLACED: &str = "replaced.json";

/// Format of an output, by its extension.
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
    /// The format for the extension of `path`.
    ///
    /// # Errors
    /// If the extension is unknown.
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

/// An output being written. A file appears at its path when it is finished; the images of a folder appear one by one.
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
    /// Starts writing images of `seeds` to `out`. Unfinished files are kept in `scratch`, on the same file system.
    ///
    /// # Errors
    /// If the extension is unknown, `subdirs` is set for a file, or the output cannot be created.
    pub fn create(
        out: &'a Path,
        scratch: &Path,
        seeds: &'a [u64],
        dims: ImageDims,
        subdirs: bool,
    ) -> anyhow::Result<Self> {
        let form = Form::of(out)?;
        anyhow::ensure!(!subdirs || form == Form::Folder, "--subdirs requires a folder as output");
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
                remove_earlier(out, scratch)?;
                Kind::Folder { subdirs, scratch: scratch.to_owned() }
            }
        };
        Ok(Self { kind, out, seeds, at: 0, labels: Vec::new() })
    }

    /// Appends `images [n, H, W, 3]` of the next seeds.
    ///
    /// # Errors
    /// If encoding or writing fails.
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

    /// Adds classes, seeds (in HDF5) and `record`, the provenance of the images, and moves the output to its path.
    ///
    /// # Errors
    /// If writing fails.
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
                    h5.values("labels", &self.labels)?;
                }
                match signed(self.seeds) {
                    Some(seeds) => h5.values(SEEDS, &seeds)?,
                    None => h5.values(SEEDS, self.seeds)?,
                }
                h5.values(RECORD, text.as_bytes())?;
                h5.finish()?;
                file
            }
            Kind::Zip(zip, file) => {
                zip.finish_with(Some(record))?;
                file
            }
            Kind::Folder { subdirs, .. } => {
                let names = || self.seeds.iter().map(|s| name_of(*s, subdirs));
                // The images are synced because the journal, which could restore them, is removed next.
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

/// File name of the image of `seed`, as in EDM: `000123.png`, or `001000/001234.png` with a folder for every 1000
/// seeds.
#[must_use]
pub fn name_of(seed: u64, subdirs: bool) -> String {
    if subdirs { format!("{:06}/{seed:06}.png", seed - seed % 1000) } else { format!("{seed:06}.png") }
}

/// Checks that the folder `out` is empty, or contains the output of a finished run of `d2o generate` and nothing else,
/// so that it can be replaced.
///
/// # Errors
/// If that is not so; the error names the first other file.
pub fn ensure_replaceable(out: &Path) -> anyhow::Result<()> {
    if fs::read_dir(out)?.next().is_none() {
        return Ok(());
    }
    let refuse =
        |what: String| with_hint(anyhow::anyhow!(what), "delete the folder, or pass another output with --out");
    let earlier = record::read(out)?.and_then(|r| EarlierSeeds::of(&r));
    let Some(earlier) = earlier else {
        return Err(refuse(format!("`{}` is not a finished output of `d2o generate`", out.display())));
    };
    let other = files_below(out)?.into_iter().find(|f| f != Path::new(LABEL_FILE) && !earlier.made(f));
    match other {
        Some(file) => Err(refuse(format!("`{}` was not written by the run to be replaced", out.join(file).display()))),
        None => Ok(()),
    }
}

/// Removes the images of the finished run in `out`, if there is one. If the process is killed, the next call continues
/// the removal.
fn remove_earlier(out: &Path, scratch: &Path) -> anyhow::Result<()> {
    let (file, replaced) = (out.join(LABEL_FILE), scratch.join(REPLACED));
    if file.exists() {
        fs::rename(&file, &replaced)?;
    } else if !replaced.exists() {
        return Ok(());
    }
    let json: Value = serde_json::from_slice(&fs::read(&replaced)?)
        .with_context(|| format!("`{}` is damaged", replaced.display()))?;
    if let Some(earlier) = json.get(RECORD).and_then(EarlierSeeds::of) {
        for file in files_below(out)?.into_iter().filter(|f| earlier.made(f)) {
            fs::remove_file(out.join(&file))?;
            if let Some(folder) = file.parent().filter(|f| !f.as_os_str().is_empty()) {
                // This succeeds after the last image of the folder is removed.
                let _ = fs::remove_dir(out.join(folder));
            }
        }
    }
    Ok(fs::remove_file(replaced)?)
}

/// Files in `folder` and in its direct subfolders, relative to `folder`. Deeper folders and links count as files.
fn files_below(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = PathBuf::from(entry.file_name());
        if entry.file_type()?.is_dir() {
            for below in fs::read_dir(entry.path())? {
                found.push(name.join(below?.file_name()));
            }
        } else {
            found.push(name);
        }
    }
    Ok(found)
}

/// The seeds of an earlier run, as sorted ranges that do not overlap.
#[derive(Debug)]
struct EarlierSeeds(Vec<RangeInclusive<u64>>);

impl EarlierSeeds {
    /// Reads the seeds from the record of a run. Ranges are not expanded, because a few bytes can name any number of
    /// seeds.
    fn of(record: &Value) -> Option<Self> {
        let range = |part: &str| {
            let (a, b) = part.split_once('-').unwrap_or((part, part));
            Some(a.parse().ok()?..=b.parse().ok()?)
        };
        let mut ranges: Vec<RangeInclusive<u64>> =
            record.get("seeds")?.as_str()?.split(',').map(range).collect::<Option<_>>()?;
        ranges.sort_unstable_by_key(|r| *r.start());
        let mut merged: Vec<RangeInclusive<u64>> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.start() <= last.end() => *last = *last.start()..=*last.end().max(range.end()),
                _ => merged.push(range),
            }
        }
        Some(Self(merged))
    }

    /// Whether the run wrote `file`, a path relative to the output folder.
    fn made(&self, file: &Path) -> bool {
        let Some(seed) = file.file_stem().and_then(|s| s.to_str()?.parse().ok()) else { return false };
        let at = self.0.partition_point(|r| *r.start() <= seed);
        let ours = [false, true].iter().any(|subdirs| file == Path::new(&name_of(seed, *subdirs)));
        ours && self.0[..at].last().is_some_and(|r| r.contains(&seed))
    }
}

/// Grid of the first images.
pub struct Grid {
    path: PathBuf,
    columns: usize,
    canvas: Array3<u8>,
    placed: usize,
}

impl Grid {
    /// A grid of `columns` × `columns` images of size `dims`, to be written to `path`.
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
    /// If writing fails.
    pub fn save(self) -> anyhow::Result<()> {
        AtomicFile::write_all_to(&self.path, &png(&self.path, "", self.canvas.view())?)
            .with_context(|| format!("write `{}`", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const DIMS: ImageDims = ImageDims { height: 2, width: 2, channels: 3 };

    fn write(out: &Path, scratch: &Path, seeds: &[u64], subdirs: bool) {
        fs::create_dir_all(scratch).unwrap();
        let mut sink = Sink::create(out, scratch, seeds, DIMS, subdirs).unwrap();
        sink.append(&Array4::zeros((seeds.len(), 2, 2, 3)), None).unwrap();
        sink.finish(&json!({"seeds": super::super::request::Seeds::text(seeds)})).unwrap();
    }

    fn listed(out: &Path) -> Vec<String> {
        let mut found: Vec<_> = files_below(out).unwrap().iter().map(|f| f.display().to_string()).collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn a_folder_holds_the_images_of_one_run() {
        let dir = tempfile::tempdir().unwrap();
        let (out, scratch) = (dir.path().join("out"), dir.path().join("scratch"));
        write(&out, &scratch, &[3, 4, 5, 9, 1001], true);
        assert_eq!(listed(&out).len(), 6);
        ensure_replaceable(&out).unwrap();
        write(&out, &scratch, &[4, 5, 6], false);
        assert_eq!(listed(&out), ["000004.png", "000005.png", "000006.png", LABEL_FILE]);
        assert!(!out.join("000000").exists() && fs::read_dir(&scratch).unwrap().count() == 0);

        // The process was killed after it removed the first image.
        fs::rename(out.join(LABEL_FILE), scratch.join(REPLACED)).unwrap();
        fs::remove_file(out.join("000004.png")).unwrap();
        write(&out, &scratch, &[1], false);
        assert_eq!(listed(&out), ["000001.png", LABEL_FILE]);
    }

    #[test]
    fn a_folder_with_other_files_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (out, scratch) = (dir.path().join("out"), dir.path().join("scratch"));
        let text = |out: &Path| ensure_replaceable(out).map_or_else(|e| e.to_string(), |()| String::new());
        write(&out, &scratch, &[3, 4, 1005], true);
        for other in ["notes.txt", "000005.png", "001000/000003.png", "000000/000004.png.txt", "a/b"] {
            let file = out.join(other);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "x").unwrap();
            let found = text(&out);
            assert!(found.contains(&format!("{other}` was not written by the run")), "{other}: {found}");
            fs::remove_file(&file).unwrap();
        }
        fs::remove_dir(out.join("a")).unwrap();
        assert_eq!(text(&out), "");
        fs::remove_file(out.join(LABEL_FILE)).unwrap();
        assert!(text(&out).contains("not a finished output"), "images alone do not tell whose they are");
        fs::write(out.join(LABEL_FILE), "{\"labels\": null}").unwrap();
        assert!(text(&out).contains("not a finished output"));
    }

    #[test]
    fn seeds_beyond_i64_are_kept_in_hdf5() {
        let dir = tempfile::tempdir().unwrap();
        for seeds in [[3, 4], [1 << 63, u64::MAX]] {
            let out = dir.path().join("a.h5");
            write(&out, &dir.path().join("scratch"), &seeds, false);
            let data = ::hdf5::File::open(&out).unwrap().dataset(SEEDS).unwrap();
            assert_eq!(data.read_raw::<u64>().unwrap(), seeds);
        }
    }

    #[test]
    fn seeds_of_a_record_are_ranges() {
        let earlier = EarlierSeeds::of(&json!({"seeds": "7,0-18446744073709551615"})).unwrap();
        assert!(earlier.made(Path::new("000123.png")) && !earlier.made(Path::new("123.png")));
        let earlier = EarlierSeeds::of(&json!({"seeds": "3,9-12,1-4,10"})).unwrap();
        let made: Vec<u64> = (0..20).filter(|s| earlier.made(Path::new(&name_of(*s, true)))).collect();
        assert_eq!(made, [1, 2, 3, 4, 9, 10, 11, 12]);
        assert!(EarlierSeeds::of(&json!({"seeds": "a"})).is_none() && EarlierSeeds::of(&json!({})).is_none());
    }
}
