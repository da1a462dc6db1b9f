//! `d2o evaluate`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use d2o_evaluations::result::{Evaluation, ImageSet, SCHEMA};
use d2o_refs::batch::container_sha256;
use d2o_refs::features::FeatureWriter;

use super::{ExitStatus, Results};
use crate::cli::{Evaluate, Global, Titled};
use crate::outputs::is_stdout;
use crate::pipeline::metrics::{EvaluationBuilder, Metric, MetricsContext};
use crate::pipeline::network::InputRule;
use crate::pipeline::pass::PassOptions;
use crate::pipeline::provenance::Records;
use crate::pipeline::reference::{OpenReference, Reference};
use crate::pipeline::source::{Origin, Source};
use crate::pipeline::statistics::{SetStatistics, StatsRequest, meta_of, save, statistics};
use crate::printer::Printer;
use crate::progress::{Reporter, Silent};
use crate::report;

mod plan;
mod render;

use plan::{Plan, ProtocolPlan, ShardPlan, samples_of};

/// Evaluates samples. The exit status is [`ExitStatus::No`] if a condition of `--expect` is not met.
///
/// # Errors
/// If the plan has an error, images cannot be read, a runtime fails, a metric cannot be computed, or an output cannot
/// be written.
pub fn run(args: &Evaluate, global: &Global, printer: Printer) -> anyhow::Result<ExitStatus> {
    let intent = format!("cannot evaluate `{}`", samples_of(args).display());
    if let Some(shard) = plan::plan_shard(args, global, printer).with_context(|| intent.clone())? {
        take_shard(shard, &printer).with_context(|| intent)?;
        return Ok(ExitStatus::Done);
    }
    let plan = plan::plan(args, global, printer).with_context(|| intent.clone())?;
    let of_protocols = once_each(plan.protocols.iter().map(|p| (p.protocol.name, &p.notes)));
    for note in plan.samples.notes().iter().chain(&plan.notes).chain(&of_protocols) {
        printer.note(note);
    }
    compute(plan, printer).with_context(|| intent)
}

/// Computes the results for `args` without printing or writing them.
///
/// # Errors
/// Same as [`run`].
pub fn results(args: &Evaluate, global: &Global, printer: Printer) -> anyhow::Result<Vec<Evaluation>> {
    let mut plan = plan::plan(args, global, printer)?;
    evaluate(&mut plan, &printer)
}

/// Computes and writes the features of one shard.
fn take_shard(plan: ShardPlan, reporter: &dyn Reporter) -> anyhow::Result<()> {
    let ShardPlan { mut samples, mut networks, range, batch, rule, cache, out, finished } = plan;
    if finished {
        reporter.note(&format!("`{}` already contains these features (--overwrite recomputes them)", out.display()));
        return Ok(());
    }
    let options = PassOptions { batch, rule, cache: cache.as_deref(), reporter };
    save(&mut samples, range.clone(), &mut networks, &options, &out)?;
    let (start, end, len) = (range.start, range.end, samples.len());
    reporter.note(&format!("features of images {start}..{end} of {len} in `{}`", out.display()));
    Ok(())
}

/// Runs `plan`; for a dry run, prints it.
fn compute(mut plan: Plan, printer: Printer) -> anyhow::Result<ExitStatus> {
    if plan.dry_run {
        let measured = dry_run(&mut plan)?;
        // A dry run writes no file, because the real run would find it and fail.
        if json_to_stdout(&plan) {
            printer.json(Path::new("-"), &render::plan_json(&plan, &measured))?;
        } else {
            printer.data(&render::plan(&plan, &measured))?;
        }
        return Ok(ExitStatus::Done);
    }
    let evaluations = evaluate(&mut plan, &printer)?;
    for warning in once_each(evaluations.iter().map(|e| (e.protocol_name(), &e.warnings))) {
        printer.warn(&warning);
    }
    for (metric, problem) in evaluations.iter().flat_map(|e| &e.failed) {
        printer.warn(&format!("{metric} failed: {problem}"));
    }
    for note in once_each(evaluations.iter().map(|e| (e.protocol_name(), &e.notes)))
        .iter()
        .filter(|n| !n.starts_with("skipped") && !plan.notes.contains(n))
    {
        printer.note(note);
    }
    // The table is printed first, so that the numbers are shown even if a file cannot be written.
    if !json_to_stdout(&plan) {
        printer.data(&render::render(&evaluations))?;
    }
    if let Some(path) = &plan.outputs.json {
        printer.json(path, &Results::from(&evaluations[..]))?;
    }
    if let Some(path) = &plan.outputs.report {
        write_report(path, &plan, &evaluations)?;
    }
    let mut status = ExitStatus::Done;
    for condition in &plan.conditions {
        for e in &evaluations {
            let Some(metric) = e.metrics.get(&condition.metric) else { continue };
            let value = metric.show();
            if condition.holds(metric.value) {
                printer.note(&format!("met: {} ({value})", condition.text()));
            } else {
                printer.warn(&format!("not met: {} ({value})", condition.text()));
                status = ExitStatus::No;
            }
        }
    }
    let failed: Vec<&str> = evaluations.iter().flat_map(|e| e.failed.keys()).map(String::as_str).collect();
    anyhow::ensure!(failed.is_empty(), "not all metrics could be computed: {}", failed.join(", "));
    Ok(status)
}

/// Writes the report of `evaluations`. It contains images of the samples and, if `--nearest` is given, of the
/// reference, as far as these are image files.
fn write_report(path: &Path, plan: &Plan, evaluations: &[Evaluation]) -> anyhow::Result<()> {
    let is_images = |source: &Source| matches!(source, Source::Images { origin: Origin::Container(_), .. });
    let images = is_images(&plan.samples)
        .then(|| Titled { title: plan.title.clone(), path: plan.samples_path.clone() })
        .into_iter()
        .collect::<Vec<_>>();
    let nearest = evaluations.iter().any(|e| e.nearest.is_some());
    let references = plan.reference.as_ref().filter(|r| nearest && r.source().is_some_and(is_images));
    let content = report::Content {
        title: "d2o evaluation",
        evaluations,
        images: &images,
        references: references.map(OpenReference::path),
        ..report::Content::default()
    };
    report::write(path, &report::html(&content)?)
}

fn json_to_stdout(plan: &Plan) -> bool {
    plan.outputs.json.as_deref().is_some_and(is_stdout)
}

/// The texts of all protocols, without repetition. A text that is not common to all protocols begins with the protocol
/// name.
fn once_each<'a>(all: impl Iterator<Item = (&'a str, &'a Vec<String>)>) -> Vec<String> {
    let all: Vec<(&str, &Vec<String>)> = all.collect();
    let mut found: Vec<String> = Vec::new();
    for (name, texts) in &all {
        for text in *texts {
            let shared = all.iter().all(|(_, others)| others.contains(text));
            let text = if shared { text.clone() } else { format!("{name}: {text}") };
            if !found.contains(&text) {
                found.push(text);
            }
        }
    }
    found
}

/// Groups of protocols with the same network input. The protocols of a group share a pass over the images.
fn groups(protocols: &[ProtocolPlan]) -> Vec<Vec<ProtocolPlan>> {
    let mut groups: Vec<Vec<ProtocolPlan>> = Vec::new();
    for plan in protocols {
        match groups.iter_mut().find(|g| g[0].rule() == plan.rule()) {
            Some(group) => group.push(plan.clone()),
            None => groups.push(vec![plan.clone()]),
        }
    }
    groups
}

/// The evaluation under each protocol of `plan`, in its order.
fn evaluate(plan: &mut Plan, reporter: &dyn Reporter) -> anyhow::Result<Vec<Evaluation>> {
    let mut found = Vec::new();
    let reference = image_set("reference", plan.reference.as_ref())?;
    let clip_reference = image_set("CLIP reference", plan.clip_reference.as_ref())?;
    let labels = plan.protocols.iter().any(|p| p.request.per_class).then(|| plan.samples.labels()).flatten();
    for group in groups(&plan.protocols) {
        let mut builder = EvaluationBuilder::new(reporter);
        let (statistics, sums) = take(plan, &group, &mut builder, reporter)?;
        let shared = builder.timings;
        for protocol in group {
            let mut builder = EvaluationBuilder::new(reporter);
            builder.timings.clone_from(&shared);
            let context = MetricsContext {
                request: &protocol.request,
                protocol: protocol.protocol,
                reference: &statistics,
                count: plan.samples.len(),
                labels: labels.as_deref(),
                names: protocol.names,
            };
            context.compute(&sums, &mut builder);
            let mut evaluation = result(plan, &protocol, &sums, builder);
            evaluation.reference.clone_from(&reference);
            if protocol.request.wants(Metric::ClipFid) {
                evaluation.clip_reference.clone_from(&clip_reference);
            }
            found.push(evaluation);
        }
    }
    let order = |e: &Evaluation| plan.protocols.iter().position(|p| p.protocol.name == e.protocol_name());
    found.sort_by_key(order);
    Ok(found)
}

/// Passes over the reference and over the samples, once for all protocols of a group.
fn take(
    plan: &mut Plan,
    group: &[ProtocolPlan],
    builder: &mut EvaluationBuilder<'_>,
    reporter: &dyn Reporter,
) -> anyhow::Result<(Reference, SetStatistics)> {
    let union = |of: &dyn Fn(&ProtocolPlan) -> StatsRequest| {
        group.iter().map(of).fold(StatsRequest::default(), |all, request| all.union(&request))
    };
    let (of_samples, of_reference) = (union(&|p| p.samples.clone()), union(&|p| p.reference.clone()));
    let rule: InputRule = group[0].rule();
    let options = PassOptions { batch: plan.batch, rule, cache: plan.cache.as_deref(), reporter };
    let mut reference = Reference::default();
    if let Some(open) = &mut plan.reference {
        let clip = of_reference.clip && plan.clip_reference.is_none();
        reference = open.compute(&mut plan.networks, &StatsRequest { clip, ..of_reference.clone() }, &options)?;
    }
    if let Some(open) = plan.clip_reference.as_mut().filter(|_| of_reference.clip) {
        let request = StatsRequest { clip: true, ..StatsRequest::default() };
        reference.take_clip(open.compute(&mut plan.networks, &request, &options)?);
    }
    builder.lap("reference");
    let count = plan.samples.len();
    let mut writer = match &plan.outputs.features {
        Some(path) => Some(FeatureWriter::create(path, meta_of(&plan.samples, 0..count, &plan.networks, &options)?)?),
        None => None,
    };
    let (samples, networks) = (&mut plan.samples, &mut plan.networks);
    let sums = statistics(samples, 0..count, networks, &of_samples, &options, writer.as_mut())?;
    if let Some(writer) = writer {
        writer.finish(plan.samples.labels().as_deref())?;
    }
    builder.lap("features");
    builder.timings.extend(sums.summary.seconds.iter().map(|(k, v)| (format!("features_{k}"), *v)));
    builder.timings.extend(reference.seconds.iter().map(|(k, v)| (format!("reference_{k}"), *v)));
    Ok((reference, sums))
}

/// Description of `reference` for a result.
fn image_set(title: &str, reference: Option<&OpenReference>) -> anyhow::Result<Option<ImageSet>> {
    let describe = |reference: &OpenReference| {
        anyhow::Ok(ImageSet {
            title: title.to_owned(),
            path: reference.path().display().to_string(),
            count: reference.count(),
            sha256: container_sha256(reference.path())?,
            generator: None,
            notes: reference.notes().to_vec(),
        })
    };
    reference.map(describe).transpose()
}

/// The result under one protocol, without its references.
fn result(plan: &Plan, protocol: &ProtocolPlan, sums: &SetStatistics, builder: EvaluationBuilder<'_>) -> Evaluation {
    let records: &Records = &protocol.records;
    let mut described: BTreeMap<String, String> = protocol.protocol.describe();
    let (resamples, seed) = (protocol.request.bootstrap, protocol.request.seed);
    let intervals = format!("95 %, {resamples} resamples of the samples, seed {seed}; none of recall and coverage");
    described.insert("intervals".to_owned(), intervals);
    let mut notes = [plan.notes.as_slice(), &protocol.notes].concat();
    notes.extend(builder.notes);
    let mut evaluation = Evaluation {
        schema: SCHEMA,
        protocol: described,
        deviations: protocol.deviations.clone(),
        samples: ImageSet {
            title: plan.title.clone(),
            path: plan.samples_path.display().to_string(),
            count: Some(plan.samples.len()),
            sha256: sums.summary.sha256.clone(),
            generator: plan.samples.generator_record().cloned(),
            notes: plan.samples.notes().to_vec(),
        },
        reference: None,
        clip_reference: None,
        extractors: records.iter().map(|(role, record)| (role.clone(), record.extractor())).collect(),
        runtime: plan.runtime.clone(),
        metrics: builder.metrics,
        failed: builder.failed,
        per_class: builder.per_class,
        fd_infinity: builder.fd_infinity,
        nearest: builder.nearest,
        warnings: builder.warnings,
        notes,
        timings: builder.timings,
    };
    let verified: Vec<bool> = evaluation.metrics.keys().map(|name| evaluation.is_verified(name)).collect();
    evaluation.metrics.values_mut().zip(verified).for_each(|(metric, verified)| metric.verified = verified);
    evaluation
}

/// Seconds per image of the pass over the samples, with the protocol names, for each group of protocols; groups in
/// which no network runs are left out.
fn dry_run(plan: &mut Plan) -> anyhow::Result<Vec<(String, f64)>> {
    let mut measured = Vec::new();
    for group in groups(&plan.protocols) {
        let names: Vec<&str> = group.iter().map(|p| p.protocol.name).collect();
        let rule = group[0].rule();
        let options = PassOptions { batch: plan.batch, rule, cache: None, reporter: &Silent };
        if plan.samples.records().is_some() || plan.networks.is_empty() {
            continue;
        }
        let request = group.iter().fold(StatsRequest::default(), |all, p| all.union(&p.samples));
        let count = plan.batch.min(plan.samples.len());
        // The second of two runs is measured: the first one includes preparation of the kernels.
        let mut seconds = 0.0;
        for _ in 0..2 {
            let clock = std::time::Instant::now();
            statistics(&mut plan.samples, 0..count, &mut plan.networks, &request, &options, None)?;
            seconds = clock.elapsed().as_secs_f64();
        }
        #[allow(clippy::cast_precision_loss, reason = "image counts")]
        measured.push((names.join(", "), seconds / count as f64));
    }
    Ok(measured)
}
