//! Drawing images: random numbers as torch draws them, samplers around sessions, files that survive a kill.

pub mod journal;
pub mod latents;
pub mod rng;
pub mod sampler;
pub mod sink;
