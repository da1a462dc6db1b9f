//! Options of image generation: seeds, samplers, noise schedules, random number generators.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

/// Options of image generation. The graph determines every option that is `None`.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingRequest {
    /// Seeds, one image per seed.
    pub seeds: Option<Vec<u64>>,
    /// The sampler.
    pub sampler: Option<Sampler>,
    /// Steps of the heun and multi-step samplers, noise levels of the consistency sampler.
    pub num_steps: Option<u32>,
    /// Lowest noise level.
    pub sigma_min: Option<f64>,
    /// Highest noise level, at which sampling starts.
    pub sigma_max: Option<f64>,
    /// Exponent of the noise levels.
    pub rho: f64,
    /// heun: strength of added noise over all steps.
    pub s_churn: f64,
    /// heun: lowest noise level at which noise is added.
    pub s_min: f64,
    /// heun: highest noise level at which noise is added.
    pub s_max: f64,
    /// heun: inflation of added noise.
    pub s_noise: f64,
    /// heun: solver of EDM's ablation.
    pub solver: Option<Solver>,
    /// heun: time steps of EDM's ablation.
    pub disc: Option<Discretization>,
    /// heun: noise level over time of EDM's ablation.
    pub schedule: Option<Schedule>,
    /// heun: scale over time of EDM's ablation.
    pub scaling: Option<Scaling>,
    /// heun: position of the second evaluation of a step of EDM's ablation.
    pub alpha: Option<f64>,
    /// two-step: intermediate noise level.
    pub middle: Option<f64>,
    /// consistency: indices into the noise levels to denoise at.
    pub ts: Vec<u32>,
    /// Class of every image.
    pub class: Option<usize>,
    /// Random number generator that seeds refer to.
    pub rng: Option<Rng>,
    /// GPU for which the CUDA generator of torch is reproduced.
    pub rng_gpu: Option<RngGpu>,
    /// File of latents to use instead of drawing them.
    pub latents: Option<PathBuf>,
    /// Quantisation to uint8.
    pub quantise: Option<Quantise>,
}

/// Samplers around an exported graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampler {
    /// One evaluation (D2O)
    OneStep,
    /// D2O's two-step sampler, without the second noise level that the D2O code passes and the released network does
    /// not accept
    TwoStep,
    /// D2O's multi-step sampler; one noise level, as for two-step
    MultiStep,
    /// EDM's Heun sampler, deterministic or stochastic, and its ablation
    Heun,
    /// One evaluation at noise level 2.5 (SiD)
    Sid,
    /// One or several evaluations of a consistency model
    Consistency,
}

/// Solvers of EDM's ablation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the original's own names")]
pub enum Solver {
    Euler,
    Heun,
}

/// Time steps of EDM's ablation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the original's own names")]
pub enum Discretization {
    Vp,
    Ve,
    Iddpm,
    Edm,
}

/// Noise level over time of EDM's ablation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the original's own names")]
pub enum Schedule {
    Vp,
    Ve,
    Linear,
}

/// Scale over time of EDM's ablation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the original's own names")]
pub enum Scaling {
    Vp,
    None,
}

/// Quantisation to u8 of images in about [-1, 1].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantise {
    /// Truncation of 127.5 x + 128 (EDM, D2O, SiD)
    Edm,
    /// Truncation of 127.5 (x + 1) (consistency models, guided-diffusion)
    Openai,
}

/// Random number generators of torch and NumPy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rng {
    /// mt19937, as in a torch CPU generator.
    TorchCpu,
    /// Philox, as in a torch CUDA generator.
    TorchCuda,
    /// NumPy's `RandomState`, as in the tools of StyleGAN.
    Numpy,
}

/// Seeds given as `1,2,5-10`, in that order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seeds(pub Vec<u64>);

impl Seeds {
    /// Text of `seeds` that [`Seeds::from_str`] reads; consecutive seeds become ranges.
    #[must_use]
    pub fn text(seeds: &[u64]) -> String {
        let runs = seeds.chunk_by(|a, b| a.checked_add(1) == Some(*b));
        let run = |r: &[u64]| match (r.first(), r.last()) {
            (Some(a), Some(b)) if a != b => format!("{a}-{b}"),
            _ => r.iter().map(u64::to_string).collect(),
        };
        runs.map(run).collect::<Vec<_>>().join(",")
    }
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const MAX: usize = 1 << 28;
        let mut seeds = Vec::new();
        for part in text.split(',') {
            let range: RangeInclusive<u64> = match part.split_once('-') {
                Some((a, b)) => number(a)?..=number(b)?,
                None => number(part).map(|n| n..=n)?,
            };
            if range.is_empty() {
                return Err(format!("`{part}`: the last seed is below the first"));
            }
            if range.end() - range.start() >= (MAX - seeds.len()) as u64 {
                return Err(format!("more than {MAX} seeds"));
            }
            seeds.extend(range);
        }
        Ok(Self(seeds))
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.trim().parse().map_err(|_| format!("`{text}` is not a seed; expected e.g. 0-63 or 1,2,5-10"))
}

/// The property of a GPU that CUDA generators of torch depend on: the number of resident threads of all its
/// multiprocessors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RngGpu {
    /// Number of resident threads.
    pub threads: u32,
}

impl RngGpu {
    /// Known GPUs: name, number of multiprocessors, resident threads per multiprocessor (NVIDIA data sheets; CUDA C++
    /// Programming Guide, Compute Capabilities).
    pub const KNOWN: [(&str, u32, u32); 28] = [
        ("gtx-1080-ti", 28, 2048),
        ("p100", 56, 2048),
        ("titan-xp", 30, 2048),
        ("v100", 80, 2048),
        ("titan-v", 80, 2048),
        ("t4", 40, 1024),
        ("rtx-2080-ti", 68, 1024),
        ("titan-rtx", 72, 1024),
        ("quadro-rtx-8000", 72, 1024),
        ("a100", 108, 2048),
        ("a40", 84, 1536),
        ("a10", 72, 1536),
        ("a6000", 84, 1536),
        ("a5000", 64, 1536),
        ("rtx-3080", 68, 1536),
        ("rtx-3090", 82, 1536),
        ("rtx-3090-ti", 84, 1536),
        ("rtx-4080", 76, 1536),
        ("rtx-4090", 128, 1536),
        ("l4", 58, 1536),
        ("l40", 142, 1536),
        ("l40s", 142, 1536),
        ("rtx-6000-ada", 142, 1536),
        ("h100", 132, 2048),
        ("h100-pcie", 114, 2048),
        ("h200", 132, 2048),
        ("rtx-5090", 170, 1536),
        ("b200", 148, 2048),
    ];
}

impl FromStr for RngGpu {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.to_lowercase().replace([' ', '_'], "-");
        if let Some((_, multiprocessors, threads)) = Self::KNOWN.iter().find(|(known, _, _)| *known == name) {
            return Ok(Self { threads: multiprocessors * threads });
        }
        // torch launches blocks of 256 threads, so whole blocks are resident.
        match text.parse() {
            Ok(threads) if threads >= 256 && threads % 256 == 0 => Ok(Self { threads }),
            Ok(_) => {
                Err("expected a number of resident threads (multiprocessors x threads per multiprocessor), a multiple of 256".to_owned())
            }
            Err(_) => {
                let known = Self::KNOWN.map(|(name, _, _)| name).join(", ");
                Err(format!("expected one of {known}, or the number of resident threads (multiprocessors x threads per multiprocessor)"))
            }
        }
    }
}
