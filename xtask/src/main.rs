//! Workspace tasks: cargo xtask test.
fn main() {}
