//! PID 1: mounts, modules, reaping and supervision of the host services.

fn main() {}
