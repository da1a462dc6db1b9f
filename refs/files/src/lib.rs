//! Files as every reader and writer of d2o meets them: what one is by its first bytes ([`kind`]), and writing one that is complete or absent
//! ([`AtomicFile`]).
#![deny(missing_docs)]

pub mod kind;

mod atomic;

pub use atomic::{AtomicFile, AtomicPath};
