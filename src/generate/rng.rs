//! torch's and NumPy's generators, one for each seed, so that a seed stands for the same latents and class as in the original tools.

use std::f64::consts::PI;

use d2o_evaluations::mt19937::Mt19937;
use d2o_evaluations::numpy_random::RandomState;

/// A CPU generator, as `torch.Generator().manual_seed(seed)`.
#[derive(Debug, Clone)]
pub struct TorchCpu {
    twister: Mt19937,
    cached_normal: Option<f64>,
}

impl TorchCpu {
    /// Fewer values than this are drawn one by one.
    const VECTOR: usize = 16;

    /// The generator of `seed`, of which torch uses the low 32 bits here.
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

    /// `torch.randn(count)` in float32. Values may differ from a vectorised build's in the last place.
    pub fn randn(&mut self, count: usize) -> Vec<f32> {
        if count < Self::VECTOR {
            #[allow(clippy::cast_possible_truncation, reason = "torch rounds here too")]
            return (0..count).map(|_| self.normal() as f32).collect();
        }
        self.filled(count, Self::uniform32, box_muller)
    }

    /// `torch.randn(count, dtype=torch.float64)`. Values may differ from a vectorised build's in the last place.
    pub fn randn64(&mut self, count: usize) -> Vec<f64> {
        if count < Self::VECTOR {
            return (0..count).map(|_| self.normal()).collect();
        }
        self.filled(count, Self::uniform64, box_muller64)
    }

    /// Uniform values, turned into normal ones in blocks; the last block is drawn anew if it is not a whole one.
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

/// A CUDA generator: Philox4x32-10 (Salmon et al. 2011), as torch lays it over threads for at most as many values as a launch has threads.
#[derive(Debug, Clone)]
pub struct TorchCuda {
    key: [u32; 2],
    offset: u64,
}

impl TorchCuda {
    /// The generator of `seed`.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "split into halves")]
    pub fn new(seed: u64) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32], offset: 0 }
    }

    #[allow(clippy::cast_possible_truncation, reason = "split into halves")]
    fn words(&mut self, index: u64) -> [u32; 4] {
        let block = self.offset / 4;
        philox([block as u32, (block >> 32) as u32, index as u32, (index >> 32) as u32], self.key)
    }

    /// `torch.randn(count, device='cuda')` in float32, for `count` up to one value a thread (every network of the EDM family).
    pub fn randn(&mut self, count: usize) -> Vec<f32> {
        const SCALE: f32 = 1.0 / 4_294_967_296.0;
        #[allow(clippy::cast_possible_truncation, reason = "curand computes in f32")]
        const TAU: f32 = (2.0 * PI) as f32;
        let values = (0..count as u64)
            .map(|i| {
                let [a, b, ..] = self.words(i);
                #[allow(clippy::cast_precision_loss, reason = "curand rounds here too")]
                let (a, b) = (a as f32, b as f32);
                let u = a * SCALE + SCALE / 2.0;
                let v = b * (SCALE * TAU) + SCALE * TAU / 2.0;
                v.sin() * (-2.0 * u.ln()).sqrt()
            })
            .collect();
        self.offset += 4;
        values
    }

    /// `torch.randn(count, dtype=torch.float64, device='cuda')`, for `count` as in [`TorchCuda::randn`].
    pub fn randn64(&mut self, count: usize) -> Vec<f64> {
        const SCALE: f64 = 1.0 / 9_007_199_254_740_992.0;
        let values = (0..count as u64)
            .map(|i| {
                let [a, b, c, d] = self.words(i).map(u64::from);
                #[allow(clippy::cast_precision_loss, reason = "53 bits fit")]
                let (u, v) = ((a ^ b << 21) as f64, (c ^ d << 21) as f64);
                let (u, v) = (u * SCALE + SCALE / 2.0, v * (2.0 * SCALE) + SCALE);
                (PI * v).sin() * (-2.0 * u.ln()).sqrt()
            })
            .collect();
        self.offset += 4;
        values
    }

    /// `torch.randint(bound, [1], device='cuda')`.
    pub fn randint(&mut self, bound: u32) -> u32 {
        let [a, ..] = self.words(0);
        self.offset += 4;
        a % bound
    }
}

/// A generator for each image of a batch, as the original tools keep them.
#[derive(Debug, Clone)]
pub enum Streams {
    /// On the CPU.
    Cpu(Vec<TorchCpu>),
    /// On a CUDA device.
    Cuda(Vec<TorchCuda>),
    /// NumPy's, as StyleGAN's tools draw.
    Numpy(Vec<RandomState>),
}

impl Streams {
    /// CPU generators of `seeds`, of which the originals take the low 32 bits.
    #[must_use]
    pub fn cpu(seeds: &[u64]) -> Self {
        Self::Cpu(seeds.iter().map(|s| TorchCpu::new(*s)).collect())
    }

    /// CUDA generators of `seeds`, of which the originals take the low 32 bits.
    #[must_use]
    pub fn cuda(seeds: &[u64]) -> Self {
        Self::Cuda(seeds.iter().map(|s| TorchCuda::new(s % (1 << 32))).collect())
    }

    /// NumPy's generators of `seeds`, of which the low 32 bits are taken.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "the low 32 bits are the seed")]
    pub fn numpy(seeds: &[u64]) -> Self {
        Self::Numpy(seeds.iter().map(|s| RandomState::new(*s as u32)).collect())
    }

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
        for (f, e) in TorchCuda::new(42).randn(3072).iter().zip([0.1940_f32, 2.1614, -0.1721, 0.8491]) {
            assert!((f - e).abs() <= 5.1e-5, "{f} differs from {e}");
        }
    }
}
