//! Options of `d2o doctor`.

use clap::Args;

use super::ResultOutput;

/// `d2o doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Form of the result
    #[command(flatten)]
    pub result: ResultOutput,
}
