//! Display of errors: the chain of causes, then hints.

use std::error::Error as StdError;
use std::fmt::Write as _;

use crate::commands::ExitStatus;
use crate::interrupt::Interrupted;

/// An error with a hint, which [`render`] prints last, as `hint: …`. Text and causes are those of the wrapped error.
#[derive(Debug)]
pub struct Hint {
    hint: String,
    error: anyhow::Error,
}

impl std::fmt::Display for Hint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.error.fmt(f)
    }
}

impl StdError for Hint {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.error.chain().nth(1)
    }
}

/// Adds `hint` to `error`.
#[must_use]
pub fn with_hint(error: anyhow::Error, hint: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Hint { hint: hint.into(), error })
}

/// Calls `each` for `error` and all its causes, including those inside a [`Hint`].
pub fn walk<'a>(error: &'a anyhow::Error, each: &mut dyn FnMut(&'a (dyn StdError + 'static))) {
    for cause in error.chain() {
        let mut at = cause;
        each(at);
        // A `Hint` takes the place of its wrapped error in the chain, so the wrapped error is visited here.
        while let Some(inner) = at.downcast_ref::<Hint>().and_then(|h| h.error.chain().next()) {
            each(inner);
            at = inner;
        }
    }
}

/// The interruption that caused `error`, if there is one.
#[must_use]
pub fn interruption(error: &anyhow::Error) -> Option<&Interrupted> {
    let mut found: Option<&Interrupted> = None;
    walk(error, &mut |cause| found = found.or_else(|| cause.downcast_ref()));
    // An interruption that was added as context is found only by `downcast_ref`.
    found.or_else(|| error.downcast_ref())
}

/// Adds the text `then` (what remains, how to continue) to `error` if it is an interruption without such a text.
#[must_use]
pub fn when_interrupted(error: anyhow::Error, then: impl FnOnce() -> String) -> anyhow::Error {
    match interruption(&error) {
        Some(Interrupted { then: None }) => Interrupted::then(then()).into(),
        _ => error,
    }
}

/// The reader of standard output has closed it (`d2o … | head`). Nothing is shown for this error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("standard output is closed")]
pub struct StdoutClosed;

/// The exit status of a process that fails with `error`.
#[must_use]
pub fn status(error: &anyhow::Error) -> ExitStatus {
    if interruption(error).is_some() { ExitStatus::Interrupted } else { ExitStatus::Trouble }
}

/// The different hints of `error` and its causes, outermost first.
#[must_use]
pub fn hints(error: &anyhow::Error) -> Vec<&str> {
    let mut found: Vec<&str> = Vec::new();
    walk(error, &mut |cause| {
        if let Some(Hint { hint, .. }) = cause.downcast_ref()
            && !found.contains(&hint.as_str())
        {
            found.push(hint);
        }
    });
    found
}

/// The text printed for `error`; empty for [`StdoutClosed`].
#[must_use]
pub fn render(error: &anyhow::Error) -> String {
    if let Some(interrupted) = interruption(error) {
        return format!("{interrupted}\n");
    }
    if error.downcast_ref::<StdoutClosed>().is_some() {
        return String::new();
    }
    let mut lines: Vec<String> = Vec::new();
    walk(error, &mut |cause| {
        // Error texts of ONNX Runtime end with a line feed.
        let text = cause.to_string().trim_end().to_owned();
        if !lines.contains(&text) && !lines.last().is_some_and(|line| line.ends_with(&text)) {
            lines.push(text);
        }
    });
    let mut out = String::new();
    for (i, line) in lines.iter().enumerate() {
        let _ = if i == 0 { writeln!(out, "error: {line}") } else { writeln!(out, "  caused by: {line}") };
    }
    for hint in hints(error) {
        let _ = writeln!(out, "hint: {hint}");
    }
    out
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::*;

    #[test]
    fn chain_then_hint() {
        let error = anyhow!("no such key").context("cannot open `x`");
        assert_eq!(render(&error), "error: cannot open `x`\n  caused by: no such key\n");
        let error = with_hint(error, "try y");
        assert_eq!(render(&error), "error: cannot open `x`\n  caused by: no such key\nhint: try y\n");
        assert_eq!(format!("{error:#}"), "cannot open `x`: no such key");
        assert_eq!(status(&error), ExitStatus::Trouble);
    }

    #[test]
    fn every_hint_of_a_chain_is_a_hint() {
        let inner = with_hint(with_hint(anyhow!("no such key"), "try y"), "or z");
        let error = with_hint(inner.context("cannot open `x`"), "see --help").context("cannot export");
        assert_eq!(
            render(&error),
            "error: cannot export\n  caused by: cannot open `x`\n  caused by: no such key\nhint: see --help\nhint: or z\nhint: try y\n"
        );
    }

    #[test]
    fn a_closed_standard_output_is_silent() {
        let error = anyhow::Error::new(StdoutClosed).context("cannot inspect `x`");
        assert_eq!((render(&error).as_str(), status(&error)), ("", ExitStatus::Trouble));
    }

    #[test]
    fn the_same_text_is_said_once() {
        let error = anyhow!("disk full").context("write `x`").context("disk full").context("cannot: disk full");
        assert_eq!(render(&error), "error: cannot: disk full\n  caused by: write `x`\n  caused by: disk full\n");
        let error = with_hint(anyhow!("a").context("b").context("a"), "c").context("a");
        assert_eq!(render(&with_hint(error, "c")), "error: a\n  caused by: b\nhint: c\n");
    }

    #[test]
    fn an_interruption_is_found_below_any_context() {
        let raised = || -> anyhow::Result<()> { Ok(Err(Interrupted::default())?) };
        let error = with_hint(raised().unwrap_err(), "a").context("b").context("c");
        assert_eq!((render(&error).as_str(), status(&error)), ("interrupted\n", ExitStatus::Interrupted));
        let error = when_interrupted(error, || "--resume continues `x`".to_owned());
        assert_eq!(render(&error.context("d")), "interrupted; --resume continues `x`\n");
        let error = anyhow!("a").context(Interrupted::then("b")).context("c");
        assert_eq!((render(&error).as_str(), status(&error)), ("interrupted; b\n", ExitStatus::Interrupted));
        assert!(Err::<(), _>(raised().unwrap_err()).context("x").is_err_and(|e| interruption(&e).is_some()));
    }
}
