//! Volumes as a whole: made, opened by what the machine has, unlocked by what a person has, erased.

use host::device_mapper::DeviceMapper;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};

use machine_api::recovery_key::RecoveryKey;

use super::floor::{self, Known};
use super::luks::{self, Derivation, LuksError};
use super::metadata::{Token, TpmToken};
use super::sealed::{self, Measured, Unsealed};
use super::{EncryptionError, Planned, is_encrypted, key_file, machine_key};
use crate::api::chain;
use crate::machine::Disks;
use crate::paths::Paths;

/// The volumes that may be encrypted. STATE comes last: what is done to all is done once it is done to STATE.
pub const VOLUMES: [&str; 3] = ["DATA", "ETCD", "STATE"];
/// Left in memory when the TPM gives no keys any more.
const CLOSED: &str = "/run/strake/tpm-closed";

/// What became of a volume that should be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// It is not encrypted.
    Plain(PathBuf),
    /// It is open, as this device.
    Mapped(PathBuf),
    /// Its keys were destroyed: it holds nothing any more.
    Erased,
    /// Nothing the machine has opens it; this is why, and what would.
    Locked(String),
}

/// What an unlock did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unlocked {
    /// The volumes that are open now.
    pub opened: Vec<String>,
    /// What did not work.
    pub warnings: Vec<String>,
}

/// The device mapper's name of an open volume.
fn mapped_name(label: &str) -> String {
    format!("strake-{}", label.to_lowercase())
}

fn mapped(paths: &Paths, label: &str) -> PathBuf {
    paths.at(&format!("/dev/mapper/{}", mapped_name(label)))
}

fn of(volume: &str) -> impl Fn(LuksError) -> EncryptionError {
    let volume = volume.to_owned();
    move |source| EncryptionError::Luks { volume: volume.clone(), source }
}

/// Makes a volume on a device, and gives the open one to `fill`; afterwards it is closed.
pub fn make<E: From<EncryptionError>>(
    planned: &Planned,
    device: &Path,
    paths: &Paths,
    fill: impl FnOnce(&Path, u64) -> Result<(), E>,
) -> Result<(), E> {
    let (label, scratch) = (planned.volume.as_str(), paths.at("/run/strake/keys"));
    let Some(first) = planned.keys.first() else {
        let source = std::io::Error::other("no key would open it");
        return Err(EncryptionError::Look(device.to_owned(), source).into());
    };
    luks::format(device, label, first.slot, &first.key.0, first.derivation).map_err(of(label))?;
    for key in &planned.keys[1..] {
        luks::add_key(device, &first.key.0, key.slot, &key.key.0, key.derivation, &scratch).map_err(of(label))?;
    }
    for key in &planned.keys {
        luks::add_token(device, key.slot, &key.token).map_err(of(label))?;
    }
    let name = mapped_name(label);
    luks::open(device, &name, first.slot, &first.key.0).map_err(of(label))?;
    let open = mapped(paths, label);
    let size = File::open(&open).and_then(|mut file| file.seek(SeekFrom::End(0)));
    let filled = match size {
        Ok(size) => fill(&open, size),
        Err(source) => Err(EncryptionError::Look(open, source).into()),
    };
    let closed = luks::close(&name).map_err(of(label));
    filled.and(closed.map_err(E::from))
}

/// Opens a volume that was just made, with what it was made with: the TPM may give no keys any more.
pub fn open_made(planned: &Planned, device: &Path, paths: &Paths) -> Result<PathBuf, EncryptionError> {
    let label = planned.volume.as_str();
    if let Some(first) = planned.keys.first() {
        luks::open(device, &mapped_name(label), first.slot, &first.key.0).map_err(of(label))?;
    }
    Ok(mapped(paths, label))
}

/// What the kernel has of an open volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// It is not open.
    None,
    /// It is open, on the devices with these names; on none whose disk is there when that was pulled out.
    On(Vec<String>),
}

/// Looks whether a volume is open, and what is behind it.
pub fn mapping(paths: &Paths, label: &str) -> Mapping {
    let name = mapped_name(label);
    let names = |directory: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    let blocks = paths.at("/sys/block");
    for device in names(&blocks).into_iter().filter(|device| device.starts_with("dm-")) {
        let at = blocks.join(device);
        if std::fs::read_to_string(at.join("dm/name")).is_ok_and(|found| found.trim() == name) {
            return Mapping::On(names(&at.join("slaves")));
        }
    }
    Mapping::None
}

/// Opens a volume, if it is encrypted, with what the machine has: the TPM, and files on other volumes. Blocks.
pub fn open(paths: &Paths, label: &str, device: &Path) -> Result<Opened, EncryptionError> {
    if !is_encrypted(device)? {
        return Ok(Opened::Plain(device.to_owned()));
    }
    let open = mapped(paths, label);
    if mapping(paths, label) != Mapping::None {
        return Ok(Opened::Mapped(open));
    }
    let header = luks::metadata(device).map_err(of(label))?;
    if header.is_erased() {
        return Ok(Opened::Erased);
    }
    let (mut reasons, mut people) = (Vec::new(), Vec::new());
    for (_, token) in header.tokens() {
        let mut opener = None;
        let key = match &token {
            Token::Tpm2(sealed) => ask_tpm(paths, sealed).map(|unsealed| {
                opener = Some(Known { running: unsealed.version, counter: sealed.counter, version: sealed.version });
                unsealed.key
            }),
            Token::KeyFile { volume, path, .. } => key_file::read(paths, volume, path).map_err(|error| chain(&error)),
            Token::Passphrase { .. } | Token::Recovery { .. } => {
                people.push(if token.kind() == "passphrase" { "the passphrase" } else { "the recovery key" });
                continue;
            }
        };
        let opened = key.and_then(|key| {
            let slot = token.slot().unwrap_or(u8::MAX);
            luks::open(device, &mapped_name(label), slot, &key).map_err(|error| chain(&error))
        });
        match opened {
            Ok(()) => {
                if let Some(known) = opener {
                    floor::remember(paths, known);
                }
                return Ok(Opened::Mapped(open));
            }
            Err(reason) => reasons.push(format!("{}: {reason}", token.kind())),
        }
    }
    Ok(Opened::Locked(locked(&reasons, &people)))
}

/// Why a volume is locked, in words, and the way out.
fn locked(reasons: &[String], people: &[&str]) -> String {
    let why = if reasons.is_empty() { String::new() } else { format!("; {}", reasons.join("; ")) };
    match people {
        [] => format!("no key opens it{why}; nothing but the keys that are named here does"),
        people => format!("it takes {} (strakectl unlock){why}", people.join(" or ")),
    }
}

fn ask_tpm(paths: &Paths, token: &TpmToken) -> Result<Unsealed, String> {
    if paths.at(CLOSED).exists() {
        return Err("the TPM gives no keys any more until the machine is started again".to_owned());
    }
    let measured = Measured::read(paths);
    let asked = sealed::machine_tpm(paths).and_then(|mut tpm| sealed::unseal(&mut tpm, measured.as_ref(), token));
    asked.map_err(|error| chain(&error))
}

/// Opens every encrypted volume that this secret opens, and with `reseal` gives them new keys in the TPM. `user`: the partitions' names of volumes on other
/// disks. Blocks.
pub fn unlock(paths: &Paths, disks: &dyn Disks, user: &[String], secret: &str, reseal: bool) -> Result<Unlocked, EncryptionError> {
    let mut done = Unlocked::default();
    let mut found = Vec::new();
    for label in VOLUMES {
        let look = |source| EncryptionError::Look(PathBuf::from(label), source);
        found.extend(disks.system_partition(label).map_err(look)?.map(|(device, _)| (label.to_owned(), device)));
    }
    for label in user {
        let look = |source| EncryptionError::Look(PathBuf::from(label), source);
        // One that several disks carry is none, which is told with the volume.
        if let [(_, device)] = disks.labelled(label).map_err(look)?.as_slice() {
            found.push((label.clone(), device.clone()));
        }
    }
    for (label, device) in &found {
        if !is_encrypted(device)? {
            continue;
        }
        match unlock_one(paths, label, device, secret, reseal) {
            Ok(true) => done.opened.push(label.clone()),
            Ok(false) => done.warnings.push(format!("{label}: this is none of its keys")),
            Err(error) => done.warnings.push(chain(&error)),
        }
    }
    Ok(done)
}

fn unlock_one(paths: &Paths, label: &str, device: &Path, secret: &str, reseal: bool) -> Result<bool, EncryptionError> {
    let header = luks::metadata(device).map_err(of(label))?;
    let recovery = secret.parse::<RecoveryKey>().ok();
    let already = mapping(paths, label) != Mapping::None;
    let mut right = None;
    for (_, token) in header.tokens() {
        let key = match (&token, &recovery) {
            (Token::Passphrase { .. }, _) => secret.as_bytes().to_vec(),
            (Token::Recovery { .. }, Some(recovery)) => recovery.key().to_vec(),
            _ => continue,
        };
        let slot = token.slot().unwrap_or(u8::MAX);
        let tried = if already { luks::test(device, slot, &key) } else { luks::open(device, &mapped_name(label), slot, &key) };
        match tried {
            Ok(()) => {
                right = Some(key);
                break;
            }
            Err(error) if error.is_wrong_key() => {}
            Err(error) => return Err(of(label)(error)),
        }
    }
    let Some(key) = right else { return Ok(false) };
    if reseal {
        for (id, token) in header.tokens() {
            if let Token::Tpm2(old) = token {
                seal_anew(paths, label, device, &key, (id, &old))?;
            }
        }
    }
    Ok(true)
}

/// A new key in the TPM, in the slot of one that it does not give any more. Cut off in the middle, the volume has one key fewer; `key` opens it all the same.
fn seal_anew(paths: &Paths, label: &str, device: &Path, key: &[u8], (id, old): (u8, &TpmToken)) -> Result<(), EncryptionError> {
    let slot = Token::Tpm2(old.clone()).slot().unwrap_or(id);
    let made = machine_key();
    let (measured, known) = (Measured::read(paths), floor::known(paths).map(|known| known.floor()));
    let token = sealed::machine_tpm(paths)
        .and_then(|mut tpm| sealed::seal(&mut tpm, measured.as_ref(), &old.pcrs, slot, &made, known))
        .map_err(|source| EncryptionError::Seal { volume: label.to_owned(), source })?;
    luks::remove_token(device, id).map_err(of(label))?;
    luks::remove_key(device, key, slot).map_err(of(label))?;
    luks::add_key(device, key, slot, &made, Derivation::Random, &paths.at("/run/strake/keys")).map_err(of(label))?;
    luks::add_token(device, id, &Token::Tpm2(token)).map_err(of(label))?;
    tracing::warn!(volume = label, slot, "a new key is sealed to the TPM");
    Ok(())
}

/// Destroys the keys of every encrypted volume, STATE's last. What is open stays open until the machine goes down. Blocks.
pub fn erase(disks: &dyn Disks) -> Result<Vec<&'static str>, EncryptionError> {
    let mut erased = Vec::new();
    for label in VOLUMES {
        let look = |source| EncryptionError::Look(PathBuf::from(label), source);
        let Some((device, _)) = disks.system_partition(label).map_err(look)? else { continue };
        if is_encrypted(&device)? {
            luks::erase(&device).map_err(of(label))?;
            erased.push(label);
        }
    }
    Ok(erased)
}

/// Closes a volume whose disk was pulled out, as soon as nobody uses it any more. Not with cryptsetup, which looks at the disk first and
/// crashes when it is gone.
pub fn close_later(paths: &Paths, label: &str) -> Result<(), EncryptionError> {
    let removed = DeviceMapper::open().and_then(|mapper| mapper.remove_later(&mapped_name(label)));
    removed.map_err(|source| EncryptionError::Close { volume: label.to_owned(), source })?;
    // cryptsetup made the node, as there is no udev; it makes another when the volume is opened again.
    match std::fs::remove_file(mapped(paths, label)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(EncryptionError::Look(mapped(paths, label), error)),
        _ => Ok(()),
    }
}

/// Closes a volume that is open.
pub fn close(paths: &Paths, label: &'static str) -> Result<(), EncryptionError> {
    if mapped(paths, label).exists() { luks::close(&mapped_name(label)).map_err(of(label)) } else { Ok(()) }
}

/// When every volume is open: the TPM gives their keys to nobody until the next start. Once in a boot; a machine without a TPM has nothing to close.
pub fn close_tpm(paths: &Paths) {
    let done = paths.at(CLOSED);
    if done.exists() {
        return;
    }
    let Ok(mut tpm) = sealed::machine_tpm(paths) else { return };
    match sealed::close(&mut tpm) {
        Ok(()) => {
            // Extended twice would be no harm.
            let _ = std::fs::write(&done, "");
            tracing::info!("the TPM gives no keys of volumes any more in this boot");
        }
        Err(error) => tracing::warn!(error = %chain(&error), "close the TPM"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locked_volume_says_what_opens_it_and_what_did_not() {
        let reasons = ["tpm2: the key was sealed by another TPM, or this one was cleared".to_owned()];
        let text = locked(&reasons, &["the recovery key"]);
        assert_eq!(text, "it takes the recovery key (strakectl unlock); tpm2: the key was sealed by another TPM, or this one was cleared");
        assert_eq!(locked(&[], &["the passphrase", "the recovery key"]), "it takes the passphrase or the recovery key (strakectl unlock)");
        assert!(locked(&reasons, &[]).contains("nothing but the keys"));
    }

    #[test]
    fn an_open_volume_is_told_from_one_whose_disk_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        assert_eq!(mapping(&paths, "u-data"), Mapping::None);
        for (device, name, slaves) in
            [("dm-0", "strake-root\n", &["vda2"][..]), ("dm-1", "strake-u-data\n", &["vdb1"]), ("dm-2", "strake-u-old\n", &[])]
        {
            let at = dir.path().join("sys/block").join(device);
            std::fs::create_dir_all(at.join("dm")).unwrap();
            std::fs::write(at.join("dm/name"), name).unwrap();
            for slave in slaves {
                std::fs::create_dir_all(at.join("slaves").join(slave)).unwrap();
            }
        }
        assert_eq!(mapping(&paths, "u-data"), Mapping::On(vec!["vdb1".to_owned()]));
        assert_eq!(mapping(&paths, "u-old"), Mapping::On(Vec::new()));
        assert_eq!(mapping(&paths, "u-dat"), Mapping::None);
    }

    #[test]
    fn what_is_not_encrypted_is_opened_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("device");
        std::fs::write(&device, [0; 4096]).unwrap();
        assert_eq!(open(&Paths::under(dir.path()), "STATE", &device).unwrap(), Opened::Plain(device));
    }
}
