//! What a download tells while it runs.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// Longest time between two calls of [`Progress::update`].
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// Receives what a download does, and says whether it goes on.
///
/// [`Progress::update`] is called several times a second, whatever the download waits for: states are told again as long as they last. A
/// closure of the same signature is a `Progress`.
pub trait Progress {
    /// Takes an event. `Break` ends the download with [`Error::Interrupted`]; what was received stays and is continued by the next one.
    fn update(&mut self, event: &Event<'_>) -> ControlFlow<()>;
}

impl<F: FnMut(&Event<'_>) -> ControlFlow<()>> Progress for F {
    fn update(&mut self, event: &Event<'_>) -> ControlFlow<()> {
        self(event)
    }
}

/// What a download does.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// State: another process downloads the same file.
    Waiting {
        /// The file.
        path: &'a Path,
    },
    /// State: a server is asked.
    Connecting {
        /// The address, without its query.
        url: &'a str,
    },
    /// State: the file arrives.
    Receiving {
        /// Bytes that are here, those of earlier runs included.
        done: u64,
        /// Bytes of the whole file, if they are known.
        total: Option<u64>,
    },
    /// State: a file is read and hashed.
    Verifying {
        /// The file.
        path: &'a Path,
        /// Bytes read.
        done: u64,
        /// Bytes of the whole file.
        total: u64,
    },
    /// State: an attempt has failed; the next one follows.
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
    /// Once: what was received before is discarded, and the download begins at the first byte.
    StartedOver {
        /// Why.
        reason: &'static str,
    },
    /// Once: a source is given up, and the next one is tried.
    NextSource {
        /// Why.
        error: &'a Error,
    },
    /// Once: a file in a cache is not the one that is wanted, and is passed over; one in the cache of d2o is replaced.
    Unusable {
        /// What is wrong with it.
        error: &'a Error,
    },
}

/// A [`Progress`], and when it was last called.
pub(crate) struct Watch<'a> {
    progress: &'a mut dyn Progress,
    last: Option<Instant>,
}

impl<'a> Watch<'a> {
    pub(crate) fn new(progress: &'a mut dyn Progress) -> Self {
        Self { progress, last: None }
    }

    /// Tells `event` now.
    pub(crate) fn tell(&mut self, event: &Event<'_>) -> Result<()> {
        self.last = Some(Instant::now());
        match self.progress.update(event) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Interrupted),
        }
    }

    /// Tells `event` if nothing was told for a while.
    pub(crate) fn tell_in_time(&mut self, event: &Event<'_>) -> Result<()> {
        if self.last.is_some_and(|last| last.elapsed() < TICK) { Ok(()) } else { self.tell(event) }
    }

    /// Sleeps for `wait`, telling `event` with the time left.
    pub(crate) fn sleep<'e>(&mut self, wait: Duration, event: impl Fn(Duration) -> Event<'e>) -> Result<()> {
        let end = Instant::now() + wait;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            self.tell(&event(left))?;
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(TICK));
        }
    }
}
