//! The machine API's contract: protobuf definitions, generated types, the table of methods with who may call them, the
//! pairing string of maintenance mode and the size limits both sides keep. Pure: it opens no connection and no file.

pub mod limits;
pub mod methods;
pub mod pairing;
pub mod recovery_key;

/// The generated messages, clients and servers of `strake.machine.v1alpha1`.
#[allow(missing_docs, clippy::all, rust_2018_idioms)]
pub mod v1alpha1 {
    tonic::include_proto!("strake.machine.v1alpha1");
}

/// The port of the machine API.
pub const PORT: u16 = 50000;

/// The DNS name that every machine's serving certificate carries, so that a client can verify "a machine of this
/// cluster" whatever address it used to get there (a forwarded port, a NAT, a load balancer).
pub const SERVER_NAME: &str = "strake-machine";

/// The request header that carries the pairing code in maintenance mode.
pub const PAIRING_HEADER: &str = "strake-pairing";
