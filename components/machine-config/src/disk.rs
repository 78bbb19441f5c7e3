//! Which disk a selector means.

use std::fmt;

use crate::v1alpha1::DiskSelector;
use crate::values::Glob;

/// A disk as it was observed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// The kernel's name, `vda`.
    pub name: String,
    /// Its node, `/dev/vda`, first, and the links to it (`/dev/disk/by-path/…`).
    pub paths: Vec<String>,
    /// Size in bytes.
    pub size: u64,
    /// Model, or nothing.
    pub model: String,
    /// Serial number, or nothing.
    pub serial: String,
    /// World-wide identifier, or nothing.
    pub wwid: String,
    /// How it is connected: `nvme`, `virtio`, `scsi`, `ata`, `usb`, `mmc`.
    pub bus: String,
    /// Whether it rotates.
    pub rotational: bool,
    /// Whether it cannot be written.
    pub read_only: bool,
    /// Whether it is the medium this system was booted from.
    pub boot_medium: bool,
}

/// What a selector came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Exactly one disk matches.
    One(String),
    /// Several match; their names.
    Ambiguous(Vec<String>),
    /// None matches; for each disk, why not.
    None(Vec<(String, String)>),
}

impl Selection {
    /// What a selector came to, which stands in this field.
    pub fn of(&self, field: &str) -> String {
        match self {
            Selection::One(name) => name.clone(),
            Selection::Ambiguous(names) => {
                format!("{field} matches {} disks ({}); add a property that only one of them has", names.len(), names.join(", "))
            }
            Selection::None(reasons) if reasons.is_empty() => format!("{field} matches no disk: this machine has none"),
            Selection::None(reasons) => {
                let reasons: Vec<String> = reasons.iter().map(|(name, why)| format!("{name}: {why}")).collect();
                format!("{field} matches no disk ({})", reasons.join("; "))
            }
        }
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.of("install.disk"))
    }
}

/// Finds the disk. Read-only disks and the boot medium never match.
pub fn select(selector: &DiskSelector, disks: &[Disk]) -> Selection {
    let mut matching = Vec::new();
    let mut reasons = Vec::new();
    for disk in disks {
        match mismatch(selector, disk) {
            None => matching.push(disk.name.clone()),
            Some(reason) => reasons.push((disk.name.clone(), reason)),
        }
    }
    match matching.len() {
        0 => Selection::None(reasons),
        1 => Selection::One(matching.remove(0)),
        _ => Selection::Ambiguous(matching),
    }
}

/// Why a disk is not the one.
fn mismatch(selector: &DiskSelector, disk: &Disk) -> Option<String> {
    if disk.boot_medium {
        return Some("it is the medium this system was booted from".to_owned());
    }
    if disk.read_only {
        return Some("it is read-only".to_owned());
    }
    let text = |what: &str, glob: &Option<Glob>, actual: &str| {
        let glob = glob.as_ref()?;
        (!glob.matches(actual)).then(|| format!("its {what} is {actual:?}, not {:?}", glob.to_string()))
    };
    let path = || {
        let glob = selector.path.as_ref()?;
        (!disk.paths.iter().any(|p| glob.matches(p))).then(|| format!("it has no path {:?}", glob.to_string()))
    };
    text("name", &selector.name, &disk.name)
        .or_else(path)
        .or_else(|| {
            let size = selector.size.as_ref()?;
            (!size.matches(disk.size)).then(|| format!("its size is {} bytes, not {size}", disk.size))
        })
        .or_else(|| text("model", &selector.model, &disk.model))
        .or_else(|| text("serial", &selector.serial, &disk.serial))
        .or_else(|| text("wwid", &selector.wwid, &disk.wwid))
        .or_else(|| text("bus", &selector.bus, &disk.bus))
        .or_else(|| {
            let wanted = selector.rotational?;
            (wanted != disk.rotational).then(|| format!("it is {}a rotating disk", if disk.rotational { "" } else { "not " }))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(edit: impl FnOnce(&mut DiskSelector)) -> DiskSelector {
        let mut s = DiskSelector { name: None, path: None, size: None, model: None, serial: None, wwid: None, bus: None, rotational: None };
        edit(&mut s);
        s
    }

    fn disks() -> Vec<Disk> {
        let disk = |name: &str, gb: u64, bus: &str| Disk {
            name: name.into(),
            paths: vec![format!("/dev/{name}")],
            size: gb * 1_000_000_000,
            bus: bus.into(),
            ..Disk::default()
        };
        vec![
            disk("vda", 16, "virtio"),
            disk("nvme0n1", 512, "nvme"),
            Disk { rotational: true, serial: "WD-1".into(), ..disk("sda", 4000, "ata") },
            Disk { boot_medium: true, ..disk("sdb", 32, "usb") },
            Disk { read_only: true, ..disk("sr0", 1, "scsi") },
        ]
    }

    #[test]
    fn one_disk_none_or_several() {
        let one = |name: &str| Selection::One(name.to_owned());
        let disks = disks();
        let cases: Vec<(DiskSelector, Selection)> = vec![
            (selector(|s| s.name = "vda".parse().ok()), one("vda")),
            (selector(|s| s.path = "/dev/nvme*".parse().ok()), one("nvme0n1")),
            (selector(|s| s.size = "> 1TB".parse().ok()), one("sda")),
            (selector(|s| s.rotational = Some(true)), one("sda")),
            (selector(|s| s.serial = "wd-*".parse().ok()), one("sda")),
            (selector(|s| s.size = "< 1TB".parse().ok()), Selection::Ambiguous(vec!["vda".into(), "nvme0n1".into()])),
        ];
        for (selector, expected) in cases {
            assert_eq!(select(&selector, &disks), expected, "{selector:?}");
        }
    }

    #[test]
    fn boot_medium_and_read_only_disks_are_never_chosen_and_the_reasons_are_told() {
        let none = select(&selector(|s| s.name = "s*".parse().ok()), &disks()[3..]);
        assert_eq!(
            none.to_string(),
            "install.disk matches no disk (sdb: it is the medium this system was booted from; sr0: it is read-only)"
        );
        let none = select(&selector(|s| s.bus = "usb".parse().ok()), &disks()[..1]);
        assert_eq!(none.to_string(), "install.disk matches no disk (vda: its bus is \"virtio\", not \"usb\")");
    }
}
