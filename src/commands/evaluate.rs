//! `d2o evaluate`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use d2o_evaluations::bootstrap::{frechet_interval, share_interval};
use d2o_evaluations::fd_infinity::fd_infinity;
use d2o_evaluations::frechet::{Gaussian, frechet_distance, frechet_distance_of};
use d2o_evaluations::gaussian::Accumulator;
use d2o_evaluations::kid::kid;
use d2o_evaluations::manifold::{ManifoldRule, manifold};
use d2o_evaluations::protocol::{INCEPTION, Protocol};
use d2o_evaluations::result::{ClassMetrics, Condition, Evaluation, Extractor, ImageSet, Metric as Value, SCHEMA};
use d2o_refs::batch::container_sha256;
use d2o_refs::features::NetworkMeta;
use d2o_refs::npz::{IMAGES, Npz};
use d2o_refs::stats::ReferenceStats;
use ndarray::{Array2, ArrayView2, Axis};

use super::ExitStatus;
use crate::cli::{Evaluate, Global, Metric};
use crate::error::with_hint;
use crate::features::{self, CLIP, Network, Role, deviations};
use crate::generate::fused::Fused;
use crate::generate::made::{self, Made};
use crate::measure::{How, Origin, Set, Sums, Walk, Wants, meta_of, save, sums};
use crate::printer::{Printer, table};
use crate::report;

/// Measures samples.
///
/// # Errors
/// Unreadable samples or references, an extractor that does not belong to the reference, failing solvers.
pub fn run(args: &Evaluate, global: &Global, printer: Printer) -> anyhow::Result<ExitStatus> {
    let conditions: Vec<Condition> = args.expect.iter().map(|t| t.parse()).collect::<Result<_, _>>()?;
    let intent = || format!("cannot evaluate `{}`", samples_of(args).display());
    if let (Some(shard), Some(out)) = (args.shard, &args.save_features) {
        take_shard(args, global, printer, (shard.index, shard.count), out).with_context(intent)?;
        return Ok(ExitStatus::Done);
    }
    let result = measure(args, global, printer).with_context(intent)?;
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

/// The file the samples are called after.
fn samples_of(args: &Evaluate) -> &Path {
    args.samples.as_deref().or_else(|| args.merge.first().map(PathBuf::as_path)).unwrap_or(Path::new("samples"))
}

/// Most samples whose Fréchet distance gets an interval: its cost grows with the cube of their number.
const INTERVAL_LIMIT: usize = 4096;

/// Whether the metrics need features besides CLIP's.
fn wants_features(args: &Evaluate) -> bool {
    args.per_class || args.metrics.iter().any(|m| *m != Metric::ClipFid)
}

/// The networks that are named and needed.
fn networks_of(
    args: &Evaluate,
    protocol: &Protocol,
    global: &Global,
    printer: Printer,
) -> anyhow::Result<Vec<Network>> {
    let mut networks = Vec::new();
    let clip = args.shard.is_some() || args.metrics.contains(&Metric::ClipFid);
    for (role, path, needed) in
        [(Role::Features, &args.extractor, wants_features(args)), (Role::Clip, &args.clip, clip)]
    {
        if let (Some(path), true) = (path, needed) {
            networks.push(Network::open(role, path, protocol, args.provider, global, printer)?);
        }
    }
    Ok(networks)
}

/// The samples, and how a generator made them, if one did.
fn samples(
    args: &Evaluate,
    networks: &[Network],
    global: &Global,
    printer: Printer,
) -> anyhow::Result<(Set, Option<serde_json::Value>)> {
    if !args.merge.is_empty() {
        return Ok((Set::merge(&args.merge)?, None));
    }
    let (path, sampling, provider) = (samples_of(args), &args.sampling, args.provider);
    if path.extension().is_none_or(|e| e != "onnx") {
        anyhow::ensure!(
            sampling.is_default() && args.fuse.is_none(),
            "options of a generator are given, and the samples are none"
        );
        return Ok((Set::open(path)?, None));
    }
    if let Some(how) = args.fuse {
        let (fused, record) = Fused::open(path, networks, how, sampling, provider, global, printer)?;
        let origin = Origin::Made(made::sha256(&record));
        return Ok((Set::Fused { fused: Box::new(fused), origin }, Some(record)));
    }
    let (source, record) = Made::open(path, sampling, provider, global, printer)?;
    let origin = Origin::Made(made::sha256(&record));
    Ok((Set::Images { source: Box::new(source), origin }, Some(record)))
}

fn protocol_of(args: &Evaluate) -> anyhow::Result<&'static Protocol> {
    Protocol::named(&args.protocol).context("no such protocol")
}

fn how_of<'a>(args: &'a Evaluate, networks: &[Network], protocol: &'static Protocol, printer: Printer) -> How<'a> {
    How { batch: features::batch(args.batch, networks), protocol, cache: args.cache.as_deref(), printer }
}

/// Writes the features of one part of the samples.
fn take_shard(
    args: &Evaluate,
    global: &Global,
    printer: Printer,
    (index, count): (usize, usize),
    out: &Path,
) -> anyhow::Result<()> {
    let protocol = protocol_of(args)?;
    let mut networks = networks_of(args, protocol, global, printer)?;
    anyhow::ensure!(!networks.is_empty(), "--shard needs --extractor or --clip");
    let (mut set, _) = samples(args, &networks, global, printer)?;
    let how = how_of(args, &networks, protocol, printer);
    let range = set.shard(index, count, how.batch);
    anyhow::ensure!(!range.is_empty(), "{} images in batches of {} do not make {count} parts", set.len(), how.batch);
    save(&mut set, range.clone(), &mut networks, &how, out)?;
    printer.note(&format!("features of images {}..{} of {} in `{}`", range.start, range.end, set.len(), out.display()));
    Ok(())
}

/// The reference, as far as the metrics need it.
#[derive(Default)]
struct Reference {
    features: Option<Gaussian>,
    spatial: Option<Gaussian>,
    clip: Option<Gaussian>,
    rows: Option<Array2<f32>>,
    labels: Option<Vec<i64>>,
    count: Option<usize>,
    /// Hash and name of the network it was made with, by role, where it says so.
    networks: BTreeMap<Role, (String, String)>,
}

fn gaussian((mu, sigma): (ndarray::Array1<f64>, Array2<f64>)) -> Gaussian {
    Gaussian { mu, sigma }
}

fn networks_in(walk: &Walk) -> BTreeMap<Role, (String, String)> {
    let roles = [Role::Features, Role::Clip].into_iter();
    roles.filter_map(|r| walk.networks.get(r.name()).map(|n| (r, (n.sha256.clone(), n.name.clone())))).collect()
}

impl Reference {
    /// Reads `path`, and takes features of the images in it where statistics do not suffice.
    fn open(path: &Path, networks: &mut [Network], wants: &Wants, how: &How<'_>) -> anyhow::Result<Self> {
        let npz = if path.is_file() { Npz::open(path).ok() } else { None };
        let (statistics, images) = npz.map_or((false, true), |n| (n.contains("mu"), n.contains(IMAGES)));
        if !statistics {
            let mut set = Set::open(path)?;
            let found = take(&mut set, path, networks, wants, how)?;
            return Self::of_sums(found, set.labels(), set.len(), how.protocol.ddof);
        }
        let stats = ReferenceStats::read(path)?;
        let text = |key: &str| stats.meta.get(key).and_then(serde_json::Value::as_str).map(str::to_owned);
        let mut named = BTreeMap::new();
        for (role, key) in [(Role::Features, "extractor"), (Role::Clip, "clip")] {
            if let Some(sha256) = text(&format!("{key}_sha256")) {
                named.insert(role, (sha256, text(key).unwrap_or_else(|| "unknown".to_owned())));
            }
        }
        let count = stats.meta.get("count").and_then(serde_json::Value::as_u64).and_then(|n| usize::try_from(n).ok());
        let main = gaussian((stats.mu, stats.sigma));
        let clip = stats.clip.map(gaussian);
        // A file of CLIP's statistics alone, as clean-fid keeps them.
        let (features, clip) = if wants.features || clip.is_some() { (Some(main), clip) } else { (None, Some(main)) };
        let spatial = stats.spatial.map(gaussian);
        let mut reference =
            Self { features, spatial, clip, rows: stats.features, labels: stats.labels, count, networks: named };
        let lacking = Wants {
            keep: wants.keep && reference.rows.is_none(),
            spatial: wants.spatial && reference.spatial.is_none(),
            clip: wants.clip && reference.clip.is_none(),
            ..Wants::default()
        };
        if images && (lacking.keep || lacking.spatial || lacking.clip) {
            let mut set = Set::open(path)?;
            let found = take(&mut set, path, networks, &lacking, how)?;
            let ddof = how.protocol.ddof;
            if let Some(rows) = found.kept {
                reference.rows = Some(rows);
                reference.labels = set.labels();
            }
            let moments = |sums: Option<Accumulator>| sums.map(|s| s.finish(ddof)).transpose();
            reference.spatial = reference.spatial.or(moments(found.spatial)?);
            reference.clip = reference.clip.or(moments(found.clip)?);
        }
        Ok(reference)
    }

    fn of_sums(sums: Sums, labels: Option<Vec<i64>>, count: usize, ddof: usize) -> anyhow::Result<Self> {
        let moments = |sums: Option<Accumulator>| sums.map(|s| s.finish(ddof)).transpose();
        Ok(Self {
            features: moments(sums.features)?,
            spatial: moments(sums.spatial)?,
            clip: moments(sums.clip)?,
            rows: sums.kept,
            labels,
            count: Some(count),
            networks: networks_in(&sums.walk),
        })
    }
}

/// Sums over a reference's images.
fn take(set: &mut Set, path: &Path, networks: &mut [Network], wants: &Wants, how: &How<'_>) -> anyhow::Result<Sums> {
    sums(set, networks, wants, how, None)
        .with_context(|| format!("cannot take features of the reference `{}`", path.display()))
}

/// Whether a reference was made with `network`; one that does not say so only warns.
fn belongs(
    reference: &Reference,
    role: Role,
    network: &NetworkMeta,
    moments: Option<&Gaussian>,
    path: &Path,
    warnings: &mut Vec<String>,
) -> anyhow::Result<()> {
    if let Some(moments) = moments {
        let (here, there) = (network.dims, moments.mu.len());
        anyhow::ensure!(
            here == there,
            "`{}` has {there} {}features, `{}` gives {here}",
            path.display(),
            if role == Role::Clip { "CLIP " } else { "" },
            network.name
        );
    }
    match reference.networks.get(&role) {
        Some((sha256, name)) => anyhow::ensure!(
            *sha256 == network.sha256,
            "`{}` was made with another extractor ({name}) than `{}`",
            path.display(),
            network.path
        ),
        None => warnings.push(format!("`{}` does not say which extractor made it", path.display())),
    }
    Ok(())
}

fn measure(args: &Evaluate, global: &Global, printer: Printer) -> anyhow::Result<Evaluation> {
    let mut timings = BTreeMap::new();
    let mut clock = Instant::now();
    let mut lap = |name: &str, timings: &mut BTreeMap<String, f64>| {
        timings.insert(name.to_owned(), clock.elapsed().as_secs_f64());
        clock = Instant::now();
    };
    let protocol = protocol_of(args)?;
    let reference_path = args.reference.as_deref().context("no reference")?;
    let wants_metric = |m: Metric| args.metrics.contains(&m);
    let mut networks = networks_of(args, protocol, global, printer)?;
    let how = how_of(args, &networks, protocol, printer);
    let (mut set, generator) = samples(args, &networks, global, printer)?;
    if wants_features(args) && set.width("features", &networks).is_none() {
        return Err(with_hint(
            anyhow::anyhow!("the samples are images, and no network takes their features"),
            "name one with --extractor",
        ));
    }
    for (metric, output) in [(Metric::Is, "logits"), (Metric::Sfid, "spatial"), (Metric::ClipFid, "clip")] {
        if wants_metric(metric) && set.width(output, &networks).is_none() {
            return Err(match metric {
                Metric::ClipFid => {
                    with_hint(anyhow::anyhow!("CLIP-FID needs CLIP's image tower"), "name it with --clip")
                }
                Metric::Is => anyhow::anyhow!("the Inception Score needs an extractor with the output `{output}`"),
                _ => anyhow::anyhow!("sFID needs an extractor with the output `{output}`"),
            });
        }
    }
    let count = set.len();
    let neighbourly = wants_metric(Metric::Pr) || wants_metric(Metric::Dc);
    let needs_rows = neighbourly || wants_metric(Metric::Kid) || args.per_class;
    let wanted = Wants {
        features: wants_features(args),
        keep: needs_rows,
        score: None,
        spatial: wants_metric(Metric::Sfid),
        clip: wants_metric(Metric::ClipFid),
    };
    lap("open", &mut timings);
    let clip_elsewhere = args.clip_ref.is_some();
    let mut reference = Reference::open(
        reference_path,
        &mut networks,
        &Wants { clip: wanted.clip && !clip_elsewhere, ..wanted },
        &how,
    )?;
    if let Some(path) = &args.clip_ref {
        let wants = Wants { clip: true, ..Wants::default() };
        let other = Reference::open(path, &mut networks, &wants, &how)?;
        reference.clip = other.clip;
        reference.networks.remove(&Role::Clip);
        reference.networks.extend(other.networks.into_iter().filter(|(r, _)| *r == Role::Clip));
    }
    lap("reference", &mut timings);

    let intervals = args.bootstrap > 0 && count <= INTERVAL_LIMIT;
    let keep = needs_rows || wants_metric(Metric::FdInf) || (wants_metric(Metric::Fid) && intervals);
    let score = wants_metric(Metric::Is).then_some(protocol.score);
    let mut writer = match &args.save_features {
        Some(path) => {
            let meta = meta_of(&set, 0..count, &networks, &how)?;
            Some(d2o_refs::features::FeatureWriter::create(path, meta)?)
        }
        None => None,
    };
    let found = sums(&mut set, &mut networks, &Wants { keep, score, ..wanted }, &how, writer.as_mut())?;
    let labels = if writer.is_some() || args.per_class { set.labels() } else { None };
    if let Some(writer) = writer {
        writer.finish(labels.as_deref())?;
    }
    lap("features", &mut timings);
    timings.extend(found.walk.seconds.iter().map(|(k, v)| (format!("features_{k}"), *v)));

    let mut warnings = Vec::new();
    let mut departures = Vec::new();
    for (role, needed) in [(Role::Features, wanted.features), (Role::Clip, wanted.clip)] {
        let moments = if role == Role::Clip { &reference.clip } else { &reference.features };
        if let (Some(network), true) = (found.walk.networks.get(role.name()), needed) {
            let path = args.clip_ref.as_deref().filter(|_| role == Role::Clip).unwrap_or(reference_path);
            belongs(&reference, role, network, moments.as_ref(), path, &mut warnings)?;
            departures.extend(deviations(role, network, protocol));
        }
    }
    let extractors: BTreeMap<String, Extractor> = found
        .walk
        .networks
        .iter()
        .map(|(role, n)| {
            let NetworkMeta { name, path, sha256, dims, .. } = n.clone();
            (role.clone(), Extractor { name, path, sha256, dims })
        })
        .collect();
    let genuine = extractors.get(Role::Features.name()).is_some_and(|e| e.name == INCEPTION);
    let missing = |what: &str| format!("{what}, which `{}` does not hold", reference_path.display());
    let mut metrics = BTreeMap::new();
    let mut put = |name: &str, value: f64, ci95: Option<[f64; 2]>, std: Option<f64>| {
        metrics.insert(name.to_owned(), Value { value, ci95, std });
    };
    let samples = found.features.map(|s| s.finish(protocol.ddof)).transpose()?;
    if let (Some(samples), true) = (&samples, wants_metric(Metric::Fid)) {
        let against = reference.features.as_ref().with_context(|| missing("FID needs `mu` and `sigma`"))?;
        let value = frechet_distance(samples, against)?;
        let dims = samples.mu.len();
        if count <= dims {
            warnings.push(format!("{count} samples for {dims} features: the distance is biased upwards"));
        }
        let interval = match &found.kept {
            Some(rows) if intervals => {
                Some(frechet_interval(rows.view(), against, value, args.bootstrap, u64::from(args.seed))?)
            }
            _ => None,
        };
        if args.bootstrap > 0 && !intervals {
            warnings.push(format!("no interval of the Fréchet distance: more than {INTERVAL_LIMIT} samples"));
        }
        put(if genuine { "fid" } else { "fd" }, value, interval, None);
        lap("frechet", &mut timings);
    }
    if let (Some(rows), true) = (&found.kept, wants_metric(Metric::FdInf)) {
        let against = reference.features.as_ref().with_context(|| missing("FID needs `mu` and `sigma`"))?;
        let value = fd_infinity(rows.view(), against, protocol.ddof, args.seed)?;
        put(if genuine { "fid_inf" } else { "fd_inf" }, value, None, None);
        lap("fd_inf", &mut timings);
    }
    if let Some(sums) = found.spatial {
        let against = reference.spatial.as_ref().with_context(|| missing("sFID needs `mu_s` and `sigma_s`"))?;
        let value = frechet_distance(&sums.finish(protocol.ddof)?, against)?;
        put(if genuine { "sfid" } else { "sfd" }, value, None, None);
        lap("sfid", &mut timings);
    }
    if let Some(sums) = found.clip {
        let needs = "CLIP-FID needs `mu_clip` and `sigma_clip` (or --clip-ref)";
        let against = reference.clip.as_ref().with_context(|| missing(needs))?;
        let value = frechet_distance(&sums.finish(protocol.ddof)?, against)?;
        let genuine = extractors.get(Role::Clip.name()).is_some_and(|e| e.name == CLIP);
        put(if genuine { "clip_fid" } else { "clip_fd" }, value, None, None);
        lap("clip_fid", &mut timings);
    }
    if let Some(sums) = found.score {
        let score = sums.finish()?;
        put("is", score.mean, None, score.std);
        lap("is", &mut timings);
    }
    let mut rule = protocol.manifold;
    if let Some(k) = args.neighbours.map(|k| k as usize).filter(|k| *k != rule.k) {
        departures.push(format!("{k} neighbours instead of {}", rule.k));
        rule.k = k;
    }
    if (neighbourly || args.per_class) && protocol.manifold_features != "pool3" {
        let instead = protocol.manifold_features;
        departures.push(format!("precision and recall of the extractor's features instead of {instead}"));
    }
    let mut per_class = Vec::new();
    if let (Some(rows), true) = (&found.kept, needs_rows) {
        let real = reference.rows.as_ref().with_context(|| {
            let needs = "precision, recall, density, coverage, KID and classes need the reference's features or images";
            format!("{}; make it with `d2o refs make`", missing(needs))
        })?;
        if wants_metric(Metric::Kid) {
            if protocol.kid.seed.is_none() {
                let (seed, title) = (args.seed, protocol.title);
                departures.push(format!("KID subsets by RandomState({seed}): {title} does not seed them"));
            }
            let mut rule = protocol.kid;
            if let Some(size) = args.kid_subset_size.map(|n| n as usize).filter(|n| *n != rule.subset_size) {
                departures.push(format!("KID subsets of {size} instead of {}", rule.subset_size));
                rule.subset_size = size;
            }
            let found = kid(rows.view(), real.view(), &rule, args.seed)?;
            put(if genuine { "kid" } else { "kd" }, found.mean, None, Some(found.std));
            lap("kid", &mut timings);
        }
        if neighbourly {
            let m = manifold(rows.view(), real.view(), &rule)?;
            let interval = |flags: &[bool]| share_interval(flags, args.bootstrap, u64::from(args.seed));
            if wants_metric(Metric::Pr) {
                put("precision", m.precision(), interval(&m.sample_inside), None);
                put("recall", m.recall(), interval(&m.reference_inside), None);
            }
            if wants_metric(Metric::Dc) {
                put("density", m.density(), None, None);
                put("coverage", m.coverage(), interval(&m.covered), None);
            }
            lap("manifold", &mut timings);
        }
        if args.per_class {
            let classes = |labels: &Option<Vec<i64>>, path: &Path| {
                let labels = labels.clone();
                labels.with_context(|| format!("`{}` has no classes, which --per-class needs", path.display()))
            };
            let samples = (rows.view(), classes(&labels, samples_of(args))?);
            let reference = (real.view(), classes(&reference.labels, reference_path)?);
            let name = if genuine { "fid" } else { "fd" };
            per_class = by_class(&samples, &reference, &rule, protocol.ddof, name, &mut warnings)?;
            lap("per_class", &mut timings);
        }
    }

    let title = args.title.clone().unwrap_or_else(|| {
        let path = samples_of(args);
        path.file_stem().map_or_else(|| path.display().to_string(), |s| s.to_string_lossy().into_owned())
    });
    let mut described = protocol.describe();
    described.insert(
        "intervals".to_owned(),
        format!("95 %, {} resamples of the samples, seed {}", args.bootstrap, args.seed),
    );
    let reference_sha256 = container_sha256(reference_path)?;
    lap("hash", &mut timings);
    let runtimes: BTreeSet<&str> = found.walk.networks.values().map(|n| n.runtime.as_str()).collect();
    let runtime = runtimes.into_iter().collect::<Vec<_>>().join(", ");
    let text = |k: &str, v: String| (k.to_owned(), v);
    Ok(Evaluation {
        schema: SCHEMA,
        protocol: described,
        deviations: departures,
        samples: ImageSet {
            title,
            path: samples_of(args).display().to_string(),
            count: Some(count),
            sha256: found.walk.sha256,
            generator,
        },
        reference: ImageSet {
            title: "reference".to_owned(),
            path: reference_path.display().to_string(),
            count: reference.count,
            sha256: reference_sha256,
            generator: None,
        },
        extractors,
        runtime: BTreeMap::from([text("runtime", runtime), text("d2o_version", env!("CARGO_PKG_VERSION").to_owned())]),
        metrics,
        per_class,
        warnings,
        timings,
    })
}

/// Rows of a set and their classes.
type Labelled<'a> = (ArrayView2<'a, f32>, Vec<i64>);

/// Fréchet distance, precision and recall of each class that is in both sets.
fn by_class(
    samples: &Labelled<'_>,
    reference: &Labelled<'_>,
    rule: &ManifoldRule,
    ddof: usize,
    distance: &str,
    warnings: &mut Vec<String>,
) -> anyhow::Result<Vec<ClassMetrics>> {
    let members = |(_, labels): &Labelled<'_>| {
        let mut members: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
        for (i, label) in labels.iter().enumerate() {
            members.entry(*label).or_default().push(i);
        }
        members
    };
    let (ours, theirs) = (members(samples), members(reference));
    let dims = samples.0.ncols();
    let (mut out, mut alone, mut few, mut biased) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for class in ours.keys().chain(theirs.keys()).copied().collect::<BTreeSet<_>>() {
        let (Some(a), Some(b)) = (ours.get(&class), theirs.get(&class)) else {
            alone.push(class.to_string());
            continue;
        };
        let (x, y) = (samples.0.select(Axis(0), a), reference.0.select(Axis(0), b));
        let mut metrics = BTreeMap::new();
        let smaller = a.len().min(b.len());
        let mut put = |name: &str, value: f64| metrics.insert(name.to_owned(), Value { value, ci95: None, std: None });
        if smaller > ddof {
            put(distance, frechet_distance_of(x.view(), y.view(), ddof)?);
            biased += usize::from(smaller <= dims);
        }
        if smaller > rule.k {
            let m = manifold(x.view(), y.view(), rule)?;
            put("precision", m.precision());
            put("recall", m.recall());
        } else {
            few.push(class.to_string());
        }
        out.push(ClassMetrics { class, samples: a.len(), reference: b.len(), metrics });
    }
    if !alone.is_empty() {
        warnings.push(format!("classes in one set only: {}", alone.join(", ")));
    }
    if !few.is_empty() {
        warnings.push(format!(
            "at most {} images, too few for precision and recall, in classes {}",
            rule.k,
            few.join(", ")
        ));
    }
    if biased > 0 {
        let all = out.len();
        warnings.push(format!(
            "{biased} of {all} classes have at most {dims} images for {dims} features: distances are biased upwards"
        ));
    }
    Ok(out)
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
        "clip_fid" => "CLIP-FID ↓".to_owned(),
        "clip_fd" => "CLIP-FD ↓".to_owned(),
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
    let metrics = table(&["metric", "value [95 % interval]"], &rows);
    let classes = if e.per_class.is_empty() { String::new() } else { format!("\n\n{}", classes(e)) };
    format!("{} ({count} images, protocol {protocol})\n{metrics}{departs}{classes}", e.samples.title)
}

/// Metrics of each class as a table.
fn classes(e: &Evaluation) -> String {
    let names: BTreeSet<&String> = e.per_class.iter().flat_map(|c| c.metrics.keys()).collect();
    let header: Vec<&str> =
        ["class", "samples", "reference"].into_iter().chain(names.iter().map(|n| n.as_str())).collect();
    let row = |c: &ClassMetrics| {
        let counts = [c.class.to_string(), c.samples.to_string(), c.reference.to_string()];
        let values = names.iter().map(|n| c.metrics.get(*n).map_or_else(|| "–".to_owned(), show));
        counts.into_iter().chain(values).collect::<Vec<_>>()
    };
    table(&header, &e.per_class.iter().map(row).collect::<Vec<_>>())
}
