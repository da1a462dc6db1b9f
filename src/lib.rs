//! The `d2o` command as a library, so that tests can reach its parts.
#![deny(missing_docs)]

pub mod cli;
pub mod commands;
pub mod dataset;
pub mod doctor;
pub mod error;
pub mod features;
pub mod generate;
pub mod interrupt;
pub mod measure;
pub mod printer;
pub mod report;
pub mod runtime;
#[cfg(feature = "train")]
pub mod train;
pub mod turns;
