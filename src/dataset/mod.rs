//! Images of one resolution from photographs or drawings.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use d2o_refs::batch::{self, ImageSource};
use fs_err as fs;
use image::imageops::FilterType;
use ndarray::{Array3, Array4, Axis, s};
use rayon::prelude::*;
use resvg::{tiny_skia, usvg};

/// What a dataset is made of.
pub enum Source {
    /// Equally large images, with labels if the container has them.
    Images(Box<dyn ImageSource>),
    /// SVG files, sorted by name, over a background colour.
    Drawings {
        /// The files.
        files: Vec<PathBuf>,
        /// RGB behind transparent parts.
        background: [u8; 3],
    },
}

impl Source {
    /// Opens a container of images, or a folder of SVGs.
    ///
    /// # Errors
    /// If there is neither.
    pub fn open(path: &Path, exclude: &[String], background: [u8; 3]) -> anyhow::Result<Self> {
        if fs::metadata(path)?.is_dir() {
            let mut files = Vec::new();
            for entry in fs::read_dir(path)? {
                let file = entry?.path();
                let name = file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                let svg = file.extension().is_some_and(|e| e.eq_ignore_ascii_case("svg"));
                if svg && !exclude.iter().any(|x| name.contains(x.as_str())) {
                    files.push(file);
                }
            }
            files.sort_unstable();
            if !files.is_empty() {
                return Ok(Self::Drawings { files, background });
            }
        }
        Ok(Self::Images(batch::open(path)?))
    }

    /// Number of images.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Images(source) => source.len(),
            Self::Drawings { files, .. } => files.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Images `range` of `source` as u8 `[N, resolution, resolution, 3]`, with labels if there are any. Photographs are cropped to
/// their central square and resized with a Lanczos filter; drawings are rendered at the resolution.
///
/// # Errors
/// An unreadable image, naming the file.
pub fn images_of(
    source: &mut Source,
    range: Range<usize>,
    resolution: usize,
) -> anyhow::Result<(Array4<u8>, Option<Vec<i64>>)> {
    match source {
        Source::Images(source) => {
            let labels = source.labels().map(|l| l[range.clone()].to_vec());
            let images = source.read(range)?;
            let resized: Vec<_> = (0..images.dim().0)
                .into_par_iter()
                .map(|i| square(images.index_axis(Axis(0), i).to_owned(), resolution))
                .collect::<anyhow::Result<_>>()?;
            Ok((stack(&resized, resolution), labels))
        }
        Source::Drawings { files, background } => {
            let rendered: Vec<_> = files[range]
                .par_iter()
                .map(|f| render(f, resolution, *background).with_context(|| format!("cannot render `{}`", f.display())))
                .collect::<anyhow::Result<_>>()?;
            Ok((stack(&rendered, resolution), None))
        }
    }
}

fn stack(images: &[Array3<u8>], resolution: usize) -> Array4<u8> {
    let mut out = Array4::zeros((images.len(), resolution, resolution, 3));
    for (mut slot, image) in out.axis_iter_mut(Axis(0)).zip(images) {
        slot.assign(image);
    }
    out
}

fn square(image: Array3<u8>, resolution: usize) -> anyhow::Result<Array3<u8>> {
    let (height, width, _) = image.dim();
    let side = height.min(width);
    let (top, left) = ((height - side) / 2, (width - side) / 2);
    let crop = image.slice(s![top..top + side, left..left + side, ..]);
    if side == resolution {
        return Ok(crop.to_owned());
    }
    let (from, to) = (u32::try_from(side)?, u32::try_from(resolution)?);
    let pixels = crop.as_standard_layout().iter().copied().collect();
    let buffer = image::RgbImage::from_raw(from, from, pixels).context("a square of RGB pixels")?;
    let resized = image::imageops::resize(&buffer, to, to, FilterType::Lanczos3);
    Ok(Array3::from_shape_vec((resolution, resolution, 3), resized.into_raw())?)
}

/// Renders the SVG `file`, fitted and centred in a square of `resolution` pixels.
fn render(file: &Path, resolution: usize, background: [u8; 3]) -> anyhow::Result<Array3<u8>> {
    let tree = usvg::Tree::from_data(&fs::read(file)?, &usvg::Options::default())?;
    let side = u32::try_from(resolution)?;
    let mut pixmap = tiny_skia::Pixmap::new(side, side).context("a resolution above 0")?;
    let [r, g, b] = background;
    pixmap.fill(tiny_skia::Color::from_rgba8(r, g, b, 255));
    #[allow(clippy::cast_precision_loss, reason = "a small resolution")]
    let target = resolution as f32;
    let (width, height) = (tree.size().width(), tree.size().height());
    let scale = (target / width).min(target / height);
    let shift = |length: f32| (target - length * scale) / 2.0;
    let transform = tiny_skia::Transform::from_scale(scale, scale).post_translate(shift(width), shift(height));
    resvg::render(&tree, transform, &mut pixmap.as_mut());
    let rgb = pixmap.pixels().iter().flat_map(|p| [p.red(), p.green(), p.blue()]).collect();
    Ok(Array3::from_shape_vec((resolution, resolution, 3), rgb)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawings_are_rendered_over_the_background() {
        let dir = tempfile::tempdir().unwrap();
        let svg = r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10"><rect width="5" height="10" fill="#ff0000"/></svg>"##;
        fs::write(dir.path().join("a.svg"), svg).unwrap();
        fs::write(dir.path().join("b-x.svg"), svg).unwrap();
        let mut source = Source::open(dir.path(), &["-x".to_owned()], [0, 0, 255]).unwrap();
        assert_eq!(source.len(), 1);
        let (images, labels) = images_of(&mut source, 0..1, 8).unwrap();
        assert_eq!(images.slice(s![0, 4, 1, ..]).to_vec(), [255, 0, 0]);
        assert_eq!(images.slice(s![0, 4, 6, ..]).to_vec(), [0, 0, 255]);
        assert_eq!(labels, None);
    }

    #[test]
    fn a_broken_drawing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.svg"), "<svg").unwrap();
        let mut source = Source::open(dir.path(), &[], [0; 3]).unwrap();
        assert!(images_of(&mut source, 0..1, 8).unwrap_err().to_string().contains("a.svg"));
    }

    #[test]
    fn photographs_are_cropped_to_the_centre() {
        let mut image = Array3::zeros((4, 8, 3));
        image.slice_mut(s![.., 2..6, ..]).fill(9);
        assert!(square(image, 4).unwrap().iter().all(|v| *v == 9));
    }
}
