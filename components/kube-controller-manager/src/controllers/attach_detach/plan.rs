//! Which volumes a node's pods need attached, and which of those attached may go. No clock, no client: what was seen is given.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use k8s_client::{Condition, ObjectKey};

use crate::api::{Node, PersistentVolume, PersistentVolumeClaim, Pod, VolumeAttachment};

/// On nodes whose kubelet leaves attaching to this controller.
pub const MANAGED: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
pub const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// A node that is not ready may go on using a volume for this long before it is taken from it.
pub const PATIENCE: Duration = Duration::from_secs(360);
/// Names of volumes of drivers, as nodes tell them.
const OF_DRIVERS: &str = "kubernetes.io/csi/";

/// What is known of one node and its volumes.
pub struct Seen<'a> {
    pub name: &'a str,
    /// None: the node is gone.
    pub node: Option<&'a Node>,
    pub pods: &'a [Arc<Pod>],
    pub attachments: &'a [Arc<VolumeAttachment>],
    pub claim: &'a dyn Fn(&str, &str) -> Option<Arc<PersistentVolumeClaim>>,
    pub volume: &'a dyn Fn(&str) -> Option<Arc<PersistentVolume>>,
    /// Whether volumes of a driver are attached at all.
    pub attaches: &'a dyn Fn(&str) -> bool,
    /// Another node that a volume is attached to, or is being.
    pub elsewhere: &'a dyn Fn(&str) -> Option<String>,
    /// How long nobody has wanted an attachment.
    pub unwanted_for: &'a dyn Fn(&str) -> Duration,
    /// Never take a volume from a node that is not ready.
    pub never_by_force: bool,
}

/// A volume that pods of the node need.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    pub attachment: String,
    pub volume: String,
    pub driver: String,
    pub pods: Vec<ObjectKey>,
}

#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// What the node is to be told is attached; none: it knows.
    pub report: Option<Vec<String>>,
    pub attach: Vec<Wanted>,
    /// Names of attachments to delete, after the report.
    pub detach: Vec<String>,
    /// Attached since the node was told last.
    pub attached: Vec<Wanted>,
    /// Could not be attached, and why.
    pub failed: Vec<(Wanted, String)>,
    /// Attachments that nobody wants but that cannot go yet.
    pub waiting: BTreeSet<String>,
}

/// The name of the attachment of a driver's volume to a node, by which drivers' attachers and kubelets find it.
fn attachment_name(driver: &str, handle: &str, node: &str) -> String {
    let sum = digest(&SHA256, format!("{handle}{driver}{node}").as_bytes());
    let hex: String = sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("csi-{hex}")
}

/// The driver and the handle of a volume.
fn source(volume: &PersistentVolume) -> Option<(&str, &str)> {
    let csi = volume.spec.csi.as_ref()?;
    Some((csi["driver"].as_str()?, csi["volumeHandle"].as_str()?))
}

fn unique_name((driver, handle): (&str, &str)) -> String {
    format!("{OF_DRIVERS}{driver}^{handle}")
}

/// A volume that only one node may have at a time.
fn exclusive(volume: &PersistentVolume) -> bool {
    let modes = &volume.spec.access_modes;
    !modes.is_empty() && !modes.iter().any(|mode| mode == "ReadWriteMany" || mode == "ReadOnlyMany")
}

/// Whether a pod needs its volumes no more.
fn is_over(pod: &Pod) -> bool {
    let stopped = || pod.status.container_statuses.iter().all(|status| status.state.terminated.is_some());
    pod.is_terminal() || (pod.metadata.is_deleting() && stopped())
}

/// The volumes that the pods need attached, by the names of their attachments.
fn wanted(seen: &Seen<'_>) -> BTreeMap<String, (Wanted, Arc<PersistentVolume>)> {
    let mut all: BTreeMap<String, (Wanted, Arc<PersistentVolume>)> = BTreeMap::new();
    for pod in seen.pods.iter().filter(|pod| !is_over(pod)) {
        let namespace = &pod.metadata.namespace;
        for name in pod.spec.volumes.iter().filter_map(|volume| volume.claim_name(&pod.metadata)) {
            let claim = (seen.claim)(namespace, &name).filter(|claim| claim.status.phase == "Bound");
            let Some(claim) = claim.filter(|claim| !claim.spec.volume_name.is_empty()) else { continue };
            let is_claims =
                |volume: &Arc<PersistentVolume>| volume.spec.claim_ref.as_ref().is_some_and(|owner| owner.uid == claim.metadata.uid);
            let Some(volume) = (seen.volume)(&claim.spec.volume_name).filter(is_claims) else { continue };
            let Some((driver, handle)) = source(&volume).filter(|(driver, _)| (seen.attaches)(driver)) else { continue };
            let attachment = attachment_name(driver, handle, seen.name);
            let entry = all.entry(attachment.clone()).or_insert_with(|| {
                let wanted = Wanted { attachment, volume: volume.metadata.name.clone(), driver: driver.to_string(), pods: Vec::new() };
                (wanted, Arc::clone(&volume))
            });
            entry.0.pods.push(pod.metadata.key());
        }
    }
    all
}

/// Whether a volume that nobody wants may be taken from the node.
fn may_go(seen: &Seen<'_>, unique: Option<&str>, attachment: &str) -> bool {
    let patience_is_over = (seen.unwanted_for)(attachment) >= PATIENCE && !seen.never_by_force;
    match seen.node {
        // What a node that is gone does with it, nobody can say.
        None => patience_is_over,
        Some(node) => {
            let in_use = unique.is_some_and(|name| node.status.volumes_in_use.iter().any(|used| used == name));
            let ready = Condition::find(&node.status.conditions, "Ready").is_some_and(Condition::is_true);
            let out_of_service = node.spec.taints.iter().any(|taint| taint.key == OUT_OF_SERVICE);
            !in_use || out_of_service || (!ready && patience_is_over)
        }
    }
}

/// What to do for one node.
pub fn plan(seen: &Seen<'_>) -> Plan {
    let mut plan = Plan::default();
    if seen.node.is_some_and(|node| node.metadata.annotations.get(MANAGED).is_none_or(|managed| managed != "true")) {
        return plan;
    }
    let wanted = wanted(seen);
    let told: BTreeSet<&str> =
        seen.node.into_iter().flat_map(|node| node.status.volumes_attached.iter().map(|v| v.name.as_str())).collect();
    let mut report: BTreeSet<String> = told.iter().filter(|name| !name.starts_with(OF_DRIVERS)).map(|name| (*name).to_string()).collect();
    for attachment in seen.attachments {
        let name = &attachment.metadata.name;
        let of_volume = (seen.volume)(&attachment.spec.source.persistent_volume_name);
        let unique = of_volume.as_deref().and_then(source).map(unique_name);
        let deleting = attachment.metadata.is_deleting();
        match wanted.get(name) {
            Some((want, _)) if attachment.status.attached && !deleting => {
                if let Some(unique) = unique {
                    if !told.contains(unique.as_str()) {
                        plan.attached.push(want.clone());
                    }
                    report.insert(unique);
                }
            }
            Some((want, _)) => {
                if let Some(error) = attachment.status.attach_error.as_ref().filter(|_| !deleting) {
                    let message = format!("AttachVolume.Attach failed for volume {:?} : {}", want.volume, error.message);
                    plan.failed.push((want.clone(), message));
                }
            }
            // Deleted already: its driver takes it away.
            None if deleting || !name.starts_with("csi-") || attachment.spec.source.persistent_volume_name.is_empty() => {}
            None if may_go(seen, unique.as_deref(), name) => plan.detach.push(name.clone()),
            None => {
                plan.waiting.insert(name.clone());
                report.extend(unique.filter(|_| attachment.status.attached));
            }
        }
    }
    let there = |name: &str| seen.attachments.iter().any(|attachment| attachment.metadata.name == name);
    // Nothing is attached to a node that is gone.
    for (want, volume) in wanted.into_values().filter(|(want, _)| seen.node.is_some() && !there(&want.attachment)) {
        match (seen.elsewhere)(&want.volume).filter(|_| exclusive(&volume)) {
            Some(_) => {
                let message = format!(
                    "Multi-Attach error for volume {:?} Volume is already exclusively attached to one node and can't be attached to another",
                    want.volume
                );
                plan.failed.push((want, message));
            }
            None => plan.attach.push(want),
        }
    }
    let report: Vec<String> = report.into_iter().collect();
    plan.report = (seen.node.is_some() && !report.iter().map(String::as_str).eq(told.iter().copied())).then_some(report);
    plan
}
