//! Connections to machines. The other end must prove that it is a machine of the cluster (its certificate chains to the
//! machine CA and carries the name that every machine has), or in maintenance mode that it is the machine whose pairing
//! string was given. Nothing is sent before that.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use machine_api::pairing::Pairing;
use machine_api::{PAIRING_HEADER, PORT, SERVER_NAME, limits};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::Status;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::context::Credentials;

/// How a machine and its client prove themselves to each other.
#[derive(Clone)]
pub enum Trust {
    /// A machine in maintenance mode.
    Pairing(Pairing),
    /// A machine of a cluster.
    Cluster(Credentials),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is not one.
    #[error("{0:?} is not a machine's address: give host or host:port")]
    Address(String),
    /// A PEM text could not be read.
    #[error("read the {what} of the strakeconfig")]
    Pem { what: &'static str, source: rustls::pki_types::pem::Error },
    /// TLS refused the credentials.
    #[error("use the credentials of the strakeconfig")]
    Tls(#[source] rustls::Error),
    /// The machine was not reached, or it is not the right one.
    #[error("connect to {node}: {reason}")]
    Connect { node: String, reason: String },
}

/// A connection to one machine.
#[derive(Clone)]
pub struct Connection {
    /// The machine as the person named it.
    pub node: String,
    channel: InterceptedService<Channel, Code>,
}

/// Adds the pairing code to every call, when there is one.
#[derive(Clone, Default)]
pub struct Code(Option<MetadataValue<Ascii>>);

impl Interceptor for Code {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        if let Some(code) = &self.0 {
            request.metadata_mut().insert(PAIRING_HEADER, code.clone());
        }
        Ok(request)
    }
}

macro_rules! clients {
    ($($(#[doc = $doc:literal])* $name:ident: $module:ident::$client:ident;)*) => {
        impl Connection {
            $($(#[doc = $doc])* pub fn $name(&self) -> machine_api::v1alpha1::$module::$client<InterceptedService<Channel, Code>> {
                machine_api::v1alpha1::$module::$client::new(self.channel.clone()).max_decoding_message_size(limits::MESSAGE_BYTES)
            })*
        }
    };
}

clients! {
    /// MachineService.
    machine: machine_service_client::MachineServiceClient;
    /// ServiceService.
    services: service_service_client::ServiceServiceClient;
    /// LogService.
    logs: log_service_client::LogServiceClient;
    /// ResourceService.
    resources: resource_service_client::ResourceServiceClient;
    /// FileService.
    files: file_service_client::FileServiceClient;
    /// ImageService.
    images: image_service_client::ImageServiceClient;
    /// EtcdService.
    etcd: etcd_service_client::EtcdServiceClient;
    /// JoinService.
    join: join_service_client::JoinServiceClient;
}

impl Connection {
    /// Connects to `host`, `host:port` or `[v6]:port`.
    pub async fn open(node: &str, trust: &Trust, timeout: Duration) -> Result<Connection, ConnectError> {
        let address = with_port(node).ok_or_else(|| ConnectError::Address(node.to_owned()))?;
        let tls = TlsConnector::from(Arc::new(tls(trust)?));
        let code = match trust {
            Trust::Pairing(pairing) => Code(MetadataValue::try_from(pairing.code()).ok()),
            Trust::Cluster(_) => Code::default(),
        };
        // The URI only fills the request's authority; where to connect and whom to trust is decided in the connector.
        let endpoint = Endpoint::from_static("http://strake-machine")
            .connect_timeout(timeout)
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(20))
            .keep_alive_while_idle(true);
        let connector = tower::service_fn(move |_| {
            let (address, tls) = (address.clone(), tls.clone());
            async move {
                let socket = TcpStream::connect(&address).await?;
                socket.set_nodelay(true)?;
                let name = ServerName::try_from(SERVER_NAME).map_err(std::io::Error::other)?;
                tls.connect(name, socket).await.map(TokioIo::new)
            }
        });
        let connect = endpoint.connect_with_connector(connector);
        let channel = match tokio::time::timeout(timeout, connect).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(ConnectError::Connect { node: node.to_owned(), reason: reason(&error) }),
            Err(_) => {
                return Err(ConnectError::Connect { node: node.to_owned(), reason: format!("no answer within {} s", timeout.as_secs()) });
            }
        };
        Ok(Connection { node: node.to_owned(), channel: InterceptedService::new(channel, code) })
    }
}

/// The innermost causes say what happened; the outer ones only that a transport failed.
fn reason(error: &tonic::transport::Error) -> String {
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !text.is_empty() && causes.last() != Some(&text) {
            causes.push(text);
        }
        next = cause.source();
    }
    match causes.last() {
        Some(last) => last.clone(),
        None => error.to_string(),
    }
}

/// Adds the default port to an address that has none.
fn with_port(node: &str) -> Option<String> {
    let valid = |host: &str| !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c == '/');
    if let Ok(address) = node.parse::<std::net::IpAddr>() {
        return Some(std::net::SocketAddr::new(address, PORT).to_string());
    }
    if node.parse::<std::net::SocketAddr>().is_ok() {
        return Some(node.to_owned());
    }
    match node.split_once(':') {
        None if valid(node) => Some(format!("{node}:{PORT}")),
        Some((host, port)) if valid(host) && port.parse::<u16>().is_ok_and(|port| port > 0) => Some(node.to_owned()),
        _ => None,
    }
}

fn tls(trust: &Trust) -> Result<ClientConfig, ConnectError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(ConnectError::Tls)?;
    let mut config = match trust {
        Trust::Pairing(pairing) => {
            let verifier = PairedMachine { pairing: pairing.clone(), provider: aws_lc_rs::default_provider() };
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth()
        }
        Trust::Cluster(credentials) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("ca", &credentials.ca)? {
                roots.add(certificate).map_err(ConnectError::Tls)?;
            }
            let key =
                PrivateKeyDer::from_pem_slice(credentials.key.as_bytes()).map_err(|source| ConnectError::Pem { what: "key", source })?;
            let chain = certificates("crt", &credentials.certificate)?;
            builder.with_root_certificates(roots).with_client_auth_cert(chain, key).map_err(ConnectError::Tls)?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, ConnectError> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|source| ConnectError::Pem { what, source })
}

/// Accepts exactly the certificate whose fingerprint begins as the pairing string says.
#[derive(Debug)]
struct PairedMachine {
    pairing: Pairing,
    provider: CryptoProvider,
}

impl ServerCertVerifier for PairedMachine {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.pairing.matches(&Sha256::digest(end_entity).into()) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General(
            "the pairing string belongs to another machine, or the machine was restarted and shows a new one on its console".to_owned(),
        ))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("machines speak TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_get_the_default_port() {
        for (node, address) in [
            ("10.5.0.11", Some("10.5.0.11:50000")),
            ("127.0.0.1:41001", Some("127.0.0.1:41001")),
            ("cp-1", Some("cp-1:50000")),
            ("cp-1:1", Some("cp-1:1")),
            ("fd00::1", Some("[fd00::1]:50000")),
            ("[fd00::1]:7", Some("[fd00::1]:7")),
            ("", None),
            ("cp-1:0", None),
            ("cp-1:x", None),
            ("https://cp-1", None),
        ] {
            assert_eq!(with_port(node).as_deref(), address, "{node}");
        }
    }
}
