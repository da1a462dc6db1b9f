//! Plan of image generation with a graph: starting points, sampler, quantisation.

use std::path::Path;

use anyhow::Context as _;
use d2o_converters::generators::latent::LatentGenerator as _;
use d2o_converters::generators::stylegan2::StyleGan2Config;
use d2o_onnx::graph::Dim;
use d2o_onnx::metadata::{self, Kind, Quantiser};
use d2o_onnx::read::ModelInfo;
use d2o_refs::batch::{ImageDims, container_sha256};
use d2o_runtime::Session;
use ndarray::{Array2, Array4, ArrayD, Axis};
use serde_json::{Value, json};

use super::journal::Part;
use super::latents::{Drawn, Given, LatentSource};
use super::request::{self, Quantise, Rng, SamplingRequest, Seeds};
use super::rng::Family;
use super::sampler::{Ablation, Churn, Consistency, NoiseLevels, Sampler};
use crate::engine::cuda_devices;
use crate::error::with_hint;

/// Largest number of values of a latent or an image: RGB of 2048 × 2048 pixels. Memory for the declared shapes of a
/// graph is allocated before it runs.
pub const MAX_VALUES: usize = 3 << 22;
/// Largest number of classes.
const MAX_CLASSES: usize = 1 << 16;

/// Number of values per image of the graph input or output `name` with the shape `dims`.
///
/// # Errors
/// If the number exceeds [`MAX_VALUES`].
pub fn values_of(name: &str, dims: &[usize]) -> anyhow::Result<usize> {
    let values = dims.iter().try_fold(1_usize, |n, d| n.checked_mul(*d)).filter(|n| *n <= MAX_VALUES);
    values.with_context(|| {
        format!("`{name}`: expected at most {MAX_VALUES} values for an image, found a shape of {dims:?}")
    })
}

/// The quantiser of the images of a model, from its metadata; EDM's if there is none.
///
/// # Errors
/// If a metadata entry has the wrong type.
pub fn quantiser_of(info: &ModelInfo) -> anyhow::Result<Quantiser> {
    Ok(info.described()?.quantiser.unwrap_or(Quantiser::Edm))
}

/// The kind of a graph, from its metadata.
///
/// # Errors
/// If the graph was not exported by d2o.
pub fn kind_of(info: &ModelInfo) -> anyhow::Result<Kind> {
    info.described()?.kind.context("the graph has no metadata `kind`: it was not exported by d2o")
}

/// Plan of image generation.
#[derive(Debug)]
pub struct Plan {
    /// Seeds, one image per seed.
    pub seeds: Vec<u64>,
    /// Rules for drawing starting points.
    pub drawing: LatentSource,
    /// Size of the images.
    pub dims: ImageDims,
    sampler: Sampler,
    quantiser: Quantiser,
}

impl Plan {
    /// The plan for `args` and the graph `info`.
    ///
    /// # Errors
    /// If the graph is not a generator, an option does not apply to it, or latents cannot be read.
    pub fn new(args: &SamplingRequest, info: &ModelInfo) -> anyhow::Result<Self> {
        let sampler = sampler(args, info)?;
        let input = info.inputs.first().context("the graph has no input")?;
        let known = |d: &Dim| if let Dim::Known(n) = d { Some(*n) } else { None };
        let latent: Option<Vec<usize>> = input.dims.iter().skip(1).map(known).collect();
        let latent = latent.filter(|l| matches!(l.len(), 1 | 3));
        let latent = latent.with_context(|| format!("input `{}` is not a batch of images or vectors", input.name))?;
        // The state of a sampler is an image, so only the output of a one-step graph can differ from its input in
        // shape.
        let dims = match (latent.as_slice(), info.output("images").map(|o| o.dims.as_slice())) {
            (_, Some(&[_, Dim::Known(channels), Dim::Known(height), Dim::Known(width)]))
            | (&[channels, height, width], None) => ImageDims { height, width, channels },
            _ => anyhow::bail!("the graph has no image output of fixed size"),
        };
        values_of(&input.name, &latent)?;
        values_of("images", &[dims.channels, dims.height, dims.width])?;
        anyhow::ensure!(
            dims.height > 0 && dims.width > 0,
            "the graph generates images of {} × {} pixels",
            dims.width,
            dims.height
        );
        anyhow::ensure!(matches!(dims.channels, 1 | 3), "expected images of 1 or 3 channels, found {}", dims.channels);
        // Grey images are written as RGB, as evaluators convert them.
        let dims = ImageDims { channels: 3, ..dims };
        let classes = match info.input("class_labels").map(|v| v.dims.as_slice()) {
            Some(&[_, Dim::Known(n)]) => n,
            _ => 0,
        };
        anyhow::ensure!(
            classes <= MAX_CLASSES,
            "`class_labels`: expected at most {MAX_CLASSES} classes, found {classes}"
        );
        match args.class {
            Some(_) if classes == 0 => anyhow::bail!("--class: the generator is unconditional"),
            Some(k) if k >= classes => anyhow::bail!("--class {k}: the generator has classes 0 to {}", classes - 1),
            _ => {}
        }
        let asked = args.seeds.as_deref();
        let given = match &args.latents {
            Some(path) => Some(Given::read(path, &latent, classes, asked)?),
            None => None,
        };
        let Some(seeds) = asked.or(given.as_ref().map(Given::seeds)).map(<[u64]>::to_vec) else {
            return Err(with_hint(anyhow::anyhow!("no seeds"), "pass them with --seeds, e.g. --seeds 0-49999"));
        };
        let noise_first = matches!(sampler, Sampler::Consistency(_));
        let stylegan = info.described()?.class.is_some_and(|c| c == StyleGan2Config::CLASS);
        let rng = args.rng.unwrap_or(if stylegan { Rng::Numpy } else { Rng::TorchCpu });
        let rng = Family::settle(rng, args.rng_gpu, latent.iter().product(), cuda_devices)?;
        let drawing = LatentSource { dims: latent, classes, class: args.class, rng, noise_first, given };
        let quantiser = match args.quantise {
            Some(Quantise::Edm) => Quantiser::Edm,
            Some(Quantise::Openai) => Quantiser::OpenAi,
            None => quantiser_of(info)?,
        };
        Ok(Self { seeds, drawing, dims, sampler, quantiser })
    }

    /// Provenance of the images, which is stored with them.
    ///
    /// # Errors
    /// If the graph at `model` or the latents cannot be read.
    pub fn record(
        &self,
        args: &SamplingRequest,
        model: &Path,
        info: &ModelInfo,
        runtime: &str,
    ) -> anyhow::Result<Value> {
        let rng = self.drawing.rng;
        let threads = rng.threads(self.drawing.dims.iter().product());
        let latents = args.latents.as_deref().map(container_sha256).transpose()?;
        Ok(json!({
            "d2o": env!("CARGO_PKG_VERSION"), "model_sha256": container_sha256(model)?, "network": info.described()?.class,
            "runtime": runtime, "seeds": Seeds::text(&self.seeds), "rng": rng.name(), "rng_gpu_threads": threads, "latents_sha256": latents, "class": args.class,
            "sampler": self.sampler, "evaluations": self.sampler.evaluations(), "quantiser": self.quantiser.name(),
        }))
    }

    /// Classes as one-hot rows `[N, L]`, the input of a conditional network.
    #[must_use]
    pub fn one_hot(&self, drawn: &Drawn) -> Option<ArrayD<f32>> {
        let labels = drawn.labels.as_ref()?;
        let hot = |(i, k): (usize, usize)| f32::from(u8::from(labels[i] == k));
        Some(Array2::from_shape_fn((labels.len(), self.drawing.classes), hot).into_dyn())
    }

    /// Class of each image, if the generator is conditional. Takes as long as drawing the latents.
    #[must_use]
    pub fn labels(&self) -> Option<Vec<i64>> {
        const CHUNK: usize = 1024;
        if self.drawing.classes == 0 {
            return None;
        }
        let labels = self.seeds.chunks(CHUNK).map(|c| self.drawing.draw(c).ok()?.labels);
        let labels: Vec<Vec<usize>> = labels.collect::<Option<_>>()?;
        Some(labels.concat().into_iter().map(|l| l as i64).collect())
    }

    /// Whether sampling is a single evaluation of a graph that contains its noise level.
    #[must_use]
    pub fn is_one_graph(&self) -> bool {
        self.sampler == Sampler::Graph
    }

    /// Computes the images of the starting points `drawn`.
    ///
    /// # Errors
    /// If the session fails, or returns images of another size.
    pub fn sample(&self, session: &mut dyn Session, mut drawn: Drawn) -> anyhow::Result<Part> {
        let one_hot = self.one_hot(&drawn);
        let images: Array4<f64> = self.sampler.sample(session, &drawn.latents, one_hot.as_ref(), &mut drawn.noise)?;
        let mut faults = [0, 0];
        for image in images.outer_iter() {
            faults[0] += usize::from(image.iter().any(|v| !v.is_finite()));
            faults[1] += usize::from(image.iter().all(|v| *v == image[[0, 0, 0]]));
        }
        let pixels = images.mapv(|v| self.quantiser.apply(v)).permuted_axes([0, 2, 3, 1]);
        let shape = (pixels.len_of(Axis(0)), self.dims.height, self.dims.width, self.dims.channels);
        let pixels = pixels.broadcast(shape).context("the graph returned images of another size")?;
        let images = pixels.as_standard_layout().into_owned();
        let labels = drawn.labels.map(|l| l.into_iter().map(|l| l as i64).collect());
        Ok(Part { images, labels, faults })
    }
}

/// The sampler for `args` and the graph `info`.
fn sampler(args: &SamplingRequest, info: &ModelInfo) -> anyhow::Result<Sampler> {
    use request::Sampler as Asked;
    let metadata = info.described()?;
    let kwargs =
        metadata.init_kwargs.as_deref().and_then(|t| serde_json::from_str::<Value>(t).ok()).unwrap_or_default();
    let karras = metadata.class.as_deref() == Some("KarrasDenoiser");
    let distilled = karras && kwargs.get("distillation") == Some(&Value::Bool(true));
    let one_step = match kind_of(info)? {
        Kind::OneStep => true,
        Kind::Denoiser => false,
        kind => anyhow::bail!("the graph is of kind {}, not a generator", kind.name()),
    };
    let trained = metadata.sampler.filter(|_| !one_step).map(|sampler| match sampler {
        metadata::Sampler::TwoStep => Asked::TwoStep,
        metadata::Sampler::MultiStep => Asked::MultiStep,
    });
    let asked = match (args.sampler.or(trained), one_step) {
        (None, true) => Asked::OneStep,
        (None, false) if distilled => Asked::Consistency,
        (None, false) => Asked::Heun,
        (Some(s), false) | (Some(s @ (Asked::OneStep | Asked::Sid)), true) => s,
        (Some(_), true) => anyhow::bail!("the sampler requires a graph of kind denoiser, found one-step"),
    };
    let ablation = args.solver.is_some() || args.disc.is_some() || args.schedule.is_some() || args.scaling.is_some();
    let churning = (args.s_churn, args.s_min, args.s_max, args.s_noise) != (0.0, 0.0, f64::INFINITY, 1.0);
    let steps = matches!(asked, Asked::Heun | Asked::MultiStep | Asked::Consistency);
    let belongs = [
        ("--num-steps", args.num_steps.is_some(), steps),
        ("--sigma-min", args.sigma_min.is_some(), steps),
        ("--sigma-max", args.sigma_max.is_some(), !one_step),
        ("--s-churn, --s-min, --s-max, --s-noise", churning, asked == Asked::Heun),
        ("--solver, --disc, --schedule, --scaling", ablation, asked == Asked::Heun),
        ("--alpha", args.alpha.is_some(), asked == Asked::Heun && ablation),
        ("--middle", args.middle.is_some(), asked == Asked::TwoStep),
        ("--ts", !args.ts.is_empty(), asked == Asked::Consistency),
    ];
    if let Some((option, ..)) = belongs.iter().find(|(_, given, fits)| *given && !fits) {
        anyhow::bail!("{option}: not supported by this sampler");
    }
    // Recorded settings apply only to the sampler that the network was trained for.
    let recorded = trained == Some(asked);
    let grid = NoiseLevels {
        steps: args.num_steps.or(metadata.num_steps.filter(|_| recorded)).unwrap_or(if karras { 40 } else { 18 }),
        sigma_min: args.sigma_min.unwrap_or(0.002),
        sigma_max: args.sigma_max.unwrap_or(80.0),
        rho: args.rho,
    };
    anyhow::ensure!((2..=4096).contains(&grid.steps), "expected 2 to 4096 steps, the graph records {}", grid.steps);
    anyhow::ensure!(
        grid.sigma_min > 0.0 && grid.sigma_min < grid.sigma_max && grid.rho > 0.0,
        "--sigma-min must lie between 0 and --sigma-max, --rho above 0"
    );
    let churn = Churn { churn: args.s_churn, min: args.s_min, max: args.s_max, noise: args.s_noise, single: karras };
    anyhow::ensure!(churn.churn >= 0.0 && churn.churn.is_finite(), "--s-churn: expected a number of at least 0");
    Ok(match asked {
        Asked::OneStep if one_step => Sampler::Graph,
        Asked::Sid if one_step => {
            let sigma = metadata.sigma_max;
            let found = sigma.map_or_else(|| "none".to_owned(), |s| s.to_string());
            anyhow::ensure!(
                sigma == Some(2.5),
                "SiD starts at noise level 2.5, this graph at {found}: export it again with `--sigma-max 2.5`"
            );
            Sampler::Graph
        }
        Asked::OneStep => Sampler::OneStep { sigma: grid.sigma_max },
        Asked::Sid => Sampler::OneStep { sigma: args.sigma_max.unwrap_or(2.5) },
        Asked::TwoStep => {
            let middle = args.middle.or(metadata.middle.filter(|_| recorded)).unwrap_or(1.0);
            anyhow::ensure!(middle > 0.0 && middle < grid.sigma_max, "--middle must lie between 0 and --sigma-max");
            Sampler::TwoStep { sigma_max: grid.sigma_max, middle }
        }
        Asked::MultiStep => Sampler::MultiStep(grid),
        Asked::Heun if ablation => Sampler::Ablation(Box::new(Ablation {
            steps: grid.steps,
            sigma_min: args.sigma_min,
            sigma_max: args.sigma_max,
            rho: args.rho,
            solver: args.solver.unwrap_or(request::Solver::Heun),
            discretization: args.disc.unwrap_or(request::Discretization::Edm),
            schedule: args.schedule.unwrap_or(request::Schedule::Linear),
            scaling: args.scaling.unwrap_or(request::Scaling::None),
            alpha: args.alpha.unwrap_or(1.0),
            churn,
        })),
        Asked::Heun => Sampler::Edm { grid, churn },
        Asked::Consistency => {
            let within = args.ts.len() != 1 && args.ts.iter().all(|t| *t < grid.steps);
            anyhow::ensure!(within, "--ts: expected two or more indices below --num-steps {}", grid.steps);
            Sampler::Consistency(Consistency { ts: args.ts.clone(), grid })
        }
    })
}
