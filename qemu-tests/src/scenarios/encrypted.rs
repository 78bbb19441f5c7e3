//! Encrypted volumes, on one machine with an emulated TPM: installed with keys in the TPM it starts without a person, also after a signed upgrade; the image before,
//! which is below the floor then, gets no key; its disk shows nothing; with another TPM (the disk in another machine, or this one's TPM replaced) it waits for the recovery key, and with new keys sealed it starts by itself again; a reset destroys the keys;
//! then it is installed again with a passphrase, which it waits for after every start.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use image::cache::Cache;
use image::signing::SECURITY_VERSION;

use super::secure_boot::{row, signed, signing};
use crate::cluster::plan::{ClusterSpec, Node};
use crate::error::{Error, FileContext};
use crate::scenario::{Context, RunningCluster, Scenario};

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "encrypted",
    protects: "volumes with keys in the TPM open without a person on their machine alone, signed upgrades included, images below the floor excluded; the recovery key opens them, and a reset makes them unreadable",
    run,
};

const NEXT: &str = "0.2.0";
const PASSPHRASE: &str = "correct horse battery staple";
/// The partitions that must show nothing.
const VOLUMES: [&str; 3] = ["STATE", "ETCD", "DATA"];
/// Text of every machine config, and of what a machine keeps.
const KNOWN: [&[u8]; 3] = [b"kind: MachineSecrets", b"BEGIN CERTIFICATE", b"name-seed"];

fn documents(key: &str) -> String {
    let one = |name: &str| {
        format!("apiVersion: strake.dev/v1alpha1\nkind: VolumeConfig\nname: {name}\nencryption:\n  keys:\n  - slot: 0\n    {key}\n")
    };
    VOLUMES.map(one).join("---\n")
}

fn run(context: &Context) -> Result<(), Error> {
    let cache = Cache::open().map_err(|problem| unexpected("a cache", problem.to_string()))?;
    let keys = signing(context, &cache, "keys")?;
    let image = signed(context, &cache, &keys, &context.image.version.clone(), "image")?;
    context.say("a signed image is built");

    let spec = ClusterSpec { workers: 0, tpm: true, documents: Some(documents("tpm2: {}")), ..ClusterSpec::small() };
    let cluster = context.installed_as(&image.iso, &spec)?;
    let node = cluster.plan().control_plane().clone();
    is_encrypted(context, &cluster, &node)?;
    context.say("installed with keys in the TPM, and started from its disk without a person");
    cluster.become_cluster(&[], context)?;
    context.say("its node is Ready");

    let raised = keys.clone().as_security_version(SECURITY_VERSION + 1);
    let next = signed(context, &cache, &raised, NEXT, "image-next")?;
    let file = next.upgrade.to_string_lossy();
    let words = ["--timeout", "5", "-n", &node.local_api(), "upgrade", "--image", &file, "--drain-seconds", "0", "--deadline", "1800"];
    cluster.clients().strakectl(words)?;
    context.eventually("the signed upgrade to be good", context.patience(300), || {
        Ok(row(&cluster, &node, "upgrade").ok().filter(|last| last["state"] == "good" && last["to"] == NEXT))
    })?;
    is_encrypted(context, &cluster, &node)?;
    context.say("a signed upgrade opened the volumes too");
    context.eventually("the floor to be raised", context.patience(60), || {
        let words = ["--timeout", "5", "-n", &node.local_api(), "get", "events", "-o", "json"];
        Ok(cluster.clients().strakectl(words).ok().filter(|text| text.contains("FloorRaised")))
    })?;

    let machine = cluster.machine(&node);
    let recovery = cluster.recovery_key(&node).to_string_lossy().into_owned();
    let start = machine.console().position();
    let below = "the image is below the floor";
    match cluster.clients().strakectl(["--timeout", "60", "-n", &node.local_api(), "rollback"]) {
        Err(problem) if problem.to_string().contains(below) => {}
        Err(problem) => return Err(problem),
        Ok(outcome) => return Err(unexpected("a refusal to go back below the floor", outcome)),
    }
    context.say("a rollback below the floor is refused, with what would follow");
    cluster.clients().strakectl(["--timeout", "60", "-n", &node.local_api(), "rollback", "--allow-locked-volumes"])?;
    let volumes = cluster.when_in_maintenance(&node, start, "STATE is locked", &["get", "volumes", "-o", "json"])?;
    let rows: serde_json::Value = serde_json::from_str(&volumes).unwrap_or_default();
    if !rows[0]["problem"].as_str().is_some_and(|why| why.contains(below)) {
        return Err(unexpected("STATE, locked because the image is below the floor", volumes));
    }
    machine.wait_text(start, below, context.patience(10))?;
    context.say("the image before is below the floor: it gets no key, which the console and the machine API say");
    cluster.when_in_maintenance(&node, start, "STATE is locked", &["unlock", "--key-file", &recovery])?;
    cluster.wait_running(&node)?;
    is_encrypted(context, &cluster, &node)?;
    context.say("the recovery key opens the volumes for it");
    machine.pull_plug()?;
    let disk = machine.spec().disk.clone().map(|disk| disk.path).unwrap_or_default();
    shows_nothing(&disk)?;
    context.say("the disk shows LUKS2 and nothing of what is in it");

    let tpm = machine.spec().tpm.clone().unwrap_or_default();
    let own = tpm.with_extension("own");
    std::fs::rename(&tpm, &own).on("rename", &tpm)?;
    let start = machine.console().position();
    cluster.start_installed(&node, context.accelerator)?;
    let wrong = context.dir.join("wrong");
    std::fs::write(&wrong, "0000-0000-0000-0000-0000-0000-0000-0000\n").on("write", &wrong)?;
    let refused = cluster.when_in_maintenance(&node, start, "STATE is locked", &["unlock", "--key-file", &wrong.to_string_lossy()]);
    match refused {
        Err(problem) if problem.to_string().contains("none of its keys") => {}
        Err(problem) => return Err(problem),
        Ok(outcome) => return Err(unexpected("a refusal of a wrong key", outcome)),
    }
    machine.wait_text(start, "sealed by another TPM", context.patience(10))?;
    context.say("with another TPM the machine is locked, says why, and takes no wrong key");
    let opened = cluster.when_in_maintenance(&node, start, "STATE is locked", &["unlock", "--key-file", &recovery, "--reseal"])?;
    cluster.wait_running(&node)?;
    is_encrypted(context, &cluster, &node)?;
    context.say(&format!("the recovery key opened it: {}", opened.split_whitespace().collect::<Vec<_>>().join(" ")));
    machine.pull_plug()?;
    cluster.start_installed(&node, context.accelerator)?;
    cluster.wait_running(&node)?;
    context.say("with new keys in that TPM it starts by itself");

    let start = machine.console().position();
    cluster.clients().strakectl(["--timeout", "60", "-n", &node.local_api(), "reset", "--yes"])?;
    let refused = cluster.when_in_maintenance(&node, start, "stage=maintenance", &["unlock", "--key-file", &recovery]);
    match refused {
        Err(problem) if problem.to_string().contains("no volume is encrypted") => {}
        Err(problem) => return Err(problem),
        Ok(outcome) => return Err(unexpected("nothing to unlock after a reset", outcome)),
    }
    context.say("after a reset no key opens anything");

    std::fs::write(cluster.passphrase(), format!("{PASSPHRASE}\n")).on("write", cluster.passphrase())?;
    let config = cluster.config(&node);
    let text = std::fs::read_to_string(&config).on("read", &config)?;
    std::fs::write(&config, text.replace("tpm2: {}", "passphrase: {memoryMiB: 32}")).on("write", &config)?;
    let passphrase = cluster.passphrase().to_string_lossy().into_owned();
    let words = ["apply-config", "-f", &config.to_string_lossy(), "--recovery-key", &recovery, "--passphrase-file", &passphrase];
    cluster.when_in_maintenance(&node, start, "stage=maintenance", &words)?;
    machine.wait_text(start, "STATE is locked: it takes the passphrase or the recovery key", context.patience(120))?;
    let locked = machine.console().position();
    machine.reset()?;
    cluster.when_in_maintenance(&node, locked, "STATE is locked", &["unlock", "--key-file", &passphrase])?;
    cluster.wait_running(&node)?;
    is_encrypted(context, &cluster, &node)?;
    context.say("a machine with a passphrase waits for it after a start, and goes on with it");
    machine.pull_plug()?;
    shows_nothing(&disk)
}

fn is_encrypted(context: &Context, cluster: &RunningCluster, node: &Node) -> Result<(), Error> {
    let words = ["--timeout", "5", "-n", &node.local_api(), "get", "volumes", "-o", "json"];
    let all = |text: &str| {
        let rows: Vec<serde_json::Value> = serde_json::from_str(text).unwrap_or_default();
        rows.len() == VOLUMES.len() && rows.iter().all(|row| row["encrypted"] == true)
    };
    context
        .eventually("three encrypted volumes", context.patience(60), || {
            Ok(cluster.clients().strakectl(words).ok().filter(|text| all(text)))
        })
        .map(drop)
}

/// Each of the partitions begins as LUKS2 does, and known text is nowhere in them.
fn shows_nothing(disk: &Path) -> Result<(), Error> {
    let table = gpt::GptConfig::new().open(disk).map_err(|problem| unexpected("a partition table", problem.to_string()))?;
    let mut file = File::open(disk).on("open", disk)?;
    for label in VOLUMES {
        let Some(partition) = table.partitions().values().find(|partition| partition.name == label) else {
            return Err(unexpected(&format!("a partition {label}"), disk.display().to_string()));
        };
        let mut rest = (partition.last_lba + 1 - partition.first_lba) * 512;
        file.seek(SeekFrom::Start(partition.first_lba * 512)).on("read", disk)?;
        let (mut block, mut first) = (vec![0; 4 << 20], true);
        while rest > 0 {
            let size = block.len().min(usize::try_from(rest).unwrap_or(block.len()));
            file.read_exact(&mut block[..size]).on("read", disk)?;
            if first && !block.starts_with(b"LUKS\xba\xbe\0\x02") {
                return Err(unexpected(&format!("LUKS2 in {label}"), format!("{:?}", &block[..8])));
            }
            if block[..size].iter().any(|byte| *byte != 0)
                && let Some(known) = KNOWN.iter().find(|known| contains(&block[..size], known))
            {
                return Err(unexpected(&format!("nothing to read in {label}"), String::from_utf8_lossy(known).into_owned()));
            }
            (rest, first) = (rest - size as u64, false);
        }
    }
    Ok(())
}

fn contains(block: &[u8], known: &[u8]) -> bool {
    let mut from = 0;
    while let Some(at) = block[from..].iter().position(|byte| *byte == known[0]) {
        if block[from + at..].starts_with(known) {
            return true;
        }
        from += at + 1;
    }
    false
}

fn unexpected(expected: &str, found: String) -> Error {
    Error::Unexpected { what: "the machine".into(), expected: expected.to_owned(), found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_text_is_found_wherever_it_is() {
        for (block, found) in [(&b"xxkind"[..], true), (b"kikind", true), (b"kin", false), (b"", false)] {
            assert_eq!(contains(block, b"kind"), found);
        }
    }

    #[test]
    fn every_volume_has_a_document() {
        let text = documents("tpm2: {}");
        assert_eq!(text.matches("kind: VolumeConfig").count(), 3);
        assert!(text.contains("name: ETCD\nencryption:\n  keys:\n  - slot: 0\n    tpm2: {}\n"), "{text}");
    }
}
