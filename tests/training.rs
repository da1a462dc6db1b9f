//! Runs of `d2o train`: what an iteration changes, how runs end and resume, what they write and what they refuse.
#![cfg(feature = "train")]
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use d2o_converters::checkpoint::TensorSource as _;
use d2o_converters::checkpoint::safetensors::{self, SafetensorsFile, Tensor};
use d2o_converters::extractors::vgg16::{Vgg16, VggConfig};
use d2o_converters::onnx::OnnxBackend;
use d2o_converters::weights::{Init, Scope, Weights};
use d2o_refs::batch::ImageSource as _;
use d2o_refs::npz::Pack;
use fs_err as fs;
use serde_json::Value;
use test_support::Outcome;

mod common;
use common::{attempt, d2o, write_images, write_labelled, write_lite0};

const STATE: &str = "training-state.safetensors";
const NETWORK: [&str; 10] =
    ["--arch", "ncsnpp", "--cbase", "16", "--cres", "1,1", "--num-blocks", "1", "--attn-resolutions", "16"];
/// Settings with which the discriminator is fast.
const SMALL: [&str; 8] =
    ["--backbone", "lite0.safetensors", "--feature-resolution", "64", "--r1-interval", "2", "--tick", "0.008"];

/// A folder with `data.npz`, `lite0.safetensors` and a denoiser, `edm/network-snapshot-000000_008.safetensors`.
fn prepare() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_images(&dir.path().join("data.npz"), 0..12);
    write_lite0(dir.path(), 1, "lite0");
    edm(dir.path(), "edm", "0.000008", &[]);
    dir
}

/// Trains with the EDM loss on `data.npz` for `mimg` million images, in batches of 4.
fn edm(dir: &Path, outdir: &str, mimg: &str, more: &[&str]) {
    let train = ["--threads", "1", "train", "--loss", "edm", "--data", "data.npz", "--outdir", outdir, "--batch", "4"];
    let options = ["--duration", mimg, "--lr-rampup-kimg", "0", "--tick", "0.008"];
    d2o(dir, &[&train[..], &NETWORK, &options, more].concat());
}

const DENOISER: &str = "edm/network-snapshot-000000_008.safetensors";

/// Arguments for training with the D2O loss from the denoiser, in batches of 4.
fn words<'a>(outdir: &'a str, mimg: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let train =
        ["--threads", "1", "train", "--transfer", DENOISER, "--data", "data.npz", "--outdir", outdir, "--batch", "4"];
    // A seed other than the denoiser's. Its constants must survive a resumption.
    [&train[..], &["--duration", mimg, "--seed", "7"], &SMALL, more].concat()
}

fn tune(dir: &Path, outdir: &str, mimg: &str, more: &[&str]) -> Outcome {
    d2o(dir, &words(outdir, mimg, more))
}

fn refused(dir: &Path, args: &[&str], text: &str) {
    let outcome = attempt(dir, args);
    assert!(outcome.code == 2 && outcome.stderr.contains(text), "{text}: {outcome}");
}

fn bytes(dir: &Path, outdir: &str) -> Vec<u8> {
    fs::read(dir.join(outdir).join(STATE)).unwrap()
}

/// `stats.jsonl` without times and memory.
fn stats(dir: &Path, outdir: &str) -> Vec<Value> {
    let lines = fs::read_to_string(dir.join(outdir).join("stats.jsonl")).unwrap();
    let line = |l: &str| {
        let mut line: Value = serde_json::from_str(l).unwrap();
        let object = line.as_object_mut().unwrap();
        object.retain(|k, _| k.starts_with("Loss/") || k.starts_with("Progress/"));
        line
    };
    lines.lines().map(line).collect()
}

fn open(dir: &Path, path: &str) -> SafetensorsFile {
    SafetensorsFile::open(&dir.join(path)).unwrap()
}

/// Fails unless the states of two runs hold the same tensors.
fn assert_same_tensors(dir: &Path, outdir: &str, other: &str) {
    let [a, b] = [outdir, other].map(|o| open(dir, &format!("{o}/{STATE}")));
    assert!(!a.names().is_empty() && a.names() == b.names());
    for name in a.names() {
        assert!(a.read_f32(&name).unwrap() == b.read_f32(&name).unwrap(), "{name} of {outdir} and {other}");
    }
}

#[test]
fn the_first_iteration_moves_every_trained_tensor_by_the_learning_rate() {
    let dir = prepare();
    let dir = dir.path();
    for (freeze, outdir) in [("0", "all"), ("1", "some")] {
        tune(dir, outdir, "0.000004", &["--lr", "1e-3", "--freeze", freeze]);
        let (before, after) = (open(dir, DENOISER), open(dir, &format!("{outdir}/{STATE}")));
        let (mut moved, mut kept) = (0, Vec::new());
        for name in before.names().into_iter().filter(|n| n.starts_with("ema.")) {
            let path = name.strip_prefix("ema.").unwrap();
            if path.contains("freqs") || path.contains("resample") || path.contains("map_augment") {
                continue;
            }
            let (a, b) = (before.read_f32(&name).unwrap(), after.read_f32(&format!("net.{path}")).unwrap());
            let most = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            if most == 0.0 {
                kept.push(path.to_owned());
                continue;
            }
            // Without momentum, the first step of Adam is the learning rate wherever the gradient is well above 1e-8.
            assert!((most - 1e-3).abs() < 1e-4, "{path} moved by {most}");
            moved += 1;
        }
        let frozen = |n: &String| ["conv0", "conv1", "proj"].iter().any(|l| n.contains(l)) && freeze == "1";
        assert!(moved > 20 && kept.iter().all(frozen) && kept.is_empty() == (freeze == "0"), "{moved}, kept {kept:?}");
    }
}

#[test]
fn a_resumed_run_ends_where_an_undisturbed_one_does() {
    let dir = prepare();
    let dir = dir.path();
    // Six iterations, with R1 in two of them. The strength of augmentation is adjusted after four. Ticks end after 4,
    // 12 and 20 images, so the first part ends with a tick and the whole run between two.
    let ada = ["--augment-p", "0.2", "--ada-target", "0.5", "--diffaug", "--optimizer", "radam"];
    let more = [&["--xflip", "--dump", "1", "--snap", "1", "--batch-gpu", "2"][..], &ada].concat();
    tune(dir, "whole", "0.000024", &more);
    tune(dir, "parts", "0.000012", &more);
    assert!(bytes(dir, "whole") != bytes(dir, "parts"));
    // Only the folder and the new duration are given again.
    d2o(dir, &["--threads", "1", "train", "--outdir", "parts", "--resume", "--duration", "0.000024"]);
    assert!(bytes(dir, "whole") == bytes(dir, "parts"), "a resumed run ends elsewhere than an undisturbed one");
    let lines = stats(dir, "whole");
    assert_eq!(lines, stats(dir, "parts"));
    let strength = |line: &Value| line["Progress/augment"]["mean"].as_f64().unwrap();
    assert!((strength(&lines[0]) - 0.2).abs() < 1e-6 && (strength(&lines[2]) - 0.2).abs() > 1e-6, "{lines:?}");
    let snapshot = "network-snapshot-000000_024.safetensors";
    let [a, b] = ["whole", "parts"].map(|run| fs::read(dir.join(run).join(snapshot)).unwrap());
    assert!(a == b);

    edm(dir, "edm-whole", "0.000024", &[]);
    edm(dir, "edm-parts", "0.000012", &[]);
    edm(dir, "edm-parts", "0.000024", &["--resume"]);
    assert!(bytes(dir, "edm-whole") == bytes(dir, "edm-parts"));

    // Frozen layers keep the transferred weights, the others change. The snapshot holds average and network, and can be
    // exported.
    let (before, after) = (open(dir, DENOISER), open(dir, &format!("whole/{snapshot}")));
    let same = |net: &str, name: &str| {
        before.read_f32(&format!("ema.{name}")).unwrap() == after.read_f32(&format!("{net}.{name}")).unwrap()
    };
    assert!(same("ema", "model.enc.32x32_block0.conv0.weight") && same("net", "model.enc.32x32_block0.conv0.weight"));
    assert!(!same("ema", "model.enc.32x32_block0.norm0.weight") && !same("net", "model.enc.32x32_block0.norm0.weight"));
    d2o(dir, &["export", &format!("whole/{snapshot}"), "--out", "tuned.onnx"]);
}

/// Writes random weights of LPIPS as `vgg.safetensors` and `NAME.safetensors`.
fn write_lpips(dir: &Path, seed: u64, name: &str) {
    let mut b = OnnxBackend::new("names", Weights::initialised(seed));
    // The classifier is not used.
    let config = VggConfig { hidden: [1, 1], classes: 1, ..VggConfig::torchvision(false) };
    Vgg16::build(&mut b, &Scope::root(), &config).unwrap();
    let vgg = b.weights().taken().map(|(name, dims)| (name.to_owned(), dims.to_vec()));
    let linear = [64, 128, 256, 512, 512].into_iter().enumerate();
    let linear = linear.map(|(i, c)| (format!("lin{i}.model.1.weight"), vec![1, c, 1, 1]));
    for (file, all) in [("vgg", vgg.collect::<Vec<_>>()), (name, linear.collect())] {
        let drawn = |(name, dims): (String, Vec<usize>)| {
            let std = match dims.len() {
                1 => 0.0,
                _ => (2.0 / dims[1..].iter().product::<usize>() as f64).sqrt(),
            };
            let mut values = Init::Normal { std }.values(seed, &name, dims.iter().product());
            if name.starts_with("lin") {
                values.iter_mut().for_each(|v| *v = v.abs());
            }
            Tensor { name, dims, values }
        };
        let tensors: Vec<Tensor> = all.into_iter().map(drawn).collect();
        safetensors::write(&dir.join(format!("{file}.safetensors")), &tensors, &BTreeMap::new()).unwrap();
    }
}

#[test]
fn a_generator_is_distilled_with_and_without_a_discriminator() {
    let dir = prepare();
    let dir = dir.path();
    write_lpips(dir, 1, "linear");
    let teacher = |linear: &'static str| {
        let files = ["--target", DENOISER, "--lpips-weights", "vgg.safetensors", "--lpips-weights", linear];
        [&files[..], &["--max-steps", "4"]].concat()
    };
    let alone = |outdir: &'static str, mimg: &'static str, more: &[&'static str]| {
        let train = ["train", "--transfer", DENOISER, "--data", "data.npz", "--batch", "2", "--tick", "0.002"];
        let train = [&train[..], &["--outdir", outdir, "--duration", mimg, "--teacher-only"]].concat();
        [&train, &teacher("linear.safetensors")[..], more].concat()
    };
    d2o(dir, &alone("whole", "0.000006", &["--teacher-type", "ctm"]));
    d2o(dir, &alone("parts", "0.000004", &["--teacher-type", "ctm"]));
    let resume = |more: &[&'static str]| {
        [&["train", "--outdir", "parts", "--resume", "--duration", "0.000006"][..], more].concat()
    };
    refused(dir, &resume(&["--teacher-type", "cd"]), "--teacher-type: \"ctm\" → \"cd\"");
    edm(dir, "edm2", "0.000008", &["--seed", "9"]);
    let other = "edm2/network-snapshot-000000_008.safetensors";
    refused(dir, &resume(&["--target", other]), "--target has changed since the run was started");
    d2o(dir, &resume(&[]));
    assert!(bytes(dir, "whole") == bytes(dir, "parts"), "a resumed run ends elsewhere than an undisturbed one");
    let lines = stats(dir, "whole");
    assert_eq!(lines, stats(dir, "parts"));
    let distance = |line: &Value| line["Loss/dist/fake"]["mean"].as_f64().unwrap();
    assert!(lines.iter().all(|l| distance(l) > 0.0 && l["Loss/G/loss"]["mean"] == l["Loss/dist/fake"]["mean"]));
    assert!(lines.iter().all(|l| l.get("Loss/D/loss").is_none()));
    let state = open(dir, &format!("whole/{STATE}"));
    assert!(state.names().iter().all(|n| ["ema.", "net.", "optimizer.net."].iter().any(|p| n.starts_with(p))));
    // The same weights in another file, then other weights in that file.
    write_lpips(dir, 1, "again");
    d2o(dir, &resume(&["--lpips-weights", "again.safetensors", "--lpips-weights", "vgg.safetensors"]));
    write_lpips(dir, 2, "again");
    refused(dir, &resume(&[]), "--lpips-weights has changed since the run was started");
    write_lpips(dir, 1, "again");

    // In addition to the adversarial loss, for a generator of two steps.
    let both = [&teacher("linear.safetensors")[..], &["--teacher-type", "rcd", "--multi-step-g", "2"]].concat();
    tune(dir, "both", "0.000008", &both);
    let lines = stats(dir, "both");
    for name in ["Loss/dist/fake", "Loss/G/loss", "Loss/D/loss", "Loss/logits/fake"] {
        assert!(lines.iter().all(|l| l[name]["mean"].is_number()), "{name}: {lines:?}");
    }
    // Without the weight files, and with a teacher of the wrong class.
    refused(dir, &words("bad", "0.000004", &["--teacher-type", "cd", "--target", DENOISER]), "vgg16-397923af.pth");
    let tuned = "both/network-snapshot-000000_008.safetensors";
    let wrong = [&words("bad", "0.000004", &[])[..], &["--teacher-type", "cd", "--target", tuned]].concat();
    refused(dir, &wrong, "expected EDMPrecond, found D2OPrecond");
}

#[test]
fn a_generator_of_several_steps_is_sampled_as_it_was_trained() {
    let dir = prepare();
    let dir = dir.path();
    let images = |graph: &str, out: &str, more: &[&str]| {
        d2o(dir, &[&["generate", graph, "--seeds", "0-3", "--out", out], more].concat());
        Pack::open(&dir.join(out)).unwrap().read(0..4).unwrap()
    };
    for (outdir, steps, said, same, other) in [
        (
            "two",
            &["--multi-step-g", "2", "--middle-sigma", "0.5"][..],
            "two-step",
            &["--sampler", "two-step", "--middle", "0.5"][..],
            &["--sampler", "two-step", "--middle", "1"][..],
        ),
        (
            "three",
            &["--multi-step-g", "3"],
            "multi-step",
            &["--sampler", "multi-step", "--num-steps", "3"],
            &["--sampler", "multi-step", "--num-steps", "4"],
        ),
    ] {
        let more = [steps, &["--dump", "1", "--freeze", "0", "--pickle"]].concat();
        tune(dir, outdir, "0.000016", &more);
        let parts = format!("{outdir}-parts");
        tune(dir, &parts, "0.000008", &more);
        d2o(dir, &["--threads", "1", "train", "--outdir", &parts, "--resume", "--duration", "0.000016"]);
        assert!(bytes(dir, outdir) == bytes(dir, &parts));
        let snapshot = format!("{outdir}/network-snapshot-000000_016.safetensors");
        let graph = format!("{outdir}.onnx");
        let exported = d2o(dir, &["export", &snapshot, "--out", &graph, "--no-check"]);
        assert!(exported.stderr.contains(&format!("trained for {said} sampling")), "{exported}");
        let found = images(&graph, &format!("{outdir}-a.npz"), &[]);
        assert!(found == images(&graph, &format!("{outdir}-b.npz"), same), "{said}");
        assert!(found != images(&graph, &format!("{outdir}-c.npz"), other), "{said}");
        // The pickle has the same network and the same description.
        let pickled = format!("{outdir}-pickled.onnx");
        let exported = d2o(dir, &["export", &snapshot.replace("safetensors", "pkl"), "--out", &pickled, "--no-check"]);
        assert!(exported.stderr.contains(&format!("trained for {said} sampling")), "{exported}");
        assert!(found == images(&pickled, &format!("{outdir}-d.npz"), &[]), "{said}");
        let first = ["export", &snapshot, "--kind", "one-step", "--out", "first.onnx", "--no-check", "--overwrite"];
        assert!(d2o(dir, &first).stderr.contains("the graph computes the first step only"));
        // A sampler of another kind uses its own defaults.
        d2o(dir, &["generate", &graph, "--seeds", "0", "--sampler", "heun", "--out", &format!("{outdir}-h.npz")]);
    }
}

/// Starts a run that does not end by itself, and waits until it has written `file`.
fn started(dir: &Path, outdir: &str, more: &[&str], file: &str) -> Child {
    let child = Command::new(env!("CARGO_BIN_EXE_d2o"))
        .args(words(outdir, "1", more))
        .current_dir(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let child = child.unwrap();
    let start = Instant::now();
    while !dir.join(outdir).join(file).exists() && start.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

/// Resumes `outdir` for four iterations, and compares it with an undisturbed run.
fn assert_goes_on(dir: &Path, outdir: &str, more: &[&str]) {
    let state = open(dir, &format!("{outdir}/{STATE}"));
    let (_, images) = state.metadata().iter().find(|(key, _)| key == "images").unwrap();
    let mimg = format!("{:.6}", (images.parse::<f64>().unwrap() + 16.0) / 1e6);
    let before = bytes(dir, outdir);
    d2o(dir, &["--threads", "1", "train", "--outdir", outdir, "--resume", "--duration", &mimg]);
    tune(dir, "whole", &mimg, more);
    assert!(bytes(dir, "whole") != before && bytes(dir, "whole") == bytes(dir, outdir));
    assert_eq!(stats(dir, "whole"), stats(dir, outdir));
}

#[test]
fn a_killed_run_loses_what_came_after_its_last_state() {
    let dir = prepare();
    let more = ["--dump", "1", "--snap", "0"];
    let mut child = started(dir.path(), "killed", &more, STATE);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_goes_on(dir.path(), "killed", &more);
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_goes_on() {
    let dir = prepare();
    let more = ["--dump", "0", "--snap", "0"];
    let mut child = started(dir.path(), "stopped", &more, "stats.jsonl");
    // Not INT: shells start background processes with SIGINT ignored.
    assert!(Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_goes_on(dir.path(), "stopped", &more);
}

#[test]
fn parts_of_a_batch_are_averaged() {
    // With one part the run is the same as without parts. With two parts it differs: each part has its own noise, and
    // the batch normalisation of the discriminator sees one part at a time.
    let dir = prepare();
    let dir = dir.path();
    tune(dir, "whole", "0.000008", &[]);
    tune(dir, "one", "0.000008", &["--batch-gpu", "4"]);
    tune(dir, "two", "0.000008", &["--batch-gpu", "2"]);
    let state = |run: &str| open(dir, &format!("{run}/{STATE}"));
    let (whole, one, two) = (state("whole"), state("one"), state("two"));
    let mut projections = 0;
    for name in two.names() {
        match name.strip_prefix("d.rank1.") {
            // The second part has its own projections.
            Some(path) => {
                projections += 1;
                assert_ne!(two.read_f32(&name).unwrap(), two.read_f32(&format!("d.{path}")).unwrap(), "{path}");
            }
            None => assert_eq!(whole.read_f32(&name).unwrap(), one.read_f32(&name).unwrap(), "{name}"),
        }
    }
    assert!(projections > 8);
}

/// `d2o` with `args` in two processes; `None` if MPI is missing and tests may be skipped.
fn in_two(dir: &Path, args: &[&str]) -> Option<Command> {
    in_each(dir, &[args, args])
}

/// One process of `d2o` for each list of arguments.
fn in_each(dir: &Path, lists: &[&[&str]]) -> Option<Command> {
    let (library, launcher) = test_support::mpi()?;
    let mut command = Command::new(launcher);
    for (i, args) in lists.iter().enumerate() {
        command.args(if i == 0 { &["-n", "1"][..] } else { &[":", "-n", "1"] });
        command.arg(env!("CARGO_BIN_EXE_d2o")).args(*args);
    }
    // Processes that wait for each other forever fail the test.
    command.env("D2O_MPI", library).env("MPIEXEC_TIMEOUT", "300").current_dir(dir);
    Some(command)
}

/// Exit code and standard error of the command.
fn ended(mut command: Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn done(command: Command) {
    let (code, stderr) = ended(command);
    assert_eq!(code, Some(0), "{stderr}");
}

#[test]
fn processes_are_parts_of_a_batch() {
    let dir = prepare();
    let dir = dir.path();
    // Five iterations, R1 in two of them, the strength of augmentation adjusted after four.
    let ada = ["--augment-p", "0.2", "--ada-target", "0.5", "--diffaug", "--dump", "1", "--snap", "1"];
    let parts = [&ada[..], &["--batch-gpu", "2"]].concat();
    tune(dir, "parts", "0.00002", &parts);
    let Some(command) = in_two(dir, &words("processes", "0.00002", &ada)) else { return };
    done(command);
    assert!(bytes(dir, "parts") == bytes(dir, "processes"), "two processes end elsewhere than two parts of a batch");
    assert_eq!(stats(dir, "parts"), stats(dir, "processes"));
    let file = |run: &str, name: &str| fs::read(dir.join(run).join(name)).unwrap();
    let snapshot = "network-snapshot-000000_020.safetensors";
    assert!(file("parts", snapshot) == file("processes", snapshot));
    let record: Value = serde_json::from_slice(&file("processes", "training_options.json")).unwrap();
    assert_eq!(record["processes"], 2);
    let log = String::from_utf8(file("processes", "log.txt")).unwrap();
    assert!(
        log.contains("batch 4 in 2 parts on 2 processes") && log.lines().filter(|l| l.contains("kimg")).count() == 3
    );

    // A run can resume with another number of processes.
    tune(dir, "first-parts", "0.000008", &parts);
    done(in_two(dir, &words("first-processes", "0.000008", &ada)).unwrap());
    let resume = |run| ["--threads", "1", "train", "--outdir", run, "--resume", "--duration", "0.00002"];
    done(in_two(dir, &resume("first-parts")).unwrap());
    d2o(dir, &resume("first-processes"));
    for run in ["first-parts", "first-processes"] {
        assert!(bytes(dir, "parts") == bytes(dir, run), "{run}");
        assert_eq!(stats(dir, "parts"), stats(dir, run));
    }

    // Without a discriminator.
    edm(dir, "edm-parts", "0.000008", &["--batch-gpu", "2"]);
    let train = ["--threads", "1", "train", "--loss", "edm", "--data", "data.npz", "--outdir", "edm-processes"];
    let options = ["--batch", "4", "--duration", "0.000008", "--lr-rampup-kimg", "0", "--tick", "0.008"];
    done(in_two(dir, &[&train[..], &NETWORK, &options].concat()).unwrap());
    assert!(bytes(dir, "edm-parts") == bytes(dir, "edm-processes"));
}

/// Process ids of a run, from its log.
#[cfg(unix)]
fn process_ids(dir: &Path, outdir: &str) -> Vec<String> {
    let log = fs::read_to_string(dir.join(outdir).join("log.txt")).unwrap();
    let id = |line: &str| Some(line.strip_prefix("process ")?.split_once("PID ")?.1.trim_end_matches(')').to_owned());
    log.lines().filter_map(id).collect()
}

#[cfg(unix)]
#[test]
fn processes_end_together() {
    let dir = prepare();
    let dir = dir.path();
    let more = ["--dump", "1", "--snap", "0", "--augment-p", "0.2", "--ada-target", "0.5"];
    // Forty iterations, two per tick.
    tune(dir, "whole", "0.00016", &[&more[..], &["--batch-gpu", "2"]].concat());
    // One process is killed after ten ticks, or asked to stop after the first.
    for (signal, outdir, ticks) in [("KILL", "killed", 10), ("INT", "stopped", 1)] {
        let Some(mut command) = in_two(dir, &words(outdir, "0.00016", &more)) else { return };
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let start = Instant::now();
        let lines = || fs::read_to_string(dir.join(outdir).join("stats.jsonl")).unwrap_or_default().lines().count();
        let begun = || lines() >= ticks && dir.join(outdir).join(STATE).exists();
        while !begun() && start.elapsed() < Duration::from_secs(120) {
            std::thread::sleep(Duration::from_millis(2));
        }
        let ids = process_ids(dir, outdir);
        assert_eq!(ids.len(), 2, "{ids:?}");
        let sent = Instant::now();
        assert!(Command::new("kill").args(["-s", signal, &ids[1]]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        let (code, stderr) = (output.status.code(), String::from_utf8_lossy(&output.stderr));
        assert!(sent.elapsed() < Duration::from_secs(60), "{stderr}");
        assert!(!Path::new("/proc").join(&ids[0]).exists(), "the other process is left");
        match signal {
            // The launcher's message has the process id. The log lists it with the number of the process.
            "KILL" => assert!(code != Some(0) && stderr.contains(&ids[1]), "{code:?}: {stderr}"),
            _ => assert!(code == Some(130) && stderr.matches("the state is saved").count() == 1, "{code:?}: {stderr}"),
        }
        assert!(bytes(dir, "whole") != bytes(dir, outdir));
        done(in_two(dir, &["--threads", "1", "train", "--outdir", outdir, "--resume"]).unwrap());
        assert!(bytes(dir, "whole") == bytes(dir, outdir), "{outdir}");
        assert_eq!(stats(dir, "whole"), stats(dir, outdir));
    }

    // An error of all processes, of process 0 or of process 1 alone is reported once and ends both.
    let refused = |command: Option<Command>, text: &str| {
        let (code, stderr) = ended(command.unwrap());
        let once = stderr.matches("error:").count() == 1;
        assert!(code == Some(2) && once && stderr.contains(text), "{text}: {code:?}: {stderr}");
    };
    refused(in_two(dir, &words("whole", "0.000028", &[])), "contains another run");
    refused(in_two(dir, &words("bad", "0.000028", &["--cond"])), "--cond true: the network has 0 classes");
    assert!(!dir.join("bad").exists());
    fs::remove_file(dir.join("stopped/stats.jsonl")).unwrap();
    fs::create_dir(dir.join("stopped/stats.jsonl")).unwrap();
    refused(in_two(dir, &["train", "--outdir", "stopped", "--resume", "--duration", "0.00004"]), "stats.jsonl");
    let good = words("bad", "0.000028", &[]);
    let with = |data| -> Vec<&str> { good.iter().map(|w| if *w == "data.npz" { data } else { *w }).collect() };
    refused(in_each(dir, &[&good, &with("missing.npz")]), "process 1 of 2 (");
    write_images(&dir.join("other.npz"), 1..13);
    refused(in_each(dir, &[&good, &with("other.npz")]), "files of --data differ from those of process 0");
}

#[test]
fn processes_need_the_library_of_their_launcher() {
    let Some((library, _)) = test_support::mpi() else { return };
    let dir = prepare();
    let refused = |library: &Path, text: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_d2o"));
        command.args(words("run", "0.000004", &[])).current_dir(dir.path()).env("D2O_MPI", library);
        // Variables of another implementation.
        command.envs([("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2")]);
        let (code, stderr) = ended(command);
        assert!(code == Some(2) && stderr.contains(text), "{text}: {code:?}: {stderr}");
    };
    refused(&library, "process 0 of 1 according to `");
    refused(Path::new("missing.so"), "no library of the standard MPI ABI was found");
}

/// On CPUs the processes of torchrun connect, then fail with a hint to use mpiexec.
#[test]
fn torchrun_is_for_cuda() {
    let dir = prepare();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let children: Vec<Child> = ["0", "1"]
        .map(|rank| {
            let variables = [("RANK", rank), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port)];
            Command::new(env!("CARGO_BIN_EXE_d2o"))
                .args(words("run", "0.000004", &["--device", "cpu"]))
                .current_dir(dir.path())
                .envs(variables)
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .into();
    let outputs: Vec<_> = children.into_iter().map(|c| c.wait_with_output().unwrap()).collect();
    let [first, second] = [0, 1].map(|i| String::from_utf8_lossy(&outputs[i].stderr).into_owned());
    assert!(outputs.iter().all(|o| o.status.code() == Some(2)), "{first}{second}");
    assert!(first.contains("use mpiexec") && second.is_empty(), "{first}{second}");
}

#[test]
fn a_run_writes_a_log_that_can_be_followed() {
    let dir = prepare();
    let dir = dir.path();
    // With a weight of zero, R1 is not computed and not logged.
    tune(dir, "run", "0.00002", &["--r1-gamma", "0", "--snap", "0", "--dump", "0", "--grid", "2", "--pickle"]);
    let lines = stats(dir, "run");
    let kimg: Vec<f64> = lines.iter().map(|l| l["Progress/kimg"]["mean"].as_f64().unwrap()).collect();
    assert_eq!(kimg, [0.004, 0.012, 0.02]);
    for (name, num) in [("Loss/G/loss", 1.0), ("Loss/logits/fake", 144.0), ("Loss/signs/real", 144.0)] {
        assert_eq!(lines[0][name]["num"], num, "{name}");
        assert!(lines.iter().all(|l| l[name]["mean"].is_number()), "{name}");
    }
    assert!(lines.iter().all(|l| l.get("Loss/r1_penalty").is_none()));
    let json =
        |name: &str| -> Value { serde_json::from_slice(&fs::read(dir.join("run").join(name)).unwrap()).unwrap() };
    let record = json("training_options.json");
    assert_eq!((&record["options"]["batch"], &record["options"]["preset"]), (&4.into(), &"small".into()));
    assert_eq!(record["dataset"]["pixels_sha256"].as_str().unwrap().len(), 64);
    let log = fs::read_to_string(dir.join("run/log.txt")).unwrap();
    assert!(log.contains("preset small") && log.lines().filter(|l| l.contains("kimg")).count() == 3, "{log}");
    let names: Vec<String> =
        fs::read_dir(dir.join("run")).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    assert!(names.iter().any(|n| n.starts_with("events.out.tfevents.")), "{names:?}");
    let pixels = |name: &str| image::open(dir.join("run").join(name)).unwrap().to_rgb8();
    assert_eq!(pixels("reals.png").dimensions(), (256, 256));
    // The grid begins with the first real image. Generated images change during training.
    let first = common::image(0);
    assert!((0..32).all(|i| pixels("reals.png").get_pixel(i, i).0[0] == first[[i as usize, i as usize, 0]]));
    assert!(pixels("fakes_init.png") != pixels("fakes000000.png"));
    let pickled = fs::read(dir.join("run/network-snapshot-000000.pkl")).unwrap();
    assert!(pickled.starts_with(b"\x80\x04") && pickled.ends_with(b"."));
    let python = Command::new("python3")
        .args(["-m", "pickletools", "run/network-snapshot-000000.pkl"])
        .current_dir(dir)
        .output();
    match python {
        Ok(listing) => {
            let text = String::from_utf8_lossy(&listing.stdout);
            assert!(listing.status.success() && text.contains("load_state_dict"), "{text}");
        }
        Err(why) => println!("skipped: python3: {why}"),
    }
    // The report plots the log.
    d2o(dir, &["report", "--losses", "run=run/stats.jsonl", "--out", "r.html"]);
    assert!(fs::read_to_string(dir.join("r.html")).unwrap().contains("discriminator"));
}

#[test]
fn settings_are_shown_and_runs_are_kept() {
    let dir = prepare();
    let dir = dir.path();
    let shown = d2o(dir, &[&words("run", "0.000004", &[])[..], &["--dry-run"]].concat());
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!((&shown["options"]["r1-interval"], &shown["network"]["class"]), (&2.into(), &"D2OPrecond".into()));
    assert!(!dir.join("run").exists());
    let list = d2o(dir, &["train", "--preset", "list"]);
    assert!(list.stdout.contains("small") && list.stdout.contains("edm"), "{list}");

    tune(dir, "run", "0.000004", &[]);
    let before = bytes(dir, "run");
    refused(dir, &words("run", "0.000004", &[]), "contains another run");
    assert_eq!(bytes(dir, "run"), before);
    for name in ["00000", "00001-again"] {
        let desc = name.split_once('-').map_or(vec![], |(_, d)| vec!["--desc", d]);
        tune(dir, "runs", "0.000004", &[&["--numbered"][..], &desc].concat());
        assert!(dir.join("runs").join(name).join(STATE).exists(), "{name}");
    }

    // One process at a time.
    let busy = fs::OpenOptions::new().append(true).open(dir.join("run/log.txt")).unwrap();
    busy.file().lock().unwrap();
    refused(dir, &["train", "--outdir", "run", "--resume"], "another process is training in `run`");
    drop(busy);

    // A run resumes with its own settings. Other settings must be allowed.
    let resume = |more: &[&'static str]| {
        [&["train", "--outdir", "run", "--resume", "--duration", "0.000008"][..], more].concat()
    };
    refused(dir, &resume(&["--lr", "1e-5", "--seed", "8"]), "--lr: 0.0001 → 0.00001, --seed: 7 → 8");
    write_images(&dir.join("other.npz"), 1..13);
    refused(dir, &resume(&["--data", "other.npz"]), "--data has changed since the run was started");
    write_lite0(dir, 2, "other");
    refused(
        dir,
        &resume(&["--backbone", "other.safetensors"]),
        "--backbone-weights has changed since the run was started",
    );
    assert_eq!(bytes(dir, "run"), before);
    let outcome = d2o(dir, &resume(&["--lr", "1e-5", "--resume-with"]));
    assert!(outcome.stderr.contains("resumed with --lr: 0.0001 → 0.00001"), "{outcome}");
    refused(dir, &["train", "--outdir", "nowhere", "--resume"], "nothing to resume");
}

#[test]
fn bad_input_is_one_clear_error() {
    let dir = prepare();
    let dir = dir.path();
    let with = |more: &[&'static str]| [&words("bad", "0.000004", &[])[..], more].concat();
    refused(dir, &with(&["--cond"]), "--cond true: the network has 0 classes");
    refused(dir, &with(&["--arch", "adm"]), "--arch requires `--loss edm`");
    refused(dir, &with(&["--batch-gpu", "3"]), "expected a divisor of --batch 4");
    refused(dir, &with(&["--lr", "nan"]), "expected a finite number");
    // Feature networks: missing, unsupported, without classes to embed, without heads.
    refused(dir, &with(&["--backbones", "vgg16_bn+lite0"]), "vgg16_bn-6c64b313.pth");
    refused(dir, &with(&["--backbones", "deit+lite0"]), "deit_base_distilled_patch16_224-df68dfff.pth");
    refused(dir, &with(&["--backbones", "vit+efficientnet_b0"]), "is not supported");
    refused(dir, &with(&["--random-class-embeddings"]), "this network has no classes");
    let mut npz = d2o_refs::npz::NpzWriter::create(&dir.join("16.npz")).unwrap();
    npz.start("arr_0", d2o_refs::npy::Dtype::U8, &[4, 16, 16, 3]).unwrap();
    npz.raw(&[7; 4 * 768]).unwrap();
    npz.finish().unwrap();
    let other: Vec<&str> =
        words("bad", "0.000004", &[]).iter().map(|w| if *w == "data.npz" { "16.npz" } else { w }).collect();
    refused(dir, &other, "the network generates 32-pixel images, but `16.npz` contains 16-pixel images");
    assert!(!dir.join("bad").exists());

    // A conditional network with images without classes, or with a class out of range.
    let train = ["train", "--loss", "edm", "--data", "data.npz", "--outdir", "bad", "--batch", "4", "--label-dim", "3"];
    let train = [&train[..], &NETWORK, &["--duration", "0.000004"]].concat();
    refused(dir, &train, "the dataset has no labels");
    write_labelled(&dir.join("data.npz"), 0..12, |i| Some(i64::try_from(i % 4).unwrap()));
    refused(dir, &train, "label 3 of the dataset: expected 0 to 2");
    assert!(!dir.join("bad").exists());
}

#[test]
fn divergence_is_one_clear_error() {
    let dir = prepare();
    let dir = dir.path();
    refused(dir, &words("run", "0.001", &["--lr", "1e30", "--snap", "0"]), "training diverged: the last 16 losses of");
}

#[test]
fn adm_is_adm() {
    let dir = prepare();
    let shown = ["train", "--loss", "edm", "--arch", "adm", "--label-dim", "1000", "--data", "data.npz", "--dry-run"];
    let shown: Value = serde_json::from_str(&d2o(dir.path(), &shown).stdout).unwrap();
    let kwargs = &shown["network"]["init_kwargs"];
    assert_eq!(
        (&kwargs["model_channels"], &kwargs["channel_mult"], &kwargs["num_blocks"], &kwargs["attn_resolutions"]),
        (&192.into(), &serde_json::json!([1, 2, 3, 4]), &3.into(), &serde_json::json!([32, 16, 8]))
    );
}

#[test]
fn snapshots_are_evaluated() {
    if test_support::onnxruntime().is_none() {
        println!("skipped: no ONNX Runtime");
        return;
    }
    let dir = prepare();
    let dir = dir.path();
    let sizes = ["--input-size", "64", "--image-size", "32", "--no-check", "--out", "f.onnx"];
    d2o(dir, &[&["export", "lite0.safetensors"][..], &sizes].concat());
    d2o(dir, &["refs", "make", "data.npz", "--extractor", "f.onnx", "--out", "ref.npz"]);
    let evaluated =
        ["--eval-ref", "ref.npz", "--eval-extractor", "f.onnx", "--eval-images", "8", "--snap", "1", "--keep-best"];
    refused(dir, &words("run", "0.000012", &evaluated[..2]), "--eval-ref requires a feature extractor");
    refused(dir, &words("run", "0.000012", &["--keep-best"]), "--keep-best requires an evaluation");
    refused(dir, &words("run", "0.000012", &evaluated[2..4]), "--eval-extractor requires --eval-ref");
    let outcome = tune(dir, "run", "0.000012", &evaluated);
    assert!(outcome.stderr.contains("evaluated in "), "{outcome}");
    let lines = || -> Vec<Value> {
        let text = fs::read_to_string(dir.join("run/metrics.jsonl")).unwrap();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    };
    let kimg = || lines().iter().map(|l| l["Progress/kimg"]["mean"].as_f64().unwrap()).collect::<Vec<_>>();
    assert_eq!(kimg(), [0.004, 0.012]);
    // The numbers equal those of the exported snapshot.
    d2o(dir, &["export", "run/network-snapshot-000000_012.safetensors", "--no-check", "--out", "g.onnx"]);
    let evaluate =
        ["evaluate", "g.onnx", "--seeds", "0-7", "--ref", "ref.npz", "--extractor", "f.onnx", "--json", "e.json"];
    d2o(dir, &evaluate);
    let again: Value = serde_json::from_slice(&fs::read(dir.join("e.json")).unwrap()).unwrap();
    let last = lines().pop().unwrap();
    for name in ["fd", "precision", "recall"] {
        let (found, expected) = (&last[format!("Metrics/{name}")], &again["metrics"][name]);
        assert_eq!((&found["mean"], &found["ci95"]), (&expected["value"], &expected["ci95"]), "{name}");
        assert!(expected["value"].is_number(), "{name}");
    }
    assert_eq!(last["evaluation"]["metrics"], again["metrics"]);
    // Snapshots within the same thousand images have different names.
    let named: Vec<Value> = lines().into_iter().map(|l| l["snapshot"].clone()).collect();
    assert_eq!(named, ["network-snapshot-000000.safetensors", "network-snapshot-000000_012.safetensors"]);
    // Evaluation does not change training, and a resumed run continues it.
    tune(dir, "other", "0.000012", &["--snap", "1"]);
    assert_same_tensors(dir, "run", "other");
    d2o(dir, &["train", "--outdir", "run", "--resume", "--duration", "0.000016"]);
    assert_eq!(kimg(), [0.004, 0.012, 0.016]);
    d2o(dir, &["report", "--losses", "run=run/metrics.jsonl", "--out", "r.html"]);
    let page = fs::read_to_string(dir.join("r.html")).unwrap();
    for part in ["of snapshots", "precision", "best ", "8 images, reference"] {
        assert!(page.contains(part), "the report lacks `{part}`");
    }
}

#[test]
fn grey_images_train_networks_of_one_channel() {
    let dir = prepare();
    let dir = dir.path();
    refused(dir, &words("run", "0.000004", &["--channels", "1"]), "--channels requires `--loss edm`");
    let grey = |i: usize| u8::try_from((i * 37) % 251).unwrap();
    let mut npz = d2o_refs::npz::NpzWriter::create(&dir.join("grey.npz")).unwrap();
    npz.start("arr_0", d2o_refs::npy::Dtype::U8, &[8, 32, 32, 1]).unwrap();
    npz.raw(&(0..8 * 1024).map(grey).collect::<Vec<_>>()).unwrap();
    npz.finish().unwrap();
    let on = |words: &[&'static str]| -> Vec<&'static str> {
        words.iter().map(|w| if *w == "data.npz" { "grey.npz" } else { w }).collect()
    };
    let train = ["train", "--loss", "edm", "--data", "data.npz", "--outdir", "grey", "--batch", "4", "--channels", "1"];
    let train = [&train[..], &NETWORK, &["--duration", "0.000004"]].concat();
    refused(dir, &train, "the network generates greyscale images, but image 0 of the dataset is a colour image");
    d2o(dir, &on(&train));
    let tune: Vec<&str> = on(&words("run", "0.000008", &["--diffaug", "--augment-p", "0.5"]))
        .into_iter()
        .map(|w| if w == DENOISER { "grey/network-snapshot-000000.safetensors" } else { w })
        .collect();
    d2o(dir, &tune);
    d2o(dir, &["export", "run/network-snapshot-000000_008.safetensors", "--out", "g.onnx"]);
    d2o(dir, &["generate", "g.onnx", "--seeds", "0-3", "--out", "g.npz"]);
    let made = d2o_refs::batch::open(&dir.join("g.npz")).unwrap().read(0..4).unwrap();
    assert_eq!(made.dim(), (4, 32, 32, 3));
    assert!(made.lanes(ndarray::Axis(3)).into_iter().all(|p| p[0] == p[1] && p[1] == p[2]));
    let outcome = d2o(
        dir,
        &on(&[
            &["train", "--loss", "edm", "--data", "data.npz", "--outdir", "colour", "--batch", "4"][..],
            &NETWORK,
            &["--duration", "0.000004"],
        ]
        .concat()),
    );
    assert!(outcome.stderr.contains("all images are grey"), "{outcome}");
}

/// A limit on the size of files acts like a full disk.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_last_state() {
    let dir = prepare();
    let dir = dir.path();
    tune(dir, "run", "0.000008", &[]);
    let before = (bytes(dir, "run"), fs::read(dir.join("run/network-snapshot-000000_008.safetensors")).unwrap());
    let limited =
        "trap '' XFSZ; ulimit -f 100; exec \"$0\" --threads 1 train --outdir run --resume --duration 0.000016";
    let outcome = test_support::run(Path::new("sh"), dir, &["-c", limited, env!("CARGO_BIN_EXE_d2o")]);
    assert!(outcome.code == 2 && outcome.stderr.matches("error:").count() == 1, "{outcome}");
    assert!(outcome.stderr.contains("network-snapshot-000000_016.safetensors"), "{outcome}");
    let after = (bytes(dir, "run"), fs::read(dir.join("run/network-snapshot-000000_008.safetensors")).unwrap());
    assert!(before == after);
    let left: Vec<_> = fs::read_dir(dir.join("run")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|n| !n.to_string_lossy().starts_with('.')), "{left:?}");
    // Without the limit the run resumes, and ends as an undisturbed run does.
    tune(dir, "whole", "0.000016", &["--dump", "1"]);
    d2o(dir, &["--threads", "1", "train", "--outdir", "run", "--resume", "--duration", "0.000016"]);
    assert_same_tensors(dir, "run", "whole");
}
