//! The command line of Strake.

fn main() {}
