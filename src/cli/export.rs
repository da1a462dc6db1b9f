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
    /// Checkpoint: a pickle of EDM, D2O or SiD, safetensors, torch.save (.pt, .pth), TorchScript, TensorFlow GraphDef (.pb)
    #[arg(value_name = "SRC")]
    pub source: PathBuf,
    /// File to write
    #[arg(long, value_name = "X.onnx")]
    pub out: PathBuf,
    /// Replace outputs that exist
    #[command(flatten)]
    pub output: Output,
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
