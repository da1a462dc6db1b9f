//! Options of `d2o train`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};

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
    /// Dataset: zip, npz, HDF5 or folder of images of one resolution
    #[arg(long, value_name = "D.zip")]
    pub data: PathBuf,
    /// Output folder for snapshots and logs
    #[arg(long, value_name = "DIR")]
    pub outdir: PathBuf,
    /// Checkpoint to start from (its EMA weights); required for `--loss d2o`
    #[arg(long, value_name = "CKPT")]
    pub transfer: Option<PathBuf>,
    /// Continue the run in the output folder
    #[arg(long)]
    pub resume: bool,
    /// Training duration, kimg
    #[arg(long, value_name = "KIMG", default_value_t = 5000.0)]
    pub duration_kimg: f64,
    /// Stop after this wall-clock time
    #[arg(long, value_name = "S")]
    pub max_seconds: Option<f64>,
    /// Batch size
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub batch: u32,
    /// Learning rate [default: 1e-3 for edm, 1e-4 for d2o]
    #[arg(long)]
    pub lr: Option<f64>,
    /// Learning-rate warm-up, kimg [default: 10 for edm, 0 for d2o]
    #[arg(long, value_name = "KIMG")]
    pub lr_rampup_kimg: Option<f64>,
    /// EMA half-life, kimg
    #[arg(long, value_name = "KIMG", default_value_t = 500.0)]
    pub ema_kimg: f64,
    /// EMA ramp-up ratio; 0 disables ramp-up
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    pub ema_rampup: f64,
    /// Flip images horizontally with probability 1/2
    #[arg(long)]
    pub xflip: bool,
    /// `cpu`, or a CUDA device by number [default: 0 if there is one, else cpu]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<TrainDevice>,
    /// Allow TF32 in f32 convolutions and matrix products on CUDA: faster, not the recipe's numbers
    #[arg(long)]
    pub tf32: bool,
    /// Use deterministic CUDA kernels only, so that a resumed run is byte-identical; slower
    #[arg(long)]
    pub deterministic: bool,
    /// Random seed
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Snapshot interval, kimg; 0 for one at the end
    #[arg(long, value_name = "KIMG", default_value_t = 250.0)]
    pub snap_kimg: f64,
    /// Status interval, kimg
    #[arg(long, value_name = "KIMG", default_value_t = 1.0)]
    pub tick_kimg: f64,
    /// Network (`--loss edm` without `--transfer`)
    #[command(flatten, next_help_heading = "New network")]
    pub fresh: Fresh,
    /// Discriminator (`--loss d2o`)
    #[command(flatten, next_help_heading = "Discriminator")]
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

/// Hyperparameters of a network trained from scratch.
#[derive(Debug, Args)]
pub struct Fresh {
    /// Architecture
    #[arg(long, value_enum, default_value_t = Arch::Ncsnpp)]
    pub arch: Arch,
    /// Base number of channels
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub model_channels: usize,
    /// Channel multiplier of each resolution
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = [2, 2, 2])]
    pub channel_mult: Vec<usize>,
    /// Residual blocks per resolution
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub num_blocks: usize,
    /// Resolutions with attention
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = [16])]
    pub attn_resolutions: Vec<usize>,
    /// Dropout probability
    #[arg(long, value_name = "P", default_value_t = 0.13)]
    pub dropout: f64,
    /// Number of classes; 0 for none
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub label_dim: usize,
}

/// Architectures of a network trained from scratch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Arch {
    /// NCSN++
    Ncsnpp,
    /// DDPM++
    Ddpmpp,
    /// ADM
    Adm,
}

/// Settings of the discriminator.
#[derive(Debug, Args)]
pub struct Adversary {
    /// Feature networks
    #[arg(long, value_enum, default_value_t = BackbonesArg::Lite0)]
    pub backbones: BackbonesArg,
    /// Checkpoint of a feature network; give one for each
    #[arg(long, value_name = "FILE", visible_alias = "backbone")]
    pub backbone_weights: Vec<PathBuf>,
    /// Resize images below 224 pixels to 224 before the feature networks
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub interp224: bool,
    /// Resize images to this size instead, a multiple of 32: less work, not the recipe
    #[arg(long, value_name = "PIXELS", conflicts_with = "interp224")]
    pub feature_resolution: Option<usize>,
    /// Initial class embeddings of a conditional run: D2O's in_embeddings/tf_efficientnet_lite0.pkl
    #[arg(long, value_name = "FILE")]
    pub class_embeddings: Option<PathBuf>,
    /// Start from random class embeddings instead, which is not the recipe
    #[arg(long, conflicts_with = "class_embeddings")]
    pub random_class_embeddings: bool,
    /// Learning rate [default: 1e-4]
    #[arg(long, value_name = "LR", default_value_t = 1e-4)]
    pub d_lr: f64,
    /// Adversarial loss
    #[arg(long, value_enum, default_value_t = LossTypeArg::Ns)]
    pub loss_type: LossTypeArg,
    /// Weight of the R1 penalty
    #[arg(long, value_name = "GAMMA", default_value_t = 1e-4)]
    pub r1_gamma: f64,
    /// Iterations between R1 regularization steps; 0 disables R1
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub r1_interval: u64,
    /// Frozen layers: 0 none, 1 convolutions and projections (D2O-F), 2 also qkv, 3 also skip
    #[arg(long, value_name = "LEVEL", default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=3))]
    pub freeze: u8,
}

/// Feature networks of the discriminator, in the order of their logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackbonesArg {
    /// EfficientNet-Lite0
    #[value(name = "lite0")]
    Lite0,
    /// VGG16-BN and EfficientNet-Lite0 (the CIFAR-10 presets)
    #[value(name = "vgg16_bn+lite0")]
    Vgg16BnLite0,
    /// DeiT-B distilled and EfficientNet-Lite0 (the other presets)
    #[value(name = "deit+lite0")]
    DeitLite0,
    /// The original's third pair, which is refused
    #[value(name = "vit+efficientnet_b0", hide = true)]
    VitEfficientNetB0,
}

/// Adversarial losses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LossTypeArg {
    /// Non-saturating
    Ns,
    /// Hinge
    Hinge,
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
