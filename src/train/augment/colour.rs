//! Affine transformations of colours.

use std::f64::consts::PI;

use tch::{Kind, TchError, Tensor};

use super::draws::{Draws, Style};
use super::warp::matrices;

/// Multipliers of probabilities, and ranges. A group with the multiplier 0 draws nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Colours {
    /// Multiplier for a shift of brightness.
    pub brightness: f64,
    /// Multiplier for a change of contrast.
    pub contrast: f64,
    /// Multiplier for the inversion of brightness without the colours' hue and saturation.
    pub lumaflip: f64,
    /// Multiplier for a rotation of hue.
    pub hue: f64,
    /// Multiplier for a change of saturation.
    pub saturation: f64,
    /// Standard deviation of the shift of brightness, on images about [-1, 1].
    pub brightness_std: f64,
    /// Standard deviation of log2 of the factor of contrast.
    pub contrast_std: f64,
    /// Largest rotation of hue; 1 is half a turn in either direction.
    pub hue_max: f64,
    /// Standard deviation of log2 of the factor of saturation.
    pub saturation_std: f64,
}

impl Default for Colours {
    /// All groups off.
    fn default() -> Self {
        Self {
            brightness: 0.0,
            contrast: 0.0,
            lumaflip: 0.0,
            hue: 0.0,
            saturation: 0.0,
            brightness_std: 0.2,
            contrast_std: 0.5,
            hue_max: 1.0,
            saturation_std: 1.0,
        }
    }
}

impl Colours {
    /// All groups on.
    #[must_use]
    pub fn all() -> Self {
        Self { brightness: 1.0, contrast: 1.0, lumaflip: 1.0, hue: 1.0, saturation: 1.0, ..Self::default() }
    }

    /// `images [N, C, H, W]` with their colours transformed.
    pub(super) fn apply(&self, draws: &mut Draws, images: &Tensor) -> Result<Tensor, TchError> {
        let (batch, channels, height, width) = images.size4()?;
        let options = (Kind::Float, images.device());
        let (zero, one) = (Tensor::f_zeros([batch], options)?, Tensor::f_ones([batch], options)?);
        // Homogeneous matrices [N, 4, 4] that take colours to colours.
        let mut product: Option<Tensor> = None;
        let mut append = |next: Tensor| -> Result<(), TchError> {
            product = Some(match &product {
                None => next,
                Some(product) => next.f_matmul(product)?,
            });
            Ok(())
        };
        let along = |[x, y, z]: [&Tensor; 3], shift: &Tensor| {
            matrices(&[
                &[x, &zero, &zero, shift],
                &[&zero, y, &zero, shift],
                &[&zero, &zero, z, shift],
                &[&zero, &zero, &zero, &one],
            ])
        };
        // The axis of grey, and the projection onto it.
        let axis = Tensor::f_from_slice(&[1.0_f64, 1.0, 1.0, 0.0])?.f_div_scalar(3.0_f64.sqrt())?;
        let axis = axis.f_to_kind(Kind::Float)?.f_to_device(images.device())?;
        let (grey, identity) = (axis.f_outer(&axis)?, Tensor::f_eye(4, options)?);
        let coloured = channels > 1 || draws.style == Style::Edm;

        if self.brightness > 0.0 {
            let shift = draws.term(self.brightness_std, self.brightness)?;
            append(along([&one, &one, &one], &shift)?)?;
        }
        if self.contrast > 0.0 {
            let factor = draws.factor(self.contrast_std, self.contrast)?;
            append(along([&factor, &factor, &factor], &zero)?)?;
        }
        if self.lumaflip > 0.0 {
            let flip = draws.choice(2, self.lumaflip)?;
            draws.label(&flip)?;
            append(identity.f_sub(&grey.f_mul_scalar(2.0)?.f_mul(&flip.f_reshape([-1, 1, 1])?)?)?)?;
        }
        if self.hue > 0.0 && coloured {
            let chance = draws.chance(self.hue);
            let angle = draws.angle(PI * self.hue_max, chance)?;
            append(about_grey(&axis, &angle, [&zero, &one])?)?;
        }
        if self.saturation > 0.0 && coloured {
            let factor = draws.factor(self.saturation_std, self.saturation)?;
            append(grey.f_add(&identity.f_sub(&grey)?.f_mul(&factor.f_reshape([-1, 1, 1])?)?)?)?;
        }

        let Some(product) = product else { return Ok(images.shallow_clone()) };
        let flat = images.f_reshape([batch, channels, height * width])?;
        let rows = product.f_narrow(1, 0, 3)?;
        let flat = match channels {
            3 => rows.f_narrow(2, 0, 3)?.f_matmul(&flat)?.f_add(&rows.f_narrow(2, 3, 1)?)?,
            1 => {
                let mean = rows.f_mean_dim([1_i64].as_slice(), true, Kind::Float)?;
                let factor = mean.f_narrow(2, 0, 3)?.f_sum_dim_intlist([2_i64].as_slice(), true, Kind::Float)?;
                flat.f_mul(&factor)?.f_add(&mean.f_narrow(2, 3, 1)?)?
            }
            _ => return Err(TchError::Shape(format!("colours: expected images of 1 or 3 channels, found {channels}"))),
        };
        flat.f_reshape(images.size())
    }
}

/// Rotations [N, 4, 4] by `angle [N]`, radians, about the unit vector `axis [4]`, whose first three components are equal (Rodrigues).
fn about_grey(axis: &Tensor, angle: &Tensor, [zero, one]: [&Tensor; 2]) -> Result<Tensor, TchError> {
    let component = axis.f_get(0)?;
    let (cos, sin) = (angle.f_cos()?, angle.f_sin()?.f_mul(&component)?);
    let outside = one.f_sub(&cos)?.f_mul(&component.f_mul(&component)?)?;
    let (on, less, more) = (outside.f_add(&cos)?, outside.f_sub(&sin)?, outside.f_add(&sin)?);
    matrices(&[
        &[&on, &less, &more, zero],
        &[&more, &on, &less, zero],
        &[&less, &more, &on, zero],
        &[zero, zero, zero, one],
    ])
}
