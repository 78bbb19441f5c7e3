//! Tables of matching, waiting, losing and releasing.

use std::sync::Arc;

use serde_json::{Value, json};

use super::plan::{ClaimStep, VolumeStep, plan_claim, plan_volume};
use crate::api::{PersistentVolume, PersistentVolumeClaim, StorageClass};

fn volume(name: &str, size: &str, modes: &[&str], change: impl FnOnce(&mut Value)) -> Arc<PersistentVolume> {
    let mut value = json!({"metadata": {"name": name, "uid": name}, "status": {"phase": "Available"},
        "spec": {"capacity": {"storage": size}, "accessModes": modes, "storageClassName": "manual"}});
    change(&mut value);
    Arc::new(serde_json::from_value(value).unwrap())
}

fn claim(change: impl FnOnce(&mut Value)) -> PersistentVolumeClaim {
    let mut value = json!({"metadata": {"name": "data", "namespace": "d", "uid": "c1"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "manual", "resources": {"requests": {"storage": "2Gi"}}}});
    change(&mut value);
    serde_json::from_value(value).unwrap()
}

fn class(name: &str, mode: &str, provisioner: &str, default: bool) -> Arc<StorageClass> {
    let annotations = json!({"storageclass.kubernetes.io/is-default-class": default.to_string()});
    Arc::new(
        serde_json::from_value(
            json!({"metadata": {"name": name, "annotations": annotations}, "volumeBindingMode": mode, "provisioner": provisioner}),
        )
        .unwrap(),
    )
}

/// The step in a word or two: the volume to bind, or the phase and the reason of the event.
fn said(step: &ClaimStep) -> String {
    match step {
        ClaimStep::Nothing => "nothing".into(),
        ClaimStep::Bind(volume) => format!("bind {}", volume.metadata.name),
        ClaimStep::SetClass(class) => format!("class {class}"),
        ClaimStep::Provision(provisioner) => format!("provision {provisioner}"),
        ClaimStep::Phase(phase, None) => (*phase).to_string(),
        ClaimStep::Phase(phase, Some(news)) => format!("{phase} {}", news.reason),
    }
}

const ONCE: &[&str] = &["ReadWriteOnce"];

#[test]
fn a_claim_gets_the_volume_that_offers_least() {
    let same = |_: &mut Value| {};
    for (volumes, want) in [
        (vec![volume("big", "9Gi", ONCE, same), volume("fits", "3Gi", ONCE, same)], "bind fits"),
        (vec![volume("small", "1Gi", ONCE, same)], "Pending ProvisioningFailed"),
        (vec![volume("many", "2Gi", &["ReadWriteOnce", "ReadWriteMany"], same), volume("few", "5Gi", ONCE, same)], "bind few"),
        (vec![volume("many", "2Gi", &["ReadOnlyMany"], same)], "Pending ProvisioningFailed"),
        (vec![volume("block", "2Gi", ONCE, |v| v["spec"]["volumeMode"] = json!("Block"))], "Pending ProvisioningFailed"),
        (vec![volume("other", "2Gi", ONCE, |v| v["spec"]["storageClassName"] = json!("fast"))], "Pending ProvisioningFailed"),
        (vec![volume("new", "2Gi", ONCE, |v| v["status"]["phase"] = json!("Pending"))], "Pending ProvisioningFailed"),
        (
            vec![volume("going", "2Gi", ONCE, |v| v["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"))],
            "Pending ProvisioningFailed",
        ),
        (
            vec![
                volume("a", "2Gi", ONCE, same),
                volume("mine", "8Gi", ONCE, |v| v["spec"]["claimRef"] = json!({"namespace": "d", "name": "data"})),
                volume("theirs", "2Gi", ONCE, |v| v["spec"]["claimRef"] = json!({"namespace": "d", "name": "other"})),
            ],
            "bind mine",
        ),
        (
            vec![volume("old", "2Gi", ONCE, |v| v["spec"]["claimRef"] = json!({"namespace": "d", "name": "data", "uid": "c0"}))],
            "Pending ProvisioningFailed",
        ),
    ] {
        assert_eq!(said(&plan_claim(&claim(|_| {}), &volumes, &[])), want, "{volumes:?}");
    }
    let labelled = |name: &str| volume(name, "2Gi", ONCE, |v| v["metadata"]["labels"] = json!({"disk": name}));
    let picky = claim(|c| c["spec"]["selector"] = json!({"matchLabels": {"disk": "b"}}));
    assert_eq!(said(&plan_claim(&picky, &[labelled("a"), labelled("b")], &[])), "bind b");
}

#[test]
fn classes_decide_what_happens_without_a_volume() {
    let free = volume("free", "5Gi", ONCE, |_| {});
    let reserved = volume("reserved", "5Gi", ONCE, |v| v["spec"]["claimRef"] = json!({"namespace": "d", "name": "data"}));
    let wait = class("manual", "WaitForFirstConsumer", "kubernetes.io/no-provisioner", false);
    let dynamic = class("manual", "Immediate", "disk.example.com", false);
    let default = class("standard", "Immediate", "disk.example.com", true);
    let no_class = |c: &mut Value| c["spec"]["storageClassName"] = Value::Null;
    let chosen = |c: &mut Value| c["metadata"]["annotations"] = json!({"volume.kubernetes.io/selected-node": "n1"});
    for (claim, volumes, classes, want) in [
        (claim(|_| {}), vec![free.clone()], vec![wait.clone()], "Pending WaitForFirstConsumer"),
        (claim(|_| {}), vec![free.clone(), reserved], vec![wait.clone()], "bind reserved"),
        (claim(chosen), vec![free], vec![wait.clone()], "bind free"),
        (claim(chosen), vec![], vec![wait], "Pending ProvisioningFailed"),
        (claim(|_| {}), vec![], vec![dynamic], "provision disk.example.com"),
        (claim(no_class), vec![], vec![], "Pending FailedBinding"),
        (claim(no_class), vec![], vec![default.clone()], "class standard"),
        (claim(|c| c["spec"]["storageClassName"] = json!("")), vec![], vec![default], "Pending FailedBinding"),
    ] {
        assert_eq!(said(&plan_claim(&claim, &volumes, &classes)), want, "{claim:?}");
    }
}

#[test]
fn a_claim_that_names_its_volume_gets_that_one_or_none() {
    let named = claim(|c| c["spec"]["volumeName"] = json!("v"));
    let other = |v: &mut Value| v["spec"]["claimRef"] = json!({"namespace": "d", "name": "other", "uid": "x"});
    for (volumes, want) in [
        (vec![], "Pending"),
        (vec![volume("v", "2Gi", ONCE, |_| {})], "bind v"),
        (vec![volume("v", "1Gi", ONCE, |_| {})], "Pending VolumeMismatch"),
        (vec![volume("v", "2Gi", ONCE, other)], "Pending FailedBinding"),
    ] {
        assert_eq!(said(&plan_claim(&named, &volumes, &[])), want, "{volumes:?}");
    }
}

#[test]
fn a_bound_claim_is_lost_with_its_volume() {
    let bound = claim(|c| {
        c["spec"]["volumeName"] = json!("v");
        c["metadata"]["annotations"] = json!({"pv.kubernetes.io/bind-completed": "yes"});
        c["status"] = json!({"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "2Gi"}});
    });
    let of = |uid: &'static str, phase: &'static str| {
        volume("v", "2Gi", ONCE, move |v| {
            v["spec"]["claimRef"] = json!({"namespace": "d", "name": "data", "uid": uid});
            v["status"]["phase"] = json!(phase);
        })
    };
    for (volumes, want) in [
        (vec![of("c1", "Bound")], "nothing"),
        (vec![of("c1", "Available")], "bind v"),
        (vec![], "Lost ClaimLost"),
        (vec![of("c0", "Bound")], "Lost ClaimMisbound"),
    ] {
        assert_eq!(said(&plan_claim(&bound, &volumes, &[])), want, "{volumes:?}");
    }
    let mut lost = bound;
    lost.status.phase = "Lost".into();
    assert_eq!(said(&plan_claim(&lost, &[], &[])), "Lost", "told once");
}

#[test]
fn a_volume_follows_its_claim() {
    let of = |uid: &'static str, phase: &'static str, policy: &'static str| {
        volume("v", "2Gi", ONCE, move |v| {
            v["spec"]["claimRef"] = json!({"namespace": "d", "name": "data", "uid": uid});
            v["spec"]["persistentVolumeReclaimPolicy"] = json!(policy);
            v["status"]["phase"] = json!(phase);
        })
    };
    let claim_of = |volume: &str| Some(claim(|c| c["spec"]["volumeName"] = json!(volume)));
    let provisioned = Arc::new(PersistentVolume {
        spec: crate::api::VolumeSpec { csi: Some(json!({})), ..of("c1", "Released", "Delete").spec.clone() },
        ..of("c1", "Released", "Delete").as_ref().clone()
    });
    for (volume, claim, want) in [
        (volume("v", "2Gi", ONCE, |v| v["status"]["phase"] = json!("Pending")), None, VolumeStep::Phase("Available", None)),
        (volume("v", "2Gi", ONCE, |_| {}), None, VolumeStep::Nothing),
        (of("c1", "Available", "Retain"), claim_of("v"), VolumeStep::Phase("Bound", None)),
        (of("c1", "Bound", "Retain"), claim_of("v"), VolumeStep::Nothing),
        (of("c1", "Available", "Retain"), claim_of(""), VolumeStep::Claim),
        (of("c1", "Bound", "Retain"), claim_of("another"), VolumeStep::Unbind),
        (of("c1", "Bound", "Retain"), None, VolumeStep::Phase("Released", None)),
        (of("c0", "Bound", "Retain"), claim_of("v"), VolumeStep::Phase("Released", None)),
        (of("c1", "Released", "Retain"), None, VolumeStep::Nothing),
        (provisioned, None, VolumeStep::Nothing),
    ] {
        assert_eq!(plan_volume(&volume, claim.as_ref()), want, "{volume:?}");
    }
    assert!(
        matches!(plan_volume(&of("c1", "Released", "Delete"), None), VolumeStep::Phase("Failed", Some(news)) if news.reason == "VolumeFailedDelete")
    );
    assert!(
        matches!(plan_volume(&of("c1", "Released", "Recycle"), None), VolumeStep::Phase("Failed", Some(news)) if news.reason == "VolumeFailedRecycle")
    );
}
