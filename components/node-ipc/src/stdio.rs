//! How init gives logd the output of services and the journal socket. init owns both for as long as it runs, a pipe per
//! service with both its ends, so that no writer is lost when logd restarts. logd's standard input is one end of a
//! SOCK_SEQPACKET socket pair, new at each of its starts; on the other init sends one [`Handover`] packet per file
//! descriptor, with that descriptor as SCM_RIGHTS.

use serde::{Deserialize, Serialize};

/// What the file descriptor of this packet is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Handover {
    /// The bound journal socket ([`crate::logd::JOURNAL_SOCKET`]).
    Journal,
    /// The reading end of a service's standard output and error, not blocking.
    Service {
        /// The service, and the name of its log.
        name: String,
    },
}
