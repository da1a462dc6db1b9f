//! Options of `d2o evaluate`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Args, ValueEnum};
use d2o_evaluations::protocol::PROTOCOLS;
use d2o_evaluations::result::DeviationKind;

use super::{Accelerator, Output, ProviderArg, Sampling};
use crate::pipeline::fused::Fuse;
use crate::pipeline::metrics;

/// `d2o evaluate`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  d2o evaluate samples.npz --ref ref.npz --extractor inception.onnx --json result.json\n  \
    d2o evaluate samples.npz --ref ref.npz --extractor inception.onnx --expect 'fid<=1.6'\n  \
    d2o evaluate samples/ --ref photos/ --extractor inception.onnx --protocol clean --dry-run\n  \
    d2o evaluate samples.npz --extractor inception.onnx --shard 0/8 --save-features part-0.h5\n  \
    d2o evaluate --merge part-*.h5 --ref ref.npz --json result.json\n  \
    d2o evaluate one-step.onnx --seeds 0-49999 --ref ref.npz --extractor inception.onnx"
)]
pub struct Evaluate {
    /// Samples: npz, npy, HDF5, zip or folder of images, a feature file (HDF5), or a generator (X.onnx) to sample with --seeds
    #[arg(value_name = "SAMPLES", required_unless_present = "merge", help_heading = "Inputs")]
    pub samples: Option<PathBuf>,
    /// Reference: statistics of `d2o refs make` or another tool (mu/sigma npz), images, or a feature file; optional for `--metrics is`
    #[arg(long = "ref", value_name = "R.npz", help_heading = "Inputs")]
    pub reference: Option<PathBuf>,
    /// Reference of `clip-fid` (mu/sigma npz), if it is not in `--ref`
    #[arg(long, value_name = "R.npz", help_heading = "Inputs")]
    pub clip_ref: Option<PathBuf>,
    /// Evaluate the merged feature files of --shard runs
    #[arg(long, value_name = "SHARDS", num_args = 1.., conflicts_with_all = ["samples", "save_features"], help_heading = "Inputs")]
    pub merge: Vec<PathBuf>,
    /// Feature extractor, exported with `--kind features`; not needed for feature files
    #[arg(long, value_name = "F.onnx", help_heading = "Networks")]
    pub extractor: Option<PathBuf>,
    /// Feature extractor for precision, recall, density and coverage, if not --extractor: VGG16 under `torch-fidelity`, `clean` and `pytorch-fid`
    #[arg(long, value_name = "V.onnx", help_heading = "Networks")]
    pub pr_extractor: Option<PathBuf>,
    /// CLIP image encoder, for `clip-fid`
    #[arg(long, value_name = "C.onnx", help_heading = "Networks")]
    pub clip: Option<PathBuf>,
    /// Folder of the feature cache [default: none]
    #[arg(long, value_name = "DIR", env = "D2O_FEATURE_CACHE", hide_env_values = true, help_heading = "Networks")]
    pub cache: Option<PathBuf>,
    /// Evaluation protocols to reproduce (resizing, covariance, splits, KID, nearest neighbours), e.g. `edm,clean`; `all` for each
    #[arg(long, value_name = "NAME", default_value = "edm", value_delimiter = ',', help_heading = "Metrics",
          value_parser = PossibleValuesParser::new(PROTOCOLS.iter().map(|p| p.name).chain(["all"])))]
    pub protocol: Vec<String>,
    /// Metrics to compute [default: fid,is,pr, where the reference supports them]
    #[arg(long, value_delimiter = ',', value_enum, help_heading = "Metrics")]
    pub metrics: Vec<Metric>,
    /// Also compute Fréchet distance, precision and recall per class
    #[arg(long, help_heading = "Metrics")]
    pub per_class: bool,
    /// Record the 8 nearest reference images (indices and distances) of N evenly spaced samples, for `d2o report --references`
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "Metrics")]
    pub nearest: Option<u32>,
    /// Number of nearest neighbours, for precision, recall, density and coverage [default: the protocol's]
    #[arg(long, visible_alias = "neighbors", value_name = "K", value_parser = clap::value_parser!(u32).range(1..=100), help_heading = "Metrics")]
    pub neighbours: Option<u32>,
    /// Number of splits of the Inception Score [default: the protocol's]
    #[arg(long, visible_alias = "isc-splits", value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Metrics")]
    pub is_splits: Option<u32>,
    /// Number of subsets of KID [default: the protocol's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = "Metrics")]
    pub kid_subsets: Option<u32>,
    /// Subset size of KID [default: the protocol's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..), help_heading = "Metrics")]
    pub kid_subset_size: Option<u32>,
    /// Bootstrap resamples for 95 % confidence intervals; 0 for none
    #[arg(long, value_name = "N", default_value_t = 100, help_heading = "Metrics")]
    pub bootstrap: u32,
    /// Seed of the bootstrap, and of random subsets where the original tool sets no seed
    #[arg(long, default_value_t = 0, help_heading = "Metrics")]
    pub seed: u32,
    /// Accept a deviation from the protocol, or between samples and reference, and list it in the result; repeatable
    #[arg(long, value_name = "KIND", value_delimiter = ',', help_heading = "Metrics",
          value_parser = PossibleValuesParser::new(DeviationKind::REFUSED.map(DeviationKind::name)))]
    pub allow_deviation: Vec<String>,
    /// Write the result as JSON to FILE, or to standard output with `-`
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub json: Option<PathBuf>,
    /// Also write an HTML report
    #[arg(long, value_name = "OUT.html", help_heading = "Output")]
    pub report: Option<PathBuf>,
    /// Also write the features of the samples (HDF5)
    #[arg(long, value_name = "F.h5", help_heading = "Output")]
    pub save_features: Option<PathBuf>,
    /// Output
    #[command(flatten, next_help_heading = "Output")]
    pub output: Output,
    /// Exit with code 1 unless this holds, e.g. `fid<=1.6`; repeatable
    #[arg(long, value_name = "COND", help_heading = "Output")]
    pub expect: Vec<String>,
    /// Name of the samples in tables [default: file name]
    #[arg(long, value_name = "TEXT", help_heading = "Output")]
    pub title: Option<String>,
    /// Print what would be computed (networks, preprocessing, deviations, images, expected time and memory; as JSON with `--json -`) and exit
    #[arg(long, help_heading = "Output")]
    pub dry_run: bool,
    /// Extract features of shard I of N only (0-based)
    #[arg(long, value_name = "I/N", requires = "save_features", conflicts_with_all = ["merge", "reference", "per_class", "nearest", "report", "expect"], help_heading = "Output")]
    pub shard: Option<Shard>,
    /// Execution provider
    #[arg(long, value_enum, default_value_t = ProviderArg::Auto, conflicts_with = "ep_library", help_heading = "Runtime")]
    pub provider: ProviderArg,
    /// Devices
    #[command(flatten, next_help_heading = "Runtime")]
    pub accelerator: Accelerator,
    /// Batch size; affects speed and memory, not the results [default: 64 on CUDA, else 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536), help_heading = "Runtime")]
    pub batch: Option<u32>,
    /// Keep images on the device between a one-step generator (exported with --uint8) and feature extractors (exported with --fuse-resize)
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "graph", value_name = "HOW", help_heading = "Runtime")]
    pub fuse: Option<Fuse>,
    /// Sampling, if SAMPLES is a generator
    #[command(flatten, next_help_heading = "Generator as SAMPLES")]
    pub sampling: Sampling,
}

value_enum!(Fuse {
    Graph = "graph" "One merged graph of the generator and one feature extractor",
    Memory = "memory" "Separate graphs that pass images in device memory (`IoBinding`); supports several feature extractors",
});

/// Metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Metric {
    /// Fréchet distance (FID when the extractor is Inception)
    Fid,
    /// Fréchet distance of spatial features
    Sfid,
    /// Inception Score, from the logits of the extractor
    Is,
    /// Precision and recall
    Pr,
    /// Density and coverage
    Dc,
    /// Kernel distance (KID when the extractor is Inception)
    Kid,
    /// Fréchet distance of CLIP features
    ClipFid,
    /// Fréchet distance extrapolated to infinitely many samples
    FdInf,
    /// All metrics that the samples and the reference support
    All,
}

impl Metric {
    /// The metric; `None` for [`Metric::All`].
    #[must_use]
    pub fn metric(self) -> Option<metrics::Metric> {
        metrics::Metric::EVERY.into_iter().find(|metric| Self::from(*metric) == self)
    }
}

impl From<metrics::Metric> for Metric {
    fn from(metric: metrics::Metric) -> Self {
        use metrics::Metric as Of;
        match metric {
            Of::Fid => Self::Fid,
            Of::Sfid => Self::Sfid,
            Of::Is => Self::Is,
            Of::Pr => Self::Pr,
            Of::Dc => Self::Dc,
            Of::Kid => Self::Kid,
            Of::ClipFid => Self::ClipFid,
            Of::FdInf => Self::FdInf,
        }
    }
}

/// `I/N`: shard I, from 0, of N.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Which shard.
    pub index: usize,
    /// Of how many.
    pub count: usize,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match parts {
            Some((index, count)) if index < count && count <= 1 << 20 => Ok(Self { index, count }),
            _ => Err("expected I/N with I from 0 to N - 1, e.g. 0/8".to_owned()),
        }
    }
}
