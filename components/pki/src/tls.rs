//! From PEM to what rustls wants.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;

use crate::{PkiError, pem};

/// The provider every connection uses.
pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Authorities to trust, from one or several certificates in PEM.
pub fn roots(text: &str) -> Result<RootCertStore, PkiError> {
    let mut roots = RootCertStore::empty();
    for der in pem::certificates(text)? {
        roots.add(der).map_err(PkiError::Tls)?;
    }
    Ok(roots)
}

/// A chain and its key; the key must belong to the first certificate.
pub fn certified_key(cert_pem: &str, key_pem: &str) -> Result<CertifiedKey, PkiError> {
    let key = any_supported_type(&pem::private_key(key_pem)?).map_err(PkiError::Tls)?;
    let certified = CertifiedKey::new(pem::certificates(cert_pem)?, key);
    certified.keys_match().map_err(PkiError::Tls)?;
    Ok(certified)
}
