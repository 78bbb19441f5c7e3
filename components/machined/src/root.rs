//! The root this system runs from, as the one resource of kind `root`: its slot, its root hash, and whether the kernel verifies it.

use std::fs;

use node_ipc::init::{BootInfo, Slot};
use serde_json::{Value, json};

use crate::api::chain;
use crate::resources::Store;

/// The resource's kind.
pub const KIND: &str = "root";
/// The name that init gives the verified device.
const DEVICE: &str = "strake-root";

/// Shows it. It does not change while the system runs: the kernel stops at the first block that does not match.
pub fn show(store: &Store, boot: &BootInfo) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let status = host::device_mapper::DeviceMapper::open().and_then(|mapper| mapper.status(DEVICE));
    let targets = status.unwrap_or_else(|error| {
        tracing::warn!(error = chain(&error), "cannot ask whether the root is verified");
        Vec::new()
    });
    let status = targets.into_iter().next().filter(|target| target.kind == "verity");
    let (id, spec) = describe(boot, &mounts, status.map(|target| target.words).as_deref());
    store.set(KIND, id, spec);
}

/// `status` is what the kernel's target says of itself: `V` as long as everything that was read did match.
fn describe(boot: &BootInfo, mounts: &str, status: Option<&str>) -> (&'static str, Value) {
    let verity = match status {
        Some(status) if status.starts_with('V') && mounted_verified(mounts) => "verified",
        Some(_) if mounted_verified(mounts) => "corrupted",
        _ => "off",
    };
    let id = boot.slot.map_or("medium", Slot::label);
    let spec = json!({"device": boot.device, "verity": verity, "rootHash": boot.root.root_hash().to_string(), "dataBlocks": boot.root.data_blocks()});
    (id, spec)
}

/// Whether `/` is the verified device.
fn mounted_verified(mounts: &str) -> bool {
    mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).any(|fields| {
        matches!(fields[..], [device, "/", "erofs", ..] if device.rsplit('/').next() == Some(DEVICE) || device.starts_with("/dev/dm-"))
    })
}

#[cfg(test)]
mod tests {
    use node_ipc::init::BootSource;

    use super::*;

    #[test]
    fn verified_means_that_the_kernel_says_so_of_what_is_mounted() {
        let (_, root) = crate::testing::root_image(2, 1);
        let boot = BootInfo { source: BootSource::Disk, device: "/dev/vda2".into(), root, slot: Some(Slot::A), trial_seconds: None };
        let (named, numbered, plain) = (
            "/dev/mapper/strake-root / erofs ro 0 0\n",
            "/dev/dm-0 / erofs ro 0 0\n",
            "/dev/vda2 / erofs ro 0 0\n/dev/dm-0 /x erofs ro 0 0\n",
        );
        for (mounts, status, expected) in [
            (named, Some("V"), "verified"),
            (numbered, Some("V"), "verified"),
            (named, Some("C"), "corrupted"),
            (plain, Some("V"), "off"),
            (named, None, "off"),
            ("", None, "off"),
        ] {
            let (id, spec) = describe(&boot, mounts, status);
            assert_eq!((id, spec["verity"].as_str()), ("ROOT-A", Some(expected)), "{mounts} {status:?}");
            assert_eq!(spec["rootHash"], root.root_hash().to_string());
        }
        let medium = BootInfo { source: BootSource::Media, slot: None, ..boot };
        assert_eq!(describe(&medium, named, Some("V")).0, "medium");
    }
}
