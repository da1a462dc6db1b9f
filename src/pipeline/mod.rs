//! Measures sets of images: feature networks, the pass over images, feature cache, references, metrics.
//!
//! The modules use neither command-line types nor the printer: requests are values, progress goes to a
//! [`crate::progress::Reporter`].

pub mod cache;
pub mod diagnose;
pub mod fused;
pub mod generated;
pub mod metrics;
pub mod network;
pub mod pass;
pub mod preprocess;
pub mod provenance;
pub mod reference;
pub mod source;
pub mod statistics;
pub mod turns;
