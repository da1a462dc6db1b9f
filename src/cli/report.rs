//! Options of `d2o report`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use super::Output;

/// `d2o report`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  d2o report before.json after.json verify.json --images before=before.npz --images after=after.npz --out report.html\n  \
    d2o report after.json --images after=after.npz --references data.zip --out report.html\n  \
    d2o report --losses run=run/stats.jsonl --losses run=run/metrics.jsonl --smooth 50 --out training.html\n  \
    d2o report before.json after.json --format latex --out -"
)]
pub struct Report {
    /// Results of `d2o evaluate --json` and `d2o verify --json`
    #[arg(required_unless_present_any = ["images", "losses"], value_name = "EVAL.json")]
    pub evaluations: Vec<PathBuf>,
    /// Output file, or `-` for standard output
    #[arg(long, value_name = "R.html")]
    pub out: PathBuf,
    /// Format of the output: a page, or the tables for LaTeX (package booktabs) or Markdown
    #[arg(long, value_enum, default_value_t = ReportFormat::Html)]
    pub format: ReportFormat,
    /// Show differences from the run with this title [default: the first of each table]
    #[arg(long, value_name = "TITLE")]
    pub baseline: Option<String>,
    /// Show images of a container; repeatable
    #[arg(long, value_name = "TITLE=FILE")]
    pub images: Vec<Titled>,
    /// Reference images, shown next to the samples in results of `d2o evaluate --nearest`; pass the samples with --images, under the title of the
    /// result
    #[arg(long, value_name = "DATA")]
    pub references: Option<PathBuf>,
    /// Plot the losses (`TITLE=stats.jsonl`) or metrics (`TITLE=metrics.jsonl`) of a training run; repeatable
    #[arg(long, value_name = "TITLE=FILE")]
    pub losses: Vec<Titled>,
    /// Smooth losses over a window of KIMG thousand images; the logged values stay visible
    #[arg(long, value_name = "KIMG", value_parser = positive)]
    pub smooth: Option<f64>,
    /// Page heading
    #[arg(long, value_name = "TEXT", default_value = "d2o report")]
    pub title: String,
    /// Output
    #[command(flatten)]
    pub output: Output,
}

/// Formats of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportFormat {
    /// One self-contained page
    Html,
    /// The tables for LaTeX (package booktabs)
    Latex,
    /// The tables as Markdown
    Markdown,
}

value_enum!(ReportFormat { Html = "html", Latex = "latex", Markdown = "markdown" });

fn positive(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|v: &f64| *v > 0.0 && v.is_finite()).ok_or_else(|| "expected a number above 0".to_owned())
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
        let (title, path) = text.split_once('=').ok_or("expected TITLE=FILE")?;
        Ok(Self { title: title.to_owned(), path: path.into() })
    }
}
