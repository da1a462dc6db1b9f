//! Test inputs for all graphs that d2o exports.

use d2o_converters::weights::SplitMix64;
use d2o_onnx::graph::{Dim, ElementType};
use d2o_onnx::read::ModelInfo;
use d2o_runtime::{Tensor, TensorView};
use ndarray::{ArrayD, IxDyn};

use crate::sampling::plan::values_of;
use crate::sampling::rng::TorchCpu;

/// Length of symbolic axes other than the batch axis: a common image size, pixels.
const FREE: usize = 64;

/// Inputs `start..start + count`, each drawn from its own seed: standard normal latents, `x` of the standard deviation
/// of its noise level but at least 1, noise levels in eight geometric steps from 0.002 to 80, one-hot labels, pixels
/// from 0 to 255.
pub(super) fn inputs(info: &ModelInfo, start: usize, count: usize) -> anyhow::Result<Vec<(String, Tensor)>> {
    let sigma = |i: usize| {
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a spread of test values")]
        let t = (i % 8) as f32 / 7.0;
        (0.002_f32.ln() * (1.0 - t) + 80.0_f32.ln() * t).exp()
    };
    let mut all = Vec::new();
    for input in &info.inputs {
        let known = |d: &Dim| if let Dim::Known(n) = d { *n } else { FREE };
        let mut dims: Vec<usize> = input.dims.iter().map(known).collect();
        let one = values_of(&input.name, dims.get(1..).unwrap_or(&[]))?;
        if let Some(first) = dims.first_mut() {
            *first = count;
        }
        let shape = IxDyn(&dims);
        let tensor = match (input.element, input.name.as_str()) {
            (ElementType::F32, "sigma") => {
                Tensor::F32(ArrayD::from_shape_vec(shape, (start..start + count).map(sigma).collect())?)
            }
            (ElementType::F32, "class_labels") if dims.len() == 2 => {
                Tensor::F32(ArrayD::from_shape_fn(shape, |i| if i[1] == (start + i[0]) % one { 1.0 } else { 0.0 }))
            }
            (ElementType::F32, "images_f32") => {
                let mut values = Vec::with_capacity(one * count);
                for i in start..start + count {
                    let mut rng = SplitMix64::for_path(i as u64, &input.name);
                    #[allow(clippy::cast_possible_truncation, reason = "pixel values")]
                    values.extend((0..one).map(|_| (255.0 * rng.uniform()) as f32));
                }
                Tensor::F32(ArrayD::from_shape_vec(shape, values)?)
            }
            (ElementType::F32, name) => {
                let mut values = Vec::with_capacity(one * count);
                for i in start..start + count {
                    let scale = if name == "x" { sigma(i).max(1.0) } else { 1.0 };
                    values.extend(TorchCpu::new(i as u64).randn(one).iter().map(|v| v * scale));
                }
                Tensor::F32(ArrayD::from_shape_vec(shape, values)?)
            }
            (ElementType::U8, _) => {
                let mut values = Vec::with_capacity(one * count);
                for i in start..start + count {
                    let mut rng = SplitMix64::for_path(i as u64, &input.name);
                    values.extend((0..one).map(|_| rng.next_u64().to_le_bytes()[7]));
                }
                Tensor::U8(ArrayD::from_shape_vec(shape, values)?)
            }
            (other, name) => anyhow::bail!("input `{name}`: no test values for {other}"),
        };
        all.push((input.name.clone(), tensor));
    }
    Ok(all)
}

/// `inputs` in the form that sessions accept.
pub(super) fn by_name(inputs: &[(String, Tensor)]) -> Vec<(&str, TensorView<'_>)> {
    inputs.iter().map(|(name, tensor)| (name.as_str(), tensor.into())).collect()
}
