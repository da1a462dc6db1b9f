//! Planning of an evaluation, with all checks that are possible before a network runs.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use d2o_evaluations::protocol::{INCEPTION, ManifoldFeatures, PROTOCOLS, Protocol, Quantiser};
use d2o_evaluations::result::{Condition, Deviation, DeviationKind};
use d2o_evaluations::{fd_infinity, frechet};
use d2o_onnx::metadata::Quantiser as GraphQuantiser;
use d2o_onnx::read::ModelInfo;
use d2o_refs::batch::{self, ImageDims, uniform};
use d2o_refs::features::FeatureFile;

use crate::cli::{Evaluate, Global};
use crate::commands::known::recommended;
use crate::engine::{self, Engine};
use crate::error::with_hint;
use crate::outputs;
use crate::pipeline::fused::Fused;
use crate::pipeline::generated::GeneratedImages;
use crate::pipeline::metrics::{Metric, MetricsRequest, Names};
use crate::pipeline::network::{self, CLIP, InputRule, Network, Role};
use crate::pipeline::pass::PassOptions;
use crate::pipeline::provenance::{NetworkRecord, Records, against_protocol, between};
use crate::pipeline::reference::{OpenReference, Supply};
use crate::pipeline::source::{Source, settings};
use crate::pipeline::statistics::{StatsRequest, meta_of};
use crate::printer::{Printer, shell};
use crate::progress::Silent;
use crate::sampling::request::SamplingRequest;

/// Metrics computed without `--metrics`.
const DEFAULT: [Metric; 3] = [Metric::Fid, Metric::Is, Metric::Pr];
/// Value of `--protocol` that selects every protocol.
const EVERY_PROTOCOL: &str = "all";

/// An evaluation that is ready to run.
pub(super) struct Plan {
    /// Name of the samples in tables.
    pub(super) title: String,
    /// File or folder of the samples; with `--merge`, the first file.
    pub(super) samples_path: PathBuf,
    /// The samples.
    pub(super) samples: Source,
    /// The reference, unless no metric needs one.
    pub(super) reference: Option<OpenReference>,
    /// The reference of CLIP-FID, if it is another file.
    pub(super) clip_reference: Option<OpenReference>,
    /// Feature networks to run.
    pub(super) networks: Vec<Network>,
    /// What is computed under each protocol.
    pub(super) protocols: Vec<ProtocolPlan>,
    /// Notes on skipped protocols, existing features and differing image sizes.
    pub(super) notes: Vec<String>,
    /// Conditions on the metrics.
    pub(super) conditions: Vec<Condition>,
    /// Images in a batch.
    pub(super) batch: usize,
    /// Folder of cached features.
    pub(super) cache: Option<PathBuf>,
    /// Files to write.
    pub(super) outputs: Outputs,
    /// Runtime, versions, settings and command line, for the result.
    pub(super) runtime: BTreeMap<String, String>,
    /// Whether only the plan is printed.
    pub(super) dry_run: bool,
}

/// Files an evaluation writes.
#[derive(Debug, Clone, Default)]
pub(super) struct Outputs {
    /// The result; `-` is standard output.
    pub(super) json: Option<PathBuf>,
    /// The HTML report.
    pub(super) report: Option<PathBuf>,
    /// Features of the samples.
    pub(super) features: Option<PathBuf>,
}

/// What is computed under one protocol.
#[derive(Debug, Clone)]
pub(super) struct ProtocolPlan {
    /// The protocol.
    pub(super) protocol: &'static Protocol,
    /// The metrics and their rules.
    pub(super) request: MetricsRequest,
    /// Which networks are Inception and CLIP: they determine the names of the distances.
    pub(super) names: Names,
    /// Statistics to compute of the samples.
    pub(super) samples: StatsRequest,
    /// Statistics to compute of the reference.
    pub(super) reference: StatsRequest,
    /// Deviations from the protocol, and between samples and reference.
    pub(super) deviations: Vec<Deviation>,
    /// Notes on skipped metrics and on images in subfolders.
    pub(super) notes: Vec<String>,
    /// Records of the networks as applied to the samples, by role.
    pub(super) records: Records,
}

impl ProtocolPlan {
    /// Rule for the input of networks.
    pub(super) fn rule(&self) -> InputRule {
        InputRule::from(self.protocol)
    }

    /// Keys of the metrics in results.
    pub(super) fn keys(&self) -> Vec<&'static str> {
        self.request.metrics.iter().flat_map(|m| m.keys(&self.names)).copied().collect()
    }
}

/// A computation of the features of one shard, ready to run.
pub(super) struct ShardPlan {
    pub(super) samples: Source,
    pub(super) networks: Vec<Network>,
    pub(super) range: std::ops::Range<usize>,
    pub(super) batch: usize,
    pub(super) rule: InputRule,
    pub(super) cache: Option<PathBuf>,
    pub(super) out: PathBuf,
    /// Whether an earlier run has written the features.
    pub(super) finished: bool,
}

/// File or folder of the samples; with `--merge`, the first file.
pub(super) fn samples_of(args: &Evaluate) -> &Path {
    args.samples.as_deref().or_else(|| args.merge.first().map(PathBuf::as_path)).unwrap_or(Path::new("samples"))
}

/// Plans the features of one shard; `None` without `--shard`.
///
/// # Errors
/// All errors that can be detected before a network runs.
pub(super) fn plan_shard(args: &Evaluate, global: &Global, printer: Printer) -> anyhow::Result<Option<ShardPlan>> {
    let (Some(shard), Some(out)) = (args.shard, &args.save_features) else { return Ok(None) };
    let [protocol] = protocols_of(args)?[..] else {
        anyhow::bail!("--shard supports one protocol per run");
    };
    let engine = Engine::new(args.provider, &args.accelerator, global, printer)?;
    let networks = networks_of(args, None, &engine)?;
    anyhow::ensure!(!networks.is_empty(), "--shard needs --extractor, --clip or --pr-extractor");
    let batch = network::batch(args.batch, &networks);
    let samples = samples(args, &networks, batch, &engine, printer)?;
    let range = samples.shard(shard.index, shard.count, batch);
    let (len, count, most) = (samples.len(), shard.count, samples.len().div_ceil(batch));
    anyhow::ensure!(!range.is_empty(), "cannot split {len} images (batch {batch}) into {count} shards: at most {most}");
    let rule = InputRule::from(protocol);
    for network in &networks {
        network.spec.record(samples.image_dims(), &rule)?;
    }
    let finished = finished(out, args.output.overwrite, &samples, range.clone(), &networks, batch, &rule)?;
    if let Some(features) = &finished {
        features.verify()?;
    }
    let (cache, out, finished) = (args.cache.clone(), out.clone(), finished.is_some());
    Ok(Some(ShardPlan { samples, networks, range, batch, rule, cache, out, finished }))
}

/// Plans an evaluation.
///
/// # Errors
/// All errors that can be detected before a network runs: unreadable files, networks that do not fit, metrics requested
/// by name that samples or reference do not support, deviations that are not allowed, unknown names in conditions,
/// outputs that exist or cannot be written.
pub(super) fn plan(args: &Evaluate, global: &Global, printer: Printer) -> anyhow::Result<Plan> {
    let conditions: Vec<Condition> = args.expect.iter().map(|t| t.parse()).collect::<Result<_, _>>()?;
    for path in [&args.json, &args.report].into_iter().flatten() {
        outputs::ensure_new(path, args.output.overwrite)?;
    }
    let protocols = protocols_of(args)?;
    let (asked, by_name) = metrics_of(args);
    let engine = Engine::new(args.provider, &args.accelerator, global, printer)?;
    let networks = networks_of(args, Some(&asked), &engine)?;
    let batch = network::batch(args.batch, &networks);
    let mut samples = samples(args, &networks, batch, &engine, printer)?;
    anyhow::ensure!(
        protocols.len() == 1 || args.save_features.is_none(),
        "--save-features supports one protocol per run"
    );
    let mut notes = Vec::new();
    let mut features = args.save_features.clone();
    if let Some(path) = &args.save_features {
        let count = samples.len();
        let rule = InputRule::from(protocols[0]);
        if let Some(found) = finished(path, args.output.overwrite, &samples, 0..count, &networks, batch, &rule)? {
            samples = Source::joined(vec![found])?;
            features = None;
            notes.push(format!("using the features in `{}` (--overwrite recomputes them)", path.display()));
        }
    }
    let clip_only = asked.iter().all(|m| *m == Metric::ClipFid) && !args.per_class;
    let reference = args.reference.as_deref().map(|path| OpenReference::open(path, clip_only)).transpose()?;
    let clip_reference = args.clip_ref.as_deref().map(|path| OpenReference::open(path, true)).transpose()?;
    let inputs = PlanInputs {
        args,
        networks: &networks,
        samples: &samples,
        reference: reference.as_ref(),
        clip_reference: clip_reference.as_ref(),
    };
    let every = args.protocol.iter().any(|name| name == EVERY_PROTOCOL);
    let mut planned: Vec<ProtocolPlan> = Vec::new();
    let mut failed = None;
    for protocol in &protocols {
        match inputs.protocol(protocol, &asked, by_name) {
            Ok(plan) => planned.push(plan),
            Err(problem) if protocols.len() == 1 => return Err(problem),
            Err(problem) if every => {
                notes.push(format!("skipped protocol {}: {problem:#}", protocol.name));
                failed.get_or_insert(problem);
            }
            Err(problem) => return Err(problem.context(format!("protocol {}", protocol.name))),
        }
    }
    if planned.is_empty() {
        return Err(
            failed.map_or_else(|| anyhow::anyhow!("no protocol"), |p| p.context("no protocol can be evaluated"))
        );
    }
    notes.extend(inputs.size_note());
    let known: BTreeSet<&str> = planned.iter().flat_map(ProtocolPlan::keys).collect();
    for condition in &conditions {
        anyhow::ensure!(
            known.contains(condition.metric.as_str()),
            "--expect {}: `{}` is not computed; computed metrics: {}",
            condition.text(),
            condition.metric,
            known.iter().copied().collect::<Vec<_>>().join(", ")
        );
    }
    let runtimes: BTreeSet<&str> =
        planned.iter().flat_map(|p| p.records.values()).map(|r| r.runtime.as_str()).collect();
    let runtimes = runtimes.into_iter().collect::<Vec<_>>().join(", ");
    let mut runtime = engine::describe(&runtimes, &args.accelerator, global);
    runtime.insert("d2o_version".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    runtime.insert("batch".to_owned(), batch.to_string());
    let threads = global.threads.map_or_else(|| "all".to_owned(), |n| n.to_string());
    runtime.insert("threads".to_owned(), threads);
    runtime.insert("command".to_owned(), command_line());
    let samples_path = samples_of(args).to_owned();
    let title = args.title.clone().unwrap_or_else(|| title_of(&samples_path, args.merge.len()));
    let outputs = Outputs { json: args.json.clone(), report: args.report.clone(), features };
    Ok(Plan {
        title,
        samples_path,
        protocols: planned,
        samples,
        reference,
        clip_reference,
        networks,
        notes,
        conditions,
        batch,
        cache: args.cache.clone(),
        outputs,
        runtime,
        dry_run: args.dry_run,
    })
}

/// Name in tables of the samples at `path`, the first of `parts` merged files.
fn title_of(path: &Path, parts: usize) -> String {
    let (file, array) = batch::split_name(path);
    let stem = file.file_stem().map_or_else(|| file.display().to_string(), |s| s.to_string_lossy().into_owned());
    match (array, parts) {
        (Some(array), _) => format!("{stem}::{array}"),
        (None, 0 | 1) => stem,
        (None, more) => format!("{stem} and {} more", more - 1),
    }
}

/// Opens the file at `path` if it records the features of images `range` of `samples` by `networks` with the same
/// settings. Otherwise checks that `path` can be written. The caller verifies the content of the file.
///
/// # Errors
/// If the file holds other features and `overwrite` is not set, or `path` cannot be written.
fn finished(
    path: &Path,
    overwrite: bool,
    samples: &Source,
    range: std::ops::Range<usize>,
    networks: &[Network],
    batch: usize,
    rule: &InputRule,
) -> anyhow::Result<Option<FeatureFile>> {
    if !overwrite
        && let Ok(found) = FeatureFile::open(path)
        && let Some(meta) = found.meta()
    {
        let options = PassOptions { batch, rule: *rule, cache: None, reporter: &Silent };
        let wanted = meta_of(samples, range, networks, &options)?;
        if meta.rows == wanted.rows && settings(meta) == settings(&wanted) {
            return Ok(Some(found));
        }
        return Err(with_hint(
            anyhow::anyhow!("`{}` contains features of other images, networks or settings", path.display()),
            "--overwrite replaces it",
        ));
    }
    outputs::ensure_new(path, overwrite)?;
    Ok(None)
}

/// The command line, quoted for a shell.
fn command_line() -> String {
    let args: Vec<OsString> = std::iter::once("d2o".into()).chain(std::env::args_os().skip(1)).collect();
    shell(&args)
}

fn protocols_of(args: &Evaluate) -> anyhow::Result<Vec<&'static Protocol>> {
    let mut found: Vec<&'static Protocol> = Vec::new();
    for name in &args.protocol {
        let named: Vec<&'static Protocol> = match name.as_str() {
            EVERY_PROTOCOL => PROTOCOLS.iter().collect(),
            name => vec![Protocol::named(name).with_context(|| format!("unknown protocol `{name}`"))?],
        };
        for protocol in named {
            if !found.iter().any(|p| p.name == protocol.name) {
                found.push(protocol);
            }
        }
    }
    Ok(found)
}

/// The metrics, and whether they were requested by name, not by default or as `all`.
fn metrics_of(args: &Evaluate) -> (Vec<Metric>, bool) {
    if args.metrics.is_empty() {
        return (DEFAULT.to_vec(), false);
    }
    let named: Option<Vec<Metric>> = args.metrics.iter().map(|m| m.metric()).collect();
    match named {
        Some(metrics) => (metrics, true),
        None => (Metric::EVERY.to_vec(), false),
    }
}

/// Opens the given networks that `metrics` need; all given networks for `None`.
fn networks_of(args: &Evaluate, metrics: Option<&[Metric]>, engine: &Engine<'_>) -> anyhow::Result<Vec<Network>> {
    let needs = |test: &dyn Fn(&Metric) -> bool| metrics.is_none_or(|metrics| metrics.iter().any(test));
    let other = args.pr_extractor.is_some();
    let main = |m: &Metric| match m {
        Metric::ClipFid => false,
        Metric::Pr | Metric::Dc => !other,
        _ => true,
    };
    let mut networks = Vec::new();
    for (role, path, needed) in [
        (Role::Features, &args.extractor, args.per_class || needs(&main)),
        (Role::Clip, &args.clip, needs(&|m| *m == Metric::ClipFid)),
        (Role::Manifold, &args.pr_extractor, args.per_class || needs(&|m| matches!(m, Metric::Pr | Metric::Dc))),
    ] {
        if let (Some(path), true) = (path, needed) {
            networks.push(Network::open(role, path, engine)?);
        }
    }
    Ok(networks)
}

/// Opens the samples.
fn samples(
    args: &Evaluate,
    networks: &[Network],
    batch: usize,
    engine: &Engine<'_>,
    printer: Printer,
) -> anyhow::Result<Source> {
    if !args.merge.is_empty() {
        return Source::merge(&args.merge);
    }
    let path = samples_of(args);
    if path.extension().is_none_or(|e| e != "onnx") {
        anyhow::ensure!(
            args.sampling.is_default() && args.fuse.is_none(),
            "sampling options need a generator (.onnx) as SAMPLES"
        );
        return Source::open(path);
    }
    let info = ModelInfo::open(path).with_context(|| format!("cannot generate with `{}`", path.display()))?;
    let recommended = recommended(&args.sampling, &info, &printer);
    let recommended = recommended.with_context(|| format!("cannot generate with `{}`", path.display()))?;
    let sampling = &SamplingRequest::from(&recommended);
    if let Some(how) = args.fuse {
        return Ok(Source::fused(Fused::open(path, networks, how, sampling, engine)?));
    }
    Ok(Source::generated(GeneratedImages::open(path, sampling, batch, engine)?))
}

/// Inputs of the plan of a protocol.
struct PlanInputs<'a> {
    args: &'a Evaluate,
    networks: &'a [Network],
    samples: &'a Source,
    reference: Option<&'a OpenReference>,
    clip_reference: Option<&'a OpenReference>,
}

/// Statistics that a metric needs of samples and reference.
struct Needs {
    samples: StatsRequest,
    reference: StatsRequest,
}

impl PlanInputs<'_> {
    /// Plans the metrics `asked` under `protocol`. A metric that cannot be computed is skipped, or an error if the
    /// metrics were requested `by_name`.
    fn protocol(&self, protocol: &'static Protocol, asked: &[Metric], by_name: bool) -> anyhow::Result<ProtocolPlan> {
        let rule = InputRule::from(protocol);
        let records = self.records(&rule)?;
        let is = |role: Role, name: &str| records.get(role.name()).is_some_and(|r| r.name == name);
        let names = Names { inception: is(Role::Features, INCEPTION), clip: is(Role::Clip, CLIP) };
        let args = self.args;
        let mut request = MetricsRequest {
            metrics: Vec::new(),
            per_class: args.per_class,
            class_neighbours: false,
            nearest: args.nearest.map(|n| n as usize),
            neighbours: args.neighbours.map(|k| k as usize),
            is_splits: args.is_splits.map(|n| n as usize),
            kid_subsets: args.kid_subsets.map(|n| n as usize),
            kid_subset_size: args.kid_subset_size.map(|n| n as usize),
            bootstrap: args.bootstrap,
            seed: args.seed,
        };
        let (mut samples, mut reference) = (StatsRequest::default(), StatsRequest::default());
        let mut problems = Vec::new();
        for metric in asked {
            match self.needs(*metric, protocol, &request, &rule, &records) {
                Ok(needs) => {
                    request.metrics.push(*metric);
                    samples = samples.union(&needs.samples);
                    reference = reference.union(&needs.reference);
                }
                Err(problem) => problems.push((*metric, problem)),
            }
        }
        if (by_name && !problems.is_empty()) || request.metrics.is_empty() {
            let (metric, first) = problems.swap_remove(0);
            return Err(first.context(format!(
                "{} cannot be computed under protocol {}",
                metric.title(),
                protocol.name
            )));
        }
        let left_out = |(metric, problem): &(Metric, anyhow::Error)| format!("skipped {}: {problem:#}", metric.title());
        let mut notes: Vec<String> = problems.iter().map(left_out).collect();
        if !protocol.subfolders {
            let of_reference = self.reference.and_then(|r| r.source().map(|s| (r.path(), s)));
            for (path, source) in [(samples_of(args), self.samples)].into_iter().chain(of_reference) {
                let nested = source.nested();
                if nested > 0 {
                    notes.push(format!(
                        "{nested} of the {} images in `{}` are in subfolders, which {} does not read by default",
                        source.len(),
                        path.display(),
                        protocol.title
                    ));
                }
            }
        }
        if request.per_class {
            self.ensure_classes()?;
            let needs = self.rows_needed("features", &rule).context("--per-class")?;
            (samples, reference) = (samples.union(&needs.samples), reference.union(&needs.reference));
            match self.needs(Metric::Pr, protocol, &request, &rule, &records) {
                Ok(needs) => {
                    request.class_neighbours = true;
                    (samples, reference) = (samples.union(&needs.samples), reference.union(&needs.reference));
                }
                Err(problem) => notes.push(format!("skipped precision and recall per class: {problem:#}")),
            }
        }
        if request.nearest.is_some() {
            let matrix = if self.has_manifold(&rule) { "manifold" } else { "features" };
            let needs = self.rows_needed(matrix, &rule).context("--nearest")?;
            (samples, reference) = (samples.union(&needs.samples), reference.union(&needs.reference));
        }
        if request.wants_interval(self.samples.len()) || request.wants(Metric::FdInf) {
            samples.keep = true;
        }
        let deviations = self.deviations(protocol, &request, &rule, &records, &samples, &reference)?;
        Ok(ProtocolPlan { protocol, request, names, samples, reference, deviations, notes, records })
    }

    /// Note if the images of samples and reference differ in size.
    fn size_note(&self) -> Option<String> {
        let (samples, reference) = (self.samples.image_dims()?, self.reference?.image_dims()?);
        let size = |dims: ImageDims| format!("{}×{}", dims.width, dims.height);
        let (ours, theirs) = (size(samples), size(reference));
        (ours != theirs).then(|| format!("the sizes differ: samples {ours}, reference {theirs}"))
    }

    /// Records of the networks as applied to the samples.
    fn records(&self, rule: &InputRule) -> anyhow::Result<Records> {
        let dims: Option<ImageDims> = self.samples.image_dims();
        if let Some(records) = self.samples.records() {
            let mut records = records.clone();
            for network in self.networks {
                let (role, spec) = (network.spec.role.name(), &network.spec);
                let own = spec.record(dims, rule);
                match (records.get(role), own) {
                    (Some(of_file), Ok(own)) => anyhow::ensure!(
                        of_file.is_same_network(&own),
                        "`{}` holds features of {} ({}), not of `{}`",
                        samples_of(self.args).display(),
                        of_file.name,
                        of_file.path,
                        own.path
                    ),
                    (None, Ok(own)) if self.allows(DeviationKind::Provenance) => {
                        records.insert(role.to_owned(), own);
                    }
                    _ => {}
                }
            }
            return Ok(records);
        }
        let describe = |network: &Network| {
            let record = network.spec.record(dims, rule).map_err(|error| {
                // If the images differ in size, name two of them.
                let Source::Images { images, .. } = self.samples else { return error };
                match uniform(images.as_ref()) {
                    Err(sizes) => with_hint(
                        anyhow::Error::new(sizes)
                            .context(format!("`{}` requires images of one size", network.spec.path)),
                        "export it with `--input f32`, so that d2o resizes each image",
                    ),
                    Ok(_) => error,
                }
            })?;
            anyhow::Ok((network.spec.role.name().to_owned(), record))
        };
        let mut records: Records = self.networks.iter().map(describe).collect::<anyhow::Result<_>>()?;
        if let Source::Fused { fused, .. } = self.samples {
            for record in records.values_mut() {
                fused.correct_runtime(record);
            }
        }
        Ok(records)
    }

    fn allows(&self, kind: DeviationKind) -> bool {
        self.args.allow_deviation.iter().any(|k| k == kind.name())
    }

    /// Whether precision and recall use the features of a separate network.
    fn has_manifold(&self, rule: &InputRule) -> bool {
        self.samples.width("manifold", self.networks, rule).is_some()
    }

    /// The request for rows of `matrix` of both sides.
    fn rows_needs(&self, matrix: &str) -> Needs {
        let (keep, manifold) = (matrix == "features", matrix == "manifold");
        let request = StatsRequest { keep, manifold, ..StatsRequest::default() };
        Needs { samples: request.clone(), reference: request }
    }

    /// Checks that both sides provide rows of `matrix`, and returns the request for them.
    fn rows_needed(&self, matrix: &str, rule: &InputRule) -> anyhow::Result<Needs> {
        self.samples_give(matrix, rule)?;
        let reference = self.needed_reference()?;
        if reference.rows(matrix, self.networks, rule) == Supply::None {
            let (path, option) =
                (reference.path().display(), if matrix == "manifold" { " --pr-extractor" } else { "" });
            return Err(with_hint(
                anyhow::anyhow!("`{path}` contains neither these features nor images to compute them from"),
                format!("make the reference with `d2o refs make{option}`, or pass its images with --ref"),
            ));
        }
        Ok(self.rows_needs(matrix))
    }

    fn needed_reference(&self) -> anyhow::Result<&OpenReference> {
        self.reference.context("no reference given (--ref)")
    }

    /// Checks that the samples, or a network on them, provide `matrix`.
    fn samples_give(&self, matrix: &str, rule: &InputRule) -> anyhow::Result<()> {
        if self.samples.width(matrix, self.networks, rule).is_some() {
            return Ok(());
        }
        let images = self.samples.records().is_none();
        Err(match matrix {
            "features" if images => {
                with_hint(anyhow::anyhow!("no feature extractor given for image samples"), "pass one with --extractor")
            }
            "clip" if images => with_hint(anyhow::anyhow!("no CLIP image encoder given"), "pass it with --clip"),
            "logits" | "spatial" if images => {
                anyhow::anyhow!("no extractor with the output `{matrix}` given")
            }
            _ => anyhow::anyhow!("the feature files do not contain `{matrix}`"),
        })
    }

    /// Checks that the reference provides the moments of `matrix`, which the error calls `lacks`.
    fn reference_gives(&self, matrix: &str, rule: &InputRule, lacks: &str) -> anyhow::Result<()> {
        let reference = match self.clip_reference.filter(|_| matrix == "clip") {
            Some(reference) => reference,
            None => self.needed_reference()?,
        };
        let lacking = reference.moments(matrix, self.networks, rule) == Supply::None;
        anyhow::ensure!(!lacking, "`{}` does not contain {lacks}", reference.path().display());
        Ok(())
    }

    /// The statistics that `metric` needs, or why it cannot be computed.
    fn needs(
        &self,
        metric: Metric,
        protocol: &Protocol,
        request: &MetricsRequest,
        rule: &InputRule,
        records: &Records,
    ) -> anyhow::Result<Needs> {
        let count = self.samples.len();
        let rows =
            |manifold: bool| -> anyhow::Result<usize> { Ok(self.needed_reference()?.row_count(manifold).unwrap_or(0)) };
        let moments = |matrix: &str, lacks: &str| -> anyhow::Result<()> {
            self.samples_give(matrix, rule)?;
            self.reference_gives(matrix, rule, lacks)?;
            Ok(frechet::check(count, protocol.ddof)?)
        };
        let both = |request: StatsRequest| Needs { samples: request.clone(), reference: request };
        match metric {
            Metric::Fid => {
                moments("features", "`mu` and `sigma`")?;
                Ok(both(StatsRequest { features: true, ..StatsRequest::default() }))
            }
            Metric::FdInf => {
                moments("features", "`mu` and `sigma`")?;
                fd_infinity::check(count)?;
                let reference = StatsRequest { features: true, ..StatsRequest::default() };
                Ok(Needs { samples: StatsRequest { keep: true, ..StatsRequest::default() }, reference })
            }
            Metric::Sfid => {
                moments("spatial", "`mu_s` and `sigma_s`")?;
                Ok(both(StatsRequest { spatial: true, ..StatsRequest::default() }))
            }
            Metric::ClipFid => {
                moments("clip", "`mu_clip` and `sigma_clip` (or --clip-ref)")?;
                let clip = StatsRequest { clip: true, ..StatsRequest::default() };
                Ok(both(clip))
            }
            Metric::Is => {
                self.samples_give("logits", rule)?;
                let rule = request.score_rule(protocol);
                rule.check(count)?;
                let samples = StatsRequest { scores: vec![rule], ..StatsRequest::default() };
                Ok(Needs { samples, reference: StatsRequest::default() })
            }
            Metric::Kid => {
                let needs = self.rows_needed("features", rule)?;
                request.kid_rule(protocol).check(count, rows(false)?)?;
                Ok(needs)
            }
            Metric::Pr | Metric::Dc => {
                let other = self.has_manifold(rule);
                let own = protocol.manifold_features == ManifoldFeatures::Pool3;
                if metric == Metric::Pr && !other && !own && !self.allows(DeviationKind::Extractor) {
                    let wanted = protocol.manifold_features.describe();
                    let here = records.get(Role::Features.name()).map_or("the extractor", |r| r.name.as_str());
                    return Err(with_hint(
                        anyhow::anyhow!("protocol {} requires features of {wanted}, not of {here}", protocol.name),
                        "pass the network with --pr-extractor, or accept the deviation with --allow-deviation extractor",
                    ));
                }
                let needs = self.rows_needed(if other { "manifold" } else { "features" }, rule)?;
                let own = if metric == Metric::Pr { protocol.manifold } else { protocol.density_coverage };
                request.with_neighbours(own).check(count, rows(other)?)?;
                Ok(needs)
            }
        }
    }

    /// Checks that both sides have classes.
    fn ensure_classes(&self) -> anyhow::Result<()> {
        let lacks = |path: &Path, problem: Option<&str>| match problem {
            Some(problem) => {
                anyhow::anyhow!("--per-class: the labels of `{}` are not classes: {problem}", path.display())
            }
            None => anyhow::anyhow!("--per-class: `{}` has no class labels", path.display()),
        };
        if self.samples.labels().is_none() {
            return Err(lacks(samples_of(self.args), self.samples.label_problem()));
        }
        let reference = self.needed_reference()?;
        if !reference.has_classes() {
            return Err(lacks(reference.path(), reference.label_problem()));
        }
        Ok(())
    }

    /// Deviations from the protocol, and between samples and reference.
    ///
    /// # Errors
    /// If a deviation is not allowed.
    fn deviations(
        &self,
        protocol: &Protocol,
        request: &MetricsRequest,
        rule: &InputRule,
        records: &Records,
        samples: &StatsRequest,
        reference: &StatsRequest,
    ) -> anyhow::Result<Vec<Deviation>> {
        let mut found = Vec::new();
        let main_network_needed =
            request.metrics.iter().any(|m| !matches!(m, Metric::ClipFid | Metric::Pr | Metric::Dc))
                || request.per_class
                || (samples.keep && protocol.manifold_features == ManifoldFeatures::Pool3);
        // If the protocol or the command line has a separate network for precision and recall, that network is compared
        // separately.
        let apart = samples.manifold || protocol.manifold_features != ManifoldFeatures::Pool3;
        let manifold = if samples.manifold { Role::Manifold } else { Role::Features };
        for (role, judged_as, needed) in [
            (Role::Features, Role::Features, main_network_needed),
            (manifold, Role::Manifold, apart && (request.wants(Metric::Pr) || request.class_neighbours)),
            (Role::Clip, Role::Clip, samples.clip),
        ] {
            if let (Some(record), true) = (records.get(role.name()), needed) {
                // The user has chosen the network, so a different network is listed and never refused.
                found.extend(against_protocol(role, judged_as, record, protocol).into_iter().map(|d| {
                    let asked = d.kind == DeviationKind::Extractor;
                    (d, asked)
                }));
            }
        }
        for (role, side, supply) in self.sides(reference, rule) {
            let Some(record) = records.get(role.name()) else {
                found.push((unknown_samples(role, samples_of(self.args)), false));
                continue;
            };
            self.ensure_lengths(record, role, side)?;
            let origin = side.origin(role, supply, self.networks, rule)?;
            let path = side.path().display().to_string();
            found.extend(between(role, record, &origin, &path).into_iter().map(|d| (d, false)));
            if supply == Supply::File
                && let Some(ddof) = side.fixed_ddof().filter(|ddof| *ddof != protocol.ddof && role != Role::Manifold)
            {
                let divisor = |ddof: usize| if ddof == 0 { "N".to_owned() } else { format!("N - {ddof}") };
                let subject = format!("`{path}`");
                let (found_text, expected) = (divisor(ddof), divisor(protocol.ddof));
                let deviation = Deviation { kind: DeviationKind::Ddof, subject, found: found_text, expected };
                found.push((deviation, false));
            }
        }
        found.extend(self.quantiser(protocol).map(|d| (d, false)));
        found.extend(request.deviations(protocol).into_iter().map(|d| (d, true)));
        self.ensure_allowed(found)
    }

    /// The references to compare with, by role, and the source of their features.
    fn sides(&self, request: &StatsRequest, rule: &InputRule) -> Vec<(Role, &OpenReference, Supply)> {
        let mut sides = Vec::new();
        if let Some(reference) = self.reference {
            let features = [
                (request.features, false, "features"),
                (request.keep, true, "features"),
                (request.spatial, false, "spatial"),
            ];
            let mut supplies = BTreeSet::new();
            for (needed, rows, matrix) in features {
                if needed {
                    let supply = if rows {
                        reference.rows(matrix, self.networks, rule)
                    } else {
                        reference.moments(matrix, self.networks, rule)
                    };
                    supplies.insert(supply == Supply::File);
                }
            }
            for in_file in supplies {
                sides.push((Role::Features, reference, if in_file { Supply::File } else { Supply::Computed }));
            }
            if request.manifold {
                sides.push((Role::Manifold, reference, reference.rows("manifold", self.networks, rule)));
            }
        }
        if request.clip
            && let Some(reference) = self.clip_reference.or(self.reference)
        {
            sides.push((Role::Clip, reference, reference.moments("clip", self.networks, rule)));
        }
        sides
    }

    /// Checks that features of the samples and of `reference` have the same length.
    fn ensure_lengths(&self, record: &NetworkRecord, role: Role, reference: &OpenReference) -> anyhow::Result<()> {
        let matrix = role.name();
        if let Some(there) = reference.width(matrix) {
            let (path, what) = (reference.path().display(), role.features());
            anyhow::ensure!(there == record.dims, "`{path}` has {there} {what}, `{}` has {}", record.name, record.dims);
        }
        Ok(())
    }

    /// The deviation if the samples were quantised differently than by the tool of the protocol.
    fn quantiser(&self, protocol: &Protocol) -> Option<Deviation> {
        let found = self.samples.generator_record()?.get("quantiser")?.as_str()?;
        let expected = match protocol.quantiser {
            Quantiser::Round => GraphQuantiser::Edm.name(),
            Quantiser::Truncate => GraphQuantiser::OpenAi.name(),
            Quantiser::Bytes => return None,
        };
        (found != expected).then(|| Deviation {
            kind: DeviationKind::Quantiser,
            subject: "samples".to_owned(),
            found: found.to_owned(),
            expected: format!("{expected} of {}", protocol.title),
        })
    }

    /// The deviations to list. Each one in `found` is paired with whether an option requested it.
    ///
    /// # Errors
    /// If a deviation was neither requested nor allowed, and its kind is refused by default.
    fn ensure_allowed(&self, found: Vec<(Deviation, bool)>) -> anyhow::Result<Vec<Deviation>> {
        let (mut listed, mut refused): (Vec<Deviation>, Vec<Deviation>) = (Vec::new(), Vec::new());
        for (deviation, asked) in found {
            let free = asked || !DeviationKind::REFUSED.contains(&deviation.kind) || self.allows(deviation.kind);
            let list = if free { &mut listed } else { &mut refused };
            if !list.contains(&deviation) {
                list.push(deviation);
            }
        }
        if refused.is_empty() {
            return Ok(listed);
        }
        let kinds: BTreeSet<&str> = refused.iter().map(|d| d.kind.name()).collect();
        let text: Vec<String> = refused.iter().map(ToString::to_string).collect();
        Err(with_hint(
            anyhow::anyhow!("the result would deviate from the protocol: {}", text.join("; ")),
            format!(
                "remove the difference, or accept it and list it in the result with --allow-deviation {}",
                kinds.into_iter().collect::<Vec<_>>().join(",")
            ),
        ))
    }
}

/// The deviation of features that do not record their network.
fn unknown_samples(role: Role, path: &Path) -> Deviation {
    Deviation {
        kind: DeviationKind::Provenance,
        subject: format!("`{}` ({})", path.display(), role.features()),
        found: "a file that does not say which network made it".to_owned(),
        expected: "a feature file of d2o".to_owned(),
    }
}
