//! Rows of the other groups: workloads, scaling, networking, storage, certificates.

use super::*;

pub(super) fn replicas(d: &Doc) -> Vec<Value> {
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

pub(super) fn deployment(d: &Doc) -> Vec<Value> {
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

pub(super) fn daemon_set(d: &Doc) -> Vec<Value> {
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

pub(super) fn stateful_set(d: &Doc) -> Vec<Value> {
    let t = d.at("spec.template.spec");
    let ready = format!("{}/{}", d.at("status.readyReplicas").int(), d.at("spec.replicas").int());
    vec![name(d), json!(ready), age(d), json!(containers(t, "name")), json!(containers(t, "image"))]
}

pub(super) fn job(d: &Doc) -> Vec<Value> {
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

pub(super) fn cron_job(d: &Doc) -> Vec<Value> {
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
        if j.get("selector").exists() { json!(selector(j.get("selector"))) } else { json!("<none>") },
    ]
}

pub(super) fn autoscaler(d: &Doc) -> Vec<Value> {
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

pub(super) fn ingress(d: &Doc) -> Vec<Value> {
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
    let ports = if !d.at("spec.tls").is_empty() { "80, 443" } else { "80" };
    vec![name(d), json!(class), json!(hosts), json!(addresses.join(",")), json!(ports), age(d)]
}

pub(super) fn binding(d: &Doc) -> Vec<Value> {
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

pub(super) fn storage_class(d: &Doc) -> Vec<Value> {
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

pub(super) fn csi_driver(d: &Doc) -> Vec<Value> {
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

pub(super) fn some(all: &[String], absent: &str) -> String {
    match all.len() {
        0 => absent.to_owned(),
        n if n > 3 => format!("{} + {} more...", all[..3].join(","), n - 3),
        _ => all.join(","),
    }
}

pub(super) fn endpoint_slice(d: &Doc) -> Vec<Value> {
    let ports: Vec<String> = d.at("ports").iter().map(|p| p.get("port").as_i64().map_or("*".into(), |n| n.to_string())).collect();
    let addresses: Vec<String> = d.at("endpoints").iter().flat_map(|e| e.get("addresses").iter()).map(|a| a.str().to_owned()).collect();
    vec![name(d), text(d.at("addressType")), json!(some(&ports, "<unset>")), json!(some(&addresses, "<unset>")), age(d)]
}

pub(super) fn csr(d: &Doc) -> Vec<Value> {
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
