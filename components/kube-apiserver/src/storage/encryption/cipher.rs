//! The ciphers of values in etcd, in upstream's formats: what is written by either API server the other reads.
//!
//! A nonce is never a counter and never derived from the value: it is random for every value, as several servers write with one key.

use aws_lc_rs::{
    aead::{AES_128_GCM, AES_192_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    cipher::{
        AES_128, AES_192, AES_256, DecryptionContext, EncryptionContext, PaddedBlockDecryptingKey, PaddedBlockEncryptingKey,
        UnboundCipherKey,
    },
    iv::FixedLength,
};
use crypto_secretbox::{XSalsa20Poly1305, aead::AeadInPlace};

/// The length of a CBC value's first part.
const IV: usize = 16;
/// The lengths of a secret box's first two parts.
const BOX_NONCE: usize = 24;
const BOX_TAG: usize = 16;

/// Which lengths of keys a cipher takes.
pub const AES_KEYS: &[usize] = &[16, 24, 32];
pub const BOX_KEYS: &[usize] = &[32];

/// A value that cannot be sealed or opened. Why is not said by ciphers: it would help who forges.
#[derive(Debug, thiserror::Error)]
#[error("the value does not fit the key")]
pub struct Refused;

fn random<const N: usize>() -> Result<[u8; N], Refused> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Refused)?;
    Ok(bytes)
}

/// One key with its algorithm.
pub enum Cipher {
    /// AES in CBC mode with PKCS #7 padding: `iv ‖ ciphertext`. Nothing tells a changed value from a good one.
    Cbc(Box<(PaddedBlockEncryptingKey, PaddedBlockDecryptingKey)>),
    /// AES in Galois/counter mode: `nonce ‖ ciphertext ‖ tag`, bound to the key in etcd.
    Gcm(Box<LessSafeKey>),
    /// XSalsa20 and Poly1305, as NaCl's secret boxes: `nonce ‖ tag ‖ ciphertext`.
    SecretBox(Box<XSalsa20Poly1305>),
}

impl std::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cbc(_) => "aescbc",
            Self::Gcm(_) => "aesgcm",
            Self::SecretBox(_) => "secretbox",
        })
    }
}

impl Cipher {
    pub fn cbc(key: &[u8]) -> Result<Self, Refused> {
        let algorithm = match key.len() {
            16 => &AES_128,
            24 => &AES_192,
            _ => &AES_256,
        };
        let unbound = || UnboundCipherKey::new(algorithm, key).map_err(|_| Refused);
        let encrypt = PaddedBlockEncryptingKey::cbc_pkcs7(unbound()?).map_err(|_| Refused)?;
        let decrypt = PaddedBlockDecryptingKey::cbc_pkcs7(unbound()?).map_err(|_| Refused)?;
        Ok(Self::Cbc(Box::new((encrypt, decrypt))))
    }

    pub fn gcm(key: &[u8]) -> Result<Self, Refused> {
        let algorithm = match key.len() {
            16 => &AES_128_GCM,
            24 => &AES_192_GCM,
            _ => &AES_256_GCM,
        };
        UnboundKey::new(algorithm, key).map(|k| Self::Gcm(Box::new(LessSafeKey::new(k)))).map_err(|_| Refused)
    }

    pub fn secret_box(key: &[u8]) -> Result<Self, Refused> {
        let key: [u8; 32] = key.try_into().map_err(|_| Refused)?;
        Ok(Self::SecretBox(Box::new(<XSalsa20Poly1305 as crypto_secretbox::KeyInit>::new(&key.into()))))
    }

    /// Appends the sealed value to `out`. `place` is where it is stored, which some ciphers bind it to.
    pub fn seal(&self, place: &str, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Refused> {
        match self {
            Self::Cbc(_) => self.seal_with(&random::<IV>()?, place, plain, out),
            Self::Gcm(_) => self.seal_with(&random::<NONCE_LEN>()?, place, plain, out),
            Self::SecretBox(_) => self.seal_with(&random::<BOX_NONCE>()?, place, plain, out),
        }
    }

    fn seal_with(&self, nonce: &[u8], place: &str, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Refused> {
        out.extend_from_slice(nonce);
        match self {
            Self::Cbc(keys) => {
                let mut body = Vec::with_capacity(plain.len() + IV);
                body.extend_from_slice(plain);
                let iv = FixedLength::<IV>::try_from(nonce).map_err(|_| Refused)?;
                keys.0.less_safe_encrypt(&mut body, EncryptionContext::Iv128(iv)).map_err(|_| Refused)?;
                out.extend_from_slice(&body);
            }
            Self::Gcm(key) => {
                let start = out.len();
                out.extend_from_slice(plain);
                let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Refused)?;
                let tag = key.seal_in_place_separate_tag(nonce, Aad::from(place), &mut out[start..]).map_err(|_| Refused)?;
                out.extend_from_slice(tag.as_ref());
            }
            Self::SecretBox(key) => {
                let start = out.len();
                out.extend_from_slice(&[0; BOX_TAG]);
                out.extend_from_slice(plain);
                let nonce: [u8; BOX_NONCE] = nonce.try_into().map_err(|_| Refused)?;
                let tag = key.encrypt_in_place_detached(&nonce.into(), b"", &mut out[start + BOX_TAG..]).map_err(|_| Refused)?;
                out[start..start + BOX_TAG].copy_from_slice(&tag);
            }
        }
        Ok(())
    }

    pub fn open(&self, place: &str, sealed: &[u8]) -> Result<Vec<u8>, Refused> {
        match self {
            Self::Cbc(keys) => {
                let (iv, body) = sealed.split_at_checked(IV).ok_or(Refused)?;
                let iv = FixedLength::<IV>::try_from(iv).map_err(|_| Refused)?;
                let mut body = body.to_vec();
                let n = keys.1.decrypt(&mut body, DecryptionContext::Iv128(iv)).map_err(|_| Refused)?.len();
                body.truncate(n);
                Ok(body)
            }
            Self::Gcm(key) => {
                let (nonce, body) = sealed.split_at_checked(NONCE_LEN).ok_or(Refused)?;
                let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Refused)?;
                let mut body = body.to_vec();
                let n = key.open_in_place(nonce, Aad::from(place), &mut body).map_err(|_| Refused)?.len();
                body.truncate(n);
                Ok(body)
            }
            Self::SecretBox(key) => {
                let (nonce, rest) = sealed.split_at_checked(BOX_NONCE).ok_or(Refused)?;
                let (tag, body) = rest.split_at_checked(BOX_TAG).ok_or(Refused)?;
                let nonce: [u8; BOX_NONCE] = nonce.try_into().map_err(|_| Refused)?;
                let tag: [u8; BOX_TAG] = tag.try_into().map_err(|_| Refused)?;
                let mut body = body.to_vec();
                key.decrypt_in_place_detached(&nonce.into(), b"", &mut body, &tag.into()).map_err(|_| Refused)?;
                Ok(body)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(s: &str) -> Vec<u8> {
        (0..s.len()).step_by(2).map(|i| u8::from_str_radix(&s[i..i + 2], 16).unwrap()).collect()
    }

    /// A value sealed with a nonce that is known, and opened again.
    fn known(cipher: &Cipher, nonce: &str, place: &str, plain: &[u8], sealed: &str) {
        let mut out = Vec::new();
        cipher.seal_with(&hex(nonce), place, plain, &mut out).unwrap();
        assert_eq!(out, hex(&format!("{nonce}{sealed}")), "{cipher:?}");
        assert_eq!(cipher.open(place, &out).unwrap(), plain);
    }

    #[test]
    fn answers_are_those_of_the_specifications() {
        // RFC 3602, section 4, case 1; its one block is followed by a block of padding, which is the encryption of sixteen times 16
        // chained to the first: only that is not in the RFC.
        let cbc = Cipher::cbc(&hex("06a9214036b8a15b512e03d534120006")).unwrap();
        let mut out = Vec::new();
        cbc.seal_with(&hex("3dafba429d9eb430b422da802c9fac41"), "", b"Single block msg", &mut out).unwrap();
        assert_eq!(out[16..32], hex("e353779c1079aeb82708942dbe77181a")[..]);
        assert_eq!(out.len(), 48);
        // McGrew and Viega, "The Galois/Counter Mode of Operation", test cases 2 (AES-128) and 14 (AES-256).
        known(
            &Cipher::gcm(&[0; 16]).unwrap(),
            "000000000000000000000000",
            "",
            &[0; 16],
            "0388dace60b6a392f328c2b971b2fe78ab6e47d42cec13bdf53a67b21257bddf",
        );
        known(
            &Cipher::gcm(&[0; 32]).unwrap(),
            "000000000000000000000000",
            "",
            &[0; 16],
            "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919",
        );
        // NaCl, tests/secretbox.c.
        let plain = hex(
            "be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffce5ecbaaf33bd751a1ac728d45e6c61296cdc3c01233561f41db66cce314adb31\
             0e3be8250c46f06dceea3a7fa1348057e2f6556ad6b1318a024a838f21af1fde048977eb48f59ffd4924ca1c60902e52f0a089bc76897040e082f937763848645e0705",
        );
        known(
            &Cipher::secret_box(&hex("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389")).unwrap(),
            "69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37",
            "",
            &plain,
            "f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce48332ea7164d96a4476fb8c531a1186ac0dfc17c98dce87b4da7f011ec48c972\
             71d2c20f9b928fe2270d6fb863d51738b48eeee314a7cc8ab932164548e526ae90224368517acfeabd6bb3732bc0e9da99832b61ca01b6de56244a9e88d5f9b3\
             7973f622a43d14a6599b1f654cb45a74e355a5",
        );
    }

    #[test]
    fn a_value_of_another_place_is_refused_where_the_cipher_can_tell() {
        let gcm = Cipher::gcm(&[7; 32]).unwrap();
        let mut out = Vec::new();
        gcm.seal("/registry/secrets/a/b", b"x", &mut out).unwrap();
        assert!(gcm.open("/registry/secrets/a/c", &out).is_err());
        assert_eq!(gcm.open("/registry/secrets/a/b", &out).unwrap(), b"x");
        let boxed = Cipher::secret_box(&[7; 32]).unwrap();
        let mut out = Vec::new();
        boxed.seal("a", b"x", &mut out).unwrap();
        out[30] ^= 1;
        assert!(boxed.open("a", &out).is_err());
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens(plain in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..3, n in 0usize..3) {
            let key = vec![9; AES_KEYS[n]];
            let cipher = match kind {
                0 => Cipher::cbc(&key),
                1 => Cipher::gcm(&key),
                _ => Cipher::secret_box(&[9; 32]),
            }.unwrap();
            let mut out = Vec::new();
            cipher.seal("place", &plain, &mut out).unwrap();
            prop_assert_eq!(cipher.open("place", &out).unwrap(), plain);
        }

        #[test]
        fn nonsense_is_refused_or_opened_but_never_more(sealed in proptest::collection::vec(any::<u8>(), 0..100)) {
            for c in [Cipher::cbc(&[1; 32]), Cipher::gcm(&[1; 32]), Cipher::secret_box(&[1; 32])] {
                let _ = c.unwrap().open("p", &sealed);
            }
        }
    }
}
