//! The runtime measured first into every Enclos image.
fn main() {}
