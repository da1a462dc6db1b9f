//! Errors of this crate.

use std::fmt::{self, Formatter};
use std::path::{Path, PathBuf};

/// Errors of reading and writing containers. `{:#}` prints an error with its causes, in one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The content of a file does not follow its format.
    #[error("{}: {}expected {expected}, found {found}", .file.display(), at(.place))]
    Format {
        /// The file.
        file: PathBuf,
        /// Entry, field or offset inside it; empty for the file as a whole.
        place: String,
        /// What the format requires.
        expected: String,
        /// What the file contains.
        found: String,
    },
    /// There is no such file or folder.
    #[error(fmt = missing)]
    Missing {
        /// The path.
        file: PathBuf,
    },
    /// A file or folder contains no images.
    #[error("{}: contains no images{}", .file.display(), after(.left_out))]
    Empty {
        /// The file or folder.
        file: PathBuf,
        /// Skipped files, in the form of [`crate::batch::ImageSource::notes`]; empty if there are none.
        left_out: String,
    },
    /// Two images of one set differ in size.
    #[error("{}: `{first}` is {first_size}, `{other}` is {other_size}; all images must have one size", .file.display())]
    MixedSizes {
        /// The file or folder.
        file: PathBuf,
        /// First image.
        first: String,
        /// Its size, `W×H`.
        first_size: Box<str>,
        /// The image that differs.
        other: String,
        /// Its size, `W×H`.
        other_size: Box<str>,
    },
    /// An image cannot be decoded.
    #[error(fmt = image)]
    Image {
        /// The file or folder.
        file: PathBuf,
        /// The image.
        entry: String,
        /// The error of the decoder.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The HDF5 library reports an error.
    #[error(fmt = hdf5)]
    Hdf5 {
        /// The file.
        file: PathBuf,
        /// The error of the library.
        #[source]
        source: ::hdf5::Error,
    },
    /// Images that are generated while they are read could not be generated.
    #[error(fmt = made)]
    Made {
        /// Name of the generator.
        name: String,
        /// The error of the generator.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn format(
        file: &Path,
        place: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self::Format { file: file.to_owned(), place: place.into(), expected: expected.into(), found: found.into() }
    }

    pub(crate) fn empty(file: &Path, left_out: impl Into<String>) -> Self {
        Self::Empty { file: file.to_owned(), left_out: left_out.into() }
    }

    pub(crate) fn image(file: &Path, entry: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Image { file: file.to_owned(), entry: entry.to_owned(), source: source.into() }
    }
}

type Source = Box<dyn std::error::Error + Send + Sync>;

/// The place followed by a separator, or nothing.
fn at(place: &str) -> String {
    if place.is_empty() { String::new() } else { format!("{place}: ") }
}

fn after(left_out: &str) -> String {
    if left_out.is_empty() { String::new() } else { format!("; {left_out}") }
}

fn missing(file: &Path, f: &mut Formatter<'_>) -> fmt::Result {
    // A shell passes the pattern itself if no file matches it.
    if file.to_string_lossy().contains('*') {
        write!(f, "no file matches `{}`", file.display())
    } else {
        write!(f, "`{}` does not exist", file.display())
    }
}

/// Writes `source` and its causes if the format is `{:#}`.
fn causes(source: &dyn std::error::Error, f: &mut Formatter<'_>) -> fmt::Result {
    let mut next = f.alternate().then_some(source);
    while let Some(cause) = next {
        write!(f, ": {cause}")?;
        next = cause.source();
    }
    Ok(())
}

fn image(file: &Path, entry: &String, source: &Source, f: &mut Formatter<'_>) -> fmt::Result {
    write!(f, "{}: `{entry}` is not a readable image", file.display())?;
    causes(source.as_ref(), f)
}

fn hdf5(file: &Path, source: &::hdf5::Error, f: &mut Formatter<'_>) -> fmt::Result {
    write!(f, "{}: HDF5 error", file.display())?;
    causes(source, f)
}

fn made(name: &String, source: &Source, f: &mut Formatter<'_>) -> fmt::Result {
    write!(f, "{name}: cannot generate images")?;
    causes(source.as_ref(), f)
}
