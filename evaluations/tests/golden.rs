//! Compares metrics of seeded features with the numbers of the original tools: `tests/data/metrics.json`, written by
//! `tests/data/gen/metrics.py`, and `tests/data/manifold.json`, written by `tests/data/gen/manifold.py`.
#![allow(clippy::unwrap_used, reason = "a test")]

use d2o_evaluations::fd_infinity::fd_infinity;
use d2o_evaluations::frechet::{Gaussian, frechet_distance};
use d2o_evaluations::gaussian::Accumulator;
use d2o_evaluations::inception_score::{Parts, ScoreRule, inception_score};
use d2o_evaluations::kid::{KidRule, kid};
use d2o_evaluations::manifold::{Distance, ManifoldRule, density_coverage, manifold, precision_recall};
use d2o_evaluations::protocol::Protocol;
use ndarray::Array2;

const N: usize = 1200;
const M: usize = 1100;
const D: usize = 24;
const K: usize = 10;
/// Allowed relative difference, as in docs/parity.md.
const BOUND: f64 = 1e-4;

/// The upper 24 bits of SplitMix64 at a counter.
fn draw(seed: u64, at: usize) -> u64 {
    let mut z = seed.wrapping_add((at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) >> 40
}

/// Uniform values in 0..`scale`.
fn uniform(seed: u64, rows: usize, columns: usize, scale: f32) -> Array2<f32> {
    Array2::from_shape_fn((rows, columns), |(i, j)| draw(seed, i * columns + j) as f32 / (1 << 24) as f32 * scale)
}

/// Features of unequal lengths. Sums of products are exact in f32.
fn coarse(seed: u64, rows: usize, dims: usize, shortest: u64, lengths: u64, scale: f32) -> Array2<f32> {
    Array2::from_shape_fn((rows, dims), |(i, j)| {
        let factor = shortest + draw(seed + 1000, i) % lengths;
        ((2 + draw(seed, i * dims + j) % 5) * factor) as f32 * scale
    })
}

/// Samples and reference, from the table in `manifold.py`.
fn coarse_sets(name: &str) -> [Array2<f32>; 2] {
    let (seed, samples, reference, dims, shortest, lengths, scale) = match name {
        "unequal" => (19, 120, 100, 256, 6, 20, 1.0 / 64.0),
        "wide" => (19, 120, 100, 512, 10, 30, 1.0 / 128.0),
        "clamped" => (37, 60, 64, 280, 20, 3, 0.125),
        "overflowing" => (41, 60, 64, 280, 20, 3, 0.25),
        _ => panic!("no set `{name}`"),
    };
    [coarse(seed, samples, dims, shortest, lengths, scale), coarse(seed + 1, reference, dims, shortest, lengths, scale)]
}

/// A part of `manifold.json`.
fn original(tool: &str) -> serde_json::Value {
    let all: serde_json::Value = serde_json::from_str(include_str!("../../tests/data/manifold.json")).unwrap();
    all[tool].clone()
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
    // The f32 sums of the tool affect the standard deviation more than the mean of 100 subsets.
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
    let found = precision_recall(x.view(), y.view(), &protocol("torch-fidelity").manifold).unwrap();
    // The flags are the same; the mean of the tool is f32.
    check("torch-fidelity precision", found.precision(), 1e-7);
    check("torch-fidelity recall", found.recall(), 1e-7);
    let rule = protocol("adm").manifold;
    let half = precision_recall(x.view(), y.view(), &rule).unwrap();
    check("adm precision", half.precision(), 1e-12);
    check("adm recall", half.recall(), 1e-12);
    let squared = ManifoldRule { distance: Distance::Squared, ..rule };
    let plain = precision_recall(x.view(), y.view(), &squared).unwrap();
    assert_ne!(half, plain, "f16 must show");
    // At 100 times the scale, f16 overflows and the whole block is f32.
    let (far_x, far_y) = (x.mapv(|v| v * 100.0), y.mapv(|v| v * 100.0));
    let far = precision_recall(far_x.view(), far_y.view(), &rule).unwrap();
    check("adm precision far", far.precision(), 1e-12);
    check("adm recall far", far.recall(), 1e-12);
}

#[test]
fn guided_diffusions_flags() {
    let golden = original("guided-diffusion");
    let rule = protocol("adm").manifold;
    let bits = |flags: &[bool]| flags.iter().map(|f| if *f { '1' } else { '0' }).collect::<String>();
    for name in ["unequal", "wide", "clamped", "overflowing"] {
        let [samples, reference] = coarse_sets(name);
        let found = precision_recall(samples.view(), reference.view(), &rule).unwrap();
        assert_eq!(bits(&found.sample_inside), golden[name]["samples"], "{name}");
        assert_eq!(bits(&found.reference_inside), golden[name]["reference"], "{name}");
        // f16 sums depend on the order of operands; `unequal` and `wide` show it.
        let swapped = precision_recall(reference.view(), samples.view(), &rule).unwrap();
        let same = swapped.sample_inside == found.reference_inside && swapped.reference_inside == found.sample_inside;
        assert_eq!(same, name != "unequal" && name != "wide", "{name}");
    }
}

#[test]
fn stylegan3s_precision_and_recall_in_f16() {
    let golden = original("stylegan3");
    let rule = protocol("stylegan3").manifold;
    for name in ["unequal", "wide"] {
        let [samples, reference] = coarse_sets(name);
        let found = precision_recall(samples.view(), reference.view(), &rule).unwrap();
        for (metric, value) in [("precision", found.precision()), ("recall", found.recall())] {
            // The mean of the tool is f32.
            let expected = golden[name][metric].as_f64().unwrap();
            assert!((value - expected).abs() < 1e-6, "{name}: {metric} {value}, the tool gives {expected}");
        }
        let plain = ManifoldRule { distance: Distance::Euclidean, ..rule };
        assert_ne!(found, precision_recall(samples.view(), reference.view(), &plain).unwrap(), "f16 must show");
    }
}

#[test]
fn density_and_coverage_of_prdc() {
    let golden = original("prdc");
    let (real, fake) = (uniform(1, 150, 64, 1.0), uniform(2, 180, 64, 1.05));
    let repeated = |x: &Array2<f32>, rows: usize, times: usize| {
        Array2::from_shape_fn((rows * times, x.ncols()), |(i, j)| x[[i / times, j]])
    };
    let eight = repeated(&real, 30, 8);
    let moved = |x: &Array2<f32>| x + 1000.0;
    let thousandth = |x: &Array2<f32>| x * 1e-3;
    let cases = [
        ("plain", fake.clone(), real.clone()),
        ("wide", uniform(4, 100, 700, 1.02), uniform(3, 80, 700, 1.0)),
        ("identical", real.clone(), real.clone()),
        ("every row eight times", eight.clone(), eight),
        ("collapsed", repeated(&fake, 1, 180), real.clone()),
        ("collapsed onto a reference image", repeated(&real, 1, 180), real.clone()),
        ("every other row", real.slice(ndarray::s![..;2, ..]).to_owned(), real.clone()),
        ("thousandths", thousandth(&fake), thousandth(&real)),
        ("far from the origin", moved(&fake), moved(&real)),
    ];
    assert_eq!(golden.as_object().unwrap().len(), cases.len());
    for protocol in &d2o_evaluations::protocol::PROTOCOLS {
        for (name, samples, reference) in &cases {
            let found = density_coverage(samples.view(), reference.view(), &protocol.density_coverage).unwrap();
            for (metric, value) in [("density", found.density()), ("coverage", found.coverage())] {
                let expected = golden[name][metric].as_f64().unwrap();
                assert!((value - expected).abs() < 1e-12, "{name}: {metric} {value}, prdc gives {expected}");
            }
        }
    }
    // f32 distances give other values.
    let (_, samples, reference) = &cases[8];
    let rule = protocol("edm").density_coverage;
    let plain = ManifoldRule { distance: Distance::Euclidean, ..rule };
    assert_ne!(
        manifold(samples.view(), reference.view(), &plain).unwrap().density_coverage,
        density_coverage(samples.view(), reference.view(), &rule).unwrap()
    );
}

#[test]
fn fd_infinity_of_dgm_eval() {
    let golden = original("dgm-eval");
    let (expected, seed) = (golden["fd_infinity"].as_f64().unwrap(), golden["seed"].as_u64().unwrap());
    let found = fd_infinity(samples().view(), &gaussian(&reference(), 1), 1, u32::try_from(seed).unwrap()).unwrap();
    let found = found.intercept;
    assert!((found - expected).abs() <= 1e-8 * expected, "{found}, the tool gives {expected}");
}
