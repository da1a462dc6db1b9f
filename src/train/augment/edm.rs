//! The augmentation pipe of EDM (Karras et al. 2022, appendix F.2). The network receives the transformations as labels,
//! so that it can generate images without them.

use std::f64::consts::PI;

use tch::{Device, Kind, TchError, Tensor};

use super::colour::{Colours, Recolouring};
use super::draws::{Draws, Style};
use super::warp::{Inverse, Warp, as_f64};
use super::{Augmented, gathered};

/// Settings of [`EdmPipe`]: multipliers of probabilities, and ranges. A transformation with multiplier 0 draws no
/// random numbers and gives no labels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EdmSettings {
    /// Probability that multiplies every multiplier.
    pub p: f64,
    /// Multiplier for a horizontal flip, which then occurs with probability ½. One label.
    pub xflip: f64,
    /// Multiplier for a vertical flip, which then occurs with probability ½. One label.
    pub yflip: f64,
    /// Multiplier for rotations by multiples of 90°, for square images only. Two labels.
    pub rotate_int: f64,
    /// Multiplier for a shift by whole pixels. Two labels.
    pub translate_int: f64,
    /// Largest shift by whole pixels, as a share of the image size.
    pub translate_int_max: f64,
    /// Multiplier for isotropic scaling. One label.
    pub scale: f64,
    /// Multiplier for a rotation. Two labels.
    pub rotate_frac: f64,
    /// Multiplier for anisotropic scaling of one axis against the other. Two labels.
    pub aniso: f64,
    /// Multiplier for a shift by fractions of pixels. Two labels.
    pub translate_frac: f64,
    /// Standard deviation of log2 of the isotropic scale factor.
    pub scale_std: f64,
    /// Largest rotation; 1 is 180° in either direction.
    pub rotate_frac_max: f64,
    /// Standard deviation of log2 of the anisotropic scale factor.
    pub aniso_std: f64,
    /// Probability that anisotropic scaling has a random direction instead of an image axis.
    pub aniso_rotate_prob: f64,
    /// Standard deviation of the shift by fractions of pixels, as a share of the image size.
    pub translate_frac_std: f64,
    /// Colours; six labels.
    pub colours: Colours,
}

impl Default for EdmSettings {
    /// All transformations off, `p` 1.
    fn default() -> Self {
        Self {
            p: 1.0,
            xflip: 0.0,
            yflip: 0.0,
            rotate_int: 0.0,
            translate_int: 0.0,
            translate_int_max: 0.125,
            scale: 0.0,
            rotate_frac: 0.0,
            aniso: 0.0,
            translate_frac: 0.0,
            scale_std: 0.2,
            rotate_frac_max: 1.0,
            aniso_std: 0.2,
            aniso_rotate_prob: 0.5,
            translate_frac_std: 0.125,
            colours: Colours::default(),
        }
    }
}

impl EdmSettings {
    /// Number of labels with [`EdmSettings::edm`], the `augment_dim` of the network.
    pub const EDM_LABELS: usize = 9;

    /// Settings of EDM's training with `--augment p`. Half of all images are flipped horizontally, for any `p` of at
    /// least 1e-8.
    #[must_use]
    pub fn edm(p: f64) -> Self {
        Self {
            p,
            xflip: 1e8,
            yflip: 1.0,
            scale: 1.0,
            rotate_frac: 1.0,
            aniso: 1.0,
            translate_frac: 1.0,
            ..Self::default()
        }
    }
}

/// The pipe, for the images of the denoising loss.
#[derive(Debug)]
pub struct EdmPipe {
    settings: EdmSettings,
    warp: Warp,
    recolouring: Recolouring,
}

impl EdmPipe {
    /// The pipe for images on `device`.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn new(settings: EdmSettings, device: Device) -> Result<Self, TchError> {
        let recolouring = Recolouring::new(settings.colours, device)?;
        Ok(Self { settings, warp: Warp::new(device)?, recolouring })
    }

    /// Augments `images [N, C, H, W]`.
    ///
    /// # Errors
    /// `Shape` if colours are on and the images have neither 1 nor 3 channels. Other errors if libtorch fails.
    pub fn apply(&self, images: &Tensor) -> Result<Augmented, TchError> {
        let mut draws = Draws::new(Style::Edm, images, self.settings.p);
        let images = self.moved(&mut draws, images)?;
        let inverse = self.geometry(&mut draws, &images)?;
        let images = self.warp.apply(&images, inverse)?;
        let images = self.recolouring.apply(&mut draws, &images)?;
        Ok(Augmented { images, labels: draws.into_labels()? })
    }

    /// Transformations that move whole pixels.
    fn moved(&self, draws: &mut Draws, images: &Tensor) -> Result<Tensor, TchError> {
        let s = &self.settings;
        let (_, _, height, width) = images.size4()?;
        let mut images = images.shallow_clone();
        let flipped = |images: &Tensor, which: &Tensor, axis: i64| {
            images.f_flip([axis])?.f_where_self(&which.f_reshape([-1, 1, 1, 1])?, images)
        };
        for (multiplier, axis) in [(s.xflip, 3), (s.yflip, 2)] {
            if multiplier > 0.0 {
                let flip = draws.choice(2, multiplier)?;
                images = flipped(&images, &flip.f_eq(1)?, axis)?;
                draws.label(&flip)?;
            }
        }
        if s.rotate_int > 0.0 {
            let quarters = draws.choice(4, s.rotate_int)?;
            let either = |a: i64, b: i64| quarters.f_eq(a)?.f_logical_or(&quarters.f_eq(b)?);
            let (x, y) = (either(1, 2)?, either(2, 3)?);
            images = flipped(&flipped(&images, &x, 3)?, &y, 2)?;
            let transposed = either(1, 3)?.f_reshape([-1, 1, 1, 1])?;
            images = images.f_transpose(2, 3)?.f_where_self(&transposed, &images)?;
            draws.label(&x)?;
            draws.label(&y)?;
        }
        if s.translate_int > 0.0 {
            let shift = draws.symmetric(2, 1.0)?.f_reshape([2, -1])?;
            let shift = draws.kept(&shift, 1, draws.chance(s.translate_int))?;
            let pixels = |axis: i64, size: i64| {
                shift.f_get(axis)?.f_mul_scalar(as_f64(size) * s.translate_int_max)?.f_round()?.f_to_kind(Kind::Int64)
            };
            let (x, y) = (pixels(0, width)?, pixels(1, height)?);
            // Source positions, reflected at the edges.
            let places = |by: &Tensor, size: i64| -> Result<Tensor, TchError> {
                let places = Tensor::f_arange(size, (Kind::Int64, images.device()))?;
                let places = places.f_sub(&by.f_reshape([-1, 1])?)?.f_remainder(2 * size - 2)?;
                let last = size - 1;
                places.f_sub_scalar(last)?.f_abs()?.f_neg()?.f_add_scalar(last)
            };
            let rows = places(&y.f_neg()?, height)?.f_reshape([-1, 1, height, 1])?;
            let columns = places(&x, width)?.f_reshape([-1, 1, 1, width])?;
            images = gathered(&images, &rows, &columns)?;
            draws.label(&x.f_div_scalar(as_f64(width) * s.translate_int_max)?)?;
            draws.label(&y.f_div_scalar(as_f64(height) * s.translate_int_max)?)?;
        }
        Ok(images)
    }

    fn geometry(&self, draws: &mut Draws, images: &Tensor) -> Result<Inverse, TchError> {
        let s = &self.settings;
        let (_, _, height, width) = images.size4()?;
        let mut inverse = Inverse::identity(images)?;
        if s.scale > 0.0 {
            let factor = draws.factor(s.scale_std, s.scale)?;
            inverse.scale(&factor, &factor)?;
        }
        if s.rotate_frac > 0.0 {
            let chance = draws.chance(s.rotate_frac);
            let angle = draws.angle(PI * s.rotate_frac_max, chance)?;
            inverse.rotate(&angle)?;
        }
        if s.aniso > 0.0 {
            let (drawn, angle) = (draws.normal(1)?, draws.symmetric(1, PI)?);
            let drawn = draws.kept(&drawn, 0, draws.chance(s.aniso))?;
            let angle = draws.kept(&angle, 0, s.aniso_rotate_prob)?;
            let factor = drawn.f_mul_scalar(s.aniso_std)?.f_exp2()?;
            inverse.rotate(&angle.f_neg()?)?;
            inverse.scale(&factor, &factor.f_reciprocal()?)?;
            inverse.rotate(&angle)?;
            draws.label(&drawn.f_mul(&angle.f_cos()?)?)?;
            draws.label(&drawn.f_mul(&angle.f_sin()?)?)?;
        }
        if s.translate_frac > 0.0 {
            let shift = draws.normal(2)?.f_reshape([2, -1])?;
            let shift = draws.kept(&shift, 1, draws.chance(s.translate_frac))?;
            let (x, y) = (shift.f_get(0)?, shift.f_get(1)?);
            let pixels = |drawn: &Tensor, size: i64| drawn.f_mul_scalar(as_f64(size) * s.translate_frac_std);
            inverse.shift(&pixels(&x, width)?, &pixels(&y, height)?)?;
            draws.label(&x)?;
            draws.label(&y)?;
        }
        Ok(inverse)
    }
}
