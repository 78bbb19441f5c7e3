//! Ingresses, ingress classes and network policies.

use ipnet::IpNet;
use k8s_schema::{Doc, IntOrString, Ref};
use serde_json::Value;

use super::{Action, GENERATION, SPEC_AND_STATUS, Strategy, warnings};
use crate::validation::{ErrorList, FieldError, addresses, child, index, names, values};

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

pub const INGRESS: Strategy = Strategy {
    warnings: warnings::ingress,
    validate_create: |d, e| {
        let class = d.meta().annotation(CLASS_ANNOTATION);
        let named = d.at("spec.ingressClassName").as_str();
        if let Some((a, n)) = class.zip(named)
            && a != n
        {
            e.push(FieldError::invalid(
                "annotations.kubernetes.io/ingress.class",
                a,
                "must match `ingressClassName` when both are specified",
            ));
        }
        ingress(d, e);
    },
    validate_update: |action, d, _, e| match action {
        Action::Main => ingress(d, e),
        Action::Status => super::service_rules::status(d, e),
        _ => {}
    },
    ..SPEC_AND_STATUS
};

pub const INGRESS_CLASS: Strategy = Strategy {
    validate_create: ingress_class,
    validate_update: |_, new, old, e| {
        super::immutable(new, old, "spec.controller", e);
        parameters(new, e);
    },
    ..GENERATION
};

pub const NETWORK_POLICY: Strategy =
    Strategy { validate_create: network_policy, validate_update: |_, n, _, e| network_policy(n, e), ..GENERATION };

fn ingress(d: &Doc, e: &mut ErrorList) {
    let spec = d.at("spec");
    if spec.get("rules").is_empty() && !spec.get("defaultBackend").exists() {
        let shown = if spec.get("rules").exists() { Value::Array(Vec::new()) } else { Value::Null };
        e.push(FieldError::invalid("spec", shown, "either `defaultBackend` or `rules` must be specified"));
    }
    if spec.get("defaultBackend").exists() {
        backend(spec.get("defaultBackend"), "spec.defaultBackend", e);
    }
    for (i, r) in spec.get("rules").iter().enumerate() {
        rule(r, &index("spec.rules", i), e);
    }
    for (i, t) in spec.get("tls").iter().enumerate() {
        let path = index("spec.tls", i);
        for (n, h) in t.get("hosts").iter().enumerate() {
            host(h.str(), &index(&child(&path, "hosts"), n), e);
        }
        let secret = t.get("secretName").str();
        if !secret.is_empty() {
            e.all_invalid(&child(&path, "secretName"), secret, names::dns1123_subdomain(secret));
        }
    }
    if let Some(class) = spec.get("ingressClassName").as_str() {
        e.all_invalid("spec.ingressClassName", class, names::dns1123_subdomain(class));
    }
}

fn host(h: &str, path: &str, e: &mut ErrorList) {
    if h.parse::<std::net::IpAddr>().is_ok() {
        e.push(FieldError::invalid(path, h, "must be a DNS name, not an IP address"));
        return;
    }
    let wrong = if h.contains('*') { names::wildcard_subdomain(h) } else { names::dns1123_subdomain(h) };
    e.all_invalid(path, h, wrong);
}

fn rule(r: Ref<'_>, path: &str, e: &mut ErrorList) {
    let h = r.get("host").str();
    if !h.is_empty() {
        host(h, &child(path, "host"), e);
    }
    let http = r.get("http");
    if !http.exists() {
        return;
    }
    let paths_at = format!("{path}.http.paths");
    if http.get("paths").is_empty() {
        e.push(FieldError::required(paths_at.clone(), ""));
    }
    for (i, p) in http.get("paths").iter().enumerate() {
        http_path(p, &index(&paths_at, i), e);
    }
}

fn http_path(p: Ref<'_>, at: &str, e: &mut ErrorList) {
    let (ty, path) = (p.get("pathType"), p.get("path").str());
    let path_at = child(at, "path");
    match ty.as_str() {
        None => e.push(FieldError::required(child(at, "pathType"), "pathType must be specified")),
        Some("Exact" | "Prefix") => {
            if !path.starts_with('/') {
                e.push(FieldError::invalid(path_at.clone(), path, "must be an absolute path"));
            }
            if !path.is_empty() {
                for bad in ["//", "/./", "/../", "%2f", "%2F"] {
                    if path.contains(bad) {
                        e.push(FieldError::invalid(path_at.clone(), path, format!("must not contain '{bad}'")));
                    }
                }
                for bad in ["/..", "/."] {
                    if path.ends_with(bad) {
                        e.push(FieldError::invalid(path_at.clone(), path, format!("cannot end with '{bad}'")));
                    }
                }
            }
        }
        Some("ImplementationSpecific") => {
            if !path.is_empty() && !path.starts_with('/') {
                e.push(FieldError::invalid(path_at, path, "must be an absolute path"));
            }
        }
        Some(other) => {
            e.push(FieldError::not_supported(child(at, "pathType"), other, &["Exact", "ImplementationSpecific", "Prefix"]));
        }
    }
    backend(p.get("backend"), &child(at, "backend"), e);
}

fn backend(b: Ref<'_>, path: &str, e: &mut ErrorList) {
    let (service, resource) = (b.get("service"), b.get("resource"));
    match (service.exists(), resource.exists()) {
        (true, true) => e.push(FieldError::invalid(path, "", "cannot set both resource and service backends")),
        (false, true) => local_reference(resource, &child(path, "resource"), e),
        (true, false) => {
            let service_at = child(path, "service");
            let name = service.get("name").str();
            if name.is_empty() {
                e.push(FieldError::required(child(&service_at, "name"), ""));
            } else {
                e.all_invalid(&child(&service_at, "name"), name, names::dns1123_label(name));
            }
            let (port_name, number) = (service.at("port.name").str(), service.at("port.number").int());
            match (port_name.is_empty(), number == 0) {
                (false, false) => e.push(FieldError::invalid(path, "", "cannot set both port name & port number")),
                (true, true) => e.push(FieldError::required(path, "port name or number is required")),
                (false, true) => e.all_invalid(&format!("{service_at}.port.name"), port_name, names::port_name(port_name)),
                (true, false) => {
                    if let Some(why) = values::port(number) {
                        e.push(FieldError::invalid(format!("{service_at}.port.number"), number, why));
                    }
                }
            }
        }
        (false, false) => e.push(FieldError::invalid(path, "", "resource or service backend is required")),
    }
}

/// An object by group, kind and name.
fn local_reference(r: Ref<'_>, path: &str, e: &mut ErrorList) {
    if let Some(group) = r.get("apiGroup").as_str() {
        e.all_invalid(&child(path, "apiGroup"), group, names::dns1123_subdomain(group));
    }
    for field in ["kind", "name"] {
        let v = r.get(field).str();
        if v.is_empty() {
            e.push(FieldError::required(child(path, field), ""));
        } else {
            e.all_invalid(&child(path, field), v, names::path_segment(v, false));
        }
    }
}

fn ingress_class(d: &Doc, e: &mut ErrorList) {
    let (controller, path) = (d.at("spec.controller").str(), "spec.controller");
    if controller.len() > 250 {
        e.push(FieldError::too_long(path, controller, 250));
    }
    match controller.split_once('/') {
        _ if controller.is_empty() => e.push(FieldError::required(path, "")),
        Some((domain, rest)) if !domain.is_empty() && !rest.is_empty() => {
            e.all_invalid(path, domain, names::dns1123_subdomain(domain));
        }
        _ => e.push(FieldError::invalid(path, controller, "must be a domain-prefixed path (such as \"acme.io/foo\")")),
    }
    parameters(d, e);
}

fn parameters(d: &Doc, e: &mut ErrorList) {
    let (p, path) = (d.at("spec.parameters"), "spec.parameters");
    if !p.exists() {
        return;
    }
    local_reference(p, path, e);
    let ns_at = child(path, "namespace");
    let ns = p.get("namespace");
    match p.get("scope").str() {
        "Namespace" => match ns.as_str() {
            None | Some("") => e.push(FieldError::required(ns_at, "`parameters.scope` is set to 'Namespace'")),
            Some(n) => e.all_invalid(&ns_at, n, names::dns1123_label(n)),
        },
        "Cluster" => {
            if ns.exists() {
                e.push(FieldError::forbidden(ns_at, "`parameters.scope` is set to 'Cluster'"));
            }
        }
        "" => e.push(FieldError::required(child(path, "scope"), "")),
        other => e.push(FieldError::not_supported(child(path, "scope"), other, &["Cluster", "Namespace"])),
    }
}

fn network_policy(d: &Doc, e: &mut ErrorList) {
    values::label_selector(d.at("spec.podSelector"), "spec.podSelector", e);
    for (rules, peers) in [("spec.ingress", "from"), ("spec.egress", "to")] {
        for (i, r) in d.at(rules).iter().enumerate() {
            let path = index(rules, i);
            for (n, p) in r.get("ports").iter().enumerate() {
                port(p, &index(&child(&path, "ports"), n), e);
            }
            for (n, p) in r.get(peers).iter().enumerate() {
                peer(p, &index(&child(&path, peers), n), e);
            }
        }
    }
    let types = d.at("spec.policyTypes");
    if types.len() > 2 {
        e.push(FieldError::invalid("spec.policyTypes", types.to_value(), "may not specify more than two policyTypes"));
        return;
    }
    for (i, t) in types.iter().enumerate() {
        if !matches!(t.str(), "Ingress" | "Egress") {
            e.push(FieldError::not_supported(index("spec.policyTypes", i), t.str(), &["Ingress", "Egress"]));
        }
    }
}

fn port(p: Ref<'_>, path: &str, e: &mut ErrorList) {
    if let Some(protocol) = p.get("protocol").as_str()
        && !matches!(protocol, "TCP" | "UDP" | "SCTP")
    {
        e.push(FieldError::not_supported(child(path, "protocol"), protocol, &["TCP", "UDP", "SCTP"]));
    }
    let (end, end_at) = (p.get("endPort").as_i64(), child(path, "endPort"));
    match p.get("port").int_or_string() {
        None => {
            if let Some(end) = end {
                e.push(FieldError::invalid(end_at, end, "may not be specified when `port` is not specified"));
            }
        }
        Some(IntOrString::Int(n)) => {
            let n = i64::from(n);
            if let Some(why) = values::port(n) {
                e.push(FieldError::invalid(child(path, "port"), n, why));
            }
            if let Some(end) = end {
                if end < n {
                    e.push(FieldError::invalid(end_at.clone(), n, "must be greater than or equal to `port`"));
                }
                if let Some(why) = values::port(end) {
                    e.push(FieldError::invalid(end_at, end, why));
                }
            }
        }
        Some(IntOrString::String(s)) => {
            e.all_invalid(&child(path, "port"), s, names::port_name(s));
            if let Some(end) = end {
                e.push(FieldError::invalid(end_at, end, "may not be specified when `port` is non-numeric"));
            }
        }
    }
}

fn peer(p: Ref<'_>, path: &str, e: &mut ErrorList) {
    let mut given = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if p.get(field).exists() {
            given += 1;
            values::label_selector(p.get(field), &child(path, field), e);
        }
    }
    let block = p.get("ipBlock");
    if block.exists() {
        if given > 0 {
            e.push(FieldError::forbidden(path, "may not specify both ipBlock and another peer"));
        }
        given += 1;
        ip_block(block, &child(path, "ipBlock"), e);
    }
    if given == 0 {
        e.push(FieldError::required(path, "must specify a peer"));
    }
}

fn cidr(text: &str, path: &str, e: &mut ErrorList) -> Option<IpNet> {
    addresses::range(text).map_err(|why| e.push(FieldError::invalid(path, text, why))).ok()
}

fn ip_block(b: Ref<'_>, path: &str, e: &mut ErrorList) {
    let text = b.get("cidr").str();
    let cidr_at = child(path, "cidr");
    if text.is_empty() {
        e.push(FieldError::required(cidr_at, ""));
        return;
    }
    let Some(net) = cidr(text, &cidr_at, e) else { return };
    for (i, x) in b.get("except").iter().enumerate() {
        let at = index(&child(path, "except"), i);
        if let Some(inner) = cidr(x.str(), &at, e)
            && !(net.contains(&inner) && inner.prefix_len() > net.prefix_len())
        {
            e.push(FieldError::invalid(at, x.str(), "must be a strict subset of `cidr`"));
        }
    }
}
