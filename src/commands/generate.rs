//! `d2o generate`.

use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::Context as _;
use d2o_converters::config::Quantiser;
use d2o_onnx::graph::Dim;
use d2o_onnx::read::ModelInfo;
use d2o_onnx::session::Session;
use d2o_refs::batch::{ImageDims, container_sha256};
use ndarray::{Array2, Array4, ArrayD};
use serde_json::{Value, json};

use super::ExitStatus;
use super::verify::{kind_of, quantiser_of};
use crate::cli::{self, Generate, Global, Quantise, Rng, Seeds};
use crate::generate::journal::{Journal, Part};
use crate::generate::latents::{Drawing, Drawn, Given, LatentsWriter};
use crate::generate::sampler::{Ablation, Churn, Consistency, Grid as Levels, Sampler};
use crate::generate::sink::{Form, Grid, Sink};
use crate::interrupt;
use crate::printer::{Printer, Progress};
use crate::runtime;

/// Batches that may wait between two stages.
const AHEAD: usize = 2;

/// Draws images.
///
/// # Errors
/// A graph that is no generator, options that do not fit it, a failing runtime, writing errors.
pub fn run(args: &Generate, global: &Global, printer: Printer) -> anyhow::Result<ExitStatus> {
    let mut session = runtime::open(&args.model, args.provider, global, printer)?;
    let info = session.model().clone();
    let cannot = || format!("cannot generate with `{}`", args.model.display());
    let plan = Plan::new(args, &info).with_context(cannot)?;
    Form::of(&args.out)?;
    let seeds = plan.seeds.as_slice();
    let record = plan.record(args, &info, session.runtime())?;
    let mut expected = record.clone();
    expected["batch"] = args.batch.into();
    expected["subdirs"] = args.subdirs.into();
    let journal = Journal::open(&args.out, &expected, args.resume)?;
    let mut progress = printer.progress("generate", seeds.len() as u64);
    let resumed = journal.done();
    if resumed > 0 {
        printer.note(&format!("{resumed} of {} images are there already", seeds.len()));
        progress.skip(resumed as u64);
    }
    let writer = Writer::new(args, &plan, journal)?;
    let (drawn_in, drawn) = sync_channel(AHEAD);
    let (parts, parts_out) = sync_channel(AHEAD);
    let faults = std::thread::scope(|scope| -> anyhow::Result<Option<[usize; 2]>> {
        let (drawing, save, batch, record) =
            (&plan.drawing, args.save_latents.as_deref(), args.batch as usize, &record);
        let drawer = scope.spawn(move || draw(drawing, seeds, resumed, batch, save, &drawn_in));
        let writing = scope.spawn(move || writer.run(parts_out, record));
        let computed = plan.compute(session.as_mut(), drawn, parts, &mut progress);
        let written = writing.join().map_err(|_| anyhow::anyhow!("writing failed"))?;
        let drawn = drawer.join().map_err(|_| anyhow::anyhow!("drawing failed"))?;
        computed?;
        drawn?;
        written
    })?;
    progress.finish();
    let Some([not_finite, constant]) = faults else {
        anyhow::bail!("interrupted; --resume continues `{}`", args.out.display());
    };
    if not_finite > 0 {
        printer.warn(&format!("{not_finite} images hold values that are not finite"));
    }
    if constant > 0 {
        printer.warn(&format!("{constant} images are of a single value"));
    }
    printer.note(&format!("{} images in `{}` ({})", seeds.len(), args.out.display(), session.runtime()));
    Ok(ExitStatus::Done)
}

/// Draws the starting points of every batch after the first `resumed` images; with `save`, of all.
fn draw(
    drawing: &Drawing,
    seeds: &[u64],
    resumed: usize,
    batch: usize,
    save: Option<&Path>,
    to: &SyncSender<Drawn>,
) -> anyhow::Result<()> {
    let mut file = save.map(|p| LatentsWriter::create(p, seeds.len(), drawing.dims)).transpose()?;
    let first = if file.is_some() { 0 } else { resumed };
    for (i, chunk) in seeds[first..].chunks(batch).enumerate() {
        let drawn = drawing.draw(chunk)?;
        if let Some(file) = &mut file {
            file.append(drawn.latents.view(), drawn.labels.as_deref())?;
        }
        if first + i * batch >= resumed && to.send(drawn).is_err() {
            return Ok(());
        }
    }
    file.map_or(Ok(()), |f| f.finish(seeds))
}

/// Encodes and writes batches as they come, in a thread of its own.
struct Writer<'a> {
    out: &'a Path,
    seeds: &'a [u64],
    dims: ImageDims,
    subdirs: bool,
    journal: Journal,
    grid: Option<Grid>,
}

impl<'a> Writer<'a> {
    fn new(args: &'a Generate, plan: &'a Plan, journal: Journal) -> anyhow::Result<Self> {
        let [channels, height, width] = plan.drawing.dims;
        let dims = ImageDims { height, width, channels };
        let grid = args.grid.as_ref().map(|path| Grid::new(path, args.grid_size as usize, dims));
        Ok(Self { out: &args.out, seeds: &plan.seeds, dims, subdirs: args.subdirs, journal, grid })
    }

    /// Numbers of images that are not finite and that are constant; `None` if the images ended early.
    fn run(mut self, parts: Receiver<Part>, record: &Value) -> anyhow::Result<Option<[usize; 2]>> {
        let mut sink = Sink::create(self.out, self.journal.folder(), self.seeds, self.dims, self.subdirs)?;
        let mut grid = self.grid.take();
        let (mut faults, mut count) = ([0, 0], 0);
        let mut take = |part: &Part| -> anyhow::Result<()> {
            if let Some(grid) = &mut grid {
                grid.add(&part.images);
            }
            faults = [faults[0] + part.faults[0], faults[1] + part.faults[1]];
            count += part.images.dim().0;
            sink.append(&part.images, part.labels.as_deref())
        };
        self.journal.replay(self.dims, |part| take(&part))?;
        for part in parts {
            take(&part)?;
            self.journal.append(part)?;
        }
        if count < self.seeds.len() {
            self.journal.flush()?;
            return Ok(None);
        }
        sink.finish(record)?;
        if let Some(grid) = grid {
            grid.save()?;
        }
        self.journal.remove()?;
        Ok(Some(faults))
    }
}

/// How images are made.
struct Plan {
    seeds: Vec<u64>,
    drawing: Drawing,
    sampler: Sampler,
    quantiser: Quantiser,
}

impl Plan {
    fn new(args: &Generate, info: &ModelInfo) -> anyhow::Result<Self> {
        let sampler = sampler(args, info)?;
        let input = info.inputs.first().context("the graph has no input")?;
        let &[_, Dim::Known(c), Dim::Known(h), Dim::Known(w)] = input.dims.as_slice() else {
            anyhow::bail!("input `{}` is no batch of images", input.name);
        };
        anyhow::ensure!(c == 3, "images of {c} channels cannot be written");
        let classes = match info.input("class_labels").map(|v| v.dims.as_slice()) {
            Some(&[_, Dim::Known(n)]) => n,
            _ => 0,
        };
        match args.class {
            Some(_) if classes == 0 => anyhow::bail!("--class: the generator is unconditional"),
            Some(k) if k >= classes => anyhow::bail!("--class {k}: the generator has classes 0 to {}", classes - 1),
            _ => {}
        }
        let dims = [c, h, w];
        let asked = args.seeds.as_ref().map(|s| s.0.as_slice());
        let given = match &args.latents {
            Some(path) => Some(Given::read(path, dims, classes, asked)?),
            None => None,
        };
        let seeds = asked.or(given.as_ref().map(Given::seeds)).unwrap_or(&[]).to_vec();
        let noise_first = matches!(sampler, Sampler::Consistency(_));
        let drawing = Drawing { dims, classes, class: args.class, rng: args.rng, noise_first, given };
        let quantiser = match args.quantise {
            Some(Quantise::Edm) => Quantiser::Edm,
            Some(Quantise::Openai) => Quantiser::OpenAi,
            None => quantiser_of(info),
        };
        Ok(Self { seeds, drawing, sampler, quantiser })
    }

    /// Where the images come from: what is kept with them.
    fn record(&self, args: &Generate, info: &ModelInfo, runtime: &str) -> anyhow::Result<Value> {
        let rng = match self.drawing.rng {
            Rng::TorchCpu => "torch-cpu",
            Rng::TorchCuda => "torch-cuda",
        };
        let latents = args.latents.as_deref().map(container_sha256).transpose()?;
        Ok(json!({
            "d2o": env!("CARGO_PKG_VERSION"), "model_sha256": container_sha256(&args.model)?, "network": info.metadata.get("class"),
            "runtime": runtime, "seeds": Seeds::text(&self.seeds), "rng": rng, "latents_sha256": latents, "class": args.class,
            "sampler": self.sampler, "evaluations": self.sampler.evaluations(), "quantiser": self.quantiser.name(),
        }))
    }

    /// Turns starting points into images until there are no more, or the user asks to stop.
    fn compute(
        &self,
        session: &mut dyn Session,
        drawn: Receiver<Drawn>,
        parts: SyncSender<Part>,
        progress: &mut Progress,
    ) -> anyhow::Result<()> {
        for drawn in drawn {
            let count = drawn.latents.dim().0;
            // A closed channel means that writing failed, which tells its own error.
            if interrupt::asked() || parts.send(self.sample(session, drawn)?).is_err() {
                break;
            }
            progress.advance(count as u64);
        }
        Ok(())
    }

    fn sample(&self, session: &mut dyn Session, mut drawn: Drawn) -> anyhow::Result<Part> {
        let classes = self.drawing.classes;
        let one_hot: Option<ArrayD<f32>> = drawn.labels.as_ref().map(|labels| {
            Array2::from_shape_fn((labels.len(), classes), |(i, k)| f32::from(u8::from(labels[i] == k))).into_dyn()
        });
        let images: Array4<f64> = self.sampler.sample(session, &drawn.latents, one_hot.as_ref(), &mut drawn.noise)?;
        let mut faults = [0, 0];
        for image in images.outer_iter() {
            faults[0] += usize::from(image.iter().any(|v| !v.is_finite()));
            faults[1] += usize::from(image.iter().all(|v| *v == image[[0, 0, 0]]));
        }
        let pixels = images.mapv(|v| self.quantiser.apply(v)).permuted_axes([0, 2, 3, 1]);
        let images = pixels.as_standard_layout().into_owned();
        let labels = drawn.labels.map(|l| l.into_iter().map(|l| l as i64).collect());
        Ok(Part { images, labels, faults })
    }
}

/// The sampler that `args` ask for around a graph.
fn sampler(args: &Generate, info: &ModelInfo) -> anyhow::Result<Sampler> {
    use cli::Sampler as Asked;
    let class = info.metadata.get("class").map(String::as_str);
    let kwargs: Value = info.metadata.get("init_kwargs").and_then(|t| serde_json::from_str(t).ok()).unwrap_or_default();
    let karras = class == Some("KarrasDenoiser");
    let distilled = karras && kwargs.get("distillation") == Some(&Value::Bool(true));
    let one_step = match kind_of(info)? {
        "one-step" => true,
        "denoiser" => false,
        kind => anyhow::bail!("the graph is of kind {kind}, not a generator"),
    };
    let asked = match (args.sampler, one_step) {
        (None, true) => Asked::OneStep,
        (None, false) if distilled => Asked::Consistency,
        (None, false) => Asked::Heun,
        (Some(s), false) | (Some(s @ (Asked::OneStep | Asked::Sid)), true) => s,
        (Some(_), true) => anyhow::bail!("the sampler needs a graph of kind denoiser, this one is of kind one-step"),
    };
    let ablation = args.solver.is_some() || args.disc.is_some() || args.schedule.is_some() || args.scaling.is_some();
    let churning = (args.s_churn, args.s_min, args.s_max, args.s_noise) != (0.0, 0.0, f64::INFINITY, 1.0);
    let steps = matches!(asked, Asked::Heun | Asked::MultiStep | Asked::Consistency);
    let belongs = [
        ("--num-steps", args.num_steps.is_some(), steps),
        ("--sigma-min", args.sigma_min.is_some(), steps),
        ("--sigma-max", args.sigma_max.is_some(), !one_step),
        ("--s-churn and its companions", churning, asked == Asked::Heun),
        ("--solver, --disc, --schedule, --scaling", ablation, asked == Asked::Heun),
        ("--alpha", args.alpha.is_some(), asked == Asked::Heun && ablation),
        ("--middle", args.middle.is_some(), asked == Asked::TwoStep),
        ("--ts", !args.ts.is_empty(), asked == Asked::Consistency),
    ];
    if let Some((option, ..)) = belongs.iter().find(|(_, given, fits)| *given && !fits) {
        anyhow::bail!("{option}: the sampler does not take it");
    }
    let grid = Levels {
        steps: args.num_steps.unwrap_or(if karras { 40 } else { 18 }),
        sigma_min: args.sigma_min.unwrap_or(0.002),
        sigma_max: args.sigma_max.unwrap_or(80.0),
        rho: args.rho,
    };
    anyhow::ensure!(
        grid.sigma_min > 0.0 && grid.sigma_min < grid.sigma_max && grid.rho > 0.0,
        "--sigma-min must lie between 0 and --sigma-max, --rho above 0"
    );
    let churn = Churn { churn: args.s_churn, min: args.s_min, max: args.s_max, noise: args.s_noise, single: karras };
    anyhow::ensure!(churn.churn >= 0.0 && churn.churn.is_finite(), "--s-churn: expected a number from 0");
    Ok(match asked {
        Asked::OneStep if one_step => Sampler::Graph,
        Asked::Sid if one_step => {
            let sigma = info.metadata.get("sigma_max").map_or("nothing", String::as_str);
            anyhow::ensure!(sigma == "2.5", "SiD starts from noise level 2.5, the graph from {sigma}: export it anew");
            Sampler::Graph
        }
        Asked::OneStep => Sampler::OneStep { sigma: grid.sigma_max },
        Asked::Sid => Sampler::OneStep { sigma: args.sigma_max.unwrap_or(2.5) },
        Asked::TwoStep => Sampler::TwoStep { sigma_max: grid.sigma_max, middle: args.middle.unwrap_or(1.0) },
        Asked::MultiStep => Sampler::MultiStep(grid),
        Asked::Heun if ablation => Sampler::Ablation(Box::new(Ablation {
            steps: grid.steps,
            sigma_min: args.sigma_min,
            sigma_max: args.sigma_max,
            rho: args.rho,
            solver: args.solver.unwrap_or(cli::Solver::Heun),
            discretization: args.disc.unwrap_or(cli::Discretization::Edm),
            schedule: args.schedule.unwrap_or(cli::Schedule::Linear),
            scaling: args.scaling.unwrap_or(cli::Scaling::None),
            alpha: args.alpha.unwrap_or(1.0),
            churn,
        })),
        Asked::Heun => Sampler::Edm { grid, churn },
        Asked::Consistency => {
            let within = args.ts.len() != 1 && args.ts.iter().all(|t| *t < grid.steps);
            anyhow::ensure!(within, "--ts: expected two or more positions below --num-steps {}", grid.steps);
            Sampler::Consistency(Consistency { ts: args.ts.clone(), grid })
        }
    })
}
