//! Features in files: shards and how they are merged, the cache, feature files as samples and references, classes.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "a test"
)]

use std::path::{Path, PathBuf};

use fs_err as fs;
use serde_json::Value;

mod common;
use common::{attempt, close, d2o, value, write_images, write_labelled, write_lite0};

const ALL: &str = "fid,is,pr,dc,kid,clip-fid";

/// Runs `evaluate` with these arguments and returns its result.
fn evaluate(dir: &Path, args: &[&str]) -> Value {
    d2o(dir, &[&["evaluate", "--bootstrap", "3", "--overwrite", "--json", "e.json"], args].concat());
    serde_json::from_slice(&fs::read(dir.join("e.json")).unwrap()).unwrap()
}

fn metrics(result: &Value) -> String {
    result["metrics"].to_string()
}

/// Writes two networks, samples of two classes and their reference.
fn prepare() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    write_lite0(path, 1, "lite0");
    write_lite0(path, 2, "other");
    write_labelled(&path.join("real.npz"), 0..90, |s| Some((s % 2) as i64));
    write_labelled(&path.join("fake.npz"), 60..160, |s| Some((s % 2) as i64));
    let make = ["refs", "make", "real.npz", "--extractor", "lite0.onnx", "--clip", "other.onnx", "--out", "ref.npz"];
    d2o(path, &make);
    dir
}

const NETWORKS: [&str; 4] = ["--extractor", "lite0.onnx", "--clip", "other.onnx"];

fn shard(dir: &Path, index: usize, more: &[&str]) -> String {
    let (part, out) = (format!("{index}/3"), format!("part-{index}.h5"));
    let args = ["evaluate", "fake.npz", "--shard", &part, "--save-features", &out, "--batch", "16"];
    d2o(dir, &[&args[..], &NETWORKS, more].concat());
    out
}

#[test]
fn three_shards_merged_are_one_run_to_the_last_bit() {
    let dir = prepare();
    let dir = dir.path();
    let how = ["--ref", "ref.npz", "--metrics", ALL, "--batch", "16", "--per-class"];
    let one = evaluate(dir, &[&["fake.npz"], &NETWORKS[..], &how].concat());
    assert!(value(&one, "fd") > 0.0 && value(&one, "clip_fd") > 0.0, "{one}");
    for i in 0..3 {
        shard(dir, i, &[]);
    }
    // In any order.
    for parts in [["part-0.h5", "part-1.h5", "part-2.h5"], ["part-2.h5", "part-0.h5", "part-1.h5"]] {
        let merged = evaluate(dir, &[&["--merge"], &parts[..], &how].concat());
        assert_eq!(metrics(&one), metrics(&merged));
        for key in ["per_class", "extractors", "protocol", "deviations"] {
            assert_eq!(one[key], merged[key], "{key}");
        }
        assert_eq!(one["runtime"]["runtime"], merged["runtime"]["runtime"]);
        assert_eq!(one["samples"]["sha256"], merged["samples"]["sha256"]);
        assert_eq!(one["samples"]["count"], 100);
    }
}

/// The jobs of docs/scale.md, taken from the text of the page and run with the variables of each scheduler.
#[test]
fn documented_jobs_give_the_result_of_one_run() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/scale.md")).unwrap();
    let between = |from: &str, to: &str| {
        let rest = &page[page.find(from).unwrap() + from.len()..];
        rest[..rest.find(to).unwrap()].trim().to_owned()
    };
    let slurm = between("#SBATCH --job-name=d2o --array=0-7 --cpus-per-task=8\n", "```");
    let pod = between("args:\n            - >-\n", "resources:");
    // `parallel` may be missing. xargs composes the same command line.
    let parallel = between("## GNU parallel\n\n```sh\n", "\nd2o evaluate --merge");
    assert!(parallel.contains("parallel --jobs 4 d2o"), "{parallel}");
    let parallel = parallel.replace("parallel --jobs 4", "xargs -P 4 -I{}");
    let (slurm, pod) = (slurm.replace("--threads 8", "--threads 1"), pod.replace(['\n', '\r'], " "));

    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_lite0(dir, 1, "inception");
    write_images(&dir.join("real.npz"), 0..90);
    write_images(&dir.join("samples.npz"), 60..600);
    d2o(dir, &["refs", "make", "real.npz", "--extractor", "inception.onnx", "--out", "ref.npz"]);
    let expected = evaluate(dir, &["samples.npz", "--ref", "ref.npz", "--extractor", "inception.onnx"]);
    let sh = |line: &str, variables: &[(&str, &str)]| {
        let program = Path::new(env!("CARGO_BIN_EXE_d2o")).parent().unwrap();
        let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
        let mut command = std::process::Command::new("sh");
        command.current_dir(dir).env("PATH", path).args(["-euc", line]).envs(variables.iter().copied());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let parts: Vec<String> = (0..8).map(|i| format!("part-{i}.h5")).collect();
    for scheduler in ["slurm", "kubernetes", "parallel"] {
        for index in 0..8 {
            let index = index.to_string();
            match scheduler {
                "slurm" => sh(&slurm, &[("SLURM_ARRAY_TASK_ID", &index), ("SLURM_ARRAY_TASK_COUNT", "8")]),
                "kubernetes" => sh(&pod, &[("JOB_COMPLETION_INDEX", &index)]),
                _ if index == "0" => sh(&parallel, &[]),
                _ => {}
            }
        }
        sh("d2o evaluate --merge part-*.h5 --ref ref.npz --bootstrap 3 --overwrite --json merged.json", &[]);
        let merged: Value = serde_json::from_slice(&fs::read(dir.join("merged.json")).unwrap()).unwrap();
        assert_eq!(metrics(&expected), metrics(&merged), "{scheduler}");
        for part in &parts {
            fs::remove_file(dir.join(part)).unwrap();
        }
    }
}

#[test]
fn a_mix_of_shards_is_refused() {
    let dir = prepare();
    let dir = dir.path();
    for i in 0..3 {
        shard(dir, i, &[]);
    }
    let merge = |parts: &[&str], text: &str| {
        let outcome = attempt(dir, &[&["evaluate", "--merge"], parts, &["--ref", "ref.npz"]].concat());
        assert!(outcome.code == 2 && outcome.stderr.contains(text), "{text}: {outcome}");
    };
    merge(&["part-0.h5", "part-2.h5"], "images 32..64 of 100 are missing");
    merge(&["part-0.h5", "part-1.h5"], "images 64..100 of 100 are missing");
    merge(&["part-1.h5", "part-0.h5", "part-1.h5", "part-2.h5"], "both hold image 32");
    let single = attempt(dir, &["evaluate", "part-1.h5", "--ref", "ref.npz"]);
    assert!(single.code == 2 && single.stderr.contains("images 0..32 of 100"), "{single}");

    write_images(&dir.join("fake.npz"), 61..161);
    fs::rename(dir.join("part-1.h5"), dir.join("old.h5")).unwrap();
    shard(dir, 1, &[]);
    merge(&["part-0.h5", "part-1.h5", "part-2.h5"], "differ in their images");
    fs::remove_file(dir.join("part-1.h5")).unwrap();
    write_labelled(&dir.join("fake.npz"), 60..160, |s| Some((s % 2) as i64));
    let args = ["evaluate", "fake.npz", "--shard", "1/3", "--save-features", "part-1.h5", "--batch", "16"];
    d2o(dir, &[&args[..], &["--extractor", "other.onnx"]].concat());
    merge(&["part-0.h5", "part-1.h5", "part-2.h5"], "differ in the networks");

    let mut bytes = fs::read(dir.join("old.h5")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(dir.join("old.h5"), &bytes).unwrap();
    merge(&["part-0.h5", "old.h5", "part-2.h5"], "old.h5");
    let none = attempt(
        dir,
        &["evaluate", "fake.npz", "--shard", "0/9", "--save-features", "x.h5", "--extractor", "lite0.onnx"],
    );
    assert!(none.code == 2 && none.stderr.contains("into 9 shards: at most 7"), "{none}");
}

fn cached(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir.join("cache")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort_unstable();
    files
}

#[test]
fn the_cache_gives_the_same_numbers_without_the_network() {
    let dir = prepare();
    let dir = dir.path();
    let how = ["--ref", "real.npz", "--metrics", ALL, "--cache", "cache"];
    let run = |more: &[&str]| evaluate(dir, &[&["fake.npz"], &NETWORKS[..], &how, more].concat());
    let first = run(&[]);
    assert!(first["timings"].get("features_network").is_some(), "{first}");
    // Two networks, two sets.
    assert_eq!(cached(dir).len(), 4);
    let second = run(&[]);
    assert_eq!(metrics(&first), metrics(&second));
    assert_eq!(first["samples"], second["samples"]);
    assert!(second["timings"].get("features_network").is_none(), "{second}");
    assert!(second["timings"].get("features_cache").is_some(), "{second}");

    // Other pixels or another network have their own entries.
    write_images(&dir.join("fake.npz"), 61..161);
    let other = run(&[]);
    assert_ne!(metrics(&first), metrics(&other));
    assert_eq!(cached(dir).len(), 6);
    write_images(&dir.join("fake.npz"), 60..160);
    // The container differs (it has no classes), but the images are the same.
    assert_eq!(metrics(&run(&[])), metrics(&first));

    // A damaged entry is found and replaced.
    for file in cached(dir) {
        let mut bytes = fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        fs::write(&file, bytes).unwrap();
    }
    let options = ["--bootstrap", "3", "--overwrite", "--json", "e.json"];
    let outcome = d2o(dir, &[&["evaluate", "fake.npz"], &NETWORKS[..], &how, &options].concat());
    assert!(outcome.stderr.contains("corrupt cache entry"), "{outcome}");
    let repaired: Value = serde_json::from_slice(&fs::read(dir.join("e.json")).unwrap()).unwrap();
    assert_eq!(metrics(&repaired), metrics(&first));
    let quiet = d2o(dir, &[&["evaluate", "fake.npz"], &NETWORKS[..], &how].concat());
    assert!(!quiet.stderr.contains("corrupt"), "{quiet}");
}

#[test]
fn feature_files_stand_for_images_on_both_sides() {
    let dir = prepare();
    let dir = dir.path();
    let save = |samples: &str, out: &str| {
        let args = ["--ref", "ref.npz", "--metrics", ALL, "--save-features", out];
        evaluate(dir, &[&[samples], &NETWORKS[..], &args].concat())
    };
    let fake = save("fake.npz", "fake.h5");
    save("real.npz", "real.h5");
    let again = evaluate(dir, &["fake.h5", "--ref", "real.h5", "--metrics", ALL]);
    assert_eq!(metrics(&fake), metrics(&again));
    d2o(dir, &["refs", "make", "real.h5", "--out", "ref2.npz"]);
    let made = evaluate(dir, &["fake.h5", "--ref", "ref2.npz", "--metrics", ALL]);
    assert_eq!(metrics(&fake), metrics(&made));

    let wrong = attempt(dir, &["evaluate", "fake.h5", "--ref", "real.h5", "--extractor", "other.onnx"]);
    assert!(wrong.code == 2 && wrong.stderr.contains("holds features of"), "{wrong}");
    let lacking = attempt(dir, &["evaluate", "fake.npz", "--ref", "real.h5"]);
    assert!(lacking.code == 2 && lacking.stderr.contains("--extractor"), "{lacking}");
}

#[test]
fn precision_and_recall_of_another_network_come_from_the_same_pass() {
    const PR: [&str; 4] = ["precision", "recall", "density", "coverage"];
    let dir = prepare();
    let dir = dir.path();
    let how = ["--protocol", "torch-fidelity", "--batch", "16"];
    let of = |more: &[&str]| evaluate(dir, &[more, &how[..]].concat());
    let both = ["--extractor", "lite0.onnx", "--pr-extractor", "other.onnx"];
    let metrics = ["--metrics", "fid,is,pr,dc"];
    let fid = of(&["fake.npz", "--ref", "real.npz", "--extractor", "lite0.onnx", "--metrics", "fid,is"]);
    let pr = ["fake.npz", "--ref", "real.npz", "--extractor", "other.onnx", "--metrics", "pr,dc"];
    let pr = of(&[&pr[..], &["--allow-deviation", "extractor"]].concat());
    let one = of(&[&["fake.npz", "--ref", "real.npz"], &both[..], &metrics].concat());
    for (name, apart) in [("fd", &fid), ("is", &fid)].into_iter().chain(PR.map(|n| (n, &pr))) {
        assert_eq!(one["metrics"][name], apart["metrics"][name], "{name}");
    }
    let alone = ["fake.npz", "--ref", "real.npz", "--extractor", "lite0.onnx", "--metrics", "pr,dc"];
    let alone = of(&[&alone[..], &["--allow-deviation", "extractor"]].concat());
    assert!(PR.iter().any(|n| value(&alone, n) != value(&one, n)), "the networks agree, so this shows nothing: {one}");
    assert_eq!(one["extractors"]["manifold"]["path"], "other.onnx", "{one}");
    let found = one["deviations"].to_string();
    assert!(found.contains("\"expected\":\"VGG16\"") && found.contains("precision and recall"), "{found}");

    // The same from statistics with the features of both networks, from shards, and from the cache.
    d2o(dir, &[&["refs", "make", "real.npz", "--out", "both.npz", "--protocol", how[1]], &both[..]].concat());
    for i in 0..2 {
        let (part, out) = (format!("{i}/2"), format!("both-{i}.h5"));
        let args = ["evaluate", "fake.npz", "--shard", &part, "--save-features", &out];
        d2o(dir, &[&args[..], &both, &how].concat());
    }
    let against = ["--ref", "both.npz", "--cache", "cache"];
    let cached = [&["fake.npz"], &against[..], &both, &metrics].concat();
    let merged = [&["--merge", "both-0.h5", "both-1.h5"], &against[..2], &metrics].concat();
    for args in [&cached, &cached, &merged] {
        let again = of(args);
        assert_eq!(again["metrics"], one["metrics"], "{args:?}");
        assert_eq!(again["warnings"], one["warnings"], "{again}");
    }

    let refused = |args: &[&str], text: &str| {
        let outcome = attempt(dir, &[&["evaluate", "fake.npz", "--metrics", "pr"], args, &how].concat());
        assert!(outcome.code == 2 && outcome.stderr.contains(text), "{outcome}");
    };
    let turned = ["--extractor", "lite0.onnx", "--pr-extractor", "lite0.onnx", "--ref", "both.npz"];
    refused(&turned, "extractor of `both.npz` (features for precision and recall)");
    refused(&[&both[..], &["--ref", "ref.npz"]].concat(), "`d2o refs make --pr-extractor`");
}

#[test]
fn classes_are_measured_apart() {
    let dir = prepare();
    let dir = dir.path();
    // Class 0 of the samples is in class 0 of the reference. Class 1 is one image repeated.
    write_labelled(&dir.join("fake.npz"), (0..60).map(|i| if i % 2 == 0 { i } else { 1 }), |s| Some((s % 2) as i64));
    for reference in ["ref.npz", "real.npz"] {
        let args = ["fake.npz", "--ref", reference, "--extractor", "lite0.onnx", "--per-class", "--metrics", "fid"];
        let result = evaluate(dir, &args);
        let classes = result["per_class"].as_array().unwrap();
        assert_eq!(classes.len(), 2, "{result}");
        let of = |class: usize, metric: &str| classes[class]["metrics"][metric]["value"].as_f64().unwrap();
        assert_eq!((classes[0]["samples"].as_u64(), classes[1]["reference"].as_u64()), (Some(30), Some(45)));
        assert!(of(0, "fd") < of(1, "fd"), "{result}");
        assert_eq!((of(0, "precision"), of(1, "precision")), (1.0, 1.0), "{result}");
        assert!(of(0, "recall") > 0.6 && of(1, "recall") < 0.2, "{result}");
        assert!(result["warnings"].to_string().contains("2 of 2 classes have at most 1280 images"), "{result}");
    }
    let args =
        ["evaluate", "fake.npz", "--ref", "ref.npz", "--extractor", "lite0.onnx", "--per-class", "--metrics", "fid"];
    let table = d2o(dir, &args).stdout;
    assert!(table.contains("class  samples  reference"), "{table}");
    write_images(&dir.join("plain.npz"), 0..40);
    let args = ["evaluate", "plain.npz", "--ref", "ref.npz", "--extractor", "lite0.onnx", "--per-class"];
    let outcome = attempt(dir, &args);
    assert!(outcome.code == 2 && outcome.stderr.contains("`plain.npz` has no class labels"), "{outcome}");
}

#[test]
fn a_generator_is_measured_as_its_images_are() {
    let dir = prepare();
    let dir = dir.path();
    let source = test_support::golden_dir().join("d2o-adm-cond.safetensors").display().to_string();
    d2o(dir, &["export", &source, "--kind", "one-step", "--out", "g.onnx", "--no-check"]);
    let size = ["--image-size", "16", "--input-size", "32", "--kind", "features", "--no-check"];
    d2o(dir, &[&["export", "lite0.safetensors", "--out", "small.onnx"], &size[..]].concat());
    let cpu = ["--provider", "cpu", "--rng", "torch-cuda"];
    d2o(dir, &[&["generate", "g.onnx", "--seeds", "3-52", "--out", "fake.npz", "--overwrite"], &cpu[..]].concat());
    d2o(dir, &[&["generate", "g.onnx", "--seeds", "60-140", "--out", "real.npz", "--overwrite"], &cpu[..]].concat());
    let how = ["--ref", "real.npz", "--extractor", "small.onnx", "--metrics", "fid,pr,kid", "--per-class"];
    let seeds = ["--seeds", "3-52", "--rng", "torch-cuda"];
    let read = evaluate(dir, &[&["fake.npz"], &how[..]].concat());
    let made = evaluate(dir, &[&["g.onnx"], &how[..], &seeds].concat());
    let same = |other: &Value| {
        assert_eq!(metrics(&read), metrics(other));
        assert_eq!(read["per_class"], other["per_class"]);
        assert_eq!(read["samples"]["sha256"], other["samples"]["sha256"]);
    };
    same(&made);
    // A file written by d2o also records how its images were generated.
    assert_eq!(read["samples"]["generator"]["seeds"], made["samples"]["generator"]["seeds"], "{read}");
    // So does a file of their features.
    d2o(dir, &["evaluate", "fake.npz", "--extractor", "small.onnx", "--shard", "0/1", "--save-features", "fake.h5"]);
    for samples in [&["fake.npz"][..], &["g.onnx", "--seeds", "3-52"], &["fake.h5"]] {
        let adm = [
            &["evaluate"],
            samples,
            &["--ref", "real.npz", "--extractor", "small.onnx", "--metrics", "fid", "--protocol", "adm"],
        ]
        .concat();
        let outcome = attempt(dir, &adm);
        assert!(
            outcome.code == 2
                && outcome
                    .stderr
                    .contains("quantiser of samples: 127.5 x + 128 instead of 127.5 (x + 1) of guided-diffusion"),
            "{outcome}"
        );
        let allowed = evaluate(dir, &[&adm[1..], &["--allow-deviation", "quantiser"]].concat());
        assert!(allowed["deviations"].to_string().contains("\"kind\":\"quantiser\""), "{allowed}");
    }
    let generator = &made["samples"]["generator"];
    assert_eq!((&generator["seeds"], &generator["rng"]), (&"3-52".into(), &"torch-cuda".into()), "{made}");

    // The cache identifies generated images by their generator, and finds their classes without generating them.
    for timing in ["features_network", "features_cache"] {
        let found = evaluate(dir, &[&["g.onnx"], &how[..], &seeds, &["--cache", "cache"]].concat());
        assert!(found["timings"].get(timing).is_some(), "{found}");
        same(&found);
    }
    let mut other = seeds;
    other[1] = "3-51,53";
    evaluate(dir, &[&["g.onnx"], &how[..], &other, &["--cache", "cache"]].concat());
    assert_eq!(cached(dir).len(), 3);

    let parts = ["p0.h5", "p1.h5"];
    for (i, part) in parts.iter().enumerate() {
        let shard = ["--batch", "16", "--shard", &format!("{i}/2"), "--save-features", part, "--overwrite"];
        d2o(dir, &[&["evaluate", "g.onnx", "--extractor", "small.onnx"], &shard[..], &seeds].concat());
    }
    let files = ["--merge", "p0.h5", "p1.h5", "--ref", "real.npz", "--extractor", "small.onnx"];
    same(&evaluate(dir, &[&files[..], &["--metrics", "fid,pr,kid", "--per-class"]].concat()));

    // In a fused graph the quantiser computes in f32, so a byte may differ.
    d2o(dir, &["export", &source, "--kind", "one-step", "--uint8", "--out", "bytes.onnx", "--no-check"]);
    let fused = evaluate(dir, &[&["bytes.onnx", "--fuse"], &how[..], &seeds].concat());
    for metric in ["fd", "precision", "recall"] {
        assert!(close(value(&fused, metric), value(&read, metric)), "{metric}: {fused}");
    }
    // A kernel distance can be near zero, so the difference is compared with the standard deviation.
    let (found, std) = (value(&fused, "kd"), fused["metrics"]["kd"]["std"].as_f64().unwrap());
    assert!((found - value(&read, "kd")).abs() < 1e-3 * std, "kd: {fused}");
    assert_eq!(fused["samples"]["generator"]["fused"], "graph", "{fused}");
    let shared = evaluate(dir, &[&["bytes.onnx", "--fuse=memory"], &how[..], &seeds].concat());
    assert_eq!(shared["samples"]["generator"]["fused"], "memory", "{shared}");
    assert_eq!(shared["samples"]["sha256"], fused["samples"]["sha256"]);
    for metric in ["fd", "precision", "recall", "kd"] {
        assert!(close(value(&shared, metric), value(&fused, metric)), "{metric}: {shared}");
    }
    assert!(fused["timings"].get("features_fused").is_some(), "{fused}");
    // Two networks read the same images in memory.
    let clip = ["--clip", "small.onnx", "--metrics", "fid,clip-fid", "--fuse=memory"];
    let both = evaluate(dir, &[&["bytes.onnx"], &how[..4], &clip, &seeds].concat());
    assert!(close(value(&both, "fd"), value(&both, "clip_fd")), "{both}");
    assert!(close(value(&both, "fd"), value(&fused, "fd")), "{both}");
    for (i, part) in parts.iter().enumerate() {
        let shard = ["--fuse", "--batch", "16", "--shard", &format!("{i}/2"), "--save-features", part, "--overwrite"];
        d2o(dir, &[&["evaluate", "bytes.onnx", "--extractor", "small.onnx"], &shard[..], &seeds].concat());
    }
    let merged = evaluate(dir, &[&files[..], &["--metrics", "fid,pr,kid", "--per-class"]].concat());
    assert_eq!(merged["samples"]["sha256"], fused["samples"]["sha256"]);

    for (args, text) in [
        (&["evaluate", "g.onnx", "--fuse", "--seeds", "0-4"][..], "--uint8"),
        (&["evaluate", "g.onnx", "--fuse=memory", "--seeds", "0-4"], "--uint8"),
        (&["evaluate", "fake.npz", "--fuse"], "sampling options need a generator"),
        (&["evaluate", "g.onnx"], "--seeds"),
        (&["evaluate", "fake.npz", "--class", "1"], "sampling options need a generator"),
        (&["evaluate", "small.onnx", "--seeds", "0-4"], "not a generator"),
    ] {
        let outcome = attempt(dir, &[args, &how[..]].concat());
        assert!(outcome.code == 2 && outcome.stderr.contains(text), "{args:?}: {outcome}");
    }
}
