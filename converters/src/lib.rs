#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

pub mod checkpoint;
pub mod config;
pub mod error;
pub mod export;
pub mod nn;
pub mod published;
pub mod weights;

pub use error::{Error, Result};
