#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

pub mod bootstrap;
pub mod error;
pub mod fd_infinity;
pub mod frechet;
pub mod gaussian;
pub mod inception_score;
pub mod kid;
pub mod manifold;
pub mod mt19937;
pub mod nearest;
pub mod numpy_random;
mod panels;
pub mod preprocess;
pub mod protocol;
pub mod result;

pub use error::{Error, Result};
