//! Options of `d2o train`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{BoolishValueParser, PossibleValuesParser};
use clap::{Args, ValueEnum};
use d2o_evaluations::protocol::PROTOCOLS;
use serde::{Deserialize, Serialize};

/// `d2o train`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  d2o train --preset list\n  \
    d2o train --loss edm --data data.zip --outdir runs/edm --batch 64 --cbase 32 --cres 1,2,2\n  \
    d2o train --transfer edm.safetensors --data data.zip --backbone lite0.pth --outdir runs/d2o --max-seconds 240\n  \
    d2o train --outdir runs/d2o --resume")]
pub struct Train {
    /// Preset, which other options override; `list` prints all presets [default: edm for `--loss edm`, `vp` and `ve`, else small]
    #[arg(long, value_name = "NAME")]
    pub preset: Option<String>,
    /// Folder of the run, for snapshots and logs
    #[arg(long, value_name = "DIR", required_unless_present_any = ["dry_run", "preset"])]
    pub outdir: Option<PathBuf>,
    /// Create a numbered folder for the run in the output folder
    #[arg(long, conflicts_with = "resume")]
    pub numbered: bool,
    /// Suffix of the numbered folder
    #[arg(long, value_name = "TEXT", requires = "numbered")]
    pub desc: Option<String>,
    /// Continue the run in the output folder, with its settings
    #[arg(long)]
    pub resume: bool,
    /// With `--resume`: allow options that change the settings of the run
    #[arg(long, requires = "resume")]
    pub resume_with: bool,
    /// Print the settings and exit
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Stop after this wall-clock time
    #[arg(long, value_name = "S", value_parser = finite)]
    pub max_seconds: Option<f64>,
    /// `cpu` or a CUDA device number [default: local rank of the process (0 for a single process) if CUDA is available, else cpu]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<TrainDevice>,
    /// What determines the result.
    #[command(flatten)]
    pub settings: TrainSettings,
}

impl TrainSettings {
    /// The files they name.
    pub(super) fn inputs(&mut self) -> Vec<&mut PathBuf> {
        let Self { data, transfer, evaluation, teaching, adversary, .. } = self;
        let checkpoints = transfer.iter_mut().chain(&mut teaching.target).chain(&mut teaching.lpips_weights);
        let discriminator = adversary.backbone_weights.iter_mut().chain(&mut adversary.class_embeddings);
        let evaluation = evaluation.eval_ref.iter_mut().chain(&mut evaluation.eval_extractor);
        data.iter_mut().chain(checkpoints).chain(discriminator).chain(evaluation).collect()
    }
}

/// Settings that determine the result of a run; those that are absent come from the preset.
#[derive(Debug, Default, Args, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct TrainSettings {
    /// Objective
    #[arg(long, value_enum)]
    pub loss: Option<LossArg>,
    /// Dataset: zip, npz, HDF5 or folder of images of one resolution
    #[arg(long, value_name = "D.zip")]
    pub data: Option<PathBuf>,
    /// Checkpoint to start from (its EMA weights); required for `--loss d2o`
    #[arg(long, value_name = "CKPT")]
    pub transfer: Option<PathBuf>,
    /// Require a class-conditional (true) or an unconditional (false) network
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub cond: Option<bool>,
    /// Training duration, millions of images
    #[arg(long, value_name = "MIMG", value_parser = finite)]
    pub duration: Option<f64>,
    /// Total batch size
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub batch: Option<u32>,
    /// Images per forward pass (the batch per GPU of the recipe); batch statistics and random projections are per part, gradients are averaged
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub batch_gpu: Option<u32>,
    /// Learning rate
    #[arg(long, value_parser = finite)]
    pub lr: Option<f64>,
    /// Learning-rate warm-up, kimg
    #[arg(long, value_name = "KIMG", value_parser = finite)]
    pub lr_rampup_kimg: Option<f64>,
    /// Optimiser of generator and discriminator
    #[arg(long, value_enum)]
    pub optimizer: Option<Rule>,
    /// EMA half-life, millions of images
    #[arg(long, value_name = "MIMG", value_parser = finite)]
    pub ema: Option<f64>,
    /// Upper bound of the EMA half-life, as a share of the images seen (EMA ramp-up ratio); 0 for none
    #[arg(long, value_name = "SHARE", value_parser = finite)]
    pub ema_warmup: Option<f64>,
    /// Fixed EMA decay per iteration; 0 to use the half-life
    #[arg(long, value_name = "BETA", value_parser = finite)]
    pub ema_beta: Option<f64>,
    /// Dropout probability
    #[arg(long, value_name = "P", value_parser = finite)]
    pub dropout: Option<f64>,
    /// Augmentation probability: EDM's pipe for `--loss edm`, StyleGAN2-ADA's for `--loss d2o`
    #[arg(long, value_name = "P", value_parser = finite)]
    pub augment_p: Option<f64>,
    /// Train on N images of the dataset, the subset that `max_size` selects in the original code [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_size: Option<u32>,
    /// Add the mirror image of every image to the dataset
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub xflip: Option<bool>,
    /// Compute the generator in bf16 on CUDA (the original's `--fp16`)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub bf16: Option<bool>,
    /// Allow TF32 in f32 convolutions and matrix products on CUDA: faster, deviates from the recipe
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub tf32: Option<bool>,
    /// Use deterministic CUDA kernels only, so that a resumed run is byte-identical; slower
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub deterministic: Option<bool>,
    /// Random seed
    #[arg(long)]
    pub seed: Option<u32>,
    /// Interval of status lines, kimg
    #[arg(long, value_name = "KIMG", value_parser = finite)]
    pub tick: Option<f64>,
    /// Interval of network snapshots, ticks; 0 for only one at the end
    #[arg(long, value_name = "TICKS")]
    pub snap: Option<u32>,
    /// Interval of training states for `--resume`, ticks; 0 for only one at the end
    #[arg(long, value_name = "TICKS")]
    pub dump: Option<u32>,
    /// Interval of image grids, ticks; 0 for none
    #[arg(long, value_name = "TICKS")]
    pub grid: Option<u32>,
    /// Also write snapshots as pickles that the original programs load
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub pickle: Option<bool>,
    /// Network (`--loss edm` without `--transfer`).
    #[command(flatten, next_help_heading = "New network")]
    #[serde(flatten)]
    pub fresh: Fresh,
    /// Steps of the generator and its teacher (`--loss d2o`).
    #[command(flatten, next_help_heading = "Steps and teacher")]
    #[serde(flatten)]
    pub teaching: Teaching,
    /// Evaluation of snapshots.
    #[command(flatten, next_help_heading = "Evaluation of snapshots")]
    #[serde(flatten)]
    pub evaluation: SnapshotEvaluation,
    /// Discriminator (`--loss d2o`).
    #[command(flatten, next_help_heading = "Discriminator")]
    #[serde(flatten)]
    pub adversary: Adversary,
}

/// A number that is finite.
fn finite(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|value: &f64| value.is_finite()).ok_or_else(|| "expected a finite number".to_owned())
}

/// A number of colour channels.
fn channels(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| matches!(n, 1 | 3)).ok_or_else(|| "expected 1 or 3".to_owned())
}

/// Objectives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossArg {
    /// EDM's denoising loss (pre-training)
    Edm,
    /// The loss of variance-preserving diffusion (pre-training)
    Vp,
    /// The loss of variance-exploding diffusion (pre-training)
    Ve,
    /// Adversarial fine-tuning into a one-step generator
    D2o,
}

impl LossArg {
    /// Class of the networks that are pre-trained with this loss.
    #[must_use]
    pub fn precond(self) -> Option<&'static str> {
        match self {
            Self::Edm => Some("EDMPrecond"),
            Self::Vp => Some("VPPrecond"),
            Self::Ve => Some("VEPrecond"),
            Self::D2o => None,
        }
    }
}

/// Rules of optimisers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Adam
    Adam,
    /// RAdam: its first updates are plain momentum, until the variance of the adaptive rate is bounded
    Radam,
}

/// Hyperparameters of a network trained from scratch.
#[derive(Debug, Default, Args, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Fresh {
    /// Architecture
    #[arg(long, value_enum)]
    pub arch: Option<Arch>,
    /// Base number of channels [default: the architecture's]
    #[arg(long, value_name = "N")]
    pub cbase: Option<usize>,
    /// Channel multiplier of each resolution [default: the architecture's]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub cres: Option<Vec<usize>>,
    /// Residual blocks per resolution [default: the architecture's]
    #[arg(long, value_name = "N")]
    pub num_blocks: Option<usize>,
    /// Resolutions with attention [default: the architecture's]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub attn_resolutions: Option<Vec<usize>>,
    /// Number of classes; 0 for none
    #[arg(long, value_name = "N")]
    pub label_dim: Option<usize>,
    /// Colour channels: 3, or 1 for a dataset of grey images
    #[arg(long, value_name = "N", value_parser = channels)]
    pub channels: Option<usize>,
}

/// Architectures of a network trained from scratch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arch {
    /// DDPM++
    Ddpmpp,
    /// NCSN++
    Ncsnpp,
    /// ADM
    Adm,
}

/// What is measured of each snapshot.
#[derive(Debug, Default, Args, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SnapshotEvaluation {
    /// Evaluate each snapshot as `d2o evaluate` does, against this reference: Fréchet distance, precision and recall, with intervals, in `metrics.jsonl`
    #[arg(long, value_name = "R.npz")]
    pub eval_ref: Option<PathBuf>,
    /// Feature extractor of the evaluation, exported with `--kind features`
    #[arg(long, value_name = "F.onnx")]
    pub eval_extractor: Option<PathBuf>,
    /// Number of images per evaluation, from seeds 0 to N - 1 [default: 5000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub eval_images: Option<u32>,
    /// Evaluation protocol [default: edm]
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(PROTOCOLS.iter().map(|p| p.name)))]
    pub eval_protocol: Option<String>,
    /// Keep only the snapshot with the lowest Fréchet distance and the last one
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub keep_best: Option<bool>,
}

/// Steps of the generator, and settings of instance distillation.
#[derive(Debug, Default, Args, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Teaching {
    /// Generator evaluations per image: 2 via `--middle-sigma`, more on EDM's noise schedule of N steps [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub multi_step_g: Option<u32>,
    /// Noise level between the two steps of `--multi-step-g 2` [default: 0.8]
    #[arg(long, value_name = "SIGMA", value_parser = finite)]
    pub middle_sigma: Option<f64>,
    /// Instance distillation in addition to the adversarial loss [default: none]
    #[arg(long, value_enum)]
    pub teacher_type: Option<TeacherArg>,
    /// Train by instance distillation alone, without a discriminator
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub teacher_only: Option<bool>,
    /// Checkpoint of the teacher (its EMA weights), an EDM denoiser
    #[arg(long, value_name = "CKPT")]
    pub target: Option<PathBuf>,
    /// Number of steps in the noise schedule of the teacher [default: 1024]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=65536))]
    pub max_steps: Option<u32>,
    /// Weights of LPIPS, two files: torchvision's vgg16-397923af.pth and vgg.pth of the Python package lpips
    #[arg(long, value_name = "FILE")]
    pub lpips_weights: Vec<PathBuf>,
}

/// Rules of instance distillation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TeacherArg {
    /// No distillation
    None,
    /// Progressive distillation: two teacher steps into one, on schedules of 1, 2, 4, … steps
    Pd,
    /// Consistency distillation: one teacher step, then one step to the lowest noise level
    Cd,
    /// Consistency trajectory model: via two random noise levels
    Ctm,
    /// From the highest noise level, with a final teacher step
    Rcd,
}

/// Settings of the discriminator.
#[derive(Debug, Default, Args, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Adversary {
    /// Backbones of the discriminator
    #[arg(long, value_enum)]
    pub backbones: Option<BackbonesArg>,
    /// Checkpoint of a backbone; repeat for each backbone
    #[arg(long, value_name = "FILE", visible_alias = "backbone")]
    pub backbone_weights: Vec<PathBuf>,
    /// Resize images below 224 pixels to 224 before the backbones
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub interp224: Option<bool>,
    /// Resize images to this size instead, a multiple of 32: faster, deviates from the recipe
    #[arg(long, value_name = "PIXELS", conflicts_with = "interp224")]
    pub feature_resolution: Option<usize>,
    /// Initial class embeddings of a conditional run: D2O's in_embeddings/tf_efficientnet_lite0.pkl
    #[arg(long, value_name = "FILE")]
    pub class_embeddings: Option<PathBuf>,
    /// Start from random class embeddings instead; deviates from the recipe
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = BoolishValueParser::new(), conflicts_with = "class_embeddings")]
    pub random_class_embeddings: Option<bool>,
    /// Apply DiffAugment to the input of each backbone
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub diffaug: Option<bool>,
    /// Target of adaptive augmentation (ADA): mean sign of the logits of real images; 0 keeps the augmentation probability fixed
    #[arg(long, value_name = "SIGN", value_parser = finite)]
    pub ada_target: Option<f64>,
    /// Learning rate of the discriminator, before the correction for the R1 interval
    #[arg(long, value_name = "LR", value_parser = finite)]
    pub dlr: Option<f64>,
    /// Adversarial loss
    #[arg(long, value_enum)]
    pub loss_type: Option<LossTypeArg>,
    /// Weight of the R1 penalty; 0 for none
    #[arg(long, value_name = "GAMMA", value_parser = finite)]
    pub r1_gamma: Option<f64>,
    /// Iterations between R1 regularisation steps
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub r1_interval: Option<u32>,
    /// Frozen layers: 0 none, 1 convolutions and projections (D2O-F), 2 also qkv, 3 also skip
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(u8).range(0..=3))]
    pub freeze: Option<u8>,
}

/// Feature networks of the discriminator, in the order of their logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum BackbonesArg {
    /// EfficientNet-Lite0
    #[value(name = "lite0")]
    #[serde(rename = "lite0")]
    Lite0,
    /// VGG16-BN and EfficientNet-Lite0 (the CIFAR-10 presets)
    #[value(name = "vgg16_bn+lite0")]
    #[serde(rename = "vgg16_bn+lite0")]
    Vgg16BnLite0,
    /// DeiT-B distilled and EfficientNet-Lite0 (the other presets)
    #[value(name = "deit+lite0")]
    #[serde(rename = "deit+lite0")]
    DeitLite0,
    /// The original's third pair, which is refused
    #[value(name = "vit+efficientnet_b0", hide = true)]
    #[serde(rename = "vit+efficientnet_b0")]
    VitEfficientNetB0,
}

/// Adversarial losses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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
            _ => text.parse().map(Self::Cuda).map_err(|_| "expected cpu or a CUDA device number".to_owned()),
        }
    }
}
