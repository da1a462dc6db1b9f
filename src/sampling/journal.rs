//! `OUT.partial`, the folder of an unfinished run. It contains the plan of the run and the finished images, in files
//! written every few seconds, each of which is complete or absent.

use std::fs::TryLockError;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use d2o_files::{AtomicFile, is_at};
use d2o_refs::batch::{ImageDims, ImageSource as _};
use d2o_refs::npy::Dtype;
use d2o_refs::npz::{IMAGES, LABELS, Npz, NpzWriter, Pack};
use fs_err as fs;
use ndarray::{Array4, Axis, concatenate};
use serde_json::Value;

use crate::error::with_hint;

/// File with the plan of the run and its other outputs.
const PLAN: &str = "plan.json";
/// File that a running process locks. The lock ends with the process, even if the process is killed.
const LOCK: &str = "lock";
/// Array of two numbers: images with values that are not finite, and constant images.
const FAULTS: &str = "faults";
/// Longest time and largest number of images between two files, which are lost if the process is killed.
const EVERY: Duration = Duration::from_secs(2);
const MOST: usize = 256;

/// Finished images of consecutive seeds.
#[derive(Debug, Clone)]
pub struct Part {
    /// `[N, H, W, C]`.
    pub images: Array4<u8>,
    /// Classes, if the generator is conditional.
    pub labels: Option<Vec<i64>>,
    /// Number of images with values that are not finite, and number of images of a single value.
    pub faults: [usize; 2],
}

/// `OUT.partial`, locked by this process.
#[derive(Debug)]
pub struct Claim {
    folder: PathBuf,
    /// `None` if the file system has no locks.
    lock: Option<fs::File>,
    /// The plan that an unfinished run left.
    left: Option<UnfinishedRun>,
}

/// The contents of `plan.json`.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct UnfinishedRun {
    plan: Value,
    /// Files that the run writes besides OUT.
    outputs: Vec<PathBuf>,
}

impl Claim {
    /// Creates `OUT.partial` for `out` if it does not exist, and locks it. The folder is removed when the claim is
    /// dropped, unless [`Claim::open`] succeeds or an unfinished run left its plan.
    ///
    /// # Errors
    /// If another process uses the folder, the plan is damaged, or the file system fails.
    pub fn new(out: &Path) -> anyhow::Result<Self> {
        let mut name = out.file_name().with_context(|| format!("`{}` is not a file name", out.display()))?.to_owned();
        name.push(".partial");
        let folder = out.with_file_name(name);
        let lock = lock(&folder)?;
        let mut claim = Self { folder, lock, left: None };
        let plan = claim.folder.join(PLAN);
        if plan.exists() {
            let left = serde_json::from_slice(&fs::read(&plan)?).map_err(|error| {
                let error = anyhow::Error::new(error).context(format!("`{}` is damaged", plan.display()));
                with_hint(error, format!("delete `{}`", claim.folder.display()))
            })?;
            claim.left = Some(left);
        }
        Ok(claim)
    }

    /// Whether an unfinished run left its plan, and possibly images.
    #[must_use]
    pub fn is_left(&self) -> bool {
        self.left.is_some()
    }

    /// Whether the unfinished run writes `path` besides OUT.
    #[must_use]
    pub fn writes(&self, path: &Path) -> bool {
        self.left.as_ref().is_some_and(|l| l.outputs.iter().any(|o| o == path))
    }

    /// Whether the folder is locked against other processes.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.lock.is_some()
    }

    /// Checks that there is no unfinished run.
    ///
    /// # Errors
    /// If there is one, with a hint.
    pub fn ensure_fresh(&self) -> anyhow::Result<()> {
        if self.left.is_none() {
            return Ok(());
        }
        let error = anyhow::anyhow!("`{}` holds the images of an unfinished run", self.folder.display());
        Err(with_hint(error, "continue it with --resume, or delete that folder"))
    }

    /// Opens the journal of the run that computes `plan` and also writes `outputs`: a new one, or the one of the
    /// unfinished run.
    ///
    /// # Errors
    /// If the unfinished run has another plan, or the file system fails.
    pub fn open(mut self, plan: &Value, outputs: Vec<PathBuf>) -> anyhow::Result<Journal> {
        let done = match &self.left {
            Some(left) => {
                let differing = differences(&left.plan, plan);
                if !differing.is_empty() {
                    let shown = self.folder.display();
                    let error = anyhow::anyhow!("`{shown}` belongs to another run: {}", differing.join("; "));
                    return Err(with_hint(error, "repeat the first run's options, or delete that folder"));
                }
                sweep(&self.folder, |name| name.starts_with(".d2o-"))?;
                files(&self.folder)?.last().map_or(0, |(start, count, _)| start + count)
            }
            None => {
                // Files without a plan are the rest of a journal that was being removed.
                sweep(&self.folder, |name| name != LOCK)?;
                0
            }
        };
        let left = UnfinishedRun { plan: plan.clone(), outputs };
        AtomicFile::write_all_to(&self.folder.join(PLAN), serde_json::to_string_pretty(&left)?.as_bytes())?;
        self.left = Some(left);
        Ok(Journal { claim: self, done, waiting: Vec::new(), last: Instant::now() })
    }

    /// Removes the folder, the lock last.
    fn remove(&self) -> io::Result<()> {
        // The plan is removed first: without it the rest is not a journal.
        match fs::remove_file(self.folder.join(PLAN)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => sweep(&self.folder, |name| name != LOCK)?,
        }
        fs::remove_file(self.folder.join(LOCK))?;
        match fs::remove_dir(&self.folder) {
            // Another process has just claimed the folder.
            Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => Ok(()),
            result => result,
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.left.is_none() && self.folder.exists() {
            let _ = self.remove();
        }
    }
}

/// Creates `folder` and locks it; `None` if the file system has no locks.
fn lock(folder: &Path) -> anyhow::Result<Option<fs::File>> {
    let path = folder.join(LOCK);
    loop {
        fs::create_dir_all(folder)?;
        let file = match fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path) {
            // The folder has just been removed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        match file.file().try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let error = anyhow::anyhow!("another d2o process is using `{}`", folder.display());
                return Err(with_hint(error, "wait for it to end, or pass another output with --out"));
            }
            Err(TryLockError::Error(_)) => return Ok(None),
        }
        // The previous holder may have removed the file since it was opened; the lock on a removed file excludes
        // nobody.
        if is_at(file.file(), &path)? {
            return Ok(Some(file));
        }
    }
}

/// Removes the entries of `folder` with names that `rest` selects.
fn sweep(folder: &Path, rest: impl Fn(&str) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if rest(&entry.file_name().to_string_lossy()) {
            if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
        }
    }
    Ok(())
}

/// (first, count, path) of every file of images, in order, as far as each one starts where the previous one ends.
fn files(folder: &Path) -> io::Result<Vec<(usize, usize, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let stem = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".npz"));
        if let Some((start, count)) = stem.and_then(|n| n.split_once('+'))
            && let (Ok(start), Ok(count)) = (start.parse(), count.parse())
        {
            files.push((start, count, path));
        }
    }
    files.sort_unstable();
    let mut next = 0_usize;
    files.retain(|(start, count, _)| {
        let follows = *start == next;
        next = if follows { next.saturating_add(*count) } else { next };
        follows
    });
    Ok(files)
}

/// The images of a run so far, on disk and in memory.
#[derive(Debug)]
pub struct Journal {
    claim: Claim,
    done: usize,
    waiting: Vec<Part>,
    last: Instant,
}

impl Journal {
    /// Folder for unfinished files of the run, on the file system of the output. It is removed at the end.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.claim.folder
    }

    /// Number of images on disk.
    #[must_use]
    pub fn done(&self) -> usize {
        self.done
    }

    /// Passes every part that an earlier run left to `take`, in order.
    ///
    /// # Errors
    /// If a file is damaged, or `take` fails.
    pub fn replay(&self, dims: ImageDims, mut take: impl FnMut(Part) -> anyhow::Result<()>) -> anyhow::Result<()> {
        for (_, count, path) in files(&self.claim.folder)? {
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

    /// Appends the next images. They are written once 256 images wait or the last file is older than 2 s, or by
    /// [`Journal::flush`].
    ///
    /// # Errors
    /// If the file system fails.
    pub fn append(&mut self, part: Part) -> anyhow::Result<()> {
        self.waiting.push(part);
        let count: usize = self.waiting.iter().map(|p| p.images.dim().0).sum();
        if count >= MOST || self.last.elapsed() >= EVERY { self.flush() } else { Ok(()) }
    }

    /// Writes the images that are not on disk yet.
    ///
    /// # Errors
    /// If the file system fails.
    pub fn flush(&mut self) -> anyhow::Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        self.last = Instant::now();
        if waiting.is_empty() {
            return Ok(());
        }
        let views: Vec<_> = waiting.iter().map(|p| p.images.view()).collect();
        let images = concatenate(Axis(0), &views)?;
        let count = images.dim().0;
        let mut npz = NpzWriter::create(&self.claim.folder.join(format!("{:09}+{count:06}.npz", self.done)))?;
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
    /// If the file system fails.
    pub fn remove(mut self) -> io::Result<()> {
        self.claim.remove()?;
        self.claim.left = None;
        Ok(())
    }
}

/// Text `key found, not asked` for every key in which two plans or records differ.
pub(crate) fn differences(found: &Value, asked: &Value) -> Vec<String> {
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
        let open = |plan: &Value| Claim::new(&out).unwrap().open(plan, vec!["g.png".into()]);
        let mut journal = open(&plan).unwrap();
        journal.append(part(3, 1)).unwrap();
        journal.append(part(2, 2)).unwrap();
        journal.flush().unwrap();
        journal.append(part(4, 3)).unwrap();
        fs::write(journal.folder().join(".d2o-x.partial"), b"half").unwrap();
        drop(journal);

        let claim = Claim::new(&out).unwrap();
        assert!(claim.is_left() && claim.writes(Path::new("g.png")) && !claim.writes(Path::new("h.png")));
        let again = claim.ensure_fresh().unwrap_err();
        assert!(format!("{again:#}").contains("unfinished"), "{again:#}");
        drop(claim);
        let other = open(&json!({"seeds": "0-8", "rng": "torch-cpu"})).unwrap_err();
        assert!(format!("{other:#}").contains("seeds \"0-9\", not \"0-8\""), "{other:#}");

        let journal = open(&plan).unwrap();
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
        let part = journal.folder().join("000000000+000005.npz");
        let kept = fs::read(&part).unwrap();
        journal.remove().unwrap();
        // An interrupted removal leaves nothing to resume.
        fs::create_dir(part.parent().unwrap()).unwrap();
        fs::write(&part, kept).unwrap();
        let journal = open(&plan).unwrap();
        assert!(journal.done() == 0 && files(journal.folder()).unwrap().is_empty());
        journal.remove().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("S.npz");
        // Two locks of one process exclude each other like locks of two processes.
        let first = Claim::new(&out).unwrap();
        assert!(first.is_locked());
        let text = crate::error::render(&Claim::new(&out).unwrap_err());
        assert!(text.contains("another d2o process") && text.contains("hint: wait"), "{text}");
        // A process that opened the lock file before its holder removed it must not accept the removed file as a lock.
        let stale = fs::File::options().write(true).open(dir.path().join("S.npz.partial/lock")).unwrap();
        drop(first);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "an unused claim leaves nothing");
        assert!(!is_at(stale.file(), &dir.path().join("S.npz.partial/lock")).unwrap());
        let second = Claim::new(&out).unwrap();
        assert!(!is_at(stale.file(), &dir.path().join("S.npz.partial/lock")).unwrap());
        assert!(Claim::new(&out).is_err());
        drop(second.open(&json!({}), Vec::new()).unwrap());
        assert!(Claim::new(&out).unwrap().is_left(), "the lock ends, the journal stays");
    }
}
