//! Virtual machines in QEMU ([`machine`]), the network between them ([`network`], [`switch`]), and scenarios that run on them
//! ([`scenarios`]). Clusters of them are in [`cluster`]; what a power cut can leave on their disks is in [`power`].

pub mod accel;
pub mod cluster;
pub mod console;
mod error;
mod http;
pub mod machine;
pub mod network;
pub mod power;
mod qmp;
mod scenario;
pub mod scenarios;
pub mod switch;

pub use error::Error;
pub use scenario::{Context, Running, RunningCluster, Scenario};
