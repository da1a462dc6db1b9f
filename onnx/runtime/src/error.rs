//! Errors of this crate.

use std::path::PathBuf;

/// What can go wrong while opening or running a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file is not a model that may be opened.
    #[error(transparent)]
    Model(#[from] d2o_onnx::Error),
    /// The inputs of a run are not those of the model.
    #[error("input `{name}`: expected {expected}, found {found}")]
    Input {
        /// Name of the input.
        name: String,
        /// Element type and shape in the model.
        expected: String,
        /// Element type and shape given.
        found: String,
    },
    /// A runtime's library cannot be used.
    #[error("`{}`: expected {expected}, found {found}", .library.display())]
    Library {
        /// The library.
        library: PathBuf,
        /// What it was loaded for.
        expected: String,
        /// What it is instead.
        found: String,
        /// The error of the loader or of the library.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// A runtime failed to open or run a model.
    #[error("{runtime}: cannot {action}")]
    Runtime {
        /// [`Session::runtime`](crate::Session::runtime).
        runtime: String,
        /// What it was asked to do, e.g. `` open `x.onnx` ``.
        action: String,
        /// The error of the runtime.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
