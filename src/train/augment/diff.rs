//! DiffAugment (Zhao et al. 2020) with the policy of projected discriminators: colour, translation, cutout.

use tch::{Kind, TchError, Tensor};

use super::gathered;

/// Largest shift, as a share of the image size.
const TRANSLATION: f64 = 0.125;
/// Height and width of the rectangle set to 0, as a share of the image size.
const CUTOUT: f64 = 0.2;

/// Augments `images [N, C, H, W]`: brightness, saturation, contrast, a shift by whole pixels with zeros outside, a rectangle set to 0.
///
/// The original does this separately for each backbone of the discriminator, for real and generated images, also in R1.
///
/// # Errors
/// If libtorch fails.
pub fn diff_augment(images: &Tensor) -> Result<Tensor, TchError> {
    let (batch, _, height, width) = images.size4()?;
    let whole = (Kind::Int64, images.device());
    let factor = || Tensor::f_rand([batch, 1, 1, 1], (images.kind(), images.device()));
    let about = |images: &Tensor, axes: &[i64], factor: Tensor| {
        let mean = images.f_mean_dim(axes, true, images.kind())?;
        images.f_sub(&mean)?.f_mul(&factor)?.f_add(&mean)
    };
    let images = images.f_add(&factor()?.f_sub_scalar(0.5)?)?;
    let images = about(&images, &[1], factor()?.f_mul_scalar(2.0)?)?;
    let images = about(&images, &[1, 2, 3], factor()?.f_add_scalar(0.5)?)?;

    // A border of one zero pixel is enough: positions outside the image are clamped to it.
    let places = |size: i64| -> Result<Tensor, TchError> {
        let most = share(size, TRANSLATION);
        let by = Tensor::f_randint_low(-most, most + 1, [batch, 1], whole)?;
        Tensor::f_arange(size, whole)?.f_add(&by)?.f_add_scalar(1)?.f_clamp(0, size + 1)
    };
    let (rows, columns) = (places(height)?, places(width)?);
    let rows = rows.f_reshape([batch, 1, height, 1])?;
    let images = gathered(&images.f_constant_pad_nd([1, 1, 1, 1])?, &rows, &columns.f_reshape([batch, 1, 1, width])?)?;

    let inside = |size: i64| -> Result<Tensor, TchError> {
        let length = share(size, CUTOUT);
        let first = Tensor::f_randint(size + 1 - length % 2, [batch, 1], whole)?.f_sub_scalar(length / 2)?;
        let places = Tensor::f_arange(size, whole)?.f_sub(&first)?;
        places.f_ge(0)?.f_logical_and(&places.f_lt(length)?)
    };
    let (rows, columns) = (inside(height)?, inside(width)?);
    let cut = rows.f_reshape([batch, 1, height, 1])?.f_logical_and(&columns.f_reshape([batch, 1, 1, width])?)?;
    images.f_mul(&cut.f_logical_not()?.f_to_kind(images.kind())?)
}

/// `ratio` of `size`, rounded half up.
#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "sizes of images")]
fn share(size: i64, ratio: f64) -> i64 {
    (size as f64 * ratio + 0.5) as i64
}
