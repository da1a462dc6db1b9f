//! Adversarial training: the generator, discriminator and R1 stages of an iteration.

use std::rc::Rc;

use d2o_converters::weights::SplitMix64;
use tch::{Device, Kind, TchError, Tensor};

use super::augment::ada::{Ada, AdaPipe, AdaSettings};
use super::dataset::Batch;
use super::discriminator::{ClassRows, Critic};
use super::distillation::Distillation;
use super::generator::Generator;
use super::group::Group;
use super::libtorch::{LibTorch, Named};
use super::loss::{Adversaries, LossType, flat, r1_loss, unchanged};
use super::optimizer::{Optimizer, OptimizerConfig};
use super::snapshot::{State, Stored};
use super::stats::Collector;
use super::trained::{Metadata, Trained};
use super::trainer::{Run, as_f64, seed};
use crate::cli::LossTypeArg;

/// Statistic of the signs of the logits of real images.
const SIGNS: &str = "Loss/signs/real";

/// The discriminator in training.
pub(super) struct Discriminator {
    loss: LossType,
    r1_gamma: f64,
    r1_interval: u64,
    seed: u32,
    batch: u32,
    group: Rc<Group>,
    parts: Parts,
    trained: Trained,
    /// Distillation loss that is added to the adversarial loss.
    distillation: Option<Distillation>,
    /// Augmentation of the images that the discriminator sees. `strength` multiplies its probabilities.
    pipe: Option<AdaPipe>,
    strength: Ada,
    /// Whether ADA adjusts the strength.
    adaptive: bool,
    /// Signs of the logits of real images since the last adjustment.
    signs: Collector,
}

/// One critic for each part of a batch that this process computes. Each has its own projections; all share the heads.
struct Parts {
    critics: Vec<Critic>,
    /// Power-iteration vectors of spectral norm.
    power: Power,
}

impl Parts {
    /// Runs `stage` for each part.
    fn each(
        &mut self,
        group: &Group,
        mut stage: impl FnMut(usize, &Critic) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.power.each(group, self.critics.len(), |part| stage(part, &self.critics[part]))
    }
}

/// Power-iteration vectors of spectral norm, which each stage advances. All parts of a batch start from the same
/// vectors, and the vectors of the first part of process 0 are kept. This is the result of the original, which
/// broadcasts the vectors of rank 0.
struct Power(Vec<Tensor>);

impl Power {
    fn each(
        &mut self,
        group: &Group,
        parts: usize,
        mut stage: impl FnMut(usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let before = if parts > 1 { self.copies() } else { Vec::new() };
        stage(0)?;
        let after = if parts > 1 { self.copies() } else { Vec::new() };
        for part in 1..parts {
            self.set(&before)?;
            stage(part)?;
        }
        self.set(&after)?;
        if group.size() > 1 {
            let flat = Tensor::f_cat(&self.0.iter().map(|v| v.f_reshape([-1])).collect::<Result<Vec<_>, _>>()?, 0)?;
            group.broadcast(&flat)?;
            let sizes: Vec<i64> = self.0.iter().map(|v| v.size().iter().product()).collect();
            self.set(&flat.f_split_with_sizes(sizes, 0)?)?;
        }
        Ok(())
    }

    fn copies(&self) -> Vec<Tensor> {
        self.0.iter().map(Tensor::copy).collect()
    }

    fn set(&mut self, values: &[Tensor]) -> Result<(), TchError> {
        let _guard = tch::no_grad_guard();
        self.0.iter_mut().zip(values).try_for_each(|(vector, value)| vector.f_copy_(&value.f_view_as(vector)?))
    }
}

impl Discriminator {
    /// Loads the feature networks of `run` and initialises the other tensors. `distillation` adds its loss to the
    /// generator stage.
    ///
    /// # Errors
    /// If the options are not supported, [`Critic::load`] fails, or libtorch fails.
    pub(super) fn new(run: &Run, distillation: Option<Distillation>) -> anyhow::Result<Self> {
        let options = &run.options;
        let mut config = options.critic()?;
        if run.state.is_some() && run.net.label_dim > 0 {
            // The state contains the rows.
            config.classes = Some(ClassRows::Random);
        }
        let seed = u64::from(options.seed);
        let place = (run.device, run.kind);
        let (first, mut tensors) = Critic::load(&config, run.net.img_resolution, run.net.label_dim, seed, place)?;
        let mut critics = Vec::new();
        let own = run.parts();
        for rank in 1..options.ranks() as usize {
            // Process 0 also needs the projections of the other processes, to save them.
            if !own.contains(&rank) && !run.group.leads() {
                continue;
            }
            let device = if own.contains(&rank) { run.device } else { Device::Cpu };
            let seed = SplitMix64::for_path(seed, &format!("rank{rank}")).next_u64();
            let (critic, drawn) = first.redrawn(seed, (device, run.kind))?;
            tensors.extend(drawn.into_iter().map(|t| Named { path: format!("rank{rank}.{}", t.path), ..t }));
            if own.contains(&rank) {
                critics.push(critic);
            }
        }
        if own.contains(&0) {
            critics.insert(0, first);
        }
        let is_power = |t: &&Named| t.path.ends_with(".weight_u") || t.path.ends_with(".weight_v");
        let power = Power(tensors.iter().filter(is_power).map(|t| t.tensor.shallow_clone()).collect());
        // Lazy regularisation (Karras et al. 2020): learning rate and β₂ make up for the extra R1 step every
        // `r1_interval` iterations. As in the original, this also applies if R1 is off.
        let r1_interval = u64::from(options.r1_interval.unwrap_or(16));
        let correction = as_f64(r1_interval) / (as_f64(r1_interval) + 1.0);
        let config = OptimizerConfig {
            rule: options.optimizer,
            lr: options.dlr.unwrap_or(options.lr) * correction,
            betas: [0.0, 0.99_f64.powf(correction)],
            eps: 1e-8,
        };
        let target = options.ada_target.unwrap_or(0.0);
        #[allow(clippy::cast_possible_truncation, reason = "a probability")]
        let strength = Ada { p: options.augment_p as f32, target };
        let adaptive = target != 0.0;
        let augments = adaptive || options.augment_p > 0.0;
        Ok(Self {
            loss: match options.loss_type {
                Some(LossTypeArg::Hinge) => LossType::Hinge,
                _ => LossType::NonSaturating,
            },
            r1_gamma: options.r1_gamma.unwrap_or(0.0),
            r1_interval,
            seed: options.seed,
            batch: options.batch,
            group: Rc::clone(&run.group),
            parts: Parts { critics, power },
            trained: Trained::new(tensors, |_| false, config)?,
            distillation,
            pipe: augments.then(|| AdaPipe::new(AdaSettings::d2o(), run.device)).transpose()?,
            strength,
            adaptive,
            signs: Collector::default(),
        })
    }

    /// Runs iteration `iteration` on the parts of a batch that this process computes: an update of `generator` by its
    /// optimiser, an update of the discriminator, and an R1 update if it is due.
    ///
    /// # Errors
    /// If libtorch or the communication between processes fails.
    pub(super) fn iterate(
        &mut self,
        (generator, generator_optimizer): (Generator<'_>, &mut Optimizer),
        batches: &[Batch],
        iteration: u64,
        lr_scale: f64,
        collector: &mut Collector,
    ) -> anyhow::Result<()> {
        let Self { parts, trained: Trained { optimizer, .. }, distillation, pipe, strength, signs, .. } = self;
        let (loss, run_seed, adaptive) = (self.loss, self.seed, self.adaptive);
        let (pipe, p) = (pipe.as_ref(), strength.p);
        let group = &*self.group;
        // Parts are numbered across all processes.
        let first = group.rank() * batches.len();
        let augment = |images: &Tensor| match pipe {
            Some(pipe) => Ok(pipe.apply(images, p)?.images),
            None => unchanged(images),
        };
        #[allow(clippy::cast_precision_loss, reason = "a batch size")]
        let images = f64::from(self.batch) / (batches.len() * group.size()) as f64;
        let (device, kind) =
            batches.first().map_or((Device::Cpu, Kind::Float), |b| (b.images.device(), b.images.kind()));
        let mut b = LibTorch::running(device, true).in_kind(kind);

        optimizer.set_requires_grad(false);
        parts.each(group, |part, critic| {
            let (batch, adversaries) = (&batches[part], Adversaries { generator, critic, loss, augment: &augment });
            seed(run_seed, iteration, "generator", first + part);
            let noise = batch.images.randn_like();
            let (loss, logits) = adversaries.generator_loss(&mut b, &noise, batch.label_input().as_ref())?;
            // The adversarial loss is a sum over images, the distillation loss a mean.
            let (mut whole, mut per_image) = (loss.shallow_clone(), &loss / images);
            if let Some(distillation) = distillation {
                let distance = distillation.stage(&mut b, &generator, batch, &noise, collector)?;
                (whole, per_image) = (whole + &distance, per_image + distance);
            }
            generator_optimizer.backward(&whole)?;
            collector.report_loss("G", &per_image, 1.0)?;
            let logits = flat(&logits)?;
            collector.report("Loss/logits/fake", &logits)?;
            Ok(collector.report("Loss/probs/fake", &logits.sigmoid())?)
        })?;
        generator_optimizer.step(lr_scale, group)?;

        optimizer.set_requires_grad(true);
        parts.each(group, |part, critic| {
            let (batch, adversaries) = (&batches[part], Adversaries { generator, critic, loss, augment: &augment });
            seed(run_seed, iteration, "discriminator", first + part);
            let (noise, labels) = (batch.images.randn_like(), batch.label_input());
            let (loss, real) = adversaries.discriminator_loss(&mut b, &noise, &batch.images, labels.as_ref())?;
            optimizer.backward(&loss)?;
            collector.report_loss("D", &loss, images)?;
            let real = flat(&real)?;
            collector.report("Loss/logits/real", &real)?;
            collector.report("Loss/probs/real", &real.sigmoid())?;
            let sign = real.sign();
            if adaptive {
                signs.report(SIGNS, &sign)?;
            }
            Ok(collector.report(SIGNS, &sign)?)
        })?;
        optimizer.step(1.0, group)?;

        let (gamma, interval) = (self.r1_gamma, self.r1_interval);
        if gamma > 0.0 && iteration != 0 && iteration.is_multiple_of(interval) {
            parts.each(group, |part, critic| {
                seed(run_seed, iteration, "r1", first + part);
                let batch = &batches[part];
                let loss = r1_loss(&mut b, critic, &batch.images, batch.label_input().as_ref(), gamma)?;
                optimizer.backward(&(&loss * as_f64(interval)))?;
                collector.report("Loss/r1_penalty", &(&loss * (2.0 / gamma)))?;
                Ok(collector.report("Loss/D/r1_loss", &loss)?)
            })?;
            optimizer.step(1.0, group)?;
        }
        collector.reduce(group)?;
        signs.reduce(group)?;
        if adaptive {
            if let (true, Some(mean)) = ((iteration + 1).is_multiple_of(Ada::INTERVAL.into()), signs.mean(SIGNS)) {
                strength.update(mean, self.batch);
                signs.reset();
            }
            collector.report_shared("Progress/augment", f64::from(strength.p))?;
        }
        Ok(())
    }

    /// The heads with their optimiser.
    #[cfg(test)]
    pub(super) fn trained(&self) -> &Trained {
        &self.trained
    }

    /// Computes the generator and R1 losses on `batch` to measure their memory. Calls `alive` while everything that
    /// their gradients need is in memory. Returns the memory that the optimiser needs in addition, in bytes. Parameters
    /// and power-iteration vectors stay unchanged.
    ///
    /// # Errors
    /// If libtorch fails.
    pub(super) fn try_stages(
        &mut self,
        generator: Generator<'_>,
        batch: &Batch,
        alive: &mut dyn FnMut(),
    ) -> anyhow::Result<u64> {
        let Some(critic) = self.parts.critics.first() else { return Ok(0) };
        let before = self.parts.power.copies();
        let labels = batch.label_input();
        let mut b = LibTorch::running(batch.images.device(), true);
        let adversaries = Adversaries { generator, critic, loss: self.loss, augment: &unchanged };
        self.trained.optimizer.set_requires_grad(false);
        let noise = batch.images.randn_like();
        let loss = adversaries.generator_loss(&mut b, &noise, labels.as_ref())?;
        let stage = |d: &Distillation| d.stage(&mut b, &generator, batch, &noise, &mut Collector::default());
        let distance = self.distillation.as_ref().map(stage).transpose()?;
        alive();
        drop((loss, distance));
        self.trained.optimizer.set_requires_grad(true);
        if self.r1_gamma > 0.0 {
            let _loss = r1_loss(&mut b, critic, &batch.images, labels.as_ref(), self.r1_gamma)?;
            alive();
        }
        self.parts.power.set(&before)?;
        Ok(self.trained.optimizer.reserve())
    }

    /// All trained parameters as one vector.
    pub(super) fn parameters(&self) -> &Tensor {
        self.trained.optimizer.values()
    }

    /// Adds the tensors and metadata that a resumed run needs.
    ///
    /// # Errors
    /// If libtorch fails.
    pub(super) fn save(&self, out: &mut Vec<Stored>, metadata: &mut Metadata) -> anyhow::Result<()> {
        out.extend(self.trained.stored("d", None)?);
        self.trained.save("d", out, metadata);
        metadata.insert("augment_p".to_owned(), self.strength.p.to_bits().to_string());
        metadata.insert("signs".to_owned(), self.signs.state().to_string());
        Ok(())
    }

    /// Restores what [`Discriminator::save`] added.
    ///
    /// # Errors
    /// If the state lacks an entry, or a tensor has another shape.
    pub(super) fn restore(&mut self, state: &State, device: Device) -> anyhow::Result<()> {
        self.trained.restore("d", state)?;
        self.strength.p = f32::from_bits(u32::try_from(state.number("augment_p")?)?);
        self.signs.restore(state.get("signs")?, device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_iterations_of_the_first_part_remain() {
        let mut power =
            Power(vec![Tensor::from_slice(&[1.0_f32, 2.0]).reshape([2, 1]), Tensor::from_slice(&[3.0_f32])]);
        let seen: Vec<Tensor> = power.0.iter().map(Tensor::shallow_clone).collect();
        let mut starts = Vec::new();
        power
            .each(&Group::alone(), 3, |part| {
                starts.push(seen[0].double_value(&[1, 0]));
                let _ = seen[0].shallow_clone().f_add_scalar_(10 * i64::try_from(part)? + 1)?;
                Ok(())
            })
            .unwrap();
        assert_eq!(starts, [2.0; 3]);
        assert_eq!((seen[0].double_value(&[1, 0]), seen[1].double_value(&[0])), (3.0, 3.0));
    }
}
