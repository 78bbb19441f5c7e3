//! What is checked before a machine is given another system, as a table that a person can read. Some of it is about the machine and the file,
//! some about the machines around it; nothing here asks anybody: what was found comes in, verdicts go out.

use crate::manifest::{self, Allow, Manifest, Refusal, Room};
use crate::record::System;
use crate::sealed::{self, Measured, SealedVolume};
use serde_json::Value;

/// How much older a kubelet may be than the API servers, in minor versions (Kubernetes' version skew policy).
const KUBELET_SKEW: u64 = 3;
/// How far API servers may be apart.
const SERVER_SKEW: u64 = 1;
/// Names that a detail has room for.
const NAMED: usize = 8;

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Something that a person should know, and that does not keep the machine from it.
    Notice,
    /// Trouble on other machines: no reason to leave this one as it is, but one not to go on to the next.
    Elsewhere,
    /// The machine does not take it.
    Refused,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// In words.
    pub detail: String,
}

impl Check {
    /// A line.
    pub fn new(name: &'static str, verdict: Verdict, detail: impl Into<String>) -> Check {
        Check { name, verdict, detail: detail.into() }
    }

    fn of(name: &'static str, outcome: Result<String, Refusal>) -> Check {
        match outcome {
            Ok(detail) => Check::new(name, Verdict::Good, detail),
            Err(refusal) => Check::new(name, Verdict::Refused, refusal.to_string()),
        }
    }
}

/// Another machine of the cluster, as its Node says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Whether it runs an API server.
    pub control_plane: bool,
    /// Its kubelet's version, which is also that of its API server.
    pub kubernetes: String,
    /// Whether its node is Ready.
    pub ready: bool,
}

/// etcd's members, when this machine has one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Members that vote, with this one if it does.
    pub voters: usize,
    /// Whether this machine's own one votes.
    pub own_votes: bool,
    /// Other voters that answer.
    pub others_well: usize,
    /// Others that do not, by name.
    pub ill: Vec<String>,
}

/// What was found out.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// What runs.
    pub running: &'a System,
    /// Where it is to go.
    pub room: Room,
    /// What the person takes upon themselves.
    pub allow: Allow,
    /// The documents of the config in force.
    pub config: &'a [Value],
    /// Whether this machine runs an API server.
    pub control_plane: bool,
    /// The other machines; nothing when this one is in no cluster yet, or why they are not known.
    pub peers: Option<Result<Vec<Peer>, String>>,
    /// etcd's members; nothing when this machine has none, or why they are not known.
    pub members: Option<Result<Members, String>>,
    /// The volumes that only keys in the TPM open without a person; nothing when there are none, or why they are not known.
    pub sealed: Option<Result<Vec<SealedVolume>, String>>,
}

/// Everything that is checked once the manifest is believed, in the order in which people are told.
pub fn checks(manifest: &Manifest, facts: &Facts<'_>) -> Vec<Check> {
    let (to, running) = (&manifest.system, facts.running);
    let mut table = vec![
        Check::of("format", manifest::format(manifest)),
        Check::of("architecture", manifest::architecture(manifest)),
        Check::of("version", manifest::version(to, running, facts.allow)),
        Check::of("kubernetes", manifest::kubernetes(to, running)),
        config(manifest, facts.config),
        Check::of("room", manifest::room(manifest, facts.room)),
    ];
    table.extend(facts.sealed.as_ref().map(|sealed| volumes(manifest.measured.as_ref(), sealed, facts.allow)));
    match &facts.peers {
        None => table.push(Check::new("other machines", Verdict::Good, "this machine is in no cluster yet")),
        Some(Err(reason)) => table.push(Check::new("other machines", Verdict::Elsewhere, format!("not known: {reason}"))),
        Some(Ok(peers)) => {
            table.push(skew(to, facts.control_plane, peers));
            table.push(ready(peers));
        }
    }
    if let Some(members) = &facts.members {
        table.push(quorum(members, facts.allow));
    }
    table
}

/// What refuses, in one sentence; nothing when the machine takes it.
pub fn refusal(table: &[Check]) -> Option<String> {
    let refused: Vec<&str> = table.iter().filter(|check| check.verdict == Verdict::Refused).map(|check| check.detail.as_str()).collect();
    (!refused.is_empty()).then(|| refused.join("; "))
}

fn config(manifest: &Manifest, documents: &[Value]) -> Check {
    let Some(known) = manifest.config.as_ref().filter(|known| !known.is_empty()) else {
        return Check::new("config", Verdict::Notice, "the file does not say which config it can read");
    };
    let unknown = known.unknown(documents);
    if unknown.is_empty() {
        return Check::new("config", Verdict::Good, "the new system knows every field of the config in force");
    }
    let detail = format!("the new system does not know what the config in force has: {}; take it out first", unknown.join(", "));
    Check::new("config", Verdict::Refused, detail)
}

/// Whether Kubernetes of this version may run on this machine beside what the others run: API servers are at most a minor version apart,
/// and no kubelet is newer than one of them or much older.
fn skew(to: &System, control_plane: bool, peers: &[Peer]) -> Check {
    const NAME: &str = "version skew";
    let Ok([major, minor, _]) = manifest::parse(&to.kubernetes) else {
        return Check::new(NAME, Verdict::Refused, format!("{:?} is no version", to.kubernetes));
    };
    let mut wrong = Vec::new();
    for peer in peers {
        let Ok([its_major, its, _]) = manifest::parse(&peer.kubernetes) else {
            wrong.push(format!("{} runs {:?}, which is no version", peer.name, peer.kubernetes));
            continue;
        };
        let fits = its_major == major
            && match (control_plane, peer.control_plane) {
                (true, true) => its.abs_diff(minor) <= SERVER_SKEW,
                (true, false) => its <= minor && minor - its <= KUBELET_SKEW,
                (false, true) => minor <= its && its - minor <= KUBELET_SKEW,
                (false, false) => true,
            };
        if !fits {
            let way_out = if !control_plane && peer.control_plane { "; upgrade the control planes first" } else { "" };
            wrong.push(format!("{} runs {}, which does not go with {}{way_out}", peer.name, peer.kubernetes, to.kubernetes));
        }
    }
    match wrong.is_empty() {
        true if peers.is_empty() => Check::new(NAME, Verdict::Good, "there is no other machine"),
        true => Check::new(NAME, Verdict::Good, format!("{} goes with what {} other machines run", to.kubernetes, peers.len())),
        false => Check::new(NAME, Verdict::Refused, some(&wrong, "; ")),
    }
}

fn ready(peers: &[Peer]) -> Check {
    let ill: Vec<String> = peers.iter().filter(|peer| !peer.ready).map(|peer| peer.name.clone()).collect();
    match ill.is_empty() {
        true => Check::new("other machines", Verdict::Good, format!("{} of {} are Ready", peers.len(), peers.len())),
        false => Check::new("other machines", Verdict::Elsewhere, format!("not Ready: {}", some(&ill, ", "))),
    }
}

/// Whether etcd still has a quorum while this machine restarts.
fn quorum(members: &Result<Members, String>, allow: Allow) -> Check {
    const NAME: &str = "etcd quorum";
    let members = match members {
        Ok(members) => members,
        Err(reason) if allow.quorum_loss => return Check::new(NAME, Verdict::Notice, format!("not known: {reason}")),
        Err(reason) => {
            let detail = format!("etcd's members are not known ({reason}); --allow-quorum-loss goes on all the same");
            return Check::new(NAME, Verdict::Refused, detail);
        }
    };
    let needed = members.voters / 2 + 1;
    let ill = if members.ill.is_empty() { String::new() } else { format!("; not answering: {}", some(&members.ill, ", ")) };
    match () {
        () if !members.own_votes => Check::new(NAME, Verdict::Good, format!("this machine's member does not vote{ill}")),
        () if members.voters == 1 => {
            Check::new(NAME, Verdict::Notice, "the only member is this machine's: the cluster's API is away while it restarts")
        }
        () if members.others_well >= needed => Check::new(
            NAME,
            Verdict::Good,
            format!("{} of {} members are there without this one{ill}", members.others_well, members.voters),
        ),
        () => {
            let detail = format!(
                "without this member {} of {} are left, and {needed} are needed: nothing could be written while this machine restarts{ill}",
                members.others_well, members.voters
            );
            match allow.quorum_loss {
                true => Check::new(NAME, Verdict::Notice, detail),
                false => Check::new(NAME, Verdict::Refused, detail + "; --allow-quorum-loss goes on all the same"),
            }
        }
    }
}

/// Whether an image opens the volumes that open without a person now.
pub fn volumes(image: Option<&Measured>, sealed: &Result<Vec<SealedVolume>, String>, allow: Allow) -> Check {
    const NAME: &str = "encrypted volumes";
    let trouble = match sealed {
        Ok(volumes) => sealed::locked(image, volumes),
        Err(reason) => Some(format!("it is not known whether the image opens the encrypted volumes ({reason})")),
    };
    match trouble {
        None => Check::new(NAME, Verdict::Good, "the image opens them with the keys in the TPM"),
        Some(detail) if allow.locked_volumes => Check::new(NAME, Verdict::Notice, detail),
        Some(detail) => Check::new(NAME, Verdict::Refused, detail + "; --allow-locked-volumes goes on all the same"),
    }
}

fn some(names: &[String], between: &str) -> String {
    let more = names.len().saturating_sub(NAMED);
    let named = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(between);
    if more == 0 { named } else { format!("{named} and {more} more") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use verity::{Digest, Parameters};

    use super::*;
    use crate::fields::Fields;
    use crate::sealed::SealedKey;

    fn system(version: &str, kubernetes: &str, fill: u8) -> System {
        let root = Parameters::new(Digest([fill; 32]), Digest([9; 32]), 300).unwrap();
        System { version: version.into(), kubernetes: kubernetes.into(), root }
    }

    fn manifest(kubernetes: &str) -> Manifest {
        Manifest {
            format: manifest::FORMAT,
            architecture: manifest::ARCHITECTURE.into(),
            system: system("0.2.0", kubernetes, 2),
            kernel: "6.12".into(),
            uki_bytes: 100,
            uki_sha256: Digest([7; 32]),
            config: Some(Fields::of_schema(&json!({"oneOf": [{"properties": {
                "apiVersion": {"const": "v1"}, "kind": {"const": "A"}, "known": {},
            }}]}))),
            measured: Some(Measured { signer: Digest([5; 32]), security_version: 2 }),
        }
    }

    fn peer(name: &str, control_plane: bool, kubernetes: &str) -> Peer {
        Peer { name: name.into(), control_plane, kubernetes: kubernetes.into(), ready: true }
    }

    fn facts(running: &System) -> Facts<'_> {
        let room = Room { slot: 2 << 20, boot: 1000 };
        Facts {
            running,
            room,
            allow: Allow::default(),
            config: &[],
            control_plane: true,
            peers: Some(Ok(Vec::new())),
            members: None,
            sealed: None,
        }
    }

    fn verdict(table: &[Check], name: &str) -> (Verdict, String) {
        let check = table.iter().find(|check| check.name == name).unwrap();
        (check.verdict, check.detail.clone())
    }

    #[test]
    fn a_machine_alone_takes_what_fits_it_and_the_table_says_all_that_does_not() {
        let running = system("0.1.0", "v1.36.2", 1);
        let table = checks(&manifest("v1.36.2"), &facts(&running));
        assert_eq!(refusal(&table), None, "{table:?}");
        assert!(table.iter().all(|check| check.verdict == Verdict::Good && !check.detail.is_empty()), "{table:?}");

        let other = Manifest { architecture: "aarch64".into(), uki_bytes: 5000, ..manifest("v1.38.0") };
        let refused = refusal(&checks(&other, &facts(&running))).unwrap();
        for part in ["aarch64", "one minor version at a time", "the kernel image has 5000 bytes"] {
            assert!(refused.contains(part), "{refused}: {part}");
        }
    }

    #[test]
    fn a_config_that_the_new_system_cannot_read_is_refused() {
        let running = system("0.1.0", "v1.36.2", 1);
        for (document, expected) in [
            (json!({"apiVersion": "v1", "kind": "A", "known": 1}), Verdict::Good),
            (json!({"apiVersion": "v1", "kind": "A", "other": 1}), Verdict::Refused),
            (json!({"apiVersion": "v1", "kind": "B"}), Verdict::Refused),
        ] {
            let documents = [document];
            let table = checks(&manifest("v1.36.2"), &Facts { config: &documents, ..facts(&running) });
            assert_eq!(verdict(&table, "config").0, expected, "{documents:?}");
        }
        let silent = Manifest { config: None, ..manifest("v1.36.2") };
        assert_eq!(verdict(&checks(&silent, &facts(&running)), "config").0, Verdict::Notice);
    }

    #[test]
    fn versions_of_other_machines_must_go_with_the_new_one() {
        let running = system("0.1.0", "v1.36.2", 1);
        for (control_plane, to, peers, expected) in [
            (true, "v1.37.0", vec![peer("cp-2", true, "v1.36.2"), peer("w-1", false, "v1.34.9")], ""),
            (true, "v1.37.0", vec![peer("cp-2", true, "v1.35.2")], "cp-2 runs v1.35.2"),
            (true, "v1.37.0", vec![peer("w-1", false, "v1.33.0")], "w-1 runs v1.33.0"),
            (true, "v1.36.3", vec![peer("w-1", false, "v1.37.0")], "w-1 runs v1.37.0"),
            (false, "v1.37.0", vec![peer("cp-1", true, "v1.36.2")], "upgrade the control planes first"),
            (false, "v1.37.0", vec![peer("cp-1", true, "v1.37.0"), peer("w-2", false, "v1.34.0")], ""),
            (false, "v1.36.9", vec![peer("cp-1", true, "v1.37.0+build.1")], ""),
            (false, "v1.36.9", vec![peer("cp-1", true, "")], "which is no version"),
            (false, "v1.36.9", vec![peer("cp-1", true, "v2.36.9")], "cp-1 runs v2.36.9"),
        ] {
            let table = checks(&manifest(to), &Facts { control_plane, peers: Some(Ok(peers.clone())), ..facts(&running) });
            let (verdict, detail) = verdict(&table, "version skew");
            assert_eq!(verdict == Verdict::Refused, !expected.is_empty(), "{to} {peers:?}: {detail}");
            assert!(detail.contains(expected), "{detail}: {expected}");
        }
    }

    #[test]
    fn trouble_elsewhere_is_told_and_does_not_refuse() {
        let running = system("0.1.0", "v1.36.2", 1);
        let ill = Peer { ready: false, ..peer("w-1", false, "v1.36.2") };
        for (peers, expected) in [
            (None, Verdict::Good),
            (Some(Ok(vec![peer("w-1", false, "v1.36.2")])), Verdict::Good),
            (Some(Ok(vec![ill])), Verdict::Elsewhere),
            (Some(Err("connection refused".to_owned())), Verdict::Elsewhere),
        ] {
            let table = checks(&manifest("v1.36.2"), &Facts { peers: peers.clone(), ..facts(&running) });
            assert_eq!((verdict(&table, "other machines").0, refusal(&table)), (expected, None), "{peers:?}");
        }
    }

    #[test]
    fn etcd_keeps_its_quorum_or_the_machine_is_left_alone() {
        let running = system("0.1.0", "v1.36.2", 1);
        let members = |voters: usize, others_well: usize| {
            let ill = (others_well + 1..voters).map(|number| format!("cp-{number}")).collect();
            Ok(Members { voters, own_votes: true, others_well, ill })
        };
        for (members, expected, allowed) in [
            (members(1, 0), Verdict::Notice, Verdict::Notice),
            (members(2, 1), Verdict::Refused, Verdict::Notice),
            (members(3, 2), Verdict::Good, Verdict::Good),
            (members(3, 1), Verdict::Refused, Verdict::Notice),
            (members(5, 3), Verdict::Good, Verdict::Good),
            (members(5, 2), Verdict::Refused, Verdict::Notice),
            (Ok(Members { voters: 2, own_votes: false, others_well: 2, ill: Vec::new() }), Verdict::Good, Verdict::Good),
            (Err("no answer".to_owned()), Verdict::Refused, Verdict::Notice),
        ] {
            for (quorum_loss, expected) in [(false, expected), (true, allowed)] {
                let allow = Allow { quorum_loss, ..Allow::default() };
                let table = checks(&manifest("v1.36.2"), &Facts { allow, members: Some(members.clone()), ..facts(&running) });
                let (verdict, detail) = verdict(&table, "etcd quorum");
                assert_eq!(verdict, expected, "{members:?}: {detail}");
                assert_eq!(verdict == Verdict::Refused, detail.contains("--allow-quorum-loss"), "{detail}");
            }
        }
    }
    #[test]
    fn an_image_that_would_leave_volumes_locked_is_refused_until_that_is_meant() {
        let running = system("0.1.0", "v1.36.2", 1);
        let volume = |signer: u8, lowest| {
            let keys = vec![SealedKey { signer: Digest([signer; 32]), lowest, highest: lowest + 63 }];
            Ok(vec![SealedVolume { label: "STATE".into(), keys }])
        };
        for (measured, sealed, expected) in [
            (true, volume(5, 2), ""),
            (true, volume(5, 3), "this machine's TPM gives the keys from 3 on"),
            (true, volume(6, 2), "another pcr.key"),
            (false, volume(5, 2), "no signed measurements"),
            (true, Err("the TPM does not answer".to_owned()), "the TPM does not answer"),
        ] {
            for locked_volumes in [false, true] {
                let mut manifest = manifest("v1.36.2");
                manifest.measured = manifest.measured.filter(|_| measured);
                let allow = Allow { locked_volumes, ..Allow::default() };
                let table = checks(&manifest, &Facts { allow, sealed: Some(sealed.clone()), ..facts(&running) });
                let (verdict, detail) = verdict(&table, "encrypted volumes");
                let wanted = match (expected, locked_volumes) {
                    ("", _) => Verdict::Good,
                    (_, true) => Verdict::Notice,
                    (_, false) => Verdict::Refused,
                };
                assert_eq!(verdict, wanted, "{detail}");
                assert!(detail.contains(expected), "{detail}: {expected}");
                assert_eq!(verdict == Verdict::Refused, detail.contains("--allow-locked-volumes"), "{detail}");
            }
        }
        let table = checks(&manifest("v1.36.2"), &facts(&running));
        assert!(table.iter().all(|check| check.name != "encrypted volumes"), "a machine without such volumes is not told of them");
    }
}
