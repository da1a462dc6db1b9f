//! Devices: several give the same result as one, plugin providers compute what the CPU provider computes, and a
//! requested device is used or refused.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::path::Path;

use d2o::cli::{Accelerator, Cli, Command, Global, ProviderArg};
use d2o::engine::Engine;
use d2o::pipeline::fused::{Fuse, Fused};
use d2o::pipeline::generated::GeneratedImages;
use d2o::pipeline::network::{InputRule, Network, Role};
use d2o::pipeline::pass::PassOptions;
use d2o::pipeline::source::Source;
use d2o::pipeline::statistics::{StatsRequest, statistics};
use d2o::printer::Printer;
use d2o::sampling::request::SamplingRequest;
use d2o_evaluations::protocol::Protocol;
use d2o_runtime::Session as _;
use d2o_runtime::cuda;
use d2o_runtime::ort::{OrtOptions, OrtRuntime, Provider};
use fs_err as fs;
use serde_json::Value;

mod common;
use common::{attempt, d2o, write_images, write_lite0};

/// Writes a small conditional generator with outputs as floats and as bytes, and a feature network for its images.
fn prepare() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    write_lite0(path, 1, "lite0");
    let source = test_support::golden_dir().join("d2o-adm-cond.safetensors").display().to_string();
    d2o(path, &["export", &source, "--kind", "one-step", "--uint8", "--out", "g.onnx", "--no-check"]);
    let size = ["--image-size", "16", "--input-size", "32", "--kind", "features", "--no-check"];
    d2o(path, &[&["export", "lite0.safetensors", "--out", "f.onnx"], &size[..]].concat());
    dir
}

/// Bits of the moments, and hash, of the images of seeds 0 to 40 in batches of 8, computed by `workers` sessions of
/// each graph.
fn measured(dir: &Path, workers: usize, fuse: Option<Fuse>) -> (Vec<u64>, String) {
    let global = Global { quiet: true, onnxruntime: test_support::onnxruntime(), threads: Some(1) };
    let (accelerator, printer) = (Accelerator::default(), Printer::new(true));
    let engine = Engine::new(ProviderArg::Cpu, &accelerator, &global, printer).unwrap().with_workers(workers);
    let rule = InputRule::from(Protocol::named("edm").unwrap());
    let words = ["d2o", "generate", "g.onnx", "--out", "s.npz", "--seeds", "0-40"];
    let Command::Generate(args) = <Cli as clap::Parser>::parse_from(words).command else { panic!("another command") };
    let sampling = SamplingRequest::from(&args.sampling);
    let mut networks = vec![Network::open(Role::Features, &dir.join("f.onnx"), &engine).unwrap()];
    let generator = dir.join("g.onnx");
    let mut source = match fuse {
        Some(how) => Source::fused(Fused::open(&generator, &networks, how, &sampling, &engine).unwrap()),
        None => Source::generated(GeneratedImages::open(&generator, &sampling, 8, &engine).unwrap()),
    };
    let request = StatsRequest { features: true, ..StatsRequest::default() };
    let options = PassOptions { batch: 8, rule, cache: None, reporter: &printer };
    let found = statistics(&mut source, 0..41, &mut networks, &request, &options, None).unwrap();
    let gaussian = found.features.unwrap().finish(1).unwrap();
    let bits = gaussian.mu.iter().chain(gaussian.sigma.iter()).map(|v| v.to_bits()).collect();
    (bits, found.summary.sha256)
}

#[test]
fn several_devices_give_the_result_of_one_to_the_last_bit() {
    let dir = prepare();
    for fuse in [None, Some(Fuse::Graph), Some(Fuse::Memory)] {
        let one = measured(dir.path(), 1, fuse);
        for workers in [2, 3, 5] {
            assert!(one == measured(dir.path(), workers, fuse), "{workers} workers, {fuse:?}");
        }
    }
}

#[test]
fn a_plugin_provider_computes_what_the_cpu_provider_does() {
    let Some(library) = test_support::openvino().map(|p| format!("openvino={}", p.display())) else { return };
    let dir = prepare();
    let dir = dir.path();
    let on = ["--ep-library", &library];
    let absent = ["generate", "g.onnx", "--seeds", "0", "--out", "x.npz", "--ep-library", "trt=absent.so"];
    let outcome = attempt(dir, &absent);
    assert!(
        outcome.code == 2
            && outcome.stderr.contains("`absent.so`: expected an execution provider library, found no such file"),
        "{outcome}"
    );
    let foreign = ["generate", "g.onnx", "--seeds", "0", "--out", "x.npz", "--ep-library", "trt=g.onnx"];
    let outcome = attempt(dir, &foreign);
    assert!(
        outcome.code == 2
            && outcome
                .stderr
                .contains("`g.onnx`: expected an execution provider library, found a file that cannot be registered"),
        "{outcome}"
    );
    // OpenVINO's provider offers Intel's devices only.
    if !fs::read_to_string("/proc/cpuinfo").unwrap_or_default().contains("GenuineIntel") {
        println!("skipped: OpenVINO's provider needs an Intel processor");
        let outcome = attempt(dir, &[&["generate", "g.onnx", "--seeds", "0", "--out", "x.npz"], &on[..]].concat());
        assert!(
            outcome.code == 2
                && outcome
                    .stderr
                    .contains("expected a provider for a device of this machine, found one that supports none"),
            "{outcome}"
        );
        assert!(!dir.join("x.npz").exists());
        return;
    }
    let compare =
        ["verify", "g.onnx", "--runtimes", "ort-cpu,ort-ep", "--profile", "--json", "v.json", "--tolerance", "1e-4"];
    let shown = d2o(dir, &[&compare[..], &on].concat());
    let verdict: Value = serde_json::from_slice(&fs::read(dir.join("v.json")).unwrap()).unwrap();
    assert_eq!(verdict["outputs"][0]["runtime"], "ort-OpenVINOExecutionProvider-CPU", "{verdict}");
    let nodes = |provider: &str| -> u64 {
        let all = verdict["nodes"].as_array().unwrap().iter();
        all.filter(|n| n["provider"] == provider).map(|n| n["count"].as_u64().unwrap()).sum()
    };
    assert!(nodes("OpenVINOExecutionProvider") > 50, "{verdict}");
    // Nodes that it leaves to the CPU cause a warning, and only those.
    assert_eq!(nodes("CPUExecutionProvider") > 0, shown.stderr.contains("assigned to the CPU"), "{shown}");

    // Batches take turns on the devices of the provider. It has one device, which is named twice here.
    for (devices, out) in [("0", "one.npz"), ("0,0", "two.npz")] {
        let made = ["generate", "g.onnx", "--seeds", "0-40", "--batch", "8", "--device", devices, "--out", out];
        d2o(dir, &[&made[..], &on].concat());
    }
    assert!(fs::read(dir.join("one.npz")).unwrap() == fs::read(dir.join("two.npz")).unwrap());
    d2o(dir, &["generate", "g.onnx", "--seeds", "50-120", "--out", "real.npz"]);
    let evaluate = |more: &[&str]| -> Value {
        let words =
            ["evaluate", "one.npz", "--ref", "real.npz", "--extractor", "f.onnx", "--batch", "8", "--json", "-"];
        let outcome = d2o(dir, &[&words[..], &on, &["--metrics", "fid,pr,kid"], more].concat());
        serde_json::from_str(&outcome.stdout).unwrap()
    };
    let (one, two) = (evaluate(&[]), evaluate(&["--device", "0,0"]));
    assert_eq!(one["metrics"], two["metrics"]);
    assert_eq!(one["runtime"]["runtime"], "ort-OpenVINOExecutionProvider-CPU", "{one}");
    assert!(one["runtime"]["onnxruntime"].as_str().unwrap().contains("git-"), "{one}");
    let outcome =
        attempt(dir, &[&["generate", "g.onnx", "--seeds", "0", "--out", "x.npz", "--device", "9"], &on[..]].concat());
    assert!(outcome.code == 2 && outcome.stderr.contains("no device 9"), "{outcome}");
}

#[test]
fn nodes_are_listed_by_provider() {
    let Some(library) = test_support::onnxruntime() else { return };
    let dir = prepare();
    let runtime = OrtRuntime::load(&library).unwrap();
    let options = OrtOptions::new(Provider::Cpu, Some(2));
    let mut session = runtime.session(&dir.path().join("f.onnx"), &options).unwrap();
    let nodes = session.nodes().unwrap();
    let convolutions = nodes.iter().filter(|n| n.op == "Conv").count();
    assert!(convolutions > 20 && nodes.iter().all(|n| n.provider == "CPUExecutionProvider"), "{nodes:?}");
    assert!(nodes.iter().all(|n| !n.op.is_empty()));
    // A session on the CPU reports no nodes as left to the CPU.
    assert_eq!(session.left_to_cpu().unwrap(), []);
    let images = ndarray::Array4::<u8>::zeros([1, 16, 16, 3]);
    let outputs = session.run(&[("images_u8", images.view().into())]).unwrap();
    assert_eq!(outputs[0].dims(), [1, 1280]);
    let outcome = d2o(dir.path(), &["verify", "f.onnx", "--profile", "--samples", "2"]);
    let row: Vec<&str> = outcome.stdout.lines().find(|l| l.contains(" Conv ")).unwrap().split_whitespace().collect();
    assert_eq!(row, ["CPUExecutionProvider", "Conv", &convolutions.to_string()], "{outcome}");
}

#[test]
fn what_is_not_there_is_refused() {
    let dir = prepare();
    let dir = dir.path();
    let generate = ["generate", "g.onnx", "--seeds", "0", "--out", "x.npz"];
    for (more, text) in [
        (&["--provider", "cpu", "--device", "0"][..], "require CUDA"),
        (&["--provider", "tract", "--tf32"], "require CUDA"),
        (&["--provider", "cpu", "--cudnn-benchmark"], "require CUDA"),
        (&["--rng", "torch-cpu", "--rng-gpu", "a100"], "--rng-gpu requires --rng torch-cuda"),
    ] {
        let outcome = attempt(dir, &[&generate[..], more].concat());
        assert!(outcome.code == 2 && outcome.stderr.contains(text), "{more:?}: {outcome}");
    }
    if cuda::devices().unwrap().is_empty() {
        // A request for a device or for CUDA does not fall back to the CPU.
        for more in [&["--device", "0"][..], &["--provider", "cuda"], &["--tf32"], &["--cudnn-benchmark"]] {
            let outcome = attempt(dir, &[&generate[..], more].concat());
            assert!(outcome.code == 2 && outcome.stderr.contains("CUDA"), "{more:?}: {outcome}");
            assert!(!dir.join("x.npz").exists());
        }
    }
    let outcome = attempt(dir, &["verify", "g.onnx", "--device", "0,1"]);
    assert!(outcome.code == 2 && outcome.stderr.contains("supports one device"), "{outcome}");
    let outcome = attempt(dir, &["verify", "g.onnx", "--runtimes", "ort-cpu,ort-ep"]);
    assert!(outcome.code == 2 && outcome.stderr.contains("--ep-library"), "{outcome}");
}

#[cfg(feature = "train")]
#[test]
fn training_takes_the_device_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_images(&dir.join("data.npz"), 0..8);
    let train = ["train", "--loss", "edm", "--data", "data.npz", "--outdir", "run", "--cbase", "16"];
    let small = ["--cres", "1", "--num-blocks", "1", "--batch", "4", "--duration", "0.000004", "--dropout", "0"];
    let with = |more: &[&str]| attempt(dir, &[&train[..], &small, more].concat());
    let outcome = with(&["--device", "cpu"]);
    assert!(outcome.code == 0 && outcome.stderr.contains(" · CPU · "), "{outcome}");
    if !tch::Cuda::is_available() {
        for (more, text) in
            [(&["--device", "0"][..], "libtorch finds 0 CUDA devices"), (&["--tf32"], "training runs on the CPU")]
        {
            let outcome = with(more);
            assert!(outcome.code == 2 && outcome.stderr.contains(text), "{more:?}: {outcome}");
        }
    }
}

#[test]
fn draws_are_those_of_generate() {
    let dir = prepare();
    let dir = dir.path();
    for rng in ["torch-cpu", "torch-cuda"] {
        let made = ["generate", "g.onnx", "--seeds", "5-9", "--rng", rng, "--save-latents", "l.npz", "--out", "s.npz"];
        d2o(dir, &[&made[..], &["--overwrite"]].concat());
        // The network has images of 16 pixels and classes.
        d2o(
            dir,
            &[
                "draw",
                "--seeds",
                "5-9",
                "--rng",
                rng,
                "--draw",
                "f32:768",
                "--draw",
                "i7",
                "--draw",
                "f64:5",
                "--out",
                "d.npz",
                "--overwrite",
            ],
        );
        let open = |name: &str| d2o_refs::npz::Npz::open(&dir.join(name)).unwrap();
        let (mut latents, mut draws) = (open("l.npz"), open("d.npz"));
        let values = |a: ndarray::ArrayD<f32>| a.iter().copied().collect::<Vec<f32>>();
        assert_eq!(values(latents.f32("latents").unwrap()), values(draws.f32("draw0").unwrap()), "{rng}");
        assert_eq!(latents.i64("labels").unwrap(), draws.i64("draw1").unwrap(), "{rng}");
        assert_eq!(draws.f64("draw2").unwrap().shape(), [5, 5]);
        assert_eq!(draws.i64("seeds").unwrap(), [5, 6, 7, 8, 9]);
    }
    let draw = ["draw", "--seeds", "0", "--rng", "torch-cuda", "--draw", "f32:196608", "--out", "d.npz"];
    d2o(dir, &[&draw[..], &["--rng-gpu", "a100", "--overwrite"]].concat());
    if cuda::devices().unwrap().is_empty() {
        fs::remove_file(dir.join("d.npz")).unwrap();
        let outcome = attempt(dir, &draw);
        assert!(outcome.code == 2 && outcome.stderr.contains("--rng-gpu a100"), "{outcome}");
        assert!(!dir.join("d.npz").exists());
    }
}
