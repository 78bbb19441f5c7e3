//! Public areas: of the key that signs policies, of the key that sealed data hangs on, of sealed data, of a counter; and their names.

use crate::policy::{Digest, hash};
use crate::wire::Writer;

/// `TPM_ALG_*`.
const SHA256: u16 = 0x000b;
const NULL: u16 = 0x0010;
const KEYED_HASH: u16 = 0x0008;
const ECC: u16 = 0x0023;
const ECDSA: u16 = 0x0018;
const AES: u16 = 0x0006;
const CFB: u16 = 0x0043;
/// `TPM_ECC_NIST_P256`.
const P256: u16 = 0x0003;

/// `TPMA_OBJECT`.
const FIXED_TPM: u32 = 1 << 1;
const FIXED_PARENT: u32 = 1 << 4;
const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
const USER_WITH_AUTH: u32 = 1 << 6;
const NO_DICTIONARY_ATTACKS: u32 = 1 << 10;
const RESTRICTED: u32 = 1 << 16;
const DECRYPT: u32 = 1 << 17;
const SIGN: u32 = 1 << 18;

/// `TPMA_NV` of a counter that everybody on the machine may raise and read, and that no wrong password locks: OWNERWRITE, AUTHWRITE, OWNERREAD,
/// AUTHREAD, NO_DA, and the type counter.
pub const COUNTER_ATTRIBUTES: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 17 | 1 << 18 | 1 << 25;
/// Set by the TPM once it was raised.
const NV_WRITTEN: u32 = 1 << 29;

/// What every P-256 key in a SubjectPublicKeyInfo begins with (RFC 5480), up to the two coordinates.
const SPKI_P256: [u8; 27] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01,
    0x07, 0x03, 0x42, 0x00, 0x04,
];

/// A key that signs policies: ECDSA on P-256 with SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey {
    x: [u8; 32],
    y: [u8; 32],
}

impl PublicKey {
    /// Reads a SubjectPublicKeyInfo in DER; nothing when it is of another kind.
    pub fn from_spki(der: &[u8]) -> Option<Self> {
        let point = der.strip_prefix(&SPKI_P256[..])?;
        let (x, y) = point.split_at_checked(32)?;
        Some(Self { x: x.try_into().ok()?, y: y.try_into().ok()? })
    }

    /// `TPMT_PUBLIC`.
    pub(crate) fn area(&self) -> Vec<u8> {
        let head = Writer::default().u16(ECC).u16(SHA256).u32(SIGN | USER_WITH_AUTH).sized(&[]);
        head.u16(NULL).u16(ECDSA).u16(SHA256).u16(P256).u16(NULL).sized(&self.x).sized(&self.y).0
    }

    /// The name that a policy knows it by.
    pub fn name(&self) -> Vec<u8> {
        name(&self.area())
    }
}

/// The algorithm and the hash of a public area.
fn name(area: &[u8]) -> Vec<u8> {
    [&SHA256.to_be_bytes()[..], &hash(&[area])].concat()
}

/// The storage key: made anew whenever it is needed, always the same until the TPM is cleared.
pub(crate) fn storage_key() -> Vec<u8> {
    let attributes = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | USER_WITH_AUTH | NO_DICTIONARY_ATTACKS | RESTRICTED | DECRYPT;
    let head = Writer::default().u16(ECC).u16(SHA256).u32(attributes).sized(&[]);
    head.u16(AES).u16(128).u16(CFB).u16(NULL).u16(P256).u16(NULL).sized(&[]).sized(&[]).0
}

/// Data that only this policy opens.
pub(crate) fn sealed_data(policy: &Digest) -> Vec<u8> {
    let head = Writer::default().u16(KEYED_HASH).u16(SHA256).u32(FIXED_TPM | FIXED_PARENT | NO_DICTIONARY_ATTACKS).sized(policy);
    head.u16(NULL).sized(&[]).0
}

/// `TPMS_NV_PUBLIC` of a counter.
pub(crate) fn counter(index: u32, attributes: u32) -> Vec<u8> {
    Writer::default().u32(index).u16(SHA256).u32(attributes).sized(&[]).u16(8).0
}

/// The name of a counter of ours that was raised at least once: the same on every TPM, for a counter of another kind has another.
pub fn nv_name(index: u32) -> Vec<u8> {
    name(&counter(index, COUNTER_ATTRIBUTES | NV_WRITTEN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_on_p256_are_taken() {
        let mut der = SPKI_P256.to_vec();
        der.extend([7; 64]);
        let key = PublicKey::from_spki(&der).unwrap();
        assert_eq!((key.x, key.y), ([7; 32], [7; 32]));
        assert_eq!(key.name().len(), 34);
        assert_eq!(PublicKey::from_spki(&der[..90]), None);
        der.push(0);
        assert_eq!(PublicKey::from_spki(&der), None);
        der[5] ^= 1;
        assert_eq!(PublicKey::from_spki(&der[..91]), None);
    }
}
