//! A running d2o, to which tests send signals.

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fs_err as fs;

pub(crate) const D2O: &str = env!("CARGO_BIN_EXE_d2o");
/// Exit code of an interrupted run.
pub(crate) const INTERRUPTED: i32 = 130;
/// Longest wait for what happens within milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest time of an immediate end.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(2);

/// A running d2o, killed when dropped.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Starts d2o through the words `before`, e.g. `nohup`, and waits until it handles signals.
    pub(crate) fn start(dir: &Path, before: &[&str], args: &[&str]) -> Self {
        let words = [before, &[D2O], args].concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).current_dir(dir);
        Self::of(command)
    }

    /// Starts `command`, which is d2o or becomes it, and waits until it handles signals.
    pub(crate) fn of(mut command: Command) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut running = Self(child);
        running.wait_for("it to listen", |pid| mask(&pid.to_string(), "SigCgt:") >> 14 & 1 == 1);
        running
    }

    pub(crate) fn wait_for(&mut self, what: &str, happened: impl Fn(u32) -> bool) {
        let start = Instant::now();
        while !happened(self.0.id()) {
            if let Some(status) = self.0.try_wait().unwrap() {
                panic!("waiting for {what}: ended with {status}: {}", self.stderr());
            }
            assert!(start.elapsed() < PATIENCE, "waiting for {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn send(&self, signal: &str) {
        let sent = Command::new("kill").args(["-s", signal, &self.0.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Exit code, standard error, and how long the process took to end.
    pub(crate) fn end(mut self) -> (Option<i32>, String, Duration) {
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

/// The set of signals `name` (e.g. `SigIgn:`) of process `pid`, or `self`. Bit 0 is signal 1.
pub(crate) fn mask(pid: &str, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix(name));
    mask.map_or(0, |m| u64::from_str_radix(m.trim(), 16).unwrap())
}

/// Names of the entries of `dir`, sorted.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}
