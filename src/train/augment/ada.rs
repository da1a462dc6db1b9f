//! StyleGAN2-ADA's pipe (Karras et al. 2020) in the version of Zyriix/D2O, and the control of its strength.

use std::f64::consts::{FRAC_PI_2, PI};

use tch::{Device, Kind, TchError, Tensor};

use super::Augmented;
use super::colour::{Colours, Recolouring};
use super::draws::{Draws, Style, single};
use super::warp::{Inverse, Warp, real};

/// Settings of [`AdaPipe`]: multipliers of probabilities, and ranges. A group with the multiplier 0 draws nothing.
///
/// The version of D2O has no filtering of frequency bands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdaSettings {
    /// Multiplier for a mirror image.
    pub xflip: f64,
    /// Multiplier for rotations by multiples of 90°.
    pub rotate90: f64,
    /// Multiplier for a shift by whole pixels.
    pub xint: f64,
    /// Largest shift by whole pixels, as a share of the image's size.
    pub xint_max: f64,
    /// Multiplier for an enlargement.
    pub scale: f64,
    /// Multiplier for a rotation, before or after the stretch.
    pub rotate: f64,
    /// Multiplier for a stretch of width against height.
    pub aniso: f64,
    /// Multiplier for a shift.
    pub xfrac: f64,
    /// Standard deviation of log2 of the enlargement.
    pub scale_std: f64,
    /// Largest rotation; 1 is half a turn in either direction.
    pub rotate_max: f64,
    /// Standard deviation of log2 of the stretch.
    pub aniso_std: f64,
    /// Standard deviation of the shift, as a share of the image's size.
    pub xfrac_std: f64,
    /// Colours.
    pub colours: Colours,
    /// Multiplier for normal noise on each element.
    pub noise: f64,
    /// Multiplier for a rectangle set to 0.
    pub cutout: f64,
    /// Scale of the noise's standard deviation, which is half normal, on images about [-1, 1].
    pub noise_std: f64,
    /// Height and width of the rectangle, as a share of the image's.
    pub cutout_size: f64,
}

impl Default for AdaSettings {
    /// All groups off.
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
    /// Those of D2O's training: all groups but noise and cutout.
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

/// The pipe: for real and generated images alike, never for R1.
#[derive(Debug)]
pub struct AdaPipe {
    settings: AdaSettings,
    warp: Warp,
    recolouring: Recolouring,
}

impl AdaPipe {
    /// For images on `device`.
    ///
    /// # Errors
    /// libtorch's own.
    pub fn new(settings: AdaSettings, device: Device) -> Result<Self, TchError> {
        let recolouring = Recolouring::new(settings.colours, device)?;
        Ok(Self { settings, warp: Warp::new(device)?, recolouring })
    }

    /// Augments `images [N, C, H, W]`; `p` multiplies every probability.
    ///
    /// # Errors
    /// libtorch's own; `Shape` for colours of images that have neither 1 nor 3 channels.
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
            inverse.widen(&flip.f_mul_scalar(-2.0)?.f_add_scalar(1.0)?)?;
            draws.label(&flip)?;
        }
        if s.rotate90 > 0.0 {
            let quarters = draws.choice(4, s.rotate90)?;
            inverse.turn(&quarters.f_mul_scalar(FRAC_PI_2)?)?;
            draws.label(&quarters)?;
        }
        if s.xint > 0.0 {
            let shift = draws.symmetric(2, s.xint_max)?.f_reshape([-1, 2])?;
            let shift = draws.kept(&shift, 0, draws.chance(s.xint))?;
            let pixels = |axis: i64, size: i64| shift.f_select(1, axis)?.f_mul_scalar(size)?.f_round();
            let (x, y) = (pixels(0, width)?, pixels(1, height)?);
            inverse.shift(&x, &y)?;
            draws.label(&x.f_div_scalar(real(width) * s.xint_max)?)?;
            draws.label(&y.f_div_scalar(real(height) * s.xint_max)?)?;
        }
        if s.scale > 0.0 {
            let factor = draws.factor(s.scale_std, s.scale)?;
            inverse.enlarge(&factor, &factor)?;
        }
        // The probability of one rotation of two, so that of either is the one asked for.
        let one_of_two = 1.0 - (1.0 - single(draws.chance(s.rotate))).clamp(0.0, 1.0).sqrt();
        let rotate = |draws: &mut Draws, inverse: &mut Inverse| {
            let angle = draws.angle(PI * s.rotate_max, f64::from(one_of_two))?;
            inverse.turn(&angle)
        };
        if s.rotate > 0.0 {
            rotate(draws, &mut inverse)?;
        }
        if s.aniso > 0.0 {
            let factor = draws.factor(s.aniso_std, s.aniso)?;
            inverse.enlarge(&factor, &factor.f_reciprocal()?)?;
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
            // Where the image stays, along an axis of the image.
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

/// Control of the pipe's strength `p` by the discriminator's logits of real images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ada {
    /// Strength, at least 0. It is all there is to save and restore.
    pub p: f32,
    /// Mean sign of the logits that it aims at.
    pub target: f64,
}

impl Ada {
    /// Iterations between updates, the first of which ends the fourth.
    pub const INTERVAL: u32 = 4;
    /// Images in which `p` goes from 0 to 1 at most.
    const RAMP: f64 = 500_000.0;

    /// Moves `p` one step: up if `mean_sign` is above the target, down if below.
    ///
    /// `mean_sign` is the mean of sign(D(x)) over all logits of all augmented real images since the last update, `batch` the number of images
    /// in an iteration, over all processes.
    pub fn update(&mut self, mean_sign: f64, batch: u32) {
        let off = mean_sign - self.target;
        let sign = if off == 0.0 { 0.0 } else { off.signum() };
        let images = f64::from(batch) * f64::from(Self::INTERVAL);
        self.p = (self.p + single(sign * images / Self::RAMP)).max(0.0);
    }
}
