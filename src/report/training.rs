//! Training runs: losses, and metrics of snapshots, against the images seen in thousands.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use d2o_evaluations::result::{Evaluation, digits, higher_is_better, place};
use fs_err as fs;
use serde_json::Value;

use super::compare::{self, Run, comparable, is_share};
use super::plots::{Figure, LegendEntry};
use super::svg::{self, Axis, Plot};
use super::{number, table, text};
use crate::cli::Titled;

/// Name of the number of images seen, in thousands.
const KIMG: &str = "Progress/kimg";
/// Prefixes of the names of losses and metrics.
const LOSS: &str = "Loss/";
const METRIC: &str = "Metrics/";
/// Ratio of the largest to the smallest value above which an axis is logarithmic.
const WIDE: f64 = 30.0;
/// Most points of a curve for which the points are marked.
const MARKED: usize = 40;

/// A log of a run, `stats.jsonl` or `metrics.jsonl`.
#[derive(Debug)]
pub(super) struct Log {
    title: String,
    /// Index of the colour of its curves.
    index: usize,
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    kimg: f64,
    /// Mean, weight and 95 % interval by name.
    values: BTreeMap<String, Point>,
    snapshot: Option<String>,
    evaluation: Option<Evaluation>,
}

#[derive(Debug, Clone, Copy)]
struct Point {
    /// NaN if the logged mean is not finite.
    mean: f64,
    /// Number of values behind the mean.
    count: f64,
    ci95: Option<[f64; 2]>,
}

/// Reads `logs`. Logs with the same title have the same colour.
///
/// # Errors
/// If a file cannot be read or has neither losses nor metrics, a line is not a JSON object or lacks the images seen, or
/// a result has another schema version.
pub(super) fn read(logs: &[Titled]) -> anyhow::Result<Vec<Log>> {
    let mut titles: Vec<&str> = Vec::new();
    let mut found = Vec::new();
    for log in logs {
        let index = titles.iter().position(|t| *t == log.title).unwrap_or(titles.len());
        if index == titles.len() {
            titles.push(&log.title);
        }
        let text = fs::read_to_string(&log.path)?;
        let mut lines: Vec<Line> = text
            .lines()
            .enumerate()
            .map(|(i, text)| line(text).with_context(|| format!("line {}", i + 1)))
            .collect::<anyhow::Result<_>>()
            .with_context(|| format!("cannot plot `{}`", log.path.display()))?;
        let plotted = lines.iter().any(|l| !l.values.is_empty());
        anyhow::ensure!(plotted, "cannot plot `{}`: it holds neither losses nor metrics", log.path.display());
        lines.sort_by(|a, b| a.kimg.total_cmp(&b.kimg));
        found.push(Log { title: log.title.clone(), index, lines });
    }
    Ok(found)
}

fn line(text: &str) -> anyhow::Result<Line> {
    let value: Value = serde_json::from_str(text)?;
    let object = value.as_object().context("expected a JSON object")?;
    let number = |name: &str, key: &str| object.get(name)?.get(key)?.as_f64();
    let kimg = number(KIMG, "mean").with_context(|| format!("missing `{KIMG}`"))?;
    let plotted = object.keys().filter(|name| name.starts_with(LOSS) || name.starts_with(METRIC));
    let point = |name: &String| Point {
        mean: number(name, "mean").unwrap_or(f64::NAN),
        count: number(name, "num").unwrap_or(1.0),
        ci95: object.get(name).and_then(|v| serde_json::from_value(v.get("ci95")?.clone()).ok()),
    };
    let evaluation = object.get("evaluation").filter(|v| !v.is_null());
    Ok(Line {
        kimg,
        values: plotted.map(|name| (name.clone(), point(name))).collect(),
        snapshot: object.get("snapshot").and_then(Value::as_str).map(str::to_owned),
        evaluation: evaluation.map(super::evaluation_of).transpose()?,
    })
}

/// Figures of the losses in `logs`, each with all runs. With `smooth`, values are averaged over that many thousand
/// images.
pub(super) fn losses(logs: &[Log], smooth: Option<f64>) -> Vec<Figure> {
    let mut groups: BTreeMap<(usize, String), BTreeSet<String>> = BTreeMap::new();
    for name in logs.iter().flat_map(|l| &l.lines).flat_map(|l| l.values.keys()) {
        if let Some(short) = name.strip_prefix(LOSS) {
            groups.entry(group_of(short)).or_default().insert(name.clone());
        }
    }
    let figure = |(i, ((_, title), names)): (usize, ((usize, String), BTreeSet<String>))| {
        loss_figure(logs, &title, &names.into_iter().collect::<Vec<_>>(), smooth, &format!("loss-{i}"))
    };
    groups.into_iter().enumerate().map(figure).collect()
}

/// Order and title of the figure of a loss. The losses of both networks share a figure, as do values of real and
/// generated images.
fn group_of(loss: &str) -> (usize, String) {
    match loss.rsplit_once('/') {
        Some((_, "loss")) | None if loss.ends_with("loss") => (0, "Loss".to_owned()),
        Some(("G" | "D", rest)) => (1, capitalised(rest)),
        Some((what, _)) => (2, capitalised(what)),
        None => (1, capitalised(loss)),
    }
}

fn capitalised(name: &str) -> String {
    let text = name.replace(['_', '/'], " ");
    let mut letters = text.chars();
    let first: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
    first + letters.as_str()
}

/// Name of a loss in a legend.
fn loss_name(name: &str) -> String {
    let short = name.strip_prefix(LOSS).unwrap_or(name);
    match short.split_once('/') {
        Some(("G", "loss")) => "generator".to_owned(),
        Some(("D", "loss")) => "discriminator".to_owned(),
        Some((what, "loss")) => what.to_owned(),
        Some(("G" | "D", rest)) => rest.replace('_', " "),
        Some((_, rest)) => rest.replace(['_', '/'], " "),
        None => short.replace('_', " "),
    }
}

/// The values of one loss of one run.
struct LossCurve<'a> {
    log: &'a Log,
    /// Index of the loss in its figure.
    loss: usize,
    points: Vec<(f64, Point)>,
}

fn loss_figure(logs: &[Log], title: &str, names: &[String], smooth: Option<f64>, id: &str) -> Figure {
    // Colours mark the losses of a single run. With several runs, colours mark runs and dashes mark losses.
    let several = logs.iter().map(|l| l.index).collect::<BTreeSet<_>>().len() > 1;
    let all_of =
        |log| names.iter().enumerate().map(move |(loss, name)| LossCurve { log, loss, points: points(log, name) });
    let curves: Vec<LossCurve<'_>> = logs.iter().flat_map(all_of).filter(|c| !c.points.is_empty()).collect();
    let every = || curves.iter().flat_map(|c| &c.points);
    let all: Vec<f64> = every().map(|p| p.1.mean).collect();
    let x = Axis::tight(every().map(|p| p.0));
    let y = Axis::log_beyond(WIDE, &all);
    let y_label = if y.is_log() { "log scale" } else { "" };
    let mut plot = Plot::new(x, y, "thousand images (kimg)", y_label);
    let (mut legend, mut summary, mut lines) = (Vec::new(), Vec::new(), Vec::new());
    for LossCurve { log, loss, points } in &curves {
        let (index, dash) = if several { (log.index, *loss) } else { (*loss, 0) };
        let class = svg::line_class(index, dash);
        let raw: Vec<(f64, f64)> = points.iter().map(|(x, p)| (*x, p.mean)).collect();
        match smooth {
            Some(width) => {
                plot.line(&raw, &format!("{class} faint"));
                lines.push((smoothed(points, width), class));
            }
            None => lines.push((raw, class)),
        }
        let name = loss_name(&names[*loss]);
        let text = if several { format!("{}: {name}", log.title) } else { name };
        legend.push(LegendEntry { key: svg::key(index, Some(dash), false), text: text.clone() });
        if let Some((kimg, last)) = points.last() {
            summary.push(format!("{text}: {} at {kimg} kimg", digits(last.mean, 4)));
        }
    }
    // Smoothed curves are drawn over all raw curves.
    lines.iter().for_each(|(points, class)| plot.line(points, class));
    let note = smooth
        .map_or_else(String::new, |width| format!("Moving average over {width} kimg; faint curves: logged values."));
    Figure { svg: plot.finish(id, title, &summary.join("; ")), title: title.to_owned(), note, legend }
}

fn points(log: &Log, name: &str) -> Vec<(f64, Point)> {
    log.lines.iter().filter_map(|l| Some((l.kimg, *l.values.get(name)?))).collect()
}

/// Moving average: the mean of all values within `width / 2` of each point, weighted by the number of values behind
/// each. Values that are not finite are left out of the means and remain gaps.
fn smoothed(points: &[(f64, Point)], width: f64) -> Vec<(f64, f64)> {
    let (mut from, mut to) = (0, 0);
    let half = 0.5 * width * (1.0 + 1e-9);
    let each = |(x, point): &(f64, Point)| {
        while to < points.len() && points[to].0 <= x + half {
            to += 1;
        }
        while points[from].0 < x - half {
            from += 1;
        }
        let within = || points[from..to].iter().map(|(_, p)| p).filter(|p| p.mean.is_finite());
        let count: f64 = within().map(|p| p.count).sum();
        let mean = within().map(|p| p.mean * p.count).sum::<f64>() / count;
        (*x, if point.mean.is_finite() { mean } else { f64::NAN })
    };
    points.iter().map(each).collect()
}

/// A curve of one metric of one run.
struct Curve<'a> {
    log: &'a Log,
    /// One of its evaluations, to check what the curve is comparable with.
    example: Option<Run<'a>>,
    points: Vec<(f64, Point, Option<&'a str>)>,
}

/// Figures of the metrics of snapshots in `logs`. Curves that are not comparable are in different figures.
pub(super) fn metrics(logs: &[Log]) -> Vec<Figure> {
    let names: BTreeSet<&str> = logs
        .iter()
        .flat_map(|l| &l.lines)
        .flat_map(|l| l.values.keys())
        .filter_map(|n| n.strip_prefix(METRIC))
        .collect();
    let mut names: Vec<&str> = names.into_iter().collect();
    names.sort_by_key(|name| place(name));
    let mut figures = Vec::new();
    for name in names {
        let mut found: Vec<Vec<Curve<'_>>> = Vec::new();
        for curve in logs.iter().flat_map(|log| curves(log, name)) {
            let fits = |others: &&mut Vec<Curve<'_>>| others.iter().all(|other| same(name, other, &curve));
            match found.iter_mut().find(fits) {
                Some(others) => others.push(curve),
                None => found.push(vec![curve]),
            }
        }
        for curves in found {
            figures.push(metric_figure(name, &curves, &format!("metric-{}", figures.len())));
        }
    }
    figures
}

/// The values of metric `name` in `log`, one curve per setting in which they were measured.
fn curves<'a>(log: &'a Log, name: &str) -> Vec<Curve<'a>> {
    let mut found: Vec<Curve<'a>> = Vec::new();
    for line in &log.lines {
        let Some(point) = line.values.get(&format!("{METRIC}{name}")) else { continue };
        let run =
            line.evaluation.as_ref().map(|evaluation| Run { name: log.title.clone(), index: log.index, evaluation });
        let here = Curve { log, example: run, points: vec![(line.kimg, *point, line.snapshot.as_deref())] };
        match found.iter_mut().find(|c| same(name, c, &here)) {
            Some(curve) => curve.points.extend(here.points),
            None => found.push(here),
        }
    }
    found
}

/// Whether two curves of metric `name` are comparable. Without evaluations, only curves of the same log are.
fn same(name: &str, a: &Curve<'_>, b: &Curve<'_>) -> bool {
    match (&a.example, &b.example) {
        (Some(x), Some(y)) => comparable(name, x, y),
        (None, None) => std::ptr::eq(a.log, b.log),
        _ => false,
    }
}

fn metric_figure(name: &str, curves: &[Curve<'_>], id: &str) -> Figure {
    let higher = higher_is_better(name);
    let (arrow, _) = table::arrow(higher);
    let example = curves.first().and_then(|c| c.example.as_ref());
    let title = example.map_or_else(|| name.replace('_', " "), |run| run.evaluation.title_of(name));
    let all = || curves.iter().flat_map(|c| &c.points);
    let ends: Vec<f64> = all().flat_map(|(_, p, _)| p.ci95.into_iter().flatten().chain([p.mean])).collect();
    let y = if is_share(name) { Axis::nice(ends.into_iter().chain([0.0])) } else { Axis::log_beyond(WIDE, &ends) };
    let y_label = if y.is_log() { "log scale" } else { "" };
    let mut plot = Plot::new(Axis::tight(all().map(|p| p.0)), y, "thousand images (kimg)", y_label);
    let places = compare::places(name, &all().map(|(_, p, _)| p.mean).collect::<Vec<_>>());
    let (mut legend, mut summary) = (Vec::new(), Vec::new());
    for curve in curves {
        let index = curve.log.index;
        let line: Vec<(f64, f64)> = curve.points.iter().map(|(x, p, _)| (*x, p.mean)).collect();
        plot.line(&line, &svg::line_class(index, index));
        for (x, point, _) in curve.points.iter().filter(|(_, p, _)| p.mean.is_finite()) {
            if let Some(interval) = point.ci95 {
                plot.bar_y(*x, interval, index);
            }
            if curve.points.len() <= MARKED {
                plot.mark(*x, point.mean, index);
            }
        }
        let best = best(curve, higher).map_or_else(String::new, |(kimg, point, snapshot)| {
            let file = snapshot.map_or_else(String::new, |s| format!(" ({s})"));
            format!(": best {} at {} kimg{file}", number::fixed(point.mean, places), digits(*kimg, 6))
        });
        let text = format!("{}{best}", curve.log.title);
        legend
            .push(LegendEntry { key: svg::key(index, Some(index), curve.points.len() <= MARKED), text: text.clone() });
        summary.push(text);
    }
    let note = example.map_or_else(
        || "The log does not record how the metric was measured.".to_owned(),
        |run| {
            let unverified = if run.evaluation.is_verified(name) { "" } else { " Unverified weights." };
            let runs = [run.clone()];
            let setting = compare::groups(&runs, None).first().map(text::caption).unwrap_or_default();
            format!("{setting}{unverified}")
        },
    );
    let title = format!("{title} {arrow} of snapshots").replace("  ", " ");
    Figure { svg: plot.finish(id, &title, &summary.join("; ")), title, note, legend }
}

/// The point with the best value.
fn best<'a, 'b>(curve: &'b Curve<'a>, higher: Option<bool>) -> Option<&'b (f64, Point, Option<&'a str>)> {
    let higher = higher?;
    let finite = curve.points.iter().filter(|(_, p, _)| p.mean.is_finite());
    finite.reduce(|a, b| if a.1.mean != b.1.mean && (b.1.mean > a.1.mean) == higher { b } else { a })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::report::example::evaluation;

    fn log(title: &str, lines: &[Value]) -> (tempfile::TempDir, Titled) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        fs::write(&path, lines.iter().map(|l| format!("{l}\n")).collect::<String>()).unwrap();
        (dir, Titled { title: title.to_owned(), path })
    }

    fn mean(value: f64) -> Value {
        json!({"num": 1, "mean": value, "std": 0})
    }

    #[test]
    fn losses_that_belong_together_share_a_figure() {
        let names =
            ["Loss/G/loss", "Loss/D/loss", "Loss/D/r1_loss", "Loss/logits/real", "Loss/logits/fake", "Loss/r1_penalty"];
        let line = |kimg: f64| {
            let mut line = json!({KIMG: mean(kimg), "Timing/total_sec": mean(1.0)});
            names.iter().for_each(|n| line[n] = mean(kimg));
            line
        };
        let (_dir, titled) = log("run", &[line(1.0), line(2.0)]);
        let logs = read(&[titled]).unwrap();
        let figures = losses(&logs, None);
        let shown: Vec<(&str, Vec<&str>)> =
            figures.iter().map(|f| (f.title.as_str(), f.legend.iter().map(|l| l.text.as_str()).collect())).collect();
        assert_eq!(
            shown,
            [
                ("Loss", vec!["discriminator", "generator"]),
                ("R1 loss", vec!["r1 loss"]),
                ("R1 penalty", vec!["r1 penalty"]),
                ("Logits", vec!["fake", "real"])
            ]
        );
        assert!(metrics(&logs).is_empty());
        // With several runs, the legend names the run. With smoothing, the logged values stay visible.
        let (_other, second) = log("other", &[line(1.0), line(3.0)]);
        let both = read(&[Titled { title: "run".to_owned(), path: second.path.clone() }, second]).unwrap();
        let figure = &losses(&both, Some(0.5))[0];
        let texts: Vec<&str> = figure.legend.iter().map(|l| l.text.as_str()).collect();
        assert_eq!(texts, ["run: discriminator", "run: generator", "other: discriminator", "other: generator"]);
        assert_eq!(figure.svg.matches("faint").count(), 4);
    }

    #[test]
    fn means_are_weighted_and_leave_gaps() {
        let point = |x: f64, mean: f64, count: f64| (x, Point { mean, count, ci95: None });
        let points = [point(0.0, 1.0, 1.0), point(1.0, 5.0, 3.0), point(2.0, f64::NAN, 1.0), point(3.0, 7.0, 1.0)];
        let found = smoothed(&points, 2.0);
        assert_eq!((found[0], found[1]), ((0.0, 4.0), (1.0, 4.0)));
        assert!(found[2].1.is_nan());
        assert_eq!(found[3], (3.0, 7.0));
        assert_eq!(smoothed(&points, 0.1)[1], (1.0, 5.0));
    }

    #[test]
    fn curves_of_snapshots_share_a_figure_if_they_are_comparable() {
        let line = |kimg: f64, fd: f64, count: usize| {
            let mut e = evaluation("s", &[("fd", fd)]);
            e.samples.count = Some(count);
            json!({KIMG: mean(kimg), "Metrics/fd": {"num": 1, "mean": fd, "std": 0, "ci95": [fd - 1.0, fd + 1.0]},
                   "snapshot": format!("s-{kimg}"), "evaluation": e})
        };
        let (_a, first) = log("a", &[line(1.0, 9.0, 500), line(2.0, 4.0, 500), line(3.0, 5.0, 500)]);
        let (_b, second) = log("b", &[line(1.0, 8.0, 500)]);
        let (_c, third) = log("c", &[line(1.0, 8.0, 100)]);
        let logs = read(&[first, second, third]).unwrap();
        let figures = metrics(&logs);
        let legends: Vec<Vec<&str>> =
            figures.iter().map(|f| f.legend.iter().map(|l| l.text.as_str()).collect()).collect();
        assert_eq!(
            legends,
            [
                vec!["a: best 4.0000 at 2 kimg (s-2)", "b: best 8.0000 at 1 kimg (s-1)"],
                vec!["c: best 8.0000 at 1 kimg (s-1)"]
            ]
        );
        assert!(figures[0].note.starts_with("Protocol edm, 500 images, reference: r.npz"), "{}", figures[0].note);
        // Without evaluations only curves of one log are known to be comparable.
        let bare = |title: &str| log(title, &[json!({KIMG: mean(1.0), "Metrics/fd": mean(3.0)})]);
        let ((_d, x), (_e, y)) = (bare("x"), bare("y"));
        assert_eq!(metrics(&read(&[x, y]).unwrap()).len(), 2);
    }

    #[test]
    fn logs_that_are_none_are_refused() {
        let refused = |text: &str, words: &str| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("stats.jsonl");
            fs::write(&path, text).unwrap();
            let error = format!("{:#}", read(&[Titled { title: "t".to_owned(), path }]).unwrap_err());
            assert!(error.contains("stats.jsonl") && error.contains(words), "{error}");
        };
        refused("not json", "line 1");
        refused("{\"Progress/kimg\":{\"mean\":1.0}}\n[1]\n", "line 2: expected a JSON object");
        refused("{\"Loss/G/loss\":{\"mean\":1.0}}", "missing `Progress/kimg`");
        refused("{\"Progress/kimg\":{\"mean\":1.0}}", "neither losses nor metrics");
        refused(
            "{\"Progress/kimg\":{\"mean\":1.0},\"Metrics/fd\":{\"mean\":1.0},\"evaluation\":{\"schema\":99}}",
            "its schema is version 99",
        );
    }
}
