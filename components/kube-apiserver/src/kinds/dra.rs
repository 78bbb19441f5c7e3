//! Dynamic resource allocation: device classes, claims and templates of claims.

use k8s_schema::{Doc, EditError, Mut, Ref};

use super::{Action, GENERATION, PLAIN, Strategy, device_selectors};
use crate::validation::{ErrorList, FieldError, child, index, names, values};

pub const DEVICE_CLASS: Strategy =
    Strategy { returns_deleted: true, validate_create: class, validate_update: |_, d, _, e| class(d, e), ..GENERATION };

pub const RESOURCE_CLAIM: Strategy = Strategy {
    returns_deleted: true,
    status: true,
    validate_create: |d, e| devices(d.at("spec.devices"), "spec.devices", e),
    validate_update: |action, new, old, e| match action {
        Action::Status => status(new, old, e),
        _ => immutable_spec(new, old, e),
    },
    ..PLAIN
};

pub const RESOURCE_CLAIM_TEMPLATE: Strategy = Strategy {
    returns_deleted: true,
    validate_create: |d, e| {
        let meta = d.at("spec.metadata");
        for field in ["name", "generateName", "namespace"] {
            if !meta.get(field).str().is_empty() {
                e.push(FieldError::forbidden(format!("spec.metadata.{field}"), "cannot be set"));
            }
        }
        values::labels(meta.get("labels"), "spec.metadata.labels", e);
        values::annotations(meta.get("annotations"), "spec.metadata.annotations", e);
        devices(d.at("spec.spec.devices"), "spec.spec.devices", e);
    },
    validate_update: |_, new, old, e| immutable_spec(new, old, e),
    ..PLAIN
};

const MAX_EXPRESSION: usize = 10 << 10;
/// What a taint of a device does.
pub(super) const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];
const ONE_OF: &str = "exactly one of `exactly` or `firstAvailable` is required";
const NO_REQUEST: &str = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";

/// A request is for one device unless it says otherwise.
pub fn default(d: &mut Doc, path: &str) -> Result<(), EditError> {
    fn request(m: &mut Mut<'_>) -> Result<(), EditError> {
        m.set_default("allocationMode", "ExactCount")?;
        if m.get("allocationMode").str() == "ExactCount" && m.get("count").int() == 0 {
            m.set("count", 1i64)?;
        }
        m.for_each("tolerations", |mut t| t.set_default("operator", "Equal").map(drop))
    }
    d.for_each(path, |mut r| {
        if let Some(mut exactly) = r.existing("exactly") {
            request(&mut exactly)?;
        }
        r.for_each("firstAvailable", |mut s| request(&mut s))
    })
}

fn immutable_spec(new: &Doc, old: &Doc, e: &mut ErrorList) {
    if !new.at("spec").semantic_eq(old.at("spec")) {
        e.push(FieldError::invalid("spec", new.at("spec").to_value(), "field is immutable"));
    }
}

/// Devices that others use may be looked into only where the namespace is labelled for it.
pub fn admin_access(d: &Doc, namespace: Option<&Doc>, e: &mut ErrorList) {
    const LABEL: &str = "resource.kubernetes.io/admin-access";
    let path = if d.kind() == "ResourceClaimTemplate" { "spec.spec.devices.requests" } else { "spec.devices.requests" };
    for (i, r) in d.at(path).iter().enumerate() {
        if r.at("exactly.adminAccess").bool() && namespace.is_none_or(|n| n.at("metadata.labels").get(LABEL).str() != "true") {
            let why = format!("admin access to devices requires the `{LABEL}: true` label on the containing namespace");
            e.push(FieldError::forbidden(child(&index(path, i), "adminAccess"), why));
        }
    }
}

fn class(d: &Doc, e: &mut ErrorList) {
    selectors(d.at("spec.selectors"), "spec.selectors", e);
    for (i, c) in d.at("spec.config").iter().enumerate() {
        opaque(c, &index("spec.config", i), e);
    }
    if let Some(name) = d.at("spec.extendedResourceName").as_str() {
        let foreign = name.split_once('/').is_some_and(|(domain, _)| !domain.ends_with("kubernetes.io"));
        if !foreign || name.starts_with("requests.") || !names::qualified_name(name).is_empty() {
            e.push(FieldError::invalid("spec.extendedResourceName", name, "must be a valid extended resource name"));
        }
    }
}

fn selectors(list: Ref<'_>, path: &str, e: &mut ErrorList) {
    for (i, s) in list.iter().enumerate() {
        let at = child(&index(path, i), "cel");
        let (source, within) = (s.at("cel.expression").str(), child(&at, "expression"));
        if !s.get("cel").exists() {
            e.push(FieldError::required(at, ""));
        } else if source.len() > MAX_EXPRESSION {
            e.push(FieldError::too_long(within, "", MAX_EXPRESSION));
        } else {
            device_selectors::check(source, &within, e);
        }
    }
    if list.len() > 32 {
        e.push(FieldError::too_many(path, list.len(), 32));
    }
}

fn opaque(c: Ref<'_>, path: &str, e: &mut ErrorList) {
    let (o, path) = (c.get("opaque"), child(path, "opaque"));
    if !o.exists() {
        e.push(FieldError::required(path, ""));
        return;
    }
    driver(o.get("driver").str(), &child(&path, "driver"), e);
    let parameters = o.get("parameters").raw();
    match parameters.iter().find(|c| !c.is_ascii_whitespace()) {
        None => e.push(FieldError::required(child(&path, "parameters"), "")),
        Some(b'{') => {}
        Some(_) => e.push(FieldError::invalid(child(&path, "parameters"), "<value omitted>", "must be a valid JSON object")),
    }
}

pub(super) fn driver(name: &str, path: &str, e: &mut ErrorList) {
    if name.is_empty() {
        e.push(FieldError::required(path, ""));
        return;
    }
    if name.len() > 63 {
        e.push(FieldError::too_long(path, name, 63));
    }
    e.all_invalid(path, name, names::dns1123_subdomain(&name.to_lowercase()));
}

pub(super) fn pool(name: &str, path: &str, e: &mut ErrorList) {
    if name.is_empty() {
        return e.push(FieldError::required(path, ""));
    }
    if name.len() > 253 {
        e.push(FieldError::too_long(path, name, 253));
    }
    for part in name.split('/') {
        e.all_invalid(path, part, names::dns1123_subdomain(part));
    }
}

/// The names that constraints and configurations may refer to.
fn request_names(devices: Ref<'_>) -> Vec<String> {
    let mut all = Vec::new();
    for r in devices.get("requests").iter() {
        let name = r.get("name").str();
        all.push(name.to_owned());
        all.extend(r.get("firstAvailable").iter().map(|s| format!("{name}/{}", s.get("name").str())));
    }
    all
}

fn devices(d: Ref<'_>, path: &str, e: &mut ErrorList) {
    let (requests, at) = (d.get("requests"), child(path, "requests"));
    if requests.len() > 32 {
        e.push(FieldError::too_many(at.clone(), requests.len(), 32));
        return;
    }
    let mut seen: Vec<&str> = Vec::new();
    for (i, r) in requests.iter().enumerate() {
        let name = r.get("name").str();
        request(r, &index(&at, i), e);
        if seen.contains(&name) {
            e.push(FieldError::duplicate(index(&at, i), name));
        }
        seen.push(name);
    }
    let known = request_names(d);
    for (i, c) in d.get("constraints").iter().enumerate() {
        constraint(c, &index(&child(path, "constraints"), i), &known, e);
    }
    for (i, c) in d.get("config").iter().enumerate() {
        let at = index(&child(path, "config"), i);
        references(c.get("requests"), &child(&at, "requests"), &known, e);
        opaque(c, &at, e);
    }
}

fn request(r: Ref<'_>, path: &str, e: &mut ErrorList) {
    let name = r.get("name").str();
    e.all_invalid(&child(path, "name"), name, names::dns1123_label(name));
    let (exactly, first) = (r.get("exactly"), r.get("firstAvailable"));
    match (exactly.exists(), !first.is_empty()) {
        (true, true) => {
            let why = format!("{ONE_OF}, but multiple fields are set");
            e.push(FieldError::invalid(path, serde_json::Value::Null, why));
        }
        (false, false) => e.push(FieldError::required(path, ONE_OF)),
        (true, false) => exact(exactly, &child(path, "exactly"), e),
        (false, true) => {
            let at = child(path, "firstAvailable");
            if first.len() > 8 {
                e.push(FieldError::too_many(at, first.len(), 8));
                return;
            }
            let mut seen: Vec<&str> = Vec::new();
            for (i, s) in first.iter().enumerate() {
                let (at, name) = (index(&at, i), s.get("name").str());
                e.all_invalid(&child(&at, "name"), name, names::dns1123_label(name));
                exact(s, &at, e);
                if seen.contains(&name) {
                    e.push(FieldError::duplicate(at, name));
                }
                seen.push(name);
            }
        }
    }
}

fn exact(r: Ref<'_>, path: &str, e: &mut ErrorList) {
    let class = r.get("deviceClassName").str();
    if class.is_empty() {
        e.push(FieldError::required(child(path, "deviceClassName"), ""));
    } else {
        e.all_invalid(&child(path, "deviceClassName"), class, names::dns1123_subdomain(class));
    }
    selectors(r.get("selectors"), &child(path, "selectors"), e);
    let count = r.get("count").int();
    match r.get("allocationMode").str() {
        "All" => {
            if count != 0 {
                e.push(FieldError::invalid(child(path, "count"), count, "must not be specified when allocationMode is 'All'"));
            }
        }
        "ExactCount" => {
            if count <= 0 {
                e.push(FieldError::invalid(child(path, "count"), count, "must be greater than zero"));
            }
        }
        other => e.push(FieldError::not_supported(child(path, "allocationMode"), other, &["All", "ExactCount"])),
    }
    for (i, t) in r.get("tolerations").iter().enumerate() {
        let at = index(&child(path, "tolerations"), i);
        let (key, effect) = (t.get("key").str(), t.get("effect").str());
        if !key.is_empty() {
            e.all_invalid(&child(&at, "key"), key, names::qualified_name(key));
        }
        match t.get("operator").str() {
            "Exists" => {
                let v = t.get("value").str();
                if !v.is_empty() {
                    e.push(FieldError::invalid(child(&at, "value"), v, "must be empty for operator `Exists`"));
                }
            }
            "Equal" => {
                let v = t.get("value").str();
                e.all_invalid(&child(&at, "value"), v, names::label_value(v));
            }
            "" => e.push(FieldError::required(child(&at, "operator"), "")),
            other => e.push(FieldError::not_supported(child(&at, "operator"), other, &["Equal", "Exists"])),
        }
        if !effect.is_empty() && !EFFECTS.contains(&effect) {
            e.push(FieldError::not_supported(child(&at, "effect"), effect, &EFFECTS));
        }
    }
}

fn references(list: Ref<'_>, path: &str, known: &[String], e: &mut ErrorList) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, r) in list.iter().enumerate() {
        let (at, name) = (index(path, i), r.str());
        if seen.contains(&name) {
            e.push(FieldError::duplicate(at, name));
            continue;
        }
        seen.push(name);
        if !known.iter().any(|k| k == name) {
            e.push(FieldError::invalid(at, name, NO_REQUEST));
        }
    }
}

fn constraint(c: Ref<'_>, path: &str, known: &[String], e: &mut ErrorList) {
    references(c.get("requests"), &child(path, "requests"), known, e);
    let given: Vec<(&str, &str)> =
        ["matchAttribute", "distinctAttribute"].into_iter().filter_map(|f| Some((f, c.get(f).as_str()?))).collect();
    match given.as_slice() {
        [(field, name)] => attribute(name, &child(path, field), e),
        _ => {
            // Upstream says so of none, too.
            let why = "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set";
            e.push(FieldError::required(path, why));
        }
    }
}

/// `domain/identifier`
fn attribute(name: &str, path: &str, e: &mut ErrorList) {
    qualified(name, path, e);
    if !name.contains('/') {
        e.push(FieldError::invalid(path, name, "a fully qualified name must be a domain and a name separated by a slash"));
    }
}

/// An identifier, which may have the domain of who defined it before it.
pub(super) fn qualified(name: &str, path: &str, e: &mut ErrorList) {
    match name.split_once('/') {
        None => identifier(name, path, e),
        // More slashes are taken as they come: so does upstream.
        Some((_, id)) if id.contains('/') => {}
        Some((domain, id)) => {
            if domain.is_empty() {
                e.push(FieldError::invalid(path, "", "the domain must not be empty"));
            } else {
                driver(domain, path, e);
            }
            if id.is_empty() {
                e.push(FieldError::invalid(path, "", "the name must not be empty"));
            } else {
                identifier(id, path, e);
            }
        }
    }
}

fn identifier(id: &str, path: &str, e: &mut ErrorList) {
    const C_IDENTIFIER: &str =
        "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'";
    if id.len() > 32 {
        e.push(FieldError::too_long(path, id, 32));
    }
    let starts = id.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !starts || !id.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        e.push(FieldError::invalid(path, id, names::regex(C_IDENTIFIER, "[A-Za-z_][A-Za-z0-9_]*", &["my_name", "MY_NAME", "MyName"])));
    }
}

fn status(d: &Doc, old: &Doc, e: &mut ErrorList) {
    let (allocation, reserved) = (d.at("status.allocation"), d.at("status.reservedFor"));
    let mut seen: Vec<&str> = Vec::new();
    for (i, r) in reserved.iter().enumerate() {
        let (at, uid) = (index("status.reservedFor", i), r.get("uid").str());
        for field in ["resource", "name", "uid"] {
            if r.get(field).str().is_empty() {
                e.push(FieldError::required(child(&at, field), ""));
            }
        }
        if seen.contains(&uid) {
            e.push(FieldError::duplicate(at, uid));
        }
        seen.push(uid);
    }
    if !reserved.is_empty() && !allocation.exists() {
        e.push(FieldError::forbidden("status.reservedFor", "may not be specified when `allocated` is not set"));
    }
    let known = request_names(d.at("spec.devices"));
    for (i, r) in allocation.at("devices.results").iter().enumerate() {
        let at = index("status.allocation.devices.results", i);
        let request = r.get("request").str();
        if !known.iter().any(|k| k == request) {
            e.push(FieldError::invalid(child(&at, "request"), request, NO_REQUEST));
        }
        driver(r.get("driver").str(), &child(&at, "driver"), e);
        pool(r.get("pool").str(), &child(&at, "pool"), e);
        let device = r.get("device").str();
        e.all_invalid(&child(&at, "device"), device, names::dns1123_label(device));
    }
    let before = old.at("status.allocation");
    if allocation.exists() && before.exists() && !allocation.semantic_eq(before) {
        e.push(FieldError::invalid("status.allocation", allocation.to_value(), "field is immutable"));
    }
    for (i, reported) in d.at("status.devices").iter().enumerate().filter(|_| allocation.exists()) {
        device_status(reported, &index("status.devices", i), allocation, e);
    }
}

/// What a driver reports of a device that is the claim's.
fn device_status(d: Ref<'_>, path: &str, allocation: Ref<'_>, e: &mut ErrorList) {
    let id = |r: Ref<'_>| ["driver", "pool", "device", "shareID"].map(|f| r.get(f).str().to_owned());
    if !allocation.at("devices.results").iter().any(|r| id(r) == id(d)) {
        let [driver, pool, device, share] = id(d);
        let shown = serde_json::json!({"driver": driver, "pool": pool, "device": device, "shareID": share});
        e.push(FieldError::invalid(path, shown, "must be an allocated device in the claim"));
    }
    let ips = child(path, "networkData.ips");
    for (i, ip) in d.at("networkData.ips").strings().enumerate() {
        if ip.parse::<ipnet::IpNet>().is_err() {
            let why = "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)";
            e.push(FieldError::invalid(index(&ips, i), ip, why));
        }
    }
}
