//! Plugins of a few lines each.

use k8s_schema::Doc;
use serde_json::json;

use super::{Attributes, Operation};
use crate::{
    authz,
    http::{ApiError, Group},
};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// A new node takes no pods until it said that it is ready.
pub fn taint_nodes(a: &Attributes<'_>, node: &mut Doc, _: Option<&Doc>) -> Result<(), ApiError> {
    if a.operation != Operation::Create || !a.is("", "nodes") {
        return Ok(());
    }
    let there = node.at("spec.taints").iter().any(|t| t.get("key").str() == NOT_READY && t.get("effect").str() == "NoSchedule");
    if there { Ok(()) } else { node.push("spec.taints", json!({"key": NOT_READY, "effect": "NoSchedule"})).map_err(ApiError::internal) }
}

/// Pods stay five minutes on a node that went away.
pub fn default_tolerations(a: &Attributes<'_>, pod: &mut Doc, _: Option<&Doc>) -> Result<(), ApiError> {
    if a.operation == Operation::Delete || !a.is("", "pods") {
        return Ok(());
    }
    let (not_ready, unreachable) = a.ctx.server.toleration_seconds;
    for (key, seconds) in [(NOT_READY, not_ready), (UNREACHABLE, unreachable)] {
        let there = pod.at("spec.tolerations").iter().any(|t| {
            let k = t.get("key").str();
            (k == key || k.is_empty()) && matches!(t.get("effect").str(), "NoExecute" | "")
        });
        if !there {
            let t = json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
            pod.push("spec.tolerations", t).map_err(ApiError::internal)?;
        }
    }
    Ok(())
}

pub fn default_storage_class(a: &Attributes<'_>, claim: &mut Doc, _: Option<&Doc>) -> Result<(), ApiError> {
    if a.operation != Operation::Create || !a.is("", "persistentvolumeclaims") {
        return Ok(());
    }
    let named = claim.at("spec.storageClassName").exists()
        || claim.at("metadata.annotations").get("volume.beta.kubernetes.io/storage-class").exists();
    if named {
        return Ok(());
    }
    let objects = &a.ctx.server.objects;
    let newest = objects
        .list("storageclasses", "")
        .iter()
        .filter_map(|s| objects.doc(s))
        .filter(|d| {
            let annotation = |k: &str| d.at("metadata.annotations").get(k).str() == "true";
            annotation("storageclass.kubernetes.io/is-default-class") || annotation("storageclass.beta.kubernetes.io/is-default-class")
        })
        .max_by_key(|d| d.at("metadata.creationTimestamp").time_seconds());
    match newest {
        Some(d) => claim.set("spec.storageClassName", d.at("metadata.name").str()).map_err(ApiError::internal),
        None => Ok(()),
    }
}

/// An ingress that names no class gets the newest of those that are the default.
pub fn default_ingress_class(a: &Attributes<'_>, ingress: &mut Doc, _: Option<&Doc>) -> Result<(), ApiError> {
    if a.operation != Operation::Create || !a.is("networking.k8s.io", "ingresses") {
        return Ok(());
    }
    if ingress.at("spec.ingressClassName").exists() || ingress.at("metadata.annotations").get("kubernetes.io/ingress.class").exists() {
        return Ok(());
    }
    let objects = &a.ctx.server.objects;
    let newest = objects
        .list("ingressclasses", "")
        .iter()
        .filter_map(|s| objects.doc(s))
        .filter(|d| d.at("metadata.annotations").get("ingressclass.kubernetes.io/is-default-class").str() == "true")
        .min_by_key(|d| {
            let m = d.meta();
            (std::cmp::Reverse(m.creation_timestamp()), m.name().to_owned())
        });
    match newest {
        Some(d) => ingress.set("spec.ingressClassName", d.meta().name()).map_err(ApiError::internal),
        None => Ok(()),
    }
}

/// A claim grows only where its class says that volumes can.
pub fn claim_resize(a: &Attributes<'_>, new: Option<&Doc>, old: Option<&Doc>) -> Result<(), ApiError> {
    let (Some(new), Some(old), Operation::Update, true) = (new, old, a.operation, a.is("", "persistentvolumeclaims")) else {
        return Ok(());
    };
    let size = |d: &Doc| d.at("spec.resources.requests").get("storage").quantity();
    if old.at("status.phase").str() != "Bound" || size(new) <= size(old) {
        return Ok(());
    }
    let class = a.ctx.server.objects.get("storageclasses", old.at("spec.storageClassName").str());
    if class.is_some_and(|c| c.at("allowVolumeExpansion").bool()) {
        return Ok(());
    }
    let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
    Err(ApiError::forbidden(Group(&a.res.group, &a.res.plural), new.meta().name(), why))
}

pub fn in_use_protection(a: &Attributes<'_>, d: &mut Doc, _: Option<&Doc>) -> Result<(), ApiError> {
    if a.operation != Operation::Create {
        return Ok(());
    }
    let finalizer = if a.is("", "persistentvolumeclaims") {
        "kubernetes.io/pvc-protection"
    } else if a.is("", "persistentvolumes") {
        "kubernetes.io/pv-protection"
    } else if a.is("storage.k8s.io", "volumeattributesclasses") {
        "kubernetes.io/vac-protection"
    } else {
        return Ok(());
    };
    if d.at("metadata.finalizers").iter().any(|f| f.str() == finalizer) {
        Ok(())
    } else {
        d.push("metadata.finalizers", finalizer).map_err(ApiError::internal)
    }
}

/// Approving is for those who may approve for that signer.
pub async fn certificate_approval(a: &Attributes<'_>, new: Option<&Doc>, old: Option<&Doc>) -> Result<(), ApiError> {
    let approval = a.res.plural == "certificatesigningrequests" && a.subresource == "approval";
    let (Some(_), Some(old), true) = (new, old, approval && a.operation == Operation::Update) else { return Ok(()) };
    signer_verb(a, old, "approve", "user not permitted to approve requests with signerName").await
}

async fn signer_verb(a: &Attributes<'_>, csr: &Doc, verb: &str, what: &str) -> Result<(), ApiError> {
    let signer = csr.at("spec.signerName").str();
    let domain = signer.split_once('/').map_or(signer, |(d, _)| d);
    for name in [signer.to_owned(), format!("{domain}/*")] {
        let attributes = authz::Attributes {
            verb: verb.into(),
            is_resource: true,
            group: "certificates.k8s.io".into(),
            version: "*".into(),
            resource: "signers".into(),
            name,
            ..authz::Attributes::default()
        };
        if a.ctx.server.authz.decide(&a.ctx.user, &attributes).await.allowed() {
            return Ok(());
        }
    }
    Err(ApiError::forbidden(Group(&a.res.group, &a.res.plural), csr.at("metadata.name").str(), format!("{what} {signer:?}")))
}

/// Nobody gets a client certificate of the group that may do everything.
pub fn certificate_subject(a: &Attributes<'_>, new: Option<&Doc>, _: Option<&Doc>) -> Result<(), ApiError> {
    if a.operation != Operation::Create || !a.is("certificates.k8s.io", "certificatesigningrequests") {
        return Ok(());
    }
    let Some(csr) = new.filter(|d| d.at("spec.signerName").str() == "kubernetes.io/kube-apiserver-client") else { return Ok(()) };
    use x509_parser::prelude::{FromDer, X509CertificationRequest};
    let masters = x509_parser::pem::parse_x509_pem(csr.at("spec.request").bytes()).ok().is_some_and(|(_, pem)| {
        X509CertificationRequest::from_der(&pem.contents)
            .is_ok_and(|(_, r)| r.certification_request_info.subject.iter_organization().any(|o| o.as_str() == Ok(crate::authn::MASTERS)))
    });
    if masters {
        let why = "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed";
        return Err(ApiError::forbidden(Group(&a.res.group, &a.res.plural), csr.at("metadata.name").str(), why));
    }
    Ok(())
}
