//! Errors of this crate.

/// What can go wrong while computing a metric.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two feature sets have different lengths.
    #[error("{what}: expected {expected} features, found {found}")]
    DimMismatch {
        /// Which operand.
        what: &'static str,
        /// Length of the other one.
        expected: usize,
        /// Its length.
        found: usize,
    },
    /// A value is NaN or infinite.
    #[error("{what}: {count} values are not finite, the first in row {row}")]
    NotFinite {
        /// Which operand.
        what: &'static str,
        /// How many.
        count: usize,
        /// First row with one.
        row: usize,
    },
    /// There are too few samples.
    #[error("{what}: at least {least} samples are needed, found {found}")]
    TooFew {
        /// Which metric.
        what: &'static str,
        /// How many it takes.
        least: usize,
        /// How many there are.
        found: usize,
    },
    /// More samples came than were announced.
    #[error("{what}: {most} rows were announced, {found} came")]
    TooMany {
        /// Which operand.
        what: &'static str,
        /// How many were announced.
        most: usize,
        /// How many there are.
        found: usize,
    },
    /// An eigenvalue solver did not converge.
    #[error("the eigenvalues of {what} did not converge")]
    Eigen {
        /// Which matrix.
        what: &'static str,
    },
    /// A condition cannot be read.
    #[error("`{text}`: expected METRIC<=NUMBER, with <, <=, > or >=")]
    Condition {
        /// What was given.
        text: String,
    },
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
