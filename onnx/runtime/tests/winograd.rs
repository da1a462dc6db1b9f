//! `Model::to_winograd`: the rewritten graph gives the results of the original.
#![cfg(feature = "tract")]
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use d2o_onnx::graph::{Dim, ElementType, GraphBuilder, Model};
use d2o_onnx::ops::ConvAttributes;
use d2o_onnx::write;
use d2o_runtime::tract::TractSession;
use d2o_runtime::{Session as _, Tensor};
use ndarray::{ArrayD, IxDyn};

/// Pseudo-random values in [-1, 1].
fn values(dims: &[usize], seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1_u32 << 23) as f32 - 1.0
    };
    (0..dims.iter().product()).map(|_| next()).collect()
}

fn outputs(model: &Model, input: &Tensor) -> ArrayD<f32> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("g.onnx");
    write::write(model, &path).unwrap();
    let mut session = TractSession::open(&path, None).unwrap();
    session.run(&[("x", input.into())]).unwrap()[0].as_f32().unwrap().to_owned()
}

fn model(height: usize, kernel: [usize; 2], pads: [usize; 4]) -> Model {
    let (w, b) = ([5, 4, kernel[0], kernel[1]], [5]);
    let mut g = GraphBuilder::new("g");
    let dims = [Dim::Batch, Dim::Known(4), Dim::Known(height), Dim::Known(7)];
    let x = g.input("x", ElementType::F32, &dims).unwrap();
    let w = g.constant("w", &w, values(&w, 1)).unwrap();
    let b = g.constant("b", &b, values(&b, 2)).unwrap();
    let y = g.conv2d(&x, &w, Some(&b), ConvAttributes { stride: 1, pads, groups: 1 }).unwrap();
    g.output("y", &y).unwrap();
    g.finish().unwrap()
}

#[test]
fn every_height_and_padding_gives_the_convolution() {
    for (height, kernel, pads) in [
        (8, [3, 3], [1; 4]),
        (9, [3, 3], [1; 4]),
        (10, [3, 1], [1, 0, 1, 0]),
        (11, [3, 5], [1, 2, 1, 2]),
        (12, [3, 3], [0; 4]),
        (13, [3, 3], [2, 0, 0, 1]),
    ] {
        let dims = [2, 4, height, 7];
        let x = Tensor::F32(ArrayD::from_shape_vec(IxDyn(&dims), values(&dims, 3)).unwrap());
        let direct = model(height, kernel, pads);
        let (filtered, count) = direct.clone().to_winograd(1).unwrap();
        assert_eq!(count, 1);
        let (expected, found) = (outputs(&direct, &x), outputs(&filtered, &x));
        assert_eq!(expected.dim(), found.dim());
        let peak = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        let worst = expected.iter().zip(&found).fold(0.0_f32, |m, (e, f)| m.max((e - f).abs()));
        assert!(worst < 2e-6 * peak, "{height} {kernel:?} {pads:?}: {worst} of {peak}");
    }
}
