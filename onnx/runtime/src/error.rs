//! Errors of this crate.

use std::path::PathBuf;

/// Errors of opening or running a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file is not a valid model, or is refused.
    #[error(transparent)]
    Model(#[from] d2o_onnx::Error),
    /// An input of a run does not match the model.
    #[error("input `{name}`: expected {expected}, found {found}")]
    Input {
        /// Name of the input.
        name: String,
        /// Element type and shape in the model.
        expected: String,
        /// Element type and shape given.
        found: String,
    },
    /// The library of a runtime, of an execution provider or of the CUDA driver cannot be used.
    #[error("`{}`: expected {expected}, found {found}", .library.display())]
    Library {
        /// Path of the library, or the name of a registered execution provider library.
        library: PathBuf,
        /// What is required of the library.
        expected: String,
        /// What was found instead.
        found: String,
        /// The error of the loader or of the library.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// A runtime failed to open or run a model.
    #[error("{runtime}: cannot {action}")]
    Runtime {
        /// Name of the runtime, as in [`Session::runtime`](crate::Session::runtime).
        runtime: String,
        /// The operation that failed, e.g. `` open `x.onnx` ``.
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
