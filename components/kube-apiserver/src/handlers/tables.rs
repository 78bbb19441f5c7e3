//! Columns and rows of the kinds that `kubectl get` knows. Columns are data; a row is a function of the object.

use std::{collections::HashMap, sync::OnceLock};

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
    COLUMNS.get_or_init(|| match serde_json::from_str(include_str!("../../data/columns.json")) {
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
        vec![name(d), json!(parts.join("/"))]
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

fn pod_row(d: &Doc) -> Row {
    let s = d.at("status");
    let mut reason = match s.get("reason").str() {
        "" => s.get("phase").str().to_owned(),
        r => r.to_owned(),
    };
    let gated =
        d.at("status.conditions").iter().any(|c| c.get("type").str() == "PodScheduled" && c.get("reason").str() == "SchedulingGated");
    if gated {
        reason = "SchedulingGated".into();
    }
    let (mut restarts, mut ready) = (0, 0);
    let mut last_restart: Option<i64> = None;
    let mut total = d.at("spec.containers").len();
    let note = |c: Ref<'_>, last: &mut Option<i64>| {
        if let Some(t) = c.get("lastState").get("terminated").get("finishedAt").time_seconds() {
            *last = Some(last.map_or(t, |l: i64| l.max(t)));
        }
    };
    let init_specs = d.at("spec.initContainers");
    let sidecar = |n: &str| init_specs.find("name", n).get("restartPolicy").str() == "Always";
    total += init_specs.iter().filter(|c| c.get("restartPolicy").str() == "Always").count();
    let mut initializing = false;
    for (i, c) in s.get("initContainerStatuses").iter().enumerate() {
        restarts += c.get("restartCount").int();
        note(c, &mut last_restart);
        let side = sidecar(c.get("name").str());
        let t = c.get("state").get("terminated");
        if side {
            if c.get("started").bool() {
                if c.get("ready").bool() {
                    ready += 1;
                }
                continue;
            }
        } else if t.exists() && t.get("exitCode").int() == 0 {
            continue;
        }
        let waiting = c.get("state").get("waiting").get("reason").str();
        reason = if t.exists() && !t.get("reason").str().is_empty() {
            format!("Init:{}", t.get("reason").str())
        } else if t.exists() && t.get("signal").int() != 0 {
            format!("Init:Signal:{}", t.get("signal").int())
        } else if t.exists() {
            format!("Init:ExitCode:{}", t.get("exitCode").int())
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{}", init_specs.len())
        };
        initializing = true;
        break;
    }
    let initialized = d.at("status.conditions").find("type", "Initialized").get("status").str() == "True";
    if !initializing || initialized {
        let mut running = false;
        let statuses: Vec<Ref<'_>> = s.get("containerStatuses").iter().collect();
        for c in statuses.iter().rev() {
            restarts += c.get("restartCount").int();
            note(*c, &mut last_restart);
            let (w, t) = (c.get("state").get("waiting").get("reason").str(), c.get("state").get("terminated"));
            if !w.is_empty() {
                reason = w.to_owned();
            } else if t.exists() && !t.get("reason").str().is_empty() {
                reason = t.get("reason").str().to_owned();
            } else if t.exists() && t.get("signal").int() != 0 {
                reason = format!("Signal:{}", t.get("signal").int());
            } else if t.exists() {
                reason = format!("ExitCode:{}", t.get("exitCode").int());
            } else if c.get("ready").bool() && c.get("state").get("running").exists() {
                running = true;
                ready += 1;
            }
        }
        if reason == "Completed" && running {
            let ok = d.at("status.conditions").find("type", "Ready").get("status").str() == "True";
            reason = if ok { "Running".into() } else { "NotReady".into() };
        }
    }
    if d.at("metadata.deletionTimestamp").exists() {
        if s.get("reason").str() == "NodeLost" {
            reason = "Unknown".into();
        } else if !matches!(s.get("phase").str(), "Failed" | "Succeeded") {
            reason = "Terminating".into();
        }
    }
    let mut shown = restarts.to_string();
    if let Some(t) = last_restart.filter(|_| restarts > 0) {
        shown = format!("{restarts} ({} ago)", duration(Timestamp::now().as_second() - t));
    }
    let none = |r: Ref<'_>| if r.str().is_empty() { json!("<none>") } else { text(r) };
    let gates = d.at("spec.readinessGates");
    let gates = if gates.len() == 0 {
        "<none>".to_owned()
    } else {
        let met = gates
            .iter()
            .filter(|g| d.at("status.conditions").find("type", g.get("conditionType").str()).get("status").str() == "True")
            .count();
        format!("{met}/{}", gates.len())
    };
    let phase = s.get("phase").str();
    let conditions = if matches!(phase, "Succeeded" | "Failed") {
        let (reason, message) =
            if phase == "Succeeded" { ("Succeeded", "The pod has completed successfully.") } else { ("Failed", "The pod failed.") };
        vec![json!({"type": "Completed", "status": "True", "reason": reason, "message": message})]
    } else {
        Vec::new()
    };
    let cells = vec![
        name(d),
        json!(format!("{ready}/{total}")),
        json!(reason),
        json!(shown),
        age(d),
        none(s.get("podIP")),
        none(d.at("spec.nodeName")),
        none(s.get("nominatedNodeName")),
        json!(gates),
    ];
    Row { cells, conditions }
}

fn service(d: &Doc) -> Vec<Value> {
    let s = d.at("spec");
    let kind = s.get("type").str();
    let internal = or(s.get("clusterIP"), "<none>");
    let mut external: Vec<String> = s.get("externalIPs").iter().map(|i| i.str().to_owned()).collect();
    let shown = match kind {
        "ExternalName" => s.get("externalName").str().to_owned(),
        "LoadBalancer" => {
            let mut l: Vec<String> = d
                .at("status.loadBalancer.ingress")
                .iter()
                .map(|i| if i.get("ip").str().is_empty() { i.get("hostname").str() } else { i.get("ip").str() }.to_owned())
                .collect();
            if l.is_empty() && external.is_empty() {
                "<pending>".into()
            } else {
                l.append(&mut external);
                l.join(",")
            }
        }
        _ if external.is_empty() => "<none>".into(),
        _ => external.join(","),
    };
    let ports: Vec<String> = s
        .get("ports")
        .iter()
        .map(|p| match p.get("nodePort").int() {
            0 => format!("{}/{}", p.get("port").int(), p.get("protocol").str()),
            n => format!("{}:{n}/{}", p.get("port").int(), p.get("protocol").str()),
        })
        .collect();
    let ports = if ports.is_empty() { "<none>".into() } else { ports.join(",") };
    vec![name(d), json!(kind), internal, json!(shown), json!(ports), age(d), json!(labels(s.get("selector")))]
}

fn node(d: &Doc) -> Vec<Value> {
    let ready = d.at("status.conditions").find("type", "Ready");
    let mut status = match ready.get("status").str() {
        "True" => "Ready".to_owned(),
        "" => "Unknown".into(),
        _ => "NotReady".into(),
    };
    if d.at("spec.unschedulable").bool() {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<String> = d
        .at("metadata.labels")
        .entries()
        .filter_map(|(k, v)| match k.strip_prefix("node-role.kubernetes.io/") {
            Some(r) if !r.is_empty() => Some(r.to_owned()),
            _ if k == "kubernetes.io/role" && !v.str().is_empty() => Some(v.str().to_owned()),
            _ => None,
        })
        .collect();
    roles.sort();
    let roles = if roles.is_empty() { "<none>".into() } else { roles.join(",") };
    let address = |t: &str| {
        d.at("status.addresses")
            .iter()
            .find(|a| a.get("type").str() == t)
            .map_or("<none>".to_owned(), |a| a.get("address").str().to_owned())
    };
    let info = d.at("status.nodeInfo");
    vec![
        name(d),
        json!(status),
        json!(roles),
        age(d),
        text(info.get("kubeletVersion")),
        json!(address("InternalIP")),
        json!(address("ExternalIP")),
        or(info.get("osImage"), "<unknown>"),
        or(info.get("kernelVersion"), "<unknown>"),
        or(info.get("containerRuntimeVersion"), "<unknown>"),
    ]
}

fn endpoints(d: &Doc) -> String {
    let mut all = Vec::new();
    for s in d.at("subsets").iter() {
        let ports: Vec<i64> = s.get("ports").iter().map(|p| p.get("port").int()).collect();
        for a in s.get("addresses").iter() {
            let ip = a.get("ip").str();
            if ports.is_empty() {
                all.push(ip.to_owned());
            }
            all.extend(ports.iter().map(|p| if ip.contains(':') { format!("[{ip}]:{p}") } else { format!("{ip}:{p}") }));
        }
    }
    match all.len() {
        0 => "<none>".into(),
        n if n > 3 => format!("{} + {} more...", all[..3].join(","), n - 3),
        _ => all.join(","),
    }
}

fn event(d: &Doc) -> Vec<Value> {
    let either = |a: &str, b: &str| if d.at(a).exists() { d.at(a) } else { d.at(b) };
    let series = d.at("series");
    let first = either("firstTimestamp", "deprecatedFirstTimestamp");
    let first = if first.time_seconds().is_some() { since(first) } else { since(d.at("eventTime")) };
    let last = either("lastTimestamp", "deprecatedLastTimestamp");
    let last = if series.exists() {
        since(series.get("lastObservedTime"))
    } else if last.time_seconds().is_some() {
        since(last)
    } else {
        first.clone()
    };
    let n = if series.exists() { series.get("count").int() } else { either("count", "deprecatedCount").int().max(1) };
    let object = either("involvedObject", "regarding");
    let source = either("source", "deprecatedSource");
    let component = match source.get("component").str() {
        "" => either("reportingComponent", "reportingController").str(),
        c => c,
    };
    let host = match source.get("host").str() {
        "" => d.at("reportingInstance").str(),
        h => h,
    };
    let shown = if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") };
    let target = if object.get("name").str().is_empty() {
        object.get("kind").str().to_lowercase()
    } else {
        format!("{}/{}", object.get("kind").str().to_lowercase(), object.get("name").str())
    };
    vec![
        last,
        text(d.at("type")),
        text(d.at("reason")),
        json!(target),
        text(object.get("fieldPath")),
        json!(shown),
        json!(either("message", "note").str().trim()),
        first,
        count(n),
        name(d),
    ]
}

fn access_modes(r: Ref<'_>) -> String {
    let short = |m: &str| match m {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        _ => "",
    };
    let there = strings(r);
    ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"]
        .iter()
        .filter(|m| there.contains(*m))
        .map(|m| short(m))
        .collect::<Vec<_>>()
        .join(",")
}

fn claim(d: &Doc) -> Vec<Value> {
    let phase = if d.at("metadata.deletionTimestamp").exists() { "Terminating" } else { d.at("status.phase").str() };
    let bound = !d.at("spec.volumeName").str().is_empty();
    let (modes, storage) = if bound {
        (access_modes(d.at("status.accessModes")), d.at("status.capacity").get("storage").str().to_owned())
    } else {
        (String::new(), String::new())
    };
    vec![
        name(d),
        json!(phase),
        text(d.at("spec.volumeName")),
        json!(storage),
        json!(modes),
        text(d.at("spec.storageClassName")),
        or(d.at("spec.volumeAttributesClassName"), "<unset>"),
        age(d),
        or(d.at("spec.volumeMode"), "<unset>"),
    ]
}

fn volume(d: &Doc) -> Vec<Value> {
    let phase = if d.at("metadata.deletionTimestamp").exists() { "Terminating" } else { d.at("status.phase").str() };
    let c = d.at("spec.claimRef");
    let claim = if c.exists() { format!("{}/{}", c.get("namespace").str(), c.get("name").str()) } else { String::new() };
    vec![
        name(d),
        text(d.at("spec.capacity").get("storage")),
        json!(access_modes(d.at("spec.accessModes"))),
        text(d.at("spec.persistentVolumeReclaimPolicy")),
        json!(phase),
        json!(claim),
        text(d.at("spec.storageClassName")),
        or(d.at("spec.volumeAttributesClassName"), "<unset>"),
        text(d.at("status.reason")),
        age(d),
        or(d.at("spec.volumeMode"), "<unset>"),
    ]
}

fn quota(d: &Doc) -> Vec<Value> {
    let (mut request, mut limit) = (Vec::new(), Vec::new());
    let mut hard: Vec<(&str, Ref<'_>)> = d.at("status.hard").entries().collect();
    hard.sort_by_key(|(k, _)| *k);
    for (k, q) in hard {
        let used = d.at("status.used").get(k);
        let used = if used.str().is_empty() { "0" } else { used.str() };
        let line = format!("{k}: {used}/{}", q.str());
        if k.starts_with("limits") { limit.push(line) } else { request.push(line) }
    }
    vec![name(d), json!(request.join(", ")), json!(limit.join(", ")), age(d)]
}

fn selector_or_map(d: &Doc) -> String {
    let s = d.at("spec.selector");
    if d.kind() == "ReplicationController" { labels(s) } else { selector(s) }
}

fn replicas(d: &Doc) -> Vec<Value> {
    let t = d.at("spec.template.spec");
    vec![
        name(d),
        count(d.at("spec.replicas").int()),
        count(d.at("status.replicas").int()),
        count(d.at("status.readyReplicas").int()),
        age(d),
        json!(containers(t, "name")),
        json!(containers(t, "image")),
        json!(selector_or_map(d)),
    ]
}

fn deployment(d: &Doc) -> Vec<Value> {
    let (s, t) = (d.at("status"), d.at("spec.template.spec"));
    vec![
        name(d),
        json!(format!("{}/{}", s.get("readyReplicas").int(), d.at("spec.replicas").int())),
        count(s.get("updatedReplicas").int()),
        count(s.get("availableReplicas").int()),
        age(d),
        json!(containers(t, "name")),
        json!(containers(t, "image")),
        json!(selector(d.at("spec.selector"))),
    ]
}

fn daemon_set(d: &Doc) -> Vec<Value> {
    let (s, t) = (d.at("status"), d.at("spec.template.spec"));
    let n = |f: &str| count(s.get(f).int());
    vec![
        name(d),
        n("desiredNumberScheduled"),
        n("currentNumberScheduled"),
        n("numberReady"),
        n("updatedNumberScheduled"),
        n("numberAvailable"),
        json!(labels(t.get("nodeSelector"))),
        age(d),
        json!(containers(t, "name")),
        json!(containers(t, "image")),
        json!(selector(d.at("spec.selector"))),
    ]
}

fn stateful_set(d: &Doc) -> Vec<Value> {
    let t = d.at("spec.template.spec");
    let ready = format!("{}/{}", d.at("status.readyReplicas").int(), d.at("spec.replicas").int());
    vec![name(d), json!(ready), age(d), json!(containers(t, "name")), json!(containers(t, "image"))]
}

fn job(d: &Doc) -> Vec<Value> {
    let condition = |t: &str| d.at("status.conditions").find("type", t).get("status").str() == "True";
    let status = if condition("Complete") {
        "Complete"
    } else if condition("Failed") {
        "Failed"
    } else if d.at("metadata.deletionTimestamp").exists() {
        "Terminating"
    } else if condition("Suspended") {
        "Suspended"
    } else if condition("FailureTarget") {
        "FailureTarget"
    } else if condition("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    };
    let done = d.at("status.succeeded").int();
    let completions = match d.at("spec.completions").as_i64() {
        Some(n) => format!("{done}/{n}"),
        None => match d.at("spec.parallelism").int() {
            n if n > 1 => format!("{done}/1 of {n}"),
            _ => format!("{done}/1"),
        },
    };
    let took = match (d.at("status.startTime").time_seconds(), d.at("status.completionTime").time_seconds()) {
        (Some(a), Some(b)) => duration(b - a),
        (Some(a), None) => duration(Timestamp::now().as_second() - a),
        _ => String::new(),
    };
    let t = d.at("spec.template.spec");
    vec![
        name(d),
        json!(status),
        json!(completions),
        json!(took),
        age(d),
        json!(containers(t, "name")),
        json!(containers(t, "image")),
        json!(selector(d.at("spec.selector"))),
    ]
}

fn cron_job(d: &Doc) -> Vec<Value> {
    let j = d.at("spec.jobTemplate.spec");
    let t = j.get("template").get("spec");
    let last = d.at("status.lastScheduleTime");
    let suspend = if d.at("spec.suspend").bool() { "True" } else { "False" };
    vec![
        name(d),
        text(d.at("spec.schedule")),
        or(d.at("spec.timeZone"), "<none>"),
        json!(suspend),
        count(d.at("status.active").len()),
        if last.exists() { since(last) } else { json!("<none>") },
        age(d),
        json!(containers(t, "name")),
        json!(containers(t, "image")),
        json!(selector(j.get("selector"))),
    ]
}

fn autoscaler(d: &Doc) -> Vec<Value> {
    let r = d.at("spec.scaleTargetRef");
    let mut targets: Vec<String> = Vec::new();
    for m in d.at("spec.metrics").iter() {
        let x = m.get("resource");
        let t = x.get("target");
        let current = d.at("status.currentMetrics").iter().find(|c| c.get("resource").get("name").str() == x.get("name").str());
        let shown = match t.get("averageUtilization").as_i64() {
            Some(n) => {
                let now = current.and_then(|c| c.get("resource").get("current").get("averageUtilization").as_i64());
                format!("{}/{n}%", now.map_or("<unknown>".into(), |n| format!("{n}%")))
            }
            None => format!("<unknown>/{}", t.get("averageValue").str()),
        };
        targets.push(format!("{}: {shown}", x.get("name").str()));
    }
    if let Some(n) = d.at("spec.targetCPUUtilizationPercentage").as_i64() {
        let now = d.at("status.currentCPUUtilizationPercentage").as_i64();
        targets.push(format!("cpu: {}/{n}%", now.map_or("<unknown>".into(), |n| format!("{n}%"))));
    }
    let shown = match targets.len() {
        0 => "<none>".into(),
        n if n > 2 => format!("{} + {} more...", targets[..2].join(", "), n - 2),
        _ => targets.join(", "),
    };
    vec![
        name(d),
        json!(format!("{}/{}", r.get("kind").str(), r.get("name").str())),
        json!(shown),
        or(d.at("spec.minReplicas"), "<unset>"),
        count(d.at("spec.maxReplicas").int()),
        count(d.at("status.currentReplicas").int()),
        age(d),
    ]
}

fn ingress(d: &Doc) -> Vec<Value> {
    let class = match d.at("spec.ingressClassName").str() {
        "" => d.at("metadata.annotations").get("kubernetes.io/ingress.class").str(),
        c => c,
    };
    let class = if class.is_empty() { "<none>" } else { class };
    let hosts: Vec<&str> = d.at("spec.rules").iter().map(|r| r.get("host").str()).filter(|h| !h.is_empty()).collect();
    let hosts = match hosts.len() {
        0 => "*".into(),
        n if n > 3 => format!("{} + {} more...", hosts[..3].join(","), n - 3),
        _ => hosts.join(","),
    };
    let addresses: Vec<&str> = d
        .at("status.loadBalancer.ingress")
        .iter()
        .map(|i| if i.get("ip").str().is_empty() { i.get("hostname").str() } else { i.get("ip").str() })
        .collect();
    let ports = if d.at("spec.tls").len() > 0 { "80, 443" } else { "80" };
    vec![name(d), json!(class), json!(hosts), json!(addresses.join(",")), json!(ports), age(d)]
}

fn binding(d: &Doc) -> Vec<Value> {
    let role = format!("{}/{}", d.at("roleRef.kind").str(), d.at("roleRef.name").str());
    let of = |kind: &str| {
        let l: Vec<String> = d
            .at("subjects")
            .iter()
            .filter(|s| s.get("kind").str() == kind)
            .map(|s| {
                if kind == "ServiceAccount" {
                    format!("{}/{}", s.get("namespace").str(), s.get("name").str())
                } else {
                    s.get("name").str().to_owned()
                }
            })
            .collect();
        l.join(", ")
    };
    vec![name(d), json!(role), age(d), json!(of("User")), json!(of("Group")), json!(of("ServiceAccount"))]
}

fn storage_class(d: &Doc) -> Vec<Value> {
    let default = ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"]
        .iter()
        .any(|k| d.at("metadata.annotations").get(k).str() == "true");
    let mut shown = d.at("metadata.name").str().to_owned();
    if default {
        shown.push_str(" (default)");
    }
    vec![
        json!(shown),
        text(d.at("provisioner")),
        or(d.at("reclaimPolicy"), "Delete"),
        or(d.at("volumeBindingMode"), "Immediate"),
        json!(d.at("allowVolumeExpansion").bool()),
        age(d),
    ]
}

fn csi_driver(d: &Doc) -> Vec<Value> {
    let s = d.at("spec");
    let tokens: Vec<&str> = s.get("tokenRequests").iter().map(|t| t.get("audience").str()).collect();
    let tokens = if tokens.is_empty() { "<unset>".into() } else { tokens.join(",") };
    vec![
        name(d),
        json!(s.get("attachRequired").as_bool().unwrap_or(true)),
        json!(s.get("podInfoOnMount").bool()),
        json!(s.get("storageCapacity").bool()),
        json!(tokens),
        json!(s.get("requiresRepublish").bool()),
        json!(strings(s.get("volumeLifecycleModes")).join(",")),
        age(d),
    ]
}

fn some(all: &[String], absent: &str) -> String {
    match all.len() {
        0 => absent.to_owned(),
        n if n > 3 => format!("{} + {} more...", all[..3].join(","), n - 3),
        _ => all.join(","),
    }
}

fn endpoint_slice(d: &Doc) -> Vec<Value> {
    let ports: Vec<String> = d.at("ports").iter().map(|p| p.get("port").as_i64().map_or("*".into(), |n| n.to_string())).collect();
    let addresses: Vec<String> = d.at("endpoints").iter().flat_map(|e| e.get("addresses").iter()).map(|a| a.str().to_owned()).collect();
    vec![name(d), text(d.at("addressType")), json!(some(&ports, "<unset>")), json!(some(&addresses, "<unset>")), age(d)]
}

fn csr(d: &Doc) -> Vec<Value> {
    let has = |t: &str| d.at("status.conditions").iter().any(|c| c.get("type").str() == t);
    let mut status = if has("Denied") {
        "Denied"
    } else if has("Approved") {
        "Approved"
    } else {
        "Pending"
    }
    .to_owned();
    if has("Failed") {
        status.push_str(",Failed");
    }
    if !d.at("status.certificate").bytes().is_empty() {
        status.push_str(",Issued");
    }
    let wanted = d.at("spec.expirationSeconds").as_i64().map_or("<none>".into(), duration);
    vec![name(d), age(d), or(d.at("spec.signerName"), "<none>"), text(d.at("spec.username")), json!(wanted), json!(status)]
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
            assert_eq!((p.row)(&doc).cells.len(), p.columns.len(), "{group}/{kind}");
        }
    }
}
