//! Metrics of seeded features against the numbers of the original tools (`tests/data/metrics.json`, made by `tests/data/gen/metrics.py`).
#![allow(clippy::unwrap_used, reason = "a test")]

use d2o_evaluations::frechet::{Gaussian, frechet_distance};
use d2o_evaluations::gaussian::Accumulator;
use d2o_evaluations::inception_score::{Parts, ScoreRule, inception_score};
use d2o_evaluations::kid::{KidRule, kid};
use d2o_evaluations::manifold::{Distance, ManifoldRule, manifold};
use d2o_evaluations::protocol::Protocol;
use ndarray::Array2;

const N: usize = 1200;
const M: usize = 1100;
const D: usize = 24;
const K: usize = 10;
/// Relative difference allowed: design, section 4.
const BOUND: f64 = 1e-4;

/// SplitMix64 of a counter; the upper 24 bits as an f32 in 0..1, exactly.
fn uniform(seed: u64, rows: usize, columns: usize, scale: f32) -> Array2<f32> {
    Array2::from_shape_fn((rows, columns), |(i, j)| {
        let at = (i * columns + j) as u64;
        let mut z = seed.wrapping_add((at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 24) as f32 * scale
    })
}

fn samples() -> Array2<f32> {
    uniform(1, N, D, 1.0)
}

fn reference() -> Array2<f32> {
    uniform(2, M, D, 1.1)
}

fn check(name: &str, found: f64, bound: f64) {
    let golden: serde_json::Value = serde_json::from_str(include_str!("../../tests/data/metrics.json")).unwrap();
    let expected = golden[name].as_f64().unwrap_or_else(|| panic!("no `{name}` in metrics.json"));
    let relative = (found - expected).abs() / expected.abs();
    assert!(relative <= bound, "{name}: {found}, the tool gives {expected} (relative {relative:e}, allowed {bound:e})");
}

fn protocol(name: &str) -> &'static Protocol {
    Protocol::named(name).unwrap()
}

fn gaussian(x: &Array2<f32>, ddof: usize) -> Gaussian {
    let mut sums = Accumulator::new(x.ncols());
    sums.push(x.view()).unwrap();
    sums.finish(ddof).unwrap()
}

#[test]
fn frechet_distances() {
    for name in ["torch-fidelity", "pytorch-fid", "stylegan3"] {
        let ddof = protocol(name).ddof;
        let value = frechet_distance(&gaussian(&samples(), ddof), &gaussian(&reference(), ddof)).unwrap();
        check(&format!("{name} fid"), value, BOUND);
    }
    let value = frechet_distance(&gaussian(&samples(), 1), &gaussian(&reference(), 1)).unwrap();
    check("torchmetrics fid", value, BOUND);
    check("clean-fid fid", value, BOUND);
}

#[test]
fn kernel_distances_of_the_same_subsets() {
    let (x, y) = (samples(), reference());
    let found = kid(x.view(), y.view(), &protocol("torch-fidelity").kid, 0).unwrap();
    check("torch-fidelity kid", found.mean, BOUND);
    // The tool's f32 sums scatter more than the mean of 100.
    check("torch-fidelity kid std", found.std, 1e-3);
    check("clean-fid kid", kid(x.view(), y.view(), &protocol("clean").kid, 7).unwrap().mean, BOUND);
    let one = KidRule { subsets: 1, subset_size: 500, ..protocol("clean").kid };
    check("torchmetrics kid of 500", kid(x.view(), y.view(), &one, 5).unwrap().mean, BOUND);
}

#[test]
fn inception_scores() {
    let logits = uniform(3, N, K, 6.0);
    let found = inception_score(logits.view(), protocol("torch-fidelity").score).unwrap();
    check("torch-fidelity is", found.mean, BOUND);
    check("torch-fidelity is std", found.std.unwrap(), BOUND);
    let chunks = ScoreRule { parts: Parts::Size(500), ..protocol("adm").score };
    check("adm is of 500", inception_score(logits.view(), chunks).unwrap().mean, BOUND);
}

#[test]
fn precision_and_recall() {
    let (x, y) = (samples(), reference());
    let found = manifold(x.view(), y.view(), &protocol("torch-fidelity").manifold).unwrap();
    // Shares of the same flags; the tool's mean is f32.
    check("torch-fidelity precision", found.precision(), 1e-7);
    check("torch-fidelity recall", found.recall(), 1e-7);
    let rule = protocol("adm").manifold;
    let half = manifold(x.view(), y.view(), &rule).unwrap();
    check("adm precision", half.precision(), 1e-12);
    check("adm recall", half.recall(), 1e-12);
    let plain = manifold(x.view(), y.view(), &ManifoldRule { distance: Distance::Squared, ..rule }).unwrap();
    assert_ne!(half, plain, "f16 must show");
    // A hundred times as far out f16 overflows and the whole block is f32.
    let (far_x, far_y) = (x.mapv(|v| v * 100.0), y.mapv(|v| v * 100.0));
    let far = manifold(far_x.view(), far_y.view(), &rule).unwrap();
    check("adm precision far", far.precision(), 1e-12);
    check("adm recall far", far.recall(), 1e-12);
}
