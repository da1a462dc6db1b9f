//! Preconditioned denoisers D(x; σ) = c_skip·x + c_out·F(c_in·x; c_noise) and the one-step generators made of them.

use crate::config::{NetConfig, Precond, UNetConfig};
use crate::error::Result;
use crate::nn::backend::Backend;
use crate::nn::dhariwal_unet::DhariwalUNet;
use crate::nn::layers::signed;
use crate::nn::song_unet::SongUNet;
use crate::weights::Scope;

/// Constant of D2O's boundary condition: D(x; EPS) = x.
pub const D2O_EPS: f64 = 2e-3;

/// Noise level of a call.
#[derive(Debug, Clone)]
pub enum Sigma<V> {
    /// The same for every image, known while the network is laid out.
    Fixed(f64),
    /// One per image, `[N]`.
    PerImage(V),
}

/// A network with its preconditioner; tensors lie below `model.`.
#[derive(Debug, Clone)]
pub struct Denoiser<V> {
    config: NetConfig,
    scope: Scope,
    unet: UNet<V>,
}

#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "one per network")]
enum UNet<V> {
    Song(SongUNet<V>),
    Dhariwal(DhariwalUNet<V>),
}

/// c_skip, c_out, c_in (each `[N or 1, 1, 1, 1]`) and c_noise (`[N or 1]`).
struct Coefficients<V> {
    skip: Option<V>,
    out: V,
    input: Option<V>,
    noise: V,
}

impl<V: Clone> Denoiser<V> {
    /// Takes the tensors `config` asks for.
    ///
    /// # Errors
    /// Those of [`Backend::param`].
    pub fn build<B: Backend<Value = V>>(b: &mut B, config: &NetConfig) -> Result<Self> {
        let scope = Scope::root().child("model");
        let (resolution, channels, labels) = (config.img_resolution, config.img_channels, config.label_dim);
        let unet = match &config.unet {
            UNetConfig::Song(c) => UNet::Song(SongUNet::build(b, scope.clone(), resolution, channels, labels, c)?),
            UNetConfig::Dhariwal(c) => {
                UNet::Dhariwal(DhariwalUNet::build(b, scope.clone(), resolution, channels, labels, c)?)
            }
        };
        Ok(Self { config: config.clone(), scope: Scope::root().child("precond"), unet })
    }

    /// The configuration it was built from.
    #[must_use]
    pub fn config(&self) -> &NetConfig {
        &self.config
    }

    /// Estimate of the clean image: `x [N, C, R, R]` at noise level `sigma`, `labels [N, label_dim]` -> `[N, C, R, R]`.
    ///
    /// # Errors
    /// `Engine`.
    pub fn denoise<B: Backend<Value = V>>(&self, b: &mut B, x: &V, sigma: &Sigma<V>, labels: Option<&V>) -> Result<V> {
        b.enter(&self.scope);
        let c = match sigma {
            Sigma::Fixed(value) => self.fixed(b, *value)?,
            Sigma::PerImage(value) => self.per_image(b, value)?,
        };
        let input = match &c.input {
            Some(c_in) => b.mul(x, c_in)?,
            None => x.clone(),
        };
        let labels = if self.config.label_dim == 0 { None } else { labels };
        let out = match &self.unet {
            UNet::Song(net) => net.forward(b, &input, &c.noise, labels)?,
            UNet::Dhariwal(net) => net.forward(b, &input, &c.noise, labels)?,
        };
        b.enter(&self.scope);
        let out = b.mul(&out, &c.out)?;
        let skip = match &c.skip {
            Some(c_skip) => b.mul(x, c_skip)?,
            None => x.clone(),
        };
        b.add(&skip, &out)
    }

    /// One-step generation: `latents [N, C, R, R]` of unit variance -> images `[N, C, R, R]` about [-1, 1].
    ///
    /// # Errors
    /// `Engine`.
    pub fn one_step<B: Backend<Value = V>>(
        &self,
        b: &mut B,
        latents: &V,
        sigma_max: f64,
        labels: Option<&V>,
    ) -> Result<V> {
        b.enter(&self.scope);
        let x = b.scale(latents, sigma_max)?;
        self.denoise(b, &x, &Sigma::Fixed(sigma_max), labels)
    }

    fn fixed<B: Backend<Value = V>>(&self, b: &mut B, sigma: f64) -> Result<Coefficients<V>> {
        let c = coefficients(self.config.precond, sigma);
        let scope = self.scope.clone();
        #[allow(clippy::cast_possible_truncation, reason = "networks compute in f32")]
        let mut image = |name: &str, value: f64| b.constant(&scope, name, &[1, 1, 1, 1], vec![value as f32]);
        let skip = if c.skip == 1.0 { None } else { Some(image("c_skip", c.skip)?) };
        let input = if c.input == 1.0 { None } else { Some(image("c_in", c.input)?) };
        let out = image("c_out", c.out)?;
        #[allow(clippy::cast_possible_truncation, reason = "networks compute in f32")]
        let noise = b.constant(&scope, "c_noise", &[1], vec![c.noise as f32])?;
        Ok(Coefficients { skip, out, input, noise })
    }

    fn per_image<B: Backend<Value = V>>(&self, b: &mut B, sigma: &V) -> Result<Coefficients<V>> {
        let s = b.reshape(sigma, &[-1, 1, 1, 1])?;
        let one = |b: &mut B| b.constant(&self.scope, "one", &[1, 1, 1, 1], vec![1.0]);
        match self.config.precond {
            Precond::Edm { sigma_data } | Precond::D2o { sigma_data } => {
                let var = sigma_data * sigma_data;
                let square = b.mul(&s, &s)?;
                let total = b.offset(&square, var)?;
                let root = b.sqrt(&total)?;
                let (shifted, below) = if matches!(self.config.precond, Precond::D2o { .. }) {
                    let shifted = b.offset(&s, -D2O_EPS)?;
                    let square = b.mul(&shifted, &shifted)?;
                    (shifted, b.offset(&square, var)?)
                } else {
                    (s, total)
                };
                let one = one(b)?;
                let skip = b.div(&one, &below)?;
                let skip = b.scale(&skip, var)?;
                let out = b.scale(&shifted, sigma_data)?;
                let out = b.div(&out, &root)?;
                let input = b.div(&one, &root)?;
                let noise = b.log(sigma)?;
                let noise = b.scale(&noise, 0.25)?;
                Ok(Coefficients { skip: Some(skip), out, input: Some(input), noise })
            }
            Precond::Vp { beta_d, beta_min, steps } => {
                let square = b.mul(&s, &s)?;
                let total = b.offset(&square, 1.0)?;
                let root = b.sqrt(&total)?;
                let one = one(b)?;
                let input = b.div(&one, &root)?;
                let out = b.scale(&s, -1.0)?;
                let t = b.log(&total)?;
                let t = b.reshape(&t, &[-1])?;
                let t = b.scale(&t, 2.0 * beta_d)?;
                let t = b.offset(&t, beta_min * beta_min)?;
                let t = b.sqrt(&t)?;
                let t = b.offset(&t, -beta_min)?;
                let noise = b.scale(&t, (steps - 1.0) / beta_d)?;
                Ok(Coefficients { skip: None, out, input: Some(input), noise })
            }
            Precond::Ve => {
                let noise = b.scale(sigma, 0.5)?;
                let noise = b.log(&noise)?;
                Ok(Coefficients { skip: None, out: s, input: None, noise })
            }
        }
    }
}

/// Scalar coefficients of a preconditioner at one noise level.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scalars {
    /// Factor of the noisy image in the result.
    pub skip: f64,
    /// Factor of the network's output.
    pub out: f64,
    /// Factor of the network's input.
    pub input: f64,
    /// What the network is told of the noise level.
    pub noise: f64,
}

/// The table of preconditioners at `sigma` (rounded to f32 first, as the originals do).
#[must_use]
pub fn coefficients(precond: Precond, sigma: f64) -> Scalars {
    #[allow(clippy::cast_possible_truncation, reason = "the originals take sigma as f32")]
    let s = f64::from(sigma as f32);
    match precond {
        Precond::Edm { sigma_data: d } => {
            let total = s * s + d * d;
            Scalars { skip: d * d / total, out: s * d / total.sqrt(), input: 1.0 / total.sqrt(), noise: s.ln() / 4.0 }
        }
        Precond::D2o { sigma_data: d } => {
            let root = (s * s + d * d).sqrt();
            let shifted = s - D2O_EPS;
            let skip = d * d / (shifted * shifted + d * d);
            Scalars { skip, out: shifted * d / root, input: 1.0 / root, noise: s.ln() / 4.0 }
        }
        Precond::Vp { beta_d, beta_min, steps } => {
            let t = ((beta_min * beta_min + 2.0 * beta_d * (s * s).ln_1p()).sqrt() - beta_min) / beta_d;
            Scalars { skip: 1.0, out: -s, input: 1.0 / (s * s + 1.0).sqrt(), noise: (steps - 1.0) * t }
        }
        Precond::Ve => Scalars { skip: 1.0, out: s, input: 1.0, noise: (0.5 * s).ln() },
    }
}

impl<V> Denoiser<V> {
    /// Dimensions of one image, `[C, R, R]`.
    #[must_use]
    pub fn image_dims(&self) -> [i64; 3] {
        let r = signed(self.config.img_resolution);
        [signed(self.config.img_channels), r, r]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coefficients_at_published_points() {
        let close = |a: f64, b: f64| assert!((a - b).abs() <= 1e-8 * b.abs().max(1.0), "{a} differs from {b}");
        let c = coefficients(Precond::D2o { sigma_data: 0.5 }, 80.0);
        close(c.skip, 3.906_292_723e-5);
        close(c.out, 0.499_977_734_9);
        close(c.input, 0.012_499_755_87);
        close(c.noise, 1.095_506_659);
        let c = coefficients(Precond::Edm { sigma_data: 0.5 }, 2.5);
        close(c.skip, 0.038_461_538_46);
        close(c.out, 0.490_290_337_8);
        close(c.input, 0.392_232_270_3);
        close(c.noise, 0.229_072_683);
    }

    #[test]
    fn d2o_is_the_identity_at_eps() {
        let c = coefficients(Precond::D2o { sigma_data: 0.5 }, D2O_EPS);
        assert!(c.out.abs() < 1e-9 && (c.skip - 1.0).abs() < 1e-9);
    }
}
