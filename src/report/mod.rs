//! One self-contained HTML page of evaluations, images, losses and verdicts.

use std::path::Path;

use anyhow::Context as _;
use base64::Engine as _;
use d2o_evaluations::result::{Evaluation, Metric, SCHEMA};
use d2o_files::AtomicFile;
use d2o_refs::batch;
use fs_err as fs;
use minijinja::value::{Serde, Value as Rendered};
use minijinja::{Environment, context};
use ndarray::{Array3, s};
use serde_json::Value;

use crate::cli::Titled;

mod plot;

/// Columns and rows of an image grid.
const GRID: usize = 8;
/// Largest side of an image in a grid, pixels; smaller ones are enlarged by whole factors up to it.
const TILE: usize = 96;

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
    let mut names: Vec<(&str, String)> = Vec::new();
    for e in evaluations {
        for (name, _) in e.ordered() {
            let label = e.label(name);
            if !names.iter().any(|(n, l)| *n == name && *l == label) {
                names.push((name, label));
            }
        }
    }
    let rows: Vec<Value> = names
        .iter()
        .map(|(name, label)| {
            let cell = |e: &Evaluation| {
                e.metrics.get(*name).filter(|_| e.label(name) == *label).map_or_else(|| "–".to_owned(), Metric::show)
            };
            serde_json::json!({"label": label, "cells": evaluations.iter().map(cell).collect::<Vec<_>>()})
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
    let shown: Vec<Value> = evaluations.iter().map(with_classes).collect::<anyhow::Result<_>>()?;
    let mut environment = Environment::new();
    environment.add_template("report.html", include_str!("report.html"))?;
    let html = environment.get_template("report.html")?.render(context! {
        title,
        version => env!("CARGO_PKG_VERSION"),
        evaluations => Rendered::from(Serde(&shown)),
        mixed => mixed(evaluations),
        rows => Rendered::from(Serde(&rows)),
        grids => Rendered::from(Serde(&grids)),
        curves => Rendered::from(Serde(&curves)),
        verdicts => Rendered::from(Serde(verdicts)),
    })?;
    AtomicFile::write_all_to(path, html.as_bytes()).with_context(|| format!("write `{}`", path.display()))
}

/// Images spread over a container as a PNG data URI.
fn grid(path: &Path) -> anyhow::Result<String> {
    let mut source = batch::open(path).with_context(|| format!("cannot show `{}`", path.display()))?;
    let count = source.len().min(GRID * GRID);
    // Spread over the set, so a sorted dataset shows its variety.
    let step = source.len() / count.max(1);
    let mut tiles = Vec::with_capacity(count);
    for i in 0..count {
        let image = source.read_each(i * step..i * step + 1)?.pop().context("no image")?;
        tiles.push(tile(&image)?);
    }
    let largest = |side: usize| tiles.iter().map(|t| t.shape()[side]).max().unwrap_or(1);
    let (h, w) = (largest(0), largest(1));
    let mut canvas = Array3::<u8>::from_elem((GRID * h, GRID * w, 3), 255);
    for (i, tile) in tiles.iter().enumerate() {
        let (top, left) = (i / GRID * h, i % GRID * w);
        canvas.slice_mut(s![top..top + tile.shape()[0], left..left + tile.shape()[1], ..]).assign(tile);
    }
    let png = d2o_refs::png(path, "", canvas.view())?;
    Ok(format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(png)))
}

/// `image [H, W, 3]` with a longer side of at most [`TILE`], enlarged by a whole factor or reduced.
fn tile(image: &Array3<u8>) -> anyhow::Result<Array3<u8>> {
    let (h, w, _) = image.dim();
    let zoom = TILE / h.max(w).max(1);
    if zoom >= 1 {
        return Ok(Array3::from_shape_fn((h * zoom, w * zoom, 3), |(y, x, c)| image[[y / zoom, x / zoom, c]]));
    }
    let fit = |side: usize| u32::try_from((side * TILE / h.max(w)).max(1));
    let pixels = image.as_standard_layout().iter().copied().collect();
    let full = image::RgbImage::from_raw(u32::try_from(w)?, u32::try_from(h)?, pixels).context("an image's pixels")?;
    let small = image::imageops::thumbnail(&full, fit(w)?, fit(h)?);
    Ok(Array3::from_shape_vec((small.height() as usize, small.width() as usize, 3), small.into_raw())?)
}

/// What the columns of a table of `evaluations` differ in, as far as that makes their numbers incomparable.
fn mixed(evaluations: &[Evaluation]) -> Option<String> {
    let factors = |e: &Evaluation| {
        [
            ("their protocols", e.protocol.get("name").cloned()),
            ("their references", e.reference.as_ref().map(|r| r.sha256.clone())),
            ("their numbers of images", e.samples.count.map(|n| n.to_string())),
        ]
    };
    let first = factors(evaluations.first()?);
    let differs = |i: usize| evaluations.iter().any(|e| factors(e)[i].1 != first[i].1);
    let found: Vec<&str> = (0..first.len()).filter(|i| differs(*i)).map(|i| first[i].0).collect();
    (!found.is_empty()).then(|| found.join(", "))
}

/// `e` with the table of its classes.
fn with_classes(e: &Evaluation) -> anyhow::Result<Value> {
    let (header, rows) = e.class_table();
    let mut value = serde_json::to_value(e)?;
    value["class_header"] = serde_json::to_value(header)?;
    value["classes"] = serde_json::to_value(rows)?;
    Ok(value)
}

/// Reads results of `d2o evaluate --json` and `d2o verify --json`, recognised by their content.
///
/// # Errors
/// A file that is neither; a result of another version's layout.
pub fn read(paths: &[std::path::PathBuf]) -> anyhow::Result<(Vec<Evaluation>, Vec<Value>)> {
    let (mut evaluations, mut verdicts) = (Vec::new(), Vec::new());
    for path in paths {
        let describe = || format!("cannot report on `{}`", path.display());
        let value: Value = serde_json::from_slice(&fs::read(path)?).with_context(describe)?;
        let several = match value {
            Value::Array(several) => several,
            one => vec![one],
        };
        for value in several {
            if let Some(schema) = value.get("schema") {
                if schema.as_u64() != Some(u64::from(SCHEMA)) {
                    let what = format!("its layout is version {schema}, this d2o reads version {SCHEMA}");
                    return Err(anyhow::anyhow!(what).context(describe()));
                }
                evaluations.push(serde_json::from_value(value).with_context(describe)?);
            } else if value.get("agree").is_some() {
                verdicts.push(value);
            } else {
                let what = "it is not a result of `d2o evaluate --json` or `d2o verify --json`";
                return Err(anyhow::anyhow!(what).context(describe()));
            }
        }
    }
    Ok((evaluations, verdicts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_enlarged_by_whole_factors_or_reduced() {
        let of = |h: usize, w: usize| tile(&Array3::from_elem((h, w, 3), 7)).unwrap().dim();
        assert_eq!([of(32, 32), of(40, 30), of(96, 96)], [(96, 96, 3), (80, 60, 3), (96, 96, 3)]);
        assert_eq!([of(1024, 512), of(1, 4000)], [(96, 48, 3), (1, 96, 3)]);
    }
}
