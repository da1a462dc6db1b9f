#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

pub mod atomic;
pub mod batch;
pub mod decode;
pub mod error;
pub mod features;
pub mod folder;
pub mod hdf5;
pub mod image_zip;
pub mod npy;
pub mod npz;
pub mod stats;

pub use error::{Error, Result};

pub use decode::png;
