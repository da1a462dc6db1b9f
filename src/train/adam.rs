//! Adam (Kingma and Ba 2015) whose state can be saved: libtorch's own optimiser keeps its moments to itself.

use tch::{TchError, Tensor};

/// Hyper-parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamConfig {
    /// Step size.
    pub lr: f64,
    /// Decay of the first and second moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
}

/// The optimiser of one network.
#[derive(Debug)]
pub struct Adam {
    config: AdamConfig,
    params: Vec<Tensor>,
    moments: Vec<Moments>,
}

/// What Adam remembers of one parameter.
#[derive(Debug)]
pub struct Moments {
    /// Running mean of the gradient.
    pub first: Tensor,
    /// Running mean of its square.
    pub second: Tensor,
    /// Updates so far.
    pub steps: u32,
}

impl Adam {
    /// For `params`, with moments 0.
    #[must_use]
    pub fn new(params: Vec<Tensor>, config: AdamConfig) -> Self {
        let moments =
            params.iter().map(|p| Moments { first: p.zeros_like(), second: p.zeros_like(), steps: 0 }).collect();
        Self { config, params, moments }
    }

    /// Gradients of `loss` for the parameters; undefined where the loss does not depend on one.
    ///
    /// # Errors
    /// libtorch's own.
    pub fn gradients(&self, loss: &Tensor) -> Result<Vec<Tensor>, TchError> {
        Tensor::f_run_backward(&[loss], &self.params, false, false)
    }

    /// One update; NaN in a gradient counts as 0, infinities as ±1e5, and an undefined gradient leaves its parameter alone.
    /// `lr_scale` multiplies the step size.
    ///
    /// # Errors
    /// libtorch's own.
    pub fn step(&mut self, gradients: Vec<Tensor>, lr_scale: f64) -> Result<(), TchError> {
        const LARGE: f64 = 1e5;
        let [b1, b2] = self.config.betas;
        let _guard = tch::no_grad_guard();
        for ((p, m), mut g) in self.params.iter_mut().zip(&mut self.moments).zip(gradients) {
            if !g.defined() {
                continue;
            }
            m.steps += 1;
            let t = f64::from(m.steps);
            let step = -self.config.lr * lr_scale / (1.0 - b1.powf(t));
            let g = g.f_nan_to_num_(0.0, LARGE, -LARGE)?;
            let _ = m.first.f_mul_scalar_(b1)?.f_add_(&g.f_mul_scalar(1.0 - b1)?)?;
            let _ = m.second.f_mul_scalar_(b2)?.f_add_(&g.f_square()?.f_mul_scalar(1.0 - b2)?)?;
            let root = m.second.f_sqrt()?.f_div_scalar((1.0 - b2.powf(t)).sqrt())?.f_add_scalar(self.config.eps)?;
            let _ = p.f_add_(&m.first.f_div(&root)?.f_mul_scalar(step)?)?;
        }
        Ok(())
    }

    /// What it remembers, in the order of the parameters.
    pub fn moments(&self) -> &[Moments] {
        &self.moments
    }

    /// The same, to be restored.
    pub fn moments_mut(&mut self) -> &mut [Moments] {
        &mut self.moments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_published_rule() {
        let p = Tensor::from_slice(&[1.0_f64, -2.0]).set_requires_grad(true);
        let config = AdamConfig { lr: 0.1, betas: [0.5, 0.9], eps: 1e-8 };
        let mut adam = Adam::new(vec![p.shallow_clone()], config);
        let (mut x, mut m, mut v) = (1.0_f64, 0.0, 0.0);
        for t in 1..=3 {
            let gradients = adam.gradients(&p.square().sum(tch::Kind::Double)).unwrap();
            adam.step(gradients, 1.0).unwrap();
            let g = 2.0 * x;
            m = 0.5 * m + 0.5 * g;
            v = 0.9 * v + 0.1 * g * g;
            x -= 0.1 * (m / (1.0 - 0.5_f64.powi(t))) / ((v / (1.0 - 0.9_f64.powi(t))).sqrt() + 1e-8);
        }
        assert!((p.double_value(&[0]) - x).abs() < 1e-12);
    }

    #[test]
    fn a_nan_gradient_changes_nothing() {
        let p = Tensor::from_slice(&[1.0_f32]).set_requires_grad(true);
        let config = AdamConfig { lr: 0.1, betas: [0.0, 0.99], eps: 1e-8 };
        let mut adam = Adam::new(vec![p.shallow_clone()], config);
        let gradients = adam.gradients(&(&p * f64::NAN).sum(tch::Kind::Float)).unwrap();
        adam.step(gradients, 1.0).unwrap();
        assert_eq!(p.double_value(&[0]), 1.0);
    }
}
