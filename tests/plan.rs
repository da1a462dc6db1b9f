//! What `d2o evaluate` checks before a network runs: provenance of both sides, metrics that the reference supports,
//! outputs, conditions.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test")]

use std::path::Path;

use d2o_refs::npz::{Npz, NpzWriter};
use fs_err as fs;
use serde_json::Value;

mod common;
use common::{attempt, close, d2o, image, page, value, write_images, write_labelled, write_lite0, write_png};

/// Writes a Lite0 of `seed` with f32 input of 40×40 pixels, so that the protocol resizes the images.
fn write_float(dir: &Path, seed: u64, name: &str) {
    write_lite0(dir, seed, name);
    let (weights, out) = (format!("{name}.safetensors"), format!("{name}-float.onnx"));
    let how = ["--kind", "features", "--input", "f32", "--input-size", "40", "--no-check"];
    d2o(dir, &[&["export", &weights, "--out", &out][..], &how].concat());
}

fn evaluate(dir: &Path, args: &[&str]) -> Value {
    d2o(dir, &[&["evaluate"], args, &["--bootstrap", "0", "--overwrite", "--json", "e.json"]].concat());
    serde_json::from_slice(&fs::read(dir.join("e.json")).unwrap()).unwrap()
}

/// Fails unless the command exits with code 2 and an error that contains each of `texts`.
fn refused(dir: &Path, args: &[&str], texts: &[&str]) {
    let outcome = attempt(dir, args);
    assert_eq!(outcome.code, 2, "{args:?}: {outcome}");
    for text in texts {
        assert!(outcome.stderr.contains(text), "{args:?} does not say `{text}`: {outcome}");
    }
}

fn kinds(result: &Value) -> Vec<&str> {
    result["deviations"].as_array().unwrap().iter().map(|d| d["kind"].as_str().unwrap()).collect()
}

#[test]
fn both_sides_must_have_the_protocols_preprocessing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_float(dir, 1, "lite0");
    write_images(&dir.join("real.npz"), 0..40);
    write_images(&dir.join("fake.npz"), 20..60);
    let network = ["--extractor", "lite0-float.onnx"];
    let fid = [&network[..], &["--metrics", "fid"]].concat();
    for (protocol, out) in [("edm", "edm.npz"), ("clean", "clean.npz")] {
        d2o(dir, &[&["refs", "make", "real.npz", "--out", out, "--protocol", protocol], &network[..]].concat());
    }
    let of =
        |reference: &str, more: &[&str]| evaluate(dir, &[&["fake.npz", "--ref", reference], &fid[..], more].concat());
    let (edm, clean) = (of("real.npz", &[]), of("real.npz", &["--protocol", "clean"]));
    assert!(!close(value(&edm, "fd"), value(&clean, "fd")), "the resizes agree, so this shows nothing");
    assert_eq!(value(&of("edm.npz", &[]), "fd"), value(&edm, "fd"));
    assert_eq!(value(&of("clean.npz", &["--protocol", "clean"]), "fd"), value(&clean, "fd"));

    // A reference of another protocol.
    let mixed = [&["evaluate", "fake.npz", "--ref", "edm.npz", "--protocol", "clean"], &fid[..]].concat();
    refused(dir, &mixed, &["preprocessing of `edm.npz`", "--allow-deviation preprocessing"]);
    let allowed = of("edm.npz", &["--protocol", "clean", "--allow-deviation", "preprocessing"]);
    assert_eq!(kinds(&allowed), ["extractor", "preprocessing"], "{allowed}");

    // Samples of another protocol: shards, and feature files on either side.
    for part in ["0/2", "1/2"] {
        let out = format!("part-{}.h5", &part[..1]);
        let shard = ["evaluate", "fake.npz", "--shard", part, "--save-features", &out, "--protocol", "clean"];
        d2o(dir, &[&shard[..], &network].concat());
    }
    let merge = ["evaluate", "--merge", "part-0.h5", "part-1.h5", "--metrics", "fid"];
    refused(dir, &[&merge[..], &["--ref", "edm.npz"]].concat(), &["preprocessing of samples"]);
    let merged = [&merge[1..], &["--ref", "clean.npz", "--protocol", "clean"]].concat();
    assert_eq!(value(&evaluate(dir, &merged), "fd"), value(&clean, "fd"));
    evaluate(
        dir,
        &[&["fake.npz", "--ref", "clean.npz", "--protocol", "clean", "--save-features", "fake.h5"], &fid[..]].concat(),
    );
    let reference = ["evaluate", "real.npz", "--ref", "fake.h5"];
    refused(dir, &[&reference[..], &fid].concat(), &["preprocessing of `fake.h5`"]);
    refused(dir, &["refs", "make", "fake.h5", "--out", "x.npz"], &["--protocol"]);

    // If the reference records its number of images, another divisor of the covariance is converted. It changes the
    // distance by 4.5e-4 at 1100 images.
    let stylegan = of("edm.npz", &["--protocol", "stylegan3"]);
    let direct = of("real.npz", &["--protocol", "stylegan3"]);
    let (a, b) = (value(&stylegan, "fd"), value(&direct, "fd"));
    assert!((a / b - 1.0).abs() < 1e-9 && !close(a, value(&edm, "fd")), "{a} {b}");

    // Another network of the same architecture.
    write_float(dir, 2, "other");
    let other = ["evaluate", "fake.npz", "--ref", "edm.npz", "--extractor", "other-float.onnx", "--metrics", "fid"];
    refused(dir, &other, &["extractor of `edm.npz`"]);
}

#[test]
fn images_of_any_sizes_are_resized_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_float(dir, 1, "lite0");
    // Image 3 i + j has size j. It is evaluated among images of that size only, and among all.
    let sizes = [[20, 24], [32, 32], [47, 33]];
    fs::create_dir(dir.join("mixed")).unwrap();
    for (j, [h, w]) in sizes.into_iter().enumerate() {
        fs::create_dir(dir.join(format!("size{j}"))).unwrap();
        for i in 0..4 {
            let picture = image(10 * i + j as u64);
            let cut = ndarray::Array3::from_shape_fn((h, w, 3), |(y, x, c)| picture[[y * 31 / h, x * 31 / w, c]]);
            for folder in ["mixed".to_owned(), format!("size{j}")] {
                write_png(&dir.join(folder).join(format!("{}{j}.png", i)), &cut);
            }
        }
    }
    let features = |set: &str, protocol: &str| {
        let out = format!("{set}-{protocol}.h5");
        let args = ["evaluate", set, "--shard", "0/1", "--save-features", &out, "--protocol", protocol];
        d2o(dir, &[&args[..], &["--extractor", "lite0-float.onnx", "--provider", "cpu"]].concat());
        let file = d2o_refs::features::FeatureFile::open(&dir.join(out)).unwrap();
        file.read("features", 0..file.len()).unwrap()
    };
    for protocol in ["edm", "clean", "pytorch-fid"] {
        let mixed = features("mixed", protocol);
        for j in 0..3 {
            let alone = features(&format!("size{j}"), protocol);
            for i in 0..4 {
                let (a, b) = (mixed.row(3 * i + j), alone.row(i));
                let peak = b.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
                let apart = a.iter().zip(b).fold(0.0_f32, |m, (x, y)| m.max((x - y).abs()));
                assert!(apart <= 1e-5 * peak, "{protocol}: image {i} of size {j} is {apart} off");
            }
        }
    }
    let whole = evaluate(dir, &["mixed", "--ref", "mixed", "--extractor", "lite0-float.onnx", "--metrics", "fid,is"]);
    assert!(value(&whole, "fd").abs() < 1e-3, "{whole}");
    // A graph with u8 input of one size cannot take them.
    refused(
        dir,
        &["evaluate", "mixed", "--ref", "mixed", "--extractor", "lite0.onnx"],
        &["one size", "`00.png` is 24×20", "--input f32"],
    );
}

#[test]
fn several_protocols_share_passes_and_equal_single_runs() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_float(dir, 1, "lite0");
    write_images(&dir.join("real.npz"), 0..40);
    write_images(&dir.join("fake.npz"), 20..60);
    let how = ["fake.npz", "--ref", "real.npz", "--extractor", "lite0-float.onnx", "--metrics", "fid,is"];
    let names = ["edm", "stylegan3", "clean", "torch-fidelity", "pytorch-fid"];
    let all = evaluate(dir, &[&how[..], &["--protocol", &names.join(",")]].concat());
    let all = all.as_array().unwrap();
    assert_eq!(all.len(), names.len());
    for (name, found) in names.iter().zip(all) {
        let one = evaluate(dir, &[&how[..], &["--protocol", name]].concat());
        assert_eq!(found["protocol"], one["protocol"]);
        assert_eq!(found["metrics"], one["metrics"], "{name}");
        assert_eq!(found["extractors"], one["extractors"], "{name}");
    }
    let table = d2o(dir, &[&["evaluate"], &how[..], &["--protocol", "all", "--bootstrap", "0"]].concat()).stdout;
    assert!(table.contains("edm") && table.contains("pytorch-fid"), "{table}");
    d2o(
        dir,
        &[&["evaluate"], &how[..], &["--protocol", "edm,clean", "--bootstrap", "0", "--json", "two.json"]].concat(),
    );
    d2o(dir, &["report", "two.json", "--out", "two.html"]);
    let page = page::parse(&fs::read_to_string(dir.join("two.html")).unwrap());
    page.ensure_sound();
    assert!(page.text().contains("Not comparable with table 1 protocol: clean instead of edm"), "{}", page.text());
    assert_eq!(page.tables("main").len(), 2);
}

#[test]
fn what_the_reference_cannot_serve_is_known_before_a_network_runs() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_lite0(dir, 1, "lite0");
    write_images(&dir.join("real.npz"), 0..40);
    write_images(&dir.join("fake.npz"), 20..60);
    let network = ["--extractor", "lite0.onnx"];
    let make = ["refs", "make", "real.npz", "--no-features", "--out", "ref.npz"];
    d2o(dir, &[&make[..], &network].concat());
    // Precision and recall are defaults here, so they are skipped.
    let found = evaluate(dir, &[&["fake.npz", "--ref", "ref.npz"], &network[..]].concat());
    let metrics: Vec<&String> = found["metrics"].as_object().unwrap().keys().collect();
    assert_eq!(metrics, ["fd", "is"], "{found}");
    assert!(
        found["notes"][0].as_str().unwrap().starts_with("skipped precision and recall: `ref.npz` contains neither"),
        "{found}"
    );
    assert_eq!(found["warnings"].as_array().unwrap().len(), 1, "only few samples: {found}");

    // Requested by name, they are an error. Like every error that is known in advance, it comes before the first image
    // is read: the last image is broken.
    let folder = dir.join("broken");
    fs::create_dir(&folder).unwrap();
    (0..6).for_each(|i| write_png(&folder.join(format!("{i}.png")), &image(i)));
    let bytes = fs::read(folder.join("5.png")).unwrap();
    fs::write(folder.join("5.png"), &bytes[..bytes.len() - 40]).unwrap();
    let against = |more: &[&'static str]| -> Vec<&str> { [&["evaluate", "broken"], &network[..], more].concat() };
    let known = |more: &[&'static str], texts: &[&str]| {
        refused(dir, &against(more), texts);
        let outcome = attempt(dir, &against(more));
        assert!(!outcome.stderr.contains("5.png"), "{outcome}");
    };
    known(&["--ref", "ref.npz", "--metrics", "fid,pr"], &["precision and recall cannot be computed", "d2o refs make"]);
    known(&["--ref", "ref.npz", "--metrics", "sfid"], &["extractor with the output `spatial`"]);
    known(&["--ref", "ref.npz", "--metrics", "clip-fid"], &["no CLIP image encoder given", "--clip"]);
    known(&["--metrics", "fid"], &["no reference given"]);
    known(
        &["--ref", "real.npz", "--metrics", "kid", "--protocol", "torch-fidelity"],
        &["expected at least 1000 images, found 6"],
    );
    known(&["--ref", "real.npz", "--metrics", "pr", "--neighbours", "6"], &["expected at least 7 images, found 6"]);
    known(&["--ref", "real.npz", "--metrics", "fid", "--per-class"], &["`broken` has no class labels"]);
    known(&["--ref", "real.npz", "--metrics", "fid", "--expect", "clip-fid<=1"], &["`clip_fid` is not computed", "fd"]);
    known(
        &["--ref", "real.npz", "--metrics", "fid", "--expect", "fid<=1"],
        &["`fid` is not computed", "computed metrics: fd"],
    );
    known(&["--ref", "real.npz", "--metrics", "fid", "--json", "broken"], &["`broken` is a folder"]);
    known(&["--ref", "real.npz", "--metrics", "fid", "--report", "ref.npz"], &["`ref.npz` exists", "--overwrite"]);
    known(&["--ref", "real.npz", "--metrics", "fid", "--save-features", "lite0.onnx/x"], &["cannot write"]);
    known(&["--ref", "real.npz", "--metrics", "pr", "--protocol", "torch-fidelity"], &["VGG16", "--pr-extractor"]);
    // If everything else is valid, the broken image is the error.
    refused(dir, &against(&["--ref", "real.npz", "--metrics", "fid"]), &["5.png"]);

    // The Inception Score needs no reference.
    let alone = evaluate(dir, &[&["fake.npz", "--metrics", "is"], &network[..]].concat());
    assert!(alone.get("reference").is_none() && value(&alone, "is") > 1.0, "{alone}");
    // Both spellings of a condition.
    for condition in ["is>=1", "IS>=1"] {
        d2o(dir, &[&["evaluate", "fake.npz", "--metrics", "is", "--expect", condition], &network[..]].concat());
    }
    let gate =
        attempt(dir, &[&["evaluate", "fake.npz", "--metrics", "is", "--expect", "is<=1"], &network[..]].concat());
    assert!(gate.code == 1 && gate.stderr.contains("not met: is<=1 (1."), "{gate}");
}

#[test]
fn a_dry_run_prints_the_plan_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_float(dir, 1, "lite0");
    write_images(&dir.join("real.npz"), 0..40);
    write_images(&dir.join("fake.npz"), 20..60);
    let how = [
        "evaluate",
        "fake.npz",
        "--ref",
        "real.npz",
        "--extractor",
        "lite0-float.onnx",
        "--json",
        "e.json",
        "--dry-run",
    ];
    let outcome = d2o(dir, &how);
    for text in [
        "samples: 40 images (32×32) in `fake.npz`",
        "reference: 40 images",
        "protocol edm: fd, is, precision, recall",
        "features: tf_efficientnet_lite0 (1280 features, unverified)",
        "bilinear, asymmetric",
        "deviation: extractor of samples",
        "memory: about",
        "images/s",
    ] {
        assert!(outcome.stdout.contains(text), "no `{text}`: {outcome}");
    }
    assert!(!dir.join("e.json").exists());
    assert!(!outcome.stderr.contains("images/s"), "the timing is no progress: {outcome}");
    let outcome = d2o(dir, &[&how[..6], &["--dry-run", "--json", "-"]].concat());
    let plan: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!((&plan["samples"]["count"], &plan["reference"]["count"]), (&40.into(), &40.into()));
    assert_eq!(plan["protocols"][0]["metrics"], serde_json::json!(["fd", "is", "precision", "recall"]));
    assert_eq!(plan["protocols"][0]["deviations"][0]["kind"], "extractor");
}

#[test]
fn finished_features_are_used_and_others_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_lite0(dir, 1, "lite0");
    write_images(&dir.join("real.npz"), 0..40);
    write_images(&dir.join("fake.npz"), 20..60);
    let base = ["evaluate", "fake.npz", "--ref", "real.npz", "--extractor", "lite0.onnx", "--bootstrap", "0"];
    let first = d2o(dir, &[&base[..], &["--save-features", "f.h5", "--json", "a.json"]].concat());
    assert!(!first.stderr.contains("using the features"), "{first}");
    let bytes = fs::read(dir.join("f.h5")).unwrap();
    // Like a run after one that was killed before it wrote its result.
    let second = d2o(dir, &[&base[..], &["--save-features", "f.h5", "--json", "b.json"]].concat());
    assert!(second.stderr.contains("using the features in `f.h5`"), "{second}");
    let read = |name: &str| -> Value { serde_json::from_slice(&fs::read(dir.join(name)).unwrap()).unwrap() };
    assert_eq!(read("a.json")["metrics"], read("b.json")["metrics"]);
    assert_eq!(read("a.json")["samples"]["sha256"], read("b.json")["samples"]["sha256"]);
    assert_eq!(fs::read(dir.join("f.h5")).unwrap(), bytes);
    let other = ["--batch", "8", "--save-features", "f.h5", "--json", "c.json"];
    refused(
        dir,
        &[&base[..], &other].concat(),
        &["`f.h5` contains features of other images, networks or settings", "--overwrite"],
    );
    let shard = ["evaluate", "fake.npz", "--extractor", "lite0.onnx", "--shard", "0/2", "--save-features", "s.h5"];
    d2o(dir, &shard);
    let again = d2o(dir, &shard);
    assert!(again.stderr.contains("`s.h5` already contains these features"), "{again}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_result_that_cannot_be_written_is_printed_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_lite0(dir, 1, "lite0");
    write_images(&dir.join("fake.npz"), 20..60);
    let args = ["evaluate", "fake.npz", "--extractor", "lite0.onnx", "--metrics", "is", "--json", "/dev/full"];
    let outcome = attempt(dir, &args);
    assert!(outcome.code == 2 && outcome.stderr.contains("No space left on device"), "{outcome}");
    assert!(outcome.stdout.contains("\nIS "), "{outcome}");
}

#[test]
fn every_protocol_that_the_reference_serves_is_evaluated() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_float(dir, 1, "lite0");
    write_images(&dir.join("real.npz"), 0..40);
    write_images(&dir.join("fake.npz"), 20..60);
    d2o(dir, &["refs", "make", "real.npz", "--extractor", "lite0-float.onnx", "--out", "ref.npz"]);
    let base = ["fake.npz", "--ref", "ref.npz", "--extractor", "lite0-float.onnx", "--metrics", "fid"];
    let outcome = d2o(
        dir,
        &[&["evaluate"], &base[..], &["--protocol", "all", "--json", "all.json", "--bootstrap", "0"]].concat(),
    );
    let all: Value = serde_json::from_slice(&fs::read(dir.join("all.json")).unwrap()).unwrap();
    let names: Vec<&str> = all.as_array().unwrap().iter().map(|e| e["protocol"]["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"edm") && !names.contains(&"clean"), "{names:?}");
    assert!(outcome.stderr.contains("skipped protocol clean: "), "{outcome}");
    assert_eq!(outcome.stderr.matches("samples for 1280 features").count(), 1, "{outcome}");
    refused(
        dir,
        &[&["evaluate"], &base[..], &["--protocol", "edm,clean"]].concat(),
        &["protocol clean", "preprocessing"],
    );
}

#[test]
fn what_a_protocols_tool_would_not_read_is_noted() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_lite0(dir, 1, "lite0");
    fs::create_dir_all(dir.join("fake/deep")).unwrap();
    for i in 0..12 {
        let folder = if i % 3 == 0 { "fake/deep" } else { "fake" };
        write_png(&dir.join(format!("{folder}/{i}.png")), &image(i));
    }
    write_images(&dir.join("real.npz"), 0..12);
    let how = |protocol| {
        [
            "fake",
            "--ref",
            "real.npz",
            "--extractor",
            "lite0.onnx",
            "--metrics",
            "fid",
            "--protocol",
            protocol,
            "--allow-deviation",
            "preprocessing",
        ]
    };
    let note = "4 of the 12 images in `fake` are in subfolders, which torch-fidelity does not read by default";
    assert!(evaluate(dir, &how("torch-fidelity"))["notes"].as_array().unwrap().iter().any(|n| n == note));
    assert!(!evaluate(dir, &how("edm"))["notes"].to_string().contains("subfolders"));
    // Samples of another size than the reference.
    let large = ndarray::Array4::<u8>::from_elem((12, 48, 48, 3), 7);
    let mut npz = NpzWriter::create(&dir.join("large.npz")).unwrap();
    npz.start("arr_0", d2o_refs::npy::Dtype::U8, &[12, 48, 48, 3]).unwrap();
    npz.raw(large.as_slice().unwrap()).unwrap();
    npz.finish().unwrap();
    write_float(dir, 2, "other");
    let found =
        evaluate(dir, &["large.npz", "--ref", "real.npz", "--extractor", "other-float.onnx", "--metrics", "fid"]);
    assert!(found["notes"].to_string().contains("the sizes differ: samples 48×48, reference 32×32"), "{found}");
}

#[test]
fn a_metric_that_fails_leaves_the_others_standing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_lite0(dir, 1, "lite0");
    write_images(&dir.join("real.npz"), 0..40);
    write_images(&dir.join("fake.npz"), 20..60);
    d2o(dir, &["refs", "make", "real.npz", "--extractor", "lite0.onnx", "--out", "ref.npz"]);
    // Statistics whose distance overflows.
    let mut made = Npz::open(&dir.join("ref.npz")).unwrap();
    let mut broken = NpzWriter::create(&dir.join("huge.npz")).unwrap();
    broken.f64("mu", made.f64("mu").unwrap().mapv(|_| 1e200).view()).unwrap();
    broken.f64("sigma", made.f64("sigma").unwrap().view()).unwrap();
    broken.f32("features", made.f32("features").unwrap().view()).unwrap();
    broken.bytes("d2o_meta", &made.bytes("d2o_meta").unwrap()).unwrap();
    broken.finish().unwrap();
    let args = [
        "evaluate",
        "fake.npz",
        "--ref",
        "huge.npz",
        "--extractor",
        "lite0.onnx",
        "--bootstrap",
        "0",
        "--json",
        "e.json",
    ];
    let outcome = attempt(dir, &args);
    assert!(outcome.code == 2 && outcome.stderr.contains("fd failed"), "{outcome}");
    let found: Value = serde_json::from_slice(&fs::read(dir.join("e.json")).unwrap()).unwrap();
    assert!(found["failed"].get("fd").is_some() && found["metrics"].get("fd").is_none(), "{found}");
    assert!(value(&found, "is") > 1.0 && value(&found, "recall") >= 0.0, "{found}");
}

#[test]
fn splits_and_subsets_other_than_the_protocols_are_deviations() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_lite0(dir, 1, "lite0");
    write_images(&dir.join("real.npz"), 0..40);
    write_images(&dir.join("fake.npz"), 20..60);
    let with = |args: &[&str]| {
        let base = ["fake.npz", "--ref", "real.npz", "--extractor", "lite0.onnx", "--metrics", "is,kid"];
        let found =
            evaluate(dir, &[&base[..], &["--protocol", "torch-fidelity", "--kid-subset-size", "20"], args].concat());
        let number = |metric: &str, field: &str| found["metrics"][metric][field].as_f64();
        let listed = found["deviations"].as_array().unwrap();
        let texts = listed.iter().map(|d| format!("{}: {}", d["kind"].as_str().unwrap(), d["found"].as_str().unwrap()));
        (number("is", "value").unwrap(), number("is", "std"), number("kd", "value").unwrap(), texts.collect::<Vec<_>>())
    };
    let protocol = with(&[]);
    assert_eq!(with(&["--is-splits", "10", "--kid-subsets", "100"]), protocol);
    assert!(
        !protocol.3.iter().any(|d| d.starts_with("splits"))
            && protocol.3.iter().any(|d| d == "kid-subsets: 100 subsets of 20")
    );
    let other = with(&["--isc-splits", "1", "--kid-subsets", "7"]);
    // The score of one part is that of all images; means over parts are lower.
    assert!(other.1.is_none() && other.0 > protocol.0 && (other.2 - protocol.2).abs() > 1e-9, "{other:?} {protocol:?}");
    assert!(other.3.iter().any(|d| d.starts_with("splits: 1 parts")), "{other:?}");
    assert!(other.3.iter().any(|d| d == "kid-subsets: 7 subsets of 20"), "{other:?}");
    let few = ["evaluate", "fake.npz", "--extractor", "lite0.onnx", "--metrics", "is", "--is-splits", "41"];
    refused(dir, &few, &["found 40"]);
}

#[test]
fn one_network_in_two_roles_keeps_two_cache_entries() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_lite0(dir, 1, "lite0");
    write_lite0(dir, 2, "other");
    write_images(&dir.join("real.npz"), 0..40);
    write_images(&dir.join("fake.npz"), 20..60);
    let base = ["fake.npz", "--ref", "real.npz", "--cache", "cache"];
    let main = ["--extractor", "other.onnx", "--metrics", "fid"];
    let both = ["--extractor", "lite0.onnx", "--pr-extractor", "other.onnx", "--metrics", "fid,pr"];
    let itself = ["--extractor", "lite0.onnx", "--pr-extractor", "lite0.onnx", "--metrics", "fid,pr"];
    for _ in 0..2 {
        for how in [&main[..], &both, &itself] {
            let plain = evaluate(dir, &[&base[..3], how].concat());
            assert_eq!(evaluate(dir, &[&base[..], how].concat())["metrics"], plain["metrics"], "{how:?}");
        }
    }
    // A cache that cannot be written causes a warning only.
    fs::write(dir.join("file"), "").unwrap();
    let outcome =
        d2o(dir, &[&["evaluate"], &base[..3], &["--cache", "file"], &main[..], &["--bootstrap", "0"]].concat());
    assert!(outcome.stderr.contains("warning: the feature cache cannot be written"), "{outcome}");
}

#[test]
fn results_say_why_they_differ_and_by_how_much() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_float(dir, 1, "lite0");
    write_images(&dir.join("real.npz"), 0..40);
    write_images(&dir.join("fake.npz"), 20..60);
    write_images(&dir.join("more.npz"), 20..70);
    let network = ["--extractor", "lite0-float.onnx", "--metrics", "fid", "--bootstrap", "0"];
    let run = |samples: &str, protocol: &str, out: &str| {
        let args = ["evaluate", samples, "--ref", "real.npz", "--protocol", protocol, "--json", out];
        d2o(dir, &[&args[..], &network].concat());
        let result: Value = serde_json::from_slice(&fs::read(dir.join(out)).unwrap()).unwrap();
        value(&result, "fd")
    };
    let (a, b) = (run("fake.npz", "edm", "a.json"), run("more.npz", "clean", "b.json"));
    let outcome = attempt(dir, &["explain", "a.json", "b.json", "--json", "-"]);
    assert_eq!(outcome.code, 1, "{outcome}");
    let found: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let factors: Vec<&str> =
        found["differences"].as_array().unwrap().iter().map(|d| d["factor"].as_str().unwrap()).collect();
    assert!(
        factors.contains(&"samples") && factors.contains(&"protocol") && !factors.contains(&"reference"),
        "{found}"
    );
    let steps = found["steps"].as_array().unwrap();
    let values: Vec<f64> = steps.iter().map(|s| s["metrics"]["fd"].as_f64().unwrap()).collect();
    assert_eq!((values.len(), values[0], values[2]), (3, a, b), "{found}");
    assert_eq!(steps[1]["exchanged"], serde_json::json!(["samples"]));
    let same = d2o(dir, &["explain", "a.json", "a.json"]);
    assert!(same.stdout.contains("no setting differs"), "{same}");
    // Results of several protocols are compared protocol by protocol.
    for (samples, out) in [("fake.npz", "c.json"), ("more.npz", "d.json")] {
        let args = ["evaluate", samples, "--ref", "real.npz", "--protocol", "edm,stylegan3", "--json", out];
        d2o(dir, &[&args[..], &network].concat());
    }
    let outcome = attempt(dir, &["explain", "c.json", "d.json", "--no-measure", "--json", "-"]);
    let found: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!((outcome.code, found.as_array().unwrap().len()), (1, 2), "{outcome}");
    assert!(found[1]["differences"].to_string().contains("\"factor\":\"samples\""), "{found}");
    let outcome = attempt(dir, &["explain", "b.json", "c.json"]);
    assert!(outcome.code == 2 && outcome.stderr.contains("no protocol in common"), "{outcome}");
}

#[test]
fn explanations_use_the_recorded_settings_and_the_reference_of_clip() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_float(dir, 1, "lite0");
    write_float(dir, 2, "other");
    write_images(&dir.join("real.npz"), 0..40);
    write_images(&dir.join("more.npz"), 0..50);
    write_images(&dir.join("fake.npz"), 20..60);
    let run = |clip_reference: &str, out: &str| -> Value {
        let inputs = ["evaluate", "fake.npz", "--ref", "real.npz", "--clip-ref", clip_reference, "--json", out];
        let networks = ["--extractor", "lite0-float.onnx", "--clip", "other-float.onnx"];
        let settings = ["--metrics", "fid,pr,kid,clip-fid", "--neighbours", "5", "--kid-subsets", "7"];
        let sizes = ["--kid-subset-size", "20", "--seed", "3", "--bootstrap", "0"];
        let deviation = ["--allow-deviation", "extractor,provenance"];
        d2o(dir, &[&inputs[..], &networks, &settings, &sizes, &deviation].concat());
        serde_json::from_slice(&fs::read(dir.join(out)).unwrap()).unwrap()
    };
    let results = [run("real.npz", "a.json"), run("more.npz", "b.json")];
    assert!(value(&results[0], "clip_fd") != value(&results[1], "clip_fd"));
    let outcome = attempt(dir, &["explain", "a.json", "b.json", "--json", "-"]);
    assert_eq!(outcome.code, 1, "{outcome}");
    let found: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let differences = found["differences"].as_array().unwrap();
    assert_eq!((differences.len(), &differences[0]["setting"]), (1, &"CLIP: sha256".into()), "{found}");
    let steps = found["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 2, "{found}");
    for (step, result) in steps.iter().zip(&results) {
        for key in ["fd", "kd", "precision", "recall", "clip_fd"] {
            assert_eq!(step["metrics"][key], result["metrics"][key]["value"], "{key}: {found}");
        }
    }
}

#[test]
fn a_report_keeps_the_numbers_of_each_network_apart() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_lite0(dir, 1, "lite0");
    write_labelled(&dir.join("real.npz"), 0..40, |s| Some((s % 2) as i64));
    write_labelled(&dir.join("fake.npz"), 20..60, |s| Some((s % 2) as i64));
    for (option, out) in [("--per-class", "a.json"), ("--overwrite", "b.json")] {
        let args = ["evaluate", "fake.npz", "--ref", "real.npz", "--extractor", "lite0.onnx", option, "--json", out];
        d2o(dir, &args);
    }
    // The same numbers of a network of another name.
    let text = fs::read_to_string(dir.join("b.json")).unwrap();
    let text = text.replace("tf_efficientnet_lite0", "dinov2").replace("\"value\": ", "\"value\": 9");
    fs::write(dir.join("b.json"), text).unwrap();
    d2o(dir, &["report", "a.json", "b.json", "--out", "r.html"]);
    let page = page::parse(&fs::read_to_string(dir.join("r.html")).unwrap());
    page.ensure_sound();
    let tables = page.tables("main");
    for label in [
        "FD ↓, lower is better (tf_efficientnet_lite0)",
        "FD ↓, lower is better (dinov2)",
        "precision ↑, higher is better (dinov2)",
    ] {
        let rows: Vec<&Vec<String>> = tables[0].iter().filter(|r| r[0] == format!("{label} unverified")).collect();
        let [row] = rows[..] else { panic!("{label}: {tables:?}") };
        assert_eq!(row.iter().filter(|c| *c == "–").count(), 1, "{label}");
    }
    let text = page.text();
    assert!(text.contains("extractor of samples: dinov2 instead of inception-2015-12-05"), "{text}");
    assert!(text.contains("2 classes. Worst: class"), "{text}");
    fs::write(dir.join("old.json"), "{\"schema\": 99}").unwrap();
    let outcome = attempt(dir, &["report", "old.json", "--out", "x.html"]);
    assert!(outcome.code == 2 && outcome.stderr.contains("its schema is version 99"), "{outcome}");
}
