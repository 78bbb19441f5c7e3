//! How init gives logd the output of services. init owns a pipe per service for as long as it runs, both ends of it, so that
//! no writer is lost when logd restarts. logd listens on the SOCK_SEQPACKET socket [`SOCKET`]; init connects and sends one
//! [`Handover`] packet per service, with the pipe's reading end as the only file descriptor (SCM_RIGHTS). When logd goes away,
//! init connects again and sends them all again.

use serde::{Deserialize, Serialize};

/// Where logd takes pipes (SOCK_SEQPACKET).
pub const SOCKET: &str = "/run/strake/logd-stdio.sock";

/// One service's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handover {
    /// The service, and the name of its log.
    pub service: String,
}
