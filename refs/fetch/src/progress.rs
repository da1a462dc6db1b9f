//! Reports on the progress of a download.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// Longest time between two calls of [`Progress::update`].
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// Receives the events of a download and decides whether it continues.
///
/// [`Progress::update`] is called several times per second, also while the download waits: states are reported again as
/// long as they last. A closure of the same signature is a `Progress`.
pub trait Progress {
    /// Handles an event. `Break` ends the download with [`Error::Interrupted`]. The received bytes are kept, and the
    /// next download continues them.
    fn update(&mut self, event: &Event<'_>) -> ControlFlow<()>;
}

impl<F: FnMut(&Event<'_>) -> ControlFlow<()>> Progress for F {
    fn update(&mut self, event: &Event<'_>) -> ControlFlow<()> {
        self(event)
    }
}

/// An event of a download.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// State: another process downloads the same file.
    Waiting {
        /// The file.
        path: &'a Path,
    },
    /// State: a request was sent, and the response has not arrived.
    Connecting {
        /// The address, without its query.
        url: &'a str,
    },
    /// State: the file is being received.
    Receiving {
        /// Bytes received, including those of earlier runs.
        done: u64,
        /// Bytes of the whole file, if known.
        total: Option<u64>,
    },
    /// State: a file is being read and hashed.
    Verifying {
        /// The file.
        path: &'a Path,
        /// Bytes read.
        done: u64,
        /// Bytes of the whole file.
        total: u64,
    },
    /// State: an attempt failed, and the next one follows.
    Retrying {
        /// Why it failed.
        error: &'a Error,
        /// Failures in a row.
        failures: u32,
        /// Failures in a row after which the source is given up.
        of: u32,
        /// Time left until the next attempt.
        wait: Duration,
    },
    /// Once: the bytes received before are discarded, and the download begins at the first byte.
    StartedOver {
        /// Why.
        reason: &'static str,
    },
    /// Once: a source is given up, and the next one is tried.
    NextSource {
        /// Why.
        error: &'a Error,
    },
    /// Once: a cached file is not the requested one and is not used. A download replaces such a file in the cache of
    /// d2o.
    Unusable {
        /// Why it is not used.
        error: &'a Error,
    },
}

/// A [`Progress`] and the time of its last call.
pub(crate) struct Watch<'a> {
    progress: &'a mut dyn Progress,
    last: Option<Instant>,
}

impl<'a> Watch<'a> {
    pub(crate) fn new(progress: &'a mut dyn Progress) -> Self {
        Self { progress, last: None }
    }

    /// Reports `event` now.
    pub(crate) fn report(&mut self, event: &Event<'_>) -> Result<()> {
        self.last = Some(Instant::now());
        match self.progress.update(event) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Interrupted),
        }
    }

    /// Reports `event` if nothing was reported for [`TICK`].
    pub(crate) fn report_throttled(&mut self, event: &Event<'_>) -> Result<()> {
        if self.last.is_some_and(|last| last.elapsed() < TICK) { Ok(()) } else { self.report(event) }
    }

    /// Sleeps for `wait`, and reports `event` with the remaining time.
    pub(crate) fn sleep<'e>(&mut self, wait: Duration, event: impl Fn(Duration) -> Event<'e>) -> Result<()> {
        let end = Instant::now() + wait;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            self.report(&event(left))?;
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(TICK));
        }
    }
}
