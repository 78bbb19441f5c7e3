//! Upgrades: the slot that does not run is written while the machine works on, tried once, and becomes the one that is started only when
//! the new system proved at least as healthy as the old one was. What is decided is decided in the crate `slots`; here it is done.
//!
//! | file | what |
//! |---|---|
//! | `layout.rs` | where the slots, META and the boot partition of this disk are; reading and changing META |
//! | `write.rs` | from an upgrade file to a slot that can be started |
//! | `trust.rs` | whose upgrade files are taken |
//! | `around.rs` | what has to be known of the other machines |
//! | `table.rs` | the partition's UUID, by which the new root is found |
//! | `health.rs` | how healthy this machine is |
//! | `drain.rs` | moving pods away before the restart, and letting them come back |
//! | `start.rs` | the steps of an upgrade and of a rollback, in their order |
//! | `judge.rs` | what follows at the next boot: the health gate, or the reason of the way back |

mod around;
mod drain;
mod health;
mod judge;
mod layout;
mod start;
mod table;
#[cfg(test)]
mod tests;
mod trust;
mod write;

pub use drain::drain_node;
pub use judge::{at_boot, restart_for_trial, watch};
pub use start::{Options, Told, begin, roll_back};
pub use trust::Trust;

use serde_json::{Value, json};
use slots::record::Upgrade;

use crate::install::InstallError;
use crate::resources::Store;

/// There until the machine goes down: the new system is tried at the next boot, and this is not it.
const ARMED: &str = "/run/strake/upgrade-armed";
/// The resource's kind.
pub const KIND: &str = "upgrade";

/// Why there is no upgrade.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// There are no slots.
    #[error("this system was not started from an installed disk, so there is no slot to write")]
    NoSlots,
    /// The disk lacks something.
    #[error("the disk has no partition {0}")]
    NoPartition(&'static str),
    /// Another one is under way.
    #[error("an upgrade to {0} waits for the next boot or is on trial; reboot, or take it back with rollback")]
    UnderWay(String),
    /// The slots can't be looked up.
    #[error("look for the disk's partitions")]
    Disks(#[source] std::io::Error),
    /// META can't be read.
    #[error("read META")]
    ReadMeta(#[source] std::io::Error),
    /// META can't be written.
    #[error(transparent)]
    WriteMeta(#[from] slots::meta::WriteError),
    /// The file ended or can't be understood.
    #[error("read the upgrade file")]
    File(#[source] std::io::Error),
    /// It is not an upgrade file.
    #[error("the file is no upgrade: it has {found:?} where {wanted} should be")]
    Member { wanted: &'static str, found: String },
    /// The image's keys can't be read.
    #[error("read the keys whose upgrade files this image takes")]
    ReadKeys(#[source] std::io::Error),
    /// The image's keys are none.
    #[error("the keys whose upgrade files this image takes")]
    Keys(#[from] pki::PkiError),
    /// It has no signature, and needs one.
    #[error(
        "the upgrade file is not signed, and this image takes only what is signed with a key of its own ({0}); build it with `cargo xtask image --secureboot-keys`"
    )]
    Unsigned(String),
    /// Its signature is another key's, or of something else.
    #[error(
        "the upgrade file's signature was made with no key of this image ({0}), or the file was changed after it was signed; take one that is signed with that key"
    )]
    WrongSignature(String),
    /// Its manifest is none.
    #[error("the upgrade's manifest cannot be read")]
    Manifest(#[source] serde_json::Error),
    /// A part of it has another size than its manifest says.
    #[error("{what} in the upgrade file has {has} bytes, and its manifest says {expected}")]
    Size { what: &'static str, has: u64, expected: u64 },
    /// It is what runs.
    #[error(transparent)]
    Same(slots::manifest::Refusal),
    /// The machine does not take it, for one or more reasons.
    #[error("{0}")]
    Refused(String),
    /// etcd could not be saved before.
    #[error("take an etcd snapshot before the upgrade")]
    Snapshot(#[source] crate::etcd::EtcdError),
    /// The slot was not written.
    #[error(transparent)]
    Slot(#[from] InstallError),
    /// The partition table was not changed.
    #[error("give {label} its UUID in the partition table")]
    Table { label: &'static str, source: table::TableFailure },
    /// The boot partition failed.
    #[error("{0} on the boot partition")]
    Boot(&'static str, #[source] std::io::Error),
    /// The firmware failed.
    #[error(transparent)]
    Firmware(#[from] host::loader_variables::VariableError),
    /// Pods could not be moved.
    #[error("{0}")]
    Drain(String),
    /// There is nothing to go back to.
    #[error("there is nothing to go back to: {0} holds no system that proved good here")]
    NoOther(&'static str),
    /// machined is going down.
    #[error("machined is stopping")]
    Stopping,
}

impl UpgradeError {
    /// Whether the request is at fault, rather than the machine.
    pub fn is_refusal(&self) -> bool {
        use UpgradeError as E;
        matches!(
            self,
            E::NoSlots
                | E::UnderWay(_)
                | E::File(_)
                | E::Member { .. }
                | E::Unsigned(_)
                | E::WrongSignature(_)
                | E::Manifest(_)
                | E::Size { .. }
                | E::Same(_)
                | E::Refused(_)
                | E::NoOther(_)
                | E::Drain(_)
        )
    }
}

/// Shows how the last upgrade stands.
fn show(store: &Store, upgrade: &Upgrade) {
    store.set(KIND, "last", spec(upgrade));
}

fn spec(upgrade: &Upgrade) -> Value {
    let date = |seconds| match seconds {
        0 => String::new(),
        seconds => jiff::Timestamp::from_second(seconds).map(|time| time.to_string()).unwrap_or_default(),
    };
    json!({
        "slot": upgrade.slot.label(), "state": upgrade.state.word(), "from": upgrade.from.version, "to": upgrade.to.version,
        "reason": upgrade.reason, "begun": date(upgrade.begun_unix), "ended": date(upgrade.ended_unix),
        "fromRootHash": upgrade.from.root.root_hash().to_string(), "toRootHash": upgrade.to.root.root_hash().to_string(),
        "secondTrial": upgrade.again, "baseline": upgrade.baseline,
    })
}
