//! Which volume a claim gets, and what becomes of a volume whose claim is gone.

use std::sync::Arc;

use k8s_client::{EventType, LabelSelector};

use crate::api::{PersistentVolume, PersistentVolumeClaim, StorageClass};

/// On a claim: both sides of the binding are written.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a claim or volume: this controller chose the other side, nobody asked for it.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a volume: the provisioner that made it and will remove it.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a claim: the scheduler chose a node for its first consumer.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const DEFAULT_CLASS: [&str; 2] = ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

/// What is told about an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    pub kind: EventType,
    pub reason: &'static str,
    pub message: String,
}

fn told(kind: EventType, reason: &'static str, message: impl Into<String>) -> Told {
    Told { kind, reason, message: message.into() }
}

/// What to do about a claim.
#[derive(Clone, Debug, PartialEq)]
pub enum ClaimStep {
    Nothing,
    /// Write whatever the binding to this volume still lacks.
    Bind(Arc<PersistentVolume>),
    /// It names no class and there is a default one.
    SetClass(String),
    /// Ask this external provisioner for a volume.
    Provision(String),
    Phase(&'static str, Option<Told>),
}

/// Plans for one claim.
pub fn plan_claim(claim: &PersistentVolumeClaim, volumes: &[Arc<PersistentVolume>], classes: &[Arc<StorageClass>]) -> ClaimStep {
    let wanted = claim.spec.volume_name.as_str();
    let named = volumes.iter().find(|volume| volume.metadata.name == wanted);
    if claim.metadata.annotations.contains_key(BIND_COMPLETED) {
        return completed(claim, named);
    }
    if !wanted.is_empty() {
        let Some(volume) = named else { return ClaimStep::Phase("Pending", None) };
        return match &volume.spec.claim_ref {
            Some(_) if is_for(volume, claim) => ClaimStep::Bind(volume.clone()),
            Some(_) => {
                let message = format!("volume {wanted:?} already bound to a different claim.");
                ClaimStep::Phase("Pending", Some(told(EventType::Warning, "FailedBinding", message)))
            }
            None => match mismatch(volume, claim) {
                None => ClaimStep::Bind(volume.clone()),
                Some(why) => {
                    let message = format!("Cannot bind to requested volume {wanted:?}: {why}");
                    ClaimStep::Phase("Pending", Some(told(EventType::Warning, "VolumeMismatch", message)))
                }
            },
        };
    }
    if !claim.has_class()
        && let Some(class) = default_class(classes)
    {
        return ClaimStep::SetClass(class.metadata.name.clone());
    }
    let class = classes.iter().find(|class| class.metadata.name == claim.class());
    let first_consumer = class.is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
        && !claim.metadata.annotations.contains_key(SELECTED_NODE);
    if let Some(volume) = best(claim, volumes, first_consumer) {
        return ClaimStep::Bind(volume.clone());
    }
    if first_consumer {
        let message = "waiting for first consumer to be created before binding";
        return ClaimStep::Phase("Pending", Some(told(EventType::Normal, "WaitForFirstConsumer", message)));
    }
    if claim.class().is_empty() {
        let message = "no persistent volumes available for this claim and no storage class is set";
        return ClaimStep::Phase("Pending", Some(told(EventType::Normal, "FailedBinding", message)));
    }
    match class {
        None => {
            let message = format!("storageclass.storage.k8s.io {:?} not found", claim.class());
            ClaimStep::Phase("Pending", Some(told(EventType::Warning, "ProvisioningFailed", message)))
        }
        Some(class) if class.provisioner.starts_with("kubernetes.io/") => {
            let message = format!("no volume plugin matched name: {}", class.provisioner);
            ClaimStep::Phase("Pending", Some(told(EventType::Warning, "ProvisioningFailed", message)))
        }
        Some(class) => ClaimStep::Provision(class.provisioner.clone()),
    }
}

fn completed(claim: &PersistentVolumeClaim, named: Option<&Arc<PersistentVolume>>) -> ClaimStep {
    let lost = |reason, message: &str| {
        let news = (claim.status.phase != "Lost").then(|| told(EventType::Warning, reason, message));
        ClaimStep::Phase("Lost", news)
    };
    let Some(volume) = named else {
        return if claim.spec.volume_name.is_empty() {
            lost("ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!")
        } else {
            lost("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!")
        };
    };
    match &volume.spec.claim_ref {
        Some(reference) if reference.uid == claim.metadata.uid => {
            let written = volume.status.phase == "Bound" && claim.status.phase == "Bound" && !claim.status.capacity.is_empty();
            if written && claim.status.access_modes == volume.spec.access_modes {
                ClaimStep::Nothing
            } else {
                ClaimStep::Bind(volume.clone())
            }
        }
        None => ClaimStep::Bind(volume.clone()),
        Some(_) => lost("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly"),
    }
}

/// The newest class that is marked as default.
fn default_class(classes: &[Arc<StorageClass>]) -> Option<&Arc<StorageClass>> {
    let marked = |class: &&Arc<StorageClass>| {
        DEFAULT_CLASS.iter().any(|mark| class.metadata.annotations.get(*mark).is_some_and(|value| value == "true"))
    };
    // Of the same age the first by name.
    classes
        .iter()
        .filter(marked)
        .max_by(|a, b| (a.metadata.creation_timestamp, &b.metadata.name).cmp(&(b.metadata.creation_timestamp, &a.metadata.name)))
}

/// Whether the volume is bound to the claim or reserved for it.
pub fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    volume.spec.claim_ref.as_ref().is_some_and(|reference| {
        reference.namespace == claim.metadata.namespace
            && reference.name == claim.metadata.name
            && (reference.uid.is_empty() || reference.uid == claim.metadata.uid)
    })
}

fn mode(mode: &Option<String>) -> &str {
    mode.as_deref().unwrap_or("Filesystem")
}

fn large_enough(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let size = |list: &crate::api::ResourceList| list.get("storage").copied().unwrap_or_default();
    size(&volume.spec.capacity) >= size(&claim.spec.resources.requests)
}

/// Why a volume the claim names cannot be its volume.
fn mismatch(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<&'static str> {
    if !large_enough(volume, claim) {
        Some("requested PV is too small")
    } else if volume.class() != claim.class() {
        Some("storageClassName does not match")
    } else if volume.spec.volume_attributes_class_name.as_deref().unwrap_or("")
        != claim.spec.volume_attributes_class_name.as_deref().unwrap_or("")
    {
        Some("volumeAttributesClassName does not match")
    } else if mode(&volume.spec.volume_mode) != mode(&claim.spec.volume_mode) {
        Some("incompatible volumeMode")
    } else if !offers(volume, claim) {
        Some("incompatible accessMode")
    } else {
        None
    }
}

fn offers(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    claim.spec.access_modes.iter().all(|mode| volume.spec.access_modes.contains(mode))
}

/// The volume reserved for the claim; else, unless only a reserved one will do, of the free volumes that fit the one that offers least.
fn best<'a>(claim: &PersistentVolumeClaim, volumes: &'a [Arc<PersistentVolume>], only_reserved: bool) -> Option<&'a Arc<PersistentVolume>> {
    let usable = |volume: &&Arc<PersistentVolume>| {
        !volume.metadata.is_deleting()
            && large_enough(volume, claim)
            && offers(volume, claim)
            && mode(&volume.spec.volume_mode) == mode(&claim.spec.volume_mode)
    };
    if let Some(reserved) = volumes.iter().find(|volume| usable(volume) && is_for(volume, claim)) {
        return Some(reserved);
    }
    let everything = LabelSelector::default();
    let selector = claim.spec.selector.as_ref().unwrap_or(&everything);
    let free = volumes.iter().filter(|volume| {
        !only_reserved
            && volume.spec.claim_ref.is_none()
            && volume.status.phase == "Available"
            && selector.matches(&volume.metadata.labels)
            && mismatch(volume, claim).is_none()
    });
    free.filter(usable).min_by(|a, b| {
        let rank = |volume: &PersistentVolume| (volume.spec.access_modes.len(), volume.spec.capacity.get("storage").copied());
        rank(a).cmp(&rank(b)).then_with(|| a.metadata.name.cmp(&b.metadata.name))
    })
}

/// What to do about a volume.
#[derive(Clone, Debug, PartialEq)]
pub enum VolumeStep {
    Nothing,
    Phase(&'static str, Option<Told>),
    /// The claim must be looked at: it should bind to this volume.
    Claim,
    /// Give the volume back: its claim is bound to another. What this controller wrote goes, what a person reserved stays.
    Unbind,
}

/// Plans for one volume; `claim` is the claim it refers to, if that still exists.
pub fn plan_volume(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> VolumeStep {
    let Some(reference) = volume.spec.claim_ref.as_ref() else { return phase(volume, "Available") };
    if reference.uid.is_empty() {
        // Reserved: binding starts from the claim.
        return if claim.is_some_and(|claim| is_for(volume, claim) && !claim.metadata.annotations.contains_key(BIND_COMPLETED))
            && volume.status.phase == "Available"
        {
            VolumeStep::Claim
        } else {
            phase(volume, "Available")
        };
    }
    match claim.filter(|claim| claim.metadata.uid == reference.uid) {
        Some(claim) if claim.spec.volume_name == volume.metadata.name => phase(volume, "Bound"),
        Some(claim) if claim.spec.volume_name.is_empty() => VolumeStep::Claim,
        Some(_) => VolumeStep::Unbind,
        None => released(volume),
    }
}

fn phase(volume: &PersistentVolume, phase: &'static str) -> VolumeStep {
    if volume.status.phase == phase { VolumeStep::Nothing } else { VolumeStep::Phase(phase, None) }
}

/// Nobody uses the volume any more. Whoever provisioned it removes it; what nobody can reclaim is marked as failed.
fn released(volume: &PersistentVolume) -> VolumeStep {
    if !matches!(volume.status.phase.as_str(), "Released" | "Failed") {
        return VolumeStep::Phase("Released", None);
    }
    let external = volume.spec.csi.is_some() || volume.metadata.annotations.contains_key(PROVISIONED_BY);
    let failed = |reason, message: String| VolumeStep::Phase("Failed", Some(told(EventType::Warning, reason, message)));
    match volume.spec.persistent_volume_reclaim_policy.as_str() {
        _ if volume.status.phase == "Failed" => VolumeStep::Nothing,
        "Delete" if !external => {
            let name = &volume.metadata.name;
            failed(
                "VolumeFailedDelete",
                format!("error getting deleter volume plugin for volume {name:?}: no deletable volume plugin matched"),
            )
        }
        "Recycle" => failed("VolumeFailedRecycle", "No recycler plugin found for the volume!".into()),
        _ => VolumeStep::Nothing,
    }
}
