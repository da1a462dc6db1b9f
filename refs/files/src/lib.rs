//! Identification of files by their first bytes, for error messages ([`kind`]), atomic writing ([`AtomicFile`]), and temporary files and folders that do
//! not outlive the process ([`Scratch`], [`remove_temporary`]).
#![deny(missing_docs)]

pub mod kind;

mod atomic;
mod temporary;

pub use atomic::{AtomicFile, AtomicPath, is_at, sync_folder};
pub use temporary::{Removed, Scratch, remove_temporary, without_name};

/// `bytes` in lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
