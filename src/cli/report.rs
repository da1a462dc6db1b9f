//! Options of `d2o report`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use super::Output;

/// `d2o report`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  d2o report before.json after.json --images real=data.zip --images after=after.npz --out report.html"
)]
pub struct Report {
    /// Results of `d2o evaluate --json` and `d2o verify --json`
    #[arg(required_unless_present_any = ["images", "losses"], value_name = "EVAL.json")]
    pub evaluations: Vec<PathBuf>,
    /// Output file
    #[arg(long, value_name = "R.html")]
    pub out: PathBuf,
    /// Show images of a container: `TITLE=FILE`; repeatable
    #[arg(long, value_name = "TITLE=FILE")]
    pub images: Vec<Titled>,
    /// Plot the losses (`TITLE=stats.jsonl`) or metrics (`TITLE=metrics.jsonl`) of a training run; repeatable
    #[arg(long, value_name = "TITLE=FILE")]
    pub losses: Vec<Titled>,
    /// Page heading
    #[arg(long, value_name = "TEXT", default_value = "d2o report")]
    pub title: String,
    /// Output
    #[command(flatten)]
    pub output: Output,
}

/// `TITLE=FILE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Titled {
    /// Text to show.
    pub title: String,
    /// File.
    pub path: PathBuf,
}

impl FromStr for Titled {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (title, path) = text.split_once('=').ok_or("write TITLE=FILE")?;
        Ok(Self { title: title.to_owned(), path: path.into() })
    }
}
