//! Comparability of numbers: runs in tables, metrics in rows, differences from a baseline.

use d2o_evaluations::protocol::INCEPTION;
use d2o_evaluations::result::{
    Deviation, DeviationKind, Evaluation, Extractor, ImageSet, Metric, higher_is_better, place,
};

/// Protocol entries that are not compared as details: the name is compared on its own; intervals and borrowed rules do
/// not change values.
const DESCRIPTIVE: [&str; 3] = ["name", "intervals", "borrowed"];

/// An evaluation with its name on the page.
#[derive(Debug, Clone)]
pub(super) struct Run<'a> {
    /// Title, made unique.
    pub(super) name: String,
    /// Index of its colour and mark.
    pub(super) index: usize,
    pub(super) evaluation: &'a Evaluation,
}

/// Names `evaluations` by their titles, with the protocol or a number where titles are equal.
pub(super) fn runs(evaluations: &[Evaluation]) -> Vec<Run<'_>> {
    let same = |a: &Evaluation, b: &Evaluation| a.samples.title == b.samples.title;
    let mut runs: Vec<Run<'_>> = Vec::new();
    for (index, evaluation) in evaluations.iter().enumerate() {
        let title = &evaluation.samples.title;
        let others = || evaluations.iter().filter(|e| same(e, evaluation));
        let protocols = others().any(|e| e.protocol_name() != evaluation.protocol_name());
        let name = if protocols { format!("{title} ({})", evaluation.protocol_name()) } else { title.clone() };
        let taken = |name: &str| runs.iter().any(|r| r.name == name);
        let numbered = (2..).map(|i| format!("{name} #{i}")).find(|n| !taken(n));
        let name = if taken(&name) { numbered.unwrap_or(name) } else { name };
        runs.push(Run { name, index, evaluation });
    }
    runs
}

/// A setting that must be equal for any metric of two runs to be comparable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Aspect {
    /// Name of the setting.
    pub(super) name: String,
    /// Value for comparison.
    key: String,
    /// Value for display.
    pub(super) shown: String,
}

/// All settings of a run that must be equal, in display order. An unknown number of images differs from every other
/// number.
pub(super) fn setting(run: &Run<'_>) -> Vec<Aspect> {
    let e = run.evaluation;
    let aspect = |name: &str, key: String, shown: String| Aspect { name: name.to_owned(), key, shown };
    let plain = |name: &str, text: String| aspect(name, text.clone(), text);
    let count = |n: Option<usize>| n.map_or_else(|| "an unknown number".to_owned(), |n| n.to_string());
    let mut found = vec![plain("protocol", e.protocol_name().to_owned())];
    let images = e.samples.count.map_or_else(|| format!("unknown, run {}", run.index), |n| n.to_string());
    found.push(aspect("number of images", images, count(e.samples.count)));
    found.push(match &e.reference {
        Some(r) => aspect("reference", format!("{} {:?}", r.sha256, r.count), reference(r)),
        None => plain("reference", "none".to_owned()),
    });
    let mut deviations: Vec<String> = e.deviations.iter().filter(|d| is_general(d)).map(without_subject).collect();
    deviations.sort_unstable();
    found.push(plain("deviations", if deviations.is_empty() { "none".to_owned() } else { deviations.join("; ") }));
    let details = e.protocol.iter().filter(|(key, _)| !DESCRIPTIVE.contains(&key.as_str()));
    found.extend(details.map(|(key, value)| plain(&format!("protocol: {}", key.replace('_', " ")), value.clone())));
    found
}

fn same_setting(a: &[Aspect], b: &[Aspect]) -> bool {
    a.iter().map(|aspect| &aspect.key).eq(b.iter().map(|aspect| &aspect.key))
}

/// Path, number of images and short hash of a reference.
pub(super) fn reference(set: &ImageSet) -> String {
    let count = set.count.map_or_else(String::new, |n| format!("{n} images, "));
    format!("{} ({count}{})", set.path, short(&set.sha256))
}

/// The first 12 characters of a hash.
pub(super) fn short(sha256: &str) -> &str {
    sha256.get(..12).unwrap_or(sha256)
}

/// A deviation without its subject, which can be a file name.
fn without_subject(deviation: &Deviation) -> String {
    format!("{}: {} instead of {}", deviation.kind.name(), deviation.found, deviation.expected)
}

/// Whether a deviation concerns all metrics of a run. Another extractor of the samples concerns rows instead, which are
/// separated by extractor.
fn is_general(deviation: &Deviation) -> bool {
    let of_network = deviation.kind == DeviationKind::Extractor && deviation.subject == "samples";
    !of_network && affected_metrics(deviation).is_none()
}

/// Metrics that a deviation concerns; `None` for all.
fn affected_metrics(deviation: &Deviation) -> Option<&'static [&'static str]> {
    const NEIGHBOURS: [&str; 5] = ["precision", "recall", "density", "coverage", "f_score"];
    const CLIP: [&str; 2] = ["clip_fid", "clip_fd"];
    let subject = deviation.subject.as_str();
    match subject {
        "precision and recall" => Some(&NEIGHBOURS),
        "density and coverage" => Some(&NEIGHBOURS[2..4]),
        "CLIP-FID" => Some(&CLIP),
        "KID" => Some(&["kid", "kd"]),
        "the Inception Score" => Some(&["is"]),
        _ => None,
    }
}

/// Whether metric `name` of two runs is comparable, given that their [`setting`] is equal.
fn same_metric(name: &str, a: &Evaluation, b: &Evaluation) -> bool {
    let special = |e: &Evaluation| {
        let of = |d: &&Deviation| affected_metrics(d).is_some_and(|names| names.contains(&name));
        let mut all: Vec<String> = e.deviations.iter().filter(of).map(without_subject).collect();
        all.sort_unstable();
        all
    };
    let clip = |e: &Evaluation| {
        let own = e.clip_reference.as_ref().filter(|_| name.starts_with("clip_"));
        own.map(|r| r.sha256.clone())
    };
    let networks = match (a.extractor_of(name), b.extractor_of(name)) {
        (Some(x), Some(y)) => same_network(x, y),
        _ => false,
    };
    networks && special(a) == special(b) && clip(a) == clip(b)
}

/// Whether both have the same weights and the same preprocessing.
fn same_network(a: &Extractor, b: &Extractor) -> bool {
    let weights = match (&a.weights_digest, &b.weights_digest) {
        (Some(x), Some(y)) => x == y,
        _ => a.sha256 == b.sha256,
    };
    let preprocessing = match (&a.preprocessing, &b.preprocessing) {
        (Some(x), Some(y)) => x.agrees_with(y),
        (x, y) => x.is_none() && y.is_none(),
    };
    weights && preprocessing && a.name == b.name && a.dims == b.dims
}

/// Whether metric `name` of two runs is comparable.
pub(super) fn comparable(name: &str, a: &Run<'_>, b: &Run<'_>) -> bool {
    same_setting(&setting(a), &setting(b)) && same_metric(name, a.evaluation, b.evaluation)
}

/// Content of a table cell.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    /// The run does not have this metric.
    Absent,
    /// The metric was requested but could not be computed.
    Failed,
    /// A value.
    Value {
        /// The value with its interval.
        metric: Metric,
        /// Whether it is the best of at least two comparable values.
        best: bool,
        /// Difference from the baseline; `None` for the baseline itself, or if the baseline has no value.
        delta: Option<f64>,
    },
}

/// One metric with one network, over the runs of a table.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// Key of the metric in results.
    pub(super) name: String,
    /// Title of the metric.
    pub(super) title: String,
    /// Network, unless the title implies it.
    pub(super) network: Option<String>,
    /// Whether the network has the weights of a published file.
    pub(super) verified: bool,
    /// Whether higher is better, if known.
    pub(super) higher: Option<bool>,
    /// One cell per run of the table.
    pub(super) cells: Vec<Cell>,
    /// Decimal places of its numbers.
    pub(super) places: usize,
}

impl Row {
    /// Title and network as one text.
    pub(super) fn label(&self) -> String {
        self.network.as_ref().map_or_else(|| self.title.clone(), |network| format!("{} ({network})", self.title))
    }

    /// Values, each with the index of its run in the table.
    pub(super) fn values(&self) -> impl Iterator<Item = (usize, &Metric)> {
        self.cells.iter().enumerate().filter_map(|(i, cell)| match cell {
            Cell::Value { metric, .. } => Some((i, metric)),
            Cell::Absent | Cell::Failed => None,
        })
    }
}

/// Runs in one table.
#[derive(Debug, Clone)]
pub(super) struct Group<'a> {
    /// The runs, in the order they were given.
    pub(super) runs: Vec<&'a Run<'a>>,
    /// Settings shared by the runs.
    pub(super) setting: Vec<Aspect>,
    /// The metrics.
    pub(super) rows: Vec<Row>,
    /// Index of the baseline in `runs`, if it is among them.
    pub(super) baseline: Option<usize>,
}

/// Divides `runs` into tables. Differences are relative to the run named `baseline`; without a name, to the first run
/// of each table.
pub(super) fn groups<'a>(runs: &'a [Run<'a>], baseline: Option<&str>) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    for run in runs {
        let setting = setting(run);
        match groups.iter_mut().find(|g| same_setting(&g.setting, &setting)) {
            Some(group) => group.runs.push(run),
            None => groups.push(Group { runs: vec![run], setting, rows: Vec::new(), baseline: None }),
        }
    }
    for group in &mut groups {
        group.baseline = match baseline {
            Some(name) => group.runs.iter().position(|r| r.name == name),
            None => Some(0),
        };
        group.rows = rows(&group.runs, group.baseline);
    }
    groups
}

impl Group<'_> {
    /// Reasons why the numbers are not comparable with those of `other`, one per setting.
    pub(super) fn differences(&self, other: &Self) -> Vec<String> {
        let differs = |a: &&Aspect| !other.setting.iter().any(|b| b.name == a.name && b.key == a.key);
        let mut own: Vec<&Aspect> = self.setting.iter().filter(differs).collect();
        // Different protocols imply different details.
        if own.first().is_some_and(|a| a.name == "protocol") {
            own.retain(|a| !a.name.starts_with("protocol: "));
        }
        let tell = |a: &&Aspect| {
            let there = other.setting.iter().find(|b| b.name == a.name).map_or("none", |b| b.shown.as_str());
            format!("{}: {} instead of {there}", a.name, a.shown)
        };
        own.iter().map(tell).collect()
    }

    /// Displayed value of the setting `name`, e.g. `protocol`, `number of images`, `reference` or `deviations`; empty
    /// if there is none.
    pub(super) fn aspect(&self, name: &str) -> &str {
        self.setting.iter().find(|a| a.name == name).map_or("", |a| a.shown.as_str())
    }
}

/// The metrics of `runs`, in rows of comparable values.
fn rows(runs: &[&Run<'_>], baseline: Option<usize>) -> Vec<Row> {
    // Name of the metric and indices of the runs of each row.
    let mut found: Vec<(String, Vec<usize>)> = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        for name in run.evaluation.metrics.keys() {
            let fits = |(other, members): &&mut (String, Vec<usize>)| {
                other == name && members.iter().all(|m| same_metric(name, runs[*m].evaluation, run.evaluation))
            };
            match found.iter_mut().find(fits) {
                Some((_, members)) => members.push(i),
                None => found.push((name.clone(), vec![i])),
            }
        }
    }
    found.sort_by_key(|(name, members)| (place(name), members[0]));
    found.into_iter().map(|(name, members)| row(runs, name, &members, baseline)).collect()
}

fn row(runs: &[&Run<'_>], name: String, members: &[usize], baseline: Option<usize>) -> Row {
    let first = runs[members[0]].evaluation;
    let higher = higher_is_better(&name);
    let value = |i: usize| members.contains(&i).then(|| runs[i].evaluation.metrics.get(&name)).flatten();
    let values: Vec<f64> = members.iter().filter_map(|i| value(*i)).map(|m| m.value).collect();
    let best = higher
        .filter(|_| values.len() > 1)
        .and_then(|higher| values.iter().copied().reduce(|a, b| if (b > a) == higher { b } else { a }));
    let base = baseline.and_then(&value).map(|m| m.value);
    let cell = |i: usize| match value(i) {
        Some(metric) => Cell::Value {
            metric: *metric,
            best: best == Some(metric.value),
            delta: base.filter(|_| baseline != Some(i)).map(|base| metric.value - base),
        },
        None if runs[i].evaluation.failed.contains_key(&name) => Cell::Failed,
        None => Cell::Absent,
    };
    let cells = (0..runs.len()).map(cell).collect();
    let (title, network) = first.parts_of(&name);
    let (network, verified, places) = (network.map(str::to_owned), first.is_verified(&name), places(&name, &values));
    Row { title, network, verified, higher, cells, places, name }
}

/// Whether a metric ranges from 0 to about 1.
pub(super) fn is_share(name: &str) -> bool {
    matches!(name, "precision" | "recall" | "density" | "coverage" | "f_score")
}

/// Decimal places for `values` of metric `name`: four for a share, otherwise as for five significant digits of the
/// largest value (at most 10).
pub(super) fn places(name: &str, values: &[f64]) -> usize {
    const SHARE: usize = 4;
    const MOST: i32 = 10;
    if is_share(name) {
        return SHARE;
    }
    let largest = values.iter().filter(|v| v.is_finite()).fold(0.0_f64, |m, v| m.max(v.abs()));
    if largest == 0.0 {
        return SHARE;
    }
    #[allow(clippy::cast_possible_truncation, reason = "an exponent of f64")]
    let exponent = largest.log10().floor() as i32;
    usize::try_from((4 - exponent).clamp(0, MOST)).unwrap_or(0)
}

/// Display name of a feature network.
pub(super) fn network(extractor: &Extractor) -> String {
    if extractor.name == INCEPTION { "Inception 2015-12-05".to_owned() } else { extractor.name.clone() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::report::example::{deviation, evaluation, extractor};

    fn value(cell: &Cell) -> Option<(f64, bool, Option<f64>)> {
        match cell {
            Cell::Value { metric, best, delta } => Some((metric.value, *best, *delta)),
            _ => None,
        }
    }

    fn shown(row: &Row) -> Vec<Option<(f64, bool, Option<f64>)>> {
        row.cells.iter().map(value).collect()
    }

    #[test]
    fn runs_of_one_setting_share_a_table() {
        let all = [
            evaluation("a", &[("fd", 4.0), ("precision", 0.5), ("mystery", 1.0)]),
            evaluation("b", &[("fd", 3.0), ("precision", 0.25), ("mystery", 2.0)]),
            evaluation("c", &[("fd", 3.0)]),
        ];
        let runs = runs(&all);
        let [group] = &groups(&runs, None)[..] else { panic!("one table") };
        let titles: Vec<String> = group.rows.iter().map(Row::label).collect();
        assert_eq!(titles, ["FD (net)", "precision (net)", "mystery"]);
        assert_eq!(
            shown(&group.rows[0]),
            [Some((4.0, false, None)), Some((3.0, true, Some(-1.0))), Some((3.0, true, Some(-1.0)))]
        );
        assert_eq!(shown(&group.rows[1]), [Some((0.5, true, None)), Some((0.25, false, Some(-0.25))), None]);
        // For an unknown metric, no value is the best.
        assert_eq!(shown(&group.rows[2])[..2], [Some((1.0, false, None)), Some((2.0, false, Some(1.0)))]);
        let [group] = &groups(&runs, Some("b"))[..] else { panic!("one table") };
        assert_eq!(shown(&group.rows[0])[0], Some((4.0, false, Some(1.0))));
    }

    #[test]
    fn what_differs_in_a_setting_stands_in_another_table() {
        let base = evaluation("a", &[("fd", 4.0)]);
        let reference = |e: &mut Evaluation| e.reference.as_mut().unwrap().sha256 = "f".repeat(64);
        type Change<'a> = (&'a dyn Fn(&mut Evaluation), &'a str);
        let changes: [Change<'_>; 7] = [
            (&|e| _ = e.protocol.insert("name".to_owned(), "clean".to_owned()), "protocol: clean instead of edm"),
            (
                &|e| _ = e.protocol.insert("covariance".to_owned(), "N".to_owned()),
                "protocol: covariance: N instead of N - 1",
            ),
            (&|e| e.samples.count = Some(7), "number of images: 7 instead of 500"),
            (&|e| e.samples.count = None, "number of images: an unknown number instead of 500"),
            (&reference, "reference: r.npz (2460 images, ffffffffffff) instead of r.npz (2460 images, rrrrrrrrrrrr)"),
            (&|e| e.reference = None, "reference: none instead of r.npz (2460 images, rrrrrrrrrrrr)"),
            (
                &|e| e.deviations.push(deviation(DeviationKind::Quantiser, "samples", "x", "y")),
                "deviations: quantiser: x instead of y instead of none",
            ),
        ];
        for (change, reason) in changes {
            let mut other = Evaluation { metrics: base.metrics.clone(), ..evaluation("b", &[]) };
            change(&mut other);
            let all = [base.clone(), other];
            let runs = runs(&all);
            let groups = groups(&runs, None);
            assert_eq!(groups.len(), 2, "{reason}");
            assert_eq!(groups[1].differences(&groups[0]), [reason]);
            assert_eq!(shown(&groups[1].rows[0]), [Some((4.0, false, None))], "neither the best nor a difference");
        }
        // Two unknown numbers of images are not equal.
        let unknown = Evaluation { samples: ImageSet { count: None, ..base.samples.clone() }, ..base.clone() };
        let all = [unknown.clone(), unknown];
        assert_eq!(groups(&runs(&all), None).len(), 2);
        // The description of intervals does not change values.
        let mut other = base.clone();
        other.protocol.insert("intervals".to_owned(), "other".to_owned());
        let all = [base, other];
        assert_eq!(groups(&runs(&all), None).len(), 1);
    }

    #[test]
    fn each_network_has_rows_of_its_own() {
        let base = evaluation("a", &[("fd", 4.0), ("precision", 0.5), ("recall", 0.5), ("kd", 0.1)]);
        let with = |change: &dyn Fn(&mut Extractor)| {
            let mut other = base.clone();
            change(other.extractors.get_mut("features").unwrap());
            other
        };
        let lone = |other: Evaluation| {
            let all = [base.clone(), other];
            let runs = runs(&all);
            let groups = groups(&runs, None);
            assert_eq!(groups.len(), 1);
            let alone = groups[0].rows.iter().filter(|r| r.cells.contains(&Cell::Absent)).map(|r| r.name.clone());
            alone.collect::<Vec<_>>()
        };
        let all = ["fd", "fd", "precision", "precision", "recall", "recall", "kd", "kd"];
        assert_eq!(lone(with(&|x| x.weights_digest = Some("other".to_owned()))), all);
        assert_eq!(lone(with(&|x| x.name = "other".to_owned())), all);
        assert_eq!(lone(with(&|x| x.preprocessing = None)), all);
        // Another file with the same weights is the same network.
        assert!(lone(with(&|x| x.sha256 = "other".to_owned())).is_empty());
        // A deviation of some metrics does not separate the others.
        let deviates = |kind, subject: &str| {
            let mut other = base.clone();
            other.deviations.push(deviation(kind, subject, "5", "3"));
            lone(other)
        };
        assert_eq!(
            deviates(DeviationKind::Neighbours, "precision and recall"),
            ["precision", "precision", "recall", "recall"]
        );
        assert_eq!(deviates(DeviationKind::KidSubsets, "KID"), ["kd", "kd"]);
        let mut other = base.clone();
        other.extractors.insert("manifold".to_owned(), extractor("vgg16"));
        assert_eq!(lone(other), ["precision", "precision", "recall", "recall"]);
    }

    #[test]
    fn equal_titles_are_told_apart() {
        let mut clean = evaluation("a", &[]);
        clean.protocol.insert("name".to_owned(), "clean".to_owned());
        let all = [evaluation("b", &[]), evaluation("a", &[]), clean, evaluation("b", &[])];
        let names: Vec<String> = runs(&all).into_iter().map(|r| r.name).collect();
        assert_eq!(names, ["b", "a (edm)", "a (clean)", "b #2"]);
    }

    #[test]
    fn numbers_have_as_many_places_as_they_need() {
        assert_eq!(places("fd", &[272.774, 1.2]), 2);
        assert_eq!(places("kid", &[0.000_560_62]), 8);
        assert_eq!(places("precision", &[0.07]), 4);
        assert_eq!((places("fd", &[0.0]), places("fd", &[1e12]), places("fd", &[1e-30])), (4, 0, 10));
        let failed =
            Evaluation { failed: BTreeMap::from([("fd".to_owned(), "why".to_owned())]), ..evaluation("b", &[]) };
        let all = [evaluation("a", &[("fd", 1.0)]), failed];
        let runs = runs(&all);
        assert_eq!(groups(&runs, None)[0].rows[0].cells[1], Cell::Failed);
    }
}
