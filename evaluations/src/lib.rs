#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

pub mod bootstrap;
pub mod error;
pub mod frechet;
pub mod gaussian;
pub mod inception_score;
pub mod manifold;
pub mod result;

pub use error::{Error, Result};
