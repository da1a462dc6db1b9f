//! Errors of this crate.

use std::path::PathBuf;

/// What can go wrong while building, reading or running a graph.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operands of an operation do not fit.
    #[error("`{scope}`: {op}: {what}")]
    Shape {
        /// Scope path of the layer.
        scope: String,
        /// Operation.
        op: &'static str,
        /// Expected and found.
        what: String,
    },
    /// A finished graph breaks an invariant: a bug of whoever built it.
    #[error("graph `{graph}`: {what}")]
    Graph {
        /// Its name.
        graph: String,
        /// The invariant.
        what: String,
    },
    /// A file is no ONNX model.
    #[error("{}: {place}: expected {expected}, found {found}", .file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// Position or field.
        place: String,
        /// What ONNX asks for.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A value of a graph's metadata is not of its type.
    #[error("metadata `{key}`: expected {expected}, found `{found}`")]
    Metadata {
        /// Its key.
        key: &'static str,
        /// The values it may have.
        expected: &'static str,
        /// The value in the graph.
        found: String,
    },
    /// A session was given the wrong inputs.
    #[error("input `{name}`: expected {expected}, found {found}")]
    Input {
        /// Name of the input.
        name: String,
        /// What the model asks for.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A runtime library cannot be used.
    #[error("ONNX Runtime: {what}")]
    Library {
        /// What is missing.
        what: String,
        /// The loader's own error.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// A runtime refused a model or failed while running it.
    #[error("{runtime}: {what}")]
    Runtime {
        /// Which runtime.
        runtime: String,
        /// What it was doing.
        what: String,
        /// Its own error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
