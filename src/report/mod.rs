//! One self-contained HTML page of evaluations, images, losses and verdicts.

use std::path::Path;

use anyhow::Context as _;
use base64::Engine as _;
use d2o_evaluations::result::Evaluation;
use d2o_refs::atomic::AtomicFile;
use d2o_refs::batch;
use fs_err as fs;
use minijinja::value::{Serde, Value as Rendered};
use minijinja::{Environment, context};
use ndarray::{Array3, s};
use serde_json::Value;

use crate::cli::Titled;
use crate::commands::evaluate::{label, show};

mod plot;

/// Columns and rows of an image grid.
const GRID: usize = 8;
/// Pixels a pixel is shown as.
const ZOOM: usize = 2;

/// Writes the page: a table with a column for each of `evaluations`, a grid for each of `images`, curves for each of `losses`
/// (`stats.jsonl`), a table for each of `verdicts` (of `d2o verify --json`).
///
/// # Errors
/// Unreadable files, writing errors.
pub fn write(
    path: &Path,
    title: &str,
    evaluations: &[Evaluation],
    images: &[Titled],
    losses: &[Titled],
    verdicts: &[Value],
) -> anyhow::Result<()> {
    let mut names: Vec<(&str, &str)> = Vec::new();
    for e in evaluations {
        let extractor = e.extractors.get("features").map_or("", |x| x.name.as_str());
        for name in e.metrics.keys() {
            if !names.iter().any(|(n, x)| (*n, *x) == (name.as_str(), extractor)) {
                names.push((name, extractor));
            }
        }
    }
    let rows: Vec<Value> = names
        .iter()
        .map(|(name, extractor)| {
            let cell = |e: &Evaluation| e.metrics.get(*name).map_or_else(|| "–".to_owned(), show);
            serde_json::json!({"label": label(name, extractor), "cells": evaluations.iter().map(cell).collect::<Vec<_>>()})
        })
        .collect();
    let grids: Vec<Value> = images
        .iter()
        .map(|t| Ok(serde_json::json!({"title": t.title, "data": grid(&t.path)?})))
        .collect::<anyhow::Result<_>>()?;
    let mut curves = Vec::new();
    for t in losses {
        for (name, svg) in plot::curves(&t.path)? {
            curves.push(serde_json::json!({"title": format!("{}: {name}", t.title), "svg": svg}));
        }
    }
    let mut environment = Environment::new();
    environment.add_template("report.html", include_str!("report.html"))?;
    let html = environment.get_template("report.html")?.render(context! {
        title,
        version => env!("CARGO_PKG_VERSION"),
        evaluations => Rendered::from(Serde(evaluations)),
        rows => Rendered::from(Serde(&rows)),
        grids => Rendered::from(Serde(&grids)),
        curves => Rendered::from(Serde(&curves)),
        verdicts => Rendered::from(Serde(verdicts)),
    })?;
    AtomicFile::write_all_to(path, html.as_bytes()).with_context(|| format!("write `{}`", path.display()))
}

/// The first images of a container as a PNG data URI.
fn grid(path: &Path) -> anyhow::Result<String> {
    let mut source = batch::open(path).with_context(|| format!("cannot show `{}`", path.display()))?;
    let dims = batch::uniform(source.as_ref())?;
    let count = source.len().min(GRID * GRID);
    // Spread over the set, so a sorted dataset shows its variety.
    let step = source.len() / count.max(1);
    let (h, w) = (dims.height * ZOOM, dims.width * ZOOM);
    let mut canvas = Array3::<u8>::from_elem((GRID * h, GRID * w, 3), 255);
    for i in 0..count {
        let image = source.read(i * step..i * step + 1)?;
        let large = Array3::from_shape_fn((h, w, 3), |(y, x, c)| image[[0, y / ZOOM, x / ZOOM, c]]);
        let (top, left) = (i / GRID * h, i % GRID * w);
        canvas.slice_mut(s![top..top + h, left..left + w, ..]).assign(&large);
    }
    let png = d2o_refs::png(path, "", canvas.view())?;
    Ok(format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(png)))
}

/// Reads results of `d2o evaluate --json` and `d2o verify --json`, told apart by their content.
///
/// # Errors
/// A file that is neither.
pub fn read(paths: &[std::path::PathBuf]) -> anyhow::Result<(Vec<Evaluation>, Vec<Value>)> {
    let (mut evaluations, mut verdicts) = (Vec::new(), Vec::new());
    for path in paths {
        let describe = || format!("cannot report on `{}`", path.display());
        let value: Value = serde_json::from_slice(&fs::read(path)?).with_context(describe)?;
        if value.get("schema").is_some() {
            evaluations.push(serde_json::from_value(value).with_context(describe)?);
        } else if value.get("agree").is_some() {
            verdicts.push(value);
        } else {
            return Err(
                anyhow::anyhow!("it is no result of `d2o evaluate --json` or `d2o verify --json`").context(describe())
            );
        }
    }
    Ok((evaluations, verdicts))
}
