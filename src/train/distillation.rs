//! Instance distillation (`run_dist_G` in `training/loss.py` of D2O). On noisy images, the generator learns the result
//! of its own steps and those of a teacher, with LPIPS as the distance. docs/train.md has the definition.

use anyhow::Context as _;
use d2o_converters::Checkpoint;
use d2o_converters::backend::{Backend as _, Sampling};
use d2o_converters::denoiser::{Denoiser, NetConfig, Sigma};
use d2o_converters::error::Result as NetResult;
use tch::{Device, Kind, TchError, Tensor};

use super::dataset::Batch;
use super::generator::{Generator, noise_levels};
use super::libtorch::{LibTorch, Value};
use super::lpips::Lpips;
use super::optimizer::Optimizer;
use super::stats::Collector;
use super::trainer::{Run, seed};
use crate::sampling::sampler::NoiseLevels;

/// Height and width of the images that LPIPS compares, pixels.
const COMPARED: usize = 224;

/// How positions on the noise schedule are sampled, and how the steps between them are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Progressive distillation (Salimans and Ho 2022).
    Pd,
    /// Consistency distillation (Song et al. 2023).
    Cd,
    /// Consistency trajectories (Kim et al. 2024).
    Ctm,
    /// From the highest noise level; the last step is that of the teacher.
    Rcd,
}

/// Positions of the images of a batch on the grid of noise levels: 0 is the lowest level, the number of steps the
/// highest. Two steps lead from t to u to s.
#[derive(Debug, Clone, PartialEq)]
pub struct Positions {
    /// Positions of the noisy images.
    pub t: Vec<f64>,
    /// Positions after the first step.
    pub u: Vec<f64>,
    /// Positions after the second step.
    pub s: Vec<f64>,
}

impl Positions {
    /// Draws the positions of `count` images from libtorch's generator of the CPU.
    ///
    /// # Errors
    /// If libtorch fails, for example because the rule does not support `max_steps`.
    pub fn draw(rule: Rule, max_steps: u32, count: usize) -> Result<Self, TchError> {
        let (most, shape) = (f64::from(max_steps), [i64::try_from(count).unwrap_or(i64::MAX)]);
        let floats = |t: Tensor| Vec::<f64>::try_from(t.f_to_kind(Kind::Double)?);
        // Integers from `low` to `high`.
        let whole_range = |low: u32, high: u32| {
            let drawn = Tensor::f_randint_low(low.into(), i64::from(high) + 1, shape, (Kind::Int64, Device::Cpu))?;
            floats(drawn)
        };
        // The same with bounds for each image, and with the rounding of the original.
        let between = |bounds: &dyn Fn(usize) -> [f64; 2]| {
            const MARGIN: f64 = 0.4999;
            let shares = floats(Tensor::f_rand(shape, (Kind::Float, Device::Cpu))?)?;
            let place = |(i, share): (usize, f64)| {
                let [low, high] = bounds(i);
                let (low, high) = (low - MARGIN, high + MARGIN);
                (share * (high - low) + low).round_ties_even()
            };
            Ok::<_, TchError>(shares.into_iter().enumerate().map(place).collect::<Vec<f64>>())
        };
        let each = |of: &dyn Fn(usize) -> f64| (0..count).map(of).collect::<Vec<f64>>();
        Ok(match rule {
            Rule::Pd => {
                // One of the coarser grids of 1, 2, 4, … steps, and one of its steps.
                let steps: Vec<f64> = whole_range(0, max_steps.ilog2() - 1)?.into_iter().map(f64::exp2).collect();
                let end = between(&|i| [1.0, steps[i]])?;
                let at = |back: f64| each(&|i| (end[i] - back) * most / steps[i]);
                Self { t: at(0.0), u: at(0.5), s: at(1.0) }
            }
            Rule::Ctm => {
                let t = whole_range(2, max_steps)?;
                let u = between(&|i| [1.0, t[i] - 1.0])?;
                let s = between(&|i| [0.0, u[i] - 1.0])?;
                Self { t, u, s }
            }
            Rule::Rcd => {
                let s = between(&|_| [0.0, most - 2.0])?;
                Self { t: vec![most; count], u: each(&|i| s[i] + 1.0), s }
            }
            Rule::Cd => {
                let t = whole_range(2, max_steps)?;
                Self { u: each(&|i| t[i] - 1.0), s: vec![0.0; count], t }
            }
        })
    }
}

/// Teacher, rule and distance of a distillation.
#[derive(Debug)]
pub struct Distillation {
    rule: Rule,
    max_steps: u32,
    teacher: Denoiser<Value>,
    lpips: Lpips,
}

impl Distillation {
    /// Distillation of `teacher` by `rule` on a grid of `max_steps` steps.
    #[must_use]
    pub fn new(rule: Rule, max_steps: u32, teacher: Denoiser<Value>, lpips: Lpips) -> Self {
        Self { rule, max_steps, teacher, lpips }
    }

    /// Loads the teacher and LPIPS of `run`, if it has a teacher.
    ///
    /// # Errors
    /// If a file is missing, unreadable or of another network, or the teacher does not fit the generator.
    pub(super) fn load(run: &Run) -> anyhow::Result<Option<Self>> {
        let options = &run.options;
        let (Some(rule), Some(target)) = (options.teacher(), &options.target) else { return Ok(None) };
        let describe = || format!("cannot use the teacher `{}`", target.display());
        let checkpoint = Checkpoint::open(target).with_context(describe)?;
        let network = checkpoint.network(None).with_context(describe)?;
        let config = network.architecture.denoiser().with_context(describe)?;
        ensure_fits(&config, &run.net).with_context(describe)?;
        let mut b = LibTorch::with_weights(network.weights(), run.device).in_kind(run.kind).frozen();
        let teacher = Denoiser::build(&mut b, &config).with_context(describe)?;
        let lpips = Lpips::load(&b, &options.lpips_weights)?;
        b.finish().with_context(describe)?;
        Ok(Some(Self::new(rule, options.max_steps(), teacher, lpips)))
    }

    /// Runs an iteration without a discriminator: one update of the generator by its optimiser.
    ///
    /// # Errors
    /// If libtorch or the communication between processes fails.
    pub(super) fn iterate(
        &self,
        run: &Run,
        (generator, optimizer): (&Generator<'_>, &mut Optimizer),
        batches: &[Batch],
        iteration: u64,
        lr_scale: f64,
        collector: &mut Collector,
    ) -> anyhow::Result<()> {
        for (rank, batch) in run.parts().zip(batches) {
            seed(run.options.seed, iteration, "generator", rank);
            let noise = batch.images.randn_like();
            let mut b = LibTorch::running(batch.images.device(), true).in_kind(batch.images.kind());
            let loss = self.stage(&mut b, generator, batch, &noise, collector)?;
            optimizer.backward(&loss)?;
            collector.report_loss("G", &loss, 1.0)?;
        }
        optimizer.step(lr_scale, &run.group)?;
        collector.reduce(&run.group)
    }

    /// Loss of a batch at random positions. Reports it to `collector`.
    ///
    /// # Errors
    /// If libtorch fails.
    pub(super) fn stage(
        &self,
        b: &mut LibTorch,
        generator: &Generator<'_>,
        batch: &Batch,
        noise: &Tensor,
        collector: &mut Collector,
    ) -> anyhow::Result<Tensor> {
        let count = usize::try_from(batch.images.size()[0])?;
        let positions = Positions::draw(self.rule, self.max_steps, count)?;
        let labels = batch.label_input();
        let loss = self.loss(b, generator, &batch.images, noise, labels.as_ref(), &positions)?;
        collector.report("Loss/dist/fake", &loss)?;
        Ok(loss)
    }

    /// Mean over the batch of LPIPS between the output of `generator` on `images [B, 3, H, W]` with `noise` of unit
    /// variance and the target. The target requires no gradients.
    ///
    /// # Errors
    /// `Engine` if libtorch fails.
    pub fn loss(
        &self,
        b: &mut LibTorch,
        generator: &Generator<'_>,
        images: &Tensor,
        noise: &Tensor,
        labels: Option<&Value>,
        at: &Positions,
    ) -> NetResult<Tensor> {
        let t = self.levels(&at.t, images);
        let noisy = images + noise * column(&t);
        let target = tch::no_grad(|| self.target(b, generator, &noisy, labels, at))?;
        let found = generator.denoise(b, &noisy, &Sigma::PerImage(Value(t)), labels)?;
        let mut resized = |x| b.resize_bilinear(&Value(x), [COMPARED; 2], Sampling::HalfPixel);
        let (found, target) = (resized(found)?, resized(target)?);
        Ok(self.lpips.distances(b, &found.0, &target.0)?.mean(images.kind()))
    }

    fn target(
        &self,
        b: &mut LibTorch,
        generator: &Generator<'_>,
        noisy: &Tensor,
        labels: Option<&Value>,
        at: &Positions,
    ) -> NetResult<Tensor> {
        let first = self.step(b, generator, noisy, labels, [&at.t, &at.u])?;
        let second = self.step(b, generator, &first, labels, [&at.u, &at.s])?;
        match self.rule {
            Rule::Cd => Ok(second),
            Rule::Ctm => self.step(b, generator, &second, labels, [&at.s, &vec![0.0; at.s.len()]]),
            // The image at noise level 0 on the straight line through the points at t and s.
            Rule::Pd | Rule::Rcd => {
                let [t, s] = [&at.t, &at.s].map(|p| column(&self.levels(p, noisy)));
                Ok((second - noisy) / (&t - s) * t + noisy)
            }
        }
    }

    /// Moves `x` from the positions `from` to the positions `to`: between neighbours by a step of the teacher (Heun),
    /// otherwise by a step of the generator (Euler).
    fn step(
        &self,
        b: &mut LibTorch,
        generator: &Generator<'_>,
        x: &Tensor,
        labels: Option<&Value>,
        [from, to]: [&[f64]; 2],
    ) -> NetResult<Tensor> {
        let taught: Vec<bool> = from.iter().zip(to).map(|(from, to)| from - to == 1.0).collect();
        let [from, to] = [from, to].map(|p| self.levels(p, x));
        let slope = |clean: &Tensor, x: &Tensor, sigma: &Tensor| (clean - x) / column(sigma);
        let distance = column(&from) - column(&to);
        let sigma = |level: &Tensor| Sigma::PerImage(Value(level.shallow_clone()));
        let heun = if taught.contains(&true) {
            let mut still = LibTorch::running(b.device(), false).in_kind(b.kind());
            let mut clean = |x: &Tensor, level: &Tensor| -> NetResult<Tensor> {
                let x = Value(x.shallow_clone());
                Ok(self.teacher.denoise(&mut still, &x, &sigma(level), labels)?.0)
            };
            let first = slope(&clean(x, &from)?, x, &from);
            let end = &first * &distance + x;
            let second = slope(&clean(&end, &to)?, &end, &to);
            Some((first * 0.5 + second * 0.5) * &distance + x)
        } else {
            None
        };
        if let (Some(heun), false) = (&heun, taught.contains(&false)) {
            return Ok(heun.shallow_clone());
        }
        let clean = generator.denoise(b, x, &sigma(&from), labels)?;
        let euler = slope(&clean, x, &from) * distance + x;
        let Some(heun) = heun else { return Ok(euler) };
        let mask = column(&Tensor::from_slice(&taught).to_device(x.device()));
        b.ok("where", heun.f_where_self(&mask, &euler))
    }

    /// Noise levels `[B]` at `positions`, on the device and with the element type of `like`.
    fn levels(&self, positions: &[f64], like: &Tensor) -> Tensor {
        let (grid, most): (NoiseLevels, _) = (noise_levels(self.max_steps), f64::from(self.max_steps));
        let levels: Vec<f64> = positions.iter().map(|p| grid.level(1.0 - p / most)).collect();
        Tensor::from_slice(&levels).to_kind(like.kind()).to_device(like.device())
    }
}

/// `values [B]` as `[B, 1, 1, 1]`.
fn column(values: &Tensor) -> Tensor {
    values.reshape([-1, 1, 1, 1])
}

/// An error unless `teacher` is an EDM denoiser for images and classes of the generator `net`.
fn ensure_fits(teacher: &NetConfig, net: &NetConfig) -> anyhow::Result<()> {
    anyhow::ensure!(teacher.class() == "EDMPrecond", "expected EDMPrecond, found {}", teacher.class());
    anyhow::ensure!(
        (teacher.img_resolution, teacher.img_channels) == (net.img_resolution, net.img_channels),
        "expected a network of {}-pixel images of {} channels, found {} and {}",
        net.img_resolution,
        net.img_channels,
        teacher.img_resolution,
        teacher.img_channels
    );
    anyhow::ensure!(
        [0, net.label_dim].contains(&teacher.label_dim),
        "expected a network of {} classes, like the generator, or none, found {}",
        net.label_dim,
        teacher.label_dim
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_lie_where_the_rules_put_them() {
        const STEPS: u32 = 16;
        let most = f64::from(STEPS);
        tch::manual_seed(1);
        let draw = |rule| {
            let Positions { t, u, s } = Positions::draw(rule, STEPS, 4000).unwrap();
            t.into_iter().zip(u).zip(s).map(|((t, u), s)| [t, u, s]).collect::<Vec<_>>()
        };
        let seen = |all: &[[f64; 3]], which: usize| {
            let mut values: Vec<f64> = all.iter().map(|p| p[which]).collect();
            values.sort_by(f64::total_cmp);
            values.dedup();
            values
        };
        let range = |low: u32, high: u32| (low..=high).map(f64::from).collect::<Vec<_>>();

        let pd = draw(Rule::Pd);
        // Grids of 1, 2, 4 and 8 steps. Half-steps of the last are steps of the teacher.
        assert!(pd.iter().all(|[t, u, s]| t - u == u - s && *s >= 0.0 && *t <= most && most % (t - s) == 0.0));
        let lengths: Vec<_> = pd.iter().map(|[t, _, s]| [t - s, 0.0, 0.0]).collect();
        assert_eq!(seen(&lengths, 0), [2.0, 4.0, 8.0, 16.0]);
        assert_eq!((seen(&pd, 0), seen(&pd, 1)), ((1..=8).map(|i| f64::from(2 * i)).collect(), range(1, 15)));

        let cd = draw(Rule::Cd);
        assert!(cd.iter().all(|[t, u, s]| t - u == 1.0 && *s == 0.0));
        assert_eq!(seen(&cd, 0), range(2, 16));

        let ctm = draw(Rule::Ctm);
        assert!(ctm.iter().all(|[t, u, s]| t > u && u > s));
        assert_eq!([0, 1, 2].map(|i| seen(&ctm, i)), [range(2, 16), range(1, 15), range(0, 14)]);

        let rcd = draw(Rule::Rcd);
        assert!(rcd.iter().all(|[t, u, s]| *t == most && u - s == 1.0));
        assert_eq!(seen(&rcd, 2), range(0, 14));
        // The ends of a range are as likely as the rest of it.
        let last = rcd.iter().filter(|p| p[2] == 14.0).count();
        assert!((200..340).contains(&last), "{last}");
    }
}
