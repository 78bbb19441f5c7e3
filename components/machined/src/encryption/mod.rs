//! Encrypted volumes: STATE, ETCD and DATA as LUKS2, made at installation, opened before they are mounted, made unreadable by a reset. What opens
//! a volume (the TPM, a file on another volume, a passphrase, the recovery key) stands in its own header, so that opening STATE takes nothing that is in STATE. The machine
//! keeps no key in clear: what it makes itself is sealed to the TPM, and what people give is forgotten after its use.

mod device;
#[cfg(test)]
mod emulator;
mod floor;
mod images;
mod key_file;
mod luks;
mod metadata;
mod sealed;
mod volume;

use host::device_mapper::DeviceMapperError;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use machine_api::recovery_key::RecoveryKey;
use machine_config::{Config, KeyFile, KeyKind, RECOVERY_SLOT, VolumeEncryption, VolumeName};

use crate::paths::Paths;
pub use floor::raise as raise_floor;
pub use images::{measured_of, sealed_volumes};
use luks::{Derivation, LuksError};
use metadata::Token;
use sealed::Measured;
pub use volume::{Mapping, Opened, close, close_later, close_tpm, erase, make, mapping, open, open_made, unlock};

/// Why a volume is not made or not opened.
#[derive(Debug, thiserror::Error)]
pub enum EncryptionError {
    /// The config asks for a key that nobody gave.
    #[error("the config encrypts {volume} with a {what}, and nobody gave it; {way_out}")]
    Missing { volume: String, what: &'static str, way_out: &'static str },
    /// The TPM does not keep a key.
    #[error("a key of {volume} cannot be sealed to the TPM")]
    Seal { volume: String, source: sealed::SealError },
    /// There is no key file.
    #[error("the key file of {volume}")]
    KeyFile { volume: String, source: key_file::KeyFileError },
    /// cryptsetup failed.
    #[error("{volume}")]
    Luks { volume: String, source: LuksError },
    /// An open volume does not go.
    #[error("close {volume}")]
    Close { volume: String, source: DeviceMapperError },
    /// The device could not be looked at.
    #[error("look at {0}")]
    Look(PathBuf, #[source] std::io::Error),
}

/// What somebody gave to open volumes with.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// The recovery key.
    pub recovery_key: Option<RecoveryKey>,
    /// The passphrase.
    pub passphrase: Option<Secret>,
}

/// Bytes that nobody should see.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A volume with all that opens it, ready to be made.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Which volume: the name of its partition.
    pub volume: String,
    keys: Vec<PlannedKey>,
}

#[derive(Clone, Debug)]
struct PlannedKey {
    slot: u8,
    key: Secret,
    derivation: Derivation,
    token: Token,
}

/// Gets everything ready that a config's encrypted volumes take, before anything is written. Makes the machine's own keys.
pub fn plan(paths: &Paths, config: &Config, given: &Given) -> Result<Vec<Planned>, EncryptionError> {
    let mut planned = Vec::new();
    for volume in [VolumeName::Data, VolumeName::Etcd, VolumeName::State] {
        let Some(encryption) = config.encryption(volume) else { continue };
        planned.push(plan_one(paths, volume.as_str(), encryption, given, INSTALLING)?);
    }
    Ok(planned)
}

/// The same for a volume on another disk, which is made while the machine runs.
pub fn plan_user(paths: &Paths, label: &str, encryption: &VolumeEncryption, given: &Given) -> Result<Planned, EncryptionError> {
    plan_one(paths, label, encryption, given, RUNNING)
}

fn plan_one(
    paths: &Paths,
    volume: &str,
    encryption: &VolumeEncryption,
    given: &Given,
    ways_out: WaysOut,
) -> Result<Planned, EncryptionError> {
    let measured = Measured::read(paths);
    // What the TPM is known to keep in this boot is the floor of later keys, too.
    let known = floor::known(paths).map(|known| known.floor());
    let mut seal = |pcrs: &[u8], slot: u8, key: &[u8]| {
        sealed::machine_tpm(paths)
            .and_then(|mut tpm| sealed::seal(&mut tpm, measured.as_ref(), pcrs, slot, key, known))
            .map(Token::Tpm2)
            .map_err(|source| EncryptionError::Seal { volume: volume.to_owned(), source })
    };
    let mut read = |file: &KeyFile| {
        let failed = |source| EncryptionError::KeyFile { volume: volume.to_owned(), source };
        key_file::read(paths, &file.volume, &file.path).map_err(failed)
    };
    Ok(Planned { volume: volume.to_owned(), keys: keys(volume, encryption, given, ways_out, &mut seal, &mut read)? })
}

/// How people give what a volume takes.
#[derive(Clone, Copy, Debug)]
struct WaysOut {
    passphrase: &'static str,
    recovery_key: &'static str,
}

const INSTALLING: WaysOut = WaysOut {
    passphrase: "strakectl apply-config --passphrase-file FILE gives one",
    recovery_key: "strakectl apply-config --recovery-key FILE makes one and keeps it in FILE",
};
const RUNNING: WaysOut = WaysOut {
    passphrase: "strakectl unlock --key-file FILE gives one",
    recovery_key: "strakectl unlock --key-file FILE gives one (strakectl gen recovery-key FILE makes it)",
};

fn keys(
    volume: &str,
    encryption: &VolumeEncryption,
    given: &Given,
    ways_out: WaysOut,
    seal: &mut dyn FnMut(&[u8], u8, &[u8]) -> Result<Token, EncryptionError>,
    read: &mut dyn FnMut(&KeyFile) -> Result<Vec<u8>, EncryptionError>,
) -> Result<Vec<PlannedKey>, EncryptionError> {
    let mut keys = Vec::new();
    for wanted in &encryption.keys {
        let (slot, keyslots) = (wanted.slot, vec![wanted.slot.to_string()]);
        let (key, derivation, token) = match wanted.kind() {
            Some(KeyKind::Tpm2(tpm)) => {
                let key = machine_key();
                let token = seal(&tpm.pcrs, slot, &key)?;
                (key, Derivation::Random, token)
            }
            Some(KeyKind::KeyFile(file)) => {
                let token = Token::KeyFile { keyslots, volume: file.volume.clone(), path: file.path.clone() };
                (read(file)?, Derivation::Random, token)
            }
            Some(KeyKind::Passphrase(passphrase)) => {
                let way_out = ways_out.passphrase;
                let missing = || EncryptionError::Missing { volume: volume.to_owned(), what: "passphrase", way_out };
                let key = given.passphrase.clone().ok_or_else(missing)?;
                (key.0, Derivation::Passphrase { memory_mib: passphrase.memory_mib }, Token::Passphrase { keyslots })
            }
            // A config with such a key is refused when it is read.
            None => continue,
        };
        keys.push(PlannedKey { slot, key: Secret(key), derivation, token });
    }
    if encryption.recovery_key {
        let way_out = ways_out.recovery_key;
        let missing = || EncryptionError::Missing { volume: volume.to_owned(), what: "recovery key", way_out };
        let key = given.recovery_key.as_ref().ok_or_else(missing)?;
        let token = Token::Recovery { keyslots: vec![RECOVERY_SLOT.to_string()] };
        keys.push(PlannedKey { slot: RECOVERY_SLOT, key: Secret(key.key().to_vec()), derivation: Derivation::Random, token });
    }
    Ok(keys)
}

/// A key of 256 bits, as text, so that it can be handed over as a passphrase can.
fn machine_key() -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 32]>()).into_bytes()
}

/// Whether a device holds an encrypted volume.
pub fn is_encrypted(device: &Path) -> Result<bool, EncryptionError> {
    let mut start = Vec::new();
    let read = File::open(device).and_then(|file| file.take(8).read_to_end(&mut start));
    read.map_err(|source| EncryptionError::Look(device.to_owned(), source))?;
    Ok(metadata::is_luks2(&start))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encryption(text: &str) -> VolumeEncryption {
        let base = crate::testing::worker_config("{name: vda}").render();
        let text = format!("{base}---\napiVersion: strake.dev/v1alpha1\nkind: VolumeConfig\nname: STATE\nencryption: {text}\n");
        Config::parse("c.yaml", &text).unwrap().encryption(VolumeName::State).unwrap().clone()
    }

    fn planned(text: &str, given: &Given) -> Result<Vec<PlannedKey>, EncryptionError> {
        let mut seal = |pcrs: &[u8], slot: u8, key: &[u8]| {
            assert_eq!((pcrs, key.len()), (&[7][..], 44));
            let signer = key.to_vec();
            Ok(Token::Tpm2(metadata::TpmToken {
                keyslots: vec![slot.to_string()],
                private: vec![],
                public: vec![],
                pcrs: pcrs.to_vec(),
                signer,
                counter: 1,
                version: 1,
            }))
        };
        let mut read = |file: &KeyFile| Ok(format!("{}/{}", file.volume, file.path).into_bytes());
        keys("STATE", &encryption(text), given, INSTALLING, &mut seal, &mut read)
    }

    #[test]
    fn a_volume_gets_a_key_for_each_thing_that_opens_it() {
        let recovery_key = RecoveryKey::new(&[7; 20]);
        let given = Given { recovery_key: Some(recovery_key.clone()), passphrase: Some(Secret(b"open sesame".to_vec())) };
        let text = "{keys: [{slot: 2, tpm2: {}}, {slot: 0, passphrase: {memoryMiB: 32}}, {slot: 4, keyFile: {volume: KEYS, path: a/b}}]}";
        let keys = planned(text, &given).unwrap();
        let shown: Vec<_> = keys.iter().map(|key| (key.slot, key.token.slot(), key.token.kind(), key.derivation)).collect();
        let expected = [
            (2, Some(2), "tpm2", Derivation::Random),
            (0, Some(0), "passphrase", Derivation::Passphrase { memory_mib: 32 }),
            (4, Some(4), "keyFile", Derivation::Random),
            (7, Some(7), "recoveryKey", Derivation::Random),
        ];
        assert_eq!(shown, expected);
        assert_eq!(
            (&keys[1].key.0[..], &keys[2].key.0[..], &keys[3].key.0[..]),
            (&b"open sesame"[..], &b"KEYS/a/b"[..], recovery_key.key())
        );
        assert!(!format!("{keys:?}").contains("sesame"));
    }

    #[test]
    fn what_nobody_gave_is_asked_for_before_anything_is_written() {
        let none = Given::default();
        let error = planned("{keys: [{slot: 0, tpm2: {}}]}", &none).unwrap_err().to_string();
        assert!(error.contains("recovery key") && error.contains("--recovery-key FILE"), "{error}");
        let error = planned("{recoveryKey: false, keys: [{slot: 0, passphrase: {}}]}", &none).unwrap_err().to_string();
        assert!(error.contains("--passphrase-file"), "{error}");
        assert_eq!(planned("{recoveryKey: false, keys: [{slot: 0, tpm2: {}}]}", &none).unwrap().len(), 1);
    }

    #[test]
    fn a_volume_on_another_disk_asks_for_its_keys_where_a_running_machine_takes_them() {
        let dir = tempfile::tempdir().unwrap();
        let plan = |text: &str, given: &Given| plan_user(&Paths::under(dir.path()), "u-data", &encryption(text), given);
        let text = "{keys: [{slot: 0, passphrase: {}}]}";
        let passphrase = Given { passphrase: Some(Secret(b"open sesame".to_vec())), recovery_key: None };
        for (given, expected) in [(&Given::default(), "with a passphrase"), (&passphrase, "with a recovery key")] {
            let error = plan(text, given).unwrap_err();
            let told = error.to_string();
            assert!(matches!(error, EncryptionError::Missing { .. }), "{told}");
            assert!(told.contains("encrypts u-data") && told.contains(expected) && told.contains("strakectl unlock --key-file"), "{told}");
        }
        let planned = plan("{recoveryKey: false, keys: [{slot: 0, passphrase: {}}]}", &passphrase).unwrap();
        assert_eq!((planned.volume.as_str(), planned.keys.len()), ("u-data", 1));
        assert!(plan("{recoveryKey: false, keys: [{slot: 0, tpm2: {}}]}", &passphrase).unwrap_err().to_string().contains("TPM"));
    }

    #[test]
    fn what_is_not_luks_is_not_encrypted() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(!is_encrypted(file.path()).unwrap());
        std::fs::write(file.path(), b"LUKS\xba\xbe\0\x02...").unwrap();
        assert!(is_encrypted(file.path()).unwrap());
        assert!(is_encrypted(Path::new("/nonexistent")).is_err());
    }
}
