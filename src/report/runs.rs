//! Description of each run: protocol and deviations, images, reference, networks, runtime.

use d2o_evaluations::result::{Evaluation, Extractor, ImageSet};
use serde::Serialize;
use serde_json::Value;

use super::compare::{self, Run, short};
use super::number::{counted, seconds};
use super::svg;

/// A highlighted label.
#[derive(Debug, Serialize)]
pub(super) struct Chip {
    /// `good`, `warn`, `bad` or `plain`.
    pub(super) kind: &'static str,
    pub(super) text: String,
}

impl Chip {
    pub(super) fn new(kind: &'static str, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }
}

/// A property of a run.
#[derive(Debug, Serialize)]
struct Fact {
    name: String,
    value: String,
    /// Shortened hash, if there is one.
    sha256: Option<String>,
}

/// View of a run.
#[derive(Debug, Serialize)]
pub(super) struct RunView {
    id: String,
    name: String,
    /// Mark of the run, as SVG.
    key: String,
    chips: Vec<Chip>,
    deviations: Vec<String>,
    failed: Vec<[String; 2]>,
    warnings: Vec<String>,
    facts: Vec<Fact>,
    command: Option<String>,
    /// Settings of the protocol and of the runtime, and hashes.
    details: Vec<[String; 2]>,
    notes: Vec<String>,
}

/// The view of `run`.
pub(super) fn view(run: &Run<'_>) -> RunView {
    let e = run.evaluation;
    let notes = e.notes.iter().chain(&e.samples.notes).chain(e.reference.iter().flat_map(|r| &r.notes));
    RunView {
        id: format!("run-{}", run.index + 1),
        name: run.name.clone(),
        key: svg::key(run.index, None, true),
        chips: chips(e),
        deviations: e.deviations.iter().map(ToString::to_string).collect(),
        failed: e.failed.iter().map(|(name, why)| [e.title_of(name), why.clone()]).collect(),
        warnings: e.warnings.clone(),
        facts: facts(e),
        command: e.runtime.get("command").cloned(),
        details: details(e),
        notes: notes.cloned().collect(),
    }
}

fn chips(e: &Evaluation) -> Vec<Chip> {
    let mut chips = vec![Chip::new("plain", format!("protocol {}", name_of(e)))];
    chips.push(match e.samples.count {
        Some(n) => Chip::new("plain", counted(n, "image", "images")),
        None => Chip::new("warn", "unknown number of images"),
    });
    if !e.extractors.is_empty() {
        let unverified = e.extractors.values().filter(|x| x.verified.is_none()).count();
        chips.push(match unverified {
            0 => Chip::new("good", "published weights"),
            n if n == e.extractors.len() => Chip::new("warn", "unverified weights"),
            n => Chip::new("warn", format!("unverified weights of {n} of {} networks", e.extractors.len())),
        });
    }
    chips.push(match e.deviations.len() {
        0 => Chip::new("good", "no deviations"),
        n => Chip::new("bad", counted(n, "deviation", "deviations")),
    });
    if !e.failed.is_empty() {
        chips.push(Chip::new("bad", format!("{} not computed", counted(e.failed.len(), "metric", "metrics"))));
    }
    if !e.warnings.is_empty() {
        chips.push(Chip::new("warn", counted(e.warnings.len(), "warning", "warnings")));
    }
    chips
}

fn name_of(e: &Evaluation) -> &str {
    if e.protocol_name().is_empty() { "unknown" } else { e.protocol_name() }
}

fn facts(e: &Evaluation) -> Vec<Fact> {
    let fact = |name: &str, value: String, sha256: &str| {
        let sha256 = (!sha256.is_empty()).then(|| short(sha256).to_owned());
        Fact { name: name.to_owned(), value, sha256 }
    };
    let set = |s: &ImageSet| {
        let count = s.count.map_or_else(|| "number of images unknown".to_owned(), |n| format!("{n} images"));
        format!("{}, {count}", s.path)
    };
    let mut facts = vec![fact("Samples", set(&e.samples), &e.samples.sha256)];
    facts.extend(e.samples.generator.as_ref().map(|g| fact("Generator", generator(g), "")));
    match &e.reference {
        Some(r) => facts.push(fact("Reference", set(r), &r.sha256)),
        None => facts.push(fact("Reference", "none".to_owned(), "")),
    }
    facts.extend(e.clip_reference.as_ref().map(|r| fact("Reference (CLIP)", set(r), &r.sha256)));
    for (role, x) in &e.extractors {
        let role = match role.as_str() {
            "features" => "Extractor",
            "manifold" => "Extractor (precision, recall, density, coverage)",
            "clip" => "Extractor (CLIP-FID)",
            other => other,
        };
        facts.push(fact(role, extractor(x), x.weights_digest.as_deref().unwrap_or(&x.sha256)));
    }
    let runtime = ["runtime", "d2o_version"].map(|key| e.runtime.get(key).map_or("unknown", String::as_str));
    facts.push(fact("Runtime", format!("{}, d2o {}", runtime[0], runtime[1]), ""));
    if !e.timings.is_empty() {
        facts.push(fact("Time", seconds(total(e)), ""));
    }
    facts
}

/// Seconds of all stages of a run, without parts of stages.
pub(super) fn total(e: &Evaluation) -> f64 {
    e.timings.iter().filter(|(stage, _)| !is_part(stage)).map(|(_, seconds)| seconds).sum()
}

/// Whether a stage is a part of another one.
pub(super) fn is_part(stage: &str) -> bool {
    stage.starts_with("features_") || stage.starts_with("reference_")
}

fn extractor(x: &Extractor) -> String {
    let weights = x.verified.as_ref().map_or_else(
        || "weights unverified: not those of a published file".to_owned(),
        |file| format!("published weights, {file}"),
    );
    format!("{}, {} features; {weights}", compare::network(x), x.dims)
}

/// Short description of a generator, from its record.
fn generator(record: &Value) -> String {
    let text = |key: &str| record.get(key).filter(|v| !v.is_null()).map(plain);
    let sampler = record.get("sampler").and_then(|sampler| match sampler {
        Value::Object(settings) => {
            let name = settings.keys().next()?;
            let steps = leaves(sampler).into_iter().find(|(key, _)| key.ends_with("steps"));
            Some(steps.map_or_else(|| name.clone(), |(_, steps)| format!("{name}, {steps} steps")))
        }
        Value::Null => None,
        other => Some(plain(other)),
    });
    let parts = [
        text("network"),
        sampler.map(|s| format!("sampler {s}")),
        text("evaluations").map(|n| format!("{n} evaluation{}", if n == "1" { "" } else { "s" })),
        text("seeds").map(|s| format!("seeds {s}")),
        text("class").map(|c| format!("class {c}")),
    ];
    let all: Vec<String> = parts.into_iter().flatten().collect();
    if all.is_empty() { "recorded, see the details".to_owned() } else { all.join(", ") }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Names and values of all leaves of `value` that are not null.
fn leaves(value: &Value) -> Vec<(String, String)> {
    match value {
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(key, field)| {
                leaves(field).into_iter().map(move |(rest, text)| {
                    (if rest.is_empty() { key.clone() } else { format!("{key}.{rest}") }, text)
                })
            })
            .collect(),
        Value::Null => Vec::new(),
        other => vec![(String::new(), plain(other))],
    }
}

fn details(e: &Evaluation) -> Vec<[String; 2]> {
    let mut all: Vec<[String; 2]> = Vec::new();
    let mut add = |name: String, value: &str| all.push([name, value.to_owned()]);
    add("samples: sha256 of the pixels".to_owned(), &e.samples.sha256);
    for (name, set) in [("reference", &e.reference), ("reference (CLIP)", &e.clip_reference)] {
        if let Some(set) = set {
            add(format!("{name}: sha256 of the file"), &set.sha256);
        }
    }
    for (role, x) in &e.extractors {
        add(format!("{role}: file"), &x.path);
        add(format!("{role}: sha256 of the file"), &x.sha256);
        if let Some(digest) = &x.weights_digest {
            add(format!("{role}: digest of the weights"), digest);
        }
        if let Some(preprocessing) = &x.preprocessing {
            add(format!("{role}: resize"), &preprocessing.describe());
        }
    }
    for (key, value) in e.samples.generator.iter().flat_map(leaves) {
        add(format!("generator: {}", key.replace('_', " ")), &value);
    }
    for (key, value) in e.protocol.iter().filter(|(key, _)| *key != "name") {
        add(format!("protocol: {}", key.replace('_', " ")), value);
    }
    for (key, value) in e.runtime.iter().filter(|(key, _)| *key != "command") {
        add(format!("runtime: {}", key.replace('_', " ")), value);
    }
    all
}
