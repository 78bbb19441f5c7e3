//! Turning a pod's definition into what the container runtime is asked for.

pub mod cgroup;
pub mod container;
pub mod dns;
pub mod env;
pub mod expansion;
pub mod hosts;
pub mod images;
pub mod log_file;
pub mod log_rotation;
pub mod sandbox;
pub mod security;
