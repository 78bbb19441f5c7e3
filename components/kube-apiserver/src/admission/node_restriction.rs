//! A kubelet changes its own node, its own pods and nothing else.

use k8s_schema::Doc;

use super::{Attributes, Operation};
use crate::{
    authz::node::node_of,
    http::{ApiError, Group},
};

fn refuse(a: &Attributes<'_>, why: String) -> ApiError {
    ApiError::forbidden(Group(&a.res.group, &a.res.plural), &a.ctx.info.name, why)
}

pub fn admit(a: &Attributes<'_>, new: &mut Doc, old: Option<&Doc>) -> Result<(), ApiError> {
    if a.ctx.user.name.starts_with("system:node:") && node_of(&a.ctx.user).is_none() && a.ctx.user.in_group("system:nodes") {
        return Err(refuse(a, format!("could not determine node from user {:?}", a.ctx.user.name)));
    }
    let Some(node) = node_of(&a.ctx.user) else { return Ok(()) };
    match (a.res.group.as_str(), a.res.plural.as_str()) {
        ("", "pods") => pods(a, node, new, old),
        ("", "nodes") => nodes(a, node, new, old),
        ("coordination.k8s.io", "leases") => {
            let ok = new.at("metadata.namespace").str() == "kube-node-lease" && new.at("metadata.name").str() == node;
            if ok { Ok(()) } else { Err(refuse(a, "can only access node lease with the same name as the requesting node".into())) }
        }
        ("storage.k8s.io", "csinodes") => {
            if new.at("metadata.name").str() == node {
                Ok(())
            } else {
                Err(refuse(a, "can only access CSINode with the same name as the requesting node".into()))
            }
        }
        ("certificates.k8s.io", "certificatesigningrequests") if a.operation == Operation::Create => csr(a, node, new),
        _ => Ok(()),
    }
}

fn pods(a: &Attributes<'_>, node: &str, new: &Doc, old: Option<&Doc>) -> Result<(), ApiError> {
    if a.operation == Operation::Create && a.subresource.is_empty() {
        if !new.at("metadata.annotations").get("kubernetes.io/config.mirror").exists() {
            return Err(refuse(
                a,
                format!("pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"),
            ));
        }
        if new.at("spec.nodeName").str() != node {
            return Err(refuse(a, format!("node {node:?} can only create pods with spec.nodeName set to itself")));
        }
        if new.at("metadata.ownerReferences").len() > 1 {
            return Err(refuse(a, format!("node {node:?} can only create pods with a single owner reference set to itself")));
        }
        if !new.at("spec.serviceAccountName").str().is_empty() {
            return Err(refuse(a, format!("node {node:?} can not create pods that reference a service account")));
        }
        for v in new.at("spec.volumes").iter() {
            for kind in ["secret", "configMap", "persistentVolumeClaim"] {
                if v.get(kind).exists() {
                    return Err(refuse(a, format!("node {node:?} can not create pods that reference {}s", kind.to_lowercase())));
                }
            }
        }
        return Ok(());
    }
    if a.operation == Operation::Update && a.subresource == "status" {
        let bound = old.is_some_and(|o| o.at("spec.nodeName").str() == node);
        if !bound {
            return Err(refuse(a, format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself")));
        }
        if old.is_some_and(|o| !o.at("metadata.labels").semantic_eq(new.at("metadata.labels"))) {
            return Err(refuse(a, format!("node {node:?} cannot update labels through pod status")));
        }
    }
    Ok(())
}

/// Labels a kubelet may set on itself.
fn own_label(key: &str) -> bool {
    const EXACT: &[&str] = &[
        "kubernetes.io/hostname",
        "kubernetes.io/arch",
        "kubernetes.io/os",
        "beta.kubernetes.io/arch",
        "beta.kubernetes.io/os",
        "node.kubernetes.io/instance-type",
        "beta.kubernetes.io/instance-type",
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region",
    ];
    let domain = key.split_once('/').map_or("", |(d, _)| d);
    let ours = ["kubernetes.io", "k8s.io"].iter().any(|d| domain == *d || domain.ends_with(&format!(".{d}")));
    let kubelet = |d: &str| domain == d || domain.ends_with(&format!(".{d}"));
    !ours
        || EXACT.contains(&key)
        || kubelet("kubelet.kubernetes.io")
        || (kubelet("node.kubernetes.io") && !kubelet("node-restriction.kubernetes.io"))
}

fn nodes(a: &Attributes<'_>, node: &str, new: &Doc, old: Option<&Doc>) -> Result<(), ApiError> {
    let name = new.at("metadata.name").str();
    if name != node {
        return Err(refuse(a, format!("node {node:?} is not allowed to modify node {name:?}")));
    }
    let labels = |d: &Doc| d.at("metadata.labels").entries().map(|(k, v)| (k.to_owned(), v.str().to_owned())).collect::<Vec<_>>();
    match (a.operation, old) {
        (Operation::Create, _) => {
            let bad: Vec<String> = labels(new).into_iter().map(|(k, _)| k).filter(|k| !own_label(k)).collect();
            if !bad.is_empty() {
                return Err(refuse(a, format!("node {node:?} is not allowed to set the following labels: {}", bad.join(", "))));
            }
            Ok(())
        }
        (Operation::Update, Some(old)) => {
            if !new.at("spec.taints").semantic_eq(old.at("spec.taints")) {
                return Err(refuse(a, format!("node {node:?} is not allowed to modify taints")));
            }
            let (n, o) = (labels(new), labels(old));
            let mut changed: Vec<String> =
                n.iter().filter(|l| !o.contains(l)).chain(o.iter().filter(|l| !n.contains(l))).map(|(k, _)| k.clone()).collect();
            changed.retain(|k| !own_label(k));
            changed.sort();
            changed.dedup();
            if !changed.is_empty() {
                return Err(refuse(a, format!("is not allowed to modify labels: {}", changed.join(", "))));
            }
            if !new.at("metadata.ownerReferences").semantic_eq(old.at("metadata.ownerReferences")) {
                return Err(refuse(a, format!("node {node:?} is not allowed to modify ownerReferences")));
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn csr(a: &Attributes<'_>, node: &str, new: &Doc) -> Result<(), ApiError> {
    let signer = new.at("spec.signerName").str();
    if !matches!(signer, "kubernetes.io/kubelet-serving" | "kubernetes.io/kube-apiserver-client-kubelet") {
        return Ok(());
    }
    use x509_parser::prelude::{FromDer, X509CertificationRequest};
    let cn = x509_parser::pem::parse_x509_pem(new.at("spec.request").bytes()).ok().and_then(|(_, pem)| {
        let (_, r) = X509CertificationRequest::from_der(&pem.contents).ok()?;
        let cn = r.certification_request_info.subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        Some(cn)
    });
    if cn.as_deref() == Some(format!("system:node:{node}").as_str()) {
        Ok(())
    } else {
        Err(refuse(a, format!("can only create a node CSR with CN=system:node:{node}")))
    }
}

pub fn delete(a: &Attributes<'_>, _: Option<&Doc>, old: Option<&Doc>) -> Result<(), ApiError> {
    let (Some(node), Some(old), Operation::Delete) = (node_of(&a.ctx.user), old, a.operation) else { return Ok(()) };
    match (a.res.group.as_str(), a.res.plural.as_str()) {
        ("", "pods") if old.at("spec.nodeName").str() != node => {
            Err(refuse(a, format!("node {node:?} can only delete pods with spec.nodeName set to itself")))
        }
        ("", "nodes") => Err(refuse(a, format!("node {node:?} is not allowed to delete nodes"))),
        _ => Ok(()),
    }
}
