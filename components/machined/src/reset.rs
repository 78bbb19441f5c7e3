//! Wiping what a machine keeps, so that a power cut at any point leaves a machine that keeps everything and is to be wiped, or one that keeps
//! nothing. STATE carries the request, and can't carry it while it is made anew itself: META does, from before the first byte until
//! after the last.

use std::fs::OpenOptions;
use std::path::Path;

use slots::meta::{self, Meta};
use slots::record::RESETTING;

use crate::encryption;
use crate::install;
use crate::machine::Disks;
use crate::paths::Paths;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Whether a reset began that did not come to its end.
pub fn has_begun(disks: &dyn Disks) -> Result<bool, Failure> {
    let Some((node, _)) = disks.system_partition(meta::LABEL)? else { return Ok(false) };
    Ok(read(&node)?.get(RESETTING).is_some())
}

/// From here on the machine is wiped, whatever STATE says.
pub fn begin(disks: &dyn Disks) -> Result<(), Failure> {
    let (node, _) = disks.system_partition(meta::LABEL)?.ok_or("META is gone")?;
    note(&node, true)
}

/// Makes ETCD, DATA and STATE anew.
/// Keys of encrypted volumes are destroyed first, and not only written over: a disk may keep what was there before.
pub fn wipe(paths: &Paths, disks: &dyn Disks) -> Result<(), Failure> {
    tracing::warn!("resetting: ETCD, DATA and STATE are made anew");
    let erased = encryption::erase(disks)?;
    for label in ["ETCD", "DATA", "STATE"] {
        let Some((device, size)) = disks.system_partition(label)? else { continue };
        if erased.contains(&label) {
            encryption::close(paths, label)?;
        }
        install::make_empty(&device, label, size)?;
    }
    match disks.system_partition(meta::LABEL)? {
        Some((node, _)) => note(&node, false),
        None => Ok(()),
    }
}

/// Notes in META, by its node, that a reset is under way or that it is over; it is on the disk afterwards.
pub fn note(node: &Path, under_way: bool) -> Result<(), Failure> {
    let before = read(node)?;
    let mut meta = before.clone();
    meta.set(RESETTING, under_way.then(|| "1".to_owned()));
    if meta == before {
        return Ok(());
    }
    let mut file = OpenOptions::new().write(true).open(node)?;
    meta::write(&mut file, &meta)?;
    Ok(file.sync_all()?)
}

fn read(node: &Path) -> std::io::Result<Meta> {
    meta::read(&mut std::fs::File::open(node)?)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::machine::ObservedDisk;

    /// Files in a directory are the partitions.
    struct Files(PathBuf);

    impl Disks for Files {
        fn observe(&self) -> std::io::Result<Vec<ObservedDisk>> {
            Ok(Vec::new())
        }

        fn system_partition(&self, label: &str) -> std::io::Result<Option<(PathBuf, u64)>> {
            let path = self.0.join(label);
            Ok(path.metadata().ok().map(|metadata| (path, metadata.len())))
        }

        fn installations(&self) -> std::io::Result<Vec<crate::machine::Installed>> {
            Ok(Vec::new())
        }
    }

    #[test]
    fn a_reset_that_was_cut_off_is_known_until_it_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let disks = Files(dir.path().to_owned());
        assert!(!has_begun(&disks).unwrap(), "a medium has no META");
        std::fs::write(dir.path().join("META"), vec![0; 1 << 20]).unwrap();
        assert!(!has_begun(&disks).unwrap());
        begin(&disks).unwrap();
        begin(&disks).unwrap();
        assert!(has_begun(&disks).unwrap());
        // As it is found after a cut in the middle of making STATE anew.
        std::fs::write(dir.path().join("STATE"), vec![7; 16 << 20]).unwrap();
        wipe(&Paths::under(dir.path()), &disks).unwrap();
        assert!(!has_begun(&disks).unwrap());
        let state = std::fs::read(dir.path().join("STATE")).unwrap();
        assert_eq!(state[1080..1082], [0x53, 0xef], "an ext4 file system");
    }
}
