//! `d2o export`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context as _;
use d2o_converters::checkpoint::{TensorInfo, TensorSource};
use d2o_converters::denoiser::NetConfig;
use d2o_converters::export::{self, Exported, FeatureOptions, GeneratorOptions, Options, PixelInput};
use d2o_converters::extractors::{Activation, Hyperparameters, Takes};
use d2o_converters::generators::latent::SynthesisOptions;
use d2o_converters::known::{Generator, Match};
use d2o_converters::preprocess::Resize;
use d2o_converters::published::WeightsState;
use d2o_converters::{Architecture, Checkpoint, Network};
use d2o_files::Scratch;
use d2o_onnx::graph::Model;
use d2o_onnx::metadata::{Metadata, Precision};
use d2o_onnx::winograd::DEFAULT_THRESHOLD;
use d2o_onnx::write;
use d2o_refs::batch::container_sha256;
use fs_err as fs;
use serde_json::Value;

use super::ExitStatus;
use super::known::published;
use super::verify::{against, check};
use crate::cli::{ActivationArg, Export, Global, Kind, NoiseArg, PixelType, PrecisionArg};
use crate::error::with_hint;
use crate::outputs::ensure_new_file;
use crate::printer::{Printer, Progress};

/// Number of inputs of the check after an export.
const CHECKED: usize = 2;
/// Largest difference between runtimes that this check accepts, relative to the largest output.
const TOLERANCE: f64 = 2e-5;
/// The same for graphs in f16: tract sums in f16, where the error of a sum of n terms grows with √n: 2⁻¹¹·√4608 = 3e-2
/// for 3x3 convolutions of 512 channels.
const HALF_TOLERANCE: f64 = 5e-2;
/// Largest accepted difference between the f16 and f32 graphs on one runtime that sums in f32, relative to the largest
/// output.
const HALF_DIFFERENCE: f64 = 2e-2;
/// Scopes that stay in f32 in a graph in f16.
const SINGLE: [&str; 4] = ["precond", "preprocess", "quantise", "mapping"];

/// Exports a checkpoint as a graph, and checks the graph on the available runtimes. The exit status is
/// [`ExitStatus::No`] if the runtimes differ.
///
/// # Errors
/// If the checkpoint cannot be read or is unknown, its tensors do not match the network exactly, f16 changes the
/// outputs too much, or a runtime fails.
pub fn run(args: &Export, global: &Global, printer: Printer) -> anyhow::Result<ExitStatus> {
    ensure_new_file(&args.out, args.output.overwrite)?;
    let start = Instant::now();
    let cannot = || format!("cannot export `{}`", args.source.display());
    let (mut exported, network) = graph(args, printer).with_context(cannot)?;
    if args.winograd {
        exported.model = winograd(exported.model, args, printer).with_context(cannot)?;
    }
    if args.precision == PrecisionArg::Fp16 {
        exported.model = half(&exported.model, args, global, printer).with_context(cannot)?;
    }
    let stage = printer.stage("write the graph");
    write::write(&exported.model, &args.out).with_context(|| format!("write `{}`", args.out.display()))?;
    drop(stage);
    printer.note(&format!(
        "`{}`: {} tensors, {} parameters, {:.2} s",
        args.out.display(),
        exported.report.tensors,
        exported.report.scalars,
        start.elapsed().as_secs_f64()
    ));
    if let Some(weights) = &exported.weights {
        printer.note(&describe(weights));
    }
    if args.no_check {
        return Ok(ExitStatus::Done);
    }
    let tolerance = if args.precision == PrecisionArg::Fp16 { HALF_TOLERANCE } else { TOLERANCE };
    let stage = printer.stage("check the graph on the runtimes");
    let comparison = check(&args.out, &network, CHECKED, tolerance, global)
        .context("the graph was written, but could not be checked (--no-check skips the check)")?;
    drop(stage);
    for output in &comparison.outputs {
        printer.note(&format!(
            "checked `{}` on {} and {}: largest difference {:.1e} of the largest value",
            output.name, comparison.reference, output.runtime, output.max_rel
        ));
    }
    if !cfg!(feature = "train") {
        printer.note("not checked against libtorch: this d2o was built without it (feature `train`)");
    }
    Ok(if comparison.agree { ExitStatus::Done } else { ExitStatus::No })
}

/// Text on whether the weights of a feature network are published, with their digests.
fn describe(weights: &WeightsState) -> String {
    let mut text = format!("weights: {weights}");
    if let Some(digest) = &weights.digest {
        text += &format!(", digest {digest}");
    }
    if let Some(head) = &weights.head_digest {
        text += &format!(", head digest {head}");
    }
    text
}

/// `model` with its wide convolutions replaced by Winograd convolutions, recorded in its metadata.
fn winograd(model: Model, args: &Export, printer: Printer) -> anyhow::Result<Model> {
    anyhow::ensure!(args.precision == PrecisionArg::Fp32, "--winograd requires `--precision fp32`");
    let stage = printer.stage("transform the convolutions");
    let (model, count) = model.to_winograd(DEFAULT_THRESHOLD)?;
    drop(stage);
    if count == 0 {
        printer.warn(
            "--winograd: no convolution of this network is wide enough to benefit; the graph keeps plain convolutions",
        );
        return Ok(model);
    }
    printer.note(&format!("{count} convolutions written as Winograd F(4, 3)"));
    let winograd = Some(format!("F(4, 3) in {count} convolutions"));
    Ok(model.with_metadata(&Metadata { winograd, ..Metadata::default() }))
}

/// `model` in f16. The difference of its outputs from f32 is measured, unless `--no-check` is given, and recorded in
/// its metadata.
fn half(model: &Model, args: &Export, global: &Global, printer: Printer) -> anyhow::Result<Model> {
    let narrow = model
        .to_f16(&SINGLE)
        .map_err(|error| with_hint(error.into(), "leave out `--precision fp16`: this network needs f32"))?;
    let described = |difference: String| Metadata {
        precision: Some(Precision::Fp16),
        fp16_difference: Some(difference),
        ..Metadata::default()
    };
    if args.no_check {
        return Ok(narrow.with_metadata(&described("not measured".to_owned())));
    }
    let dir = Scratch::new()?;
    let stage = printer.stage("measure the error of f16");
    let (full, reduced) = (dir.path().join("fp32.onnx"), dir.path().join("fp16.onnx"));
    write::write(model, &full)?;
    write::write(&narrow, &reduced)?;
    let comparison =
        against(&full, &reduced, CHECKED, global).context("cannot measure the error of f16 (--no-check skips it)")?;
    drop(stage);
    let mut worst = 0.0_f64;
    for output in &comparison.outputs {
        anyhow::ensure!(output.not_finite == 0, "`{}` contains NaN or infinity in f16", output.name);
        worst = worst.max(output.max_rel);
        let (name, rel, snr) = (&output.name, output.max_rel, output.snr_db.unwrap_or(f64::INFINITY));
        printer.note(&format!("f16: `{name}` differs by {rel:.1e} of the largest value, {snr:.1} dB below the signal"));
    }
    anyhow::ensure!(
        worst <= HALF_DIFFERENCE,
        "f16 changes outputs by {worst:.1e} of the largest value, more than {HALF_DIFFERENCE:.0e}: this network requires f32 (--no-check exports it anyway)"
    );
    Ok(narrow.with_metadata(&described(format!("{worst:.1e} of the largest value, {CHECKED} inputs"))))
}

/// Tensors that show progress as they are read.
#[derive(Debug)]
struct Counted {
    tensors: Arc<dyn TensorSource>,
    progress: Mutex<Option<Progress>>,
}

impl TensorSource for Counted {
    fn names(&self) -> Vec<String> {
        self.tensors.names()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.tensors.info(name)
    }

    fn read_f32(&self, name: &str) -> d2o_converters::checkpoint::Result<Vec<f32>> {
        if let Some(progress) = self.progress.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            progress.advance(1);
        }
        self.tensors.read_f32(name)
    }
}

/// Builds the graph. Also returns the network.
fn graph(args: &Export, printer: Printer) -> anyhow::Result<(Exported, Network)> {
    let checkpoint = Checkpoint::open(&args.source)?;
    for note in &checkpoint.notes {
        printer.warn(note);
    }
    let network = checkpoint.network(args.net.as_deref())?;
    if let (None, [_, _, ..]) = (&args.net, checkpoint.networks.as_slice()) {
        let others = checkpoint.networks.iter().filter(|n| n.name != network.name);
        let others: Vec<_> = others.map(|n| format!("`{}`", n.name)).collect();
        printer.note(&format!(
            "exporting network `{}` of the checkpoint (--net selects another: {})",
            network.name,
            others.join(", ")
        ));
    }
    let architecture = match &args.config {
        Some(path) => {
            read_config(path, &network.architecture).with_context(|| format!("cannot use `{}`", path.display()))?
        }
        None => network.architecture.clone(),
    };
    let network = network.described_as(architecture);
    // The tensors of a feature network are read twice: for the graph and for the digest.
    let reads = if network.architecture.extractor().is_some() { 2 } else { 1 };
    let total = reads * network.tensors.names().len() as u64;
    let progress = Mutex::new(Some(printer.progress_of("export", "tensors", total)));
    let counted = Arc::new(Counted { tensors: Arc::clone(&network.tensors), progress });
    let defaults = Defaults::of(args, &checkpoint, &network, printer)?;
    let mut exported = build(args, &network.with_tensors(counted.clone()), &defaults, printer)?;
    if defaults.recorded != Metadata::default() {
        exported.model = exported.model.with_metadata(&defaults.recorded);
    }
    if let Some(progress) = counted.progress.lock().unwrap_or_else(PoisonError::into_inner).take() {
        progress.finish();
    }
    Ok((exported, network))
}

/// Defaults from the checkpoint, for options that are not given.
#[derive(Debug, Default)]
struct Defaults {
    kind: Option<Kind>,
    sigma_max: Option<f64>,
    /// Entries for the metadata of the graph.
    recorded: Metadata,
}

impl Defaults {
    /// The defaults of a snapshot of d2o or of a published checkpoint; none for other checkpoints.
    fn of(args: &Export, checkpoint: &Checkpoint, network: &Network, printer: Printer) -> anyhow::Result<Self> {
        let entries: BTreeMap<String, String> = checkpoint.metadata.iter().cloned().collect();
        if entries.contains_key("d2o_version") {
            let Metadata { sampler, num_steps, middle, .. } = Metadata::read(&entries)?;
            return Ok(Self {
                recorded: Metadata { sampler, num_steps, middle, ..Metadata::default() },
                ..Self::default()
            });
        }
        if network.architecture.extractor().is_some() {
            return Ok(Self::default());
        }
        let class =
            network.architecture.denoiser().map_or_else(|_| network.architecture.name(), |d| d.class().to_owned());
        let Some((known, by)) = published(&args.source, &class)? else { return Ok(Self::default()) };
        let how = match by {
            Match::Hash => "by its SHA-256",
            Match::Prefix => "by its name and the first 8 digits of its SHA-256",
            _ => "by its name; its SHA-256 is not published",
        };
        printer.note(&format!("the checkpoint is `{}`, recognised {how} (`d2o known {}`)", known.title, known.name));
        let generator = known.generator();
        let one_step = generator.and_then(Generator::is_one_step);
        Ok(Self {
            kind: one_step.map(|one_step| if one_step { Kind::OneStep } else { Kind::Denoiser }),
            sigma_max: generator.and_then(Generator::one_step_sigma),
            recorded: Metadata { known: Some(known.name.clone()), ..Metadata::default() },
        })
    }
}

fn build(args: &Export, network: &Network, defaults: &Defaults, printer: Printer) -> anyhow::Result<Exported> {
    let features = network.architecture.extractor().is_some();
    let kind = match (args.kind, defaults.recorded.sampler) {
        (None, Some(sampler)) => {
            printer.note(&format!("the network was trained for {} sampling; exporting a denoiser", sampler.name()));
            Kind::Denoiser
        }
        (Some(Kind::OneStep), Some(sampler)) => {
            printer.warn(&format!(
                "--kind one-step: the network was trained for {} sampling; the graph computes the first step only",
                sampler.name()
            ));
            Kind::OneStep
        }
        (kind, _) => kind.or(defaults.kind).unwrap_or(if features { Kind::Features } else { Kind::OneStep }),
    };
    ensure_used(args, kind, &network.architecture)?;
    let denoiser = |kind| {
        let sigma_max = args.sigma_max.or(defaults.sigma_max).unwrap_or(Options::default().sigma_max);
        anyhow::ensure!(sigma_max > 0.0, "--sigma-max: expected a number above 0, found {sigma_max}");
        Ok(export::denoiser(network, &Options { kind, sigma_max, uint8: args.uint8 })?)
    };
    match kind {
        Kind::OneStep if matches!(network.architecture, Architecture::Generator(_)) => {
            let synthesis = SynthesisOptions {
                truncation_psi: args.truncation_psi.unwrap_or(1.0),
                truncation_cutoff: args.truncation_cutoff,
                noise: args.noise != Some(NoiseArg::None),
            };
            Ok(export::generator(network, &GeneratorOptions { synthesis, uint8: args.uint8 })?)
        }
        Kind::OneStep => denoiser(export::Kind::OneStep),
        Kind::Denoiser => denoiser(export::Kind::Denoiser),
        Kind::Features => {
            let options = feature_options(args, &network.architecture)?;
            Ok(export::features(network, &options, &container_sha256(&args.source)?)?)
        }
    }
}

fn feature_options(args: &Export, architecture: &Architecture) -> anyhow::Result<FeatureOptions> {
    let extractor = architecture.extractor();
    let input_size = args.input_size.or(extractor.map(|e| e.input_size())).unwrap_or(1);
    let image_size = args.image_size.unwrap_or(input_size);
    anyhow::ensure!(input_size > 0 && image_size > 0, "--input-size, --image-size: expected at least 1");
    let input = match args.input.unwrap_or(PixelType::U8) {
        PixelType::U8 => PixelInput::U8,
        PixelType::F32 => PixelInput::F32,
    };
    if input == PixelInput::F32 && (args.fuse_resize || image_size != input_size) {
        let what = format!("--input f32: the graph takes images that are already resized to {input_size} pixels");
        return Err(with_hint(anyhow::anyhow!(what), "omit `--image-size` and `--fuse-resize`"));
    }
    let on_request = extractor.is_some_and(|e| e.preprocessing().resize == Resize::TensorFlow);
    if on_request && image_size != input_size && !args.fuse_resize {
        let what = format!("the images have {image_size} pixels, the network expects {input_size}");
        let hint = "add `--fuse-resize` to resize inside the graph with TensorFlow 1's bilinear filter, as the original FID and torch-fidelity do, or \
                    `--input f32` to let d2o resize according to the protocol";
        return Err(with_hint(anyhow::anyhow!(what), hint));
    }
    let activation = args.activation.map(|a| match a {
        ActivationArg::Gelu => Activation::Gelu,
        ActivationArg::QuickGelu => Activation::QuickGelu,
    });
    let hyperparameters = Hyperparameters { activation, head_width: args.head_width };
    Ok(FeatureOptions { input, image_size, input_size, hyperparameters, taps: args.taps })
}

/// Refuses options that have no effect on a graph of `kind` and `architecture`.
fn ensure_used(args: &Export, kind: Kind, architecture: &Architecture) -> anyhow::Result<()> {
    if matches!(architecture, Architecture::Unknown | Architecture::Unsupported(_)) {
        // The network cannot be exported, which is reported elsewhere.
        return Ok(());
    }
    let style = matches!(architecture, Architecture::Generator(_));
    let features = kind == Kind::Features;
    let extractor = architecture.extractor().filter(|_| features);
    let takes = extractor.map_or_else(Takes::default, |e| e.takes());
    let resizes = extractor.is_none_or(|e| e.preprocessing().resize == Resize::TensorFlow);
    let given = [
        ("--sigma-max", args.sigma_max.is_some(), kind == Kind::OneStep && !style),
        ("--uint8", args.uint8, !features),
        ("--truncation-psi", args.truncation_psi.is_some(), style),
        ("--truncation-cutoff", args.truncation_cutoff.is_some(), style),
        ("--noise", args.noise.is_some(), style),
        ("--input", args.input.is_some(), features),
        ("--image-size", args.image_size.is_some(), features),
        ("--input-size", args.input_size.is_some(), features),
        ("--fuse-resize", args.fuse_resize, features && resizes),
        ("--activation", args.activation.is_some(), takes.activation),
        ("--head-width", args.head_width.is_some(), takes.head_width),
        ("--taps", args.taps, takes.taps),
    ];
    let unused: Vec<_> = given.iter().filter(|(_, given, used)| *given && !used).map(|(name, ..)| *name).collect();
    let what = match kind {
        Kind::OneStep => "one-step",
        Kind::Denoiser => "denoiser",
        Kind::Features => "features",
    };
    anyhow::ensure!(unused.is_empty(), "{}: not used by a {what} graph of {}", unused.join(", "), architecture.name());
    Ok(())
}

/// The configuration in `path`, completed by the arguments inferred from tensor shapes.
fn read_config(path: &std::path::Path, recognised: &Architecture) -> anyhow::Result<Architecture> {
    let json: Value = serde_json::from_slice(&fs::read(path)?)?;
    let class = json.get("class").and_then(Value::as_str).context("no `class`")?;
    let kwargs = json.get("init_kwargs").context("no `init_kwargs`")?;
    match (recognised, kwargs) {
        (Architecture::Inferred(inferred), Value::Object(kwargs)) => {
            Ok(Architecture::Denoiser(NetConfig::completed(inferred, class, kwargs)?))
        }
        _ => Ok(Architecture::configured(class, kwargs)?),
    }
}
