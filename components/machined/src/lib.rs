//! The machine daemon: keeps the machine config, runs the node's reconcilers and serves the machine API. In maintenance
//! mode, without a config, it waits for one and installs.

pub mod api;
mod boot;
mod clock;
mod containerd;
mod disks;
mod encryption;
mod etcd;
pub mod events;
mod init;
mod install;
mod join;
mod joined;
mod kubeconfig;
pub mod kubernetes;
pub mod machine;
mod medium;
mod metrics;
pub mod milestones;
pub mod pairing;
pub mod paths;
pub mod reconcilers;
mod reset;
pub mod resources;
mod root;
mod run;
mod security;
mod service_words;
mod serving;
pub mod state;
mod stats;
#[cfg(test)]
mod testing;
pub mod trial;
mod unattended;
mod upgrade;

pub use init::{InitError, InitHandle};
pub use run::run;
pub use upgrade::drain_node;
