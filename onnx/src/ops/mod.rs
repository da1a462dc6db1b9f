//! Operations of [`GraphBuilder`](crate::graph::GraphBuilder), one family per file. Each operation checks its operands,
//! and infers the type and shape of its result.

mod conv;
mod elementwise;
mod layout;
mod matmul;
mod norm;
mod reduce;
mod resample;

pub use conv::{ConvAttributes, PoolAttributes};
pub use resample::{Sampling, interpolation};
