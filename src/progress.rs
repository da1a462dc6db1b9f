//! Progress of long computations, independent of its display.

/// Receives progress, notes and warnings of a computation. Implemented by [`crate::printer::Printer`]; [`Silent`] ignores everything.
pub trait Reporter: std::fmt::Debug + Sync {
    /// Starts a count of `total` items of `unit` (e.g. "images") under the name `what`. Dropping the result ends the
    /// display.
    fn count(&self, what: &str, unit: &str, total: u64) -> Box<dyn Count>;

    /// Starts a stage without a count, e.g. "nearest neighbours". It is shown after a few seconds; dropping the result
    /// ends it.
    fn stage(&self, what: &str) -> Box<dyn Stage>;

    /// Reports an informational line.
    fn note(&self, text: &str);

    /// Reports a warning.
    fn warn(&self, text: &str);
}

/// A running count, see [`Reporter::count`].
pub trait Count: std::fmt::Debug + Send {
    /// Adds `count` items that an earlier run finished. They do not affect the rate.
    fn skip(&mut self, count: u64);

    /// Adds `count` finished items.
    fn advance(&mut self, count: u64);
}

/// A running stage, see [`Reporter::stage`].
pub trait Stage: std::fmt::Debug + Send {}

/// Ignores all reports, for library use and tests.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Reporter for Silent {
    fn count(&self, _: &str, _: &str, _: u64) -> Box<dyn Count> {
        Box::new(Self)
    }

    fn stage(&self, _: &str) -> Box<dyn Stage> {
        Box::new(Self)
    }

    fn note(&self, _: &str) {}

    fn warn(&self, _: &str) {}
}

impl Count for Silent {
    fn skip(&mut self, _: u64) {}

    fn advance(&mut self, _: u64) {}
}

impl Stage for Silent {}
