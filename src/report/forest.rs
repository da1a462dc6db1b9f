//! Forest plots: values of one metric with their intervals, one row per run.

use d2o_evaluations::result::Metric;
use serde::Serialize;

use super::compare::{Group, Row};
use super::number::{fixed, spread};
use super::svg::{self, Axis};
use super::table;

/// Forest plot of one metric.
#[derive(Debug, Serialize)]
pub(super) struct Forest {
    title: String,
    network: Option<String>,
    verified: bool,
    arrow: &'static str,
    better: &'static str,
    rows: Vec<ForestRow>,
    axis: String,
    /// Whether a line marks the baseline.
    baseline: bool,
    /// Meaning of the bars.
    bars: &'static str,
}

#[derive(Debug, Serialize)]
struct ForestRow {
    name: String,
    svg: String,
    text: String,
}

/// One plot for each metric with values of at least two runs, or with a bar.
pub(super) fn forests(group: &Group<'_>) -> Vec<Forest> {
    group.rows.iter().filter_map(|row| forest(group, row)).collect()
}

/// Ends of the bar of a value: its 95 % interval, otherwise one standard deviation to either side.
fn bar(metric: &Metric) -> Option<[f64; 2]> {
    metric.ci95.or_else(|| metric.std.map(|s| [metric.value - s, metric.value + s]))
}

fn forest(group: &Group<'_>, row: &Row) -> Option<Forest> {
    let values: Vec<(usize, &Metric)> = row.values().collect();
    let bars: Vec<[f64; 2]> = values.iter().filter_map(|(_, m)| bar(m)).collect();
    if values.len() < 2 && bars.is_empty() {
        return None;
    }
    let axis = Axis::nice(values.iter().map(|(_, m)| m.value).chain(bars.iter().copied().flatten()));
    let of_baseline = group.baseline.and_then(|b| values.iter().find(|(i, _)| *i == b));
    let baseline = of_baseline.filter(|_| values.len() > 1).map(|(_, m)| m.value);
    let view = |(i, metric): &(usize, &Metric)| {
        let around = spread(metric, row.places).map_or_else(String::new, |s| format!(" {s}"));
        let text = format!("{}{around}", fixed(metric.value, row.places));
        let run = group.runs[*i];
        let mark = svg::ForestMark { value: metric.value, bar: bar(metric), dashed: metric.ci95.is_none(), baseline };
        ForestRow { name: run.name.clone(), svg: mark.draw(&axis, run.index, &text), text }
    };
    let [intervals, deviations] =
        [true, false].map(|interval| values.iter().any(|(_, m)| bar(m).is_some() && m.ci95.is_some() == interval));
    let (arrow, better) = table::arrow(row.higher);
    Some(Forest {
        title: row.title.clone(),
        network: row.network.clone(),
        verified: row.verified,
        arrow,
        better,
        rows: values.iter().map(view).collect(),
        axis: svg::forest_axis(&axis),
        baseline: baseline.is_some(),
        bars: match (intervals, deviations) {
            (false, false) => "",
            (true, false) => "95 % interval",
            (false, true) => "± 1 standard deviation over splits or subsets",
            (true, true) => "95 % interval; dashed: ± 1 standard deviation over splits or subsets",
        },
    })
}
