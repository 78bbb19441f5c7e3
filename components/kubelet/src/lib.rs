//! The kubelet: runs the pods bound to this node, from manifests on the machine and from the API server, through the Container Runtime
//! Interface, and reports what became of them.
//!
//! Observe, plan, apply: `pod::observe` asks the runtime, `pod::plan` decides without any I/O, `pod::apply` does it. Nothing that a static
//! pod needs ever waits for the API server.

mod api;
mod config;
mod cri;
mod flags;
mod kubelet;
mod model;
mod node;
mod pleg;
mod pod;
mod probe;
mod run;
mod runtime;
mod server;
mod sources;
mod statuses;
mod volumes;

pub use run::main;
