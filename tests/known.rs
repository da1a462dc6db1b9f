//! Published files by name: the table, downloads, checkpoints used in place of graphs, comparison with published
//! numbers.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use common::{d2o, write_images};
use fs_err as fs;
use serde_json::Value;
use test_support::{Outcome, golden_dir};

/// Runs d2o in `dir` with its caches in `dir`, and without proxy and token variables.
fn attempt(dir: &Path, args: &[&str]) -> Outcome {
    let mut command = Command::new(env!("CARGO_BIN_EXE_d2o"));
    command.args(args).current_dir(dir).env("D2O_CACHE", dir.join("cache")).env("COLUMNS", "100");
    for name in ["HF_HOME", "HF_TOKEN", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "RUST_BACKTRACE"] {
        command.env_remove(name);
    }
    let output = command.env("HF_HOME", dir.join("hf")).output().unwrap();
    let clean = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&dir.display().to_string(), "DIR");
    Outcome { code: output.status.code().unwrap_or(-1), stdout: clean(&output.stdout), stderr: clean(&output.stderr) }
}

fn run(dir: &Path, args: &[&str]) -> Outcome {
    let outcome = attempt(dir, args);
    assert_eq!(outcome.code, 0, "d2o {}: {outcome}", args.join(" "));
    outcome
}

/// Serves `body` for `count` requests; returns the address.
fn serve(body: &'static [u8], count: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for _ in 0..count {
            answer(&listener, body);
        }
    });
    address
}

/// Serves `body` for one request.
fn answer(listener: &TcpListener, body: &[u8]) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut request = [0; 4096];
    let _ = stream.read(&mut request).unwrap();
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len()).unwrap();
    stream.write_all(body).unwrap();
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn the_table_is_listed_and_described() {
    let dir = tempfile::tempdir().unwrap();
    let all = run(dir.path(), &["known"]).stdout;
    for part in
        ["edm-cifar10-32x32-uncond-vp", "d2o-cifar10-uncond-f", "inception-2015-12-05-pkl", "adm-ref-imagenet-64x64"]
    {
        assert!(all.contains(part), "{part}");
    }
    let some = run(dir.path(), &["known", "ffhq"]).stdout;
    assert!(some.contains("d2o-ffhq-f") && !some.contains("d2o-cifar10-uncond-f"), "{some}");
    let one = run(dir.path(), &["known", "edm-cifar10-32x32-uncond-vp"]).stdout;
    for part in ["--sampler heun --num-steps 18", "fid 1.97", "EDMPrecond", "edm-ref-cifar10-32x32"] {
        assert!(one.contains(part), "{one}");
    }
    run(dir.path(), &["known", "vgg16-torchvision", "--json", "vgg.json"]);
    assert_eq!(json(&dir.path().join("vgg.json"))["kind"]["extractor"]["network"], "vgg16");
    let none = attempt(dir.path(), &["fetch", "edm-cifar-vp"]);
    let expected = "error: unknown published file `edm-cifar-vp`\nhint: similar names: edm-cifar10-32x32-uncond-vp";
    assert!(none.code == 2 && none.stderr.starts_with(expected), "{none}");
}

#[test]
fn files_are_fetched_once_and_addresses_are_inputs() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint: &'static [u8] =
        Box::leak(fs::read(golden_dir().join("edm-ddpmpp-cond.safetensors")).unwrap().into());
    let address = format!("{}/tiny.safetensors", serve(checkpoint, 1));
    let first = run(dir.path(), &["fetch", &address]);
    let path = first.stdout.trim().replace("DIR", &dir.path().display().to_string());
    assert_eq!(fs::read(path).unwrap(), checkpoint);
    assert!(first.stderr.contains("not published; recorded for later downloads"), "{first}");
    // The server has ended.
    let second = run(dir.path(), &["fetch", &address]);
    assert!(
        second.stdout == first.stdout && second.stderr.contains("not published; same as at the first download"),
        "{second}"
    );
    let inspected = run(dir.path(), &["inspect", &address]).stdout;
    assert!(inspected.contains("EDMPrecond"), "{inspected}");
    run(dir.path(), &["export", &address, "--out", "x.onnx", "--no-check"]);
    // A server that closes the connection of the first request.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let broken = format!("http://{}/x.bin", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        drop(listener.accept().unwrap());
        answer(&listener, b"late");
    });
    let retried = run(dir.path(), &["fetch", &broken]);
    assert!(retried.stderr.contains("attempt 2 of 6 in 1 s"), "{retried}");
    let wrong = attempt(dir.path(), &["fetch", &format!("{}/x.bin", serve(b"other", 1)), "--sha256", &"0".repeat(64)]);
    assert!(wrong.code == 2 && wrong.stderr.contains(&"0".repeat(64)), "{wrong}");
    let plain = attempt(dir.path(), &["inspect", "http://example.org/x.pkl"]);
    assert!(plain.code == 2 && plain.stderr.contains("https only"), "{plain}");
}

#[test]
fn without_a_network_the_file_to_place_by_hand_is_named_and_then_used() {
    let dir = tempfile::tempdir().unwrap();
    let refused = attempt(dir.path(), &["fetch", "edm-ref-cifar10-32x32", "--offline"]);
    assert_eq!(refused.code, 2);
    let place = "DIR/cache/downloads/known/edm-ref-cifar10-32x32/cifar10-32x32.npz";
    assert!(refused.stderr.contains(place), "{refused}");
    let file = dir.path().join(place.strip_prefix("DIR/").unwrap());
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    write_images(&file, 0..4);
    let fetched = run(dir.path(), &["fetch", "edm-ref-cifar10-32x32", "--offline"]);
    assert_eq!(fetched.stdout.trim(), place);
    let inspected = run(dir.path(), &["inspect", "edm-ref-cifar10-32x32"]).stdout;
    assert!(inspected.lines().any(|line| line == "count: 4"), "{inspected}");
    // A file of that name in the folder takes precedence.
    fs::write(dir.path().join("edm-ref-cifar10-32x32"), "something else").unwrap();
    let other = attempt(dir.path(), &["inspect", "edm-ref-cifar10-32x32"]);
    assert!(other.code == 2 && other.stderr.contains("cannot inspect `edm-ref-cifar10-32x32`"), "{other}");
}

#[test]
fn a_published_checkpoint_brings_its_sampler() {
    let dir = tempfile::tempdir().unwrap();
    let source = golden_dir().join("../checkpoints/edm.pkl");
    fs::copy(&source, dir.path().join("edm-ffhq-64x64-uncond-vp.pkl")).unwrap();
    let exported = run(dir.path(), &["export", "edm-ffhq-64x64-uncond-vp.pkl", "--out", "x.onnx", "--no-check"]);
    assert!(exported.stderr.contains("recognised by its name; its SHA-256 is not published"), "{exported}");
    let inspected = run(dir.path(), &["inspect", "x.onnx"]).stdout;
    assert!(inspected.contains("denoiser") && inspected.contains("edm-ffhq-64x64-uncond-vp"), "{inspected}");
    let drawn = run(dir.path(), &["generate", "x.onnx", "--seeds", "0-1", "--out", "known.npz"]);
    assert!(drawn.stderr.contains("sampler of `edm-ffhq-64x64-uncond-vp`: --sampler heun --num-steps 40"), "{drawn}");
    run(dir.path(), &["generate", "x.onnx", "--seeds", "0-1", "--num-steps", "40", "--out", "same.npz"]);
    run(dir.path(), &["generate", "x.onnx", "--seeds", "0-1", "--sampler", "heun", "--out", "own.npz"]);
    let pixels = |name: &str| d2o_refs::batch::open(&dir.path().join(name)).unwrap().read_each(0..2).unwrap();
    assert_eq!(pixels("known.npz"), pixels("same.npz"));
    assert_ne!(pixels("known.npz"), pixels("own.npz"));
    // Under another name it is not recognised.
    fs::copy(&source, dir.path().join("mine.pkl")).unwrap();
    let own = run(dir.path(), &["export", "mine.pkl", "--out", "mine.onnx", "--no-check"]);
    assert!(!own.stderr.contains("recognised"), "{own}");
    assert!(run(dir.path(), &["inspect", "mine.onnx"]).stdout.contains("one-step"));
}

#[test]
fn checkpoints_stand_for_their_graphs() {
    let Some(lite0) = test_support::lite0() else { return };
    let lite0 = lite0.display().to_string();
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = golden_dir().join("d2o-ncsnpp-uncond.safetensors").display().to_string();
    d2o(dir.path(), &["export", &checkpoint, "--out", "x.onnx", "--no-check"]);
    d2o(dir.path(), &["export", &lite0, "--input", "f32", "--out", "lite0.onnx", "--no-check"]);
    let made = run(dir.path(), &["generate", &checkpoint, "--seeds", "0-11", "--out", "a.npz"]);
    assert!(made.stderr.contains("exporting `") && made.stderr.contains("` into the cache\n"), "{made}");
    run(dir.path(), &["generate", "x.onnx", "--seeds", "0-11", "--out", "b.npz"]);
    assert_eq!(fs::read(dir.path().join("a.npz")).unwrap(), fs::read(dir.path().join("b.npz")).unwrap());
    let evaluate = |samples: &str, extractor: &str, out: &str| {
        let command =
            ["evaluate", samples, "--seeds", "12-23", "--ref", "a.npz", "--extractor", extractor, "--json", out];
        let outcome = run(dir.path(), &command);
        (json(&dir.path().join(out))["metrics"].clone(), outcome.stderr)
    };
    let (direct, first) = evaluate(&checkpoint, &lite0, "direct.json");
    let (exported, _) = evaluate("x.onnx", "lite0.onnx", "exported.json");
    assert_eq!(direct, exported);
    assert!(first.contains("using the cached export") && first.contains("--input f32"), "{first}");
    let (again, second) = evaluate(&checkpoint, &lite0, "again.json");
    assert!(again == direct && !second.contains("into the cache"), "{second}");
    let cached = fs::read_dir(dir.path().join("cache/exports")).unwrap().count();
    assert_eq!(cached, 2);
    let refused = attempt(dir.path(), &["evaluate", "a.npz", "--ref", "b.npz", "--extractor", "a.npz"]);
    let expected = "error: cannot use the checkpoint `a.npz` as a graph\n  caused by: cannot export `a.npz`";
    assert!(refused.code == 2 && refused.stderr.contains(expected), "{refused}");
}

#[test]
fn a_graph_that_was_not_checked_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = golden_dir().join("d2o-ncsnpp-uncond.safetensors").display().to_string();
    let command = ["generate", &checkpoint, "--seeds", "0-1", "--provider", "tract", "--out", "a.npz"];
    let unchecked = attempt(dir.path(), &[&command[..], &["--onnxruntime", "missing.so"]].concat());
    assert!(unchecked.code == 2 && unchecked.stderr.contains("missing.so"), "{unchecked}");
    assert_eq!(fs::read_dir(dir.path().join("cache/exports")).unwrap().count(), 0);
    let made = run(dir.path(), &command);
    assert!(made.stderr.contains("into the cache"), "{made}");
}

#[test]
fn published_numbers_stand_beside_measured_ones() {
    let dir = tempfile::tempdir().unwrap();
    let name = "d2o-cifar10-uncond-f";
    let plan = run(dir.path(), &["reproduce", name, "--outdir", "r", "--dry-run"]).stdout;
    let expected = "d2o export d2o-cifar10-uncond-f --kind one-step --sigma-max 80 --out r/d2o-cifar10-uncond-f.onnx\n\
        d2o evaluate r/d2o-cifar10-uncond-f.onnx --seeds 0-49999 --sampler one-step --ref edm-ref-cifar10-32x32 --extractor inception-2015-12-05-pkl \
        --protocol edm --metrics fid --json r/d2o-cifar10-uncond-f.json\n";
    assert_eq!(plan, expected);
    let none = attempt(dir.path(), &["reproduce", "inception-2015-12-05-pkl", "--outdir", "r"]);
    assert!(none.code == 2 && none.stderr.contains("is not a generator"), "{none}");
    let ancestral = attempt(dir.path(), &["reproduce", "adm-imagenet-64x64-cond", "--outdir", "r"]);
    assert!(ancestral.code == 2 && ancestral.stderr.contains("a sampler that d2o does not support"), "{ancestral}");

    let Some(lite0) = test_support::lite0() else { return };
    let lite0 = lite0.display().to_string();
    let checkpoint = golden_dir().join("d2o-ncsnpp-uncond.safetensors").display().to_string();
    run(dir.path(), &["generate", &checkpoint, "--seeds", "100-111", "--out", "real.npz"]);
    let command = ["reproduce", name, "--outdir", "r", "--checkpoint", &checkpoint, "--ref", "real.npz"];
    let options = ["--extractor", &lite0, "--seeds", "0-11", "--json", "compared.json"];
    let outcome = run(dir.path(), &[&command[..], &options].concat());
    assert!(outcome.stdout.contains("1.56 (not stated)"), "{outcome}");
    assert!(outcome.stdout.contains("not comparable: measured on 12 images, published for 50000"), "{outcome}");
    assert!(outcome.stdout.contains("not measured: clip_fid 0.66"), "{outcome}");
    let compared = json(&dir.path().join("compared.json"));
    let measured = json(&dir.path().join("r/d2o-cifar10-uncond-f.json"));
    let row = &compared["metrics"][0];
    assert_eq!(row["measured"], measured["metrics"]["fd"]["value"]);
    assert!(row["label"].as_str().unwrap().starts_with("FD (tf_efficientnet_lite0)"), "{row}");
    let difference = row["measured"].as_f64().unwrap() - 1.56;
    assert!((row["difference"].as_f64().unwrap() - difference).abs() < 1e-9);
}
