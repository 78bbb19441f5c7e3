//! What every part of machined shares: where things are, how the system was booted, the config in force, and handles to
//! init and to the observed state.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use machine_config::Config;
use machine_config::disk::Disk;
use node_ipc::init::BootInfo;
use serde::Deserialize;
use tokio::sync::{Mutex, watch};

use crate::encryption::{Given, Secret};
use crate::events::{Events, Severity};
use crate::init::InitHandle;
use crate::milestones::Milestones;
use crate::paths::Paths;
use crate::resources::Store;
use crate::state::StateDir;
use crate::trial::Trials;

/// In which of its two lives the machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It has no config: it waits for one.
    Maintenance,
    /// It has a config and keeps to it.
    Running,
}

/// What the image says about itself (`release.json`).
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Release {
    /// The system's name.
    #[serde(default)]
    pub name: String,
    /// Its version.
    #[serde(default)]
    pub version: String,
    /// The Kubernetes version of its components.
    #[serde(default)]
    pub kubernetes: String,
    /// The kernel's release.
    #[serde(default)]
    pub kernel: String,
}

/// A disk with what an installation needs to know beside its properties.
#[derive(Clone, Debug, PartialEq)]
pub struct ObservedDisk {
    /// The properties that configs select by.
    pub disk: Disk,
    /// Its node.
    pub node: PathBuf,
    /// Bytes in a logical sector.
    pub sector: u64,
}

/// The disk that the system was booted from.
#[derive(Clone, Debug)]
pub struct SystemDisk {
    /// Its node.
    pub node: PathBuf,
    /// Bytes in a logical sector.
    pub sector: u64,
    /// Its partitions.
    pub partitions: Vec<SystemPartition>,
}

/// One partition of it.
#[derive(Clone, Debug)]
pub struct SystemPartition {
    /// The GPT name.
    pub label: String,
    /// The number in the partition table, from 1.
    pub number: u32,
    /// Its node.
    pub node: PathBuf,
    /// Size in bytes.
    pub size: u64,
}

/// A disk that carries an installed system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Its name.
    pub disk: String,
    /// Its boot partition.
    pub boot: Option<BootPlace>,
}

/// Where a boot partition lies on its disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootPlace {
    /// The number in the partition table, from 1.
    pub number: u32,
    /// Its first sector, and how many it has.
    pub first_sector: u64,
    /// See `first_sector`.
    pub sectors: u64,
    /// The partition's own UUID.
    pub uuid: String,
}

/// The machine's disks.
pub trait Disks: Send + Sync {
    /// All whole disks there are now.
    fn observe(&self) -> io::Result<Vec<ObservedDisk>>;

    /// The node and size of the partition with this label on the disk that the system was booted from.
    fn system_partition(&self, label: &str) -> io::Result<Option<(PathBuf, u64)>>;

    /// The disk that the system was booted from; none when that was a medium.
    fn system_disk(&self) -> io::Result<Option<SystemDisk>> {
        Ok(None)
    }

    /// The partitions with this label on disks that no system is installed on: the disk's name and the partition's node.
    fn labelled(&self, _label: &str) -> io::Result<Vec<(String, PathBuf)>> {
        Ok(Vec::new())
    }

    /// Makes the kernel look at a disk's partition table again.
    fn look_again(&self, _disk: &Path) -> io::Result<()> {
        Ok(())
    }

    /// The disks that carry an installed system, whichever was booted.
    fn installations(&self) -> io::Result<Vec<Installed>>;
}

/// The config in force: its text, and what it says.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// As it is kept in STATE.
    pub text: String,
    /// As it was understood.
    pub config: Config,
}

/// What every part of machined shares.
pub struct Machine {
    /// Where things are.
    pub paths: Paths,
    /// In which life the machine is; never changes while machined runs.
    pub mode: Mode,
    /// What runs.
    pub release: Release,
    /// How it was booted.
    pub boot: BootInfo,
    /// The kernel's id of this boot.
    pub boot_id: String,
    /// What the machine's name is made of when the config gives none; always the same on one installation.
    pub name_seed: String,
    /// The observed state.
    pub store: Store,
    /// init.
    pub init: InitHandle,
    /// STATE; only there in [`Mode::Running`].
    pub state: StateDir,
    /// The config in force, and those that wait for it to change.
    pub config: watch::Sender<Option<Arc<Loaded>>>,
    /// Counts events that reconcilers should look at although no config changed, a bootstrap for example.
    pub wake: watch::Sender<u64>,
    /// Held by whatever changes the machine as a whole, so that two such things never mix.
    pub changing: Arc<Mutex<()>>,
    /// The disks.
    pub disks: Box<dyn Disks>,
    /// The machine's addresses, the node's own first.
    pub addresses: watch::Receiver<Vec<IpAddr>>,
    /// What happened.
    pub events: Events,
    /// When what was reached in this boot.
    pub milestones: Milestones,
    /// The config that is on trial, if one is.
    pub trials: Trials,
    /// What people gave in this boot for encrypted volumes that are to be made.
    pub given: GivenKeys,
}

/// Keys for encrypted user volumes that are still to be made. In memory alone, and only while a volume waits for one.
#[derive(Debug, Default)]
pub struct GivenKeys(std::sync::Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    given: Given,
    volumes: Vec<String>,
}

impl GivenKeys {
    /// No code panics while it holds the lock.
    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// These volumes wait for a key. When there are none, what was given is forgotten.
    pub(crate) fn waits(&self, volumes: Vec<String>) {
        let mut waiting = self.lock();
        if volumes.is_empty() {
            waiting.given = Given::default();
        }
        waiting.volumes = volumes;
    }

    /// Takes a recovery key or a passphrase for those that wait; their names.
    pub(crate) fn give(&self, secret: &str) -> Vec<String> {
        let mut waiting = self.lock();
        if !waiting.volumes.is_empty() {
            match secret.parse() {
                Ok(recovery_key) => waiting.given.recovery_key = Some(recovery_key),
                Err(_) => waiting.given.passphrase = Some(Secret(secret.as_bytes().to_vec())),
            }
        }
        waiting.volumes.clone()
    }

    /// What was given.
    pub(crate) fn get(&self) -> Given {
        self.lock().given.clone()
    }
}

impl Machine {
    /// The config in force.
    pub fn loaded(&self) -> Option<Arc<Loaded>> {
        self.config.borrow().clone()
    }

    /// The machine's addresses, the node's own first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.addresses.borrow().clone()
    }

    /// The machine's name.
    pub fn hostname(&self) -> String {
        self.loaded().map(|loaded| hostname(&loaded.config, &self.name_seed)).unwrap_or_default()
    }

    /// The names of the partitions of volumes on other disks.
    pub fn user_volumes(&self) -> Vec<String> {
        let loaded = self.loaded();
        loaded.iter().flat_map(|loaded| &loaded.config.user_volumes).map(|volume| volume.label()).collect()
    }

    /// Notes that something happened that people should hear of.
    pub fn event(&self, severity: Severity, reason: &'static str, message: &str) {
        self.events.record(&self.store, severity, reason, message);
    }

    /// Makes reconcilers look again.
    pub fn wake(&self) {
        self.wake.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// The name that a config gives, or one made of the seed.
fn hostname(config: &Config, seed: &str) -> String {
    match &config.hostname {
        Some(document) => document.hostname.clone(),
        None => {
            let digest = pki::fingerprint(seed.as_bytes());
            let letters: String = digest.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
            format!("strake-{}", letters.to_lowercase())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_taken_for_those_that_wait_and_forgotten_with_the_last() {
        let (keys, recovery) = (GivenKeys::default(), machine_api::recovery_key::RecoveryKey::new(&[7; 20]));
        assert_eq!(keys.give("open sesame"), Vec::<String>::new());
        assert!(keys.get().passphrase.is_none(), "nobody waits for it");
        keys.waits(vec!["u-data".to_owned()]);
        assert_eq!(keys.give("open sesame"), ["u-data"]);
        assert_eq!(keys.give(&recovery.to_string()), ["u-data"]);
        let given = keys.get();
        assert_eq!(given.passphrase, Some(Secret(b"open sesame".to_vec())));
        assert!(given.recovery_key.is_some());
        keys.waits(Vec::new());
        assert!(keys.get().passphrase.is_none() && keys.get().recovery_key.is_none());
    }
}
