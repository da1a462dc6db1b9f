//! Configuration of Inception-v3.

/// The optional parts of the network that a file contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// Whether batch norms have a scale `gamma`.
    pub gamma: bool,
    /// Whether there is a head, which computes the logits.
    pub head: bool,
}
