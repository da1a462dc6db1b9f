//! Inception Score (Salimans et al. 2016).

use ndarray::{Array2, ArrayView2, Axis, s};

use crate::error::{Error, Result};

/// Number of parts the samples are split into.
const SPLITS: usize = 10;

/// Mean and standard deviation (ddof 0) over the parts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InceptionScore {
    /// Mean of the parts' scores; higher is better.
    pub mean: f64,
    /// Their standard deviation.
    pub std: f64,
}

/// exp of the mean divergence of each image's class distribution from the mean one, over ten consecutive parts `i·N/10 ..`.
///
/// `logits [N, K]`; softmax and logarithms in f64.
///
/// # Errors
/// `TooFew` below ten samples; `NotFinite`.
pub fn inception_score(logits: ArrayView2<'_, f32>) -> Result<InceptionScore> {
    let n = logits.nrows();
    if n < SPLITS {
        return Err(Error::TooFew { what: "Inception Score", least: SPLITS, found: n });
    }
    if let Some(row) = logits.outer_iter().position(|r| r.iter().any(|v| !v.is_finite())) {
        let count = logits.iter().filter(|v| !v.is_finite()).count();
        return Err(Error::NotFinite { what: "logits", count, row });
    }
    let log_probs = log_softmax(logits);
    let scores: Vec<f64> = (0..SPLITS)
        .map(|i| {
            let part = log_probs.slice(s![i * n / SPLITS..(i + 1) * n / SPLITS, ..]);
            let probs = part.mapv(f64::exp);
            let marginal = probs.mean_axis(Axis(0)).map(|m| m.mapv(f64::ln)).unwrap_or_default();
            let divergence: f64 = probs
                .outer_iter()
                .zip(part.outer_iter())
                .map(|(p, l)| {
                    p.iter()
                        .zip(l.iter().zip(&marginal))
                        .map(|(p, (l, m))| if *p > 0.0 { p * (l - m) } else { 0.0 })
                        .sum::<f64>()
                })
                .sum();
            #[allow(clippy::cast_precision_loss, reason = "sample counts")]
            let rows = part.nrows() as f64;
            (divergence / rows).exp()
        })
        .collect();
    let mean = scores.iter().sum::<f64>() / 10.0;
    let variance = scores.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / 10.0;
    Ok(InceptionScore { mean, std: variance.sqrt() })
}

fn log_softmax(logits: ArrayView2<'_, f32>) -> Array2<f64> {
    let mut out = logits.mapv(f64::from);
    for mut row in out.outer_iter_mut() {
        let peak = row.fold(f64::NEG_INFINITY, |m, v| m.max(*v));
        let total = row.iter().map(|v| (v - peak).exp()).sum::<f64>().ln() + peak;
        row -= total;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confident_and_diverse_scores_the_number_of_classes() {
        let sharp = Array2::from_shape_fn((100, 5), |(i, k)| if i % 5 == k { 50.0 } else { 0.0 });
        let score = inception_score(sharp.view()).unwrap();
        assert!((score.mean - 5.0).abs() < 1e-9 && score.std < 1e-9);
        let same = Array2::from_shape_fn((100, 5), |(_, k)| if k == 0 { 50.0 } else { 0.0 });
        assert!((inception_score(same.view()).unwrap().mean - 1.0).abs() < 1e-9);
        let uniform = Array2::<f32>::zeros((100, 5));
        assert!((inception_score(uniform.view()).unwrap().mean - 1.0).abs() < 1e-12);
    }

    #[test]
    fn bad_logits_are_errors() {
        assert!(matches!(inception_score(Array2::zeros((9, 2)).view()), Err(Error::TooFew { .. })));
        let mut x = Array2::zeros((20, 2));
        x[[13, 1]] = f32::INFINITY;
        assert!(matches!(inception_score(x.view()), Err(Error::NotFinite { row: 13, .. })));
    }
}
