//! The network.

use super::config::{GROUPS, LAST, VggConfig, indices};
use crate::backend::{Backend, Conv2d, Ops as _, Pool, signed};
use crate::error::Result;
use crate::extractors::Named;
use crate::layers::{BatchNorm, FoldedConv, LayerInit, Linear};
use crate::weights::{Init, Scope};

/// Height and width the network sees, pixels.
pub const INPUT_SIZE: usize = 224;
/// Names of the taps: the ReLU of the last convolution of each of the five groups.
pub const TAPS: [&str; 5] = ["relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"];

const BN_EPS: f64 = 1e-5;

/// The network.
#[derive(Debug, Clone)]
pub struct Vgg16<V> {
    scope: Scope,
    convs: Vec<FoldedConv<V>>,
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
            let zero = Init::Constant(0.0);
            convs.push(if config.batch_norm {
                let weight = b.buffer(&at, "weight", &dims, &init)?;
                let bias = b.buffer(&at, "bias", &[outputs], &zero)?;
                let norm = BatchNorm::take(b, &features.child(index + 1), outputs)?;
                FoldedConv::build(b, at, &dims, weight, Some(&bias), &norm, BN_EPS)?
            } else {
                let weight = b.param(&at, "weight", &dims, &init)?;
                let bias = b.param(&at, "bias", &[outputs], &zero)?;
                FoldedConv::from_parts(at, weight, bias)
            });
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

    /// `x [N, 3, 224, 224]`, normalised by ImageNet's mean and deviation, to
    ///
    /// - `features [N, 4096]`: the second fully connected layer after ReLU;
    /// - `logits [N, 1000]`: the classes;
    /// - the maps [`TAPS`], if `taps`: `[N, C, S, S]` with S from 224 down to 14.
    ///
    /// # Errors
    /// `Engine`.
    pub fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V, taps: bool) -> Result<Named<V>> {
        let (mut x, mut tapped, mut convs) = (x.clone(), Vec::new(), self.convs.iter());
        for count in GROUPS {
            for conv in convs.by_ref().take(count) {
                x = conv.forward(b, &x, Conv2d::padded(1))?;
                x = b.relu(&x)?;
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
                x = b.relu(&x)?;
                features = x.clone();
            }
        }
        let mut outputs = vec![("features".to_owned(), features), ("logits".to_owned(), x)];
        outputs.extend(TAPS.map(str::to_owned).into_iter().zip(tapped));
        Ok(outputs)
    }
}
