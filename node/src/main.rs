//! The program `shoal-node`.

fn main() {}
