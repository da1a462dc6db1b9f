//! Converts images to the input of a feature network.

use anyhow::Context as _;
use d2o_evaluations::preprocess::{Resize, Resizer, Scaling, clip_crop};
use d2o_refs::batch::{Digest, digests, digests_each};
use d2o_runtime::Tensor;
use ndarray::{Array3, Array4, ArrayView3, ArrayViewMut3, Axis, concatenate};
use rayon::prelude::*;

/// A batch of images, u8 `[H, W, 3]` each.
#[derive(Debug)]
pub enum Images {
    /// Of one size, `[N, H, W, 3]`.
    Uniform(Array4<u8>),
    /// Of any sizes.
    Mixed(Vec<Array3<u8>>),
}

impl Images {
    /// Views of all images.
    #[must_use]
    pub fn views(&self) -> Vec<ArrayView3<'_, u8>> {
        match self {
            Self::Uniform(images) => images.outer_iter().collect(),
            Self::Mixed(images) => images.iter().map(|image| image.view()).collect(),
        }
    }

    /// Hash of every image.
    #[must_use]
    pub fn digests(&self) -> Vec<Digest> {
        match self {
            Self::Uniform(images) => digests(&images.view()),
            Self::Mixed(images) => digests_each(images),
        }
    }
}

/// Preprocessing of images before a network.
#[derive(Debug)]
pub enum Preparation {
    /// None: the graph takes bytes.
    Bytes,
    /// A resize to floats 0..255.
    Resize {
        /// Resampling.
        resize: Resize,
        /// Normalisation that the values are prepared for.
        scaling: Scaling,
        /// Height and width of the output.
        output: [usize; 2],
        /// Prepared resize, if all images have one size.
        resizer: Option<Box<Resizer>>,
    },
    /// CLIP resize and crop in u8 arithmetic.
    Crop {
        /// Height and width of the output.
        size: usize,
        /// Whether the graph takes the result as f32.
        floats: bool,
    },
}

impl Preparation {
    /// A resize of images of size `input` (`None` if their sizes differ) to `output`; both are `[height, width]`.
    #[must_use]
    pub fn resize(resize: Resize, scaling: Scaling, input: Option<[usize; 2]>, output: [usize; 2]) -> Self {
        let resizer = input.map(|input| Box::new(Resizer::new(resize, scaling, input, output)));
        Self::Resize { resize, scaling, output, resizer }
    }

    /// Input of the network for `images`, `[N, h, w, 3]`.
    ///
    /// # Errors
    /// If the graph takes bytes and the images have different sizes.
    pub fn apply(&self, images: &[ArrayView3<'_, u8>]) -> anyhow::Result<Tensor> {
        Ok(match self {
            Self::Bytes => {
                let stacked = ndarray::stack(Axis(0), images)?;
                Tensor::U8(stacked.as_standard_layout().into_owned().into_dyn())
            }
            Self::Resize { resize, scaling, output, resizer } => {
                let each = |image: ArrayView3<'_, u8>, slot: ArrayViewMut3<'_, f32>| match resizer {
                    Some(resizer) => resizer.apply(image, slot),
                    None => {
                        let (h, w, _) = image.dim();
                        Resizer::new(*resize, *scaling, [h, w], *output).apply(image, slot);
                    }
                };
                Tensor::F32(mapped(images, *output, each).into_dyn())
            }
            Self::Crop { size, floats: false } => {
                let each =
                    |image: ArrayView3<'_, u8>, mut slot: ArrayViewMut3<'_, u8>| slot.assign(&clip_crop(image, *size));
                Tensor::U8(mapped(images, [*size; 2], each).into_dyn())
            }
            Self::Crop { size, floats: true } => {
                let each = |image: ArrayView3<'_, u8>, mut slot: ArrayViewMut3<'_, f32>| {
                    slot.assign(&clip_crop(image, *size).mapv(f32::from));
                };
                Tensor::F32(mapped(images, [*size; 2], each).into_dyn())
            }
        })
    }
}

/// Joins the parts of a batch.
///
/// # Errors
/// If the parts differ in type or image size.
pub fn joined(parts: Vec<Tensor>) -> anyhow::Result<Tensor> {
    if parts.iter().all(|part| matches!(part, Tensor::U8(_))) {
        let parts: Vec<_> =
            parts.iter().filter_map(|p| if let Tensor::U8(a) = p { Some(a.view()) } else { None }).collect();
        return Ok(Tensor::U8(concatenate(Axis(0), &parts)?));
    }
    let all = parts.iter().map(|p| if let Tensor::F32(a) = p { Some(a.view()) } else { None });
    let parts: Vec<_> = all.collect::<Option<_>>().context("parts of one type")?;
    Ok(Tensor::F32(concatenate(Axis(0), &parts)?))
}

/// Applies `each` to every image in parallel. The result is `[N, h, w, 3]`.
fn mapped<T: Clone + Default + Send + Sync>(
    images: &[ArrayView3<'_, u8>],
    [h, w]: [usize; 2],
    each: impl Fn(ArrayView3<'_, u8>, ArrayViewMut3<'_, T>) + Sync,
) -> Array4<T> {
    let mut out = Array4::from_elem((images.len(), h, w, 3), T::default());
    out.axis_iter_mut(Axis(0)).into_par_iter().zip(images.par_iter()).for_each(|(slot, image)| each(*image, slot));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_in_parts_is_the_batch() {
        let images = Array4::from_shape_fn((5, 9, 7, 3), |(i, y, x, c)| u8::try_from(i * 40 + y * x + c).unwrap_or(0));
        let views: Vec<_> = images.outer_iter().collect();
        let resize = Preparation::resize(Resize::Torch, Scaling::Unit, None, [4, 4]);
        for preparation in [Preparation::Bytes, resize, Preparation::Crop { size: 4, floats: false }] {
            let parts = [&views[..2], &views[2..3], &views[3..]].map(|part| preparation.apply(part).unwrap());
            let (parts, whole) = (joined(parts.into()).unwrap(), preparation.apply(&views).unwrap());
            match (parts, whole) {
                (Tensor::U8(parts), Tensor::U8(whole)) => assert_eq!(parts, whole),
                (Tensor::F32(parts), Tensor::F32(whole)) => assert_eq!(parts, whole),
                other => panic!("{other:?}"),
            }
        }
    }
}
