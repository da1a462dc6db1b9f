//! Signals: when a run ends at once, and when it ends cleanly.
//!
//! Outside a [`cooperative`] section, the first SIGINT, SIGTERM or SIGHUP ends the process at once with exit code 130.
//! Inside one, where work is done batch by batch, the first signal only sets a flag. The code calls [`check`] after
//! every batch and returns [`Interrupted`], so that files are finished or removed and resumable work is kept. The
//! second signal always ends the process at once.
//!
//! A batch through a graph with a loop may never end. After such a graph is opened ([`end_at_once`]), the first signal
//! ends the process at once inside sections too.
//!
//! "At once" means `_exit`: destructors do not run, and the current computation is abandoned.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Exit code of an interrupted run, as shells give it for SIGINT.
pub const EXIT_CODE: u8 = 130;

/// Whether cooperative sections are asked to end.
static ASKED: AtomicBool = AtomicBool::new(false);
/// Whether the code has seen this request.
static SEEN: AtomicBool = AtomicBool::new(false);
/// Whether the first signal ends the process at once inside sections too.
static AT_ONCE: AtomicBool = AtomicBool::new(false);
/// Number of live [`Cooperative`] guards.
static SECTIONS: AtomicUsize = AtomicUsize::new(0);

/// The error of a run that a signal ended. The process exits with [`EXIT_CODE`], even if context is added to the error.
#[derive(Debug, Clone, Default, PartialEq, Eq, thiserror::Error)]
#[error("interrupted{}", .then.as_ref().map_or_else(String::new, |t| format!("; {t}")))]
pub struct Interrupted {
    /// What remains and how to continue, e.g. "--resume continues `S.npz`".
    pub then: Option<String>,
}

impl Interrupted {
    /// An interruption with a text on what remains and how to continue.
    #[must_use]
    pub fn then(text: impl Into<String>) -> Self {
        Self { then: Some(text.into()) }
    }
}

/// Guard of a section that calls [`check`] after every batch, see [`cooperative`].
#[must_use = "the section ends when this is dropped"]
#[derive(Debug)]
pub struct Cooperative(());

/// Starts a section in which the first signal takes effect at the next [`check`]. Sections can be nested.
pub fn cooperative() -> Cooperative {
    SECTIONS.fetch_add(1, Ordering::SeqCst);
    Cooperative(())
}

impl Cooperative {
    /// Ends the section after its last batch is stored. A signal that no [`check`] has seen does not end the process,
    /// because the work is done; a later section ends at its first [`check`].
    pub fn complete(self) {
        SEEN.store(true, Ordering::SeqCst);
    }
}

impl Drop for Cooperative {
    fn drop(&mut self) {
        let last = SECTIONS.fetch_sub(1, Ordering::SeqCst) == 1;
        // A signal after the last `check` is treated like a signal after the section.
        if last && ASKED.load(Ordering::SeqCst) && !SEEN.load(Ordering::SeqCst) {
            exit_at_once();
        }
    }
}

/// From now on, the first signal ends the process at once inside sections too, because their work may never end.
pub fn end_at_once() {
    AT_ONCE.store(true, Ordering::SeqCst);
}

/// Whether the section is asked to end. Marks the request as seen.
#[must_use]
pub fn asked() -> bool {
    let asked = ASKED.load(Ordering::SeqCst);
    if asked {
        SEEN.store(true, Ordering::SeqCst);
    }
    asked
}

/// Checks for a request to end; called after every batch of a cooperative section.
///
/// # Errors
/// [`Interrupted`], if the section is asked to end.
pub fn check() -> Result<(), Interrupted> {
    if asked() { Err(Interrupted::default()) } else { Ok(()) }
}

/// Called when the reader of standard error is gone (`2>&1 | head`). The current section, or the next one, ends at its
/// next [`check`].
pub fn reader_gone() {
    ASKED.store(true, Ordering::SeqCst);
    // Outside a section, mark the request as seen, so that the guard of a later section does not end the process.
    if SECTIONS.load(Ordering::SeqCst) == 0 {
        SEEN.store(true, Ordering::SeqCst);
    }
}

/// Starts listening for signals. Signals that were ignored when the process started stay ignored (`nohup`).
///
/// A write beyond the file size limit (`ulimit -f`) then fails with an error instead of ending the process.
pub fn listen() {
    #[cfg(unix)]
    unix::listen();
}

/// Removes temporary files and folders, and ends the process without destructors.
fn exit_at_once() -> ! {
    use std::io::Write as _;
    let _ = std::io::stderr().write_all(b"interrupted\n");
    let _removed = d2o_files::remove_temporary();
    signal_hook::low_level::exit(i32::from(EXIT_CODE))
}

#[cfg(unix)]
mod unix {
    use std::io::Write as _;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
    use signal_hook::iterator::Signals;

    use super::{ASKED, AT_ONCE, SECTIONS, SEEN, exit_at_once};

    const STOPPING: &[u8] = b"stopping after this batch; press Ctrl-C again to stop at once\n";

    pub(super) fn listen() {
        // With a handler that does nothing, the system call fails with EFBIG.
        let _ = signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
        let ignored = ignored();
        let wanted = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0);
        let Ok(mut signals) = Signals::new(wanted) else { return };
        std::thread::spawn(move || {
            for _ in signals.forever() {
                let outside = || SECTIONS.load(Ordering::SeqCst) == 0 || AT_ONCE.load(Ordering::SeqCst);
                if outside() || ASKED.swap(true, Ordering::SeqCst) {
                    exit_at_once();
                }
                // The section may have ended in between without seeing the flag.
                if outside() && !SEEN.load(Ordering::SeqCst) {
                    exit_at_once();
                }
                let _ = std::io::stderr().write_all(STOPPING);
            }
        });
    }

    /// Signals that were ignored when the process started, as bits; bit 0 is signal 1.
    #[cfg(target_os = "linux")]
    fn ignored() -> u64 {
        let status = fs_err::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
        mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok()).unwrap_or(0)
    }

    /// The initial state cannot be queried here, so SIGHUP is not handled: it stays ignored under `nohup`, and ends the
    /// process otherwise.
    #[cfg(not(target_os = "linux"))]
    fn ignored() -> u64 {
        1 << (SIGHUP - 1)
    }
}
