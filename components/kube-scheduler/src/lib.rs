//! The Kubernetes scheduler: watches pods without a node and binds each to the best one.
//!
//! Placement is pure ([`schedule`], [`plugins`], [`preemption`], [`queue`], [`snapshot`]).

pub mod framework;
pub mod plugins;
pub mod preemption;
pub mod queue;
pub mod resources;
pub mod schedule;
pub mod snapshot;
pub mod types;
