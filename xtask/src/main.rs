//! Project chores, run as `cargo xtask TASK`.
fn main() {}
