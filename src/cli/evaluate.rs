//! Options of `d2o evaluate`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use d2o_evaluations::protocol::PROTOCOLS;

use super::{Accelerator, ProviderArg, Sampling};

/// `d2o evaluate`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  d2o evaluate samples.npz --ref ref.npz --extractor lite0.onnx --json result.json\n  \
    d2o evaluate samples.npz --ref ref.npz --extractor inception.onnx --expect 'fid<=1.6'\n  \
    d2o evaluate samples.npz --extractor inception.onnx --shard 0/8 --save-features part-0.h5\n  \
    d2o evaluate --merge part-*.h5 --ref ref.npz --json result.json\n  \
    d2o evaluate one-step.onnx --seeds 0-49999 --ref ref.npz --extractor inception.onnx"
)]
pub struct Evaluate {
    /// Samples: npz, npy, HDF5, zip or folder of images, a feature file (HDF5), or a generator (X.onnx), which makes them from --seeds
    #[arg(value_name = "SAMPLES", required_unless_present = "merge")]
    pub samples: Option<PathBuf>,
    /// Reference made by `d2o refs make`, another tool's mu/sigma npz, images, or a feature file
    #[arg(long = "ref", value_name = "R.npz", required_unless_present = "shard")]
    pub reference: Option<PathBuf>,
    /// Feature network, exported with `--kind features`; the reference must come from the same. Not needed for feature files
    #[arg(long, value_name = "F.onnx")]
    pub extractor: Option<PathBuf>,
    /// Network of precision, recall, density and coverage, if it is not the extractor: VGG16 in torch-fidelity and StyleGAN3
    #[arg(long, value_name = "V.onnx")]
    pub pr_extractor: Option<PathBuf>,
    /// CLIP's image tower, for `clip-fid`
    #[arg(long, value_name = "C.onnx")]
    pub clip: Option<PathBuf>,
    /// Reference of `clip-fid` (mu/sigma npz), if it is not in `--ref`
    #[arg(long, value_name = "R.npz")]
    pub clip_ref: Option<PathBuf>,
    /// Only take the features of part I (from 0) of N of the samples
    #[arg(long, value_name = "I/N", requires = "save_features", conflicts_with_all = ["merge", "reference", "per_class", "report", "expect"])]
    pub shard: Option<Shard>,
    /// Also write the samples' features to a file (HDF5)
    #[arg(long, value_name = "F.h5")]
    pub save_features: Option<PathBuf>,
    /// Samples are the features that `--shard` runs wrote
    #[arg(long, value_name = "SHARDS", num_args = 1.., conflicts_with_all = ["samples", "save_features"])]
    pub merge: Vec<PathBuf>,
    /// Folder in which features are kept and found again [default: none]
    #[arg(long, value_name = "DIR", env = "D2O_FEATURE_CACHE", hide_env_values = true)]
    pub cache: Option<PathBuf>,
    /// Also Fréchet distance, precision and recall of each class
    #[arg(long)]
    pub per_class: bool,
    /// Whose way of computing to follow
    #[arg(long, value_name = "NAME", default_value = "edm",
          value_parser = clap::builder::PossibleValuesParser::new(PROTOCOLS.map(|p| p.name)))]
    pub protocol: String,
    /// Metrics to compute
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Metric::Fid, Metric::Is, Metric::Pr])]
    pub metrics: Vec<Metric>,
    /// Neighbours of precision and recall [default: the protocol's]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub neighbours: Option<u32>,
    /// Images in a subset of KID [default: the protocol's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub kid_subset_size: Option<u32>,
    /// Resamples for the 95 % intervals; 0 for none
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub bootstrap: u32,
    /// Seed of the resamples, and of subsets where the protocol's tool does not seed
    #[arg(long, default_value_t = 0)]
    pub seed: u32,
    /// Write JSON to FILE, or to standard output with `-`
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Also write an HTML report
    #[arg(long, value_name = "OUT.html")]
    pub report: Option<PathBuf>,
    /// Fail (exit code 1) unless this holds, e.g. `fid<=1.6`; may be given several times
    #[arg(long, value_name = "COND")]
    pub expect: Vec<String>,
    /// Name of the samples in tables [default: file name]
    #[arg(long, value_name = "TEXT")]
    pub title: Option<String>,
    /// Where networks run
    #[arg(long, value_enum, default_value_t = ProviderArg::Auto, conflicts_with = "ep_library")]
    pub provider: ProviderArg,
    /// Which devices
    #[command(flatten)]
    pub accelerator: Accelerator,
    /// Images in a batch; changes speed and memory, not the numbers [default: 64 on CUDA, else 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub batch: Option<u32>,
    /// Keep images on the device between a one-step generator (exported with --uint8) and the networks (--fuse-resize): as one graph with the only
    /// network, or as graphs of their own that share the device's memory
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "graph", value_name = "HOW")]
    pub fuse: Option<Fuse>,
    /// How a generator makes the samples
    #[command(flatten, next_help_heading = "Generator as SAMPLES")]
    pub sampling: Sampling,
}

/// How images stay on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Fuse {
    /// One graph of the generator and the feature network
    Graph,
    /// A graph each; images are handed over in the device's memory (`IoBinding`), to several networks if there are
    Memory,
}

impl Fuse {
    /// Its name in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Graph => "graph",
            Self::Memory => "memory",
        }
    }
}

/// Metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Metric {
    /// Fréchet distance (FID when the extractor is Inception)
    Fid,
    /// Inception Score of the extractor's classes
    Is,
    /// Precision and recall
    Pr,
    /// Density and coverage
    Dc,
    /// Fréchet distance of spatial features
    Sfid,
    /// Kernel distance
    Kid,
    /// Fréchet distance extrapolated to infinitely many samples
    FdInf,
    /// Fréchet distance of CLIP's features
    ClipFid,
}

/// `I/N`: part I, from 0, of N.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Which part.
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
            _ => Err("write I/N with I from 0 to N - 1, e.g. 0/8".to_owned()),
        }
    }
}
