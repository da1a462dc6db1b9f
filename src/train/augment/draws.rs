//! Random draws of a pipe, and the labels that record them.

use tch::{Device, Kind, TchError, Tensor};

/// Convention of a pipe for random draws and labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// StyleGAN2-ADA: labels are the factors and terms that are applied.
    StyleGan2Ada,
    /// EDM: labels are the random numbers.
    Edm,
}

/// The draws for one batch.
#[derive(Debug)]
pub(super) struct Draws {
    pub(super) style: Style,
    batch: i64,
    device: Device,
    strength: f64,
    labels: Vec<Tensor>,
}

impl Draws {
    /// Draws for `images [N, ..]`. `strength` multiplies every probability.
    pub(super) fn new(style: Style, images: &Tensor, strength: f64) -> Self {
        let batch = images.size().first().copied().unwrap_or(0);
        Self { style, batch, device: images.device(), strength, labels: Vec::new() }
    }

    /// Probability of a transformation with this multiplier. StyleGAN2-ADA computes it in f32.
    pub(super) fn chance(&self, multiplier: f64) -> f64 {
        match self.style {
            Style::StyleGan2Ada => f64::from(as_f32(multiplier) * as_f32(self.strength)),
            Style::Edm => multiplier * self.strength,
        }
    }

    /// Standard normal values [N·`each`].
    pub(super) fn normal(&self, each: i64) -> Result<Tensor, TchError> {
        Tensor::f_randn([self.batch * each], (Kind::Float, self.device))
    }

    /// Values [N·`each`], uniform on [0, 1).
    pub(super) fn uniform(&self, each: i64) -> Result<Tensor, TchError> {
        Tensor::f_rand([self.batch * each], (Kind::Float, self.device))
    }

    /// Values [N·`each`], uniform on [-`bound`, `bound`).
    pub(super) fn symmetric(&self, each: i64, bound: f64) -> Result<Tensor, TchError> {
        self.uniform(each)?.f_mul_scalar(2.0)?.f_sub_scalar(1.0)?.f_mul_scalar(bound)
    }

    /// Random integers [N] from 0 to `sides` − 1.
    fn integers(&self, sides: i64) -> Result<Tensor, TchError> {
        match self.style {
            Style::StyleGan2Ada => self.uniform(1)?.f_mul_scalar(sides)?.f_floor(),
            Style::Edm => Tensor::f_randint(sides, [self.batch], (Kind::Int64, self.device))?.f_to_kind(Kind::Float),
        }
    }

    /// `values` where a uniform number of the image is below `chance`, otherwise 0. Dimension `of_images` of `values`
    /// has size N.
    pub(super) fn kept(&self, values: &Tensor, of_images: usize, chance: f64) -> Result<Tensor, TchError> {
        let mut dims = vec![1; values.dim()];
        if let Some(d) = dims.get_mut(of_images) {
            *d = self.batch;
        }
        let kept = self.uniform(1)?.f_reshape(dims)?.f_lt(chance)?;
        values.f_where_self(&kept, &values.f_zeros_like()?)
    }

    /// [`Self::integers`] numbers [N], each with the probability [`Self::chance`] of `multiplier`, otherwise 0.
    pub(super) fn choice(&self, sides: i64, multiplier: f64) -> Result<Tensor, TchError> {
        self.kept(&self.integers(sides)?, 0, self.chance(multiplier))
    }

    /// Terms [N]: `std` times normal values, with the probability [`Self::chance`] of `multiplier`, otherwise 0.
    pub(super) fn term(&mut self, std: f64, multiplier: f64) -> Result<Tensor, TchError> {
        let drawn = self.kept(&self.normal(1)?, 0, self.chance(multiplier))?;
        let term = drawn.f_mul_scalar(std)?;
        self.label(if self.style == Style::Edm { &drawn } else { &term })?;
        Ok(term)
    }

    /// Factors [N]: 2 to the power of terms as in [`Self::term`]. The terms are drawn and labelled here.
    pub(super) fn factor(&mut self, std: f64, multiplier: f64) -> Result<Tensor, TchError> {
        let drawn = self.kept(&self.normal(1)?, 0, self.chance(multiplier))?;
        let factor = drawn.f_mul_scalar(std)?.f_exp2()?;
        self.label(if self.style == Style::Edm { &drawn } else { &factor })?;
        Ok(factor)
    }

    /// Angles [N] of rotations, uniform on ±`bound`, with the probability `chance`, otherwise 0. Labels are cos − 1 and
    /// sin.
    pub(super) fn angle(&mut self, bound: f64, chance: f64) -> Result<Tensor, TchError> {
        let angle = self.kept(&self.symmetric(1, bound)?, 0, chance)?;
        self.label(&angle.f_cos()?.f_sub_scalar(1.0)?)?;
        self.label(&angle.f_sin()?)?;
        Ok(angle)
    }

    /// Records `values [N, ..]` as labels.
    pub(super) fn label(&mut self, values: &Tensor) -> Result<(), TchError> {
        self.labels.push(values.f_to_kind(Kind::Float)?.f_reshape([self.batch, -1])?);
        Ok(())
    }

    /// The labels in the order in which they were recorded: [N, L].
    pub(super) fn into_labels(self) -> Result<Tensor, TchError> {
        if self.labels.is_empty() {
            return Tensor::f_zeros([self.batch, 0], (Kind::Float, self.device));
        }
        Tensor::f_cat(&self.labels, 1)
    }
}

/// `value` rounded to f32.
#[allow(clippy::cast_possible_truncation, reason = "tensors are f32")]
pub(super) fn as_f32(value: f64) -> f32 {
    value as f32
}
