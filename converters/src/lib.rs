#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

pub mod config;
pub mod error;
pub mod export;
pub mod nn;
pub mod published;
pub mod registry;
pub mod weights;

mod wrappers;

pub use d2o_checkpoint as checkpoint;
pub use error::{Error, Result};
pub use registry::{Architecture, Checkpoint, Network};
