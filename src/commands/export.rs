//! `d2o export`.

use std::time::Instant;

use anyhow::Context as _;
use d2o_converters::checkpoint::{Architecture, Checkpoint};
use d2o_converters::export::{self, Exported, FeatureOptions, GeneratorOptions, Options, PixelInput};
use d2o_converters::nn::stylegan2::Drawing;
use d2o_converters::nn::vision_transformer::Activation;
use d2o_onnx::write;
use fs_err as fs;
use serde_json::Value;

use super::ExitStatus;
use super::verify::compare;
use crate::cli::{ActivationArg, Export, Global, Kind, Net, NoiseArg, PixelType, Runtime};
use crate::error::with_hint;
use crate::printer::Printer;

/// Inputs of the check that follows an export.
const CHECKED: usize = 2;
/// Largest difference between the runtimes that check allows, relative to the largest output.
const TOLERANCE: f64 = 2e-5;

/// Turns a checkpoint into a graph, and checks it on two runtimes.
///
/// # Errors
/// Unreadable or unknown checkpoints, loads that are not clean, runtimes that differ.
pub fn run(args: &Export, global: &Global, printer: Printer) -> anyhow::Result<ExitStatus> {
    let start = Instant::now();
    let exported = graph(args).with_context(|| format!("cannot export `{}`", args.source.display()))?;
    write::write(&exported.model, &args.out).with_context(|| format!("write `{}`", args.out.display()))?;
    printer.note(&format!(
        "`{}`: {} tensors, {} parameters, {:.2} s",
        args.out.display(),
        exported.report.tensors,
        exported.report.scalars,
        start.elapsed().as_secs_f64()
    ));
    if args.no_check {
        return Ok(ExitStatus::Done);
    }
    let runtimes = [Runtime::OrtCpu, Runtime::Tract];
    let comparison = compare(&args.out, &runtimes, CHECKED, CHECKED, TOLERANCE, global)
        .context("the graph was written, but the check of it failed (--no-check skips it)")?;
    for output in &comparison.outputs {
        printer.note(&format!(
            "checked `{}` on {} and {}: largest difference {:.1e} of the largest value",
            output.name, comparison.reference, output.runtime, output.max_rel
        ));
    }
    Ok(if comparison.agree { ExitStatus::Done } else { ExitStatus::No })
}

fn graph(args: &Export) -> anyhow::Result<Exported> {
    let checkpoint = Checkpoint::open(&args.source)?;
    let network = checkpoint.network(match args.net {
        Net::Ema => "ema",
        Net::Net => "net",
    })?;
    let architecture = match &args.config {
        Some(path) => {
            read_config(path, &network.architecture).with_context(|| format!("cannot use `{}`", path.display()))?
        }
        None => network.architecture.clone(),
    };
    let described = network.described_as(architecture);
    let feature_size = described.architecture.feature_size();
    let kind = args.kind.unwrap_or(if feature_size.is_some() { Kind::Features } else { Kind::OneStep });
    let denoiser = |kind| {
        anyhow::ensure!(args.sigma_max > 0.0, "--sigma-max: expected a number above 0, found {}", args.sigma_max);
        let options = Options { kind, sigma_max: args.sigma_max, uint8: args.uint8 };
        Ok(export::denoiser(&described, &options)?)
    };
    match kind {
        Kind::OneStep if matches!(described.architecture, Architecture::StyleGan2(_)) => {
            let drawing = Drawing {
                truncation_psi: args.truncation_psi,
                truncation_cutoff: args.truncation_cutoff,
                noise: args.noise == NoiseArg::Const,
            };
            Ok(export::generator(&described, &GeneratorOptions { drawing, uint8: args.uint8 })?)
        }
        Kind::OneStep => denoiser(export::Kind::OneStep),
        Kind::Denoiser => denoiser(export::Kind::Denoiser),
        Kind::Features => {
            let input_size = args.input_size.or(feature_size).unwrap_or(1);
            let image_size = args.image_size.unwrap_or(input_size);
            anyhow::ensure!(input_size > 0 && image_size > 0, "--input-size, --image-size: expected at least 1");
            if args.input == PixelType::F32 && (args.fuse_resize || image_size != input_size) {
                let what = format!("--input f32: images come at the network's {input_size} pixels, resized before");
                return Err(with_hint(anyhow::anyhow!(what), "leave out `--image-size` and `--fuse-resize`"));
            }
            if described.architecture != Architecture::EfficientNetLite0
                && image_size != input_size
                && !args.fuse_resize
            {
                let what = format!("images of {image_size} pixels, and a network for {input_size}");
                let hint = "add `--fuse-resize` to put TensorFlow 1's bilinear resize in front, as the original FID and torch-fidelity have it, or \
                            `--input f32` to have d2o resize as the protocol does";
                return Err(with_hint(anyhow::anyhow!(what), hint));
            }
            let input = match args.input {
                PixelType::U8 => PixelInput::U8,
                PixelType::F32 => PixelInput::F32,
            };
            let activation = args.activation.map(|a| match a {
                ActivationArg::Gelu => Activation::Gelu,
                ActivationArg::QuickGelu => Activation::QuickGelu,
            });
            let options = FeatureOptions { input, image_size, input_size, activation, taps: args.taps };
            Ok(export::features(&described, &options)?)
        }
    }
}

/// The configuration in `path`; what it leaves out of OpenAI's U-Net is what the shapes tell.
fn read_config(path: &std::path::Path, recognised: &Architecture) -> anyhow::Result<Architecture> {
    let json: Value = serde_json::from_slice(&fs::read(path)?)?;
    let class = json.get("class").and_then(Value::as_str).context("no `class`")?;
    let kwargs = json.get("init_kwargs").context("no `init_kwargs`")?;
    match (recognised, kwargs) {
        (Architecture::OpenAiUNet(found), Value::Object(kwargs)) => {
            Ok(Architecture::Denoiser(found.completed(class, kwargs)?))
        }
        _ => Ok(Architecture::configured(class, kwargs)?),
    }
}
