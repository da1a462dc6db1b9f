#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod check;
pub mod compose;
pub mod error;
mod expansion;
pub mod graph;
mod half;
pub mod metadata;
pub mod nchwc;
pub mod opset;
pub mod read;
mod scan;
pub mod taps;
pub mod winograd;
pub mod write;

pub mod ops;
mod proto;

pub use error::{Error, Result};
