//! Measuring sets of images: feature networks, one pass over images, features kept in files, references.

pub mod diagnose;
pub mod fused;
pub mod generated;
pub mod network;
pub mod pass;
pub mod reference;
pub mod turns;
