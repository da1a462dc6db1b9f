//! Signals: when a run ends at once, and when it ends cleanly.
//!
//! Outside a [`cooperative`] section the first SIGINT, SIGTERM or SIGHUP ends the process at once with exit code 130. Inside one, where work is done
//! batch by batch, the first signal only sets a flag; the code asks [`check`] after every batch and returns [`Interrupted`], so that files are
//! finished or removed and what can be resumed is kept. The second signal always ends the process at once.
//!
//! A batch through a graph with a loop may never end, so once one is open ([`end_at_once`]) no section waits for its batch.
//!
//! "At once" is `_exit` from a thread of its own: neither the runtimes' destructors nor the running computation take part.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Exit code of an interrupted run, as shells give it for SIGINT.
pub const EXIT_CODE: u8 = 130;

/// Whether a cooperative section is asked to end.
static ASKED: AtomicBool = AtomicBool::new(false);
/// Whether the code has learned of it.
static SEEN: AtomicBool = AtomicBool::new(false);
/// Whether no section is waited for.
static AT_ONCE: AtomicBool = AtomicBool::new(false);
/// Number of living [`Cooperative`] guards.
static SECTIONS: AtomicUsize = AtomicUsize::new(0);

/// The error of a run that a signal ended. Whatever context it gets, the process then exits with [`EXIT_CODE`].
#[derive(Debug, Clone, Default, PartialEq, Eq, thiserror::Error)]
#[error("interrupted{}", .then.as_ref().map_or_else(String::new, |t| format!("; {t}")))]
pub struct Interrupted {
    /// What is left and how to go on, e.g. "--resume continues `S.npz`".
    pub then: Option<String>,
}

impl Interrupted {
    /// An interruption with a word on what is left and how to go on.
    #[must_use]
    pub fn then(text: impl Into<String>) -> Self {
        Self { then: Some(text.into()) }
    }
}

/// A section whose code asks [`check`] after every batch; see [`cooperative`].
#[must_use = "the section ends when this is dropped"]
#[derive(Debug)]
pub struct Cooperative(());

/// Starts a section in which the first signal waits for [`check`]. Sections nest.
pub fn cooperative() -> Cooperative {
    SECTIONS.fetch_add(1, Ordering::SeqCst);
    Cooperative(())
}

impl Cooperative {
    /// Ends the section after its last batch is safe: a signal that came too late to be seen is forgotten, as its work is done.
    pub fn complete(self) {
        SEEN.store(true, Ordering::SeqCst);
    }
}

impl Drop for Cooperative {
    fn drop(&mut self) {
        let last = SECTIONS.fetch_sub(1, Ordering::SeqCst) == 1;
        // A signal after the last `check` counts as one after the section.
        if last && ASKED.load(Ordering::SeqCst) && !SEEN.load(Ordering::SeqCst) {
            exit_at_once();
        }
    }
}

/// From now on the first signal ends the process at once, in sections too: their work may not come to an end by itself.
pub fn end_at_once() {
    AT_ONCE.store(true, Ordering::SeqCst);
}

/// Whether the section is asked to end.
#[must_use]
pub fn asked() -> bool {
    let asked = ASKED.load(Ordering::SeqCst);
    if asked {
        SEEN.store(true, Ordering::SeqCst);
    }
    asked
}

/// To be asked after every batch of a cooperative section.
///
/// # Errors
/// [`Interrupted`], if the section is asked to end.
pub fn check() -> Result<(), Interrupted> {
    if asked() { Err(Interrupted::default()) } else { Ok(()) }
}

/// Nobody reads standard error any more (`2>&1 | head`): the section at work, or the next one, ends at its next [`check`].
pub fn reader_gone() {
    ASKED.store(true, Ordering::SeqCst);
    // Outside a section nothing is cut short.
    if SECTIONS.load(Ordering::SeqCst) == 0 {
        SEEN.store(true, Ordering::SeqCst);
    }
}

/// Starts listening. Signals that were ignored when the process started stay ignored (`nohup`).
///
/// A file beyond the process's limit (`ulimit -f`) becomes an error of the write instead of the end of the process.
pub fn listen() {
    #[cfg(unix)]
    unix::listen();
}

/// Ends the process without destructors; its temporary files and folders are removed all the same.
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
        // A handler that does nothing: the system call then fails with EFBIG.
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

    /// Without a way to ask, SIGHUP keeps what it was given: ignored under `nohup`, else the end of the process.
    #[cfg(not(target_os = "linux"))]
    fn ignored() -> u64 {
        1 << (SIGHUP - 1)
    }
}
