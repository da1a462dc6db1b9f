//! Options of `d2o inspect`.

use std::path::PathBuf;

use clap::Args;

use super::ResultOutput;

/// `d2o inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// Checkpoints, graphs, image containers or references
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Form of the result
    #[command(flatten)]
    pub result: ResultOutput,
}
