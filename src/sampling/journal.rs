//! What an unfinished run leaves behind: finished images in files of a few seconds' work, each complete or absent.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use d2o_refs::batch::ImageDims;
use d2o_refs::npy::Dtype;
use d2o_refs::npz::{IMAGES, LABELS, Npz, NpzWriter, Pack};
use d2o_refs::{atomic::AtomicFile, batch::ImageSource as _};
use fs_err as fs;
use ndarray::{Array4, Axis, concatenate};
use serde_json::Value;

use crate::error::with_hint;

/// File that tells what the run computes.
const PLAN: &str = "plan.json";
/// Array of the numbers of images that are not finite and that are constant.
const FAULTS: &str = "faults";
/// Longest time, and most images, between two files: what a kill costs.
const EVERY: Duration = Duration::from_secs(2);
const MOST: usize = 256;

/// Finished images of consecutive seeds.
#[derive(Debug, Clone)]
pub struct Part {
    /// `[N, H, W, C]`.
    pub images: Array4<u8>,
    /// Classes, if the generator is conditional.
    pub labels: Option<Vec<i64>>,
    /// Numbers of images that hold values that are not finite, and of images of a single value.
    pub faults: [usize; 2],
}

/// The folder `OUT.partial` of a run that writes `OUT`.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    done: usize,
    waiting: Vec<Part>,
    last: Instant,
}

impl Journal {
    /// Opens the journal of a run that writes `out` as `plan` says; with `resume`, one that an earlier run left.
    ///
    /// # Errors
    /// An earlier run's without `resume`; another plan's; damaged files.
    pub fn open(out: &Path, plan: &Value, resume: bool) -> anyhow::Result<Self> {
        let mut name = out.file_name().with_context(|| format!("`{}` names no file", out.display()))?.to_owned();
        name.push(".partial");
        let folder = out.with_file_name(name);
        let mut journal = Self { folder, done: 0, waiting: Vec::new(), last: Instant::now() };
        let file = journal.folder.join(PLAN);
        if file.exists() {
            let shown = journal.folder.display();
            if !resume {
                let error = anyhow::anyhow!("`{shown}` holds the images of an unfinished run");
                return Err(with_hint(error, "continue it with --resume, or delete that folder"));
            }
            let found: Value = serde_json::from_slice(&fs::read(&file)?)
                .with_context(|| format!("`{}` is damaged", file.display()))?;
            let differing = differences(&found, plan);
            if !differing.is_empty() {
                let error = anyhow::anyhow!("`{shown}` belongs to another run: {}", differing.join("; "));
                return Err(with_hint(error, "repeat the first run's options, or delete that folder"));
            }
            journal.done = journal.files()?.last().map_or(0, |(start, count, _)| start + count);
            journal.sweep()?;
        } else {
            // Without a plan it is the rest of a journal that was being removed.
            if journal.folder.exists() {
                fs::remove_dir_all(&journal.folder)?;
            }
            AtomicFile::write_all_to(&file, serde_json::to_string_pretty(plan)?.as_bytes())?;
        }
        Ok(journal)
    }

    /// Where the run may put unfinished files: on the output's file system, removed at the end.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Number of images it holds.
    #[must_use]
    pub fn done(&self) -> usize {
        self.done
    }

    /// (first, count, path) of every file, in order; those that do not follow on one another are left out.
    fn files(&self) -> anyhow::Result<Vec<(usize, usize, PathBuf)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let stem = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".npz"));
            if let Some((start, count)) = stem.and_then(|n| n.split_once('+'))
                && let (Ok(start), Ok(count)) = (start.parse(), count.parse())
            {
                files.push((start, count, path));
            }
        }
        files.sort_unstable();
        let mut next = 0;
        files.retain(|(start, count, _)| {
            let follows = *start == next;
            next += if follows { *count } else { 0 };
            follows
        });
        Ok(files)
    }

    /// Removes what a killed run was writing.
    fn sweep(&self) -> anyhow::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(".d2o-")) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Gives every part an earlier run left to `take`, in order.
    ///
    /// # Errors
    /// Damaged files; those of `take`.
    pub fn replay(&self, dims: ImageDims, mut take: impl FnMut(Part) -> anyhow::Result<()>) -> anyhow::Result<()> {
        for (_, count, path) in self.files()? {
            let read = || -> anyhow::Result<Part> {
                let mut pack = Pack::open(&path)?;
                anyhow::ensure!(pack.dims() == Some(dims) && pack.len() == count, "images of another size or number");
                let faults = Npz::open(&path)?.i64(FAULTS)?;
                let faults = [0, 1].map(|i| faults.get(i).and_then(|n| usize::try_from(*n).ok()).unwrap_or(0));
                Ok(Part { images: pack.read(0..count)?, labels: pack.labels().map(<[i64]>::to_vec), faults })
            };
            take(read().with_context(|| format!("`{}` is damaged", path.display()))?)?;
        }
        Ok(())
    }

    /// Takes the next images; they are on disk after a few seconds, or after [`Journal::flush`].
    ///
    /// # Errors
    /// The file system's own.
    pub fn append(&mut self, part: Part) -> anyhow::Result<()> {
        self.waiting.push(part);
        let count: usize = self.waiting.iter().map(|p| p.images.dim().0).sum();
        if count >= MOST || self.last.elapsed() >= EVERY { self.flush() } else { Ok(()) }
    }

    /// Writes what is waiting.
    ///
    /// # Errors
    /// The file system's own.
    pub fn flush(&mut self) -> anyhow::Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        self.last = Instant::now();
        if waiting.is_empty() {
            return Ok(());
        }
        let views: Vec<_> = waiting.iter().map(|p| p.images.view()).collect();
        let images = concatenate(Axis(0), &views)?;
        let count = images.dim().0;
        let mut npz = NpzWriter::create(&self.folder.join(format!("{:09}+{count:06}.npz", self.done)))?;
        npz.start(IMAGES, Dtype::U8, images.shape())?;
        npz.raw(images.as_slice().context("contiguous images")?)?;
        let labels: Vec<i64> = waiting.iter().filter_map(|p| p.labels.as_deref()).flatten().copied().collect();
        if !labels.is_empty() {
            npz.i64(LABELS, &labels)?;
        }
        let faults = [0, 1].map(|i| waiting.iter().map(|p| p.faults[i] as i64).sum());
        npz.i64(FAULTS, &faults)?;
        npz.finish()?;
        self.done += count;
        Ok(())
    }

    /// Removes the journal of a finished run.
    ///
    /// # Errors
    /// The file system's own.
    pub fn remove(self) -> anyhow::Result<()> {
        // The plan goes first: without it the rest is no journal.
        fs::remove_file(self.folder.join(PLAN))?;
        Ok(fs::remove_dir_all(&self.folder)?)
    }
}

/// `key: found, asked for` of everything in which two plans differ.
fn differences(found: &Value, asked: &Value) -> Vec<String> {
    let (Value::Object(found), Value::Object(asked)) = (found, asked) else {
        return if found == asked { Vec::new() } else { vec![format!("{found}, not {asked}")] };
    };
    let keys: std::collections::BTreeSet<&String> = found.keys().chain(asked.keys()).collect();
    let get = |map: &serde_json::Map<String, Value>, key: &str| map.get(key).cloned().unwrap_or(Value::Null);
    keys.into_iter()
        .filter_map(|k| {
            let (a, b) = (get(found, k), get(asked, k));
            (a != b).then(|| format!("{k} {a}, not {b}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn part(n: usize, value: u8) -> Part {
        Part { images: Array4::from_elem((n, 2, 2, 3), value), labels: Some(vec![7; n]), faults: [0, n] }
    }

    #[test]
    fn what_was_flushed_is_replayed() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("S.npz");
        let plan = json!({"seeds": "0-9", "rng": "torch-cpu"});
        let mut journal = Journal::open(&out, &plan, false).unwrap();
        journal.append(part(3, 1)).unwrap();
        journal.append(part(2, 2)).unwrap();
        journal.flush().unwrap();
        journal.append(part(4, 3)).unwrap();
        fs::write(journal.folder().join(".d2o-x.partial"), b"half").unwrap();
        drop(journal);

        let again = Journal::open(&out, &plan, false).unwrap_err();
        assert!(format!("{again:#}").contains("unfinished"), "{again:#}");
        let other = Journal::open(&out, &json!({"seeds": "0-8", "rng": "torch-cpu"}), true).unwrap_err();
        assert!(format!("{other:#}").contains("seeds \"0-9\", not \"0-8\""), "{other:#}");

        let journal = Journal::open(&out, &plan, true).unwrap();
        assert_eq!(journal.done(), 5);
        let mut seen = Vec::new();
        let dims = ImageDims { height: 2, width: 2, channels: 3 };
        journal
            .replay(dims, |p| {
                seen.push((p.images.dim().0, p.labels, p.faults));
                Ok(())
            })
            .unwrap();
        assert_eq!(seen, [(5, Some(vec![7; 5]), [0, 5])]);
        let part =
            fs::read_dir(journal.folder()).unwrap().map(|e| e.unwrap().path()).find(|p| !p.ends_with(PLAN)).unwrap();
        let kept = fs::read(&part).unwrap();
        journal.remove().unwrap();
        // A removal cut short leaves nothing to resume.
        fs::create_dir(part.parent().unwrap()).unwrap();
        fs::write(&part, kept).unwrap();
        let journal = Journal::open(&out, &plan, true).unwrap();
        assert!(journal.done() == 0 && journal.files().unwrap().is_empty());
        journal.remove().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
