//! Inception Score (Salimans et al. 2016), summed row by row.

use std::fmt;

use ndarray::{Array2, ArrayView2};

use crate::error::{Error, Result, ensure_finite};
use crate::numpy_random::RandomState;

/// How the samples are split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parts {
    /// Number of parts; part i goes from `i·N/count` to `(i + 1)·N/count`.
    Count(usize),
    /// Samples per part; the last part can be shorter.
    Size(usize),
}

/// Inception Score settings of one tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScoreRule {
    /// The split.
    pub parts: Parts,
    /// Seed of the `RandomState` that permutes the samples before the split; `None` keeps their order.
    pub shuffle_seed: Option<u32>,
    /// Whether class probabilities and their logarithms are f32 instead of f64. For an f32 probability of 0 the tools
    /// give NaN; here the term is 0, its limit.
    pub f32_probabilities: bool,
}

impl ScoreRule {
    /// Description for results.
    #[must_use]
    pub fn describe(&self) -> String {
        let parts = match self.parts {
            Parts::Count(n) => format!("{n} parts"),
            Parts::Size(n) => format!("parts of {n}"),
        };
        let order = self.shuffle_seed.map_or("in order".to_owned(), |s| format!("after RandomState({s}).permutation"));
        format!("{parts} {order}, {}", if self.f32_probabilities { "f32" } else { "f64" })
    }

    /// The same rule with another split, as with `isc_splits` of torch-fidelity.
    #[must_use]
    pub fn with_parts(self, parts: Parts) -> Self {
        Self { parts, ..self }
    }

    /// Checks that every part of `samples` logits has a sample, before anything is computed.
    ///
    /// # Errors
    /// `TooFew` if a part would be empty or the rule has no parts.
    pub fn check(&self, samples: usize) -> Result<()> {
        let (given, least) = match self.parts {
            Parts::Count(n) => (n, n),
            Parts::Size(n) => (n, 1),
        };
        if given == 0 {
            return Err(Error::TooFew { what: "Inception Score, number or size of splits", least: 1, found: 0 });
        }
        if samples < least {
            return Err(Error::TooFew { what: "Inception Score, samples", least, found: samples });
        }
        Ok(())
    }

    /// The last part of `samples` logits, if it is shorter than the others. It has the same weight as the others,
    /// although a short part scores lower (a part of one sample scores 1). Parts of [`Parts::Count`] differ by at most
    /// one sample and are not reported.
    #[must_use]
    pub fn short_part(&self, samples: usize) -> Option<ShortPart> {
        let Parts::Size(full) = self.parts else { return None };
        let rest = samples.checked_rem(full)?;
        (rest > 0 && samples > full).then_some(ShortPart { samples: rest, full })
    }
}

/// A last part that is shorter than the others. `Display` gives the note for users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShortPart {
    /// Samples in the last part.
    pub samples: usize,
    /// Samples in each of the other parts.
    pub full: usize,
}

impl fmt::Display for ShortPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, full } = self;
        let plural = if *samples == 1 { "" } else { "s" };
        write!(
            f,
            "the last split of the Inception Score has {samples} sample{plural} instead of {full}, with the same weight as the others"
        )
    }
}

/// Mean and standard deviation (ddof 0) over the parts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InceptionScore {
    /// Mean score of the parts; higher is better.
    pub mean: f64,
    /// Standard deviation of the scores; `None` for a single part.
    pub std: Option<f64>,
}

/// Running sums of the score. Memory: classes × parts and, for a shuffled split, one integer per sample.
#[derive(Debug, Clone)]
pub struct ScoreSums {
    rule: ScoreRule,
    total: usize,
    at: usize,
    place: Vec<usize>,
    counts: Vec<usize>,
    /// Σ p·log p of each part.
    entropy: Vec<f64>,
    /// Σ p of each part and class.
    marginal: Array2<f64>,
}

impl ScoreSums {
    /// Empty sums for `total` rows of `classes` logits.
    ///
    /// # Errors
    /// Those of [`ScoreRule::check`].
    pub fn new(rule: ScoreRule, total: usize, classes: usize) -> Result<Self> {
        rule.check(total)?;
        let parts = match rule.parts {
            Parts::Count(n) => n,
            Parts::Size(n) => total.div_ceil(n),
        };
        let place = match rule.shuffle_seed {
            Some(seed) => {
                let mut place = vec![0; total];
                for (position, row) in RandomState::new(seed).permutation(total).into_iter().enumerate() {
                    place[row] = position;
                }
                place
            }
            None => Vec::new(),
        };
        Ok(Self {
            rule,
            total,
            at: 0,
            place,
            counts: vec![0; parts],
            entropy: vec![0.0; parts],
            marginal: Array2::zeros((parts, classes)),
        })
    }

    fn part(&self, row: usize) -> usize {
        let position = self.place.get(row).copied().unwrap_or(row);
        match self.rule.parts {
            Parts::Size(n) => position / n,
            // The last part with a start i·N/count (rounded down) not beyond the position.
            Parts::Count(n) => ((position + 1) * n - 1) / self.total,
        }
    }

    /// Adds the next rows of logits `[n, K]`.
    ///
    /// # Errors
    /// `DimMismatch`; `NotFinite` naming the row; `TooMany` beyond the announced total.
    pub fn push(&mut self, logits: ArrayView2<'_, f32>) -> Result<()> {
        if logits.ncols() != self.marginal.ncols() {
            return Err(Error::DimMismatch { what: "logits", expected: self.marginal.ncols(), found: logits.ncols() });
        }
        if self.at + logits.nrows() > self.total {
            return Err(Error::TooMany { what: "logits", most: self.total, found: self.at + logits.nrows() });
        }
        ensure_finite("logits", logits, self.at)?;
        for row in logits.outer_iter() {
            let part = self.part(self.at);
            self.at += 1;
            self.counts[part] += 1;
            let peak = row.fold(f64::NEG_INFINITY, |m, v| m.max(f64::from(*v)));
            let total = row.iter().map(|v| (f64::from(*v) - peak).exp()).sum::<f64>().ln() + peak;
            for (v, sum) in row.iter().zip(self.marginal.row_mut(part)) {
                let log_p = f64::from(*v) - total;
                let mut p = log_p.exp();
                if self.rule.f32_probabilities {
                    #[allow(clippy::cast_possible_truncation, reason = "the rule asks for f32")]
                    let (p32, log32) = (p as f32, (p as f32).ln());
                    p = f64::from(p32);
                    if p32 > 0.0 {
                        self.entropy[part] += p * f64::from(log32);
                    }
                } else {
                    self.entropy[part] += p * log_p;
                }
                *sum += p;
            }
        }
        Ok(())
    }

    /// Mean and standard deviation over the parts. The score of a part is exp of the mean KL divergence between the
    /// class distribution of each sample and the mean distribution of the part.
    ///
    /// # Errors
    /// `TooFew` if fewer rows than announced were pushed.
    #[allow(clippy::cast_precision_loss, reason = "sample counts")]
    pub fn finish(&self) -> Result<InceptionScore> {
        if self.at < self.total {
            return Err(Error::TooFew { what: "Inception Score, samples", least: self.total, found: self.at });
        }
        let scores: Vec<f64> = self
            .counts
            .iter()
            .zip(&self.entropy)
            .zip(self.marginal.outer_iter())
            .map(|((n, entropy), sums)| {
                let n = *n as f64;
                let cross: f64 = sums.iter().filter(|s| **s > 0.0).map(|s| s * (s / n).ln()).sum();
                ((entropy - cross) / n).exp()
            })
            .collect();
        let parts = scores.len() as f64;
        let mean = scores.iter().sum::<f64>() / parts;
        let variance = scores.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / parts;
        Ok(InceptionScore { mean, std: (scores.len() > 1).then(|| variance.sqrt()) })
    }
}

/// Inception Score of `logits [N, K]` in one call.
///
/// # Errors
/// Those of [`ScoreSums`].
pub fn inception_score(logits: ArrayView2<'_, f32>, rule: ScoreRule) -> Result<InceptionScore> {
    let mut sums = ScoreSums::new(rule, logits.nrows(), logits.ncols())?;
    sums.push(logits)?;
    sums.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN: ScoreRule = ScoreRule { parts: Parts::Count(10), shuffle_seed: None, f32_probabilities: false };

    #[test]
    fn confident_and_diverse_scores_the_number_of_classes() {
        let sharp = Array2::from_shape_fn((100, 5), |(i, k)| if i % 5 == k { 50.0 } else { 0.0 });
        for rule in [TEN, ScoreRule { f32_probabilities: true, ..TEN }, ScoreRule { parts: Parts::Size(30), ..TEN }] {
            let score = inception_score(sharp.view(), rule).unwrap();
            assert!((score.mean - 5.0).abs() < 1e-6 && score.std.is_none_or(|s| s < 1e-6), "{rule:?}");
        }
        let same = Array2::from_shape_fn((100, 5), |(_, k)| if k == 0 { 50.0 } else { 0.0 });
        assert!((inception_score(same.view(), TEN).unwrap().mean - 1.0).abs() < 1e-9);
        let uniform = Array2::<f32>::zeros((100, 5));
        assert!((inception_score(uniform.view(), TEN).unwrap().mean - 1.0).abs() < 1e-12);
    }

    #[test]
    fn parts_of_rows_are_the_tools() {
        for (total, parts) in [(10, 10), (103, 10), (47, 6), (1009, 10)] {
            let sums = ScoreSums::new(ScoreRule { parts: Parts::Count(parts), ..TEN }, total, 2).unwrap();
            for i in 0..parts {
                for row in i * total / parts..(i + 1) * total / parts {
                    assert_eq!(sums.part(row), i, "row {row} of {total}");
                }
            }
        }
    }

    #[test]
    fn batch_sizes_do_not_matter() {
        let x = Array2::from_shape_fn((53, 4), |(i, k)| ((i * 7 + k * 5) % 11) as f32 / 3.0);
        let rule = ScoreRule { shuffle_seed: Some(1), ..TEN };
        let mut sums = ScoreSums::new(rule, 53, 4).unwrap();
        for start in (0..53).step_by(9) {
            sums.push(x.slice(ndarray::s![start..(start + 9).min(53), ..])).unwrap();
        }
        assert_eq!(sums.finish().unwrap(), inception_score(x.view(), rule).unwrap());
    }

    #[test]
    fn a_short_last_part_is_reported() {
        let adm = TEN.with_parts(Parts::Size(5000));
        assert_eq!(adm.short_part(5001), Some(ShortPart { samples: 1, full: 5000 }));
        let note =
            "the last split of the Inception Score has 1 sample instead of 5000, with the same weight as the others";
        assert_eq!(adm.short_part(50_001).unwrap().to_string(), note);
        assert!([1, 4999, 5000, 50_000].iter().all(|n| adm.short_part(*n).is_none()));
        assert_eq!(TEN.short_part(5001), None);
        assert_eq!(TEN.with_parts(Parts::Size(0)).short_part(9), None);
    }

    #[test]
    fn splits_can_be_chosen() {
        // `isc_splits = 4` of torch-fidelity: the mean of the scores of the four quarters.
        let x = Array2::from_shape_fn((48, 4), |(i, k)| ((i * 7 + k * 5) % 11) as f32 / 3.0);
        let of = |x: ArrayView2<'_, f32>, parts| inception_score(x, TEN.with_parts(Parts::Count(parts))).unwrap();
        let quarters: f64 = (0..4).map(|i| of(x.slice(ndarray::s![12 * i..12 * (i + 1), ..]), 1).mean / 4.0).sum();
        assert!((of(x.view(), 4).mean - quarters).abs() < 1e-12);
        assert_eq!(of(x.view(), 1).std, None);
        for parts in [Parts::Count(0), Parts::Size(0), Parts::Count(49)] {
            let rule = TEN.with_parts(parts);
            assert!(matches!(rule.check(48), Err(Error::TooFew { .. })), "{parts:?}");
            assert!(matches!(inception_score(x.view(), rule), Err(Error::TooFew { .. })), "{parts:?}");
        }
    }

    #[test]
    fn bad_logits_are_errors() {
        assert!(matches!(inception_score(Array2::zeros((9, 2)).view(), TEN), Err(Error::TooFew { .. })));
        let mut x = Array2::zeros((20, 2));
        x[[13, 1]] = f32::INFINITY;
        assert!(matches!(inception_score(x.view(), TEN), Err(Error::NotFinite { row: 13, .. })));
        let mut sums = ScoreSums::new(TEN, 10, 2).unwrap();
        assert!(matches!(sums.push(Array2::zeros((11, 2)).view()), Err(Error::TooMany { .. })));
        assert!(matches!(sums.finish(), Err(Error::TooFew { .. })));
    }
}
