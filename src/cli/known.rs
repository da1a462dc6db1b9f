//! Options of `d2o known`, `d2o fetch` and `d2o reproduce`.

use std::path::PathBuf;

use clap::Args;

use super::{Accelerator, ProviderArg, ResultOutput, Seeds};

/// `d2o known`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  d2o known\n  d2o known cifar10\n  d2o known edm-cifar10-32x32-uncond-vp")]
pub struct KnownArgs {
    /// Name of a file, to print its full entry; any other text filters the list [default: list all]
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Form of the result
    #[command(flatten)]
    pub result: ResultOutput,
}

/// `d2o fetch`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  d2o fetch inception-2015-12-05-pkl edm-ref-cifar10-32x32\n  \
    d2o fetch hf://OWNER/REPOSITORY/model.safetensors@main\n  d2o fetch https://example.org/weights.pth --sha256 0123abcd…")]
pub struct Fetch {
    /// Names from `d2o known`, or `hf://OWNER/REPOSITORY/PATH[@REVISION]` or `https://` URLs
    #[arg(required = true, value_name = "NAME")]
    pub files: Vec<String>,
    /// Expected SHA-256 of a single file, or its first 8 or more digits
    #[arg(long, value_name = "HEX")]
    pub sha256: Option<String>,
    /// Use cached files only, without downloads
    #[arg(long)]
    pub offline: bool,
}

/// `d2o reproduce`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  d2o reproduce edm-cifar10-32x32-uncond-vp --outdir reproduced\n  \
    d2o reproduce d2o-cifar10-uncond-f --checkpoint cifar_uncond_D2O_i.pkl --outdir reproduced --dry-run")]
pub struct Reproduce {
    /// Name of a generator in `d2o known`
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Folder for the graphs and the result
    #[arg(long, value_name = "DIR")]
    pub outdir: PathBuf,
    /// Local checkpoint, instead of the download
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// Local reference statistics, instead of the download
    #[arg(long = "ref", value_name = "R.npz")]
    pub reference: Option<PathBuf>,
    /// Local feature extractor (checkpoint or F.onnx), instead of the download
    #[arg(long, value_name = "F")]
    pub extractor: Option<PathBuf>,
    /// CLIP image encoder (checkpoint or C.onnx), for a published CLIP-FID
    #[arg(long, value_name = "C")]
    pub clip: Option<PathBuf>,
    /// Seeds, one image per seed [default: from 0, as many as in the published evaluation]
    #[arg(long, value_name = "SEEDS")]
    pub seeds: Option<Seeds>,
    /// Print the commands and exit
    #[arg(long)]
    pub dry_run: bool,
    /// Execution provider
    #[arg(long, value_enum, default_value_t = ProviderArg::Auto, conflicts_with = "ep_library")]
    pub provider: ProviderArg,
    /// Devices
    #[command(flatten)]
    pub accelerator: Accelerator,
    /// Batch size
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub batch: Option<u32>,
    /// Form of the result
    #[command(flatten)]
    pub result: ResultOutput,
}
