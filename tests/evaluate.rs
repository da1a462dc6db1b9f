//! `d2o evaluate` on Inception's architecture with random weights: protocols, every kind of reference, bad input.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use d2o_converters::checkpoint::safetensors::{self, Tensor};
use d2o_converters::extractors::inception_v3::{InceptionV3, Parts};
use d2o_converters::onnx::OnnxBackend;
use d2o_converters::weights::{Init, Scope, Weights};
use d2o_refs::batch::ImageDims;
use d2o_refs::features::{FeatureWriter, Meta};
use d2o_refs::npz::NpzWriter;
use fs_err as fs;
use ndarray::s;
use serde_json::Value;

mod common;
use common::{SIDE, attempt, close, d2o, image, value, write_images, write_labelled, write_lite0, write_png};

/// Tensors of Inception-2015-12-05 with random weights and NVIDIA's names.
fn inception() -> Vec<Tensor> {
    let mut b = OnnxBackend::new("names", Weights::initialised(1));
    InceptionV3::build(&mut b, &Scope::root(), Parts { gamma: false, head: true }).unwrap();
    b.weights()
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
        .collect()
}

/// Writes that network, exported for 32-pixel images.
fn write_inception(dir: &Path) {
    safetensors::write(&dir.join("inception.safetensors"), &inception(), &BTreeMap::new()).unwrap();
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
        "--overwrite",
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
        assert_eq!(result["deviations"], serde_json::json!([]), "{result}");
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
    assert!(both.code == 2 && both.stderr.contains("omit `--image-size`"), "{both}");
    let exported = d2o(dir, &["export", "inception.safetensors", "--input", "f32", "--out", "float.onnx"]);
    assert!(exported.stderr.contains("checked `pool3`"), "{exported}");
    write_images(&dir.join("real.npz"), 0..24);
    write_images(&dir.join("fake.npz"), 12..36);
    let float = |protocol: &str| {
        let (extractor, out) = (["--extractor", "float.onnx"], ["--bootstrap", "0", "--overwrite", "--json", "e.json"]);
        let what = ["--protocol", protocol, "--metrics", "fid,sfid,is"];
        let files = ["evaluate", "fake.npz", "--ref", "real.npz"];
        d2o(dir, &[&files[..], &extractor, &out, &what].concat());
        let result: Value = serde_json::from_slice(&fs::read(dir.join("e.json")).unwrap()).unwrap();
        result
    };
    let inside =
        |protocol| evaluate(dir, "fake.npz", "real.npz", &["--protocol", protocol, "--metrics", "fid,sfid,is"]);
    // TensorFlow's resize gives the same result in the graph and before it.
    let (adm, clean) = (float("adm"), float("clean"));
    let fused = inside("adm");
    for name in ["fid", "sfid", "is"] {
        assert!(close(value(&adm, name), value(&fused, name)), "{name}: {adm} {fused}");
    }
    // Other resizes give other numbers, and only a graph that leaves the resize to d2o can use them.
    assert!(!close(value(&adm, "fid"), value(&clean, "fid")), "{adm} {clean}");
    for result in [&adm, &clean, &float("pytorch-fid")] {
        assert_eq!(result["deviations"], serde_json::json!([]), "{result}");
    }
    let inside_clean =
        ["evaluate", "fake.npz", "--ref", "real.npz", "--extractor", "inception.onnx", "--protocol", "clean"];
    fails(
        dir,
        &[&inside_clean[..], &["--metrics", "fid"]].concat(),
        &["preprocessing of samples", "in the graph instead of bicubic"],
    );

    // Winograd convolutions round differently, and the result records the runtime.
    let on = |provider| {
        let options = ["--protocol", "adm", "--metrics", "fid,sfid,is", "--provider", provider];
        let result = evaluate(dir, "fake.npz", "real.npz", &options);
        (result["runtime"]["runtime"].as_str().unwrap().to_owned(), result)
    };
    let ((plain, expected), (filtered, found)) = (on("cpu"), on("winograd"));
    assert_eq!((plain.as_str(), filtered.as_str()), ("ort-cpu", "ort-winograd"));
    for name in ["fid", "sfid", "is"] {
        let (found, expected) = (value(&found, name), value(&expected, name));
        assert!((found / expected - 1.0).abs() < 1e-4, "{name}: {found} {expected}");
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // The choice of `auto`, unless there is a CUDA device.
        let auto = fused["runtime"]["runtime"].as_str().unwrap();
        assert!(["ort-winograd", "ort-cuda"].contains(&auto), "{auto}");
    }
}

#[test]
fn references_of_other_tools_are_taken_for_their_layout() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_inception(dir);
    write_images(&dir.join("real.npz"), 0..24);
    write_images(&dir.join("fake.npz"), 12..36);
    d2o(dir, &["refs", "make", "real.npz", "--extractor", "inception.onnx", "--layout", "adm", "--out", "made.npz"]);
    // The same numbers in the layouts of EDM, pytorch-fid, clean-fid and guided-diffusion, without metadata of d2o.
    let mut made = d2o_refs::npz::Npz::open(&dir.join("made.npz")).unwrap();
    let (mu, sigma) = (made.f64("mu").unwrap(), made.f64("sigma").unwrap());
    let (mu_s, sigma_s) = (made.f64("mu_s").unwrap(), made.f64("sigma_s").unwrap());
    let write = |name: &str, single: bool, spatial: bool| {
        let mut npz = NpzWriter::create(&dir.join(name)).unwrap();
        if spatial {
            npz.start("arr_0", d2o_refs::npy::Dtype::U8, &[24, SIDE, SIDE, 3]).unwrap();
            (0..24).for_each(|i| npz.raw(image(i).as_slice().unwrap()).unwrap());
            npz.f64("mu_s", mu_s.view()).unwrap();
            npz.f64("sigma_s", sigma_s.view()).unwrap();
        }
        if single {
            npz.f32("mu", mu.mapv(|v| v as f32).view()).unwrap();
        } else {
            npz.f64("mu", mu.view()).unwrap();
        }
        npz.f64("sigma", sigma.view()).unwrap();
        npz.finish().unwrap();
    };
    write("edm.npz", false, false);
    write("clean.npz", true, false);
    write("adm.npz", false, true);
    let own = evaluate(dir, "fake.npz", "made.npz", &["--metrics", "fid"]);
    // The default metrics that the reference supports, and no warning except about the number of samples.
    let edm = evaluate(dir, "fake.npz", "edm.npz", &[]);
    assert_eq!(value(&edm, "fid"), value(&own, "fid"));
    assert!(value(&edm, "is") >= 1.0 && edm["metrics"].get("precision").is_none(), "{edm}");
    assert!(edm["warnings"].as_array().unwrap().iter().all(|w| w.as_str().unwrap().contains("24 samples")), "{edm}");
    assert_eq!(edm["deviations"], serde_json::json!([]), "{edm}");
    let adm = evaluate(dir, "fake.npz", "adm.npz", &["--protocol", "adm", "--metrics", "fid,sfid,is,pr"]);
    assert_eq!(value(&adm, "fid"), value(&own, "fid"));
    assert!(value(&adm, "sfid") > 0.0 && value(&adm, "precision") >= 0.0, "{adm}");
    assert_eq!(adm["deviations"], serde_json::json!([]), "{adm}");
    let against = |reference: &'static str, protocol: &'static str| {
        [
            "evaluate",
            "fake.npz",
            "--ref",
            reference,
            "--protocol",
            protocol,
            "--extractor",
            "inception.onnx",
            "--metrics",
            "fid",
        ]
    };
    fails(dir, &against("clean.npz", "edm"), &["preprocessing of `clean.npz`", "layout of clean-fid"]);
    fails(dir, &against("edm.npz", "stylegan3"), &["ddof of `edm.npz`: N - 1 instead of N"]);
    // Statistics of a network other than Inception.
    write_lite0(dir, 1, "lite0");
    fails(
        dir,
        &["evaluate", "fake.npz", "--ref", "edm.npz", "--extractor", "lite0.onnx", "--metrics", "fid"],
        &["`edm.npz` has 2048 features, `tf_efficientnet_lite0` has 1280"],
    );
}

/// A folder of eight PNGs.
fn folder(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    fs::create_dir(&path).unwrap();
    (0..8).for_each(|i| write_png(&path.join(format!("{i}.png")), &image(i)));
    path
}

/// Fails unless the command exits with code 2 and an error that contains each of `texts`.
fn fails(dir: &Path, args: &[&str], texts: &[&str]) {
    let outcome = attempt(dir, args);
    assert_eq!(outcome.code, 2, "{args:?}: {outcome}");
    // Progress may precede the error.
    assert!(outcome.stderr.lines().any(|l| l.starts_with("error: ")), "{args:?}: {outcome}");
    for text in texts {
        assert!(outcome.stderr.contains(text), "{args:?} does not say `{text}`: {outcome}");
    }
}

#[test]
fn bad_images_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_lite0(dir, 1, "lite0");
    write_images(&dir.join("real.npz"), 0..12);
    let broken = folder(dir, "broken").join("5.png");
    let bytes = fs::read(&broken).unwrap();
    fs::write(&broken, &bytes[..bytes.len() / 2]).unwrap();
    write_png(&folder(dir, "mixed").join("6.png"), &image(6).slice(s![..16, ..16, ..]).to_owned());
    fs::create_dir(dir.join("empty")).unwrap();
    let few = dir.join("few");
    fs::create_dir(&few).unwrap();
    (0..3).for_each(|i| write_png(&few.join(format!("{i}.png")), &image(i)));
    let deep = image::ImageBuffer::from_fn(32, 32, |x, y| image::Rgb([x as u16 * 900, y as u16 * 900, 77]));
    deep.save(folder(dir, "deep").join("4.png")).unwrap();
    fs::write(dir.join("no.npz"), b"neither").unwrap();
    for (samples, texts) in [
        ("broken", &["broken", "`5.png` is not a readable image"][..]),
        ("mixed", &["mixed", "`0.png` is 32×32, `6.png` is 16×16"]),
        ("empty", &["empty: contains no images"]),
        ("few", &["cannot evaluate `few`", "k nearest neighbours, samples: expected at least 4 images, found 3"]),
        ("deep", &["4.png", "expected 8 bits per channel"]),
        ("no.npz", &["no.npz", "expected an npz, npy, HDF5 or zip file, or a folder of images, found a text"]),
        ("missing.npz", &["`missing.npz` does not exist"]),
    ] {
        let pr = ["--metrics", "fid,pr"];
        fails(
            dir,
            &[&["evaluate", samples, "--ref", "real.npz", "--extractor", "lite0.onnx"], &pr[..]].concat(),
            texts,
        );
    }
    let reference = ["evaluate", "real.npz", "--ref", "lite0.safetensors", "--extractor", "lite0.onnx"];
    fails(dir, &reference, &["lite0.safetensors"]);
}

#[test]
fn grey_and_transparent_images_are_what_pillow_makes_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_lite0(dir, 1, "lite0");
    write_images(&dir.join("real.npz"), 0..12);
    let sha256 = |samples: &str| {
        let args =
            ["evaluate", samples, "--ref", "real.npz", "--extractor", "lite0.onnx", "--bootstrap", "0", "--json", "-"];
        let result: Value = serde_json::from_str(&d2o(dir, &args).stdout).unwrap();
        result["samples"]["sha256"].clone()
    };
    // convert("RGB") drops alpha, whatever its value, and repeats grey.
    folder(dir, "plain");
    let clear = folder(dir, "clear");
    for i in 0..8 {
        let rgb = image(i);
        let pixel = |x: u32, y: u32| [0, 1, 2].map(|c| rgb[[y as usize, x as usize, c]]);
        let rgba = image::ImageBuffer::from_fn(32, 32, |x, y| {
            let [r, g, b] = pixel(x, y);
            image::Rgba([r, g, b, (8 * x + y) as u8])
        });
        rgba.save(clear.join(format!("{i}.png"))).unwrap();
    }
    assert_eq!(sha256("plain"), sha256("clear"));
    let (grey, repeated) = (folder(dir, "grey"), folder(dir, "repeated"));
    for i in 0..8 {
        let one = image(i).slice(s![.., .., 0]).to_owned();
        let luma = image::ImageBuffer::from_fn(32, 32, |x, y| image::Luma([one[[y as usize, x as usize]]]));
        luma.save(grey.join(format!("{i}.png"))).unwrap();
        let three = ndarray::Array3::from_shape_fn((32, 32, 3), |(y, x, _)| one[[y, x]]);
        write_png(&repeated.join(format!("{i}.png")), &three);
    }
    assert_eq!(sha256("grey"), sha256("repeated"));
}

#[test]
fn features_that_cannot_be_compared_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_lite0(dir, 1, "lite0");
    write_images(&dir.join("real.npz"), 0..12);
    let mut rows = ndarray::Array2::from_shape_fn((12, 1280), |(i, j)| (i * j) as f32);
    rows[[7, 3]] = f32::NAN;
    let meta = Meta {
        d2o_features: 0,
        source_sha256: String::new(),
        total: 12,
        rows: 0..12,
        images: Some(ImageDims { height: 32, width: 32, channels: 3 }),
        batch: 64,
        networks: BTreeMap::new(),
        generator: None,
        sha256: BTreeMap::new(),
    };
    let mut writer = FeatureWriter::create(&dir.join("nan.h5"), meta).unwrap();
    writer.append(&[[0; 32]; 12], &[("features", rows.view())]).unwrap();
    writer.finish(None).unwrap();
    let metrics = ["--metrics", "fid"];
    let nan = ["evaluate", "nan.h5", "--ref", "real.npz", "--extractor", "lite0.onnx"];
    fails(dir, &[&nan[..], &metrics].concat(), &["provenance of `nan.h5`", "--allow-deviation provenance"]);
    let allowed = ["--allow-deviation", "provenance"];
    fails(dir, &[&nan[..], &metrics, &allowed].concat(), &["nan.h5", "row 7 of `features` contains NaN"]);

    let write = |name: &str, mu: f64, dims: usize| {
        let mut npz = NpzWriter::create(&dir.join(name)).unwrap();
        npz.f64("mu", ndarray::Array1::from_elem(dims, mu).view().into_dyn()).unwrap();
        npz.f64("sigma", ndarray::Array2::<f64>::eye(dims).view().into_dyn()).unwrap();
        npz.finish().unwrap();
    };
    write("short.npz", 0.5, 5);
    write("bad.npz", f64::NAN, 1280);
    let against =
        |reference| [&["evaluate", "real.npz", "--extractor", "lite0.onnx", "--ref", reference][..], &metrics].concat();
    fails(dir, &against("short.npz"), &["`short.npz` has 5 features, `tf_efficientnet_lite0` has 1280"]);
    fails(dir, &against("bad.npz"), &["provenance of `bad.npz`"]);
    fails(dir, &[&against("bad.npz")[..], &allowed].concat(), &["bad.npz", "mu: expected finite numbers"]);
}

#[test]
fn torchvisions_inception_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut tensors = inception();
    for tensor in &mut tensors {
        if tensor.dims.first() == Some(&1008) {
            tensor.dims[0] = 1000;
            tensor.values.truncate(tensor.dims.iter().product());
        }
    }
    safetensors::write(&dir.join("torchvision.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    let export = ["export", "torchvision.safetensors", "--input", "f32", "--out", "x.onnx"];
    fails(dir, &export, &["torchvision.safetensors", "1008"]);
    assert!(!dir.join("x.onnx").exists());
}

#[test]
fn the_doctor_tells_references_apart_and_finds_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_lite0(dir, 1, "lite0");
    write_labelled(&dir.join("real.npz"), 0..40, |s| Some((s % 4) as i64));
    let examine = |file: &str, more: &[&str]| -> Value {
        serde_json::from_str(&d2o(dir, &[&["refs", "inspect", file, "--json", "-"], more].concat()).stdout).unwrap()
    };
    let warns = |found: &Value, text: &str| {
        let warnings = found["warnings"].to_string();
        assert!(warnings.contains(text), "no `{text}` in {warnings}");
    };
    for (layout, kind) in [("edm", "EDM statistics"), ("clean", "clean-fid statistics"), ("adm", "guided-diffusion")] {
        d2o(
            dir,
            &[
                "refs",
                "make",
                "real.npz",
                "--extractor",
                "lite0.onnx",
                "--layout",
                layout,
                "--overwrite",
                "--out",
                "r.npz",
            ],
        );
        let found = examine("r.npz", &[]);
        assert!(found["kind"].as_str().unwrap().contains(kind), "{found}");
        assert_eq!((&found["moments"][0]["dims"], &found["moments"][0]["rank"]), (&1280.into(), &39.into()), "{found}");
        assert_eq!(found["count"], 40);
        warns(&found, "`sigma` has rank 39 of 1280: computed from 40 images");
        warns(&found, "40 images for 1280 features");
    }
    let found = examine("r.npz", &[]);
    assert_eq!(found["images"]["size"], serde_json::json!({"height": 32, "width": 32, "channels": 3}));
    write_labelled(&dir.join("other.npz"), 0..40, |s| Some((s % 2) as i64));
    let found = examine("real.npz", &["--samples", "other.npz"]);
    assert_eq!(found["images"]["classes"], serde_json::json!({"0": 10, "1": 10, "2": 10, "3": 10}));
    warns(&found, "0 classes are in `other.npz` only, 2 in the reference only");
    warns(&found, "50 % of `other.npz` would have to change class");

    // Moments as other tools write them, one fault each.
    let write = |name: &str, mu: &ndarray::Array1<f64>, sigma: &ndarray::Array2<f64>, names: [&str; 2]| {
        let mut npz = NpzWriter::create(&dir.join(name)).unwrap();
        npz.f64(names[0], mu.view().into_dyn()).unwrap();
        npz.f64(names[1], sigma.view().into_dyn()).unwrap();
        npz.finish().unwrap();
    };
    let mean = ndarray::Array1::from_elem(64, 0.5);
    let mut sigma = ndarray::Array2::<f64>::eye(64);
    write("plain.npz", &mean, &sigma, ["mu", "sigma"]);
    let found = examine("plain.npz", &[]);
    assert_eq!((&found["kind"], &found["warnings"]), (&"EDM statistics".into(), &serde_json::json!([])), "{found}");
    sigma[[0, 1]] = 0.5;
    write("skew.npz", &mean, &sigma, ["mu", "sigma"]);
    warns(&examine("skew.npz", &[]), "`sigma` is not symmetric");
    sigma[[0, 1]] = 0.0;
    sigma[[3, 3]] = -0.5;
    write("negative.npz", &mean, &sigma, ["mu", "sigma"]);
    warns(&examine("negative.npz", &[]), "`sigma` is not positive semidefinite");
    write("spatial.npz", &mean, &sigma, ["mu_s", "sigma"]);
    warns(&examine("spatial.npz", &[]), "`mu_s` without `sigma_s`");

    let photographs = folder(dir, "photographs");
    fs::remove_file(photographs.join("0.png")).unwrap();
    fs::copy(photographs.join("1.png"), photographs.join("2.png")).unwrap();
    let rgb = image::RgbImage::from_fn(32, 32, |x, y| image::Rgb([(x * 7) as u8, (y * 5) as u8, 9]));
    rgb.save(photographs.join("0.jpg")).unwrap();
    let found = examine("photographs", &[]);
    warns(&found, "1 of 8 files are JPEG");
    warns(&found, "1 of 8 images are duplicates");
    fs::write(dir.join("stats.pkl"), b"\x80\x04}q\x00(X\x08\x00\x00\x00raw_meanq\x01").unwrap();
    fails(dir, &["refs", "inspect", "stats.pkl"], &["StyleGAN's metrics", "numpy.savez"]);
}
