//! Validation of pod specs, in pods and in templates.

use k8s_schema::Ref;

use super::{
    pod_resources, pod_settings,
    pod_volumes::{self, Volume},
};
use crate::validation::{ErrorList, FieldError, child, index, names, values};

/// When an image is pulled.
pub const POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];

/// A template: its labels and its spec.
pub fn validate_template(t: Ref<'_>, path: &str, e: &mut ErrorList) {
    values::labels(t.get("metadata").get("labels"), &format!("{path}.labels"), e);
    values::annotations(t.get("metadata").get("annotations"), &format!("{path}.annotations"), e);
    validate(t.get("spec"), t.get("metadata"), &child(path, "spec"), e);
    let n = t.get("spec").get("ephemeralContainers").len();
    if n > 0 {
        e.push(FieldError::forbidden(
            child(&child(path, "spec"), "ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        ));
    }
}

pub fn validate(s: Ref<'_>, _meta: Ref<'_>, path: &str, e: &mut ErrorList) {
    let volumes = pod_volumes::volumes(s.get("volumes"), &child(path, "volumes"), e);
    containers(s, path, &volumes, e);
    let restart = s.get("restartPolicy").str();
    match restart {
        "Always" | "OnFailure" | "Never" => {}
        "" => e.push(FieldError::required(child(path, "restartPolicy"), "")),
        other => e.push(FieldError::not_supported(child(path, "restartPolicy"), other, &["Always", "OnFailure", "Never"])),
    }
    let dns = s.get("dnsPolicy").str();
    match dns {
        "ClusterFirstWithHostNet" | "ClusterFirst" | "Default" | "None" => {}
        "" => e.push(FieldError::required(child(path, "dnsPolicy"), "")),
        other => e.push(FieldError::not_supported(
            child(path, "dnsPolicy"),
            other,
            &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
        )),
    }
    if dns == "None" && s.get("dnsConfig").get("nameservers").is_empty() {
        let p = if s.get("dnsConfig").exists() { "dnsConfig.nameservers" } else { "dnsConfig" };
        let detail = format!(
            "must provide {} when `dnsPolicy` is None",
            if p == "dnsConfig" { "`dnsConfig`" } else { "at least one DNS nameserver" }
        );
        e.push(FieldError::required(child(path, p), detail));
    }
    values::labels(s.get("nodeSelector"), &child(path, "nodeSelector"), e);
    for (field, rule) in [("serviceAccountName", names::subdomain_name as names::NameRule), ("nodeName", names::subdomain_name)] {
        let v = s.get(field).str();
        if !v.is_empty() {
            e.all_invalid(&child(path, field), v, rule(v, false));
        }
    }
    for (field, rule) in [
        ("hostname", names::dns1123_label as fn(&str) -> Vec<String>),
        ("subdomain", names::dns1123_label),
        ("priorityClassName", names::dns1123_subdomain),
    ] {
        let v = s.get(field).str();
        if !v.is_empty() {
            e.all_invalid(&child(path, field), v, rule(v));
        }
    }
    if let Some(v) = s.get("activeDeadlineSeconds").as_i64()
        && !(1..=i64::from(i32::MAX)).contains(&v)
    {
        e.push(FieldError::invalid(child(path, "activeDeadlineSeconds"), v, "must be between 1 and 2147483647, inclusive"));
    }
    tolerations(s.get("tolerations"), &child(path, "tolerations"), e);
    for (i, a) in s.get("hostAliases").iter().enumerate() {
        let p = index(&child(path, "hostAliases"), i);
        let ip = a.get("ip").str();
        if !values::is_ip(ip) {
            e.push(FieldError::invalid(child(&p, "ip"), ip, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"));
        }
        for (j, h) in a.get("hostnames").iter().enumerate() {
            e.all_invalid(&index(&child(&p, "hostnames"), j), h.str(), names::dns1123_subdomain(h.str()));
        }
    }
    let spreads: Vec<(&str, &str)> =
        s.get("topologySpreadConstraints").iter().map(|t| (t.get("topologyKey").str(), t.get("whenUnsatisfiable").str())).collect();
    for (i, t) in s.get("topologySpreadConstraints").iter().enumerate() {
        let p = index(&child(path, "topologySpreadConstraints"), i);
        let skew = t.get("maxSkew").int();
        if skew <= 0 {
            e.push(FieldError::invalid(child(&p, "maxSkew"), skew, "must be greater than zero"));
        }
        if t.get("topologyKey").str().is_empty() {
            e.push(FieldError::required(child(&p, "topologyKey"), "can not be empty"));
        }
        let w = t.get("whenUnsatisfiable").str();
        if !matches!(w, "DoNotSchedule" | "ScheduleAnyway") {
            e.push(FieldError::not_supported(child(&p, "whenUnsatisfiable"), w, &["DoNotSchedule", "ScheduleAnyway"]));
        }
        spread(t, w, &p, e);
        let id = (t.get("topologyKey").str(), w);
        if spreads[i + 1..].contains(&id) {
            let at = child(&p, "{topologyKey, whenUnsatisfiable}");
            e.push(FieldError::duplicate(at, format!("{{{}, {}}}", id.0, id.1)));
        }
    }
    affinity(s.get("affinity"), &child(path, "affinity"), e);
    pod_settings::validate(s, path, e);
}

/// The rest of a spread constraint.
fn spread(t: Ref<'_>, when: &str, p: &str, e: &mut ErrorList) {
    if let Some(n) = t.get("minDomains").as_i64() {
        if n <= 0 {
            e.push(FieldError::invalid(child(p, "minDomains"), n, "must be greater than zero"));
        } else if when == "ScheduleAnyway" {
            let why = "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway";
            e.push(FieldError::invalid(child(p, "minDomains"), n, why));
        }
    }
    for f in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
        if let Some(v) = t.get(f).as_str().filter(|v| !matches!(*v, "Honor" | "Ignore")) {
            e.push(FieldError::not_supported(child(p, f), v, &["Honor", "Ignore"]));
        }
    }
    let keys = t.get("matchLabelKeys");
    if !keys.is_empty() && !t.get("labelSelector").exists() {
        e.push(FieldError::forbidden(child(p, "matchLabelKeys"), "must not be specified when labelSelector is not set"));
    }
    for (i, k) in keys.strings().enumerate() {
        e.all_invalid(&index(&child(p, "matchLabelKeys"), i), k, names::qualified_name(k));
    }
    values::label_selector(t.get("labelSelector"), &child(p, "labelSelector"), e);
}

fn containers(s: Ref<'_>, path: &str, volumes: &[Volume<'_>], e: &mut ErrorList) {
    if s.get("containers").is_empty() {
        e.push(FieldError::required(child(path, "containers"), ""));
    }
    let mut seen: Vec<&str> = Vec::new();
    let mut host_ports: Vec<(String, i64)> = Vec::new();
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        let lp = child(path, list);
        for (i, c) in s.get(list).iter().enumerate() {
            let p = index(&lp, i);
            let name = c.get("name").str();
            if name.is_empty() {
                e.push(FieldError::required(child(&p, "name"), ""));
            } else {
                e.all_invalid(&child(&p, "name"), name, names::dns1123_label(name));
            }
            if !name.is_empty() && seen.contains(&name) {
                e.push(FieldError::duplicate(child(&p, "name"), name));
            }
            seen.push(name);
            let target = c.get("targetContainerName").str();
            if !target.is_empty() && !s.get("containers").find("name", target).exists() {
                e.push(FieldError::not_found(child(&p, "targetContainerName"), target));
            }
            container(c, &p, list, volumes, &mut host_ports, e);
        }
    }
}

fn container(c: Ref<'_>, p: &str, list: &str, volumes: &[Volume<'_>], host_ports: &mut Vec<(String, i64)>, e: &mut ErrorList) {
    let image = c.get("image").str();
    if image.is_empty() {
        e.push(FieldError::required(child(p, "image"), ""));
    } else if image.trim() != image {
        e.push(FieldError::invalid(child(p, "image"), image, "must not have leading or trailing whitespace"));
    }
    let t = c.get("terminationMessagePolicy").str();
    match t {
        "File" | "FallbackToLogsOnError" => {}
        "" => e.push(FieldError::required(child(p, "terminationMessagePolicy"), "")),
        other => e.push(FieldError::not_supported(child(p, "terminationMessagePolicy"), other, &["FallbackToLogsOnError", "File"])),
    }
    let ephemeral = list == "ephemeralContainers";
    if ephemeral {
        not_for_ephemeral(c, p, e);
    } else {
        ports(c.get("ports"), &child(p, "ports"), host_ports, e);
        if let Some(policy) = c.get("restartPolicy").as_str().filter(|policy| !RESTART_POLICIES.contains(policy)) {
            e.push(FieldError::not_supported(child(p, "restartPolicy"), policy, RESTART_POLICIES));
        }
    }
    env(c.get("env"), &child(p, "env"), e);
    for (i, f) in c.get("envFrom").iter().enumerate() {
        let q = index(&child(p, "envFrom"), i);
        let n = f.fields().filter(|(n, _)| *n != "prefix").count();
        if n == 0 {
            e.push(FieldError::invalid(q.clone(), "", "must specify one of: `configMapRef` or `secretRef`"));
        } else if n > 1 {
            e.push(FieldError::invalid(q.clone(), "", "may not have more than one field specified at a time"));
        }
    }
    pod_volumes::of_container(c, p, volumes, e);
    let pull = c.get("imagePullPolicy").str();
    match pull {
        "" => e.push(FieldError::required(child(p, "imagePullPolicy"), "")),
        x if POLICIES.contains(&x) => {}
        other => e.push(FieldError::not_supported(child(p, "imagePullPolicy"), other, POLICIES)),
    }
    if ephemeral {
        for (i, m) in c.get("volumeMounts").iter().enumerate() {
            for f in ["subPath", "subPathExpr"].into_iter().filter(|f| !m.get(f).str().is_empty()) {
                let at = child(&index(&child(p, "volumeMounts"), i), f);
                e.push(FieldError::forbidden(at, "cannot be set for an Ephemeral Container"));
            }
        }
        return;
    }
    pod_resources::validate(c.get("resources"), &child(p, "resources"), e);
    let restartable = list == "initContainers" && c.get("restartPolicy").str() == "Always";
    for name in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = c.get(name);
        if !probe.exists() {
            continue;
        }
        if list == "initContainers" && !restartable {
            e.push(FieldError::forbidden(child(p, name), "may not be set for init containers without restartPolicy=Always"));
        } else if name != "lifecycle" {
            validate_probe(probe, name, &child(p, name), e);
        } else {
            for hook in ["postStart", "preStop"] {
                if probe.get(hook).exists() {
                    handler(probe.get(hook), &child(&child(p, name), hook), e);
                }
            }
        }
    }
}

const RESTART_POLICIES: &[&str] = &["Always", "Never", "OnFailure"];

/// What a container that comes later and never starts again cannot have.
fn not_for_ephemeral(c: Ref<'_>, p: &str, e: &mut ErrorList) {
    for f in ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resources", "resizePolicy", "restartPolicy"] {
        let given = c.get(f);
        let empty = match f {
            "ports" | "resizePolicy" => given.is_empty(),
            "resources" => given.fields().next().is_none(),
            _ => !given.exists(),
        };
        if !empty {
            e.push(FieldError::forbidden(child(p, f), "cannot be set for an Ephemeral Container"));
        }
    }
}

fn handler(h: Ref<'_>, p: &str, e: &mut ErrorList) -> usize {
    let mut n = 0;
    for kind in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let x = h.get(kind);
        if !x.exists() {
            continue;
        }
        n += 1;
        let q = child(p, kind);
        if n > 1 {
            e.push(FieldError::forbidden(q, "may not specify more than 1 handler type"));
            continue;
        }
        match kind {
            "exec" if x.get("command").is_empty() => e.push(FieldError::required(child(&q, "command"), "")),
            "httpGet" => {
                if x.get("path").str().is_empty() {
                    e.push(FieldError::required(child(&q, "path"), ""));
                }
                port_or_name(x.get("port"), &child(&q, "port"), e);
                let scheme = x.get("scheme").str();
                if !matches!(scheme, "HTTP" | "HTTPS") {
                    e.push(FieldError::not_supported(child(&q, "scheme"), scheme, &["HTTP", "HTTPS"]));
                }
            }
            "tcpSocket" => port_or_name(x.get("port"), &child(&q, "port"), e),
            "grpc" => {
                if let Some(m) = values::port(x.get("port").int()) {
                    e.push(FieldError::invalid(child(&q, "port"), x.get("port").int(), m));
                }
            }
            _ => {}
        }
    }
    if n == 0 {
        e.push(FieldError::required(p, "must specify a handler type"));
    }
    n
}

fn port_or_name(r: Ref<'_>, p: &str, e: &mut ErrorList) {
    match r.to_value() {
        serde_json::Value::Number(n) => {
            let n = n.as_i64().unwrap_or(0);
            if let Some(m) = values::port(n) {
                e.push(FieldError::invalid(p, n, m));
            }
        }
        serde_json::Value::String(s) => e.all_invalid(p, s.as_str(), names::port_name(&s)),
        _ => e.push(FieldError::invalid(p, 0i64, "must be between 1 and 65535, inclusive")),
    }
}

fn validate_probe(r: Ref<'_>, name: &str, p: &str, e: &mut ErrorList) {
    handler(r, p, e);
    for f in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        values::non_negative(r.get(f).int(), &child(p, f), e);
    }
    if name != "readinessProbe" && r.get("successThreshold").int() != 1 {
        e.push(FieldError::invalid(child(p, "successThreshold"), r.get("successThreshold").int(), "must be 1"));
    }
}

fn ports(list: Ref<'_>, path: &str, host_ports: &mut Vec<(String, i64)>, e: &mut ErrorList) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, port) in list.iter().enumerate() {
        let p = index(path, i);
        let name = port.get("name").str();
        if !name.is_empty() {
            let m = names::port_name(name);
            if !m.is_empty() {
                e.all_invalid(&child(&p, "name"), name, m);
            } else if seen.contains(&name) {
                e.push(FieldError::duplicate(child(&p, "name"), name));
            }
            seen.push(name);
        }
        let n = port.get("containerPort").int();
        if n == 0 {
            e.push(FieldError::required(child(&p, "containerPort"), ""));
        } else if let Some(m) = values::port(n) {
            e.push(FieldError::invalid(child(&p, "containerPort"), n, m));
        }
        let host = port.get("hostPort").int();
        let protocol = port.get("protocol").str();
        if host != 0 {
            if let Some(m) = values::port(host) {
                e.push(FieldError::invalid(child(&p, "hostPort"), host, m));
            }
            let id = (format!("{protocol}/{}", port.get("hostIP").str()), host);
            if host_ports.contains(&id) {
                e.push(FieldError::duplicate(child(&p, "hostPort"), format!("{protocol}/{}/{host}", port.get("hostIP").str())));
            }
            host_ports.push(id);
        }
        match protocol {
            "TCP" | "UDP" | "SCTP" => {}
            "" => e.push(FieldError::required(child(&p, "protocol"), "")),
            other => e.push(FieldError::not_supported(child(&p, "protocol"), other, &["SCTP", "TCP", "UDP"])),
        }
    }
}

fn env(list: Ref<'_>, path: &str, e: &mut ErrorList) {
    for (i, v) in list.iter().enumerate() {
        let p = index(path, i);
        let name = v.get("name").str();
        if name.is_empty() {
            e.push(FieldError::required(child(&p, "name"), ""));
        } else {
            e.all_invalid(&child(&p, "name"), name, names::env_var_name(name));
        }
        let from = v.get("valueFrom");
        if !from.exists() {
            continue;
        }
        let q = child(&p, "valueFrom");
        let n = from.fields().count();
        if n == 0 {
            e.push(FieldError::invalid(
                q,
                "",
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
            ));
            continue;
        }
        if !v.get("value").str().is_empty() {
            e.push(FieldError::invalid(q.clone(), "", "may not be specified when `value` is not empty"));
        } else if n > 1 {
            e.push(FieldError::invalid(q.clone(), "", "may not have more than one field specified at a time"));
        }
        let f = from.get("fieldRef");
        if f.exists() && f.get("fieldPath").str().is_empty() {
            e.push(FieldError::required(child(&q, "fieldRef.fieldPath"), ""));
        }
        for k in ["configMapKeyRef", "secretKeyRef"] {
            let r = from.get(k);
            if r.exists() {
                if r.get("key").str().is_empty() {
                    e.push(FieldError::required(child(&child(&q, k), "key"), ""));
                } else {
                    e.all_invalid(&child(&child(&q, k), "key"), r.get("key").str(), names::config_key(r.get("key").str()));
                }
            }
        }
    }
}

pub fn tolerations(list: Ref<'_>, path: &str, e: &mut ErrorList) {
    for (i, t) in list.iter().enumerate() {
        let p = index(path, i);
        let (k, op, value, effect) = (t.get("key").str(), t.get("operator").str(), t.get("value").str(), t.get("effect").str());
        if !k.is_empty() {
            e.all_invalid(&child(&p, "key"), k, names::qualified_name(k));
        }
        if k.is_empty() && op != "Exists" {
            e.push(FieldError::invalid(
                child(&p, "operator"),
                op,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ));
        }
        if t.get("tolerationSeconds").exists() && effect != "NoExecute" {
            e.push(FieldError::invalid(child(&p, "effect"), effect, "effect must be 'NoExecute' when `tolerationSeconds` is set"));
        }
        match op {
            "Equal" | "" => {
                let m = names::label_value(value);
                if !m.is_empty() {
                    e.push(FieldError::invalid(child(&p, "operator"), value, m.join(";")));
                }
            }
            "Exists" if !value.is_empty() => {
                e.push(FieldError::invalid(child(&p, "operator"), value, "value must be empty when `operator` is 'Exists'"));
            }
            "Exists" => {}
            // Operators of a feature that is off by default, which upstream names only when they are tried.
            "Lt" | "Gt" => e.push(FieldError::not_supported(child(&p, "operator"), op, &["Equal", "Exists", "Lt", "Gt"])),
            other => e.push(FieldError::not_supported(child(&p, "operator"), other, &["Equal", "Exists"])),
        }
        if !matches!(effect, "" | "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
            e.push(FieldError::not_supported(child(&p, "effect"), effect, &["NoSchedule", "PreferNoSchedule", "NoExecute"]));
        }
    }
}

fn affinity(a: Ref<'_>, path: &str, e: &mut ErrorList) {
    for kind in ["podAffinity", "podAntiAffinity"] {
        let p = child(path, kind);
        let x = a.get(kind);
        for (i, t) in x.get("requiredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
            term(t, &index(&child(&p, "requiredDuringSchedulingIgnoredDuringExecution"), i), e);
        }
        for (i, t) in x.get("preferredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
            let q = index(&child(&p, "preferredDuringSchedulingIgnoredDuringExecution"), i);
            weight(t, &q, e);
            term(t.get("podAffinityTerm"), &child(&q, "podAffinityTerm"), e);
        }
    }
    let node = a.get("nodeAffinity");
    let p = child(path, "nodeAffinity");
    let required = node.get("requiredDuringSchedulingIgnoredDuringExecution");
    if required.exists() {
        node_selector(required, &child(&p, "requiredDuringSchedulingIgnoredDuringExecution"), e);
    }
    for (i, t) in node.get("preferredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
        let q = index(&child(&p, "preferredDuringSchedulingIgnoredDuringExecution"), i);
        weight(t, &q, e);
        node_term(t.get("preference"), &child(&q, "preference"), e);
    }
}

pub(super) fn node_selector(s: Ref<'_>, path: &str, e: &mut ErrorList) {
    let at = child(path, "nodeSelectorTerms");
    if s.get("nodeSelectorTerms").is_empty() {
        e.push(FieldError::required(at.clone(), "must have at least one node selector term"));
    }
    for (i, t) in s.get("nodeSelectorTerms").iter().enumerate() {
        node_term(t, &index(&at, i), e);
    }
}

fn weight(t: Ref<'_>, p: &str, e: &mut ErrorList) {
    let w = t.get("weight").int();
    if !(1..=100).contains(&w) {
        e.push(FieldError::invalid(child(p, "weight"), w, "must be in the range 1-100"));
    }
}

fn term(t: Ref<'_>, p: &str, e: &mut ErrorList) {
    values::label_selector(t.get("labelSelector"), &child(p, "labelSelector"), e);
    for ns in t.get("namespaces").strings() {
        e.all_invalid(&child(p, "namespace"), ns, names::dns1123_label(ns));
    }
    let (same, other) = (t.get("matchLabelKeys"), t.get("mismatchLabelKeys"));
    for (f, keys) in [("matchLabelKeys", same), ("mismatchLabelKeys", other)] {
        if !keys.is_empty() && !t.get("labelSelector").exists() {
            e.push(FieldError::forbidden(child(p, f), "must not be specified when labelSelector is not set"));
        }
    }
    for (i, k) in same.strings().enumerate().filter(|(_, k)| other.contains_str(k)) {
        e.push(FieldError::invalid(index(&child(p, "matchLabelKeys"), i), k, "exists in both matchLabelKeys and mismatchLabelKeys"));
    }
    let k = t.get("topologyKey").str();
    if k.is_empty() {
        e.push(FieldError::required(child(p, "topologyKey"), "can not be empty"));
    }
    e.all_invalid(&child(p, "topologyKey"), k, names::qualified_name(k));
}

fn node_term(t: Ref<'_>, p: &str, e: &mut ErrorList) {
    for (i, x) in t.get("matchExpressions").iter().enumerate() {
        let q = index(&child(p, "matchExpressions"), i);
        let n = x.get("values").len();
        match x.get("operator").str() {
            "In" | "NotIn" if n == 0 => {
                e.push(FieldError::required(child(&q, "values"), "must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "Exists" | "DoesNotExist" if n > 0 => {
                e.push(FieldError::forbidden(child(&q, "values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"));
            }
            "Gt" | "Lt" if n != 1 => {
                e.push(FieldError::required(child(&q, "values"), "must be specified single value when `operator` is 'Lt' or 'Gt'"));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => e.push(FieldError::invalid(child(&q, "operator"), other, "not a valid selector operator")),
        }
        let k = x.get("key").str();
        e.all_invalid(&child(&q, "key"), k, names::qualified_name(k));
        for (j, v) in x.get("values").strings().enumerate() {
            e.all_invalid(&index(&child(&q, "values"), j), v, names::label_value(v));
        }
    }
    for (i, x) in t.get("matchFields").iter().enumerate() {
        let q = index(&child(p, "matchFields"), i);
        let (values, k) = (x.get("values"), x.get("key").str());
        match x.get("operator").str() {
            "In" | "NotIn" if values.len() != 1 => {
                let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                e.push(FieldError::required(child(&q, "values"), why));
            }
            "In" | "NotIn" => {}
            other => e.push(FieldError::invalid(child(&q, "operator"), other, "not a valid selector operator")),
        }
        if k != "metadata.name" {
            e.push(FieldError::invalid(child(&q, "key"), k, "not a valid field selector key"));
        } else {
            for (j, v) in values.strings().enumerate() {
                e.all_invalid(&index(&child(&q, "values"), j), v, names::dns1123_subdomain(v));
            }
        }
    }
}
