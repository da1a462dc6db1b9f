//! Options of `d2o explain`.

use std::path::PathBuf;

use clap::Args;

use super::{Metric, ProviderArg, ResultOutput};

/// `d2o explain`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  d2o explain ours.json theirs.json --metrics fid")]
pub struct Explain {
    /// Result of `d2o evaluate --json`
    #[arg(value_name = "A.json")]
    pub a: PathBuf,
    /// Result to compare with A
    #[arg(value_name = "B.json")]
    pub b: PathBuf,
    /// List the differences only; do not measure the effect of each
    #[arg(long)]
    pub no_measure: bool,
    /// Metrics to measure [default: metrics in both results]
    #[arg(long, value_delimiter = ',', value_enum)]
    pub metrics: Vec<Metric>,
    /// Execution provider
    #[arg(long, value_enum, default_value_t = ProviderArg::Auto)]
    pub provider: ProviderArg,
    /// Form of the result
    #[command(flatten)]
    pub result: ResultOutput,
}
