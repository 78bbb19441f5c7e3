//! The checker on a small disk, whole and damaged in one way at a time.

use std::io::Cursor;
use std::process::Command;

use fatfs::{FileSystem, FsOptions};
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition_types::{OperatingSystem, Type};
use sha2::{Digest as _, Sha256};
use slots::record::{self, State as Upgrading, Upgrade};
use uuid::Uuid;

use super::firmware::tests::store;
use super::*;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 32 * MIB;
/// Label, first MiB, MiB, type.
const PARTITIONS: [(&str, u64, u64, &str); 6] = [
    ("ESP", 1, 6, "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"),
    ("ROOT-A", 7, 2, "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"),
    ("ROOT-B", 9, 2, "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"),
    ("META", 11, 1, "0fc63daf-8483-4772-8e79-3d69d8477de4"),
    ("STATE", 12, 16, "0fc63daf-8483-4772-8e79-3d69d8477de4"),
    ("DATA", 28, 2, "0fc63daf-8483-4772-8e79-3d69d8477de4"),
];
const CONFIG: &str = "kind: MachineConfig\n";
const ONCE_B: [(&str, u8, &str); 1] = [("LoaderEntryOneShot", 0x3f, "strake-b.efi")];

struct Bytes(Vec<u8>);

impl Disk for Bytes {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let content = self.0.get(offset as usize..offset as usize + buffer.len());
        buffer.copy_from_slice(content.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

fn start(label: &str) -> usize {
    PARTITIONS.iter().find(|(name, ..)| *name == label).map(|(_, start, ..)| (start * MIB) as usize).unwrap()
}

struct Fixture {
    dir: tempfile::TempDir,
    systems: Vec<System>,
    disk: Vec<u8>,
}

fn digest(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

/// A root, and what it is verified against.
fn root(fill: u8) -> (Vec<u8>, Parameters) {
    let mut image = vec![fill; 200 * BLOCK];
    let salt = Digest([fill; 32]);
    let tree = verity::build(&mut &image[..], 200, &salt).unwrap();
    image.extend(&tree.bytes);
    (image, Parameters::new(tree.root_hash, salt, 200).unwrap())
}

fn uki(version: &str) -> Vec<u8> {
    version.as_bytes().repeat(20_000)
}

/// A disk with 1.0 in slot A, which is the default, and 2.0 in slot B; both proved good, and 1.0 has a config.
fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = vec![0; SIZE as usize];
    let mut systems = Vec::new();
    for (version, fill, label) in [("1.0", 1, "ROOT-A"), ("2.0", 2, "ROOT-B")] {
        let (image, parameters) = root(fill);
        disk[start(label)..start(label) + image.len()].copy_from_slice(&image);
        systems.push(System { version: version.to_owned(), root: parameters, uki: digest(&uki(version)), takes_second_table: false });
    }

    let esp = start("ESP")..start("ROOT-A");
    let mut boot = Cursor::new(vec![0; esp.len()]);
    fatfs::format_volume(&mut boot, fatfs::FormatVolumeOptions::new()).unwrap();
    {
        let filesystem = FileSystem::new(&mut boot, FsOptions::new()).unwrap();
        let root = filesystem.root_dir();
        for directory in ["EFI", "EFI/BOOT", "EFI/Linux", "loader"] {
            root.create_dir(directory).unwrap();
        }
        let conf = slots::loader::conf(Slot::A).into_bytes();
        for (name, content) in [
            ("EFI/BOOT/BOOTX64.EFI", b"a loader".to_vec()),
            ("EFI/Linux/strake-a.efi", uki("1.0")),
            ("EFI/Linux/strake-b.efi", uki("2.0")),
            ("loader/loader.conf", conf),
        ] {
            io::Write::write_all(&mut root.create_file(name).unwrap(), &content).unwrap();
        }
    }
    disk[esp].copy_from_slice(boot.get_ref());

    let content = dir.path().join("content");
    std::fs::create_dir(&content).unwrap();
    std::fs::write(content.join("config.yaml"), CONFIG).unwrap();
    let file = dir.path().join("ext4");
    let path = std::env::var("PATH").unwrap() + ":/usr/sbin:/sbin";
    let made = Command::new("mkfs.ext4").env("PATH", path).args(["-q", "-b", "4096", "-d"]).arg(&content).arg(&file).arg("16384k").status();
    assert!(made.unwrap().success(), "mkfs.ext4 of the package e2fsprogs");
    let state = std::fs::read(&file).unwrap();
    disk[start("STATE")..start("STATE") + state.len()].copy_from_slice(&state);
    disk[start("DATA") + 1080..start("DATA") + 1082].copy_from_slice(&[0x53, 0xef]);

    let mut fixture = Fixture { dir, disk, systems };
    let (one, two) = (fixture.system(0), fixture.system(1));
    fixture.meta(|meta| {
        record::set_good(meta, Slot::A, Some(&one));
        record::set_good(meta, Slot::B, Some(&two));
    });
    fixture.table(false);
    fixture
}

impl Fixture {
    fn system(&self, number: usize) -> record::System {
        let System { version, root, .. } = &self.systems[number];
        record::System { version: version.clone(), kubernetes: "v1.36.2".into(), root: *root }
    }

    fn table(&mut self, b_elsewhere: bool) {
        let mut disk = Cursor::new(std::mem::take(&mut self.disk));
        ProtectiveMBR::with_lb_size((SIZE / 512 - 1) as u32).overwrite_lba0(&mut disk).unwrap();
        let config = gpt::GptConfig::new().writable(true).logical_block_size(LogicalBlockSize::Lb512);
        let mut table = config.create_from_device(&mut disk, None).unwrap();
        let mut entries = std::collections::BTreeMap::new();
        for (number, (label, start, size, kind)) in (1..).zip(PARTITIONS) {
            let uuid = match label {
                "ROOT-A" => self.systems[0].root.root_uuid(),
                "ROOT-B" if !b_elsewhere => self.systems[1].root.root_uuid(),
                _ => Uuid::from_u128(number.into()).to_string(),
            };
            let partition = gpt::partition::Partition {
                part_type_guid: Type { guid: Uuid::parse_str(kind).unwrap(), os: OperatingSystem::None },
                part_guid: Uuid::parse_str(&uuid).unwrap(),
                first_lba: start * MIB / 512,
                last_lba: (start + size) * MIB / 512 - 1,
                flags: 0,
                name: label.to_owned(),
            };
            entries.insert(number, partition);
        }
        table.update_partitions(entries).unwrap();
        table.write().unwrap();
        self.disk = disk.into_inner();
    }

    fn meta(&mut self, change: impl FnOnce(&mut Meta)) {
        let place = start("META")..start("STATE");
        let mut device = Cursor::new(&mut self.disk[place]);
        let mut meta = meta::read(&mut device).unwrap();
        change(&mut meta);
        meta::write(&mut device, &meta).unwrap();
    }

    fn upgrade(&mut self, state: Upgrading) {
        let upgrade = Upgrade {
            slot: Slot::B,
            state,
            from: self.system(0),
            to: self.system(1),
            reason: String::new(),
            baseline: slots::gate::Health::new(),
            deadline_seconds: 600,
            cordoned: false,
            timed_out: false,
            again: false,
            begun_unix: 0,
            ended_unix: 0,
        };
        self.meta(|meta| record::set_upgrade(meta, &upgrade));
    }

    /// Changes files of the boot partition.
    fn boot(&mut self, change: impl FnOnce(&fatfs::Dir<'_, Cursor<&mut [u8]>>)) {
        let esp = start("ESP")..start("ROOT-A");
        let filesystem = FileSystem::new(Cursor::new(&mut self.disk[esp]), FsOptions::new()).unwrap();
        change(&filesystem.root_dir());
    }

    fn predict(&self, variables: &[(&str, u8, &str)]) -> Outcome {
        let checker = Checker::new(vec![digest(b"a loader")], self.systems.clone(), self.dir.path().to_owned());
        checker.predict(&Bytes(self.disk.clone()), &store(variables)).unwrap()
    }

    fn text(&self, variables: &[(&str, u8, &str)]) -> String {
        self.predict(variables).to_string()
    }
}

fn find(disk: &[u8], range: std::ops::Range<usize>, text: &[u8]) -> usize {
    range.start + disk[range].windows(text.len()).position(|window| window == text).unwrap()
}

#[test]
fn a_whole_disk_boots_what_the_loader_is_told_with_its_config() {
    let fixture = fixture();
    let config = format!("config {:.8}", digest(CONFIG.as_bytes()).to_string());
    for (variables, expected) in [
        (&[][..], "boots ROOT-A 1.0, "),
        (&ONCE_B, "boots ROOT-B 2.0, "),
        (&[("LoaderEntryDefault", 0x3f, "strake-b.efi")], "boots ROOT-B 2.0, "),
        (&[("LoaderEntryOneShot", 0x7f, "strake-b.efi")], "boots ROOT-A 1.0, "),
        (&[("LoaderEntryOneShot", 0x3f, "other.efi")], "boots ROOT-A 1.0, "),
    ] {
        assert_eq!(fixture.text(variables), format!("{expected}{config}"), "{variables:?}");
    }
}

#[test]
fn a_trial_is_a_trial_and_leads_back() {
    let mut fixture = fixture();
    fixture.upgrade(Upgrading::Trying);
    let text = fixture.text(&ONCE_B);
    assert!(text.starts_with("boots ROOT-B 2.0 on trial, config") && text.contains("if that fails: boots ROOT-A 1.0, config"), "{text}");
    assert!(fixture.text(&[]).starts_with("boots ROOT-A 1.0, config"));
    fixture.upgrade(Upgrading::Good);
    assert!(fixture.text(&ONCE_B).starts_with("boots ROOT-B 2.0, config"));
}

#[test]
fn a_trial_that_was_cut_off_is_begun_once_more() {
    let mut fixture = fixture();
    fixture.upgrade(Upgrading::Trying);
    fixture.meta(|meta| {
        let spoke = Upgrade { reason: "not as healthy as before: kubelet".into(), ..record::upgrade(meta).unwrap() };
        record::set_upgrade(meta, &spoke);
    });
    let text = fixture.text(&[]);
    assert!(text.starts_with("boots ROOT-B 2.0 on trial, config") && text.contains("if that fails: boots ROOT-A 1.0, config"), "{text}");
    for change in [|upgrade: &mut Upgrade| upgrade.timed_out = true, |upgrade: &mut Upgrade| upgrade.again = true] {
        fixture.meta(|meta| {
            let mut ended = record::upgrade(meta).unwrap();
            change(&mut ended);
            record::set_upgrade(meta, &ended);
        });
        assert!(fixture.text(&[]).starts_with("boots ROOT-A 1.0, config"));
    }
}

#[test]
fn a_damaged_newest_meta_is_the_one_before() {
    let mut fixture = fixture();
    fixture.upgrade(Upgrading::Good);
    fixture.upgrade(Upgrading::Trying);
    // The copies take turns: the third write went to the first.
    let newest = start("META");
    fixture.disk[newest + 60] ^= 1;
    assert!(fixture.text(&ONCE_B).starts_with("boots ROOT-B 2.0, config"), "no trial any more");
    fixture.disk[newest + (512 << 10) + 60] ^= 1;
    fixture.disk[start("ROOT-B") + 5000] ^= 1;
    assert_eq!(fixture.text(&ONCE_B), "never boots (ROOT-B is damaged)", "nobody knows of another good system");
}

#[test]
fn a_damaged_root_leads_to_the_other_good_one() {
    for at in [5000, 200 * BLOCK + 7] {
        let mut fixture = fixture();
        fixture.disk[start("ROOT-B") + at] ^= 1;
        assert!(fixture.text(&ONCE_B).starts_with("boots ROOT-A 1.0, config"), "{at}");
        fixture.disk[start("ROOT-A") + at] ^= 1;
        assert!(fixture.text(&[]).starts_with("never boots"), "{at}: {}", fixture.text(&[]));
    }
}

#[test]
fn a_torn_boot_partition_is_noticed() {
    let mut fixture = fixture();
    let image = find(&fixture.disk, start("ESP")..start("ROOT-A"), &uki("1.0")[..600]);
    let whole = fixture.disk.clone();
    fixture.disk[image + 512..image + 1024].fill(0);
    assert_eq!(fixture.text(&[]), "never boots (the kernel image strake-a.efi is damaged)");
    assert!(fixture.text(&ONCE_B).starts_with("boots ROOT-B"), "the other image is not concerned");

    fixture.disk = whole.clone();
    fixture.boot(|root| root.remove("EFI/Linux/strake-a.efi").unwrap());
    assert_eq!(fixture.text(&[]), "never boots (the loader finds no entry that it is to start)");

    fixture.disk = whole.clone();
    fixture.boot(|root| io::Write::write_all(&mut root.open_file("loader/loader.conf").unwrap(), b"defau").unwrap());
    assert!(fixture.text(&[]).starts_with("boots ROOT-A"), "the same bytes");
    fixture.boot(|root| root.open_file("loader/loader.conf").unwrap().truncate().unwrap());
    assert!(fixture.text(&[]).starts_with("never boots"));

    fixture.disk = whole.clone();
    let loader = find(&fixture.disk, start("ESP")..start("ROOT-A"), b"a loader");
    fixture.disk[loader] = b'A';
    assert_eq!(fixture.text(&[]), "not installed (no boot loader)");
    fixture.disk = whole;
    fixture.disk[start("ESP")..start("ESP") + 512].fill(0);
    assert!(fixture.text(&[]).starts_with("not installed (the boot partition: "));
}

#[test]
fn either_copy_of_the_table_is_enough_when_the_kernel_takes_the_second() {
    let mut fixture = fixture();
    let (whole, last) = (fixture.disk.clone(), (SIZE - 512) as usize);
    // The header, the entries, the second header, the protective MBR.
    for (damage, plain, told) in [
        (512 + 20, "never boots (the kernel finds no partitions)", "boots ROOT-A"),
        (1024 + 60, "never boots (the kernel finds no partitions)", "boots ROOT-A"),
        (last + 20, "boots ROOT-A", "boots ROOT-A"),
        (450, "not installed (no partition table)", "not installed (no partition table)"),
    ] {
        fixture.disk.clone_from(&whole);
        fixture.disk[damage] ^= 1;
        for (takes, expected) in [(false, plain), (true, told)] {
            fixture.systems.iter_mut().for_each(|system| system.takes_second_table = takes);
            assert!(fixture.text(&[]).starts_with(expected), "{damage} {takes}: {}", fixture.text(&[]));
        }
    }
    fixture.disk.clone_from(&whole);
    fixture.disk[512 + 20] ^= 1;
    fixture.disk[last + 20] ^= 1;
    assert_eq!(fixture.text(&[]), "not installed (no partition table)");
    fixture.disk = whole;
    fixture.table(true);
    assert!(fixture.text(&ONCE_B).starts_with("never boots (no partition has the root"));
}

#[test]
fn a_state_that_does_not_open_and_a_reset_are_told_apart() {
    let mut fixture = fixture();
    let file = fixture.dir.path().join("ext4");
    let debugfs = |command: &str| {
        let path = std::env::var("PATH").unwrap() + ":/usr/sbin:/sbin";
        assert!(Command::new("debugfs").env("PATH", path).args(["-w", "-R", command]).arg(&file).output().unwrap().status.success());
        std::fs::read(&file).unwrap()
    };
    let put = |fixture: &mut Fixture, state: &[u8]| fixture.disk[start("STATE")..start("STATE") + state.len()].copy_from_slice(state);
    let asked = debugfs("write /dev/null reset-requested");
    put(&mut fixture, &asked);
    assert!(fixture.text(&[]).ends_with("no config"), "{}", fixture.text(&[]));
    // A reset that was cut off says so in META.
    let mut begun = Fixture { dir: tempfile::tempdir().unwrap(), systems: fixture.systems.clone(), disk: fixture.disk.clone() };
    begun.meta(|meta| meta.set(record::RESETTING, Some("1".to_owned())));
    begun.disk[start("STATE")..start("DATA")].fill(0);
    assert!(begun.text(&[]).ends_with("no config"), "{}", begun.text(&[]));
    let removed = debugfs("rm config.yaml");
    put(&mut fixture, &removed);
    assert!(fixture.text(&[]).ends_with("no config"));
    let half = [&[0; 65536][..], &removed[65536..]].concat();
    put(&mut fixture, &half);
    assert!(fixture.text(&[]).ends_with("STATE unusable: no file system"), "{}", fixture.text(&[]));
}

#[test]
fn a_machine_with_a_config_needs_its_other_file_systems() {
    let mut fixture = fixture();
    let data = start("DATA");
    fixture.disk[data..data + 4096].fill(0);
    assert_eq!(fixture.text(&[]), "never boots (DATA holds no file system)");
}
