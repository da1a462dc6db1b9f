//! Errors of this crate.

use std::path::{Path, PathBuf};

/// Errors of reading or writing a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no tensor of this name.
    #[error("`{name}`: not in the checkpoint")]
    Missing {
        /// Requested name.
        name: String,
    },
    /// The number of values does not match the dimensions of a tensor.
    #[error("`{name}`: {values} values for the shape {dims:?}")]
    Shape {
        /// Name of the tensor.
        name: String,
        /// Its dimensions.
        dims: Vec<usize>,
        /// Number of values.
        values: usize,
    },
    /// Two tensors of a file would have the same name.
    #[error("`{name}`: two tensors of this name")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// The file does not follow its format.
    #[error("{}: {place}: expected {expected}, found {found}", .file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// Position inside the file (byte offset, opcode, entry name).
        place: String,
        /// What the format requires.
        expected: String,
        /// What the file contains.
        found: String,
    },
    /// The file could not be read or written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl Error {
    pub(crate) fn format(
        file: &Path,
        place: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self::Format { file: file.to_owned(), place: place.into(), expected: expected.into(), found: found.into() }
    }
}

/// Result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Up to six of `names`, quoted and cut to 80 characters each, and the number of the others, for messages.
#[must_use]
pub fn abbreviate(names: &[impl AsRef<str>]) -> String {
    const SHOWN: usize = 6;
    const LONGEST: usize = 80;
    let quoted = |name: &str| format!("`{}`", name.chars().take(LONGEST).collect::<String>());
    let mut text = names.iter().take(SHOWN).map(|n| quoted(n.as_ref())).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text += &format!(" and {} more", names.len() - SHOWN);
    }
    text
}
