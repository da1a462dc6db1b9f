//! Plots of the runs of a table: precision against recall, distances against the number of samples.

use d2o_evaluations::fd_infinity::Extrapolation;
use serde::Serialize;

use super::compare::{Group, Row, Run};
use super::number::fixed;
use super::svg::{self, Axis, Plot};
use super::table;

/// A plot with its legend.
#[derive(Debug, Serialize)]
pub(super) struct Figure {
    pub(super) title: String,
    /// Explanation for readers.
    pub(super) note: String,
    /// The plot.
    pub(super) svg: String,
    /// Series of the plot.
    pub(super) legend: Vec<LegendEntry>,
}

/// A series of a plot.
#[derive(Debug, Serialize)]
pub(super) struct LegendEntry {
    /// Line and mark, as SVG.
    pub(super) key: String,
    /// Name of the series.
    pub(super) text: String,
}

/// The plots of `group`. `id` is the id of its table.
pub(super) fn of_group(group: &Group<'_>, id: &str) -> Vec<Figure> {
    let of = |names: &'static [&'static str]| {
        let named = move |(_, row): &(usize, &Row)| names.contains(&row.name.as_str());
        group.rows.iter().enumerate().filter(named)
    };
    let scatters = of(&["precision"]).filter_map(|(i, row)| scatter(group, row, &format!("{id}-pr-{i}")));
    let lines = of(&["fid_inf", "fd_inf"]).filter_map(|(i, row)| extrapolation(group, row, &format!("{id}-n-{i}")));
    scatters.chain(lines).collect()
}

/// Plot of precision against recall. `row` is a row of precision values.
fn scatter(group: &Group<'_>, row: &Row, id: &str) -> Option<Figure> {
    let first = row.values().next()?.0;
    let of_recall = |r: &&Row| r.name == "recall" && r.values().any(|(i, _)| i == first);
    let recall = group.rows.iter().find(of_recall)?;
    let points: Vec<_> = row
        .values()
        .filter_map(|(i, precision)| Some((group.runs[i], recall.values().find(|(j, _)| *j == i)?.1, precision)))
        .collect();
    let ends = |m: &d2o_evaluations::result::Metric| m.ci95.unwrap_or([m.value; 2]);
    let axis = |of: &dyn Fn(usize) -> [f64; 2]| Axis::shares(&(0..points.len()).flat_map(of).collect::<Vec<_>>());
    let (x, y) = (axis(&|i| ends(points[i].1)), axis(&|i| ends(points[i].2)));
    let mut plot = Plot::new(x, y, "recall →", "precision ↑");
    let (mut legend, mut summary) = (Vec::new(), Vec::new());
    for (run, recall, precision) in &points {
        if let Some(interval) = precision.ci95 {
            plot.bar_y(recall.value, interval, run.index);
        }
        if let Some(interval) = recall.ci95 {
            plot.bar_x(precision.value, interval, run.index);
        }
        plot.mark(recall.value, precision.value, run.index);
        legend.push(LegendEntry { key: svg::key(run.index, None, true), text: run.name.clone() });
        let [p, r] = [precision.value, recall.value].map(|v| fixed(v, 4));
        summary.push(format!("{}: precision {p}, recall {r}", run.name));
    }
    let title = format!("{} and recall", row.label().replacen("precision", "Precision", 1));
    let note = "Fidelity increases upwards, diversity to the right. Bars: 95 % intervals, where available.".to_owned();
    Some(Figure { svg: plot.finish(id, &title, &summary.join("; ")), title, note, legend })
}

/// Plot of the distances of subsets against their size, with the line that gives the extrapolated distance.
#[allow(clippy::cast_precision_loss, reason = "image counts")]
fn extrapolation(group: &Group<'_>, row: &Row, id: &str) -> Option<Figure> {
    let of_run = |(i, metric): (usize, &d2o_evaluations::result::Metric)| {
        let run: &Run<'_> = group.runs[i];
        let line = run.evaluation.fd_infinity.as_ref()?;
        let usable = !line.sizes.is_empty() && line.sizes.len() == line.distances.len() && !line.sizes.contains(&0);
        usable.then_some((run, line, metric.value))
    };
    let lines: Vec<(&Run<'_>, &Extrapolation, f64)> = row.values().filter_map(of_run).collect();
    let sizes = || lines.iter().flat_map(|(_, line, _)| line.sizes.iter().copied());
    let x = Axis::inverse(sizes().min()?, sizes().max()?);
    let fewest = x.ends()[1];
    let fitted = |line: &Extrapolation| line.intercept + line.slope * fewest;
    let shown = lines.iter().flat_map(|(_, l, _)| l.distances.iter().copied().chain([l.intercept, fitted(l)]));
    let mut plot = Plot::new(x, Axis::nice(shown), "samples N (linear in 1/N)", &row.label().replace('∞', ""));
    let (mut legend, mut summary) = (Vec::new(), Vec::new());
    for (run, line, value) in &lines {
        let class = format!("{} thin", svg::line_class(run.index, 1));
        plot.line(&[(0.0, line.intercept), (fewest, fitted(line))], &class);
        for (size, distance) in line.sizes.iter().zip(&line.distances) {
            plot.mark(1.0 / *size as f64, *distance, run.index);
        }
        plot.ring(0.0, line.intercept, run.index);
        let value = fixed(*value, row.places);
        legend.push(LegendEntry { key: svg::key(run.index, Some(1), true), text: format!("{}: {value}", run.name) });
        summary.push(format!("{}: {value} at infinitely many samples", run.name));
    }
    let (arrow, _) = table::arrow(row.higher);
    let title = format!("{} {arrow}: distance against the number of samples", row.label());
    let note = "Each mark is the distance of a random subset; the least-squares line in 1/N meets the left edge at \
                the extrapolated distance (ring)."
        .to_owned();
    Some(Figure { svg: plot.finish(id, &title, &summary.join("; ")), title, note, legend })
}
