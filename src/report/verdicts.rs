//! Results of `d2o verify`: differences between runtimes, graphs and precisions, and the first diverging node.

use d2o_evaluations::result::digits;
use serde::Serialize;

use super::number::{counted, percent, seconds};
use super::plots::Figure;
use super::runs::Chip;
use super::svg::{Axis, Plot, minus};
use crate::verdict::{Comparison, Divergence, OutputDifference};

/// View of a verification.
#[derive(Debug, Serialize)]
pub(super) struct VerdictView {
    id: String,
    /// `Verification of X`, or `Precision study of X`.
    title: String,
    chip: Chip,
    summary: String,
    outputs: Vec<OutputRow>,
    /// The precision study: precision, runtime, speed, largest relative difference, changed pixels, distance.
    precisions: Vec<Vec<String>>,
    /// Heading of the distance column.
    distance: &'static str,
    metrics: Vec<Vec<String>>,
    divergence: Vec<DivergenceView>,
    /// Slowest nodes: name, operation, milliseconds, share, length of the bar in percent.
    profile: Vec<[String; 5]>,
    /// Provider, operation, number of nodes.
    nodes: Vec<[String; 3]>,
    seconds: Vec<[String; 2]>,
    histograms: Vec<Figure>,
}

#[derive(Debug, Serialize)]
struct OutputRow {
    name: String,
    runtime: String,
    numbers: Vec<String>,
    /// Absent in a precision study, which measures the difference without a verdict.
    agrees: Option<bool>,
}

#[derive(Debug, Serialize)]
struct DivergenceView {
    runtime: String,
    node: String,
    op: String,
    scope: String,
    /// Difference of its output.
    apart: String,
    agreeing: usize,
    weights: Vec<String>,
}

/// The view of verification `index`.
pub(super) fn view(index: usize, v: &Comparison) -> VerdictView {
    let study = !v.precisions.is_empty();
    let id = format!("verify-{}", index + 1);
    let chip = match (study, v.agree) {
        (true, _) => Chip::new("plain", "precision study"),
        (false, true) => Chip::new("good", "runtimes agree"),
        (false, false) => Chip::new("bad", "runtimes differ"),
    };
    let of_tolerance = if study {
        String::new()
    } else {
        format!(", tolerance {} of the largest reference value", small(v.tolerance))
    };
    let inputs = counted(v.samples, "input", "inputs");
    VerdictView {
        title: format!("{} of {}", if study { "Precision study" } else { "Verification" }, v.model),
        chip,
        summary: format!("{inputs}, compared with {}{of_tolerance}.", v.reference),
        outputs: v.outputs.iter().map(|o| output_row(o, study)).collect(),
        precisions: precisions(v),
        distance: if v.metrics.iter().any(|m| m.reference_distance.is_some()) { "FD to --ref" } else { "FD to fp32" },
        metrics: metrics(v),
        divergence: v.divergence.iter().map(divergence).collect(),
        profile: profile(v),
        nodes: v.nodes.iter().map(|n| [n.provider.clone(), n.op.clone(), n.count.to_string()]).collect(),
        seconds: v.seconds.iter().filter(|(_, s)| **s > 0.0).map(|(side, s)| [side.clone(), seconds(*s)]).collect(),
        histograms: v.outputs.iter().enumerate().filter_map(|(i, o)| histogram(o, &format!("{id}-ulps-{i}"))).collect(),
        id,
    }
}

/// `value` with three significant digits.
fn small(value: f64) -> String {
    minus(&digits(value, 3))
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "–".to_owned())
}

/// Share of values that differ by at most one unit in the last place; `None` if units were not counted.
#[allow(clippy::cast_precision_loss, reason = "counts")]
fn close(o: &OutputDifference) -> Option<String> {
    let (total, close): (u64, u64) = (o.ulps.iter().sum(), o.ulps.iter().take(2).sum());
    (total > 0).then(|| percent(close as f64 / total as f64))
}

fn output_row(o: &OutputDifference, study: bool) -> OutputRow {
    OutputRow {
        name: o.name.clone(),
        runtime: o.runtime.clone(),
        numbers: vec![
            small(o.max_abs),
            small(o.max_rel),
            o.snr_db.map_or_else(|| "∞".to_owned(), |v| format!("{v:.1}")),
            or_dash(close(o)),
            or_dash(o.pixels_changed.map(percent)),
            o.not_finite.to_string(),
        ],
        agrees: (!study).then_some(o.agrees),
    }
}

fn precisions(v: &Comparison) -> Vec<Vec<String>> {
    let row = |p: &crate::verdict::Precision| {
        let output = v.outputs.iter().find(|o| o.runtime == p.precision);
        let metric = v.metrics.iter().find(|m| m.runtime == p.precision);
        let runtime = p.skipped.as_ref().map_or_else(|| or_dash(p.runtime.clone()), |why| format!("not run: {why}"));
        vec![
            p.precision.clone(),
            runtime,
            or_dash(p.speed.map(|s| digits(s, 4))),
            or_dash(output.map(|o| small(o.max_rel))),
            or_dash(output.and_then(|o| o.pixels_changed).map(percent)),
            or_dash(metric.map(|m| small(m.distance))),
        ]
    };
    v.precisions.iter().map(row).collect()
}

/// Rows of runtime, metric, distance, distance of the reference runtime, and change.
fn metrics(v: &Comparison) -> Vec<Vec<String>> {
    const DIGITS: usize = 7;
    let shown = |d: f64| minus(&digits(d, DIGITS));
    let row = |m: &crate::verdict::MetricChange| {
        let change = m.reference_distance.map(|r| small(m.distance - r));
        vec![
            m.runtime.clone(),
            format!("FD ({})", m.extractor),
            shown(m.distance),
            or_dash(m.reference_distance.map(shown)),
            or_dash(change),
        ]
    };
    v.metrics.iter().map(row).collect()
}

fn divergence(d: &Divergence) -> DivergenceView {
    let apart = match (d.max_abs, d.max_rel) {
        (Some(abs), Some(rel)) => format!("max abs {}, max rel {}", small(abs), small(rel)),
        _ => "missing on one side, or of a different shape".to_owned(),
    };
    DivergenceView {
        runtime: d.runtime.clone(),
        node: d.node.clone(),
        op: d.op.clone(),
        scope: d.scope.clone(),
        apart,
        agreeing: d.agreeing,
        weights: d.weights.clone(),
    }
}

fn profile(v: &Comparison) -> Vec<[String; 5]> {
    let longest = v.profile.iter().map(|n| n.milliseconds).fold(f64::MIN_POSITIVE, f64::max);
    let row = |n: &crate::verdict::NodeTime| {
        let bar = format!("{:.1}", 100.0 * (n.milliseconds / longest).clamp(0.0, 1.0));
        [n.node.clone(), n.op.clone(), format!("{:.2}", n.milliseconds), percent(n.share), bar]
    };
    v.profile.iter().map(row).collect()
}

/// Histogram of the differences in units in the last place.
#[allow(clippy::cast_precision_loss, reason = "counts")]
fn histogram(o: &OutputDifference, id: &str) -> Option<Figure> {
    let last = o.ulps.iter().rposition(|n| *n > 0)?;
    let total: u64 = o.ulps.iter().sum();
    let share = |n: u64| 100.0 * n as f64 / total as f64;
    let most = o.ulps.iter().copied().map(share).fold(0.0_f64, f64::max);
    // Bin 0 counts equal values. From bin 1 on, bin i begins at 2^(i - 1).
    let label = |bin: usize| match bin {
        0 => "0".to_owned(),
        1..=8 => (1 << (bin - 1)).to_string(),
        _ => format!("2{}", superscript(bin - 1)),
    };
    let every = (last + 1).div_ceil(6).max(1);
    let ticks = (0..=last).step_by(every).map(|bin| (bin as f64 + 0.5, label(bin))).collect();
    let x = Axis::with_ticks(0.0, (last + 1) as f64, ticks);
    let mut plot = Plot::new(x, Axis::nice([0.0, most]), "units in the last place, from", "% of values");
    for (bin, n) in o.ulps.iter().enumerate().take(last + 1) {
        plot.column([bin as f64 + 0.08, bin as f64 + 0.92], share(*n));
    }
    let summary = format!("{} of values differ by at most 1 unit", close(o)?);
    let title = format!("Differences of {} on {}", o.name, o.runtime);
    let note = format!("{summary}.");
    Some(Figure { svg: plot.finish(id, &title, &summary), title, note, legend: Vec::new() })
}

/// `number` in superscript digits.
fn superscript(number: usize) -> String {
    const DIGITS: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    number.to_string().bytes().map(|b| DIGITS[usize::from(b - b'0')]).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_precision_study_has_no_verdict() {
        let value = json!({
            "model": "m.onnx", "reference": "fp32", "samples": 4, "tolerance": 2e-5, "agree": false,
            "outputs": [{"runtime": "fp16", "name": "images", "max_abs": 0.01, "max_rel": null, "snr_db": 60.0, "not_finite": 0,
                         "pixels_changed": 0.2, "agrees": false}],
            "precisions": [{"precision": "fp32", "runtime": "ort-cpu", "speed": 3.0}, {"precision": "tf32", "skipped": "no CUDA device"},
                           {"precision": "fp16", "runtime": "ort-cpu", "speed": 2.0}],
        });
        let comparison: Comparison = serde_json::from_value(value.clone()).unwrap();
        assert!(comparison.outputs[0].max_rel.is_infinite(), "null is infinite");
        let shown = view(0, &comparison);
        assert_eq!((shown.title.as_str(), shown.chip.kind), ("Precision study of m.onnx", "plain"));
        assert_eq!(shown.outputs[0].agrees, None);
        assert_eq!(shown.precisions[1][1], "not run: no CUDA device");
        assert_eq!(shown.precisions[2][3..5], ["inf", "20.0 %"]);
        let mut verdict = comparison;
        verdict.precisions.clear();
        let shown = view(0, &verdict);
        assert_eq!((shown.chip.kind, shown.outputs[0].agrees), ("bad", Some(false)));
    }

    #[test]
    fn histograms_end_with_the_last_bin_that_holds_something() {
        let difference = |ulps: Vec<u64>| OutputDifference {
            runtime: "tract".to_owned(),
            name: "images".to_owned(),
            max_abs: 0.0,
            max_rel: 0.0,
            snr_db: None,
            ulps,
            pixels_changed: None,
            not_finite: 0,
            agrees: true,
        };
        let figure = histogram(&difference(vec![2, 1, 1, 0, 0]), "h").unwrap();
        assert_eq!(figure.svg.matches("<rect").count(), 3);
        assert_eq!(figure.note, "75.0 % of values differ by at most 1 unit.");
        assert!(histogram(&difference(vec![0, 0]), "h").is_none());
    }
}
