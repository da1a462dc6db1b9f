//! Options of `d2o inspect`.

use std::path::PathBuf;

use clap::Args;

/// `d2o inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// Checkpoints, graphs, image containers, references
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Write JSON to FILE, or to standard output with `-`
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}
