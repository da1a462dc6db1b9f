//! Checkpoint readers and network definitions over one Backend trait.
