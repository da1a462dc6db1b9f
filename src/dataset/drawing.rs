//! SVG drawings.

use anyhow::Context as _;
use ndarray::Array3;
use resvg::{tiny_skia, usvg};

/// Renders an SVG, fitted and centred in `[height, width]` pixels over the colour `background`, as u8 `[height, width, 3]`.
///
/// # Errors
/// If `svg` cannot be read.
pub(super) fn render(svg: &[u8], [height, width]: [usize; 2], background: [u8; 3]) -> anyhow::Result<Array3<u8>> {
    let tree = usvg::Tree::from_data(svg, &usvg::Options::default())?;
    let pixmap = tiny_skia::Pixmap::new(u32::try_from(width)?, u32::try_from(height)?);
    let mut pixmap = pixmap.context("a resolution above 0")?;
    let [r, g, b] = background;
    pixmap.fill(tiny_skia::Color::from_rgba8(r, g, b, 255));
    #[allow(clippy::cast_precision_loss, reason = "a small resolution")]
    let target = [width as f32, height as f32];
    let size = [tree.size().width(), tree.size().height()];
    let scale = (target[0] / size[0]).min(target[1] / size[1]);
    let shift = |axis: usize| (target[axis] - size[axis] * scale) / 2.0;
    let transform = tiny_skia::Transform::from_scale(scale, scale).post_translate(shift(0), shift(1));
    resvg::render(&tree, transform, &mut pixmap.as_mut());
    let rgb = pixmap.pixels().iter().flat_map(|p| [p.red(), p.green(), p.blue()]).collect();
    Ok(Array3::from_shape_vec((height, width, 3), rgb)?)
}
