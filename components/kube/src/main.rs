//! The multi-call binary of the Kubernetes components: nothing but dispatch.

fn main() {}
