//! A generator in training: a network, and the steps by which it generates images.

use d2o_converters::denoiser::{Denoiser, Sigma};
use d2o_converters::error::Result as NetResult;
use d2o_onnx::metadata::{Metadata, Sampler};
use tch::{Kind, Tensor};

use super::libtorch::{LibTorch, Value};
use crate::sampling::sampler::NoiseLevels;

/// Noise level of the latents of a generator.
pub const SIGMA_MAX: f64 = 80.0;
/// Lowest noise level.
const SIGMA_MIN: f64 = 2e-3;

/// Grid of `steps` + 1 noise levels from [`SIGMA_MAX`] down to 0.002 with ρ = 7, for generators of several steps and
/// for distillation.
#[must_use]
pub fn noise_levels(steps: u32) -> NoiseLevels {
    NoiseLevels { steps: steps.saturating_add(1), sigma_min: SIGMA_MIN, sigma_max: SIGMA_MAX, rho: 7.0 }
}

/// Evaluations of the network per image (`run_G` in `training/loss.py` of D2O). After each but the last, a step on the
/// line from the noisy to the denoised image leads down to the next noise level. Gradients pass through all
/// evaluations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Steps {
    /// One evaluation.
    One,
    /// Two evaluations, the second at the noise level `middle`.
    Two {
        /// Noise level of the second evaluation.
        middle: f64,
    },
    /// Three or more evaluations, at the levels of [`noise_levels`] without the lowest.
    Many(u32),
}

impl Steps {
    /// Noise levels of the evaluations, descending.
    #[must_use]
    pub fn levels(self) -> Vec<f64> {
        match self {
            Self::One => vec![SIGMA_MAX],
            Self::Two { middle } => vec![SIGMA_MAX, middle],
            Self::Many(steps) => {
                let mut levels = noise_levels(steps).levels();
                levels.pop();
                // The latents are scaled by exactly 80, without the rounding of `NoiseLevels::level`.
                levels[0] = SIGMA_MAX;
                levels
            }
        }
    }

    /// Metadata of the equivalent sampler for graphs and snapshots; empty for one evaluation.
    #[must_use]
    pub fn recorded(self) -> Metadata {
        match self {
            Self::One => Metadata::default(),
            Self::Two { middle } => {
                Metadata { sampler: Some(Sampler::TwoStep), middle: Some(middle), ..Metadata::default() }
            }
            Self::Many(steps) => {
                Metadata { sampler: Some(Sampler::MultiStep), num_steps: Some(steps), ..Metadata::default() }
            }
        }
    }
}

/// A generator in training.
#[derive(Debug, Clone, Copy)]
pub struct Generator<'a> {
    /// Network.
    pub net: &'a Denoiser<Value>,
    /// Evaluations of the network per image.
    pub steps: Steps,
    /// Whether the network computes in bf16.
    pub mixed: bool,
}

impl Generator<'_> {
    /// Images `[B, C, H, W]` generated from `noise [B, C, H, W]` of unit variance.
    ///
    /// # Errors
    /// `Engine` if libtorch fails.
    pub fn images(&self, b: &mut LibTorch, noise: &Tensor, labels: Option<&Value>) -> NetResult<Tensor> {
        let levels = self.steps.levels();
        let mut x = noise * SIGMA_MAX;
        for (i, level) in levels.iter().enumerate() {
            let sigma = if *level == SIGMA_MAX {
                Sigma::Fixed(SIGMA_MAX)
            } else {
                // `Sigma::Fixed` would round the level to f32.
                Sigma::PerImage(Value(Tensor::full([x.size()[0]], *level, (x.kind(), x.device()))))
            };
            let denoised = self.denoise(b, &x, &sigma, labels)?;
            x = match levels.get(i + 1) {
                Some(next) => (denoised - &x) / *level * (level - next) + &x,
                None => denoised,
            };
        }
        Ok(x)
    }

    /// The network's estimate of the clean images of `x [B, C, H, W]` at noise level `sigma`.
    ///
    /// # Errors
    /// `Engine` if libtorch fails.
    pub fn denoise(
        &self,
        b: &mut LibTorch,
        x: &Tensor,
        sigma: &Sigma<Value>,
        labels: Option<&Value>,
    ) -> NetResult<Tensor> {
        let labels = dropped(b, self.net, labels.map(|y| &y.0));
        b.set_mixed(self.mixed);
        let images = self.net.denoise(b, &Value(x.shallow_clone()), sigma, labels.as_ref());
        b.set_mixed(false);
        Ok(images?.0)
    }
}

/// `labels [B, K]` as the network gets them in training: set to zeros with the probability `label_dropout`, for each
/// image independently.
pub(super) fn dropped(b: &LibTorch, net: &Denoiser<Value>, labels: Option<&Tensor>) -> Option<Value> {
    let labels = labels?;
    let rate = net.config().label_dropout();
    if !b.trains() || rate == 0.0 {
        return Some(Value(labels.shallow_clone()));
    }
    let kept = Tensor::rand([labels.size()[0], 1], (Kind::Float, labels.device())).ge(rate);
    Some(Value(labels * kept.to_kind(labels.kind())))
}

#[cfg(test)]
mod tests {
    use d2o_converters::Checkpoint;
    use d2o_converters::denoiser::NetConfig;
    use d2o_converters::export::{self, Kind as GraphKind, Options};
    use d2o_converters::weights::Weights;
    use d2o_onnx::write;
    use ndarray::ArrayD;

    use super::super::libtorch::values_of;
    use super::super::session::LibTorchSession;
    use super::*;
    use crate::sampling::rng::Streams;
    use crate::sampling::sampler::Sampler as Sampling;

    #[test]
    fn samplers_make_the_images_of_training() {
        let path = test_support::golden_dir().join("d2o-ncsnpp-uncond.safetensors");
        let checkpoint = Checkpoint::open(&path).unwrap();
        let network = checkpoint.network(None).unwrap();
        let mut b = LibTorch::with_weights(network.weights(), tch::Device::Cpu);
        let net = Denoiser::build(&mut b, &network.architecture.denoiser().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("x.onnx");
        let options = Options { kind: GraphKind::Denoiser, ..Options::default() };
        write::write(&export::denoiser(network, &options).unwrap().model, &model).unwrap();
        let mut session = LibTorchSession::of(&model, network).unwrap();

        tch::manual_seed(5);
        let noise = Tensor::randn([2, 3, 16, 16], (Kind::Float, tch::Device::Cpu));
        let latents = ArrayD::from_shape_vec(vec![2, 3, 16, 16], values_of(&noise).unwrap()).unwrap();
        let several = |steps| Sampling::MultiStep(NoiseLevels { steps, sigma_min: 0.002, sigma_max: 80.0, rho: 7.0 });
        let mut seen = Vec::new();
        for (steps, sampler) in [
            (Steps::One, Sampling::OneStep { sigma: 80.0 }),
            (Steps::Two { middle: 0.8 }, Sampling::TwoStep { sigma_max: 80.0, middle: 0.8 }),
            (Steps::Many(3), several(3)),
            (Steps::Many(5), several(5)),
        ] {
            let mut b = LibTorch::running(tch::Device::Cpu, false);
            let generator = Generator { net: &net, steps, mixed: false };
            let found = tch::no_grad(|| generator.images(&mut b, &noise, None)).unwrap();
            let found = values_of(&found).unwrap();
            let sampled = sampler.sample(&mut session, &latents, None, &mut Streams::Cpu(Vec::new())).unwrap();
            let largest = found.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            let off = found.iter().zip(&sampled).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
            assert!(off < 2e-5 * f64::from(largest), "{steps:?} is off by {off:.1e} of {largest}");
            assert_eq!(steps.levels().len() as u64, sampler.evaluations());
            seen.push(found);
        }
        // The samplers give different images.
        assert!(seen.windows(2).all(|pair| pair[0].iter().zip(&pair[1]).any(|(a, b)| (a - b).abs() > 1e-3)));
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
            // A label is either unchanged or zero.
            let whole = rows.eq(10.0).logical_or(&rows.eq(0.0));
            assert!(bool::try_from(whole.all()).unwrap());
            rows.eq(0.0).to_kind(Kind::Float).mean(Kind::Float).double_value(&[])
        };
        assert_eq!(hidden(false), 0.0);
        let share = hidden(true);
        assert!((share - 0.25).abs() < 0.04, "{share}");
    }

    #[test]
    fn mixed_precision_rounds_the_network_and_keeps_its_weights() {
        let kwargs = serde_json::json!({"img_resolution": 16, "img_channels": 3, "label_dim": 0, "model_type": "SongUNet", "model_channels": 32,
            "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8], "embedding_type": "fourier", "encoder_type": "residual",
            "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1], "dropout": 0.0});
        let config = NetConfig::new("D2OPrecond", &kwargs).unwrap();
        let mut b = LibTorch::with_weights(Weights::initialised(3), tch::Device::Cpu);
        let net = Denoiser::build(&mut b, &config).unwrap();
        let (tensors, _) = b.finish().unwrap();
        // New networks have outputs near zero.
        for t in tensors.iter().filter(|t| t.path.ends_with("aux_conv.weight")) {
            let _ = tch::no_grad(|| t.tensor.shallow_clone().f_mul_scalar_(1e5)).unwrap();
        }
        tch::manual_seed(0);
        let noise = Tensor::randn([2, 3, 16, 16], (Kind::Float, tch::Device::Cpu));
        let mut b = LibTorch::running(tch::Device::Cpu, true);
        let [exact, mixed] = [false, true]
            .map(|mixed| Generator { net: &net, steps: Steps::One, mixed }.images(&mut b, &noise, None).unwrap());
        assert_eq!(mixed.kind(), Kind::Float);
        let off = ((&mixed - &exact).norm() / exact.norm()).double_value(&[]);
        // bf16 has eight bits: about 2^-9 an operation.
        assert!(off > 1e-4 && off < 3e-2, "{off}");
        let param = tensors.iter().find(|t| t.path.ends_with("conv0.weight")).unwrap();
        let gradient = |images: &Tensor| {
            Tensor::run_backward(&[images.square().sum(Kind::Float)], &[&param.tensor], false, false).remove(0)
        };
        let (exact, mixed) = (gradient(&exact), gradient(&mixed));
        let off = ((&mixed - &exact).norm() / exact.norm()).double_value(&[]);
        assert!(mixed.kind() == Kind::Float && off > 1e-4 && off < 0.1, "{off}");
        // Nothing is rounded outside the generator.
        assert_eq!(b.kind(), Kind::Float);
    }
}
