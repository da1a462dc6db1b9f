//! State of reading a checkpoint file.

use std::cell::RefCell;
use std::path::Path;

use d2o_budget::{Budget, Exceeded};

use crate::error::{Error, Result};

/// Path, bytes and remaining budget of the file. Nested files and shared objects charge the same [`Budget`].
#[derive(Debug)]
pub(crate) struct Input<'a> {
    pub(crate) path: &'a Path,
    pub(crate) bytes: &'a [u8],
    budget: RefCell<Budget>,
}

impl<'a> Input<'a> {
    pub(crate) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, budget: RefCell::new(Budget::of_file(bytes.len() as u64)) }
    }

    /// Charges `count` bytes of memory; `place` is the position in the file, for the error.
    ///
    /// # Errors
    /// `Format` with `place` and the limit, if the budget is exceeded.
    pub(crate) fn charge(&self, count: usize, place: impl Fn() -> String) -> Result<()> {
        self.judge(self.budget.borrow_mut().bytes(count), place)
    }

    /// Charges `count` steps of work; `place` is the position in the file, for the error.
    ///
    /// # Errors
    /// `Format` with `place` and the limit, if the budget is exceeded.
    pub(crate) fn step(&self, count: usize, place: impl Fn() -> String) -> Result<()> {
        self.judge(self.budget.borrow_mut().steps(count), place)
    }

    fn judge(&self, charged: std::result::Result<(), Exceeded>, place: impl Fn() -> String) -> Result<()> {
        charged.map_err(|e| self.bad(place(), e.expected(), "more"))
    }

    pub(crate) fn bad(&self, place: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::format(self.path, place, expected, found)
    }
}
