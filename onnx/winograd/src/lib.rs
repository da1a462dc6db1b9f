#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod axis;
mod convolution;
mod filters;
mod kernels;
mod shape;

pub use convolution::Convolution;
pub use shape::{Images, Layout, Pool, Shape, Task};
