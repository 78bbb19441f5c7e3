//! What exists on every cluster before anybody made anything: namespaces, roles and bindings, priority classes, flow control, the
//! `kubernetes` Service. Written in a few transactions at start, and kept.

mod legacy_tokens;
pub mod rbac;
mod trust;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use k8s_schema::Doc;
use serde_json::{Value, json, value::RawValue};

use crate::{handlers::write, http::ApiError, kinds, registry::Resource, server::Server, services, storage::StoreError};

/// Objects of the bootstrap data, by resource, as upstream has them.
static DATA: &str = include_str!("../../data/bootstrap.json");

/// The parts of [`DATA`] that are written, with the resource each belongs to.
const SETS: &[(&str, &str, &str)] = &[
    ("clusterroles", "rbac.authorization.k8s.io", "clusterroles"),
    ("clusterrolebindings", "rbac.authorization.k8s.io", "clusterrolebindings"),
    ("roles", "rbac.authorization.k8s.io", "roles"),
    ("rolebindings", "rbac.authorization.k8s.io", "rolebindings"),
    ("priorityclasses", "scheduling.k8s.io", "priorityclasses"),
    ("prioritylevelconfigurations", "flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations"),
    ("flowschemas", "flowcontrol.apiserver.k8s.io", "flowschemas"),
    ("apiservices", "apiregistration.k8s.io", "apiservices"),
];

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// The objects of a part of the data.
pub fn items(set: &str) -> Vec<Value> {
    // Only that part is made into values.
    let parts: BTreeMap<&str, &RawValue> = serde_json::from_str(DATA).unwrap_or_default();
    let mut part: Value = parts.get(set).and_then(|p| serde_json::from_str(p.get()).ok()).unwrap_or_default();
    match part["items"].take() {
        Value::Array(items) => items,
        _ => Vec::new(),
    }
}

/// Creates an object that nobody has made yet.
pub async fn create(server: &Server, res: &Resource, v: Value) -> Result<(), ApiError> {
    let (key, value) = object(server, res, v)?;
    match server.etcd.create(&key, value, 0).await {
        Ok(_) | Err(StoreError::Exists { .. }) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn data() -> Value {
    serde_json::from_str(DATA).unwrap_or_default()
}

/// A stored object made of a JSON value.
fn object(server: &Server, res: &Resource, mut v: Value) -> Result<(String, Bytes), ApiError> {
    v["kind"] = res.kind.as_str().into();
    v["apiVersion"] = res.api_version().into();
    v["metadata"]["uid"] = uuid::Uuid::new_v4().to_string().into();
    v["metadata"]["creationTimestamp"] = write::now().into();
    let ty = res.type_id.ok_or_else(|| ApiError::internal(format!("no type {}", res.kind)))?;
    let mut doc = Doc::from_value(&server.objects.schema, ty, &v).map_err(ApiError::internal)?.doc;
    kinds::defaults::apply(res, &mut doc);
    let mut empty = Doc::new(&server.objects.schema, doc.type_id());
    empty.set_type_meta(&res.api_version(), &res.kind);
    kinds::meta::track(res, &mut doc, &empty, "kube-apiserver", "", kinds::strategy_of(res).reset_on_create());
    if res.plural == "namespaces" {
        (kinds::strategy_of(res).prepare_create)(&mut doc);
    }
    let key = res.key(doc.at("metadata.namespace").str(), doc.at("metadata.name").str());
    Ok((format!("{}{}/{key}", server.root, res.prefix), write::to_storage(&server.objects.schema, res, &doc)?))
}

fn resource(server: &Server, group: &str, plural: &str) -> Result<Arc<Resource>, ApiError> {
    server.registry.stored(group, plural).cloned().ok_or_else(ApiError::no_resource)
}

/// Writes everything that is missing. Needs the caches to be loaded.
pub async fn write_all(server: &Server) -> Result<(), ApiError> {
    let (mut missing, mut changed) = (Vec::new(), Vec::new());
    let namespaces = resource(server, "", "namespaces")?;
    for name in NAMESPACES {
        let v = json!({"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}});
        push(server, &namespaces, v, &mut missing, &mut changed)?;
    }
    let mut data = data();
    for (set, group, plural) in SETS {
        let res = resource(server, group, plural)?;
        let Value::Array(items) = data[*set]["items"].take() else { continue };
        for v in items {
            push(server, &res, v, &mut missing, &mut changed)?;
        }
    }
    // Upstream leaves the approval of serving certificates to others; here the certificate controller gives them, for a machine's own
    // names and addresses only.
    let approver = json!({"metadata": {"name": "strake:kubelet-serving-approver"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:certificates.k8s.io:kubelet-serving-approver"},
        "subjects": [
            {"kind": "ServiceAccount", "namespace": "kube-system", "name": "certificate-controller"},
            {"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "system:kube-controller-manager"}]});
    push(server, &*resource(server, "rbac.authorization.k8s.io", "clusterrolebindings")?, approver, &mut missing, &mut changed)?;
    let cidrs: Vec<String> = server.service_ranges.iter().map(ToString::to_string).collect();
    let ready = json!([{"type": "Ready", "status": "True", "reason": "", "message": "Kubernetes default Service CIDR is ready", "lastTransitionTime": write::now()}]);
    let v = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs}, "status": {"conditions": ready}});
    push(server, &*resource(server, "networking.k8s.io", "servicecidrs")?, v, &mut missing, &mut changed)?;
    let tracking = json!({"metadata": {"name": "kube-apiserver-legacy-service-account-token-tracking", "namespace": "kube-system"},
        "data": {"since": write::now()[..10]}});
    push(server, &*resource(server, "", "configmaps")?, tracking, &mut missing, &mut changed)?;
    let n = missing.len();
    let written = server.etcd.create_many(missing).await?;
    for (key, rev, value) in changed {
        match server.etcd.update(&key, rev, value, 0).await {
            // Someone else changed it: the next start looks again.
            Ok(_) | Err(StoreError::Changed { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    if n > 0 {
        tracing::info!(objects = written, "wrote bootstrap objects");
    }
    Ok(())
}

/// Notes what has to be written so that an object is there with all that it needs.
fn push(
    server: &Server,
    res: &Resource,
    v: Value,
    missing: &mut Vec<(String, Bytes)>,
    changed: &mut Vec<(String, i64, Bytes)>,
) -> Result<(), ApiError> {
    let m = &v["metadata"];
    let key = res.key(m["namespace"].as_str().unwrap_or(""), m["name"].as_str().unwrap_or(""));
    let there = server.objects.reflector.cache(&res.prefix).and_then(|c| c.get(&key));
    let Some(stored) = there else {
        missing.push(object(server, res, v)?);
        return Ok(());
    };
    if res.group == "rbac.authorization.k8s.io"
        && let Some(new) = server.objects.doc(&stored).and_then(|old| rbac::reconciled(&old, &v))
    {
        tracing::info!(resource = res.plural, name = key, "a bootstrap role or binding lacks something; it is added");
        let full = format!("{}{}/{key}", server.root, res.prefix);
        changed.push((full, stored.rev, write::to_storage(&server.objects.schema, res, &new)?));
    }
    Ok(())
}

/// Creates or replaces an object when what `same` looks at differs.
async fn ensure(server: &Server, res: &Resource, v: Value, same: &[&str]) -> Result<(), ApiError> {
    let m = &v["metadata"];
    let key = res.key(m["namespace"].as_str().unwrap_or(""), m["name"].as_str().unwrap_or(""));
    let full = format!("{}{}/{key}", server.root, res.prefix);
    let cached = server.objects.reflector.cache(&res.prefix).and_then(|c| c.get(&key));
    let Some(stored) = cached else {
        let (_, value) = object(server, res, v)?;
        return match server.etcd.create(&full, value, 0).await {
            Ok(_) | Err(StoreError::Exists { .. }) => Ok(()),
            Err(e) => Err(e.into()),
        };
    };
    let Some(old) = server.objects.doc(&stored) else { return Ok(()) };
    let mut new = old.clone();
    for path in same {
        let pointer = format!("/{}", path.replace('.', "/"));
        if let Some(x) = v.pointer(&pointer) {
            new.set(path, x.clone()).map_err(ApiError::internal)?;
        }
    }
    if same.iter().all(|p| new.at(p).semantic_eq(old.at(p))) {
        return Ok(());
    }
    match server.etcd.update(&full, stored.rev, write::to_storage(&server.objects.schema, res, &new)?, 0).await {
        Ok(_) | Err(StoreError::Changed { .. }) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// The first address of the first service range, which is the `kubernetes` Service's.
fn own_cluster_ip(server: &Server) -> Option<IpAddr> {
    server.service_ranges.first()?.hosts().next()
}

/// The `kubernetes` Service and, while this server is ready, itself among its endpoints.
async fn kubernetes_service(server: &Server) -> Result<(), ApiError> {
    let Some(ip) = own_cluster_ip(server) else { return Ok(()) };
    let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
    services::record_ip(server, ip, "default", "kubernetes").await?;
    let port = server.advertise_port;
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let v = json!({"metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": [family], "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": port}]},
        "status": {"loadBalancer": {}}});
    ensure(server, &*resource(server, "", "services")?, v, &["spec.ports", "spec.type"]).await?;
    let addresses = live_masters(server).await?;
    let subsets = json!([{"addresses": addresses.iter().map(|a| json!({"ip": a})).collect::<Vec<_>>(), "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}]);
    let v = json!({"metadata": {"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}}, "subsets": subsets});
    ensure(server, &*resource(server, "", "endpoints")?, v, &["subsets"]).await?;
    let endpoints: Vec<Value> = addresses.iter().map(|a| json!({"addresses": [a], "conditions": {"ready": true}})).collect();
    let v = json!({"metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": family, "endpoints": endpoints, "ports": [{"name": "https", "port": port, "protocol": "TCP"}]});
    ensure(server, &*resource(server, "discovery.k8s.io", "endpointslices")?, v, &["endpoints", "ports"]).await
}

/// Servers say that they live by a key with a lease; those whose lease is over are not endpoints any more.
async fn live_masters(server: &Server) -> Result<Vec<String>, ApiError> {
    let prefix = format!("{}masterleases/", server.root);
    let own = format!("{prefix}{}", server.advertise_address);
    let lease = server.etcd.lease(15).await?;
    let schema = &server.objects.schema;
    let mut d = Doc::of_kind(schema, "", "v1", "Endpoints").ok_or_else(|| ApiError::internal("no type Endpoints"))?;
    d.set("subsets", json!([{"addresses": [{"ip": server.advertise_address}]}])).map_err(ApiError::internal)?;
    let value: Bytes = d.to_protobuf().into();
    let (old, _) = server.etcd.get(&own).await?;
    let written = match old {
        Some(kv) => server.etcd.update(&own, kv.rev, value, lease).await,
        None => server.etcd.create(&own, value, lease).await,
    };
    match written {
        Ok(_) | Err(StoreError::Changed { .. } | StoreError::Exists { .. }) => {}
        Err(e) => return Err(e.into()),
    }
    let page = server.etcd.range(&prefix, crate::storage::prefix_end(&prefix), 100, 0).await?;
    let mut all: Vec<String> = page.kvs.iter().filter_map(|kv| kv.key.strip_prefix(prefix.as_str()).map(str::to_owned)).collect();
    all.sort();
    Ok(all)
}

/// What has to be looked at again and again while the server runs.
pub async fn keep(server: Arc<Server>) {
    let mut compaction = (0, 0);
    let mut round = 0u64;
    loop {
        let report = |what: &str, r: Result<(), ApiError>| {
            if let Err(e) = r {
                tracing::warn!(what, error = %e, "upkeep failed; it is tried again");
            }
        };
        report("the kubernetes Service", kubernetes_service(&server).await);
        report("the authentication ConfigMap", trust::publish(&server).await);
        report("when tokens of Secrets were used", legacy_tokens::note(&server).await);
        if round.is_multiple_of(6) {
            report("flow schemas and priority levels", crate::flow_control::upkeep::defaults(&server).await);
        }
        if round.is_multiple_of(18) {
            report("service addresses and ports", services::repair(&server).await);
        }
        // In every interval, to the revision of the one before.
        let rounds = server.compaction_interval.as_secs() / 10;
        if rounds > 0 && round.is_multiple_of(rounds) {
            match server.etcd.compact_round(compaction.0, compaction.1).await {
                Ok(next) => compaction = next,
                Err(e) => tracing::warn!(error = %e, "compaction failed"),
            }
        }
        round += 1;
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(10)) => {}
            () = server.stop.cancelled() => return leave(&server).await,
        }
    }
}

/// Takes itself out of the endpoints at the end.
async fn leave(server: &Server) {
    let own = format!("{}masterleases/{}", server.root, server.advertise_address);
    if let Ok((Some(kv), _)) = server.etcd.get(&own).await {
        // The lease ends it anyway.
        let _ = server.etcd.delete(&own, kv.rev).await;
    }
}
