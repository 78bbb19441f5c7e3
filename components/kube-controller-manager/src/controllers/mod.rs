//! The controllers, one module each; [`crate::registry`] names them all.

mod csr;
pub mod csr_approving;
pub mod csr_signing;
pub mod deployment;
pub mod endpoint_slice;
pub mod endpoints;
pub mod namespace;
pub mod node_ipam;
pub mod replica_set;
pub mod root_ca;
pub mod service_account;
mod service_pods;
