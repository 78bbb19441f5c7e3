//! The raw disk image: what an installation writes to a disk before it is told what the machine is to be. It has the boot partition, the root in slot A,
//! the other slot, and META, at the places of every installed disk; machined adds the rest, as large as the disk is, with the first config.
//! Nothing in it is random: identifiers come from the root hash, and the first config gives the disk its own.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use gpt::GptConfig;
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition_types::{OperatingSystem, Type};
use machine_config::layout::{self, Partition};
use node_ipc::init::Slot;
use sha2::{Digest as _, Sha256};
use slots::loader;
use uuid::Uuid;

use crate::error::{Error, FileContext};
use crate::media::fat_volume;

const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;

/// What the image is made from.
#[derive(Clone, Copy, Debug)]
pub struct DiskInputs<'a> {
    /// systemd-boot.
    pub loader: &'a Path,
    /// The kernel image.
    pub uki: &'a Path,
    /// The root with its hash tree.
    pub root: &'a Path,
    /// What the root is verified against.
    pub verity: &'a verity::Parameters,
    /// The file that says whose configs a medium takes.
    pub keys: &'a Path,
    /// A scratch directory.
    pub scratch: &'a Path,
}

/// Writes the image: a sparse file, of which only what is there takes room.
pub fn write(inputs: &DiskInputs<'_>, out: &Path) -> Result<(), Error> {
    let partitions = layout::front();
    let end = partitions.last().map_or(0, |partition| partition.start + partition.size);
    let size = end + MIB;
    let mut disk = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(out).on("create", out)?;
    disk.set_len(size).on("size", out)?;

    let esp = inputs.scratch.join("disk-esp.img");
    let conf = inputs.scratch.join("disk-loader.conf");
    std::fs::write(&conf, loader::conf(Slot::A)).on("write", &conf)?;
    let system = format!("{}/{}", loader::DIRECTORY, loader::entry(Slot::A));
    let files = [
        ("EFI/BOOT/BOOTX64.EFI", inputs.loader),
        ("EFI/systemd/systemd-bootx64.efi", inputs.loader),
        (system.as_str(), inputs.uki),
        (loader::CONF, conf.as_path()),
        ("strake/config-keys.pem", inputs.keys),
    ];
    for partition in &partitions {
        match partition.label {
            "ESP" => {
                fat_volume(&files, partition.size, *b"ESP        ", &esp)?;
                copy(&esp, &mut disk, partition, out)?;
            }
            "ROOT-A" => copy(inputs.root, &mut disk, partition, out)?,
            // A slot without a system, and a META without a word.
            _ => {}
        }
    }
    let problem = |problem: gpt::GptError| Error::malformed(out, problem.to_string());
    write_table(&mut disk, size, &partitions, inputs.verity).map_err(problem)?;
    disk.sync_all().on("write", out)
}

/// Copies a file to a partition's place, and leaves out what is empty.
fn copy(from: &Path, disk: &mut File, partition: &Partition, out: &Path) -> Result<(), Error> {
    let size = std::fs::metadata(from).on("look at", from)?.len();
    if size > partition.size {
        return Err(Error::malformed(PathBuf::from(from), format!("it has {size} bytes, and {} only {}", partition.label, partition.size)));
    }
    let mut source = File::open(from).on("read", from)?;
    copy_data(&mut source, disk, partition.start).on("write", out)
}

fn copy_data(source: &mut impl Read, target: &mut (impl Write + Seek), mut at: u64) -> io::Result<()> {
    let (mut buffer, empty) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match source.read(&mut buffer[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        if filled == 0 {
            return Ok(());
        }
        if buffer[..filled] != empty[..filled] {
            target.seek(SeekFrom::Start(at))?;
            target.write_all(&buffer[..filled])?;
        }
        at += filled as u64;
    }
}

/// An identifier that follows from the root hash and a name (RFC 9562, version 8).
fn identifier(verity: &verity::Parameters, name: &str) -> Uuid {
    let digest = Sha256::new().chain_update(verity.root_hash().to_string()).chain_update(name).finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

fn write_table(disk: &mut File, size: u64, partitions: &[Partition], verity: &verity::Parameters) -> Result<(), gpt::GptError> {
    let last = u32::try_from(size / SECTOR - 1).unwrap_or(u32::MAX);
    ProtectiveMBR::with_lb_size(last).overwrite_lba0(disk).map_err(|error| gpt::GptError::Io(io::Error::other(error)))?;
    let config = GptConfig::new().writable(true).logical_block_size(LogicalBlockSize::Lb512);
    let mut table = config.create_from_device(disk, Some(identifier(verity, "disk")))?;
    let mut entries = BTreeMap::new();
    for (number, partition) in (1..).zip(partitions) {
        let guid = |text: &str| Uuid::parse_str(text).map_err(|_| gpt::GptError::Overflow("partition UUID"));
        entries.insert(
            number,
            gpt::partition::Partition {
                part_type_guid: Type { guid: guid(partition.type_guid)?, os: OperatingSystem::None },
                part_guid: if partition.label == "ROOT-A" { guid(&verity.root_uuid())? } else { identifier(verity, partition.label) },
                first_lba: partition.start / SECTOR,
                last_lba: (partition.start + partition.size) / SECTOR - 1,
                flags: 0,
                name: partition.label.to_owned(),
            },
        );
    }
    table.update_partitions(entries)?;
    table.write().map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::io::BufRead;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_image_is_an_installed_disk_without_a_config_and_always_the_same() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        let blocks = 300;
        let mut root = vec![5; blocks * verity::BLOCK];
        let salt = verity::Digest([9; 32]);
        let tree = verity::build(&mut &root[..], blocks as u64, &salt).unwrap();
        root.extend(tree.bytes);
        let verity = verity::Parameters::new(tree.root_hash, salt, blocks as u64).unwrap();
        for (name, content) in [("loader", &[1; 5000][..]), ("uki", &[2; 3 << 20]), ("root", &root), ("keys", &[b'\n'; 4096])] {
            std::fs::write(at(name), content).unwrap();
        }
        let [loader, uki, root_file, keys] = ["loader", "uki", "root", "keys"].map(at);
        let build = |name: &str| {
            let dir = at(name);
            std::fs::create_dir(&dir).unwrap();
            let inputs = DiskInputs { loader: &loader, uki: &uki, root: &root_file, verity: &verity, keys: &keys, scratch: &dir };
            write(&inputs, &dir.join("raw")).unwrap();
            dir.join("raw")
        };
        let (first, second) = (build("a"), build("b"));
        // All but what is empty between them, which is gigabytes.
        for (start, count) in [(0, 16 * MIB), (1025 * MIB, 4 * MIB), (4097 * MIB, 2 * MIB)] {
            let part = |path: &Path| {
                let mut file = File::open(path).unwrap();
                file.seek(SeekFrom::Start(start)).unwrap();
                io::BufReader::with_capacity(1 << 20, file.take(count))
            };
            let (mut one, mut other) = (part(&first), part(&second));
            loop {
                let (a, b) = (one.fill_buf().unwrap(), other.fill_buf().unwrap());
                assert!(a == b, "in the part from {start}");
                let length = a.len();
                if length == 0 {
                    break;
                }
                one.consume(length);
                other.consume(length);
            }
        }
        let metadata = std::fs::metadata(&first).unwrap();
        assert!(metadata.len() > 4 << 30 && metadata.blocks() * 512 < 64 << 20, "{} bytes are kept", metadata.blocks() * 512);

        let table = GptConfig::new().open(&first).unwrap();
        let partitions: Vec<_> =
            table.partitions().values().map(|p| (p.name.as_str(), p.first_lba / 2048, p.last_lba / 2048 + 1)).collect();
        assert_eq!(partitions, [("ESP", 1, 1025), ("ROOT-A", 1025, 2561), ("ROOT-B", 2561, 4097), ("META", 4097, 4098)]);
        assert_eq!(table.partitions()[&2].part_guid.to_string(), verity.root_uuid());
        let mut file = File::open(&first).unwrap();
        file.seek(SeekFrom::Start(1025 * MIB)).unwrap();
        verity::check(&mut file, &verity).unwrap();

        // What the firmware and the loader look for.
        let mut file = File::open(&first).unwrap();
        file.seek(SeekFrom::Start(MIB)).unwrap();
        // All files lie at the beginning; the rest of the volume is empty.
        let mut esp = OpenOptions::new().create_new(true).read(true).write(true).open(at("esp")).unwrap();
        io::copy(&mut file.take(16 << 20), &mut esp).unwrap();
        esp.set_len(1 << 30).unwrap();
        esp.rewind().unwrap();
        let volume = fatfs::FileSystem::new(&esp, fatfs::FsOptions::new()).unwrap();
        assert_eq!(volume.fat_type(), fatfs::FatType::Fat32);
        let content = |path: &str| {
            let mut read = Vec::new();
            volume.root_dir().open_file(path).unwrap().read_to_end(&mut read).unwrap();
            read
        };
        assert_eq!(content("EFI/BOOT/BOOTX64.EFI"), [1; 5000]);
        assert_eq!(content("EFI/systemd/systemd-bootx64.efi"), [1; 5000]);
        assert_eq!(content("EFI/Linux/strake-a.efi"), [2; 3 << 20]);
        assert_eq!(content("loader/loader.conf"), loader::conf(Slot::A).as_bytes());
        assert_eq!(content("strake/config-keys.pem").len(), 4096);

        std::fs::write(at("root"), vec![0; 10]).unwrap();
        let other = verity::Parameters::new(verity::Digest([1; 32]), salt, 300).unwrap();
        assert_ne!(identifier(&verity, "disk"), identifier(&other, "disk"));
        assert_ne!(identifier(&verity, "disk"), identifier(&verity, "ESP"));
    }
}
