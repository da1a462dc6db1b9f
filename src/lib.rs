//! The `d2o` command as a library, so that tests can reach its parts.
#![deny(missing_docs)]

pub mod cli;
pub mod commands;
pub mod dataset;
pub mod downloads;
pub mod engine;
pub mod error;
pub mod interrupt;
pub mod isolation;
pub mod outputs;
pub mod pipeline;
pub mod printer;
pub mod progress;
pub mod report;
pub mod sampling;
#[cfg(feature = "train")]
pub mod train;
pub mod verdict;
