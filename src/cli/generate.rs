//! Options of `d2o generate` and `d2o draw`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use super::{Accelerator, Output, ProviderArg, Rng, RngGpu, Sampling, Seeds};

/// `d2o generate`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  d2o generate one-step.onnx --seeds 0-49999 --out samples.npz\n  \
    d2o generate denoiser.onnx --seeds 0-63 --num-steps 18 --out heun.npz --grid heun.png\n  \
    d2o generate denoiser.onnx --seeds 0-49999 --num-steps 256 --s-churn 40 --s-min 0.05 --s-max 50 --s-noise 1.003 --out samples.h5\n  \
    d2o generate cd.onnx --seeds 0-49999 --ts 0,22,39 --num-steps 40 --out samples.zip --resume")]
#[command(group(clap::ArgGroup::new("start").args(["seeds", "latents"]).required(true).multiple(true)))]
pub struct Generate {
    /// Graph exported with `--kind one-step`, or with `--kind denoiser` for samplers other than `one-step`
    #[arg(value_name = "X.onnx")]
    pub model: PathBuf,
    /// Output: S.npz, S.h5, S.zip or a folder
    #[arg(long, value_name = "OUT")]
    pub out: PathBuf,
    /// Replace outputs that exist
    #[command(flatten)]
    pub output: Output,
    /// Continue an interrupted run from `OUT.partial`; a complete OUT of the same run is kept
    #[arg(long)]
    pub resume: bool,
    /// Write one subfolder per 1000 seeds, named after the first seed (if OUT is a folder)
    #[arg(long)]
    pub subdirs: bool,
    /// Also write latents, labels and seeds
    #[arg(long, value_name = "L.npz")]
    pub save_latents: Option<PathBuf>,
    /// Execution provider
    #[arg(long, value_enum, default_value_t = ProviderArg::Auto, conflicts_with = "ep_library")]
    pub provider: ProviderArg,
    /// Devices
    #[command(flatten)]
    pub accelerator: Accelerator,
    /// Batch size; affects speed, not the images
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub batch: u32,
    /// Also write a grid of the first images as PNG
    #[arg(long, value_name = "G.png")]
    pub grid: Option<PathBuf>,
    /// Columns and rows of the grid
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub grid_size: u32,
    /// Sampling
    #[command(flatten, next_help_heading = "Sampling")]
    pub sampling: Sampling,
}

/// `d2o draw`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  d2o draw --seeds 0-63 --draw f32:3072 --draw i1000 --out draws.npz\n  \
    d2o draw --rng torch-cuda --rng-gpu a100 --seeds 0-3 --draw f32:196608 --draw f64:196608 --out noise.npz")]
pub struct Draw {
    /// Seeds, one random number generator per seed, e.g. `0-63` or `1,2,5-10`
    #[arg(long, value_name = "SEEDS")]
    pub seeds: Seeds,
    /// Draws per seed, in order; repeatable: `f32:COUNT` or `f64:COUNT` for standard normals, `iBOUND` for an integer in 0..BOUND-1
    #[arg(long, required = true, value_name = "WHAT")]
    pub draw: Vec<Drawn>,
    /// Random number generator to reproduce
    #[arg(long, value_enum, default_value_t = Rng::TorchCpu)]
    pub rng: Rng,
    /// torch-cuda: GPU to reproduce, by name or number of resident threads [default: the first CUDA device]
    #[arg(long, value_name = "GPU")]
    pub rng_gpu: Option<RngGpu>,
    /// Output file: arrays `seeds [N]`, `draw0`, `draw1`, … of normals `[N, COUNT]` or integers `[N]`
    #[arg(long, value_name = "D.npz")]
    pub out: PathBuf,
    /// Replace outputs that exist
    #[command(flatten)]
    pub output: Output,
}

/// One draw of `d2o draw`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drawn {
    /// So many normals in f32.
    F32(usize),
    /// So many normals in f64.
    F64(usize),
    /// An integer below this.
    Integer(u32),
}

impl FromStr for Drawn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const MAX: usize = 1 << 28;
        let count = |n: &str| n.parse().ok().filter(|n| (1..=MAX).contains(n));
        let parsed = match text.split_once(':') {
            Some(("f32", n)) => count(n).map(Self::F32),
            Some(("f64", n)) => count(n).map(Self::F64),
            Some(_) => None,
            None => text.strip_prefix('i').and_then(|n| n.parse().ok()).filter(|n| *n > 0).map(Self::Integer),
        };
        parsed.ok_or_else(|| "expected f32:COUNT, f64:COUNT or iBOUND, e.g. f32:3072 or i1000".to_owned())
    }
}
