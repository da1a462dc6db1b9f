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
    first: Vec<Tensor>,
    second: Vec<Tensor>,
    steps: u64,
}

impl Adam {
    /// For `params`, with moments 0.
    #[must_use]
    pub fn new(params: Vec<Tensor>, config: AdamConfig) -> Self {
        let zeros = || params.iter().map(Tensor::zeros_like).collect();
        Self { first: zeros(), second: zeros(), params, config, steps: 0 }
    }

    /// Clears the gradients.
    pub fn zero_grad(&mut self) {
        for p in &mut self.params {
            p.zero_grad();
        }
    }

    /// One update from the gradients present; NaN counts as 0, infinities as ±1e5. `lr_scale` multiplies the step size.
    ///
    /// # Errors
    /// libtorch's own.
    pub fn step(&mut self, lr_scale: f64) -> Result<(), TchError> {
        const LARGE: f64 = 1e5;
        self.steps += 1;
        let [b1, b2] = self.config.betas;
        #[allow(clippy::cast_precision_loss, reason = "exact for any number of steps that can be run")]
        let t = self.steps as f64;
        let (c1, c2) = (1.0 - b1.powf(t), 1.0 - b2.powf(t));
        let step = -self.config.lr * lr_scale / c1;
        let _guard = tch::no_grad_guard();
        for ((p, m), v) in self.params.iter_mut().zip(&mut self.first).zip(&mut self.second) {
            let mut g = p.grad();
            if !g.defined() {
                continue;
            }
            let g = g.f_nan_to_num_(0.0, LARGE, -LARGE)?;
            let _ = m.f_mul_scalar_(b1)?.f_add_(&g.f_mul_scalar(1.0 - b1)?)?;
            let _ = v.f_mul_scalar_(b2)?.f_add_(&g.f_square()?.f_mul_scalar(1.0 - b2)?)?;
            let denominator = v.f_sqrt()?.f_div_scalar(c2.sqrt())?.f_add_scalar(self.config.eps)?;
            let _ = p.f_add_(&m.f_div(&denominator)?.f_mul_scalar(step)?)?;
        }
        Ok(())
    }

    /// Moments and step count, for a snapshot: (first, second, steps), in the order of the parameters.
    #[must_use]
    pub fn state(&self) -> (&[Tensor], &[Tensor], u64) {
        (&self.first, &self.second, self.steps)
    }

    /// Restores what [`Adam::state`] gave.
    ///
    /// # Errors
    /// libtorch's own if a shape differs.
    pub fn restore(&mut self, first: &[Tensor], second: &[Tensor], steps: u64) -> Result<(), TchError> {
        for (mine, saved) in self.first.iter_mut().zip(first).chain(self.second.iter_mut().zip(second)) {
            mine.f_copy_(saved)?;
        }
        self.steps = steps;
        Ok(())
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
            adam.zero_grad();
            p.square().sum(tch::Kind::Double).backward();
            adam.step(1.0).unwrap();
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
        (&p * f64::NAN).sum(tch::Kind::Float).backward();
        adam.step(1.0).unwrap();
        assert_eq!(p.double_value(&[0]), 1.0);
    }
}
