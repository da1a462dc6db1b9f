//! Options of `d2o explain`.

use std::path::PathBuf;

use clap::Args;

use super::ProviderArg;

/// `d2o explain`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  d2o explain ours.json theirs.json --metrics fid")]
pub struct Explain {
    /// Result of `d2o evaluate --json`
    #[arg(value_name = "A.json")]
    pub a: PathBuf,
    /// Result to compare with it
    #[arg(value_name = "B.json")]
    pub b: PathBuf,
    /// Only list the differences; do not measure by how much each moves the metrics
    #[arg(long)]
    pub no_measure: bool,
    /// Metrics to measure [default: those that both results hold]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub metrics: Vec<String>,
    /// Where networks run
    #[arg(long, value_enum, default_value_t = ProviderArg::Auto)]
    pub provider: ProviderArg,
    /// Write JSON to FILE, or to standard output with `-`
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}
