//! Errors of this crate.

use std::path::{Path, PathBuf};

/// What can go wrong while reading or writing a container.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file's bytes do not follow its format.
    #[error("{}: {place}: expected {expected}, found {found}", .file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// Entry, field or offset inside it.
        place: String,
        /// What the format asks for.
        expected: String,
        /// What is there.
        found: String,
    },
    /// No image can be read from what the user gave.
    #[error("{}: no images in it", .file.display())]
    Empty {
        /// The file or folder.
        file: PathBuf,
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
    #[error("{}: `{entry}` is not a readable image", .file.display())]
    Image {
        /// The file or folder.
        file: PathBuf,
        /// The image.
        entry: String,
        /// The decoder's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The HDF5 library refused.
    #[error("{}: HDF5 failed", .file.display())]
    Hdf5 {
        /// The file.
        file: PathBuf,
        /// The library's error.
        #[source]
        source: ::hdf5::Error,
    },
    /// The zip container is damaged.
    #[error("{}: not a readable zip archive", .file.display())]
    Zip {
        /// The file.
        file: PathBuf,
        /// The zip library's error.
        #[source]
        source: zip::result::ZipError,
    },
    /// Images that are made as they are read could not be made.
    #[error("{name}: no images could be made")]
    Made {
        /// What makes them.
        name: String,
        /// Why not.
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

    pub(crate) fn image(file: &Path, entry: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Image { file: file.to_owned(), entry: entry.to_owned(), source: source.into() }
    }

    pub(crate) fn zip(file: &Path, source: zip::result::ZipError) -> Self {
        Self::Zip { file: file.to_owned(), source }
    }
}
