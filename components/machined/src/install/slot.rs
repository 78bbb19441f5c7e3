//! A slot: the root image with its hash tree, written, and read back from the disk against the root hash. So it is written by an
//! installation and by an upgrade.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::num::NonZeroU64;
use std::path::Path;

use machine_config::layout::Partition;
use rustix::fs::{Advice, fadvise};

use super::{InstallError, Media, Progress, say, step};

const COPY_BYTES: usize = 1 << 20;

/// Writes the root of a medium into a slot, and verifies what is on the disk afterwards.
pub fn write(
    disk: &mut File,
    node: &Path,
    partition: &Partition,
    media: &Media,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), InstallError> {
    copy(disk, node, partition, media, progress)?;
    say(progress, "verify the system", partition.label.to_owned());
    verify(disk, node, partition, &media.verity)
}

fn copy(
    disk: &mut File,
    node: &Path,
    partition: &Partition,
    media: &Media,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), InstallError> {
    let unreadable = |source| InstallError::Read { path: media.root.clone(), source };
    let mut image = File::open(&media.root).map_err(unreadable)?;
    let total = image.metadata().map_err(unreadable)?.len();
    copy_from(&mut image, &media.root, total, (disk, node), partition, progress)
}

/// Writes a root image of so many bytes into a slot. `from` is where it comes from, for people.
pub fn copy_from(
    image: &mut dyn Read,
    from: &Path,
    total: u64,
    (disk, node): (&mut File, &Path),
    partition: &Partition,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), InstallError> {
    disk.seek(SeekFrom::Start(partition.start)).map_err(step("write the root image", node))?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut done = 0;
    loop {
        progress(Progress { stage: "write the system", done, total, detail: partition.label.to_owned() });
        let count = image.read(&mut buffer).map_err(|source| InstallError::Read { path: from.to_owned(), source })?;
        if count == 0 && done < total {
            return Err(InstallError::Read { path: from.to_owned(), source: std::io::ErrorKind::UnexpectedEof.into() });
        }
        if count == 0 {
            return Ok(());
        }
        disk.write_all(&buffer[..count]).map_err(step("write the root image", node))?;
        done += count as u64;
    }
}

/// Reads a slot back from the disk, and compares it with the hash tree's root.
pub fn verify(disk: &mut File, node: &Path, partition: &Partition, verity: &verity::Parameters) -> Result<(), InstallError> {
    disk.sync_all().map_err(step("write to the disk", node))?;
    // Or only our own memory would be read back. Where there is no such cache there is nothing to drop.
    let _ = fadvise(&*disk, partition.start, NonZeroU64::new(verity.total_bytes()), Advice::DontNeed);
    disk.seek(SeekFrom::Start(partition.start)).map_err(step("read the root image back", node))?;
    let checked = verity::check(&mut BufReader::with_capacity(COPY_BYTES, &mut *disk), verity);
    checked.map_err(|source| InstallError::Verify { label: partition.label, disk: node.to_owned(), source })
}
