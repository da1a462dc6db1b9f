//! Seconds of each stage of each run.

use std::collections::BTreeSet;

use serde::Serialize;

use super::compare::Run;
use super::number::seconds;
use super::runs::{is_part, total};

/// Table of stages and runs.
#[derive(Debug, Serialize)]
pub(super) struct Timings {
    runs: Vec<String>,
    rows: Vec<TimingRow>,
    totals: Vec<String>,
}

#[derive(Debug, Serialize)]
struct TimingRow {
    stage: String,
    /// Whether the row is a part of the stage above. Parts overlap.
    part: bool,
    cells: Vec<String>,
}

/// The timings of `runs`; `None` if no run has any.
pub(super) fn timings(runs: &[Run<'_>]) -> Option<Timings> {
    let timed: Vec<&Run<'_>> = runs.iter().filter(|r| !r.evaluation.timings.is_empty()).collect();
    let stages: BTreeSet<&String> = timed.iter().flat_map(|r| r.evaluation.timings.keys()).collect();
    // The passes over both sets come first. Their parts follow them, because names are sorted.
    let mut stages: Vec<&String> = stages.into_iter().collect();
    let place = |stage: &str| match stage {
        s if s.starts_with("reference") => 0,
        s if s.starts_with("features") => 1,
        _ => 2,
    };
    stages.sort_by_key(|s| place(s));
    let row = |stage: &&String| TimingRow {
        stage: stage
            .split_once('_')
            .filter(|_| is_part(stage))
            .map_or(stage.as_str(), |(_, part)| part)
            .replace('_', " "),
        part: is_part(stage),
        cells: timed
            .iter()
            .map(|r| r.evaluation.timings.get(*stage).map_or_else(|| "–".to_owned(), |s| seconds(*s)))
            .collect(),
    };
    (!timed.is_empty()).then(|| Timings {
        runs: timed.iter().map(|r| r.name.clone()).collect(),
        rows: stages.iter().map(row).collect(),
        totals: timed.iter().map(|r| seconds(total(r.evaluation))).collect(),
    })
}
