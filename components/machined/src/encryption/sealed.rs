//! Keys that the TPM keeps. A key is sealed under a policy: PCR 11 holds what somebody's `pcr.key` signed (systemd-stub measures the kernel image
//! there; the image carries the signature, and the stub hands it to the initramfs), the signature is for a security version that is not below the floor
//! ([`tpm::floor`]), and the PCRs that the config names hold what they held. So the images of the same signer open the disk, old ones only until a newer
//! security version proved good, and nothing else that was started on this machine does.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use node_ipc::init::{PCR_PUBLIC_KEY_FILE, PCR_SIGNATURE_FILE};
use serde::Deserialize;
use tpm::floor::reference;
use tpm::policy::{self, Digest, EMPTY};
use tpm::{Floor, Object, PCR_SYSTEM, PublicKey, Sealed, Tpm, TpmError, Transport};

use super::device::Device;
use super::metadata::TpmToken;
use crate::paths::Paths;

/// More than a key and the signatures of a kernel image have.
pub const MOST: u64 = 64 << 10;
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
    /// An older image than one that proved good.
    #[error(
        "the image is below the floor: its security version is {version}, and this machine's TPM gives the key from {lowest} on; start a newer image, or \
         open the volume with the recovery key"
    )]
    BelowFloor {
        /// The image's.
        version: u32,
        /// The floor.
        lowest: u32,
    },
    /// More versions later than a key is sealed for.
    #[error(
        "the key was sealed for security versions up to {highest}, and the image's is {version}: open with the recovery key and --reseal"
    )]
    AboveSpan {
        /// The image's.
        version: u32,
        /// The last that gets the key.
        highest: u32,
    },
    /// Somebody removed it.
    #[error("the TPM has no counter for the floor of images any more: somebody removed it")]
    NoCounter,
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
    version: u32,
}

/// What the TPM gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsealed {
    /// The key.
    pub key: Vec<u8>,
    /// The security version of the image that got it.
    pub version: u32,
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
    #[serde(rename = "securityVersion")]
    version: Option<u32>,
}

impl Measured {
    /// What init found beside the initramfs; nothing when the image has none of it.
    pub fn read(paths: &Paths) -> Option<Self> {
        let key = String::from_utf8(bounded(&paths.at(PCR_PUBLIC_KEY_FILE)).ok()?).ok()?;
        Self::parse(&key, &bounded(&paths.at(PCR_SIGNATURE_FILE)).ok()?)
    }

    /// From the key's PEM and the file of signatures.
    pub fn parse(key: &str, signatures: &[u8]) -> Option<Self> {
        let signer = pki::pem::public_key(key).ok()?;
        PublicKey::from_spki(&signer)?;
        let file: SignatureFile = serde_json::from_slice(signatures).ok()?;
        let ours = file.sha256.into_iter().filter(|entry| entry.pcrs == [PCR_SYSTEM]).filter_map(|entry| {
            let signature = STANDARD.decode(&entry.sig).ok()?.try_into().ok()?;
            Some(Signature { signer: unhex(&entry.pkfp)?, approved: unhex(&entry.pol)?, signature, version: entry.version? })
        });
        Some(Self { signer, signatures: ours.take(64).collect() })
    }

    /// The security version that the image says it has. Only a TPM knows whether it is true.
    pub fn version(&self) -> Option<u32> {
        let signer = policy::hash(&[&self.signer]);
        self.signatures.iter().filter(|signature| signature.signer == signer).map(|signature| signature.version).max()
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

/// Seals a key for the systems of the signer of the one that runs. `pcrs` are those that must stay as they are; `known` is a floor that this TPM was seen to
/// keep, and without one the system that runs is the oldest that gets the key.
pub fn seal<T: Transport>(
    tpm: &mut Tpm<T>,
    measured: Option<&Measured>,
    pcrs: &[u8],
    slot: u8,
    key: &[u8],
    known: Option<Floor>,
) -> Result<TpmToken, SealError> {
    let measured = measured.ok_or(SealError::NotSigned)?;
    let signer = PublicKey::from_spki(&measured.signer).ok_or(SealError::NotSigned)?;
    let version = measured.version().ok_or(SealError::NotSigned)?;
    if tpm.read_pcr(PCR_SYSTEM)? == EMPTY {
        return Err(SealError::NotMeasured);
    }
    let counter = tpm.floor_counter()?;
    let floor = Floor { counter, version: known.map_or(version, |known| known.lowest(counter)) };
    let mut pcrs = pcrs.to_vec();
    pcrs.sort_unstable();
    let mut policy = floor.policy(&signer.name());
    if !pcrs.is_empty() {
        let values = pcrs.iter().map(|pcr| tpm.read_pcr(*pcr)).collect::<Result<Vec<_>, _>>()?;
        policy = policy::pcr(&policy, &pcrs, &values);
    }
    let Sealed { private, public } = tpm.seal(key, &policy)?;
    let keyslots = vec![slot.to_string()];
    Ok(TpmToken { keyslots, private, public, pcrs, signer: measured.signer.clone(), counter: floor.counter, version: floor.version })
}

/// Asks the TPM for a key.
pub fn unseal<T: Transport>(tpm: &mut Tpm<T>, measured: Option<&Measured>, token: &TpmToken) -> Result<Unsealed, SealError> {
    let measured = measured.ok_or(SealError::NotSigned)?;
    let signer = PublicKey::from_spki(&token.signer).ok_or(SealError::OtherSystem)?;
    let system = tpm.read_pcr(PCR_SYSTEM)?;
    if system == EMPTY {
        return Err(SealError::NotMeasured);
    }
    // First, because a foreign TPM has another counter, or none.
    let sealed = Sealed { private: token.private.clone(), public: token.public.clone() };
    let object = tpm.load(&sealed).map_err(|error| if error.is_foreign() { SealError::Foreign } else { error.into() })?;
    let opened = unseal_loaded(tpm, measured, token, &signer, &system, &object);
    tpm.let_go(object)?;
    opened
}

fn unseal_loaded<T: Transport>(
    tpm: &mut Tpm<T>,
    measured: &Measured,
    token: &TpmToken,
    signer: &PublicKey,
    system: &Digest,
    object: &Object,
) -> Result<Unsealed, SealError> {
    let (approved, fingerprint) = (policy::pcr(&EMPTY, &[PCR_SYSTEM], &[*system]), policy::hash(&[&token.signer]));
    let fits = |signature: &&Signature| signature.signer == fingerprint && signature.approved == approved;
    let signature = measured.signatures.iter().find(fits).ok_or(SealError::OtherSystem)?;
    let (floor, version) = (token.floor(), signature.version);
    let counter = tpm.read_counter(tpm::floor::COUNTER)?.ok_or(SealError::NoCounter)?;
    if version >= floor.version && floor.most(version).is_none() {
        return Err(SealError::AboveSpan { version, highest: floor.version.saturating_add(tpm::floor::SPAN - 1) });
    }
    let session = tpm.start_policy()?;
    let mut assert = || {
        let reference = reference(version);
        tpm.policy_pcr(session, &[PCR_SYSTEM])?;
        let ticket = tpm.verify(signer, &policy::to_sign(&approved, &reference), &signature.signature)?;
        tpm.policy_authorize(session, &approved, &reference, signer, &ticket)?;
        if !tpm.policy_floor(session, &signer.name(), &floor, version)? {
            return Ok(false);
        }
        if !token.pcrs.is_empty() {
            tpm.policy_pcr(session, &token.pcrs)?;
        }
        Ok(true)
    };
    let asserted: Result<bool, TpmError> = assert();
    let opened = match asserted {
        Err(error) if error.is_policy() || error.is_signature() => Err(SealError::OtherSystem),
        Err(error) => Err(error.into()),
        Ok(false) => Err(SealError::BelowFloor { version, lowest: floor.lowest(counter) }),
        Ok(true) => tpm.unseal(object, session).map_err(|error| match error {
            error if error.is_policy() => {
                let pcrs: Vec<String> = token.pcrs.iter().map(ToString::to_string).collect();
                SealError::Changed(pcrs.join(", "))
            }
            other => other.into(),
        }),
    };
    tpm.end(session)?;
    Ok(Unsealed { key: opened?, version })
}

/// From here to the next start the TPM gives no key of ours to anybody.
pub fn close<T: Transport>(tpm: &mut Tpm<T>) -> Result<(), TpmError> {
    tpm.extend_pcr(PCR_SYSTEM, &policy::hash(&[CLOSED]))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};

    use super::super::emulator::Emulator;
    use super::*;

    #[test]
    fn signatures_are_read_as_the_image_builder_writes_them_and_bad_ones_left_out() {
        let key = pki::PrivateKey::generate().unwrap().public_pem();
        let entry = |pcrs: &str, pol: &str, sig: &str, version: &str| {
            let pkfp = "ab".repeat(32);
            format!("{{\"pcrs\":{pcrs},\"pkfp\":\"{pkfp}\",\"pol\":\"{pol}\",\"sig\":\"{sig}\"{version}}}")
        };
        let (pol, sig, version) = ("0f".repeat(32), STANDARD.encode([5; 64]), ",\"securityVersion\":4");
        let entries = [
            entry("[11]", &pol, &sig, version),
            entry("[4]", &pol, &sig, version),
            entry("[11]", "é", &sig, version),
            entry("[11]", &pol, "AAAA", version),
            entry("[11]", &pol, &sig, ""),
        ];
        let measured = Measured::parse(&key, format!("{{\"sha256\":[{}],\"sha1\":[]}}", entries.join(",")).as_bytes()).unwrap();
        assert_eq!(measured.signatures, [Signature { signer: [0xab; 32], approved: [0x0f; 32], signature: [5; 64], version: 4 }]);
        assert_eq!(measured.version(), None, "it is another's signature");
        assert_eq!(Measured::parse(&key, b"not JSON"), None);
        assert_eq!(Measured::parse("no key", b"{}"), None);
    }
    const SYSTEM: Digest = [0x11; 32];

    /// An image of a security version, as the builder signs it for what PCR 11 holds after it was started.
    fn image(signer: &EcdsaKeyPair, version: u32) -> Measured {
        let head = [
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03,
            0x01, 0x07, 0x03, 0x42, 0x00,
        ];
        let spki = [&head[..], signer.public_key().as_ref()].concat();
        let approved = policy::pcr(&EMPTY, &[PCR_SYSTEM], &[policy::extend(&EMPTY, &SYSTEM)]);
        let signature = signer.sign(&SystemRandom::new(), &policy::to_sign(&approved, &reference(version))).unwrap();
        let signature = signature.as_ref().try_into().unwrap();
        Measured { signatures: vec![Signature { signer: policy::hash(&[&spki]), approved, signature, version }], signer: spki }
    }

    fn signer() -> EcdsaKeyPair {
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()
    }

    #[test]
    fn what_was_done_to_a_tpm_or_a_disk_is_told_apart() {
        let (machine, elsewhere) = (Emulator::start(), Emulator::start());
        let (mut tpm, signer) = (machine.tpm(), signer());
        let now = image(&signer, 2);
        assert!(matches!(seal(&mut tpm, Some(&now), &[7], 0, b"key", None), Err(SealError::NotMeasured)));
        tpm.extend_pcr(PCR_SYSTEM, &SYSTEM).unwrap();
        assert!(matches!(seal(&mut tpm, None, &[7], 0, b"key", None), Err(SealError::NotSigned)));
        let token = seal(&mut tpm, Some(&now), &[7], 3, b"key", None).unwrap();
        assert_eq!((token.version, &token.keyslots[..], &token.pcrs[..]), (2, &["3".to_owned()][..], &[7][..]));
        assert_eq!(unseal(&mut tpm, Some(&now), &token).unwrap(), Unsealed { key: b"key".to_vec(), version: 2 });

        let mut other = elsewhere.tpm();
        assert!(matches!(unseal(&mut other, Some(&now), &token), Err(SealError::NotMeasured)));
        other.extend_pcr(PCR_SYSTEM, &SYSTEM).unwrap();
        let swapped = unseal(&mut other, Some(&now), &token).unwrap_err();
        assert!(matches!(swapped, SealError::Foreign), "the disk in another machine: {swapped}");
        other.raise_floor(200).unwrap();
        let swapped = unseal(&mut other, Some(&now), &token).unwrap_err();
        assert!(matches!(swapped, SealError::Foreign), "whatever that machine's counter holds: {swapped}");

        let foreign = unseal(&mut tpm, Some(&image(&self::signer(), 2)), &token).unwrap_err();
        assert!(matches!(foreign, SealError::OtherSystem), "an image of another signer: {foreign}");
        let mut forged = image(&signer, 2);
        forged.signatures[0].version = 9;
        let forged = unseal(&mut tpm, Some(&forged), &token).unwrap_err();
        assert!(matches!(forged, SealError::OtherSystem), "an image that says it is newer than it is: {forged}");

        tpm.extend_pcr(7, &[1; 32]).unwrap();
        let changed = unseal(&mut tpm, Some(&now), &token).unwrap_err().to_string();
        assert!(changed.contains("PCR 7"), "{changed}");
        close(&mut tpm).unwrap();
        assert!(matches!(unseal(&mut tpm, Some(&now), &token), Err(SealError::OtherSystem)), "closed after use");

        tpm.clear().unwrap();
        let cleared = unseal(&mut tpm, Some(&now), &token).unwrap_err();
        assert!(matches!(cleared, SealError::Foreign), "cleared: {cleared}");
    }

    #[test]
    fn an_image_below_the_floor_is_told_and_one_within_it_opens() {
        let machine = Emulator::start();
        let (mut tpm, signer) = (machine.tpm(), signer());
        tpm.extend_pcr(PCR_SYSTEM, &SYSTEM).unwrap();
        let [old, now, next, far] = [1, 2, 3, 70].map(|version| image(&signer, version));
        let token = seal(&mut tpm, Some(&now), &[7], 0, b"key", None).unwrap();
        let below = |found: Result<Unsealed, SealError>| match found {
            Err(SealError::BelowFloor { version, lowest }) => Some((version, lowest)),
            _ => None,
        };
        assert_eq!(below(unseal(&mut tpm, Some(&old), &token)), Some((1, 2)), "older than the one that sealed");
        assert_eq!(unseal(&mut tpm, Some(&next), &token).unwrap().version, 3);
        assert!(matches!(unseal(&mut tpm, Some(&far), &token), Err(SealError::AboveSpan { version: 70, highest: 65 })));

        tpm.raise_floor(token.floor().most(3).unwrap()).unwrap();
        assert_eq!(below(unseal(&mut tpm, Some(&now), &token)), Some((2, 3)));
        assert_eq!(unseal(&mut tpm, Some(&next), &token).unwrap().version, 3);
        let told = unseal(&mut tpm, Some(&now), &token).unwrap_err().to_string();
        assert!(told.contains("below the floor") && told.contains("recovery key"), "{told}");

        // Sealed anew by an image above the floor that is not known to be good: the floor stays where it is.
        let again = seal(&mut tpm, Some(&image(&signer, 5)), &[7], 0, b"new", Some(token.floor())).unwrap();
        assert_eq!(unseal(&mut tpm, Some(&next), &again).unwrap().key, b"new");
        assert_eq!(below(unseal(&mut tpm, Some(&now), &again)), Some((2, 3)));

        let lowered = TpmToken { version: 1, ..token.clone() };
        assert!(unseal(&mut tpm, Some(&now), &lowered).is_err(), "what the header says of the floor is believed by nobody");
        tpm.remove_counter(tpm::floor::COUNTER).unwrap();
        assert!(matches!(unseal(&mut tpm, Some(&next), &token), Err(SealError::NoCounter)));
    }
}
