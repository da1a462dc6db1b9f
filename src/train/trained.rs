//! A network with its optimiser, and the exponential moving average (EMA) of its weights.

use std::collections::BTreeMap;

use tch::{TchError, Tensor};

use super::libtorch::{Named, Role};
use super::optimizer::{Optimizer, OptimizerConfig};
use super::snapshot::{State, Stored};

/// Metadata of a state.
pub(super) type Metadata = BTreeMap<String, String>;

/// A network with its optimiser.
pub(super) struct Trained {
    pub(super) tensors: Vec<Named>,
    /// Indices into `tensors` of the parameters that the optimiser updates, in its order.
    pub(super) updated: Vec<usize>,
    pub(super) optimizer: Optimizer,
}

impl Trained {
    pub(super) fn new(
        tensors: Vec<Named>,
        frozen: impl Fn(&str) -> bool,
        config: OptimizerConfig,
    ) -> anyhow::Result<Self> {
        let mut updated = Vec::new();
        for (i, t) in tensors.iter().enumerate().filter(|(_, t)| t.role == Role::Param) {
            if frozen(&t.path) {
                let _ = t.tensor.set_requires_grad(false);
            } else {
                updated.push(i);
            }
        }
        let params = updated.iter().map(|i| tensors[*i].tensor.shallow_clone()).collect();
        Ok(Self { optimizer: Optimizer::new(params, config)?, tensors, updated })
    }

    pub(super) fn scalars(&self, only_updated: bool) -> usize {
        let all = self.tensors.iter().enumerate().filter(|(_, t)| t.role == Role::Param);
        all.filter(|(i, _)| !only_updated || self.updated.contains(i)).map(|(_, t)| t.tensor.numel()).sum()
    }

    /// All tensors, named `name.PATH`. If `flat` is given, the updated parameters have its values.
    pub(super) fn stored(&self, name: &str, flat: Option<&Tensor>) -> anyhow::Result<Vec<Stored>> {
        let mut tensors: Vec<Tensor> = self.tensors.iter().map(|t| t.tensor.shallow_clone()).collect();
        if let Some(flat) = flat {
            for (i, view) in self.updated.iter().zip(self.optimizer.views(flat)?) {
                tensors[*i] = view;
            }
        }
        let stored = |(named, tensor): (&Named, Tensor)| Stored { name: format!("{name}.{}", named.path), tensor };
        Ok(self.tensors.iter().zip(tensors).map(stored).collect())
    }

    /// Adds the moments and the step count of the optimiser, under `name`.
    pub(super) fn save(&self, name: &str, out: &mut Vec<Stored>, metadata: &mut Metadata) {
        for (moment, tensor) in self.optimizer.moments() {
            out.push(Stored { name: format!("optimizer.{name}.{moment}"), tensor: tensor.shallow_clone() });
        }
        metadata.insert(format!("steps.{name}"), self.optimizer.steps().to_string());
    }

    pub(super) fn restore(&mut self, name: &str, state: &State) -> anyhow::Result<()> {
        for t in &mut self.tensors {
            state.restore(&format!("{name}.{}", t.path), &mut t.tensor)?;
        }
        for (moment, tensor) in self.optimizer.moments() {
            state.restore(&format!("optimizer.{name}.{moment}"), &mut tensor.shallow_clone())?;
        }
        self.optimizer.set_steps(state.number(&format!("steps.{name}"))?);
        Ok(())
    }
}

/// Decay of the EMA for an iteration over `batch` images after `images` images: `beta` if it is not 0, otherwise
/// 0.5^(`batch` / half-life). The half-life is `kimg` thousand images, and a `warmup` above 0 limits it to the share
/// `warmup` of `images`.
pub(super) fn ema_decay(batch: u32, images: f64, kimg: f64, warmup: f64, beta: f64) -> f64 {
    if beta != 0.0 {
        return beta;
    }
    let half_life = kimg * 1e3;
    let half_life = if warmup > 0.0 { half_life.min(images * warmup) } else { half_life };
    0.5_f64.powf(f64::from(batch) / half_life.max(1e-8))
}

/// Moves `average` towards `values`: `average` · `decay` + `values` · (1 − `decay`).
pub(super) fn average(average: &mut Tensor, values: &Tensor, decay: f64) -> Result<(), TchError> {
    let _guard = tch::no_grad_guard();
    average.f_lerp_(values, 1.0 - decay).map(drop)
}
