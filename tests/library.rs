//! Programs of `examples/` against the command.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use fs_err as fs;
use serde_json::Value;
use test_support::onnxruntime;

mod common;
#[path = "../examples/distance.rs"]
#[allow(dead_code, reason = "its main")]
mod distance;

#[test]
fn the_distance_of_the_example_is_that_of_the_command() {
    let Some(library) = onnxruntime() else { return };
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    common::write_lite0(dir.path(), 1, "lite0");
    common::write_images(&at("a.npz"), 0..40);
    common::write_images(&at("b.npz"), 50..100);
    let printed = distance::distance(&at("a.npz"), &at("b.npz"), &at("lite0.onnx"), &library).unwrap();
    let evaluate = ["evaluate", "a.npz", "--ref", "b.npz", "--extractor", "lite0.onnx", "--provider", "cpu"];
    common::d2o(dir.path(), &[&evaluate[..], &["--metrics", "fid", "--json", "r.json"]].concat());
    let result: Value = serde_json::from_slice(&fs::read(at("r.json")).unwrap()).unwrap();
    let measured = common::value(&result, "fd");
    assert!((printed - measured).abs() <= 1e-9 * measured, "{printed} {measured}");
}
