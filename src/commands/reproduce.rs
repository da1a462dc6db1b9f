//! `d2o reproduce`.

use std::ffi::OsString;
use std::path::Path;

use anyhow::Context as _;
use clap::{Parser as _, ValueEnum as _};
use d2o_converters::known::{self, Generator, Known};
use d2o_evaluations::result::Evaluation;
use fs_err as fs;
use serde::Serialize;

use super::known::{sampler_words, unknown};
use super::{ExitStatus, ensure_new_result, give_result};
use crate::cli::{Cli, Command, Global, Metric, Reproduce, Seeds};
use crate::pipeline::metrics::{Metric as MetricKind, general_key};
use crate::printer::{Printer, shell, table};

/// Published and measured numbers of one generator.
#[derive(Debug, Serialize)]
struct Comparison<'a> {
    /// Name of the generator.
    name: &'a str,
    /// The commands that were run.
    commands: Vec<String>,
    /// Number of images measured.
    images: Option<usize>,
    /// One row per measured metric, with the first published number of the metric.
    metrics: Vec<Row<'a>>,
    /// Published numbers that were not measured, e.g. those of another protocol.
    not_measured: Vec<String>,
}

/// A published number and the measured one.
#[derive(Debug, Serialize)]
struct Row<'a> {
    metric: &'a str,
    /// Name of the measured metric, as in tables of `d2o evaluate`.
    label: String,
    published: f64,
    published_images: u32,
    statistic: &'a str,
    source: &'a str,
    measured: f64,
    ci95: Option<[f64; 2]>,
    difference: f64,
    /// Whether the feature network has the weights of a published file.
    verified: bool,
}

/// Exports a published generator, measures its images, and compares the result with the published numbers.
///
/// # Errors
/// If the name is unknown or not a generator, d2o does not support the sampler, no reference is available, or export or
/// evaluation fails.
pub fn run(args: &Reproduce, global: &Global, printer: Printer) -> anyhow::Result<ExitStatus> {
    let known = known::find(&args.name).ok_or_else(|| unknown(&args.name))?;
    let generator = known
        .generator()
        .with_context(|| format!("`{}` is not a generator: expected one that `d2o known` lists as such", known.name))?;
    let result = args.outdir.join(format!("{}.json", known.name));
    let commands = commands(args, known, generator, &result)?;
    let shown = commands.each_ref().map(|words| shell(words)).to_vec();
    if args.dry_run {
        printer.data(&shown.join("\n"))?;
        return Ok(ExitStatus::Done);
    }
    ensure_new_result(&args.result)?;
    fs::create_dir_all(&args.outdir)?;
    for (words, text) in commands.iter().zip(&shown) {
        printer.note(text);
        let mut cli = Cli::try_parse_from(words)?;
        cli.global = global.clone();
        if let Command::Evaluate(evaluate) = &mut cli.command {
            evaluate.accelerator = args.accelerator.clone();
            (evaluate.provider, evaluate.batch) = (args.provider, args.batch);
        }
        let status = super::run(cli)?;
        anyhow::ensure!(status == ExitStatus::Done, "`{text}` exited with code {}", status as u8);
    }
    let measured: Evaluation =
        serde_json::from_slice(&fs::read(&result)?).with_context(|| format!("read `{}`", result.display()))?;
    let comparison = compare(known, generator, &measured, shown);
    give_result(&args.result, printer, &comparison, || render(&comparison))?;
    Ok(ExitStatus::Done)
}

/// The command lines of export and evaluation.
fn commands(args: &Reproduce, known: &Known, generator: &Generator, json: &Path) -> anyhow::Result<[Vec<OsString>; 2]> {
    let one_step = generator.is_one_step() == Some(true);
    let sampler = sampler_words(generator, one_step).with_context(|| {
        format!("the numbers of `{}` were published for a sampler that d2o does not support", known.name)
    })?;
    let reference = args.reference.clone().map(OsString::from).or(generator.reference.as_deref().map(Into::into));
    let reference = reference.with_context(|| {
        format!("no reference statistics are published for `{}`: pass a file with --ref", known.name)
    })?;
    let graph = args.outdir.join(format!("{}.onnx", known.name));
    let overwrite = args.result.output.overwrite.then(|| "--overwrite".into());
    let source = args.checkpoint.clone().map_or_else(|| known.name.clone().into(), OsString::from);
    let mut export: Vec<OsString> = vec!["d2o".into(), "export".into(), source];
    export.extend(["--kind", if one_step { "one-step" } else { "denoiser" }].map(Into::into));
    export.extend(generator.one_step_sigma().into_iter().flat_map(|s| ["--sigma-max".into(), s.to_string().into()]));
    export.extend(["--out".into(), graph.clone().into()]);
    export.extend(overwrite.clone());

    let images = generator.published.iter().map(|n| n.images).max().unwrap_or(50_000);
    let seeds = args.seeds.as_ref().map_or_else(|| format!("0-{}", images - 1), |s| Seeds::text(&s.0));
    let mut evaluate: Vec<OsString> = vec!["d2o".into(), "evaluate".into(), graph.into()];
    evaluate.extend(["--seeds".into(), seeds.into()]);
    evaluate.extend(sampler.into_iter().map(Into::into));
    evaluate.extend(["--ref".into(), reference]);
    let extractor = args.extractor.clone().map_or_else(|| generator.extractor.clone().into(), OsString::from);
    evaluate.extend(["--extractor".into(), extractor]);
    evaluate.extend(args.clip.iter().flat_map(|clip| ["--clip".into(), clip.into()]));
    evaluate.extend(["--protocol", &generator.protocol, "--metrics", &metrics(args, generator)].map(Into::into));
    evaluate.extend(["--json".into(), json.into()]);
    evaluate.extend(overwrite);
    Ok([export, evaluate])
}

/// Metrics that cover the published numbers, as far as the given networks permit. They always include the distance.
fn metrics(args: &Reproduce, generator: &Generator) -> String {
    let published = generator.published.iter().filter(|n| n.protocol.is_none());
    let mut found = vec![MetricKind::Fid];
    for metric in published.filter_map(|n| MetricKind::of_key(&n.metric)) {
        if !found.contains(&metric) && (metric != MetricKind::ClipFid || args.clip.is_some()) {
            found.push(metric);
        }
    }
    let names = found.into_iter().filter_map(|metric| Metric::from(metric).to_possible_value());
    names.map(|value| value.get_name().to_owned()).collect::<Vec<_>>().join(",")
}

fn compare<'a>(
    known: &'a Known,
    generator: &'a Generator,
    measured: &Evaluation,
    commands: Vec<String>,
) -> Comparison<'a> {
    let (mut rows, mut not_measured): (Vec<Row<'_>>, Vec<String>) = (Vec::new(), Vec::new());
    for number in &generator.published {
        // With a network other than that of the publication, distances have other names.
        let own = Some(number.metric.as_str()).filter(|key| measured.metrics.contains_key(*key));
        let key = own.or_else(|| general_key(&number.metric)).unwrap_or(&number.metric);
        let other = number.protocol.as_ref().filter(|p| **p != generator.protocol);
        let found = measured.metrics.get(key).filter(|_| other.is_none());
        if rows.iter().any(|row| row.metric == number.metric) {
            continue;
        }
        let Some(metric) = found else {
            let why = other.map_or_else(String::new, |p| format!(", protocol {p}"));
            not_measured.push(format!("{} {}{why}: {}", number.metric, number.value, number.source));
            continue;
        };
        rows.push(Row {
            metric: &number.metric,
            label: measured.label(key),
            published: number.value,
            published_images: number.images,
            statistic: &number.statistic,
            source: &number.source,
            measured: metric.value,
            ci95: metric.ci95,
            difference: metric.value - number.value,
            verified: metric.verified,
        });
    }
    Comparison { name: &known.name, commands, images: measured.samples.count, metrics: rows, not_measured }
}

fn render(comparison: &Comparison<'_>) -> String {
    let rows: Vec<Vec<String>> = comparison
        .metrics
        .iter()
        .map(|row| {
            let interval = row.ci95.map(|[low, high]| format!(" [{low:.4}, {high:.4}]")).unwrap_or_default();
            vec![
                row.label.clone(),
                format!("{} ({})", row.published, row.statistic),
                format!("{:.4}{interval}", row.measured),
                format!("{:+.4}", row.difference),
            ]
        })
        .collect();
    let mut text = table(&["metric", "published", "measured", "difference"], &rows);
    let images = comparison.images.unwrap_or_default();
    if let Some(row) = comparison.metrics.iter().find(|row| row.published_images as usize != images) {
        text += &format!("\nnot comparable: measured on {images} images, published for {}", row.published_images);
    }
    for number in &comparison.not_measured {
        text += &format!("\nnot measured: {number}");
    }
    text
}
