//! Columns and rows of the kinds that `kubectl get` knows. Columns are data; a row is a function of the object.

mod core_rows;
mod group_rows;

use std::{collections::HashMap, sync::OnceLock};

use core_rows::*;
use group_rows::*;
use jiff::Timestamp;
use k8s_schema::{Doc, Ref};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Debug, Deserialize)]
#[serde(from = "(String, String, String, i64, String)")]
pub struct Column {
    pub name: String,
    pub type_: String,
    pub format: String,
    pub priority: i64,
    pub description: String,
}

impl From<(String, String, String, i64, String)> for Column {
    fn from((name, type_, format, priority, description): (String, String, String, i64, String)) -> Self {
        Self { name, type_, format, priority, description }
    }
}

pub struct Row {
    pub cells: Vec<Value>,
    pub conditions: Vec<Value>,
}

pub struct Printer {
    pub columns: &'static [Column],
    pub row: fn(&Doc) -> Row,
}

fn columns() -> &'static HashMap<String, Vec<Column>> {
    static COLUMNS: OnceLock<HashMap<String, Vec<Column>>> = OnceLock::new();
    COLUMNS.get_or_init(|| match serde_json::from_str(include_str!("../../../data/columns.json")) {
        Ok(c) => c,
        Err(e) => {
            tracing::error!(error = %e, "the table columns cannot be read");
            HashMap::new()
        }
    })
}

type RowFn = fn(&Doc) -> Vec<Value>;

/// Kinds with rows of their own; the others show their name and a time.
static ROWS: &[(&str, &str, RowFn)] = &[
    ("", "ConfigMap", |d| vec![name(d), count(d.at("data").len() + d.at("binaryData").len()), age(d)]),
    ("", "Secret", |d| vec![name(d), text(d.at("type")), count(d.at("data").len()), age(d)]),
    ("", "Service", service),
    ("", "Node", node),
    ("", "Namespace", |d| vec![name(d), text(d.at("status.phase")), age(d)]),
    ("", "Endpoints", |d| vec![name(d), json!(endpoints(d)), age(d)]),
    ("", "Event", event),
    ("", "PersistentVolumeClaim", claim),
    ("", "PersistentVolume", volume),
    ("", "PodTemplate", |d| {
        let t = d.at("template");
        vec![
            name(d),
            json!(containers(t.get("spec"), "name")),
            json!(containers(t.get("spec"), "image")),
            json!(labels(t.get("metadata").get("labels"))),
        ]
    }),
    ("", "ResourceQuota", quota),
    ("", "ReplicationController", replicas),
    ("apps", "ReplicaSet", replicas),
    ("apps", "Deployment", deployment),
    ("apps", "DaemonSet", daemon_set),
    ("apps", "StatefulSet", stateful_set),
    ("apps", "ControllerRevision", |d| vec![name(d), json!(controller(d)), count(d.at("revision").int()), age(d)]),
    ("batch", "Job", job),
    ("batch", "CronJob", cron_job),
    ("autoscaling", "HorizontalPodAutoscaler", autoscaler),
    ("policy", "PodDisruptionBudget", |d| {
        vec![
            name(d),
            or(d.at("spec.minAvailable"), "N/A"),
            or(d.at("spec.maxUnavailable"), "N/A"),
            count(d.at("status.disruptionsAllowed").int()),
            age(d),
        ]
    }),
    ("networking.k8s.io", "Ingress", ingress),
    ("networking.k8s.io", "IngressClass", |d| {
        let p = d.at("spec.parameters");
        let shown = if p.exists() {
            let group = p.get("apiGroup").str();
            let kind = p.get("kind").str();
            let kind = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
            format!("{kind}/{}", p.get("name").str())
        } else {
            "<none>".into()
        };
        vec![name(d), text(d.at("spec.controller")), json!(shown), age(d)]
    }),
    ("networking.k8s.io", "NetworkPolicy", |d| vec![name(d), json!(selector(d.at("spec.podSelector"))), age(d)]),
    ("networking.k8s.io", "IPAddress", |d| {
        let p = d.at("spec.parentRef");
        let parts: Vec<&str> =
            ["group", "resource", "namespace", "name"].iter().map(|f| p.get(f).str()).filter(|s| !s.is_empty()).collect();
        vec![name(d), json!(parts.join("/")), age(d)]
    }),
    ("networking.k8s.io", "ServiceCIDR", |d| vec![name(d), json!(strings(d.at("spec.cidrs")).join(",")), age(d)]),
    ("rbac.authorization.k8s.io", "Role", |d| vec![name(d), text(d.at("metadata.creationTimestamp"))]),
    ("rbac.authorization.k8s.io", "ClusterRole", |d| vec![name(d), text(d.at("metadata.creationTimestamp"))]),
    ("rbac.authorization.k8s.io", "RoleBinding", binding),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding", binding),
    ("storage.k8s.io", "StorageClass", storage_class),
    ("storage.k8s.io", "CSIDriver", csi_driver),
    ("storage.k8s.io", "CSINode", |d| vec![name(d), count(d.at("spec.drivers").len()), age(d)]),
    ("storage.k8s.io", "VolumeAttachment", |d| {
        vec![
            name(d),
            text(d.at("spec.attacher")),
            text(d.at("spec.source.persistentVolumeName")),
            text(d.at("spec.nodeName")),
            json!(d.at("status.attached").bool()),
            age(d),
        ]
    }),
    ("scheduling.k8s.io", "PriorityClass", |d| {
        vec![name(d), count(d.at("value").int()), json!(d.at("globalDefault").bool()), age(d), text(d.at("preemptionPolicy"))]
    }),
    ("node.k8s.io", "RuntimeClass", |d| vec![name(d), text(d.at("handler")), age(d)]),
    ("coordination.k8s.io", "Lease", |d| vec![name(d), text(d.at("spec.holderIdentity")), age(d)]),
    ("discovery.k8s.io", "EndpointSlice", endpoint_slice),
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration", |d| vec![name(d), count(d.at("webhooks").len()), age(d)]),
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration", |d| vec![name(d), count(d.at("webhooks").len()), age(d)]),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy", |d| {
        let p = d.at("spec.paramKind");
        let kind = if p.exists() { format!("{}/{}", p.get("apiVersion").str(), p.get("kind").str()) } else { "<unset>".into() };
        vec![name(d), count(d.at("spec.validations").len()), json!(kind), age(d)]
    }),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding", |d| {
        let p = d.at("spec.paramRef");
        let shown = if !p.exists() {
            "<unset>".to_owned()
        } else if p.get("namespace").str().is_empty() {
            format!("*/{}", p.get("name").str())
        } else {
            format!("{}/{}", p.get("namespace").str(), p.get("name").str())
        };
        vec![name(d), text(d.at("spec.policyName")), json!(shown), age(d)]
    }),
    ("flowcontrol.apiserver.k8s.io", "FlowSchema", |d| {
        let missing = d.at("status.conditions").find("type", "Dangling").get("status").str();
        vec![
            name(d),
            text(d.at("spec.priorityLevelConfiguration.name")),
            count(d.at("spec.matchingPrecedence").int()),
            or(d.at("spec.distinguisherMethod.type"), "<none>"),
            age(d),
            json!(if missing.is_empty() { "?" } else { missing }),
        ]
    }),
    ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration", |d| {
        let l = d.at("spec.limited");
        let shares = if l.exists() {
            l.get("nominalConcurrencyShares").to_value()
        } else {
            or(d.at("spec.exempt.nominalConcurrencyShares"), "<none>")
        };
        let q = l.get("limitResponse").get("queuing");
        vec![
            name(d),
            text(d.at("spec.type")),
            shares,
            or(q.get("queues"), "<none>"),
            or(q.get("handSize"), "<none>"),
            or(q.get("queueLengthLimit"), "<none>"),
            age(d),
        ]
    }),
    ("certificates.k8s.io", "CertificateSigningRequest", csr),
    ("apiregistration.k8s.io", "APIService", |d| {
        let s = d.at("spec.service");
        let service = if s.exists() { format!("{}/{}", s.get("namespace").str(), s.get("name").str()) } else { "Local".into() };
        let c = d.at("status.conditions").find("type", "Available");
        let shown = match (c.get("status").str(), c.get("reason").str()) {
            ("", _) => "Unknown".to_owned(),
            ("True", _) => "True".into(),
            (s, r) => format!("{s} ({r})"),
        };
        vec![name(d), json!(service), json!(shown), age(d)]
    }),
    ("apiextensions.k8s.io", "CustomResourceDefinition", |d| vec![name(d), text(d.at("metadata.creationTimestamp"))]),
    ("storage.k8s.io", "CSIStorageCapacity", |d| vec![name(d), text(d.at("metadata.creationTimestamp"))]),
    ("resource.k8s.io", "ResourceClaim", |d| {
        let deleted = d.at("metadata.deletionTimestamp").exists();
        let states =
            [("deleted", deleted), ("allocated", d.at("status.allocation").exists()), ("reserved", !d.at("status.reservedFor").is_empty())];
        let shown: Vec<&str> = states.iter().filter(|(_, is)| *is).map(|(s, _)| *s).collect();
        vec![name(d), json!(if shown.is_empty() { "pending".to_owned() } else { shown.join(",") }), age(d)]
    }),
    ("resource.k8s.io", "ResourceSlice", |d| {
        vec![name(d), text(d.at("spec.nodeName")), text(d.at("spec.driver")), text(d.at("spec.pool.name")), age(d)]
    }),
    ("", "LimitRange", |d| vec![name(d), text(d.at("metadata.creationTimestamp"))]),
];

pub fn of(group: &str, kind: &str) -> Printer {
    static NAME_AND_AGE: OnceLock<Vec<Column>> = OnceLock::new();
    let columns = match columns().get(&format!("{group}/{kind}")) {
        Some(c) => c.as_slice(),
        None => NAME_AND_AGE.get_or_init(|| columns().get("/ServiceAccount").map(|c| c.iter().map(clone).collect()).unwrap_or_default()),
    };
    let row: fn(&Doc) -> Row = if kind == "Pod" && group.is_empty() { pod_row } else { plain_row };
    Printer { columns, row }
}

fn clone(c: &Column) -> Column {
    Column {
        name: c.name.clone(),
        type_: c.type_.clone(),
        format: c.format.clone(),
        priority: c.priority,
        description: c.description.clone(),
    }
}

fn plain_row(d: &Doc) -> Row {
    let group = d.api_version().split_once('/').map_or("", |(g, _)| g);
    let row = ROWS.iter().find(|(g, k, _)| *g == group && *k == d.kind());
    // An Event of either group is one kind.
    let row = row.or_else(|| ROWS.iter().find(|(_, k, _)| *k == "Event" && d.kind() == "Event"));
    Row { cells: row.map_or_else(|| vec![name(d), age(d)], |(_, _, f)| f(d)), conditions: Vec::new() }
}

fn name(d: &Doc) -> Value {
    d.at("metadata.name").str().into()
}

fn text(r: Ref<'_>) -> Value {
    match r.to_value() {
        Value::Null => "".into(),
        v => v,
    }
}

fn count(n: impl TryInto<i64>) -> Value {
    n.try_into().unwrap_or(i64::MAX).into()
}

/// The value as text, or what stands for its absence.
fn or(r: Ref<'_>, absent: &str) -> Value {
    match r.to_value() {
        Value::Null => absent.into(),
        Value::String(s) if s.is_empty() => absent.into(),
        Value::String(s) => s.into(),
        v => v.to_string().into(),
    }
}

fn strings(r: Ref<'_>) -> Vec<&str> {
    r.iter().map(|s| s.str()).collect()
}

fn age(d: &Doc) -> Value {
    since(d.at("metadata.creationTimestamp"))
}

fn since(r: Ref<'_>) -> Value {
    match r.time_seconds() {
        Some(t) => duration(Timestamp::now().as_second() - t).into(),
        None => "<unknown>".into(),
    }
}

/// Upstream's short human form.
pub fn duration(s: i64) -> String {
    let (m, h, d) = (s / 60, s / 3600, s / 86400);
    match s {
        ..=-2 => "<invalid>".into(),
        -1..=0 => "0s".into(),
        1..120 => format!("{s}s"),
        120..600 if s % 60 == 0 => format!("{m}m"),
        120..600 => format!("{m}m{}s", s % 60),
        600..10800 => format!("{m}m"),
        10800..28800 if m % 60 == 0 => format!("{h}h"),
        10800..28800 => format!("{h}h{}m", m % 60),
        28800..172_800 => format!("{h}h"),
        172_800..691_200 if h % 24 == 0 => format!("{d}d"),
        172_800..691_200 => format!("{d}d{}h", h % 24),
        691_200..63_072_000 => format!("{d}d"),
        63_072_000..252_288_000 if d % 365 == 0 => format!("{}y", d / 365),
        63_072_000..252_288_000 => format!("{}y{}d", d / 365, d % 365),
        _ => format!("{}y", d / 365),
    }
}

fn labels(r: Ref<'_>) -> String {
    let mut l: Vec<String> = r.entries().map(|(k, v)| format!("{k}={}", v.str())).collect();
    if l.is_empty() {
        return "<none>".into();
    }
    l.sort();
    l.join(",")
}

fn selector(r: Ref<'_>) -> String {
    match k8s_schema::selector::LabelSelector::from_ref(r) {
        Ok(s) if !s.is_empty() => s.to_string(),
        _ => "<none>".into(),
    }
}

fn containers(spec: Ref<'_>, field: &str) -> String {
    spec.get("containers").iter().map(|c| c.get(field).str()).collect::<Vec<_>>().join(",")
}

fn controller(d: &Doc) -> String {
    let group = |av: &str| av.split_once('/').map(|(g, _)| format!(".{g}")).unwrap_or_default();
    d.at("metadata.ownerReferences").iter().find(|o| o.get("controller").bool()).map_or("<none>".into(), |o| {
        format!("{}{}/{}", o.get("kind").str().to_lowercase(), group(o.get("apiVersion").str()), o.get("name").str())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        for (s, want) in
            [(5, "5s"), (119, "119s"), (125, "2m5s"), (3600, "60m"), (11000, "3h3m"), (90_000, "25h"), (180_000, "2d2h"), (700_000, "8d")]
        {
            assert_eq!(duration(s), want, "{s}");
        }
    }

    #[test]
    fn every_row_has_as_many_cells_as_columns() {
        let schema = k8s_schema::Schema::builtin();
        for (group, kind, _) in ROWS {
            let Some((.., ty)) = schema.kinds().find(|(g, _, k, _)| g == group && k == kind) else { continue };
            let doc = Doc::new(&schema, ty);
            let p = of(group, kind);
            // Upstream shows the age of addresses in a column that it does not define.
            let more = usize::from(*kind == "IPAddress");
            assert_eq!((p.row)(&doc).cells.len(), p.columns.len() + more, "{group}/{kind}");
        }
    }
}
