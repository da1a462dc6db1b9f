//! Options of sampling: seeds, samplers, noise schedules, random number generators.

use std::path::PathBuf;

use clap::builder::PossibleValue;
use clap::{Args, Parser as _, ValueEnum};

use crate::sampling::request::SamplingRequest;
pub use crate::sampling::request::{Discretization, Quantise, Rng, RngGpu, Sampler, Scaling, Schedule, Seeds, Solver};

/// Sampling options of a generator.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct Sampling {
    /// Seeds, one image per seed, e.g. `0-49999` or `1,2,5-10` [default: those in `--latents`]
    #[arg(long, value_name = "SEEDS")]
    pub seeds: Option<Seeds>,
    /// Sampler [default: one-step for one-step graphs; for denoisers the sampler recorded in the graph, else consistency for consistency models, else heun]
    #[arg(long, value_enum)]
    pub sampler: Option<Sampler>,
    /// Number of steps (heun, multi-step) or noise levels (consistency) [default: recorded in the graph, else 18; 40 for consistency models]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=4096))]
    pub num_steps: Option<u32>,
    /// Lowest noise level [default: 0.002, or set by --disc]
    #[arg(long, value_name = "SIGMA")]
    pub sigma_min: Option<f64>,
    /// Highest noise level, at which sampling starts [default: 80, or set by --disc; 2.5 for sid]
    #[arg(long, value_name = "SIGMA")]
    pub sigma_max: Option<f64>,
    /// Time-step exponent, rho
    #[arg(long, default_value_t = 7.0)]
    pub rho: f64,
    /// heun: stochasticity strength, S_churn
    #[arg(long, value_name = "S", default_value_t = 0.0)]
    pub s_churn: f64,
    /// heun: lowest noise level with stochasticity, S_min
    #[arg(long, value_name = "SIGMA", default_value_t = 0.0)]
    pub s_min: f64,
    /// heun: highest noise level with stochasticity, S_max
    #[arg(long, value_name = "SIGMA", default_value_t = f64::INFINITY)]
    pub s_max: f64,
    /// heun: noise inflation, S_noise
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    pub s_noise: f64,
    /// heun: ODE solver (EDM's ablation)
    #[arg(long, value_enum)]
    pub solver: Option<Solver>,
    /// heun: time-step discretization (EDM's ablation)
    #[arg(long, value_enum)]
    pub disc: Option<Discretization>,
    /// heun: noise schedule σ(t) (EDM's ablation)
    #[arg(long, value_enum)]
    pub schedule: Option<Schedule>,
    /// heun: signal scaling s(t) (EDM's ablation)
    #[arg(long, value_enum)]
    pub scaling: Option<Scaling>,
    /// heun: position of the second evaluation within a step, α (EDM's ablation)
    #[arg(long)]
    pub alpha: Option<f64>,
    /// two-step: intermediate noise level [default: recorded in the graph, else 1]
    #[arg(long, value_name = "SIGMA")]
    pub middle: Option<f64>,
    /// consistency: indices into the noise schedule of `--num-steps` levels to denoise at, e.g. 0,22,39 [default: one step from the highest]
    #[arg(long, value_name = "T,...", value_delimiter = ',')]
    pub ts: Vec<u32>,
    /// Class label of all images, also written to the output [default: a random class per seed]
    #[arg(long, value_name = "K")]
    pub class: Option<usize>,
    /// Random number generator the seeds refer to [default: torch-cpu; numpy for StyleGAN2]
    #[arg(long, value_enum)]
    pub rng: Option<Rng>,
    /// torch-cuda: GPU to reproduce, by name (`a100`, `h100`, …) or number of resident threads; matters for large images [default: the first CUDA
    /// device]
    #[arg(long, value_name = "GPU")]
    pub rng_gpu: Option<RngGpu>,
    /// Read `latents [N, C, H, W]` or `[N, Z]`, and `labels [N]` and `seeds [N]` if present, from this file instead of sampling them
    #[arg(long, value_name = "L.npz")]
    pub latents: Option<PathBuf>,
    /// Quantisation to uint8 [default: from the graph's metadata]
    #[arg(long, visible_alias = "quantize", value_enum)]
    pub quantise: Option<Quantise>,
}

impl Sampling {
    /// Whether no option is given.
    #[must_use]
    pub fn is_default(&self) -> bool {
        Self::parse(&[]).is_ok_and(|default| default == *self)
    }
}

/// Options of sampling by themselves.
#[derive(Debug, clap::Parser)]
#[command(no_binary_name = true)]
struct Alone {
    #[command(flatten)]
    sampling: Sampling,
}

impl Sampling {
    /// Reads options of sampling, and nothing else.
    ///
    /// # Errors
    /// Other words.
    pub fn parse(words: &[String]) -> Result<Self, clap::Error> {
        Alone::try_parse_from(words).map(|alone| alone.sampling)
    }

    /// These options with the sampler of `words` (`--sampler heun --num-steps 18`), if they choose none themselves: seeds, classes, random numbers and
    /// quantisation are not a choice of sampler.
    ///
    /// # Errors
    /// Words that are not options of sampling.
    pub fn or_sampler(&self, words: &[String]) -> Result<Option<Self>, clap::Error> {
        let images = |into: &Self, from: &Self| Self {
            seeds: from.seeds.clone(),
            class: from.class,
            rng: from.rng,
            rng_gpu: from.rng_gpu,
            latents: from.latents.clone(),
            quantise: from.quantise,
            ..into.clone()
        };
        let none = Self::parse(&[])?;
        if images(self, &none) != none {
            return Ok(None);
        }
        Ok(Some(images(&Self::parse(words)?, self)))
    }
}

impl From<&Sampling> for SamplingRequest {
    fn from(args: &Sampling) -> Self {
        let args = args.clone();
        Self {
            seeds: args.seeds.map(|s| s.0),
            sampler: args.sampler,
            num_steps: args.num_steps,
            sigma_min: args.sigma_min,
            sigma_max: args.sigma_max,
            rho: args.rho,
            s_churn: args.s_churn,
            s_min: args.s_min,
            s_max: args.s_max,
            s_noise: args.s_noise,
            solver: args.solver,
            disc: args.disc,
            schedule: args.schedule,
            scaling: args.scaling,
            alpha: args.alpha,
            middle: args.middle,
            ts: args.ts,
            class: args.class,
            rng: args.rng,
            rng_gpu: args.rng_gpu,
            latents: args.latents,
            quantise: args.quantise,
        }
    }
}

value_enum!(Sampler {
    OneStep = "one-step" "One evaluation (D2O)",
    TwoStep = "two-step" "D2O's two-step sampler, single-sigma variant (the released preconditioner takes no target sigma)",
    MultiStep = "multi-step" "D2O's multi-step sampler; as two-step",
    Heun = "heun" "EDM's Heun sampler, deterministic or stochastic, and its ablation",
    Sid = "sid" "One evaluation at noise level 2.5 (SiD)",
    Consistency = "consistency" "One or several evaluations of a consistency model",
});
value_enum!(Solver { Euler = "euler", Heun = "heun" });
value_enum!(Discretization { Vp = "vp", Ve = "ve", Iddpm = "iddpm", Edm = "edm" });
value_enum!(Schedule { Vp = "vp", Ve = "ve", Linear = "linear" });
value_enum!(Scaling { Vp = "vp", None = "none" });
value_enum!(Quantise {
    Edm = "edm" "Truncation of 127.5 x + 128 (EDM, D2O, SiD)",
    Openai = "openai" "Truncation of 127.5 (x + 1) (consistency models, guided-diffusion)",
});
value_enum!(Rng {
    TorchCpu = "torch-cpu" "mt19937, a torch CPU generator",
    TorchCuda = "torch-cuda" "Philox, a torch CUDA generator",
    Numpy = "numpy" "NumPy's RandomState, as StyleGAN's tools use it",
});
