//! Virtual machines in QEMU ([`machine`]), the network between them ([`network`], [`switch`]), and scenarios that run on them
//! ([`scenarios`]). Clusters of them are in [`cluster`]; what a power cut can leave on their disks is in [`power`];
//! what they take to start and to be upgraded is measured in [`measure`].

pub mod accel;
pub mod cluster;
pub mod console;
mod error;
pub mod hang;
mod http;
pub mod machine;
pub mod measure;
pub mod network;
pub mod power;
mod qmp;
mod scenario;
pub mod scenarios;
pub mod switch;

pub use error::Error;
pub use scenario::{Context, Running, RunningCluster, Scenario};
