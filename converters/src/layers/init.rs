//! Initialisation of layer weights.

use crate::weights::Init;

/// Distribution and gains of the initial weights of a layer, as defined by EDM.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerInit {
    /// Distribution.
    pub mode: InitMode,
    /// Gain of the weight.
    pub weight: f64,
    /// Gain of the bias; 0 gives a zero bias.
    pub bias: f64,
}

/// Distributions of initial weights in EDM, and the PyTorch default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the field's names of the distributions")]
#[non_exhaustive]
pub enum InitMode {
    XavierUniform,
    KaimingUniform,
    KaimingNormal,
    Torch,
}

impl LayerInit {
    /// PyTorch default for weight and bias.
    pub const TORCH: Self = Self { mode: InitMode::Torch, weight: 1.0, bias: 1.0 };

    /// `mode` with this weight gain and a zero bias.
    #[must_use]
    pub const fn new(mode: InitMode, weight: f64) -> Self {
        Self { mode, weight, bias: 0.0 }
    }

    pub(super) fn of(self, fan_in: usize, fan_out: usize, gain: f64) -> Init {
        if gain == 0.0 {
            return Init::Constant(0.0);
        }
        match self.mode {
            InitMode::XavierUniform => Init::xavier_uniform(fan_in, fan_out, gain),
            InitMode::KaimingUniform => Init::kaiming_uniform(fan_in, gain),
            InitMode::KaimingNormal => Init::Normal { std: gain / (fan_in as f64).sqrt() },
            InitMode::Torch => Init::Uniform { bound: gain / (fan_in as f64).sqrt() },
        }
    }
}
