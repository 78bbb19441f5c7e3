//! Keys of other issuers (RFC 7517) and the algorithms their tokens are signed with (RFC 7518, without those that need a shared secret).

use aws_lc_rs::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use serde_json::Value;

/// Algorithms that may be used, and what they are to the cryptography.
const ALGORITHMS: &[&str] = &["RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512"];

pub fn known(algorithm: &str) -> bool {
    ALGORITHMS.contains(&algorithm)
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Public {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// The curve and the uncompressed point.
    Ec(Curve, Vec<u8>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Curve {
    P256,
    P384,
    P521,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub kid: String,
    /// Empty: whatever fits the kind of key.
    algorithm: String,
    public: Public,
}

impl Key {
    /// None: a key that is not for signatures, or of a kind that is not known.
    fn of(v: &Value) -> Option<Self> {
        let text = |f: &str| v[f].as_str().unwrap_or("");
        let bytes = |f: &str| v[f].as_str().and_then(|s| B64.decode(s.trim_end_matches('=')).ok());
        if !matches!(text("use"), "" | "sig") {
            return None;
        }
        let public = match text("kty") {
            "RSA" => {
                let (n, e) = (bytes("n")?, bytes("e")?);
                // What verifies signatures takes no leading zeros.
                let trim = |b: Vec<u8>| b.into_iter().skip_while(|b| *b == 0).collect::<Vec<u8>>();
                Public::Rsa { n: trim(n), e: trim(e) }
            }
            "EC" => {
                let (curve, len) = match text("crv") {
                    "P-256" => (Curve::P256, 32),
                    "P-384" => (Curve::P384, 48),
                    "P-521" => (Curve::P521, 66),
                    _ => return None,
                };
                let (x, y) = (bytes("x")?, bytes("y")?);
                if x.len() != len || y.len() != len {
                    return None;
                }
                Public::Ec(curve, [&[4], &x[..], &y[..]].concat())
            }
            _ => return None,
        };
        Some(Self { kid: text("kid").to_owned(), algorithm: text("alg").to_owned(), public })
    }

    /// The keys of a set that can be used.
    pub fn set(v: &Value) -> Vec<Self> {
        v["keys"].as_array().into_iter().flatten().filter_map(Self::of).collect()
    }

    /// Whether this key made `sig` of `message` with `algorithm`, which must be one of this kind of key.
    fn verify(&self, algorithm: &str, message: &[u8], sig: &[u8]) -> bool {
        if !self.algorithm.is_empty() && self.algorithm != algorithm {
            return false;
        }
        match &self.public {
            Public::Rsa { n, e } => {
                let parameters: &'static RsaParameters = match algorithm {
                    "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
                    "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
                    "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
                    "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
                    "PS384" => &signature::RSA_PSS_2048_8192_SHA384,
                    "PS512" => &signature::RSA_PSS_2048_8192_SHA512,
                    _ => return false,
                };
                RsaPublicKeyComponents { n, e }.verify(parameters, message, sig).is_ok()
            }
            Public::Ec(curve, point) => {
                let algorithm: &'static dyn VerificationAlgorithm = match (algorithm, curve) {
                    ("ES256", Curve::P256) => &signature::ECDSA_P256_SHA256_FIXED,
                    ("ES384", Curve::P384) => &signature::ECDSA_P384_SHA384_FIXED,
                    ("ES512", Curve::P521) => &signature::ECDSA_P521_SHA512_FIXED,
                    _ => return false,
                };
                UnparsedPublicKey::new(algorithm, point).verify(message, sig).is_ok()
            }
        }
    }
}

/// A token taken apart, of which nothing is believed yet.
pub struct Unverified<'a> {
    signed: &'a [u8],
    signature: Vec<u8>,
    pub algorithm: String,
    pub kid: String,
    pub claims: Value,
}

impl<'a> Unverified<'a> {
    pub fn parse(token: &'a str) -> Option<Self> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (head, claims) = signed.split_once('.')?;
        let json = |s: &str| B64.decode(s).ok().and_then(|b| serde_json::from_slice::<Value>(&b).ok());
        let head = json(head)?;
        let text = |f: &str| head[f].as_str().unwrap_or("").to_owned();
        let claims = json(claims).filter(Value::is_object)?;
        Some(Self { signed: signed.as_bytes(), signature: B64.decode(signature).ok()?, algorithm: text("alg"), kid: text("kid"), claims })
    }

    /// Whether a key with the token's ID is among these.
    pub fn has_key(&self, keys: &[Key]) -> bool {
        keys.iter().any(|k| self.kid.is_empty() || k.kid == self.kid)
    }

    pub fn verified(&self, keys: &[Key]) -> bool {
        let mut fit = keys.iter().filter(|k| self.kid.is_empty() || k.kid == self.kid);
        fit.any(|k| k.verify(&self.algorithm, self.signed, &self.signature))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// RFC 7515, appendices A.2 and A.3: keys and tokens.
    const RS256: (&str, &str) = (
        r#"{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}"#,
        "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
    );
    const ES256: (&str, &str) = (
        r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#,
        "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
    );

    #[test]
    fn the_tokens_of_the_specification_are_good_with_their_own_keys_alone() {
        let keys = |k: &str| Key::set(&json!({"keys": [serde_json::from_str::<Value>(k).unwrap()]}));
        for ((key, token), other) in [(RS256, ES256.0), (ES256, RS256.0)] {
            let t = Unverified::parse(token).unwrap();
            assert_eq!(t.claims["iss"], "joe");
            assert!(t.verified(&keys(key)) && !t.verified(&keys(other)) && !t.verified(&[]));
            let forged = token.replacen("eyJpc3MiOiJqb2Ui", "eyJpc3MiOiJqb2Uj", 1);
            assert!(Unverified::parse(&forged).is_none_or(|t| !t.verified(&keys(key))));
            // A key may say that it is for another algorithm, or not for signatures.
            let mut v: Value = serde_json::from_str(key).unwrap();
            v["alg"] = "PS512".into();
            assert!(!t.verified(&Key::set(&json!({"keys": [v.clone()]}))));
            v["use"] = "enc".into();
            assert!(Key::set(&json!({"keys": [v]})).is_empty());
        }
        let none = format!("{}.{}.", B64.encode(r#"{"alg":"none"}"#), B64.encode(r#"{"iss":"joe"}"#));
        assert!(!Unverified::parse(&none).unwrap().verified(&keys(RS256.0)));
    }

    proptest! {
        #[test]
        fn nonsense_is_no_token(s in "[a-zA-Z0-9._-]{0,80}") {
            if let Some(t) = Unverified::parse(&s) {
                prop_assert!(!t.verified(&[]));
            }
        }
    }
}
