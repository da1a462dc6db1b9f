//! The `d2o` command.
fn main() {}
