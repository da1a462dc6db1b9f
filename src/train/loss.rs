//! Losses: EDM's denoising loss, D2O's adversarial ones, R1.

use d2o_converters::denoiser::{Denoiser, Sigma};
use d2o_converters::error::Result as NetResult;
use tch::{Kind, Tensor};

use super::discriminator::Critic;
use super::libtorch::{LibTorch, Value};

/// EDM's noise distribution, ln σ ~ N(−1.2, 1.2²).
const P_MEAN: f64 = -1.2;
const P_STD: f64 = 1.2;

/// Noise level a one-step generator starts from.
const SIGMA_MAX: f64 = 80.0;

/// Kind of adversarial loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossType {
    /// Non-saturating (softplus), as all presets have it.
    NonSaturating,
    /// Hinge.
    Hinge,
}

impl LossType {
    /// Generator's loss from logits `[B, L]` of its images, for each feature network: sum over networks and images of the mean over logits.
    pub fn generator(self, fake: &[Tensor]) -> Tensor {
        sum_of_means(fake, |fake| match self {
            Self::NonSaturating => fake.neg().softplus(),
            Self::Hinge => fake.neg(),
        })
    }

    /// Discriminator's loss from logits `[B, L]` of generated and real images, for each feature network.
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

/// Mean of all logits `[B, L]` of all feature networks.
pub fn mean_logit(logits: &[Tensor]) -> Tensor {
    let all: Vec<Tensor> = logits.iter().map(|l| l.reshape([-1])).collect();
    Tensor::cat(&all, 0).mean(None)
}

/// R1 penalty times γ/2, mean over images: `logits` of real `images`, which require gradients, for each feature network.
///
/// # Panics
/// Never on tensors of one graph; libtorch's errors are returned.
///
/// # Errors
/// libtorch's own.
pub fn r1_penalty(logits: &[Tensor], images: &Tensor, gamma: f64) -> Result<Tensor, tch::TchError> {
    let kind = images.kind();
    let sum: Tensor = logits.iter().map(|l| l.f_sum(kind)).sum::<Result<Tensor, _>>()?;
    let grads = Tensor::f_run_backward(&[sum], &[images], true, true)?;
    let grad = &grads[0];
    let penalty = grad.f_square()?.f_sum_dim_intlist([1_i64, 2, 3].as_slice(), false, kind)?;
    penalty.f_mul_scalar(gamma / 2.0)?.f_mean(kind)
}

/// One-step images of `noise [B, C, H, W]` of unit variance.
fn generate(b: &mut LibTorch, net: &Denoiser<Value>, noise: &Tensor, labels: Option<&Value>) -> NetResult<Tensor> {
    let labels = dropped(b, net, labels.map(|y| &y.0));
    Ok(net.denoise(b, &Value(noise * SIGMA_MAX), &Sigma::Fixed(SIGMA_MAX), labels.as_ref())?.0)
}

/// `labels [B, K]` as the network sees them in training: all zeros with the probability `label_dropout`, for each image by itself.
fn dropped(b: &LibTorch, net: &Denoiser<Value>, labels: Option<&Tensor>) -> Option<Value> {
    let labels = labels?;
    let rate = net.config().label_dropout();
    if !b.trains() || rate == 0.0 {
        return Some(Value(labels.shallow_clone()));
    }
    let kept = Tensor::rand([labels.size()[0], 1], (Kind::Float, labels.device())).ge(rate);
    Some(Value(labels * kept.to_kind(labels.kind())))
}

/// D2O's stage for the generator: its loss, and the logits of its images.
///
/// # Errors
/// `Engine`.
pub fn generator_loss(
    b: &mut LibTorch,
    net: &Denoiser<Value>,
    critic: &Critic,
    loss: LossType,
    noise: &Tensor,
    labels: Option<&Value>,
) -> NetResult<(Tensor, Vec<Tensor>)> {
    let images = generate(b, net, noise, labels)?;
    let logits = critic.logits(b, &images, labels)?;
    Ok((loss.generator(&logits), logits))
}

/// D2O's stage for the discriminator: its loss, and the logits of the real `images`. The generator gets no gradients.
///
/// # Errors
/// `Engine`.
pub fn discriminator_loss(
    b: &mut LibTorch,
    net: &Denoiser<Value>,
    critic: &Critic,
    loss: LossType,
    noise: &Tensor,
    images: &Tensor,
    labels: Option<&Value>,
) -> NetResult<(Tensor, Vec<Tensor>)> {
    let fake = tch::no_grad(|| generate(b, net, noise, labels))?;
    let fake = critic.logits(b, &fake, labels)?;
    let real = critic.logits(b, images, labels)?;
    Ok((loss.discriminator(&fake, &real), real))
}

/// EDM's loss of `net` on `images [B, C, H, W]`: mean over images of the weighted squared error's sum over pixels.
///
/// # Errors
/// `Engine`.
pub fn edm_loss(
    b: &mut LibTorch,
    net: &Denoiser<Value>,
    images: &Tensor,
    labels: Option<&Tensor>,
    sigma_data: f64,
) -> NetResult<Tensor> {
    let batch = images.size()[0];
    let options = (images.kind(), images.device());
    let sigma = (Tensor::randn([batch], options) * P_STD + P_MEAN).exp();
    let wide = sigma.reshape([-1, 1, 1, 1]);
    let noisy = images + images.randn_like() * &wide;
    let labels = dropped(b, net, labels);
    let out = net.denoise(b, &Value(noisy), &Sigma::PerImage(Value(sigma)), labels.as_ref())?;
    let data = sigma_data * sigma_data;
    let weight = (wide.square() + data) / (&wide * sigma_data).square();
    let error = (out.0 - images).square() * weight;
    Ok(error.sum(error.kind()) / f64::from(i32::try_from(batch).unwrap_or(i32::MAX)))
}

#[cfg(test)]
mod tests {
    use d2o_converters::denoiser::NetConfig;
    use d2o_converters::weights::Weights;

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
        // Of different lengths, as those of VGG16 and Lite0 are.
        let all = [logits(&[1.0, -2.0, 3.0, 0.5], 2), logits(&[-1.0, 2.0], 1)];
        for loss in [LossType::NonSaturating, LossType::Hinge] {
            let sum = |of: &dyn Fn(&[Tensor]) -> Tensor| {
                let parts: f64 = all.iter().map(|l| of(std::slice::from_ref(l)).double_value(&[])).sum();
                assert!((of(&all).double_value(&[]) - parts).abs() < 1e-12, "{loss:?}");
            };
            sum(&|fake| loss.generator(fake));
            sum(&|fake| loss.discriminator(fake, fake));
        }
        assert!((mean_logit(&all).double_value(&[]) - 3.5 / 6.0).abs() < 1e-12);
        // The gradients of both networks' logits add up: 2x + 3.
        let x = Tensor::from_slice(&[1.0, 2.0]).reshape([2, 1, 1, 1]).set_requires_grad(true);
        let logits = [x.square().reshape([2, 1]), (&x * 3.0).reshape([2, 1])];
        let got = r1_penalty(&logits, &x, 2.0).unwrap().double_value(&[]);
        assert!((got - (25.0 + 49.0) / 2.0).abs() < 1e-12, "{got}");
    }

    #[test]
    fn labels_are_hidden_in_training_only() {
        let kwargs = serde_json::json!({"img_resolution": 8, "img_channels": 3, "label_dim": 10, "model_type": "SongUNet", "model_channels": 8,
            "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [], "label_dropout": 0.25});
        let config = NetConfig::new("EDMPrecond", &kwargs).unwrap();
        let mut b = LibTorch::with_weights(Weights::initialised(0), tch::Device::Cpu);
        let net = Denoiser::build(&mut b, &config).unwrap();
        let labels = Tensor::ones([4000, 10], (Kind::Float, tch::Device::Cpu));
        let hidden = |train: bool| {
            let b = LibTorch::running(tch::Device::Cpu, train);
            let rows = dropped(&b, &net, Some(&labels)).unwrap().0.sum_dim_intlist(1, false, Kind::Float);
            // A label is there or not, whole and unscaled.
            let whole = rows.eq(10.0).logical_or(&rows.eq(0.0));
            assert!(bool::try_from(whole.all()).unwrap());
            rows.eq(0.0).to_kind(Kind::Float).mean(Kind::Float).double_value(&[])
        };
        assert_eq!(hidden(false), 0.0);
        let share = hidden(true);
        assert!((share - 0.25).abs() < 0.04, "{share}");
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
