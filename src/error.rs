//! How errors are shown: the chain of causes, then hints.

use std::fmt::Write as _;

/// Advice attached to an error; printed last, as `hint: …`.
#[derive(Debug)]
pub struct Hint(pub String);

impl std::fmt::Display for Hint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Hint {}

/// `error` with advice.
#[must_use]
pub fn with_hint(error: anyhow::Error, hint: impl Into<String>) -> anyhow::Error {
    let text = hint.into();
    error.context(Hint(text))
}

/// The text shown for `error`.
#[must_use]
pub fn render(error: &anyhow::Error) -> String {
    let mut hints = Vec::new();
    let mut lines: Vec<String> = Vec::new();
    if let Some(Hint(hint)) = error.downcast_ref::<Hint>() {
        hints.push(hint.clone());
    }
    for cause in error.chain() {
        let text = cause.to_string();
        let repeated = hints.contains(&text) || lines.last().is_some_and(|l| l.ends_with(&text));
        if !repeated {
            lines.push(text);
        }
    }
    let mut out = String::new();
    for (i, line) in lines.iter().enumerate() {
        let _ = if i == 0 { writeln!(out, "error: {line}") } else { writeln!(out, "  caused by: {line}") };
    }
    for hint in hints {
        let _ = writeln!(out, "hint: {hint}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_then_hint() {
        let error = anyhow::anyhow!("no such key").context("cannot open `x`");
        assert_eq!(render(&error), "error: cannot open `x`\n  caused by: no such key\n");
        let error = with_hint(error, "try y");
        assert_eq!(render(&error), "error: cannot open `x`\n  caused by: no such key\nhint: try y\n");
    }
}
