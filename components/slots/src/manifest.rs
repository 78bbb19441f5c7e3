//! An upgrade file: a tar archive of `manifest.json`, `root.erofs` (the root with its hash tree) and `strake.efi` (the unified kernel image),
//! in this order, so that a machine can decide before it has read more than the beginning, and needs no room for the file. Behind the manifest there may
//! be its signature, `manifest.sig`: everything else is found by the hashes in the manifest.

use serde::{Deserialize, Serialize};
use verity::Digest;

use crate::fields::Fields;
use crate::record::System;
use crate::sealed::Measured;

/// The members' names, in their order.
pub const MEMBERS: [&str; 3] = ["manifest.json", "root.erofs", "strake.efi"];
/// The name of the manifest's signature (Ed25519, over its bytes as they are), which stands behind it in a signed file.
pub const SIGNATURE: &str = "manifest.sig";
/// The most bytes of a manifest.
pub const MOST: u64 = 16 << 10;
/// The most bytes of a kernel image.
pub const UKI_MOST: u64 = 256 << 20;
/// What a file of this kind says that it is.
pub const FORMAT: u32 = 1;
/// The processors that this system runs on, as Debian and the kernel call them.
pub const ARCHITECTURE: &str = "x86_64";

/// What an upgrade file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Which processors it is for.
    pub architecture: String,
    /// The system.
    #[serde(flatten)]
    pub system: System,
    /// The kernel's release.
    pub kernel: String,
    /// Bytes of the kernel image.
    pub uki_bytes: u64,
    /// The kernel image's SHA-256.
    pub uki_sha256: Digest,
    /// Which config the system can read; a file that does not say so is taken all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Fields>,
    /// What the kernel image's signed measurements say; an image without them opens no volume by a TPM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

/// Where it is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes of a slot.
    pub slot: u64,
    /// Bytes that the boot partition has for another kernel image.
    pub boot: u64,
}

/// What a person takes upon themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allow {
    /// An older version.
    pub downgrade: bool,
    /// That etcd has no quorum while the machine restarts.
    pub quorum_loss: bool,
    /// That encrypted volumes stay locked until a person opens them.
    pub locked_volumes: bool,
}

/// Why a machine does not take an upgrade.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is of another time.
    #[error("the file is an upgrade of format {0}, and this system knows format {FORMAT} only")]
    Format(u32),
    /// It is for other machines.
    #[error("the file is for {0} machines, and this is an {ARCHITECTURE} one")]
    Architecture(String),
    /// It is what runs.
    #[error("this very system is running already: version {0} with the same root")]
    Same(String),
    /// It is older.
    #[error("version {to} is older than {from}, which runs; --allow-downgrade takes it all the same")]
    Downgrade {
        /// What runs.
        from: String,
        /// What is in the file.
        to: String,
    },
    /// A version is none.
    #[error("{0:?} is no version")]
    Version(String),
    /// Kubernetes goes up one minor version at a time, and never down.
    #[error("Kubernetes would go from {from} to {to}; it goes up by one minor version at a time, and never down")]
    Skew {
        /// What runs.
        from: String,
        /// What is in the file.
        to: String,
    },
    /// It does not fit.
    #[error("{what} has {has} bytes, and there is room for {room}")]
    TooLarge {
        /// What does not fit.
        what: &'static str,
        /// Its size.
        has: u64,
        /// How much would fit.
        room: u64,
    },
}

/// Whether this system understands the file.
pub fn format(manifest: &Manifest) -> Result<String, Refusal> {
    if manifest.format == FORMAT { Ok(format!("format {FORMAT}")) } else { Err(Refusal::Format(manifest.format)) }
}

/// Whether it is for machines of this kind.
pub fn architecture(manifest: &Manifest) -> Result<String, Refusal> {
    match manifest.architecture.as_str() {
        ARCHITECTURE => Ok(ARCHITECTURE.to_owned()),
        other => Err(Refusal::Architecture(other.to_owned())),
    }
}

/// Whether it is something else than what runs, and not older.
pub fn version(to: &System, running: &System, allow: Allow) -> Result<String, Refusal> {
    if to.root.root_hash() == running.root.root_hash() {
        return Err(Refusal::Same(running.version.clone()));
    }
    if parse(&to.version)? < parse(&running.version)? && !allow.downgrade {
        return Err(Refusal::Downgrade { from: running.version.clone(), to: to.version.clone() });
    }
    Ok(format!("from {} to {}", running.version, to.version))
}

/// Whether its Kubernetes may follow the one that runs.
pub fn kubernetes(to: &System, running: &System) -> Result<String, Refusal> {
    let ([from_major, from_minor, _], [to_major, to_minor, _]) = (parse(&running.kubernetes)?, parse(&to.kubernetes)?);
    if to_major != from_major || to_minor < from_minor || to_minor > from_minor.saturating_add(1) {
        return Err(Refusal::Skew { from: running.kubernetes.clone(), to: to.kubernetes.clone() });
    }
    Ok(format!("from {} to {}", running.kubernetes, to.kubernetes))
}

/// Whether it fits.
pub fn room(manifest: &Manifest, room: Room) -> Result<String, Refusal> {
    let (root, uki) = (manifest.system.root.total_bytes(), manifest.uki_bytes);
    for (what, has, room) in [("the root", root, room.slot), ("the kernel image", uki, room.boot.min(UKI_MOST))] {
        if has > room {
            return Err(Refusal::TooLarge { what, has, room });
        }
    }
    Ok(format!("{} MiB in a slot of {} MiB", root >> 20, room.slot >> 20))
}

/// The numbers of `1.2.3` or `v1.2.3`; what follows a `-` or `+` is not compared.
pub fn parse(version: &str) -> Result<[u64; 3], Refusal> {
    let none = || Refusal::Version(version.chars().take(64).collect());
    let numbers = version.strip_prefix('v').unwrap_or(version).split(['-', '+']).next().unwrap_or_default();
    let parsed: Vec<u64> = numbers.split('.').map(|number| number.parse().map_err(|_| none())).collect::<Result<_, _>>()?;
    parsed.try_into().map_err(|_| none())
}

/// Reads a manifest; the parts that this system does not know are those of a later one, whose format says whether they matter.
pub fn read(text: &[u8]) -> Result<Manifest, serde_json::Error> {
    serde_json::from_slice(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use verity::Parameters;

    use super::*;

    fn system(version: &str, kubernetes: &str, fill: u8) -> System {
        let root = Parameters::new(Digest([fill; 32]), Digest([9; 32]), 300).unwrap();
        System { version: version.into(), kubernetes: kubernetes.into(), root }
    }

    fn manifest(version: &str, kubernetes: &str) -> Manifest {
        Manifest {
            format: FORMAT,
            architecture: ARCHITECTURE.into(),
            system: system(version, kubernetes, 2),
            kernel: "6.12".into(),
            uki_bytes: 100,
            uki_sha256: Digest([7; 32]),
            config: None,
            measured: None,
        }
    }

    fn check(manifest: &Manifest, running: &System, place: Room, allow: Allow) -> Result<(), Refusal> {
        format(manifest)?;
        architecture(manifest)?;
        version(&manifest.system, running, allow)?;
        kubernetes(&manifest.system, running)?;
        room(manifest, place).map(drop)
    }

    const ROOM: Room = Room { slot: 2 << 20, boot: 1000 };

    #[test]
    fn a_machine_takes_what_fits_it_and_says_why_not() {
        let running = system("0.2.0", "v1.36.2", 1);
        let whole = manifest("0.2.0", "v1.36.2").system.root.total_bytes();
        let cases: &[(Manifest, Room, &str)] = &[
            (manifest("0.2.0", "v1.36.2"), ROOM, ""),
            (manifest("0.2.1-rc.1", "v1.37.0"), ROOM, ""),
            (manifest("0.2.0", "v1.36.2"), Room { slot: whole, boot: 100 }, ""),
            (Manifest { format: 2, ..manifest("0.3.0", "v1.36.2") }, ROOM, "format 2"),
            (Manifest { architecture: "aarch64".into(), ..manifest("0.3.0", "v1.36.2") }, ROOM, "aarch64"),
            (Manifest { system: running.clone(), ..manifest("", "") }, ROOM, "running already"),
            (manifest("0.1.9", "v1.36.2"), ROOM, "older than 0.2.0"),
            (manifest("0.3", "v1.36.2"), ROOM, "\"0.3\" is no version"),
            (manifest("0.3.0", ""), ROOM, "is no version"),
            (manifest("0.3.0", "v1.38.0"), ROOM, "one minor version at a time"),
            (manifest("0.3.0", "v1.35.9"), ROOM, "never down"),
            (manifest("0.3.0", "v2.36.0"), ROOM, "from v1.36.2 to v2.36.0"),
            (manifest("0.3.0", "v1.36.2"), Room { slot: whole - 1, boot: 100 }, "the root has"),
            (manifest("0.3.0", "v1.36.2"), Room { slot: whole, boot: 99 }, "the kernel image has 100 bytes"),
        ];
        for (manifest, room, expected) in cases {
            let found = check(manifest, &running, *room, Allow::default()).err().map(|refusal| refusal.to_string()).unwrap_or_default();
            assert!(found.contains(expected) && found.is_empty() == expected.is_empty(), "{found:?}, not {expected:?}");
        }
        assert_eq!(check(&manifest("0.1.0", "v1.36.2"), &running, ROOM, Allow { downgrade: true, ..Allow::default() }), Ok(()));
    }

    #[test]
    fn a_manifest_is_flat_json() {
        let text = serde_json::to_value(manifest("0.2.0", "v1.36.2")).unwrap();
        assert_eq!((text["version"].as_str(), text["root"]["data_blocks"].as_u64()), (Some("0.2.0"), Some(300)));
        assert_eq!(read(text.to_string().as_bytes()).unwrap(), manifest("0.2.0", "v1.36.2"));
        assert!(read(b"{}").is_err());
    }

    proptest! {
        #[test]
        fn no_version_makes_the_check_panic(version in "[v0-9.+-]{0,60}", kubernetes in "\\PC{0,20}") {
            let _ = check(&manifest(&version, &kubernetes), &system("0.2.0", "v1.36.2", 1), ROOM, Allow::default());
        }
    }
}
