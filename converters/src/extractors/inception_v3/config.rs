//! Configuration.

/// The parts of the network that a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// Whether batch norms have a scale `gamma`.
    pub gamma: bool,
    /// Whether the head, which gives the logits, is there.
    pub head: bool,
}
