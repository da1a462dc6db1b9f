//! Errors of this crate.

use std::path::PathBuf;

/// What can go wrong while building, reading or writing a graph.
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
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
