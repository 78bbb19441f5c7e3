//! TLS of the kubelet's API: its serving certificate, whichever is there by now, and the check of client certificates.

use super::ServerError;
use crate::api::credentials::{Purpose, current_path};
use crate::config::Config;
use parking_lot::Mutex;
use pki::reload::KeyPairFiles;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Gives handshakes the certificate issued by the cluster once it exists, and one of our own making until then.
#[derive(Debug)]
struct ServingCertificate {
    files: (PathBuf, PathBuf),
    issued: Mutex<(Option<Arc<KeyPairFiles>>, Option<Instant>)>,
    fallback: Arc<CertifiedKey>,
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut issued = self.issued.lock();
        if issued.0.is_none() && issued.1.is_none_or(|at| at.elapsed() > Duration::from_secs(1)) {
            *issued = (KeyPairFiles::open(&self.files.0, &self.files.1).ok(), Some(Instant::now()));
        }
        Some(issued.0.as_ref().map_or_else(|| self.fallback.clone(), |files| files.current()))
    }
}

/// The acceptor for the API's connections.
pub fn acceptor(config: &Config) -> Result<tokio_rustls::TlsAcceptor, ServerError> {
    let files = match (&config.tls_cert_file, &config.tls_private_key_file) {
        (Some(cert), Some(key)) => (cert.clone(), key.clone()),
        _ => {
            let current = current_path(&config.cert_dir, Purpose::Serving);
            (current.clone(), current)
        }
    };
    let resolver = ServingCertificate { files, issued: Mutex::new((None, None)), fallback: Arc::new(self_signed(config)?) };
    let builder = rustls::ServerConfig::builder_with_provider(pki::tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(ServerError::Tls)?;
    let builder = match &config.client_ca_file {
        Some(path) => {
            let pem = std::fs::read_to_string(path).map_err(|source| ServerError::Read { path: path.clone(), source })?;
            let roots = Arc::new(pki::tls::roots(&pem).map_err(ServerError::ClientCa)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, pki::tls::provider())
                .allow_unauthenticated()
                .build()
                .map_err(ServerError::Verifier)?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let mut tls = builder.with_cert_resolver(Arc::new(resolver));
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tokio_rustls::TlsAcceptor::from(Arc::new(tls)))
}

fn self_signed(config: &Config) -> Result<CertifiedKey, ServerError> {
    let spec = pki::LeafSpec {
        common_name: format!("{}@self-signed", config.node_name),
        dns_names: vec![config.node_name.clone()],
        addresses: config.node_ips.clone(),
        server: true,
        lifetime: Duration::from_secs(365 * 24 * 3600),
        ..Default::default()
    };
    let authority = pki::Authority::generate(&spec.common_name, jiff::Timestamp::now(), spec.lifetime).map_err(ServerError::Certificate)?;
    let authority = pki::Authority::from_pem(&authority.cert_pem, &authority.key_pem).map_err(ServerError::Certificate)?;
    let issued = authority.issue(&spec, jiff::Timestamp::now()).map_err(ServerError::Certificate)?;
    pki::tls::certified_key(&issued.cert_pem, &issued.key_pem).map_err(ServerError::Certificate)
}
