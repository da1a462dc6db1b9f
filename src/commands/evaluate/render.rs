//! An evaluation as text.

use std::collections::BTreeSet;

use d2o_evaluations::protocol::INCEPTION;
use d2o_evaluations::result::{ClassMetrics, Evaluation, Metric};

use crate::printer::table;

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
pub fn show(metric: &Metric) -> String {
    match (metric.ci95, metric.std) {
        (Some([low, high]), _) => format!("{:.4} [{low:.4}, {high:.4}]", metric.value),
        (None, Some(std)) => format!("{:.4} ± {std:.4}", metric.value),
        (None, None) => format!("{:.4}", metric.value),
    }
}

/// The metrics as a table, with what departs from the protocol.
pub(super) fn render(e: &Evaluation) -> String {
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
