//! Running statistics of a discriminator's backbone after one blank image.
//!
//! To learn the sizes of the feature maps, Projected GAN's discriminators (Sauer et al. 2021), and D2O's with them, send one blank image of 256 pixels
//! through the backbone in training mode; batch norm's running statistics move a tenth of the way to that image's.

use std::collections::BTreeMap;

use d2o_converters::backend::{Backend as _, Ops as _};
use d2o_converters::error::Result;
use d2o_converters::extractors::efficientnet_lite::{BN_EPS, LayerSpec, trunk};
use d2o_converters::weights::{Init, Scope, Weights};
use tch::Device;

use super::libtorch::{LibTorch, Value};

/// Height and width of the blank image, pixels.
const SIZE: usize = 256;
const MOMENTUM: f32 = 0.1;

/// The running statistics of EfficientNet-Lite0 with these `weights` after the image, by the names of their tensors.
///
/// # Errors
/// Those of [`Weights::take`]; `Engine`.
pub fn statistics_after_blank_image(mut weights: Weights, device: Device) -> Result<BTreeMap<String, Vec<f32>>> {
    let _no_grad = tch::no_grad_guard();
    let mut b = LibTorch::running(device, true);
    let mut x = b.constant(&Scope::root(), "blank", &[1, 3, SIZE, SIZE], vec![0.0; 3 * SIZE * SIZE])?;
    let mut moved = BTreeMap::new();
    for block in trunk(&Scope::root()) {
        let mut h = x.clone();
        for layer in &block.layers {
            h = forward(&mut b, &mut weights, layer, &h, &mut moved)?;
        }
        x = if block.residual { b.add(&h, &x)? } else { h };
    }
    Ok(moved)
}

/// `layer` in training mode; the statistics of its norm, moved towards those of `x`, go to `moved`.
fn forward(
    b: &mut LibTorch,
    weights: &mut Weights,
    layer: &LayerSpec,
    x: &Value,
    moved: &mut BTreeMap<String, Vec<f32>>,
) -> Result<Value> {
    b.enter(&layer.conv);
    let channels = [layer.outputs];
    let weight = weights.take(&layer.conv, "weight", &layer.dims(), &layer.init())?;
    let weight = b.constant(&layer.conv, "weight", &layer.dims(), weight)?;
    let options = layer.options([2, 3].map(|axis| b.dim(x, axis).unwrap_or(0)));
    let x = b.conv2d(x, &weight, None, options)?;
    let (mean, variance) = b.channel_statistics(&x)?;
    let mut vector = |name, fresh| weights.take(&layer.norm, name, &channels, &Init::Constant(fresh));
    let (gain, offset) = (vector("weight", 1.0)?, vector("bias", 0.0)?);
    for (name, fresh, new) in [("running_mean", 0.0, mean), ("running_var", 1.0, variance)] {
        let old = vector(name, fresh)?;
        let values = old.iter().zip(&new).map(|(old, new)| MOMENTUM * new + (1.0 - MOMENTUM) * old).collect();
        moved.insert(layer.norm.key(name), values);
    }
    let gain = b.constant(&layer.norm, "weight", &channels, gain)?;
    let offset = b.constant(&layer.norm, "bias", &channels, offset)?;
    let x = b.batch_norm(&x, BN_EPS, &gain, &offset)?;
    if layer.relu6 { b.clamp(&x, 0.0, 6.0) } else { Ok(x) }
}
