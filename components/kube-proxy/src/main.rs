//! Programs Services into nftables.

fn main() {}
