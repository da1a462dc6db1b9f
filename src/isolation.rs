//! Checks HDF5 files in a child process before this process opens them.
//!
//! libhdf5 crashes, loops endlessly or exhausts memory on some damaged files, which would end or block the whole
//! process. Therefore `d2o` runs `d2o walk-hdf5 FILE` with limits on memory and CPU time, and opens the file only if
//! that process succeeds.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::SystemTime;

use d2o_budget::Budget;
use d2o_refs::hdf5;

use crate::commands::ExitStatus;

/// Name of the command that the child process runs.
pub const COMMAND: &str = "walk-hdf5";
/// CPU time limit for a file: `SECONDS` seconds, plus one second per `BYTES_PER_SECOND` bytes.
const SECONDS: u64 = 5;
const BYTES_PER_SECOND: u64 = 64 << 20;

/// From now on, every HDF5 file is checked in a child process before this process opens it.
pub fn guard() {
    hdf5::check_first(check);
}

/// Opens the file at `path` in a child process. A file that has passed is checked again only after it changes.
///
/// # Errors
/// If the process cannot be started, crashes or exceeds a limit; the text describes the file.
fn check(path: &Path) -> Result<(), String> {
    /// Path, size in bytes and modification time.
    type Seen = (PathBuf, u64, Option<SystemTime>);
    static PASSED: LazyLock<Mutex<HashSet<Seen>>> = LazyLock::new(Mutex::default);
    let found = fs_err::metadata(path).map_err(|e| e.to_string())?;
    let file = (path.to_owned(), found.len(), found.modified().ok());
    let mut passed = PASSED.lock().unwrap_or_else(PoisonError::into_inner);
    if passed.contains(&file) {
        return Ok(());
    }
    let child = std::env::current_exe().and_then(|program| {
        let mut child = Command::new(program);
        child.arg(COMMAND).arg("--").arg(path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()
    });
    let status =
        child.map_err(|e| format!("one that could not be checked, because no child process could be started: {e}"))?;
    match fault(status, found.len()) {
        Some(fault) => Err(fault),
        None => {
            passed.insert(file);
            Ok(())
        }
    }
}

/// Description of a failure of the child process on a file of `bytes` bytes.
fn fault(status: process::ExitStatus, bytes: u64) -> Option<String> {
    if status.success() {
        return None;
    }
    if status.code() == Some(ExitStatus::No as i32) {
        return Some(format!("one that needs more than {} MiB of memory", memory(bytes) >> 20));
    }
    #[cfg(unix)]
    {
        use std::os::unix::process::ExitStatusExt as _;
        const SIGKILL: i32 = 9;
        const SIGXCPU: i32 = 24;
        match status.signal() {
            Some(SIGKILL | SIGXCPU) => return Some(format!("one that needs more than {} s", seconds(bytes))),
            Some(signal) => return Some(format!("one that crashes libhdf5 (signal {signal})")),
            None => {}
        }
    }
    Some(format!("one that terminates libhdf5 ({status})"))
}

fn seconds(bytes: u64) -> u64 {
    SECONDS + bytes / BYTES_PER_SECOND
}

/// Memory limit, bytes, for a file of `bytes` bytes: twice the limit of readers, because libhdf5 keeps copies.
fn memory(bytes: u64) -> u64 {
    2 * Budget::of_file(bytes).left()
}

/// The file to check, if this process is such a child process. The command is not part of the command line parser, so
/// help and completions omit it.
#[must_use]
pub fn asked() -> Option<PathBuf> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != COMMAND {
        return None;
    }
    arguments.last().map(PathBuf::from)
}

/// Runs in the child process: opens and samples the file at `path` within the limits. Errors in the file are ignored,
/// except lack of memory, which gives [`ExitStatus::No`].
///
/// # Errors
/// If the file size cannot be read, or a limit cannot be set.
pub fn walk(path: &Path) -> anyhow::Result<ExitStatus> {
    bound(fs_err::metadata(path)?.len())?;
    Ok(if hdf5::walk(path) { ExitStatus::Done } else { ExitStatus::No })
}

/// Sets the limits for a file of `bytes` bytes.
#[cfg(unix)]
fn bound(bytes: u64) -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let lower = |resource, limit: u64| {
        let Rlimit { current, maximum } = getrlimit(resource);
        let limit = [current, maximum].into_iter().flatten().fold(limit, u64::min);
        setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })
    };
    lower(Resource::Core, 0)?;
    lower(Resource::Cpu, seconds(bytes))?;
    // Pages that this program has mapped, from the process information of Linux.
    let pages = fs_err::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    if let Some(pages) = pages {
        lower(Resource::As, pages * rustix::param::page_size() as u64 + memory(bytes))?;
    }
    Ok(())
}

#[cfg(not(unix))]
fn bound(_: u64) -> anyhow::Result<()> {
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses_are_described() {
        let of = |script: &str| fault(Command::new("sh").args(["-c", script]).status().unwrap(), 1 << 20);
        for (script, found) in [
            ("exit 0", None),
            ("exit 1", Some("one that needs more than 224 MiB of memory")),
            ("exit 101", Some("one that terminates libhdf5 (exit status: 101)")),
            ("kill -SEGV $$", Some("one that crashes libhdf5 (signal 11)")),
            ("kill -ABRT $$", Some("one that crashes libhdf5 (signal 6)")),
            ("kill -XCPU $$", Some("one that needs more than 5 s")),
            ("kill -KILL $$", Some("one that needs more than 5 s")),
        ] {
            assert_eq!(of(script).as_deref(), found, "{script}");
        }
    }
}
