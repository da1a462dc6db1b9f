//! Signals and closed pipes: how runs end, and which files they leave. Faults of disks are in `faults.rs`.
#![cfg(unix)]
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::path::Path;
use std::time::Duration;

use fs_err as fs;
use test_support::golden_dir;

mod common;
use common::onnx::{field, model, node, shape, text, value};
use common::running::{AT_ONCE, INTERRUPTED, Running, mask, names};
use common::{attempt, d2o, write_images, write_lite0};

/// A generator of 16×16 pixels.
fn generator(dir: &Path) {
    let source = golden_dir().join("d2o-adm-cond.safetensors").display().to_string();
    d2o(dir, &["export", &source, "--kind", "one-step", "--out", "x.onnx", "--no-check"]);
}

/// A generator with an endless loop that adds its latents to themselves.
fn endless(path: &Path) {
    let (float, int, bool) = (1, 7, 9);
    let images = || shape(&["N", "3", "8", "8"]);
    let body = [
        node("Identity", &["c"], "go", Vec::new()),
        node("Add", &["s", "s"], "sum", Vec::new()),
        text(2, "body"),
        [value(11, "i", int, shape(&[])), value(11, "c", bool, shape(&[])), value(11, "s", float, Vec::new())].concat(),
        [value(12, "go", bool, shape(&[])), value(12, "sum", float, Vec::new())].concat(),
    ];
    // An attribute of type GRAPH.
    let body = field(5, &[text(1, "body"), field(6, &body.concat()), vec![0xa0, 0x01, 5]].concat());
    let graph = [
        node("Loop", &["", "", "latents"], "images", body),
        text(2, "g"),
        value(11, "latents", float, images()),
        value(12, "images", float, images()),
    ];
    fs::write(path, model(&graph.concat(), &[("kind", "one-step")])).unwrap();
}

#[test]
fn a_batch_that_never_ends_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    endless(&dir.join("loop.onnx"));
    for args in [
        &["generate", "loop.onnx", "--provider", "cpu", "--seeds", "0-3", "--out", "s.npz"][..],
        &["verify", "loop.onnx", "--runtimes", "ort-cpu,ort-cpu", "--samples", "2"],
    ] {
        let mut running = Running::start(dir, &[], args);
        let busy = |pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // Ticks of 10 ms in user mode.
            stat.split_whitespace().nth(13).and_then(|t| t.parse::<u32>().ok()).is_some_and(|ticks| ticks > 100)
        };
        running.wait_for("its loop", busy);
        running.send("TERM");
        let (code, stderr, took) = running.end();
        assert_eq!(code, Some(INTERRUPTED), "{args:?}: {stderr}");
        assert!(took < AT_ONCE, "{args:?}: {took:?}");
    }
}

#[test]
fn generate_ends_after_its_batch_and_resumes_and_is_alone_at_its_output() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    generator(dir);
    let words = |out| {
        ["generate", "x.onnx", "--provider", "cpu", "--seeds", "0-511", "--batch", "16", "--out", out, "--resume"]
    };
    let mut running = Running::start(dir, &[], &words("s.npz"));
    let first = |name: &String| name.starts_with("000000000+");
    let partial = dir.join("s.npz.partial");
    running.wait_for("the first images", |_| partial.exists() && names(&partial).iter().any(first));
    // While it is stopped, it cannot end before the signal, however fast the machine is.
    running.send("STOP");
    let second = attempt(dir, &words("s.npz"));
    assert!(second.code == 2 && second.stderr.contains("another d2o process is using `s.npz.partial`"), "{second}");
    running.send("TERM");
    running.send("CONT");
    let (code, stderr, _) = running.end();
    assert_eq!(code, Some(INTERRUPTED), "{stderr}");
    let last: Vec<&str> = stderr.lines().rev().take(2).collect();
    assert_eq!(
        last,
        ["interrupted; --resume continues `s.npz`", "stopping after this batch; press Ctrl-C again to stop at once"],
        "{stderr}"
    );
    assert!(!dir.join("s.npz").exists());
    let resumed = d2o(dir, &words("s.npz"));
    assert!(resumed.stderr.contains("of 512 images are already done"), "{resumed}");
    d2o(dir, &words("whole.npz"));
    assert!(fs::read(dir.join("s.npz")).unwrap() == fs::read(dir.join("whole.npz")).unwrap(), "other bytes");
    assert_eq!(names(dir), ["s.npz", "whole.npz", "x.onnx"]);
}

#[test]
fn the_second_signal_ends_a_section_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    generator(dir);
    // One batch that takes more than a minute.
    let words = ["generate", "x.onnx", "--seeds", "0-65535", "--batch", "65536", "--provider", "cpu", "--out", "s.npz"];
    let mut running = Running::start(dir, &[], &words);
    running.wait_for("the section", |_| dir.join("s.npz.partial/plan.json").exists());
    running.send("TERM");
    std::thread::sleep(Duration::from_millis(500));
    assert!(running.0.try_wait().unwrap().is_none(), "the first signal waits for the batch");
    running.send("TERM");
    let (code, stderr, took) = running.end();
    assert_eq!(
        (code, stderr.as_str()),
        (Some(INTERRUPTED), "stopping after this batch; press Ctrl-C again to stop at once\ninterrupted\n")
    );
    assert!(took < AT_ONCE, "{took:?}");
}

#[test]
fn work_that_is_not_done_in_batches_ends_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_lite0(dir, 1, "lite0");
    write_images(&dir.join("real.npz"), 0..40);
    write_images(&dir.join("fake.npz"), 20..60);
    let evaluate = ["evaluate", "fake.npz", "--ref", "real.npz", "--extractor", "lite0.onnx", "--metrics", "fid"];
    let words = [&evaluate[..], &["--bootstrap", "1000000", "--save-features", "f.h5"]].concat();
    let mut running = Running::start(dir, &[], &words);
    // The stage of the features ends with the file. The bootstrap follows.
    running.wait_for("the features", |_| dir.join("f.h5").exists());
    std::thread::sleep(Duration::from_millis(300));
    running.send("TERM");
    let (code, stderr, took) = running.end();
    assert_eq!(code, Some(INTERRUPTED), "{stderr}");
    assert!(stderr.ends_with("interrupted\n") && !stderr.contains("stopping"), "{stderr}");
    assert!(took < AT_ONCE, "{took:?}");
}

#[test]
fn a_terminal_that_is_gone_ends_a_run_unless_nohup_protects_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    generator(dir);
    let words = |out| {
        ["verify", "x.onnx", "--runtimes", "ort-cpu,ort-cpu", "--samples", "65536", "--batch", "64", "--json", out]
    };
    let protected = Running::start(dir, &["nohup"], &words("a.json"));
    protected.send("HUP");
    std::thread::sleep(Duration::from_millis(500));
    let mut protected = protected;
    assert!(protected.0.try_wait().unwrap().is_none(), "SIGHUP ends a run under nohup");
    protected.send("TERM");
    let (code, stderr, took) = protected.end();
    assert_eq!(code, Some(INTERRUPTED), "{stderr}");
    assert!(took < AT_ONCE, "{took:?}");

    if mask("self", "SigIgn:") & 1 == 1 {
        println!("skipped: these tests run under nohup themselves");
        return;
    }
    let running = Running::start(dir, &[], &words("b.json"));
    running.send("HUP");
    let (code, stderr, took) = running.end();
    assert_eq!((code, stderr.as_str()), (Some(INTERRUPTED), "interrupted\n"));
    assert!(took < AT_ONCE, "{took:?}");
}

#[test]
fn a_run_whose_messages_nobody_reads_stops() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    generator(dir);
    let words = ["generate", "x.onnx", "--provider", "cpu", "--seeds", "0-9999999", "--out", "s.npz"];
    let mut running = Running::start(dir, &[], &words);
    // As in `2>&1 | head`, once head has ended.
    drop((running.0.stdout.take(), running.0.stderr.take()));
    let (code, ..) = running.end();
    assert_eq!(code, Some(INTERRUPTED));
    assert!(dir.join("s.npz.partial/plan.json").exists(), "it can be resumed");
}

#[cfg(target_os = "linux")]
#[test]
fn threads_bind_the_workers_too() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    generator(dir);
    for count in [1, 3] {
        let (threads, out) = (count.to_string(), format!("{count}.json"));
        let verify = ["--threads", &threads, "verify", "x.onnx", "--runtimes", "ort-cpu,ort-cpu", "--json", &out];
        let mut running = Running::start(dir, &[], &[&verify[..], &["--samples", "65536", "--batch", "64"]].concat());
        let workers = |pid: u32| {
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
            let name = |task: std::io::Result<fs::DirEntry>| fs::read_to_string(task.ok()?.path().join("comm")).ok();
            tasks.filter_map(name).filter(|name| name.starts_with(d2o::commands::THREAD)).count()
        };
        running.wait_for("the workers", |pid| workers(pid) == count);
        // The runtime starts its own threads later. The number of workers stays the same.
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(workers(running.0.id()), count);
        running.send("TERM");
        assert_eq!(running.end().0, Some(INTERRUPTED));
    }
}
