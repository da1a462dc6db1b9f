//! Drawing images: random numbers as the original tools draw them, samplers around sessions, files that survive a kill.

pub mod fused;
pub mod journal;
pub mod latents;
pub mod made;
pub mod plan;
pub mod rng;
pub mod sampler;
pub mod sink;
