#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

pub mod backend;
pub mod denoiser;
pub mod error;
pub mod export;
pub mod extractors;
pub mod generators;
pub mod known;
pub mod layers;
pub mod network;
pub mod onnx;
pub mod preprocess;
pub mod published;
pub mod recognise;
#[macro_use]
mod registry_macros;
pub mod registry;
pub mod weights;

mod wrappers;

pub use d2o_checkpoint as checkpoint;
pub use error::{Error, Result};
pub use network::{Architecture, Checkpoint, Network};
