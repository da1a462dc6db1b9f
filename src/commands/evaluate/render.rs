//! Evaluations as text, and plans as text or JSON.

use std::fmt::Write as _;

use d2o_evaluations::result::Evaluation;
use serde_json::{Value, json};

use super::plan::{Plan, ProtocolPlan};
use crate::pipeline::reference::OpenReference;
use crate::printer::table;

/// A table of the metrics with one column per protocol, then the deviations and the metrics per class.
pub(super) fn render(evaluations: &[Evaluation]) -> String {
    let Some(first) = evaluations.first() else { return String::new() };
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in evaluations.iter().flat_map(Evaluation::ordered) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let row = |name: &&str| {
        let label =
            evaluations.iter().find(|e| e.metrics.contains_key(*name)).map_or_else(String::new, |e| e.label(name));
        let cell = |e: &Evaluation| e.metrics.get(*name).map_or_else(|| "–".to_owned(), |m| m.show());
        std::iter::once(label).chain(evaluations.iter().map(cell)).collect::<Vec<_>>()
    };
    let rows: Vec<Vec<String>> = names.iter().map(row).collect();
    let intervals = evaluations.iter().flat_map(|e| e.metrics.values()).any(|m| m.ci95.is_some());
    let value = if intervals { "value [95 % interval]" } else { "value" };
    let protocols: Vec<&str> = evaluations.iter().map(Evaluation::protocol_name).collect();
    let header: Vec<&str> = match &protocols[..] {
        [_] => vec!["metric", value],
        several => std::iter::once("metric").chain(several.iter().copied()).collect(),
    };
    let mut text = format!(
        "{} ({} images, protocol{} {})\n{}",
        first.samples.title,
        first.samples.count.unwrap_or(0),
        if protocols.len() == 1 { "" } else { "s" },
        protocols.join(", "),
        table(&header, &rows)
    );
    for e in evaluations {
        for deviation in &e.deviations {
            let of = if evaluations.len() == 1 { String::new() } else { format!(" ({})", e.protocol_name()) };
            let _ = write!(text, "\ndeviation{of}: {deviation}");
        }
        if !e.per_class.is_empty() {
            let (header, rows) = e.class_table();
            let _ = write!(text, "\n\n{}", table(&header, &rows));
        }
    }
    text
}

/// The plan as text; `measured` holds protocol names and seconds per image of each group of protocols.
pub(super) fn plan(plan: &Plan, measured: &[(String, f64)]) -> String {
    let mut lines = Vec::new();
    let size = plan.samples.image_dims().map_or_else(|| "sizes differ or unknown".to_owned(), |d| d.to_string());
    lines.push(format!("samples: {} images ({size}) in `{}`", plan.samples.len(), plan.samples_path.display()));
    if let Some(reference) = &plan.reference {
        let count = reference.count().map_or_else(|| "an unknown number of".to_owned(), |n| n.to_string());
        let layout = reference.layout().map_or_else(String::new, |l| format!(", layout of {}", l.tool()));
        lines.push(format!("reference: {count} images in `{}`{layout}", reference.path().display()));
    }
    if let Some(reference) = &plan.clip_reference {
        lines.push(format!("reference of CLIP-FID: `{}`", reference.path().display()));
    }
    lines.extend(plan.notes.iter().cloned());
    for p in &plan.protocols {
        lines.push(format!("protocol {}: {}", p.protocol.name, p.keys().join(", ")));
        for (role, record) in &p.records {
            let weights =
                record.verified.as_ref().map_or_else(|| "unverified".to_owned(), |f| format!("verified, {f}"));
            lines.push(format!(
                "  {role}: {} ({} features, {weights}) on {}; preprocessing: {}",
                record.name,
                record.dims,
                record.runtime,
                record.preprocessing.describe()
            ));
        }
        lines.extend(p.deviations.iter().map(|d| format!("  deviation: {d}")));
        lines.extend(p.notes.iter().map(|n| format!("  {n}")));
    }
    lines
        .push(format!("memory: about {} MiB of features and moments, in addition to the networks", memory(plan) >> 20));
    #[allow(clippy::cast_precision_loss, reason = "image counts")]
    for (names, seconds) in measured {
        let total = seconds * plan.samples.len() as f64;
        lines.push(format!(
            "time: about {total:.0} s for the samples' features under {names} ({:.1} images/s)",
            1.0 / seconds
        ));
    }
    if measured.is_empty() {
        lines.push("time: no network runs on the samples".to_owned());
    }
    lines.join("\n")
}

/// The plan as JSON; `measured` as for `plan`.
pub(super) fn plan_json(plan: &Plan, measured: &[(String, f64)]) -> Value {
    let protocol = |p: &ProtocolPlan| {
        json!({
            "name": p.protocol.name, "metrics": p.keys(), "networks": p.records, "deviations": p.deviations, "notes": p.notes,
        })
    };
    let reference =
        |r: &OpenReference| json!({"path": r.path(), "count": r.count(), "layout": r.layout().map(|l| l.tool())});
    let seconds: Vec<Value> =
        measured.iter().map(|(names, each)| json!({"protocols": names, "seconds_per_image": each})).collect();
    json!({
        "samples": {"path": plan.samples_path, "count": plan.samples.len(), "images": plan.samples.image_dims()},
        "reference": plan.reference.as_ref().map(reference), "clip_reference": plan.clip_reference.as_ref().map(reference),
        "protocols": plan.protocols.iter().map(protocol).collect::<Vec<_>>(), "notes": plan.notes,
        "memory_bytes": memory(plan), "features": seconds, "runtime": plan.runtime,
    })
}

/// Bytes of features and moments in memory at the same time: the largest number of any protocol.
fn memory(plan: &Plan) -> usize {
    const F32: usize = 4;
    const F64: usize = 8;
    let of = |p: &ProtocolPlan| {
        let dims = |role: &str| p.records.get(role).map_or(0, |r| r.dims);
        let rows = |request: &crate::pipeline::statistics::StatsRequest, n: usize| {
            let kept = if request.keep { n * dims("features") } else { 0 };
            let manifold = if request.manifold { n * dims("manifold") } else { 0 };
            let moments = [(request.features, "features"), (request.clip, "clip"), (request.spatial, "features")];
            let moments: usize =
                moments.into_iter().filter(|(on, _)| *on).map(|(_, role)| dims(role) * dims(role)).sum();
            (kept + manifold) * F32 + moments * F64
        };
        let reference = plan.reference.as_ref().and_then(|r| r.row_count(false).or(r.count())).unwrap_or(0);
        // The Fréchet distance needs about four matrices of the size of the covariance.
        rows(&p.samples, plan.samples.len())
            + rows(&p.reference, reference)
            + 4 * F64 * dims("features") * dims("features")
    };
    plan.protocols.iter().map(of).max().unwrap_or(0)
}
