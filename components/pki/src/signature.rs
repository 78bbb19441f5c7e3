//! Ed25519 signatures (RFC 8032) over files, with keys in PEM (RFC 8410) as openssl reads and writes them. A file is signed as it is, so that
//! `openssl pkeyutl -verify -rawin` checks the same.

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject as _;

use crate::{PkiError, pem};

/// Bytes of a signature.
pub const SIGNATURE_BYTES: usize = 64;
/// The most keys that one text may hold.
const MOST_KEYS: usize = 32;
/// The largest text that is read.
const MOST_BYTES: usize = 64 << 10;
/// What stands before the 32 bytes of a public key: RFC 8410, section 4.
const PUBLIC_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The private half. Debug output shows nothing of it.
pub struct SigningKey(Ed25519KeyPair);

impl SigningKey {
    /// A new key.
    pub fn generate() -> Result<Self, PkiError> {
        Ed25519KeyPair::generate().map(Self).map_err(|_| PkiError::GenerateKey(rcgen::Error::KeyGenerationUnavailable))
    }

    /// Reads a key in PEM (PKCS#8).
    pub fn from_pem(text: &str) -> Result<Self, PkiError> {
        let PrivateKeyDer::Pkcs8(der) = pem::private_key(text)? else { return Err(PkiError::ParseKey) };
        Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der()).map(Self).map_err(|_| PkiError::ParseKey)
    }

    /// PKCS#8 in PEM; take care where it goes.
    pub fn to_pem(&self) -> Result<String, PkiError> {
        let der = self.0.to_pkcs8v1().map_err(|_| PkiError::ParseKey)?;
        Ok(pem::encode("PRIVATE KEY", der.as_ref()))
    }

    /// The public half in PEM.
    pub fn public_pem(&self) -> String {
        let der: Vec<u8> = PUBLIC_PREFIX.iter().chain(self.0.public_key().as_ref()).copied().collect();
        pem::encode("PUBLIC KEY", &der)
    }

    /// Signs.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign(message).as_ref().to_vec()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

/// The public half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyingKey([u8; 32]);

impl VerifyingKey {
    /// Every key of a text, at least one. A section that is no Ed25519 key is an error, so that nobody believes in a key that does not count.
    pub fn all_from_pem(text: &str) -> Result<Vec<Self>, PkiError> {
        if text.len() > MOST_BYTES {
            return Err(PkiError::ParsePublicKey("the text is too long"));
        }
        let mut keys = Vec::new();
        for der in SubjectPublicKeyInfoDer::pem_slice_iter(text.as_bytes()) {
            let der = der.map_err(|_| PkiError::ParsePublicKey("the PEM is malformed"))?;
            let key = der.as_ref().strip_prefix(&PUBLIC_PREFIX).and_then(|key| key.try_into().ok());
            keys.push(Self(key.ok_or(PkiError::ParsePublicKey("it is not an Ed25519 key"))?));
        }
        match keys.len() {
            0 => Err(PkiError::ParsePublicKey("there is no public key in PEM")),
            1..=MOST_KEYS => Ok(keys),
            _ => Err(PkiError::ParsePublicKey("there are too many keys")),
        }
    }

    /// Whether this key made the signature of exactly this.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        signature.len() == SIGNATURE_BYTES && UnparsedPublicKey::new(&ED25519, self.0).verify(message, signature).is_ok()
    }

    /// The first half of the SHA-256 of the key, in hexadecimal: what people compare.
    pub fn fingerprint(&self) -> String {
        use sha2::Digest as _;
        let der: Vec<u8> = PUBLIC_PREFIX.iter().chain(&self.0).copied().collect();
        sha2::Sha256::digest(&der).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_signature_is_of_one_text_by_one_key() {
        let (key, other) = (SigningKey::generate().expect("generate"), SigningKey::generate().expect("generate"));
        let again = SigningKey::from_pem(&key.to_pem().expect("PEM")).expect("read");
        assert_eq!(again.public_pem(), key.public_pem());
        let both = VerifyingKey::all_from_pem(&format!("{}# a comment\n{}", key.public_pem(), other.public_pem())).expect("keys");
        let [mine, others] = &both[..] else { panic!("{both:?}") };
        let signature = again.sign(b"manifest");
        assert!(mine.verifies(b"manifest", &signature));
        assert!(!others.verifies(b"manifest", &signature));
        assert!(!mine.verifies(b"manifesT", &signature));
        assert!(!mine.verifies(b"manifest", &signature[1..]));
        let mut changed = signature.clone();
        changed[5] ^= 1;
        assert!(!mine.verifies(b"manifest", &changed));
        assert_eq!(mine.fingerprint().len(), 32);
        assert!(!format!("{key:?}").contains("MC"));
    }

    #[test]
    fn the_known_answer_of_rfc_8032_verifies() {
        // RFC 8032, section 7.1, test 2.
        let hex = |text: &str| -> Vec<u8> {
            (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect()
        };
        let public = hex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c");
        let signature = hex(concat!(
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da",
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        ));
        assert!(VerifyingKey(public.try_into().expect("32 bytes")).verifies(&[0x72], &signature));
    }

    #[test]
    fn other_keys_are_refused() {
        let p256 = crate::PrivateKey::generate().expect("key");
        for text in [p256.public_pem(), String::new(), "-----BEGIN PUBLIC KEY-----\nAA\n-----END PUBLIC KEY-----\n".to_owned()] {
            assert!(VerifyingKey::all_from_pem(&text).is_err(), "{text}");
        }
        assert!(SigningKey::from_pem(&p256.to_pem()).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "(-----BEGIN PUBLIC KEY-----\n)?[A-Za-z0-9+/=\n]{0,100}(-----END PUBLIC KEY-----)?") {
            let _ = VerifyingKey::all_from_pem(&text);
        }
    }
}
