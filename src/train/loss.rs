//! Losses: the denoising losses of EDM, VP and VE, the adversarial losses of D2O, R1.

use d2o_converters::denoiser::{Denoiser, Sigma};
use d2o_converters::error::Result as NetResult;
use d2o_converters::generators::backbone::Labels;
use d2o_converters::registry::Precond;
use tch::{Device, Kind, Tensor};

use super::augment::Augmented;
use super::augment::edm::EdmPipe;
use super::discriminator::Critic;
use super::generator::{Generator, dropped};
use super::libtorch::{LibTorch, Value};

/// Kind of adversarial loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossType {
    /// Non-saturating (softplus), used in all presets.
    NonSaturating,
    /// Hinge.
    Hinge,
}

impl LossType {
    /// Loss of the generator from the logits `[B, L]` of its images, one tensor per feature network: mean over logits,
    /// sum over networks and images.
    pub fn generator(self, fake: &[Tensor]) -> Tensor {
        sum_of_means(fake, |fake| match self {
            Self::NonSaturating => fake.neg().softplus(),
            Self::Hinge => fake.neg(),
        })
    }

    /// Loss of the discriminator from the logits `[B, L]` of generated and real images, one tensor per feature network.
    pub fn discriminator(self, fake: &[Tensor], real: &[Tensor]) -> Tensor {
        let of_fake = sum_of_means(fake, |fake| match self {
            Self::NonSaturating => fake.softplus(),
            Self::Hinge => (fake + 1.0).relu(),
        });
        let of_real = sum_of_means(real, |real| match self {
            Self::NonSaturating => real.neg().softplus(),
            Self::Hinge => (real.neg() + 1.0).relu(),
        });
        of_fake + of_real
    }
}

fn sum_of_means(logits: &[Tensor], per_logit: impl Fn(&Tensor) -> Tensor) -> Tensor {
    let of = |logits: &Tensor| per_logit(logits).mean_dim(1, false, logits.kind()).sum(logits.kind());
    logits.iter().map(of).sum()
}

/// All logits `[B, L]` of all feature networks as one vector.
///
/// # Errors
/// If libtorch fails.
pub fn flat(logits: &[Tensor]) -> Result<Tensor, tch::TchError> {
    let rows = logits.iter().map(|l| l.f_reshape([-1])).collect::<Result<Vec<_>, _>>()?;
    Tensor::f_cat(&rows, 0)
}

/// R1 loss of the discriminator: γ/2 times the squared norm of the gradient of the logits with respect to real `images [B, C, H, W]`, mean over images.
///
/// # Errors
/// If libtorch fails.
pub fn r1_loss(
    b: &mut LibTorch,
    critic: &Critic,
    images: &Tensor,
    labels: Option<&Value>,
    gamma: f64,
) -> anyhow::Result<Tensor> {
    let real = images.detach().copy().set_requires_grad(true);
    let logits = critic.logits(b, &real, labels)?;
    Ok(r1_penalty(&logits, &real, gamma)?)
}

/// [`r1_loss`] from the `logits` of each feature network; `images` require gradients.
fn r1_penalty(logits: &[Tensor], images: &Tensor, gamma: f64) -> Result<Tensor, tch::TchError> {
    let kind = images.kind();
    let sum: Tensor = logits.iter().map(|l| l.f_sum(kind)).sum::<Result<Tensor, _>>()?;
    let grads = Tensor::f_run_backward(&[sum], &[images], true, true)?;
    let grad = &grads[0];
    let penalty = grad.f_square()?.f_sum_dim_intlist([1_i64, 2, 3].as_slice(), false, kind)?;
    penalty.f_mul_scalar(gamma / 2.0)?.f_mean(kind)
}

/// Augmentation of the images that the discriminator gets in the two main stages.
pub type Augment<'a> = dyn Fn(&Tensor) -> Result<Tensor, tch::TchError> + 'a;

/// The images unchanged.
///
/// # Errors
/// Never; the signature is that of [`Augment`].
pub fn unchanged(images: &Tensor) -> Result<Tensor, tch::TchError> {
    Ok(images.shallow_clone())
}

/// A generator and the discriminator it is trained against.
#[derive(Clone, Copy)]
pub struct Adversaries<'a> {
    /// Generator.
    pub generator: Generator<'a>,
    /// Discriminator.
    pub critic: &'a Critic,
    /// Loss.
    pub loss: LossType,
    /// Augmentation of the images that the discriminator gets in the two main stages.
    pub augment: &'a Augment<'a>,
}

impl Adversaries<'_> {
    /// Loss of the generator, and the logits of its images.
    ///
    /// # Errors
    /// `Engine` if libtorch fails.
    pub fn generator_loss(
        &self,
        b: &mut LibTorch,
        noise: &Tensor,
        labels: Option<&Value>,
    ) -> NetResult<(Tensor, Vec<Tensor>)> {
        let images = self.generator.images(b, noise, labels)?;
        let logits = self.logits(b, &images, labels)?;
        Ok((self.loss.generator(&logits), logits))
    }

    /// Loss of the discriminator, and the logits of the real `images`. The generator gets no gradients.
    ///
    /// # Errors
    /// `Engine` if libtorch fails.
    pub fn discriminator_loss(
        &self,
        b: &mut LibTorch,
        noise: &Tensor,
        images: &Tensor,
        labels: Option<&Value>,
    ) -> NetResult<(Tensor, Vec<Tensor>)> {
        let fake = tch::no_grad(|| self.generator.images(b, noise, labels))?;
        let fake = self.logits(b, &fake, labels)?;
        let real = self.logits(b, images, labels)?;
        Ok((self.loss.discriminator(&fake, &real), real))
    }

    fn logits(&self, b: &mut LibTorch, images: &Tensor, labels: Option<&Value>) -> NetResult<Vec<Tensor>> {
        let seen = b.ok("augment", (self.augment)(images))?;
        self.critic.logits(b, &seen, labels)
    }
}

/// Noise levels at which a denoiser is trained, and the weight of its error at each.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum NoiseLevels {
    /// EDM (Karras et al. 2022): ln σ ~ N(−1.2, 1.2²), weight (σ² + σ_data²)/(σ·σ_data)².
    Edm {
        /// Standard deviation of the data.
        sigma_data: f64,
    },
    /// Variance-preserving diffusion (Song et al. 2021): t uniform in [1e-5, 1], weight 1/σ².
    Vp,
    /// Variance-exploding diffusion (Song et al. 2021): ln σ uniform from ln 0.02 to ln 100, weight 1/σ².
    Ve,
}

impl NoiseLevels {
    /// Noise levels to train a network with the preconditioner `precond`, if it can be trained here.
    #[must_use]
    pub fn of(precond: &Precond) -> Option<Self> {
        match precond {
            Precond::Edm(edm) => Some(Self::Edm { sigma_data: edm.sigma_data }),
            Precond::Vp(_) => Some(Self::Vp),
            Precond::Ve(_) => Some(Self::Ve),
            _ => None,
        }
    }

    /// Random levels `[count]` and their weights `[count]`.
    fn draw(self, count: i64, options: (Kind, Device)) -> (Tensor, Tensor) {
        match self {
            Self::Edm { sigma_data } => {
                const P_MEAN: f64 = -1.2;
                const P_STD: f64 = 1.2;
                let sigma = (Tensor::randn([count], options) * P_STD + P_MEAN).exp();
                let weight = (sigma.square() + sigma_data * sigma_data) / (&sigma * sigma_data).square();
                (sigma, weight)
            }
            Self::Vp => {
                const BETA_D: f64 = 19.9;
                const BETA_MIN: f64 = 0.1;
                const EPSILON_T: f64 = 1e-5;
                let t = Tensor::rand([count], options) * (EPSILON_T - 1.0) + 1.0;
                let sigma = ((t.square() * (0.5 * BETA_D) + &t * BETA_MIN).exp() - 1.0).sqrt();
                let weight = sigma.square().reciprocal();
                (sigma, weight)
            }
            Self::Ve => {
                const SIGMA_MIN: f64 = 0.02;
                const SIGMA_MAX: f64 = 100.0;
                let exponent = Tensor::rand([count], options);
                let sigma = Tensor::full([], SIGMA_MAX / SIGMA_MIN, options).pow(&exponent) * SIGMA_MIN;
                let weight = sigma.square().reciprocal();
                (sigma, weight)
            }
        }
    }
}

/// Weighted squared error of each element of a denoiser on `images [B, C, H, W]`. The loss is the sum over the elements
/// of an image and the mean over images. `pipe` augments the images, and the network gets its labels.
///
/// # Errors
/// `Engine` if libtorch fails.
pub fn denoising_loss(
    b: &mut LibTorch,
    net: &Denoiser<Value>,
    images: &Tensor,
    labels: Option<&Tensor>,
    levels: NoiseLevels,
    pipe: Option<&EdmPipe>,
) -> NetResult<Tensor> {
    let (sigma, weight) = levels.draw(images.size()[0], (images.kind(), images.device()));
    let augmented = b.ok("augment", pipe.map(|p| p.apply(images)).transpose())?;
    let (images, done) = match augmented {
        Some(Augmented { images, labels }) => (images, Some(Value(labels))),
        None => (images.shallow_clone(), None),
    };
    let noisy = &images + images.randn_like() * sigma.reshape([-1, 1, 1, 1]);
    let labels = dropped(b, net, labels);
    let labels = Labels { classes: labels.as_ref(), augment: done.as_ref() };
    let out = net.denoise(b, &Value(noisy), &Sigma::PerImage(Value(sigma)), labels)?;
    Ok((out.0 - images).square() * weight.reshape([-1, 1, 1, 1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_sum_over_images_and_average_over_logits() {
        let fake = Tensor::from_slice(&[0.0_f32, 1.0, -1.0, 2.0]).reshape([2, 2]);
        let real = Tensor::from_slice(&[1.0_f32, 1.0, 3.0, -1.0]).reshape([2, 2]);
        let softplus = |x: f64| x.exp().ln_1p();
        let expected: f64 = [0.0, -1.0, 1.0, -2.0].map(softplus).iter().sum::<f64>() / 2.0;
        let got = LossType::NonSaturating.generator(&[fake.shallow_clone()]).double_value(&[]);
        assert!((got - expected).abs() < 1e-6, "{got} differs from {expected}");
        let got = LossType::Hinge.discriminator(&[fake], &[real]).double_value(&[]);
        let expected = (1.0 + 2.0 + 0.0 + 3.0) / 2.0 + (0.0 + 0.0 + 0.0 + 2.0) / 2.0;
        assert!((got - expected).abs() < 1e-6, "{got} differs from {expected}");
    }

    #[test]
    fn losses_sum_over_feature_networks() {
        let logits = |values: &[f64], width| Tensor::from_slice(values).reshape([2, width]);
        // Different lengths, like those of VGG16 and Lite0.
        let all = [logits(&[1.0, -2.0, 3.0, 0.5], 2), logits(&[-1.0, 2.0], 1)];
        for loss in [LossType::NonSaturating, LossType::Hinge] {
            let sum = |of: &dyn Fn(&[Tensor]) -> Tensor| {
                let parts: f64 = all.iter().map(|l| of(std::slice::from_ref(l)).double_value(&[])).sum();
                assert!((of(&all).double_value(&[]) - parts).abs() < 1e-12, "{loss:?}");
            };
            sum(&|fake| loss.generator(fake));
            sum(&|fake| loss.discriminator(fake, fake));
        }
        assert!((flat(&all).unwrap().mean(None).double_value(&[]) - 3.5 / 6.0).abs() < 1e-12);
        // The gradients of both networks' logits add up: 2x + 3.
        let x = Tensor::from_slice(&[1.0, 2.0]).reshape([2, 1, 1, 1]).set_requires_grad(true);
        let logits = [x.square().reshape([2, 1]), (&x * 3.0).reshape([2, 1])];
        let got = r1_penalty(&logits, &x, 2.0).unwrap().double_value(&[]);
        assert!((got - (25.0 + 49.0) / 2.0).abs() < 1e-12, "{got}");
    }

    #[test]
    fn r1_of_a_known_function() {
        // logits = x², so the gradient is 2x and the penalty Σ 4x².
        let x = Tensor::from_slice(&[1.0_f32, 2.0, 3.0, 4.0]).reshape([2, 1, 1, 2]).set_requires_grad(true);
        let logits = x.square().reshape([2, 2]);
        let got = r1_penalty(&[logits], &x, 0.5).unwrap().double_value(&[]);
        assert!((got - 4.0 * 30.0 * 0.25 / 2.0).abs() < 1e-5, "{got}");
    }
}
