//! Operations of [`GraphBuilder`](crate::graph::GraphBuilder), one family a file. Each checks its operands and infers its result.

mod conv;
mod elementwise;
mod layout;
mod matmul;
mod norm;
mod reduce;
mod resample;

pub use conv::{ConvAttributes, PoolAttributes};
pub use resample::{Sampling, interpolation};
