//! TLS: the serving certificate, reloaded when its files change, and client certificates, which are asked for and judged later.
//!
//! Whether a certificate is trusted is the authenticator's question (its answer is 401, not a broken handshake), so the handshake only
//! checks that the client holds the key.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::{
    DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::{
        ClientHello, ResolvesServerCert, ServerConfig,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("{path} holds no certificate")]
    NoCertificate { path: PathBuf },
    #[error("the key {key} does not fit the certificate {cert}")]
    Mismatch { cert: PathBuf, key: PathBuf, source: rustls::Error },
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
}

pub fn read_certs(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = |source| TlsError::Read { path: path.clone(), source };
    let certs = CertificateDer::pem_file_iter(path).map_err(read)?.collect::<Result<Vec<_>, _>>().map_err(read)?;
    if certs.is_empty() { Err(TlsError::NoCertificate { path: path.clone() }) } else { Ok(certs) }
}

pub fn read_key(path: &PathBuf) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|source| TlsError::Read { path: path.clone(), source })
}

/// When any of the files changed last; a file that is gone counts as the beginning of time.
pub fn modified(paths: &[PathBuf]) -> Vec<SystemTime> {
    paths.iter().map(|p| std::fs::metadata(p).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH)).collect()
}

/// Runs `reload` whenever one of `paths` changes, checked every few seconds. A failed reload is tried again at the next check.
pub async fn on_change<E: std::error::Error + 'static>(paths: Vec<PathBuf>, mut reload: impl FnMut() -> Result<(), E>) {
    let mut seen = modified(&paths);
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let now = modified(&paths);
        if now != seen {
            match reload() {
                Ok(()) => {
                    tracing::info!(files = ?paths, "reloaded");
                    seen = now;
                }
                Err(e) => tracing::warn!(error = &e as &dyn std::error::Error, "cannot reload; what was loaded before stays"),
            }
        }
    }
}

/// The serving certificate of now.
#[derive(Debug)]
pub struct ServingCert {
    cert: PathBuf,
    key: PathBuf,
    current: ArcSwap<CertifiedKey>,
}

impl ServingCert {
    pub fn load(cert: PathBuf, key: PathBuf) -> Result<Arc<Self>, TlsError> {
        let current = ArcSwap::from(Self::read(&cert, &key)?);
        Ok(Arc::new(Self { cert, key, current }))
    }

    fn read(cert: &PathBuf, key: &PathBuf) -> Result<Arc<CertifiedKey>, TlsError> {
        let mismatch = |source| TlsError::Mismatch { cert: cert.clone(), key: key.clone(), source };
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let k = CertifiedKey::from_der(read_certs(cert)?, read_key(key)?, &provider).map_err(mismatch)?;
        k.keys_match().map_err(mismatch)?;
        Ok(Arc::new(k))
    }

    pub fn reload(&self) -> Result<(), TlsError> {
        self.current.store(Self::read(&self.cert, &self.key)?);
        Ok(())
    }

    pub fn paths(&self) -> Vec<PathBuf> {
        vec![self.cert.clone(), self.key.clone()]
    }
}

impl ResolvesServerCert for ServingCert {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

/// Asks for a client certificate and takes any whose key the client holds.
#[derive(Debug)]
struct AskForCertificate {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AskForCertificate {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

pub fn server_config(cert: Arc<ServingCert>) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?
        .with_client_cert_verifier(Arc::new(AskForCertificate { provider }))
        .with_cert_resolver(cert);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Sessions are not resumed: a resumed one would carry a certificate judged by an older CA bundle, and tickets cost memory.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(config)
}
