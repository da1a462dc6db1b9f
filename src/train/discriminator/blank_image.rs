//! Running statistics of a discriminator's feature network after one blank image.
//!
//! To determine the sizes of the feature maps, the discriminators of Projected GAN (Sauer et al. 2021) and D2O pass one
//! image of zeros, 256 × 256 pixels and not normalised, through the network in training mode. This moves the running
//! statistics of batch norm a tenth of the way to the statistics of this image. Vision transformers have no running
//! statistics.

use d2o_converters::backend::{Backend as _, Ops as _};
use d2o_converters::error::Result;
use d2o_converters::extractors::conv_trunk::{BlockSpec, LayerSpec, POOL, Statistics};
use d2o_converters::weights::{Init, Scope, Weights};
use tch::{Device, Kind};

use super::super::libtorch::{LibTorch, Value};

/// Height and width of the blank image, pixels.
const SIZE: usize = 256;
const MOMENTUM: f64 = 0.1;

/// Running statistics of the network of `blocks` with these `weights` after the blank image, computed in f64.
///
/// # Errors
/// The errors of [`Weights::take`]; `Engine` if libtorch fails.
pub(super) fn statistics_after_blank_image(blocks: &[BlockSpec], weights: Weights) -> Result<Statistics> {
    let _no_grad = tch::no_grad_guard();
    let mut b = LibTorch::with_weights(weights, Device::Cpu).in_kind(Kind::Double).frozen();
    let mut x = b.constant(&Scope::root(), "blank", &[1, 3, SIZE, SIZE], vec![0.0; 3 * SIZE * SIZE])?;
    let mut moved = Statistics::new();
    for block in blocks {
        let mut h = if block.pool { b.max_pool2d(&x, POOL)? } else { x.clone() };
        for layer in &block.layers {
            h = forward(&mut b, layer, &h, &mut moved)?;
        }
        x = if block.residual { b.add(&h, &x)? } else { h };
    }
    Ok(moved)
}

/// Runs `layer` in training mode. Adds the updated running statistics of its batch norm to `moved`.
fn forward(b: &mut LibTorch, layer: &LayerSpec, x: &Value, moved: &mut Statistics) -> Result<Value> {
    b.enter(&layer.conv);
    let (channels, zero) = ([layer.outputs], Init::Constant(0.0));
    let weight = b.state(&layer.conv, "weight", &layer.dims(), &layer.init())?;
    let bias = if layer.bias { Some(b.state(&layer.conv, "bias", &channels, &zero)?) } else { None };
    let options = layer.options([2, 3].map(|axis| b.dim(x, axis).unwrap_or(0)));
    let mut x = b.conv2d(x, &weight, bias.as_ref(), options)?;
    if let Some(norm) = &layer.norm {
        let mut vector = |name, fresh| b.state(&norm.scope, name, &channels, &Init::Constant(fresh));
        let (weight, bias) = (vector("weight", 1.0)?, vector("bias", 0.0)?);
        let (mean, variance) = (vector("running_mean", 0.0)?, vector("running_var", 1.0)?);
        x = b.batch_norm(&x, norm.eps, &weight, &bias, Some((&mean, &variance, MOMENTUM)))?;
        moved.insert(norm.scope.clone(), [b.values(&mean)?, b.values(&variance)?]);
    }
    layer.activation.apply(b, &x)
}

#[cfg(test)]
mod tests {
    use d2o_converters::extractors::{efficientnet_lite, vgg16};

    use super::*;

    #[test]
    fn statistics_move_a_tenth_of_the_way_to_those_of_the_image() {
        let root = Scope::root();
        let vgg = vgg16::trunk(&root, &vgg16::VggConfig::torchvision(true));
        for (blocks, first, bias) in [(efficientnet_lite::trunk(&root), "bn1", 0.0), (vgg, "features.1", 0.5)] {
            // A convolution of zeros is its bias everywhere.
            let given = std::collections::BTreeMap::from([("features.0.bias".to_owned(), vec![0.5; 64])]);
            let weights = Weights::initialised(1).replacing(given);
            // The first block is enough.
            let moved = statistics_after_blank_image(&blocks[..1], weights).unwrap();
            let [mean, variance] = &moved[&root.child(first)];
            assert!(mean.iter().all(|m| (m - 0.1 * bias).abs() < 1e-12), "{mean:?}");
            assert!(variance.iter().all(|v| (v - 0.9).abs() < 1e-12), "{variance:?}");
        }
    }
}
