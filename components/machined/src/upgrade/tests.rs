//! A whole upgrade on a disk that is a file, from the first byte that is sent to what each next boot makes of it.

mod rollout;

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;

use node_ipc::init::{BootInfo, BootSource, Slot};
use sha2::Digest as _;
use slots::manifest::{Allow, Manifest};
use slots::record::{self, State, System};
use slots::sealed::{SealedKey, SealedVolume};

use super::layout::Layout;
use super::*;
use crate::install::Media;
use crate::machine::{Disks, Loaded, Machine, ObservedDisk, Release, SystemDisk, SystemPartition};

/// The system disk: one file for the whole disk with its table, and one for each partition.
struct FileDisk(PathBuf);

const SIZE: u64 = 10 << 30;

fn layout_of() -> Vec<machine_config::layout::Partition> {
    machine_config::layout::layout(machine_config::Role::Worker, SIZE).unwrap()
}

impl Disks for FileDisk {
    fn observe(&self) -> std::io::Result<Vec<ObservedDisk>> {
        Ok(Vec::new())
    }

    fn system_partition(&self, _label: &str) -> std::io::Result<Option<(PathBuf, u64)>> {
        Ok(None)
    }

    fn system_disk(&self) -> std::io::Result<Option<SystemDisk>> {
        let partitions = (1..).zip(layout_of()).map(|(number, partition)| SystemPartition {
            label: partition.label.to_owned(),
            number,
            node: self.0.join(partition.label),
            size: partition.size,
        });
        Ok(Some(SystemDisk { node: self.0.join("disk"), sector: 512, partitions: partitions.collect() }))
    }

    fn installations(&self) -> std::io::Result<Vec<crate::machine::Installed>> {
        Ok(Vec::new())
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    old: System,
    new: System,
    file: Vec<u8>,
}

fn system(version: &str, root: verity::Parameters) -> System {
    System { version: version.into(), kubernetes: "v1.36.2".into(), root }
}

/// What this system's own config may have.
fn known_config() -> slots::fields::Fields {
    let schema = include_str!("../../../../configs/machine-config.schema.json");
    slots::fields::Fields::of_schema(&serde_json::from_str(schema).unwrap())
}

/// A disk as an installation leaves it, and an upgrade file.
fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (old_root, new_root) = (crate::testing::root_image(300, 1).1, crate::testing::root_image(300, 2));
    let mut disk = OpenOptions::new().read(true).write(true).create_new(true).open(at("disk")).unwrap();
    disk.set_len(SIZE).unwrap();
    crate::install::write_table(&mut disk, SIZE, 512, &layout_of(), old_root.root_hash()).unwrap();
    for partition in layout_of() {
        File::create(at(partition.label)).unwrap().set_len(partition.size).unwrap();
    }
    fs::write(at("uki"), vec![3; 100_000]).unwrap();
    let media = Media { root: PathBuf::new(), verity: old_root, uki: at("uki"), loader: at("uki") };
    let mut esp = OpenOptions::new().read(true).write(true).open(at("ESP")).unwrap();
    let window = machine_config::layout::Partition { start: 0, ..layout_of()[0].clone() };
    crate::install::esp::write(&mut esp, &window, &media).unwrap();
    fs::create_dir_all(at("root/sys/firmware/efi/efivars")).unwrap();

    let uki = vec![4; 200_000];
    let new = system("0.2.0", new_root.1);
    let manifest = Manifest {
        format: slots::manifest::FORMAT,
        architecture: "x86_64".into(),
        system: new.clone(),
        kernel: "6.12".into(),
        uki_bytes: uki.len() as u64,
        uki_sha256: verity::Digest(sha2::Sha256::digest(&uki).into()),
        config: Some(known_config()),
        measured: None,
    };
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in [("manifest.json", serde_json::to_vec(&manifest).unwrap()), ("root.erofs", new_root.0), ("strake.efi", uki)] {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, &content[..]).unwrap();
    }
    Fixture { old: system("0.1.0", old_root), new, file: builder.into_inner().unwrap(), dir }
}

impl Fixture {
    /// The machine after a boot of this slot.
    fn boot(&self, slot: Slot, system: &System) -> Arc<Machine> {
        self.boot_with(&crate::testing::worker_text("{disk: {name: vda}}").0, slot, system)
    }

    /// The same with this config.
    fn boot_with(&self, text: &str, slot: Slot, system: &System) -> Arc<Machine> {
        // A boot leaves nothing there.
        let _ = fs::remove_file(self.dir.path().join("root/run/strake/upgrade-armed"));
        let config = machine_config::Config::parse("test", text).unwrap();
        let boot =
            BootInfo { source: BootSource::Disk, device: "/dev/vda2".into(), root: system.root, slot: Some(slot), trial_seconds: None };
        let release = Release { version: system.version.clone(), kubernetes: system.kubernetes.clone(), ..Release::default() };
        let disks = Box::new(FileDisk(self.dir.path().to_owned()));
        crate::testing::machine_on(&self.dir.path().join("root"), Loaded { text: text.to_owned(), config }, boot, release, disks)
    }

    async fn upgrade(&self, machine: &Arc<Machine>, options: Options, file: &[u8]) -> Result<(String, bool), UpgradeError> {
        let (pieces, received) = tokio::sync::mpsc::channel(1000);
        for piece in file.chunks(10_000) {
            pieces.send(piece.to_vec()).await.unwrap();
        }
        drop(pieces);
        let (progress, _told) = tokio::sync::mpsc::channel(1000);
        begin(machine, options, received, progress).await
    }

    /// The table that a dry run shows.
    async fn table(&self, machine: &Arc<Machine>) -> Vec<slots::checks::Check> {
        let (pieces, received) = tokio::sync::mpsc::channel(1000);
        pieces.send(self.file[..100_000].to_vec()).await.unwrap();
        drop(pieces);
        let (progress, mut told) = tokio::sync::mpsc::channel(10);
        let _ = begin(machine, Options { dry_run: true, ..Options::default() }, received, progress).await;
        match told.recv().await {
            Some(Told::Checks(table)) => table,
            other => panic!("{other:?}"),
        }
    }

    fn state(&self, machine: &Machine) -> (State, String) {
        let upgrade = record::upgrade(&Layout::of(machine).unwrap().read().unwrap()).unwrap();
        (upgrade.state, upgrade.reason)
    }

    fn slot_holds(&self, label: &str, root: &verity::Parameters) -> bool {
        let mut file = File::open(self.dir.path().join(label)).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        verity::check(&mut file, root).is_ok()
    }

    fn partition_uuid(&self, number: u32) -> String {
        gpt::GptConfig::new().open(self.dir.path().join("disk")).unwrap().partitions()[&number].part_guid.to_string()
    }

    fn one_shot(&self, machine: &Machine) -> Option<String> {
        Layout::of(machine).unwrap().variables.read(slots::loader::ONE_SHOT).unwrap()
    }
}

/// What a person asks for on a machine whose volumes the TPM has nothing to do with.
fn back_by_hand(machine: &Machine) -> Result<String, UpgradeError> {
    roll_back(machine, "admin", Allow::default(), None)
}

fn default_of(machine: &Machine) -> Option<Slot> {
    Layout::of(machine).unwrap().boot.default_slot().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_system_is_written_tried_once_and_either_way_ends_in_one_whole_state() {
    let fixture = fixture();
    let old = fixture.boot(Slot::A, &fixture.old);
    assert_eq!(at_boot(&old), None);

    let dry = Options { dry_run: true, ..Options::default() };
    let (would, restart) = fixture.upgrade(&old, dry, &fixture.file).await.unwrap();
    assert_eq!((would.as_str(), restart), ("would write 0.2.0 to ROOT-B and try it", false));
    assert!(record::upgrade(&Layout::of(&old).unwrap().read().unwrap()).is_none());

    let (_, restart) = fixture.upgrade(&old, Options::default(), &fixture.file).await.unwrap();
    assert!(restart && fixture.slot_holds("ROOT-B", &fixture.new.root));
    assert_eq!(fixture.partition_uuid(3), fixture.new.root.root_uuid());
    assert_eq!(fixture.partition_uuid(2), fixture.old.root.root_uuid());
    assert_eq!((fixture.state(&old).0, fixture.one_shot(&old).as_deref()), (State::Trying, Some("strake-b.efi")));
    assert_eq!(default_of(&old), Some(Slot::A), "until it is good, the old one is what is started");
    assert!(matches!(fixture.upgrade(&old, Options::default(), &fixture.file).await, Err(UpgradeError::UnderWay(_))));

    // The old system runs again: power was lost, or the new one never said a word.
    let back = fixture.boot(Slot::A, &fixture.old);
    let told = at_boot(&back).unwrap();
    assert!(told.contains("0.2.0 in ROOT-B failed, 0.1.0 runs: the new system said nothing"), "{told}");
    assert_eq!(fixture.state(&back).0, State::Failed);
    assert_eq!((default_of(&back), fixture.one_shot(&back)), (Some(Slot::A), None));

    // Once more, and this time somebody takes it back before the restart. A machined that is started again meanwhile does not take it for the next boot.
    fixture.upgrade(&back, Options { stage: true, ..Options::default() }, &fixture.file).await.unwrap();
    assert_eq!((at_boot(&back), fixture.state(&back).0), (None, State::Trying));
    assert_eq!(fixture.one_shot(&back).as_deref(), Some("strake-b.efi"));
    let outcome = back_by_hand(&back).unwrap();
    assert!(outcome.contains("ROOT-A is started"), "{outcome}");
    assert_eq!((fixture.state(&back), fixture.one_shot(&back)), ((State::RolledBack, "asked for by admin".to_owned()), None));
    assert!(matches!(back_by_hand(&back), Err(UpgradeError::NoOther("ROOT-B"))), "it never proved good");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_system_is_started_always_and_the_old_one_can_be_gone_back_to() {
    let fixture = fixture();
    // It has just been started, and nothing is noted of it yet.
    let old = fixture.boot(Slot::A, &fixture.old);
    fixture.upgrade(&old, Options::default(), &fixture.file).await.unwrap();

    let new = fixture.boot(Slot::B, &fixture.new);
    assert_eq!((at_boot(&new), fixture.state(&new).0), (None, State::Trying));
    let layout = Layout::of(&new).unwrap();
    let mut upgrade = record::upgrade(&layout.read().unwrap()).unwrap();
    judge::commit(&new, &layout, &mut upgrade).await.unwrap();
    assert_eq!((fixture.state(&new).0, default_of(&new), fixture.one_shot(&new)), (State::Good, Some(Slot::B), None));
    assert_eq!(at_boot(&fixture.boot(Slot::B, &fixture.new)), None);

    let outcome = back_by_hand(&new).unwrap();
    assert!(outcome.contains("ROOT-A with 0.1.0"), "{outcome}");
    let back = fixture.boot(Slot::A, &fixture.old);
    assert_eq!((at_boot(&back), fixture.state(&back).0, default_of(&back)), (None, State::RolledBack, Some(Slot::A)));
}

/// What META, the loader and the firmware say in the end, but for the words about how it came to that.
fn end_state(machine: &Machine) -> (Option<Slot>, Option<String>, [Option<System>; 2], Slot, bool) {
    let layout = Layout::of(machine).unwrap();
    let meta = layout.read().unwrap();
    let upgrade = record::upgrade(&meta).unwrap();
    let one_shot = layout.variables.read(slots::loader::ONE_SHOT).unwrap();
    let good = [Slot::A, Slot::B].map(|slot| record::good(&meta, slot));
    (layout.boot.default_slot().unwrap(), one_shot, good, upgrade.slot, upgrade.cordoned)
}

#[tokio::test(flavor = "multi_thread")]
async fn going_back_by_hand_and_by_itself_end_in_the_same_state() {
    let mut ends = Vec::new();
    for by_hand in [true, false] {
        let fixture = fixture();
        let old = fixture.boot(Slot::A, &fixture.old);
        Layout::of(&old).unwrap().change(|meta| record::set_good(meta, Slot::A, Some(&fixture.old))).unwrap();
        fixture.upgrade(&old, Options::default(), &fixture.file).await.unwrap();
        let trial = fixture.boot(Slot::B, &fixture.new);
        // The loader removes it before it starts the entry.
        Layout::of(&trial).unwrap().variables.remove(slots::loader::ONE_SHOT).unwrap();
        at_boot(&trial);
        if by_hand {
            back_by_hand(&trial).unwrap();
        }
        let back = fixture.boot(Slot::A, &fixture.old);
        at_boot(&back);
        ends.push(end_state(&back));
    }
    assert_eq!(ends[0], ends[1]);
    assert_eq!((ends[0].0, &ends[0].1), (Some(Slot::A), &None));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_or_cut_off_never_becomes_a_slot_that_can_be_started() {
    let fixture = fixture();
    let old = fixture.boot(Slot::A, &fixture.old);
    let mut damaged = fixture.file.clone();
    damaged[500_000] ^= 1;
    let mut other_kernel = fixture.file.clone();
    let last = other_kernel.iter().rposition(|byte| *byte == 4).unwrap();
    other_kernel[last] ^= 1;
    for (file, expected) in [
        (&damaged[..], "ROOT-B on"),
        (&other_kernel[..], "it should be"),
        (&fixture.file[..600_000], "the upgrade file"),
        (&b""[..], "nothing"),
    ] {
        let error = crate::api::chain(&fixture.upgrade(&old, Options::default(), file).await.unwrap_err());
        assert!(error.contains(expected), "{error}: {expected}");
        let layout = Layout::of(&old).unwrap();
        assert!(!layout.boot.has(Slot::B).unwrap());
        assert_eq!((default_of(&old), fixture.one_shot(&old)), (Some(Slot::A), None));
    }
    assert_eq!(fixture.state(&old).0, State::Failed);

    let table = fixture.table(&old).await;
    let names: Vec<_> = table.iter().map(|check| check.name).collect();
    assert_eq!(names[..7], ["signature", "format", "architecture", "version", "kubernetes", "config", "room"]);
    assert_eq!(slots::checks::refusal(&table), None, "the config in force is one that the new system knows: {table:?}");
    let again = fixture.boot(Slot::A, &fixture.new);
    let same = fixture.upgrade(&again, Options::default(), &fixture.file).await.unwrap_err();
    assert!(matches!(same, UpgradeError::Same(_)), "{same}");

    let older = fixture.boot(Slot::A, &System { version: "0.3.0".into(), ..fixture.old.clone() });
    let refused = fixture.upgrade(&older, Options::default(), &fixture.file).await.unwrap_err();
    assert!(refused.is_refusal() && refused.to_string().contains("--allow-downgrade"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_leaves_volumes_locked_is_gone_back_to_only_when_that_is_meant() {
    let fixture = fixture();
    let old = fixture.boot(Slot::A, &fixture.old);
    Layout::of(&old).unwrap().change(|meta| record::set_good(meta, Slot::A, Some(&fixture.old))).unwrap();
    fixture.upgrade(&old, Options::default(), &fixture.file).await.unwrap();
    let new = fixture.boot(Slot::B, &fixture.new);
    let layout = Layout::of(&new).unwrap();
    let mut upgrade = record::upgrade(&layout.read().unwrap()).unwrap();
    let keys = vec![SealedKey { signer: verity::Digest([1; 32]), lowest: 2, highest: 65 }];
    let sealed = Ok(vec![SealedVolume { label: "STATE".into(), keys }]);
    judge::commit(&new, &layout, &mut upgrade).await.unwrap();

    let before = layout.read().unwrap();
    for sealed in [&sealed, &Err("the TPM does not answer".to_owned())] {
        let refused = roll_back(&new, "admin", Allow::default(), Some(sealed)).unwrap_err();
        let told = refused.to_string();
        assert!(refused.is_refusal() && told.starts_with("ROOT-A with 0.1.0: ") && told.contains("--allow-locked-volumes"), "{told}");
        assert!(layout.read().unwrap() == before && default_of(&new) == Some(Slot::B), "nothing is done before it is meant");
    }
    let meant = Allow { locked_volumes: true, ..Allow::default() };
    let outcome = roll_back(&new, "admin", meant, Some(&sealed)).unwrap();
    assert!(outcome.contains("ROOT-A with 0.1.0 is started from now on; STATE would stay locked"), "{outcome}");
    assert_eq!(default_of(&new), Some(Slot::A));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trial_is_ended_whatever_opens_the_volumes() {
    let fixture = fixture();
    let old = fixture.boot(Slot::A, &fixture.old);
    fixture.upgrade(&old, Options::default(), &fixture.file).await.unwrap();
    let trial = fixture.boot(Slot::B, &fixture.new);
    let outcome = roll_back(&trial, "admin", Allow::default(), Some(&Err("the TPM does not answer".to_owned()))).unwrap();
    assert!(outcome.contains("the trial of 0.2.0 ends"), "{outcome}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trial_that_was_cut_off_is_begun_once_more_and_not_a_third_time() {
    let fixture = fixture();
    let old = fixture.boot(Slot::A, &fixture.old);
    Layout::of(&old).unwrap().change(|meta| record::set_good(meta, Slot::A, Some(&fixture.old))).unwrap();
    fixture.upgrade(&old, Options::default(), &fixture.file).await.unwrap();
    for trial in 1..=2 {
        let new = fixture.boot(Slot::B, &fixture.new);
        let layout = Layout::of(&new).unwrap();
        // The loader removes it before it starts the entry; the new system says what it waits for, and the power fails.
        layout.variables.remove(slots::loader::ONE_SHOT).unwrap();
        layout.change(|meta| record::set_upgrade(meta, &Upgrade { reason: "not yet".into(), ..record::upgrade(meta).unwrap() })).unwrap();

        let back = fixture.boot(Slot::A, &fixture.old);
        let told = at_boot(&back);
        assert_eq!(default_of(&back), Some(Slot::A));
        match trial {
            1 => {
                assert_eq!((told, fixture.state(&back).0), (None, State::Trying));
                assert_eq!(fixture.one_shot(&back).as_deref(), Some("strake-b.efi"));
                assert_eq!(back.store.get(KIND, Some("last"))[0].spec["secondTrial"], true);
            }
            _ => {
                let told = told.unwrap();
                assert!(told.contains("the last that it said: not yet (its second trial: the first one was cut off)"), "{told}");
                assert_eq!((fixture.state(&back).0, fixture.one_shot(&back)), (State::Failed, None));
            }
        }
    }
}

/// Nothing was begun: the idle slot cannot be started, nothing is tried, and META knows of no upgrade.
fn is_untouched(fixture: &Fixture, machine: &Machine) -> bool {
    let layout = Layout::of(machine).unwrap();
    let known = record::upgrade(&layout.read().unwrap());
    known.is_none() && !layout.boot.has(Slot::B).unwrap() && fixture.one_shot(machine).is_none()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_whose_etcd_cannot_be_saved_is_left_as_it_is() {
    let fixture = fixture();
    let text = crate::kubernetes::testing::control_plane_config().render();
    let machine = fixture.boot_with(&text, Slot::A, &fixture.old);
    machine.state.set_cluster_id("test-cluster").unwrap();
    let refused = fixture.upgrade(&machine, Options::default(), &fixture.file).await.unwrap_err();
    assert!(refused.is_refusal() && refused.to_string().contains("--allow-quorum-loss"), "{refused}");
    assert!(is_untouched(&fixture, &machine));
    // Meant, and etcd does not answer: without a snapshot there is no upgrade.
    let allow = Allow { quorum_loss: true, ..Allow::default() };
    let error = fixture.upgrade(&machine, Options { allow, ..Options::default() }, &fixture.file).await.unwrap_err();
    assert!(matches!(error, UpgradeError::Snapshot(_)), "{error}");
    assert!(is_untouched(&fixture, &machine));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_with_keys_tells_in_the_table_that_a_file_is_not_theirs() {
    let fixture = fixture();
    let machine = fixture.boot(Slot::A, &fixture.old);
    let keys = machine.paths.upgrade_keys();
    fs::create_dir_all(keys.parent().unwrap()).unwrap();
    fs::write(&keys, pki::SigningKey::generate().unwrap().public_pem()).unwrap();
    let [check] = fixture.table(&machine).await.try_into().unwrap();
    assert_eq!((check.name, check.verdict), ("signature", slots::checks::Verdict::Refused));
    let refused = fixture.upgrade(&machine, Options::default(), &fixture.file).await.unwrap_err();
    assert!(matches!(refused, UpgradeError::Unsigned(_)), "{refused}");
    assert!(is_untouched(&fixture, &machine));
}
