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

/// Runs `reload` whenever one of `paths` changes, checked every few seconds. A failed reload is tried again at the next check. `what` is
/// what the files are, for people.
pub async fn on_change<E: std::error::Error + 'static>(what: &'static str, paths: Vec<PathBuf>, mut reload: impl FnMut() -> Result<(), E>) {
    let mut seen = modified(&paths);
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let now = modified(&paths);
        if now != seen {
            match reload() {
                Ok(()) => {
                    tracing::info!(what, files = ?paths, "reloaded");
                    seen = now;
                }
                Err(e) => {
                    let error = &e as &dyn std::error::Error;
                    tracing::warn!(what, files = ?paths, error, "cannot reload; what was loaded before stays");
                }
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

/// What the handshake may agree on.
#[derive(Debug, Clone, Default)]
pub struct Protocols {
    /// Nothing older than TLS 1.3.
    pub newest_only: bool,
    /// Names of TLS 1.2 suites; none: all that are good. Those of TLS 1.3 are always there, as upstream's.
    pub suites: Vec<String>,
}

impl Protocols {
    /// Of flags, under Go's names. TLS 1.0 and 1.1 are never spoken, so asking for them at least asks for 1.2.
    pub fn of(min_version: Option<&str>, suites: &[String]) -> Result<Self, String> {
        let newest_only = match min_version {
            None | Some("VersionTLS10" | "VersionTLS11" | "VersionTLS12") => false,
            Some("VersionTLS13") => true,
            Some(other) => {
                return Err(format!("--tls-min-version: {other:?} is not one of VersionTLS10, VersionTLS11, VersionTLS12, VersionTLS13"));
            }
        };
        if let Some(bad) = suites.iter().find(|s| !s.starts_with("TLS_")) {
            return Err(format!("--tls-cipher-suites: {bad:?} is no name of a suite"));
        }
        Ok(Self { newest_only, suites: suites.to_vec() })
    }

    fn takes(&self, suite: &rustls::SupportedCipherSuite) -> bool {
        if suite.tls13().is_some() || self.suites.is_empty() {
            return true;
        }
        let name = format!("{:?}", suite.suite());
        // Go leaves the hash out of the names of ChaCha suites, or not.
        self.suites.iter().any(|s| *s == name || format!("{s}_SHA256") == name)
    }
}

pub fn server_config(cert: Arc<ServingCert>, protocols: &Protocols) -> Result<ServerConfig, TlsError> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|s| protocols.takes(s));
    let provider = Arc::new(provider);
    let old = !protocols.newest_only && provider.cipher_suites.iter().any(|s| s.tls13().is_none());
    let versions: &[&rustls::SupportedProtocolVersion] =
        if old { &[&rustls::version::TLS13, &rustls::version::TLS12] } else { &[&rustls::version::TLS13] };
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(TlsError::Setup)?
        .with_client_cert_verifier(Arc::new(AskForCertificate { provider }))
        .with_cert_resolver(cert);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Sessions are not resumed: a resumed one would carry a certificate judged by an older CA bundle, and tickets cost memory.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_are_chosen_by_gos_names() {
        let suites = |names: &[&str]| {
            let p = Protocols::of(None, &names.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).unwrap();
            let all = rustls::crypto::aws_lc_rs::default_provider().cipher_suites;
            all.iter().filter(|s| s.tls13().is_none() && p.takes(s)).count()
        };
        assert_eq!(suites(&["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305"]), 2);
        assert_eq!(suites(&["TLS_RSA_WITH_AES_128_CBC_SHA"]), 0);
        assert!(suites(&[]) > 2);
        assert!(Protocols::of(Some("VersionTLS13"), &[]).unwrap().newest_only);
        assert!(Protocols::of(Some("1.3"), &[]).is_err() && Protocols::of(None, &["AES".into()]).is_err());
    }
}
