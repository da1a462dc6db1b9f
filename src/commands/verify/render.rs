//! A comparison as text.

use crate::printer::table;
use crate::verdict::{Comparison, Divergence, NodeCount, NodeTime, OutputDifference, Precision};

/// Tables, then the verdict.
pub(super) fn text(result: &Comparison) -> String {
    let rows: Vec<Vec<String>> = result.outputs.iter().map(row).collect();
    let header = ["output", "runtime", "max abs", "max rel", "SNR dB", "≤ 1 ulp", "u8 changed", "verdict"];
    let mut parts = vec![table(&header, &rows)];
    for change in &result.metrics {
        let from = change.reference_distance.map_or_else(String::new, |d| format!(" instead of {d:.6e}"));
        let (runtime, distance, extractor) = (&change.runtime, change.distance, &change.extractor);
        parts.push(format!("{runtime}: FD ({extractor}) {distance:.6e}{from}"));
    }
    for divergence in &result.divergence {
        let how = match (divergence.max_abs, divergence.max_rel) {
            (Some(abs), Some(rel)) => format!("max abs {abs:.2e}, max rel {rel:.2e}"),
            _ => "missing, or of a different shape".to_owned(),
        };
        let Divergence { runtime, node, scope, op, agreeing, .. } = divergence;
        parts.push(format!(
            "{runtime}: first diverging node `{node}` ({op}) in `{scope}`, {how}; {agreeing} earlier nodes agree"
        ));
        if !divergence.weights.is_empty() {
            parts.push(format!("  its weights: {}", divergence.weights.join(", ")));
        }
    }
    if !result.nodes.is_empty() {
        let row = |n: &NodeCount| vec![n.provider.clone(), n.op.clone(), n.count.to_string()];
        parts.push(table(&["provider", "op", "nodes"], &result.nodes.iter().map(row).collect::<Vec<_>>()));
    }
    if !result.profile.is_empty() {
        let row = |n: &NodeTime| {
            vec![n.node.clone(), n.op.clone(), format!("{:.2}", n.milliseconds), format!("{:.1} %", 100.0 * n.share)]
        };
        parts.push(table(&["node", "op", "ms", "share"], &result.profile.iter().map(row).collect::<Vec<_>>()));
    }
    if result.precisions.is_empty() {
        let verdict = if result.agree { "agree" } else { "DIFFER" };
        let (samples, reference, tolerance) = (result.samples, &result.reference, result.tolerance);
        parts.push(format!("{samples} inputs, reference {reference}, tolerance {tolerance:.1e}: runtimes {verdict}"));
    } else {
        let rows: Vec<Vec<String>> = result.precisions.iter().map(|p| precision_row(p, result)).collect();
        parts.push(table(&["precision", "runtime", "inputs/s", "max rel", "u8 changed", "FD"], &rows));
    }
    parts.join("\n")
}

fn precision_row(p: &Precision, result: &Comparison) -> Vec<String> {
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
