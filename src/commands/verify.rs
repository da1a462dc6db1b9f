//! `d2o verify`: the same inputs on several runtimes, or on two graphs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use d2o_converters::checkpoint::Network;
use d2o_converters::config::Quantiser;
use d2o_converters::weights::SplitMix64;
use d2o_evaluations::frechet::{Gaussian, frechet_distance};
use d2o_evaluations::gaussian::Accumulator;
use d2o_onnx::graph::{Dim, ElementType};
use d2o_onnx::read::ModelInfo;
use d2o_onnx::session::{Session, Tensor};
use d2o_onnx::taps::{Node, Taps};
use d2o_refs::npz::NpzWriter;
use d2o_refs::stats::ReferenceStats;
use fs_err as fs;
use ndarray::{Array4, ArrayD, ArrayView2, Ix4, IxDyn};
use serde::Serialize;

use super::ExitStatus;
use crate::cli::{Accelerator, Global, Runtime, Verify};
use crate::engine;
use crate::printer::{Printer, table};
use crate::sampling::plan::quantiser_of;
use crate::sampling::rng::TorchCpu;

/// Bins of the histogram of differences in units in the last place.
const ULP_BINS: usize = 24;
/// Nodes whose outputs are compared in one run.
const GROUP: usize = 64;
/// Nodes listed by `--profile`.
const SLOWEST: usize = 20;

/// How far one output of one side lies from the reference's.
#[derive(Debug, Clone, Serialize)]
pub struct OutputDifference {
    /// The runtime, and the graph if it is another one.
    pub runtime: String,
    /// The output.
    pub name: String,
    /// Largest absolute difference.
    pub max_abs: f64,
    /// That over the largest absolute value of the reference.
    pub max_rel: f64,
    /// Signal-to-noise ratio, dB; absent if nothing differs.
    pub snr_db: Option<f64>,
    /// Values by their difference in units in the last place: 0, 1, 2 to 3, 4 to 7, …; the last bin takes the rest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ulps: Vec<u64>,
    /// Share of 8-bit pixels that differ, if the output is an image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pixels_changed: Option<f64>,
    /// Values that are not finite, in either.
    pub not_finite: usize,
    /// Whether it is within the tolerance.
    pub agrees: bool,
}

/// What differences do to a metric.
#[derive(Debug, Clone, Serialize)]
pub struct MetricChange {
    /// The runtime, and the graph if it is another one.
    pub runtime: String,
    /// The feature network.
    pub extractor: String,
    /// Fréchet distance of the reference runtime's images to `--ref`, if it is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference_distance: Option<f64>,
    /// Fréchet distance of this side's images to `--ref`, or to the reference runtime's images.
    pub distance: f64,
}

/// The first node in the graph's order whose outputs differ.
#[derive(Debug, Clone, Serialize)]
pub struct Parting {
    /// The runtime, and the graph if it is another one.
    pub runtime: String,
    /// The node.
    pub node: String,
    /// The layer it belongs to.
    pub scope: String,
    /// ONNX's name of the operation.
    pub op: String,
    /// Its weights.
    pub weights: Vec<String>,
    /// Largest absolute difference of its output; absent if one side cannot compute it or gives another shape.
    pub max_abs: Option<f64>,
    /// That over the largest absolute value of the reference.
    pub max_rel: Option<f64>,
    /// Nodes compared before it, which agree.
    pub agreeing: usize,
    /// Where its tensors were written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dump: Option<PathBuf>,
}

/// Nodes of an operation that a provider computes, before fusions inside the provider.
#[derive(Debug, Clone, Serialize)]
pub struct NodeCount {
    /// ONNX Runtime's name of the provider.
    pub provider: String,
    /// The operation.
    pub op: String,
    /// Number of nodes.
    pub count: usize,
}

/// Time of a node on ONNX Runtime.
#[derive(Debug, Clone, Serialize)]
pub struct NodeTime {
    /// The node, as ONNX Runtime calls it after its own rewriting.
    pub node: String,
    /// The operation.
    pub op: String,
    /// Milliseconds over all batches.
    pub milliseconds: f64,
    /// Share of the time of all nodes.
    pub share: f64,
}

/// A line of the precision study.
#[derive(Debug, Clone, Serialize)]
pub struct Precision {
    /// fp32, tf32, fp16 or bf16.
    pub precision: String,
    /// Why it was not run, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// Where it ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// Inputs a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed: Option<f64>,
}

/// The verdict on a model.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Comparison {
    /// The model file.
    pub model: String,
    /// The runtime others are compared with.
    pub reference: String,
    /// Number of inputs.
    pub samples: usize,
    /// Largest difference allowed, relative to the largest reference value.
    pub tolerance: f64,
    /// Every output of every other side.
    pub outputs: Vec<OutputDifference>,
    /// What the differences do to a metric.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<MetricChange>,
    /// Where sides part, as far as they do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parting: Vec<Parting>,
    /// How many nodes of each operation which provider of ONNX Runtime computes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeCount>,
    /// The slowest nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub profile: Vec<NodeTime>,
    /// The precision study.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub precisions: Vec<Precision>,
    /// Seconds each side took for all inputs, the first run (which plans) left out where there are several.
    pub seconds: BTreeMap<String, f64>,
    /// Whether all agree.
    pub agree: bool,
}

/// One of the things compared.
struct Side {
    name: String,
    session: Box<dyn Session>,
    /// Inputs and seconds of the runs after the first.
    timed: (usize, f64),
    pixels: Vec<Array4<u8>>,
}

impl Side {
    /// Called after its runtime.
    fn new(session: Box<dyn Session>) -> Self {
        Self::named(session.runtime().to_owned(), session)
    }

    fn named(name: impl Into<String>, session: Box<dyn Session>) -> Self {
        Self { name: name.into(), session, timed: (0, 0.0), pixels: Vec::new() }
    }

    fn run(&mut self, given: &[(&str, Tensor)], count: usize, first: bool) -> anyhow::Result<Vec<(String, Tensor)>> {
        let clock = Instant::now();
        let outputs = self.session.run(given).with_context(|| self.name.clone())?;
        if !first {
            self.timed.0 += count;
            self.timed.1 += clock.elapsed().as_secs_f64();
        }
        Ok(outputs)
    }
}

/// Compares runtimes.
///
/// # Errors
/// Runtimes that are missing or fail.
pub fn run(args: &Verify, global: &Global, printer: Printer) -> anyhow::Result<ExitStatus> {
    let (samples, batch) = (args.samples as usize, args.batch as usize);
    let runtimes = match (args.runtimes.as_slice(), &args.against) {
        ([], None) => vec![Runtime::OrtCpu, Runtime::Tract],
        ([], Some(_)) => vec![Runtime::OrtCpu],
        (given, _) => given.to_vec(),
    };
    let open = |model: &Path, runtime: Runtime| match runtime {
        Runtime::Libtorch => open_libtorch(model, args.checkpoint.as_deref()),
        _ => {
            let session = engine::open_on(model, runtime, &args.accelerator, global)?;
            engine::warn_of_cpu_nodes(session.as_ref(), model, printer)?;
            Ok(session)
        }
    };
    anyhow::ensure!(args.accelerator.device.len() <= 1, "--device: a graph is verified on one device");
    let Some(&first) = runtimes.first() else { anyhow::bail!("--runtimes: none given") };
    let mut precisions = Vec::new();
    let mut sides = Vec::new();
    if args.precisions {
        (sides, precisions) = precision_sides(args, global)?;
    } else {
        sides.push(Side::new(open(&args.model, first)?));
        let others = if args.against.is_some() { &runtimes[..] } else { &runtimes[1..] };
        anyhow::ensure!(!others.is_empty(), "--runtimes: at least two are needed to compare");
        for runtime in others {
            let session = open(args.against.as_deref().unwrap_or(&args.model), *runtime)?;
            let name = match &args.against {
                Some(path) => format!("{} `{}`", session.runtime(), path.display()),
                None => session.runtime().to_owned(),
            };
            sides.push(Side::named(name, session));
        }
    }
    let keep = args.extractor.is_some();
    let mut result = compare_sides(&args.model, &mut sides, [samples, batch], args.tolerance, keep)?;
    if let Some(extractor) = &args.extractor {
        result.metrics = metric_changes(&sides, extractor, args.reference.as_deref(), batch, global)?;
    }
    for line in &mut precisions {
        let side = sides.iter().find(|s| s.name == line.precision);
        line.runtime = side.map(|s| s.session.runtime().to_owned());
        line.speed = side.map(|s| s.timed).filter(|(n, _)| *n > 0).map(|(n, seconds)| n as f64 / seconds);
    }
    result.precisions = precisions;
    if args.bisect {
        let other_model = args.against.as_ref().unwrap_or(&args.model);
        let others = if args.against.is_some() { &runtimes[..] } else { &runtimes[1..] };
        for (runtime, side) in others.iter().zip(&sides[1..]) {
            let pair = Pair {
                a: (&args.model, first),
                b: (other_model, *runtime),
                tolerance: args.tolerance,
                accelerator: &args.accelerator,
                global,
            };
            let mut found = pair.bisect(args.dump.as_deref())?;
            if let Some(found) = &mut found {
                found.runtime.clone_from(&side.name);
            }
            result.parting.extend(found);
        }
    }
    if args.profile {
        let of_ort = |r: &&Runtime| !matches!(r, Runtime::Tract | Runtime::Libtorch);
        let runtime = runtimes.iter().rev().find(of_ort).copied().unwrap_or(Runtime::OrtCpu);
        (result.nodes, result.profile) = profile(args, runtime, [samples, batch], global)?;
    }
    let to_stdout = args.json.as_deref() == Some(Path::new("-"));
    if let Some(path) = &args.json {
        printer.json(path, &result)?;
    }
    if !to_stdout {
        show(&result, printer)?;
    }
    // The precision study asks how much they differ, not whether.
    Ok(if result.agree || args.precisions { ExitStatus::Done } else { ExitStatus::No })
}

fn show(result: &Comparison, printer: Printer) -> anyhow::Result<()> {
    let rows: Vec<Vec<String>> = result.outputs.iter().map(row).collect();
    let header = ["output", "runtime", "max abs", "max rel", "SNR dB", "≤ 1 ulp", "u8 changed", "verdict"];
    printer.data(&table(&header, &rows))?;
    for change in &result.metrics {
        let from = change.reference_distance.map_or_else(String::new, |d| format!(" instead of {d:.6e}"));
        let (runtime, distance, extractor) = (&change.runtime, change.distance, &change.extractor);
        printer.data(&format!("{runtime}: FD ({extractor}) {distance:.6e}{from}"))?;
    }
    for parting in &result.parting {
        let how = match (parting.max_abs, parting.max_rel) {
            (Some(abs), Some(rel)) => format!("max abs {abs:.2e}, max rel {rel:.2e}"),
            _ => "not computed, or of another shape".to_owned(),
        };
        let Parting { runtime, node, scope, op, agreeing, .. } = parting;
        printer.data(&format!(
            "{runtime} parts at `{scope}`: node `{node}` ({op}), {how}; {agreeing} nodes before it agree"
        ))?;
        if !parting.weights.is_empty() {
            printer.data(&format!("  its weights: {}", parting.weights.join(", ")))?;
        }
    }
    if !result.nodes.is_empty() {
        let row = |n: &NodeCount| vec![n.provider.clone(), n.op.clone(), n.count.to_string()];
        let rows: Vec<Vec<String>> = result.nodes.iter().map(row).collect();
        printer.data(&table(&["provider", "op", "nodes"], &rows))?;
    }
    if !result.profile.is_empty() {
        let row = |n: &NodeTime| {
            vec![n.node.clone(), n.op.clone(), format!("{:.2}", n.milliseconds), format!("{:.1} %", 100.0 * n.share)]
        };
        let rows: Vec<Vec<String>> = result.profile.iter().map(row).collect();
        printer.data(&table(&["node", "op", "ms", "share"], &rows))?;
    }
    if !result.precisions.is_empty() {
        let row = |p: &Precision| {
            let output = result.outputs.iter().find(|o| o.runtime == p.precision);
            let metric = result.metrics.iter().find(|m| m.runtime == p.precision);
            let or_dash = |t: Option<String>| t.unwrap_or_else(|| "–".to_owned());
            let changed = output.and_then(|o| o.pixels_changed).map(|v| format!("{:.4} %", 100.0 * v));
            vec![
                p.precision.clone(),
                p.skipped.as_ref().map_or_else(|| or_dash(p.runtime.clone()), |why| format!("skipped: {why}")),
                or_dash(p.speed.map(|v| format!("{v:.2}"))),
                or_dash(output.map(|o| format!("{:.2e}", o.max_rel))),
                or_dash(changed),
                or_dash(metric.map(|m| format!("{:.6e}", m.distance))),
            ]
        };
        let rows: Vec<Vec<String>> = result.precisions.iter().map(row).collect();
        return printer.data(&table(&["precision", "runtime", "inputs/s", "max rel", "u8 changed", "FD"], &rows));
    }
    let verdict = if result.agree { "agree" } else { "DIFFER" };
    let (samples, reference, tolerance) = (result.samples, &result.reference, result.tolerance);
    printer.data(&format!("{samples} inputs, reference {reference}, tolerance {tolerance:.1e}: runtimes {verdict}"))
}

fn row(d: &OutputDifference) -> Vec<String> {
    let total: u64 = d.ulps.iter().sum();
    let close: u64 = d.ulps.iter().take(2).sum();
    vec![
        d.name.clone(),
        d.runtime.clone(),
        format!("{:.2e}", d.max_abs),
        format!("{:.2e}", d.max_rel),
        d.snr_db.map_or_else(|| "∞".to_owned(), |v| format!("{v:.1}")),
        if total == 0 { "–".to_owned() } else { format!("{:.2} %", 100.0 * close as f64 / total as f64) },
        d.pixels_changed.map_or_else(|| "–".to_owned(), |v| format!("{:.4} %", 100.0 * v)),
        if d.agrees { "agrees" } else { "DIFFERS" }.to_owned(),
    ]
}

#[cfg(feature = "train")]
fn open_libtorch(model: &Path, checkpoint: Option<&Path>) -> anyhow::Result<Box<dyn Session>> {
    let checkpoint = checkpoint.context("libtorch runs a checkpoint, not a graph: name it with --checkpoint")?;
    Ok(Box::new(crate::train::session::LibTorchSession::open(model, checkpoint)?))
}

#[cfg(not(feature = "train"))]
fn open_libtorch(_model: &Path, _checkpoint: Option<&Path>) -> anyhow::Result<Box<dyn Session>> {
    anyhow::bail!("this d2o was built without libtorch (feature `train`)")
}

/// What the machine has of the four precisions; fp32 comes first.
fn precision_sides(args: &Verify, global: &Global) -> anyhow::Result<(Vec<Side>, Vec<Precision>)> {
    let line = |precision: &str, skipped: Option<&str>| Precision {
        precision: precision.to_owned(),
        skipped: skipped.map(str::to_owned),
        runtime: None,
        speed: None,
    };
    let accelerator = Accelerator { tf32: false, ..args.accelerator.clone() };
    let tf32 = engine::open_tf32(&args.model, &accelerator, global)?;
    let runtime = if tf32.is_some() { Runtime::OrtCuda } else { Runtime::OrtCpu };
    let mut sides = vec![Side::named("fp32", engine::open_on(&args.model, runtime, &accelerator, global)?)];
    let mut lines = vec![line("fp32", None), line("tf32", tf32.is_none().then_some("no CUDA device"))];
    sides.extend(tf32.map(|s| Side::named("tf32", s)));
    lines.push(line("fp16", args.fp16.is_none().then_some("no graph in fp16 (--fp16)")));
    if let Some(path) = &args.fp16 {
        sides.push(Side::named("fp16", engine::open_on(path, runtime, &accelerator, global)?));
    }
    let why = if runtime == Runtime::OrtCuda { "no graph in bf16" } else { "no CUDA device" };
    lines.push(line("bf16", Some(why)));
    Ok((sides, lines))
}

/// Runs the graph at `model` on ONNX Runtime and tract, and `network`, which it was made from, on libtorch where this d2o has it and it is
/// a denoiser; compares with the first.
///
/// # Errors
/// Runtimes that are missing or fail.
pub fn check(
    model: &Path,
    network: &Network,
    samples: usize,
    tolerance: f64,
    global: &Global,
) -> anyhow::Result<Comparison> {
    let mut sides = Vec::new();
    for runtime in [Runtime::OrtCpu, Runtime::Tract] {
        sides.push(Side::new(engine::open_on(model, runtime, &Accelerator::default(), global)?));
    }
    #[cfg(feature = "train")]
    if network.denoiser_config().is_ok() {
        let session = crate::train::session::LibTorchSession::of(model, network)?;
        sides.push(Side::new(Box::new(session)));
    }
    #[cfg(not(feature = "train"))]
    let _ = network;
    compare_sides(model, &mut sides, [samples, samples], tolerance, false)
}

/// Runs the graph at `model` and one that should compute the same, `reference`, on ONNX Runtime, or on tract if there is none.
///
/// # Errors
/// Graphs that cannot be run.
pub fn against(reference: &Path, model: &Path, samples: usize, global: &Global) -> anyhow::Result<Comparison> {
    let on = |path: &Path, runtime| engine::open_on(path, runtime, &Accelerator::default(), global);
    let open = |path: &Path| on(path, Runtime::OrtCpu).or_else(|_| on(path, Runtime::Tract));
    let mut sides = vec![Side::named("reference", open(reference)?), Side::named("model", open(model)?)];
    compare_sides(model, &mut sides, [samples, samples], 1.0, false)
}

/// Compares every side with the first on `[samples, batch]` inputs; with `keep`, each keeps its 8-bit images.
fn compare_sides(
    model: &Path,
    sides: &mut [Side],
    [samples, batch]: [usize; 2],
    tolerance: f64,
    keep: bool,
) -> anyhow::Result<Comparison> {
    let Some((first, others)) = sides.split_first_mut() else { anyhow::bail!("no runtime to verify on") };
    let info = first.session.model().clone();
    let quantiser = quantiser_of(&info);
    let mut sums: Vec<BTreeMap<String, Sum>> = others.iter().map(|_| BTreeMap::new()).collect();
    let mut at = 0;
    while at < samples {
        let count = batch.min(samples - at);
        let inputs = inputs(&info, at, count)?;
        let given: Vec<(&str, Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t.clone())).collect();
        let expected = first.run(&given, count, at == 0)?;
        if keep {
            first.pixels.push(pixels(&expected, quantiser)?);
        }
        for (side, sums) in others.iter_mut().zip(&mut sums) {
            let found = side.run(&given, count, at == 0)?;
            for (name, e) in &expected {
                if let Some((_, f)) = found.iter().find(|(n, _)| n == name) {
                    sums.entry(name.clone()).or_default().add(name, quantiser, e, f)?;
                }
            }
            if keep {
                side.pixels.push(pixels(&found, quantiser)?);
            }
        }
        at += count;
    }
    let mut outputs = Vec::new();
    for (side, sums) in others.iter().zip(&sums) {
        anyhow::ensure!(!sums.is_empty(), "{}: no output has a name the reference knows", side.name);
        for output in &info.outputs {
            outputs.extend(sums.get(&output.name).map(|s| s.verdict(&side.name, &output.name, tolerance)));
        }
    }
    let agree = outputs.iter().all(|o| o.agrees);
    let seconds = sides.iter().map(|s| (s.name.clone(), s.timed.1)).collect();
    let (model, reference) = (model.display().to_string(), sides[0].name.clone());
    Ok(Comparison { model, reference, samples, tolerance, outputs, seconds, agree, ..Comparison::default() })
}

/// The 8-bit images among `outputs`.
fn pixels(outputs: &[(String, Tensor)], quantiser: Quantiser) -> anyhow::Result<Array4<u8>> {
    let image = outputs.iter().find(|(n, _)| is_image(n)).and_then(|(_, t)| t.as_f32());
    let image = image.context("--extractor: the graph gives no images")?.into_dimensionality::<Ix4>()?;
    let bytes = image.mapv(|v| quantiser.apply(v.into())).permuted_axes([0, 2, 3, 1]);
    Ok(bytes.as_standard_layout().into_owned())
}

fn is_image(output: &str) -> bool {
    output == "images" || output == "denoised"
}

/// Fréchet distances of every side's images after the first.
fn metric_changes(
    sides: &[Side],
    extractor: &Path,
    reference: Option<&Path>,
    batch: usize,
    global: &Global,
) -> anyhow::Result<Vec<MetricChange>> {
    let mut session = engine::open_on(extractor, Runtime::OrtCpu, &Accelerator::default(), global)?;
    let described = crate::pipeline::network::describe(session.model(), extractor)?;
    let mut gaussian = |side: &Side| -> anyhow::Result<Gaussian> {
        let mut sums = Accumulator::new(described.dims);
        for images in &side.pixels {
            for chunk in images.axis_chunks_iter(ndarray::Axis(0), batch) {
                let outputs = session.run(&[("images_u8", Tensor::U8(chunk.to_owned().into_dyn()))])?;
                let named = |n: &str| outputs.iter().find(|(name, _)| name == n).and_then(|(_, t)| t.as_f32());
                let rows = named("pool3").or_else(|| named("features")).context("the network gives no features")?;
                let rows: ArrayView2<'_, f32> = rows.into_dimensionality()?;
                sums.push(rows)?;
            }
        }
        Ok(sums.finish(1)?)
    };
    let Some((first, others)) = sides.split_first() else { return Ok(Vec::new()) };
    let base = gaussian(first)?;
    let target = match reference {
        Some(path) => {
            let stats = ReferenceStats::read(path)?;
            Some(Gaussian { mu: stats.mu, sigma: stats.sigma })
        }
        None => None,
    };
    let reference_distance = target.as_ref().map(|t| frechet_distance(&base, t)).transpose()?;
    others
        .iter()
        .map(|side| {
            let distance = frechet_distance(&gaussian(side)?, target.as_ref().unwrap_or(&base))?;
            let (runtime, extractor) = (side.name.clone(), described.name.clone());
            Ok(MetricChange { runtime, extractor, reference_distance, distance })
        })
        .collect()
}

/// Two sides of a bisection.
struct Pair<'a> {
    a: (&'a Path, Runtime),
    b: (&'a Path, Runtime),
    tolerance: f64,
    accelerator: &'a Accelerator,
    global: &'a Global,
}

/// Values of edges on the two sides, in the order asked; `None` if a side cannot compute them.
type Both = Option<Vec<[Tensor; 2]>>;

impl Pair<'_> {
    /// The first node of the reference graph whose output parts by more than the tolerance.
    fn bisect(&self, dump: Option<&Path>) -> anyhow::Result<Option<Parting>> {
        const INPUTS: usize = 2;
        let libtorch = self.a.1 == Runtime::Libtorch || self.b.1 == Runtime::Libtorch;
        anyhow::ensure!(!libtorch, "--bisect: libtorch runs no graph");
        let (a, b) = (Taps::open(self.a.0)?, Taps::open(self.b.0)?);
        let info = ModelInfo::open(self.a.0)?;
        let inputs = inputs(&info, 0, INPUTS)?;
        let shared = |n: &&Node| {
            let numbers = matches!(n.element, ElementType::F32 | ElementType::U8);
            numbers && b.nodes().iter().any(|m| m.output == n.output && m.element == n.element)
        };
        let nodes: Vec<&Node> = a.nodes().iter().filter(shared).collect();
        anyhow::ensure!(!nodes.is_empty(), "--bisect: the graphs have no edge in common");
        let mut agreeing = 0;
        // Groups yet to compare, the next one last; one that fails is split.
        let mut groups: Vec<&[&Node]> = nodes.chunks(GROUP).rev().collect();
        while let Some(group) = groups.pop() {
            let edges: Vec<&str> = group.iter().map(|n| n.output.as_str()).collect();
            let values = self.values([&a, &b], &edges, &inputs)?;
            let found = match values {
                None if group.len() > 1 => {
                    let (first, second) = group.split_at(group.len() / 2);
                    groups.extend([second, first]);
                    continue;
                }
                None => Some((0, None)),
                Some(values) => values.iter().enumerate().find_map(|(i, [e, f])| {
                    if e.dims() != f.dims() {
                        return Some((i, None));
                    }
                    let mut sum = Sum::default();
                    sum.add(edges[i], Quantiser::Edm, e, f).ok()?;
                    let verdict = sum.verdict("", edges[i], self.tolerance);
                    (!verdict.agrees).then_some((i, Some(verdict)))
                }),
            };
            let Some((at, verdict)) = found else {
                agreeing += group.len();
                continue;
            };
            let node = group[at];
            let dumped = dump.map(|path| self.dump([&a, &b], node, &inputs, path)).transpose()?;
            let scope = node.name.rsplit_once('/').map_or("", |(s, _)| s).replace('/', ".");
            return Ok(Some(Parting {
                runtime: String::new(),
                node: node.name.clone(),
                scope,
                op: node.op.clone(),
                weights: node.inputs.iter().filter(|i| a.is_weight(i)).cloned().collect(),
                max_abs: verdict.as_ref().map(|v| v.max_abs),
                max_rel: verdict.as_ref().map(|v| v.max_rel),
                agreeing: agreeing + at,
                dump: dumped.and_then(|()| dump.map(Path::to_owned)),
            }));
        }
        Ok(None)
    }

    fn values(&self, taps: [&Taps; 2], edges: &[&str], inputs: &[(String, Tensor)]) -> anyhow::Result<Both> {
        let folder = crate::scratch::Scratch::new()?;
        let mut sides = Vec::new();
        for (taps, (_, runtime), name) in [(taps[0], self.a, "a.onnx"), (taps[1], self.b, "b.onnx")] {
            let path = folder.path().join(name);
            taps.write(edges, &path)?;
            let outputs = engine::open_on(&path, runtime, self.accelerator, self.global).and_then(|mut session| {
                let given: Vec<(&str, Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t.clone())).collect();
                Ok(session.run(&given)?)
            });
            match outputs {
                Ok(outputs) => sides.push(outputs),
                Err(_) => return Ok(None),
            }
        }
        let (Some(b), Some(a)) = (sides.pop(), sides.pop()) else { return Ok(None) };
        Ok(Some(a.into_iter().zip(b).map(|((_, e), (_, f))| [e, f]).collect()))
    }

    /// Writes what `node` reads in the reference and what it gives on both sides.
    fn dump(&self, taps: [&Taps; 2], node: &Node, inputs: &[(String, Tensor)], path: &Path) -> anyhow::Result<()> {
        let mut npz = NpzWriter::create(path)?;
        let mut write = |name: &str, tensor: &Tensor| -> anyhow::Result<()> {
            if let Some(values) = tensor.as_f32() {
                npz.f32(name, values)?;
            }
            Ok(())
        };
        if let Some(values) = self.values(taps, &[node.output.as_str()], inputs)? {
            write("expected", &values[0][0])?;
            write("found", &values[0][1])?;
        }
        for (i, edge) in node.inputs.iter().enumerate().filter(|(_, e)| !taps[0].is_weight(e)) {
            if let Some((_, tensor)) = inputs.iter().find(|(n, _)| n == edge) {
                write(&format!("input{i}"), tensor)?;
            } else if let Some(values) = self.values(taps, &[edge.as_str()], inputs)? {
                write(&format!("input{i}"), &values[0][0])?;
            }
        }
        Ok(npz.finish()?)
    }
}

/// Nodes of the model by provider and operation, and its slowest nodes, on `runtime`.
fn profile(
    args: &Verify,
    runtime: Runtime,
    [samples, batch]: [usize; 2],
    global: &Global,
) -> anyhow::Result<(Vec<NodeCount>, Vec<NodeTime>)> {
    let folder = crate::scratch::Scratch::new()?;
    let prefix = folder.path().join("profile");
    let mut session = engine::open_profiled(&args.model, runtime, &prefix, &args.accelerator, global)?;
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    for node in session.nodes()? {
        *counts.entry((node.provider, node.op)).or_default() += 1;
    }
    let counts = counts.into_iter().map(|((provider, op), count)| NodeCount { provider, op, count }).collect();
    let info = session.model().clone();
    for at in (0..samples).step_by(batch) {
        let inputs = inputs(&info, at, batch.min(samples - at))?;
        let given: Vec<(&str, Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t.clone())).collect();
        session.run(&given)?;
    }
    let file = session.end_profile()?;
    let events: Vec<serde_json::Value> = serde_json::from_slice(&fs::read(&file)?)
        .with_context(|| format!("ONNX Runtime's profile `{}`", file.display()))?;
    let mut times: BTreeMap<(String, String), f64> = BTreeMap::new();
    for event in &events {
        let name = event["name"].as_str().and_then(|n| n.strip_suffix("_kernel_time"));
        if let (Some(name), Some("Node"), Some(us)) = (name, event["cat"].as_str(), event["dur"].as_f64()) {
            let op = event["args"]["op_name"].as_str().unwrap_or_default();
            *times.entry((name.to_owned(), op.to_owned())).or_default() += us / 1e3;
        }
    }
    let total: f64 = times.values().sum();
    let mut nodes: Vec<NodeTime> = times
        .into_iter()
        .map(|((node, op), milliseconds)| NodeTime { node, op, milliseconds, share: milliseconds / total })
        .collect();
    nodes.sort_by(|a, b| b.milliseconds.total_cmp(&a.milliseconds));
    nodes.truncate(SLOWEST);
    Ok((counts, nodes))
}

/// Inputs `start..start + count`, each drawn from its own seed: unit normal latents, noise levels spread over EDM's range,
/// one-hot labels, pixels.
fn inputs(info: &ModelInfo, start: usize, count: usize) -> anyhow::Result<Vec<(String, Tensor)>> {
    let sigma = |i: usize| {
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a spread of test values")]
        let t = (i % 8) as f32 / 7.0;
        (0.002_f32.ln() * (1.0 - t) + 80.0_f32.ln() * t).exp()
    };
    let mut all = Vec::new();
    for input in &info.inputs {
        let one: usize = input.dims.iter().skip(1).map(|d| if let Dim::Known(n) = d { *n } else { 1 }).product();
        let mut dims: Vec<usize> = input.dims.iter().map(|d| if let Dim::Known(n) = d { *n } else { count }).collect();
        if let Some(first) = dims.first_mut() {
            *first = count;
        }
        let shape = IxDyn(&dims);
        let tensor = match (input.element, input.name.as_str()) {
            (ElementType::F32, "sigma") => {
                Tensor::F32(ArrayD::from_shape_vec(shape, (start..start + count).map(sigma).collect())?)
            }
            (ElementType::F32, "class_labels") => {
                Tensor::F32(ArrayD::from_shape_fn(shape, |i| if i[1] == (start + i[0]) % one { 1.0 } else { 0.0 }))
            }
            (ElementType::F32, "images_f32") => {
                let mut values = Vec::with_capacity(one * count);
                for i in start..start + count {
                    let mut rng = SplitMix64::for_path(i as u64, &input.name);
                    #[allow(clippy::cast_possible_truncation, reason = "pixel values")]
                    values.extend((0..one).map(|_| (255.0 * rng.uniform()) as f32));
                }
                Tensor::F32(ArrayD::from_shape_vec(shape, values)?)
            }
            (ElementType::F32, name) => {
                let mut values = Vec::with_capacity(one * count);
                for i in start..start + count {
                    let scale = if name == "x" { sigma(i).max(1.0) } else { 1.0 };
                    values.extend(TorchCpu::new(i as u64).randn(one).iter().map(|v| v * scale));
                }
                Tensor::F32(ArrayD::from_shape_vec(shape, values)?)
            }
            (ElementType::U8, _) => {
                let mut values = Vec::with_capacity(one * count);
                for i in start..start + count {
                    let mut rng = SplitMix64::for_path(i as u64, &input.name);
                    values.extend((0..one).map(|_| rng.next_u64().to_le_bytes()[7]));
                }
                Tensor::U8(ArrayD::from_shape_vec(shape, values)?)
            }
            (other, name) => anyhow::bail!("input `{name}`: no test values for {other}"),
        };
        all.push((input.name.clone(), tensor));
    }
    Ok(all)
}

#[derive(Debug, Clone, Default)]
struct Sum {
    max_abs: f64,
    peak: f64,
    signal: f64,
    noise: f64,
    pixels: Option<(u64, u64)>,
    ulps: Vec<u64>,
    not_finite: usize,
}

impl Sum {
    fn add(&mut self, name: &str, quantiser: Quantiser, expected: &Tensor, found: &Tensor) -> anyhow::Result<()> {
        anyhow::ensure!(
            expected.dims() == found.dims(),
            "output `{name}`: {:?} on one runtime, {:?} on the other",
            expected.dims(),
            found.dims()
        );
        match (expected, found) {
            (Tensor::F32(e), Tensor::F32(f)) => {
                let image = is_image(name);
                for (e, f) in e.iter().zip(f) {
                    self.value(f64::from(*e), f64::from(*f));
                    self.ulp(*e, *f);
                    if image {
                        let (changed, total) = self.pixels.get_or_insert((0, 0));
                        *changed += u64::from(quantiser.apply((*e).into()) != quantiser.apply((*f).into()));
                        *total += 1;
                    }
                }
            }
            (Tensor::U8(e), Tensor::U8(f)) => {
                for (e, f) in e.iter().zip(f) {
                    self.value(f64::from(*e), f64::from(*f));
                    let (changed, total) = self.pixels.get_or_insert((0, 0));
                    *changed += u64::from(e != f);
                    *total += 1;
                }
            }
            _ => anyhow::bail!(
                "output `{name}`: {} on one runtime, {} on the other",
                expected.element(),
                found.element()
            ),
        }
        Ok(())
    }

    fn ulp(&mut self, e: f32, f: f32) {
        // Floats in order as integers in order.
        let place = |v: f32| {
            let bits = v.to_bits().cast_signed();
            i64::from(if bits < 0 { i32::MIN.wrapping_sub(bits) } else { bits })
        };
        if e.is_finite() && f.is_finite() {
            let apart = (place(e) - place(f)).unsigned_abs();
            let bin = (u64::BITS - apart.leading_zeros()) as usize;
            self.ulps.resize(ULP_BINS, 0);
            self.ulps[bin.min(ULP_BINS - 1)] += 1;
        }
    }

    fn value(&mut self, e: f64, f: f64) {
        if !e.is_finite() || !f.is_finite() {
            self.not_finite += 1;
            return;
        }
        self.max_abs = self.max_abs.max((e - f).abs());
        self.peak = self.peak.max(e.abs());
        self.signal += e * e;
        self.noise += (e - f) * (e - f);
    }

    fn verdict(&self, runtime: &str, name: &str, tolerance: f64) -> OutputDifference {
        #[allow(clippy::cast_precision_loss, reason = "pixel counts")]
        let pixels_changed = self.pixels.map(|(changed, total)| changed as f64 / total as f64);
        let max_rel = if self.max_abs == 0.0 { 0.0 } else { self.max_abs / self.peak };
        // A pixel on the edge between two levels may fall to either side: one step on a few is agreement.
        let one_step = name == "images_u8" && self.max_abs <= 1.0 && pixels_changed.is_some_and(|p| p <= 1e-3);
        OutputDifference {
            runtime: runtime.to_owned(),
            name: name.to_owned(),
            max_abs: self.max_abs,
            max_rel,
            snr_db: (self.noise > 0.0).then(|| 10.0 * (self.signal / self.noise).log10()),
            ulps: self.ulps.clone(),
            pixels_changed,
            not_finite: self.not_finite,
            agrees: self.not_finite == 0 && (max_rel <= tolerance || one_step),
        }
    }
}
