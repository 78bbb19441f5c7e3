//! Which certificates of the servers that users run are taken: those of the configuration's bundle, for the name that is called.

use std::sync::Arc;

use crate::kubelet::AnyCertificate;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};

/// What the system trusts, for webhooks that bring no bundle.
const SYSTEM: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Whom a server is taken for.
#[derive(Debug, Clone, Copy)]
pub enum Trust<'a> {
    /// Who has a certificate of this bundle (PEM); empty: of what the system trusts.
    Bundle(&'a [u8]),
    /// Anybody: the configuration says so.
    Anybody,
}

/// A configuration for connections to a webhook with this bundle.
pub fn config(bundle: &[u8]) -> Result<ClientConfig, String> {
    tls_config(Trust::Bundle(bundle), None)
}

/// A configuration for connections, with a certificate of our own where the other side wants to know us.
pub fn tls_config(trust: Trust<'_>, own: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        Trust::Bundle(pem) => Arc::new(bundle(pem, &provider)?),
        Trust::Anybody => Arc::new(AnyCertificate { provider: Arc::clone(&provider) }),
    };
    let failed = |e: rustls::Error| format!("TLS cannot be set up: {e}");
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    match own {
        Some((certs, key)) => builder.with_client_auth_cert(certs, key).map_err(failed),
        None => Ok(builder.with_no_client_auth()),
    }
}

fn bundle(bundle: &[u8], provider: &Arc<CryptoProvider>) -> Result<Bundle, String> {
    let system;
    let pem = if bundle.is_empty() {
        system = std::fs::read(SYSTEM).map_err(|e| format!("no caBundle is set and the system's bundle cannot be read: {e}"))?;
        &system
    } else {
        bundle
    };
    let mut roots = RootCertStore::empty();
    let mut trusted = Vec::new();
    for cert in CertificateDer::pem_slice_iter(pem) {
        let cert = cert.map_err(|e| format!("unable to load root certificates: {e}"))?;
        // One that is no authority may still be the server's own.
        let _ = roots.add(cert.clone());
        trusted.push(cert);
    }
    if trusted.is_empty() {
        return Err("unable to load root certificates: unable to parse bytes as PEM block".into());
    }
    let chain = if roots.is_empty() {
        None
    } else {
        let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
        Some(built.map_err(|e| format!("unable to load root certificates: {e}"))?)
    };
    Ok(Bundle { chain, trusted, provider: Arc::clone(provider) })
}

/// Chains to the bundle, or a certificate that itself is in the bundle: self-signed ones are often used that way.
#[derive(Debug)]
struct Bundle {
    chain: Option<Arc<WebPkiServerVerifier>>,
    trusted: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Bundle {
    fn itself_trusted(&self, cert: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> Result<(), rustls::Error> {
        use rustls::CertificateError as E;
        if !self.trusted.iter().any(|t| t == cert) {
            return Err(E::UnknownIssuer.into());
        }
        verify_server_name(&ParsedCertificate::try_from(cert)?, name)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(cert).map_err(|_| E::BadEncoding)?;
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let validity = parsed.validity();
        if now < validity.not_before.timestamp() {
            return Err(E::NotValidYet.into());
        }
        if now > validity.not_after.timestamp() {
            return Err(E::Expired.into());
        }
        Ok(())
    }
}

impl ServerCertVerifier for Bundle {
    fn verify_server_cert(
        &self,
        cert: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chained = match &self.chain {
            Some(chain) => chain.verify_server_cert(cert, intermediates, name, ocsp, now),
            None => Err(rustls::CertificateError::UnknownIssuer.into()),
        };
        chained.or_else(|e| self.itself_trusted(cert, name, now).map(|()| ServerCertVerified::assertion()).map_err(|_| e))
    }

    fn verify_tls12_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(m, c, d, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(m, c, d, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
