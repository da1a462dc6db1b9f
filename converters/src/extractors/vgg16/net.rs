//! The network VGG16.

use super::config::{GROUPS, LAST, VggConfig, indices};
use crate::backend::{Backend, Ops as _, signed};
use crate::error::Result;
use crate::extractors::Named;
use crate::extractors::conv_trunk::{Activation, BlockSpec, ConvTrunk, LayerSpec, NormSpec, POOL, Statistics};
use crate::layers::{LayerInit, Linear};
use crate::weights::Scope;

/// Height and width of the input, pixels.
pub const INPUT_SIZE: usize = 224;
/// Names of the taps: the ReLU of the last convolution of each of the five groups.
pub const TAPS: [&str; 5] = ["relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"];

const BN_EPS: f64 = 1e-5;

/// The blocks below `scope` up to the last tap, for images normalised by the ImageNet mean and standard deviation. The
/// output of every block i is a tap after ReLU: `[N, C, S/2^i, S/2^i]` for images of S×S pixels.
#[must_use]
pub fn trunk(scope: &Scope, config: &VggConfig) -> Vec<BlockSpec> {
    let (features, mut inputs) = (scope.child("features"), 3);
    let mut layers = config.widths.into_iter().zip(indices(config.batch_norm)).map(|(outputs, index)| {
        let norm = NormSpec { scope: features.child(index + 1), eps: BN_EPS };
        LayerSpec {
            conv: features.child(index),
            bias: true,
            norm: config.batch_norm.then_some(norm),
            inputs: std::mem::replace(&mut inputs, outputs),
            outputs,
            kernel: 3,
            stride: 1,
            depthwise: false,
            activation: Activation::Relu,
            init_std: (2.0 / (outputs * 9) as f64).sqrt(),
        }
    });
    let block = |(i, count): (usize, usize)| BlockSpec {
        scope: features.clone(),
        pool: i > 0,
        layers: layers.by_ref().take(count).collect(),
        residual: false,
        tap: true,
    };
    GROUPS.into_iter().enumerate().map(block).collect()
}

/// The network.
#[derive(Debug, Clone)]
pub struct Vgg16<V> {
    scope: Scope,
    trunk: ConvTrunk<V>,
    flat: usize,
    linears: Vec<Linear<V>>,
}

impl<V: Clone> Vgg16<V> {
    /// Builds the network and takes all of its tensors below `scope`.
    ///
    /// # Errors
    /// Those of [`Backend::param`].
    pub fn build<B: Backend<Value = V>>(b: &mut B, scope: &Scope, config: &VggConfig) -> Result<Self> {
        let last = config.widths.last().copied().unwrap_or(0);
        let flat = last * LAST * LAST;
        let trunk = ConvTrunk::build(b, trunk(scope, config), &Statistics::new())?;
        let (mut linears, mut width) = (Vec::new(), flat);
        for (index, outputs) in [(0, config.hidden[0]), (3, config.hidden[1]), (6, config.classes)] {
            let at = scope.child("classifier").child(index);
            linears.push(Linear::build(b, at, width, outputs, true, LayerInit::TORCH)?);
            width = outputs;
        }
        Ok(Self { scope: scope.clone(), trunk, flat, linears })
    }

    /// Maps `x [N, 3, 224, 224]`, normalised by the ImageNet mean and standard deviation, to
    ///
    /// - `features [N, 4096]`: the second fully connected layer after ReLU;
    /// - `logits [N, 1000]`: the last fully connected layer;
    /// - the maps [`TAPS`], if `taps`: `[N, C, S, S]` with S from 224 down to 14.
    ///
    /// # Errors
    /// `Engine` if an operation fails.
    pub fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V, taps: bool) -> Result<Named<V>> {
        let tapped = self.trunk.taps(b, x)?;
        let x = b.max_pool2d(tapped.last().unwrap_or(x), POOL)?;
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
        if taps {
            outputs.extend(TAPS.map(str::to_owned).into_iter().zip(tapped));
        }
        Ok(outputs)
    }
}
