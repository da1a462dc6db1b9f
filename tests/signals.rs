//! Signals, closed pipes and full disks: how runs end, and what they leave.
#![cfg(unix)]
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fs_err as fs;
use test_support::golden_dir;

mod common;
use common::{attempt, d2o, write_images, write_lite0};

const D2O: &str = env!("CARGO_BIN_EXE_d2o");
/// Exit code of an interrupted run.
const INTERRUPTED: i32 = 130;
/// How long tests wait for what happens within milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long an end at once may take.
const AT_ONCE: Duration = Duration::from_secs(2);

/// A generator of 16×16 pixels.
fn generator(dir: &Path) {
    let source = golden_dir().join("d2o-adm-cond.safetensors").display().to_string();
    d2o(dir, &["export", &source, "--kind", "one-step", "--out", "x.onnx", "--no-check"]);
}

/// A running d2o; killed at the end of a test that fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Starts d2o by way of the words `before`, e.g. `nohup`, and waits until it listens to signals.
    fn start(dir: &Path, before: &[&str], args: &[&str]) -> Self {
        let words = [before, &[D2O], args].concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).current_dir(dir);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut running = Self(child);
        running.wait_for("it to listen", |pid| mask(&pid.to_string(), "SigCgt:") >> 14 & 1 == 1);
        running
    }

    fn wait_for(&mut self, what: &str, happened: impl Fn(u32) -> bool) {
        let start = Instant::now();
        while !happened(self.0.id()) {
            if let Some(status) = self.0.try_wait().unwrap() {
                panic!("waiting for {what}: ended with {status}: {}", self.stderr());
            }
            assert!(start.elapsed() < PATIENCE, "waiting for {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn send(&self, signal: &str) {
        let sent = Command::new("kill").args(["-s", signal, &self.0.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Exit code, standard error, and how long the end took.
    fn end(mut self) -> (Option<i32>, String, Duration) {
        let start = Instant::now();
        let status = loop {
            match self.0.try_wait().unwrap() {
                Some(status) => break status,
                None if start.elapsed() > PATIENCE => panic!("it goes on: {}", self.kill()),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let took = start.elapsed();
        (status.code(), self.stderr(), took)
    }

    fn kill(&mut self) -> String {
        let _ = self.0.kill();
        self.stderr()
    }

    fn stderr(&mut self) -> String {
        let mut text = String::new();
        if let Some(mut stderr) = self.0.stderr.take() {
            stderr.read_to_string(&mut text).unwrap();
        }
        text
    }
}

/// A set of signals of process `pid`, or `self`; bit 0 is signal 1.
fn mask(pid: &str, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix(name));
    mask.map_or(0, |m| u64::from_str_radix(m.trim(), 16).unwrap())
}

/// Names of what lies in `dir`.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

/// Field `number` of an ONNX message.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut rest = content.len();
    while rest > 0x7f {
        bytes.push(0x80 | u8::try_from(rest & 0x7f).unwrap());
        rest >>= 7;
    }
    bytes.push(u8::try_from(rest).unwrap());
    [&bytes, content].concat()
}

/// A generator that adds its latents to themselves for ever.
fn endless(path: &Path) {
    let text = |number, text: &str| field(number, text.as_bytes());
    let node = |op: &str, inputs: &[&str], output: &str, more: Vec<u8>| {
        let inputs: Vec<u8> = inputs.iter().flat_map(|i| text(1, i)).collect();
        field(1, &[inputs, text(2, output), text(4, op), more].concat())
    };
    let value = |number, name: &str, element: u8, shape: Vec<u8>| {
        field(number, &[text(1, name), field(2, &field(1, &[vec![0x08, element], shape].concat()))].concat())
    };
    let (float, int, bool) = (1, 7, 9);
    let scalar = || field(2, b"");
    let known = |n: u8| field(1, &[0x08, n]);
    let images = || field(2, &[field(1, &text(2, "N")), known(3), known(8), known(8)].concat());
    let body = [
        node("Identity", &["c"], "go", Vec::new()),
        node("Add", &["s", "s"], "sum", Vec::new()),
        text(2, "body"),
        [value(11, "i", int, scalar()), value(11, "c", bool, scalar()), value(11, "s", float, Vec::new())].concat(),
        [value(12, "go", bool, scalar()), value(12, "sum", float, Vec::new())].concat(),
    ];
    // An attribute of type GRAPH.
    let body = field(5, &[text(1, "body"), field(6, &body.concat()), vec![0xa0, 0x01, 5]].concat());
    let graph = [
        node("Loop", &["", "", "latents"], "images", body),
        text(2, "g"),
        value(11, "latents", float, images()),
        value(12, "images", float, images()),
    ];
    let kind = field(14, &[text(1, "kind"), text(2, "one-step")].concat());
    let opset = field(8, &[text(1, ""), vec![0x10, 17]].concat());
    fs::write(path, [vec![0x08, 8], opset, field(7, &graph.concat()), kind].concat()).unwrap();
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
    // Stopped, it cannot end before the signal, however fast the machine is.
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
    // One batch of a minute and more.
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
    // The section of the features ends with the file; what follows is the bootstrap.
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
    // As `2>&1 | head` leaves it.
    drop((running.0.stdout.take(), running.0.stderr.take()));
    let (code, ..) = running.end();
    assert_eq!(code, Some(INTERRUPTED));
    assert!(dir.join("s.npz.partial/plan.json").exists(), "it can be resumed");
}

#[test]
fn a_file_beyond_the_limit_is_an_error_that_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    generator(dir);
    let source = golden_dir().join("d2o-adm-cond.safetensors").display().to_string();
    let limited = |args: &[&str]| {
        // 32 or 64 KiB, as the shell counts.
        let script = format!("ulimit -f 64; exec \"{D2O}\" \"$@\"");
        let output =
            Command::new("sh").args([&["-c", &script, "sh"], args].concat()).current_dir(dir).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    fs::write(dir.join("old.npz"), "former").unwrap();
    let draw = ["draw", "--seeds", "0-63", "--draw", "f32:3072", "--overwrite", "--out", "old.npz"];
    let export = ["export", &source, "--kind", "one-step", "--out", "y.onnx", "--no-check"];
    for args in [&draw[..], &export] {
        let (code, stderr) = limited(args);
        assert_eq!(code, Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains("error: cannot ") || stderr.contains("error: write "), "{args:?}: {stderr}");
        assert!(stderr.contains("File too large"), "{args:?}: {stderr}");
        assert_eq!(names(dir), ["old.npz", "x.onnx"], "{args:?}");
    }
    assert_eq!(fs::read(dir.join("old.npz")).unwrap(), b"former");
    // Images of 768 bytes; what is finished stays for --resume.
    for out in ["s.npz", "s.h5", "s.zip"] {
        let words = ["generate", "x.onnx", "--provider", "cpu", "--seeds", "0-127", "--batch", "64", "--out", out];
        let (code, stderr) = limited(&words);
        assert_eq!(code, Some(2), "{out}: {stderr}");
        assert!(stderr.contains(&format!("error: cannot write `{out}`")), "{out}: {stderr}");
        assert!(!dir.join(out).exists() && dir.join(format!("{out}.partial")).exists(), "{out}");
        d2o(dir, &[&words[..], &["--resume"]].concat());
        assert!(dir.join(out).exists() && !dir.join(format!("{out}.partial")).exists(), "{out}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn results_that_cannot_be_printed_are_trouble() {
    let dir = tempfile::tempdir().unwrap();
    generator(dir.path());
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(D2O);
    let output = command.args(["inspect", "x.onnx"]).current_dir(dir.path()).stdout(full.into_file()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("error: write to standard output"), "{stderr}");
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
        // The runtime starts its own later; the workers stay as many.
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(workers(running.0.id()), count);
        running.send("TERM");
        assert_eq!(running.end().0, Some(INTERRUPTED));
    }
}
