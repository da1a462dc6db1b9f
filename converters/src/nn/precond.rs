//! Preconditioned denoisers D(x; σ) = c_skip·x + c_out·F(c_in·x; c_noise) and the one-step generators made of them.

use crate::config::{D2O_EPS, NetConfig, NoiseSchedule, Precond, UNetConfig};
use crate::error::Result;
use crate::nn::backend::Backend;
use crate::nn::dhariwal_unet::DhariwalUNet;
use crate::nn::layers::signed;
use crate::nn::openai_unet::{OpenAiUNet, QkvLayout};
use crate::nn::song_unet::SongUNet;
use crate::weights::{Init, Scope};

/// Noise level of a call.
#[derive(Debug, Clone)]
pub enum Sigma<V> {
    /// The same for every image, known while the network is laid out.
    Fixed(f64),
    /// One per image, `[N]`.
    PerImage(V),
}

/// A network with its preconditioner; tensors lie below `model.`, those of OpenAI's at the root.
#[derive(Debug, Clone)]
pub struct Denoiser<V> {
    config: NetConfig,
    scope: Scope,
    unet: UNet<V>,
    /// Noise levels of a network that is told an index.
    levels: Option<Levels>,
}

/// Falling noise levels of a DDPM's training; of an iDDPM's the last is 0.
#[derive(Debug, Clone)]
struct Levels {
    sigmas: Vec<f32>,
    /// What the network is told at the lowest.
    first: f64,
}

impl Levels {
    /// Half-way points between successive levels, rising: a noise level at or above k of them is nearest to the k-th from below, and the
    /// network is told `first` + k.
    fn thresholds(&self) -> Vec<f32> {
        self.sigmas.windows(2).rev().map(|pair| (pair[0] + pair[1]) / 2.0).collect()
    }
}

#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "one per network")]
enum UNet<V> {
    Song(SongUNet<V>),
    Dhariwal(DhariwalUNet<V>),
    OpenAi(OpenAiUNet<V>),
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
        let (resolution, inputs, labels) = (config.img_resolution, config.img_channels, config.label_dim);
        let levels = match config.precond {
            Precond::Iddpm { c1, c2, steps } => {
                let init = Init::Values(iddpm_levels(c1, c2, steps));
                let sigmas = b.buffer(&Scope::root(), "u", &[steps + 1], &init)?;
                Some(Levels { sigmas, first: -1.0 })
            }
            Precond::Gaussian { schedule, steps, .. } => {
                Some(Levels { sigmas: gaussian_levels(schedule, steps), first: 0.0 })
            }
            _ => None,
        };
        let channels = [inputs, if matches!(config.precond, Precond::Iddpm { .. }) { 2 * inputs } else { inputs }];
        let unet = match &config.unet {
            UNetConfig::Song(c) => UNet::Song(SongUNet::build(b, scope.clone(), resolution, channels, labels, c)?),
            UNetConfig::Dhariwal(c) => {
                UNet::Dhariwal(DhariwalUNet::build(b, scope.clone(), resolution, channels, labels, c)?)
            }
            UNetConfig::OpenAi(c) => {
                let guided = matches!(config.precond, Precond::Gaussian { .. });
                let layout = QkvLayout { split_first: !guided || c.use_new_attention_order, conv1d: guided };
                let channels = [inputs, c.out_channels.unwrap_or(inputs)];
                UNet::OpenAi(OpenAiUNet::build(b, Scope::root(), channels, labels, c, layout)?)
            }
        };
        Ok(Self { config: config.clone(), scope: Scope::root().child("precond"), unet, levels })
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
            UNet::OpenAi(net) => net.forward(b, &input, &c.noise, labels)?,
        };
        b.enter(&self.scope);
        let out = if b.dim(&out, 1) == Some(self.config.img_channels) {
            out
        } else {
            // The rest are variances.
            b.slice(&out, 1, 0, self.config.img_channels)?
        };
        let out = b.mul(&out, &c.out)?;
        let skip = match &c.skip {
            Some(c_skip) => b.mul(x, c_skip)?,
            None => x.clone(),
        };
        let denoised = b.add(&skip, &out)?;
        match self.config.precond {
            Precond::Karras { clip: true, .. } | Precond::Gaussian { clip: true, .. } => b.clamp(&denoised, -1.0, 1.0),
            _ => Ok(denoised),
        }
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
        let mut c = coefficients(self.config.precond, sigma);
        if let Some(levels) = &self.levels {
            #[allow(clippy::cast_possible_truncation, reason = "the original takes sigma as f32")]
            let sigma = sigma as f32;
            let index = levels.thresholds().iter().filter(|t| sigma >= **t).count() as f64 + levels.first;
            c.noise = index * self.config.precond.time_scale();
        }
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
            Precond::Edm { sigma_data } | Precond::D2o { sigma_data } | Precond::Karras { sigma_data, .. } => {
                let var = sigma_data * sigma_data;
                let square = b.mul(&s, &s)?;
                let total = b.offset(&square, var)?;
                let root = b.sqrt(&total)?;
                let identity_at = match self.config.precond {
                    Precond::D2o { .. } => Some(D2O_EPS),
                    Precond::Karras { sigma_min, .. } => sigma_min,
                    _ => None,
                };
                let (shifted, below) = if let Some(eps) = identity_at {
                    let shifted = b.offset(&s, -eps)?;
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
                let noise = if matches!(self.config.precond, Precond::Karras { .. }) {
                    let above_zero = b.offset(sigma, KARRAS_TINY)?;
                    let noise = b.log(&above_zero)?;
                    b.scale(&noise, KARRAS_TIME)?
                } else {
                    let noise = b.log(sigma)?;
                    b.scale(&noise, 0.25)?
                };
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
            Precond::Iddpm { .. } | Precond::Gaussian { .. } => {
                let square = b.mul(&s, &s)?;
                let total = b.offset(&square, 1.0)?;
                let root = b.sqrt(&total)?;
                let one = one(b)?;
                let input = b.div(&one, &root)?;
                let out = b.scale(&s, -1.0)?;
                // The number of thresholds at or below sigma: 1 - (1 if sigma < threshold), summed exactly.
                let (thresholds, first) = self.levels.as_ref().map_or((Vec::new(), 0.0), |l| (l.thresholds(), l.first));
                let count = thresholds.len();
                let minus = b.constant(&self.scope, "thresholds", &[1, count], thresholds)?;
                let column = b.reshape(sigma, &[-1, 1])?;
                let column = b.scale(&column, -1.0)?;
                let above = b.add(&minus, &column)?;
                let above = b.scale(&above, STEP)?;
                let above = b.clamp(&above, 0.0, 1.0)?;
                let ones = b.constant(&self.scope, "ones", &[1, count], vec![1.0; count])?;
                let above = b.linear(&above, &ones, None)?;
                let noise = b.scale(&above, -1.0)?;
                let noise = b.offset(&noise, count as f64 + first)?;
                let noise = match self.config.precond.time_scale() {
                    1.0 => noise,
                    scale => b.scale(&noise, scale)?,
                };
                let noise = b.reshape(&noise, &[-1])?;
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

/// Turns any positive difference of two noise levels into a number above 1.
const STEP: f64 = 1e30;

/// Noise levels u of an iDDPM, `steps + 1` of them, falling to 0: facts of EDM's `iDDPMPrecond`.
#[allow(clippy::cast_possible_truncation, reason = "the original keeps them as f32")]
fn iddpm_levels(c1: f64, c2: f64, steps: usize) -> Vec<f32> {
    let alpha_bar = |j: usize| (0.5 * std::f64::consts::PI * j as f64 / steps as f64 / (c2 + 1.0)).sin().powi(2);
    let mut u = vec![0.0; steps + 1];
    for j in (1..=steps).rev() {
        let ratio = (alpha_bar(j - 1) / alpha_bar(j)).max(c1);
        u[j - 1] = ((f64::from(u[j]) * f64::from(u[j]) + 1.0) / ratio - 1.0).sqrt() as f32;
    }
    u
}

/// Noise levels √((1 − ᾱ)/ᾱ) of guided-diffusion's schedules, falling.
#[allow(clippy::cast_possible_truncation, reason = "thresholds are compared in f32")]
fn gaussian_levels(schedule: NoiseSchedule, steps: usize) -> Vec<f32> {
    const MAX_BETA: f64 = 0.999;
    let total = steps as f64;
    let beta = |i: usize| match schedule {
        NoiseSchedule::Linear => {
            let (low, high) = (1000.0 / total * 0.0001, 1000.0 / total * 0.02);
            low + (high - low) * i as f64 / (total - 1.0)
        }
        NoiseSchedule::Cosine => {
            let alpha_bar = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
            (1.0 - alpha_bar((i + 1) as f64 / total) / alpha_bar(i as f64 / total)).min(MAX_BETA)
        }
    };
    let mut alpha_bar = 1.0;
    let mut sigmas: Vec<f32> = (0..steps)
        .map(|i| {
            alpha_bar *= 1.0 - beta(i);
            ((1.0 - alpha_bar) / alpha_bar).sqrt() as f32
        })
        .collect();
    sigmas.reverse();
    sigmas
}

/// A network of consistency_models is told 1000 · ¼ ln(σ + 1e-44).
const KARRAS_TIME: f64 = 250.0;
/// Keeps the logarithm finite at σ = 0.
const KARRAS_TINY: f64 = 1e-44;

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
        Precond::Karras { sigma_data: d, sigma_min, .. } => {
            let root = (s * s + d * d).sqrt();
            let shifted = s - sigma_min.unwrap_or(0.0);
            let skip = d * d / (shifted * shifted + d * d);
            // In f32 step by step: the time is in the hundreds, and its sine counts.
            #[allow(clippy::cast_possible_truncation, reason = "the original computes it in f32")]
            let noise = (s + KARRAS_TINY).ln() as f32 * KARRAS_TIME as f32;
            Scalars { skip, out: shifted * d / root, input: 1.0 / root, noise: noise.into() }
        }
        Precond::Vp { beta_d, beta_min, steps } => {
            let t = ((beta_min * beta_min + 2.0 * beta_d * (s * s).ln_1p()).sqrt() - beta_min) / beta_d;
            Scalars { skip: 1.0, out: -s, input: 1.0 / (s * s + 1.0).sqrt(), noise: (steps - 1.0) * t }
        }
        // What the network is told depends on the levels.
        Precond::Iddpm { .. } | Precond::Gaussian { .. } => {
            Scalars { skip: 1.0, out: -s, input: 1.0 / (s * s + 1.0).sqrt(), noise: f64::NAN }
        }
        Precond::Ve => Scalars { skip: 1.0, out: s, input: 1.0, noise: (0.5 * s).ln() },
    }
}

/// Noise levels a denoiser can take: `sigma_min` and `sigma_max` of the originals' classes.
///
/// Arguments of the constructor count before the class's own limits.
#[must_use]
#[allow(clippy::cast_possible_truncation, reason = "the original computes its attributes in f32")]
fn noise_range(config: &NetConfig, levels: Option<&[f32]>) -> [f64; 2] {
    let given = |name: &str| config.init_kwargs().get(name).and_then(serde_json::Value::as_f64);
    let [low, high] = match config.precond {
        Precond::Ve => [0.02, 100.0],
        Precond::Vp { beta_d, beta_min, .. } => {
            let sigma = |t: f64| {
                let t = t as f32;
                f64::from((((0.5 * beta_d) as f32 * (t * t) + beta_min as f32 * t).exp() - 1.0).sqrt())
            };
            return [sigma(given("epsilon_t").unwrap_or(1e-5)), sigma(1.0)];
        }
        _ => {
            // The lowest above 0.
            let known = levels.unwrap_or(&[]).iter().copied().filter(|l| *l > 0.0);
            let bounds =
                known.fold(None, |b: Option<[f32; 2]>, l| Some(b.map_or([l; 2], |[a, b]| [a.min(l), b.max(l)])));
            if let Some(bounds) = bounds {
                return bounds.map(f64::from);
            }
            [0.0, f64::INFINITY]
        }
    };
    [given("sigma_min").unwrap_or(low), given("sigma_max").unwrap_or(high)]
}

impl<V> Denoiser<V> {
    /// Lowest and highest noise level it can take.
    #[must_use]
    pub fn noise_range(&self) -> [f64; 2] {
        noise_range(&self.config, self.noise_levels())
    }

    /// The only noise levels it knows, falling to 0, if they are discrete.
    #[must_use]
    pub fn noise_levels(&self) -> Option<&[f32]> {
        self.levels.as_ref().map(|l| l.sigmas.as_slice())
    }

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
    fn an_iddpm_is_told_the_index_of_the_nearest_level() {
        let levels = iddpm_levels(0.001, 0.008, 1000);
        assert!((levels[0] - 20291.0).abs() < 1.0 && (levels[999] - 0.006425).abs() < 1e-5 && levels[1000] == 0.0);
        let cosine = gaussian_levels(NoiseSchedule::Cosine, 1000);
        assert!(cosine.iter().zip(&levels).all(|(a, b)| (a - b).abs() <= 1e-4 * a), "the two spell one schedule");
        let thresholds = Levels { sigmas: levels.clone(), first: -1.0 }.thresholds();
        let told = |sigma: f32| thresholds.iter().filter(|t| sigma >= **t).count() as f64 - 1.0;
        for sigma in [0.0_f32, 0.003, 0.0033, 0.1, 1.0, 2.5, 80.0, 1e6] {
            let nearest =
                (0..levels.len()).min_by(|a, b| (levels[*a] - sigma).abs().total_cmp(&(levels[*b] - sigma).abs()));
            assert_eq!(told(sigma), 999.0 - nearest.unwrap() as f64, "{sigma}");
        }
    }

    #[test]
    fn noise_ranges_are_the_originals_attributes() {
        let range = |class: &str| {
            let kwargs = serde_json::json!({"img_resolution": 8, "img_channels": 3, "model_type": "SongUNet"});
            noise_range(&NetConfig::new(class, &kwargs).unwrap(), None)
        };
        let [low, high] = range("VPPrecond");
        assert!((low - 9.765_625e-4).abs() < 1e-12 && (high - 152.17).abs() < 0.01, "{low} {high}");
        assert_eq!(range("VEPrecond"), [0.02, 100.0]);
        assert_eq!(range("EDMPrecond"), [0.0, f64::INFINITY]);
    }

    #[test]
    fn d2o_is_the_identity_at_eps() {
        let c = coefficients(Precond::D2o { sigma_data: 0.5 }, D2O_EPS);
        assert!(c.out.abs() < 1e-9 && (c.skip - 1.0).abs() < 1e-9);
    }
}
