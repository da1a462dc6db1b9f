//! One suite for every engine: each operation of `Backend`, and the golden outputs of the official networks, on
//! libtorch, ONNX Runtime and tract.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::cast_possible_truncation, reason = "a test")]

mod engines;

use std::collections::BTreeSet;
use std::path::Path;

#[cfg(feature = "train")]
use d2o_converters::Architecture;
use d2o_converters::Checkpoint;
use d2o_converters::backend::{Backend, Binary, Cast, Conv2d, Ops as _, Pool, PoolKind, Sampling, Unary};
use d2o_converters::checkpoint::TensorSource as _;
use d2o_converters::checkpoint::safetensors::SafetensorsFile;
use d2o_converters::error::Result;
use d2o_converters::export::{self, Kind, Options};
use d2o_converters::onnx::OnnxBackend;
use d2o_converters::weights::{Init, Scope, Weights};
use d2o_onnx::graph::{Dim, ElementType, Model};
use d2o_runtime::Tensor;
use engines::sessions;
use ndarray::{ArrayD, Axis, Slice};
use test_support::{Tol, assert_close};

fn f32s(dims: &[usize], seed: u64) -> Vec<f32> {
    Init::Normal { std: 1.0 }.values(seed, "x", dims.iter().product())
}

/// A case with the shapes of its inputs. Inputs of more than one axis that begin with [`BATCH`] vary with the batch.
struct Case {
    name: &'static str,
    tol: Tol,
    inputs: &'static [&'static [usize]],
    /// Whether the inputs are made positive.
    positive: bool,
}

const BATCH: usize = 3;

const fn case(name: &'static str, tol: Tol, inputs: &'static [&'static [usize]]) -> Case {
    Case { name, tol, inputs, positive: false }
}

const fn positive(name: &'static str, inputs: &'static [&'static [usize]]) -> Case {
    Case { name, tol: Tol::Close, inputs, positive: true }
}

const CASES: &[Case] = &[
    case("conv2d", Tol::Parity, &[&[3, 4, 7, 6], &[8, 2, 3, 3], &[8]]),
    case("conv2d_without_bias", Tol::Parity, &[&[3, 4, 7, 6], &[8, 4, 1, 3]]),
    case("conv2d_uneven_padding", Tol::Parity, &[&[3, 4, 8, 8], &[4, 1, 5, 5], &[4]]),
    case("conv_transpose2d", Tol::Parity, &[&[3, 4, 5, 6], &[4, 1, 4, 4]]),
    case("conv_transpose2d_of_one_group", Tol::Parity, &[&[3, 4, 5, 6], &[4, 2, 3, 3]]),
    case("max_pool2d", Tol::Exact, &[&[3, 2, 8, 7]]),
    case("max_pool2d_with_stride_and_padding", Tol::Exact, &[&[3, 2, 9, 8]]),
    case("avg_pool2d", Tol::Close, &[&[3, 2, 6, 7]]),
    case("linear", Tol::Parity, &[&[3, 5], &[7, 5], &[7]]),
    case("linear_without_bias", Tol::Parity, &[&[3, 5], &[7, 5]]),
    case("matmul", Tol::Parity, &[&[3, 4, 5], &[3, 5, 6]]),
    case("matmul_of_heads", Tol::Parity, &[&[3, 2, 4, 5], &[3, 2, 5, 6]]),
    case("matmul_with_a_constant", Tol::Parity, &[&[3, 4, 5], &[5, 6]]),
    case("group_norm", Tol::Parity, &[&[3, 8, 5, 5], &[8], &[8]]),
    case("layer_norm", Tol::Parity, &[&[3, 24], &[24], &[24]]),
    case("dropout", Tol::Exact, &[&[3, 4]]),
    case("silu", Tol::Close, &[&[3, 40]]),
    case("gelu", Tol::Close, &[&[3, 40]]),
    case("clamp", Tol::Exact, &[&[3, 40]]),
    case("relu", Tol::Exact, &[&[3, 40]]),
    case("leaky_relu", Tol::Close, &[&[3, 40]]),
    case("leaky_relu_of_a_steep_slope", Tol::Close, &[&[3, 40]]),
    positive("log", &[&[3, 40]]),
    positive("sqrt", &[&[3, 40]]),
    case("cos", Tol::Close, &[&[3, 40]]),
    case("sin", Tol::Close, &[&[3, 40]]),
    case("add", Tol::Exact, &[&[3, 4, 5, 5], &[1, 4, 1, 1]]),
    case("add_to_each_row", Tol::Exact, &[&[3, 4, 5], &[5]]),
    case("mul", Tol::Exact, &[&[3, 4, 5, 5], &[3, 4, 1, 1]]),
    positive("div", &[&[3, 4], &[3, 4]]),
    case("scale", Tol::Close, &[&[3, 4]]),
    case("offset", Tol::Close, &[&[3, 4]]),
    case("softmax", Tol::Close, &[&[3, 4, 9]]),
    case("softmax_of_a_middle_axis", Tol::Close, &[&[3, 4, 9]]),
    case("mean", Tol::Close, &[&[3, 4, 5, 5]]),
    case("mean_without_its_axes", Tol::Close, &[&[3, 4, 5, 5]]),
    case("concat", Tol::Exact, &[&[3, 4, 2, 2], &[3, 5, 2, 2]]),
    case("concat_of_the_last_axis", Tol::Exact, &[&[3, 4, 2], &[3, 4, 5]]),
    case("slice", Tol::Exact, &[&[3, 6, 2, 2]]),
    case("slice_of_the_last_axis", Tol::Exact, &[&[3, 6, 2, 5]]),
    case("reshape", Tol::Exact, &[&[3, 6, 2, 2]]),
    case("reshape_of_the_batch", Tol::Exact, &[&[3, 6, 4]]),
    case("transpose", Tol::Exact, &[&[3, 6, 2, 4]]),
    case("resize_bilinear_up", Tol::Close, &[&[3, 2, 5, 7]]),
    case("resize_bilinear_down", Tol::Close, &[&[3, 2, 9, 8]]),
    case("resize_bilinear_one_axis", Tol::Close, &[&[3, 2, 9, 8]]),
    case("resize_bilinear_align_corners", Tol::Close, &[&[3, 2, 5, 7]]),
    case("resize_bilinear_asymmetric", Tol::Close, &[&[3, 2, 5, 7]]),
    case("cast", Tol::Exact, &[&[3, 40]]),
];

/// Evaluates the case called `name` on any backend.
fn evaluate<B: Backend>(b: &mut B, name: &str, x: &[B::Value]) -> Result<B::Value> {
    match name {
        "conv2d" => b.conv2d(&x[0], &x[1], Some(&x[2]), Conv2d { stride: 1, pads: [1; 4], groups: 2 }),
        "conv2d_without_bias" => b.conv2d(&x[0], &x[1], None, Conv2d { stride: 1, pads: [0, 1, 0, 1], groups: 1 }),
        "conv2d_uneven_padding" => {
            b.conv2d(&x[0], &x[1], Some(&x[2]), Conv2d { stride: 2, pads: [1, 1, 2, 2], groups: 4 })
        }
        "conv_transpose2d" => b.conv_transpose2d(&x[0], &x[1], Conv2d { stride: 2, pads: [1; 4], groups: 4 }),
        "conv_transpose2d_of_one_group" => {
            b.conv_transpose2d(&x[0], &x[1], Conv2d { stride: 2, pads: [0; 4], groups: 1 })
        }
        "max_pool2d" => {
            let y = b.max_pool2d(&x[0], Pool { kernel: 3, stride: 1, pad: 1 })?;
            b.max_pool2d(&y, Pool { kernel: 3, stride: 2, pad: 0 })
        }
        "max_pool2d_with_stride_and_padding" => b.max_pool2d(&x[0], Pool { kernel: 3, stride: 2, pad: 1 }),
        "avg_pool2d" => b.avg_pool2d(&x[0], Pool { kernel: 3, stride: 1, pad: 1 }),
        "linear" => b.linear(&x[0], &x[1], Some(&x[2])),
        "linear_without_bias" => b.linear(&x[0], &x[1], None),
        "matmul" | "matmul_of_heads" | "matmul_with_a_constant" => b.matmul(&x[0], &x[1]),
        "group_norm" => b.group_norm(&x[0], 2, 1e-5, &x[1], &x[2]),
        "layer_norm" => b.layer_norm(&x[0], 1e-6, &x[1], &x[2]),
        "dropout" => {
            let y = b.dropout(&x[0], 0.5)?;
            b.reshape(&y, &[-1, 2, 2])
        }
        "silu" => b.silu(&x[0]),
        "gelu" => b.gelu(&x[0]),
        "clamp" => b.clamp(&x[0], -0.5, 0.75),
        "relu" => b.relu(&x[0]),
        "leaky_relu" => b.leaky_relu(&x[0], 0.2),
        "leaky_relu_of_a_steep_slope" => b.leaky_relu(&x[0], 1.5),
        "log" => b.log(&x[0]),
        "sqrt" => b.sqrt(&x[0]),
        "cos" => b.cos(&x[0]),
        "sin" => b.sin(&x[0]),
        "add" | "add_to_each_row" => b.add(&x[0], &x[1]),
        "mul" => b.mul(&x[0], &x[1]),
        "div" => b.div(&x[0], &x[1]),
        "scale" => b.scale(&x[0], 1.7),
        "offset" => b.offset(&x[0], -0.3),
        "softmax" => b.softmax(&x[0], 2),
        "softmax_of_a_middle_axis" => b.softmax(&x[0], 1),
        "mean" => b.mean(&x[0], &[2, 3], true),
        "mean_without_its_axes" => b.mean(&x[0], &[2, 3], false),
        "concat" => b.concat(x, 1),
        "concat_of_the_last_axis" => b.concat(x, 2),
        "slice" => b.slice(&x[0], 1, 2, 3),
        "slice_of_the_last_axis" => b.slice(&x[0], 3, 1, 4),
        "reshape" => b.reshape(&x[0], &[-1, 3, 8]),
        "reshape_of_the_batch" => {
            let merged = b.reshape(&x[0], &[-1, 4])?;
            b.reshape(&merged, &[-1, 2, 3, 4])
        }
        "transpose" => b.transpose(&x[0], &[0, 3, 1, 2]),
        "resize_bilinear_up" => b.resize_bilinear(&x[0], [11, 10], Sampling::HalfPixel),
        "resize_bilinear_down" => b.resize_bilinear(&x[0], [4, 5], Sampling::HalfPixel),
        "resize_bilinear_one_axis" => b.resize_bilinear(&x[0], [9, 5], Sampling::Asymmetric),
        "resize_bilinear_align_corners" => b.resize_bilinear(&x[0], [10, 14], Sampling::AlignCorners),
        "resize_bilinear_asymmetric" => b.resize_bilinear(&x[0], [10, 4], Sampling::Asymmetric),
        "cast" => {
            let pixels = b.scale(&x[0], 100.0)?;
            let pixels = b.offset(&pixels, 127.5)?;
            let bytes = b.cast(Cast::ToU8, &pixels)?;
            b.cast(Cast::ToF32, &bytes)
        }
        other => panic!("no case `{other}`"),
    }
}

/// A backend that records the names of the evaluated operations.
struct Counting<B> {
    inner: B,
    evaluated: BTreeSet<String>,
}

macro_rules! counting {
    ($(fn $op:ident($($arg:ident: $type:ty),*) $(of $variant:ident)?;)*) => {
        /// Operations of `Backend` that compute something.
        const OPERATIONS: &[(&str, bool)] = &[$((stringify!($op), 0 $(+ { let _ = stringify!($variant); 1 })? == 1)),*];

        impl<B: Backend> Backend for Counting<B> {
            type Value = B::Value;

            fn param(&mut self, scope: &Scope, name: &str, dims: &[usize], init: &Init) -> Result<B::Value> {
                self.inner.param(scope, name, dims, init)
            }

            fn buffer(&mut self, scope: &Scope, name: &str, dims: &[usize], init: &Init) -> Result<Vec<f32>> {
                self.inner.buffer(scope, name, dims, init)
            }

            fn constant<T: Into<f64>>(
                &mut self,
                scope: &Scope,
                name: &str,
                dims: &[usize],
                data: Vec<T>,
            ) -> Result<B::Value> {
                self.inner.constant(scope, name, dims, data)
            }

            fn enter(&mut self, scope: &Scope) {
                self.inner.enter(scope);
            }

            fn dim(&self, x: &B::Value, axis: usize) -> Option<usize> {
                self.inner.dim(x, axis)
            }

            $(fn $op(&mut self, $($arg: $type),*) -> Result<B::Value> {
                let variant: &[String] = &[$(format!(" {:?}", $variant))?];
                self.evaluated.insert(format!("{}{}", stringify!($op), variant.concat()));
                self.inner.$op($($arg),*)
            })*
        }
    };
}

counting! {
    fn conv2d(x: &B::Value, w: &B::Value, bias: Option<&B::Value>, options: Conv2d);
    fn conv_transpose2d(x: &B::Value, w: &B::Value, options: Conv2d);
    fn pool2d(kind: PoolKind, x: &B::Value, window: Pool) of kind;
    fn linear(x: &B::Value, w: &B::Value, bias: Option<&B::Value>);
    fn matmul(a: &B::Value, b: &B::Value);
    fn group_norm(x: &B::Value, groups: usize, eps: f64, weight: &B::Value, bias: &B::Value);
    fn layer_norm(x: &B::Value, eps: f64, weight: &B::Value, bias: &B::Value);
    fn dropout(x: &B::Value, p: f64);
    fn unary(function: Unary, x: &B::Value) of function;
    fn binary(function: Binary, x: &B::Value, y: &B::Value) of function;
    fn clamp(x: &B::Value, low: f64, high: f64);
    fn leaky_relu(x: &B::Value, slope: f64);
    fn scale(x: &B::Value, factor: f64);
    fn offset(x: &B::Value, term: f64);
    fn softmax(x: &B::Value, axis: usize);
    fn mean(x: &B::Value, axes: &[usize], keep: bool);
    fn concat(parts: &[B::Value], axis: usize);
    fn slice(x: &B::Value, axis: usize, start: usize, len: usize);
    fn reshape(x: &B::Value, dims: &[i64]);
    fn transpose(x: &B::Value, perm: &[usize]);
    fn resize_bilinear(x: &B::Value, size: [usize; 2], sampling: Sampling) of sampling;
    fn cast(cast: Cast, x: &B::Value) of cast;
}

/// The name of every operation, or of each of its variants if it has any.
fn operations() -> BTreeSet<String> {
    fn all<T: std::fmt::Debug>(op: &str, variants: &[T]) -> Vec<String> {
        variants.iter().map(|v| format!("{op} {v:?}")).collect()
    }
    let samplings = [Sampling::HalfPixel, Sampling::AlignCorners, Sampling::Asymmetric];
    let variants = |op: &str| match op {
        "pool2d" => all(op, &PoolKind::ALL),
        "unary" => all(op, &Unary::ALL),
        "binary" => all(op, &Binary::ALL),
        "resize_bilinear" => all(op, &samplings),
        "cast" => all(op, &Cast::ALL),
        other => panic!("`{other}` has variants that are not listed"),
    };
    let of = |(op, has): &(&str, bool)| if *has { variants(op) } else { vec![(*op).to_owned()] };
    OPERATIONS.iter().flat_map(of).collect()
}

/// Whether input `i` varies with the batch. It is then an input of the graph, otherwise a constant, as in networks.
fn is_batched(case: &Case, i: usize) -> bool {
    case.inputs[i].len() > 1 && case.inputs[i][0] == BATCH
}

fn values(case: &Case, i: usize) -> Vec<f32> {
    let mut values = f32s(case.inputs[i], i as u64);
    if case.positive {
        values.iter_mut().for_each(|v| *v = v.abs() + 0.1);
    }
    values
}

type Inputs = Vec<(&'static str, ArrayD<f32>)>;

/// The graph of `case`, its inputs, and the operations it reached.
fn graph(case: &Case) -> (Model, Inputs, BTreeSet<String>) {
    let inner = OnnxBackend::new(case.name, Weights::initialised(0));
    let mut b = Counting { inner, evaluated: BTreeSet::new() };
    let (mut edges, mut given) = (Vec::new(), Vec::new());
    let names = ["a", "b", "c"];
    for (i, dims) in case.inputs.iter().enumerate() {
        if is_batched(case, i) {
            let symbolic: Vec<Dim> =
                dims.iter().enumerate().map(|(axis, d)| if axis == 0 { Dim::Batch } else { Dim::Known(*d) }).collect();
            edges.push(b.inner.input(names[i], ElementType::F32, &symbolic).unwrap());
            given.push((names[i], ArrayD::from_shape_vec(*dims, values(case, i)).unwrap()));
        } else {
            edges.push(b.constant(&Scope::root(), names[i], dims, values(case, i)).unwrap());
        }
    }
    b.enter(&Scope::root().child("case"));
    let out = evaluate(&mut b, case.name, &edges).unwrap();
    b.inner.output("out", &out).unwrap();
    let (graph, _) = b.inner.finish().unwrap();
    (graph.finish().unwrap(), given, b.evaluated)
}

#[test]
fn every_operation_has_a_case() {
    let evaluated: BTreeSet<String> = CASES.iter().flat_map(|case| graph(case).2).collect();
    assert_eq!(evaluated, operations());
}

/// Runs `case` on the runtimes, with its whole batch and with the first row only.
fn on_runtimes(case: &Case, dir: &Path, check: &mut dyn FnMut(&str, &[f32])) {
    let (model, given, _) = graph(case);
    let path = dir.join(format!("{}.onnx", case.name));
    d2o_onnx::write::write(&model, &path).unwrap();
    for session in &mut sessions(&path) {
        for batch in [BATCH, 1] {
            let first = |a: &ArrayD<f32>| a.slice_axis(Axis(0), Slice::from(..batch)).to_owned();
            let batched: Vec<_> = given.iter().map(|(name, a)| (*name, first(a))).collect();
            let inputs: Vec<_> = batched.iter().map(|(name, a)| (*name, a.view().into())).collect();
            let outputs =
                session.run(&inputs).unwrap_or_else(|e| panic!("{} on {}: {e:?}", case.name, session.runtime()));
            let found: Vec<f32> = outputs[0].as_f32().unwrap().iter().copied().collect();
            check(&format!("{} of {batch} on {}", case.name, session.runtime()), &found);
        }
    }
}

#[cfg(feature = "train")]
#[test]
fn operations_agree_on_all_engines() {
    use d2o::train::libtorch::{LibTorch, Value, tensor_of, values_of};
    use tch::Device;

    let dir = tempfile::tempdir().unwrap();
    for case in CASES {
        let inputs: Vec<Value> = case
            .inputs
            .iter()
            .enumerate()
            .map(|(i, dims)| Value(tensor_of(&values(case, i), dims, Device::Cpu).unwrap()))
            .collect();
        let mut b = LibTorch::running(Device::Cpu, false);
        let expected = values_of(&evaluate(&mut b, case.name, &inputs).unwrap().0).unwrap();
        on_runtimes(case, dir.path(), &mut |what, found| {
            assert!(found.len() == expected.len() || found.len() == expected.len() / BATCH, "{what}");
            assert_close(what, found, &expected[..found.len()], case.tol);
        });
    }
}

/// Batch normalisation is an operation of training only, so no graph has it.
#[cfg(feature = "train")]
#[test]
fn running_statistics_move_to_those_of_the_array() {
    use d2o::train::libtorch::{LibTorch, Value};
    use tch::{Device, Kind, Tensor};

    let (dims, values) = ([3, 4, 5, 6], f32s(&[3, 4, 5, 6], 0));
    let x = Value(Tensor::from_slice(&values).reshape([3, 4, 5, 6]).to_kind(Kind::Double));
    let channels = |value: f64| Value(Tensor::full([4], value, (Kind::Double, Device::Cpu)));
    let (weight, bias, mean, variance) = (channels(1.0), channels(0.0), channels(2.0), channels(3.0));
    let mut b = LibTorch::running(Device::Cpu, true).in_kind(Kind::Double);
    b.batch_norm(&x, 1e-5, &weight, &bias, Some((&mean, &variance, 0.25))).unwrap();
    let (means, variances) = (b.values(&mean).unwrap(), b.values(&variance).unwrap());
    let array = ArrayD::from_shape_vec(dims.to_vec(), values).unwrap().mapv(f64::from);
    for (channel, (mean, variance)) in array.axis_iter(Axis(1)).zip(means.iter().zip(&variances)) {
        assert!((0.25 * channel.mean().unwrap() + 0.75 * 2.0 - mean).abs() < 1e-12);
        assert!((0.25 * channel.var(1.0) + 0.75 * 3.0 - variance).abs() < 1e-12);
    }
}

#[test]
fn transposed_convolutions_of_uneven_padding_are_refused() {
    let uneven = Conv2d { stride: 2, pads: [1, 0, 1, 0], groups: 1 };
    let mut b = OnnxBackend::new("x", Weights::initialised(0));
    let root = Scope::root();
    let x = b.constant(&root, "x", &[1, 2, 4, 4], vec![0.0; 32]).unwrap();
    let w = b.constant(&root, "w", &[2, 2, 2, 2], vec![0.0; 16]).unwrap();
    assert!(b.conv_transpose2d(&x, &w, uneven).is_err());
    #[cfg(feature = "train")]
    {
        use d2o::train::libtorch::LibTorch;
        let mut b = LibTorch::running(tch::Device::Cpu, false);
        let x = b.constant(&root, "x", &[1, 2, 4, 4], vec![0.0; 32]).unwrap();
        let w = b.constant(&root, "w", &[2, 2, 2, 2], vec![0.0; 16]).unwrap();
        assert!(b.conv_transpose2d(&x, &w, uneven).unwrap_err().to_string().contains("four equal pads"));
    }
}

#[cfg(not(feature = "train"))]
#[test]
fn operations_agree_on_both_runtimes() {
    let dir = tempfile::tempdir().unwrap();
    for case in CASES {
        let mut results: Vec<(String, Vec<f32>)> = Vec::new();
        on_runtimes(case, dir.path(), &mut |what, found| results.push((what.to_owned(), found.to_vec())));
        let (_, expected) = results[0].clone();
        for (what, found) in &results[1..] {
            assert_close(what, found, &expected[..found.len()], case.tol);
        }
    }
}

#[test]
fn pixels_are_quantised_alike() {
    let dir = tempfile::tempdir().unwrap();
    let mut b = OnnxBackend::new("u8", Weights::initialised(0));
    let x = b.input("x", ElementType::U8, &[Dim::Batch, Dim::Known(256)]).unwrap();
    b.enter(&Scope::root().child("case"));
    let y = b.cast(Cast::ToF32, &x).unwrap();
    let y = b.offset(&y, 0.75).unwrap();
    let y = b.scale(&y, 1.01).unwrap();
    let y = b.cast(Cast::ToU8, &y).unwrap();
    b.output("y", &y).unwrap();
    let path = dir.path().join("u8.onnx");
    d2o_onnx::write::write(&b.finish().unwrap().0.finish().unwrap(), &path).unwrap();
    let pixels: Vec<u8> = (0..=255).collect();
    let expected: Vec<u8> = pixels.iter().map(|p| ((f32::from(*p) + 0.75) * 1.01).clamp(0.0, 255.0) as u8).collect();
    for mut session in sessions(&path) {
        let input = Tensor::U8(ArrayD::from_shape_vec(vec![1, 256], pixels.clone()).unwrap());
        let outputs = session.run(&[("x", (&input).into())]).unwrap();
        let found: Vec<u8> = outputs[0].as_u8().unwrap().iter().copied().collect();
        assert_eq!(found, expected, "on {}", session.runtime());
    }
}

const GOLDEN: [&str; 8] = [
    "edm-ncsnpp-uncond",
    "edm-ddpmpp-cond",
    "edm-adm-cond",
    "d2o-ncsnpp-uncond",
    "d2o-adm-cond",
    "ecm-ddpmpp-cond",
    "vp-ddpmpp",
    "ve-ncsnpp",
];

struct Golden {
    checkpoint: Checkpoint,
    file: SafetensorsFile,
}

impl Golden {
    fn open(dir: &Path, name: &str) -> Self {
        let path = dir.join(format!("{name}.safetensors"));
        Self { checkpoint: Checkpoint::open(&path).unwrap(), file: SafetensorsFile::open(&path).unwrap() }
    }

    fn values(&self, name: &str) -> Vec<f32> {
        self.file.read_f32(name).unwrap()
    }

    fn tensor(&self, name: &str) -> Tensor {
        Tensor::F32(ArrayD::from_shape_vec(self.file.info(name).unwrap().dims, self.values(name)).unwrap())
    }

    fn has_labels(&self) -> bool {
        self.file.info("labels").is_some()
    }
}

/// Prints rows of (what, engine, largest difference over the largest value).
fn report(rows: &[(String, String, f64)]) {
    for (what, engine, relative) in rows {
        println!("parity: {what:<32} {engine:<10} {relative:.1e}");
    }
}

#[test]
fn golden_networks_on_the_runtimes() {
    let dir = test_support::golden_dir();
    let out = tempfile::tempdir().unwrap();
    let mut rows = Vec::new();
    for name in GOLDEN {
        let golden = Golden::open(&dir, name);
        let network = golden.checkpoint.network(None).unwrap();
        for (kind, expected) in [(Kind::OneStep, "one_step"), (Kind::Denoiser, "denoised")] {
            let exported = export::denoiser(network, &Options { kind, ..Options::default() }).unwrap();
            let mut inputs = match kind {
                Kind::OneStep => vec![("latents", golden.tensor("z"))],
                Kind::Denoiser => vec![("x", golden.tensor("input")), ("sigma", golden.tensor("sigma"))],
            };
            if golden.has_labels() {
                inputs.push(("class_labels", golden.tensor("labels")));
            }
            // These networks are too narrow to benefit from Winograd convolutions. A threshold of 1 converts all of
            // theirs.
            let (filtered, count) = exported.model.clone().to_winograd(1).unwrap();
            assert!(count >= 8, "{name}: {count} convolutions");
            for (model, what) in [(&exported.model, ""), (&filtered, " winograd")] {
                let what = format!("{name} {expected}{what}");
                let path = out.path().join(format!("{what}.onnx"));
                d2o_onnx::write::write(model, &path).unwrap();
                for mut session in sessions(&path) {
                    let given: Vec<_> = inputs.iter().map(|(name, tensor)| (*name, tensor.into())).collect();
                    let outputs = session.run(&given).unwrap();
                    let found: Vec<f32> = outputs[0].as_f32().unwrap().iter().copied().collect();
                    let relative = assert_close(&what, &found, &golden.values(expected), Tol::Parity);
                    rows.push((what.clone(), session.runtime().to_owned(), relative));
                }
            }
        }
    }
    report(&rows);
}

#[cfg(feature = "train")]
#[test]
fn golden_networks_on_libtorch() {
    use d2o::train::libtorch::{LibTorch, Value, tensor_of, values_of};
    use d2o_converters::denoiser::{Denoiser, Sigma};
    use tch::Device;

    let dir = test_support::golden_dir();
    let mut rows = Vec::new();
    for name in GOLDEN {
        let golden = Golden::open(&dir, name);
        let network = golden.checkpoint.network(None).unwrap();
        let Architecture::Denoiser(config) = &network.architecture else { panic!("{name} has no configuration") };
        let weights = network.weights();
        let mut b = LibTorch::with_weights(weights, Device::Cpu);
        let net = Denoiser::build(&mut b, config).unwrap();
        b.finish().unwrap();
        let value =
            |n: &str| Value(tensor_of(&golden.values(n), &golden.file.info(n).unwrap().dims, Device::Cpu).unwrap());
        let labels = golden.has_labels().then(|| value("labels"));
        let mut b = LibTorch::running(Device::Cpu, false);
        let _guard = tch::no_grad_guard();
        let denoised = net.denoise(&mut b, &value("input"), &Sigma::PerImage(value("sigma")), labels.as_ref()).unwrap();
        let one_step = net.one_step(&mut b, &value("z"), 80.0, labels.as_ref()).unwrap();
        for (what, found) in [("denoised", denoised), ("one_step", one_step)] {
            let what_full = format!("{name} {what}");
            let found = values_of(&found.0).unwrap();
            let relative = assert_close(&what_full, &found, &golden.values(what), Tol::Parity);
            rows.push((what_full, "libtorch".to_owned(), relative));
        }
    }
    report(&rows);
}

#[test]
fn golden_heun_on_the_runtimes() {
    use d2o::sampling::rng::Family;
    use d2o::sampling::sampler::{Churn, NoiseLevels, Sampler};

    let dir = test_support::golden_dir();
    let out = tempfile::tempdir().unwrap();
    let grid = NoiseLevels { steps: 6, sigma_min: 0.002, sigma_max: 80.0, rho: 7.0 };
    let churn = Churn { churn: 0.0, min: 0.0, max: f64::INFINITY, noise: 1.0, single: false };
    let heun = Sampler::Edm { grid, churn };
    let mut rows = Vec::new();
    for name in GOLDEN {
        let golden = Golden::open(&dir, name);
        if golden.file.info("heun6").is_none() {
            continue;
        }
        let network = golden.checkpoint.network(None).unwrap();
        let exported = export::denoiser(network, &Options { kind: Kind::Denoiser, ..Options::default() }).unwrap();
        let path = out.path().join(format!("{name}.onnx"));
        d2o_onnx::write::write(&exported.model, &path).unwrap();
        let Tensor::F32(latents) = golden.tensor("z") else { panic!("z is not f32") };
        let latents = latents.into_dimensionality().unwrap();
        let labels = golden.has_labels().then(|| match golden.tensor("labels") {
            Tensor::F32(a) => a,
            _ => panic!("labels are not f32"),
        });
        for mut session in sessions(&path) {
            let found =
                heun.sample(session.as_mut(), &latents, labels.as_ref(), &mut Family::TorchCpu.streams(&[])).unwrap();
            let found = found.mapv(|v| v as f32);
            let what = format!("{name} heun6");
            let relative = assert_close(&what, found.as_slice().unwrap(), &golden.values("heun6"), Tol::Parity);
            rows.push((what, session.runtime().to_owned(), relative));
        }
    }
    report(&rows);
}

#[test]
fn graphs_take_any_batch_and_export_repeats_its_bytes() {
    let dir = test_support::golden_dir();
    let golden = Golden::open(&dir, "d2o-ncsnpp-uncond");
    let network = golden.checkpoint.network(None).unwrap();
    let options = Options { uint8: true, ..Options::default() };
    let export = || d2o_onnx::write::to_bytes(&export::denoiser(network, &options).unwrap().model).unwrap();
    assert_eq!(export(), export());
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("x.onnx");
    fs_err::write(&path, export()).unwrap();
    for mut session in sessions(&path) {
        let mut first = Vec::new();
        for batch in [1, 3, 64] {
            let values = f32s(&[64, 3, 16, 16], 5);
            let latents = ArrayD::from_shape_vec(vec![batch, 3, 16, 16], values[..batch * 768].to_vec()).unwrap();
            let outputs = session.run(&[("latents", latents.view().into())]).unwrap();
            assert_eq!(outputs[1].dims(), [batch, 16, 16, 3]);
            let found: Vec<f32> = outputs[0].as_f32().unwrap().iter().take(768).copied().collect();
            if first.is_empty() {
                first = found;
            } else {
                assert_close(&format!("batch {batch} on {}", session.runtime()), &found, &first, Tol::Parity);
            }
        }
    }
}
