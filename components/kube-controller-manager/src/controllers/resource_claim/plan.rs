//! What is to be done for a pod's claims of devices, and for a claim whose pods went. Pure.

use std::sync::Arc;

use k8s_client::{
    ObjectMeta, owner_reference,
    resources::{PODS, RESOURCE_CLAIMS},
};
use serde_json::{Value, json};

use crate::api::{Consumer, Pod, ResourceClaim};

/// Says of a claim which of its pod's claims it is.
pub const POD_CLAIM: &str = "resource.kubernetes.io/pod-claim-name";
/// Keeps a claim as long as devices are allocated for it.
pub const FINALIZER: &str = "resource.kubernetes.io/delete-protection";

/// A pod that is over, or will never be: nothing is kept for it.
pub fn is_over(pod: &Pod) -> bool {
    matches!(pod.status.phase.as_str(), "Succeeded" | "Failed") || (pod.metadata.is_deleting() && pod.spec.node_name.is_empty())
}

/// What one of a pod's claims needs.
#[derive(Clone, Debug, PartialEq)]
pub enum Need {
    /// Nothing: it names a claim, or its claim is there and known.
    Nothing,
    /// This claim is there, and the pod's status does not say so yet.
    Known(String),
    /// A claim is to be made of this template.
    Made(String),
}

/// What the pod's claims need, by their names in the pod; `claims` are those of its namespace.
pub fn needs(pod: &Pod, claims: &[Arc<ResourceClaim>]) -> Vec<(String, Need)> {
    let ours = |c: &&Arc<ResourceClaim>| c.metadata.controller().is_some_and(|o| o.uid == pod.metadata.uid) && !c.metadata.is_deleting();
    let one = |entry: &crate::api::PodResourceClaim| {
        if entry.resource_claim_template_name.is_empty() {
            return Need::Nothing;
        }
        let said = pod.status.resource_claim_statuses.iter().find(|s| s.name == entry.name);
        let mut own =
            claims.iter().filter(ours).filter(|c| c.metadata.annotations.get(POD_CLAIM).map(String::as_str) == Some(entry.name.as_str()));
        match (said, own.next()) {
            // A claim that was found not to be needed.
            (Some(s), _) if s.resource_claim_name.is_none() => Need::Nothing,
            (Some(s), Some(c)) if s.resource_claim_name.as_deref() == Some(c.metadata.name.as_str()) => Need::Nothing,
            (_, Some(c)) => Need::Known(c.metadata.name.clone()),
            (_, None) => Need::Made(entry.resource_claim_template_name.clone()),
        }
    };
    pod.spec.resource_claims.iter().map(|entry| (entry.name.clone(), one(entry))).collect()
}

/// The claim of a pod that is made of a template.
pub fn claim(pod: &ObjectMeta, name: &str, template: &Value) -> Value {
    let mut annotations = template["metadata"]["annotations"].clone();
    if !annotations.is_object() {
        annotations = json!({});
    }
    annotations[POD_CLAIM] = name.into();
    // The server adds five characters, and names end at 253.
    let prefix: String = format!("{}-{name}", pod.name).chars().take(246).collect();
    let mut metadata = json!({"generateName": format!("{prefix}-"), "namespace": pod.namespace, "annotations": annotations,
        "ownerReferences": [owner_reference(&PODS, pod)]});
    if template["metadata"]["labels"].is_object() {
        metadata["labels"] = template["metadata"]["labels"].clone();
    }
    json!({"apiVersion": RESOURCE_CLAIMS.api_version(), "kind": RESOURCE_CLAIMS.kind, "metadata": metadata, "spec": template["spec"]})
}

/// What is to be done about a claim.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Release {
    /// The consumers that stay, when some went.
    pub keep: Option<Vec<String>>,
    /// Nobody uses it any more: its devices are free again.
    pub deallocate: bool,
    pub drop_finalizer: bool,
    /// It was made for a pod that is over.
    pub delete: bool,
}

/// `pod`: the pod of a name in the claim's namespace.
pub fn release(claim: &ResourceClaim, pod: &dyn Fn(&str) -> Option<Arc<Pod>>) -> Release {
    let alive = |name: &str, uid: &str| pod(name).is_some_and(|p| p.metadata.uid == uid && !is_over(&p));
    let stays = |c: &&Consumer| !c.is_pod() || alive(&c.name, &c.uid);
    let left: Vec<String> = claim.status.reserved_for.iter().filter(stays).map(|c| c.uid.clone()).collect();
    let some_went = left.len() < claim.status.reserved_for.len();
    let unused = left.is_empty();
    let deallocate = claim.status.allocation.is_some() && unused && (some_went || claim.metadata.is_deleting());
    let made_for = claim.metadata.controller().filter(|o| o.kind == "Pod");
    Release {
        keep: some_went.then_some(left),
        deallocate,
        drop_finalizer: unused
            && (deallocate || claim.status.allocation.is_none())
            && claim.metadata.finalizers.iter().any(|f| f == FINALIZER),
        delete: unused && !claim.metadata.is_deleting() && made_for.is_some_and(|o| !alive(&o.name, &o.uid)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}, "spec": {"resourceClaims": [
            {"name": "own", "resourceClaimName": "shared"}, {"name": "gpu", "resourceClaimTemplateName": "t"}]}, "status": status}))
        .unwrap()
    }

    fn made(name: &str, status: Value) -> ResourceClaim {
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"devices": {}}});
        let mut c = claim(&pod(json!({})).metadata, "gpu", &template);
        c["metadata"]["name"] = name.into();
        c["status"] = status;
        serde_json::from_value(c).unwrap()
    }

    #[test]
    fn a_claim_is_made_once_for_each_template() {
        let claims = [Arc::new(made("p-gpu-x", json!({})))];
        let need = |status: Value, claims: &[Arc<ResourceClaim>]| needs(&pod(status), claims)[1].1.clone();
        let said = json!({"resourceClaimStatuses": [{"name": "gpu", "resourceClaimName": "p-gpu-x"}]});
        assert_eq!(needs(&pod(json!({})), &[])[0], ("own".to_owned(), Need::Nothing), "a claim by name is somebody else's to make");
        assert_eq!(need(json!({}), &[]), Need::Made("t".into()));
        assert_eq!(need(json!({}), &claims), Need::Known("p-gpu-x".into()));
        assert_eq!(need(said.clone(), &claims), Need::Nothing);
        assert_eq!(need(said, &[]), Need::Made("t".into()), "somebody deleted it");
        assert_eq!(need(json!({"resourceClaimStatuses": [{"name": "gpu"}]}), &[]), Need::Nothing);
        let c = &claims[0].metadata;
        assert_eq!((c.labels.get("a").map(String::as_str), c.controller().unwrap().uid.as_str()), (Some("b"), "u"));
    }

    #[test]
    fn devices_are_free_when_their_pods_are_over() {
        let used = json!({"allocation": {"devices": {}}, "reservedFor": [{"resource": "pods", "name": "p", "uid": "u"}]});
        let c = made("c", used.clone());
        let running = Arc::new(pod(json!({"phase": "Running"})));
        let done = Arc::new(pod(json!({"phase": "Succeeded"})));
        assert_eq!(release(&c, &|_| Some(Arc::clone(&running))), Release::default());
        let freed = Release { keep: Some(vec![]), deallocate: true, drop_finalizer: false, delete: true };
        assert_eq!(release(&c, &|_| Some(Arc::clone(&done))), freed);
        assert_eq!(release(&c, &|_| None), freed);
        let shared =
            ResourceClaim { metadata: ObjectMeta { name: "s".into(), finalizers: vec![FINALIZER.into()], ..ObjectMeta::default() }, ..c };
        assert_eq!(release(&shared, &|_| None), Release { keep: Some(vec![]), deallocate: true, drop_finalizer: true, delete: false });
        let other =
            made("c", json!({"allocation": {}, "reservedFor": [{"apiGroup": "x.io", "resource": "things", "name": "n", "uid": "v"}]}));
        assert_eq!(release(&other, &|_| None), Release::default(), "what is no pod is not judged");
        let fresh = made("c", json!({}));
        assert_eq!(release(&fresh, &|_| Some(Arc::clone(&running))), Release::default());
    }
}
