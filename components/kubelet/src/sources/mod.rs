//! Where pods come from: manifests on this machine, and the API server (whose informer is in `api`).

pub mod mirror;
pub mod static_pods;
