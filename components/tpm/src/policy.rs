//! The digests of policies, as part 3 of the specification builds them up: each assertion hashes what was before with what it asserts. Pure.

use sha2::{Digest as _, Sha256};

/// A SHA-256.
pub type Digest = [u8; 32];

/// No assertion yet.
pub const EMPTY: Digest = [0; 32];
/// As many branches as one PolicyOR has at most.
pub const BRANCHES: usize = 8;

pub(crate) const POLICY_NV: u32 = 0x149;
pub(crate) const POLICY_AUTHORIZE: u32 = 0x16a;
pub(crate) const POLICY_OR: u32 = 0x171;
pub(crate) const POLICY_PCR: u32 = 0x17f;

/// `TPM_EO_UNSIGNED_LE`: what the index holds is at most the operand.
pub(crate) const AT_MOST: u16 = 0x0009;

/// The hash of these pieces.
pub fn hash(pieces: &[&[u8]]) -> Digest {
    let mut hash = Sha256::new();
    pieces.iter().for_each(|piece| hash.update(piece));
    hash.finalize().into()
}

/// What a PCR holds after it was extended by the hash of something.
pub fn extend(before: &Digest, event: &Digest) -> Digest {
    hash(&[before, event])
}

/// `TPML_PCR_SELECTION` of these PCRs in the bank of SHA-256.
pub(crate) fn selection(pcrs: &[u8]) -> [u8; 10] {
    let mut bits = [0; 3];
    for pcr in pcrs.iter().filter(|pcr| **pcr < 24) {
        bits[usize::from(pcr / 8)] |= 1 << (pcr % 8);
    }
    [0, 0, 0, 1, 0, 0x0b, 3, bits[0], bits[1], bits[2]]
}

/// These PCRs hold these values, given in the order of their numbers.
pub fn pcr(before: &Digest, pcrs: &[u8], values: &[Digest]) -> Digest {
    let values: Vec<&[u8]> = values.iter().map(|value| &value[..]).collect();
    hash(&[before, &POLICY_PCR.to_be_bytes(), &selection(pcrs), &hash(&values)])
}

/// Whatever was asserted before, with this reference beside it, is signed with the key of this name.
pub fn authorize(key_name: &[u8], reference: &[u8]) -> Digest {
    hash(&[&hash(&[&EMPTY, &POLICY_AUTHORIZE.to_be_bytes(), key_name]), reference])
}

/// The counter of this name is at most `most`.
pub fn counter_at_most(before: &Digest, most: u64, name: &[u8]) -> Digest {
    let arguments = hash(&[&most.to_be_bytes(), &[0, 0], &AT_MOST.to_be_bytes()]);
    hash(&[before, &POLICY_NV.to_be_bytes(), &arguments, name])
}

/// One of these policies holds.
pub fn any_of(policies: &[Digest]) -> Digest {
    let mut pieces: Vec<&[u8]> = vec![&EMPTY];
    let code = POLICY_OR.to_be_bytes();
    pieces.push(&code);
    pieces.extend(policies.iter().map(|policy| &policy[..]));
    hash(&pieces)
}

/// What the signature of an authorized policy is over (its hash is what the TPM verifies).
pub fn to_sign(approved: &Digest, reference: &[u8]) -> Vec<u8> {
    [&approved[..], reference].concat()
}
