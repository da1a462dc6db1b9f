//! Samplers around an exported graph. The state is kept in f64, as in the originals, except for consistency models, which keep f32.

use std::f64::consts::{E, SQRT_2};

use d2o_onnx::read::ModelInfo;
use d2o_runtime::{Session, Tensor, TensorView};
use ndarray::{Array1, Array4, ArrayD, Ix4};
use serde::Serialize;

use super::request::{Discretization, Scaling, Schedule, Solver};
use super::rng::Streams;

/// Sampler: computes images from latents.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sampler {
    /// One evaluation of a one-step graph, which contains its noise level.
    Graph,
    /// One evaluation of a denoiser at one noise level (D2O at 80, SiD at 2.5).
    OneStep {
        /// The noise level.
        sigma: f64,
    },
    /// D2O's `two_step_sampler`, with a network that takes one noise level.
    TwoStep {
        /// Noise level of the latents.
        sigma_max: f64,
        /// Intermediate noise level.
        middle: f64,
    },
    /// D2O's `multi_step_sampler`, with a network that takes one noise level.
    MultiStep(NoiseLevels),
    /// EDM's `edm_sampler` (Karras et al. 2022, algorithm 2).
    Edm {
        /// Noise levels.
        grid: NoiseLevels,
        /// Noise added before each step.
        churn: Churn,
    },
    /// EDM's `ablation_sampler`.
    Ablation(Box<Ablation>),
    /// One- and multi-step sampling of consistency models.
    Consistency(Consistency),
}

/// Noise levels falling from `sigma_max` to `sigma_min` (Karras et al. 2022, equation 5).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct NoiseLevels {
    /// Number of levels.
    pub steps: u32,
    /// Lowest level.
    pub sigma_min: f64,
    /// Highest level.
    pub sigma_max: f64,
    /// Exponent.
    pub rho: f64,
}

impl NoiseLevels {
    /// The levels.
    #[must_use]
    pub fn levels(&self) -> Vec<f64> {
        (0..self.steps).map(|i| self.level(f64::from(i) / f64::from(self.steps - 1))).collect()
    }

    /// The level at `share` of the range: `sigma_max` at 0, `sigma_min` at 1.
    #[must_use]
    pub fn level(&self, share: f64) -> f64 {
        let (low, high) = (self.sigma_min.powf(1.0 / self.rho), self.sigma_max.powf(1.0 / self.rho));
        (high + share * (low - high)).powf(self.rho)
    }
}

/// Noise added before each step of a stochastic sampler.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Churn {
    /// Strength over all steps; 0 for a deterministic sampler.
    pub churn: f64,
    /// Lowest noise level at which noise is added.
    pub min: f64,
    /// Highest noise level at which noise is added.
    pub max: f64,
    /// Inflation of the noise.
    pub noise: f64,
    /// Whether the noise is drawn in f32, as in `consistency_models`.
    pub single: bool,
}

impl Churn {
    fn gamma(&self, steps: u32, sigma: f64) -> f64 {
        let within = self.min <= sigma && sigma <= self.max;
        if within { (self.churn / f64::from(steps)).min(SQRT_2 - 1.0) } else { 0.0 }
    }
}

/// EDM's generalised sampler, the superset of the methods its paper compares.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ablation {
    /// Number of steps.
    pub steps: u32,
    /// Lowest noise level; `None` for the one of the discretization.
    pub sigma_min: Option<f64>,
    /// Highest noise level; `None` for the one of the discretization.
    pub sigma_max: Option<f64>,
    /// Exponent of EDM's discretization.
    pub rho: f64,
    /// Solver.
    pub solver: Solver,
    /// Time steps.
    pub discretization: Discretization,
    /// Noise level over time.
    pub schedule: Schedule,
    /// Scale over time.
    pub scaling: Scaling,
    /// Position of the second evaluation in a Heun step: 1 at the end, ½ in the middle.
    pub alpha: f64,
    /// Noise added before each step.
    pub churn: Churn,
}

/// Smallest time of the VP discretization.
const EPSILON_S: f64 = 1e-3;

/// The VP noise level σ(t) of Song et al. 2021.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Vp {
    beta_d: f64,
    beta_min: f64,
}

impl Vp {
    /// The values of the original training.
    const DEFAULT: Self = Self { beta_d: 19.9, beta_min: 0.1 };

    /// The schedule that runs from `sigma_min` at [`EPSILON_S`] to `sigma_max` at 1.
    fn between(sigma_min: f64, sigma_max: f64) -> Self {
        let (low, high) = ((sigma_min * sigma_min + 1.0).ln(), (sigma_max * sigma_max + 1.0).ln());
        let beta_d = 2.0 * (low / EPSILON_S - high) / (EPSILON_S - 1.0);
        Self { beta_d, beta_min: high - 0.5 * beta_d }
    }

    fn sigma(self, t: f64) -> f64 {
        (E.powf(0.5 * self.beta_d * (t * t) + self.beta_min * t) - 1.0).sqrt()
    }

    fn slope(self, t: f64) -> f64 {
        let sigma = self.sigma(t);
        0.5 * (self.beta_min + self.beta_d * t) * (sigma + 1.0 / sigma)
    }

    fn time(self, sigma: f64) -> f64 {
        let log = (sigma * sigma + 1.0).ln();
        ((self.beta_min * self.beta_min + 2.0 * self.beta_d * log).sqrt() - self.beta_min) / self.beta_d
    }
}

/// Noise level σ(t) and scale s(t), with their derivatives.
#[derive(Debug, Clone, Copy)]
struct NoiseSchedule {
    schedule: Schedule,
    scaling: Scaling,
    vp: Vp,
}

impl NoiseSchedule {
    fn sigma(&self, t: f64) -> f64 {
        match self.schedule {
            Schedule::Vp => self.vp.sigma(t),
            Schedule::Ve => t.sqrt(),
            Schedule::Linear => t,
        }
    }

    fn sigma_slope(&self, t: f64) -> f64 {
        match self.schedule {
            Schedule::Vp => self.vp.slope(t),
            Schedule::Ve => 0.5 / t.sqrt(),
            Schedule::Linear => 1.0,
        }
    }

    fn time(&self, sigma: f64) -> f64 {
        match self.schedule {
            Schedule::Vp => self.vp.time(sigma),
            Schedule::Ve => sigma * sigma,
            Schedule::Linear => sigma,
        }
    }

    fn scale(&self, t: f64) -> f64 {
        match self.scaling {
            Scaling::Vp => 1.0 / (1.0 + self.sigma(t).powi(2)).sqrt(),
            Scaling::None => 1.0,
        }
    }

    fn scale_slope(&self, t: f64) -> f64 {
        match self.scaling {
            Scaling::Vp => -self.sigma(t) * self.sigma_slope(t) * self.scale(t).powi(3),
            Scaling::None => 0.0,
        }
    }
}

impl Ablation {
    /// Lowest and highest noise level for a network that accepts `range`.
    fn range(&self, range: &Range) -> (f64, f64) {
        let (low, high) = match self.discretization {
            Discretization::Vp => (Vp::DEFAULT.sigma(EPSILON_S), Vp::DEFAULT.sigma(1.0)),
            Discretization::Ve => (0.02, 100.0),
            Discretization::Iddpm => (0.002, 81.0),
            Discretization::Edm => (0.002, 80.0),
        };
        (self.sigma_min.unwrap_or(low).max(range.sigma_min), self.sigma_max.unwrap_or(high).min(range.sigma_max))
    }

    /// Noise levels of the steps, before they are rounded to the levels of the network.
    fn levels(&self, sigma_min: f64, sigma_max: f64) -> anyhow::Result<Vec<f64>> {
        let last = f64::from(self.steps - 1);
        let shares = (0..self.steps).map(|i| f64::from(i) / last);
        Ok(match self.discretization {
            Discretization::Vp => {
                let vp = Vp::between(sigma_min, sigma_max);
                shares.map(|s| vp.sigma(1.0 + s * (EPSILON_S - 1.0))).collect()
            }
            Discretization::Ve => {
                let (low, high) = (sigma_min * sigma_min, sigma_max * sigma_max);
                shares.map(|s| (high * (low / high).powf(s)).sqrt()).collect()
            }
            Discretization::Iddpm => {
                let within: Vec<f64> =
                    iddpm_levels().into_iter().filter(|u| (sigma_min..=sigma_max).contains(u)).collect();
                let count = within.len();
                anyhow::ensure!(count > 0, "no iDDPM noise level lies between {sigma_min} and {sigma_max}");
                let step = (count - 1) as f64 / last;
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index below count")]
                let index = |i: u32| (step * f64::from(i)).round_ties_even() as usize;
                (0..self.steps).map(|i| within[index(i).min(count - 1)]).collect()
            }
            Discretization::Edm => {
                let grid = NoiseLevels { steps: self.steps, sigma_min, sigma_max, rho: self.rho };
                grid.levels()
            }
        })
    }
}

/// Noise levels of the iDDPM discretization, falling to 0.
fn iddpm_levels() -> Vec<f64> {
    const STEPS: usize = 1000;
    const C_1: f32 = 0.001;
    const C_2: f32 = 0.008;
    // In f32, as in PyTorch with an index that is an integer tensor.
    #[allow(clippy::cast_precision_loss, reason = "indices up to 1000")]
    let alpha_bar = |j: usize| (std::f32::consts::FRAC_PI_2 * j as f32 / STEPS as f32 / (C_2 + 1.0)).sin().powi(2);
    let mut u = vec![0.0_f64; STEPS + 1];
    for j in (1..=STEPS).rev() {
        u[j - 1] = ((u[j] * u[j] + 1.0) / f64::from((alpha_bar(j - 1) / alpha_bar(j)).max(C_1)) - 1.0).sqrt();
    }
    u
}

/// Sampling of consistency models (Song et al. 2023).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Consistency {
    /// Indices into the noise levels, from 0 for the highest; empty for one step.
    pub ts: Vec<u32>,
    /// Noise levels.
    pub grid: NoiseLevels,
}

/// Noise levels that a denoiser accepts.
#[derive(Debug, Clone, PartialEq)]
pub struct Range {
    /// Lowest noise level.
    pub sigma_min: f64,
    /// Highest noise level.
    pub sigma_max: f64,
    /// The accepted levels, falling, if they are discrete.
    pub levels: Option<Vec<f32>>,
}

impl Range {
    /// Reads the metadata of an exported denoiser; every level if there is no entry.
    ///
    /// # Errors
    /// If metadata are not numbers, or a denoiser of discrete noise levels does not record them.
    pub fn of(model: &ModelInfo) -> anyhow::Result<Self> {
        let metadata = model.described()?;
        let discrete = metadata.class.as_deref() == Some("iDDPMPrecond");
        let levels = metadata.net_levels;
        anyhow::ensure!(!discrete || levels.is_some(), "the graph does not record its noise levels: export it again");
        let sigma_min = metadata.net_sigma_min.unwrap_or(0.0);
        let sigma_max = metadata.net_sigma_max.unwrap_or(f64::INFINITY);
        Ok(Self { sigma_min, sigma_max, levels })
    }

    /// The level nearest to `sigma` (`round_sigma` of the originals).
    #[must_use]
    pub fn round(&self, sigma: f64) -> f64 {
        #[allow(clippy::cast_possible_truncation, reason = "the original compares in f32")]
        let single = sigma as f32;
        let nearest = |levels: &Vec<f32>| {
            levels.iter().copied().min_by(|a, b| (a - single).abs().total_cmp(&(b - single).abs())).map(f64::from)
        };
        self.levels.as_ref().and_then(nearest).unwrap_or(sigma)
    }
}

/// A session, and the labels for every evaluation.
struct Network<'a> {
    session: &'a mut dyn Session,
    labels: Option<&'a ArrayD<f32>>,
}

impl Network<'_> {
    /// D(x; σ).
    fn denoise(&mut self, x: &Array4<f64>, sigma: f64) -> anyhow::Result<Array4<f64>> {
        #[allow(clippy::cast_possible_truncation, reason = "networks take f32")]
        let sigma = Array1::from_elem(x.dim().0, sigma as f32);
        self.run(&[("x", narrow(x).view().into()), ("sigma", sigma.view().into())], "denoised")
    }

    /// Runs the session and returns the output `name`, `[N, C, H, W]`.
    fn run(&mut self, inputs: &[(&str, TensorView<'_>)], name: &str) -> anyhow::Result<Array4<f64>> {
        let mut inputs = inputs.to_vec();
        if let Some(labels) = self.labels {
            inputs.push(("class_labels", labels.view().into()));
        }
        let outputs = self.session.run(&inputs)?;
        match self.session.model().output_names().zip(outputs).find(|(n, _)| *n == name) {
            Some((_, Tensor::F32(images))) => Ok(images.into_dimensionality::<Ix4>()?.mapv(f64::from)),
            _ => anyhow::bail!("the graph has no f32 output `{name}`"),
        }
    }
}

impl Sampler {
    /// Computes images `[N, C, H, W]` in about [-1, 1] from `latents` of unit variance: `[N, C, H, W]`, or `[N, Z]` for
    /// a one-step graph of vectors. `noise` is the source of the noise of a stochastic sampler: one generator per
    /// image, in the state after the latent and the class were drawn.
    ///
    /// # Errors
    /// If the session fails, or a schedule of noise levels cannot be computed.
    pub fn sample(
        &self,
        session: &mut dyn Session,
        latents: &ArrayD<f32>,
        labels: Option<&ArrayD<f32>>,
        noise: &mut Streams,
    ) -> anyhow::Result<Array4<f64>> {
        let range = Range::of(session.model())?;
        let mut network = Network { session, labels };
        let start = || -> anyhow::Result<Array4<f32>> { Ok(latents.view().into_dimensionality::<Ix4>()?.into_owned()) };
        let scaled = |sigma: f64| -> anyhow::Result<Array4<f64>> { Ok(start()?.mapv(|v| f64::from(v) * sigma)) };
        match self {
            Self::Graph => network.run(&[("latents", latents.view().into())], "images"),
            Self::OneStep { sigma } => network.denoise(&scaled(*sigma)?, *sigma),
            Self::TwoStep { sigma_max: t, middle } => {
                let x = scaled(*t)?;
                let denoised = network.denoise(&x, *t)?;
                network.denoise(&((denoised - &x) / *t * (t - middle) + &x), *middle)
            }
            Self::MultiStep(grid) => {
                let levels = NoiseLevels { steps: grid.steps + 1, ..*grid }.levels();
                let mut x = scaled(levels[0])?;
                for (i, pair) in levels.windows(2).enumerate() {
                    let denoised = network.denoise(&x, pair[0])?;
                    let last = i + 2 == levels.len();
                    x = if last { denoised } else { (denoised - &x) / pair[0] * (pair[0] - pair[1]) + &x };
                }
                Ok(x)
            }
            Self::Edm { grid, churn } => edm(grid, churn, &range, &mut network, &start()?, noise),
            Self::Ablation(options) => ablation(options, &range, &mut network, &start()?, noise),
            Self::Consistency(options) => consistency(options, &mut network, &start()?, noise),
        }
    }

    /// Number of evaluations of the network per image.
    #[must_use]
    pub fn evaluations(&self) -> u64 {
        let heun = |steps: u32| u64::from(2 * steps - 1);
        match self {
            Self::Graph | Self::OneStep { .. } => 1,
            Self::TwoStep { .. } => 2,
            Self::MultiStep(grid) => u64::from(grid.steps),
            Self::Edm { grid, .. } => heun(grid.steps),
            Self::Ablation(a) if a.solver == Solver::Heun => heun(a.steps),
            Self::Ablation(a) => u64::from(a.steps),
            Self::Consistency(c) => c.ts.len().saturating_sub(1).max(1) as u64,
        }
    }
}

/// Noise of the shape of `latents`.
fn draw(noise: &mut Streams, latents: &Array4<f32>, single: bool) -> anyhow::Result<Array4<f64>> {
    let (_, c, h, w) = latents.dim();
    let count = c * h * w;
    let values = if single { noise.randn(count).into_iter().map(f64::from).collect() } else { noise.randn64(count) };
    Ok(Array4::from_shape_vec(latents.dim(), values)?)
}

fn edm(
    grid: &NoiseLevels,
    churn: &Churn,
    range: &Range,
    network: &mut Network<'_>,
    latents: &Array4<f32>,
    noise: &mut Streams,
) -> anyhow::Result<Array4<f64>> {
    let (sigma_min, sigma_max) = (grid.sigma_min.max(range.sigma_min), grid.sigma_max.min(range.sigma_max));
    let levels = NoiseLevels { sigma_min, sigma_max, ..*grid }.levels();
    let levels: Vec<f64> = levels.into_iter().map(|s| range.round(s)).chain([0.0]).collect();
    let mut x = latents.mapv(|v| f64::from(v) * levels[0]);
    for pair in levels.windows(2) {
        let (current, next) = (pair[0], pair[1]);
        let hat = range.round(current + churn.gamma(grid.steps, current) * current);
        // As in the original, noise is drawn even if none is added in this step. Without churn no result depends on it.
        if churn.churn > 0.0 {
            let spread = (hat * hat - current * current).sqrt() * churn.noise;
            x = x + draw(noise, latents, churn.single)? * spread;
        }
        let slope = (&x - &network.denoise(&x, hat)?) / hat;
        let mut y = &x + &slope * (next - hat);
        if next > 0.0 {
            let second = (&y - &network.denoise(&y, next)?) / next;
            y = &x + (slope * 0.5 + second * 0.5) * (next - hat);
        }
        x = y;
    }
    Ok(x)
}

fn ablation(
    options: &Ablation,
    range: &Range,
    network: &mut Network<'_>,
    latents: &Array4<f32>,
    noise: &mut Streams,
) -> anyhow::Result<Array4<f64>> {
    let (sigma_min, sigma_max) = options.range(range);
    let course =
        NoiseSchedule { schedule: options.schedule, scaling: options.scaling, vp: Vp::between(sigma_min, sigma_max) };
    let levels = options.levels(sigma_min, sigma_max)?;
    let times: Vec<f64> = levels.into_iter().map(|s| course.time(range.round(s))).chain([0.0]).collect();
    let mut x = latents.mapv(|v| f64::from(v) * (course.sigma(times[0]) * course.scale(times[0])));
    let alpha = options.alpha;
    let mut slope = |x: &Array4<f64>, t: f64| -> anyhow::Result<Array4<f64>> {
        let (sigma, sigma_slope, s) = (course.sigma(t), course.sigma_slope(t), course.scale(t));
        let denoised = network.denoise(&(x / s), sigma)?;
        Ok(x * (sigma_slope / sigma + course.scale_slope(t) / s) - denoised * (sigma_slope * s / sigma))
    };
    for (i, pair) in times.windows(2).enumerate() {
        let (current, next) = (pair[0], pair[1]);
        let sigma = course.sigma(current);
        let gamma = options.churn.gamma(options.steps, sigma);
        let hat = course.time(range.round(sigma + gamma * sigma));
        x *= course.scale(hat) / course.scale(current);
        if options.churn.churn > 0.0 {
            let spread = (course.sigma(hat).powi(2) - sigma * sigma).max(0.0).sqrt();
            x = x + draw(noise, latents, options.churn.single)? * (spread * course.scale(hat) * options.churn.noise);
        }
        let h = next - hat;
        let first = slope(&x, hat)?;
        let last = i + 2 == times.len();
        x = if options.solver == Solver::Euler || last {
            x + first * h
        } else {
            let second = slope(&(&x + &first * (alpha * h)), hat + alpha * h)?;
            x + (first * (1.0 - 1.0 / (2.0 * alpha)) + second * (1.0 / (2.0 * alpha))) * h
        };
    }
    Ok(x)
}

#[allow(clippy::cast_possible_truncation, reason = "the original keeps its state in f32")]
fn consistency(
    options: &Consistency,
    network: &mut Network<'_>,
    latents: &Array4<f32>,
    noise: &mut Streams,
) -> anyhow::Result<Array4<f64>> {
    let grid = &options.grid;
    let (low, high) = (grid.sigma_min, grid.sigma_max);
    let mut x = latents.mapv(|v| v * high as f32);
    let mut evaluate = |x: &Array4<f32>, sigma: f64| -> anyhow::Result<Array4<f32>> {
        Ok(narrow(&network.denoise(&x.mapv(f64::from), sigma)?).mapv(|v| v.clamp(-1.0, 1.0)))
    };
    if options.ts.is_empty() {
        // The one-step sampler of the original computes its level in f32.
        let first = (high.powf(1.0 / grid.rho) as f32).powf(grid.rho as f32);
        x = evaluate(&x, f64::from(first))?;
    }
    let level = |t: u32| grid.level(f64::from(t) / f64::from(grid.steps - 1));
    for pair in options.ts.windows(2) {
        let denoised = evaluate(&x, level(pair[0]))?;
        let next = level(pair[1]).clamp(low, high);
        let spread = (next * next - low * low).sqrt() as f32;
        let (_, c, h, w) = denoised.dim();
        let drawn = Array4::from_shape_vec(denoised.dim(), noise.randn(c * h * w))?;
        x = denoised + drawn * spread;
    }
    Ok(x.mapv(|v| f64::from(v.clamp(-1.0, 1.0))))
}

#[allow(clippy::cast_possible_truncation, reason = "networks take f32")]
fn narrow(x: &Array4<f64>) -> Array4<f32> {
    x.mapv(|v| v as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    include!("../../tests/data/ablation_levels.rs");

    fn near(found: &[f64], expected: &[f64], tolerance: f64) {
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() <= tolerance * e.abs(), "{f} differs from {e}");
        }
    }

    #[test]
    fn levels_are_the_published_ones() {
        let levels = NoiseLevels { steps: 18, sigma_min: 0.002, sigma_max: 80.0, rho: 7.0 }.levels();
        near(&levels[..5], &[80.0, 57.58598, 40.78557, 28.37458, 19.35245], 1e-5);
        near(&levels[17..], &[0.002], 1e-12);
        let grid = NoiseLevels { steps: 40, sigma_min: 0.002, sigma_max: 80.0, rho: 7.0 };
        near(&[grid.level(22.0 / 39.0)], &[1.382_368], 1e-6);
    }

    /// Noise levels and times of EDM's `ablation_sampler`, printed by `tests/data/gen/generate.py --levels`.
    #[test]
    fn levels_of_the_ablation_are_the_originals() {
        let every = Range { sigma_min: 0.0, sigma_max: f64::INFINITY, levels: None };
        for (discretization, schedule, levels, times) in ABLATION {
            let churn = Churn { churn: 0.0, min: 0.0, max: f64::INFINITY, noise: 1.0, single: false };
            let options = Ablation {
                steps: 5,
                sigma_min: None,
                sigma_max: None,
                rho: 7.0,
                solver: Solver::Heun,
                discretization,
                schedule,
                scaling: Scaling::None,
                alpha: 1.0,
                churn,
            };
            let (low, high) = options.range(&every);
            let found = options.levels(low, high).unwrap();
            // The sines of iDDPM are in f32; their last place depends on the build.
            let tolerance = if discretization == Discretization::Iddpm { 2e-7 } else { 1e-9 };
            near(&found, &levels, tolerance);
            let course = NoiseSchedule { schedule, scaling: Scaling::None, vp: Vp::between(low, high) };
            near(&found.iter().map(|s| course.time(*s)).collect::<Vec<_>>(), &times, 4.0 * tolerance);
        }
    }

    #[test]
    fn levels_are_rounded_to_the_nearest() {
        let range = Range { sigma_min: 1.0, sigma_max: 4.0, levels: Some(vec![4.0, 2.0, 1.0, 0.0]) };
        assert_eq!([2.9, 3.1, 0.2].map(|s| range.round(s)), [2.0, 4.0, 0.0]);
    }
}
