//! Progress of long computations, without knowledge of who shows it.

/// Receives progress, notes and warnings of a computation. Implemented by [`crate::printer::Printer`]; [`Silent`] ignores everything.
pub trait Reporter: std::fmt::Debug + Sync {
    /// Starts counting `total` of `unit` (e.g. "images") under the name `what`. Dropping the result ends the display.
    fn count(&self, what: &str, unit: &str, total: u64) -> Box<dyn Count>;

    /// Starts a stage that has no count, e.g. "nearest neighbours". It is shown once it has lasted a few seconds; dropping the result ends it.
    fn stage(&self, what: &str) -> Box<dyn Stage>;

    /// A line for the user's information.
    fn note(&self, text: &str);

    /// A line the user should not miss.
    fn warn(&self, text: &str);
}

/// A running count, see [`Reporter::count`].
pub trait Count: std::fmt::Debug + Send {
    /// `count` more are done already, by an earlier run: they do not count for the pace.
    fn skip(&mut self, count: u64);

    /// `count` more are done.
    fn advance(&mut self, count: u64);
}

/// A running stage, see [`Reporter::stage`].
pub trait Stage: std::fmt::Debug + Send {}

/// Shows nothing: for the use of d2o as a library, and for tests.
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
