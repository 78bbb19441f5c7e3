//! The machine's name.

use std::io;

/// The longest name Linux takes.
pub const MAX_HOSTNAME: usize = 64;

#[derive(Debug, thiserror::Error)]
#[error("set the hostname to {name:?}")]
pub struct SetHostname {
    name: String,
    source: io::Error,
}

/// Sets the kernel's hostname.
pub fn set_hostname(name: &str) -> Result<(), SetHostname> {
    rustix::system::sethostname(name.as_bytes()).map_err(|error| SetHostname { name: name.to_owned(), source: error.into() })
}

/// The kernel's hostname.
pub fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
