//! Drawing images: random numbers as torch draws them, samplers around sessions.

pub mod rng;
pub mod sampler;
