//! Generation of images: random number generators of the original tools, samplers around sessions, resumable outputs.

pub mod journal;
pub mod latents;
pub mod plan;
pub mod request;
pub mod rng;
pub mod sampler;
pub mod sink;
