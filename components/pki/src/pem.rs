//! PEM (RFC 7468): the sections of a text, and writing one.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer};

use crate::PkiError;

/// Largest text that is read: more than a hundred certificates.
const MAX_BYTES: usize = 1 << 20;

/// Every certificate of a text, at least one.
pub fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    if text.len() > MAX_BYTES {
        return Err(PkiError::ParseCertificate(format!("the text has more than {MAX_BYTES} bytes")));
    }
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(PkiError::ParseCertificate("there is no certificate in PEM".to_owned())),
        Err(_) => Err(PkiError::ParseCertificate("the PEM is malformed".to_owned())),
    }
}

/// The first private key of a text.
pub fn private_key(text: &str) -> Result<PrivateKeyDer<'static>, PkiError> {
    if text.len() > MAX_BYTES {
        return Err(PkiError::ParseKey);
    }
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| PkiError::ParseKey)
}

/// The first public key of a text, as a SubjectPublicKeyInfo in DER.
pub fn public_key(text: &str) -> Result<Vec<u8>, PkiError> {
    if text.len() > MAX_BYTES {
        return Err(PkiError::ParseKey);
    }
    SubjectPublicKeyInfoDer::from_pem_slice(text.as_bytes()).map(|der| der.to_vec()).map_err(|_| PkiError::ParseKey)
}

/// Writes one section.
pub fn encode(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}
