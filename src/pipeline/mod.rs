//! Measuring sets of images: feature networks, one pass over images, features kept in files, references, metrics.
//!
//! Knows neither the command line nor the printer: requests come in as values, progress goes to a [`crate::progress::Reporter`].

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
