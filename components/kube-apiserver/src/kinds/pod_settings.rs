//! What a pod says of itself as a whole: its names and resolver, the host's namespaces, its system, its gates and claims.

use std::net::IpAddr;

use k8s_schema::Ref;
use serde_json::json;

use crate::validation::{ErrorList, FieldError, child, index, names};

pub fn validate(s: Ref<'_>, path: &str, e: &mut ErrorList) {
    resolver(s.get("dnsConfig"), &child(path, "dnsConfig"), e);
    host(s, path, e);
    system(s, path, e);
    for (i, g) in s.get("readinessGates").iter().enumerate() {
        let (at, ty) = (child(&index(&child(path, "readinessGates"), i), "conditionType"), g.get("conditionType").str());
        e.all_invalid(&at, ty, names::qualified_name(ty));
    }
    gates(s, path, e);
    claims(s, path, e);
    name(s, path, e);
}

fn resolver(dns: Ref<'_>, path: &str, e: &mut ErrorList) {
    let (servers, searches) = (dns.get("nameservers"), dns.get("searches"));
    if servers.len() > 3 {
        e.push(FieldError::invalid(child(path, "nameservers"), servers.to_value(), "must not have more than 3 nameservers"));
    }
    for (i, server) in servers.strings().enumerate() {
        let at = index(&child(path, "nameservers"), i);
        if server.parse::<IpAddr>().is_err() {
            let octets: Vec<&str> = server.split('.').collect();
            let padded = octets.len() == 4 && octets.iter().all(|o| o.parse::<u8>().is_ok());
            let why = if padded { "must not have leading 0s" } else { "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)" };
            e.push(FieldError::invalid(at, server, why));
        }
    }
    if searches.len() > 32 {
        e.push(FieldError::invalid(child(path, "searches"), searches.to_value(), "must not have more than 32 search paths"));
    }
    for (i, search) in searches.strings().enumerate() {
        // The root is a search path too, and one may end with it; resolvers also take underscores.
        let plain = search.strip_suffix('.').unwrap_or(search);
        let good = |l: &str| {
            let l = l.strip_prefix('_').unwrap_or(l).as_bytes();
            let edge = |c: Option<&u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
            edge(l.first()) && edge(l.last()) && l.iter().all(|c| edge(Some(c)) || matches!(c, b'-' | b'_'))
        };
        if search != "." && !plain.split('.').all(good) {
            let why = names::regex(
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character",
                r"_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*",
                &["example.com"],
            );
            e.push(FieldError::invalid(index(&child(path, "searches"), i), search, why));
        }
    }
    for (i, option) in dns.get("options").iter().enumerate() {
        if option.get("name").str().is_empty() {
            e.push(FieldError::required(index(&child(path, "options"), i), "must not be empty"));
        }
    }
}

fn host(s: Ref<'_>, path: &str, e: &mut ErrorList) {
    let on = |f: &str| s.get(f).bool();
    if on("hostNetwork") {
        for list in ["containers", "initContainers"] {
            for (i, c) in s.get(list).iter().enumerate() {
                for (j, p) in c.get("ports").iter().enumerate() {
                    let (host, port) = (p.get("hostPort").int(), p.get("containerPort").int());
                    // Templates leave it to their pods, which get the same number.
                    if host != 0 && host != port {
                        let at = format!("{path}.{list}[{i}].ports[{j}].hostPort");
                        e.push(FieldError::invalid(at, host, "must match `containerPort` when `hostNetwork` is true"));
                    }
                }
            }
        }
    }
    if on("hostPID") && on("shareProcessNamespace") {
        let at = child(path, "securityContext.shareProcessNamespace");
        e.push(FieldError::invalid(at, true, "ShareProcessNamespace and HostPID cannot both be enabled"));
    }
    if s.get("hostUsers").as_bool() == Some(false) {
        // Upstream writes two of the three with a capital.
        for (f, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
            if on(f) {
                e.push(FieldError::forbidden(child(path, shown), "when `hostUsers` is false"));
            }
        }
    }
}

fn system(s: Ref<'_>, path: &str, e: &mut ErrorList) {
    let os = s.get("os");
    if !os.exists() {
        return;
    }
    match os.get("name").str() {
        "" => e.push(FieldError::required(child(path, "os.name"), "")),
        "linux" => {
            let mut parts = vec![(child(path, "securityContext"), s.get("securityContext"))];
            for list in ["containers", "initContainers"] {
                for (i, c) in s.get(list).iter().enumerate() {
                    parts.push((format!("{path}.{list}[{i}].securityContext"), c.get("securityContext")));
                }
            }
            for (at, _) in parts.iter().filter(|(_, c)| c.get("windowsOptions").exists()) {
                e.push(FieldError::forbidden(child(at, "windowsOptions"), "windows options cannot be set for a linux pod"));
            }
        }
        "windows" => windows(s, path, e),
        other => e.push(FieldError::not_supported(child(path, "os"), other, &["linux", "windows"])),
    }
}

/// What only Linux has.
fn windows(s: Ref<'_>, path: &str, e: &mut ErrorList) {
    let mut forbid = |at: String, is: bool| {
        if is {
            e.push(FieldError::forbidden(at, "cannot be set for a windows pod"));
        }
    };
    let context = s.get("securityContext");
    let at = |f: &str| format!("{path}.securityContext.{f}");
    forbid(at("appArmorProfile"), context.get("appArmorProfile").exists());
    forbid(at("seLinuxOptions"), context.get("seLinuxOptions").exists());
    for f in ["hostUsers", "hostPID", "hostIPC", "hostNetwork"] {
        forbid(child(path, f), if f == "hostUsers" { s.get(f).exists() } else { s.get(f).bool() });
    }
    for f in ["seccompProfile", "fsGroup", "fsGroupChangePolicy", "sysctls", "shareProcessNamespace", "runAsUser", "runAsGroup"] {
        let there = if f == "shareProcessNamespace" { s.get(f).exists() } else { context.get(f).exists() };
        forbid(at(f), there);
    }
    for f in ["supplementalGroupsPolicy", "supplementalGroups"] {
        forbid(at(f), context.get(f).exists());
    }
    for list in ["containers", "initContainers"] {
        for (i, c) in s.get(list).iter().enumerate() {
            let context = c.get("securityContext");
            for f in [
                "appArmorProfile",
                "seLinuxOptions",
                "seccompProfile",
                "capabilities",
                "readOnlyRootFilesystem",
                "privileged",
                "allowPrivilegeEscalation",
                "procMount",
                "runAsUser",
                "runAsGroup",
            ] {
                forbid(format!("{path}.{list}[{i}].securityContext.{f}"), context.get(f).exists());
            }
        }
    }
}

fn gates(s: Ref<'_>, path: &str, e: &mut ErrorList) {
    let all: Vec<&str> = s.get("schedulingGates").iter().map(|g| g.get("name").str()).collect();
    for (i, gate) in all.iter().enumerate() {
        let at = index(&child(path, "schedulingGates"), i);
        e.all_invalid(&at, *gate, names::qualified_name(gate));
        if all[..i].contains(gate) {
            e.push(FieldError::duplicate(at, *gate));
        }
    }
    if !all.is_empty() && !s.get("nodeName").str().is_empty() {
        e.push(FieldError::forbidden(child(path, "nodeName"), "cannot be set until all schedulingGates have been cleared"));
    }
}

fn claims(s: Ref<'_>, path: &str, e: &mut ErrorList) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, c) in s.get("resourceClaims").iter().enumerate() {
        let (at, name) = (index(&child(path, "resourceClaims"), i), c.get("name").str());
        let (claim, template) = (c.get("resourceClaimName"), c.get("resourceClaimTemplateName"));
        if name.is_empty() {
            e.push(FieldError::required(child(&at, "name"), ""));
        } else if seen.contains(&name) {
            e.push(FieldError::duplicate(child(&at, "name"), name));
        } else {
            e.all_invalid(&child(&at, "name"), name, names::dns1123_label(name));
        }
        seen.push(name);
        let shown = json!({"Name": name, "ResourceClaimName": claim.to_value(), "ResourceClaimTemplateName": template.to_value()});
        match (claim.exists(), template.exists()) {
            (true, true) => {
                let why = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                e.push(FieldError::invalid(at, shown, why));
            }
            (false, false) => {
                e.push(FieldError::invalid(at, shown, "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"));
            }
            _ => {}
        }
    }
    for list in ["containers", "initContainers"] {
        for (i, c) in s.get(list).iter().enumerate() {
            for (j, used) in c.at("resources.claims").iter().map(|u| u.get("name").str()).enumerate().filter(|(_, u)| !seen.contains(u)) {
                let known = if seen.is_empty() { " which is empty".to_owned() } else { format!(": {}", seen.join(", ")) };
                let at = format!("{path}.{list}[{i}].resources.claims[{j}]");
                e.push(FieldError::not_found_of(at, used, format!("must be one of the names in pod.spec.resourceClaims{known}")));
            }
        }
    }
}

fn name(s: Ref<'_>, path: &str, e: &mut ErrorList) {
    let Some(name) = s.get("hostnameOverride").as_str() else { return };
    let at = child(path, "hostnameOverride");
    e.all_invalid(&at, name, names::dns1123_subdomain(name));
    if s.get("setHostnameAsFQDN").bool() {
        e.push(FieldError::forbidden(at.as_str(), "may not be specified when setHostnameAsFQDN is true"));
    }
    if s.get("hostNetwork").bool() {
        e.push(FieldError::forbidden(at, "may not be specified when hostNetwork is true"));
    }
}

#[cfg(test)]
mod tests {
    use k8s_schema::{Doc, Schema};
    use serde_json::Value;

    use super::*;

    fn errors(spec: Value) -> Vec<String> {
        let schema = Schema::builtin();
        let doc = Doc::from_value(&schema, schema.kind("", "v1", "Pod").unwrap(), &json!({"spec": spec})).unwrap().doc;
        let mut e = ErrorList::new();
        validate(doc.at("spec"), "spec", &mut e);
        e.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_pod_does_not_contradict_itself() {
        assert_eq!(errors(json!({"dnsConfig": {"nameservers": ["1.2.3.4"], "searches": ["a_b", "."]}, "os": {"name": "linux"}})), [""; 0]);
        for (spec, want) in [
            (
                json!({"dnsConfig": {"nameservers": ["010.2.3.4"]}}),
                "spec.dnsConfig.nameservers[0]: Invalid value: \"010.2.3.4\": must not have leading 0s",
            ),
            (json!({"hostPID": true, "hostUsers": false}), "spec.HostPID: Forbidden: when `hostUsers` is false"),
            (json!({"os": {"name": "mac"}}), "spec.os: Unsupported value: \"mac\": supported values: \"linux\", \"windows\""),
            (json!({"schedulingGates": [{"name": "a"}, {"name": "a"}]}), "spec.schedulingGates[1]: Duplicate value: \"a\""),
            (
                json!({"containers": [{"resources": {"claims": [{"name": "zz"}]}}]}),
                "spec.containers[0].resources.claims[0]: Not found: \"zz\": must be one of the names in pod.spec.resourceClaims which is empty",
            ),
        ] {
            assert_eq!(errors(spec), [want]);
        }
    }
}
