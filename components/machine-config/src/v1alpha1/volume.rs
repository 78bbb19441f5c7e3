//! `VolumeConfig`: how a volume of the system's disk is kept, and `UserVolumeConfig`: a volume on another disk. Keys are not here: the machine makes them, or whoever installs it hands them over.

use std::collections::BTreeSet;

use super::machine::DiskSelector;
use crate::model::{Check, Decoder};
use crate::path::FieldPath;
use crate::{object, words};

/// The LUKS2 key slot that the recovery key is in.
pub const RECOVERY_SLOT: u8 = 7;

words! {
    /// A volume of the system's disk that can be encrypted.
    pub enum VolumeName {
        /// The machine config, the machine's certificates and its identity.
        State = "STATE",
        /// etcd's data.
        Etcd = "ETCD",
        /// Containers, images, logs and snapshots.
        Data = "DATA",
    }
}

words! {
    /// How a volume is encrypted.
    pub enum EncryptionProvider {
        /// LUKS2 with AES-XTS.
        Luks2 = "luks2",
    }
}

object! {
    /// How a volume of the system's disk is kept. It is made so at installation and never changes.
    pub struct VolumeConfig {
        /// Which volume.
        name ("name"): VolumeName,
        /// How it is encrypted; without it, it is not.
        encryption ("encryption"): Option<VolumeEncryption>,
    }
}

object! {
    /// A volume on a disk of its own, for workloads: mounted at `/var/mnt/<name>`, for `hostPath` volumes with `type: Directory`.
    pub struct UserVolumeConfig {
        /// Its name: lower-case letters, digits and dashes.
        name ("name"): String,
        /// The disk, by its properties; exactly one disk must match, and the whole disk is used. A disk that carries the volume already is found by that.
        disk ("disk"): DiskSelector,
        /// Whether a disk that carries something else may be overwritten, once, when the volume is made.
        wipe ("wipe"): bool = false,
        /// How it is encrypted; without it, it is not. It is made so and never changes.
        encryption ("encryption"): Option<VolumeEncryption>,
    }
}

object! {
    /// How a volume is encrypted, and what opens it.
    pub struct VolumeEncryption {
        /// The format.
        provider ("provider"): EncryptionProvider = EncryptionProvider::Luks2,
        /// What opens the volume; each of them alone does.
        keys ("keys"): Vec<EncryptionKey>,
        /// Whether the recovery key opens it too (in slot 7): made by strakectl at installation and kept by you, for the day when nothing else opens it.
        recovery_key ("recoveryKey"): bool = true,
    }
}

object! {
    /// One thing that opens a volume: exactly one of `tpm2`, `keyFile` and `passphrase`.
    pub struct EncryptionKey {
        /// The LUKS2 key slot, 0 to 6.
        slot ("slot"): u8,
        /// A key that the machine's TPM gives to signed systems alone.
        tpm2 ("tpm2"): Option<TpmKey>,
        /// A key in a file on another volume, a USB stick for example. It must be there at installation.
        key_file ("keyFile"): Option<KeyFile>,
        /// A passphrase that a person gives (`strakectl unlock`) after every start.
        passphrase ("passphrase"): Option<Passphrase>,
    }
}

object! {
    /// A key that is sealed to the TPM: it opens when PCR 11 (what was started) is signed with the image's `pcr.key`, and these PCRs are what they were.
    pub struct TpmKey {
        /// PCRs that must hold what they held when the key was sealed. 7 is the state of secure boot and the keys that the firmware trusts.
        pcrs ("pcrs"): Vec<u8> = vec![7],
    }
}

object! {
    /// A file on another volume.
    pub struct KeyFile {
        /// The label of its partition or of its file system (FAT or ext4).
        volume ("volume"): String,
        /// The file, from the top of the volume.
        path ("path"): String,
    }
}

object! {
    /// A passphrase.
    pub struct Passphrase {
        /// How much memory each try takes (Argon2id), in MiB. More makes guessing dearer, and opening too.
        memory_mib ("memoryMiB"): u32 = 64,
    }
}

/// What opens a volume.
#[derive(Clone, Debug, PartialEq)]
pub enum KeyKind<'a> {
    /// The TPM.
    Tpm2(&'a TpmKey),
    /// A file.
    KeyFile(&'a KeyFile),
    /// A person.
    Passphrase(&'a Passphrase),
}

impl EncryptionKey {
    /// Which of the kinds it is.
    pub fn kind(&self) -> Option<KeyKind<'_>> {
        match (&self.tpm2, &self.key_file, &self.passphrase) {
            (Some(key), None, None) => Some(KeyKind::Tpm2(key)),
            (None, Some(key), None) => Some(KeyKind::KeyFile(key)),
            (None, None, Some(key)) => Some(KeyKind::Passphrase(key)),
            _ => None,
        }
    }
}

impl Check for VolumeConfig {}

/// What the GPT names of user volumes' partitions begin with.
pub const USER_VOLUME_LABEL: &str = "u-";
/// The longest name of a user volume: a GPT partition's name has 36 characters, two of which say whose it is.
const USER_NAME: usize = 32;

impl UserVolumeConfig {
    /// The GPT name of its partition.
    pub fn label(&self) -> String {
        format!("{USER_VOLUME_LABEL}{}", self.name)
    }
}

impl Check for UserVolumeConfig {
    fn check(&self, d: &mut Decoder) {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let dash = |end: Option<char>| end == Some('-');
        let name = &self.name;
        if name.is_empty() || name.len() > USER_NAME || !name.chars().all(inner) || dash(name.chars().next()) || dash(name.chars().last()) {
            let reason = format!("must be 1 to {USER_NAME} lower-case letters, digits and dashes, with no dash at either end");
            d.report_at(&FieldPath::fields("name"), reason);
        }
    }
}

impl Check for Passphrase {
    fn check(&self, d: &mut Decoder) {
        if !(16..=1024).contains(&self.memory_mib) {
            d.report_at(&FieldPath::fields("memoryMiB"), "must be between 16 and 1024");
        }
    }
}

impl Check for VolumeEncryption {
    fn check(&self, d: &mut Decoder) {
        if self.keys.is_empty() {
            d.report_at(&FieldPath::fields("keys"), "names nothing that opens the volume: give at least one key");
        }
        let (mut slots, mut kinds) = (BTreeSet::new(), BTreeSet::new());
        for (i, key) in self.keys.iter().enumerate() {
            let at = FieldPath::fields("keys").index(i);
            if !slots.insert(key.slot) {
                d.report_at(&at.clone().field("slot"), format!("slot {} is given twice", key.slot));
            }
            let kind = match key.kind() {
                Some(KeyKind::Tpm2(_)) => "tpm2",
                Some(KeyKind::KeyFile(_)) => "keyFile",
                Some(KeyKind::Passphrase(_)) => "passphrase",
                None => continue,
            };
            if !kinds.insert(kind) {
                d.report_at(&at, format!("there is already a key of kind {kind}"));
            }
        }
    }
}

impl Check for EncryptionKey {
    fn check(&self, d: &mut Decoder) {
        if self.slot >= RECOVERY_SLOT {
            d.report_at(&FieldPath::fields("slot"), format!("must be between 0 and {}", RECOVERY_SLOT - 1));
        }
        if self.kind().is_none() {
            d.report("must have exactly one of tpm2, keyFile and passphrase");
        }
    }
}

impl Check for TpmKey {
    fn check(&self, d: &mut Decoder) {
        for (i, pcr) in self.pcrs.iter().enumerate() {
            let at = FieldPath::fields("pcrs").index(i);
            match pcr {
                11 => d.report_at(&at, "PCR 11 is always looked at, by its signature"),
                24.. => d.report_at(&at, "must be between 0 and 23"),
                pcr if self.pcrs[..i].contains(pcr) => d.report_at(&at, format!("PCR {pcr} is given twice")),
                _ => {}
            }
        }
    }
}

impl Check for KeyFile {
    fn check(&self, d: &mut Decoder) {
        if self.volume.is_empty() || self.volume.len() > 36 || self.volume.chars().any(|c| c.is_control() || c == '/') {
            d.report_at(&FieldPath::fields("volume"), "must be a label of 1 to 36 characters");
        }
        let parts = || self.path.split('/');
        if self.path.len() > 255 || self.path.contains('\0') || parts().any(|part| matches!(part, "" | "." | "..")) {
            d.report_at(&FieldPath::fields("path"), "must be a path from the top of the volume, such as keys/machine-1");
        }
    }
}
