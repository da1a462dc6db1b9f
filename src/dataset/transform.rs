//! Crops and sizes as in EDM's `dataset_tool.py`.

use anyhow::ensure;
use d2o_evaluations::preprocess::{Filter, pillow_resize_u8};
use ndarray::{Array3, ArrayView3, s};

/// Transform of an image before it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transform {
    /// Keeps the image unchanged.
    Keep,
    /// Resizes the image to the resolution, without keeping the aspect ratio.
    Resize,
    /// Crops the central square and resizes it to the resolution.
    CenterCrop,
    /// Crops the central rows with all columns, resizes them to the resolution, and centres them on a black square as
    /// wide as the resolution. Images smaller than the resolution are skipped.
    CenterCropWide,
}

/// A transform with its target size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    transform: Transform,
    /// Height and width, pixels.
    size: [usize; 2],
}

impl Geometry {
    /// A geometry with `transform` and the target `size`, `[height, width]` in pixels. [`Transform::Keep`] ignores
    /// `size`.
    ///
    /// # Errors
    /// If `size` is missing, or the transform cannot produce it.
    pub fn new(transform: Transform, size: Option<[usize; 2]>) -> anyhow::Result<Self> {
        if transform == Transform::Keep {
            return Ok(Self { transform, size: [0, 0] });
        }
        let Some([height, width]) = size else { anyhow::bail!("this transform needs a resolution") };
        ensure!(height > 0 && width > 0, "the resolution must be above 0, found {width}x{height}");
        match transform {
            Transform::CenterCrop => {
                ensure!(
                    height == width,
                    "center-crop gives squares, found the resolution {width}x{height}; center-crop-wide and resize take both sides"
                );
            }
            Transform::CenterCropWide => {
                ensure!(
                    height <= width,
                    "center-crop-wide needs a width of at least the height, found the resolution {width}x{height}"
                );
            }
            Transform::Keep | Transform::Resize => {}
        }
        Ok(Self { transform, size: [height, width] })
    }

    /// `[height, width]` at which vector graphics are rendered before [`Geometry::frame`]; `None` for
    /// [`Transform::Keep`].
    #[must_use]
    pub fn drawing(&self) -> Option<[usize; 2]> {
        (self.transform != Transform::Keep).then_some(self.size)
    }

    /// Transforms u8 `image [H, W, C]`; `None` if it is too small for [`Transform::CenterCropWide`].
    #[must_use]
    pub fn apply(&self, image: Array3<u8>) -> Option<Array3<u8>> {
        let (h, w, _) = image.dim();
        let resize = |image: ArrayView3<'_, u8>| pillow_resize_u8(image, self.size, Filter::Lanczos);
        match self.transform {
            Transform::Keep => Some(image),
            Transform::Resize => Some(resize(image.view())),
            Transform::CenterCrop => {
                let side = h.min(w);
                let (top, left) = ((h - side) / 2, (w - side) / 2);
                Some(resize(image.slice(s![top..top + side, left..left + side, ..])))
            }
            Transform::CenterCropWide => {
                let [height, width] = self.size;
                let rows = central_rows(width, h, w);
                if w < width || rows < height {
                    return None;
                }
                let top = (h - rows) / 2;
                Some(self.frame(resize(image.slice(s![top..top + rows, .., ..]))))
            }
        }
    }

    /// Centres an image of the target size on the black square of [`Transform::CenterCropWide`]. Other transforms leave
    /// it unchanged.
    #[must_use]
    pub fn frame(&self, image: Array3<u8>) -> Array3<u8> {
        let (height, width, channels) = image.dim();
        if self.transform != Transform::CenterCropWide || height == width {
            return image;
        }
        let mut canvas = Array3::zeros((width, width, channels));
        let top = (width - height) / 2;
        canvas.slice_mut(s![top..top + height, .., ..]).assign(&image);
        canvas
    }
}

/// `width · h / w`, with halves rounded to even, as in NumPy.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "image sizes")]
fn central_rows(width: usize, h: usize, w: usize) -> usize {
    ((width * h) as f64 / w as f64).round_ties_even() as usize
}

/// Rotates and mirrors u8 `image [H, W, C]` by the EXIF orientation 1..=8; other values leave it unchanged.
#[must_use]
pub fn oriented(image: Array3<u8>, orientation: u8) -> Array3<u8> {
    let mut view = image.view();
    if (5..=8).contains(&orientation) {
        view.swap_axes(0, 1);
    }
    if matches!(orientation, 3 | 4 | 7 | 8) {
        view.invert_axis(ndarray::Axis(0));
    }
    if matches!(orientation, 2 | 3 | 6 | 7) {
        view.invert_axis(ndarray::Axis(1));
    }
    view.as_standard_layout().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(h: usize, w: usize) -> Array3<u8> {
        Array3::from_shape_fn((h, w, 1), |(y, x, _)| u8::try_from(y * 16 + x).unwrap())
    }

    #[test]
    fn photographs_are_cropped_to_the_centre() {
        let mut image = Array3::zeros((4, 8, 3));
        image.slice_mut(s![.., 2..6, ..]).fill(9);
        let crop = Geometry::new(Transform::CenterCrop, Some([4, 4])).unwrap();
        assert!(crop.apply(image).unwrap().iter().all(|v| *v == 9));
    }

    #[test]
    fn wide_crops_take_the_central_rows_and_stand_on_black() {
        let mut image = Array3::zeros((10, 8, 3));
        image.slice_mut(s![3..7, .., ..]).fill(200);
        // 4·10/8 = 5 rows from (10 - 5)/2 = 2.
        let wide = Geometry::new(Transform::CenterCropWide, Some([2, 4])).unwrap();
        let out = wide.apply(image.clone()).unwrap();
        assert_eq!(out.dim(), (4, 4, 3));
        assert!(out.slice(s![0, .., ..]).iter().chain(out.slice(s![3, .., ..])).all(|v| *v == 0));
        assert!(out.slice(s![1..3, .., ..]).iter().all(|v| *v > 100));
        let part = |rows: usize, columns: usize| image.slice(s![..rows, ..columns, ..]).to_owned();
        assert_eq!(wide.apply(part(10, 3)), None, "narrower than the resolution");
        assert!(wide.apply(part(3, 8)).is_some(), "2 rows, rounded from 1.5");
        assert_eq!(wide.apply(part(2, 8)), None, "1 row");
    }

    #[test]
    fn halves_go_to_the_even_number_of_rows() {
        assert_eq!([central_rows(4, 5, 8), central_rows(4, 7, 8), central_rows(4, 6, 8)], [2, 4, 3]);
    }

    #[test]
    fn sizes_that_a_transform_cannot_give_are_refused() {
        let refused = |t, size| Geometry::new(t, size).unwrap_err().to_string();
        assert!(refused(Transform::CenterCrop, Some([4, 8])).contains("8x4"));
        assert!(refused(Transform::CenterCropWide, Some([8, 4])).contains("4x8"));
        assert!(refused(Transform::Resize, None).contains("needs a resolution"));
    }

    #[test]
    fn exif_orientations() {
        // Row 0 is 0 1 2, row 1 is 16 17 18. The expected values are those of Pillow's `ImageOps.exif_transpose`.
        for (orientation, expected) in [
            (1, vec![0, 1, 2, 16, 17, 18]),
            (2, vec![2, 1, 0, 18, 17, 16]),
            (3, vec![18, 17, 16, 2, 1, 0]),
            (4, vec![16, 17, 18, 0, 1, 2]),
            (5, vec![0, 16, 1, 17, 2, 18]),
            (6, vec![16, 0, 17, 1, 18, 2]),
            (7, vec![18, 2, 17, 1, 16, 0]),
            (8, vec![2, 18, 1, 17, 0, 16]),
        ] {
            let out = oriented(ramp(2, 3), orientation);
            assert_eq!(out.iter().copied().collect::<Vec<_>>(), expected, "{orientation}");
        }
    }
}
