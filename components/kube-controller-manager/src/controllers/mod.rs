//! The controllers, one module each; [`crate::registry`] names them all.

pub mod cluster_role_aggregation;
pub mod cron_job;
mod csr;
pub mod csr_approving;
pub mod csr_cleaner;
pub mod csr_signing;
pub mod daemon_set;
pub mod deployment;
pub mod disruption;
pub mod endpoint_slice;
pub mod endpoints;
pub mod garbage_collector;
pub mod job;
pub mod namespace;
pub mod node_ipam;
pub mod node_lifecycle;
pub mod pod_gc;
pub mod replica_set;
mod revisions;
pub mod root_ca;
pub mod service_account;
mod service_pods;
pub mod stateful_set;
pub mod taint_eviction;
pub mod token_cleaner;
pub mod ttl_after_finished;
