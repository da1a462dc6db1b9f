//! `d2o evaluate` on Inception's architecture with drawn weights: protocols, references of every kind, bad input.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test")]

use std::path::Path;

use d2o_converters::checkpoint::safetensors::{self, Tensor};
use d2o_converters::nn::OnnxBackend;
use d2o_converters::nn::inception_v3::{InceptionV3, Parts};
use d2o_converters::weights::{Init, Scope, Weights};
use fs_err as fs;
use ndarray::s;
use serde_json::Value;

mod common;
use common::{SIDE, attempt, close, d2o, image, value, write_images, write_png};

/// Inception-2015-12-05 with drawn weights under NVIDIA's names, exported for 32-pixel images.
fn write_inception(dir: &Path) {
    let mut b = OnnxBackend::new("names", Weights::initialised(1));
    InceptionV3::build(&mut b, &Scope::root(), Parts { gamma: false, head: true }).unwrap();
    let tensors: Vec<Tensor> = b
        .weights()
        .taken()
        .map(|(name, dims)| {
            let fan_in = dims.iter().skip(1).product::<usize>().max(1) as f64;
            let init = match dims.len() {
                1 if name.ends_with(".var") => Init::Constant(1.0),
                1 => Init::Normal { std: 0.1 },
                _ => Init::Normal { std: (2.0 / fan_in).sqrt() },
            };
            let values = init.values(3, name, dims.iter().product());
            Tensor { name: name.to_owned(), dims: dims.to_vec(), values }
        })
        .collect();
    safetensors::write(&dir.join("inception.safetensors"), &tensors, &std::collections::BTreeMap::new()).unwrap();
    let side = SIDE.to_string();
    let export = ["export", "inception.safetensors", "--image-size", &side, "--fuse-resize", "--out", "inception.onnx"];
    d2o(dir, &export);
}

fn evaluate(dir: &Path, samples: &str, reference: &str, more: &[&str]) -> Value {
    let base = [
        "evaluate",
        samples,
        "--ref",
        reference,
        "--extractor",
        "inception.onnx",
        "--bootstrap",
        "0",
        "--json",
        "e.json",
    ];
    d2o(dir, &[&base, more].concat());
    serde_json::from_slice(&fs::read(dir.join("e.json")).unwrap()).unwrap()
}

#[test]
fn all_metrics_in_one_pass_whatever_the_order_batch_and_kind_of_reference() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_inception(dir);
    write_images(&dir.join("real.npz"), 0..40);
    write_images(&dir.join("fake.npz"), 30..70);
    write_images(&dir.join("turned.npz"), (30..70).rev());
    write_images(&dir.join("same.npz"), std::iter::repeat_n(5, 40));
    d2o(
        dir,
        &[
            "refs",
            "make",
            "real.npz",
            "--extractor",
            "inception.onnx",
            "--layout",
            "adm",
            "--out",
            "ref.npz",
            "--protocol",
            "adm",
        ],
    );
    let metrics = ["--protocol", "adm", "--metrics", "fid,sfid,is,pr,dc,kid"];

    let itself = evaluate(dir, "real.npz", "ref.npz", &metrics);
    assert!(value(&itself, "fid").abs() < 1e-3 && value(&itself, "sfid").abs() < 1e-3, "{itself}");
    assert_eq!((value(&itself, "precision"), value(&itself, "recall")), (1.0, 1.0));

    let fake = evaluate(dir, "fake.npz", "ref.npz", &metrics);
    let names = ["fid", "sfid", "is", "precision", "recall", "density", "coverage", "kid"];
    assert!(value(&fake, "fid") > 1.0 && value(&fake, "sfid") > 0.0, "{fake}");
    let small = evaluate(dir, "fake.npz", "ref.npz", &[&metrics[..], &["--batch", "7"]].concat());
    let images = evaluate(dir, "fake.npz", "real.npz", &metrics);
    for name in names {
        let (a, b, c) = (value(&fake, name), value(&small, name), value(&images, name));
        assert!(close(a, b), "{name}: {a} and in batches of 7 {b}");
        assert!(close(a, c), "{name}: {a} and against the images themselves {c}");
    }
    let turned = evaluate(dir, "turned.npz", "ref.npz", &metrics);
    for name in ["fid", "sfid", "precision", "recall", "density", "coverage"] {
        let (a, b) = (value(&fake, name), value(&turned, name));
        assert!(close(a, b), "{name}: {a} and in another order {b}");
    }
    let collapsed = evaluate(dir, "same.npz", "ref.npz", &metrics);
    assert!(value(&collapsed, "precision") == 1.0 && value(&collapsed, "recall") < 0.2, "{collapsed}");
    assert!((value(&collapsed, "is") - 1.0).abs() < 1e-6, "{collapsed}");
}

#[test]
fn protocols_state_what_they_are_and_what_departs_from_them() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_inception(dir);
    write_images(&dir.join("real.npz"), 0..24);
    write_images(&dir.join("fake.npz"), 12..36);
    for name in ["edm", "adm", "stylegan3"] {
        let result = evaluate(dir, "fake.npz", "real.npz", &["--protocol", name, "--metrics", "fid,is"]);
        assert_eq!(result["protocol"]["name"], name, "{result}");
        assert!(result["deviations"].is_array(), "{result}");
    }
    // Covariances over N and over N - 1 differ, so these protocols must not agree.
    let fid =
        |name: &str| value(&evaluate(dir, "fake.npz", "real.npz", &["--protocol", name, "--metrics", "fid"]), "fid");
    assert!(!close(fid("edm"), fid("stylegan3")));
    let bad = attempt(
        dir,
        &["evaluate", "fake.npz", "--ref", "real.npz", "--extractor", "inception.onnx", "--protocol", "fud"],
    );
    assert_eq!(bad.code, 2, "{bad}");
}

#[test]
fn images_resized_by_the_protocol_itself() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_inception(dir);
    let both = attempt(
        dir,
        &[
            "export",
            "inception.safetensors",
            "--input",
            "f32",
            "--image-size",
            "32",
            "--fuse-resize",
            "--out",
            "x.onnx",
        ],
    );
    assert!(both.code == 1 && both.stderr.contains("leave out `--image-size`"), "{both}");
    let exported = d2o(dir, &["export", "inception.safetensors", "--input", "f32", "--out", "float.onnx"]);
    assert!(exported.stderr.contains("checked `pool3`"), "{exported}");
    write_images(&dir.join("real.npz"), 0..24);
    write_images(&dir.join("fake.npz"), 12..36);
    let float = |protocol: &str| {
        let (extractor, out) = (["--extractor", "float.onnx"], ["--bootstrap", "0", "--json", "e.json"]);
        let what = ["--protocol", protocol, "--metrics", "fid,sfid,is"];
        let files = ["evaluate", "fake.npz", "--ref", "real.npz"];
        d2o(dir, &[&files[..], &extractor, &out, &what].concat());
        let result: Value = serde_json::from_slice(&fs::read(dir.join("e.json")).unwrap()).unwrap();
        result
    };
    let inside =
        |protocol| evaluate(dir, "fake.npz", "real.npz", &["--protocol", protocol, "--metrics", "fid,sfid,is"]);
    // TensorFlow's resize is the same inside the graph and before it.
    let (adm, clean) = (float("adm"), float("clean"));
    let fused = inside("adm");
    for name in ["fid", "sfid", "is"] {
        assert!(close(value(&adm, name), value(&fused, name)), "{name}: {adm} {fused}");
    }
    // Other resizes give other numbers, and only the graph that leaves them to d2o can follow them.
    assert!(!close(value(&adm, "fid"), value(&clean, "fid")), "{adm} {clean}");
    for result in [&adm, &clean, &float("pytorch-fid")] {
        assert_eq!(result["deviations"], serde_json::json!([]), "{result}");
    }
    assert!(inside("clean")["deviations"].to_string().contains("resize in the network"));
}

#[test]
fn bad_images_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_inception(dir);
    write_images(&dir.join("real.npz"), 0..12);
    let folder = |name: &str| {
        let path = dir.join(name);
        fs::create_dir(&path).unwrap();
        (0..8).for_each(|i| write_png(&path.join(format!("{i}.png")), &image(i)));
        path
    };
    let broken = folder("broken").join("5.png");
    let bytes = fs::read(&broken).unwrap();
    fs::write(&broken, &bytes[..bytes.len() / 2]).unwrap();
    write_png(&folder("mixed").join("6.png"), &image(6).slice(s![..16, ..16, ..]).to_owned());
    fs::create_dir(dir.join("empty")).unwrap();
    let few = dir.join("few");
    fs::create_dir(&few).unwrap();
    (0..3).for_each(|i| write_png(&few.join(format!("{i}.png")), &image(i)));

    for (samples, named) in [("broken", "5.png"), ("mixed", "6.png"), ("empty", "empty"), ("few", "few")] {
        let outcome = attempt(dir, &["evaluate", samples, "--ref", "real.npz", "--extractor", "inception.onnx"]);
        assert_eq!(outcome.code, 1, "{samples}: {outcome}");
        // Progress may come before.
        let error = outcome.stderr.lines().any(|l| l.starts_with("error: "));
        assert!(error && outcome.stderr.contains(named), "{samples}: {outcome}");
    }
    let outcome =
        attempt(dir, &["evaluate", "real.npz", "--ref", "inception.safetensors", "--extractor", "inception.onnx"]);
    assert!(outcome.code == 1 && outcome.stderr.contains("inception.safetensors"), "{outcome}");
}
