//! Feature networks against the classes of torchvision, timm, transformers, open_clip, torch-fidelity, pytorch-fid and
//! DINOv2: small networks with the same random weights on both sides. `tests/data/gen/features.py` wrote the expected
//! values and defines the weights.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::cast_possible_truncation, reason = "a test")]

use std::collections::BTreeMap;
use std::path::Path;

use d2o_converters::checkpoint::safetensors::{self, Tensor as Stored};
use d2o_converters::published::WeightsState;
use d2o_converters::weights::SplitMix64;
use d2o_onnx::read::ModelInfo;
use d2o_runtime::ort::{OrtOptions, OrtRuntime, Provider};
use d2o_runtime::tract::TractSession;
use d2o_runtime::{Session, Tensor};
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
    if let Some(library) = test_support::onnxruntime() {
        let runtime = OrtRuntime::load(&library).unwrap();
        for provider in [Provider::Cpu, Provider::Winograd] {
            all.push(Box::new(runtime.session(path, &OrtOptions::new(provider, Some(2))).unwrap()));
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
    assert!(outcome.stderr.contains("weights: unverified, digest "), "{outcome}");
    let digests: Value = serde_json::from_str(include_str!("data/digests.json")).unwrap();
    let metadata = ModelInfo::open(&dir.join(&out)).unwrap().metadata;
    let recorded = |key: &str| metadata.get(key).map(String::as_str);
    assert_eq!(recorded("weights_digest"), digests[name]["trunk"].as_str(), "{name}");
    assert_eq!(recorded("head_digest"), digests[name]["head"].as_str(), "{name}");
    assert_eq!((recorded("weights"), recorded("source_sha256")), (Some("unverified"), None), "{name}");
    let size = usize::try_from(case["size"].as_u64().unwrap()).unwrap();
    let mut rng = SplitMix64::for_path(0, "pixels");
    let pixels = (0..2 * size * size * 3).map(|_| rng.next_u64().to_le_bytes()[7]).collect();
    let images = Tensor::U8(ArrayD::from_shape_vec(vec![2, size, size, 3], pixels).unwrap());
    for mut session in sessions(&dir.join(&out)) {
        let outputs = session.run(&[("images_u8", (&images).into())]).unwrap();
        for (output, expected) in case["outputs"].as_object().unwrap() {
            let what = format!("{name} {output} on {}", session.runtime());
            let named = session.model().output_names().zip(&outputs).find(|(n, _)| n == output);
            let (_, found) = named.unwrap_or_else(|| panic!("no {what}"));
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
    // One tensor too many, then one too few.
    let mut tensors = cases["dinov2-huggingface"]["tensors"].clone();
    tensors.as_array_mut().unwrap().push(serde_json::json!(["pooler.weight", [3], false]));
    let text = attempt("more", &tensors, &[]);
    assert!(text.contains("pooler.weight"), "{text}");
    let mut tensors = cases["deit-timm"]["tensors"].clone();
    tensors.as_array_mut().unwrap().retain(|t| t[0] != "blocks.11.mlp.fc2.bias");
    let text = attempt("fewer", &tensors, &[]);
    assert!(text.contains("blocks.11.mlp.fc2.bias"), "{text}");
}

fn d2o(dir: &Path, args: &[&str]) -> test_support::Outcome {
    let outcome = run(Path::new(env!("CARGO_BIN_EXE_d2o")), dir, args);
    assert_eq!(outcome.code, 0, "d2o {}: {outcome}", args.join(" "));
    outcome
}

/// Output of `d2o inspect` for `file`.
fn inspected(dir: &Path, file: &str) -> Value {
    let mut all: Value = serde_json::from_str(&d2o(dir, &["inspect", file, "--json", "-"]).stdout).unwrap();
    all[0].take()
}

#[test]
fn no_option_of_export_changes_the_digest_of_the_weights() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let cases: Value = serde_json::from_str(include_str!("data/features.json")).unwrap();
    let digests: Value = serde_json::from_str(include_str!("data/digests.json")).unwrap();
    let of_vgg: [&[&str]; 6] = [
        &[],
        &["--taps"],
        &["--input", "f32"],
        &["--precision", "fp16"],
        &["--winograd"],
        &["--image-size", "32", "--fuse-resize"],
    ];
    let of_dino: [&[&str]; 2] =
        [&["--input-size", "98"], &["--input-size", "112", "--image-size", "64", "--fuse-resize"]];
    for (name, options) in [("vgg16", &of_vgg[..]), ("dinov2-original", &of_dino)] {
        let source = format!("{name}.safetensors");
        write_weights(&dir.join(&source), &cases[name]["tensors"]);
        let checkpoint = inspected(dir, &source)["networks"][0].clone();
        assert_eq!(
            (&checkpoint["weights_digest"], &checkpoint["weights"]),
            (&digests[name]["trunk"], &"unverified".into())
        );
        for more in options {
            d2o(dir, &[&["export", &source, "--no-check", "--overwrite", "--out", "x.onnx"][..], more].concat());
            let graph = inspected(dir, "x.onnx");
            assert_eq!(graph["weights_digest"], digests[name]["trunk"], "{name} {more:?}");
            assert_eq!(graph["head_digest"], digests[name]["head"], "{name} {more:?}");
            let state = WeightsState::of_metadata(&ModelInfo::open(&dir.join("x.onnx")).unwrap().described().unwrap());
            assert_eq!(state.digest.as_deref(), digests[name]["trunk"].as_str());
            assert_eq!((state.verified, state.source_sha256), (None, None));
        }
    }
}

#[test]
fn inspect_says_whether_weights_are_verified() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let cases: Value = serde_json::from_str(include_str!("data/features.json")).unwrap();
    write_weights(&dir.join("vgg.safetensors"), &cases["vgg16"]["tensors"]);
    d2o(dir, &["export", "vgg.safetensors", "--no-check", "--out", "vgg.onnx"]);
    // The hash of the graph and the version change with d2o.
    let text = |file| {
        let text = d2o(dir, &["inspect", file]).stdout;
        let kept = text.lines().filter(|l| !l.starts_with("sha256: ") && !l.starts_with("  d2o_version: "));
        kept.collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!("inspect_features_checkpoint", text("vgg.safetensors"));
    insta::assert_snapshot!("inspect_features_graph", text("vgg.onnx"));
}

/// The one published weight file that a package contains, if it is installed.
#[test]
fn a_published_file_is_verified_by_its_hash_and_a_copy_of_its_tensors_by_their_digest() {
    let Some(file) = test_support::lite0() else { return };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let verified = "verified (efficientnet-lite0-57934424.pth)";
    // The file name does not matter.
    fs_err::copy(&file, dir.join("renamed.pt")).unwrap();
    let outcome = d2o(dir, &["export", "renamed.pt", "--no-check", "--out", "file.onnx"]);
    assert!(outcome.stderr.contains(&format!("weights: {verified}, digest 3d79bc06")), "{outcome}");
    let (graph, checkpoint) = (inspected(dir, "file.onnx"), inspected(dir, "renamed.pt"));
    assert_eq!((&graph["weights"], &checkpoint["networks"][0]["weights"]), (&verified.into(), &verified.into()));
    assert_eq!(graph["metadata"]["source_sha256"], checkpoint["sha256"]);
    // The same tensors under timm's names in another container, and then with one value changed.
    let network = d2o_converters::Checkpoint::open(&file).unwrap();
    let network = network.network(None).unwrap();
    let stored = network.tensors.names().into_iter().map(|name| {
        let (dims, values) = (network.tensors.info(&name).unwrap().dims, network.tensors.read_f32(&name).unwrap());
        Stored { name, dims, values }
    });
    let mut stored: Vec<Stored> = stored.collect();
    let state = |stored: &[Stored], out: &str| {
        safetensors::write(&dir.join("copy.safetensors"), stored, &BTreeMap::new()).unwrap();
        d2o(dir, &["export", "copy.safetensors", "--no-check", "--out", out]);
        WeightsState::of_metadata(&ModelInfo::open(&dir.join(out)).unwrap().described().unwrap())
    };
    let copy = state(&stored, "copy.onnx");
    assert_eq!((copy.verified.as_deref(), copy.source_sha256), (Some("efficientnet-lite0-57934424.pth"), None));
    // Except for the hash of the file, the graphs of the two layouts have the same bytes.
    let without = |name: &str| {
        let bytes = fs_err::read(dir.join(name)).unwrap();
        let at = bytes.windows(13).position(|w| w == b"source_sha256");
        // Tag and length of the entry, tag and length of the key, key, tag and length of the value, value.
        at.map_or(bytes.clone(), |at| [&bytes[..at - 4], &bytes[at + 13 + 2 + 64..]].concat())
    };
    assert!(without("file.onnx") == fs_err::read(dir.join("copy.onnx")).unwrap(), "other bytes differ");
    stored[0].values[0] += 1e-3;
    let changed = state(&stored, "changed.onnx");
    assert_eq!((changed.verified, changed.head_digest == copy.head_digest), (None, true));
    assert_ne!(changed.digest, copy.digest);
}
