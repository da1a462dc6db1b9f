//! Options of `d2o refs`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use d2o_evaluations::protocol::PROTOCOLS;

use super::{Accelerator, Output, ProviderArg, ResultOutput};

/// `d2o refs`.
#[derive(Debug, Subcommand)]
pub enum Refs {
    /// Compute reference statistics of images
    Make(RefsMake),
    /// Inspect a reference file and diagnose problems
    Inspect(RefsInspect),
}

/// `d2o refs make`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  d2o refs make data.zip --extractor lite0.onnx --out ref.npz")]
pub struct RefsMake {
    /// Images: npz, npy, HDF5, zip or folder; or a feature file (HDF5)
    #[arg(value_name = "DATA")]
    pub data: PathBuf,
    /// Feature extractor, exported with `--kind features`; not needed for a feature file
    #[arg(long, value_name = "F.onnx")]
    pub extractor: Option<PathBuf>,
    /// CLIP image encoder, to add `mu_clip` and `sigma_clip`
    #[arg(long, value_name = "C.onnx")]
    pub clip: Option<PathBuf>,
    /// Feature extractor for precision and recall, if not --extractor, to add its features
    #[arg(long, value_name = "V.onnx", conflicts_with = "no_features")]
    pub pr_extractor: Option<PathBuf>,
    /// Folder of the feature cache [default: none]
    #[arg(long, value_name = "DIR", env = "D2O_FEATURE_CACHE", hide_env_values = true)]
    pub cache: Option<PathBuf>,
    /// Output file
    #[arg(long, value_name = "R.npz")]
    pub out: PathBuf,
    /// Output
    #[command(flatten)]
    pub output: Output,
    /// Protocol whose preprocessing and covariance to apply; extractors exported with `--input f32` support all protocols
    #[arg(long, value_name = "NAME", default_value = "edm",
          value_parser = clap::builder::PossibleValuesParser::new(PROTOCOLS.map(|p| p.name)))]
    pub protocol: String,
    /// Layout of the output file
    #[arg(long, value_enum, default_value_t = LayoutArg::Edm)]
    pub layout: LayoutArg,
    /// Store statistics only; precision, recall and KID against this reference then need its images
    #[arg(long)]
    pub no_features: bool,
    /// Execution provider
    #[arg(long, value_enum, default_value_t = ProviderArg::Auto, conflicts_with = "ep_library")]
    pub provider: ProviderArg,
    /// Devices
    #[command(flatten)]
    pub accelerator: Accelerator,
    /// Batch size; affects speed and memory, not the results [default: 64 on CUDA, else 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub batch: Option<u32>,
}

/// Layouts of reference files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LayoutArg {
    /// `mu`, `sigma` (EDM, D2O, pytorch-fid)
    Edm,
    /// `arr_0`, `mu`, `sigma` (guided-diffusion)
    Adm,
    /// `mu` in f32, `sigma` (clean-fid)
    Clean,
}

/// `d2o refs inspect`.
#[derive(Debug, Args)]
pub struct RefsInspect {
    /// Reference: npz of statistics or images, feature file, zip or folder
    #[arg(value_name = "R.npz")]
    pub file: PathBuf,
    /// Also compare the resolution and classes of these samples with the reference
    #[arg(long, value_name = "SAMPLES")]
    pub samples: Option<PathBuf>,
    /// Form of the result
    #[command(flatten)]
    pub result: ResultOutput,
}
