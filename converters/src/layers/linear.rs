//! Fully connected layer.

use super::init::LayerInit;
use crate::backend::Backend;
use crate::error::Result;
use crate::weights::Scope;

/// Fully connected layer; weight `[out, in]`.
#[derive(Debug, Clone)]
pub struct Linear<V> {
    scope: Scope,
    weight: V,
    bias: Option<V>,
}

impl<V: Clone> Linear<V> {
    /// Builds the layer from `weight [outputs, inputs]` and, if `bias`, `bias [outputs]`.
    ///
    /// # Errors
    /// Those of [`Backend::param`].
    pub fn build<B: Backend<Value = V>>(
        b: &mut B,
        scope: Scope,
        inputs: usize,
        outputs: usize,
        bias: bool,
        init: LayerInit,
    ) -> Result<Self> {
        let weight = b.param(&scope, "weight", &[outputs, inputs], &init.of(inputs, outputs, init.weight))?;
        let bias =
            if bias { Some(b.param(&scope, "bias", &[outputs], &init.of(inputs, outputs, init.bias))?) } else { None };
        Ok(Self { scope, weight, bias })
    }

    /// Builds a layer without bias that is used only in training, from `weight [outputs, inputs]`. `None` if the
    /// backend does not train.
    ///
    /// # Errors
    /// Those of [`Backend::training_param`].
    pub fn build_for_training<B: Backend<Value = V>>(
        b: &mut B,
        scope: Scope,
        inputs: usize,
        outputs: usize,
        init: LayerInit,
    ) -> Result<Option<Self>> {
        let init = init.of(inputs, outputs, init.weight);
        let weight = b.training_param(&scope, "weight", &[outputs, inputs], &init)?;
        Ok(weight.map(|weight| Self { scope, weight, bias: None }))
    }

    /// A layer with this weight and bias.
    pub(crate) fn from_parts(scope: Scope, weight: V, bias: Option<V>) -> Self {
        Self { scope, weight, bias }
    }

    /// `[N, in]` -> `[N, out]`.
    ///
    /// # Errors
    /// `Engine` if an operation fails.
    pub fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<V> {
        b.enter(&self.scope);
        b.linear(x, &self.weight, self.bias.as_ref())
    }
}
