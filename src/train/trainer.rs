//! The training loop: stages, updates, averages, status lines, snapshots.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use d2o_converters::checkpoint::safetensors::Tensor as Stored;
use d2o_converters::denoiser::{Denoiser, NetConfig};
use d2o_converters::weights::{SplitMix64, Weights};
use d2o_converters::{Architecture, Checkpoint};
use d2o_refs::batch::container_sha256;
use serde::Serialize;
use serde_json::{Map, Value as Json, json};
use tch::{Device, Kind, TchError, Tensor};

use super::augment::ada::{Ada, AdaPipe, AdaSettings};
use super::augment::edm::{EdmPipe, EdmSettings};
use super::dataset::{Batch, TrainingSet};
use super::discriminator::{ClassRows, Critic};
use super::freeze::is_frozen;
use super::grid;
use super::libtorch::{LibTorch, Named, Role, Value};
use super::loss::{Adversaries, LossType, NoiseLevels, denoising_loss, generate, r1_penalty, unchanged};
use super::numerics::Numerics;
use super::optimizer::{Optimizer, OptimizerConfig};
use super::options::Options;
use super::pickle;
use super::sampler::InfiniteSampler;
use super::snapshot::{self, State};
use super::stats::{Collector, KIMG, Log, resident_gib, unix_time};
use super::tensorboard::Events;
use crate::cli::{LossArg, LossTypeArg};

/// Iterations between looks at the losses, and the losses in a row that may not be finite.
const PATIENCE: u32 = 16;
/// Name of the signs of the logits of real images.
const SIGNS: &str = "Loss/signs/real";

/// A run.
#[derive(Debug)]
pub struct Run {
    /// What determines its result.
    pub options: Options,
    /// The same by name, as the state keeps it.
    pub values: Map<String, Json>,
    /// The network; its class is that of the objective.
    pub net: NetConfig,
    /// Folder for snapshots and logs.
    pub outdir: PathBuf,
    /// Continue from the state in `outdir`.
    pub resume: bool,
    /// Continue on other images or with other feature networks than those of the state.
    pub other_files: bool,
    /// Wall-clock limit.
    pub max_seconds: Option<f64>,
    /// Where to compute.
    pub device: Device,
}

impl Run {
    /// Whether the generator computes in bf16: on CUDA alone, as in the original.
    #[must_use]
    pub fn mixed(&self) -> bool {
        self.options.bf16 && self.device.is_cuda()
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
    /// Seconds to the end at this pace.
    pub eta_seconds: f64,
    /// Short names and means of what was reported since the last line.
    pub means: Vec<(&'static str, f64)>,
}

/// How a run ended.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The last network snapshot.
    pub snapshot: PathBuf,
    /// Images seen in all.
    pub images: u64,
    /// Seconds of this run.
    pub seconds: f64,
    /// Parameters of the network, and how many of them were trained.
    pub parameters: usize,
    /// Scalars that were trained.
    pub trained: usize,
    /// Whether the run ended because it was asked to stop, before its duration or time limit.
    pub stopped: bool,
}

/// A network with its optimiser.
struct Trained {
    tensors: Vec<Named>,
    /// Indices into `tensors` of what the optimiser updates, in its order.
    updated: Vec<usize>,
    optimizer: Optimizer,
}

impl Trained {
    fn new(tensors: Vec<Named>, frozen: impl Fn(&str) -> bool, config: OptimizerConfig) -> anyhow::Result<Self> {
        let mut updated = Vec::new();
        for (i, t) in tensors.iter().enumerate().filter(|(_, t)| t.role == Role::Param) {
            if frozen(&t.path) {
                let _ = t.tensor.set_requires_grad(false);
            } else {
                updated.push(i);
            }
        }
        let params = updated.iter().map(|i| tensors[*i].tensor.shallow_clone()).collect();
        Ok(Self { optimizer: Optimizer::new(params, config)?, tensors, updated })
    }

    fn scalars(&self, only_updated: bool) -> usize {
        let all = self.tensors.iter().enumerate().filter(|(_, t)| t.role == Role::Param);
        all.filter(|(i, _)| !only_updated || self.updated.contains(i)).map(|(_, t)| t.tensor.numel()).sum()
    }

    /// All tensors under `name` (unless that is empty), those that are updated with the values of `flat` if it is given.
    fn stored(&self, name: &str, flat: Option<&Tensor>) -> anyhow::Result<Vec<Stored>> {
        let mut tensors: Vec<Tensor> = self.tensors.iter().map(|t| t.tensor.shallow_clone()).collect();
        if let Some(flat) = flat {
            for (i, view) in self.updated.iter().zip(self.optimizer.views(flat)?) {
                tensors[*i] = view;
            }
        }
        let named = self.tensors.iter().zip(&tensors);
        let path = |of: &Named| if name.is_empty() { of.path.clone() } else { format!("{name}.{}", of.path) };
        named.map(|(named, tensor)| snapshot::stored(path(named), tensor)).collect()
    }

    /// All tensors and the optimiser's moments under `name`.
    fn save(&self, name: &str, out: &mut Vec<Stored>, metadata: &mut Metadata) -> anyhow::Result<()> {
        out.extend(self.stored(name, None)?);
        for (moment, tensor) in self.optimizer.moments() {
            out.push(snapshot::stored(format!("optimizer.{name}.{moment}"), tensor)?);
        }
        metadata.insert(format!("steps.{name}"), self.optimizer.steps().to_string());
        Ok(())
    }

    fn restore(&mut self, name: &str, state: &State) -> anyhow::Result<()> {
        for t in &mut self.tensors {
            if t.role != Role::Buffer {
                state.restore(&format!("{name}.{}", t.path), &mut t.tensor)?;
            }
        }
        for (moment, tensor) in self.optimizer.moments() {
            state.restore(&format!("optimizer.{name}.{moment}"), &mut tensor.shallow_clone())?;
        }
        self.optimizer.set_steps(state.number(&format!("steps.{name}"))?);
        Ok(())
    }
}

type Metadata = std::collections::BTreeMap<String, String>;

struct Discriminator {
    loss: LossType,
    r1_gamma: f64,
    r1_interval: u64,
    /// One for each part of a batch: projections of its own, the same heads.
    critics: Vec<Critic>,
    trained: Trained,
    /// Spectral norm's vectors.
    power: Vec<Tensor>,
    /// Augmentation of what it sees, its strength, and what adjusts it.
    pipe: Option<AdaPipe>,
    p: f32,
    ada: Option<Ada>,
    /// Signs of the logits of real images since the last adjustment.
    signs: Collector,
}

impl Discriminator {
    /// Runs `part` for each part of a batch. All start from the same vectors of spectral norm, as processes that have a part each would.
    fn each_part(
        &mut self,
        mut part: impl FnMut(&mut Optimizer, usize, &Critic) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let before: Vec<Tensor> =
            if self.critics.len() > 1 { self.power.iter().map(Tensor::copy).collect() } else { Vec::new() };
        for (rank, critic) in self.critics.iter().enumerate() {
            if rank > 0 {
                let _guard = tch::no_grad_guard();
                for (vector, value) in self.power.iter_mut().zip(&before) {
                    vector.f_copy_(value)?;
                }
            }
            part(&mut self.trained.optimizer, rank, critic)?;
        }
        Ok(())
    }
}

/// A run that is ready to start.
pub struct Trainer<'a> {
    run: &'a Run,
    net: Denoiser<Value>,
    generator: Trained,
    /// Averages of what the generator's optimiser updates, in its layout.
    average: Tensor,
    /// Augmentation of EDM's loss.
    pipe: Option<EdmPipe>,
    discriminator: Option<Discriminator>,
    sampler: InfiniteSampler,
    images: u64,
    iteration: u64,
    ticks: u64,
    /// Images seen at the last tick.
    tick_start: u64,
    collector: Collector,
    /// Hashes of what the run reads, by the names of their entries in the state.
    contents: [(&'static str, String); 2],
}

impl<'a> Trainer<'a> {
    /// Reads the networks, and the state of a run that is resumed. Writes nothing.
    ///
    /// # Errors
    /// Unreadable checkpoints or states; other images, feature networks or settings of the network than the state's.
    pub fn new(run: &'a Run, data: &TrainingSet) -> anyhow::Result<Self> {
        let options = &run.options;
        Numerics { tf32: options.tf32, deterministic: options.deterministic }.apply();
        let weights = match &options.transfer {
            // The state holds what was transferred.
            Some(path) if !run.resume => transfer(path, &run.net)?,
            _ => Weights::initialised(u64::from(options.seed)),
        };
        let mut b = LibTorch::with_weights(weights, run.device);
        let net = Denoiser::build(&mut b, &run.net)?;
        let (tensors, _) = b.finish()?;
        let (freeze, betas) = match options.loss {
            LossArg::D2o => (options.freeze.unwrap_or(0), [0.0, 0.99]),
            _ => (0, [0.9, 0.999]),
        };
        let config = OptimizerConfig { rule: options.optimizer, lr: options.lr, betas, eps: 1e-8 };
        let generator = Trained::new(tensors, |path| is_frozen(path, freeze), config)?;
        let average = generator.optimizer.values().copy();
        let pipe = (options.loss != LossArg::D2o && options.augment_p > 0.0)
            .then(|| EdmPipe::new(EdmSettings::edm(options.augment_p), run.device))
            .transpose()?;
        let discriminator = match options.loss {
            LossArg::D2o => Some(discriminator(run)?),
            _ => None,
        };
        let mut trainer = Self {
            run,
            net,
            generator,
            average,
            pipe,
            discriminator,
            sampler: InfiniteSampler::new(data.len(), options.seed),
            images: 0,
            iteration: 0,
            ticks: 0,
            tick_start: 0,
            collector: Collector::default(),
            contents: [
                ("data_sha256", data.content_sha256().to_owned()),
                ("feature_networks_sha256", feature_networks_sha256(options)?),
            ],
        };
        if run.resume {
            trainer.resume()?;
        }
        Ok(trainer)
    }

    /// Trains on `data`. `report` gets the status lines; `stop` is asked before every iteration.
    ///
    /// # Errors
    /// Failing operations, writing errors; losses that are not finite again and again.
    pub fn run(
        &mut self,
        data: &TrainingSet,
        report: &mut dyn FnMut(&Status),
        stop: &dyn Fn() -> bool,
    ) -> anyhow::Result<Outcome> {
        let options = &self.run.options;
        let target = thousands(options.duration * 1e3);
        let per_tick = thousands(options.tick).max(1);
        let log = Log::open(&self.run.outdir, self.tick_start)?;
        let mut events = Events::create(&self.run.outdir, unix_time())?;
        if options.grid > 0 && !self.run.resume {
            self.first_grids(data)?;
        }
        let start = Instant::now();
        let (mut since, mut since_images) = (start, self.images);
        let mut maintenance = 0.0;
        let limit = self.run.max_seconds.map(Duration::from_secs_f64);
        let (snapshot, stopped) = loop {
            let reached = self.images >= target || limit.is_some_and(|l| start.elapsed() >= l);
            if !reached && stop() {
                break (self.save(true, true)?, true);
            }
            if !reached {
                let indices: Vec<u32> = (0..options.batch).map(|_| self.sampler.draw()).collect();
                self.iterate(data, &indices)?;
            }
            // As in the original the first tick ends with the first iteration.
            let tick = self.ticks == 0 || self.images >= self.tick_start + per_tick;
            let seen = self.images - since_images;
            if (tick || reached) && seen > 0 {
                self.look_at_losses(PATIENCE.into())?;
                let elapsed = since.elapsed().as_secs_f64().max(1e-9);
                let total = start.elapsed().as_secs_f64();
                let pace = whole(seen) / elapsed;
                let left = whole(target.saturating_sub(self.images)) / pace;
                let remaining = limit.map_or(left, |l| left.min((l.as_secs_f64() - total).max(0.0)));
                report(&Status {
                    kimg: whole(self.images) / 1e3,
                    seconds: total,
                    images_per_second: pace,
                    eta_seconds: if reached { 0.0 } else { remaining },
                    means: self.means(),
                });
                let (mut line, now) = (self.collector.summary(), unix_time());
                for (name, number) in [
                    ("Progress/tick", Some(whole(self.ticks))),
                    (KIMG, Some(whole(self.images) / 1e3)),
                    ("Timing/total_sec", Some(total)),
                    ("Timing/sec_per_tick", Some(elapsed)),
                    ("Timing/sec_per_kimg", Some(elapsed / whole(seen) * 1e3)),
                    ("Timing/maintenance_sec", Some(maintenance)),
                    ("Resources/cpu_mem_gb", resident_gib()),
                ] {
                    if let Some(number) = number {
                        line.insert(name.to_owned(), json!({"num": 1, "mean": number, "std": 0.0}));
                    }
                }
                let means = line.iter().filter_map(|(name, entry)| Some((name.as_str(), entry["mean"].as_f64()?)));
                events.scalars(now, self.images, means)?;
                line.insert("timestamp".to_owned(), json!(now));
                log.append(&line)?;
                (since, since_images) = (Instant::now(), self.images);
            }
            // The line of a run that ends between two ticks is not a tick's: a resumed run writes it anew.
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
                    self.save(snap, dump)?;
                }
                maintenance = since.elapsed().as_secs_f64();
                since = Instant::now();
            }
            if reached {
                break (self.save(true, true)?, false);
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

    /// Grids of real images and of what the generator makes before training.
    fn first_grids(&mut self, data: &TrainingSet) -> anyhow::Result<()> {
        let images = data.batch(&Self::shown(data), Device::Cpu)?.images;
        grid::write(&self.run.outdir.join("reals.png"), &images)?;
        self.grid(data, "fakes_init.png")
    }

    /// Images whose classes grids show.
    fn shown(data: &TrainingSet) -> Vec<u32> {
        let count = u32::try_from(grid::SIDE * grid::SIDE).unwrap_or(1);
        (0..count)
            .map(|i| u32::try_from(u64::from(i) * u64::from(data.len()) / u64::from(count)).unwrap_or(0))
            .collect()
    }

    /// A grid of what the average of a one-step generator makes of the run's latents. A denoiser makes none.
    fn grid(&mut self, data: &TrainingSet, name: &str) -> anyhow::Result<()> {
        /// Images that are generated at a time.
        const PART: i64 = 16;
        if self.discriminator.is_none() {
            return Ok(());
        }
        let _guard = tch::no_grad_guard();
        let batch = data.batch(&Self::shown(data), self.run.device)?;
        let drawn = SplitMix64::for_path(u64::from(self.run.options.seed), "grid").next_u64();
        tch::manual_seed((drawn >> 1).cast_signed());
        let noise = batch.images.f_randn_like()?;
        let held = self.generator.optimizer.values().copy();
        self.generator.optimizer.values().shallow_clone().f_copy_(&self.average)?;
        let mut b = LibTorch::running(self.run.device, false);
        let mut made = Vec::new();
        let count = noise.size()[0];
        for start in (0..count).step_by(usize::try_from(PART)?) {
            let part = |t: &Tensor| t.f_narrow(0, start, PART.min(count - start)).map(Value);
            let labels = batch.labels.as_ref().map(part).transpose()?;
            made.push(generate(&mut b, &self.net, &part(&noise)?.0, labels.as_ref(), self.run.mixed())?);
        }
        self.generator.optimizer.values().shallow_clone().f_copy_(&held)?;
        let images = Tensor::f_cat(&made, 0)?.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?;
        grid::write(&self.run.outdir.join(name), &images)
    }

    /// The means that a status line shows.
    fn means(&self) -> Vec<(&'static str, f64)> {
        const SHOWN: [(&str, &str); 6] = [
            ("loss", "Loss/denoising/loss"),
            ("G", "Loss/G/loss"),
            ("D", "Loss/D/loss"),
            ("R1", "Loss/r1_penalty"),
            ("real", "Loss/logits/real"),
            ("fake", "Loss/logits/fake"),
        ];
        SHOWN.iter().filter_map(|(short, name)| Some((*short, self.collector.mean(name)?))).collect()
    }

    /// An error if the last `most` losses of a stage were not finite.
    fn look_at_losses(&self, most: i64) -> anyhow::Result<()> {
        match self.collector.broken(most) {
            None => Ok(()),
            Some(stage) => anyhow::bail!(
                "training diverged: the last {most} losses of {stage} or more were not finite, at {:.1} kimg. The last state and snapshot in `{}` are kept; \
                 try a lower learning rate",
                whole(self.images) / 1e3,
                self.run.outdir.display()
            ),
        }
    }

    fn iterate(&mut self, data: &TrainingSet, indices: &[u32]) -> anyhow::Result<()> {
        let options = &self.run.options;
        // Part k gets every ranks-th image from the k-th on, as a process of that rank would draw them.
        let ranks = options.ranks() as usize;
        let part = |k: usize| -> Vec<u32> { indices.iter().skip(k).step_by(ranks).copied().collect() };
        let batches =
            (0..ranks).map(|k| data.batch(&part(k), self.run.device)).collect::<anyhow::Result<Vec<Batch>>>()?;
        let warm_up = thousands(options.lr_rampup_kimg);
        let lr_scale = if warm_up == 0 { 1.0 } else { (whole(self.images) / whole(warm_up)).min(1.0) };
        match options.loss {
            LossArg::D2o => self.adversarial(&batches, lr_scale)?,
            _ => self.denoising(&batches, lr_scale)?,
        }
        let decay =
            ema_decay(options.batch, whole(self.images), options.ema * 1e3, options.ema_warmup, options.ema_beta);
        average(&mut self.average, self.generator.optimizer.values(), decay)?;
        self.images += u64::from(options.batch);
        self.iteration += 1;
        if self.iteration.is_multiple_of(u64::from(PATIENCE)) {
            self.look_at_losses(PATIENCE.into())?;
        }
        Ok(())
    }

    fn denoising(&mut self, batches: &[Batch], lr_scale: f64) -> anyhow::Result<()> {
        let levels = NoiseLevels::of(&self.run.net.precond)
            .with_context(|| format!("networks of class {} are not trained from noise", self.run.net.class()))?;
        let mut b = LibTorch::running(self.run.device, true);
        for (rank, batch) in batches.iter().enumerate() {
            seed(self.run.options.seed, self.iteration, "denoising", rank);
            let (images, labels) = (&batch.images, batch.labels.as_ref());
            let elements = denoising_loss(&mut b, &self.net, images, labels, levels, self.pipe.as_ref())?;
            #[allow(clippy::cast_precision_loss, reason = "a batch size")]
            let loss = elements.sum(elements.kind()) / images.size()[0] as f64;
            self.generator.optimizer.backward(&loss)?;
            self.collector.report_loss("denoising", &loss, 1.0)?;
            self.collector.report("Loss/loss", &elements)?;
        }
        Ok(self.generator.optimizer.step(lr_scale)?)
    }

    fn adversarial(&mut self, batches: &[Batch], lr_scale: f64) -> anyhow::Result<()> {
        let Some(d) = &mut self.discriminator else { anyhow::bail!("no discriminator") };
        let (net, kind, collector) = (&self.net, d.loss, &mut self.collector);
        let (run_seed, iteration) = (self.run.options.seed, self.iteration);
        let images = f64::from(self.run.options.batch / self.run.options.ranks());
        let mixed = self.run.mixed();
        let labels = |batch: &Batch| batch.labels.as_ref().map(|l| Value(l.shallow_clone()));
        let mut b = LibTorch::running(self.run.device, true);

        let generator = &mut self.generator.optimizer;
        d.trained.optimizer.record(false);
        let pipe = d.pipe.take();
        let p = d.p;
        let augment = |images: &Tensor| match &pipe {
            Some(pipe) => Ok(pipe.apply(images, p)?.images),
            None => unchanged(images),
        };
        d.each_part(|_, rank, critic| {
            let batch = &batches[rank];
            seed(run_seed, iteration, "generator", rank);
            let noise = batch.images.randn_like();
            let (loss, logits) = Adversaries { net, critic, loss: kind, augment: &augment, mixed }.generator_loss(
                &mut b,
                &noise,
                labels(batch).as_ref(),
            )?;
            generator.backward(&loss)?;
            collector.report_loss("G", &loss, images)?;
            let logits = flat(&logits)?;
            collector.report("Loss/logits/fake", &logits)?;
            Ok(collector.report("Loss/probs/fake", &logits.sigmoid())?)
        })?;
        generator.step(lr_scale)?;

        d.trained.optimizer.record(true);
        let mut signs = std::mem::take(&mut d.signs);
        d.each_part(|optimizer, rank, critic| {
            let batch = &batches[rank];
            seed(run_seed, iteration, "discriminator", rank);
            let noise = batch.images.randn_like();
            let labels = labels(batch);
            let (loss, real) = Adversaries { net, critic, loss: kind, augment: &augment, mixed }.discriminator_loss(
                &mut b,
                &noise,
                &batch.images,
                labels.as_ref(),
            )?;
            optimizer.backward(&loss)?;
            collector.report_loss("D", &loss, images)?;
            let real = flat(&real)?;
            collector.report("Loss/logits/real", &real)?;
            collector.report(SIGNS, &real.sign())?;
            signs.report(SIGNS, &real.sign())?;
            Ok(collector.report("Loss/probs/real", &real.sigmoid())?)
        })?;
        d.trained.optimizer.step(1.0)?;
        (d.signs, d.pipe) = (signs, pipe);

        let (gamma, interval) = (d.r1_gamma, d.r1_interval);
        if gamma > 0.0 && iteration != 0 && iteration.is_multiple_of(interval) {
            d.each_part(|optimizer, rank, critic| {
                seed(run_seed, iteration, "r1", rank);
                let real = batches[rank].images.detach().copy().set_requires_grad(true);
                let logits = critic.logits(&mut b, &real, labels(&batches[rank]).as_ref())?;
                let loss = r1_penalty(&logits, &real, gamma)?;
                optimizer.backward(&(&loss * whole(interval)))?;
                collector.report("Loss/r1_penalty", &(&loss * (2.0 / gamma)))?;
                Ok(collector.report("Loss/D/r1_loss", &loss)?)
            })?;
            d.trained.optimizer.step(1.0)?;
        }
        if (iteration + 1).is_multiple_of(Ada::INTERVAL.into()) {
            if let (Some(ada), Some(mean)) = (&mut d.ada, d.signs.mean(SIGNS)) {
                ada.update(mean, self.run.options.batch);
                d.p = ada.p;
            }
            d.signs.reset();
        }
        if d.ada.is_some() {
            collector.report("Progress/augment", &Tensor::from(f64::from(d.p)))?;
        }
        Ok(())
    }

    /// Writes `network-snapshot-NNNNNN.safetensors` (average and network) and `training-state.safetensors`, if so asked; returns the snapshot's path.
    fn save(&self, snap: bool, dump: bool) -> anyhow::Result<PathBuf> {
        let dir = &self.run.outdir;
        let path = dir.join(format!("network-snapshot-{:06}.safetensors", self.images / 1000));
        let mut tensors = self.generator.stored("ema", Some(&self.average))?;
        let mut metadata = snapshot::metadata(&self.run.net, &["ema", "net"], self.images);
        if snap {
            tensors.extend(self.generator.stored("net", None)?);
            snapshot::write(&path, &tensors, &metadata)?;
            if self.run.options.pickle {
                let (ema, net) = (self.generator.stored("", Some(&self.average))?, self.generator.stored("", None)?);
                pickle::write(&path.with_extension("pkl"), &self.run.net, &[("ema", &ema), ("net", &net)])?;
            }
            tensors.truncate(tensors.len() / 2);
        }
        if dump {
            self.generator.save("net", &mut tensors, &mut metadata)?;
            if let Some(d) = &self.discriminator {
                d.trained.save("d", &mut tensors, &mut metadata)?;
                metadata.insert("augment_p".to_owned(), d.p.to_bits().to_string());
                metadata.insert("signs".to_owned(), d.signs.state().to_string());
            }
            for (key, value) in [
                ("iteration", self.iteration.to_string()),
                ("ticks", self.ticks.to_string()),
                ("tick_start", self.tick_start.to_string()),
                ("stats", self.collector.state().to_string()),
                ("options", Json::Object(self.run.values.clone()).to_string()),
            ]
            .into_iter()
            .chain(self.contents.clone())
            {
                metadata.insert(key.to_owned(), value);
            }
            snapshot::write(&snapshot::state_path(dir), &tensors, &metadata)?;
        }
        Ok(path)
    }

    fn resume(&mut self) -> anyhow::Result<()> {
        let path = snapshot::state_path(&self.run.outdir);
        let state = State::open(&path).with_context(|| format!("resume from `{}`", path.display()))?;
        let kwargs = self.run.net.init_kwargs().to_string();
        let same = state.get("class")? == self.run.net.class() && state.get("init_kwargs")? == kwargs;
        anyhow::ensure!(same, "`{}` holds another network than this run trains", path.display());
        for ((key, found), option) in self.contents.iter().zip(["--data", "--backbone-weights"]) {
            let was = state.get(key)?;
            anyhow::ensure!(
                was == found || self.run.other_files,
                "{option} does not hold what this run was started with (SHA-256 {found}, was {was}); --resume-with continues with it"
            );
        }
        self.images = state.number("images")?;
        self.iteration = state.number("iteration")?;
        self.ticks = state.number("ticks")?;
        self.tick_start = state.number("tick_start")?;
        self.collector.restore(state.get("stats")?, self.run.device)?;
        self.generator.restore("net", &state)?;
        for (i, mut view) in self.generator.updated.iter().zip(self.generator.optimizer.views(&self.average)?) {
            state.restore(&format!("ema.{}", self.generator.tensors[*i].path), &mut view)?;
        }
        if let Some(d) = &mut self.discriminator {
            d.trained.restore("d", &state)?;
            d.p = f32::from_bits(u32::try_from(state.number("augment_p")?)?);
            d.ada = d.ada.map(|ada| Ada { p: d.p, ..ada });
            d.signs.restore(state.get("signs")?, self.run.device)?;
        }
        self.sampler.skip_to(self.images);
        Ok(())
    }
}

/// Seeds libtorch for a stage of an iteration: a resumed run continues the very same sequence, and a part of a batch draws what a process of its rank would.
fn seed(run: u32, iteration: u64, stage: &str, rank: usize) {
    let path = format!("iteration{iteration}.{stage}.rank{rank}");
    let drawn = SplitMix64::for_path(u64::from(run), &path).next_u64();
    tch::manual_seed((drawn >> 1).cast_signed());
}

/// Share of the average that an iteration over `batch` images keeps after `images` images: by its half-life `kimg`, bounded by the share `warmup` of the
/// images unless that is 0, or `beta` unless that is 0.
pub(super) fn ema_decay(batch: u32, images: f64, kimg: f64, warmup: f64, beta: f64) -> f64 {
    if beta != 0.0 {
        return beta;
    }
    let half_life = kimg * 1e3;
    let half_life = if warmup > 0.0 { half_life.min(images * warmup) } else { half_life };
    0.5_f64.powf(f64::from(batch) / half_life.max(1e-8))
}

/// Moves `average` towards `values`, keeping the share `decay` of it.
pub(super) fn average(average: &mut Tensor, values: &Tensor, decay: f64) -> Result<(), TchError> {
    let _guard = tch::no_grad_guard();
    average.f_lerp_(values, 1.0 - decay).map(drop)
}

/// Weights of the `ema` network of `path`, all of which `net` must take but for augmentation's.
fn transfer(path: &Path, net: &NetConfig) -> anyhow::Result<Weights> {
    let checkpoint = Checkpoint::open(path)?;
    let network = checkpoint.network(None)?;
    anyhow::ensure!(
        matches!(network.architecture, Architecture::Denoiser(_)),
        "`{}` does not say which network it holds",
        path.display()
    );
    let augment = "model.map_augment.weight".to_owned();
    let drop_augment = (net.class() == "D2OPrecond").then_some(augment);
    Ok(network.weights().allowing_unused(drop_augment))
}

/// SHA-256 of the checkpoints of the feature networks, in any order.
fn feature_networks_sha256(options: &Options) -> anyhow::Result<String> {
    let mut hashes =
        options.backbone_weights.iter().map(|p| Ok(container_sha256(p)?)).collect::<anyhow::Result<Vec<String>>>()?;
    hashes.sort();
    Ok(hashes.join(" "))
}

fn discriminator(run: &Run) -> anyhow::Result<Discriminator> {
    let options = &run.options;
    let mut config = options.critic()?;
    if run.resume && run.net.label_dim > 0 {
        // The state holds the rows.
        config.classes = Some(ClassRows::Random);
    }
    let seed = u64::from(options.seed);
    let (first, mut tensors) = Critic::load(&config, run.net.img_resolution, run.net.label_dim, seed, run.device)?;
    let mut critics = vec![first];
    for rank in 1..options.ranks() {
        let seed = SplitMix64::for_path(seed, &format!("rank{rank}")).next_u64();
        let (critic, drawn) = critics[0].redrawn(seed, run.device)?;
        tensors.extend(drawn.into_iter().map(|t| Named { path: format!("rank{rank}.{}", t.path), ..t }));
        critics.push(critic);
    }
    let ada = (options.ada_target.unwrap_or(0.0) != 0.0)
        .then(|| Ada { p: single(options.augment_p), target: options.ada_target.unwrap_or(0.0) });
    let pipe =
        (options.augment_p > 0.0 || ada.is_some()).then(|| AdaPipe::new(AdaSettings::d2o(), run.device)).transpose()?;
    // The step that R1 adds every `interval` iterations is taken out of the others (lazy regularisation, Karras et al. 2020). As in the original, R1
    // turned off changes nothing about it.
    let r1_interval = u64::from(options.r1_interval.unwrap_or(16));
    let correction = whole(r1_interval) / (whole(r1_interval) + 1.0);
    let config = OptimizerConfig {
        rule: options.optimizer,
        lr: options.dlr.unwrap_or(options.lr) * correction,
        betas: [0.0, 0.99_f64.powf(correction)],
        eps: 1e-8,
    };
    let is_power = |t: &&Named| t.path.ends_with(".weight_u") || t.path.ends_with(".weight_v");
    let power = tensors.iter().filter(is_power).map(|t| t.tensor.shallow_clone()).collect();
    Ok(Discriminator {
        loss: match options.loss_type {
            Some(LossTypeArg::Hinge) => LossType::Hinge,
            _ => LossType::NonSaturating,
        },
        r1_gamma: options.r1_gamma.unwrap_or(0.0),
        r1_interval,
        critics,
        trained: Trained::new(tensors, |_| false, config)?,
        power,
        pipe,
        p: single(options.augment_p),
        ada,
        signs: Collector::default(),
    })
}

/// All logits in one row.
fn flat(logits: &[Tensor]) -> Result<Tensor, TchError> {
    let rows = logits.iter().map(|l| l.f_reshape([-1])).collect::<Result<Vec<_>, _>>()?;
    Tensor::f_cat(&rows, 0)
}

#[allow(clippy::cast_possible_truncation, reason = "a probability")]
fn single(p: f64) -> f32 {
    p as f32
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "image counts, clamped at 0 by the cast")]
fn thousands(kimg: f64) -> u64 {
    (kimg * 1e3).round() as u64
}

#[allow(clippy::cast_precision_loss, reason = "image counts below 2^53")]
fn whole(count: u64) -> f64 {
    count as f64
}
