//! The training loop: stages, updates, averages, status lines, snapshots.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use d2o_converters::denoiser::{Denoiser, NetConfig};
use d2o_converters::weights::{SplitMix64, Weights};
use d2o_converters::{Architecture, Checkpoint};
use d2o_refs::batch::container_sha256;
use serde::Serialize;
use serde_json::{Map, Value as Json, json};
use sha2::{Digest as _, Sha256};
use tch::{Device, Kind, Tensor};

use super::adversarial::Discriminator;
use super::augment::edm::{EdmPipe, EdmSettings};
use super::dataset::{Batch, TrainingSet};
use super::distillation::Distillation;
use super::forecast::{self, Forecast, TRIAL};
use super::freeze::is_frozen;
use super::generator::Generator;
use super::grid;
use super::group::Group;
use super::libtorch::{LibTorch, Value, values_of};
use super::loss::{NoiseLevels, denoising_loss};
use super::metrics::Evaluate;
use super::numerics::Numerics;
use super::optimizer::OptimizerConfig;
use super::options::{Options, PATHS};
use super::pickle;
use super::records::Records;
use super::sampler::InfiniteSampler;
use super::snapshot::{self, State};
use super::stats::{Collector, KIMG, entry, resident};
use super::trained::{Trained, average, ema_decay};
use crate::cli::LossArg;

/// Iterations between checks of the losses. A run ends if as many consecutive losses are not finite.
const LOSS_CHECK_ITERATIONS: u32 = 16;

/// Networks in a snapshot: EMA and trained weights.
const NETWORKS: [&str; 2] = ["ema", "net"];

/// Settings and resources of a run.
#[derive(Debug)]
pub struct Run {
    /// Settings that determine the result.
    pub options: Options,
    /// The same settings by name, as stored in the state.
    pub values: Map<String, Json>,
    /// Configuration of the network. Its class matches the objective.
    pub net: NetConfig,
    /// Folder for snapshots and logs.
    pub outdir: PathBuf,
    /// State to continue from.
    pub state: Option<State>,
    /// Whether images, feature networks, teacher or LPIPS weights may differ from those recorded in the state.
    pub other_files: bool,
    /// Wall-clock limit, seconds.
    pub max_seconds: Option<f64>,
    /// Device that trains.
    pub device: Device,
    /// Whether the generator computes in bf16.
    pub mixed: bool,
    /// Element type of networks and optimisers: f32 except in comparisons with the original.
    pub kind: Kind,
    /// Processes that share the run.
    pub group: Rc<Group>,
}

impl Run {
    /// The parts of a batch that this process computes.
    #[must_use]
    pub fn parts(&self) -> Range<usize> {
        let parts = self.options.ranks() as usize / self.group.size();
        self.group.rank() * parts..(self.group.rank() + 1) * parts
    }

    /// The generator of the network `net`.
    #[must_use]
    pub fn generator<'a>(&self, net: &'a Denoiser<Value>) -> Generator<'a> {
        Generator { net, steps: self.options.steps(), mixed: self.mixed }
    }
}

/// One status line.
#[derive(Debug, Clone)]
pub struct Status {
    /// Images seen, thousands.
    pub kimg: f64,
    /// Seconds since the start of this run.
    pub seconds: f64,
    /// Images per second since the last line.
    pub images_per_second: f64,
    /// Estimated seconds until the end.
    pub eta_seconds: f64,
    /// Short names and means of the values reported since the last line.
    pub means: Vec<(&'static str, f64)>,
}

/// How a run ended.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The last network snapshot.
    pub snapshot: PathBuf,
    /// Images seen, including those before the run was resumed.
    pub images: u64,
    /// Seconds of this run.
    pub seconds: f64,
    /// Number of parameters of the network, in scalars.
    pub parameters: usize,
    /// Number of trained parameters, in scalars.
    pub trained: usize,
    /// Whether the run was stopped on request, before its duration or time limit.
    pub stopped: bool,
}

/// What a run minimises.
#[allow(clippy::large_enum_variant, reason = "one per run")]
enum Objective {
    Denoising { levels: NoiseLevels, pipe: Option<EdmPipe> },
    Adversarial(Discriminator),
    Distillation(Distillation),
}

/// A run that is ready to start.
pub struct Trainer<'a> {
    run: &'a Run,
    net: Denoiser<Value>,
    generator: Trained,
    /// EMA of the parameters that the optimiser of the generator updates, in its layout.
    average: Tensor,
    objective: Objective,
    sampler: InfiniteSampler,
    images: u64,
    iteration: u64,
    ticks: u64,
    /// Images seen at the last tick.
    tick_start: u64,
    collector: Collector,
    /// Hashes of input files: option, name of the entry in the state, SHA-256.
    contents: Vec<(&'static str, &'static str, String)>,
}

impl<'a> Trainer<'a> {
    /// Builds the networks and restores the state of a resumed run. Writes nothing.
    ///
    /// # Errors
    /// If a checkpoint or state is unreadable, or images, feature networks or settings of the network differ from the
    /// state.
    pub fn new(run: &'a Run, data: &TrainingSet) -> anyhow::Result<Self> {
        let options = &run.options;
        Numerics { tf32: options.tf32, deterministic: options.deterministic }.apply();
        let weights = match (&run.state, &options.transfer) {
            (Some(state), _) => {
                ensure_same_network(state, &run.net)?;
                state.weights(NETWORKS[1])?
            }
            (None, Some(path)) => transfer(path, &run.net)?,
            (None, None) => Weights::initialised(u64::from(options.seed)),
        };
        let mut b = LibTorch::with_weights(weights, run.device).in_kind(run.kind);
        let net = Denoiser::build(&mut b, &run.net)?;
        let (tensors, _) = b.finish()?;
        let (freeze, betas) = match options.loss {
            LossArg::D2o => (options.freeze.unwrap_or(0), [0.0, 0.99]),
            _ => (0, [0.9, 0.999]),
        };
        let config = OptimizerConfig { rule: options.optimizer, lr: options.lr, betas, eps: 1e-8 };
        let generator = Trained::new(tensors, |path| is_frozen(path, freeze), config)?;
        let average = generator.optimizer.values().copy();
        let objective = match options.loss {
            LossArg::D2o => match Distillation::load(run)? {
                Some(distillation) if options.teacher_only == Some(true) => Objective::Distillation(distillation),
                distillation => Objective::Adversarial(Discriminator::new(run, distillation)?),
            },
            _ => Objective::Denoising {
                levels: NoiseLevels::of(&run.net.precond).with_context(|| {
                    format!("cannot train networks of class {} with a denoising loss", run.net.class())
                })?,
                pipe: (options.augment_p > 0.0)
                    .then(|| EdmPipe::new(EdmSettings::edm(options.augment_p), run.device))
                    .transpose()?,
            },
        };
        let mut trainer = Self {
            run,
            net,
            generator,
            average,
            objective,
            sampler: InfiniteSampler::new(data.len(), options.seed),
            images: 0,
            iteration: 0,
            ticks: 0,
            tick_start: 0,
            collector: Collector::default(),
            contents: contents(options, data)?,
        };
        if let Some(state) = &run.state {
            trainer.resume(state)?;
        }
        Ok(trainer)
    }

    /// Forecast of the memory that the run needs, from a trial that does not change the run. `None` if the system does
    /// not report its memory.
    ///
    /// # Errors
    /// If an operation fails.
    pub fn forecast(&mut self, data: &TrainingSet) -> anyhow::Result<Option<Forecast>> {
        let (options, device) = (&self.run.options, self.run.device);
        let (Some(base), Some(available)) = (forecast::used(device), forecast::available(device)) else {
            return Ok(None);
        };
        let batch = data.batch(&[0; TRIAL as usize], device)?;
        let mut most = 0;
        let mut alive = || most = most.max(forecast::used(device).unwrap_or(base).saturating_sub(base));
        let mut optimizers = self.generator.optimizer.reserve();
        match &mut self.objective {
            Objective::Adversarial(d) => {
                optimizers += d.try_stages(self.run.generator(&self.net), &batch, &mut alive)?;
            }
            Objective::Distillation(d) => {
                let (mut b, noise) = (LibTorch::running(device, true), batch.images.randn_like());
                let generator = self.run.generator(&self.net);
                let _loss = d.stage(&mut b, &generator, &batch, &noise, &mut Collector::default())?;
                alive();
            }
            Objective::Denoising { levels, pipe } => {
                let mut b = LibTorch::running(device, true);
                let Batch { images, labels } = &batch;
                let _loss = denoising_loss(&mut b, &self.net, images, labels.as_ref(), *levels, pipe.as_ref())?;
                alive();
            }
        }
        let images = options.batch / options.ranks();
        let activations = most / u64::from(TRIAL) * u64::from(images);
        Ok(Some(Forecast { base, optimizers, activations, images, available }))
    }

    /// Trains on `data`. `report` receives the status lines. `stop` is called before every iteration. `evaluate`
    /// evaluates the snapshots.
    ///
    /// # Errors
    /// If an operation, an evaluation or writing fails, or 16 or more consecutive losses of a stage are not
    /// finite.
    pub fn run(
        &mut self,
        data: &TrainingSet,
        report: &mut dyn FnMut(&Status),
        stop: &dyn Fn() -> bool,
        evaluate: Option<&Evaluate<'_>>,
    ) -> anyhow::Result<Outcome> {
        let options = &self.run.options;
        let target = images_of_kimg(options.duration * 1e3);
        let per_tick = images_of_kimg(options.tick).max(1);
        let group = &*self.run.group;
        let starts = [self.tick_start, self.images];
        let open = || Records::open(&self.run.outdir, starts, evaluate, options.keep_best);
        let mut records = group.leads().then(open).transpose()?;
        if options.grid > 0 && self.run.state.is_none() && group.leads() {
            self.first_grids(data)?;
        }
        self.ensure_same_start()?;
        let start = Instant::now();
        let (mut since, mut since_images) = (start, self.images);
        let mut maintenance = 0.0;
        let limit = self.run.max_seconds.map(Duration::from_secs_f64);
        let (snapshot, stopped) = loop {
            let [late, asked] = group.any([limit.is_some_and(|l| start.elapsed() >= l), stop()])?;
            let reached = self.images >= target || late;
            if !reached && asked {
                break (self.save(true, true)?, true);
            }
            if !reached {
                let indices: Vec<u32> = (0..options.batch).map(|_| self.sampler.draw()).collect();
                self.iterate(data, &indices)?;
            }
            // As in the original, the first tick ends with the first iteration.
            let tick = self.ticks == 0 || self.images >= self.tick_start + per_tick;
            let seen = self.images - since_images;
            if (tick || reached) && seen > 0 {
                self.look_at_losses(LOSS_CHECK_ITERATIONS.into())?;
                let elapsed = since.elapsed().as_secs_f64().max(1e-9);
                let total = start.elapsed().as_secs_f64();
                let pace = as_f64(seen) / elapsed;
                let left = as_f64(target.saturating_sub(self.images)) / pace;
                let remaining = limit.map_or(left, |l| left.min((l.as_secs_f64() - total).max(0.0)));
                report(&Status {
                    kimg: as_f64(self.images) / 1e3,
                    seconds: total,
                    images_per_second: pace,
                    eta_seconds: if reached { 0.0 } else { remaining },
                    means: self.means(),
                });
                // The time from here on counts as maintenance.
                (since, since_images) = (Instant::now(), self.images);
                let mut line = self.collector.summary();
                for (name, number) in [
                    ("Progress/tick", Some(as_f64(self.ticks))),
                    (KIMG, Some(as_f64(self.images) / 1e3)),
                    ("Timing/total_sec", Some(total)),
                    ("Timing/sec_per_tick", Some(elapsed)),
                    ("Timing/sec_per_kimg", Some(elapsed / as_f64(seen) * 1e3)),
                    ("Timing/maintenance_sec", Some(maintenance)),
                    ("Resources/cpu_mem_gb", resident().map(|bytes| as_f64(bytes) / f64::from(1 << 30))),
                ] {
                    if let Some(number) = number {
                        line.insert(name.to_owned(), entry(number));
                    }
                }
                if let Some(records) = &mut records {
                    records.tick(self.images, line)?;
                }
            }
            // The line of a run that ends between two ticks does not end a tick. A resumed run replaces it.
            if tick && self.images > self.tick_start {
                let due = |every: u32| every > 0 && self.ticks.is_multiple_of(u64::from(every));
                let (snap, dump) = (due(options.snap), due(options.dump) && self.ticks > 0);
                if due(options.grid) && self.ticks > 0 && !reached {
                    self.grid(data, &format!("fakes{:06}.png", self.images / 1000))?;
                }
                self.collector.reset();
                self.ticks += 1;
                self.tick_start = self.images;
                if !reached && (snap || dump) {
                    let path = self.save(snap, dump)?;
                    if let Some(records) = records.as_mut().filter(|_| snap) {
                        records.snapshot(&path, self.images)?;
                    }
                }
                maintenance = since.elapsed().as_secs_f64();
                since = Instant::now();
            }
            if reached {
                let path = self.save(true, true)?;
                if let Some(records) = &mut records {
                    records.snapshot(&path, self.images)?;
                }
                break (path, false);
            }
        };
        Ok(Outcome {
            snapshot,
            images: self.images,
            seconds: start.elapsed().as_secs_f64(),
            parameters: self.generator.scalars(false),
            trained: self.generator.scalars(true),
            stopped,
        })
    }

    /// Writes grids of real images and of images that the generator makes before training.
    fn first_grids(&mut self, data: &TrainingSet) -> anyhow::Result<()> {
        let images = data.batch(&Self::shown(data), Device::Cpu)?.images;
        grid::write(&self.run.outdir.join("reals.png"), &images)?;
        // A new denoiser generates only noise.
        if self.run.options.transfer.is_some() { self.grid(data, "fakes_init.png") } else { Ok(()) }
    }

    /// Indices of the real images in grids. Generated images have the same classes.
    fn shown(data: &TrainingSet) -> Vec<u32> {
        let count = u32::try_from(grid::SIDE * grid::SIDE).unwrap_or(1);
        (0..count)
            .map(|i| u32::try_from(u64::from(i) * u64::from(data.len()) / u64::from(count)).unwrap_or(0))
            .collect()
    }

    /// Writes a grid of images that the EMA weights generate from the fixed latents of the run: with the steps of the
    /// generator, or with Heun's method for a denoiser.
    fn grid(&mut self, data: &TrainingSet, name: &str) -> anyhow::Result<()> {
        /// Images that are generated at a time.
        const PART: i64 = 16;
        if !self.run.group.leads() {
            return Ok(());
        }
        let _guard = tch::no_grad_guard();
        let batch = data.batch(&Self::shown(data), self.run.device)?;
        seed_as(self.run.options.seed, "grid");
        let noise = batch.images.f_randn_like()?;
        let held = self.generator.optimizer.values().copy();
        self.generator.optimizer.values().shallow_clone().f_copy_(&self.average)?;
        let mut b = LibTorch::running(self.run.device, false);
        let mut made = Vec::new();
        let count = noise.size()[0];
        for start in (0..count).step_by(usize::try_from(PART)?) {
            let part = |t: &Tensor| t.f_narrow(0, start, PART.min(count - start)).map(Value);
            let labels = batch.labels.as_ref().map(part).transpose()?;
            let (noise, labels) = (part(&noise)?.0, labels.as_ref());
            made.push(match &self.objective {
                Objective::Denoising { .. } => grid::denoise(&mut b, &self.net, &noise, labels)?,
                _ => self.run.generator(&self.net).images(&mut b, &noise, labels)?,
            });
        }
        self.generator.optimizer.values().shallow_clone().f_copy_(&held)?;
        let images = Tensor::f_cat(&made, 0)?.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?;
        grid::write(&self.run.outdir.join(name), &images)
    }

    /// The means that a status line shows.
    fn means(&self) -> Vec<(&'static str, f64)> {
        const SHOWN: [(&str, &str); 7] = [
            ("loss", "Loss/denoising/loss"),
            ("G", "Loss/G/loss"),
            ("D", "Loss/D/loss"),
            ("R1", "Loss/r1_penalty"),
            ("real", "Loss/logits/real"),
            ("fake", "Loss/logits/fake"),
            ("LPIPS", "Loss/dist/fake"),
        ];
        SHOWN.iter().filter_map(|(short, name)| Some((*short, self.collector.mean(name)?))).collect()
    }

    /// An error if the last `most` losses of a stage were not finite.
    fn look_at_losses(&self, most: i64) -> anyhow::Result<()> {
        match self.collector.non_finite(most) {
            None => Ok(()),
            Some(stage) => Err(self.run.group.shared(anyhow::anyhow!(
                "training diverged: the last {most} losses of {stage} or more were not finite, at {:.1} kimg. The last state and snapshot in `{}` are kept; \
                 try a lower learning rate",
                as_f64(self.images) / 1e3,
                self.run.outdir.display()
            ))),
        }
    }

    fn iterate(&mut self, data: &TrainingSet, indices: &[u32]) -> anyhow::Result<()> {
        let options = &self.run.options;
        // Part k gets images k, k + ranks, k + 2·ranks, …, like the process of rank k in the original.
        let (ranks, own) = (options.ranks() as usize, self.run.parts());
        let part = |k: usize| -> Vec<u32> { indices.iter().skip(k).step_by(ranks).copied().collect() };
        let batches =
            own.clone().map(|k| data.batch(&part(k), self.run.device)).collect::<anyhow::Result<Vec<Batch>>>()?;
        let batches: Vec<Batch> = batches.into_iter().map(|b| b.in_kind(self.run.kind)).collect();
        let warm_up = images_of_kimg(options.lr_rampup_kimg);
        let lr_scale = if warm_up == 0 { 1.0 } else { (as_f64(self.images) / as_f64(warm_up)).min(1.0) };
        let (net, optimizer, collector) = (&self.net, &mut self.generator.optimizer, &mut self.collector);
        match &mut self.objective {
            Objective::Adversarial(d) => {
                d.iterate((self.run.generator(net), optimizer), &batches, self.iteration, lr_scale, collector)?;
            }
            Objective::Distillation(d) => {
                let generator = self.run.generator(net);
                d.iterate(self.run, (&generator, optimizer), &batches, self.iteration, lr_scale, collector)?;
            }
            Objective::Denoising { levels, pipe } => {
                let mut b = LibTorch::running(self.run.device, true).in_kind(self.run.kind);
                for (rank, Batch { images, labels }) in own.zip(&batches) {
                    seed(options.seed, self.iteration, "denoising", rank);
                    let elements = denoising_loss(&mut b, net, images, labels.as_ref(), *levels, pipe.as_ref())?;
                    #[allow(clippy::cast_precision_loss, reason = "a batch size")]
                    let loss = elements.sum(elements.kind()) / images.size()[0] as f64;
                    optimizer.backward(&loss)?;
                    collector.report_loss("denoising", &loss, 1.0)?;
                    collector.report("Loss/loss", &elements)?;
                }
                optimizer.step(lr_scale, &self.run.group)?;
                collector.reduce(&self.run.group)?;
            }
        }
        let decay =
            ema_decay(options.batch, as_f64(self.images), options.ema * 1e3, options.ema_warmup, options.ema_beta);
        average(&mut self.average, self.generator.optimizer.values(), decay)?;
        self.images += u64::from(options.batch);
        self.iteration += 1;
        if self.iteration.is_multiple_of(u64::from(LOSS_CHECK_ITERATIONS)) {
            self.look_at_losses(LOSS_CHECK_ITERATIONS.into())?;
        }
        Ok(())
    }

    /// Writes a snapshot (EMA and trained weights) if `snap`, and `training-state.safetensors` if `dump`. Returns the
    /// path of the snapshot.
    fn save(&self, snap: bool, dump: bool) -> anyhow::Result<PathBuf> {
        let dir = &self.run.outdir;
        let path = snapshot::snapshot_path(dir, self.images);
        if dump {
            self.ensure_same()?;
        }
        if !self.run.group.leads() {
            return Ok(path);
        }
        let mut tensors = self.generator.stored(NETWORKS[0], Some(&self.average))?;
        tensors.extend(self.generator.stored(NETWORKS[1], None)?);
        let mut metadata = snapshot::metadata(&self.run.net, &NETWORKS, self.images);
        metadata.extend(self.run.options.steps().recorded().entries());
        if snap {
            snapshot::write(&path, &tensors, &metadata)?;
            if self.run.options.pickle {
                pickle::write(&path.with_extension("pkl"), &self.run.net, &NETWORKS, &tensors, &metadata)?;
            }
        }
        if dump {
            self.generator.save(NETWORKS[1], &mut tensors, &mut metadata);
            if let Objective::Adversarial(d) = &self.objective {
                d.save(&mut tensors, &mut metadata)?;
            }
            for (key, value) in [
                ("iteration", self.iteration.to_string()),
                ("ticks", self.ticks.to_string()),
                ("tick_start", self.tick_start.to_string()),
                ("stats", self.collector.state().to_string()),
                ("options", Json::Object(self.run.values.clone()).to_string()),
            ]
            .into_iter()
            .chain(self.contents.iter().map(|(_, key, hash)| (*key, hash.clone())))
            {
                metadata.insert(key.to_owned(), value);
            }
            snapshot::write(&snapshot::state_path(dir), &tensors, &metadata)?;
        }
        Ok(path)
    }

    /// An error unless all processes have the same settings, files, iteration count and parameters.
    fn ensure_same_start(&self) -> anyhow::Result<()> {
        let group = &self.run.group;
        let settings = self.run.values.iter().filter(|(name, _)| !PATHS.contains(&name.as_str()));
        group.ensure_same("settings", json!(settings.collect::<Vec<_>>()).to_string().as_bytes())?;
        for (option, _, sha256) in &self.contents {
            group.ensure_same(&format!("files of {option}"), sha256.as_bytes())?;
        }
        group.ensure_same("iterations done", &self.iteration.to_le_bytes())?;
        self.ensure_same()
    }

    /// An error unless all processes hold the same parameters.
    fn ensure_same(&self) -> anyhow::Result<()> {
        let group = &self.run.group;
        if group.size() == 1 {
            return Ok(());
        }
        let discriminator = match &self.objective {
            Objective::Adversarial(d) => Some(d.parameters()),
            Objective::Denoising { .. } | Objective::Distillation(_) => None,
        };
        let mut hash = Sha256::new();
        for tensor in [self.generator.optimizer.values(), &self.average].into_iter().chain(discriminator) {
            hash.update(bytes_of(tensor)?);
        }
        group.ensure_same("parameters", &hash.finalize())
    }

    fn resume(&mut self, state: &State) -> anyhow::Result<()> {
        for (option, key, found) in &self.contents {
            // A state without the entry is from a run without the option.
            let was = state.get(key).unwrap_or("none");
            anyhow::ensure!(
                was == found || self.run.other_files,
                "{option} has changed since the run was started (SHA-256 {found}, was {was}); --resume-with continues with it"
            );
        }
        self.images = state.number("images")?;
        self.iteration = state.number("iteration")?;
        self.ticks = state.number("ticks")?;
        self.tick_start = state.number("tick_start")?;
        self.collector.restore(state.get("stats")?, self.run.device)?;
        self.generator.restore(NETWORKS[1], state)?;
        for (i, mut view) in self.generator.updated.iter().zip(self.generator.optimizer.views(&self.average)?) {
            state.restore(&format!("{}.{}", NETWORKS[0], self.generator.tensors[*i].path), &mut view)?;
        }
        if let Objective::Adversarial(d) = &mut self.objective {
            d.restore(state, self.run.device)?;
        }
        self.sampler.skip_to(self.images);
        Ok(())
    }
}

/// Seeds libtorch for a stage of an iteration. A resumed run continues the same sequence, and a part of a batch draws
/// the same numbers as the process of its rank.
pub(super) fn seed(run: u32, iteration: u64, stage: &str, rank: usize) {
    seed_as(run, &format!("iteration{iteration}.{stage}.rank{rank}"));
}

/// Seeds libtorch from the seed of a run and `path`.
fn seed_as(run: u32, path: &str) {
    let drawn = SplitMix64::for_path(u64::from(run), path).next_u64();
    tch::manual_seed((drawn >> 1).cast_signed());
}

/// The values of `tensor`, row-major, as f32 in native byte order.
fn bytes_of(tensor: &Tensor) -> anyhow::Result<Vec<u8>> {
    Ok(values_of(tensor)?.iter().flat_map(|v| v.to_ne_bytes()).collect())
}

/// SHA-256 of the images, the feature networks and, with a teacher, the teacher and the LPIPS weights. The hashes of
/// several files are sorted and joined.
fn contents(options: &Options, data: &TrainingSet) -> anyhow::Result<Vec<(&'static str, &'static str, String)>> {
    let files = |paths: &[PathBuf]| {
        let mut hashes = paths.iter().map(|p| Ok(container_sha256(p)?)).collect::<anyhow::Result<Vec<String>>>()?;
        hashes.sort();
        anyhow::Ok(hashes.join(" "))
    };
    let mut all = vec![
        ("--data", "data_sha256", data.content_sha256().to_owned()),
        ("--backbone-weights", "feature_networks_sha256", files(&options.backbone_weights)?),
    ];
    if let Some(target) = &options.target {
        all.push(("--target", "teacher_sha256", container_sha256(target)?));
        all.push(("--lpips-weights", "lpips_sha256", files(&options.lpips_weights)?));
    }
    Ok(all)
}

/// An error unless the state is from a run that trains `net`.
fn ensure_same_network(state: &State, net: &NetConfig) -> anyhow::Result<()> {
    let kwargs = net.init_kwargs().to_string();
    let same = state.get("class")? == net.class() && state.get("init_kwargs")? == kwargs;
    anyhow::ensure!(same, "`{}` contains a different network from the one this run trains", state.path().display());
    Ok(())
}

/// Weights of the `ema` network of `path`. `net` must use all of them, but `D2OPrecond` may omit those of augmentation
/// labels.
fn transfer(path: &Path, net: &NetConfig) -> anyhow::Result<Weights> {
    let checkpoint = Checkpoint::open(path)?;
    let network = checkpoint.network(None)?;
    anyhow::ensure!(
        matches!(network.architecture, Architecture::Denoiser(_)),
        "`{}` does not record its network",
        path.display()
    );
    let augment = "model.map_augment.weight".to_owned();
    let drop_augment = (net.class() == "D2OPrecond").then_some(augment);
    Ok(network.weights().allowing_unused(drop_augment))
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "image counts, clamped at 0 by the cast")]
fn images_of_kimg(kimg: f64) -> u64 {
    (kimg * 1e3).round() as u64
}

#[allow(clippy::cast_precision_loss, reason = "image counts below 2^53")]
pub(super) fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod iterations;
