//! Errors of this crate.

use ndarray::ArrayView2;

/// Error of a metric computation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two feature sets have different lengths.
    #[error("{what}: expected {expected} features, found {found}")]
    DimMismatch {
        /// Which operand.
        what: &'static str,
        /// Number of features of the other set.
        expected: usize,
        /// Number of features of this operand.
        found: usize,
    },
    /// A value is NaN or infinite.
    #[error("{what}: {count} values are not finite, the first in row {row}")]
    NotFinite {
        /// Which operand.
        what: &'static str,
        /// Number of values that are not finite.
        count: usize,
        /// Index of the first row with such a value.
        row: usize,
    },
    /// There are too few images.
    #[error("{what}: expected at least {least} images, found {found}")]
    TooFew {
        /// The metric, and the set if there are two.
        what: &'static str,
        /// Smallest number for which the metric is defined.
        least: usize,
        /// The number found.
        found: usize,
    },
    /// There are more rows than were announced.
    #[error("{what}: expected {most} rows, found {found}")]
    TooMany {
        /// Which operand.
        what: &'static str,
        /// The number announced.
        most: usize,
        /// The number found.
        found: usize,
    },
    /// An eigenvalue solver did not converge.
    #[error("the eigenvalues of {what} did not converge")]
    Eigen {
        /// Which matrix.
        what: &'static str,
    },
    /// A condition cannot be parsed.
    #[error("`{text}`: expected METRIC<=NUMBER, with <, <=, > or >=")]
    Condition {
        /// Text of the condition.
        text: String,
    },
}

/// Result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Index of the first row that contains NaN or infinity.
#[must_use]
pub fn first_non_finite_row(rows: ArrayView2<'_, f32>) -> Option<usize> {
    rows.outer_iter().position(|row| row.iter().any(|v| !v.is_finite()))
}

/// Checks that all values of `rows` are finite. `what` names the operand; `before` is the number of rows before `rows`.
pub(crate) fn ensure_finite(what: &'static str, rows: ArrayView2<'_, f32>, before: usize) -> Result<()> {
    let Some(row) = first_non_finite_row(rows) else { return Ok(()) };
    let count = rows.iter().filter(|v| !v.is_finite()).count();
    Err(Error::NotFinite { what, count, row: before + row })
}
