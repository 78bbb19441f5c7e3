//! Certificate authorities, leaf issuance, requests and rotation plans.
//!
//! Authorities and leaves are ECDSA P-256; keys for the firmware are RSA, those for signing files Ed25519. The crate knows no product: names, lifetimes and who may have what are the callers'. The clock is always an
//! argument. [`reload`] is the only part that reads files.

#![warn(missing_docs)]

mod authority;
mod certificate;
mod error;
mod key;
pub mod pem;
pub mod reload;
mod renewal;
mod request;
mod signature;
pub mod signed_text;
pub mod tls;

pub use authority::{Authority, Issued, LeafSpec};
pub use certificate::{Certificate, fingerprint};
pub use error::PkiError;
pub use key::{PrivateKey, public_key_pem};
pub use renewal::{Renewal, renewal};
pub use request::{Request, create_request};
pub use signature::{SIGNATURE_BYTES, SigningKey, VerifyingKey};
