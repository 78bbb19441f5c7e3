//! The pause process that holds a pod's namespaces.

fn main() {}
