//! Output to the user: results on standard output, everything else on standard error.

use std::borrow::Cow;
use std::ffi::OsString;
use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};

use crate::error::StdoutClosed;
use crate::interrupt;
use crate::outputs::{is_stdout, is_stream};
use crate::progress::{Count, Reporter, Stage};

/// Time between two progress lines if standard error is not a terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Time after which a stage without a count is shown.
const STAGE_SHOWN_AFTER: Duration = Duration::from_secs(2);
/// Time between two frames of a spinner.
const SPINNER_FRAME: Duration = Duration::from_millis(120);

/// Prints results, notes, warnings and progress; created once and passed to every command.
#[derive(Debug, Clone, Copy)]
pub struct Printer {
    quiet: bool,
}

impl Printer {
    /// A printer. With `quiet` it prints results, warnings and errors only.
    #[must_use]
    pub fn new(quiet: bool) -> Self {
        Self { quiet }
    }

    /// Prints a line of the result to standard output.
    ///
    /// # Errors
    /// If writing fails; [`StdoutClosed`] if standard output is closed.
    pub fn data(&self, text: &str) -> anyhow::Result<()> {
        self.line(&printable(text))
    }

    /// Writes `bytes` to standard output unchanged.
    ///
    /// # Errors
    /// If writing fails; [`StdoutClosed`] if standard output is closed.
    pub fn raw(&self, bytes: &[u8]) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        // Without this flush, bytes after the last line feed are written at process exit, where errors are lost.
        out.write_all(bytes).and_then(|()| out.flush()).map_err(closed)
    }

    fn line(&self, text: &str) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{text}").map_err(closed)
    }

    /// Prints an informational line to standard error, unless quiet.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            to_stderr(text);
        }
    }

    /// Prints a warning to standard error.
    pub fn warn(&self, text: &str) {
        to_stderr(&format!("warning: {text}"));
    }

    /// Writes `value` as indented JSON to `path`, or to standard output for `-`.
    ///
    /// # Errors
    /// If writing fails.
    pub fn json(&self, path: &Path, value: &impl serde::Serialize) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(value)?;
        if is_stdout(path) {
            // Control characters other than line feeds occur only inside JSON strings, which allow this escape.
            return self.line(&escaped(&text, |c| format!("\\u{:04x}", u32::from(c))));
        }
        let text = format!("{text}\n");
        let written = if is_stream(path) {
            // `/dev/stdout` or a pipe: renaming a file over it would replace it.
            fs_err::OpenOptions::new().write(true).open(path).and_then(|mut to| to.write_all(text.as_bytes()))
        } else {
            d2o_files::AtomicFile::write_all_to(path, text.as_bytes())
        };
        written.with_context(|| format!("write `{}`", path.display()))
    }

    /// Starts a progress display for `total` images: a bar on a terminal, otherwise a line every few seconds.
    #[must_use]
    pub fn progress(&self, what: &str, total: u64) -> Progress {
        self.progress_of(what, "images", total)
    }

    /// Same as [`Printer::progress`], for `total` items of `unit`.
    #[must_use]
    pub fn progress_of(&self, what: &str, unit: &str, total: u64) -> Progress {
        let bar = self.draws().then(|| {
            let style =
                ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} · {per_sec} · ETA {eta}");
            ProgressBar::new(total)
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
                .with_message(printable(what).into_owned())
        });
        let now = Instant::now();
        let (what, unit) = (what.to_owned(), unit.to_owned());
        Progress { what, unit, total, done: 0, skipped: 0, start: now, last: now, bar, quiet: self.quiet }
    }

    /// Starts a stage without a count. After 2 s, a terminal shows a spinner until the stage ends; otherwise one line
    /// is printed at that time and one at the end.
    #[must_use]
    pub fn stage(&self, what: &str) -> RunningStage {
        let after = (!self.quiet).then_some(STAGE_SHOWN_AFTER);
        RunningStage::start(printable(what).into_owned(), self.draws(), after, to_stderr)
    }

    /// Whether bars and spinners are drawn.
    fn draws(self) -> bool {
        !self.quiet && std::io::stderr().is_terminal()
    }
}

impl Reporter for Printer {
    fn count(&self, what: &str, unit: &str, total: u64) -> Box<dyn Count> {
        Box::new(self.progress_of(what, unit, total))
    }

    fn stage(&self, what: &str) -> Box<dyn Stage> {
        Box::new(Self::stage(self, what))
    }

    fn note(&self, text: &str) {
        Self::note(self, text);
    }

    fn warn(&self, text: &str) {
        Self::warn(self, text);
    }
}

/// A command line, quoted for a shell.
#[must_use]
pub fn shell(words: &[OsString]) -> String {
    let quoted = |word: &OsString| {
        let text = word.to_string_lossy().into_owned();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,:=@%+".contains(c);
        if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
    };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// The error for a failed write to standard output.
fn closed(error: std::io::Error) -> anyhow::Error {
    match error.kind() {
        std::io::ErrorKind::BrokenPipe => anyhow::Error::new(StdoutClosed),
        _ => anyhow::Error::new(error).context("write to standard output"),
    }
}

/// `text` without control characters, for a terminal. Names and messages in files may contain control characters that
/// hide, move or replace terminal output; they are written as escapes, e.g. `\u{1b}`.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c.escape_unicode().to_string())
}

/// `text` with `escape` applied to every control character except line feeds and tabs, and to characters that change
/// the writing direction.
fn escaped(text: &str, escape: impl Fn(char) -> String) -> Cow<'_, str> {
    let harmful = |c: char| match c {
        '\n' | '\t' => false,
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        c => c.is_control(),
    };
    if !text.contains(harmful) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(|c| if harmful(c) { escape(c) } else { c.to_string() }).collect())
}

/// Writes a line to standard error, escaped by [`printable`]. If the reader of standard error is gone, the run is
/// interrupted; other write errors are ignored.
fn to_stderr(text: &str) {
    // A single write, so that lines of several threads and processes do not mix.
    let written = std::io::stderr().lock().write_all(format!("{}\n", printable(text)).as_bytes());
    if written.is_err_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) {
        interrupt::reader_gone();
    }
}

/// A running progress display, see [`Printer::progress`].
#[derive(Debug)]
pub struct Progress {
    what: String,
    unit: String,
    total: u64,
    done: u64,
    skipped: u64,
    start: Instant,
    last: Instant,
    bar: Option<ProgressBar>,
    quiet: bool,
}

impl Progress {
    /// Adds `count` items that an earlier run finished. They do not affect the rate.
    pub fn skip(&mut self, count: u64) {
        self.done += count;
        self.skipped += count;
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
            bar.reset_eta();
        }
    }

    /// Adds `count` finished items.
    pub fn advance(&mut self, count: u64) {
        self.done += count;
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
        } else if !self.quiet && self.last.elapsed() >= LINE_EVERY {
            self.last = Instant::now();
            #[allow(clippy::cast_precision_loss, reason = "image counts")]
            let (done, skipped, total) = (self.done as f64, self.skipped as f64, self.total as f64);
            let pace = (done - skipped) / self.start.elapsed().as_secs_f64();
            let (what, unit, eta) = (&self.what, &self.unit, (total - done) / pace);
            to_stderr(&format!("{what} {done}/{total} · {pace:.1} {unit}/s · ETA {eta:.0} s"));
        }
    }

    /// Removes the bar.
    pub fn finish(self) {}
}

impl Count for Progress {
    fn skip(&mut self, count: u64) {
        Self::skip(self, count);
    }

    fn advance(&mut self, count: u64) {
        Self::advance(self, count);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// A running stage, see [`Printer::stage`]. It ends when it is dropped.
#[derive(Debug)]
pub struct RunningStage {
    what: String,
    start: Instant,
    print: fn(&str),
    /// The sender, dropped to end the waiting thread, and the thread, which returns whether it printed a line.
    shown: Option<(Sender<()>, JoinHandle<bool>)>,
}

impl RunningStage {
    fn start(what: String, spinner: bool, after: Option<Duration>, print: fn(&str)) -> Self {
        let shown = after.map(|after| {
            let (end, ended) = channel::<()>();
            let name = what.clone();
            let wait = move || {
                if ended.recv_timeout(after) != Err(RecvTimeoutError::Timeout) {
                    return false;
                }
                if !spinner {
                    print(&format!("{name} ..."));
                    let _ = ended.recv();
                    return true;
                }
                let style = ProgressStyle::with_template("{msg} {spinner} {elapsed}");
                let bar = ProgressBar::new_spinner()
                    .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
                    .with_message(name)
                    .with_elapsed(after);
                bar.enable_steady_tick(SPINNER_FRAME);
                let _ = ended.recv();
                bar.finish_and_clear();
                false
            };
            (end, std::thread::spawn(wait))
        });
        Self { what, start: Instant::now(), print, shown }
    }
}

impl Stage for RunningStage {}

impl Drop for RunningStage {
    fn drop(&mut self) {
        let Some((end, thread)) = self.shown.take() else { return };
        drop(end);
        if thread.join().unwrap_or(false) {
            (self.print)(&format!("{}: {:.1} s", self.what, self.start.elapsed().as_secs_f64()));
        }
    }
}

/// A table. Columns of numbers are right-aligned.
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
    let is_number = |cell: &String| {
        let digits = cell.trim_start_matches(['-', '+', '±', '<', '>']);
        matches!(cell.as_str(), "" | "–" | "failed") || digits.starts_with(|c: char| c.is_ascii_digit())
    };
    let columns: Vec<(usize, bool)> =
        (0..header.len()).map(|c| (width(c), c > 0 && rows.iter().filter_map(|r| r.get(c)).all(is_number))).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&columns).map(|(text, (width, numbers))| {
            if *numbers { format!("{text:>width$}") } else { format!("{text:<width$}") }
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(header.to_vec())];
    lines.extend(rows.iter().map(|r| line(r.iter().map(String::as_str).collect())));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn columns_of_numbers_are_right_aligned() {
        let rows = [["a", "2 cores", "-1.5"], ["b", "absent", "12"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&["x", "found", "n"], &rows), "x  found       n\na  2 cores  -1.5\nb  absent     12");
    }

    #[test]
    fn a_stage_is_shown_once_it_has_lasted() {
        static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
        let start = |what: &str, after| {
            RunningStage::start(what.to_owned(), false, after, |line| LINES.lock().unwrap().push(line.to_owned()))
        };
        drop(start("short", Some(Duration::from_secs(60))));
        drop(start("quiet", None));
        assert!(LINES.lock().unwrap().is_empty(), "{LINES:?}");
        let stage = start("long", Some(Duration::ZERO));
        while LINES.lock().unwrap().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(*LINES.lock().unwrap(), ["long ..."]);
        drop(stage);
        let lines = LINES.lock().unwrap();
        assert!(lines.len() == 2 && lines[1].starts_with("long: ") && lines[1].ends_with(" s"), "{lines:?}");
    }

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        assert!(matches!(printable("a\tb\nÄ 東 🙂"), Cow::Borrowed(_)));
        let text = "\x1b]0;x\x07 \r \x7f \u{9b}2J \u{202e}gpj.exe \0";
        assert_eq!(printable(text), "\\u{1b}]0;x\\u{7} \\u{d} \\u{7f} \\u{9b}2J \\u{202e}gpj.exe \\u{0}");
    }

    #[test]
    fn tables_align() {
        let text = table(&["name", "n"], &[vec!["a".into(), "10".into()], vec!["long".into(), "1".into()]]);
        assert_eq!(text, "name   n\na     10\nlong   1");
    }
}
