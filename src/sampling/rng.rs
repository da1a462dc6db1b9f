//! Random number generators of torch and NumPy, one per seed. A seed gives the same latents and class as in the
//! original tools.

use std::f64::consts::PI;

use d2o_evaluations::mt19937::Mt19937;
use d2o_evaluations::numpy_random::RandomState;
use d2o_runtime::cuda::CudaDevice;

use super::request::{Rng, RngGpu};
use crate::error::with_hint;

/// A CPU generator, as `torch.Generator().manual_seed(seed)`.
#[derive(Debug, Clone)]
pub struct TorchCpu {
    twister: Mt19937,
    cached_normal: Option<f64>,
}

impl TorchCpu {
    /// Block size of the vectorised algorithm. Fewer values are drawn one by one.
    const VECTOR: usize = 16;

    /// The generator of `seed`. torch uses the low 32 bits only.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "the low 32 bits are the seed")]
    pub fn new(seed: u64) -> Self {
        Self { twister: Mt19937::new(seed as u32), cached_normal: None }
    }

    fn word(&mut self) -> u32 {
        self.twister.word()
    }

    fn uniform32(&mut self) -> f32 {
        #[allow(clippy::cast_precision_loss, reason = "24 bits fit")]
        let value = (self.word() & 0x00ff_ffff) as f32;
        value / 16_777_216.0
    }

    fn uniform64(&mut self) -> f64 {
        let (high, low) = (u64::from(self.word()), u64::from(self.word()));
        #[allow(clippy::cast_precision_loss, reason = "53 bits fit")]
        let value = ((high << 32 | low) & ((1 << 53) - 1)) as f64;
        value / 9_007_199_254_740_992.0
    }

    /// `torch.randn(count)` in float32. Values may differ from a vectorised build of torch in the last place.
    pub fn randn(&mut self, count: usize) -> Vec<f32> {
        if count < Self::VECTOR {
            #[allow(clippy::cast_possible_truncation, reason = "torch rounds here too")]
            return (0..count).map(|_| self.normal() as f32).collect();
        }
        self.filled(count, Self::uniform32, box_muller)
    }

    /// `torch.randn(count, dtype=torch.float64)`. Values may differ from a vectorised build of torch in the last place.
    pub fn randn64(&mut self, count: usize) -> Vec<f64> {
        if count < Self::VECTOR {
            return (0..count).map(|_| self.normal()).collect();
        }
        self.filled(count, Self::uniform64, box_muller64)
    }

    /// Draws uniform values and transforms them into normal ones in blocks. If the last block is incomplete, the last
    /// 16 values are drawn again.
    fn filled<T>(&mut self, count: usize, uniform: fn(&mut Self) -> T, block: fn(&mut [T])) -> Vec<T> {
        let mut values: Vec<T> = (0..count).map(|_| uniform(self)).collect();
        values.chunks_exact_mut(Self::VECTOR).for_each(block);
        if !count.is_multiple_of(Self::VECTOR) {
            let tail = &mut values[count - Self::VECTOR..];
            tail.fill_with(|| uniform(self));
            block(tail);
        }
        values
    }

    fn normal(&mut self) -> f64 {
        if let Some(value) = self.cached_normal.take() {
            return value;
        }
        let (u1, u2) = (self.uniform64(), self.uniform64());
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let theta = 2.0 * PI * u1;
        self.cached_normal = Some(radius * theta.sin());
        radius * theta.cos()
    }

    /// `torch.randint(bound, [1])`.
    pub fn randint(&mut self, bound: u32) -> u32 {
        self.word() % bound
    }
}

fn box_muller(block: &mut [f32]) {
    #[allow(clippy::cast_possible_truncation, reason = "torch computes in f32")]
    const TAU: f32 = (2.0 * PI) as f32;
    let (first, second) = block.split_at_mut(8);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * (1.0 - *a).ln()).sqrt();
        let theta = TAU * *b;
        (*a, *b) = (radius * theta.cos(), radius * theta.sin());
    }
}

fn box_muller64(block: &mut [f64]) {
    let (first, second) = block.split_at_mut(8);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * (1.0 - *a).ln()).sqrt();
        let theta = 2.0 * PI * *b;
        (*a, *b) = (radius * theta.cos(), radius * theta.sin());
    }
}

/// A CUDA generator: Philox4x32-10 (Salmon et al. 2011), distributed over the threads of a launch as in torch
/// (ATen/native/cuda/DistributionTemplates.h).
#[derive(Debug, Clone)]
pub struct TorchCuda {
    key: [u32; 2],
    offset: u64,
    threads: u64,
}

/// Distribution of values over threads in torch. A call of the generator of a thread gives `lanes` values. Value `e` is
/// computed by thread `e % stride`, in its call `e / stride / lanes`, at position `e / stride % lanes`.
#[derive(Debug, Clone, Copy)]
struct Launch {
    stride: u64,
    lanes: u64,
}

impl TorchCuda {
    /// Threads per block.
    const BLOCK: u64 = 256;
    /// Words of the stream of a thread that a call consumes, used or not.
    const CALL: u64 = 4;
    /// Integers with a bound of at least this value are made of two words.
    const WIDE: u32 = 1 << 28;

    /// The generator of `seed` on a GPU with `threads` resident threads.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "split into halves")]
    pub fn new(seed: u64, threads: u32) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32], offset: 0, threads: threads.into() }
    }

    /// The words of call `call` of thread `thread`, counted from the end of the last launch.
    #[allow(clippy::cast_possible_truncation, reason = "split into halves")]
    fn words(&self, thread: u64, call: u64) -> [u32; 4] {
        let block = self.offset / Self::CALL + call;
        philox([block as u32, (block >> 32) as u32, thread as u32, (thread >> 32) as u32], self.key)
    }

    fn launch<T>(&mut self, count: usize, lanes: u64, value: impl Fn([u32; 4], u64) -> T) -> Vec<T> {
        let count = count as u64;
        let blocks = count.div_ceil(Self::BLOCK).min(self.threads / Self::BLOCK).max(1);
        let launch = Launch { stride: blocks * Self::BLOCK, lanes };
        let values = (0..count)
            .map(|e| {
                let turn = e / launch.stride;
                value(self.words(e % launch.stride, turn / launch.lanes), turn % launch.lanes)
            })
            .collect();
        self.offset += count.div_ceil(launch.stride * launch.lanes) * Self::CALL;
        values
    }

    /// `torch.randn(count, device='cuda')` in float32.
    pub fn randn(&mut self, count: usize) -> Vec<f32> {
        const SCALE: f32 = 1.0 / 4_294_967_296.0;
        #[allow(clippy::cast_possible_truncation, reason = "curand computes in f32")]
        const TAU: f32 = (2.0 * PI) as f32;
        self.launch(count, 4, |[a, b, c, d], lane| {
            let (a, b) = if lane < 2 { (a, b) } else { (c, d) };
            #[allow(clippy::cast_precision_loss, reason = "curand rounds here too")]
            let (a, b) = (a as f32, b as f32);
            let u = a * SCALE + SCALE / 2.0;
            let v = b * (SCALE * TAU) + SCALE * TAU / 2.0;
            let radius = (-2.0 * u.ln()).sqrt();
            if lane % 2 == 0 { v.sin() * radius } else { v.cos() * radius }
        })
    }

    /// `torch.randn(count, dtype=torch.float64, device='cuda')`.
    pub fn randn64(&mut self, count: usize) -> Vec<f64> {
        const SCALE: f64 = 1.0 / 9_007_199_254_740_992.0;
        self.launch(count, 2, |words, lane| {
            let [a, b, c, d] = words.map(u64::from);
            #[allow(clippy::cast_precision_loss, reason = "53 bits fit")]
            let (u, v) = ((a ^ b << 21) as f64, (c ^ d << 21) as f64);
            let (u, v) = (u * SCALE + SCALE / 2.0, v * (2.0 * SCALE) + SCALE);
            let radius = (-2.0 * u.ln()).sqrt();
            if lane == 0 { (PI * v).sin() * radius } else { (PI * v).cos() * radius }
        })
    }

    /// `torch.randint(bound, [1], device='cuda')`, as in torch 2.11; older versions take one word for bounds of 2^28 and more.
    #[allow(clippy::cast_possible_truncation, reason = "below a bound of 32 bits")]
    pub fn randint(&mut self, bound: u32) -> u32 {
        let [a, b, ..] = self.words(0, 0);
        self.offset += Self::CALL;
        if bound < Self::WIDE { a % bound } else { ((u64::from(a) << 32 | u64::from(b)) % u64::from(bound)) as u32 }
    }
}

/// Kind of random number generator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// torch on the CPU.
    TorchCpu,
    /// torch on a CUDA device with this number of resident threads.
    TorchCuda {
        /// Number of resident threads.
        threads: u32,
    },
    /// NumPy.
    Numpy,
}

impl Family {
    /// Draws of at most this number of values are the same on every GPU with at least as many resident threads as a T4.
    pub const SAME_ON_EVERY_GPU: u32 = 40_960;

    /// The generator for `rng` and `gpu`, with up to `count` values per draw. Without `gpu`, the first of `devices` is
    /// used, which is called only in that case.
    ///
    /// # Errors
    /// If `gpu` is given for a generator other than the CUDA generator, or the values of a draw depend on an unknown
    /// GPU.
    pub fn settle(
        rng: Rng,
        gpu: Option<RngGpu>,
        count: usize,
        devices: impl FnOnce() -> Vec<CudaDevice>,
    ) -> anyhow::Result<Self> {
        anyhow::ensure!(gpu.is_none() || rng == Rng::TorchCuda, "--rng-gpu requires --rng torch-cuda");
        let threads = match rng {
            Rng::TorchCpu => return Ok(Self::TorchCpu),
            Rng::Numpy => return Ok(Self::Numpy),
            Rng::TorchCuda => gpu
                .map(|g| g.threads)
                .or_else(|| devices().first().map(|d| d.multiprocessors * d.threads_per_multiprocessor)),
        };
        Ok(match threads {
            Some(threads) => Self::TorchCuda { threads },
            None if count <= Self::SAME_ON_EVERY_GPU as usize => Self::TorchCuda { threads: Self::SAME_ON_EVERY_GPU },
            None => {
                let limit = Self::SAME_ON_EVERY_GPU;
                return Err(with_hint(
                    anyhow::anyhow!(
                        "--rng torch-cuda: {count} values per draw; above {limit}, they depend on the GPU model"
                    ),
                    "pass the GPU with --rng-gpu, e.g. `--rng-gpu a100`",
                ));
            }
        })
    }

    /// Name in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TorchCpu => "torch-cpu",
            Self::TorchCuda { .. } => "torch-cuda",
            Self::Numpy => "numpy",
        }
    }

    /// Number of resident threads of the GPU, if draws of `count` values depend on it.
    #[must_use]
    pub fn threads(self, count: usize) -> Option<u32> {
        match self {
            Self::TorchCuda { threads } if count > threads.min(Self::SAME_ON_EVERY_GPU) as usize => Some(threads),
            _ => None,
        }
    }

    /// One generator per seed. The original tools use the low 32 bits of a seed.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "the low 32 bits are the seed")]
    pub fn streams(self, seeds: &[u64]) -> Streams {
        match self {
            Self::TorchCpu => Streams::Cpu(seeds.iter().map(|s| TorchCpu::new(*s)).collect()),
            Self::TorchCuda { threads } => {
                Streams::Cuda(seeds.iter().map(|s| TorchCuda::new(s % (1 << 32), threads)).collect())
            }
            Self::Numpy => Streams::Numpy(seeds.iter().map(|s| RandomState::new(*s as u32)).collect()),
        }
    }
}

/// One generator per image of a batch, as in the original tools.
#[derive(Debug, Clone)]
pub enum Streams {
    /// torch on the CPU.
    Cpu(Vec<TorchCpu>),
    /// torch on a CUDA device.
    Cuda(Vec<TorchCuda>),
    /// NumPy, as in the tools of StyleGAN.
    Numpy(Vec<RandomState>),
}

impl Streams {
    /// `count` float32 normals for each image, one image after the other.
    pub fn randn(&mut self, count: usize) -> Vec<f32> {
        match self {
            Self::Cpu(all) => all.iter_mut().flat_map(|g| g.randn(count)).collect(),
            Self::Cuda(all) => all.iter_mut().flat_map(|g| g.randn(count)).collect(),
            #[allow(clippy::cast_possible_truncation, reason = "networks take f32")]
            Self::Numpy(all) => all.iter_mut().flat_map(|g| g.randn(count)).map(|v| v as f32).collect(),
        }
    }

    /// `count` float64 normals for each image, one image after the other.
    pub fn randn64(&mut self, count: usize) -> Vec<f64> {
        match self {
            Self::Cpu(all) => all.iter_mut().flat_map(|g| g.randn64(count)).collect(),
            Self::Cuda(all) => all.iter_mut().flat_map(|g| g.randn64(count)).collect(),
            Self::Numpy(all) => all.iter_mut().flat_map(|g| g.randn(count)).collect(),
        }
    }

    /// An integer below `bound` for each image.
    pub fn randint(&mut self, bound: u32) -> Vec<u32> {
        match self {
            Self::Cpu(all) => all.iter_mut().map(|g| g.randint(bound)).collect(),
            Self::Cuda(all) => all.iter_mut().map(|g| g.randint(bound)).collect(),
            Self::Numpy(all) => all.iter_mut().map(|g| g.below(bound)).collect(),
        }
    }
}

/// Ten rounds of Philox4x32.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const ROUNDS: usize = 10;
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
        }
        let product = |m: u32, x: u32| {
            let wide = (u64::from(m) * u64::from(x)).to_le_bytes();
            let half = |at: usize| u32::from_le_bytes([wide[at], wide[at + 1], wide[at + 2], wide[at + 3]]);
            (half(4), half(0))
        };
        let (high0, low0) = product(0xd251_1f53, counter[0]);
        let (high1, low1) = product(0xcd9e_8d57, counter[2]);
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: &[f32], expected: &[f32]) {
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() <= 1e-6, "{f} differs from {e}");
        }
    }

    include!("../../tests/data/torch_rng.rs");

    #[test]
    fn cpu_normals_are_torchs() {
        for (seed, count, first, last, label) in TORCH_CPU {
            let mut rng = TorchCpu::new(*seed);
            let values = rng.randn(*count);
            close(&values[..first.len()], first);
            close(&values[count - last.len()..], last);
            assert_eq!(rng.randint(1000), *label, "label of seed {seed} after {count} normals");
        }
    }

    #[test]
    fn cpu_doubles_are_torchs() {
        for (seed, count, first, last, label) in TORCH_CPU_F64 {
            let mut rng = TorchCpu::new(*seed);
            let values = rng.randn64(*count);
            let tail = &values[count - last.len()..];
            for (f, e) in values.iter().zip(*first).chain(tail.iter().zip(*last)) {
                assert!((f - e).abs() <= 1e-14, "{f} differs from {e}");
            }
            assert_eq!(rng.randint(1000), *label, "label of seed {seed} after {count} normals");
        }
    }

    #[test]
    fn philox_gives_the_published_vectors() {
        // Random123's kat_vectors.
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn cuda_normals_are_torchs_published_ones() {
        // Printed by torch with four digits.
        for (f, e) in TorchCuda::new(42, 221_184).randn(3072).iter().zip([0.1940_f32, 2.1614, -0.1721, 0.8491]) {
            assert!((f - e).abs() <= 5.1e-5, "{f} differs from {e}");
        }
    }

    /// The loop of the torch kernel: every thread of the launch steps through the array in strides and writes `lanes`
    /// values per call.
    fn kernel(seed: u64, offset: u64, threads: usize, count: usize, lanes: usize) -> (Vec<([u32; 4], usize)>, u64) {
        let grid = count.div_ceil(256).min(threads / 256);
        let step = 256 * grid;
        let mut out = vec![([0; 4], 0); count];
        for thread in 0..step {
            let mut counter = offset / 4;
            let mut at = thread;
            while at < count.div_ceil(step * lanes) * step * lanes {
                let word = |n: u64| u32::try_from(n % (1 << 32)).unwrap();
                let words = philox(
                    [word(counter), word(counter >> 32), word(thread as u64), 0],
                    [word(seed), word(seed >> 32)],
                );
                counter += 1;
                for lane in 0..lanes {
                    if at + step * lane < count {
                        out[at + step * lane] = (words, lane);
                    }
                }
                at += step * lanes;
            }
        }
        (out, offset + (((count - 1) / (step * lanes) + 1) * 4) as u64)
    }

    #[test]
    fn cuda_values_beyond_the_resident_threads_are_the_later_ones_of_each_thread() {
        // 1024 threads are 4 blocks. Sizes around one, four and several values per thread.
        for count in [1, 255, 256, 257, 1023, 1024, 1025, 2048, 4096, 4097, 8192, 10_000] {
            for (lanes, wide) in [(4, false), (2, true)] {
                let mut rng = TorchCuda::new(7 << 32 | 5, 1024);
                let mut offset = 0;
                for draw in 0..3 {
                    let (expected, next) = kernel(7 << 32 | 5, offset, 1024, count, lanes);
                    let found = if wide {
                        let all = rng.clone().launch(count, 2, |words, lane| (words, usize::try_from(lane).unwrap()));
                        rng.randn64(count);
                        all
                    } else {
                        let all = rng.clone().launch(count, 4, |words, lane| (words, usize::try_from(lane).unwrap()));
                        rng.randn(count);
                        all
                    };
                    assert!(found == expected, "draw {draw} of {count} values, {lanes} a call");
                    assert_eq!(rng.offset, next, "draw {draw} of {count} values, {lanes} a call");
                    offset = next;
                }
            }
        }
    }

    #[test]
    fn a_gpu_matters_only_beyond_its_resident_threads() {
        let (small, large) = (TorchCuda::new(3, 40_960).randn(50_000), TorchCuda::new(3, 221_184).randn(50_000));
        assert_eq!(small[..40_960], large[..40_960]);
        assert!(small[40_960..].iter().zip(&large[40_960..]).all(|(a, b)| a != b));
        let moments = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / v.len() as f64;
        assert!((moments(&small[40_960..]) - 1.0).abs() < 0.05);
    }

    #[test]
    fn a_gpu_that_is_not_known_is_asked_for_where_it_matters() {
        let device =
            CudaDevice { name: "x".to_owned(), multiprocessors: 132, threads_per_multiprocessor: 2048, memory: 0 };
        let a100: RngGpu = "a100".parse().unwrap();
        let settle =
            |gpu, count, devices: &[CudaDevice]| Family::settle(Rng::TorchCuda, gpu, count, || devices.to_vec());
        assert_eq!(settle(None, 12_288, &[]).unwrap().threads(12_288), None);
        let error = settle(None, 196_608, &[]).unwrap_err();
        assert!(format!("{error:#}").contains("196608 values per draw; above 40960"), "{error:#}");
        assert_eq!(
            settle(None, 196_608, std::slice::from_ref(&device)).unwrap(),
            Family::TorchCuda { threads: 270_336 }
        );
        assert_eq!(settle(Some(a100), 196_608, &[device]).unwrap().threads(196_608), Some(221_184));
        assert!(Family::settle(Rng::TorchCpu, Some(a100), 1, Vec::new).is_err());
    }
}
