//! The joining side: a machine without certificates asks a control plane for them. The control plane proves itself by the
//! machine CA of the config before it hears the token.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use machine_api::v1alpha1::join_service_client::JoinServiceClient;
use machine_api::v1alpha1::{JoinRequest, LeaveRequest};
use machine_api::{PORT, SERVER_NAME};
use machine_config::Config;
use pki::{LeafSpec, PkiError, PrivateKey, create_request};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

const TIMEOUT: Duration = Duration::from_secs(15);

/// Why a machine could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// A key or request could not be made.
    #[error("make a certificate request")]
    Request(#[from] PkiError),
    /// TLS could not be set up.
    #[error("use the machine CA of the config")]
    Tls(#[from] rustls::Error),
    /// The control plane can't be reached, or is not of this cluster.
    #[error("connect to the machine API of the control plane at {address}: {reason}")]
    Connect { address: String, reason: String },
    /// It said no.
    #[error("the control plane at {address} refused: {reason}")]
    Refused { address: String, reason: String },
}

/// What a control plane issued.
#[derive(Debug)]
pub struct JoinAnswer {
    /// For the machine API.
    pub machine_certificate: String,
    /// For kube-proxy.
    pub kube_proxy_certificate: String,
}

/// Asks the control plane of the config.
pub async fn join(
    config: &Config,
    hostname: &str,
    wanted: &LeafSpec,
    machine_key: &PrivateKey,
    kube_proxy_key: &PrivateKey,
) -> Result<JoinAnswer, JoinError> {
    let address = control_plane(config);
    let request = JoinRequest {
        token: config.secrets.join_token.reveal().to_owned(),
        hostname: hostname.to_owned(),
        machine_csr: create_request(machine_key, wanted)?,
        kube_proxy_csr: create_request(kube_proxy_key, &LeafSpec { common_name: "system:kube-proxy".to_owned(), ..wanted.clone() })?,
    };
    let channel = connect(&address, config.secrets.authorities.machine.cert.as_str()).await?;
    let answer = tokio::time::timeout(TIMEOUT, JoinServiceClient::new(channel).join(request)).await;
    let refused = |reason: String| JoinError::Refused { address: address.clone(), reason };
    match answer {
        Ok(Ok(response)) => {
            let response = response.into_inner();
            Ok(JoinAnswer { machine_certificate: response.machine_certificate, kube_proxy_certificate: response.kube_proxy_certificate })
        }
        Ok(Err(status)) => Err(refused(status.message().to_owned())),
        Err(_) => Err(refused(format!("no answer within {} s", TIMEOUT.as_secs()))),
    }
}

/// Gives the machine's name back, so that another may join under it.
pub async fn leave(config: &Config, hostname: &str) -> Result<(), JoinError> {
    let address = control_plane(config);
    let request = LeaveRequest { token: config.secrets.join_token.reveal().to_owned(), hostname: hostname.to_owned() };
    let channel = connect(&address, config.secrets.authorities.machine.cert.as_str()).await?;
    match tokio::time::timeout(TIMEOUT, JoinServiceClient::new(channel).leave(request)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => Err(JoinError::Refused { address, reason: status.message().to_owned() }),
        Err(_) => Err(JoinError::Refused { address, reason: format!("no answer within {} s", TIMEOUT.as_secs()) }),
    }
}

/// The machine API of the cluster's endpoint.
fn control_plane(config: &Config) -> String {
    match &config.cluster.control_plane.endpoint.host {
        machine_config::values::Host::Address(address) => std::net::SocketAddr::new(*address, PORT).to_string(),
        machine_config::values::Host::Name(name) => format!("{name}:{PORT}"),
    }
}

async fn connect(address: &str, ca: &str) -> Result<Channel, JoinError> {
    let mut tls = ClientConfig::builder_with_provider(pki::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(pki::tls::roots(ca)?)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let tls = TlsConnector::from(Arc::new(tls));
    let to = address.to_owned();
    let connector = tower::service_fn(move |_| {
        let (to, tls) = (to.clone(), tls.clone());
        async move {
            let socket = TcpStream::connect(&to).await?;
            let name = ServerName::try_from(SERVER_NAME).map_err(std::io::Error::other)?;
            tls.connect(name, socket).await.map(TokioIo::new)
        }
    });
    let failed = |reason: String| JoinError::Connect { address: address.to_owned(), reason };
    match tokio::time::timeout(TIMEOUT, Endpoint::from_static("http://strake-machine").connect_with_connector(connector)).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(failed(crate::api::chain(&error))),
        Err(_) => Err(failed(format!("no answer within {} s", TIMEOUT.as_secs()))),
    }
}
