//! Serves the journal socket, reads the kernel log and keeps bounded logs per service.

fn main() {}
