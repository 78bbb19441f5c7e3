//! Which certificates of webhooks are taken: those of the configuration's bundle, for the name that is called.

use std::sync::Arc;

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};

/// What the system trusts, for webhooks that bring no bundle.
const SYSTEM: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A configuration for connections to a webhook with this bundle.
pub fn config(bundle: &[u8]) -> Result<ClientConfig, String> {
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
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = if roots.is_empty() {
        None
    } else {
        let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
        Some(built.map_err(|e| format!("unable to load root certificates: {e}"))?)
    };
    let verifier = Bundle { chain, trusted, provider: Arc::clone(&provider) };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("TLS cannot be set up: {e}"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(config)
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
