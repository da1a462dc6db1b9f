//! `d2o evaluate`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use d2o_evaluations::protocol::{INCEPTION, ManifoldFeatures, Protocol};
use d2o_evaluations::result::{Condition, Evaluation, Extractor, ImageSet, SCHEMA};
use d2o_refs::batch::container_sha256;
use d2o_refs::features::{FeatureWriter, NetworkMeta};

use super::ExitStatus;
use crate::cli::{Evaluate, Global, Metric};
use crate::engine::{self, Engine};
use crate::error::with_hint;
use crate::pipeline::fused::Fused;
use crate::pipeline::generated::{self, Made};
use crate::pipeline::network::{self, CLIP, Network, Role, deviations};
use crate::pipeline::pass::{How, Origin, Set, Wants, meta_of, save, sums};
use crate::printer::Printer;
use crate::report;

mod metrics;
mod render;

use crate::pipeline::reference::Reference;
use metrics::{Comparison, Ledger, wants_interval, wants_manifold};
pub use render::{label, show};

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
        printer.data(&render::render(&result))?;
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

/// Whether metrics need the features of `--extractor`, those of precision and recall coming from `other` or not.
fn wants_features(args: &Evaluate, other: bool) -> bool {
    let needs = |m: &Metric| match m {
        Metric::ClipFid => false,
        Metric::Pr | Metric::Dc => !other,
        _ => true,
    };
    args.per_class || args.metrics.iter().any(needs)
}

/// The networks that are named and needed.
fn networks_of(args: &Evaluate, protocol: &Protocol, engine: &Engine<'_>) -> anyhow::Result<Vec<Network>> {
    let all = args.shard.is_some();
    let mut networks = Vec::new();
    for (role, path, needed) in [
        (Role::Features, &args.extractor, wants_features(args, args.pr_extractor.is_some())),
        (Role::Clip, &args.clip, args.metrics.contains(&Metric::ClipFid)),
        (Role::Manifold, &args.pr_extractor, wants_manifold(args)),
    ] {
        if let (Some(path), true) = (path, needed || all) {
            networks.push(Network::open(role, path, protocol, engine)?);
        }
    }
    Ok(networks)
}

/// The samples, and how a generator made them, if one did.
fn samples(
    args: &Evaluate,
    networks: &[Network],
    batch: usize,
    engine: &Engine<'_>,
) -> anyhow::Result<(Set, Option<serde_json::Value>)> {
    if !args.merge.is_empty() {
        return Ok((Set::merge(&args.merge)?, None));
    }
    let (path, sampling) = (samples_of(args), &args.sampling);
    if path.extension().is_none_or(|e| e != "onnx") {
        anyhow::ensure!(
            sampling.is_default() && args.fuse.is_none(),
            "options of a generator are given, and the samples are none"
        );
        return Ok((Set::open(path)?, None));
    }
    if let Some(how) = args.fuse {
        let (fused, record) = Fused::open(path, networks, how, sampling, engine)?;
        let origin = Origin::Made(generated::sha256(&record));
        return Ok((Set::Fused { fused: Box::new(fused), origin }, Some(record)));
    }
    let (source, record) = Made::open(path, sampling, batch, engine)?;
    let origin = Origin::Made(generated::sha256(&record));
    Ok((Set::Images { source: Box::new(source), origin }, Some(record)))
}

fn protocol_of(args: &Evaluate) -> anyhow::Result<&'static Protocol> {
    Protocol::named(&args.protocol).context("no such protocol")
}

fn how_of<'a>(args: &'a Evaluate, networks: &[Network], protocol: &'static Protocol, printer: Printer) -> How<'a> {
    How { batch: network::batch(args.batch, networks), protocol, cache: args.cache.as_deref(), printer }
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
    let engine = Engine::new(args.provider, &args.accelerator, global, printer)?;
    let mut networks = networks_of(args, protocol, &engine)?;
    anyhow::ensure!(!networks.is_empty(), "--shard needs --extractor, --clip or --pr-extractor");
    let how = how_of(args, &networks, protocol, printer);
    let (mut set, _) = samples(args, &networks, how.batch, &engine)?;
    let range = set.shard(index, count, how.batch);
    anyhow::ensure!(!range.is_empty(), "{} images in batches of {} do not make {count} parts", set.len(), how.batch);
    save(&mut set, range.clone(), &mut networks, &how, out)?;
    printer.note(&format!("features of images {}..{} of {} in `{}`", range.start, range.end, set.len(), out.display()));
    Ok(())
}

/// Makes sure that the networks or files give what the metrics need.
fn ensure_measurable(args: &Evaluate, set: &Set, networks: &[Network], wanted: &Wants) -> anyhow::Result<()> {
    if wanted.features && set.width("features", networks).is_none() {
        return Err(with_hint(
            anyhow::anyhow!("the samples are images, and no network takes their features"),
            "name one with --extractor",
        ));
    }
    for (metric, output) in [(Metric::Is, "logits"), (Metric::Sfid, "spatial"), (Metric::ClipFid, "clip")] {
        if args.metrics.contains(&metric) && set.width(output, networks).is_none() {
            return Err(match metric {
                Metric::ClipFid => {
                    with_hint(anyhow::anyhow!("CLIP-FID needs CLIP's image tower"), "name it with --clip")
                }
                Metric::Is => anyhow::anyhow!("the Inception Score needs an extractor with the output `{output}`"),
                _ => anyhow::anyhow!("sFID needs an extractor with the output `{output}`"),
            });
        }
    }
    Ok(())
}

/// Compares `networks`, which took the samples' features, with those of the reference and of the protocol.
fn examine(
    args: &Evaluate,
    protocol: &Protocol,
    networks: &BTreeMap<String, NetworkMeta>,
    (reference, path): (&Reference, &Path),
    wanted: &Wants,
    ledger: &mut Ledger,
) -> anyhow::Result<()> {
    for (role, needed) in
        [(Role::Features, wanted.features), (Role::Clip, wanted.clip), (Role::Manifold, wanted.manifold)]
    {
        if let (Some(network), true) = (networks.get(role.name()), needed) {
            let path = args.clip_ref.as_deref().filter(|_| role == Role::Clip).unwrap_or(path);
            if let Some(warning) = reference.ensure_of(role, network, path)? {
                ledger.warn(warning);
            }
        }
    }
    // Where precision and recall have a network of their own, in the protocol or here, they are judged apart from the other metrics.
    let apart = wanted.manifold || protocol.manifold_features != ManifoldFeatures::Pool3;
    let manifold = if wanted.manifold { Role::Manifold } else { Role::Features };
    for (role, judged_as, needed) in [
        (Role::Features, Role::Features, wants_features(args, apart)),
        (manifold, Role::Manifold, apart && wants_manifold(args)),
        (Role::Clip, Role::Clip, wanted.clip),
    ] {
        if let (Some(network), true) = (networks.get(role.name()), needed) {
            ledger.deviations.extend(deviations(judged_as, network, protocol));
        }
    }
    Ok(())
}

fn measure(args: &Evaluate, global: &Global, printer: Printer) -> anyhow::Result<Evaluation> {
    let mut ledger = Ledger::new();
    let protocol = protocol_of(args)?;
    let path = args.reference.as_deref().context("no reference")?;
    let engine = Engine::new(args.provider, &args.accelerator, global, printer)?;
    let mut networks = networks_of(args, protocol, &engine)?;
    let how = how_of(args, &networks, protocol, printer);
    let (mut set, generator) = samples(args, &networks, how.batch, &engine)?;
    let (neighbourly, other) = (wants_manifold(args), set.width("manifold", &networks).is_some());
    let wants = |m: Metric| args.metrics.contains(&m);
    let wanted = Wants {
        features: wants_features(args, other),
        keep: (neighbourly && !other) || wants(Metric::Kid) || args.per_class,
        score: None,
        spatial: wants(Metric::Sfid),
        clip: wants(Metric::ClipFid),
        manifold: neighbourly && other,
    };
    ensure_measurable(args, &set, &networks, &wanted)?;
    ledger.lap("open");

    let here = Wants { clip: wanted.clip && args.clip_ref.is_none(), ..wanted };
    let mut reference = Reference::open(path, &mut networks, &here, &how)?;
    if let Some(path) = &args.clip_ref {
        let wants = Wants { clip: true, ..Wants::default() };
        reference.take_clip(Reference::open(path, &mut networks, &wants, &how)?);
    }
    ledger.lap("reference");

    let count = set.len();
    let keep = wanted.keep || wants(Metric::FdInf) || (wants(Metric::Fid) && wants_interval(args, count));
    let score = wants(Metric::Is).then_some(protocol.score);
    let mut writer = match &args.save_features {
        Some(path) => Some(FeatureWriter::create(path, meta_of(&set, 0..count, &networks, &how)?)?),
        None => None,
    };
    let found = sums(&mut set, &mut networks, &Wants { keep, score, ..wanted }, &how, writer.as_mut())?;
    let labels = if writer.is_some() || args.per_class { set.labels() } else { None };
    if let Some(writer) = writer {
        writer.finish(labels.as_deref())?;
    }
    ledger.lap("features");
    ledger.timings.extend(found.walk.seconds.iter().map(|(k, v)| (format!("features_{k}"), *v)));

    examine(args, protocol, &found.walk.networks, (&reference, path), &wanted, &mut ledger)?;
    let extractor = |(role, n): (&String, &NetworkMeta)| {
        let NetworkMeta { name, path, sha256, dims, .. } = n.clone();
        (role.clone(), Extractor { name, path, sha256, dims })
    };
    let extractors: BTreeMap<String, Extractor> = found.walk.networks.iter().map(extractor).collect();
    let is = |role: Role, name: &str| extractors.get(role.name()).is_some_and(|e| e.name == name);
    let runtimes: BTreeSet<String> = found.walk.networks.values().map(|n| n.runtime.clone()).collect();
    let (sha256, inception, clip) = (found.walk.sha256.clone(), is(Role::Features, INCEPTION), is(Role::Clip, CLIP));
    let comparison = Comparison { args, protocol, reference: &reference, path, count, labels, inception, clip };
    comparison.compute(found, &mut ledger)?;

    let title = args.title.clone().unwrap_or_else(|| {
        let path = samples_of(args);
        path.file_stem().map_or_else(|| path.display().to_string(), |s| s.to_string_lossy().into_owned())
    });
    let mut described = protocol.describe();
    let intervals = format!("95 %, {} resamples of the samples, seed {}", args.bootstrap, args.seed);
    described.insert("intervals".to_owned(), intervals);
    let reference_sha256 = container_sha256(path)?;
    ledger.lap("hash");
    let runtimes = runtimes.into_iter().collect::<Vec<_>>().join(", ");
    let mut runtime = engine::describe(&runtimes, &args.accelerator, global);
    runtime.insert("d2o_version".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    Ok(Evaluation {
        schema: SCHEMA,
        protocol: described,
        deviations: ledger.deviations,
        samples: ImageSet {
            title,
            path: samples_of(args).display().to_string(),
            count: Some(count),
            sha256,
            generator,
        },
        reference: ImageSet {
            title: "reference".to_owned(),
            path: path.display().to_string(),
            count: reference.count,
            sha256: reference_sha256,
            generator: None,
        },
        extractors,
        runtime,
        metrics: ledger.metrics,
        per_class: ledger.per_class,
        warnings: ledger.warnings,
        timings: ledger.timings,
    })
}
