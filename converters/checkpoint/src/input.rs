//! A checkpoint file while it is read.

use std::cell::RefCell;
use std::path::Path;

use d2o_budget::{Budget, Exceeded};

use crate::error::{Error, Result};

/// A file's path, its bytes and what reading it may still take: nested files and shared objects all charge one [`Budget`].
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

    /// Charges `count` bytes of memory; `place` says where in the file they are asked for.
    ///
    /// # Errors
    /// `Format` naming `place` and the limit.
    pub(crate) fn charge(&self, count: usize, place: impl Fn() -> String) -> Result<()> {
        self.judge(self.budget.borrow_mut().bytes(count), place)
    }

    /// Charges `count` steps of work.
    ///
    /// # Errors
    /// Likewise.
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
