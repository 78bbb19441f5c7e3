//! Connections to kubelets (mutual TLS) and to what proxied requests are for.

use std::{path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use k8s_schema::Doc;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use crate::http::tls::{TlsError, read_certs, read_key};

const CONNECT: Duration = Duration::from_secs(10);
const DEFAULT_PORT: u16 = 10250;

/// A byte stream, with or without TLS.
pub trait Duplex: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}
pub type Stream = Pin<Box<dyn Duplex>>;

/// Where a request goes.
#[derive(Debug, Clone)]
pub struct Target {
    pub host: String,
    pub port: u16,
    pub tls: bool,
    /// A kubelet: it is shown our certificate, and its own is checked.
    pub kubelet: bool,
}

#[derive(Debug, Clone, Default)]
pub struct KubeletConfig {
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub ca: Option<PathBuf>,
    /// Kinds of node addresses, the best first.
    pub address_types: Vec<String>,
}

pub struct KubeletClient {
    config: KubeletConfig,
    tls: ArcSwap<ClientConfig>,
    /// For proxied services and pods, whose certificates nobody knows.
    unchecked: Arc<ClientConfig>,
}

impl KubeletClient {
    pub fn new(config: KubeletConfig) -> Result<Arc<Self>, TlsError> {
        let tls = ArcSwap::from_pointee(client_config(&config)?);
        let unchecked = Arc::new(client_config(&KubeletConfig::default())?);
        Ok(Arc::new(Self { config, tls, unchecked }))
    }

    pub fn paths(&self) -> Vec<PathBuf> {
        [&self.config.cert, &self.config.key, &self.config.ca].into_iter().flatten().cloned().collect()
    }

    pub fn reload(&self) -> Result<(), TlsError> {
        self.tls.store(Arc::new(client_config(&self.config)?));
        Ok(())
    }

    /// The kubelet of a node, at its best address.
    pub fn of_node(&self, node: &Doc) -> Result<Target, String> {
        let addresses = node.at("status.addresses");
        let host = self
            .config
            .address_types
            .iter()
            .find_map(|t| addresses.iter().find(|a| a.get("type").str() == t).map(|a| a.get("address").str().to_owned()))
            .ok_or_else(|| {
                format!(
                    "no preferred addresses found; known addresses: {}",
                    if addresses.exists() { addresses.to_value() } else { serde_json::json!([]) }
                )
            })?;
        let port = node.at("status.daemonEndpoints.kubeletEndpoint.Port").as_i64().and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0);
        Ok(Target { host, port: port.unwrap_or(DEFAULT_PORT), tls: true, kubelet: true })
    }

    pub async fn connect(&self, target: &Target) -> Result<Stream, String> {
        let work = async {
            let tcp = TcpStream::connect((target.host.as_str(), target.port))
                .await
                .map_err(|e| format!("dial tcp {}:{}: connect: {e}", target.host, target.port))?;
            // Small frames of terminals should not wait for more.
            let _ = tcp.set_nodelay(true);
            if !target.tls {
                return Ok::<Stream, String>(Box::pin(tcp));
            }
            let config = if target.kubelet { self.tls.load_full() } else { Arc::clone(&self.unchecked) };
            let name = ServerName::try_from(target.host.clone()).map_err(|e| e.to_string())?;
            let tls = TlsConnector::from(config).connect(name, tcp).await.map_err(|e| format!("tls: {e}"))?;
            Ok(Box::pin(tls))
        };
        tokio::time::timeout(CONNECT, work).await.map_err(|_| format!("dial tcp {}:{}: i/o timeout", target.host, target.port))?
    }
}

fn client_config(c: &KubeletConfig) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().map_err(TlsError::Setup)?;
    let builder = match &c.ca {
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            for cert in read_certs(ca)? {
                roots.add(cert).map_err(TlsError::Setup)?;
            }
            builder.with_root_certificates(roots)
        }
        // As upstream: without a CA for kubelets their certificates are taken as they come.
        None => builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate { provider })),
    };
    match (&c.cert, &c.key) {
        (Some(cert), Some(key)) => builder.with_client_auth_cert(read_certs(cert)?, read_key(key)?).map_err(TlsError::Setup),
        _ => Ok(builder.with_no_client_auth()),
    }
}

/// Takes any certificate whose key the server holds.
#[derive(Debug)]
pub struct AnyCertificate {
    pub provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(m, c, d, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(m, c, d, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
