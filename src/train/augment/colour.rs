//! Affine transformations of colours.

use std::f64::consts::PI;

use tch::{Device, Kind, TchError, Tensor};

use super::draws::{Draws, Style};
use super::warp::matrices;

/// Each component of the unit vector along the grey axis.
const AXIS: f32 = 0.577_350_26;

/// Multipliers of probabilities, and ranges. A transformation with multiplier 0 draws no random numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Colours {
    /// Multiplier for a shift of brightness.
    pub brightness: f64,
    /// Multiplier for a change of contrast.
    pub contrast: f64,
    /// Multiplier for an inversion of luma that keeps hue and saturation.
    pub lumaflip: f64,
    /// Multiplier for a rotation of hue.
    pub hue: f64,
    /// Multiplier for a change of saturation.
    pub saturation: f64,
    /// Standard deviation of the shift of brightness, for images in about [-1, 1].
    pub brightness_std: f64,
    /// Standard deviation of log2 of the contrast factor.
    pub contrast_std: f64,
    /// Largest rotation of hue; 1 is 180° in either direction.
    pub hue_max: f64,
    /// Standard deviation of log2 of the saturation factor.
    pub saturation_std: f64,
}

impl Default for Colours {
    /// All transformations off.
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
    /// All transformations on.
    #[must_use]
    pub fn all() -> Self {
        Self { brightness: 1.0, contrast: 1.0, lumaflip: 1.0, hue: 1.0, saturation: 1.0, ..Self::default() }
    }
}

/// The transformations of [`Colours`].
#[derive(Debug)]
pub(super) struct Recolouring {
    colours: Colours,
    identity: Tensor,
    /// Projection [4, 4] onto the grey axis.
    grey: Tensor,
}

impl Recolouring {
    pub(super) fn new(colours: Colours, device: Device) -> Result<Self, TchError> {
        let identity = Tensor::f_eye(4, (Kind::Float, device))?;
        let axis = Tensor::f_from_slice(&[AXIS, AXIS, AXIS, 0.0])?;
        Ok(Self { colours, identity, grey: axis.f_outer(&axis)?.f_to_device(device)? })
    }

    /// `images [N, C, H, W]` with their colours transformed.
    pub(super) fn apply(&self, draws: &mut Draws, images: &Tensor) -> Result<Tensor, TchError> {
        let s = &self.colours;
        let (batch, channels, height, width) = images.size4()?;
        let options = (Kind::Float, images.device());
        let (zero, one) = (Tensor::f_zeros([batch], options)?, Tensor::f_ones([batch], options)?);
        // Homogeneous matrices [N, 4, 4] of colours.
        let mut product: Option<Tensor> = None;
        let mut append = |next: Tensor| -> Result<(), TchError> {
            product = Some(match &product {
                None => next,
                Some(product) => next.f_matmul(product)?,
            });
            Ok(())
        };
        let scaled = |factor: &Tensor, shift: &Tensor| {
            let (red, green) = ([factor, &zero, &zero, shift], [&zero, factor, &zero, shift]);
            matrices(&[&red, &green, &[&zero, &zero, factor, shift], &[&zero, &zero, &zero, &one]])
        };
        let coloured = channels > 1 || draws.style == Style::Edm;

        if s.brightness > 0.0 {
            let shift = draws.term(s.brightness_std, s.brightness)?;
            append(scaled(&one, &shift)?)?;
        }
        if s.contrast > 0.0 {
            let factor = draws.factor(s.contrast_std, s.contrast)?;
            append(scaled(&factor, &zero)?)?;
        }
        if s.lumaflip > 0.0 {
            let flip = draws.choice(2, s.lumaflip)?;
            draws.label(&flip)?;
            append(self.identity.f_sub(&self.grey.f_mul_scalar(2.0)?.f_mul(&flip.f_reshape([-1, 1, 1])?)?)?)?;
        }
        if s.hue > 0.0 && coloured {
            let chance = draws.chance(s.hue);
            let angle = draws.angle(PI * s.hue_max, chance)?;
            append(about_grey(&angle, [&zero, &one])?)?;
        }
        if s.saturation > 0.0 && coloured {
            let factor = draws.factor(s.saturation_std, s.saturation)?;
            append(self.grey.f_add(&self.identity.f_sub(&self.grey)?.f_mul(&factor.f_reshape([-1, 1, 1])?)?)?)?;
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
            _ => {
                return Err(TchError::Shape(format!(
                    "colour augmentation: expected images of 1 or 3 channels, found {channels}"
                )));
            }
        };
        flat.f_reshape(images.size())
    }
}

/// Rotations [N, 4, 4] by `angle [N]`, radians, about the grey axis (Rodrigues).
fn about_grey(angle: &Tensor, [zero, one]: [&Tensor; 2]) -> Result<Tensor, TchError> {
    let (cos, sin) = (angle.f_cos()?, angle.f_sin()?.f_mul_scalar(f64::from(AXIS))?);
    let outside = one.f_sub(&cos)?.f_mul_scalar(f64::from(AXIS * AXIS))?;
    let (on, less, more) = (outside.f_add(&cos)?, outside.f_sub(&sin)?, outside.f_add(&sin)?);
    matrices(&[
        &[&on, &less, &more, zero],
        &[&more, &on, &less, zero],
        &[&less, &more, &on, zero],
        &[zero, zero, zero, one],
    ])
}
