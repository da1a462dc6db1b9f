#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

pub mod check;
pub mod compose;
pub mod error;
mod expansion;
pub mod graph;
mod half;
pub mod metadata;
pub mod opset;
pub mod read;
mod scan;
pub mod session;
pub mod taps;
pub mod winograd;
pub mod write;

pub mod ops;
mod proto;

pub use error::{Error, Result};
