//! Private keys.

use std::fmt;

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, PublicKeyData as _, RsaKeySize};

use crate::{PkiError, pem};

/// A private key for signing. Debug output shows nothing of it.
pub struct PrivateKey(pub(crate) KeyPair);

impl PrivateKey {
    /// A new ECDSA P-256 key.
    pub fn generate() -> Result<Self, PkiError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(Self).map_err(PkiError::GenerateKey)
    }

    /// A new RSA key of 2048 bits: what every firmware takes (UEFI 2.10, section 32.4).
    pub fn generate_rsa() -> Result<Self, PkiError> {
        KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).map(Self).map_err(PkiError::GenerateKey)
    }

    /// Reads a key in PEM.
    pub fn from_pem(text: &str) -> Result<Self, PkiError> {
        let der = pem::private_key(text)?;
        KeyPair::try_from(&der).map(Self).map_err(|_| PkiError::ParseKey)
    }

    /// PKCS#8 in PEM; take care where it goes.
    pub fn to_pem(&self) -> String {
        pem::encode("PRIVATE KEY", self.0.serialized_der())
    }

    /// The public half as a SubjectPublicKeyInfo in PEM, what `--service-account-key-file` takes.
    pub fn public_pem(&self) -> String {
        pem::encode("PUBLIC KEY", &self.0.subject_public_key_info())
    }

    pub(crate) fn public_der(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// The public half of a private key, both in PEM.
pub fn public_key_pem(private_pem: &str) -> Result<String, PkiError> {
    PrivateKey::from_pem(private_pem).map(|key| key.public_pem())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_pem_and_is_p256() {
        let key = PrivateKey::generate().expect("generate");
        let again = PrivateKey::from_pem(&key.to_pem()).expect("parse");
        assert_eq!(key.public_pem(), again.public_pem());
        // An uncompressed P-256 point in a SubjectPublicKeyInfo has 91 bytes.
        assert_eq!(key.public_der().len(), 91);
        assert!(PrivateKey::from_pem("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").is_err());
        assert!(!format!("{key:?}").contains("MI"));
    }
}
