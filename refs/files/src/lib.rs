//! Identification of files by their first bytes, for error messages ([`kind`]), and atomic writing ([`AtomicFile`]).
#![deny(missing_docs)]

pub mod kind;

mod atomic;

pub use atomic::{AtomicFile, AtomicPath, is_at, sync_folder};
