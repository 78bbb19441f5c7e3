//! Stage one and META, the partition that says what the slots hold: whether the system that starts is on trial, and where to go when its
//! root is damaged. A META that cannot be read costs the trial's deadline and the way to the other slot, never the boot.

use std::fs::{File, OpenOptions};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use host::loader_variables::LoaderVariables;
use node_ipc::init::Slot;
use slots::loader::{ONE_SHOT, entry, other};
use slots::meta::{self, Meta};
use slots::record;
use verity::Parameters;

use crate::report;
use crate::root::BlockDevice;

/// The key that a boot sets and that the system removes when it has come up: the slot that was started. Found at the next boot, it says that
/// the one before did not get far, as when the kernel stops at a damaged block of the root.
pub const STARTED: &str = "started";
/// How much of a root is read at a time.
const PIECE: usize = 1 << 20;

/// META of the disk that a slot lies on.
pub struct Kept {
    device: PathBuf,
    meta: Meta,
    slot: Slot,
}

/// META of the disk that the partition `root` lies on.
pub fn beside<'a>(root: &BlockDevice, devices: &'a [BlockDevice]) -> Option<&'a BlockDevice> {
    let disk = root.partition.as_ref().map(|(_, disk)| disk)?;
    let on_disk = |device: &&BlockDevice| device.partition.as_ref().is_some_and(|(_, its)| its == disk);
    devices.iter().filter(on_disk).find(|device| device.label == meta::LABEL)
}

impl Kept {
    /// Reads META beside the partition `root`, which holds this slot.
    pub fn beside(root: &BlockDevice, slot: Slot, devices: &[BlockDevice]) -> Option<Self> {
        let device = beside(root, devices)?.path();
        match File::open(&device).and_then(|mut file| meta::read(&mut file)) {
            Ok(meta) => Some(Self { device, meta, slot }),
            Err(error) => {
                report::warn(&format!("read META ({}): {error}", device.display()));
                None
            }
        }
    }

    /// How long this system has to prove itself, when it is on trial.
    pub fn trial_seconds(&self, root: &Parameters) -> Option<u64> {
        record::trial_seconds(&self.meta, self.slot, root)
    }

    /// Notes that the slot is being started. When its last start did not get far, its root is read from the beginning to the end first:
    /// what is wrong with it, if anything. Only where there is another slot to go to; else there is nothing to decide.
    pub fn start(&mut self, device: &Path, root: &Parameters) -> Option<String> {
        record::good(&self.meta, other(self.slot))?;
        if self.meta.get(STARTED) == Some(self.slot.label()) {
            report::notice(&format!("{} did not come up the last time, so all of it is verified now", self.slot.label()));
            let checked = File::open(device)
                .map_err(|error| verity::CheckError::Read("data", error))
                .and_then(|file| verity::check(&mut BufReader::with_capacity(PIECE, file), root));
            return checked.err().map(|error| format!("{} is damaged: {}", self.slot.label(), report::chain(&error)));
        }
        self.meta.set(STARTED, Some(self.slot.label().to_owned()));
        self.write();
        None
    }

    /// The slot's root is damaged: the loader is told to start the other slot once, when that holds a good system. Whether it does.
    pub fn fall_back(&mut self, reason: &str) -> bool {
        let Some(to) = record::fall_back(&mut self.meta, self.slot, reason) else { return false };
        self.meta.set(STARTED, None);
        if let Err(error) = LoaderVariables::default().write(ONE_SHOT, entry(to)) {
            report::warn(&report::chain(&error));
            return false;
        }
        self.write();
        report::notice(&format!("{} holds a good system and is started next", to.label()));
        true
    }

    fn write(&mut self) {
        let write = || -> Result<Meta, meta::WriteError> {
            let mut file = OpenOptions::new().read(true).write(true).open(&self.device)?;
            meta::write(&mut file, &self.meta)?;
            file.sync_all()?;
            Ok(meta::read(&mut file)?)
        };
        match write() {
            Ok(meta) => self.meta = meta,
            Err(error) => report::warn(&report::chain(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use slots::record::{System, set_good};

    use super::*;

    fn kept(dir: &Path) -> Kept {
        let device = dir.join("meta");
        std::fs::write(&device, vec![0; 1 << 20]).unwrap();
        Kept { device, meta: Meta::default(), slot: Slot::A }
    }

    fn image(dir: &Path) -> (PathBuf, Parameters) {
        let (path, salt) = (dir.join("root"), verity::Digest([7; 32]));
        let mut image = vec![5; 200 * verity::BLOCK];
        let tree = verity::build(&mut &image[..], 200, &salt).unwrap();
        image.extend(&tree.bytes);
        std::fs::write(&path, image).unwrap();
        (path, Parameters::new(tree.root_hash, salt, 200).unwrap())
    }

    #[test]
    fn a_root_is_read_through_when_its_last_start_did_not_get_far() {
        let dir = tempfile::tempdir().unwrap();
        let (device, root) = image(dir.path());
        let mut kept = kept(dir.path());
        assert_eq!(kept.start(&device, &root), None);
        assert_eq!(kept.meta.get(STARTED), None, "without another slot there is nothing to decide");

        set_good(&mut kept.meta, Slot::B, Some(&System { version: "1.0.0".into(), kubernetes: "v1.36.2".into(), root }));
        assert_eq!(kept.start(&device, &root), None);
        let again = meta::read(&mut File::open(&kept.device).unwrap()).unwrap();
        assert_eq!(again.get(STARTED), Some("ROOT-A"));
        assert_eq!(kept.start(&device, &root), None, "a whole root is started again");

        let mut damaged = std::fs::read(&device).unwrap();
        damaged[100 * verity::BLOCK] ^= 1;
        std::fs::write(&device, damaged).unwrap();
        let reason = kept.start(&device, &root).unwrap();
        assert!(reason.starts_with("ROOT-A is damaged: the root hash is "), "{reason}");
    }

    #[test]
    fn meta_is_that_of_the_same_disk() {
        let device = |name: &str, label: &str, partition: Option<(u32, &str)>| BlockDevice {
            name: name.into(),
            label: label.into(),
            partition: partition.map(|(number, disk)| (number, disk.to_owned())),
            sectors: 8,
        };
        let devices = [
            device("nonexistent1", "META", Some((1, "nonexistent"))),
            device("other1", "ROOT-A", Some((1, "other"))),
            device("other", "", None),
        ];
        assert!(Kept::beside(&devices[1], Slot::A, &devices).is_none(), "the META of another disk");
        assert!(Kept::beside(&devices[0], Slot::A, &devices).is_none(), "a META that cannot be read");
    }
}
