//! Maintenance mode: pairing and installation.

use std::io::{Seek, SeekFrom, Write};
use std::time::Duration;

use machine_api::v1alpha1::RebootRequest;
use machined::machine::ObservedDisk;
use strakectl::client::Trust;
use tonic::Code;

use crate::world::{GIB, World, audited, first_bytes, last_chars};

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_mode_needs_the_string_on_the_console() {
    let world = World::new().await;
    let (served, gate) = world.maintenance(Vec::new()).await;
    let pairing = gate.shown().borrow().clone();
    let shown = pairing.to_string();
    world.strakectl(&["version", "-n", &served.address, "--pairing", &shown]).await.unwrap();

    // The fingerprint of another machine: the code never leaves the client.
    let other = format!("0000{}", &shown[4..]);
    let error = world.strakectl(&["version", "-n", &served.address, "--pairing", &other]).await.unwrap_err();
    assert!(format!("{error:#}").contains("belongs to another machine"), "{error:#}");

    // The right machine and a wrong code: five tries, then a new one.
    let wrong = last_chars(&pairing, if shown.ends_with('0') { "1" } else { "0" });
    for attempt in 1..=5 {
        let error = world.strakectl(&["version", "-n", &served.address, "--pairing", &wrong]).await.unwrap_err();
        let expected = if attempt < 5 { "tries until it changes" } else { "shows a new one" };
        assert!(format!("{error:#}").contains(expected), "{attempt}: {error:#}");
    }
    audited(&["refused", "who=pairing from 127.0.0.1", "MachineService/Version", "the console shows a new one now"]).await;
    assert!(world.strakectl(&["version", "-n", &served.address, "--pairing", &shown]).await.is_err());
    let now = gate.shown().borrow().to_string();
    world.strakectl(&["version", "-n", &served.address, "--pairing", &now]).await.unwrap();

    // What maintenance mode does not serve, it does not serve to anyone.
    let machine = served.connect(&Trust::Pairing(now.parse().unwrap())).await.unwrap();
    let status = machine.machine().reboot(RebootRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(!world.went_down());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_installed_over_the_api_and_reboots() {
    let world = World::new().await;
    world.put_media();
    let disk = world.disk("vda", 16 * GIB);
    let node = disk.node.clone();
    let (served, gate) = world.maintenance(vec![disk, world.disk("small", GIB)]).await;
    let shown = gate.shown().borrow().to_string();
    let (config, hostname) = (world.file("controlplane.yaml"), world.file("hostname.yaml"));
    let apply = ["apply-config", "-n", &served.address, "--pairing", &shown, "-f", &config, "-f", &hostname];
    let dry_run: Vec<&str> = apply.iter().copied().chain(["--dry-run"]).collect();

    world.strakectl(&dry_run).await.unwrap();
    assert_eq!(first_bytes(&node), [0; 1024], "a dry run writes nothing");
    world.strakectl(&apply).await.unwrap();
    let table = gpt::GptConfig::new().open(&node).unwrap();
    let labels: Vec<_> = table.partitions().values().map(|partition| partition.name.as_str()).collect();
    assert_eq!(labels, ["ESP", "ROOT-A", "ROOT-B", "META", "STATE", "ETCD", "DATA"]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(world.went_down(), "the machine reboots from its disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_cannot_be_installed_says_why_and_writes_nothing() {
    let world = World::new().await;
    world.put_media();
    let (config, hostname) = (world.file("controlplane.yaml"), world.file("hostname.yaml"));
    let refusal = async |disks: Vec<ObservedDisk>| {
        let nodes: Vec<_> = disks.iter().map(|disk| disk.node.clone()).collect();
        let before: Vec<_> = nodes.iter().map(|node| first_bytes(node)).collect();
        let (served, gate) = world.maintenance(disks).await;
        let shown = gate.shown().borrow().to_string();
        let apply = ["apply-config", "-n", &served.address, "--pairing", &shown, "-f", &config, "-f", &hostname];
        let error = world.strakectl(&apply).await.unwrap_err();
        assert!(nodes.iter().map(|node| first_bytes(node)).eq(before), "{error:#}");
        assert!(!world.went_down(), "{error:#}");
        format!("{error:#}")
    };
    let holding = |name: &str, place: u64, mark: &[u8]| {
        let disk = world.disk(name, 16 * GIB);
        let mut file = std::fs::OpenOptions::new().write(true).open(&disk.node).unwrap();
        file.seek(SeekFrom::Start(place)).unwrap();
        file.write_all(mark).unwrap();
        disk
    };
    let raid = holding("raid", 16 * GIB - 8192, &[0xfc, 0x4e, 0x2b, 0xa9]);
    let lvm = holding("lvm", 512, b"LABELONE");
    for (disks, expected) in [
        (Vec::new(), "install.disk matches no disk: this machine has none"),
        (vec![world.disk("usb", GIB)], "install.disk matches no disk (usb: its size is 1073741824 bytes"),
        (vec![world.disk("vda", 16 * GIB), world.disk("vdb", 16 * GIB)], "install.disk matches 2 disks (vda, vdb)"),
        (vec![world.disk("vda", 10 * GIB)], "vda: "),
        (vec![raid], "raid holds a member of a Linux RAID set; set install.wipe to true"),
        (vec![lvm], "lvm holds a physical volume of LVM; set install.wipe to true"),
    ] {
        let told = refusal(disks).await;
        assert!(told.contains(expected), "{told}: {expected}");
    }
    let media = world.root("run/strake/media");
    let uki = media.join("EFI/Linux/strake.efi");
    let whole = std::fs::read(&uki).unwrap();
    let mut other = whole.clone();
    other[0x44..0x46].copy_from_slice(&0xaa64_u16.to_le_bytes());
    let root = std::fs::read_dir(media.join("strake")).unwrap().next().unwrap().unwrap().path();
    let short = std::fs::metadata(&root).unwrap().len() - 4096;
    for (content, expected) in
        [(&other[..], "for aarch64 machines"), (&whole[..whole.len() - 1], "cut off"), (&whole[..0], "not a program")]
    {
        std::fs::write(&uki, content).unwrap();
        let told = refusal(vec![world.disk("vda", 16 * GIB)]).await;
        assert!(told.contains(expected), "{told}: {expected}");
    }
    std::fs::write(&uki, &whole).unwrap();
    std::fs::OpenOptions::new().write(true).open(&root).unwrap().set_len(short).unwrap();
    let told = refusal(vec![world.disk("vda", 16 * GIB)]).await;
    assert!(told.contains("the installation medium is damaged"), "{told}");
}
