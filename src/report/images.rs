//! Image grids, and samples with their nearest reference images.

use std::path::Path;

use anyhow::Context as _;
use d2o_evaluations::result::digits;
use d2o_refs::batch::{self, ImageSource, content_sha256};
use ndarray::{Array3, s};
use serde::Serialize;

use super::compare::{self, Run, short};
use crate::cli::Titled;
use crate::error::with_hint;
use crate::pipeline::metrics::evenly_spaced;

/// Columns and rows of a grid.
const GRID: usize = 8;
/// Largest side of an image in a grid, pixels. Smaller images are enlarged by whole factors.
const TILE: usize = 96;
/// Pixels between two images.
const GAP: usize = 2;
/// Grey between images. It is visible next to light and dark images on light and dark pages.
const GREY: u8 = 0x80;

/// A grid of images.
#[derive(Debug, Serialize)]
pub(super) struct Grid {
    title: String,
    alt: String,
    width: usize,
    height: usize,
    /// The PNG as a data URI.
    data: String,
}

/// Grid of up to 64 images of `set`.
///
/// # Errors
/// If the set is empty, or an image cannot be read.
pub(super) fn grid(set: &Titled) -> anyhow::Result<Grid> {
    let path = &set.path;
    let mut source = batch::open(path).with_context(|| format!("cannot show `{}`", path.display()))?;
    let all = source.len();
    let tiles: Vec<Array3<u8>> =
        evenly_spaced(all, GRID * GRID).map(|i| tile(&read(source.as_mut(), i)?)).collect::<anyhow::Result<_>>()?;
    anyhow::ensure!(!tiles.is_empty(), "cannot show `{}`: it holds no images", path.display());
    let largest = |side: usize| tiles.iter().map(|t| t.shape()[side]).max().unwrap_or(1);
    let (h, w) = (largest(0), largest(1));
    let (rows, columns) = (tiles.len().div_ceil(GRID), tiles.len().min(GRID));
    let side = |count: usize, each: usize| count * (each + GAP) - GAP;
    let mut canvas = Array3::<u8>::from_elem((side(rows, h), side(columns, w), 3), GREY);
    for (i, tile) in tiles.iter().enumerate() {
        let (top, left) = (i / GRID * (h + GAP), i % GRID * (w + GAP));
        canvas.slice_mut(s![top..top + tile.shape()[0], left..left + tile.shape()[1], ..]).assign(tile);
    }
    let count = tiles.len();
    let of = if count == all { format!("All {all} images") } else { format!("{count} of {all} images, evenly spread") };
    let (height, width, _) = canvas.dim();
    Ok(Grid { title: set.title.clone(), alt: format!("{of}: {}", set.title), width, height, data: uri(path, &canvas)? })
}

fn read(source: &mut dyn ImageSource, index: usize) -> anyhow::Result<Array3<u8>> {
    source.read_each(index..index + 1)?.pop().context("no image")
}

fn uri(path: &Path, image: &Array3<u8>) -> anyhow::Result<String> {
    Ok(super::data_uri("image/png", &d2o_refs::png(path, "", image.view())?))
}

/// `image [H, W, 3]`, enlarged by a whole factor or reduced to a longer side of at most [`TILE`].
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

/// Samples of a run with their nearest reference images.
#[derive(Debug, Serialize)]
pub(super) struct Nearest {
    run: String,
    /// Network of the features behind the distances.
    network: String,
    /// Largest number of neighbours of a sample.
    neighbours: usize,
    rows: Vec<NearestRow>,
    /// Options that show the images, if images are missing.
    missing: Option<String>,
}

#[derive(Debug, Serialize)]
struct NearestRow {
    sample: Shown,
    neighbours: Vec<Shown>,
}

#[derive(Debug, Serialize)]
struct Shown {
    index: usize,
    /// Distance from the sample; empty for the sample itself.
    distance: String,
    data: Option<String>,
}

/// The nearest reference images of all `runs` that recorded them. Images of the samples come from the entry of `images`
/// with the title of the run, images of the reference from `references`. Both must be the images that were measured.
///
/// # Errors
/// If `references` is given but no run recorded nearest images, an image cannot be read, or images are not those that
/// were measured.
pub(super) fn nearest(runs: &[Run<'_>], images: &[Titled], references: Option<&Path>) -> anyhow::Result<Vec<Nearest>> {
    let mut open = references.map(Checked::open).transpose()?;
    let found: Vec<Nearest> = runs
        .iter()
        .filter_map(|run| nearest_of(run, images, open.as_mut()).transpose())
        .collect::<anyhow::Result<_>>()?;
    if let Some(path) = references.filter(|_| found.is_empty()) {
        let problem = format!("cannot show `{}` next to samples: no result records nearest images", path.display());
        return Err(with_hint(anyhow::anyhow!(problem), "`d2o evaluate --nearest N` records them"));
    }
    Ok(found)
}

/// Images with their hash.
struct Checked<'a> {
    path: &'a Path,
    source: Box<dyn ImageSource>,
    sha256: String,
}

impl<'a> Checked<'a> {
    fn open(path: &'a Path) -> anyhow::Result<Self> {
        let describe = || format!("cannot show `{}`", path.display());
        let mut source = batch::open(path).with_context(describe)?;
        let sha256 = content_sha256(source.as_mut()).with_context(describe)?;
        Ok(Self { path, source, sha256 })
    }

    /// Checks that the images have the hash `expected`. `what` describes the expected images in the error.
    fn ensure(&self, expected: Option<&str>, what: &str) -> anyhow::Result<()> {
        let expected = expected.unwrap_or("not recorded");
        anyhow::ensure!(
            self.sha256 == expected,
            "`{}` does not contain {what} in the same order: found sha256 {} of the pixels, expected {}",
            self.path.display(),
            short(&self.sha256),
            short(expected)
        );
        Ok(())
    }

    fn image(&mut self, index: usize) -> anyhow::Result<String> {
        anyhow::ensure!(index < self.source.len(), "`{}` has no image {index}", self.path.display());
        uri(self.path, &tile(&read(self.source.as_mut(), index)?)?)
    }
}

fn nearest_of(
    run: &Run<'_>,
    images: &[Titled],
    mut references: Option<&mut Checked<'_>>,
) -> anyhow::Result<Option<Nearest>> {
    const DIGITS: usize = 4;
    let e = run.evaluation;
    let Some(found) = &e.nearest else { return Ok(None) };
    let title = &e.samples.title;
    let given = images.iter().find(|i| i.title == run.name || i.title == *title);
    let mut samples = match (given, &references) {
        (Some(given), Some(_)) => Some(Checked::open(&given.path)?),
        _ => None,
    };
    if let (Some(samples), Some(references)) = (&samples, &references) {
        samples.ensure(Some(&e.samples.sha256), &format!("the samples of “{}”", run.name))?;
        references.ensure(found.reference_sha256.as_deref(), &format!("the reference images of “{}”", run.name))?;
    }
    let shown = |set: Option<&mut Checked<'_>>, index: usize, distance: String| -> anyhow::Result<Shown> {
        Ok(Shown { index, distance, data: set.map(|s| s.image(index)).transpose()? })
    };
    let mut rows = Vec::with_capacity(found.samples.len());
    for row in &found.samples {
        let sample = shown(samples.as_mut(), row.sample, String::new())?;
        let both = samples.is_some();
        let of = |n: &d2o_evaluations::nearest::Neighbour| {
            shown(references.as_deref_mut().filter(|_| both), n.index, digits(n.distance, DIGITS))
        };
        let neighbours = row.neighbours.iter().map(of).collect::<anyhow::Result<_>>()?;
        rows.push(NearestRow { sample, neighbours });
    }
    let missing = samples.is_none().then(|| {
        format!("d2o report … --images '{title}=SAMPLES' --references REFERENCE-IMAGES shows the images themselves.")
    });
    Ok(Some(Nearest {
        run: run.name.clone(),
        network: e.extractors.get(&found.role).map_or_else(|| found.role.clone(), compare::network),
        neighbours: found.samples.iter().map(|r| r.neighbours.len()).max().unwrap_or(0),
        rows,
        missing,
    }))
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
