//! The commands in sequence on small files, as a user runs them.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::cast_possible_truncation, reason = "a test")]

use std::path::Path;

use d2o_converters::checkpoint::safetensors::{self, Tensor};
use d2o_converters::denoiser::Denoiser;
use d2o_converters::denoiser::NetConfig;
use d2o_converters::extractors::efficientnet_lite::EfficientNetLite0;
use d2o_converters::onnx::OnnxBackend;
use d2o_converters::weights::{Init, Scope, Weights};
use d2o_refs::batch::ImageSource as _;
use d2o_refs::npz::Pack;
use d2o_runtime::cuda;
use d2o_runtime::ort::OrtRuntime;
use fs_err as fs;
use serde_json::Value;
use test_support::{Outcome, golden_dir, run};

fn d2o(dir: &Path, args: &[&str]) -> Outcome {
    let outcome = run(Path::new(env!("CARGO_BIN_EXE_d2o")), dir, args);
    assert_eq!(outcome.code, 0, "d2o {}: {outcome}", args.join(" "));
    outcome
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Writes EfficientNet-Lite0 with seeded weights as a checkpoint with timm's names.
fn write_lite0(path: &Path) {
    let mut b = OnnxBackend::new("names", Weights::initialised(1));
    EfficientNetLite0::build(&mut b, &Scope::root()).unwrap();
    write_checkpoint(path, &b);
}

/// Writes the tensors that were taken from `b`, with seeded weights.
fn write_checkpoint(path: &Path, b: &OnnxBackend) {
    let tensors: Vec<Tensor> = b
        .weights()
        .taken()
        .map(|(name, dims)| {
            let count = dims.iter().product();
            let fan_in = dims.iter().skip(1).product::<usize>().max(1);
            let init = if name.ends_with("running_var") || (dims.len() == 1 && name.ends_with("weight")) {
                Init::Constant(1.0)
            } else if dims.len() == 1 {
                Init::Constant(0.0)
            } else {
                Init::Normal { std: (2.0 / fan_in as f64).sqrt() }
            };
            Tensor { name: name.to_owned(), dims: dims.to_vec(), values: init.values(7, name, count) }
        })
        .collect();
    safetensors::write(path, &tensors, &std::collections::BTreeMap::new()).unwrap();
}

fn checkpoint() -> String {
    golden_dir().join("d2o-ncsnpp-uncond.safetensors").display().to_string()
}

#[test]
fn export_repeats_its_bytes_and_leaves_nothing_partial() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint();
    for name in ["a.onnx", "b.onnx"] {
        d2o(dir.path(), &["export", &checkpoint, "--uint8", "--out", name]);
    }
    assert_eq!(fs::read(dir.path().join("a.onnx")).unwrap(), fs::read(dir.path().join("b.onnx")).unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn winograd_is_for_wide_networks_in_f32() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let program = Path::new(env!("CARGO_BIN_EXE_d2o"));
    // The golden networks are narrow, so no convolution is converted.
    d2o(dir, &["export", &checkpoint(), "--no-check", "--out", "plain.onnx"]);
    let narrow = d2o(dir, &["export", &checkpoint(), "--no-check", "--winograd", "--out", "narrow.onnx"]);
    assert!(narrow.stderr.contains("no convolution of this network is wide enough"), "{narrow}");
    assert_eq!(fs::read(dir.join("plain.onnx")).unwrap(), fs::read(dir.join("narrow.onnx")).unwrap());
    let half = ["export", &checkpoint(), "--winograd", "--precision", "fp16", "--out", "half.onnx"];
    let refused = run(program, dir, &half);
    assert!(refused.code == 2 && refused.stderr.contains("--winograd requires `--precision fp32`"), "{refused}");
    assert!(!dir.join("half.onnx").exists());

    let kwargs = serde_json::json!({
        "img_resolution": 8, "img_channels": 3, "label_dim": 0, "model_type": "SongUNet", "model_channels": 128,
        "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [], "channel_mult_emb": 1,
    });
    let net = serde_json::json!({"class": "EDMPrecond", "init_kwargs": kwargs});
    fs::write(dir.join("net.json"), net.to_string()).unwrap();
    let mut b = OnnxBackend::new("names", Weights::initialised(1));
    Denoiser::build(&mut b, &NetConfig::new("EDMPrecond", &kwargs).unwrap()).unwrap();
    write_checkpoint(&dir.join("wide.safetensors"), &b);
    // The check after this export compares the runtimes.
    let wide = d2o(dir, &["export", "wide.safetensors", "--config", "net.json", "--winograd", "--out", "wide.onnx"]);
    assert!(wide.stderr.contains("convolutions written as Winograd F(4, 3)"), "{wide}");
    assert!(wide.stderr.contains("checked `images` on ort-cpu and tract"), "{wide}");
    d2o(dir, &["export", "wide.safetensors", "--config", "net.json", "--no-check", "--out", "direct.onnx"]);
    let images = |graph: &str, out: &str| {
        d2o(dir, &["generate", graph, "--seeds", "0-3", "--out", out]);
        Pack::open(&dir.join(out)).unwrap().read(0..4).unwrap()
    };
    let (direct, filtered) = (images("direct.onnx", "direct.npz"), images("wide.onnx", "wide.npz"));
    let most = direct.iter().zip(&filtered).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    assert!(most <= 1, "bytes differ by {most}");
}

#[test]
fn images_do_not_depend_on_batch_or_container() {
    let dir = tempfile::tempdir().unwrap();
    d2o(dir.path(), &["export", &checkpoint(), "--out", "x.onnx", "--no-check"]);
    d2o(dir.path(), &["generate", "x.onnx", "--seeds", "0-9", "--out", "a.npz", "--batch", "4"]);
    d2o(dir.path(), &["generate", "x.onnx", "--seeds", "0-9", "--out", "b.h5", "--batch", "10"]);
    d2o(dir.path(), &["generate", "x.onnx", "--seeds", "0-9", "--out", "c.zip", "--batch", "1"]);
    d2o(dir.path(), &["generate", "x.onnx", "--seeds", "0-9", "--out", "d", "--batch", "3"]);
    let pixels: Vec<String> = ["a.npz", "b.h5", "c.zip", "d"]
        .iter()
        .map(|f| {
            d2o(dir.path(), &["inspect", f, "--overwrite", "--json", "i.json"]);
            json(&dir.path().join("i.json"))[0]["pixels_sha256"].as_str().unwrap().to_owned()
        })
        .collect();
    assert!(pixels.windows(2).all(|p| p[0] == p[1]), "{pixels:?}");
}

#[test]
fn inspect_takes_what_evaluate_takes() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("photos")).unwrap();
    for (name, width, height) in [("a.png", 40, 30), ("b.png", 16, 64), (".hidden.png", 8, 8)] {
        let pixels = ndarray::Array3::from_elem((height, width, 3), 9);
        fs::write(at("photos").join(name), d2o_refs::png(&at(name), "", pixels.view()).unwrap()).unwrap();
    }
    let shown = |what: &str| -> Value {
        serde_json::from_str(&d2o(dir.path(), &["inspect", what, "--json", "-"]).stdout).unwrap()
    };
    let photos = &shown("photos")[0];
    assert_eq!((&photos["count"], &photos["sizes"]), (&2.into(), &"width 16 to 40, height 30 to 64".into()));
    assert!(photos["left_out"].to_string().contains("1 hidden") && photos["next"].to_string().contains("d2o dataset"));
    let mut npz = d2o_refs::npz::NpzWriter::create(&at("two.npz")).unwrap();
    for (name, count) in [("train_images", 3), ("val_images", 2)] {
        npz.start(name, d2o_refs::npy::Dtype::U8, &[count, 8, 8, 3]).unwrap();
        npz.raw(&vec![1; count * 192]).unwrap();
    }
    npz.finish().unwrap();
    assert_eq!(shown("two.npz::val_images")[0]["count"], 2);
    let both = &shown("two.npz")[0];
    assert!(both["not_images"].to_string().contains("train_images") && both["arrays"].as_array().unwrap().len() == 2);
    d2o(dir.path(), &["dataset", "two.npz::train_images", "--out", "t.zip"]);
    assert_eq!(shown("t.zip")[0]["count"], 3);
    // An existing file is replaced only on request.
    for command in [["inspect", "t.zip", "--json", "x.json"], ["report", "x.json", "--out", "x.html"]] {
        fs::write(at(command[3]), "mine").unwrap();
        let outcome = run(Path::new(env!("CARGO_BIN_EXE_d2o")), dir.path(), &command);
        assert!(outcome.code == 2 && outcome.stderr.contains("--overwrite"), "{outcome}");
        assert_eq!(fs::read(at(command[3])).unwrap(), b"mine");
    }
}

#[test]
fn cuda_is_used_or_refused_with_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    d2o(dir.path(), &["export", &checkpoint(), "--out", "x.onnx", "--no-check"]);
    let command = ["verify", "x.onnx", "--samples", "4", "--runtimes", "ort-cpu,ort-cuda", "--tolerance", "1e-4"];
    let outcome = run(Path::new(env!("CARGO_BIN_EXE_d2o")), dir.path(), &command);
    let gpu_build = test_support::onnxruntime().is_some_and(|l| OrtRuntime::load(&l).unwrap().has_cuda());
    let usable = gpu_build && !cuda::devices().unwrap().is_empty();
    if usable {
        assert!(outcome.code == 0 && outcome.stdout.contains("ort-cuda"), "{outcome}");
    } else {
        println!("skipped: no CUDA device");
        assert!(outcome.code == 2 && outcome.stderr.contains("CUDA"), "{outcome}");
    }
    let auto = ["generate", "x.onnx", "--seeds", "0", "--out", "s.npz", "--provider", "auto"];
    let outcome = d2o(dir.path(), &auto);
    assert!(outcome.stderr.contains(if usable { "(ort-cuda)" } else { "(ort-cpu)" }), "{outcome}");
    // A CUDA build on a machine without CUDA: the warning about the fall-back appears with --quiet too.
    let outcome = d2o(dir.path(), &[&auto[..], &["--quiet", "--overwrite"]].concat());
    assert_eq!(outcome.stderr.contains("running on the CPU"), gpu_build && !usable, "{outcome}");
}

#[test]
fn evaluate_verify_and_report() {
    let dir = tempfile::tempdir().unwrap();
    write_lite0(&dir.path().join("lite0.safetensors"));
    d2o(dir.path(), &["export", &checkpoint(), "--out", "x.onnx", "--no-check"]);
    let lite0 = ["export", "lite0.safetensors", "--image-size", "16", "--input-size", "64", "--out", "lite0.onnx"];
    d2o(dir.path(), &lite0);
    d2o(dir.path(), &["generate", "x.onnx", "--seeds", "0-39", "--out", "real.npz"]);
    d2o(dir.path(), &["generate", "x.onnx", "--seeds", "40-79", "--out", "fake.npz"]);
    d2o(dir.path(), &["refs", "make", "real.npz", "--extractor", "lite0.onnx", "--out", "ref.npz"]);
    d2o(dir.path(), &["refs", "inspect", "ref.npz"]);
    let evaluate = |samples: &str, out: &str, batch: &str| {
        let command =
            ["evaluate", samples, "--ref", "ref.npz", "--extractor", "lite0.onnx", "--json", out, "--batch", batch];
        d2o(dir.path(), &command);
        json(&dir.path().join(out))
    };
    let value = |result: &Value, metric: &str| result["metrics"][metric]["value"].as_f64().unwrap();

    // The distance of a set from itself is zero, and the set lies in its own manifold.
    let same = evaluate("real.npz", "same.json", "40");
    assert!(value(&same, "fd").abs() < 1e-6, "{same}");
    assert_eq!((value(&same, "precision"), value(&same, "recall")), (1.0, 1.0));

    // The numbers do not depend on the batch.
    let (other, small) = (evaluate("fake.npz", "other.json", "40"), evaluate("fake.npz", "small.json", "7"));
    assert!(value(&other, "fd") > 1e-3);
    for metric in ["fd", "is", "precision", "recall"] {
        let (a, b) = (value(&other, metric), value(&small, metric));
        assert!((a - b).abs() <= 1e-4 * a.abs(), "{metric}: {a} and {b}");
    }

    d2o(dir.path(), &["verify", "x.onnx", "--samples", "5", "--batch", "2", "--json", "verify.json"]);
    assert_eq!(json(&dir.path().join("verify.json"))["agree"], true);
    let report = ["report", "same.json", "other.json", "verify.json", "--images", "real=real.npz", "--out", "r.html"];
    d2o(dir.path(), &report);
    let page = fs::read_to_string(dir.path().join("r.html")).unwrap();
    for part in
        ["(tf_efficientnet_lite0)", "data:image/png;base64,", "runtimes agree", "Table 1", "units in the last place"]
    {
        assert!(page.contains(part), "the report lacks {part}");
    }

    // A condition that is not met exits with code 1. A condition on a metric that was not computed is an error.
    let expect = |condition: &str| {
        let command = ["evaluate", "fake.npz", "--ref", "ref.npz", "--extractor", "lite0.onnx", "--expect", condition];
        run(Path::new(env!("CARGO_BIN_EXE_d2o")), dir.path(), &command)
    };
    assert_eq!(expect("fd<=1e9").code, 0);
    let missed = expect("fd<=0");
    assert!(missed.code == 1 && missed.stderr.contains("not met: fd<=0"), "{missed}");
    assert!(expect("kid<=1").stderr.contains("`kid` is not computed"));
}
