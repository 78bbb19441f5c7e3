//! Calling webhooks: HTTPS servers that users run and name in their configurations, to convert or to admit objects.
//!
//! A webhook is trusted with its answer alone: where it is comes from a configuration, its certificate must be signed by the bundle that
//! is written there, its answer is bounded in size and time, and it is never followed elsewhere.

mod client;
mod kubeconfig;
mod pool;
mod target;
mod tls;

pub use client::Webhooks;
pub use kubeconfig::{Configured, FileError};
pub use target::{ClientConfig, resolve};
pub use tls::{Trust, tls_config};
