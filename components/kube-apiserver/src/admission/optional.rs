//! Plugins that are off unless `--enable-admission-plugins` names them.

use k8s_schema::Doc;
use serde_json::json;

use super::{Attributes, Operation};
use crate::{
    authz::{self, Decision},
    http::{ApiError, Group},
};

fn is_new_or_changed(a: &Attributes<'_>) -> bool {
    matches!(a.operation, Operation::Create | Operation::Update)
}

const CONTAINERS: [&str; 2] = ["initContainers", "containers"];

/// `AlwaysPullImages`: an image is pulled with the pod's own credentials, not taken because another pod had it pulled.
pub fn always_pull_images(a: &Attributes<'_>, pod: &mut Doc, old: Option<&Doc>) -> Result<(), ApiError> {
    let ephemeral = a.res.plural == "pods" && a.res.group.is_empty() && a.subresource == "ephemeralcontainers";
    if !is_new_or_changed(a) || !(a.is("", "pods") || ephemeral) {
        return Ok(());
    }
    // A pod that uses the images it used before is left alone.
    let images = |d: &Doc| -> Vec<String> {
        let lists = CONTAINERS.iter().chain(&["ephemeralContainers"]);
        lists.flat_map(|l| d.at("spec").get(l).iter().map(|c| c.get("image").str().to_owned()).collect::<Vec<_>>()).collect()
    };
    if a.operation == Operation::Update
        && let Some(old) = old
    {
        let before = images(old);
        if images(pod).iter().all(|i| before.contains(i)) {
            return Ok(());
        }
    }
    let lists: &[&str] = if ephemeral { &["ephemeralContainers"] } else { &CONTAINERS };
    for list in lists {
        for i in 0..pod.at("spec").get(list).len() {
            pod.set(&format!("spec.{list}[{i}].imagePullPolicy"), "Always").map_err(ApiError::internal)?;
        }
    }
    let volumes: Vec<bool> = pod.at("spec.volumes").iter().map(|v| v.get("image").exists()).collect();
    for (i, _) in volumes.into_iter().enumerate().filter(|(_, image)| *image) {
        pod.set(&format!("spec.volumes[{i}].image.pullPolicy"), "Always").map_err(ApiError::internal)?;
    }
    Ok(())
}

/// `DenyServiceExternalIPs`: no service gets addresses that it did not have.
pub fn deny_external_ips(a: &Attributes<'_>, new: Option<&Doc>, old: Option<&Doc>) -> Result<(), ApiError> {
    let Some(new) = new.filter(|_| is_new_or_changed(a) && a.is("", "services")) else { return Ok(()) };
    let had: Vec<&str> = old.map(|o| o.at("spec.externalIPs").strings().collect()).unwrap_or_default();
    if new.at("spec.externalIPs").strings().all(|ip| had.contains(&ip)) {
        return Ok(());
    }
    let why = "Use of external IPs is denied by admission control";
    Err(ApiError::forbidden(Group("", "services"), a.shown_name(new), why))
}

/// `LimitPodHardAntiAffinityTopology`: pods may keep others off their node, not off a larger place.
pub fn limit_anti_affinity(a: &Attributes<'_>, new: Option<&Doc>, _: Option<&Doc>) -> Result<(), ApiError> {
    let Some(pod) = new.filter(|_| is_new_or_changed(a) && a.is("", "pods")) else { return Ok(()) };
    let terms = pod.at("spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution");
    match terms.iter().find(|t| t.get("topologyKey").str() != "kubernetes.io/hostname") {
        None => Ok(()),
        Some(term) => {
            let why = format!(
                "affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey {} but only key kubernetes.io/hostname is allowed",
                term.get("topologyKey").str()
            );
            Err(ApiError::forbidden(Group("", "pods"), a.shown_name(pod), why))
        }
    }
}

/// `ExtendedResourceToleration`: pods that ask for a device may go where nodes are kept for such pods.
pub fn extended_resource_toleration(a: &Attributes<'_>, pod: &mut Doc, _: Option<&Doc>) -> Result<(), ApiError> {
    if !is_new_or_changed(a) || !a.is("", "pods") {
        return Ok(());
    }
    let extended =
        |name: &str| name.split_once('/').is_some_and(|(domain, _)| !domain.ends_with("kubernetes.io")) && !name.starts_with("requests.");
    let mut names: Vec<String> = Vec::new();
    for c in CONTAINERS.iter().flat_map(|l| pod.at("spec").get(l).iter()) {
        names.extend(c.get("resources").get("requests").entries().map(|(k, _)| k.to_owned()).filter(|k| extended(k)));
    }
    names.sort();
    names.dedup();
    for name in names {
        let tolerates =
            |t: k8s_schema::Ref<'_>| t.get("key").str() == name && t.get("operator").str() == "Exists" && t.get("effect").str().is_empty();
        if !pod.at("spec.tolerations").iter().any(tolerates) {
            pod.push("spec.tolerations", json!({"key": name, "operator": "Exists"})).map_err(ApiError::internal)?;
        }
    }
    Ok(())
}

const NODE_SELECTOR: &str = "scheduler.alpha.kubernetes.io/node-selector";

/// `PodNodeSelector`: pods go to the nodes that their namespace is for.
pub fn pod_node_selector(a: &Attributes<'_>, pod: &mut Doc, _: Option<&Doc>) -> Result<(), ApiError> {
    if a.operation != Operation::Create || !a.is("", "pods") {
        return Ok(());
    }
    let name = pod.meta().name().to_owned();
    let refused = |why: String| ApiError::forbidden(Group("", "pods"), &name, why);
    let Some(namespace) = a.ctx.server.objects.get("namespaces", &a.ctx.info.namespace) else {
        return Err(refused(format!("namespace {} does not exist", a.ctx.info.namespace)));
    };
    let text = namespace.at("metadata.annotations").get(NODE_SELECTOR).str().to_owned();
    let mut wanted = Vec::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let Some((k, v)) = part.split_once('=') else {
            return Err(refused(format!("invalid selector {text:?} of the namespace")));
        };
        wanted.push((k.trim().to_owned(), v.trim_start_matches('=').trim().to_owned()));
    }
    for (k, v) in &wanted {
        let own = pod.at("spec.nodeSelector").get(k).as_str().map(str::to_owned);
        match own {
            Some(own) if own != *v => {
                return Err(refused("pod node label selector conflicts with its namespace node label selector".into()));
            }
            Some(_) => {}
            None => pod.set(&format!("spec.nodeSelector[{k}]"), v.as_str()).map_err(ApiError::internal)?,
        }
    }
    Ok(())
}

/// `NamespaceExists`: nothing is written to a namespace that is not there. (`NamespaceLifecycle` says so already.)
pub fn namespace_exists(a: &Attributes<'_>, new: Option<&Doc>, _: Option<&Doc>) -> Result<(), ApiError> {
    let namespace = &a.ctx.info.namespace;
    if new.is_none() || namespace.is_empty() || a.is("", "namespaces") {
        return Ok(());
    }
    match a.ctx.server.objects.get("namespaces", namespace) {
        Some(_) => Ok(()),
        None => Err(ApiError::not_found(Group("", "namespaces"), namespace)),
    }
}

/// `AlwaysDeny`: nothing is admitted.
pub fn always_deny(a: &Attributes<'_>, new: Option<&Doc>, old: Option<&Doc>) -> Result<(), ApiError> {
    let name = new.or(old).map_or("", |d| a.shown_name(d));
    Err(ApiError::forbidden(Group(&a.res.group, &a.res.plural), name, "admission control is denying all modifications"))
}

/// `OwnerReferencesPermissionEnforcement`: who changes owners may delete the object, and who keeps an owner from going may change its
/// finalizers.
pub async fn owner_references(a: &Attributes<'_>, new: Option<&Doc>, old: Option<&Doc>) -> Result<(), ApiError> {
    let Some(new) = new.filter(|_| is_new_or_changed(a) && a.subresource != "status") else { return Ok(()) };
    let before: Vec<serde_json::Value> =
        old.map(|o| o.at("metadata.ownerReferences").iter().map(|r| r.to_value()).collect()).unwrap_or_default();
    let now: Vec<serde_json::Value> = new.at("metadata.ownerReferences").iter().map(|r| r.to_value()).collect();
    if before == now {
        return Ok(());
    }
    let name = a.shown_name(new);
    let asked = |group: &str, resource: &str, sub: &str, verb: &str, name: &str, namespace: &str| authz::Attributes {
        verb: verb.into(),
        is_resource: true,
        group: group.into(),
        version: "*".into(),
        resource: resource.into(),
        subresource: sub.into(),
        namespace: namespace.into(),
        name: name.into(),
        ..authz::Attributes::default()
    };
    let refused = |why: String| Err(ApiError::forbidden(Group(&a.res.group, &a.res.plural), name, why));
    let authz = &a.ctx.server.authz;
    if old.is_some() {
        let delete = asked(&a.res.group, &a.res.plural, "", "delete", new.meta().name(), &a.ctx.info.namespace);
        if let Decision::NoOpinion(r) | Decision::Deny(r) = authz.decide(&a.ctx.user, &delete).await {
            return refused(format!("cannot set an ownerRef on a resource you can't delete: {r}, <nil>"));
        }
    }
    for owner in now
        .iter()
        .filter(|o| o["blockOwnerDeletion"] == true && !before.iter().any(|b| b["uid"] == o["uid"] && b["blockOwnerDeletion"] == true))
    {
        let (group, version) = k8s_schema::split_api_version(owner["apiVersion"].as_str().unwrap_or("")).unwrap_or_default();
        let kind = owner["kind"].as_str().unwrap_or("");
        let Some(res) = a.ctx.server.registry.of_group_version(group, version).into_iter().find(|r| r.kind == kind) else {
            return refused(format!(
                "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion {group}/{version} Kind {kind}: no matches"
            ));
        };
        let namespace = if res.namespaced { a.ctx.info.namespace.as_str() } else { "" };
        let finalize = asked(&res.group, &res.plural, "finalizers", "update", owner["name"].as_str().unwrap_or(""), namespace);
        if let Decision::NoOpinion(r) | Decision::Deny(r) = authz.decide(&a.ctx.user, &finalize).await {
            return refused(format!(
                "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: {r}, <nil>"
            ));
        }
    }
    Ok(())
}
