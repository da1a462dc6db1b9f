//! Errors of this crate.

use d2o_checkpoint::error::abbreviate;

/// Errors of reading a checkpoint and of building a network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor the network asks for is not in the checkpoint.
    #[error("`{path}`: not in the checkpoint{}", near_misses(.similar))]
    MissingTensor {
        /// Full path of the tensor.
        path: String,
        /// Names in the checkpoint that look alike, best first.
        similar: Vec<String>,
    },
    /// A tensor has another shape than the network needs.
    #[error("`{path}`: expected {expected:?}, found {found:?}")]
    ShapeMismatch {
        /// Full path of the tensor.
        path: String,
        /// Dimensions the network needs.
        expected: Vec<usize>,
        /// Dimensions in the checkpoint.
        found: Vec<usize>,
    },
    /// The network left tensors of the checkpoint unread.
    #[error("{} unexpected tensor(s) in the checkpoint: {}", .paths.len(), abbreviate(.paths))]
    UnusedTensors {
        /// Full paths, in the checkpoint's order.
        paths: Vec<String>,
    },
    /// Two tensors of one network would have the same path.
    #[error("`{path}`: requested twice")]
    DuplicateTensor {
        /// Full path of the tensor.
        path: String,
    },
    /// A configuration value is missing, unknown or out of range.
    #[error("network configuration: {what}")]
    Config {
        /// Field, expected and found.
        what: String,
    },
    /// An engine (libtorch, the graph builder) refused an operation.
    #[error("`{scope}`: operation `{op}` failed")]
    Engine {
        /// Scope path of the layer.
        scope: String,
        /// Name of the `Backend` operation.
        op: &'static str,
        /// The engine's own error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The checkpoint cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] d2o_checkpoint::Error),
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The error of a configuration: argument, expected and found.
pub(crate) fn config(what: impl Into<String>) -> Error {
    Error::Config { what: what.into() }
}

fn near_misses(similar: &[String]) -> String {
    if similar.is_empty() { String::new() } else { format!("; similar names: {}", abbreviate(similar)) }
}
