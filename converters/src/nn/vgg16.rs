//! VGG16 and VGG16-BN (Simonyan and Zisserman 2014) under torchvision's names: `features.<i>`, `classifier.{0,3,6}`.
//!
//! Features are what the second fully connected layer gives after ReLU, as torch-fidelity takes them; taps are the maps after the last ReLU
//! before each pool, which LPIPS compares and, but for the first, D2O's discriminator sees. Widths are those of the tensors.

use std::sync::Arc;

use d2o_checkpoint::{Renamed, TensorSource};

use crate::error::{Error, Result};
use crate::nn::backend::{Backend, Conv2d, Pool};
use crate::nn::layers::{LayerInit, Linear, Norm, fold_norm, signed};
use crate::registry::Recognised;
use crate::weights::{Init, Scope};

/// Height and width the network sees, pixels.
pub const INPUT_SIZE: usize = 224;
/// Names of the taps: the ReLU of the last convolution of each of the five groups.
pub const TAPS: [&str; 5] = ["relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"];

/// Convolutions in each group; a pool follows each group.
const GROUPS: [usize; 5] = [2, 2, 3, 3, 3];
const CONVS: usize = 13;
/// Height and width of the last map after its pool.
const LAST: usize = 7;
const BN_EPS: f64 = 1e-5;

/// Sizes of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VggConfig {
    /// Whether a batch norm follows each convolution.
    pub batch_norm: bool,
    /// Channels after each convolution.
    pub widths: [usize; CONVS],
    /// Widths of the two hidden fully connected layers.
    pub hidden: [usize; 2],
    /// Number of classes.
    pub classes: usize,
}

impl VggConfig {
    /// torchvision's sizes.
    #[must_use]
    pub fn torchvision(batch_norm: bool) -> Self {
        let widths = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512];
        Self { batch_norm, widths, hidden: [4096; 2], classes: 1000 }
    }

    /// The sizes of `tensors`, which have torchvision's names.
    ///
    /// # Errors
    /// `Config` if a convolution or the classifier is missing.
    pub fn of(batch_norm: bool, tensors: &dyn TensorSource) -> Result<Self> {
        let rows = |name: String| {
            let dims = tensors.info(&name).map(|i| i.dims).unwrap_or_default();
            dims.first()
                .copied()
                .filter(|n| *n > 0)
                .ok_or_else(|| Error::Config { what: format!("a VGG16 without `{name}`") })
        };
        let mut widths = [0; CONVS];
        for (width, index) in widths.iter_mut().zip(indices(batch_norm)) {
            *width = rows(format!("features.{index}.weight"))?;
        }
        let [first, second, classes] = [0, 3, 6].map(|i| rows(format!("classifier.{i}.weight")));
        Ok(Self { batch_norm, widths, hidden: [first?, second?], classes: classes? })
    }
}

/// Index in `features` of each convolution: after one follow its norm, if there are norms, its ReLU, and at a group's end the pool.
fn indices(batch_norm: bool) -> impl Iterator<Item = usize> {
    let step = if batch_norm { 3 } else { 2 };
    GROUPS
        .into_iter()
        .enumerate()
        .flat_map(|(pools, convs)| std::iter::repeat_n(pools, convs))
        .enumerate()
        .map(move |(before, pools)| before * step + pools)
}

/// This network, if `tensors` have its names.
pub(crate) fn recognise(tensors: &Arc<dyn TensorSource>) -> Recognised<VggConfig> {
    let batch_norm = batch_norms(|n| tensors.info(n).is_some())?;
    let kept = Renamed::new(Arc::clone(tensors), |n| (!n.ends_with(".num_batches_tracked")).then(|| n.to_owned()));
    Some((VggConfig::of(batch_norm, &kept), Arc::new(kept)))
}

/// Whether tensors of these names are VGG16's, and if so whether it has batch norms.
fn batch_norms(has: impl Fn(&str) -> bool) -> Option<bool> {
    let last = |batch_norm| indices(batch_norm).last().unwrap_or(0);
    let with = |batch_norm| {
        let (last, next) = (last(batch_norm), last(batch_norm) + 1);
        has("features.0.weight")
            && has(&format!("features.{last}.weight"))
            && has(&format!("features.{next}.weight")) == batch_norm
    };
    [false, true].into_iter().find(|batch_norm| with(*batch_norm) && has("features.1.running_var") == *batch_norm)
}

/// What the network gives for a batch of N images.
#[derive(Debug, Clone)]
pub struct Outputs<V> {
    /// The second fully connected layer after ReLU, `[N, 4096]`.
    pub features: V,
    /// Classes `[N, 1000]`.
    pub logits: V,
    /// Maps called [`TAPS`], `[N, C, S, S]` with S from 224 down to 14; empty if not asked for.
    pub taps: Vec<V>,
}

/// The network.
#[derive(Debug, Clone)]
pub struct Vgg16<V> {
    scope: Scope,
    convs: Vec<(Scope, V, V)>,
    flat: usize,
    linears: Vec<Linear<V>>,
}

impl<V: Clone> Vgg16<V> {
    /// Takes all tensors below `scope`.
    ///
    /// # Errors
    /// Those of [`Backend::param`].
    pub fn build<B: Backend<Value = V>>(b: &mut B, scope: &Scope, config: &VggConfig) -> Result<Self> {
        let (features, mut convs, mut inputs) = (scope.child("features"), Vec::new(), 3);
        for (outputs, index) in config.widths.into_iter().zip(indices(config.batch_norm)) {
            let at = features.child(index);
            let dims = [outputs, inputs, 3, 3];
            let init = Init::Normal { std: (2.0 / (outputs * 9) as f64).sqrt() };
            let (weight, bias) = if config.batch_norm {
                let mut weight = b.buffer(&at, "weight", &dims, &init)?;
                let bias = b.buffer(&at, "bias", &[outputs], &Init::Constant(0.0))?;
                let norm = Norm::take(b, &features.child(index + 1), outputs)?;
                let bias = fold_norm(&mut weight, Some(&bias), &norm, BN_EPS);
                (b.constant(&at, "weight", &dims, weight)?, b.constant(&at, "bias", &[outputs], bias)?)
            } else {
                (b.param(&at, "weight", &dims, &init)?, b.param(&at, "bias", &[outputs], &Init::Constant(0.0))?)
            };
            convs.push((at, weight, bias));
            inputs = outputs;
        }
        let flat = inputs * LAST * LAST;
        let (mut linears, mut width) = (Vec::new(), flat);
        for (index, outputs) in [(0, config.hidden[0]), (3, config.hidden[1]), (6, config.classes)] {
            let at = scope.child("classifier").child(index);
            linears.push(Linear::build(b, at, width, outputs, true, LayerInit::TORCH)?);
            width = outputs;
        }
        Ok(Self { scope: scope.clone(), convs, flat, linears })
    }

    /// `x [N, 3, 224, 224]`, normalised by ImageNet's mean and deviation; `taps` asks for those.
    ///
    /// # Errors
    /// `Engine`.
    pub fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V, taps: bool) -> Result<Outputs<V>> {
        let (mut x, mut tapped, mut convs) = (x.clone(), Vec::new(), self.convs.iter());
        for count in GROUPS {
            for (scope, weight, bias) in convs.by_ref().take(count) {
                b.enter(scope);
                x = b.conv2d(&x, weight, Some(bias), Conv2d::padded(1))?;
                x = b.clamp(&x, 0.0, f64::INFINITY)?;
            }
            if taps {
                tapped.push(x.clone());
            }
            x = b.max_pool2d(&x, Pool { kernel: 2, stride: 2, pad: 0 })?;
        }
        b.enter(&self.scope.child("classifier"));
        let (mut x, mut features) = (b.reshape(&x, &[-1, signed(self.flat)])?, x);
        for (i, linear) in self.linears.iter().enumerate() {
            x = linear.forward(b, &x)?;
            if i + 1 < self.linears.len() {
                x = b.clamp(&x, 0.0, f64::INFINITY)?;
                features = x.clone();
            }
        }
        Ok(Outputs { features, logits: x, taps: tapped })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::OnnxBackend;
    use crate::weights::Weights;

    #[test]
    fn indices_are_torchvisions() {
        let plain: Vec<_> = indices(false).collect();
        assert_eq!(plain, [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]);
        let normed: Vec<_> = indices(true).collect();
        assert_eq!(normed, [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40]);
    }

    #[test]
    fn networks_have_their_published_sizes() {
        for (batch_norm, tensors, scalars) in [(false, 32, 138_357_544), (true, 84, 138_365_992 + 8448)] {
            let mut b = OnnxBackend::new("vgg", Weights::initialised(0));
            Vgg16::build(&mut b, &Scope::root(), &VggConfig::torchvision(batch_norm)).unwrap();
            let names: Vec<String> = b.taken().map(|(n, _)| n.to_owned()).collect();
            let found: usize = b.taken().map(|(_, d)| d.iter().product::<usize>()).sum();
            assert_eq!((names.len(), found), (tensors, scalars));
            assert_eq!(batch_norms(|n| names.iter().any(|m| m == n)), Some(batch_norm));
        }
        assert_eq!(batch_norms(|n| n == "features.0.weight"), None);
    }
}
