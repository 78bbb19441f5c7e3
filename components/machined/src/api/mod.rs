//! The machine API's server: TLS, who may call what, and one file per service. Handlers translate between the wire and
//! the rest of machined; they decide nothing themselves.

pub mod authorize;
mod etcd;
mod files;
mod images;
mod join;
mod logs;
mod machine;
mod resources;
mod services;
pub mod tls;
mod upgrade;

pub use machine::install_by_itself;

use std::error::Error;
use std::fmt::Write;
use std::sync::Arc;

use machine_api::limits;
use machine_api::v1alpha1 as api;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::machine::Machine;

/// Calls that one connection may have open.
const CALLS_PER_CONNECTION: usize = 32;

/// Serves the API on a listener until it is cancelled.
pub async fn serve(
    machine: Arc<Machine>,
    policy: authorize::Policy,
    tls: Arc<rustls::ServerConfig>,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let incoming = tls::accept(listener, tls, stop.clone());
    macro_rules! service {
        ($server:ident :: $kind:ident, $implementation:expr) => {
            api::$server::$kind::new($implementation).max_decoding_message_size(limits::MESSAGE_BYTES)
        };
    }
    Server::builder()
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION)
        .http2_keepalive_interval(Some(std::time::Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(std::time::Duration::from_secs(20)))
        .layer(authorize::AuthorizeLayer::new(policy))
        .add_service(service!(machine_service_server::MachineServiceServer, machine::Handler(machine.clone())))
        .add_service(service!(service_service_server::ServiceServiceServer, services::Handler(machine.clone())))
        .add_service(service!(log_service_server::LogServiceServer, logs::Handler(machine.clone())))
        .add_service(service!(resource_service_server::ResourceServiceServer, resources::Handler(machine.clone())))
        .add_service(service!(file_service_server::FileServiceServer, files::Handler(machine.clone())))
        .add_service(service!(image_service_server::ImageServiceServer, images::Handler(machine.clone())))
        .add_service(service!(etcd_service_server::EtcdServiceServer, etcd::Handler(machine.clone())))
        .add_service(service!(join_service_server::JoinServiceServer, join::Handler(machine)))
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

/// The status of something that failed through no fault of the caller.
fn internal(error: &dyn Error) -> tonic::Status {
    tonic::Status::internal(chain(error))
}

/// Refuses names and paths that are too long for anything real.
fn bounded(what: &str, text: &str) -> Result<(), tonic::Status> {
    if text.len() > limits::NAME_BYTES {
        return Err(tonic::Status::invalid_argument(format!("{what} is longer than {} bytes", limits::NAME_BYTES)));
    }
    Ok(())
}
