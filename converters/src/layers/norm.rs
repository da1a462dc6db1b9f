//! Group norm, layer norm, and batch norm with fixed statistics.

use crate::backend::{Backend, Ops as _, signed};
use crate::error::{Error, Result};
use crate::weights::{Init, Scope};

/// Group normalisation; keys `weight [C]`, `bias [C]`.
#[derive(Debug, Clone)]
pub struct GroupNorm<V> {
    scope: Scope,
    groups: usize,
    eps: f64,
    weight: V,
    bias: V,
}

impl<V: Clone> GroupNorm<V> {
    /// Builds the layer with min(32, C/4) groups, the rule of EDM.
    ///
    /// # Errors
    /// Those of [`GroupNorm::build_in_groups`].
    pub fn build<B: Backend<Value = V>>(b: &mut B, scope: Scope, channels: usize, eps: f64) -> Result<Self> {
        const MAX_GROUPS: usize = 32;
        const MIN_CHANNELS: usize = 4;
        Self::build_in_groups(b, scope, channels, MAX_GROUPS.min(channels / MIN_CHANNELS), eps)
    }

    /// Builds the layer with this number of groups.
    ///
    /// # Errors
    /// `Config` if the channels cannot be divided into equal groups; those of [`Backend::param`].
    pub fn build_in_groups<B: Backend<Value = V>>(
        b: &mut B,
        scope: Scope,
        channels: usize,
        groups: usize,
        eps: f64,
    ) -> Result<Self> {
        if groups == 0 || !channels.is_multiple_of(groups) {
            let what = format!(
                "`{scope}`: {channels} channels cannot be divided into {groups} groups; choose other `model_channels`"
            );
            return Err(Error::Config { what });
        }
        let weight = b.param(&scope, "weight", &[channels], &Init::Constant(1.0))?;
        let bias = b.param(&scope, "bias", &[channels], &Init::Constant(0.0))?;
        Ok(Self { scope, groups, eps, weight, bias })
    }

    /// Normalises `x [N, C, H, W]`. The shape stays the same.
    ///
    /// # Errors
    /// `Engine` if an operation fails.
    pub fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<V> {
        b.enter(&self.scope);
        b.group_norm(x, self.groups, self.eps, &self.weight, &self.bias)
    }
}

/// Normalisation over the last axis; keys `weight [C]`, `bias [C]`.
#[derive(Debug, Clone)]
pub(crate) struct LayerNorm<V> {
    scope: Scope,
    eps: f64,
    weight: V,
    bias: V,
}

impl<V: Clone> LayerNorm<V> {
    /// Builds the layer from `weight` and `bias`.
    pub(crate) fn build<B: Backend<Value = V>>(b: &mut B, scope: Scope, width: usize, eps: f64) -> Result<Self> {
        let weight = b.param(&scope, "weight", &[width], &Init::Constant(1.0))?;
        let bias = b.param(&scope, "bias", &[width], &Init::Constant(0.0))?;
        Ok(Self { scope, eps, weight, bias })
    }

    /// Normalises `x [M, width]`. The shape stays the same.
    pub(crate) fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<V> {
        b.enter(&self.scope);
        b.layer_norm(x, self.eps, &self.weight, &self.bias)
    }
}

/// A batch norm with fixed statistics, which is folded into the convolution before it.
#[derive(Debug, Clone)]
pub(crate) struct BatchNorm {
    /// Scale of each channel; `None` for 1.
    pub(crate) gamma: Option<Vec<f32>>,
    pub(crate) beta: Vec<f32>,
    pub(crate) mean: Vec<f64>,
    pub(crate) var: Vec<f64>,
}

impl BatchNorm {
    /// Takes the PyTorch tensors `weight`, `bias`, `running_mean` and `running_var` below `scope`, each `[channels]`.
    pub(crate) fn take<B: Backend>(b: &mut B, scope: &Scope, channels: usize) -> Result<Self> {
        let mut vector = |name, value| b.buffer(scope, name, &[channels], &Init::Constant(value));
        let (gamma, beta) = (Some(vector("weight", 1.0)?), vector("bias", 0.0)?);
        let [mean, var] = [vector("running_mean", 0.0)?, vector("running_var", 1.0)?].map(wide);
        Ok(Self { gamma, beta, mean, var })
    }
}

/// The same values in f64.
pub(crate) fn wide(values: Vec<f32>) -> Vec<f64> {
    values.into_iter().map(f64::from).collect()
}

/// Multiplies each row of `weight` by γ/√(var+ε) and returns the bias β + (bias − mean)·γ/√(var+ε).
pub(super) fn fold(weight: &mut [f64], bias: Option<&[f32]>, norm: &BatchNorm, eps: f64) -> Vec<f64> {
    let row = (weight.len() / norm.beta.len().max(1)).max(1);
    let mut folded = Vec::with_capacity(norm.beta.len());
    for (o, row) in weight.chunks_mut(row).enumerate() {
        let gain = norm.gamma.as_ref().map_or(1.0, |g| f64::from(g[o])) / (norm.var[o] + eps).sqrt();
        row.iter_mut().for_each(|w| *w *= gain);
        let bias = bias.map_or(0.0, |b| f64::from(b[o]));
        folded.push(f64::from(norm.beta[o]) + (bias - norm.mean[o]) * gain);
    }
    folded
}

/// Applies `norm` to `h [N, C, H, W]`, conditioned on the projected embedding `p [N or 1, C or 2C]`. If `adaptive`, the
/// normalised `h` is multiplied by 1 plus the first half of `p`, and the second half is added. Otherwise `p` is added
/// before the norm.
pub(crate) fn condition<B: Backend>(
    b: &mut B,
    scope: &Scope,
    norm: &GroupNorm<B::Value>,
    h: &B::Value,
    p: &B::Value,
    channels: usize,
    adaptive: bool,
) -> Result<B::Value> {
    let p = b.reshape(p, &[-1, signed(channels) * if adaptive { 2 } else { 1 }, 1, 1])?;
    let p = b.like(&p, h)?;
    if adaptive {
        let scale = b.slice(&p, 1, 0, channels)?;
        let shift = b.slice(&p, 1, channels, channels)?;
        let h = norm.forward(b, h)?;
        b.enter(scope);
        let scale = b.offset(&scale, 1.0)?;
        let h = b.mul(&h, &scale)?;
        b.add(&h, &shift)
    } else {
        b.enter(scope);
        let h = b.add(h, &p)?;
        norm.forward(b, &h)
    }
}
