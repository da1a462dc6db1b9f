//! Adam (Kingma and Ba 2015) and RAdam (Liu et al. 2020) over one flat buffer, with a state that can be saved.
//!
//! All parameters are views of one tensor, and so are their gradients: an update is a few passes over flat memory.

use tch::{Kind, TchError, Tensor};

use super::group::Group;
use super::libtorch::int;
pub use crate::cli::Rule;

/// Hyperparameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizerConfig {
    /// Update rule.
    pub rule: Rule,
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first and second moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
}

/// The optimiser of one network.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    params: Vec<Tensor>,
    /// A view of `gradients` for each parameter.
    slots: Vec<Tensor>,
    values: Tensor,
    gradients: Tensor,
    /// Absent with β₁ = 0, where it equals the gradient.
    first: Option<Tensor>,
    second: Tensor,
    scratch: Tensor,
    steps: u64,
    /// Number of losses with gradients added since the last update.
    added: u32,
}

/// Elements that are updated at a time on the CPU, so that intermediate values stay in the cache.
const CHUNK: i64 = 1 << 18;
/// Parameters start at multiples of this number of elements: 64 bytes of f32, the alignment of libtorch's tensors.
const ALIGN: usize = 16;

impl Optimizer {
    /// The optimiser of `params`, leaf tensors of one element type and device. They become views of one flat buffer,
    /// also for other handles of the same tensors.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn new(mut params: Vec<Tensor>, config: OptimizerConfig) -> Result<Self, TchError> {
        let _guard = tch::no_grad_guard();
        let length: usize = params.iter().map(|p| p.numel().next_multiple_of(ALIGN)).sum();
        let options = params.first().map_or((Kind::Float, tch::Device::Cpu), |p| (p.kind(), p.device()));
        let zeros = |length: i64| Tensor::f_zeros([length], options);
        let (values, gradients) = (zeros(int(length))?, zeros(int(length))?);
        let slots = views(&params, &gradients)?;
        let places = views(&params, &values)?;
        for (p, mut value) in params.iter_mut().zip(places) {
            value.f_copy_(p)?;
            p.f_set_data(&value)?;
        }
        let chunk = if options.1.is_cuda() { int(length) } else { int(length).min(CHUNK) };
        let first = (config.betas[0] != 0.0).then(|| zeros(int(length))).transpose()?;
        let (second, scratch) = (zeros(int(length))?, zeros(chunk)?);
        Ok(Self { config, params, slots, values, gradients, first, second, scratch, steps: 0, added: 0 })
    }

    /// Memory that updates need in addition to that in use now, bytes. On CUDA these are the gradients of libtorch. A CPU
    /// gives memory to zeros when they are first written, so there the gradients as one vector and the moments are
    /// counted too.
    #[must_use]
    pub fn reserve(&self) -> u64 {
        let vectors = if self.values.device().is_cuda() { 1 } else { 3 + u64::from(self.first.is_some()) };
        vectors * (self.values.numel() * self.values.kind().elt_size_in_bytes()) as u64
    }

    /// All parameters as one vector. Each is padded with zeros to a multiple of 16 elements.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// Views of `flat`, one for each parameter and in its shape. `flat` has the layout of [`Optimizer::values`].
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn views(&self, flat: &Tensor) -> Result<Vec<Tensor>, TchError> {
        views(&self.params, flat)
    }

    /// Sets whether operations on the parameters are recorded for gradients. `false` saves memory when only another
    /// network is trained through these parameters.
    pub fn set_requires_grad(&self, on: bool) {
        for p in &self.params {
            let _ = p.set_requires_grad(on);
        }
    }

    /// Adds the gradients of `loss` to those of the next update. A parameter that the loss does not depend on gets
    /// zeros.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn backward(&mut self, loss: &Tensor) -> Result<(), TchError> {
        let found = Tensor::f_run_backward(&[loss], &self.params, false, false)?;
        let _guard = tch::no_grad_guard();
        for (slot, gradient) in self.slots.iter_mut().zip(found) {
            match (gradient.defined(), self.added) {
                (true, 0) => slot.f_copy_(&gradient)?,
                (true, _) => _ = slot.f_add_(&gradient)?,
                (false, 0) => _ = slot.f_zero_()?,
                (false, _) => {}
            }
        }
        self.added += 1;
        Ok(())
    }

    /// Updates the parameters with the mean of the gradients that the processes of `group` have added since the last
    /// update. All must have added the same number. NaN counts as 0 and infinities as ±1e5. `lr_scale` multiplies the
    /// learning rate.
    ///
    /// # Errors
    /// If libtorch or the communication between processes fails.
    pub fn step(&mut self, lr_scale: f64, group: &Group) -> anyhow::Result<()> {
        const LARGE: f64 = 1e5;
        let _guard = tch::no_grad_guard();
        group.sum(&self.gradients)?;
        #[allow(clippy::cast_precision_loss, reason = "a number of processes")]
        let added = f64::from(self.added) * group.size() as f64;
        if added > 1.0 {
            let _ = self.gradients.f_div_scalar_(added)?;
        }
        self.added = 0;
        self.steps += 1;
        let [b1, b2] = self.config.betas;
        let update = self.update();
        let length = self.values.size()[0];
        let mut start = 0;
        while start < length {
            let count = self.scratch.size()[0].min(length - start);
            let part = |t: &Tensor| t.f_narrow(0, start, count);
            let mut gradient = part(&self.gradients)?;
            let (mut value, mut second) = (part(&self.values)?, part(&self.second)?);
            let mut scratch = self.scratch.f_narrow(0, 0, count)?;
            let _ = gradient.f_nan_to_num_(0.0, LARGE, -LARGE)?;
            scratch.f_copy_(&gradient)?;
            let _ = second.f_lerp_(&scratch.f_square_()?, 1.0 - b2)?;
            let direction = match &self.first {
                None => gradient,
                Some(first) => part(first)?.f_lerp_(&gradient, 1.0 - b1)?,
            };
            let rate = update.rate * lr_scale;
            if rate != 0.0 {
                match update.eps {
                    Some(eps) => {
                        scratch.f_copy_(&second)?;
                        let _ = scratch.f_sqrt_()?.f_add_scalar_(eps)?.f_mul_scalar_(-1.0 / rate)?;
                        let _ = value.f_addcdiv_(&direction, &scratch)?;
                    }
                    None => {
                        scratch.f_copy_(&direction)?;
                        let _ = value.f_add_(&scratch.f_mul_scalar_(-rate)?)?;
                    }
                }
            }
            start += count;
        }
        Ok(())
    }

    /// Coefficients of the update after `self.steps` steps: −rate · first / (√second + eps), or −rate · first without
    /// `eps`.
    #[allow(clippy::cast_precision_loss, reason = "a step count")]
    fn update(&self) -> Update {
        let OptimizerConfig { rule, lr, betas: [b1, b2], eps } = self.config;
        let t = self.steps as f64;
        let (first, second) = (1.0 - b1.powf(t), 1.0 - b2.powf(t));
        match rule {
            Rule::Adam => Update { rate: lr * second.sqrt() / first, eps: Some(eps * second.sqrt()) },
            Rule::Radam => {
                let longest = 2.0 / (1.0 - b2) - 1.0;
                let length = longest - 2.0 * t * b2.powf(t) / second;
                if length <= 5.0 {
                    return Update { rate: lr / first, eps: None };
                }
                let rectified =
                    (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length);
                Update { rate: lr * rectified.sqrt() * second.sqrt() / first, eps: Some(eps) }
            }
        }
    }

    /// The moments by name, for saving and restoring. Each has the layout of [`Optimizer::values`].
    pub fn moments(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        self.first.iter().map(|t| ("first", t)).chain([("second", &self.second)])
    }

    /// Number of updates so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Sets the number of updates so far.
    pub fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }
}

/// Views of `flat`, one for each parameter and in its shape, at multiples of [`ALIGN`].
fn views(params: &[Tensor], flat: &Tensor) -> Result<Vec<Tensor>, TchError> {
    let mut start = 0;
    let view = |p: &Tensor| {
        let view = flat.f_narrow(0, start, int(p.numel()))?.f_view(p.size().as_slice());
        start += int(p.numel().next_multiple_of(ALIGN));
        view
    };
    params.iter().map(view).collect()
}

struct Update {
    rate: f64,
    eps: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Twelve updates of five parameters in two tensors with given gradients, among them NaN, an infinity and a zero.
    fn run(rule: Rule, betas: [f64; 2], scale: impl Fn(f64) -> f64) -> [Vec<f64>; 2] {
        let a = Tensor::from_slice(&[0.5, -1.0, 2.0]).set_requires_grad(true);
        let b = Tensor::from_slice(&[3.0, -0.25]).reshape([1, 2]).set_requires_grad(true);
        let config = OptimizerConfig { rule, lr: 1e-2, betas, eps: 1e-8 };
        let mut optimizer = Optimizer::new(vec![a.shallow_clone(), b.shallow_clone()], config).unwrap();
        let mut average = optimizer.values().copy();
        for t in 0..12 {
            let t = f64::from(t);
            let mut g = [0, 1, 2, 3, 4].map(|i| (1.7 * f64::from(i) + 0.9 * t).sin() * 10_f64.powi(i - 2));
            if t == 4.0 {
                (g[1], g[3]) = (f64::NAN, f64::INFINITY);
            }
            if t == 5.0 {
                g[4] = 0.0;
            }
            let loss = (&a * Tensor::from_slice(&g[..3])).sum(Kind::Double)
                + (&b * Tensor::from_slice(&g[3..])).sum(Kind::Double);
            optimizer.backward(&loss).unwrap();
            optimizer.step(scale(t), &Group::alone()).unwrap();
            super::super::trained::average(
                &mut average,
                optimizer.values(),
                super::super::trained::ema_decay(8, t * 8.0, 500.0, 0.05, 0.0),
            )
            .unwrap();
        }
        let of = |views: &[Tensor]| -> Vec<f64> {
            views.iter().flat_map(|v| Vec::<f64>::try_from(&v.reshape([-1])).unwrap()).collect()
        };
        [of(&[a, b]), of(&optimizer.views(&average).unwrap())]
    }

    // PyTorch 2.11 in f64: torch.optim.Adam and RAdam on the same gradients after nan_to_num, and p.lerp(ema, r).
    #[test]
    fn updates_and_averages_are_pytorchs() {
        let close = |what: &str, found: [Vec<f64>; 2], expected: [[f64; 5]; 2]| {
            for (found, expected) in found.iter().zip(expected) {
                for (f, e) in found.iter().zip(expected) {
                    assert!((f - e).abs() <= 1e-12 * e.abs().max(1.0), "{what}: {found:?}");
                }
            }
        };
        let found = run(Rule::Adam, [0.0, 0.99], |_| 1.0);
        close(
            "Adam",
            found,
            [
                [
                    0.473_296_253_207_046_8,
                    -0.999_152_987_248_662_7,
                    2.028_102_461_533_613,
                    2.969_791_680_438_828,
                    -0.283_707_265_622_394_34,
                ],
                [
                    0.472_029_951_013_324_5,
                    -1.003_569_754_935_346_4,
                    2.030_477_342_634_764_4,
                    2.969_792_587_438_106,
                    -0.287_259_714_211_239_4,
                ],
            ],
        );
        let found = run(Rule::Adam, [0.9, 0.999], |t| (t / 4.0).min(1.0));
        close(
            "Adam with momentum",
            found,
            [
                [
                    0.476_045_414_927_574_5,
                    -1.015_677_772_032_067_3,
                    2.023_807_215_882_066_6,
                    2.972_709_308_067_695,
                    -0.286_281_879_402_082_16,
                ],
                [
                    0.476_869_056_038_463,
                    -1.015_947_269_688_956_9,
                    2.023_147_168_844_762_4,
                    2.973_600_604_673_000_4,
                    -0.285_353_570_809_566_7,
                ],
            ],
        );
        let found = run(Rule::Radam, [0.0, 0.99], |_| 1.0);
        close(
            "RAdam",
            found,
            [
                [
                    0.498_557_424_812_284_8,
                    -0.998_671_532_539_462_4,
                    2.016_669_225_202_423_6,
                    -997.037_175_859_863_4,
                    -1.565_360_463_421_866,
                ],
                [
                    0.498_313_514_609_299_2,
                    -0.999_463_936_394_055_7,
                    2.017_111_936_112_647_7,
                    -997.037_103_870_262_3,
                    -1.566_014_546_858_037_8,
                ],
            ],
        );
        let found = run(Rule::Adam, [0.0, 0.99_f64.powf(16.0 / 17.0)], |_| 1.0);
        close(
            "lazy Adam",
            found,
            [
                [
                    0.473_291_357_498_704_55,
                    -0.999_151_116_572_120_6,
                    2.028_105_706_444_815_6,
                    2.969_778_686_928_546_3,
                    -0.283_708_842_605_919_3,
                ],
                [
                    0.472_025_157_302_629_67,
                    -1.003_568_156_155_357_5,
                    2.030_480_494_224_187,
                    2.969_779_593_539_612,
                    -0.287_261_285_863_531_3,
                ],
            ],
        );
    }

    #[test]
    fn an_undefined_gradient_is_a_gradient_of_zeros() {
        let p = [1.0_f32, 2.0].map(|v| Tensor::from_slice(&[v]).set_requires_grad(true));
        let config = OptimizerConfig { rule: Rule::Adam, lr: 0.1, betas: [0.0, 0.5], eps: 1e-8 };
        let mut optimizer = Optimizer::new(p.iter().map(Tensor::shallow_clone).collect(), config).unwrap();
        for loss in [&p[0] * 3.0 + &p[1] * 4.0, &p[0] * 3.0] {
            optimizer.backward(&loss.sum(Kind::Float)).unwrap();
            optimizer.step(1.0, &Group::alone()).unwrap();
        }
        // The second moment decays, and the parameter stays.
        let second = optimizer.moments().find(|(name, _)| *name == "second").unwrap().1;
        assert_eq!(optimizer.views(second).unwrap()[1].double_value(&[0]), 0.5 * 0.5 * 16.0);
        assert!((p[1].double_value(&[0]) - 1.9).abs() < 1e-6 && optimizer.steps() == 2);
    }

    #[test]
    fn gradients_of_several_losses_are_averaged() {
        let ends = [1, 2].map(|parts| {
            let p = Tensor::from_slice(&[1.0_f64]).set_requires_grad(true);
            let config = OptimizerConfig { rule: Rule::Radam, lr: 0.1, betas: [0.0, 0.99], eps: 1e-8 };
            let mut optimizer = Optimizer::new(vec![p.shallow_clone()], config).unwrap();
            for factor in if parts == 1 { vec![3.0] } else { vec![2.0, 4.0] } {
                optimizer.backward(&(&p * factor).sum(Kind::Double)).unwrap();
            }
            optimizer.step(1.0, &Group::alone()).unwrap();
            p.double_value(&[0])
        });
        assert!((ends[0] - ends[1]).abs() < 1e-15 && (ends[0] - 0.7).abs() < 1e-12, "{ends:?}");
    }
}
