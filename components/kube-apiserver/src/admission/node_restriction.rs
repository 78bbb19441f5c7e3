//! A kubelet changes its own node, its own pods and nothing else.

use k8s_schema::Doc;

use super::{Attributes, Operation};
use crate::{
    authz::node::node_of,
    http::{ApiError, Group},
};

fn refuse(a: &Attributes<'_>, object: &Doc, why: impl std::fmt::Display) -> ApiError {
    ApiError::forbidden(Group(&a.res.group, &a.res.plural), a.shown_name(object), why)
}

pub fn admit(a: &Attributes<'_>, new: &mut Doc, old: Option<&Doc>) -> Result<(), ApiError> {
    if a.ctx.user.name.starts_with("system:node:") && node_of(&a.ctx.user).is_none() && a.ctx.user.in_group("system:nodes") {
        return Err(refuse(a, new, format!("could not determine node from user {:?}", a.ctx.user.name)));
    }
    let Some(node) = node_of(&a.ctx.user) else { return Ok(()) };
    match (a.res.group.as_str(), a.res.plural.as_str()) {
        ("", "pods") => pods(a, node, new, old),
        ("", "nodes") => nodes(a, node, new, old),
        ("coordination.k8s.io", "leases") => {
            let ok = new.at("metadata.namespace").str() == "kube-node-lease" && new.at("metadata.name").str() == node;
            if ok { Ok(()) } else { Err(refuse(a, new, "can only access node lease with the same name as the requesting node")) }
        }
        ("storage.k8s.io", "csinodes") => {
            if new.at("metadata.name").str() == node {
                Ok(())
            } else {
                Err(refuse(a, new, "can only access CSINode with the same name as the requesting node"))
            }
        }
        ("resource.k8s.io", "resourceslices") if a.operation == Operation::Create => {
            if new.at("spec.nodeName").str() == node {
                Ok(())
            } else {
                Err(refuse(a, new, "can only create ResourceSlice with the same NodeName as the requesting node"))
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
                new,
                format!("pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"),
            ));
        }
        if new.at("spec.nodeName").str() != node {
            return Err(refuse(a, new, format!("node {node:?} can only create pods with spec.nodeName set to itself")));
        }
        if new.at("metadata.ownerReferences").len() > 1 {
            return Err(refuse(a, new, format!("node {node:?} can only create pods with a single owner reference set to itself")));
        }
        if !new.at("spec.serviceAccountName").str().is_empty() {
            return Err(refuse(a, new, format!("node {node:?} can not create pods that reference a service account")));
        }
        for v in new.at("spec.volumes").iter() {
            for kind in ["secret", "configMap", "persistentVolumeClaim"] {
                if v.get(kind).exists() {
                    return Err(refuse(a, new, format!("node {node:?} can not create pods that reference {}s", kind.to_lowercase())));
                }
            }
        }
        return Ok(());
    }
    if a.operation == Operation::Update && a.subresource == "status" {
        let bound = old.is_some_and(|o| o.at("spec.nodeName").str() == node);
        if !bound {
            return Err(refuse(a, new, format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself")));
        }
        if old.is_some_and(|o| !o.at("metadata.labels").semantic_eq(new.at("metadata.labels"))) {
            return Err(refuse(a, new, format!("node {node:?} cannot update labels through pod status")));
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
        return Err(refuse(a, new, format!("node {node:?} is not allowed to modify node {name:?}")));
    }
    let labels = |d: &Doc| d.at("metadata.labels").entries().map(|(k, v)| (k.to_owned(), v.str().to_owned())).collect::<Vec<_>>();
    match (a.operation, old) {
        (Operation::Create, _) => {
            let bad: Vec<String> = labels(new).into_iter().map(|(k, _)| k).filter(|k| !own_label(k)).collect();
            if !bad.is_empty() {
                return Err(refuse(a, new, format!("node {node:?} is not allowed to set the following labels: {}", bad.join(", "))));
            }
            Ok(())
        }
        (Operation::Update, Some(old)) => {
            if !new.at("spec.taints").semantic_eq(old.at("spec.taints")) {
                return Err(refuse(a, new, format!("node {node:?} is not allowed to modify taints")));
            }
            let (n, o) = (labels(new), labels(old));
            let mut changed: Vec<String> =
                n.iter().filter(|l| !o.contains(l)).chain(o.iter().filter(|l| !n.contains(l))).map(|(k, _)| k.clone()).collect();
            changed.retain(|k| !own_label(k));
            changed.sort();
            changed.dedup();
            if !changed.is_empty() {
                return Err(refuse(a, new, format!("is not allowed to modify labels: {}", changed.join(", "))));
            }
            if !new.at("metadata.ownerReferences").semantic_eq(old.at("metadata.ownerReferences")) {
                return Err(refuse(a, new, format!("node {node:?} is not allowed to modify ownerReferences")));
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
        Err(refuse(a, new, format!("can only create a node CSR with CN=system:node:{node}")))
    }
}

pub fn delete(a: &Attributes<'_>, _: Option<&Doc>, old: Option<&Doc>) -> Result<(), ApiError> {
    let (Some(node), Some(old), Operation::Delete) = (node_of(&a.ctx.user), old, a.operation) else { return Ok(()) };
    match (a.res.group.as_str(), a.res.plural.as_str()) {
        ("", "pods") if old.at("spec.nodeName").str() != node => {
            Err(refuse(a, old, format!("node {node:?} can only delete pods with spec.nodeName set to itself")))
        }
        ("", "nodes") => Err(refuse(a, old, format!("node {node:?} is not allowed to delete nodes"))),
        _ => Ok(()),
    }
}

/// What is posted to a subresource: evictions of its own pods, and tokens for them.
pub async fn posted(a: &Attributes<'_>, body: &Doc) -> Result<(), ApiError> {
    let Some(node) = node_of(&a.ctx.user) else { return Ok(()) };
    match (a.res.group.as_str(), a.res.plural.as_str(), a.subresource) {
        ("", "pods", "eviction") => {
            let pod = pod_of(a, &a.ctx.info.name)?;
            if pod.at("spec.nodeName").str() == node {
                Ok(())
            } else {
                Err(refuse(a, body, format!("node {node:?} can only evict pods with spec.nodeName set to itself")))
            }
        }
        ("", "serviceaccounts", "token") => token(a, node, body).await,
        _ => Ok(()),
    }
}

fn pod_of(a: &Attributes<'_>, name: &str) -> Result<Doc, ApiError> {
    let pod = a.ctx.server.objects.get("pods", &format!("{}/{name}", a.ctx.info.namespace));
    pod.ok_or_else(|| ApiError::not_found(Group("", "pods"), name))
}

/// A kubelet asks for tokens only for pods that run on its node, and only for audiences that they name.
async fn token(a: &Attributes<'_>, node: &str, request: &Doc) -> Result<(), ApiError> {
    let to = request.at("spec.boundObjectRef");
    if (to.get("apiVersion").str(), to.get("kind").str()) != ("v1", "Pod") || to.get("name").str().is_empty() {
        return Err(refuse(a, request, "node requested token not bound to a pod"));
    }
    let uid = to.get("uid").str();
    if uid.is_empty() {
        return Err(refuse(a, request, "node requested token with a pod binding without a uid"));
    }
    let pod = pod_of(a, to.get("name").str())?;
    let real = pod.at("metadata.uid").str();
    if uid != real {
        return Err(refuse(
            a,
            request,
            format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record ({real}). The object might have been deleted and then recreated"
            ),
        ));
    }
    if pod.at("spec.nodeName").str() != node {
        return Err(refuse(a, request, "node requested token bound to a pod scheduled on a different node"));
    }
    let audiences: Vec<&str> = request.at("spec.audiences").iter().map(|s| s.str()).collect();
    let asked = match audiences.as_slice() {
        [] => "",
        [one] => one,
        _ => return Err(refuse(a, request, format!("node may only request 0 or 1 audiences, {} were requested", audiences.len()))),
    };
    if names_audience(a, &pod, asked) || may_ask_for(a, asked).await {
        Ok(())
    } else {
        Err(refuse(a, request, format!("audience {asked:?} not found in pod spec volume")))
    }
}

/// Whether a volume of the pod has tokens for the audience: a projected one, or one of a CSI driver that asks for them.
fn names_audience(a: &Attributes<'_>, pod: &Doc, audience: &str) -> bool {
    let objects = &a.ctx.server.objects;
    let of_driver = |driver: &str| {
        !driver.is_empty()
            && objects
                .get("csidrivers", driver)
                .is_some_and(|d| d.at("spec.tokenRequests").iter().any(|t| t.get("audience").str() == audience))
    };
    let of_claim = |claim: &str| {
        objects.get("persistentvolumeclaims", &format!("{}/{claim}", a.ctx.info.namespace)).is_some_and(|c| {
            objects.get("persistentvolumes", c.at("spec.volumeName").str()).is_some_and(|v| of_driver(v.at("spec.csi.driver").str()))
        })
    };
    pod.at("spec.volumes").iter().any(|v| {
        let claim = match v.get("ephemeral").exists() {
            true => format!("{}-{}", pod.at("metadata.name").str(), v.get("name").str()),
            false => v.get("persistentVolumeClaim").get("claimName").str().to_owned(),
        };
        v.get("projected").get("sources").iter().any(|s| {
            let token = s.get("serviceAccountToken");
            token.exists() && token.get("audience").str() == audience
        }) || of_driver(v.get("csi").get("driver").str())
            || (!claim.is_empty() && of_claim(&claim))
    })
}

/// Roles may let kubelets ask for more audiences.
async fn may_ask_for(a: &Attributes<'_>, audience: &str) -> bool {
    let asked = crate::authz::Attributes {
        verb: "request-serviceaccounts-token-audience".into(),
        is_resource: true,
        resource: audience.into(),
        version: "v1".into(),
        namespace: a.ctx.info.namespace.clone(),
        name: a.ctx.info.name.clone(),
        ..Default::default()
    };
    a.ctx.server.authz.decide(&a.ctx.user, &asked).await.allowed()
}
