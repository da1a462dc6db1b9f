//! A look at HDF5 files in a process of its own.
//!
//! libhdf5 crashes, loops or takes memory without end on some damaged files, and a library's fault is one of the whole process. So the program starts
//! itself on each such file first, as `d2o walk-hdf5 FILE`, with bounds on its memory and time, and opens the file only if that process came through.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::SystemTime;

use d2o_budget::Budget;
use d2o_refs::hdf5;

use crate::commands::ExitStatus;

/// Name of the command that looks.
pub const COMMAND: &str = "walk-hdf5";
/// Seconds of processor time for a file, and bytes for which there is one more.
const SECONDS: u64 = 5;
const BYTES_PER_SECOND: u64 = 64 << 20;

/// Lets `check` pass every HDF5 file before this process opens it.
pub fn guard() {
    hdf5::check_first(check);
}

/// Starts the process that looks at the file at `path`, once for each file as it is.
///
/// # Errors
/// What became of the process, if it crashed or met a bound.
fn check(path: &Path) -> Result<(), String> {
    /// Path, bytes and time of the last change.
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
    let status = child.map_err(|e| format!("one that no process of its own could look at: {e}"))?;
    match fault(status, found.len()) {
        Some(fault) => Err(fault),
        None => {
            passed.insert(file);
            Ok(())
        }
    }
}

/// What went wrong in the process that looked at a file of `bytes` bytes.
fn fault(status: process::ExitStatus, bytes: u64) -> Option<String> {
    if status.success() {
        return None;
    }
    if status.code() == Some(ExitStatus::No as i32) {
        return Some(format!("one for which {} MiB of memory are not enough", memory(bytes) >> 20));
    }
    #[cfg(unix)]
    {
        use std::os::unix::process::ExitStatusExt as _;
        const SIGKILL: i32 = 9;
        const SIGXCPU: i32 = 24;
        match status.signal() {
            Some(SIGKILL | SIGXCPU) => return Some(format!("one for which {} s are not enough", seconds(bytes))),
            Some(signal) => return Some(format!("one on which it crashes (signal {signal})")),
            None => {}
        }
    }
    Some(format!("one on which it ends ({status})"))
}

fn seconds(bytes: u64) -> u64 {
    SECONDS + bytes / BYTES_PER_SECOND
}

/// Memory for a file of `bytes` bytes: twice what readers may take, since libhdf5 keeps what it reads beside it.
fn memory(bytes: u64) -> u64 {
    2 * Budget::of_file(bytes).left()
}

/// Looks at the file at `path` within the bounds; what it holds does not matter. The answer is no where memory was short.
///
/// # Errors
/// Those of the file system and of bounds that cannot be set.
pub fn walk(path: &Path) -> anyhow::Result<ExitStatus> {
    bound(fs_err::metadata(path)?.len())?;
    Ok(if hdf5::walk(path) { ExitStatus::Done } else { ExitStatus::No })
}

/// Sets the bounds for a file of `bytes` bytes.
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
    // What the program itself has mapped, in pages: a number that Linux tells.
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
    fn the_end_of_the_process_tells_the_fault() {
        let of = |script: &str| fault(Command::new("sh").args(["-c", script]).status().unwrap(), 1 << 20);
        for (script, found) in [
            ("exit 0", None),
            ("exit 1", Some("one for which 224 MiB of memory are not enough")),
            ("exit 101", Some("one on which it ends (exit status: 101)")),
            ("kill -SEGV $$", Some("one on which it crashes (signal 11)")),
            ("kill -ABRT $$", Some("one on which it crashes (signal 6)")),
            ("kill -XCPU $$", Some("one for which 5 s are not enough")),
            ("kill -KILL $$", Some("one for which 5 s are not enough")),
        ] {
            assert_eq!(of(script).as_deref(), found, "{script}");
        }
    }
}
