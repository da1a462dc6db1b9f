//! Limits on the memory and steps for reading a file. They grow with the size of the file.
//!
//! Counts declared in a file are not trusted. A reader charges memory and steps *before* it allocates or walks, and
//! gets [`Exceeded`] if a small file asks for much more than its size allows. Valid files stay far below the limits,
//! since they store what they declare.
//!
//! ```
//! use d2o_budget::Budget;
//!
//! let mut budget = Budget::of_file(1 << 20);
//! budget.bytes(4 << 20)?;
//! assert_eq!(budget.bytes(1 << 40).unwrap_err().to_string(), "more than 112 MiB of memory for a file of 1 MiB");
//! # Ok::<(), d2o_budget::Exceeded>(())
//! ```
#![forbid(unsafe_code)]
#![deny(missing_docs)]

use std::fmt;

/// Memory limit for small files: bytes for a file of any size, and bytes per byte of the file. A value of a few bytes
/// can take a hundred.
pub const SMALL: (u64, u64) = (64 << 20, 48);
/// Memory limit for large files, which consist mostly of tensors, in the same form. The lower of both limits applies.
pub const LARGE: (u64, u64) = (768 << 20, 2);
/// Steps (values visited, names compared) allowed for a file of any size. They take less than a second.
pub const FREE_STEPS: u64 = 1 << 24;
/// Steps per byte of the file, in addition to [`FREE_STEPS`].
pub const STEPS_PER_BYTE: u64 = 16;

/// Remaining memory and steps for reading one file.
#[derive(Debug, Clone)]
pub struct Budget {
    file: u64,
    bytes: u64,
    steps: u64,
}

impl Budget {
    /// The budget for a file of `bytes` bytes.
    #[must_use]
    pub fn of_file(bytes: u64) -> Self {
        Self { file: bytes, bytes: limit_bytes(bytes), steps: limit_steps(bytes) }
    }

    /// Remaining bytes of memory.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.bytes
    }

    /// Charges `count` bytes of memory.
    ///
    /// # Errors
    /// [`Exceeded`] if less is left.
    pub fn bytes(&mut self, count: usize) -> Result<(), Exceeded> {
        let left = self.bytes.checked_sub(count as u64);
        self.bytes = left.ok_or(Exceeded { file: self.file, what: What::Bytes })?;
        Ok(())
    }

    /// Charges `count` steps of work.
    ///
    /// # Errors
    /// [`Exceeded`] if fewer are left.
    pub fn steps(&mut self, count: usize) -> Result<(), Exceeded> {
        let left = self.steps.checked_sub(count as u64);
        self.steps = left.ok_or(Exceeded { file: self.file, what: What::Steps })?;
        Ok(())
    }
}

fn limit_bytes(file: u64) -> u64 {
    let limit = |(free, per_byte): (u64, u64)| free.saturating_add(file.saturating_mul(per_byte));
    limit(SMALL).min(limit(LARGE))
}

fn limit_steps(file: u64) -> u64 {
    FREE_STEPS.saturating_add(file.saturating_mul(STEPS_PER_BYTE))
}

/// A file asks for more memory or steps than its size allows. The message names the limit and the size of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exceeded {
    file: u64,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Bytes,
    Steps,
}

impl Exceeded {
    /// The limit, as text for the field "expected" of an error.
    #[must_use]
    pub fn expected(&self) -> String {
        let file = size(self.file);
        match self.what {
            What::Bytes => format!("at most {} of memory for a file of {file}", size(limit_bytes(self.file))),
            What::Steps => format!("at most {} steps for a file of {file}", limit_steps(self.file)),
        }
    }
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.expected().replacen("at most", "more than", 1))
    }
}

impl std::error::Error for Exceeded {}

/// `bytes` in the largest unit that keeps it at or above 1, rounded down.
fn size(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 => format!("{} GiB", b >> 30),
        b if b >= 1 << 20 => format!("{} MiB", b >> 20),
        b if b >= 1 << 10 => format!("{} KiB", b >> 10),
        b => format!("{b} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charges_add_up_and_end_at_the_limit() {
        let mut budget = Budget::of_file(100);
        assert!(budget.bytes((64 << 20) + 4800).is_ok());
        assert_eq!(budget.bytes(1).unwrap_err().to_string(), "more than 64 MiB of memory for a file of 100 bytes");
        assert!(Budget::of_file(1 << 30).bytes(2816 << 20).is_ok());
        assert!(Budget::of_file(1 << 30).bytes((2816 << 20) + 1).is_err());
        assert!(budget.steps((1 << 24) + 1600).is_ok());
        let expected = "at most 16778816 steps for a file of 100 bytes";
        assert_eq!(budget.steps(1).unwrap_err().expected(), expected);
        assert!(Budget::of_file(u64::MAX).bytes(usize::MAX).is_ok());
    }
}
