//! What the user sees: data on standard output, everything else on standard error.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};

/// Decided once, passed to every command.
#[derive(Debug, Clone, Copy)]
pub struct Printer {
    quiet: bool,
}

impl Printer {
    /// `quiet` leaves results, warnings and errors only.
    #[must_use]
    pub fn new(quiet: bool) -> Self {
        Self { quiet }
    }

    /// A line of the result.
    ///
    /// # Errors
    /// If standard output is closed.
    pub fn data(&self, text: &str) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{text}").context("write to standard output")
    }

    /// A line for the user's information.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        }
    }

    /// A line the user should not miss.
    pub fn warn(&self, text: &str) {
        let _ = writeln!(std::io::stderr().lock(), "warning: {text}");
    }

    /// JSON to `path`, or to standard output for `-`.
    ///
    /// # Errors
    /// Writing errors.
    pub fn json(&self, path: &Path, value: &impl serde::Serialize) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(value)?;
        if path == Path::new("-") {
            return self.data(&text);
        }
        d2o_refs::atomic::AtomicFile::write_all_to(path, format!("{text}\n").as_bytes())
            .with_context(|| format!("write `{}`", path.display()))
    }

    /// Progress of `total` images: a bar on a terminal, a line every few seconds elsewhere.
    #[must_use]
    pub fn progress(&self, what: &'static str, total: u64) -> Progress {
        self.progress_of(what, "images", total)
    }

    /// Progress of `total` of something else.
    #[must_use]
    pub fn progress_of(&self, what: &'static str, unit: &'static str, total: u64) -> Progress {
        let bar = (!self.quiet && std::io::stderr().is_terminal()).then(|| {
            let style =
                ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} · {per_sec} · ETA {eta}");
            ProgressBar::new(total)
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
                .with_message(what)
        });
        let now = Instant::now();
        Progress { what, unit, total, done: 0, skipped: 0, start: now, last: now, bar, quiet: self.quiet }
    }
}

/// Progress of one command.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    unit: &'static str,
    total: u64,
    done: u64,
    skipped: u64,
    start: Instant,
    last: Instant,
    bar: Option<ProgressBar>,
    quiet: bool,
}

impl Progress {
    /// The first `count` images were done before; they do not count for the pace.
    pub fn skip(&mut self, count: u64) {
        self.done += count;
        self.skipped += count;
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
            bar.reset_eta();
        }
    }

    /// `count` more images are done.
    pub fn advance(&mut self, count: u64) {
        const EVERY: Duration = Duration::from_secs(5);
        self.done += count;
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
        } else if !self.quiet && self.last.elapsed() >= EVERY {
            self.last = Instant::now();
            #[allow(clippy::cast_precision_loss, reason = "image counts")]
            let (done, skipped, total) = (self.done as f64, self.skipped as f64, self.total as f64);
            let pace = (done - skipped) / self.start.elapsed().as_secs_f64();
            let (what, unit, eta) = (self.what, self.unit, (total - done) / pace);
            let _ = writeln!(std::io::stderr().lock(), "{what} {done}/{total} · {pace:.1} {unit}/s · ETA {eta:.0} s");
        }
    }

    /// Removes the bar.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A table with right-aligned columns after the first.
#[must_use]
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |c: usize| {
        rows.iter()
            .filter_map(|r| r.get(c))
            .map(|t| t.chars().count())
            .chain([header[c].chars().count()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(c, (text, width))| if c == 0 { format!("{text:<width$}") } else { format!("{text:>width$}") });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(header.to_vec())];
    lines.extend(rows.iter().map(|r| line(r.iter().map(String::as_str).collect())));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    #[test]
    fn tables_align() {
        let text = super::table(&["name", "n"], &[vec!["a".into(), "10".into()], vec!["long".into(), "1".into()]]);
        assert_eq!(text, "name   n\na     10\nlong   1");
    }
}
