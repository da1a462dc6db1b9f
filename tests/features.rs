//! Feature networks against the classes of torchvision, timm, transformers, open_clip, torch-fidelity, pytorch-fid and DINOv2: small ones with
//! weights drawn alike on both sides. `tests/data/gen/features.py` wrote the expected values and says how weights are drawn.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::cast_possible_truncation, reason = "a test")]

use std::collections::BTreeMap;
use std::path::Path;

use d2o_converters::checkpoint::safetensors::{self, Tensor as Stored};
use d2o_converters::weights::SplitMix64;
use d2o_onnx::session::ort::{OrtOptions, OrtRuntime};
use d2o_onnx::session::tract::TractSession;
use d2o_onnx::session::{Provider, Session, Tensor};
use ndarray::ArrayD;
use serde_json::Value;
use test_support::{Tol, assert_close, run};

fn drawn(name: &str, dims: &[usize], scale: bool) -> Vec<f32> {
    let mut rng = SplitMix64::for_path(0, name);
    let fan_in: usize = dims[1..].iter().product();
    let factor = if dims.len() > 1 { (3.0 / fan_in as f64).sqrt() } else { 0.1 };
    let offset = if scale { 1.0 } else { 0.0 };
    (0..dims.iter().product()).map(|_| ((rng.uniform() * 2.0 - 1.0) * factor + offset) as f32).collect()
}

fn write_weights(path: &Path, tensors: &Value) {
    let tensors: Vec<Stored> = tensors
        .as_array()
        .unwrap()
        .iter()
        .map(|t| {
            let dims: Vec<usize> = serde_json::from_value(t[1].clone()).unwrap();
            let (name, scale) = (t[0].as_str().unwrap(), t[2].as_bool().unwrap());
            let values = drawn(name, &dims, scale);
            Stored { name: name.to_owned(), dims, values }
        })
        .collect();
    safetensors::write(path, &tensors, &BTreeMap::new()).unwrap();
}

fn sessions(path: &Path) -> Vec<Box<dyn Session>> {
    let mut all: Vec<Box<dyn Session>> = vec![Box::new(TractSession::open(path, Some(2)).unwrap())];
    match test_support::onnxruntime() {
        None => println!("skipped: ONNX Runtime (D2O_ONNXRUNTIME is not set)"),
        Some(library) => {
            let runtime = OrtRuntime::load(&library).unwrap();
            for provider in [Provider::Cpu, Provider::Winograd] {
                all.push(Box::new(runtime.session(path, &OrtOptions { provider, threads: Some(2) }).unwrap()));
            }
        }
    }
    all
}

fn check(dir: &Path, name: &str, case: &Value) {
    let weights = dir.join(format!("{name}.safetensors"));
    write_weights(&weights, &case["tensors"]);
    let options: Vec<&str> = case["options"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
    let (source, out) = (format!("{name}.safetensors"), format!("{name}.onnx"));
    let base = ["export", &source, "--no-check", "--out", &out];
    let outcome = run(Path::new(env!("CARGO_BIN_EXE_d2o")), dir, &[&base[..], &options].concat());
    assert_eq!(outcome.code, 0, "{name}: {outcome}");
    let size = usize::try_from(case["size"].as_u64().unwrap()).unwrap();
    let mut rng = SplitMix64::for_path(0, "pixels");
    let pixels = (0..2 * size * size * 3).map(|_| rng.next_u64().to_le_bytes()[7]).collect();
    let images = Tensor::U8(ArrayD::from_shape_vec(vec![2, size, size, 3], pixels).unwrap());
    for mut session in sessions(&dir.join(&out)) {
        let outputs = session.run(&[("images_u8", images.clone())]).unwrap();
        for (output, expected) in case["outputs"].as_object().unwrap() {
            let what = format!("{name} {output} on {}", session.runtime());
            let (_, found) = outputs.iter().find(|(n, _)| n == output).unwrap_or_else(|| panic!("no {what}"));
            let dims: Vec<usize> = serde_json::from_value(expected["dims"].clone()).unwrap();
            assert_eq!(found.dims(), dims, "{what}");
            let step = usize::try_from(expected["step"].as_u64().unwrap()).unwrap();
            let found: Vec<f32> = found.as_f32().unwrap().iter().copied().step_by(step).collect();
            let expected: Vec<f32> = serde_json::from_value(expected["values"].clone()).unwrap();
            let relative = assert_close(&what, &found, &expected, Tol::Parity);
            println!("features: {what:<52} {relative:.1e}");
        }
    }
}

#[test]
fn small_networks_agree_with_the_originals() {
    let dir = tempfile::tempdir().unwrap();
    let cases: Value = serde_json::from_str(include_str!("data/features.json")).unwrap();
    for (name, case) in cases.as_object().unwrap() {
        check(dir.path(), name, case);
    }
}

#[test]
fn what_a_file_does_not_say_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let cases: Value = serde_json::from_str(include_str!("data/features.json")).unwrap();
    let attempt = |name: &str, tensors: &Value, more: &[&str]| {
        let source = format!("{name}.safetensors");
        write_weights(&dir.path().join(&source), tensors);
        let base = ["export", &source, "--no-check", "--out", "x.onnx"];
        let outcome = run(Path::new(env!("CARGO_BIN_EXE_d2o")), dir.path(), &[&base[..], more].concat());
        assert_eq!(outcome.code, 2, "{name}: {outcome}");
        outcome.stderr
    };
    let text = attempt("clip", &cases["clip-open_clip"]["tensors"], &[]);
    assert!(text.contains("--activation quick-gelu"), "{text}");
    let text = attempt("vgg", &cases["vgg16"]["tensors"], &["--input-size", "256"]);
    assert!(text.contains("vgg16 runs at 224 pixels, found 256"), "{text}");
    let text = attempt("dino", &cases["dinov2-original"]["tensors"], &["--input-size", "100"]);
    assert!(text.contains("takes images of 224 pixels, found 100"), "{text}");
    // A tensor too many, one too few.
    let mut tensors = cases["dinov2-huggingface"]["tensors"].clone();
    tensors.as_array_mut().unwrap().push(serde_json::json!(["pooler.weight", [3], false]));
    let text = attempt("more", &tensors, &[]);
    assert!(text.contains("pooler.weight"), "{text}");
    let mut tensors = cases["deit-timm"]["tensors"].clone();
    tensors.as_array_mut().unwrap().retain(|t| t[0] != "blocks.11.mlp.fc2.bias");
    let text = attempt("fewer", &tensors, &[]);
    assert!(text.contains("blocks.11.mlp.fc2.bias"), "{text}");
}
