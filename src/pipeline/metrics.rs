//! Computes metrics from statistics.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::Context as _;
use d2o_evaluations::bootstrap::{frechet_interval, mean_count_interval, proportion_interval};
use d2o_evaluations::fd_infinity::{Extrapolation, fd_infinity};
use d2o_evaluations::frechet::{frechet_distance, frechet_distance_of};
use d2o_evaluations::inception_score::{Parts, ScoreRule};
use d2o_evaluations::kid::{KidRule, kid};
use d2o_evaluations::manifold::{ManifoldRule, density_coverage, precision_recall};
use d2o_evaluations::nearest::nearest;
use d2o_evaluations::protocol::Protocol;
use d2o_evaluations::result::{
    ClassMetrics, Deviation, DeviationKind, Metric as Value, NearestImages, SampleNeighbours,
};
use ndarray::{ArrayView2, Axis};

use super::network::Role;
use super::reference::Reference;
use super::statistics::SetStatistics;
use crate::progress::Reporter;

/// Most samples for which the Fréchet distance gets an interval. The cost grows with the cube of their number.
const INTERVAL_LIMIT: usize = 4096;
/// Number of nearest reference images per sample.
const NEAREST: usize = 8;

/// Metrics that can be requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// Fréchet distance.
    Fid,
    /// Fréchet distance of spatial features.
    Sfid,
    /// Inception Score.
    Is,
    /// Precision and recall.
    Pr,
    /// Density and coverage.
    Dc,
    /// Kernel distance.
    Kid,
    /// Fréchet distance of CLIP features.
    ClipFid,
    /// Fréchet distance extrapolated to infinitely many samples.
    FdInf,
}

impl Metric {
    /// All metrics, in the order of tables.
    pub const EVERY: [Self; 8] =
        [Self::Fid, Self::Sfid, Self::Is, Self::Pr, Self::Dc, Self::Kid, Self::ClipFid, Self::FdInf];

    /// Name for messages.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Fid => "the Fréchet distance",
            Self::Sfid => "sFID",
            Self::Is => "the Inception Score",
            Self::Pr => "precision and recall",
            Self::Dc => "density and coverage",
            Self::Kid => "the kernel distance",
            Self::ClipFid => "CLIP-FID",
            Self::FdInf => "FD∞",
        }
    }

    /// Keys in results. Distances are called FID only for Inception features, and CLIP-FID only for CLIP features.
    #[must_use]
    pub fn keys(self, names: &Names) -> &'static [&'static str] {
        match (self, names.inception, names.clip) {
            (Self::Fid, true, _) => &["fid"],
            (Self::Fid, false, _) => &["fd"],
            (Self::Sfid, true, _) => &["sfid"],
            (Self::Sfid, false, _) => &["sfd"],
            (Self::Is, ..) => &["is"],
            (Self::Pr, ..) => &["precision", "recall"],
            (Self::Dc, ..) => &["density", "coverage"],
            (Self::Kid, true, _) => &["kid"],
            (Self::Kid, false, _) => &["kd"],
            (Self::ClipFid, _, true) => &["clip_fid"],
            (Self::ClipFid, _, false) => &["clip_fd"],
            (Self::FdInf, true, _) => &["fid_inf"],
            (Self::FdInf, false, _) => &["fd_inf"],
        }
    }

    /// The metric with `key` among its [`keys`](Self::keys), for features of any kind.
    #[must_use]
    pub fn of_key(key: &str) -> Option<Self> {
        Self::EVERY.into_iter().find(|metric| Names::BOTH.iter().any(|names| metric.keys(names).contains(&key)))
    }
}

/// The key of the same value of features that are neither those of FID nor those of CLIP-FID: `fd` for `fid`.
#[must_use]
pub fn general_key(key: &str) -> Option<&'static str> {
    let metric = Metric::of_key(key)?;
    let [proper, general] = Names::BOTH.map(|names| metric.keys(&names));
    proper.iter().zip(general).find(|(proper, _)| **proper == key).map(|(_, general)| *general)
}

/// Whether the features are those for which the names FID and CLIP-FID apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names {
    /// Whether the main features are Inception features.
    pub inception: bool,
    /// Whether the features of CLIP-FID are CLIP features.
    pub clip: bool,
}

impl Names {
    /// Both names apply; neither does.
    const BOTH: [Self; 2] = [Self { inception: true, clip: true }, Self { inception: false, clip: false }];
}

/// Requested metrics, and settings that replace those of the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsRequest {
    /// The metrics.
    pub metrics: Vec<Metric>,
    /// Whether metrics are also computed for each class.
    pub per_class: bool,
    /// Whether precision and recall are computed for each class.
    pub class_neighbours: bool,
    /// Number of samples for which the nearest reference images are recorded.
    pub nearest: Option<usize>,
    /// Number of neighbours for precision, recall, density and coverage.
    pub neighbours: Option<usize>,
    /// Number of parts of the Inception Score.
    pub is_splits: Option<usize>,
    /// Number of subsets of KID.
    pub kid_subsets: Option<usize>,
    /// Rows per subset of KID.
    pub kid_subset_size: Option<usize>,
    /// Number of bootstrap resamples; 0 for no intervals.
    pub bootstrap: u32,
    /// Seed of the resamples, of the subsets of FD∞, and of the subsets of KID if the tool of the protocol does not set
    /// a seed.
    pub seed: u32,
}

impl MetricsRequest {
    /// Whether `metric` is requested.
    #[must_use]
    pub fn wants(&self, metric: Metric) -> bool {
        self.metrics.contains(&metric)
    }

    /// Whether the Fréchet distance of `count` samples gets an interval.
    #[must_use]
    pub fn wants_interval(&self, count: usize) -> bool {
        self.bootstrap > 0 && self.wants(Metric::Fid) && count <= INTERVAL_LIMIT
    }

    /// `rule` with the requested number of neighbours.
    #[must_use]
    pub fn with_neighbours(&self, rule: ManifoldRule) -> ManifoldRule {
        ManifoldRule { k: self.neighbours.unwrap_or(rule.k), ..rule }
    }

    /// KID rule of the protocol, with the requested subsets.
    #[must_use]
    pub fn kid_rule(&self, protocol: &Protocol) -> KidRule {
        let KidRule { subsets, subset_size, .. } = protocol.kid;
        KidRule {
            subsets: self.kid_subsets.unwrap_or(subsets),
            subset_size: self.kid_subset_size.unwrap_or(subset_size),
            ..protocol.kid
        }
    }

    /// Inception Score rule of the protocol, with the requested number of parts.
    #[must_use]
    pub fn score_rule(&self, protocol: &Protocol) -> ScoreRule {
        self.is_splits.map_or(protocol.score, |n| protocol.score.with_parts(Parts::Count(n)))
    }

    /// Differences from `protocol` that result from options.
    #[must_use]
    pub fn deviations(&self, protocol: &Protocol) -> Vec<Deviation> {
        let mut found = Vec::new();
        let mut differs = |kind, subject: &str, text: String, expected: String| {
            found.push(Deviation { kind, subject: subject.to_owned(), found: text, expected });
        };
        for (wanted, subject, rule) in [
            (self.wants(Metric::Pr) || self.class_neighbours, "precision and recall", protocol.manifold),
            (self.wants(Metric::Dc), "density and coverage", protocol.density_coverage),
        ] {
            let k = self.with_neighbours(rule).k;
            if wanted && k != rule.k {
                differs(DeviationKind::Neighbours, subject, k.to_string(), rule.k.to_string());
            }
        }
        if self.wants(Metric::Kid) {
            let [found, expected] = [self.kid_rule(protocol), protocol.kid];
            if found != expected {
                let text = |rule: KidRule| format!("{} subsets of {}", rule.subsets, rule.subset_size);
                differs(DeviationKind::KidSubsets, "KID", text(found), text(expected));
            }
        }
        if self.wants(Metric::Is) {
            let [found, expected] = [self.score_rule(protocol), protocol.score];
            if found != expected {
                differs(DeviationKind::Splits, "the Inception Score", found.describe(), expected.describe());
            }
        }
        found
    }
}

/// Results of an evaluation in progress.
#[derive(Debug)]
pub struct EvaluationBuilder<'a> {
    /// Metrics by name.
    pub metrics: BTreeMap<String, Value>,
    /// Metrics that failed, with the reason.
    pub failed: BTreeMap<String, String>,
    /// Metrics of each class.
    pub per_class: Vec<ClassMetrics>,
    /// Points and line of FD∞.
    pub fd_infinity: Option<Extrapolation>,
    /// Reference images nearest to some samples.
    pub nearest: Option<NearestImages>,
    /// Warnings for users of the numbers.
    pub warnings: Vec<String>,
    /// Choices of the program.
    pub notes: Vec<String>,
    /// Seconds of each stage.
    pub timings: BTreeMap<String, f64>,
    clock: Instant,
    reporter: &'a dyn Reporter,
}

impl<'a> EvaluationBuilder<'a> {
    /// An empty builder. The first stage starts.
    #[must_use]
    pub fn new(reporter: &'a dyn Reporter) -> Self {
        Self {
            metrics: BTreeMap::new(),
            failed: BTreeMap::new(),
            per_class: Vec::new(),
            fd_infinity: None,
            nearest: None,
            warnings: Vec::new(),
            notes: Vec::new(),
            timings: BTreeMap::new(),
            clock: Instant::now(),
            reporter,
        }
    }

    /// Records the time of `stage` and starts the next stage.
    pub fn lap(&mut self, stage: &str) {
        self.timings.insert(stage.to_owned(), self.clock.elapsed().as_secs_f64());
        self.clock = Instant::now();
    }

    fn warn(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    fn put(&mut self, name: &str, value: f64) {
        self.metrics.insert(name.to_owned(), Value::new(value));
    }

    /// Computes the metrics `keys` in a separate stage; a failure does not affect other metrics.
    fn attempt(&mut self, stage: &str, keys: &[&str], compute: impl FnOnce(&mut Self) -> anyhow::Result<()>) {
        let shown = self.reporter.stage(stage);
        let result = compute(self);
        drop(shown);
        for key in keys {
            let problem = match (&result, self.metrics.get(*key)) {
                (Err(error), _) => format!("{error:#}"),
                (Ok(()), Some(metric)) if !metric.value.is_finite() => format!("the result is {}", metric.value),
                _ => continue,
            };
            self.metrics.remove(*key);
            self.failed.insert((*key).to_owned(), problem);
        }
        self.lap(stage);
    }
}

/// Features of the samples and of the reference, `[N, D]` and `[M, D]`.
type Pair<'a> = [ArrayView2<'a, f32>; 2];

/// What the metrics of samples against a reference are computed from, under one protocol.
#[derive(Debug)]
pub struct MetricsContext<'a> {
    /// Requested metrics.
    pub request: &'a MetricsRequest,
    /// The protocol.
    pub protocol: &'static Protocol,
    /// The reference.
    pub reference: &'a Reference,
    /// Number of samples.
    pub count: usize,
    /// Class of each sample.
    pub labels: Option<&'a [i64]>,
    /// Names of the distances.
    pub names: Names,
}

impl MetricsContext<'_> {
    /// Computes the requested metrics from `sums`, the statistics of the samples.
    pub fn compute(&self, sums: &SetStatistics, builder: &mut EvaluationBuilder<'_>) {
        let rows = sums.kept.as_ref().map(|rows| rows.view());
        let wants = |metric| self.request.wants(metric);
        let keys = |metric: Metric| metric.keys(&self.names);
        if wants(Metric::Fid) {
            builder.attempt("frechet", keys(Metric::Fid), |b| self.frechet(sums, rows, b));
        }
        if wants(Metric::FdInf) {
            builder.attempt("fd_inf", keys(Metric::FdInf), |b| self.frechet_infinity(rows, b));
        }
        for (metric, stage, accumulator) in
            [(Metric::Sfid, "spatial", &sums.spatial), (Metric::ClipFid, "clip", &sums.clip)]
        {
            if wants(metric) {
                builder.attempt(stage, keys(metric), |b| {
                    let ddof = self.protocol.ddof;
                    let samples = accumulator.as_ref().context("no features")?.finish(ddof)?;
                    let reference = self.reference.gaussian(stage, ddof)?;
                    b.put(metric.keys(&self.names)[0], frechet_distance(&samples, &reference)?);
                    Ok(())
                });
            }
        }
        if wants(Metric::Is) {
            builder.attempt("is", keys(Metric::Is), |b| {
                let rule = self.request.score_rule(self.protocol);
                let found = sums.scores.iter().find(|(r, _)| *r == rule);
                let (rule, sums) = found.context("no class probabilities")?;
                let score = sums.finish()?;
                b.notes.extend(rule.short_part(self.count).map(|part| part.to_string()));
                b.metrics.insert("is".to_owned(), Value { std: score.std, ..Value::new(score.mean) });
                Ok(())
            });
        }
        if wants(Metric::Kid) {
            builder.attempt("kid", keys(Metric::Kid), |b| self.kid(rows, b));
        }
        let other = sums.manifold.as_ref().map(|rows| rows.view());
        let neighbours = || -> anyhow::Result<Pair<'_>> {
            match other {
                Some(samples) => {
                    let reference = self
                        .reference
                        .manifold
                        .as_ref()
                        .context("the reference has no features for precision and recall")?;
                    Ok([samples, reference.view()])
                }
                None => self.pair(rows),
            }
        };
        if wants(Metric::Pr) {
            builder.attempt("precision_recall", keys(Metric::Pr), |b| self.precision_recall(neighbours()?, b));
        }
        if wants(Metric::Dc) {
            builder.attempt("density_coverage", keys(Metric::Dc), |b| self.density_coverage(neighbours()?, b));
        }
        if let Some(count) = self.request.nearest {
            let role = if other.is_some() { Role::Manifold } else { Role::Features };
            builder.attempt("nearest", &["nearest"], |b| self.nearest(count, role, neighbours()?, b));
        }
        if self.request.per_class {
            builder.attempt("per_class", &["per_class"], |b| {
                let neighbours = if self.request.class_neighbours { Some(neighbours()?) } else { None };
                self.classes(self.pair(rows)?, neighbours, b)
            });
        }
    }

    /// Rows of the main features of samples and reference.
    fn pair<'b>(&'b self, rows: Option<ArrayView2<'b, f32>>) -> anyhow::Result<Pair<'b>> {
        let reference = self.reference.rows.as_ref().context("the reference has no features")?;
        Ok([rows.context("the samples have no features")?, reference.view()])
    }

    fn frechet(
        &self,
        sums: &SetStatistics,
        rows: Option<ArrayView2<'_, f32>>,
        builder: &mut EvaluationBuilder<'_>,
    ) -> anyhow::Result<()> {
        let ddof = self.protocol.ddof;
        let samples = sums.features.as_ref().context("no features")?.finish(ddof)?;
        let against = self.reference.gaussian("features", ddof)?;
        let value = frechet_distance(&samples, &against)?;
        let (count, dims) = (self.count, samples.mu.len());
        if count <= dims {
            builder.warn(format!("{count} samples for {dims} features: the distance is biased upwards"));
        }
        let (resamples, seed) = (self.request.bootstrap, u64::from(self.request.seed));
        let ci95 = match rows {
            Some(rows) if self.request.wants_interval(count) => {
                match frechet_interval(rows, &against, value, ddof, resamples, seed)? {
                    Ok(interval) => Some(interval),
                    Err(reason) => {
                        builder.notes.push(reason.to_string());
                        None
                    }
                }
            }
            _ => None,
        };
        if resamples > 0 && count > INTERVAL_LIMIT {
            builder.notes.push(format!("no interval for the Fréchet distance: more than {INTERVAL_LIMIT} samples"));
        }
        let name = Metric::Fid.keys(&self.names)[0];
        builder.metrics.insert(name.to_owned(), Value { ci95, ..Value::new(value) });
        Ok(())
    }

    fn frechet_infinity(
        &self,
        rows: Option<ArrayView2<'_, f32>>,
        builder: &mut EvaluationBuilder<'_>,
    ) -> anyhow::Result<()> {
        let ddof = self.protocol.ddof;
        let against = self.reference.gaussian("features", ddof)?;
        let line = fd_infinity(rows.context("no features")?, &against, ddof, self.request.seed)?;
        builder.put(Metric::FdInf.keys(&self.names)[0], line.intercept);
        builder.fd_infinity = Some(line);
        Ok(())
    }

    /// Finds the reference images nearest to `count` samples, which are chosen like the images of a report.
    fn nearest(
        &self,
        count: usize,
        role: Role,
        [samples, real]: Pair<'_>,
        builder: &mut EvaluationBuilder<'_>,
    ) -> anyhow::Result<()> {
        let chosen: Vec<usize> = evenly_spaced(samples.nrows(), count).collect();
        let found = nearest(samples.select(Axis(0), &chosen).view(), real, NEAREST.min(real.nrows()))?;
        let samples = chosen.into_iter().zip(found);
        builder.nearest = Some(NearestImages {
            role: role.name().to_owned(),
            reference_sha256: self.reference.images_sha256.clone(),
            samples: samples.map(|(sample, neighbours)| SampleNeighbours { sample, neighbours }).collect(),
        });
        Ok(())
    }

    fn kid(&self, rows: Option<ArrayView2<'_, f32>>, builder: &mut EvaluationBuilder<'_>) -> anyhow::Result<()> {
        let (rule, seed) = (self.request.kid_rule(self.protocol), self.request.seed);
        let title = self.protocol.title;
        match rule.seed {
            None => {
                builder
                    .notes
                    .push(format!("KID subsets are sampled with RandomState({seed}); {title} does not set a seed"));
            }
            Some(fixed) if seed != 0 => builder.notes.push(format!(
                "KID subsets are sampled with RandomState({fixed}), as in {title}; --seed {seed} does not change them"
            )),
            Some(_) => {}
        }
        let [samples, reference] = self.pair(rows)?;
        let found = kid(samples, reference, &rule, seed)?;
        let name = Metric::Kid.keys(&self.names)[0];
        builder.metrics.insert(name.to_owned(), Value { std: Some(found.std), ..Value::new(found.mean) });
        Ok(())
    }

    fn precision_recall(&self, [samples, real]: Pair<'_>, builder: &mut EvaluationBuilder<'_>) -> anyhow::Result<()> {
        let found = precision_recall(samples, real, &self.request.with_neighbours(self.protocol.manifold))?;
        let seed = u64::from(self.request.seed);
        let ci95 = proportion_interval(&found.sample_inside, self.request.bootstrap, seed);
        builder.metrics.insert("precision".to_owned(), Value { ci95, ..Value::new(found.precision()) });
        builder.put("recall", found.recall());
        Ok(())
    }

    fn density_coverage(&self, [samples, real]: Pair<'_>, builder: &mut EvaluationBuilder<'_>) -> anyhow::Result<()> {
        let found = density_coverage(samples, real, &self.request.with_neighbours(self.protocol.density_coverage))?;
        let seed = u64::from(self.request.seed);
        let ci95 = mean_count_interval(&found.balls, found.k, self.request.bootstrap, seed);
        builder.metrics.insert("density".to_owned(), Value { ci95, ..Value::new(found.density()) });
        builder.put("coverage", found.coverage());
        Ok(())
    }

    /// Computes the Fréchet distance of `features` and precision and recall of `neighbours` for each class that is in
    /// both sets.
    fn classes(
        &self,
        features: Pair<'_>,
        neighbours: Option<Pair<'_>>,
        builder: &mut EvaluationBuilder<'_>,
    ) -> anyhow::Result<()> {
        let ours = members(self.labels.context("the samples have no classes")?);
        let theirs = members(self.reference.labels.as_deref().context("the reference has no classes")?);
        let (dims, rule) = (features[0].ncols(), self.request.with_neighbours(self.protocol.manifold));
        let (mut alone, mut few, mut biased) = (Vec::new(), Vec::new(), 0);
        for class in ours.keys().chain(theirs.keys()).copied().collect::<BTreeSet<_>>() {
            let (Some(a), Some(b)) = (ours.get(&class), theirs.get(&class)) else {
                alone.push(class.to_string());
                continue;
            };
            let own = |[x, y]: Pair<'_>| (x.select(Axis(0), a), y.select(Axis(0), b));
            let mut metrics = BTreeMap::new();
            let smaller = a.len().min(b.len());
            let mut put = |name: &str, value: f64| metrics.insert(name.to_owned(), Value::new(value));
            if smaller > self.protocol.ddof {
                let (x, y) = own(features);
                let distance = frechet_distance_of(x.view(), y.view(), self.protocol.ddof)?;
                put(Metric::Fid.keys(&self.names)[0], distance);
                biased += usize::from(smaller <= dims);
            }
            match neighbours {
                Some(neighbours) if smaller > rule.k => {
                    let (x, y) = own(neighbours);
                    let m = precision_recall(x.view(), y.view(), &rule)?;
                    put("precision", m.precision());
                    put("recall", m.recall());
                }
                Some(_) => few.push(class.to_string()),
                None => {}
            }
            builder.per_class.push(ClassMetrics { class, samples: a.len(), reference: b.len(), metrics });
        }
        if !alone.is_empty() {
            builder.warn(format!("classes found in one set only: {}", alone.join(", ")));
        }
        if !few.is_empty() {
            let (k, few) = (rule.k, few.join(", "));
            builder.warn(format!("classes with too few images (at most {k}) for precision and recall: {few}"));
        }
        if biased > 0 {
            let all = builder.per_class.len();
            builder.warn(format!(
                "{biased} of {all} classes have at most {dims} images for {dims} features: distances are biased upwards"
            ));
        }
        Ok(())
    }
}

/// `count` evenly spaced indices of `len` images (all if there are fewer), so that a sorted set shows its variety.
pub fn evenly_spaced(len: usize, count: usize) -> impl Iterator<Item = usize> {
    let count = count.min(len);
    (0..count).map(move |i| i * len / count)
}

/// Indices of the images of each class.
fn members(labels: &[i64]) -> BTreeMap<i64, Vec<usize>> {
    let mut members: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    for (i, label) in labels.iter().enumerate() {
        members.entry(*label).or_default().push(i);
    }
    members
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_name_their_metric() {
        for (metric, names) in Metric::EVERY.into_iter().flat_map(|m| Names::BOTH.iter().map(move |n| (m, n))) {
            assert!(metric.keys(names).iter().all(|key| Metric::of_key(key) == Some(metric)), "{metric:?}");
        }
        assert_eq!((general_key("sfid"), general_key("recall"), general_key("f")), (Some("sfd"), Some("recall"), None));
    }

    #[test]
    fn chosen_images_are_evenly_spaced_over_all() {
        assert_eq!(evenly_spaced(127, 64).collect::<Vec<_>>(), (0..64).map(|i| i * 127 / 64).collect::<Vec<_>>());
        assert_eq!(evenly_spaced(127, 64).last(), Some(125));
        assert_eq!(evenly_spaced(3, 64).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(evenly_spaced(0, 64).count(), 0);
    }
}
