//! Samplers around an exported denoiser.

use d2o_onnx::session::{Session, Tensor};
use ndarray::{Array1, Array4, ArrayD};

/// Noise levels of EDM's deterministic Heun sampler (Karras et al. 2022, algorithm 1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heun {
    /// Number of steps; the network is evaluated 2n − 1 times.
    pub steps: u32,
    /// Lowest level.
    pub sigma_min: f64,
    /// Highest level.
    pub sigma_max: f64,
    /// Exponent.
    pub rho: f64,
}

impl Heun {
    /// t_0 … t_n, the last of which is 0.
    #[must_use]
    pub fn levels(&self) -> Vec<f64> {
        let (low, high) = (self.sigma_min.powf(1.0 / self.rho), self.sigma_max.powf(1.0 / self.rho));
        let last = f64::from(self.steps - 1);
        let level = |i: u32| (high + f64::from(i) / last * (low - high)).powf(self.rho);
        (0..self.steps).map(level).chain([0.0]).collect()
    }

    /// Denoises `latents [N, C, H, W]` of unit variance with `denoiser`; the state is kept in f64.
    ///
    /// # Errors
    /// Those of the session.
    pub fn sample(
        &self,
        denoiser: &mut dyn Session,
        latents: &Array4<f32>,
        labels: Option<&ArrayD<f32>>,
    ) -> anyhow::Result<Array4<f32>> {
        let levels = self.levels();
        let mut x = latents.mapv(|v| f64::from(v) * levels[0]);
        for pair in levels.windows(2) {
            let (t, next) = (pair[0], pair[1]);
            let slope = (&x - &denoise(denoiser, &x, t, labels)?) / t;
            let mut y = &x + &slope * (next - t);
            if next > 0.0 {
                let second = (&y - &denoise(denoiser, &y, next, labels)?) / next;
                y = &x + (&slope + &second) * (0.5 * (next - t));
            }
            x = y;
        }
        Ok(narrow(&x))
    }
}

fn denoise(
    session: &mut dyn Session,
    x: &Array4<f64>,
    sigma: f64,
    labels: Option<&ArrayD<f32>>,
) -> anyhow::Result<Array4<f64>> {
    #[allow(clippy::cast_possible_truncation, reason = "networks take f32")]
    let sigma = Array1::from_elem(x.dim().0, sigma as f32);
    let mut inputs = vec![("x", Tensor::F32(narrow(x).into_dyn())), ("sigma", Tensor::F32(sigma.into_dyn()))];
    if let Some(labels) = labels {
        inputs.push(("class_labels", Tensor::F32(labels.clone())));
    }
    Ok(images(session.run(&inputs)?, "denoised")?.mapv(f64::from))
}

#[allow(clippy::cast_possible_truncation, reason = "networks take f32")]
fn narrow(x: &Array4<f64>) -> Array4<f32> {
    x.mapv(|v| v as f32)
}

/// Output `name` as `[N, C, H, W]`.
///
/// # Errors
/// If there is no such f32 output.
pub fn images(outputs: Vec<(String, Tensor)>, name: &str) -> anyhow::Result<Array4<f32>> {
    let found = outputs.into_iter().find(|(n, _)| n == name);
    match found {
        Some((_, Tensor::F32(a))) => Ok(a.into_dimensionality()?),
        _ => anyhow::bail!("the graph has no f32 output `{name}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_the_published_ones() {
        let levels = Heun { steps: 18, sigma_min: 0.002, sigma_max: 80.0, rho: 7.0 }.levels();
        let published = [80.0, 57.58598, 40.78557, 28.37458, 19.35245, 12.91008, 8.40094, 5.31519, 3.25682];
        for (l, p) in levels.iter().zip(published) {
            assert!((l - p).abs() < 1e-5 * p, "{l} differs from {p}");
        }
        assert!((levels[17] - 0.002).abs() < 1e-12);
        assert_eq!(levels[18], 0.0);
    }
}
