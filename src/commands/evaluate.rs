//! `d2o evaluate`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use d2o_evaluations::bootstrap::{frechet_interval, share_interval};
use d2o_evaluations::fd_infinity::fd_infinity;
use d2o_evaluations::frechet::{Gaussian, frechet_distance};
use d2o_evaluations::gaussian::Accumulator;
use d2o_evaluations::inception_score::{ScoreRule, ScoreSums};
use d2o_evaluations::kid::kid;
use d2o_evaluations::manifold::manifold;
use d2o_evaluations::protocol::{INCEPTION, Protocol};
use d2o_evaluations::result::{Condition, Evaluation, ImageSet, Metric as Value, SCHEMA};
use d2o_onnx::session::Session;
use d2o_refs::batch::{self, ImageSource};
use d2o_refs::npz::{IMAGES, Npz};
use d2o_refs::stats::ReferenceStats;
use ndarray::{Array2, Axis};

use super::ExitStatus;
use crate::cli::{Evaluate, Global, Metric};
use crate::features::{Extracted, describe, deviations, extract, feature_dims, file_sha256, output_dims};
use crate::printer::{Printer, table};
use crate::{report, runtime};

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
        report::write(path, "d2o evaluation", std::slice::from_ref(&result), &[], &[], &[])?;
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

/// Most samples whose Fréchet distance gets an interval: its cost grows with the cube of their number.
const INTERVAL_LIMIT: usize = 4096;

/// What pass over a set of images gave.
struct Pass {
    sums: Accumulator,
    spatial: Option<Accumulator>,
    features: Array2<f32>,
    score: Option<ScoreSums>,
    found: Extracted,
}

/// One pass over `source`. Features are kept if `keep`; the Inception Score is summed if `score` says how.
fn pass(
    session: &mut dyn Session,
    source: &mut dyn ImageSource,
    protocol: &Protocol,
    args: &Evaluate,
    printer: Printer,
    (keep, score): (bool, Option<ScoreRule>),
) -> anyhow::Result<Pass> {
    let dims = feature_dims(session.model()).context("no features")?;
    let mut sums = Accumulator::new(dims);
    let mut spatial =
        output_dims(session.model(), "spatial").filter(|_| args.metrics.contains(&Metric::Sfid)).map(Accumulator::new);
    let mut features = Array2::zeros((0, dims));
    let mut score = match (score, output_dims(session.model(), "logits")) {
        (Some(rule), Some(classes)) => Some(ScoreSums::new(rule, source.len(), classes)?),
        _ => None,
    };
    let found = extract(session, source, args.batch as usize, protocol, printer, &mut |rows| {
        sums.push(rows.features)?;
        if keep {
            features.append(Axis(0), rows.features)?;
        }
        if let (Some(sums), Some(rows)) = (&mut spatial, rows.spatial) {
            sums.push(rows)?;
        }
        if let (Some(sums), Some(rows)) = (&mut score, rows.logits) {
            sums.push(rows)?;
        }
        Ok(())
    })?;
    Ok(Pass { sums, spatial, features, score, found })
}

/// The reference: its statistics, and its features where a metric needs them and the file has images to take them from.
fn reference_of(
    session: &mut dyn Session,
    protocol: &Protocol,
    args: &Evaluate,
    printer: Printer,
    needs_features: bool,
) -> anyhow::Result<(ReferenceStats, Option<usize>)> {
    let path = &args.reference;
    let is_npz = path.is_file() && Npz::open(path).is_ok();
    let (statistics, images) = if is_npz {
        let npz = Npz::open(path)?;
        (npz.contains("mu"), npz.contains(IMAGES) || !npz.contains("mu"))
    } else {
        (false, true)
    };
    let mut stats = if statistics { Some(ReferenceStats::read(path)?) } else { None };
    let lacks = stats.as_ref().is_none_or(|s| needs_features && s.features.is_none());
    if lacks && images {
        let mut source = batch::open(path)?;
        let found = pass(session, source.as_mut(), protocol, args, printer, (needs_features, None))
            .with_context(|| format!("cannot take features of the reference `{}`", path.display()))?;
        let features = needs_features.then_some(found.features);
        match &mut stats {
            Some(stats) => stats.features = features,
            None => {
                let gaussian = found.sums.finish(protocol.ddof)?;
                let spatial = found.spatial.map(|s| s.finish(protocol.ddof)).transpose()?.map(|g| (g.mu, g.sigma));
                let made = serde_json::json!({"count": source.len()});
                stats = Some(ReferenceStats { mu: gaussian.mu, sigma: gaussian.sigma, spatial, features, meta: made });
            }
        }
    }
    let stats = stats.context("no statistics")?;
    let stated = stats.meta.get("count").and_then(serde_json::Value::as_u64).and_then(|n| usize::try_from(n).ok());
    Ok((stats, stated))
}

fn measure(args: &Evaluate, global: &Global, printer: Printer) -> anyhow::Result<Evaluation> {
    let mut timings = BTreeMap::new();
    let mut clock = Instant::now();
    let mut lap = |name: &str, timings: &mut BTreeMap<String, f64>| {
        timings.insert(name.to_owned(), clock.elapsed().as_secs_f64());
        clock = Instant::now();
    };
    let protocol = Protocol::named(&args.protocol).context("no such protocol")?;
    let wants = |m: Metric| args.metrics.contains(&m);
    let mut source = batch::open(&args.samples)?;
    let mut session = runtime::open(&args.extractor, args.provider, global, printer)?;
    let extractor = describe(session.model(), &args.extractor)?;
    let mut deviations = deviations(session.model(), &extractor, protocol);
    let mut warnings = Vec::new();
    for (metric, output) in [(Metric::Is, "logits"), (Metric::Sfid, "spatial")] {
        anyhow::ensure!(
            !wants(metric) || output_dims(session.model(), output).is_some(),
            "{} needs an extractor with the output `{output}`",
            if metric == Metric::Is { "the Inception Score" } else { "sFID" }
        );
    }
    let neighbourly = wants(Metric::Pr) || wants(Metric::Dc);
    let needs_features = neighbourly || wants(Metric::Kid);
    let (reference, reference_count) = reference_of(session.as_mut(), protocol, args, printer, needs_features)?;
    belongs(&reference, &extractor, &args.reference, &mut warnings)?;
    lap("open", &mut timings);

    let intervals = args.bootstrap > 0 && source.len() <= INTERVAL_LIMIT;
    let keep = needs_features || wants(Metric::FdInf) || (wants(Metric::Fid) && intervals);
    let score = wants(Metric::Is).then_some(protocol.score);
    let Pass { sums, spatial, features, score, found } =
        pass(session.as_mut(), source.as_mut(), protocol, args, printer, (keep, score))?;
    lap("features", &mut timings);
    timings.extend(found.seconds.iter().map(|(k, v)| (format!("features_{k}"), *v)));

    let count = source.len();
    let mut metrics = BTreeMap::new();
    let mut put = |name: &str, value: f64, ci95: Option<[f64; 2]>, std: Option<f64>| {
        metrics.insert(name.to_owned(), Value { value, ci95, std });
    };
    let genuine = extractor.name == INCEPTION;
    let gaussian = Gaussian { mu: reference.mu.clone(), sigma: reference.sigma.clone() };
    if wants(Metric::Fid) {
        let value = frechet_distance(&sums.finish(protocol.ddof)?, &gaussian)?;
        if count <= extractor.dims {
            warnings.push(format!("{count} samples for {} features: the distance is biased upwards", extractor.dims));
        }
        let interval = if intervals {
            Some(frechet_interval(features.view(), &gaussian, value, args.bootstrap, u64::from(args.seed))?)
        } else {
            None
        };
        if args.bootstrap > 0 && !intervals {
            warnings.push(format!("no interval of the Fréchet distance: more than {INTERVAL_LIMIT} samples"));
        }
        put(if genuine { "fid" } else { "fd" }, value, interval, None);
        lap("frechet", &mut timings);
    }
    if wants(Metric::FdInf) {
        let value = fd_infinity(features.view(), &gaussian, protocol.ddof, args.seed)?;
        put(if genuine { "fid_inf" } else { "fd_inf" }, value, None, None);
        lap("fd_inf", &mut timings);
    }
    if wants(Metric::Sfid) {
        let (Some(samples), Some((mu, sigma))) = (spatial, &reference.spatial) else {
            anyhow::bail!("sFID needs `mu_s` and `sigma_s`, which `{}` does not hold", args.reference.display());
        };
        let spatial = Gaussian { mu: mu.clone(), sigma: sigma.clone() };
        put(
            if genuine { "sfid" } else { "sfd" },
            frechet_distance(&samples.finish(protocol.ddof)?, &spatial)?,
            None,
            None,
        );
        lap("sfid", &mut timings);
    }
    if let Some(sums) = score {
        let score = sums.finish()?;
        put("is", score.mean, None, score.std);
        lap("is", &mut timings);
    }
    if needs_features {
        let Some(real) = &reference.features else {
            anyhow::bail!(
                "precision, recall, density, coverage and KID need the reference's features or images, which `{}` does not hold; \
                 make it with `d2o refs make`",
                args.reference.display()
            );
        };
        if wants(Metric::Kid) {
            if protocol.kid.seed.is_none() {
                deviations
                    .push(format!("KID subsets by RandomState({}): {} does not seed them", args.seed, protocol.title));
            }
            let found = kid(features.view(), real.view(), &protocol.kid, args.seed)?;
            put(if genuine { "kid" } else { "kd" }, found.mean, None, Some(found.std));
            lap("kid", &mut timings);
        }
        if neighbourly {
            let mut rule = protocol.manifold;
            if let Some(k) = args.neighbours.map(|k| k as usize).filter(|k| *k != rule.k) {
                deviations.push(format!("{k} neighbours instead of {}", rule.k));
                rule.k = k;
            }
            if protocol.manifold_features != "pool3" {
                deviations.push(format!(
                    "precision and recall of the extractor's features instead of {}",
                    protocol.manifold_features
                ));
            }
            let m = manifold(features.view(), real.view(), &rule)?;
            let interval = |flags: &[bool]| share_interval(flags, args.bootstrap, u64::from(args.seed));
            if wants(Metric::Pr) {
                put("precision", m.precision(), interval(&m.sample_inside), None);
                put("recall", m.recall(), interval(&m.reference_inside), None);
            }
            if wants(Metric::Dc) {
                put("density", m.density(), None, None);
                put("coverage", m.coverage(), interval(&m.covered), None);
            }
            lap("manifold", &mut timings);
        }
    }

    let title = args.title.clone().unwrap_or_else(|| {
        args.samples
            .file_stem()
            .map_or_else(|| args.samples.display().to_string(), |s| s.to_string_lossy().into_owned())
    });
    let mut described = protocol.describe();
    described.insert(
        "intervals".to_owned(),
        format!("95 %, {} resamples of the samples, seed {}", args.bootstrap, args.seed),
    );
    let reference_sha256 = if args.reference.is_dir() {
        batch::content_sha256(batch::open(&args.reference)?.as_mut())?
    } else {
        file_sha256(&args.reference)?
    };
    lap("hash", &mut timings);
    let text = |k: &str, v: String| (k.to_owned(), v);
    Ok(Evaluation {
        schema: SCHEMA,
        protocol: described,
        deviations,
        samples: ImageSet {
            title,
            path: args.samples.display().to_string(),
            count: Some(count),
            sha256: found.images_sha256,
        },
        reference: ImageSet {
            title: "reference".to_owned(),
            path: args.reference.display().to_string(),
            count: reference_count,
            sha256: reference_sha256,
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
        "fid_inf" => "FID∞ ↓".to_owned(),
        "fd_inf" => format!("FD∞ ({extractor}) ↓"),
        "sfid" => "sFID ↓".to_owned(),
        "sfd" => format!("spatial FD ({extractor}) ↓"),
        "kid" => "KID ↓".to_owned(),
        "kd" => format!("kernel distance ({extractor}) ↓"),
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
    let protocol = e.protocol.get("name").map_or("", String::as_str);
    let departs = e.deviations.iter().map(|d| format!("\ndeviation: {d}")).collect::<String>();
    format!(
        "{} ({count} images, protocol {protocol})\n{}{departs}",
        e.samples.title,
        table(&["metric", "value [95 % interval]"], &rows)
    )
}
