//! Metrics at realistic sizes: `cargo bench -p d2o-evaluations`.
#![allow(missing_docs, clippy::unwrap_used, reason = "a bench")]

use d2o_evaluations::frechet::{Gaussian, frechet_distance};
use d2o_evaluations::gaussian::Accumulator;
use d2o_evaluations::manifold::{Boundary, Distance, ManifoldRule, density_coverage, manifold};
use divan::{AllocProfiler, Bencher};
use ndarray::{Array2, s};

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

/// Rows similar to pool3: not negative, unequal scales, no two equal.
fn features(n: usize, d: usize, seed: u32) -> Array2<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / 16_777_216.0
    };
    Array2::from_shape_fn((n, d), |(_, j)| (uniform() + uniform()) * (0.2 + (j % 7) as f32 * 0.1))
}

fn gaussian(n: usize, d: usize, seed: u32) -> Gaussian {
    let mut sums = Accumulator::new(d);
    for block in features(n, d, seed).axis_chunks_iter(ndarray::Axis(0), 64) {
        sums.push(block.slice(s![.., ..])).unwrap();
    }
    sums.finish(1).unwrap()
}

#[divan::bench(args = [512, 2048], sample_count = 3, sample_size = 1)]
fn frechet(bencher: Bencher<'_, '_>, d: usize) {
    let (a, b) = (gaussian(2 * d, d, 1), gaussian(2 * d, d, 2));
    bencher.bench(|| frechet_distance(&a, &b).unwrap());
}

/// Covariances without full rank: singular values instead of eigenvalues.
#[divan::bench(args = [512, 2048], sample_count = 3, sample_size = 1)]
fn frechet_of_few(bencher: Bencher<'_, '_>, d: usize) {
    let (a, b) = (gaussian(d * 3 / 4, d, 1), gaussian(d * 3 / 4, d, 2));
    bencher.bench(|| frechet_distance(&a, &b).unwrap());
}

#[divan::bench(args = [64], sample_count = 5)]
fn accumulate_pool3(bencher: Bencher<'_, '_>, rows: usize) {
    let (block, mut sums) = (features(rows, 2048, 1), Accumulator::new(2048));
    bencher.bench_local(|| sums.push(block.view()).unwrap());
}

const DISTANCES: [Distance; 4] =
    [Distance::Squared, Distance::SquaredHalfBlocks, Distance::Euclidean, Distance::EuclideanHalf];

#[divan::bench(args = DISTANCES, sample_count = 1, sample_size = 1)]
fn precision_recall_10k_by_10k(bencher: Bencher<'_, '_>, distance: Distance) {
    let (a, b) = (features(10_000, 2048, 1), features(10_000, 2048, 2));
    let rule = ManifoldRule { k: 3, distance, boundary: Boundary::Inclusive };
    bencher.bench(|| manifold(a.view(), b.view(), &rule).unwrap());
}

#[divan::bench(sample_count = 1, sample_size = 1)]
fn density_coverage_10k_by_10k(bencher: Bencher<'_, '_>) {
    let (a, b) = (features(10_000, 2048, 1), features(10_000, 2048, 2));
    let rule = ManifoldRule { k: 5, distance: Distance::EuclideanDouble, boundary: Boundary::Exclusive };
    bencher.bench(|| density_coverage(a.view(), b.view(), &rule).unwrap());
}
