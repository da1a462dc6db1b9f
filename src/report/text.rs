//! Tables in LaTeX with booktabs and in Markdown. Runs are rows, metrics are columns.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::compare::{Cell, Group, Row};
use super::number::{fixed, spread};
use super::{escape, table};

/// The settings shared by the runs of a table, in one line.
pub(super) fn setting(group: &Group<'_>) -> String {
    let [protocol, images, reference] = ["protocol", "number of images", "reference"].map(|name| group.aspect(name));
    let protocol = if protocol.is_empty() { "unknown" } else { protocol };
    let images = if images == "1" { "1 image".to_owned() } else { format!("{images} images") };
    format!("Protocol {protocol}, {images}, reference: {reference}")
}

/// The settings and all deviations of the runs, to be shown next to the numbers.
pub(super) fn caption(group: &Group<'_>) -> String {
    let all: BTreeSet<String> =
        group.runs.iter().flat_map(|r| &r.evaluation.deviations).map(ToString::to_string).collect();
    let deviations = if all.is_empty() {
        String::new()
    } else {
        format!(" Deviations from the protocol: {}.", all.into_iter().collect::<Vec<_>>().join("; "))
    };
    format!("{}.{deviations}", setting(group))
}

/// Heading of a column.
fn heading(row: &Row) -> String {
    let (arrow, _) = table::arrow(row.higher);
    let unverified = if row.verified { "" } else { ", unverified" };
    format!("{}{unverified} {arrow}", row.label()).trim_end().to_owned()
}

/// Text of the value, text of its spread, and whether it is the best. Without a value: a dash or `failed`.
fn parts(row: &Row, cell: &Cell) -> (String, Option<String>, bool) {
    match cell {
        Cell::Absent => ("–".to_owned(), None, false),
        Cell::Failed => ("failed".to_owned(), None, false),
        Cell::Value { metric, best, .. } => (fixed(metric.value, row.places), spread(metric, row.places), *best),
    }
}

/// The table of `group` in LaTeX with the package booktabs.
pub(super) fn latex_table(group: &Group<'_>) -> String {
    let columns = "r".repeat(group.rows.len());
    let headings = group.rows.iter().map(|r| format!(" & {}", escape::latex(&heading(r))));
    let mut out = format!(
        "\\begin{{table}}\n  \\centering\n  \\caption{{{}}}\n  \\begin{{tabular}}{{l{columns}}}\n    \\toprule\n    run{} \\\\\n    \\midrule\n",
        escape::latex(&caption(group)),
        headings.collect::<String>()
    );
    for (i, run) in group.runs.iter().enumerate() {
        let _ = write!(out, "    {}", escape::latex(&run.name));
        for row in &group.rows {
            let (value, spread, best) = parts(row, &row.cells[i]);
            let value = escape::latex(&value);
            let value = if best { format!("\\textbf{{{value}}}") } else { value };
            let spread = spread.map_or_else(String::new, |s| format!(" {{\\footnotesize {}}}", escape::latex(&s)));
            let _ = write!(out, " & {value}{spread}");
        }
        out.push_str(" \\\\\n");
    }
    out.push_str("    \\bottomrule\n  \\end{tabular}\n\\end{table}\n");
    out
}

/// The table of `group` in Markdown.
pub(super) fn markdown_table(group: &Group<'_>) -> String {
    let headings = group.rows.iter().map(|r| format!(" {} |", escape::markdown(&heading(r))));
    let mut out = format!(
        "{}\n\n| run |{}\n|---|{}\n",
        escape::markdown(&caption(group)),
        headings.collect::<String>(),
        "---:|".repeat(group.rows.len())
    );
    for (i, run) in group.runs.iter().enumerate() {
        let _ = write!(out, "| {} |", escape::markdown(&run.name));
        for row in &group.rows {
            let (value, spread, best) = parts(row, &row.cells[i]);
            let value = if best { format!("**{value}**") } else { value };
            let spread = spread.map_or_else(String::new, |s| format!(" {}", escape::markdown(&s)));
            let _ = write!(out, " {value}{spread} |");
        }
        out.push('\n');
    }
    out
}

/// All tables. From the second on, each is preceded by the reasons why it is not comparable with the first.
pub(super) fn document(groups: &[Group<'_>], table: fn(&Group<'_>) -> String, remark: fn(&str) -> String) -> String {
    let mut out = String::new();
    for (i, group) in groups.iter().enumerate() {
        if i > 0 {
            let reasons = group.differences(&groups[0]).join("; ");
            let _ = write!(out, "\n{}\n", remark(&format!("Not comparable with the first table: {reasons}")));
        }
        out.push_str(&table(group));
    }
    out
}
