//! What can go wrong, named by operation. Key material never appears in a message.

use std::path::PathBuf;

/// A failed operation on keys or certificates.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// A key could not be made.
    #[error("generate a private key")]
    GenerateKey(#[source] rcgen::Error),
    /// A text is no private key.
    #[error("read a private key: it is not a PKCS#8, SEC1 or PKCS#1 key in PEM")]
    ParseKey,
    /// A text is no public key.
    #[error("read a public key: {0}")]
    ParsePublicKey(&'static str),
    /// A text or DER is no certificate.
    #[error("read a certificate: {0}")]
    ParseCertificate(String),
    /// A text or DER is no certificate request, or its signature is wrong.
    #[error("read a certificate request: {0}")]
    ParseRequest(String),
    /// A certificate that was to issue others may not.
    #[error("the certificate of {0:?} is not an authority's")]
    NotAnAuthority(String),
    /// An authority's key belongs to another certificate.
    #[error("the key does not belong to the certificate of {0:?}")]
    KeyMismatch(String),
    /// An authority is past its end, or the clock is before its beginning.
    #[error("the authority {name:?} is valid from {from} to {to}, and it is {now}")]
    AuthorityNotValid {
        /// Its common name.
        name: String,
        /// Begin.
        from: jiff::Timestamp,
        /// End.
        to: jiff::Timestamp,
        /// The clock.
        now: jiff::Timestamp,
    },
    /// A name that cannot stand in a certificate.
    #[error("{0:?} cannot stand in a certificate")]
    BadName(String),
    /// Signing failed.
    #[error("sign the certificate of {0:?}")]
    Sign(String, #[source] rcgen::Error),
    /// A file could not be read.
    #[error("read {path}")]
    ReadFile {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// rustls does not take a key or chain.
    #[error("use the certificate and key for TLS")]
    Tls(#[source] rustls::Error),
}
