//! `d2o verify`: planted faults are located, and engines agree on one network.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::path::Path;

use d2o_refs::npz::Npz;
use fs_err as fs;
use serde_json::Value;
use test_support::{Outcome, golden_dir, run};

mod common;

fn verify(dir: &Path, args: &[&str]) -> (Outcome, Value) {
    let words = [&["verify", "good.onnx", "--overwrite", "--json", "v.json"], args].concat();
    let outcome = run(Path::new(env!("CARGO_BIN_EXE_d2o")), dir, &words);
    let json = serde_json::from_slice(&fs::read(dir.join("v.json")).unwrap_or_default()).unwrap_or_default();
    (outcome, json)
}

fn export(dir: &Path, checkpoint: &str, out: &str) {
    let words = ["export", checkpoint, "--kind", "denoiser", "--no-check", "--out", out];
    let outcome = run(Path::new(env!("CARGO_BIN_EXE_d2o")), dir, &words);
    assert_eq!(outcome.code, 0, "{outcome}");
}

fn golden() -> std::path::PathBuf {
    golden_dir().join("edm-ddpmpp-cond.safetensors")
}

#[test]
fn a_changed_weight_is_found_at_its_node() {
    let dir = tempfile::tempdir().unwrap();
    let weight = "model.dec.8x8_in0.conv1.weight";
    common::write_changed(&golden(), weight, &dir.path().join("bad.safetensors"));
    export(dir.path(), &golden().display().to_string(), "good.onnx");
    export(dir.path(), "bad.safetensors", "bad.onnx");
    let (outcome, json) = verify(dir.path(), &["--against", "good.onnx", "--bisect"]);
    assert!(outcome.code == 0 && json.get("divergence").is_none(), "{outcome}");
    let faulty = ["--against", "bad.onnx", "--bisect", "--runtimes", "ort-cpu,tract", "--dump", "d.npz"];
    let (outcome, json) = verify(dir.path(), &faulty);
    assert_eq!(outcome.code, 1, "{outcome}");
    for divergence in json["divergence"].as_array().unwrap() {
        println!("{divergence}");
        assert_eq!(divergence["weights"][0], weight, "{outcome}");
        assert_eq!(divergence["op"], "Conv", "{outcome}");
        assert_eq!(divergence["scope"], "model.dec.8x8_in0.conv1", "{outcome}");
    }
    assert_eq!(json["divergence"].as_array().unwrap().len(), 2, "{outcome}");
    let mut dump = Npz::open(&dir.path().join("d.npz")).unwrap();
    let (expected, found) = (dump.f32("expected").unwrap(), dump.f32("found").unwrap());
    assert!(expected.shape() == found.shape() && expected != found && dump.contains("input0"));
}

#[test]
fn a_wrong_attribute_is_found_at_its_node() {
    let dir = tempfile::tempdir().unwrap();
    export(dir.path(), &golden().display().to_string(), "good.onnx");
    // The attribute `epsilon` of the fourth normalisation: name, then a float.
    let mut bytes = fs::read(dir.path().join("good.onnx")).unwrap();
    let mark = b"\x0a\x07epsilon\x15";
    let places: Vec<usize> = bytes.windows(mark.len()).enumerate().filter(|(_, w)| w == mark).map(|(i, _)| i).collect();
    let at = places[3] + mark.len();
    assert_eq!(bytes[at..at + 4], 1e-6_f32.to_le_bytes());
    bytes[at..at + 4].copy_from_slice(&1e-2_f32.to_le_bytes());
    fs::write(dir.path().join("bad.onnx"), bytes).unwrap();
    let taps = d2o_onnx::taps::Taps::open(&dir.path().join("good.onnx")).unwrap();
    let fourth = taps.nodes().iter().filter(|n| n.op == "InstanceNormalization").nth(3).unwrap();
    let (outcome, json) = verify(dir.path(), &["--against", "bad.onnx", "--bisect"]);
    println!("{}", json["divergence"]);
    assert_eq!((outcome.code, json["divergence"][0]["node"].as_str()), (1, Some(fourth.name.as_str())), "{outcome}");
}

#[test]
fn a_profile_and_the_precisions_are_told() {
    let dir = tempfile::tempdir().unwrap();
    export(dir.path(), &golden().display().to_string(), "good.onnx");
    let (outcome, json) = verify(dir.path(), &["--profile", "--samples", "8", "--batch", "2"]);
    assert_eq!(outcome.code, 0, "{outcome}");
    assert!(json["profile"][0]["milliseconds"].as_f64().unwrap() > 0.0, "{outcome}");
    let ulps: u64 = json["outputs"][0]["ulps"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(ulps, 8 * 3 * 16 * 16, "{outcome}");
    let (outcome, json) = verify(dir.path(), &["--precisions", "--samples", "8", "--batch", "2"]);
    assert_eq!(outcome.code, 0, "{outcome}");
    assert_eq!(json["precisions"].as_array().unwrap().len(), 4, "{outcome}");
    assert!(json["precisions"][0]["speed"].as_f64().unwrap() > 0.0, "{outcome}");
}

/// A half-precision graph against the same graph in single precision, in pixels and in a metric against a reference.
#[test]
fn precisions_change_pixels_and_a_metric() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    export(dir, &golden().display().to_string(), "good.onnx");
    let checkpoint = golden().display().to_string();
    common::d2o(dir, &["export", &checkpoint, "--kind", "denoiser", "--precision", "fp16", "--out", "half.onnx"]);
    common::write_lite0(dir, 1, "lite0");
    let size = ["--image-size", "16", "--input-size", "32", "--kind", "features", "--no-check"];
    common::d2o(dir, &[&["export", "lite0.safetensors", "--out", "small.onnx"], &size[..]].concat());
    common::d2o(dir, &["generate", "good.onnx", "--seeds", "0-49", "--num-steps", "4", "--out", "real.npz"]);
    common::d2o(dir, &["refs", "make", "real.npz", "--extractor", "small.onnx", "--out", "ref.npz"]);
    let judged = ["--extractor", "small.onnx", "--ref", "ref.npz", "--samples", "16"];
    let distances = |json: &Value| {
        let metric = &json["metrics"][0];
        (metric["reference_distance"].as_f64().unwrap(), metric["distance"].as_f64().unwrap())
    };
    let (outcome, json) = verify(dir, &[&["--runtimes", "ort-cpu,tract"], &judged[..]].concat());
    let (reference, tract) = distances(&json);
    assert!(outcome.code == 0 && reference > 0.0 && (reference - tract).abs() < 1e-3 * reference, "{outcome}");
    let (outcome, json) = verify(dir, &[&["--precisions", "--fp16", "half.onnx"], &judged[..]].concat());
    assert_eq!(outcome.code, 0, "{outcome}");
    println!("{}", outcome.stdout);
    let of = |name: &str| json["precisions"].as_array().unwrap().iter().find(|p| p["precision"] == name).unwrap();
    assert!(of("fp16")["speed"].as_f64().unwrap() > 0.0, "{outcome}");
    assert!(of("tf32").get("skipped").is_some() || of("tf32")["speed"].as_f64().unwrap() > 0.0, "{outcome}");
    let output = &json["outputs"][0];
    let (max_rel, changed) = (output["max_rel"].as_f64().unwrap(), output["pixels_changed"].as_f64().unwrap());
    assert!(max_rel > 1e-5 && max_rel < 2e-2 && changed > 0.0 && changed < 0.5, "{outcome}");
    // An extractor that leaves the resize to d2o, and a reference of other weights.
    let float = ["--kind", "features", "--input", "f32", "--input-size", "32", "--no-check"];
    common::d2o(dir, &[&["export", "lite0.safetensors", "--out", "float.onnx"], &float[..]].concat());
    common::d2o(dir, &["refs", "make", "real.npz", "--extractor", "float.onnx", "--out", "float.npz"]);
    let by_float =
        ["--runtimes", "ort-cpu,tract", "--extractor", "float.onnx", "--ref", "float.npz", "--samples", "16"];
    let (outcome, found) = verify(dir, &by_float);
    assert!(outcome.code == 0 && distances(&found).0 > 0.0, "{outcome}");
    common::write_lite0(dir, 2, "other");
    common::d2o(dir, &[&["export", "other.safetensors", "--out", "other.onnx", "--overwrite"], &size[..]].concat());
    let other = ["good.onnx", "--extractor", "other.onnx", "--ref", "ref.npz", "--samples", "4"];
    let outcome = common::attempt(dir, &[&["verify"], &other[..]].concat());
    assert!(
        outcome.code == 2 && outcome.stderr.contains("the reference does not belong to the extractor"),
        "{outcome}"
    );
    let (fp32, fp16) = distances(&json);
    assert!(fp32 == reference && fp16 != fp32 && (fp16 - fp32).abs() < 0.1 * fp32, "{outcome}");
}

#[cfg(feature = "train")]
#[test]
fn libtorch_runs_the_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = golden().display().to_string();
    export(dir.path(), &checkpoint, "good.onnx");
    let words = ["--runtimes", "libtorch,ort-cpu,tract", "--checkpoint", &checkpoint];
    let (outcome, json) = verify(dir.path(), &words);
    assert_eq!(outcome.code, 0, "{outcome}");
    assert_eq!(
        (json["reference"].as_str(), json["outputs"].as_array().unwrap().len()),
        (Some("libtorch"), 2),
        "{outcome}"
    );
    let (outcome, _) = verify(dir.path(), &["--runtimes", "libtorch,ort-cpu"]);
    assert!(outcome.code == 2 && outcome.stderr.contains("--checkpoint"), "{outcome}");
}
