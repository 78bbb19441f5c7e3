//! JSON Web Tokens with ES256 or RS256, and the keys they are made and checked with.

use std::path::{Path, PathBuf};

use aws_lc_rs::{
    encoding::AsDer,
    rand::SystemRandom,
    rsa::KeyPair as RsaKeyPair,
    signature::{self, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use x509_parser::{oid_registry, prelude::FromDer, public_key::PublicKey, x509::SubjectPublicKeyInfo};

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot read the service account key {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} holds no key that tokens can be signed or checked with (RSA or ECDSA P-256)")]
    Unusable { path: PathBuf },
}

enum Private {
    Es256(EcdsaKeyPair),
    Rs256(RsaKeyPair),
}

/// Makes tokens.
pub struct SigningKey {
    key: Private,
    pub kid: String,
}

/// Checks tokens.
#[derive(Debug, Clone)]
pub struct VerifyingKey {
    pub kid: String,
    alg: Alg,
    /// The point of an elliptic curve key, or the PKCS#1 form of an RSA key.
    public: Vec<u8>,
    /// modulus and exponent, of RSA keys.
    rsa: Option<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alg {
    Es256,
    Rs256,
}

impl Alg {
    pub fn name(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
        }
    }
}

/// Upstream's key ID: the hash of the public key's SubjectPublicKeyInfo.
fn kid(spki: &[u8]) -> String {
    B64.encode(Sha256::digest(spki))
}

impl SigningKey {
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let unusable = || KeyError::Unusable { path: path.to_owned() };
        let pem = std::fs::read(path).map_err(|source| KeyError::Read { path: path.to_owned(), source })?;
        Self::from_pem(&pem).ok_or_else(unusable)
    }

    fn from_pem(pem: &[u8]) -> Option<Self> {
        let der = PrivateKeyDer::from_pem_slice(pem).ok()?;
        let ec = |d: &[u8]| EcdsaKeyPair::from_private_key_der(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, d).ok();
        let key = match &der {
            PrivateKeyDer::Sec1(d) => Private::Es256(ec(d.secret_sec1_der())?),
            PrivateKeyDer::Pkcs1(d) => Private::Rs256(RsaKeyPair::from_der(d.secret_pkcs1_der()).ok()?),
            PrivateKeyDer::Pkcs8(d) => match RsaKeyPair::from_pkcs8(d.secret_pkcs8_der()) {
                Ok(k) => Private::Rs256(k),
                Err(_) => Private::Es256(ec(d.secret_pkcs8_der())?),
            },
            _ => return None,
        };
        let spki = match &key {
            Private::Es256(k) => k.public_key().as_der().ok()?.as_ref().to_vec(),
            Private::Rs256(k) => k.public_key().as_der().ok()?.as_ref().to_vec(),
        };
        Some(Self { key, kid: kid(&spki) })
    }

    fn spki(&self) -> Option<Vec<u8>> {
        match &self.key {
            Private::Es256(k) => Some(k.public_key().as_der().ok()?.as_ref().to_vec()),
            Private::Rs256(k) => Some(k.public_key().as_der().ok()?.as_ref().to_vec()),
        }
    }

    pub fn verifying(&self) -> Option<VerifyingKey> {
        VerifyingKey::from_spki(&self.spki()?)
    }

    pub fn sign(&self, claims: &Value) -> Result<String, aws_lc_rs::error::Unspecified> {
        let alg = match self.key {
            Private::Es256(_) => Alg::Es256,
            Private::Rs256(_) => Alg::Rs256,
        };
        let head = json!({"alg": alg.name(), "kid": self.kid});
        let mut token = format!("{}.{}", B64.encode(head.to_string()), B64.encode(claims.to_string()));
        let rng = SystemRandom::new();
        let signature = match &self.key {
            Private::Es256(k) => k.sign(&rng, token.as_bytes())?.as_ref().to_vec(),
            Private::Rs256(k) => {
                let mut out = vec![0; k.public_modulus_len()];
                k.sign(&signature::RSA_PKCS1_SHA256, &rng, token.as_bytes(), &mut out)?;
                out
            }
        };
        token.push('.');
        B64.encode_string(signature, &mut token);
        Ok(token)
    }
}

impl VerifyingKey {
    /// Every key of a file: public keys, certificates, or private keys, whose public half counts.
    pub fn load(path: &Path) -> Result<Vec<Self>, KeyError> {
        let pem = std::fs::read(path).map_err(|source| KeyError::Read { path: path.to_owned(), source })?;
        let mut keys = Vec::new();
        for block in x509_parser::pem::Pem::iter_from_buffer(&pem).flatten() {
            let key = match block.label.as_str() {
                "PUBLIC KEY" => Self::from_spki(&block.contents),
                "CERTIFICATE" => block.parse_x509().ok().and_then(|c| Self::from_spki(c.public_key().raw)),
                _ => SigningKey::from_pem(&pem).and_then(|k| k.verifying()),
            };
            keys.extend(key);
        }
        if keys.is_empty() { Err(KeyError::Unusable { path: path.to_owned() }) } else { Ok(keys) }
    }

    pub fn from_spki(der: &[u8]) -> Option<Self> {
        let (_, spki) = SubjectPublicKeyInfo::from_der(der).ok()?;
        let public = spki.subject_public_key.data.to_vec();
        let (alg, rsa) = match spki.parsed().ok()? {
            PublicKey::RSA(k) => {
                let trim = |b: &[u8]| b.iter().copied().skip_while(|b| *b == 0).collect::<Vec<u8>>();
                (Alg::Rs256, Some((trim(k.modulus), trim(k.exponent))))
            }
            PublicKey::EC(_) => {
                let curve = spki.algorithm.parameters.as_ref()?.as_oid().ok()?;
                if curve != oid_registry::OID_EC_P256 {
                    return None;
                }
                (Alg::Es256, None)
            }
            _ => return None,
        };
        Some(Self { kid: kid(spki.raw), alg, public, rsa })
    }

    pub fn alg(&self) -> Alg {
        self.alg
    }

    fn verify(&self, message: &[u8], sig: &[u8]) -> bool {
        match self.alg {
            Alg::Es256 => UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, &self.public).verify(message, sig).is_ok(),
            Alg::Rs256 => UnparsedPublicKey::new(&signature::RSA_PKCS1_2048_8192_SHA256, &self.public).verify(message, sig).is_ok(),
        }
    }

    /// As an entry of a JSON Web Key Set.
    pub fn to_jwk(&self) -> Value {
        match (&self.rsa, self.alg) {
            (Some((n, e)), _) => {
                json!({"use": "sig", "kty": "RSA", "kid": self.kid, "alg": "RS256", "n": B64.encode(n), "e": B64.encode(e)})
            }
            (None, _) => {
                // An uncompressed point: 4, x, y.
                let (x, y) = self.public.get(1..65).unwrap_or(&[0; 64]).split_at(32);
                json!({"use": "sig", "kty": "EC", "kid": self.kid, "crv": "P-256", "alg": "ES256", "x": B64.encode(x), "y": B64.encode(y)})
            }
        }
    }
}

/// Three parts of which the first is JSON; bootstrap tokens have two.
pub fn looks_like(token: &str) -> bool {
    token.split('.').count() == 3
}

/// The claims of a token that one of `keys` signed.
pub fn verify(token: &str, keys: &[VerifyingKey]) -> Result<Value, &'static str> {
    let (signed, sig) = token.rsplit_once('.').ok_or("not a JWT")?;
    let (head, claims) = signed.split_once('.').ok_or("not a JWT")?;
    let decode = |s: &str| B64.decode(s).ok().and_then(|b| serde_json::from_slice::<Value>(&b).ok());
    let head = decode(head).ok_or("the header cannot be read")?;
    let sig = B64.decode(sig).map_err(|_| "the signature cannot be read")?;
    let alg = head["alg"].as_str().unwrap_or("");
    let kid = head["kid"].as_str().unwrap_or("");
    let good = keys.iter().filter(|k| k.alg.name() == alg && (kid.is_empty() || k.kid == kid)).any(|k| k.verify(signed.as_bytes(), &sig));
    if !good {
        return Err("no key fits the signature");
    }
    decode(claims).ok_or("the claims cannot be read")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ec_key() -> SigningKey {
        let k = EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let der = k.to_pkcs8v1().unwrap();
        let pem = format!(
            "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
            base64::engine::general_purpose::STANDARD.encode(der.as_ref())
        );
        SigningKey::from_pem(pem.as_bytes()).unwrap()
    }

    #[test]
    fn a_token_is_good_only_as_it_was_signed() {
        let (key, other) = (ec_key(), ec_key());
        let keys = [key.verifying().unwrap()];
        let token = key.sign(&json!({"sub": "x"})).unwrap();
        assert_eq!(verify(&token, &keys).unwrap()["sub"], "x");
        assert!(verify(&other.sign(&json!({"sub": "x"})).unwrap(), &keys).is_err());
        let (head, rest) = token.split_once('.').unwrap();
        let (_, sig) = rest.split_once('.').unwrap();
        let forged = format!("{head}.{}.{sig}", B64.encode("{\"sub\":\"y\"}"));
        assert!(verify(&forged, &keys).is_err());
        let none = format!("{}.{}.", B64.encode("{\"alg\":\"none\"}"), B64.encode("{\"sub\":\"y\"}"));
        assert!(verify(&none, &keys).is_err());
    }
}
