//! Service.

use k8s_schema::Doc;

use super::{Action, PLAIN, Strategy, service_rules, warnings};
use crate::validation::{ErrorList, FieldError, child, index, names, values};

pub const SERVICE: Strategy = Strategy {
    name: names::label_name,
    status: true,
    prepare_create: |d| {
        // A constant that fits the type: this cannot fail.
        let _ = d.set("status", serde_json::json!({"loadBalancer": {}}));
        // It has no endpoints that a policy could choose among.
        if d.at("spec.type").str() == "ExternalName" {
            d.remove("spec.internalTrafficPolicy");
        }
    },
    prepare_update: |action, new, old| {
        if action == Action::Main {
            drop_unused(new, old);
        }
    },
    validate_create: validate,
    validate_update,
    warnings: warnings::service,
    returns_deleted: true,
    create_on_update: true,
    ..PLAIN
};

/// What the former type of a Service had and the new one cannot use goes, unless the client says otherwise.
fn drop_unused(new: &mut Doc, old: &Doc) {
    let kind = |d: &Doc| d.at("spec.type").str().to_owned();
    let (now, was) = (kind(new), kind(old));
    let unchanged = |new: &Doc, f: &str| new.at(f).semantic_eq(old.at(f));
    let balanced = |k: &str| k == "LoadBalancer";
    let ports = |k: &str| matches!(k, "NodePort" | "LoadBalancer");
    if now == "ExternalName" && was != "ExternalName" {
        if unchanged(new, "spec.clusterIP") || new.at("spec.clusterIP").str().is_empty() {
            new.remove("spec.clusterIP");
            new.remove("spec.clusterIPs");
        }
        for f in ["spec.ipFamilies", "spec.ipFamilyPolicy", "spec.internalTrafficPolicy"] {
            if unchanged(new, f) {
                new.remove(f);
            }
        }
    }
    if ports(&was) && !ports(&now) {
        let numbers = |d: &Doc| d.at("spec.ports").iter().map(|p| p.get("nodePort").int()).collect::<Vec<_>>();
        if numbers(new) == numbers(old) {
            let done = new.for_each("spec.ports", |mut p| {
                p.remove("nodePort");
                Ok::<_, std::convert::Infallible>(())
            });
            // Nothing in there fails.
            let _ = done;
        }
    }
    let external = |d: &Doc, k: &str| ports(k) || (k == "ClusterIP" && !d.at("spec.externalIPs").is_empty());
    if external(old, &was) && !external(new, &now) && unchanged(new, "spec.externalTrafficPolicy") {
        new.remove("spec.externalTrafficPolicy");
    }
    let checked = |d: &Doc, k: &str| balanced(k) && d.at("spec.externalTrafficPolicy").str() == "Local";
    if checked(old, &was) && !checked(new, &now) && unchanged(new, "spec.healthCheckNodePort") {
        new.remove("spec.healthCheckNodePort");
    }
    if balanced(&was) && !balanced(&now) {
        for f in ["spec.allocateLoadBalancerNodePorts", "spec.loadBalancerClass"] {
            if unchanged(new, f) {
                new.remove(f);
            }
        }
        // A constant that fits the type: this cannot fail.
        let _ = new.set("status.loadBalancer", serde_json::json!({}));
    }
}

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];

fn validate(d: &Doc, e: &mut ErrorList) {
    let s = d.at("spec");
    let kind = s.get("type").str();
    let headless = s.get("clusterIP").str() == "None";
    if s.get("ports").is_empty() && !headless && kind != "ExternalName" {
        e.push(FieldError::required("spec.ports", ""));
    }
    match kind {
        "LoadBalancer" if headless => {
            e.push(FieldError::invalid("spec.clusterIPs[0]", "None", "may not be set to 'None' for LoadBalancer services"));
        }
        "NodePort" if headless => {
            e.push(FieldError::invalid("spec.clusterIPs[0]", "None", "may not be set to 'None' for NodePort services"));
        }
        "ExternalName" => {
            let address = !s.get("clusterIPs").is_empty() || !s.get("clusterIP").str().is_empty();
            let given = [
                ("clusterIPs", address),
                ("ipFamilies", !s.get("ipFamilies").is_empty()),
                ("ipFamilyPolicy", s.get("ipFamilyPolicy").exists()),
            ];
            for (f, _) in given.iter().filter(|(_, is)| *is) {
                e.push(FieldError::forbidden(format!("spec.{f}"), "may not be set for ExternalName services"));
            }
            let name = s.get("externalName").str().trim_end_matches('.');
            if name.is_empty() {
                e.push(FieldError::required("spec.externalName", ""));
            } else {
                e.all_invalid("spec.externalName", name, names::dns1123_subdomain(name));
            }
        }
        _ => {}
    }
    let named = s.get("ports").len() > 1;
    let mut seen: Vec<&str> = Vec::new();
    let mut nums: Vec<(i64, &str)> = Vec::new();
    for (i, p) in s.get("ports").iter().enumerate() {
        let path = index("spec.ports", i);
        let name = p.get("name").str();
        if named && name.is_empty() {
            e.push(FieldError::required(child(&path, "name"), ""));
        } else if !name.is_empty() {
            e.all_invalid(&child(&path, "name"), name, names::dns1123_label(name));
            if seen.contains(&name) {
                e.push(FieldError::duplicate(child(&path, "name"), name));
            }
            seen.push(name);
        }
        if let Some(m) = values::port(p.get("port").int()) {
            e.push(FieldError::invalid(child(&path, "port"), p.get("port").int(), m));
        }
        let protocol = p.get("protocol").str();
        match protocol {
            "TCP" | "UDP" | "SCTP" => {}
            "" => e.push(FieldError::required(child(&path, "protocol"), "")),
            other => e.push(FieldError::not_supported(child(&path, "protocol"), other, &["SCTP", "TCP", "UDP"])),
        }
        match p.get("targetPort").to_value() {
            serde_json::Value::Number(n) => {
                let n = n.as_i64().unwrap_or(0);
                if let Some(m) = values::port(n) {
                    e.push(FieldError::invalid(child(&path, "targetPort"), n, m));
                }
            }
            serde_json::Value::String(t) => e.all_invalid(&child(&path, "targetPort"), t.as_str(), names::port_name(&t)),
            _ => {}
        }
        if let Some(protocol) = p.get("appProtocol").as_str() {
            e.all_invalid(&child(&path, "appProtocol"), protocol, names::qualified_name(protocol));
        }
        let node = p.get("nodePort").int();
        if node != 0 && !matches!(kind, "NodePort" | "LoadBalancer") {
            e.push(FieldError::forbidden(child(&path, "nodePort"), format!("may not be used when `type` is '{kind}'")));
        }
    }
    for (i, p) in s.get("ports").iter().enumerate() {
        let id = (p.get("port").int(), p.get("protocol").str());
        if nums.contains(&id) {
            e.push(FieldError::duplicate(
                index("spec.ports", i),
                serde_json::json!({"Name": "", "Protocol": id.1, "AppProtocol": null, "Port": id.0, "TargetPort": 0, "NodePort": 0}),
            ));
        }
        nums.push(id);
    }
    values::labels(s.get("selector"), "spec.selector", e);
    let affinity = s.get("sessionAffinity").str();
    match affinity {
        "None" | "ClientIP" => {}
        "" => e.push(FieldError::required("spec.sessionAffinity", "")),
        other => e.push(FieldError::not_supported("spec.sessionAffinity", other, &["ClientIP", "None"])),
    }
    let timeout = s.get("sessionAffinityConfig").get("clientIP").get("timeoutSeconds");
    if affinity == "ClientIP" && timeout.exists() && !(1..=86400).contains(&timeout.int()) {
        e.push(FieldError::invalid(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            timeout.int(),
            "must be greater than 0 and less than 86400",
        ));
    }
    match kind {
        "" => e.push(FieldError::required("spec.type", "")),
        k if TYPES.contains(&k) => {}
        other => e.push(FieldError::not_supported("spec.type", other, TYPES)),
    }
    let etp = s.get("externalTrafficPolicy").str();
    if !etp.is_empty() && !matches!(etp, "Cluster" | "Local") {
        e.push(FieldError::not_supported("spec.externalTrafficPolicy", etp, &["Cluster", "Local"]));
    } else if !etp.is_empty() && !matches!(kind, "NodePort" | "LoadBalancer") && s.get("externalIPs").is_empty() {
        e.push(FieldError::invalid("spec.externalTrafficPolicy", etp, "may only be set for externally-accessible services"));
    }
    let itp = s.get("internalTrafficPolicy").str();
    if !itp.is_empty() && !matches!(itp, "Cluster" | "Local") {
        e.push(FieldError::not_supported("spec.internalTrafficPolicy", itp, &["Cluster", "Local"]));
    }
    service_rules::validate(d, e);
}

fn validate_update(a: Action, new: &Doc, old: &Doc, e: &mut ErrorList) {
    if a == Action::Status {
        service_rules::status(new, e);
    }
    if a != Action::Main {
        return;
    }
    let (n, o) = (new.at("spec"), old.at("spec"));
    let external = n.get("type").str() == "ExternalName" || o.get("type").str() == "ExternalName";
    if !external && !o.get("clusterIP").str().is_empty() && n.get("clusterIP").str() != o.get("clusterIP").str() {
        let shown = new.at("spec.clusterIPs").to_value();
        e.push(FieldError::invalid("spec.clusterIPs[0]", shown, "may not change once set"));
    }
    service_rules::update(new, old, e);
    validate(new, e);
}
