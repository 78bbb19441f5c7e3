//! The Kubernetes service proxy: what Services promise, as nf_tables rules.
//!
//! [`services`] says what has to be forwarded, [`plan`] what the table must look like, [`ruleset`] which transaction leads there; all three are pure. [`run`] is the I/O around them.

pub mod config;
pub mod conntrack;
pub mod health;
pub mod plan;
pub mod ruleset;
pub mod run;
pub mod services;
pub mod types;
