//! Options of `d2o export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Output;

/// `d2o export`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  d2o export snapshot.safetensors --out one-step.onnx\n  \
    d2o export edm-cifar10-32x32-uncond-vp.pkl --kind denoiser --out denoiser.onnx\n  \
    d2o export inception-2015-12-05.pkl --image-size 32 --fuse-resize --out inception.onnx\n  \
    d2o export efficientnet-lite0-57934424.pth --kind features --image-size 32 --out lite0.onnx")]
pub struct Export {
    /// Checkpoint: pickle of EDM, D2O or SiD, safetensors, torch.save file (.pt, .pth), TorchScript, TensorFlow GraphDef (.pb)
    #[arg(value_name = "SRC")]
    pub source: PathBuf,
    /// Output file
    #[arg(long, value_name = "X.onnx")]
    pub out: PathBuf,
    /// Replace outputs that exist
    #[command(flatten)]
    pub output: Output,
    /// Network to export, by its name in `d2o inspect`; `ema` and `net` also select StyleGAN's `G_ema` and `G` [default: the EMA network, or the only
    /// network]
    #[arg(long, value_name = "NAME")]
    pub net: Option<String>,
    /// Network class and constructor arguments (JSON, see docs/net-json.md), for checkpoints that store neither
    #[arg(long, value_name = "NET.json")]
    pub config: Option<PathBuf>,
    /// Kind of graph [default: features for feature extractors; denoiser for snapshots and published checkpoints (`d2o known`) with a multi-step sampler; else one-step]
    #[arg(long, value_enum)]
    pub kind: Option<Kind>,
    /// Initial noise level of a one-step generator [default: from `d2o known` for published checkpoints, else 80]
    #[arg(long, value_name = "SIGMA")]
    pub sigma_max: Option<f64>,
    /// Add the output `images_u8 [N, H, W, C]`
    #[arg(long)]
    pub uint8: bool,
    /// Input of a feature extractor: uint8 images, resized inside the graph, or floats in 0..255, resized by d2o according to the protocol (exact for every
    /// protocol) [default: u8]
    #[arg(long, value_enum)]
    pub input: Option<PixelType>,
    /// Height and width of the input images of a feature extractor, pixels; the graph resizes them to the resolution of the network
    #[arg(long, value_name = "PIXELS")]
    pub image_size: Option<usize>,
    /// Resolution of EfficientNet-Lite0 or DINOv2, pixels; fixed for other networks [default: 224]
    #[arg(long, value_name = "PIXELS")]
    pub input_size: Option<usize>,
    /// Activation of CLIP, if the checkpoint does not record it: QuickGELU for OpenAI's weights, usually exact GELU for others
    #[arg(long, value_enum)]
    pub activation: Option<ActivationArg>,
    /// Channels per attention head of a vision transformer, if the tensor shapes do not determine it: 80 for open_clip's ViT-H/14, 88 for g/14, 104 for bigG/14
    /// [default: 64 up to a width of 1024]
    #[arg(long, value_name = "CHANNELS")]
    pub head_width: Option<usize>,
    /// Resize images of `--image-size` inside the graph as TensorFlow 1 does
    #[arg(long)]
    pub fuse_resize: bool,
    /// Add intermediate outputs: Inception's 64-, 192- and 768-dimensional features, feature maps of VGG16 and DeiT
    #[arg(long)]
    pub taps: bool,
    /// Data type of weights, convolutions and matrix products; norms, softmax, scaling, inputs and outputs stay in f32
    #[arg(long, value_enum, default_value_t = PrecisionArg::Fp32)]
    pub precision: PrecisionArg,
    /// Write wide 3x3 convolutions as Winograd F(4, 3): faster in ONNX Runtime on CPUs, doubles the file size, changes the rounding order
    #[arg(long)]
    pub winograd: bool,
    /// StyleGAN2: truncation psi; 1 disables truncation [default: 1]
    #[arg(long, value_name = "PSI")]
    pub truncation_psi: Option<f64>,
    /// StyleGAN2: number of layers to truncate, from the coarsest [default: all]
    #[arg(long, value_name = "N")]
    pub truncation_cutoff: Option<usize>,
    /// StyleGAN2: noise inputs [default: const]
    #[arg(long, value_enum)]
    pub noise: Option<NoiseArg>,
    /// Skip the check of the exported graph on ONNX Runtime, tract and (if built in) libtorch
    #[arg(long)]
    pub no_check: bool,
}

/// Type a graph computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PrecisionArg {
    /// 32 bits
    Fp32,
    /// 16 bits; the output error is measured and stored in the metadata
    Fp16,
}

/// Noise of StyleGAN2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NoiseArg {
    /// The constant noise of the checkpoint
    Const,
    /// No noise
    None,
}

/// Input of a feature extractor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PixelType {
    /// `images_u8`, at `--image-size`.
    U8,
    /// `images_f32`, at the resolution of the network.
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
