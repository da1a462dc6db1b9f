//! `d2o evaluate`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use d2o_evaluations::bootstrap::{frechet_interval, share_interval};
use d2o_evaluations::frechet::{Gaussian, frechet_distance};
use d2o_evaluations::gaussian::Accumulator;
use d2o_evaluations::inception_score::inception_score;
use d2o_evaluations::manifold::manifold;
use d2o_evaluations::result::{Condition, Evaluation, ImageSet, Metric as Value, SCHEMA};
use d2o_refs::batch;
use d2o_refs::stats::ReferenceStats;
use ndarray::{Array2, Axis};

use super::ExitStatus;
use crate::cli::{Evaluate, Global, Metric};
use crate::features::{describe, extract, file_sha256};
use crate::printer::{Printer, table};
use crate::{report, runtime};

/// Extractors whose Fréchet distance may be called FID.
const INCEPTION: &str = "inception-2015-12-05";

/// Measures samples.
///
/// # Errors
/// Unreadable samples or references, an extractor that does not belong to the reference, failing solvers.
pub fn run(args: &Evaluate, global: &Global, printer: Printer) -> anyhow::Result<ExitStatus> {
    let conditions: Vec<Condition> = args.expect.iter().map(|t| t.parse()).collect::<Result<_, _>>()?;
    let result =
        measure(args, global, printer).with_context(|| format!("cannot evaluate `{}`", args.samples.display()))?;
    for warning in &result.warnings {
        printer.warn(warning);
    }
    if let Some(path) = &args.json {
        printer.json(path, &result)?;
    }
    if args.json.as_deref() != Some(Path::new("-")) {
        printer.data(&render(&result))?;
    }
    if let Some(path) = &args.report {
        report::write(path, "d2o evaluation", &[result.clone()], &[], &[], &[])?;
    }
    let mut status = ExitStatus::Done;
    for condition in &conditions {
        match condition.holds(&result) {
            Some(true) => printer.note(&format!("met: {}", condition.text())),
            Some(false) => {
                printer.warn(&format!("not met: {}", condition.text()));
                status = ExitStatus::No;
            }
            None => anyhow::bail!("--expect {}: `{}` was not computed", condition.text(), condition.metric),
        }
    }
    Ok(status)
}

fn measure(args: &Evaluate, global: &Global, printer: Printer) -> anyhow::Result<Evaluation> {
    let mut timings = BTreeMap::new();
    let mut clock = Instant::now();
    let mut lap = |name: &str| {
        timings.insert(name.to_owned(), clock.elapsed().as_secs_f64());
        clock = Instant::now();
    };
    let mut source = batch::open(&args.samples)?;
    let reference = ReferenceStats::read(&args.reference)?;
    let mut session = runtime::open(&args.extractor, args.provider, global, printer)?;
    let extractor = describe(session.model(), &args.extractor)?;
    let mut warnings = Vec::new();
    belongs(&reference, &extractor, &args.reference, &mut warnings)?;
    lap("open");

    let mut sums = Accumulator::new(extractor.dims);
    let mut features = Array2::zeros((0, extractor.dims));
    let mut logits: Option<Array2<f32>> = None;
    extract(session.as_mut(), source.as_mut(), args.batch as usize, printer, &mut |rows, classes| {
        sums.push(rows)?;
        features.append(Axis(0), rows)?;
        if let Some(classes) = classes {
            logits.get_or_insert_with(|| Array2::zeros((0, classes.ncols()))).append(Axis(0), classes)?;
        }
        Ok(())
    })?;
    lap("features");

    let count = source.len();
    let mut metrics = BTreeMap::new();
    let mut put = |name: &str, value: f64, ci95: Option<[f64; 2]>, std: Option<f64>| {
        metrics.insert(name.to_owned(), Value { value, ci95, std });
    };
    let wants = |m: Metric| args.metrics.contains(&m);
    if wants(Metric::Fid) {
        let samples = sums.finish(1)?;
        let reference = Gaussian { mu: reference.mu.clone(), sigma: reference.sigma.clone() };
        let value = frechet_distance(&samples, &reference)?;
        if count <= extractor.dims {
            warnings.push(format!("{count} samples for {} features: the distance is biased upwards", extractor.dims));
        }
        let interval = if args.bootstrap > 0 {
            Some(frechet_interval(features.view(), &reference, value, args.bootstrap, args.seed)?)
        } else {
            None
        };
        put(if extractor.name == INCEPTION { "fid" } else { "fd" }, value, interval, None);
        lap("frechet");
    }
    if wants(Metric::Is) {
        match &logits {
            Some(logits) => {
                let score = inception_score(logits.view())?;
                put("is", score.mean, None, Some(score.std));
            }
            None => anyhow::bail!("the Inception Score needs an extractor with the output `logits`"),
        }
        lap("is");
    }
    if wants(Metric::Pr) || wants(Metric::Dc) {
        let Some(real) = &reference.features else {
            anyhow::bail!(
                "precision and recall need the reference's features, which `{}` does not hold; make it with `d2o refs make`",
                args.reference.display()
            );
        };
        let m = manifold(features.view(), real.view(), args.neighbours as usize)?;
        let interval = |flags: &[bool]| share_interval(flags, args.bootstrap, args.seed);
        if wants(Metric::Pr) {
            put("precision", m.precision(), interval(&m.sample_inside), None);
            put("recall", m.recall(), interval(&m.reference_inside), None);
        }
        if wants(Metric::Dc) {
            put("density", m.density(), None, None);
            put("coverage", m.coverage(), interval(&m.covered), None);
        }
        lap("manifold");
    }

    let title = args.title.clone().unwrap_or_else(|| {
        args.samples
            .file_stem()
            .map_or_else(|| args.samples.display().to_string(), |s| s.to_string_lossy().into_owned())
    });
    let sha256 = batch::content_sha256(source.as_mut())?;
    lap("hash");
    let text = |k: &str, v: String| (k.to_owned(), v);
    Ok(Evaluation {
        schema: SCHEMA,
        protocol: BTreeMap::from([
            text("covariance", "N - 1".to_owned()),
            text("inception_score", "10 consecutive parts, f64".to_owned()),
            text("manifold", format!("{} neighbours, f32, ties inside", args.neighbours)),
            text("intervals", format!("95 %, {} resamples of the samples, seed {}", args.bootstrap, args.seed)),
        ]),
        samples: ImageSet { title, path: args.samples.display().to_string(), count: Some(count), sha256 },
        reference: ImageSet {
            title: "reference".to_owned(),
            path: args.reference.display().to_string(),
            count: reference
                .meta
                .get("count")
                .and_then(serde_json::Value::as_u64)
                .and_then(|n| usize::try_from(n).ok()),
            sha256: file_sha256(&args.reference)?,
        },
        extractors: BTreeMap::from([("features".to_owned(), extractor)]),
        runtime: BTreeMap::from([
            text("runtime", session.runtime().to_owned()),
            text("d2o_version", env!("CARGO_PKG_VERSION").to_owned()),
        ]),
        metrics,
        warnings,
        timings,
    })
}

/// Whether `reference` was made with `extractor`; a reference that does not say only warns.
fn belongs(
    reference: &ReferenceStats,
    extractor: &d2o_evaluations::result::Extractor,
    path: &Path,
    warnings: &mut Vec<String>,
) -> anyhow::Result<()> {
    anyhow::ensure!(
        reference.mu.len() == extractor.dims,
        "`{}` has {} features, `{}` gives {}",
        path.display(),
        reference.mu.len(),
        extractor.name,
        extractor.dims
    );
    match reference.meta.get("extractor_sha256").and_then(serde_json::Value::as_str) {
        Some(sha256) => anyhow::ensure!(
            sha256 == extractor.sha256,
            "`{}` was made with another extractor ({}) than `{}`",
            path.display(),
            reference.meta.get("extractor").and_then(serde_json::Value::as_str).unwrap_or("unknown"),
            extractor.path
        ),
        None => warnings.push(format!("`{}` does not say which extractor made it", path.display())),
    }
    Ok(())
}

/// Label of metric `name` in tables.
#[must_use]
pub fn label(name: &str, extractor: &str) -> String {
    match name {
        "fid" => "FID ↓".to_owned(),
        "fd" => format!("FD ({extractor}) ↓"),
        "is" if extractor == INCEPTION => "IS ↑".to_owned(),
        "is" => format!("IS ({extractor}) ↑"),
        other => format!("{other} ↑"),
    }
}

/// `12.34 [11.90, 12.80]`.
#[must_use]
pub fn show(metric: &Value) -> String {
    match (metric.ci95, metric.std) {
        (Some([low, high]), _) => format!("{:.4} [{low:.4}, {high:.4}]", metric.value),
        (None, Some(std)) => format!("{:.4} ± {std:.4}", metric.value),
        (None, None) => format!("{:.4}", metric.value),
    }
}

fn render(e: &Evaluation) -> String {
    let extractor = e.extractors.get("features").map_or("", |x| x.name.as_str());
    let rows: Vec<Vec<String>> = e.metrics.iter().map(|(n, m)| vec![label(n, extractor), show(m)]).collect();
    let count = e.samples.count.unwrap_or(0);
    format!("{} ({count} images)\n{}", e.samples.title, table(&["metric", "value [95 % interval]"], &rows))
}
