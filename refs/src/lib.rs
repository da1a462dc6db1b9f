#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

pub mod archive;
pub mod batch;
pub mod decode;
pub mod error;
pub mod features;
pub mod folder;
pub mod hdf5;
pub mod image_zip;
pub mod limits;
pub mod listing;
pub mod npy;
pub mod npz;
pub mod record;
pub mod stats;

mod inflate;
mod kind;
mod labels;
mod pixels;
mod virtual_map;
mod zip_format;
mod zip_writer;

pub use error::{Error, Result};
pub use kind::{metadata, open as open_file, whole};
pub use labels::folders_are_classes;

pub use decode::png;
