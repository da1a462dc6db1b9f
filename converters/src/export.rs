//! Networks of a checkpoint as finished graphs.
//!
//! | kind | inputs | outputs |
//! |---|---|---|
//! | one-step | `latents [N, C, H, W]` of unit variance, `class_labels [N, L]` one-hot if conditional | `images [N, C, H, W]`, and on request `images_u8 [N, H, W, C]` |
//! | denoiser | `x [N, C, H, W]`, `sigma [N]`, `class_labels` | `denoised` |
//! | features | `images_u8 [N, H, W, 3]` or `images_f32 [N, S, S, 3]` | `features [N, D]`, `logits [N, K]` |
//! | features, Inception-2015-12-05 | the same | `pool3 [N, 2048]`, `logits [N, 1008]`, `spatial [N, 2023]`, on request `tap_64`, `tap_192`, `tap_768` |
//!
//! `images_u8` holds bytes of any one size, resized in the graph; `images_f32` holds values 0 to 255 that were resized to the network's own
//! size S before, so that fractions survive as a protocol's own resize leaves them. Normalisation is part of the graph in both.

use std::rc::Rc;

use d2o_onnx::graph::{Dim, Edge, ElementType, Model};
use d2o_onnx::ops::Sampling;

use crate::checkpoint::{Architecture, Network};
use crate::config::NetConfig;
use crate::error::{Error, Result};
use crate::nn::clip_vit::{self, ClipVitB32};
use crate::nn::efficientnet_lite::EfficientNetLite0;
use crate::nn::inception_v3::{self, InceptionV3};
use crate::nn::layers::signed;
use crate::nn::precond::{Denoiser, Sigma};
use crate::nn::{Backend as _, OnnxBackend};
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
}

/// The graph of the denoiser `network`, which must know its configuration.
///
/// # Errors
/// `Config` if it does not; errors of the load; `Engine` if the graph cannot be built.
pub fn denoiser(network: &Network, options: &Options) -> Result<Exported> {
    let config = match &network.architecture {
        Architecture::Denoiser(config) => config,
        Architecture::Unsupported(why) => return Err(Error::Config { what: why.clone() }),
        Architecture::Unknown => {
            let what = "the checkpoint does not say which network it holds (class and init_kwargs)".to_owned();
            return Err(Error::Config { what });
        }
        other => return Err(Error::Config { what: format!("a denoiser was expected, found {}", other.name()) }),
    };
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
    if options.uint8 {
        b.enter(&Scope::root().child("quantise"));
        let scaled = b.scale(&out, 127.5)?;
        let shifted = b.offset(&scaled, 128.0)?;
        let last = b.transpose(&shifted, &[0, 2, 3, 1])?;
        let pixels = b.f32_to_u8(&last)?;
        b.graph.output("images_u8", &pixels).map_err(|e| engine("output", e))?;
    }
    let (mut graph, report) = b.finish()?;
    graph.metadata("d2o_version", env!("CARGO_PKG_VERSION"));
    graph.metadata("kind", options.kind.name());
    graph.metadata("class", config.class());
    graph.metadata("init_kwargs", config.init_kwargs().to_string());
    if options.kind == Kind::OneStep {
        graph.metadata("sigma_max", options.sigma_max.to_string());
    }
    let model = graph.finish().map_err(|e| engine("finish", e))?;
    Ok(Exported { model, report })
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

/// How a feature network is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeatureOptions {
    /// What the graph is given.
    pub input: PixelInput,
    /// Height and width of the images the graph takes, pixels; the network's own for `PixelInput::F32`.
    pub image_size: usize,
    /// Height and width EfficientNet-Lite0 sees, pixels: images are resized to it bilinearly (half-pixel, no antialiasing).
    pub input_size: usize,
    /// Whether CLIP weights are to be taken for ones trained with QuickGELU if the file does not say.
    pub quick_gelu: bool,
    /// Whether Inception's 64-, 192- and 768-dimensional taps are outputs too.
    pub taps: bool,
}

/// The graph of the feature network `network`.
///
/// # Errors
/// `Config` if it is none, or if f32 images are not of its size; errors of the load; `Engine` if the graph cannot be built.
pub fn features(network: &Network, options: &FeatureOptions) -> Result<Exported> {
    match &network.architecture {
        Architecture::EfficientNetLite0 => {}
        Architecture::InceptionV3 { gamma } => return inception(network, *gamma, options),
        Architecture::ClipVitB32 { packed, quick } => {
            if !quick && !options.quick_gelu {
                let what = "the file does not say which activation CLIP was trained with: OpenAI's weights need QuickGELU, most others the \
                            exact GELU, which is not available"
                    .to_owned();
                return Err(Error::Config { what });
            }
            return clip(network, *packed, options);
        }
        Architecture::Unsupported(why) => return Err(Error::Config { what: why.clone() }),
        other => {
            let known = "Inception-2015-12-05, CLIP ViT-B/32, EfficientNet-Lite0";
            let what = format!("a feature network was expected ({known}), found one of class {}", other.name());
            return Err(Error::Config { what });
        }
    }
    let mut b = OnnxBackend::new("tf_efficientnet_lite0", weights(network));
    let net = EfficientNetLite0::build(&mut b, &Scope::root())?;
    let x = pixels(&mut b, options)?;
    let x = b.scale(&x, 1.0 / 127.5)?;
    let x = b.offset(&x, -1.0)?;
    let x = if options.image_size == options.input_size {
        x
    } else {
        b.resize_bilinear(&x, [options.input_size; 2], false)?
    };
    let (features, logits) = net.forward(&mut b, &x)?;
    let features = b.reshape(&features, &[-1, signed(crate::nn::efficientnet_lite::FEATURES)])?;
    b.graph.output("features", &features).map_err(|e| engine("output", e))?;
    b.graph.output("logits", &logits).map_err(|e| engine("output", e))?;
    finish_features(b, "tf_efficientnet_lite0", options.input_size, Some("bilinear, half-pixel, no antialiasing"))
}

/// Inception; images of another size than its own are resized as TensorFlow 1 does (bilinear, asymmetric, no antialiasing).
fn inception(network: &Network, gamma: bool, options: &FeatureOptions) -> Result<Exported> {
    let mut b = OnnxBackend::new("inception-2015-12-05", weights(network));
    let net = InceptionV3::build(&mut b, &Scope::root(), gamma)?;
    let x = pixels(&mut b, options)?;
    let resized = b.graph.resize_bilinear(&x, [inception_v3::INPUT_SIZE; 2], Sampling::Asymmetric);
    let x = resized.map_err(|e| engine("resize_bilinear", e))?;
    let x = b.offset(&x, -128.0)?;
    let x = b.scale(&x, 1.0 / 128.0)?;
    let out = net.forward(&mut b, &x, options.taps)?;
    let mut outputs = vec![("pool3", out.pool3), ("logits", out.logits), ("spatial", out.spatial)];
    outputs.extend(["tap_64", "tap_192", "tap_768"].into_iter().zip(out.taps));
    for (name, edge) in outputs {
        b.graph.output(name, &edge).map_err(|e| engine("output", e))?;
    }
    let resize = (options.image_size != inception_v3::INPUT_SIZE).then_some(TENSORFLOW_RESIZE);
    finish_features(b, "inception-2015-12-05", inception_v3::INPUT_SIZE, resize)
}

/// CLIP's image tower; images of another size than its own are resized as TensorFlow 1 does, as torch-fidelity has it.
fn clip(network: &Network, packed: bool, options: &FeatureOptions) -> Result<Exported> {
    let mut b = OnnxBackend::new("clip-vit-b-32", weights(network));
    let net = ClipVitB32::build(&mut b, &Scope::root(), packed)?;
    let x = pixels(&mut b, options)?;
    let resized = b.graph.resize_bilinear(&x, [clip_vit::INPUT_SIZE; 2], Sampling::Asymmetric);
    let x = resized.map_err(|e| engine("resize_bilinear", e))?;
    let x = b.scale(&x, 1.0 / 255.0)?;
    let scope = Scope::root().child("preprocess");
    let mean = b.constant(&scope, "minus_mean", &[1, 3, 1, 1], clip_vit::MEAN.map(|m| -m).to_vec())?;
    let std = b.constant(&scope, "std", &[1, 3, 1, 1], clip_vit::STD.to_vec())?;
    let x = b.add(&x, &mean)?;
    let x = b.div(&x, &std)?;
    let features = net.forward(&mut b, &x)?;
    b.graph.output("features", &features).map_err(|e| engine("output", e))?;
    let resize = (options.image_size != clip_vit::INPUT_SIZE).then_some(TENSORFLOW_RESIZE);
    finish_features(b, "clip-vit-b-32", clip_vit::INPUT_SIZE, resize)
}

/// How `Sampling::Asymmetric` is called in metadata.
const TENSORFLOW_RESIZE: &str = "TensorFlow 1 bilinear (asymmetric), no antialiasing";

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
    b.enter(&Scope::root().child("preprocess"));
    let x = if options.input == PixelInput::U8 { b.u8_to_f32(&x)? } else { x };
    b.transpose(&x, &[0, 3, 1, 2])
}

/// Ends the graph of a feature network whose outputs are declared.
fn finish_features(b: OnnxBackend, extractor: &str, input_size: usize, resize: Option<&str>) -> Result<Exported> {
    let (mut graph, report) = b.finish()?;
    graph.metadata("d2o_version", env!("CARGO_PKG_VERSION"));
    graph.metadata("kind", "features");
    graph.metadata("extractor", extractor);
    graph.metadata("input_size", input_size.to_string());
    if let Some(resize) = resize {
        graph.metadata("resize", resize);
    }
    let model = graph.finish().map_err(|e| engine("finish", e))?;
    Ok(Exported { model, report })
}

fn weights(network: &Network) -> Weights {
    Weights::checkpoint(Box::new(Rc::clone(&network.tensors)), "")
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
    fn clip_is_laid_out_for_any_batch() {
        let mut b = OnnxBackend::new("clip", Weights::initialised(0));
        let net = ClipVitB32::build(&mut b, &Scope::root(), true).unwrap();
        let side = Dim::Known(clip_vit::INPUT_SIZE);
        let x = b.graph.input("x", ElementType::F32, &[Dim::Batch, Dim::Known(3), side, side]).unwrap();
        let features = net.forward(&mut b, &x).unwrap();
        assert_eq!(features.dims(), [Dim::Batch, Dim::Known(clip_vit::FEATURES)]);
        b.graph.output("features", &features).unwrap();
        b.finish().unwrap().0.finish().unwrap();
    }
}
