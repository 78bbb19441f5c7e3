//! `MachineConfig`: what this machine is and where it is installed.

use std::collections::BTreeMap;

use crate::model::{Check, Decoder};
use crate::path::FieldPath;
use crate::values::{Cidr, Glob, Host, SizeMatcher};
use crate::{object, words};

words! {
    /// What a machine does in the cluster.
    pub enum Role {
        /// Runs etcd, the API server and the controllers.
        ControlPlane = "controlplane",
        /// Runs workloads only.
        Worker = "worker",
    }
}

object! {
    /// What this machine is and where it is installed.
    pub struct MachineConfig {
        /// What the machine does in the cluster.
        role ("role"): Role,
        /// Where and how the system is installed.
        install ("install"): InstallConfig,
        /// More names and addresses for the machine API's certificate.
        cert_sans ("certSANs"): Vec<Host>,
        /// Settings of this machine's kubelet.
        kubelet ("kubelet"): KubeletConfig,
    }
}

object! {
    /// Where and how the system is installed.
    pub struct InstallConfig {
        /// The disk, by its properties; exactly one disk must match.
        disk ("disk"): DiskSelector,
        /// Whether a disk that already carries partitions of something else may be overwritten.
        wipe ("wipe"): bool = false,
    }
}

object! {
    /// A disk described by its properties; all that are given must match, and at least one must be given.
    pub struct DiskSelector {
        /// The kernel's name, with wildcards (`nvme?n1`). Names can change between boots: prefer the others.
        name ("name"): Option<Glob>,
        /// A path under `/dev`, such as `/dev/disk/by-path/pci-0000:00:04.0` or `/dev/vda`.
        path ("path"): Option<Glob>,
        /// A condition on the size, such as `>= 10GB`.
        size ("size"): Option<SizeMatcher>,
        /// The model, with wildcards.
        model ("model"): Option<Glob>,
        /// The serial number, with wildcards.
        serial ("serial"): Option<Glob>,
        /// The world-wide identifier, with wildcards.
        wwid ("wwid"): Option<Glob>,
        /// How the disk is connected: `nvme`, `virtio`, `scsi`, `ata`, `usb`, `mmc`; with wildcards.
        bus ("bus"): Option<Glob>,
        /// Whether it is a rotating disk.
        rotational ("rotational"): Option<bool>,
    }
}

object! {
    /// Settings of this machine's kubelet.
    pub struct KubeletConfig {
        /// Labels the node registers with. Keys under `kubernetes.io` other than those a kubelet may set are refused.
        node_labels ("nodeLabels"): BTreeMap<String, String>,
        /// Taints the node registers with.
        node_taints ("nodeTaints"): Vec<Taint>,
        /// The node's address is the first of this machine's that lies in one of these networks; without any, the first address of a configured link.
        node_ip_subnets ("nodeIPSubnets"): Vec<Cidr>,
        /// How many pods the node takes.
        max_pods ("maxPods"): u16 = 110,
        /// Further command-line flags, without dashes.
        extra_args ("extraArgs"): BTreeMap<String, String>,
    }
}

words! {
    /// What a taint does to pods that do not tolerate it.
    pub enum TaintEffect {
        /// They are not scheduled here.
        NoSchedule = "NoSchedule",
        /// They are scheduled here only when nothing else fits.
        PreferNoSchedule = "PreferNoSchedule",
        /// They are not scheduled here, and evicted.
        NoExecute = "NoExecute",
    }
}

object! {
    /// A taint.
    pub struct Taint {
        /// Its key.
        key ("key"): String,
        /// Its value.
        value ("value"): String = String::new(),
        /// What it does.
        effect ("effect"): TaintEffect,
    }
}

impl Check for MachineConfig {}
impl Check for InstallConfig {}

impl Check for DiskSelector {
    fn check(&self, d: &mut Decoder) {
        let Self { name, path, size, model, serial, wwid, bus, rotational } = self;
        let none = [name, path, model, serial, wwid, bus].iter().all(|g| g.is_none()) && size.is_none() && rotational.is_none();
        if none {
            d.report("names no property: give at least one of name, path, size, model, serial, wwid, bus, rotational");
        }
        if path.as_ref().is_some_and(|p| !p.to_string().starts_with("/dev/")) {
            d.report_at(&FieldPath::fields("path"), "must begin with /dev/");
        }
    }
}

impl Check for KubeletConfig {
    fn check(&self, d: &mut Decoder) {
        for (key, value) in &self.node_labels {
            let at = FieldPath::fields("nodeLabels").field(key);
            match check_label_key(key) {
                Err(reason) => d.report_at(&at, reason),
                Ok(()) if !kubelet_may_set(key) => {
                    d.report_at(&at, "a kubelet may not set this label; use node.kubernetes.io/… or a domain of your own");
                }
                Ok(()) => {}
            }
            if let Err(reason) = check_label_value(value) {
                d.report_at(&at, reason);
            }
        }
        if self.max_pods == 0 || self.max_pods > 1000 {
            d.report_at(&FieldPath::fields("maxPods"), "must be between 1 and 1000");
        }
        check_flags(&self.extra_args, &FieldPath::fields("extraArgs"), d);
    }
}

impl Check for Taint {
    fn check(&self, d: &mut Decoder) {
        if let Err(reason) = check_label_key(&self.key) {
            d.report_at(&FieldPath::fields("key"), reason);
        }
        if let Err(reason) = check_label_value(&self.value) {
            d.report_at(&FieldPath::fields("value"), reason);
        }
    }
}

/// Flag names have neither dashes in front nor `=` in them.
pub(super) fn check_flags(flags: &BTreeMap<String, String>, at: &FieldPath, d: &mut Decoder) {
    for name in flags.keys() {
        let fits = name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !fits {
            d.report_at(&at.clone().field(name), "is not a flag's name: write it without dashes in front, such as v or audit-log-path");
        }
    }
}

/// The name part of label keys, and label values: RFC 1123 letters with `-_.` inside, at most 63.
fn check_name_part(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    text.len() <= 63 && text.bytes().all(inner) && edge(text.as_bytes().first()) && edge(text.as_bytes().last())
}

fn check_label_key(key: &str) -> Result<(), String> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(p, n)| (Some(p), n));
    if let Some(prefix) = prefix {
        crate::values::check_dns_name(prefix)?;
    }
    if check_name_part(name) {
        Ok(())
    } else {
        Err(format!("{key:?} is not a label key: an optional DNS name and '/', then up to 63 letters, digits, '-', '_', '.'"))
    }
}

fn check_label_value(value: &str) -> Result<(), String> {
    if value.is_empty() || check_name_part(value) {
        Ok(())
    } else {
        Err(format!("{value:?} is not a label value: up to 63 letters, digits, '-', '_', '.'"))
    }
}

/// What NodeRestriction lets a kubelet set on its own node (upstream: kubelet's `--node-labels`).
fn kubelet_may_set(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else { return true };
    let reserved = ["kubernetes.io", "k8s.io"].iter().any(|r| domain == *r || domain.ends_with(&format!(".{r}")));
    let allowed_domain = ["kubelet.kubernetes.io", "node.kubernetes.io"].iter().any(|a| domain == *a || domain.ends_with(&format!(".{a}")));
    let allowed_keys = [
        "kubernetes.io/hostname",
        "kubernetes.io/arch",
        "kubernetes.io/os",
        "node.kubernetes.io/instance-type",
        "topology.kubernetes.io/region",
        "topology.kubernetes.io/zone",
    ];
    !reserved || allowed_domain || allowed_keys.contains(&key)
}
