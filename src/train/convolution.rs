//! Convolutions in training on CPUs by Winograd's algorithm, with gradients.

use std::sync::LazyLock;

use d2o_winograd::{Images, Layout, Pool, Shape};
use tch::{TchError, Tensor};

use super::operator::{self, parallel, values, values_mut};

/// Minimum number of input and of output channels. With fewer, image transforms cost as much as the algorithm saves.
const CHANNELS: usize = 64;
/// Minimum number of tiles of 4 × 4 outputs in a batch. With fewer, filter transforms cost as much as the algorithm
/// saves.
const TILES: usize = 64;

/// Working memory.
static POOL: LazyLock<Pool> = LazyLock::new(Pool::default);

/// Number of channels computed together: the number of lanes of a vector. `None` without AVX2 and FMA, where libtorch
/// is faster.
fn block() -> Option<usize> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        return Some(if is_x86_feature_detected!("avx512f") { 16 } else { 8 });
    }
    None
}

fn sizes<const N: usize>(tensor: &Tensor) -> Option<[usize; N]> {
    let sizes: Vec<usize> = tensor.size().into_iter().map(usize::try_from).collect::<Result<_, _>>().ok()?;
    sizes.try_into().ok()
}

fn shape(weight: &Tensor, [tall, wide]: [i64; 2]) -> Option<Shape> {
    let [tall, wide] = [usize::try_from(tall).ok()?, usize::try_from(wide).ok()?];
    Shape::new(sizes(weight)?, [tall, wide, tall, wide], block()?)
}

/// `x [N, Ci, H, W]` convolved with `weight [Co, Ci, 3, 3]` (stride 1, one group) plus `bias [Co]`, in the cases
/// measured to be faster: f32 on the CPU, at least [`CHANNELS`] input and output channels, at least [`TILES`] tiles.
/// Otherwise `None`, and the caller uses the kernels of libtorch.
///
/// # Errors
/// If libtorch fails.
pub(super) fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    padding: [i64; 2],
) -> Result<Option<Tensor>, TchError> {
    let supported = || {
        let ([batch, inputs, height, width], [outputs, channels, 3, 3]) = (sizes(x)?, sizes(weight)?) else {
            return None;
        };
        let [tall, wide] = shape(weight, padding)?.output_size(height, width)?;
        let tiles = batch * tall.div_ceil(4) * wide.div_ceil(4);
        let values = [Some(x), Some(weight), bias].into_iter().flatten().all(operator::has_values);
        Some(values && inputs == channels && inputs.min(outputs) >= CHANNELS && tiles >= TILES)
    };
    if supported() != Some(true) {
        return Ok(None);
    }
    operator::register((forward, backward));
    x.f_convolution_overrideable(weight, bias, [1, 1], padding, [1, 1], false, [0, 0], 1).map(Some)
}

/// Output of the convolution, for the cases that [`conv2d`] accepts.
fn forward(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, padding: [i64; 2]) -> Tensor {
    let shape = shape(weight, padding).expect("a supported shape");
    let (x, weight, bias) = (x.contiguous(), weight.contiguous(), bias.map(Tensor::contiguous));
    let [batch, _, height, width] = sizes(&x).expect("four dimensions");
    let images = Images { values: values(&x), layout: Layout::Planes, batch, height, width };
    let side = |axis: usize| x.size()[axis] + 2 * padding[axis - 2] - weight.size()[axis] + 1;
    let dims = [x.size()[0], weight.size()[0], side(2), side(3)];
    let mut out = Tensor::empty(dims, (x.kind(), x.device()));
    let bias = bias.as_ref().map(values);
    let Ok(()) = shape.forward(&images, values(&weight), bias, values_mut(&mut out), &POOL, &parallel);
    out
}

/// Gradients of input, weights and bias, each if its flag in `wanted` is set.
fn backward(
    gradient: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    padding: [i64; 2],
    wanted: [bool; 3],
) -> [Option<Tensor>; 3] {
    let shape = shape(weight, padding).expect("a supported shape");
    let (gradient, options) = (gradient.contiguous(), (x.kind(), x.device()));
    let [batch, _, height, width] = sizes(&gradient).expect("four dimensions");
    let of_output = Images { values: values(&gradient), layout: Layout::Planes, batch, height, width };
    let of_input = wanted[0].then(|| {
        let (weight, mut out) = (weight.contiguous(), Tensor::empty(x.size(), options));
        let Ok(()) = shape.input_gradient(&of_output, values(&weight), values_mut(&mut out), &POOL, &parallel);
        out
    });
    let of_weight = wanted[1].then(|| {
        let (x, mut out) = (x.contiguous(), Tensor::empty(weight.size(), options));
        let [_, _, height, width] = sizes(&x).expect("four dimensions");
        let images = Images { values: values(&x), height, width, ..of_output };
        let Ok(()) = shape.filter_gradient(&images, values(&gradient), values_mut(&mut out), &POOL, &parallel);
        out
    });
    let of_bias = wanted[2].then(|| gradient.sum_dim_intlist([0_i64, 2, 3].as_slice(), false, gradient.kind()));
    [of_input, of_weight, of_bias]
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use d2o_converters::backend::{Backend as _, Conv2d};
    use tch::{Device, Kind};

    use super::*;
    use crate::train::libtorch::{LibTorch, Value};

    /// Output; gradients by input, weights and bias; second derivatives as in R1: the gradients by input and weights of
    /// the squared input and weight gradients.
    fn all(x: &Tensor, w: &Tensor, b: &Tensor, conv: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Tensor) -> Vec<Tensor> {
        let leaves = [x, w, b].map(|t| t.detach().copy().set_requires_grad(true));
        let [x, w, b] = &leaves;
        let y = conv(x, w, b);
        let indices = Tensor::arange(y.size().iter().product::<i64>(), (Kind::Double, Device::Cpu));
        let slope = (indices * 0.7).sin().to_kind(y.kind()).view_as(&y);
        // Not linear in the output, so that second derivatives do not vanish.
        let first = Tensor::run_backward(&[(&slope * y.square()).sum(y.kind())], &[x, w, b], true, true);
        let squares = first[0].square().sum(y.kind()) + first[1].square().sum(y.kind());
        let second = Tensor::run_backward(&[squares], &[x, w], false, false);
        std::iter::once(y.detach()).chain(first.iter().map(Tensor::detach)).chain(second).collect()
    }

    fn off(found: &Tensor, exact: &Tensor) -> f64 {
        let (found, exact) = (found.to_kind(Kind::Double), exact.to_kind(Kind::Double));
        ((found - &exact).norm() / exact.norm()).double_value(&[])
    }

    fn drawn(dims: &[i64]) -> Tensor {
        Tensor::randn(dims, (Kind::Float, Device::Cpu))
    }

    #[test]
    fn values_and_gradients_are_those_of_libtorch_in_f64() {
        tch::manual_seed(0);
        // Images, channels in and out, height, width, filter, padding, and whether Winograd's algorithm is used.
        for (batch, inputs, outputs, height, width, filter, padding, ours) in [
            (3, 64, 80, 21, 17, 3, [1, 1], true),
            (5, 80, 64, 13, 15, 3, [0, 2], true),
            (64, 64, 64, 3, 4, 3, [1, 0], true),
            (64, 64, 64, 3, 1, 3, [0, 1], true),
            (3, 1, 64, 21, 17, 3, [1, 1], false),
            (3, 64, 1, 21, 17, 3, [1, 1], false),
            (3, 72, 66, 21, 17, 3, [1, 1], false),
            (1, 64, 64, 21, 17, 3, [1, 1], false),
            (3, 64, 64, 21, 17, 1, [0, 0], false),
            (3, 64, 64, 21, 17, 3, [3, 3], false),
        ] {
            let x = drawn(&[batch, inputs, height, width]);
            let (w, b) = (drawn(&[outputs, inputs, filter, filter]) / (inputs as f64).sqrt(), drawn(&[outputs]));
            let what = format!("{:?} by {:?}, {padding:?}", x.size(), w.size());
            assert_eq!(conv2d(&x, &w, Some(&b), padding).unwrap().is_some(), ours && block().is_some(), "{what}");
            let plain = |x: &Tensor, w: &Tensor, b: &Tensor| x.conv2d(w, Some(b), [1, 1], padding, [1, 1], 1);
            let [x64, w64, b64] = [&x, &w, &b].map(|t| t.to_kind(Kind::Double));
            let exact = all(&x64, &w64, &b64, plain);
            let theirs = all(&x, &w, &b, plain);
            if !ours {
                continue;
            }
            let run = || all(&x, &w, &b, |x, w, b| conv2d(x, w, Some(b), padding).unwrap().unwrap());
            let (found, again) = (run(), run());
            for (i, ((found, exact), theirs)) in found.iter().zip(&exact).zip(&theirs).enumerate() {
                let (ours, theirs) = (off(found, exact), off(theirs, exact));
                assert!(ours < 4e-6, "{what}, {i}: {ours:.1e}, libtorch's own {theirs:.1e}");
            }
            assert!(found.iter().zip(&again).all(|(a, b)| a.equal(b)), "{what}");
        }
    }

    #[test]
    fn only_training_in_f32_on_stride_one_takes_it() {
        tch::manual_seed(1);
        let (x, w) = (drawn(&[2, 64, 24, 24]), drawn(&[64, 64, 3, 3]));
        let options = Conv2d { stride: 1, pads: [1; 4], groups: 1 };
        let run = |train: bool, kind: Kind, options: Conv2d, w: &Tensor| {
            let mut b = LibTorch::running(Device::Cpu, train).in_kind(kind);
            let values = [&x, w].map(|t| Value(t.to_kind(kind)));
            b.conv2d(&values[0], &values[1], None, options).unwrap().0
        };
        let plain = |kind: Kind, w: &Tensor, stride: i64, groups: i64| {
            let none: Option<&Tensor> = None;
            x.to_kind(kind).conv2d(&w.to_kind(kind), none, [stride, stride], [1, 1], [1, 1], groups)
        };
        let kinds = (Kind::Float, Kind::Double);
        assert!(run(false, kinds.0, options, &w).equal(&plain(kinds.0, &w, 1, 1)));
        assert!(run(true, kinds.1, options, &w).equal(&plain(kinds.1, &w, 1, 1)));
        assert!(run(true, kinds.0, Conv2d { stride: 2, ..options }, &w).equal(&plain(kinds.0, &w, 2, 1)));
        let narrow = w.narrow(1, 0, 1);
        let by_channel = run(true, kinds.0, Conv2d { groups: 64, ..options }, &narrow);
        assert!(by_channel.equal(&plain(kinds.0, &narrow, 1, 64)));
        assert_eq!(run(true, kinds.0, options, &w).equal(&plain(kinds.0, &w, 1, 1)), block().is_none());
        // Unequal pads are added to the image first.
        let found = run(true, kinds.0, Conv2d { pads: [0, 1, 2, 1], ..options }, &w);
        let exact = run(true, kinds.1, Conv2d { pads: [0, 1, 2, 1], ..options }, &w);
        assert!(off(&found, &exact) < 4e-6);
    }

    /// Prints the time in milliseconds (best of nine alternating runs) and the error against f64 of libtorch's kernels
    /// and of these.
    #[test]
    #[ignore = "a measurement: cargo test --release -p d2o --features train --lib speed_beside -- --ignored --nocapture"]
    #[allow(clippy::print_stdout, clippy::needless_range_loop, reason = "a measurement of three things")]
    fn speed_beside_libtorch() {
        tch::set_num_threads(std::env::var("THREADS").map_or(1, |n| n.parse().unwrap()));
        let shapes: [(i64, i64, i64, i64); 14] = [
            (8, 128, 256, 32),
            (8, 256, 256, 32),
            (8, 512, 256, 32),
            (8, 256, 256, 16),
            (8, 512, 256, 16),
            (8, 256, 256, 8),
            (8, 512, 256, 8),
            (2, 64, 64, 224),
            (2, 64, 128, 112),
            (2, 128, 256, 56),
            (2, 256, 256, 56),
            (2, 256, 512, 28),
            (2, 512, 512, 28),
            (8, 512, 512, 14),
        ];
        println!(
            "batch, channels, side | ms of libtorch: forward, input, weights | ms of d2o | errors of libtorch | of d2o"
        );
        for (batch, inputs, outputs, side) in shapes {
            let (x, g) = (drawn(&[batch, inputs, side, side]), drawn(&[batch, outputs, side, side]));
            let w = drawn(&[outputs, inputs, 3, 3]);
            let none: Option<&Tensor> = None;
            let leaves = |kind: Kind, which: usize| {
                let [x, w] = [&x, &w].map(|t| t.to_kind(kind).copy());
                match which {
                    1 => (x.set_requires_grad(true), w),
                    2 => (x, w.set_requires_grad(true)),
                    _ => (x, w),
                }
            };
            let libtorch = |kind: Kind, which: usize| {
                let (x, w) = leaves(kind, which);
                let start = Instant::now();
                let y = x.conv2d(&w, none, [1, 1], [1, 1], [1, 1], 1);
                let mut time = start.elapsed();
                if which == 0 {
                    return (time, y);
                }
                let g = g.to_kind(kind);
                let start = Instant::now();
                let leaf = if which == 1 { &x } else { &w };
                let gradient = Tensor::run_backward(&[&(&y * &g).sum(kind)], &[leaf], false, false).remove(0);
                time = start.elapsed();
                (time, gradient)
            };
            let ours = |which: usize| {
                let start = Instant::now();
                let out = match which {
                    0 => forward(&x, &w, None, [1, 1]),
                    1 => backward(&g, &x, &w, [1, 1], [true, false, false])[0].take().unwrap(),
                    _ => backward(&g, &x, &w, [1, 1], [false, true, false])[1].take().unwrap(),
                };
                (start.elapsed(), out)
            };
            let mut row = [[f64::INFINITY; 3]; 4];
            for which in 0..3 {
                let exact = libtorch(Kind::Double, which).1;
                for _ in 0..9 {
                    for (i, (time, found)) in [libtorch(Kind::Float, which), ours(which)].into_iter().enumerate() {
                        row[i][which] = row[i][which].min(time.as_secs_f64() * 1e3);
                        row[2 + i][which] = off(&found, &exact);
                    }
                }
            }
            let [a, b, ..] = row;
            let [c, d] = [row[2], row[3]].map(|errors| errors.map(|e| format!("{e:.1e}")).join(", "));
            println!("{batch}, {inputs} → {outputs}, {side} | {a:.1?} | {b:.1?} | {c} | {d}");
        }
    }
}
