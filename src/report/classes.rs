//! Metrics of each class, with bars of the Fréchet distance, worst class first.

use std::collections::BTreeSet;

use d2o_evaluations::result::{ClassMetrics, Metric, place};
use serde::Serialize;

use super::compare::{Run, places};
use super::number::fixed;

/// The classes of a run.
#[derive(Debug, Serialize)]
pub(super) struct Classes {
    run: String,
    /// Title of the metric shown as bars.
    title: String,
    /// Network of this metric, unless the title implies it.
    network: Option<String>,
    /// Names of the other metrics.
    others: Vec<String>,
    rows: Vec<ClassRow>,
    summary: String,
}

#[derive(Debug, Serialize)]
struct ClassRow {
    class: i64,
    samples: usize,
    reference: usize,
    distance: String,
    /// Length of the bar, percent of the longest.
    bar: String,
    others: Vec<String>,
}

/// The classes of `run`; `None` without Fréchet distances of classes.
pub(super) fn classes(run: &Run<'_>) -> Option<Classes> {
    let e = run.evaluation;
    let names: BTreeSet<(usize, &str)> =
        e.per_class.iter().flat_map(|c| c.metrics.keys()).map(|n| (place(n), n.as_str())).collect();
    let is_distance = |name: &str| matches!(name, "fid" | "fd");
    let (_, distance) = *names.iter().find(|(_, n)| is_distance(n))?;
    let others: Vec<&str> = names.iter().map(|(_, n)| *n).filter(|n| *n != distance).collect();
    let value = |c: &ClassMetrics, name: &str| c.metrics.get(name).map(|m: &Metric| m.value);
    let mut sorted: Vec<&ClassMetrics> = e.per_class.iter().collect();
    let rank = |c: &ClassMetrics| value(c, distance).unwrap_or(f64::NEG_INFINITY);
    sorted.sort_by(|a, b| rank(b).total_cmp(&rank(a)).then(a.class.cmp(&b.class)));
    let all = |name: &str| -> Vec<f64> { sorted.iter().filter_map(|c| value(c, name)).collect() };
    let largest = all(distance).into_iter().fold(f64::MIN_POSITIVE, f64::max);
    let text = |name: &str| {
        let places = places(name, &all(name));
        let of = |c: &&ClassMetrics| value(c, name).map_or_else(|| "–".to_owned(), |v| fixed(v, places));
        sorted.iter().map(of).collect::<Vec<String>>()
    };
    let distances = text(distance);
    let other_texts: Vec<Vec<String>> = others.iter().map(|name| text(name)).collect();
    let row = |(i, c): (usize, &&ClassMetrics)| ClassRow {
        class: c.class,
        samples: c.samples,
        reference: c.reference,
        distance: distances[i].clone(),
        bar: format!("{:.1}", 100.0 * value(c, distance).map_or(0.0, |v| (v / largest).clamp(0.0, 1.0))),
        others: other_texts.iter().map(|texts| texts[i].clone()).collect(),
    };
    let measured = sorted.iter().filter(|c| value(c, distance).is_some()).count();
    let (title, network) = e.parts_of(distance);
    let mut summary = format!("{} classes.", sorted.len());
    if measured > 1 {
        let of = |i: usize| (sorted[i].class, &distances[i]);
        let ((worst, high), (best, low)) = (of(0), of(measured - 1));
        summary = format!("{summary} Worst: class {worst} ({title} {high}); best: class {best} ({low}).");
    }
    let rows = sorted.iter().enumerate().map(row).collect();
    Some(Classes {
        run: run.name.clone(),
        title,
        network: network.map(str::to_owned),
        others: others.iter().map(|n| e.parts_of(n).0).collect(),
        rows,
        summary,
    })
}
