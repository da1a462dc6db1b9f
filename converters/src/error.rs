//! Errors of this crate.

use d2o_checkpoint::error::abbreviate;

/// Errors of reading a checkpoint and of building a network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor that the network requires is not in the checkpoint.
    #[error("`{path}`: not in the checkpoint{}", near_misses(.similar))]
    MissingTensor {
        /// Full path of the tensor.
        path: String,
        /// Similar names in the checkpoint, most similar first.
        similar: Vec<String>,
    },
    /// A tensor has another shape than the network requires.
    #[error("`{path}`: expected {expected:?}, found {found:?}")]
    ShapeMismatch {
        /// Full path of the tensor.
        path: String,
        /// Dimensions that the network requires.
        expected: Vec<usize>,
        /// Dimensions in the checkpoint.
        found: Vec<usize>,
    },
    /// The network did not read some tensors of the checkpoint.
    #[error("{} unexpected tensor(s) in the checkpoint: {}", .paths.len(), abbreviate(.paths))]
    UnusedTensors {
        /// Paths of the unread tensors, in the order of the checkpoint and without the prefix of the load.
        paths: Vec<String>,
    },
    /// A network requests the same tensor twice.
    #[error("`{path}`: requested twice")]
    DuplicateTensor {
        /// Full path of the tensor.
        path: String,
    },
    /// A configuration value is missing, unknown or out of range.
    #[error("network configuration: {what}")]
    Config {
        /// Name of the field, expected value, found value.
        what: String,
    },
    /// An engine (libtorch, the graph builder) refused an operation.
    #[error("`{scope}`: operation `{op}` failed")]
    Engine {
        /// Scope path of the layer.
        scope: String,
        /// Name of the `Backend` operation.
        op: &'static str,
        /// Error of the engine.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The checkpoint cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] d2o_checkpoint::Error),
}

/// Result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// [`Error::Config`] with this text.
pub(crate) fn config(what: impl Into<String>) -> Error {
    Error::Config { what: what.into() }
}

fn near_misses(similar: &[String]) -> String {
    if similar.is_empty() { String::new() } else { format!("; similar names: {}", abbreviate(similar)) }
}
