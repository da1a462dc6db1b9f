//! From sums to metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use d2o_evaluations::bootstrap::{frechet_interval, mean_count_interval, proportion_interval};
use d2o_evaluations::fd_infinity::fd_infinity;
use d2o_evaluations::frechet::{Gaussian, frechet_distance, frechet_distance_of};
use d2o_evaluations::kid::kid;
use d2o_evaluations::manifold::{ManifoldRule, density_coverage, precision_recall};
use d2o_evaluations::protocol::Protocol;
use d2o_evaluations::result::{ClassMetrics, Metric as Value};
use ndarray::{ArrayView2, Axis};

use super::reference::Reference;
use crate::cli::{Evaluate, Metric};
use crate::measure::Sums;

/// Most samples whose Fréchet distance gets an interval: its cost grows with the cube of their number.
const INTERVAL_LIMIT: usize = 4096;

/// What an evaluation has found so far.
pub(super) struct Ledger {
    /// Metrics by name.
    pub(super) metrics: BTreeMap<String, Value>,
    /// Metrics of each class.
    pub(super) per_class: Vec<ClassMetrics>,
    /// Where it departs from the protocol.
    pub(super) deviations: Vec<String>,
    /// What a reader of the numbers should know.
    pub(super) warnings: Vec<String>,
    /// Seconds of each stage.
    pub(super) timings: BTreeMap<String, f64>,
    clock: Instant,
}

impl Ledger {
    /// An empty one; the first stage begins.
    pub(super) fn new() -> Self {
        Self {
            metrics: BTreeMap::new(),
            per_class: Vec::new(),
            deviations: Vec::new(),
            warnings: Vec::new(),
            timings: BTreeMap::new(),
            clock: Instant::now(),
        }
    }

    /// Ends `stage`; the next one begins.
    pub(super) fn lap(&mut self, stage: &str) {
        self.timings.insert(stage.to_owned(), self.clock.elapsed().as_secs_f64());
        self.clock = Instant::now();
    }

    /// Adds a warning, unless it is there.
    pub(super) fn warn(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    fn put(&mut self, name: &str, value: f64) {
        self.put_with(name, Value { value, ci95: None, std: None });
    }

    fn put_with(&mut self, name: &str, value: Value) {
        self.metrics.insert(name.to_owned(), value);
    }
}

/// Features of the samples and of the reference, `[N, D]` and `[M, D]`.
type Pair<'a> = [ArrayView2<'a, f32>; 2];

/// Samples against a reference.
pub(super) struct Comparison<'a> {
    /// What was asked for.
    pub(super) args: &'a Evaluate,
    /// Whose way of computing.
    pub(super) protocol: &'static Protocol,
    /// The reference.
    pub(super) reference: &'a Reference,
    /// Its file.
    pub(super) path: &'a Path,
    /// Number of samples.
    pub(super) count: usize,
    /// Class of each sample.
    pub(super) labels: Option<Vec<i64>>,
    /// Whether the features are Inception's, whose Fréchet distance is FID.
    pub(super) inception: bool,
    /// Whether CLIP-FID's features are CLIP's.
    pub(super) clip: bool,
}

impl Comparison<'_> {
    /// Computes what was asked for, from `sums` over the samples.
    ///
    /// # Errors
    /// A reference without what a metric needs; too few images; failing solvers.
    pub(super) fn compute(&self, sums: Sums, ledger: &mut Ledger) -> anyhow::Result<()> {
        let ddof = self.protocol.ddof;
        let rows = sums.kept.as_ref().map(|rows| rows.view());
        let gaussian = sums.features.map(|s| s.finish(ddof)).transpose()?;
        if let (Some(samples), true) = (&gaussian, self.wants(Metric::Fid)) {
            self.frechet(samples, rows, ledger)?;
        }
        if let (Some(rows), true) = (rows, self.wants(Metric::FdInf)) {
            self.frechet_infinity(rows, ledger)?;
        }
        if let Some(sums) = sums.spatial {
            let against = self.held(&self.reference.spatial, "sFID needs `mu_s` and `sigma_s`")?;
            let value = frechet_distance(&sums.finish(ddof)?, against)?;
            ledger.put(if self.inception { "sfid" } else { "sfd" }, value);
            ledger.lap("sfid");
        }
        if let Some(sums) = sums.clip {
            let needs = "CLIP-FID needs `mu_clip` and `sigma_clip` (or --clip-ref)";
            let value = frechet_distance(&sums.finish(ddof)?, self.held(&self.reference.clip, needs)?)?;
            ledger.put(if self.clip { "clip_fid" } else { "clip_fd" }, value);
            ledger.lap("clip_fid");
        }
        if let Some(sums) = sums.score {
            let score = sums.finish()?;
            ledger.put_with("is", Value { value: score.mean, ci95: None, std: score.std });
            ledger.lap("is");
        }
        if let (Some(rows), true) = (rows, self.wants(Metric::Kid)) {
            self.kid(rows, ledger)?;
        }
        if !wants_manifold(self.args) {
            return Ok(());
        }
        let other = sums.manifold.is_some();
        let Some(samples) = sums.manifold.as_ref().map(|rows| rows.view()).or(rows) else { return Ok(()) };
        let neighbours = [samples, self.rows(other)?];
        let (pr, classes) = (self.wants(Metric::Pr), self.args.per_class);
        let rule = self.manifold_rule(pr || classes, "precision and recall", self.protocol.manifold, ledger);
        if pr {
            self.precision_recall(neighbours, &rule, ledger)?;
        }
        let dc = self.wants(Metric::Dc);
        let dc_rule = self.manifold_rule(dc, "density and coverage", self.protocol.density_coverage, ledger);
        if dc {
            self.density_coverage(neighbours, &dc_rule, ledger)?;
        }
        if let (Some(rows), true) = (rows, classes) {
            self.classes([rows, self.rows(false)?], neighbours, &rule, ledger)?;
        }
        Ok(())
    }

    fn wants(&self, metric: Metric) -> bool {
        self.args.metrics.contains(&metric)
    }

    /// `part` of the reference, which a metric `needs`.
    fn held<'b, T>(&self, part: &'b Option<T>, needs: &str) -> anyhow::Result<&'b T> {
        part.as_ref().with_context(|| format!("{needs}, which `{}` does not hold", self.path.display()))
    }

    /// The reference's features, for precision and recall if `other` network's.
    fn rows(&self, other: bool) -> anyhow::Result<ArrayView2<'_, f32>> {
        let (part, option) =
            if other { (&self.reference.manifold, " --pr-extractor") } else { (&self.reference.rows, "") };
        let rows = part.as_ref().with_context(|| {
            let needs = "precision, recall, density, coverage, KID and classes need the reference's features or images";
            format!("{needs}, which `{}` does not hold; make it with `d2o refs make{option}`", self.path.display())
        })?;
        Ok(rows.view())
    }

    fn frechet(
        &self,
        samples: &Gaussian,
        rows: Option<ArrayView2<'_, f32>>,
        ledger: &mut Ledger,
    ) -> anyhow::Result<()> {
        let against = self.held(&self.reference.features, "FID needs `mu` and `sigma`")?;
        let value = frechet_distance(samples, against)?;
        let (count, dims, resamples) = (self.count, samples.mu.len(), self.args.bootstrap);
        if count <= dims {
            ledger.warn(format!("{count} samples for {dims} features: the distance is biased upwards"));
        }
        let ci95 = match rows {
            Some(rows) if wants_interval(self.args, count) => {
                let seed = u64::from(self.args.seed);
                match frechet_interval(rows, against, value, self.protocol.ddof, resamples, seed)? {
                    Ok(interval) => Some(interval),
                    Err(reason) => {
                        ledger.warn(reason.to_string());
                        None
                    }
                }
            }
            _ => None,
        };
        if resamples > 0 && count > INTERVAL_LIMIT {
            ledger.warn(format!("no interval of the Fréchet distance: more than {INTERVAL_LIMIT} samples"));
        }
        ledger.put_with(self.distance(), Value { value, ci95, std: None });
        ledger.lap("frechet");
        Ok(())
    }

    /// What the Fréchet distance is called.
    fn distance(&self) -> &'static str {
        if self.inception { "fid" } else { "fd" }
    }

    fn frechet_infinity(&self, rows: ArrayView2<'_, f32>, ledger: &mut Ledger) -> anyhow::Result<()> {
        let against = self.held(&self.reference.features, "FID needs `mu` and `sigma`")?;
        let value = fd_infinity(rows, against, self.protocol.ddof, self.args.seed)?;
        ledger.put(if self.inception { "fid_inf" } else { "fd_inf" }, value);
        ledger.lap("fd_inf");
        Ok(())
    }

    fn kid(&self, rows: ArrayView2<'_, f32>, ledger: &mut Ledger) -> anyhow::Result<()> {
        let (mut rule, seed) = (self.protocol.kid, self.args.seed);
        if rule.seed.is_none() {
            let title = self.protocol.title;
            ledger.deviations.push(format!("KID subsets by RandomState({seed}): {title} does not seed them"));
        }
        if let Some(size) = self.args.kid_subset_size.map(|n| n as usize).filter(|n| *n != rule.subset_size) {
            ledger.deviations.push(format!("KID subsets of {size} instead of {}", rule.subset_size));
            rule.subset_size = size;
        }
        let found = kid(rows, self.rows(false)?, &rule, seed)?;
        let name = if self.inception { "kid" } else { "kd" };
        ledger.put_with(name, Value { value: found.mean, ci95: None, std: Some(found.std) });
        ledger.lap("kid");
        Ok(())
    }

    /// The protocol's `rule` for `metrics`, with the number of neighbours asked for. If the metrics are `wanted`, another number is a deviation.
    fn manifold_rule(&self, wanted: bool, metrics: &str, mut rule: ManifoldRule, ledger: &mut Ledger) -> ManifoldRule {
        if let Some(k) = self.args.neighbours.map(|k| k as usize).filter(|k| *k != rule.k) {
            if wanted {
                ledger.deviations.push(format!("{metrics}: {k} neighbours instead of {}", rule.k));
            }
            rule.k = k;
        }
        rule
    }

    fn precision_recall(
        &self,
        [samples, real]: Pair<'_>,
        rule: &ManifoldRule,
        ledger: &mut Ledger,
    ) -> anyhow::Result<()> {
        let found = precision_recall(samples, real, rule)?;
        let ci95 = proportion_interval(&found.sample_inside, self.args.bootstrap, u64::from(self.args.seed));
        ledger.put_with("precision", Value { value: found.precision(), ci95, std: None });
        ledger.put("recall", found.recall());
        ledger.lap("precision_recall");
        Ok(())
    }

    fn density_coverage(
        &self,
        [samples, real]: Pair<'_>,
        rule: &ManifoldRule,
        ledger: &mut Ledger,
    ) -> anyhow::Result<()> {
        let found = density_coverage(samples, real, rule)?;
        let ci95 = mean_count_interval(&found.balls, found.k, self.args.bootstrap, u64::from(self.args.seed));
        ledger.put_with("density", Value { value: found.density(), ci95, std: None });
        ledger.put("coverage", found.coverage());
        ledger.lap("density_coverage");
        Ok(())
    }

    /// Fréchet distance of `features`, precision and recall of `neighbours`, of each class that is in both sets.
    fn classes(
        &self,
        features: Pair<'_>,
        neighbours: Pair<'_>,
        rule: &ManifoldRule,
        ledger: &mut Ledger,
    ) -> anyhow::Result<()> {
        let lacks = |path: &Path| format!("`{}` has no classes, which --per-class needs", path.display());
        let ours = members(self.labels.as_deref().with_context(|| lacks(super::samples_of(self.args)))?);
        let theirs = members(self.reference.labels.as_deref().with_context(|| lacks(self.path))?);
        let dims = features[0].ncols();
        let (mut alone, mut few, mut biased) = (Vec::new(), Vec::new(), 0);
        for class in ours.keys().chain(theirs.keys()).copied().collect::<BTreeSet<_>>() {
            let (Some(a), Some(b)) = (ours.get(&class), theirs.get(&class)) else {
                alone.push(class.to_string());
                continue;
            };
            let own = |[x, y]: Pair<'_>| (x.select(Axis(0), a), y.select(Axis(0), b));
            let mut metrics = BTreeMap::new();
            let smaller = a.len().min(b.len());
            let mut put =
                |name: &str, value: f64| metrics.insert(name.to_owned(), Value { value, ci95: None, std: None });
            if smaller > self.protocol.ddof {
                let (x, y) = own(features);
                put(self.distance(), frechet_distance_of(x.view(), y.view(), self.protocol.ddof)?);
                biased += usize::from(smaller <= dims);
            }
            if smaller > rule.k {
                let (x, y) = own(neighbours);
                let m = precision_recall(x.view(), y.view(), rule)?;
                put("precision", m.precision());
                put("recall", m.recall());
            } else {
                few.push(class.to_string());
            }
            ledger.per_class.push(ClassMetrics { class, samples: a.len(), reference: b.len(), metrics });
        }
        if !alone.is_empty() {
            ledger.warn(format!("classes in one set only: {}", alone.join(", ")));
        }
        if !few.is_empty() {
            let (k, few) = (rule.k, few.join(", "));
            ledger.warn(format!("at most {k} images, too few for precision and recall, in classes {few}"));
        }
        if biased > 0 {
            let all = ledger.per_class.len();
            ledger.warn(format!(
                "{biased} of {all} classes have at most {dims} images for {dims} features: distances are biased upwards"
            ));
        }
        ledger.lap("per_class");
        Ok(())
    }
}

/// Whether the Fréchet distance of `count` samples gets an interval.
pub(super) fn wants_interval(args: &Evaluate, count: usize) -> bool {
    args.bootstrap > 0 && count <= INTERVAL_LIMIT
}

/// Whether precision, recall, density or coverage were asked for, of all or of each class.
pub(super) fn wants_manifold(args: &Evaluate) -> bool {
    args.per_class || args.metrics.iter().any(|m| matches!(m, Metric::Pr | Metric::Dc))
}

/// Places of the images of each class.
fn members(labels: &[i64]) -> BTreeMap<i64, Vec<usize>> {
    let mut members: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    for (i, label) in labels.iter().enumerate() {
        members.entry(*label).or_default().push(i);
    }
    members
}
