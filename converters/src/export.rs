//! Exports the networks of a checkpoint as graphs.
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
//! `images_u8` are bytes of one size, which is fixed at export; the graph resizes them. `images_f32` are values 0 to
//! 255 that were already resized to the input size S of the network and may have fractions. Normalisation is part of
//! the graph in both cases.

use d2o_onnx::graph::{Dim, Edge, ElementType, Model};
use d2o_onnx::metadata::{self, Metadata, Noise, Quantiser};

use crate::backend::{Backend, Cast};
use crate::denoiser::{Denoiser, NetConfig, Sigma};
use crate::error::{Error, Result, config};
use crate::extractors::Hyperparameters;
use crate::generators::latent::SynthesisOptions;
use crate::network::{Architecture, Network};
use crate::onnx::OnnxBackend;
use crate::preprocess::channels_first;
use crate::published::WeightsState;
use crate::weights::{LoadReport, Scope, Weights};

/// Kind of the graph of a denoiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Latents to images in one evaluation.
    OneStep,
    /// One denoising step.
    Denoiser,
}

/// Options of the graph of a denoiser.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Kind of the graph.
    pub kind: Kind,
    /// Initial noise level of a one-step graph.
    pub sigma_max: f64,
    /// Whether `images_u8` is an additional output.
    pub uint8: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { kind: Kind::OneStep, sigma_max: 80.0, uint8: false }
    }
}

/// Options of the graph of a single-evaluation generator.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct GeneratorOptions {
    /// Truncation and noise.
    pub synthesis: SynthesisOptions,
    /// Whether `images_u8` is an additional output.
    pub uint8: bool,
}

/// Input of the graph of a feature network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PixelInput {
    /// `images_u8 [N, H, W, 3]`: bytes, resized in the graph if they do not have the input size of the network.
    #[default]
    U8,
    /// `images_f32 [N, S, S, 3]`: values 0 to 255 of images that have the input size of the network.
    F32,
}

/// Options of the graph of a feature network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeatureOptions {
    /// Input of the graph.
    pub input: PixelInput,
    /// Height and width of the input images of the graph, pixels; equal to `input_size` for `PixelInput::F32`.
    pub image_size: usize,
    /// Height and width of the network input, pixels. The graph resizes images of another size to it.
    /// EfficientNet-Lite0 and DINOv2 accept several sizes, the others only [`crate::registry::Extractor::input_size`].
    pub input_size: usize,
    /// Hyperparameters that the file does not determine.
    pub hyperparameters: Hyperparameters,
    /// Whether intermediate activations are additional outputs.
    pub taps: bool,
}

impl FeatureOptions {
    /// Options for byte images of `size` pixels that are not resized.
    #[must_use]
    pub fn of_size(size: usize) -> Self {
        Self {
            input: PixelInput::U8,
            image_size: size,
            input_size: size,
            hyperparameters: Hyperparameters::default(),
            taps: false,
        }
    }
}

/// A finished graph and its load report.
#[derive(Debug)]
#[non_exhaustive]
pub struct Exported {
    /// The graph.
    pub model: Model,
    /// Load report: tensors read and not read.
    pub report: LoadReport,
    /// Whether the weights of a feature network are published; `None` for a generator or denoiser.
    pub weights: Option<WeightsState>,
}

/// The graph of the denoiser `network`.
///
/// # Errors
/// `Config` if `network` is not a denoiser or its configuration is unknown; errors of loading the weights; `Engine` if
/// the graph cannot be built.
pub fn denoiser(network: &Network, options: &Options) -> Result<Exported> {
    denoiser_of(&network.architecture.denoiser()?, network.weights(), options)
}

/// The graph of a denoiser with this configuration and these `weights`.
///
/// # Errors
/// Errors of loading the weights; `Engine` if the graph cannot be built.
pub fn denoiser_of(config: &NetConfig, weights: Weights, options: &Options) -> Result<Exported> {
    let mut b = OnnxBackend::new(config.class(), weights);
    let net = Denoiser::build(&mut b, config)?;
    let side = Dim::Known(config.img_resolution);
    let image = [Dim::Batch, Dim::Known(config.img_channels), side, side];
    let first = if options.kind == Kind::OneStep { "latents" } else { "x" };
    let x = b.input(first, ElementType::F32, &image)?;
    let sigma = match options.kind {
        Kind::OneStep => None,
        Kind::Denoiser => Some(b.input("sigma", ElementType::F32, &[Dim::Batch])?),
    };
    let labels = class_labels(&mut b, config.label_dim)?;
    let (name, out) = match sigma {
        None => ("images", net.one_step(&mut b, &x, options.sigma_max, labels.as_ref())?),
        Some(sigma) => ("denoised", net.denoise(&mut b, &x, &Sigma::PerImage(sigma), labels.as_ref())?),
    };
    b.output(name, &out)?;
    let quantiser = config.precond.quantiser();
    if options.uint8 {
        let bytes = quantised(&mut b, &out, quantiser)?;
        b.output("images_u8", &bytes)?;
    }
    let mut metadata = Metadata {
        class: Some(config.class().to_owned()),
        init_kwargs: Some(config.init_kwargs().to_string()),
        quantiser: Some(quantiser),
        ..Metadata::default()
    };
    match options.kind {
        Kind::OneStep => {
            metadata.kind = Some(metadata::Kind::OneStep);
            metadata.sigma_max = Some(options.sigma_max);
        }
        Kind::Denoiser => {
            metadata.kind = Some(metadata::Kind::Denoiser);
            [metadata.net_sigma_min, metadata.net_sigma_max] = net.noise_range().map(Some);
            metadata.net_levels = net.noise_levels().map(<[f32]>::to_vec);
        }
    }
    finished(b, metadata, None)
}

/// The graph of the generator `network`: `latents [N, Z]` to `images`.
///
/// # Errors
/// `Config` if `network` is not a single-evaluation generator, or if it is truncated and has no average latent; errors
/// of loading the weights; `Engine` if the graph cannot be built.
pub fn generator(network: &Network, options: &GeneratorOptions) -> Result<Exported> {
    let Architecture::Generator(generator) = &network.architecture else {
        return Err(config(format!("expected a generator, found {}", network.architecture.name())));
    };
    let mut b = OnnxBackend::new(generator.class(), network.weights());
    let net = generator.build(&mut b)?;
    let latents = b.input("latents", ElementType::F32, &[Dim::Batch, Dim::Known(generator.latent_dim())])?;
    let labels = class_labels(&mut b, generator.label_dim())?;
    let images = net.forward(&mut b, &latents, labels.as_ref(), &options.synthesis)?;
    b.output("images", &images)?;
    let quantiser = Quantiser::Edm;
    if options.uint8 {
        let bytes = quantised(&mut b, &images, quantiser)?;
        b.output("images_u8", &bytes)?;
    }
    let metadata = Metadata {
        kind: Some(metadata::Kind::OneStep),
        class: Some(generator.class().to_owned()),
        init_kwargs: Some(generator.init_kwargs().to_string()),
        quantiser: Some(quantiser),
        truncation_psi: Some(options.synthesis.truncation_psi),
        truncation_cutoff: options.synthesis.truncation_cutoff,
        noise: Some(if options.synthesis.noise { Noise::Const } else { Noise::None }),
        ..Metadata::default()
    };
    finished(b, metadata, None)
}

/// The graph of the feature network `network` from a file with the SHA-256 `file_sha256` (hexadecimal). The metadata
/// record whether the weights are published.
///
/// # Errors
/// `Config` if `network` is not a feature network, does not accept the input size or lacks a hyperparameter, or if f32
/// images do not have the input size; errors of loading the weights; `Engine` if the graph cannot be built.
pub fn features(network: &Network, options: &FeatureOptions, file_sha256: &str) -> Result<Exported> {
    let extractor = match &network.architecture {
        Architecture::Extractor(extractor) => extractor.clone().completed(&options.hyperparameters)?,
        Architecture::Unsupported(why) => return Err(config(why.as_str())),
        other => {
            let known = "Inception-2015-12-05, CLIP ViT, EfficientNet-Lite0, DeiT distilled, VGG16, DINOv2";
            let found = other.name();
            return Err(config(format!("expected a feature extractor ({known}), found a network of class {found}")));
        }
    };
    let (name, size) = (extractor.name(), extractor.input_size());
    if options.input_size != size && !extractor.any_size() {
        return Err(config(format!("{name} runs at {size} pixels, found {}", options.input_size)));
    }
    let mut b = OnnxBackend::new(&name, network.weights());
    let x = pixels(&mut b, options)?;
    let net = extractor.build(&mut b, options.input_size)?;
    let x = extractor.preprocessing().apply(&mut b, &x, options.input_size)?;
    for (name, value) in net.forward(&mut b, &x, options.taps)? {
        b.output(&name, &value)?;
    }
    let resized = options.image_size != options.input_size;
    let mut metadata = Metadata {
        kind: Some(metadata::Kind::Features),
        input_size: Some(options.input_size),
        activation: extractor.activation().map(|a| a.name().to_owned()),
        head_width: options.hyperparameters.head_width,
        resize: resized.then(|| extractor.preprocessing().resize.name().to_owned()),
        ..Metadata::default()
    };
    let weights = WeightsState::of_network(network, &name, file_sha256)?;
    if let Some(weights) = &weights {
        weights.record(&mut metadata);
    }
    metadata.extractor = Some(name);
    finished(b, metadata, weights)
}

fn finished(b: OnnxBackend, mut metadata: Metadata, weights: Option<WeightsState>) -> Result<Exported> {
    let (mut graph, report) = b.finish()?;
    metadata.version = Some(env!("CARGO_PKG_VERSION").to_owned());
    graph.describe(&metadata);
    let model = graph.finish();
    let model = model.map_err(|e| Error::Engine { scope: String::new(), op: "finish", source: Box::new(e) })?;
    Ok(Exported { model, report, weights })
}

/// The input `class_labels [N, count]`, one-hot; `None` if there are no classes.
fn class_labels(b: &mut OnnxBackend, count: usize) -> Result<Option<Edge>> {
    let dims = [Dim::Batch, Dim::Known(count)];
    (count > 0).then(|| b.input("class_labels", ElementType::F32, &dims)).transpose()
}

/// Converts `images [N, C, H, W]`, approximately in [-1, 1], to bytes `[N, H, W, C]`.
///
/// # Errors
/// `Engine` if an operation fails.
pub fn quantised<B: Backend>(b: &mut B, images: &B::Value, quantiser: Quantiser) -> Result<B::Value> {
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
    b.cast(Cast::ToU8, &last)
}

/// Declares the image input of a feature network. Returns it as f32 `[N, 3, S, S]` with values 0 to 255, where S is
/// `image_size`.
fn pixels(b: &mut OnnxBackend, options: &FeatureOptions) -> Result<Edge> {
    let size = Dim::Known(options.image_size);
    let bytes = options.input == PixelInput::U8;
    if !bytes && options.image_size != options.input_size {
        let (images, network) = (options.image_size, options.input_size);
        return Err(config(format!(
            "f32 images must already have the resolution of the network: expected {network} pixels, found {images}"
        )));
    }
    let (name, element) = if bytes { ("images_u8", ElementType::U8) } else { ("images_f32", ElementType::F32) };
    let x = b.input(name, element, &[Dim::Batch, size, size, Dim::Known(3)])?;
    channels_first(b, &x, bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::extractors::vision_transformer::{Family, VisionTransformer, VitConfig};
    use crate::weights::Scope;

    #[test]
    fn adm_with_several_heads_is_exported() {
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
    fn graphs_leave_the_map_of_augmentation_labels_out() {
        for class in ["SongUNet", "DhariwalUNet"] {
            let mut kwargs = json!({"img_resolution": 8, "img_channels": 3, "model_type": class, "model_channels": 32, "channel_mult": [1],
                "num_blocks": 1, "attn_resolutions": []});
            let mut graph = |augment_dim: usize| {
                kwargs["augment_dim"] = augment_dim.into();
                let config = NetConfig::new("EDMPrecond", &kwargs).unwrap();
                let exported = denoiser_of(&config, Weights::initialised(0), &Options::default()).unwrap();
                let same = Metadata { init_kwargs: Some(String::new()), ..Metadata::default() };
                let bytes = d2o_onnx::write::to_bytes(&exported.model.with_metadata(&same)).unwrap();
                (bytes, exported.report.tensors)
            };
            let ((plain, tensors), (augmented, more)) = (graph(0), graph(9));
            assert!(plain == augmented, "{class}");
            assert_eq!(more, tensors + 1, "{class}");
        }
    }

    #[test]
    fn transformers_are_built_for_any_batch() {
        let clip = VitConfig { blocks: 1, ..VitConfig::clip_b_32() };
        let dino = VitConfig { family: Family::Dino, patch: 14, grid: 37, ..clip };
        for (config, size) in [(clip, 224), (dino, 224), (dino, 98)] {
            let mut b = OnnxBackend::new("vit", Weights::initialised(0));
            let net = VisionTransformer::build(&mut b, &Scope::root(), &config, size).unwrap();
            let side = Dim::Known(size);
            let x = b.input("x", ElementType::F32, &[Dim::Batch, Dim::Known(3), side, side]).unwrap();
            let out = net.forward(&mut b, &x, true).unwrap();
            let (name, features) = &out[0];
            assert_eq!(
                (name.as_str(), features.dims()),
                ("features", &[Dim::Batch, Dim::Known(config.features())][..])
            );
            b.output("features", features).unwrap();
            b.finish().unwrap().0.finish().unwrap();
        }
    }
}
