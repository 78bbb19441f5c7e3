//! cargo xtask: up, down, test, bench, image, schema and tidy.

fn main() {}
