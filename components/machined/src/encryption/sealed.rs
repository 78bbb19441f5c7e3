//! Keys that the TPM keeps. A key is sealed under a policy: PCR 11 holds what somebody's `pcr.key` signed (systemd-stub measures the kernel image
//! there; the image carries the signature, and the stub hands it to the initramfs), and the PCRs that the config names hold what they held. So every image of the
//! same signer opens the disk, and nothing else that was started on this machine does.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use node_ipc::init::{PCR_PUBLIC_KEY_FILE, PCR_SIGNATURE_FILE};
use serde::Deserialize;
use tpm::policy::{self, Digest, EMPTY};
use tpm::{PCR_SYSTEM, PublicKey, Sealed, Tpm, TpmError, Transport};

use super::device::Device;
use super::metadata::TpmToken;
use crate::paths::Paths;

/// More than a key and the signatures of a kernel image have.
const MOST: u64 = 64 << 10;
/// PCR 11 is extended by this when all volumes are open, so that nothing that runs later gets their keys.
const CLOSED: &[u8] = b"strake: volumes are open";

/// Why the TPM has no key for us.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// There is no TPM.
    #[error("this machine has no TPM 2.0, or the firmware does not show it (/dev/tpmrm0)")]
    NoTpm(#[source] io::Error),
    /// The image cannot be told from others.
    #[error(
        "the image that was started carries no signed measurements: build it with keys that have pcr.key (`strakectl gen secureboot-keys`)"
    )]
    NotSigned,
    /// The firmware did not measure what it started.
    #[error("nothing was measured: the firmware of this machine does not use its TPM")]
    NotMeasured,
    /// Another key signed it, or it is not what was signed.
    #[error("what was started is not what the image's signature is for, or signed with another pcr.key than when the disk was made")]
    OtherSystem,
    /// Sealed by another TPM.
    #[error("the key was sealed by another TPM, or this one was cleared")]
    Foreign,
    /// PCRs differ.
    #[error("the firmware is not in the state it was in when the key was sealed (PCR {0})")]
    Changed(String),
    /// The TPM refuses or does not answer.
    #[error(transparent)]
    Tpm(#[from] TpmError),
}

/// What was started, and who signs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// The signer: a SubjectPublicKeyInfo.
    pub signer: Vec<u8>,
    signatures: Vec<Signature>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Signature {
    signer: Digest,
    approved: Digest,
    signature: [u8; 64],
}

/// `tpm2-pcr-signature.json` as systemd has it.
#[derive(Deserialize)]
struct SignatureFile {
    #[serde(default)]
    sha256: Vec<SignatureEntry>,
}

#[derive(Deserialize)]
struct SignatureEntry {
    pcrs: Vec<u8>,
    pkfp: String,
    pol: String,
    sig: String,
}

impl Measured {
    /// What init found beside the initramfs; nothing when the image has none of it.
    pub fn read(paths: &Paths) -> Option<Self> {
        let key = String::from_utf8(bounded(&paths.at(PCR_PUBLIC_KEY_FILE)).ok()?).ok()?;
        Self::parse(&key, &bounded(&paths.at(PCR_SIGNATURE_FILE)).ok()?)
    }

    fn parse(key: &str, signatures: &[u8]) -> Option<Self> {
        let signer = pki::pem::public_key(key).ok()?;
        PublicKey::from_spki(&signer)?;
        let file: SignatureFile = serde_json::from_slice(signatures).ok()?;
        let ours = file.sha256.into_iter().filter(|entry| entry.pcrs == [PCR_SYSTEM]).filter_map(|entry| {
            let signature = STANDARD.decode(&entry.sig).ok()?.try_into().ok()?;
            Some(Signature { signer: unhex(&entry.pkfp)?, approved: unhex(&entry.pol)?, signature })
        });
        Some(Self { signer, signatures: ours.take(64).collect() })
    }
}

fn bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(MOST).read_to_end(&mut content)?;
    Ok(content)
}

fn unhex(text: &str) -> Option<Digest> {
    let mut digest = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, at) in digest.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(digest)
}

/// The machine's TPM.
pub fn machine_tpm(paths: &Paths) -> Result<Tpm<Device>, SealError> {
    Device::open(&paths.at(Device::PATH)).map(Tpm::new).map_err(SealError::NoTpm)
}

/// Seals a key for every system of the signer of the one that runs. `pcrs` are those that must stay as they are.
pub fn seal<T: Transport>(tpm: &mut Tpm<T>, measured: Option<&Measured>, pcrs: &[u8], slot: u8, key: &[u8]) -> Result<TpmToken, SealError> {
    let measured = measured.ok_or(SealError::NotSigned)?;
    let signer = PublicKey::from_spki(&measured.signer).ok_or(SealError::NotSigned)?;
    if tpm.read_pcr(PCR_SYSTEM)? == EMPTY {
        return Err(SealError::NotMeasured);
    }
    let mut pcrs = pcrs.to_vec();
    pcrs.sort_unstable();
    let mut policy = policy::authorize(&signer.name(), b"");
    if !pcrs.is_empty() {
        let values = pcrs.iter().map(|pcr| tpm.read_pcr(*pcr)).collect::<Result<Vec<_>, _>>()?;
        policy = policy::pcr(&policy, &pcrs, &values);
    }
    let Sealed { private, public } = tpm.seal(key, &policy)?;
    Ok(TpmToken { keyslots: vec![slot.to_string()], private, public, pcrs, signer: measured.signer.clone() })
}

/// Asks the TPM for a key.
pub fn unseal<T: Transport>(tpm: &mut Tpm<T>, measured: Option<&Measured>, token: &TpmToken) -> Result<Vec<u8>, SealError> {
    let measured = measured.ok_or(SealError::NotSigned)?;
    let signer = PublicKey::from_spki(&token.signer).ok_or(SealError::OtherSystem)?;
    let system = tpm.read_pcr(PCR_SYSTEM)?;
    if system == EMPTY {
        return Err(SealError::NotMeasured);
    }
    let (approved, fingerprint) = (policy::pcr(&EMPTY, &[PCR_SYSTEM], &[system]), policy::hash(&[&token.signer]));
    let fits = |signature: &&Signature| signature.signer == fingerprint && signature.approved == approved;
    let signature = measured.signatures.iter().find(fits).ok_or(SealError::OtherSystem)?;
    let session = tpm.start_policy()?;
    let mut assert = || {
        tpm.policy_pcr(session, &[PCR_SYSTEM])?;
        let ticket = tpm.verify(&signer, &policy::to_sign(&approved, b""), &signature.signature)?;
        tpm.policy_authorize(session, &approved, b"", &signer, &ticket)?;
        if !token.pcrs.is_empty() {
            tpm.policy_pcr(session, &token.pcrs)?;
        }
        Ok(())
    };
    let asserted: Result<(), TpmError> = assert();
    let sealed = Sealed { private: token.private.clone(), public: token.public.clone() };
    let opened = match asserted {
        Err(error) if error.is_policy() => Err(SealError::OtherSystem),
        Err(error) => Err(error.into()),
        Ok(()) => tpm.unseal(&sealed, session).map_err(|error| match error {
            error if error.is_foreign() => SealError::Foreign,
            error if error.is_policy() => {
                let pcrs: Vec<String> = token.pcrs.iter().map(ToString::to_string).collect();
                SealError::Changed(pcrs.join(", "))
            }
            other => other.into(),
        }),
    };
    tpm.end(session)?;
    opened
}

/// From here to the next start the TPM gives no key of ours to anybody.
pub fn close<T: Transport>(tpm: &mut Tpm<T>) -> Result<(), TpmError> {
    tpm.extend_pcr(PCR_SYSTEM, &policy::hash(&[CLOSED]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_read_as_the_image_builder_writes_them_and_bad_ones_left_out() {
        let key = pki::PrivateKey::generate().unwrap().public_pem();
        let entry = |pcrs: &str, pol: &str, sig: &str| {
            format!("{{\"pcrs\":{pcrs},\"pkfp\":\"{}\",\"pol\":\"{pol}\",\"sig\":\"{sig}\"}}", "ab".repeat(32))
        };
        let (pol, sig) = ("0f".repeat(32), STANDARD.encode([5; 64]));
        let entries = [entry("[11]", &pol, &sig), entry("[4]", &pol, &sig), entry("[11]", "é", &sig), entry("[11]", &pol, "AAAA")];
        let measured = Measured::parse(&key, format!("{{\"sha256\":[{}],\"sha1\":[]}}", entries.join(",")).as_bytes()).unwrap();
        assert_eq!(measured.signatures, [Signature { signer: [0xab; 32], approved: [0x0f; 32], signature: [5; 64] }]);
        assert_eq!(Measured::parse(&key, b"not JSON"), None);
        assert_eq!(Measured::parse("no key", b"{}"), None);
    }
}
