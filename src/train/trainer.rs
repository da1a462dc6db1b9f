//! The training loop: stages, updates, averages, snapshots.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use d2o_converters::denoiser::{Denoiser, NetConfig};
use d2o_converters::registry::Precond;
use d2o_converters::weights::{SplitMix64, Weights};
use d2o_converters::{Architecture, Checkpoint};
use fs_err as fs;
use serde::Serialize;
use tch::{Device, Tensor};

use super::adam::{Adam, AdamConfig};
use super::dataset::{Batch, TrainingSet};
use super::discriminator::{Critic, CriticConfig};
use super::freeze::is_frozen;
use super::libtorch::{LibTorch, Named, Role, Value};
use super::loss::{LossType, discriminator_loss, edm_loss, generator_loss, mean_logit, r1_penalty};
use super::numerics::Numerics;
use super::snapshot::{self, State};

/// Share of the images seen so far that bounds the half-life of the average.
const NO_RAMPUP: f64 = 0.0;

/// What is trained.
#[derive(Debug, Clone)]
pub enum Objective {
    /// EDM's denoising loss.
    Edm,
    /// D2O: adversarial fine-tuning into a one-step generator.
    D2o(Adversarial),
}

/// Settings of the adversarial objective.
#[derive(Debug, Clone)]
pub struct Adversarial {
    /// The discriminator.
    pub critic: CriticConfig,
    /// Loss.
    pub loss: LossType,
    /// Discriminator's step size, before the correction for R1's interval.
    pub d_lr: f64,
    /// Weight of R1.
    pub r1_gamma: f64,
    /// Iterations between R1 stages; 0 turns R1 off.
    pub r1_interval: u64,
    /// Freeze level of the generator.
    pub freeze: u8,
}

/// Settings of a run.
#[derive(Debug, Clone)]
pub struct TrainConfig {
    /// What is trained.
    pub objective: Objective,
    /// The network; its class is that of the objective.
    pub net: NetConfig,
    /// Checkpoint to start from: its `ema` network.
    pub transfer: Option<PathBuf>,
    /// Folder for snapshots and logs.
    pub outdir: PathBuf,
    /// Continue from the state in `outdir`.
    pub resume: bool,
    /// Images to train on in all, thousands.
    pub duration_kimg: f64,
    /// Wall-clock limit of this run.
    pub max_seconds: Option<f64>,
    /// Images in a batch.
    pub batch: usize,
    /// Step size.
    pub lr: f64,
    /// Images over which the step size grows to its full value, thousands.
    pub lr_rampup_kimg: f64,
    /// Half-life of the average, thousands of images.
    pub ema_kimg: f64,
    /// Share of the images seen that bounds the half-life; 0 for no bound.
    pub ema_rampup: f64,
    /// Seed of everything random.
    pub seed: u64,
    /// Thousands of images between snapshots; 0 for one at the end only.
    pub snap_kimg: f64,
    /// Thousands of images between status lines.
    pub tick_kimg: f64,
    /// Where to compute.
    pub device: Device,
    /// How CUDA computes.
    pub numerics: Numerics,
}

/// One status line, also a line of `stats.jsonl`.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Images seen, thousands.
    pub kimg: f64,
    /// Seconds since the start of this run.
    pub seconds: f64,
    /// Images per second since the last line.
    pub images_per_second: f64,
    /// Seconds to the end at this pace.
    pub eta_seconds: f64,
    /// Mean losses since the last line.
    pub losses: Losses,
}

/// Means over the iterations between two status lines; absent where a stage did not run.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Losses {
    /// EDM's loss per image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edm: Option<f64>,
    /// Generator's loss per image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generator: Option<f64>,
    /// Discriminator's loss per image (generated plus real).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discriminator: Option<f64>,
    /// R1's penalty, before its weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r1: Option<f64>,
    /// Mean logit of real images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logits_real: Option<f64>,
    /// Mean logit of generated images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logits_fake: Option<f64>,
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

/// Trains as `config` says on `data`. `report` gets the status lines; `stop` is asked after every iteration.
///
/// # Errors
/// Unreadable checkpoints or states, failing operations, writing errors.
pub fn train(
    config: &TrainConfig,
    data: &TrainingSet,
    report: &mut dyn FnMut(&Status),
    stop: &dyn Fn() -> bool,
) -> anyhow::Result<Outcome> {
    config.numerics.apply();
    let mut trainer = Trainer::new(config)?;
    if config.resume {
        trainer.resume()?;
    }
    trainer.run(data, report, stop)
}

/// A network with its optimiser.
struct Trained {
    tensors: Vec<Named>,
    /// Indices into `tensors` of what the optimiser updates, in its order.
    updated: Vec<usize>,
    adam: Adam,
}

impl Trained {
    fn new(tensors: Vec<Named>, frozen: impl Fn(&str) -> bool, adam: AdamConfig) -> Self {
        let updated: Vec<usize> = tensors
            .iter()
            .enumerate()
            .filter(|(_, t)| t.role == Role::Param && !frozen(&t.path))
            .map(|(i, _)| i)
            .collect();
        let params = updated.iter().map(|i| tensors[*i].tensor.shallow_clone()).collect();
        Self { tensors, updated, adam: Adam::new(params, adam) }
    }

    fn scalars(&self, only_updated: bool) -> usize {
        let all = self.tensors.iter().enumerate().filter(|(_, t)| t.role == Role::Param);
        all.filter(|(i, _)| !only_updated || self.updated.contains(i)).map(|(_, t)| t.tensor.numel()).sum()
    }

    fn save(&self, name: &str, out: &mut Vec<d2o_converters::checkpoint::safetensors::Tensor>) -> anyhow::Result<()> {
        for t in &self.tensors {
            out.push(snapshot::stored(format!("{name}.{}", t.path), &t.tensor)?);
        }
        for (i, m) in self.updated.iter().zip(self.adam.moments()) {
            let path = &self.tensors[*i].path;
            out.push(snapshot::stored(format!("adam.{name}.first.{path}"), &m.first)?);
            out.push(snapshot::stored(format!("adam.{name}.second.{path}"), &m.second)?);
            // Exact: below 2^24 in each half.
            let steps = Tensor::f_from_slice(&[(m.steps >> 16) as f32, (m.steps & 0xffff) as f32])?;
            out.push(snapshot::stored(format!("adam.{name}.steps.{path}"), &steps)?);
        }
        Ok(())
    }

    fn restore(&mut self, name: &str, state: &State) -> anyhow::Result<()> {
        for t in &mut self.tensors {
            if t.role != Role::Buffer {
                state.restore(&format!("{name}.{}", t.path), &mut t.tensor)?;
            }
        }
        for (i, m) in self.updated.iter().zip(self.adam.moments_mut()) {
            let path = &self.tensors[*i].path;
            state.restore(&format!("adam.{name}.first.{path}"), &mut m.first)?;
            state.restore(&format!("adam.{name}.second.{path}"), &mut m.second)?;
            let steps = state.numbers(&format!("adam.{name}.steps.{path}"))?;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole numbers below 2^16")]
            let half = |i: usize| steps.get(i).map_or(0, |v| *v as u32);
            m.steps = half(0) << 16 | half(1);
        }
        Ok(())
    }
}

struct Discriminator {
    settings: Adversarial,
    critic: Critic,
    trained: Trained,
}

struct Trainer<'a> {
    config: &'a TrainConfig,
    net: Denoiser<Value>,
    generator: Trained,
    /// Averages of the generator's parameters, by index into its tensors.
    ema: Vec<(usize, Tensor)>,
    discriminator: Option<Discriminator>,
    images: u64,
    iteration: u64,
}

impl<'a> Trainer<'a> {
    fn new(config: &'a TrainConfig) -> anyhow::Result<Self> {
        let weights = match &config.transfer {
            None => Weights::initialised(config.seed),
            Some(path) => transfer(path, &config.net)?,
        };
        let mut b = LibTorch::with_weights(weights, config.device);
        let net = Denoiser::build(&mut b, &config.net)?;
        let (tensors, _) = b.finish()?;
        let (freeze, betas) = match &config.objective {
            Objective::Edm => (0, [0.9, 0.999]),
            Objective::D2o(a) => (a.freeze, [0.0, 0.99]),
        };
        let adam = AdamConfig { lr: config.lr, betas, eps: 1e-8 };
        let generator = Trained::new(tensors, |path| is_frozen(path, freeze), adam);
        let ema = generator
            .tensors
            .iter()
            .enumerate()
            .filter(|(_, t)| t.role == Role::Param)
            .map(|(i, t)| (i, t.tensor.detach().copy()))
            .collect();
        let discriminator = match &config.objective {
            Objective::Edm => None,
            Objective::D2o(settings) => Some(discriminator(settings, config)?),
        };
        Ok(Self { config, net, generator, ema, discriminator, images: 0, iteration: 0 })
    }

    fn run(
        &mut self,
        data: &TrainingSet,
        report: &mut dyn FnMut(&Status),
        stop: &dyn Fn() -> bool,
    ) -> anyhow::Result<Outcome> {
        let target = thousands(self.config.duration_kimg);
        let start = Instant::now();
        let (mut since, mut since_images, mut sums) = (start, self.images, Sums::default());
        let mut next_tick = self.images + thousands(self.config.tick_kimg).max(1);
        let snap_every = thousands(self.config.snap_kimg);
        let mut next_snap = self.images + snap_every.max(1);
        let limit = self.config.max_seconds.map(Duration::from_secs_f64);
        let mut log = String::new();
        let stopped = loop {
            let reached = self.images >= target || limit.is_some_and(|l| start.elapsed() >= l);
            let stopped = !reached && stop();
            let done = reached || stopped;
            if (done || self.images >= next_tick) && self.images > since_images {
                let elapsed = since.elapsed().as_secs_f64().max(1e-9);
                let pace = whole(self.images - since_images) / elapsed;
                let left = whole(target.saturating_sub(self.images)) / pace.max(1e-9);
                let seconds = start.elapsed().as_secs_f64();
                let remaining = limit.map_or(left, |l| left.min((l.as_secs_f64() - seconds).max(0.0)));
                let status = Status {
                    kimg: whole(self.images) / 1e3,
                    seconds,
                    images_per_second: pace,
                    eta_seconds: if done { 0.0 } else { remaining },
                    losses: sums.means(),
                };
                report(&status);
                log.push_str(&serde_json::to_string(&status)?);
                log.push('\n');
                (since, since_images, sums) = (Instant::now(), self.images, Sums::default());
                next_tick = self.images + thousands(self.config.tick_kimg).max(1);
            }
            if done {
                break stopped;
            }
            if snap_every > 0 && self.images >= next_snap {
                self.save(&mut log)?;
                next_snap = self.images + snap_every;
            }
            let batch = data.batch(self.images, self.config.batch, self.config.device)?;
            self.iterate(&batch, &mut sums)?;
        };
        let snapshot = self.save(&mut log)?;
        Ok(Outcome {
            snapshot,
            images: self.images,
            seconds: start.elapsed().as_secs_f64(),
            parameters: self.generator.scalars(false),
            trained: self.generator.scalars(true),
            stopped,
        })
    }

    fn iterate(&mut self, batch: &Batch, sums: &mut Sums) -> anyhow::Result<()> {
        // Every iteration has a seed of its own, so a resumed run continues the very same sequence.
        let seed = SplitMix64::for_path(self.config.seed ^ self.iteration, "iteration").next_u64();
        tch::manual_seed((seed >> 1).cast_signed());
        let lr_scale = (whole(self.images) / (self.config.lr_rampup_kimg * 1e3).max(1e-8)).min(1.0);
        let mut b = LibTorch::running(self.config.device, true);
        match &self.config.objective {
            Objective::Edm => {
                let Precond::Edm(edm) = self.config.net.precond else {
                    anyhow::bail!("the EDM loss trains EDMPrecond, not {}", self.config.net.class());
                };
                let loss = edm_loss(&mut b, &self.net, &batch.images, batch.labels.as_ref(), edm.sigma_data)?;
                let gradients = self.generator.adam.gradients(&loss)?;
                self.generator.adam.step(gradients, lr_scale)?;
                sums.add(|s| &mut s.edm, &loss, 1.0);
            }
            Objective::D2o(_) => self.adversarial(&mut b, batch, lr_scale, sums)?,
        }
        self.average()?;
        self.images += self.config.batch as u64;
        self.iteration += 1;
        Ok(())
    }

    fn adversarial(&mut self, b: &mut LibTorch, batch: &Batch, lr_scale: f64, sums: &mut Sums) -> anyhow::Result<()> {
        let Some(d) = &mut self.discriminator else { anyhow::bail!("no discriminator") };
        let labels = batch.labels.as_ref().map(|l| Value(l.shallow_clone()));
        let (net, kind) = (&self.net, d.settings.loss);
        #[allow(clippy::cast_precision_loss, reason = "a batch size")]
        let images = self.config.batch as f64;

        let noise = batch.images.randn_like();
        let (loss, logits) = generator_loss(b, net, &d.critic, kind, &noise, labels.as_ref())?;
        let gradients = self.generator.adam.gradients(&loss)?;
        self.generator.adam.step(gradients, lr_scale)?;
        sums.add(|s| &mut s.generator, &loss, images);
        sums.add(|s| &mut s.logits_fake, &mean_logit(&logits), 1.0);

        let noise = batch.images.randn_like();
        let (loss, real) = discriminator_loss(b, net, &d.critic, kind, &noise, &batch.images, labels.as_ref())?;
        let gradients = d.trained.adam.gradients(&loss)?;
        d.trained.adam.step(gradients, 1.0)?;
        sums.add(|s| &mut s.discriminator, &loss, images);
        sums.add(|s| &mut s.logits_real, &mean_logit(&real), 1.0);

        let interval = d.settings.r1_interval;
        if interval > 0 && self.iteration != 0 && self.iteration.is_multiple_of(interval) {
            let images = batch.images.detach().copy().set_requires_grad(true);
            let logits = d.critic.logits(b, &images, labels.as_ref())?;
            let penalty = r1_penalty(&logits, &images, d.settings.r1_gamma)?;
            let gradients = d.trained.adam.gradients(&(&penalty * whole(interval)))?;
            d.trained.adam.step(gradients, 1.0)?;
            sums.add(|s| &mut s.r1, &(penalty * (2.0 / d.settings.r1_gamma)), 1.0);
        }
        Ok(())
    }

    fn average(&mut self) -> anyhow::Result<()> {
        let mut half_life = self.config.ema_kimg * 1e3;
        if self.config.ema_rampup > NO_RAMPUP {
            half_life = half_life.min(whole(self.images) * self.config.ema_rampup);
        }
        #[allow(clippy::cast_precision_loss, reason = "a batch size")]
        let keep = 0.5_f64.powf(self.config.batch as f64 / half_life.max(1e-8));
        let _guard = tch::no_grad_guard();
        for (i, average) in &mut self.ema {
            let _ = average.f_lerp_(&self.generator.tensors[*i].tensor, 1.0 - keep)?;
        }
        Ok(())
    }

    /// Writes `network-snapshot-NNNNNN.safetensors` (the average), `training-state.safetensors` and the log so far.
    fn save(&self, log: &mut String) -> anyhow::Result<PathBuf> {
        let dir = &self.config.outdir;
        let mut network = Vec::new();
        let mut averages = self.ema.iter();
        let mut next = averages.next();
        for (i, t) in self.generator.tensors.iter().enumerate() {
            let tensor = match next {
                Some((at, average)) if *at == i => {
                    next = averages.next();
                    average
                }
                _ => &t.tensor,
            };
            network.push(snapshot::stored(format!("ema.{}", t.path), tensor)?);
        }
        let path = dir.join(format!("network-snapshot-{:06}.safetensors", self.images / 1000));
        snapshot::write(&path, &network, &snapshot::metadata(&self.config.net, &["ema"], self.images))?;

        let mut state = network;
        self.generator.save("net", &mut state)?;
        if let Some(d) = &self.discriminator {
            d.trained.save("d", &mut state)?;
        }
        let mut metadata = snapshot::metadata(&self.config.net, &["ema", "net"], self.images);
        metadata.insert("iteration".to_owned(), self.iteration.to_string());
        snapshot::write(&state_path(dir), &state, &metadata)?;

        use std::io::Write as _;
        let mut file = fs::OpenOptions::new().create(true).append(true).open(dir.join("stats.jsonl"))?;
        file.write_all(log.as_bytes())?;
        log.clear();
        Ok(path)
    }

    fn resume(&mut self) -> anyhow::Result<()> {
        let path = state_path(&self.config.outdir);
        let state = State::open(&path).with_context(|| format!("resume from `{}`", path.display()))?;
        let kwargs = self.config.net.init_kwargs().to_string();
        let same = state.get("class")? == self.config.net.class() && state.get("init_kwargs")? == kwargs;
        anyhow::ensure!(same, "`{}` holds another network than this run trains", path.display());
        self.images = state.get("images")?.parse().context("metadata `images`")?;
        self.iteration = state.get("iteration")?.parse().context("metadata `iteration`")?;
        self.generator.restore("net", &state)?;
        for (i, average) in &mut self.ema {
            state.restore(&format!("ema.{}", self.generator.tensors[*i].path), average)?;
        }
        if let Some(d) = &mut self.discriminator {
            d.trained.restore("d", &state)?;
        }
        Ok(())
    }
}

fn state_path(dir: &Path) -> PathBuf {
    dir.join("training-state.safetensors")
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

fn discriminator(settings: &Adversarial, config: &TrainConfig) -> anyhow::Result<Discriminator> {
    let net = &config.net;
    let (critic, tensors) =
        Critic::load(&settings.critic, net.img_resolution, net.label_dim, config.seed, config.device)?;
    // The step that R1 adds every `interval` iterations is taken out of the others (lazy regularisation, Karras et al. 2020).
    let interval = whole(settings.r1_interval);
    let correction = if settings.r1_interval == 0 { 1.0 } else { interval / (interval + 1.0) };
    let adam = AdamConfig { lr: settings.d_lr * correction, betas: [0.0, 0.99_f64.powf(correction)], eps: 1e-8 };
    let trained = Trained::new(tensors, |_| false, adam);
    Ok(Discriminator { settings: settings.clone(), critic, trained })
}

#[derive(Default)]
struct Sums {
    edm: Mean,
    generator: Mean,
    discriminator: Mean,
    r1: Mean,
    logits_real: Mean,
    logits_fake: Mean,
}

#[derive(Default, Clone, Copy)]
struct Mean {
    sum: f64,
    count: u32,
}

impl Sums {
    fn add(&mut self, which: impl Fn(&mut Self) -> &mut Mean, value: &Tensor, divisor: f64) {
        let mean = which(self);
        mean.sum += value.double_value(&[]) / divisor;
        mean.count += 1;
    }

    fn means(&self) -> Losses {
        let mean = |m: Mean| (m.count > 0).then(|| m.sum / f64::from(m.count));
        Losses {
            edm: mean(self.edm),
            generator: mean(self.generator),
            discriminator: mean(self.discriminator),
            r1: mean(self.r1),
            logits_real: mean(self.logits_real),
            logits_fake: mean(self.logits_fake),
        }
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "image counts, clamped at 0 by the cast")]
fn thousands(kimg: f64) -> u64 {
    (kimg * 1e3).round() as u64
}

#[allow(clippy::cast_precision_loss, reason = "image counts below 2^53")]
fn whole(count: u64) -> f64 {
    count as f64
}
