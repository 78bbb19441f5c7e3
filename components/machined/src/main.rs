//! The machine daemon: keeps the machine config, runs the node's reconcilers and serves the machine API.

fn main() {}
