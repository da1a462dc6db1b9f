//! Affine transformations of images, with upsampling and downsampling by a wavelet filter.

use tch::{Device, Kind, TchError, Tensor};

use super::draws::as_f32;
use crate::train::libtorch::values_of;

/// Low-pass filter of the wavelet sym6 (Daubechies 1992).
const SYM6: [f64; 12] = [
    0.015_404_109_327_027_373,
    0.003_490_712_084_217_470_2,
    -0.117_990_111_148_190_57,
    -0.048_311_742_585_633,
    0.491_055_941_926_746_6,
    0.787_641_141_030_194,
    0.337_929_421_727_621_8,
    -0.072_637_522_786_462_52,
    -0.021_060_292_512_300_564,
    0.044_724_901_770_665_78,
    0.001_767_711_864_242_803_6,
    -0.007_800_708_325_034_148,
];
const TAPS: i64 = 12;
/// Margin of pixels around the output that the downsampling filter reads.
const EDGE: i64 = TAPS / 4;

/// Matrices [N, R, K] of `rows`, R rows of K values [N].
pub(super) fn matrices(rows: &[&[&Tensor]]) -> Result<Tensor, TchError> {
    let height = i64::try_from(rows.len()).unwrap_or_default();
    Tensor::f_stack(&rows.concat(), -1)?.f_reshape([-1, height, i64::try_from(rows[0].len()).unwrap_or_default()])
}

/// Inverse of a chain of transformations: homogeneous matrices [N, 3, 3] that map output pixels to input pixels, both
/// (x, y, 1) from the centre of the image. Each method appends the inverse of its transformation.
#[derive(Debug)]
pub(super) struct Inverse {
    zero: Tensor,
    one: Tensor,
    product: Option<Tensor>,
}

impl Inverse {
    /// The identity for each of `images [N, ..]`.
    pub(super) fn identity(images: &Tensor) -> Result<Self, TchError> {
        let (batch, options) = (images.size4()?.0, (Kind::Float, images.device()));
        Ok(Self { zero: Tensor::f_zeros([batch], options)?, one: Tensor::f_ones([batch], options)?, product: None })
    }

    fn append(&mut self, rows: [[&Tensor; 3]; 2]) -> Result<(), TchError> {
        let last = matrices(&[&rows[0], &rows[1], &[&self.zero, &self.zero, &self.one]])?;
        self.product = Some(match &self.product {
            None => last,
            Some(product) => product.f_matmul(&last)?,
        });
        Ok(())
    }

    /// Appends a shift by `x` and `y` pixels, each [N].
    pub(super) fn shift(&mut self, x: &Tensor, y: &Tensor) -> Result<(), TchError> {
        let (zero, one) = (self.zero.shallow_clone(), self.one.shallow_clone());
        self.append([[&one, &zero, &x.f_neg()?], [&zero, &one, &y.f_neg()?]])
    }

    /// Appends a scaling by the factors `x` and `y`, each [N].
    pub(super) fn scale(&mut self, x: &Tensor, y: &Tensor) -> Result<(), TchError> {
        let zero = self.zero.shallow_clone();
        self.append([[&x.f_reciprocal()?, &zero, &zero], [&zero, &y.f_reciprocal()?, &zero]])
    }

    /// Appends a scaling of the width by the factors `x [N]`.
    pub(super) fn scale_x(&mut self, x: &Tensor) -> Result<(), TchError> {
        let one = self.one.shallow_clone();
        self.scale(x, &one)
    }

    /// Appends a rotation by −`by [N]` radians; its inverse rotates by `by`.
    pub(super) fn rotate(&mut self, by: &Tensor) -> Result<(), TchError> {
        let (zero, cos, sin) = (self.zero.shallow_clone(), by.f_cos()?, by.f_sin()?);
        self.append([[&cos, &by.f_neg()?.f_sin()?, &zero], [&sin, &cos, &zero]])
    }
}

/// The filters of a warp.
#[derive(Debug)]
pub(super) struct Warp {
    up: Tensor,
    down: Tensor,
}

impl Warp {
    pub(super) fn new(device: Device) -> Result<Self, TchError> {
        let sym6 = Tensor::f_from_slice(&SYM6)?.f_to_kind(Kind::Float)?.f_reshape([1, 1, 1, TAPS])?;
        let down = sym6.f_div(&sym6.f_sum(Kind::Float)?)?.f_to_device(device)?;
        // Gain 2, since every other sample is zero before the filter.
        Ok(Self { up: down.f_mul_scalar(2.0)?, down })
    }

    /// `images [N, C, H, W]` transformed: [N, C, H, W]. Pixels outside the image are its reflection, and beyond the
    /// reflection 0.
    pub(super) fn apply(&self, images: &Tensor, inverse: Inverse) -> Result<Tensor, TchError> {
        let Some(mut inverse) = inverse.product else { return Ok(images.shallow_clone()) };
        let (batch, channels, height, width) = images.size4()?;
        let [left, right, top, bottom] = padding(&inverse, height, width)?;
        let planes = images.f_reflection_pad2d([left, right, top, bottom])?;
        let (tall, wide) = (2 * (height + top + bottom), 2 * (width + left + right));
        let planes = self.upsampled(&planes.f_reshape([batch * channels, 1, tall / 2, wide / 2])?)?;

        let (out_tall, out_wide) = (2 * (height + 2 * EDGE), 2 * (width + 2 * EDGE));
        let [t, w, ot, ow] = [tall, wide, out_tall, out_wide].map(as_f64);
        // Coordinate changes: centre of the padded image, upsampled pixels, half a pixel of the upsampling, libtorch's
        // range [-1, 1].
        let chain = [
            ([1.0, 1.0, as_f64(left - right) / 2.0, as_f64(top - bottom) / 2.0], [1.0, 1.0, 0.0, 0.0]),
            ([2.0, 2.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]),
            ([1.0, 1.0, -0.5, -0.5], [1.0, 1.0, 0.5, 0.5]),
            ([2.0 / w, 2.0 / t, 0.0, 0.0], [1.0 / (2.0 / ow), 1.0 / (2.0 / ot), 0.0, 0.0]),
        ];
        let values: Vec<f32> = chain
            .iter()
            .flat_map(|(before, after)| [before, after])
            .flat_map(|[sx, sy, tx, ty]| [*sx, 0.0, *tx, 0.0, *sy, *ty, 0.0, 0.0, 1.0])
            .map(as_f32)
            .collect();
        let chain = Tensor::f_from_slice(&values)?.f_to_device(images.device())?.f_reshape([-1, 2, 3, 3])?;
        for step in chain.f_unbind(0)? {
            inverse = step.f_get(0)?.f_matmul(&inverse)?.f_matmul(&step.f_get(1)?)?;
        }
        let size = [batch, channels, out_tall, out_wide];
        let grid = Tensor::f_affine_grid_generator(&inverse.f_narrow(1, 0, 2)?, size, false)?;
        let planes = planes.f_reshape([batch, channels, tall, wide])?;
        let (bilinear, zeros) = (0, 0);
        let planes = planes.f_grid_sampler(&grid, bilinear, zeros, false)?;
        self.downsampled(&planes.f_reshape([batch * channels, 1, out_tall, out_wide])?)?.f_reshape(images.size())
    }

    /// `planes [N, 1, H, W]` -> [N, 1, 2H, 2W].
    fn upsampled(&self, planes: &Tensor) -> Result<Tensor, TchError> {
        let (none, half) = (None::<&Tensor>, TAPS / 2 - 1);
        let planes = planes.f_conv_transpose2d(&self.up, none, [1, 2], [0, half], [0, 0], 1, [1, 1])?;
        let up = self.up.f_transpose(2, 3)?;
        planes.f_conv_transpose2d(&up, none, [2, 1], [half, 0], [0, 0], 1, [1, 1])
    }

    /// `planes [N, 1, 2(H + 2·EDGE), 2(W + 2·EDGE)]` -> [N, 1, H, W].
    fn downsampled(&self, planes: &Tensor) -> Result<Tensor, TchError> {
        let (_, _, height, width) = planes.size4()?;
        let planes = planes.f_narrow(2, 1, height - 2)?.f_narrow(3, 1, width - 2)?;
        let none = None::<&Tensor>;
        let planes = planes.f_conv2d(&self.down, none, [1, 2], [0, 0], [1, 1], 1)?;
        planes.f_conv2d(&self.down.f_transpose(2, 3)?, none, [2, 1], [0, 0], [1, 1], 1)
    }
}

/// Padding in pixels that the transformations with these inverses need at the left, right, top and bottom edge,
/// including the filter margin: the maximum over the batch, at most the image size less one.
fn padding(inverse: &Tensor, height: i64, width: i64) -> Result<[i64; 4], TchError> {
    let (x, y) = ((as_f64(width) - 1.0) / 2.0, (as_f64(height) - 1.0) / 2.0);
    let corners: Vec<f32> = [-x, x, x, -x, -y, -y, y, y, 1.0, 1.0, 1.0, 1.0].map(as_f32).to_vec();
    let corners = Tensor::f_from_slice(&corners)?.f_to_device(inverse.device())?.f_reshape([3, 4])?;
    let seen = inverse.f_matmul(&corners)?.f_narrow(1, 0, 2)?;
    let (lowest, highest) = (seen.f_amin([0, 2], false)?, seen.f_amax([0, 2], false)?);
    let extremes = values_of(&Tensor::f_cat(&[lowest.f_neg()?, highest], 0)?)?;
    let [left, top, right, bottom] = extremes[..] else { return Err(TchError::Shape("a warp's corners".to_owned())) };
    let beyond = |extreme: f32, centre: f64, size: i64| {
        let pixels = extreme + as_f32(as_f64(2 * EDGE) - centre);
        #[allow(clippy::cast_possible_truncation, reason = "a whole number of pixels")]
        let pixels = pixels.clamp(0.0, as_f32(as_f64(size - 1))).ceil() as i64;
        pixels
    };
    Ok([beyond(left, x, width), beyond(right, x, width), beyond(top, y, height), beyond(bottom, y, height)])
}

#[allow(clippy::cast_precision_loss, reason = "sizes of images")]
pub(super) fn as_f64(size: i64) -> f64 {
    size as f64
}
