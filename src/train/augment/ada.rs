//! The augmentation pipe of StyleGAN2-ADA (Karras et al. 2020) in the version of Zyriix/D2O, and the control of its
//! strength.

use std::f64::consts::{FRAC_PI_2, PI};

use tch::{Device, Kind, TchError, Tensor};

use super::Augmented;
use super::colour::{Colours, Recolouring};
use super::draws::{Draws, Style, as_f32};
use super::warp::{Inverse, Warp, as_f64};

/// Settings of [`AdaPipe`]: multipliers of probabilities, and ranges. A transformation with multiplier 0 draws no
/// random numbers.
///
/// The D2O version has no filtering of frequency bands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdaSettings {
    /// Multiplier for a horizontal flip.
    pub xflip: f64,
    /// Multiplier for rotations by multiples of 90°.
    pub rotate90: f64,
    /// Multiplier for a shift by whole pixels.
    pub xint: f64,
    /// Largest shift by whole pixels, as a share of the image size.
    pub xint_max: f64,
    /// Multiplier for isotropic scaling.
    pub scale: f64,
    /// Multiplier for a rotation, before or after the anisotropic scaling.
    pub rotate: f64,
    /// Multiplier for anisotropic scaling of width against height.
    pub aniso: f64,
    /// Multiplier for a shift by fractions of pixels.
    pub xfrac: f64,
    /// Standard deviation of log2 of the isotropic scale factor.
    pub scale_std: f64,
    /// Largest rotation; 1 is 180° in either direction.
    pub rotate_max: f64,
    /// Standard deviation of log2 of the anisotropic scale factor.
    pub aniso_std: f64,
    /// Standard deviation of the shift by fractions of pixels, as a share of the image size.
    pub xfrac_std: f64,
    /// Colours.
    pub colours: Colours,
    /// Multiplier for Gaussian noise on each element.
    pub noise: f64,
    /// Multiplier for cutout: a rectangle set to 0.
    pub cutout: f64,
    /// Scale of the standard deviation of the noise, which is half-normal, for images in about [-1, 1].
    pub noise_std: f64,
    /// Height and width of the rectangle, as a share of the image size.
    pub cutout_size: f64,
}

impl Default for AdaSettings {
    /// All transformations off.
    fn default() -> Self {
        Self {
            xflip: 0.0,
            rotate90: 0.0,
            xint: 0.0,
            xint_max: 0.125,
            scale: 0.0,
            rotate: 0.0,
            aniso: 0.0,
            xfrac: 0.0,
            scale_std: 0.2,
            rotate_max: 1.0,
            aniso_std: 0.2,
            xfrac_std: 0.125,
            colours: Colours::default(),
            noise: 0.0,
            cutout: 0.0,
            noise_std: 0.1,
            cutout_size: 0.5,
        }
    }
}

impl AdaSettings {
    /// Settings of D2O's training: all transformations except noise and cutout.
    #[must_use]
    pub fn d2o() -> Self {
        Self {
            xflip: 1.0,
            rotate90: 1.0,
            xint: 1.0,
            scale: 1.0,
            rotate: 1.0,
            aniso: 1.0,
            xfrac: 1.0,
            colours: Colours::all(),
            ..Self::default()
        }
    }
}

/// The pipe, for real and generated images, but not for R1.
#[derive(Debug)]
pub struct AdaPipe {
    settings: AdaSettings,
    warp: Warp,
    recolouring: Recolouring,
}

impl AdaPipe {
    /// The pipe for images on `device`.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn new(settings: AdaSettings, device: Device) -> Result<Self, TchError> {
        let recolouring = Recolouring::new(settings.colours, device)?;
        Ok(Self { settings, warp: Warp::new(device)?, recolouring })
    }

    /// Augments `images [N, C, H, W]`; `p` multiplies every probability.
    ///
    /// # Errors
    /// `Shape` if colours are on and the images have neither 1 nor 3 channels. Other errors if libtorch fails.
    pub fn apply(&self, images: &Tensor, p: f32) -> Result<Augmented, TchError> {
        let mut draws = Draws::new(Style::StyleGan2Ada, images, f64::from(p));
        let inverse = self.geometry(&mut draws, images)?;
        let images = self.warp.apply(images, inverse)?;
        let images = self.recolouring.apply(&mut draws, &images)?;
        let images = self.corrupted(&mut draws, images)?;
        Ok(Augmented { images, labels: draws.into_labels()? })
    }

    fn geometry(&self, draws: &mut Draws, images: &Tensor) -> Result<Inverse, TchError> {
        let s = &self.settings;
        let (_, _, height, width) = images.size4()?;
        let mut inverse = Inverse::identity(images)?;
        if s.xflip > 0.0 {
            let flip = draws.choice(2, s.xflip)?;
            inverse.scale_x(&flip.f_mul_scalar(-2.0)?.f_add_scalar(1.0)?)?;
            draws.label(&flip)?;
        }
        if s.rotate90 > 0.0 {
            let quarters = draws.choice(4, s.rotate90)?;
            inverse.rotate(&quarters.f_mul_scalar(FRAC_PI_2)?)?;
            draws.label(&quarters)?;
        }
        if s.xint > 0.0 {
            let shift = draws.symmetric(2, s.xint_max)?.f_reshape([-1, 2])?;
            let shift = draws.kept(&shift, 0, draws.chance(s.xint))?;
            let pixels = |axis: i64, size: i64| shift.f_select(1, axis)?.f_mul_scalar(size)?.f_round();
            let (x, y) = (pixels(0, width)?, pixels(1, height)?);
            inverse.shift(&x, &y)?;
            draws.label(&x.f_div_scalar(as_f64(width) * s.xint_max)?)?;
            draws.label(&y.f_div_scalar(as_f64(height) * s.xint_max)?)?;
        }
        if s.scale > 0.0 {
            let factor = draws.factor(s.scale_std, s.scale)?;
            inverse.scale(&factor, &factor)?;
        }
        // Probability of each of the two rotations, such that at least one occurs with the given probability.
        let one_of_two = 1.0 - (1.0 - as_f32(draws.chance(s.rotate))).clamp(0.0, 1.0).sqrt();
        let rotate = |draws: &mut Draws, inverse: &mut Inverse| {
            let angle = draws.angle(PI * s.rotate_max, f64::from(one_of_two))?;
            inverse.rotate(&angle)
        };
        if s.rotate > 0.0 {
            rotate(draws, &mut inverse)?;
        }
        if s.aniso > 0.0 {
            let factor = draws.factor(s.aniso_std, s.aniso)?;
            inverse.scale(&factor, &factor.f_reciprocal()?)?;
        }
        if s.rotate > 0.0 {
            rotate(draws, &mut inverse)?;
        }
        if s.xfrac > 0.0 {
            let shift = draws.normal(2)?.f_mul_scalar(s.xfrac_std)?.f_reshape([-1, 2])?;
            let shift = draws.kept(&shift, 0, draws.chance(s.xfrac))?;
            let pixels = |axis: i64, size: i64| shift.f_select(1, axis)?.f_mul_scalar(size);
            inverse.shift(&pixels(0, width)?, &pixels(1, height)?)?;
            draws.label(&shift)?;
        }
        Ok(inverse)
    }

    fn corrupted(&self, draws: &mut Draws, mut images: Tensor) -> Result<Tensor, TchError> {
        let s = &self.settings;
        let (batch, _, height, width) = images.size4()?;
        let options = (Kind::Float, images.device());
        if s.noise > 0.0 {
            let std = draws.normal(1)?.f_abs()?.f_mul_scalar(s.noise_std)?;
            let std = draws.kept(&std, 0, draws.chance(s.noise))?;
            images = images.f_add(&Tensor::f_randn(images.size(), options)?.f_mul(&std.f_reshape([-1, 1, 1, 1])?)?)?;
            draws.label(&std)?;
        }
        if s.cutout > 0.0 {
            let size = Tensor::f_full([batch, 2], s.cutout_size, options)?;
            let size = draws.kept(&size, 0, draws.chance(s.cutout))?;
            let centre = draws.uniform(2)?.f_reshape([-1, 2])?;
            // Mask of the pixels outside the rectangle, along one axis.
            let outside = |axis: i64, pixels: i64, dims: [i64; 4]| -> Result<Tensor, TchError> {
                let of_image = |t: &Tensor| t.f_select(1, axis)?.f_reshape([-1, 1, 1, 1]);
                let places = Tensor::f_arange(pixels, options)?.f_add_scalar(0.5)?.f_div_scalar(pixels)?;
                let distance = places.f_reshape(dims)?.f_sub(&of_image(&centre)?)?.f_abs()?;
                distance.f_ge_tensor(&of_image(&size)?.f_div_scalar(2.0)?)
            };
            let (x, y) = (outside(0, width, [1, 1, 1, -1])?, outside(1, height, [1, 1, -1, 1])?);
            images = images.f_mul(&x.f_logical_or(&y)?.f_to_kind(Kind::Float)?)?;
            draws.label(&size)?;
        }
        Ok(images)
    }
}

/// Control of the strength `p` of the pipe by the discriminator logits of real images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ada {
    /// Strength, at least 0. This is the only value to save and restore.
    pub p: f32,
    /// Target of the mean sign of the logits.
    pub target: f64,
}

impl Ada {
    /// Iterations between updates. The first update follows the fourth iteration.
    pub const INTERVAL: u32 = 4;
    /// Number of images over which `p` changes by at most 1.
    const RAMP: f64 = 500_000.0;

    /// Moves `p` one step: up if `mean_sign` is above the target, down if below.
    ///
    /// `mean_sign` is the mean of sign(D(x)) over all logits of all augmented real images since the last update, `batch` the number of images
    /// in an iteration, over all processes.
    pub fn update(&mut self, mean_sign: f64, batch: u32) {
        let off = mean_sign - self.target;
        let sign = if off == 0.0 { 0.0 } else { off.signum() };
        let images = f64::from(batch) * f64::from(Self::INTERVAL);
        self.p = (self.p + as_f32(sign * images / Self::RAMP)).max(0.0);
    }
}
