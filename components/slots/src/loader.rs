//! What the boot loader is told, in the words of systemd-boot: a file per slot, a line of `loader.conf` for the slot that is started always,
//! and a variable of the firmware for the one that is tried once (the Boot Loader Interface).

use node_ipc::init::Slot;

/// The directory of the boot partition with the kernel images.
pub const DIRECTORY: &str = "EFI/Linux";
/// The loader's configuration, on the boot partition.
pub const CONF: &str = "loader/loader.conf";
/// The variable with the entry that is started once; the loader removes it before it starts the entry.
pub const ONE_SHOT: &str = "LoaderEntryOneShot";
/// The variable that would win over [`CONF`]; a person in front of the loader's menu can set it.
pub const DEFAULT: &str = "LoaderEntryDefault";

/// The other slot.
pub fn other(slot: Slot) -> Slot {
    match slot {
        Slot::A => Slot::B,
        Slot::B => Slot::A,
    }
}

/// The name of a slot's kernel image, by which the loader knows the entry.
pub fn entry(slot: Slot) -> &'static str {
    match slot {
        Slot::A => "strake-a.efi",
        Slot::B => "strake-b.efi",
    }
}

/// The configuration that starts this slot at once, and lets nobody edit the command line. For both slots it is equally long and differs in
/// one byte, so that changing it is the change of that byte: a write that is cut off at any point leaves one or the other.
pub fn conf(slot: Slot) -> String {
    format!("default {}\ntimeout 0\neditor no\n", entry(slot))
}

/// The slot that a configuration starts.
pub fn default_slot(conf: &str) -> Option<Slot> {
    let name = conf.lines().find_map(|line| line.strip_prefix("default "))?.trim();
    [Slot::A, Slot::B].into_iter().find(|slot| entry(*slot) == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changing_the_default_changes_one_byte() {
        let (a, b) = (conf(Slot::A), conf(Slot::B));
        assert_eq!(a.len(), b.len());
        assert_eq!(a.bytes().zip(b.bytes()).filter(|(a, b)| a != b).count(), 1);
    }

    #[test]
    fn the_default_is_read_back() {
        for slot in [Slot::A, Slot::B] {
            assert_eq!(default_slot(&conf(slot)), Some(slot));
            assert_eq!(other(other(slot)), slot);
        }
        for text in ["", "timeout 0\n", "default other.efi\n"] {
            assert_eq!(default_slot(text), None, "{text:?}");
        }
    }
}
