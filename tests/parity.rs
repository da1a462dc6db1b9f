//! One suite on every engine: each primitive of `Backend`, and the official networks' golden outputs, on libtorch, ONNX Runtime and tract.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::cast_possible_truncation, reason = "a test")]

mod engines;

use std::path::Path;

use d2o_converters::checkpoint::TensorSource as _;
use d2o_converters::checkpoint::safetensors::SafetensorsFile;
use d2o_converters::error::Result;
use d2o_converters::export::{self, Kind, Options};
use d2o_converters::nn::{Backend, Conv2d, OnnxBackend, Pool};
use d2o_converters::weights::{Init, Scope, Weights};
use d2o_converters::{Architecture, Checkpoint};
use d2o_onnx::graph::{Dim, ElementType};
use d2o_runtime::Tensor;
use engines::sessions;
use ndarray::ArrayD;
use test_support::{Tol, assert_close};

fn f32s(dims: &[usize], seed: u64) -> Vec<f32> {
    Init::Normal { std: 1.0 }.values(seed, "x", dims.iter().product())
}

/// A case: inputs by shape, and what is done to them.
struct Case {
    name: &'static str,
    tol: Tol,
    inputs: &'static [&'static [usize]],
    /// Inputs are made positive.
    positive: bool,
}

const fn case(name: &'static str, tol: Tol, inputs: &'static [&'static [usize]]) -> Case {
    Case { name, tol, inputs, positive: false }
}

const fn positive(name: &'static str, inputs: &'static [&'static [usize]]) -> Case {
    Case { name, tol: Tol::Close, inputs, positive: true }
}

const CASES: &[Case] = &[
    case("conv2d", Tol::Parity, &[&[3, 4, 7, 6], &[8, 2, 3, 3], &[8]]),
    case("conv2d_uneven_padding", Tol::Parity, &[&[3, 4, 8, 8], &[4, 1, 5, 5], &[4]]),
    case("conv_transpose2d", Tol::Parity, &[&[3, 4, 5, 6], &[4, 1, 4, 4]]),
    case("max_pool2d", Tol::Exact, &[&[3, 2, 8, 7]]),
    case("avg_pool2d", Tol::Close, &[&[3, 2, 6, 7]]),
    case("linear", Tol::Parity, &[&[3, 5], &[7, 5], &[7]]),
    case("matmul", Tol::Parity, &[&[3, 4, 5], &[3, 5, 6]]),
    case("group_norm", Tol::Parity, &[&[3, 8, 5, 5], &[8], &[8]]),
    case("batch_norm", Tol::Parity, &[&[3, 4, 5, 5], &[4], &[4]]),
    case("spectral_norm", Tol::Parity, &[&[4, 3, 2, 2], &[4], &[12]]),
    case("dropout", Tol::Exact, &[&[3, 4]]),
    case("silu", Tol::Close, &[&[3, 40]]),
    case("gelu", Tol::Close, &[&[3, 40]]),
    case("clamp", Tol::Exact, &[&[3, 40]]),
    case("relu", Tol::Exact, &[&[3, 40]]),
    case("leaky_relu", Tol::Close, &[&[3, 40]]),
    positive("log", &[&[3, 40]]),
    positive("sqrt", &[&[3, 40]]),
    case("cos", Tol::Close, &[&[3, 40]]),
    case("sin", Tol::Close, &[&[3, 40]]),
    case("add", Tol::Exact, &[&[3, 4, 5, 5], &[1, 4, 1, 1]]),
    case("mul", Tol::Exact, &[&[3, 4, 5, 5], &[3, 4, 1, 1]]),
    positive("div", &[&[3, 4], &[3, 4]]),
    case("scale", Tol::Close, &[&[3, 4]]),
    case("offset", Tol::Close, &[&[3, 4]]),
    case("softmax", Tol::Close, &[&[3, 4, 9]]),
    case("mean", Tol::Close, &[&[3, 4, 5, 5]]),
    case("concat", Tol::Exact, &[&[3, 4, 2, 2], &[3, 5, 2, 2]]),
    case("slice", Tol::Exact, &[&[3, 6, 2, 2]]),
    case("reshape", Tol::Exact, &[&[3, 6, 2, 2]]),
    case("transpose", Tol::Exact, &[&[3, 6, 2, 4]]),
    case("resize_bilinear_up", Tol::Close, &[&[3, 2, 5, 7]]),
    case("resize_bilinear_down", Tol::Close, &[&[3, 2, 9, 8]]),
    case("resize_bilinear_align_corners", Tol::Close, &[&[3, 2, 5, 7]]),
];

/// Lays the case out on any back end. The first input has the batch as its first axis.
fn lay_out<B: Backend>(b: &mut B, name: &str, x: &[B::Value]) -> Result<B::Value> {
    match name {
        "conv2d" => b.conv2d(&x[0], &x[1], Some(&x[2]), Conv2d { stride: 1, pads: [1; 4], groups: 2 }),
        "conv2d_uneven_padding" => {
            b.conv2d(&x[0], &x[1], Some(&x[2]), Conv2d { stride: 2, pads: [1, 1, 2, 2], groups: 4 })
        }
        "conv_transpose2d" => b.conv_transpose2d(&x[0], &x[1], Conv2d { stride: 2, pads: [1; 4], groups: 4 }),
        "max_pool2d" => {
            let y = b.max_pool2d(&x[0], Pool { kernel: 3, stride: 1, pad: 1 })?;
            b.max_pool2d(&y, Pool { kernel: 3, stride: 2, pad: 0 })
        }
        "avg_pool2d" => b.avg_pool2d(&x[0], Pool { kernel: 3, stride: 1, pad: 1 }),
        "linear" => b.linear(&x[0], &x[1], Some(&x[2])),
        "matmul" => b.matmul(&x[0], &x[1]),
        "group_norm" => b.group_norm(&x[0], 2, 1e-5, &x[1], &x[2]),
        "batch_norm" => b.batch_norm(&x[0], 1e-5, &x[1], &x[2]),
        "spectral_norm" => {
            let w = b.spectral_norm(&x[0], &x[1], &x[2])?;
            b.scale(&w, 1.0)
        }
        "dropout" => {
            let y = b.dropout(&x[0], 0.5)?;
            b.reshape(&y, &[-1, 2, 2])
        }
        "silu" => b.silu(&x[0]),
        "gelu" => b.gelu(&x[0]),
        "clamp" => b.clamp(&x[0], -0.5, 0.75),
        "relu" => b.clamp(&x[0], 0.0, f64::INFINITY),
        "leaky_relu" => b.leaky_relu(&x[0], 0.2),
        "log" => b.log(&x[0]),
        "sqrt" => b.sqrt(&x[0]),
        "cos" => b.cos(&x[0]),
        "sin" => b.sin(&x[0]),
        "add" => b.add(&x[0], &x[1]),
        "mul" => b.mul(&x[0], &x[1]),
        "div" => b.div(&x[0], &x[1]),
        "scale" => b.scale(&x[0], 1.7),
        "offset" => b.offset(&x[0], -0.3),
        "softmax" => b.softmax(&x[0], 2),
        "mean" => b.mean(&x[0], &[2, 3], true),
        "concat" => b.concat(x, 1),
        "slice" => b.slice(&x[0], 1, 2, 3),
        "reshape" => b.reshape(&x[0], &[-1, 3, 8]),
        "transpose" => b.transpose(&x[0], &[0, 3, 1, 2]),
        "resize_bilinear_up" => b.resize_bilinear(&x[0], [11, 10], false),
        "resize_bilinear_down" => b.resize_bilinear(&x[0], [4, 5], false),
        "resize_bilinear_align_corners" => b.resize_bilinear(&x[0], [10, 14], true),
        other => panic!("no case `{other}`"),
    }
}

/// Inputs that carry the batch are graph inputs, the others constants, as in networks.
fn is_batched(case: &Case, i: usize) -> bool {
    case.name != "spectral_norm" && case.inputs[i].len() > 1 && case.inputs[i][0] == 3
}

fn values(case: &Case, i: usize) -> Vec<f32> {
    let mut values = f32s(case.inputs[i], i as u64);
    if case.positive {
        values.iter_mut().for_each(|v| *v = v.abs() + 0.1);
    }
    values
}

fn on_runtimes(case: &Case, dir: &Path) -> Vec<(String, Vec<f32>)> {
    let mut b = OnnxBackend::new(case.name, Weights::initialised(0));
    let (mut edges, mut given) = (Vec::new(), Vec::new());
    let names = ["a", "b", "c"];
    let mut batched = false;
    for (i, dims) in case.inputs.iter().enumerate() {
        if is_batched(case, i) {
            batched = true;
            let symbolic: Vec<Dim> =
                dims.iter().enumerate().map(|(axis, d)| if axis == 0 { Dim::Batch } else { Dim::Known(*d) }).collect();
            edges.push(b.graph.input(names[i], ElementType::F32, &symbolic).unwrap());
            let array = ArrayD::from_shape_vec(*dims, values(case, i)).unwrap();
            given.push((names[i], Tensor::F32(array)));
        } else {
            edges.push(b.constant(&Scope::root(), names[i], dims, values(case, i)).unwrap());
        }
    }
    b.enter(&Scope::root().child("case"));
    let mut out = lay_out(&mut b, case.name, &edges).unwrap();
    if !batched {
        // A graph needs an input.
        let zero = b.graph.input("zero", ElementType::F32, &[Dim::Known(1)]).unwrap();
        out = b.add(&out, &zero).unwrap();
        given.push(("zero", Tensor::F32(ArrayD::zeros(vec![1]))));
    }
    b.graph.output("out", &out).unwrap();
    let (graph, _) = b.finish().unwrap();
    let path = dir.join(format!("{}.onnx", case.name));
    d2o_onnx::write::write(&graph.finish().unwrap(), &path).unwrap();
    let given: Vec<_> = given.iter().map(|(name, tensor)| (*name, tensor.into())).collect();
    sessions(&path)
        .iter_mut()
        .map(|s| {
            let outputs = s.run(&given).unwrap_or_else(|e| panic!("{} on {}: {e:?}", case.name, s.runtime()));
            let values = outputs[0].as_f32().unwrap().iter().copied().collect();
            (s.runtime().to_owned(), values)
        })
        .collect()
}

#[test]
fn every_primitive_has_a_case() {
    let source = include_str!("../converters/src/nn/backend.rs");
    let laid_out = include_str!("parity.rs");
    let not_computing = ["param", "buffer", "state", "constant", "enter", "dim"];
    for line in source.lines().filter_map(|l| l.trim().strip_prefix("fn ")) {
        let name = line.split('(').next().unwrap();
        assert!(
            not_computing.contains(&name) || laid_out.contains(&format!("b.{name}(")),
            "the primitive `{name}` has no parity case"
        );
    }
}

#[cfg(feature = "train")]
#[test]
fn primitives_agree_on_all_engines() {
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
        let expected = values_of(&lay_out(&mut b, case.name, &inputs).unwrap().0).unwrap();
        for (runtime, found) in on_runtimes(case, dir.path()) {
            assert_close(&format!("{} on {runtime}", case.name), &found, &expected, case.tol);
        }
    }
}

/// No graph has it: training asks for it before it begins.
#[cfg(feature = "train")]
#[test]
fn statistics_of_channels_are_numbers_of_libtorch_alone() {
    use d2o::train::libtorch::{LibTorch, Value, tensor_of};
    use tch::Device;

    let (dims, values) = ([3, 4, 5, 6], f32s(&[3, 4, 5, 6], 0));
    let x = Value(tensor_of(&values, &dims, Device::Cpu).unwrap());
    let mut b = LibTorch::running(Device::Cpu, false);
    let (means, variances) = b.channel_statistics(&x).unwrap();
    let array = ArrayD::from_shape_vec(dims.to_vec(), values).unwrap().mapv(f64::from);
    for (channel, (mean, variance)) in array.axis_iter(ndarray::Axis(1)).zip(means.iter().zip(&variances)) {
        assert!((channel.mean().unwrap() - f64::from(*mean)).abs() < 1e-6);
        assert!((channel.var(1.0) - f64::from(*variance)).abs() < 1e-6);
    }
    let mut graph = OnnxBackend::new("statistics", Weights::initialised(0));
    let edge = graph.graph.input("x", ElementType::F32, &[Dim::Batch, Dim::Known(4)]).unwrap();
    assert!(graph.channel_statistics(&edge).is_err());
}

#[test]
fn primitives_agree_on_both_runtimes() {
    let dir = tempfile::tempdir().unwrap();
    for case in CASES {
        let results = on_runtimes(case, dir.path());
        let (first, others) = results.split_first().unwrap();
        for (runtime, found) in others {
            assert_close(&format!("{} on {runtime} and {}", case.name, first.0), found, &first.1, case.tol);
        }
    }
}

#[test]
fn pixels_are_quantised_alike() {
    let dir = tempfile::tempdir().unwrap();
    let mut b = OnnxBackend::new("u8", Weights::initialised(0));
    let x = b.graph.input("x", ElementType::U8, &[Dim::Batch, Dim::Known(256)]).unwrap();
    b.enter(&Scope::root().child("case"));
    let y = b.u8_to_f32(&x).unwrap();
    let y = b.offset(&y, 0.75).unwrap();
    let y = b.scale(&y, 1.01).unwrap();
    let y = b.f32_to_u8(&y).unwrap();
    b.graph.output("y", &y).unwrap();
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

const GOLDEN: [&str; 7] = [
    "edm-ncsnpp-uncond",
    "edm-ddpmpp-cond",
    "edm-adm-cond",
    "d2o-ncsnpp-uncond",
    "d2o-adm-cond",
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

/// (what, engine, largest difference over the largest value).
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
            // These networks are narrower than those where Winograd's convolutions pay; 1 takes all of theirs.
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
    use d2o_converters::nn::precond::{Denoiser, Sigma};
    use tch::Device;

    let dir = test_support::golden_dir();
    let mut rows = Vec::new();
    for name in GOLDEN {
        let golden = Golden::open(&dir, name);
        let network = golden.checkpoint.network(None).unwrap();
        let Architecture::Denoiser(config) = &network.architecture else { panic!("{name} has no configuration") };
        let weights = Weights::checkpoint(Box::new(std::sync::Arc::clone(&network.tensors)), "");
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
    use d2o::sampling::sampler::{Churn, Grid, Sampler};

    let dir = test_support::golden_dir();
    let out = tempfile::tempdir().unwrap();
    let grid = Grid { steps: 6, sigma_min: 0.002, sigma_max: 80.0, rho: 7.0 };
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
