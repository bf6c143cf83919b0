//! The enclos command.
fn main() {}
