//! Operations of [`GraphBuilder`](crate::graph::GraphBuilder), one family per file. Each checks its operands and infers type and shape of its result.

mod conv;
mod elementwise;
mod layout;
mod matmul;
mod norm;
mod reduce;
mod resample;

pub use conv::{ConvAttributes, PoolAttributes};
pub use resample::{Sampling, interpolation};
