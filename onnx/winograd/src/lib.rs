#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod axis;
mod convolution;

pub use convolution::{Convolution, Images, Pool};
