//! `d2o explain`: why two results differ, and by how much each difference changes the metrics.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use d2o_evaluations::result::{DeviationKind, Evaluation, digits};
use d2o_refs::batch::container_sha256;
use serde::Serialize;
use serde_json::Value;

use super::{ExitStatus, Results, ensure_new_result, evaluate, give_result, parsed};
use crate::cli::{Command, Evaluate, Explain, Global, Metric};
use crate::pipeline::metrics::Metric as MetricKind;
use crate::printer::{Printer, table};

/// A setting in which two results differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Difference {
    /// Input that the setting belongs to: `samples`, `reference`, `extractor`, `protocol`, `runtime`.
    factor: Factor,
    /// Name of the setting.
    setting: String,
    a: String,
    b: String,
}

/// Inputs of an evaluation. All but the runtime can be exchanged one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Factor {
    Samples,
    Reference,
    Extractor,
    Protocol,
    Runtime,
}

impl Factor {
    const EXCHANGED: [Self; 4] = [Self::Samples, Self::Reference, Self::Extractor, Self::Protocol];

    fn name(self) -> &'static str {
        match self {
            Self::Samples => "samples",
            Self::Reference => "reference",
            Self::Extractor => "extractor",
            Self::Protocol => "protocol",
            Self::Runtime => "runtime",
        }
    }
}

/// The metrics after one more input of A is replaced by that of B.
#[derive(Debug, Clone, Serialize)]
struct Step {
    /// Inputs taken from B so far.
    exchanged: Vec<&'static str>,
    /// Metric values by name.
    metrics: BTreeMap<String, f64>,
    /// Why the metrics could not be computed, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// Differences of two results, and their effect on the metrics.
#[derive(Debug, Clone, Serialize)]
struct Explanation {
    differences: Vec<Difference>,
    steps: Vec<Step>,
}

/// Explains why two results differ. The exit status is [`ExitStatus::No`] if a setting differs.
///
/// # Errors
/// If a file is not a result of `d2o evaluate`, the files have no protocol in common, or an output cannot be written.
pub fn run(args: &Explain, global: &Global, printer: Printer) -> anyhow::Result<ExitStatus> {
    ensure_new_result(&args.result)?;
    let pairs = pairs(args)?;
    let explain = |(a, b): &(Evaluation, Evaluation)| {
        let differences = differences(a, b);
        let steps = if args.no_measure || differences.is_empty() {
            Vec::new()
        } else {
            steps(args, global, printer, a, b, &differences)
        };
        Explanation { differences, steps }
    };
    let found: Vec<Explanation> = pairs.iter().map(explain).collect();
    let text = || {
        let each = pairs.iter().zip(&found).map(|((a, b), found)| {
            let heading = if pairs.len() == 1 { String::new() } else { format!("protocol {}\n", a.protocol_name()) };
            format!("{heading}{}", render(found, a, b))
        });
        each.collect::<Vec<_>>().join("\n\n")
    };
    give_result(&args.result, printer, &Results::from(&found[..]), text)?;
    Ok(if found.iter().all(|f| f.differences.is_empty()) { ExitStatus::Done } else { ExitStatus::No })
}

/// The two results. For files with several results, one pair per protocol in both files.
fn pairs(args: &Explain) -> anyhow::Result<Vec<(Evaluation, Evaluation)>> {
    let [a, mut b] = [read(&args.a)?, read(&args.b)?];
    if let ([_], [_]) = (&a[..], &b[..]) {
        return Ok(a.into_iter().zip(b).collect());
    }
    let mut pairs = Vec::new();
    for one in a {
        if let Some(at) = b.iter().position(|other| other.protocol_name() == one.protocol_name()) {
            pairs.push((one, b.swap_remove(at)));
        }
    }
    let [x, y] = [args.a.display(), args.b.display()];
    anyhow::ensure!(!pairs.is_empty(), "`{x}` and `{y}` have no protocol in common");
    Ok(pairs)
}

fn read(path: &Path) -> anyhow::Result<Vec<Evaluation>> {
    let describe = || format!("`{}` is not a result of `d2o evaluate --json`", path.display());
    let value: Value = serde_json::from_slice(&fs_err::read(path)?).with_context(describe)?;
    let several = if value.is_array() { value } else { Value::Array(vec![value]) };
    serde_json::from_value(several).with_context(describe)
}

/// Every setting in which `a` and `b` differ.
fn differences(a: &Evaluation, b: &Evaluation) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut differs = |factor: Factor, setting: &str, x: String, y: String| {
        if x != y {
            found.push(Difference { factor, setting: setting.to_owned(), a: x, b: y });
        }
    };
    let count = |n: Option<usize>| n.map_or_else(|| "unknown".to_owned(), |n| n.to_string());
    differs(Factor::Samples, "images", count(a.samples.count), count(b.samples.count));
    differs(Factor::Samples, "sha256", a.samples.sha256.clone(), b.samples.sha256.clone());
    let generator =
        |e: &Evaluation| e.samples.generator.as_ref().and_then(Value::as_object).cloned().unwrap_or_default();
    let (x, y) = (generator(a), generator(b));
    let shown = |v: Option<&Value>| {
        v.map_or_else(|| "not recorded".to_owned(), |v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
    };
    let keys: std::collections::BTreeSet<&String> = x.keys().chain(y.keys()).collect();
    for key in keys {
        differs(Factor::Samples, key, shown(x.get(key)), shown(y.get(key)));
    }
    let reference = |e: &Evaluation| e.reference.as_ref().map_or_else(|| "none".to_owned(), |r| r.sha256.clone());
    differs(Factor::Reference, "sha256", reference(a), reference(b));
    let images = |e: &Evaluation| count(e.reference.as_ref().and_then(|r| r.count));
    differs(Factor::Reference, "images", images(a), images(b));
    // Without a reference of their own, CLIP features are compared with those of the main reference.
    let clip = |e: &Evaluation| {
        let set = e.clip_reference.as_ref().or(e.reference.as_ref()).filter(|_| e.extractors.contains_key("clip"));
        set.map_or_else(|| "none".to_owned(), |r| r.sha256.clone())
    };
    differs(Factor::Reference, "CLIP: sha256", clip(a), clip(b));
    let roles: std::collections::BTreeSet<&String> = a.extractors.keys().chain(b.extractors.keys()).collect();
    for role in roles {
        let of = |e: &Evaluation, get: &dyn Fn(&d2o_evaluations::result::Extractor) -> String| {
            e.extractors.get(role).map_or_else(|| "none".to_owned(), get)
        };
        let mut each = |setting: &str, get: &dyn Fn(&d2o_evaluations::result::Extractor) -> String| {
            differs(Factor::Extractor, &format!("{role}: {setting}"), of(a, get), of(b, get));
        };
        each("network", &|x| x.name.clone());
        each("weights", &|x| x.weights_digest.clone().unwrap_or_else(|| x.sha256.clone()));
        let preprocessing = |x: &d2o_evaluations::result::Extractor| {
            x.preprocessing.as_ref().map_or_else(|| "not recorded".to_owned(), |p| p.describe())
        };
        differs(Factor::Protocol, &format!("{role}: preprocessing"), of(a, &preprocessing), of(b, &preprocessing));
    }
    let keys: std::collections::BTreeSet<&String> = a.protocol.keys().chain(b.protocol.keys()).collect();
    for key in keys {
        let of = |e: &Evaluation| e.protocol.get(key).cloned().unwrap_or_else(|| "none".to_owned());
        differs(Factor::Protocol, key, of(a), of(b));
    }
    let deviations = |e: &Evaluation| {
        let list: Vec<String> = e.deviations.iter().map(ToString::to_string).collect();
        if list.is_empty() { "none".to_owned() } else { list.join("; ") }
    };
    differs(Factor::Protocol, "deviations", deviations(a), deviations(b));
    for key in ["runtime", "onnxruntime", "cuda_devices", "d2o_version", "batch"] {
        let of = |e: &Evaluation| e.runtime.get(key).cloned().unwrap_or_else(|| "not recorded".to_owned());
        differs(Factor::Runtime, key, of(a), of(b));
    }
    found
}

/// Evaluates with the inputs of A, then with the differing inputs replaced by those of B, one more at a time.
fn steps(
    args: &Explain,
    global: &Global,
    printer: Printer,
    a: &Evaluation,
    b: &Evaluation,
    differences: &[Difference],
) -> Vec<Step> {
    let mut metrics = args.metrics.clone();
    if metrics.is_empty() {
        let shared = a.metrics.keys().filter(|key| b.metrics.contains_key(*key));
        metrics.extend(shared.filter_map(|key| MetricKind::of_key(key)).map(Metric::from));
        metrics.dedup();
    }
    let mut steps = Vec::new();
    let mut exchanged: Vec<Factor> = Vec::new();
    let relevant = Factor::EXCHANGED.into_iter().filter(|f| differences.iter().any(|d| d.factor == *f));
    for factor in std::iter::once(None).chain(relevant.map(Some)) {
        exchanged.extend(factor);
        let of = |f: Factor| if exchanged.contains(&f) { b } else { a };
        let found = measure(args, global, printer, &metrics, &of);
        let names = exchanged.iter().map(|f| f.name()).collect();
        steps.push(match found {
            Ok(metrics) => Step { exchanged: names, metrics, problem: None },
            Err(error) => Step { exchanged: names, metrics: BTreeMap::new(), problem: Some(format!("{error:#}")) },
        });
    }
    steps
}

/// Computes the metrics with each input taken from the result that `of` returns.
fn measure<'e>(
    args: &Explain,
    global: &Global,
    printer: Printer,
    metrics: &[Metric],
    of: &dyn Fn(Factor) -> &'e Evaluation,
) -> anyhow::Result<BTreeMap<String, f64>> {
    let (samples, extractor, protocol) = (of(Factor::Samples), of(Factor::Extractor), of(Factor::Protocol));
    let reference = of(Factor::Reference).reference.as_ref().context("a result without a reference")?;
    let clip_reference = of(Factor::Reference).clip_reference.as_ref();
    for set in std::iter::once(reference).chain(clip_reference) {
        same_file("reference", &set.path, &set.sha256)?;
    }
    let network = |role: &str| -> anyhow::Result<Option<PathBuf>> {
        let Some(found) = extractor.extractors.get(role) else { return Ok(None) };
        same_file("network", &found.path, &found.sha256)?;
        Ok(Some(PathBuf::from(&found.path)))
    };
    let inputs = recorded(samples)?;
    let settings = recorded(protocol)?;
    let evaluate = Evaluate {
        reference: Some(reference.path.clone().into()),
        clip_ref: clip_reference.map(|set| set.path.clone().into()),
        extractor: network("features")?,
        pr_extractor: network("manifold")?,
        clip: network("clip")?,
        protocol: vec![protocol.protocol_name().to_owned()],
        metrics: metrics.to_vec(),
        neighbours: settings.neighbours,
        is_splits: settings.is_splits,
        kid_subsets: settings.kid_subsets,
        kid_subset_size: settings.kid_subset_size,
        seed: settings.seed,
        bootstrap: 0,
        allow_deviation: DeviationKind::REFUSED.map(|kind| kind.name().to_owned()).to_vec(),
        provider: args.provider,
        ..inputs
    };
    let found = evaluate::results(&evaluate, global, printer)?;
    let found = found.into_iter().next().context("no result")?;
    anyhow::ensure!(
        found.samples.sha256 == samples.samples.sha256,
        "the images in `{}` are not those of the result",
        samples.samples.path
    );
    Ok(found.metrics.into_iter().map(|(name, metric)| (name, metric.value)).collect())
}

/// The recorded command line of `result`, without its outputs.
fn recorded(result: &Evaluation) -> anyhow::Result<Evaluate> {
    let path = result.samples.path.as_str();
    let words = result.runtime.get("command").and_then(|line| shlex::split(line)).unwrap_or_default();
    // A result of another version, or of another command, has at least the path.
    let recorded =
        parsed(words, Command::evaluate).or_else(|_| parsed(["d2o", "evaluate", "--", path], Command::evaluate))?;
    Ok(Evaluate {
        samples: recorded.merge.is_empty().then(|| path.into()),
        per_class: false,
        nearest: None,
        json: None,
        report: None,
        save_features: None,
        expect: Vec::new(),
        title: None,
        dry_run: false,
        ..recorded
    })
}

/// Checks that the SHA-256 of the file at `path` is still that of the result.
fn same_file(what: &str, path: &str, sha256: &str) -> anyhow::Result<()> {
    let found = container_sha256(Path::new(path)).with_context(|| format!("cannot read the {what}"))?;
    anyhow::ensure!(found == sha256, "`{path}` is no longer the {what} of the result: its SHA-256 differs");
    Ok(())
}

fn render(found: &Explanation, a: &Evaluation, b: &Evaluation) -> String {
    /// Largest number of characters shown of a setting.
    const LONGEST: usize = 60;
    if found.differences.is_empty() {
        return "no setting differs".to_owned();
    }
    let short = |text: &str| {
        if text.chars().count() <= LONGEST {
            text.to_owned()
        } else {
            format!("{}…", text.chars().take(LONGEST).collect::<String>())
        }
    };
    let row = |d: &Difference| vec![d.factor.name().to_owned(), d.setting.clone(), short(&d.a), short(&d.b)];
    let mut text = table(
        &["differs", "setting", &short(&a.samples.title), &short(&b.samples.title)],
        &found.differences.iter().map(row).collect::<Vec<_>>(),
    );
    if !found.steps.is_empty() {
        let names: std::collections::BTreeSet<&String> = found.steps.iter().flat_map(|s| s.metrics.keys()).collect();
        let header: Vec<&str> = std::iter::once("inputs of B").chain(names.iter().map(|n| n.as_str())).collect();
        let row = |step: &Step| {
            let label = if step.exchanged.is_empty() { "none".to_owned() } else { step.exchanged.join(", ") };
            let value = |name: &&String| match step.metrics.get(*name) {
                Some(value) => digits(*value, 6),
                None => "–".to_owned(),
            };
            std::iter::once(label).chain(names.iter().map(value)).collect::<Vec<_>>()
        };
        let rows: Vec<Vec<String>> = found.steps.iter().map(row).collect();
        text = format!("{text}\n\n{}", table(&header, &rows));
        for problem in found.steps.iter().filter_map(|s| s.problem.as_ref()) {
            text = format!("{text}\nnot measured: {problem}");
        }
    }
    text
}
