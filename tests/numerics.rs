//! Settings of libtorch. They are global to the process, so they have a test file of their own.
#![cfg(feature = "train")]
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use d2o::train::libtorch::{LibTorch, Value};
use d2o::train::numerics::Numerics;
use d2o_converters::backend::{Backend as _, Sampling};
use tch::{Device, Kind, Tensor};

/// Bilinear resizing, its gradient, and the gradient of the squared gradient, which R1 needs.
fn resized(size: [usize; 2], sampling: Sampling) -> Vec<Tensor> {
    tch::manual_seed(1);
    let x = Tensor::randn([2, 3, 5, 7], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let mut b = LibTorch::running(Device::Cpu, true);
    let y = b.resize_bilinear(&Value(x.shallow_clone()), size, sampling).unwrap().0;
    let first = Tensor::run_backward(&[y.pow_tensor_scalar(3).sum(Kind::Float)], &[&x], true, true).remove(0);
    let second = Tensor::run_backward(&[first.square().sum(Kind::Float)], &[&x], false, false).remove(0);
    vec![y, first, second]
}

#[test]
fn settings_reach_libtorch_and_deterministic_resizing_is_the_other() {
    // By default libtorch computes convolutions in TF32, which the original turns off.
    assert!(Numerics::current().tf32);
    for (tf32, deterministic) in [(false, false), (true, true), (false, true), (true, false)] {
        let numerics = Numerics { tf32, deterministic };
        numerics.apply();
        assert_eq!(Numerics::current(), numerics);
    }
    let (half, corners) = (Sampling::HalfPixel, Sampling::AlignCorners);
    for (size, sampling) in [([11, 10], half), ([4, 5], half), ([10, 14], corners), ([1, 1], corners)] {
        let by = |deterministic| {
            Numerics { tf32: false, deterministic }.apply();
            resized(size, sampling)
        };
        for (found, expected) in by(true).iter().zip(by(false)) {
            let (off, peak) =
                ((found - &expected).abs().max().double_value(&[]), expected.abs().max().double_value(&[]));
            assert!(off <= 2e-6 * peak, "{size:?}, {sampling:?}: {off} of {peak}");
        }
    }
}
