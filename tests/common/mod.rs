//! Shared helpers of the integration tests: the command, generated images, a small feature network.
#![allow(dead_code, clippy::cast_possible_truncation, reason = "each test crate uses a part; drawn bytes")]

pub(crate) mod onnx;
pub(crate) mod page;
#[cfg(unix)]
pub(crate) mod running;

use std::collections::BTreeMap;
use std::path::Path;

use d2o_converters::Checkpoint;
use d2o_converters::checkpoint::safetensors::{self, Tensor};
use d2o_converters::extractors::efficientnet_lite::EfficientNetLite0;
use d2o_converters::onnx::OnnxBackend;
use d2o_converters::weights::{Init, Scope, SplitMix64, Weights};
use d2o_refs::npy::Dtype;
use d2o_refs::npz::{IMAGES, LABELS, NpzWriter};
use fs_err as fs;
use ndarray::Array3;
use serde_json::Value;
use test_support::{Outcome, run};

/// Height and width of the generated images, pixels.
pub(crate) const SIDE: usize = 32;

/// Writes `NAME.safetensors` and `NAME.onnx`: EfficientNet-Lite0 with random weights, for images of [`SIDE`] pixels
/// without a resize.
pub(crate) fn write_lite0(dir: &Path, seed: u64, name: &str) {
    let mut b = OnnxBackend::new("names", Weights::initialised(seed));
    EfficientNetLite0::build(&mut b, &Scope::root()).unwrap();
    let tensors: Vec<Tensor> = b
        .weights()
        .taken()
        .map(|(name, dims)| {
            let init = match dims.len() {
                1 if name.ends_with("running_var") || name.ends_with(".weight") => Init::Constant(1.0),
                1 => Init::Normal { std: 0.1 },
                _ => Init::Normal { std: (2.0 / dims.iter().skip(1).product::<usize>().max(1) as f64).sqrt() },
            };
            let values = init.values(seed, name, dims.iter().product());
            Tensor { name: name.to_owned(), dims: dims.to_vec(), values }
        })
        .collect();
    let weights = format!("{name}.safetensors");
    safetensors::write(&dir.join(&weights), &tensors, &BTreeMap::new()).unwrap();
    let (side, out) = (SIDE.to_string(), format!("{name}.onnx"));
    let size = ["--image-size", &side, "--input-size", &side, "--kind", "features", "--no-check"];
    d2o(dir, &[&["export", &weights, "--out", &out][..], &size].concat());
}

/// Writes the network of `checkpoint` with the largest value of the weight `name` raised by one percent.
pub(crate) fn write_changed(checkpoint: &Path, name: &str, out: &Path) {
    let checkpoint = Checkpoint::open(checkpoint).unwrap();
    let network = checkpoint.network(None).unwrap();
    let mut tensors = Vec::new();
    for path in network.tensors.names() {
        let info = network.tensors.info(&path).unwrap();
        let mut values = network.tensors.read_f32(&path).unwrap();
        if path == name {
            let largest = values.iter_mut().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap();
            *largest *= 1.01;
        }
        tensors.push(Tensor { name: format!("weights.{path}"), dims: info.dims.clone(), values });
    }
    let config = network.architecture.denoiser().unwrap();
    let metadata = [("class", config.class().to_owned()), ("init_kwargs", config.init_kwargs().to_string())];
    safetensors::write(out, &tensors, &metadata.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()).unwrap();
}

pub(crate) fn attempt(dir: &Path, args: &[&str]) -> Outcome {
    run(Path::new(env!("CARGO_BIN_EXE_d2o")), dir, args)
}

pub(crate) fn d2o(dir: &Path, args: &[&str]) -> Outcome {
    let outcome = attempt(dir, args);
    assert_eq!(outcome.code, 0, "d2o {}: {outcome}", args.join(" "));
    outcome
}

/// A smooth random image, `[SIDE, SIDE, 3]`, one per seed.
pub(crate) fn image(seed: u64) -> Array3<u8> {
    let mut rng = SplitMix64::for_path(seed, "image");
    let c: Vec<f64> = (0..12).map(|_| rng.uniform()).collect();
    Array3::from_shape_fn((SIDE, SIDE, 3), |(y, x, k)| {
        let (y, x) = (y as f64 / SIDE as f64, x as f64 / SIDE as f64);
        let wave = (8.0 * c[k] * x + 6.0 * c[3 + k] * y + 6.0 * c[6 + k]).sin();
        (127.5 + 100.0 * wave + 27.0 * (2.0 * c[9 + k] - 1.0)) as u8
    })
}

/// Writes an npz of images.
pub(crate) fn write_images(path: &Path, seeds: impl IntoIterator<Item = u64>) {
    write_labelled(path, seeds, |_| None);
}

/// Writes an npz of images, with classes if `class` returns them.
pub(crate) fn write_labelled(path: &Path, seeds: impl IntoIterator<Item = u64>, class: impl Fn(u64) -> Option<i64>) {
    let seeds: Vec<u64> = seeds.into_iter().collect();
    let mut npz = NpzWriter::create(path).unwrap();
    npz.start(IMAGES, Dtype::U8, &[seeds.len(), SIDE, SIDE, 3]).unwrap();
    for seed in &seeds {
        npz.raw(image(*seed).as_slice().unwrap()).unwrap();
    }
    let labels: Option<Vec<i64>> = seeds.into_iter().map(class).collect();
    if let Some(labels) = labels {
        npz.i64(LABELS, &labels).unwrap();
    }
    npz.finish().unwrap();
}

pub(crate) fn write_png(path: &Path, image: &Array3<u8>) {
    fs::write(path, d2o_refs::png(path, "", image.view()).unwrap()).unwrap();
}

pub(crate) fn value(result: &Value, metric: &str) -> f64 {
    result["metrics"][metric]["value"].as_f64().unwrap_or_else(|| panic!("no {metric} in {result}"))
}

pub(crate) fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-4 * a.abs().max(b.abs()).max(1e-3)
}
