//! The machine daemon: keeps the machine config, runs the node's reconcilers and serves the machine API. In maintenance
//! mode, without a config, it waits for one and installs.

pub mod api;
mod boot;
mod clock;
mod containerd;
mod disks;
mod etcd;
mod init;
mod install;
mod join;
mod kubeconfig;
pub mod kubernetes;
pub mod machine;
mod metrics;
pub mod pairing;
pub mod paths;
pub mod reconcilers;
pub mod resources;
mod run;
mod service_words;
mod serving;
pub mod state;
#[cfg(test)]
mod testing;

pub use init::{InitError, InitHandle};
pub use run::run;
