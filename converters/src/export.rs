//! Networks of a checkpoint as finished graphs.
//!
//! | kind | inputs | outputs |
//! |---|---|---|
//! | one-step | `latents [N, C, H, W]` of unit variance, `class_labels [N, L]` one-hot if conditional | `images [N, C, H, W]`, and on request `images_u8 [N, H, W, C]` |
//! | one-step, StyleGAN2 | `latents [N, z_dim]`, `class_labels [N, c_dim]` | the same |
//! | denoiser | `x [N, C, H, W]`, `sigma [N]`, `class_labels` | `denoised` |
//! | features | `images_u8 [N, H, W, 3]` or `images_f32 [N, S, S, 3]` | `features [N, D]`, `logits [N, K]` |
//! | features, CLIP | the same | `features [N, 512]`, `unprojected [N, 768]` before their projection |
//! | features, Inception-2015-12-05 | the same | `pool3 [N, 2048]`, `logits [N, 1008]`, `spatial [N, 2023]`, on request `tap_64`, `tap_192`, `tap_768` |
//! | features, DeiT, VGG16 | the same | `features`, `logits`, on request maps `[N, C, H, W]`: `block_2` to `block_11`, `relu1_2` to `relu5_3` |
//!
//! `images_u8` holds bytes of any one size, resized in the graph; `images_f32` holds values 0 to 255 that were resized to the network's own
//! size S before, so that fractions survive as a protocol's own resize leaves them. Normalisation is part of the graph in both.

use std::sync::Arc;

use d2o_onnx::graph::{Dim, Edge, ElementType, Model};
use d2o_onnx::ops::Sampling;

use crate::config::{NetConfig, Quantiser};
use crate::error::{Error, Result};
use crate::nn::efficientnet_lite::{self, EfficientNetLite0};
use crate::nn::inception_v3::InceptionV3;
use crate::nn::layers::signed;
use crate::nn::precond::{Denoiser, Sigma};
use crate::nn::stylegan2::{self, Drawing, StyleGan2};
use crate::nn::vgg16::{self, Vgg16};
use crate::nn::vision_transformer::{self, Activation, Family, VisionTransformer, VitConfig};
use crate::nn::{Backend as _, OnnxBackend};
use crate::published::WeightsState;
use crate::registry::{Architecture, Network};
use crate::weights::{LoadReport, Scope, Weights};

/// What a graph of a denoiser computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Latents to images in one evaluation.
    OneStep,
    /// One denoising step.
    Denoiser,
}

impl Kind {
    /// Name in metadata and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::OneStep => "one-step",
            Self::Denoiser => "denoiser",
        }
    }
}

/// How a denoiser is exported.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// What the graph computes.
    pub kind: Kind,
    /// Noise level a one-step generator starts from.
    pub sigma_max: f64,
    /// Whether `images_u8` is an output too.
    pub uint8: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { kind: Kind::OneStep, sigma_max: 80.0, uint8: false }
    }
}

/// A finished graph and what was read for it.
#[derive(Debug)]
pub struct Exported {
    /// The graph.
    pub model: Model,
    /// Tensors taken and left.
    pub report: LoadReport,
    /// Whether a feature network's weights are published ones; `None` for a generator or denoiser.
    pub weights: Option<WeightsState>,
}

/// The graph of the denoiser `network`, which must know its configuration.
///
/// # Errors
/// `Config` if it does not; errors of the load; `Engine` if the graph cannot be built.
pub fn denoiser(network: &Network, options: &Options) -> Result<Exported> {
    let config = network.denoiser_config()?;
    denoiser_of(config, weights(network), options)
}

/// The graph of a denoiser of this configuration over `weights`.
///
/// # Errors
/// Errors of the load; `Engine` if the graph cannot be built.
pub fn denoiser_of(config: &NetConfig, weights: Weights, options: &Options) -> Result<Exported> {
    let mut b = OnnxBackend::new(config.class(), weights);
    let net = Denoiser::build(&mut b, config)?;
    let (c, r) = (Dim::Known(config.img_channels), Dim::Known(config.img_resolution));
    let image = [Dim::Batch, c, r, r];
    let input = |b: &mut OnnxBackend, name: &str, dims: &[Dim]| {
        let edge = b.graph.input(name, ElementType::F32, dims);
        edge.map_err(|e| engine("input", e))
    };
    let first = if options.kind == Kind::OneStep { "latents" } else { "x" };
    let x = input(&mut b, first, &image)?;
    let sigma = match options.kind {
        Kind::OneStep => None,
        Kind::Denoiser => Some(input(&mut b, "sigma", &[Dim::Batch])?),
    };
    let labels = if config.label_dim > 0 {
        Some(input(&mut b, "class_labels", &[Dim::Batch, Dim::Known(config.label_dim)])?)
    } else {
        None
    };
    let (name, out) = match sigma {
        None => ("images", net.one_step(&mut b, &x, options.sigma_max, labels.as_ref())?),
        Some(sigma) => ("denoised", net.denoise(&mut b, &x, &Sigma::PerImage(sigma), labels.as_ref())?),
    };
    b.graph.output(name, &out).map_err(|e| engine("output", e))?;
    let quantiser = config.precond.quantiser();
    if options.uint8 {
        images_u8(&mut b, &out, quantiser)?;
    }
    let (mut graph, report) = b.finish()?;
    graph.metadata("d2o_version", env!("CARGO_PKG_VERSION"));
    graph.metadata("kind", options.kind.name());
    graph.metadata("class", config.class());
    graph.metadata("init_kwargs", config.init_kwargs().to_string());
    graph.metadata("quantiser", quantiser.name());
    if options.kind == Kind::OneStep {
        graph.metadata("sigma_max", options.sigma_max.to_string());
    } else {
        let [low, high] = net.noise_range();
        graph.metadata("net_sigma_min", low.to_string());
        graph.metadata("net_sigma_max", high.to_string());
        if let Some(levels) = net.noise_levels() {
            graph.metadata("net_levels", format!("{levels:?}"));
        }
    }
    let model = graph.finish().map_err(|e| engine("finish", e))?;
    Ok(Exported { model, report, weights: None })
}

/// What a feature network is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PixelInput {
    /// `images_u8 [N, H, W, 3]`: bytes, resized in the graph if they have not the network's size.
    #[default]
    U8,
    /// `images_f32 [N, S, S, 3]`: values 0 to 255 of the network's size.
    F32,
}

/// How StyleGAN2's generator is exported.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct GeneratorOptions {
    /// Truncation and noise.
    pub drawing: Drawing,
    /// Whether `images_u8` is an output too.
    pub uint8: bool,
}

/// The one-step graph of StyleGAN2's generator `network`: `latents [N, z_dim]` to `images`.
///
/// # Errors
/// `Config` if it is none, or cannot be truncated; errors of the load; `Engine` if the graph cannot be built.
pub fn generator(network: &Network, options: &GeneratorOptions) -> Result<Exported> {
    let Architecture::StyleGan2(config) = &network.architecture else {
        let what = format!("a StyleGAN2 generator was expected, found {}", network.architecture.name());
        return Err(Error::Config { what });
    };
    let mut b = OnnxBackend::new(stylegan2::CLASS, weights(network));
    let net = StyleGan2::build(&mut b, config)?;
    let mut input = |name: &str, width: usize| {
        let edge = b.graph.input(name, ElementType::F32, &[Dim::Batch, Dim::Known(width)]);
        edge.map_err(|e| engine("input", e))
    };
    let latents = input("latents", config.z_dim)?;
    let labels = if config.c_dim > 0 { Some(input("class_labels", config.c_dim)?) } else { None };
    let images = net.forward(&mut b, &latents, labels.as_ref(), &options.drawing)?;
    b.graph.output("images", &images).map_err(|e| engine("output", e))?;
    if options.uint8 {
        images_u8(&mut b, &images, Quantiser::Edm)?;
    }
    let (mut graph, report) = b.finish()?;
    graph.metadata("d2o_version", env!("CARGO_PKG_VERSION"));
    graph.metadata("kind", Kind::OneStep.name());
    graph.metadata("class", stylegan2::CLASS);
    graph.metadata("init_kwargs", config.init_kwargs().to_string());
    graph.metadata("quantiser", Quantiser::Edm.name());
    graph.metadata("truncation_psi", options.drawing.truncation_psi.to_string());
    if let Some(cutoff) = options.drawing.truncation_cutoff {
        graph.metadata("truncation_cutoff", cutoff.to_string());
    }
    graph.metadata("noise", if options.drawing.noise { "const" } else { "none" });
    let model = graph.finish().map_err(|e| engine("finish", e))?;
    Ok(Exported { model, report, weights: None })
}

/// The output `images_u8 [N, H, W, C]` of `images [N, C, H, W]`.
fn images_u8(b: &mut OnnxBackend, images: &Edge, quantiser: Quantiser) -> Result<()> {
    b.enter(&Scope::root().child("quantise"));
    let shifted = match quantiser {
        Quantiser::Edm => {
            let scaled = b.scale(images, 127.5)?;
            b.offset(&scaled, 128.0)?
        }
        Quantiser::OpenAi => {
            let shifted = b.offset(images, 1.0)?;
            b.scale(&shifted, 127.5)?
        }
    };
    let last = b.transpose(&shifted, &[0, 2, 3, 1])?;
    let pixels = b.f32_to_u8(&last)?;
    b.graph.output("images_u8", &pixels).map_err(|e| engine("output", e))
}

/// How a feature network is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeatureOptions {
    /// What the graph is given.
    pub input: PixelInput,
    /// Height and width of the images the graph takes, pixels; the network's own for `PixelInput::F32`.
    pub image_size: usize,
    /// Height and width the network sees, pixels; images of another size are resized to it in the graph. EfficientNet-Lite0 and DINOv2 take
    /// several, the others only [`Architecture::feature_size`].
    pub input_size: usize,
    /// What CLIP was trained with, if the file does not say.
    pub activation: Option<Activation>,
    /// Width of a vision transformer's attention heads, if it is not the usual one.
    pub head_width: Option<usize>,
    /// Whether the taps of Inception, DeiT or VGG16 are outputs too.
    pub taps: bool,
}

/// The graph of the feature network `network`, which comes from a file with this SHA-256 (hexadecimal). Its metadata record whether the
/// weights are published ones.
///
/// # Errors
/// `Config` if it is not a feature network, if it does not run at the size asked for, if its activation is not known, or if f32 images are not
/// of its size; errors of the load; `Engine` if the graph cannot be built.
pub fn features(network: &Network, options: &FeatureOptions, file_sha256: &str) -> Result<Exported> {
    let architecture = &network.architecture;
    let Some(size) = architecture.feature_size() else {
        let what = match architecture {
            Architecture::Unsupported(why) => why.clone(),
            other => {
                let known = "Inception-2015-12-05, CLIP ViT, EfficientNet-Lite0, DeiT distilled, VGG16, DINOv2";
                format!("a feature network was expected ({known}), found one of class {}", other.name())
            }
        };
        return Err(Error::Config { what });
    };
    let architecture = match architecture {
        Architecture::VisionTransformer(config) => Architecture::VisionTransformer(completed(*config, options)?),
        other => other.clone(),
    };
    let flexible = match &architecture {
        Architecture::EfficientNetLite0 => true,
        Architecture::VisionTransformer(config) => config.family == Family::Dino,
        _ => false,
    };
    let extractor = architecture.name();
    if options.input_size != size && !flexible {
        let what = format!("{extractor} runs at {size} pixels, found {}", options.input_size);
        return Err(Error::Config { what });
    }
    let mut b = OnnxBackend::new(&extractor, weights(network));
    let x = pixels(&mut b, options)?;
    let outputs = match &architecture {
        Architecture::EfficientNetLite0 => lite0(&mut b, &x, options)?,
        Architecture::VisionTransformer(config) => transformer(&mut b, &x, config, options)?,
        Architecture::Vgg16(config) => {
            let net = Vgg16::build(&mut b, &Scope::root(), config)?;
            let x = tensorflow_resized(&mut b, &x, options)?;
            let x = standardised(&mut b, &x, &IMAGENET_MEAN, &IMAGENET_STD)?;
            let out = net.forward(&mut b, &x, options.taps)?;
            let mut outputs = vec![("features".to_owned(), out.features), ("logits".to_owned(), out.logits)];
            outputs.extend(vgg16::TAPS.map(str::to_owned).into_iter().zip(out.taps));
            outputs
        }
        Architecture::InceptionV3(parts) => {
            let net = InceptionV3::build(&mut b, &Scope::root(), *parts)?;
            let x = tensorflow_resized(&mut b, &x, options)?;
            let x = b.offset(&x, -128.0)?;
            let x = b.scale(&x, 1.0 / 128.0)?;
            let out = net.forward(&mut b, &x, options.taps)?;
            let mut outputs = vec![("pool3".to_owned(), out.pool3)];
            outputs.extend(out.logits.map(|l| ("logits".to_owned(), l)));
            outputs.push(("spatial".to_owned(), out.spatial));
            outputs.extend(["tap_64", "tap_192", "tap_768"].map(str::to_owned).into_iter().zip(out.taps));
            outputs
        }
        other => return Err(Error::Config { what: format!("{} is not a feature network", other.name()) }),
    };
    for (name, edge) in outputs {
        b.graph.output(&name, &edge).map_err(|e| engine("output", e))?;
    }
    let (mut graph, report) = b.finish()?;
    graph.metadata("d2o_version", env!("CARGO_PKG_VERSION"));
    let weights = WeightsState::of_network(network, &extractor, file_sha256)?;
    for (key, value) in weights.iter().flat_map(WeightsState::metadata) {
        graph.metadata(key, value);
    }
    graph.metadata("kind", "features");
    graph.metadata("extractor", extractor);
    graph.metadata("input_size", options.input_size.to_string());
    if let Architecture::VisionTransformer(VitConfig { activation: Some(activation), .. }) = architecture {
        graph.metadata("activation", activation.name());
    }
    if let Some(head) = options.head_width {
        graph.metadata("head_width", head.to_string());
    }
    if options.image_size != options.input_size {
        let torch = architecture == Architecture::EfficientNetLite0;
        graph.metadata("resize", if torch { TORCH_RESIZE } else { TENSORFLOW_RESIZE });
    }
    let model = graph.finish().map_err(|e| engine("finish", e))?;
    Ok(Exported { model, report, weights })
}

/// Named outputs of a feature network.
type Named = Vec<(String, Edge)>;

/// How the resizes in graphs are called in metadata.
const TENSORFLOW_RESIZE: &str = "TensorFlow 1 bilinear (asymmetric), no antialiasing";
const TORCH_RESIZE: &str = "bilinear, half-pixel, no antialiasing";
/// Mean of each colour channel of ImageNet, of 0 to 1, as torchvision and timm have it.
const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// Standard deviation of each.
const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// `config` with what the file or the user names beside the shapes.
fn completed(config: VitConfig, options: &FeatureOptions) -> Result<VitConfig> {
    match (config.activation, options.activation) {
        (Some(known), Some(asked)) if known != asked => {
            let (known, asked) = (known.name(), asked.name());
            Err(Error::Config { what: format!("the file's network applies {known}, and {asked} was asked for") })
        }
        (known, asked) => {
            Ok(VitConfig { activation: known.or(asked), head: options.head_width.or(config.head), ..config })
        }
    }
}

fn lite0(b: &mut OnnxBackend, x: &Edge, options: &FeatureOptions) -> Result<Named> {
    let net = EfficientNetLite0::build(b, &Scope::root())?;
    b.enter(&preprocess());
    let x = b.scale(x, 1.0 / 127.5)?;
    let x = b.offset(&x, -1.0)?;
    let same = options.image_size == options.input_size;
    let x = if same { x } else { b.resize_bilinear(&x, [options.input_size; 2], false)? };
    let (features, logits) = net.forward(b, &x)?;
    let features = b.reshape(&features, &[-1, signed(efficientnet_lite::FEATURES)])?;
    Ok(vec![("features".to_owned(), features), ("logits".to_owned(), logits)])
}

fn transformer(b: &mut OnnxBackend, x: &Edge, config: &VitConfig, options: &FeatureOptions) -> Result<Named> {
    let net = VisionTransformer::build(b, &Scope::root(), config, options.input_size)?;
    let x = tensorflow_resized(b, x, options)?;
    let x = if config.family == Family::Clip {
        standardised(b, &x, &vision_transformer::CLIP_MEAN, &vision_transformer::CLIP_STD)?
    } else {
        standardised(b, &x, &IMAGENET_MEAN, &IMAGENET_STD)?
    };
    let out = net.forward(b, &x, options.taps)?;
    let mut outputs = vec![("features".to_owned(), out.features)];
    outputs.extend(out.unprojected.map(|u| ("unprojected".to_owned(), u)));
    outputs.extend(out.logits.map(|l| ("logits".to_owned(), l)));
    outputs.extend(vision_transformer::DEIT_TAPS.map(|i| format!("block_{i}")).into_iter().zip(out.taps));
    Ok(outputs)
}

fn preprocess() -> Scope {
    Scope::root().child("preprocess")
}

/// `x` at the network's size: resized as TensorFlow 1 does (bilinear, asymmetric, no antialiasing), as torch-fidelity does for every network.
fn tensorflow_resized(b: &mut OnnxBackend, x: &Edge, options: &FeatureOptions) -> Result<Edge> {
    b.enter(&preprocess());
    let resized = b.graph.resize_bilinear(x, [options.input_size; 2], Sampling::Asymmetric);
    resized.map_err(|e| engine("resize_bilinear", e))
}

/// (x/255 - mean)/std for each channel of `x [N, 3, S, S]`.
fn standardised(b: &mut OnnxBackend, x: &Edge, mean: &[f32; 3], std: &[f32; 3]) -> Result<Edge> {
    let scope = preprocess();
    b.enter(&scope);
    let x = b.scale(x, 1.0 / 255.0)?;
    let mean = b.constant(&scope, "minus_mean", &[1, 3, 1, 1], mean.map(|m| -m).to_vec())?;
    let std = b.constant(&scope, "std", &[1, 3, 1, 1], std.to_vec())?;
    let x = b.add(&x, &mean)?;
    b.div(&x, &std)
}

/// The input of a feature network as f32 `[N, 3, S, S]`, 0 to 255; what follows belongs to `preprocess`.
fn pixels(b: &mut OnnxBackend, options: &FeatureOptions) -> Result<Edge> {
    let size = Dim::Known(options.image_size);
    let dims = [Dim::Batch, size, size, Dim::Known(3)];
    let (name, element) = match options.input {
        PixelInput::U8 => ("images_u8", ElementType::U8),
        PixelInput::F32 if options.image_size != options.input_size => {
            let (images, network) = (options.image_size, options.input_size);
            let what = format!("f32 images come resized: expected the network's {network} pixels, found {images}");
            return Err(Error::Config { what });
        }
        PixelInput::F32 => ("images_f32", ElementType::F32),
    };
    let x = b.graph.input(name, element, &dims).map_err(|e| engine("input", e))?;
    b.enter(&preprocess());
    let x = if options.input == PixelInput::U8 { b.u8_to_f32(&x)? } else { x };
    b.transpose(&x, &[0, 3, 1, 2])
}

fn weights(network: &Network) -> Weights {
    Weights::checkpoint(Box::new(Arc::clone(&network.tensors)), "")
}

fn engine(op: &'static str, e: d2o_onnx::Error) -> Error {
    Error::Engine { scope: String::new(), op, source: Box::new(e) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn adm_with_several_heads_is_laid_out() {
        let kwargs = json!({"img_resolution": 16, "img_channels": 3, "label_dim": 3, "model_channels": 128, "channel_mult": [1, 2],
            "num_blocks": 1, "attn_resolutions": [8]});
        for (class, tensors) in [("EDMPrecond", 149), ("iDDPMPrecond", 150)] {
            let config = NetConfig::new(class, &kwargs).unwrap();
            for kind in [Kind::OneStep, Kind::Denoiser] {
                let options = Options { kind, ..Options::default() };
                let exported = denoiser_of(&config, Weights::initialised(0), &options).unwrap();
                assert_eq!(exported.report.tensors, tensors, "{class}");
            }
        }
    }

    #[test]
    fn transformers_are_laid_out_for_any_batch() {
        let clip = VitConfig { blocks: 1, ..VitConfig::clip_b_32() };
        let dino = VitConfig { family: Family::Dino, patch: 14, grid: 37, ..clip };
        for (config, size) in [(clip, 224), (dino, 224), (dino, 98)] {
            let mut b = OnnxBackend::new("vit", Weights::initialised(0));
            let net = VisionTransformer::build(&mut b, &Scope::root(), &config, size).unwrap();
            let side = Dim::Known(size);
            let x = b.graph.input("x", ElementType::F32, &[Dim::Batch, Dim::Known(3), side, side]).unwrap();
            let out = net.forward(&mut b, &x, true).unwrap();
            assert_eq!(out.features.dims(), [Dim::Batch, Dim::Known(config.features())]);
            b.graph.output("features", &out.features).unwrap();
            b.finish().unwrap().0.finish().unwrap();
        }
    }
}
