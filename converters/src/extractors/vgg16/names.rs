//! Tensor names of torchvision: `features.<i>`, `classifier.{0,3,6}`.

use std::sync::Arc;

use d2o_checkpoint::{Renamed, TensorSource};

use super::config::{VggConfig, indices};
use crate::recognise::Recognised;

/// Recognises the network by its tensor names.
pub(crate) fn recognise(tensors: &Arc<dyn TensorSource>) -> Recognised<VggConfig> {
    let batch_norm = batch_norms(|n| tensors.info(n).is_some())?;
    let kept = Renamed::new(Arc::clone(tensors), |n| (!n.ends_with(".num_batches_tracked")).then(|| n.to_owned()));
    Some((VggConfig::of(batch_norm, &kept), Arc::new(kept)))
}

/// Whether a VGG16 with these tensor names has batch norms; `None` if the names are not those of VGG16.
pub(super) fn batch_norms(has: impl Fn(&str) -> bool) -> Option<bool> {
    let last = |batch_norm| indices(batch_norm).last().unwrap_or(0);
    let with = |batch_norm| {
        let (last, next) = (last(batch_norm), last(batch_norm) + 1);
        has("features.0.weight")
            && has(&format!("features.{last}.weight"))
            && has(&format!("features.{next}.weight")) == batch_norm
    };
    [false, true].into_iter().find(|batch_norm| with(*batch_norm) && has("features.1.running_var") == *batch_norm)
}
