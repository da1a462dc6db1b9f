//! Errors of this crate.

use std::path::PathBuf;

/// Errors of building, reading, rewriting and writing graphs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operands or attributes of an operation are invalid.
    #[error("{}: expected {expected}, found {found}", place(.scope, .op))]
    Shape {
        /// Scope path of the layer; empty outside all scopes.
        scope: String,
        /// The operation.
        op: &'static str,
        /// What the operation needs.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A graph is invalid, or a rewrite does not apply to it.
    #[error("graph `{graph}`: {place}: expected {expected}, found {found}")]
    Graph {
        /// Name of the graph.
        graph: String,
        /// Name of the node, edge or part.
        place: String,
        /// The invariant or requirement.
        expected: String,
        /// The value that violates it.
        found: String,
    },
    /// A file is not a valid ONNX model, or is refused.
    #[error("{}: {place}: expected {expected}, found {found}", .file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// Position or field.
        place: String,
        /// What ONNX requires, or the limit.
        expected: String,
        /// What is in the file.
        found: String,
        /// The error of the decoder.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// A metadata value does not have the type of its key.
    #[error("metadata `{key}`: expected {expected}, found `{found}`")]
    Metadata {
        /// The key.
        key: &'static str,
        /// The allowed values.
        expected: &'static str,
        /// The value in the graph.
        found: String,
    },
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Scope and operation as text, e.g. `` `model.conv0`: Conv ``.
fn place(scope: &str, op: &str) -> String {
    if scope.is_empty() { op.to_owned() } else { format!("`{scope}`: {op}") }
}

/// An error of the graph called `graph`.
pub(crate) fn invalid(graph: &str, place: String, expected: impl Into<String>, found: impl Into<String>) -> Error {
    Error::Graph { graph: graph.to_owned(), place, expected: expected.into(), found: found.into() }
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
