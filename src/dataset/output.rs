//! Output of a dataset: a zip, or a folder with the same files.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use d2o_files::Scratch;
use d2o_refs::image_zip::{DatasetWriter, LABEL_FILE, label_file, name_of};
use fs_err as fs;
use serde_json::Value;

use crate::outputs;

/// Extensions of other kinds of files, which are refused as folder names.
const OTHER_FILES: [&str; 10] = ["npz", "npy", "h5", "hdf5", "tar", "gz", "png", "jpg", "json", "mdb"];

/// A dataset being written. It is removed if it is dropped before [`Output::finish`].
#[derive(Debug)]
pub enum Output {
    /// A zip of stored PNGs.
    Zip(Box<DatasetWriter>),
    /// A folder of PNGs, filled under a temporary name next to its target.
    Folder {
        /// Final path of the folder.
        target: PathBuf,
        /// The temporary folder.
        partial: Scratch,
        /// Labels of the images written so far.
        labels: Vec<Option<Value>>,
    },
}

/// Whether `path` names a zip, by its extension; otherwise it names a folder.
///
/// # Errors
/// If `path` has the extension of another kind of file.
pub fn is_zip(path: &Path) -> anyhow::Result<bool> {
    let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    ensure!(
        !OTHER_FILES.contains(&ending.as_str()),
        "`{}`: expected a `.zip` file or a folder, found the extension `.{ending}`",
        path.display()
    );
    Ok(ending == "zip")
}

/// Checks, before any work is done, that a dataset of `source` can be written to `out`: `out` does not exist, or
/// `overwrite` is set.
///
/// # Errors
/// If that is not so, or `overwrite` would replace a folder that is not a dataset, or an output that is or contains
/// `source`.
pub fn ensure_new(source: &Path, out: &Path, overwrite: bool) -> anyhow::Result<()> {
    if is_zip(out)? {
        outputs::ensure_new_file(out, overwrite)?;
    } else {
        outputs::ensure_new_folder(out, overwrite)?;
    }
    let Ok(target) = fs::canonicalize(out) else { return Ok(()) };
    ensure!(
        !fs::canonicalize(source)?.starts_with(&target),
        "cannot replace `{}`: it contains the source",
        out.display()
    );
    let replaced = target.is_dir() && fs::read_dir(&target)?.next().is_some();
    ensure!(
        !replaced || target.join(LABEL_FILE).is_file(),
        "cannot replace `{}`: it contains no `{LABEL_FILE}`, so it is not a dataset",
        out.display()
    );
    Ok(())
}

/// The folder of `path`.
fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl Output {
    /// Starts writing a dataset to `path`: a zip if it has the extension `.zip`, otherwise a folder.
    ///
    /// # Errors
    /// Same as [`is_zip`], and if the file system fails.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        if is_zip(path)? {
            return Ok(Self::Zip(Box::new(DatasetWriter::create(path)?)));
        }
        let parent = parent_of(path);
        fs::create_dir_all(parent)?;
        Ok(Self::Folder { target: path.to_owned(), partial: Scratch::partial_in(parent)?, labels: Vec::new() })
    }

    /// Adds the next image.
    ///
    /// # Errors
    /// If the file system fails.
    pub fn append(&mut self, png: &[u8], label: Option<Value>) -> anyhow::Result<()> {
        match self {
            Self::Zip(zip) => zip.append_png(png, label)?,
            Self::Folder { partial, labels, .. } => {
                let file = partial.path().join(name_of(labels.len()));
                if let Some(folder) = file.parent() {
                    fs::create_dir_all(folder)?;
                }
                fs::write(file, png)?;
                labels.push(label);
            }
        }
        Ok(())
    }

    /// Writes the labels and moves the dataset to its final path.
    ///
    /// # Errors
    /// If the file system fails.
    pub fn finish(self) -> anyhow::Result<()> {
        match self {
            Self::Zip(zip) => zip.finish()?,
            Self::Folder { target, partial, labels } => {
                let labels: Option<Vec<Value>> = labels.into_iter().collect();
                let text = label_file((0..).map(name_of), labels.as_deref(), None);
                fs::write(partial.path().join(LABEL_FILE), text)?;
                let cannot = || format!("cannot write `{}`", target.display());
                // An existing folder is moved aside only now, and moved back if the new folder cannot take its place.
                let old = tempfile::Builder::new().prefix(".d2o-").suffix(".old").tempdir_in(parent_of(&target))?;
                let aside = old.path().join("dataset");
                let replaces = target.is_dir();
                if replaces {
                    fs::rename(&target, &aside).with_context(cannot)?;
                }
                if let Err(error) = partial.persist(&target) {
                    if replaces {
                        fs::rename(&aside, &target).with_context(cannot)?;
                    }
                    return Err(error).with_context(cannot);
                }
            }
        }
        Ok(())
    }
}
