//! The kvd program.
fn main() {}
