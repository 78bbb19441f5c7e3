//! Where the partitions of an installed disk are: the table of the architecture page as a function of role and size.

use crate::v1alpha1::Role;

/// Partitions begin and end on multiples of this.
pub const ALIGNMENT: u64 = MIB;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

const ESP: u64 = GIB;
const ROOT: u64 = 3 * GIB / 2;
const META: u64 = MIB;
const STATE: u64 = 512 * MIB;
/// etcd gets a sixteenth of the disk, between these.
const ETCD_LEAST: u64 = 4 * GIB;
const ETCD_MOST: u64 = 16 * GIB;
const DATA_LEAST: u64 = 4 * GIB;

/// The EFI system partition's type (UEFI specification 5.3.3).
const TYPE_ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
/// "Linux root x86-64" and "Linux file system data" of the Discoverable Partitions Specification.
const TYPE_ROOT: &str = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";
const TYPE_LINUX: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// The GPT name, by which the system finds it.
    pub label: &'static str,
    /// First byte.
    pub start: u64,
    /// Size in bytes.
    pub size: u64,
    /// The GPT type.
    pub type_guid: &'static str,
}

/// A disk that cannot hold the system.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the disk has {has} bytes; a {role} machine needs at least {needs}")]
pub struct DiskTooSmall {
    /// What the machine is to be.
    pub role: Role,
    /// The disk's size.
    pub has: u64,
    /// The least size.
    pub needs: u64,
}

/// The smallest disk a role fits on, in bytes.
pub fn smallest_disk(role: Role) -> u64 {
    let etcd = if role == Role::ControlPlane { ETCD_LEAST } else { 0 };
    // One MiB at either end holds the GPT and its copy.
    2 * MIB + ESP + 2 * ROOT + META + STATE + etcd + DATA_LEAST
}

/// What every installed disk begins with, whatever the machine is and however large the disk: all that is not made with a config.
pub fn front() -> Vec<Partition> {
    in_order(&FRONT)
}

const FRONT: [(&str, u64, &str); 4] =
    [("ESP", ESP, TYPE_ESP), ("ROOT-A", ROOT, TYPE_ROOT), ("ROOT-B", ROOT, TYPE_ROOT), ("META", META, TYPE_LINUX)];

fn in_order(parts: &[(&'static str, u64, &'static str)]) -> Vec<Partition> {
    let mut start = MIB;
    let placed = parts.iter().map(|&(label, size, type_guid)| {
        let partition = Partition { label, start, size, type_guid };
        start += size;
        partition
    });
    placed.collect()
}

/// The partitions in the order they lie on the disk. DATA is last, so that it can grow with the disk.
pub fn layout(role: Role, disk_bytes: u64) -> Result<Vec<Partition>, DiskTooSmall> {
    let needs = smallest_disk(role);
    if disk_bytes < needs {
        return Err(DiskTooSmall { role, has: disk_bytes, needs });
    }
    let end = disk_bytes / ALIGNMENT * ALIGNMENT - MIB;
    let etcd = (disk_bytes / 16 / ALIGNMENT * ALIGNMENT).clamp(ETCD_LEAST, ETCD_MOST);
    let mut fixed = FRONT.to_vec();
    fixed.push(("STATE", STATE, TYPE_LINUX));
    if role == Role::ControlPlane {
        fixed.push(("ETCD", etcd, TYPE_LINUX));
    }
    let mut partitions = in_order(&fixed);
    let start = partitions.last().map_or(MIB, |last| last.start + last.size);
    partitions.push(Partition { label: "DATA", start, size: end - start, type_guid: TYPE_LINUX });
    Ok(partitions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_table_of_the_architecture_page() {
        let found = layout(Role::ControlPlane, 16 * GIB).expect("large enough");
        let table: Vec<(&str, u64, u64)> = found.iter().map(|p| (p.label, p.start / MIB, p.size / MIB)).collect();
        let expected = [
            ("ESP", 1, 1024),
            ("ROOT-A", 1025, 1536),
            ("ROOT-B", 2561, 1536),
            ("META", 4097, 1),
            ("STATE", 4098, 512),
            ("ETCD", 4610, 4096),
            ("DATA", 8706, 16384 - 8706 - 1),
        ];
        assert_eq!(table, expected);
        assert!(layout(Role::Worker, 16 * GIB).expect("large enough").iter().all(|p| p.label != "ETCD"));
    }

    #[test]
    fn a_disk_that_is_too_small_is_refused_with_the_size_it_needs() {
        assert!(layout(Role::Worker, 9 * GIB).is_ok());
        assert!(layout(Role::ControlPlane, 13 * GIB).is_ok());
        let error = layout(Role::ControlPlane, 8 * GIB).expect_err("too small");
        assert_eq!(
            error.to_string(),
            format!("the disk has {} bytes; a controlplane machine needs at least {}", 8 * GIB, smallest_disk(Role::ControlPlane))
        );
    }

    proptest! {
        #[test]
        fn partitions_are_aligned_in_order_and_inside_the_disk(size in 0u64..(1 << 50), control_plane: bool) {
            let role = if control_plane { Role::ControlPlane } else { Role::Worker };
            if let Ok(partitions) = layout(role, size) {
                prop_assert_eq!(&partitions[..4], &front()[..]);
                let mut end = MIB;
                for p in &partitions {
                    prop_assert!(p.start == end && p.start % ALIGNMENT == 0 && p.size % ALIGNMENT == 0 && p.size > 0);
                    end = p.start + p.size;
                }
                prop_assert!(end + MIB <= size);
            }
        }
    }
}
