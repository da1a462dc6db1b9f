//! Tables of metrics over runs, as shown on the page.

use d2o_evaluations::result::Metric;
use serde::Serialize;

use super::compare::{Cell, Group, Row, is_share};
use super::forest::{self, Forest};
use super::number::{fixed, signed, spread};
use super::plots::{self, Figure};
use super::{svg, text};

/// A table with its plots and its LaTeX and Markdown versions.
#[derive(Debug, Serialize)]
pub(super) struct TableView {
    id: String,
    /// Number of the table, from 1.
    number: usize,
    /// Settings shared by its runs.
    setting: String,
    /// Deviations shared by its runs.
    deviations: Option<String>,
    /// Reasons why it is not comparable with the first table.
    reasons: Vec<String>,
    columns: Vec<Column>,
    rows: Vec<RowView>,
    /// Explanations of its marks.
    notes: Vec<&'static str>,
    /// Why there are no differences, if the requested baseline is not in this table.
    no_baseline: Option<String>,
    forests: Vec<Forest>,
    figures: Vec<Figure>,
    latex: String,
    markdown: String,
}

#[derive(Debug, Serialize)]
struct Column {
    name: String,
    /// Mark of the run, as SVG.
    key: String,
    /// Link to the description of the run.
    href: String,
    baseline: bool,
}

#[derive(Debug, Serialize)]
struct RowView {
    title: String,
    network: Option<String>,
    verified: bool,
    arrow: &'static str,
    /// The arrow in words.
    better: &'static str,
    cells: Vec<CellView>,
}

#[derive(Debug, Default, Serialize)]
struct CellView {
    text: String,
    /// Characters by which its fraction is shorter than the longest fraction of the column.
    pad: usize,
    best: bool,
    spread: Option<String>,
    delta: Option<String>,
    /// `better`, `worse` or `equal`, if known.
    side: Option<&'static str>,
}

/// The arrow for the better direction, and its meaning.
pub(super) fn arrow(higher: Option<bool>) -> (&'static str, &'static str) {
    match higher {
        Some(true) => ("↑", "higher is better"),
        Some(false) => ("↓", "lower is better"),
        None => ("", ""),
    }
}

/// The views of `groups`. `baseline` is the name of the requested baseline.
pub(super) fn views(groups: &[Group<'_>], baseline: Option<&str>) -> Vec<TableView> {
    let view = |(i, group): (usize, &Group<'_>)| {
        let id = format!("table-{}", i + 1);
        let columns = group.runs.iter().enumerate().map(|(c, run)| Column {
            name: run.name.clone(),
            key: svg::key(run.index, None, true),
            href: format!("#run-{}", run.index + 1),
            baseline: group.baseline == Some(c) && group.runs.len() > 1,
        });
        let missing = baseline.filter(|_| group.baseline.is_none());
        TableView {
            number: i + 1,
            setting: text::setting(group),
            deviations: Some(group.aspect("deviations")).filter(|d| *d != "none").map(str::to_owned),
            reasons: if i == 0 { Vec::new() } else { group.differences(&groups[0]) },
            columns: columns.collect(),
            rows: rows(group),
            notes: notes(group),
            no_baseline: missing.map(|name| format!("No differences: “{name}” cannot be compared with these runs.")),
            forests: forest::forests(group),
            figures: plots::of_group(group, &id),
            latex: text::latex_table(group),
            markdown: text::markdown_table(group),
            id,
        }
    };
    groups.iter().enumerate().map(view).collect()
}

fn notes(group: &Group<'_>) -> Vec<&'static str> {
    let of_cells = |is: &dyn Fn(&Metric, bool, Option<f64>) -> bool| {
        let mut cells = group.rows.iter().flat_map(|r| &r.cells);
        cells.any(|c| matches!(c, Cell::Value { metric, best, delta } if is(metric, *best, *delta)))
    };
    let notes = [
        (of_cells(&|_, best, _| best), "Bold: best of the comparable values in its row."),
        (of_cells(&|m, _, _| m.ci95.is_some()), "[a, b]: 95 % bootstrap interval."),
        (of_cells(&|m, _, _| m.ci95.is_none() && m.std.is_some()), "± s: standard deviation over splits or subsets."),
        (
            of_cells(&|_, _, delta| delta.is_some()),
            "Last line: difference from the baseline, green where better, red where worse.",
        ),
        (
            group.rows.iter().any(|r| !r.verified),
            "Unverified: the weights of the network are not those of a published file.",
        ),
    ];
    notes.into_iter().filter(|(applies, _)| *applies).map(|(_, note)| note).collect()
}

fn rows(group: &Group<'_>) -> Vec<RowView> {
    let mut rows: Vec<RowView> = group.rows.iter().map(row).collect();
    for column in 0..group.runs.len() {
        let places = |cell: &CellView| cell.text.rsplit_once('.').map_or(0, |(_, decimals)| decimals.len() + 1);
        let longest = rows.iter().map(|r| places(&r.cells[column])).max().unwrap_or(0);
        rows.iter_mut().for_each(|r| {
            let cell = &mut r.cells[column];
            cell.pad = longest - places(cell);
        });
    }
    rows
}

fn row(row: &Row) -> RowView {
    let (arrow, better) = arrow(row.higher);
    let cells = row.cells.iter().map(|cell| cell_view(row, cell)).collect();
    RowView { title: row.title.clone(), network: row.network.clone(), verified: row.verified, arrow, better, cells }
}

fn cell_view(row: &Row, cell: &Cell) -> CellView {
    match cell {
        Cell::Absent => CellView { text: "–".to_owned(), ..CellView::default() },
        Cell::Failed => CellView { text: "failed".to_owned(), ..CellView::default() },
        Cell::Value { metric, best, delta } => CellView {
            text: fixed(metric.value, row.places),
            best: *best,
            spread: spread(metric, row.places),
            delta: delta.map(|d| difference(row, metric, d)),
            side: delta.zip(row.higher).map(|(d, higher)| match d {
                0.0 => "equal",
                d if (d > 0.0) == higher => "better",
                _ => "worse",
            }),
            pad: 0,
        },
    }
}

/// A difference from the baseline. For metrics other than shares and KID, it is also given in percent of a positive
/// baseline.
fn difference(row: &Row, metric: &Metric, delta: f64) -> String {
    let baseline = metric.value - delta;
    let text = signed(delta, row.places);
    let relative = !is_share(&row.name) && !matches!(row.name.as_str(), "kid" | "kd") && baseline > 0.0;
    if relative { format!("{text} ({} %)", signed(100.0 * delta / baseline, 1)) } else { text }
}
