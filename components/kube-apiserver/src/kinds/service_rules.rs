//! Rules of Services beside their ports: what is reachable from outside, and by which balancer.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_schema::{Doc, Ref};

use crate::validation::{ErrorList, FieldError, child, index, names};

const BAD_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const BAD_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
const RANGES_ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

pub fn validate(d: &Doc, e: &mut ErrorList) {
    let s = d.at("spec");
    for (i, ip) in s.get("externalIPs").strings().enumerate() {
        reachable(ip, &index("spec.externalIPs", i), e);
    }
    let balanced = s.get("type").str() == "LoadBalancer";
    let local = s.get("externalTrafficPolicy").str() == "Local";
    let health = s.get("healthCheckNodePort").int();
    if health != 0 && !(balanced && local) {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        e.push(FieldError::invalid("spec.healthCheckNodePort", health, why));
    }
    const NEAR: &[&str] = &["PreferClose", "PreferSameZone", "PreferSameNode"];
    if let Some(near) = s.get("trafficDistribution").as_str().filter(|n| !NEAR.contains(n)) {
        e.push(FieldError::not_supported("spec.trafficDistribution", near, NEAR));
    }
    const BALANCED: &str = "may only be used when `type` is 'LoadBalancer'";
    if s.get("allocateLoadBalancerNodePorts").exists() && !balanced {
        e.push(FieldError::forbidden("spec.allocateLoadBalancerNodePorts", BALANCED));
    }
    if let Some(class) = s.get("loadBalancerClass").as_str() {
        if balanced {
            e.all_invalid("spec.loadBalancerClass", class, names::qualified_name(class));
        } else {
            e.push(FieldError::forbidden("spec.loadBalancerClass", BALANCED));
        }
    }
    // Upstream writes this field with a capital.
    let path = "spec.LoadBalancerSourceRanges";
    let ranges = s.get("loadBalancerSourceRanges");
    if !ranges.is_empty() {
        if !balanced {
            e.push(FieldError::forbidden(path, BALANCED));
        }
        for (i, r) in ranges.strings().enumerate() {
            cidr(r.trim(), &index(path, i), e);
        }
    } else if let Some(text) = d.meta().annotation(RANGES_ANNOTATION) {
        let path = format!("metadata.annotations[{RANGES_ANNOTATION}]");
        if !balanced {
            e.push(FieldError::forbidden(path.as_str(), BALANCED));
        }
        for r in text.split(',').map(str::trim).filter(|r| !r.is_empty()) {
            if r.parse::<IpNet>().is_err() {
                e.push(FieldError::invalid(path.as_str(), text, BAD_CIDR));
            }
        }
    }
}

fn cidr(r: &str, path: &str, e: &mut ErrorList) {
    match r.parse::<IpNet>() {
        Err(_) => e.push(FieldError::invalid(path, r, BAD_CIDR)),
        Ok(net) if net.addr() != net.network() => {
            e.push(FieldError::invalid(path, r, "must not have bits set beyond the prefix length"));
        }
        Ok(_) => {}
    }
}

/// An address that others can send to.
pub fn reachable(text: &str, path: &str, e: &mut ErrorList) {
    let Ok(ip) = text.parse::<IpAddr>() else {
        e.push(FieldError::invalid(path, text, BAD_IP));
        return;
    };
    let (link_local, multicast) = match ip {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.segments()[0] & 0xffc0 == 0xfe80, v6.segments()[0] & 0xff0f == 0xff02),
    };
    for (is, why) in [
        (ip.is_unspecified(), format!("may not be unspecified ({text})")),
        (ip.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned()),
        (link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned()),
        (multicast, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned()),
    ] {
        if is {
            e.push(FieldError::invalid(path, text, why));
        }
    }
}

/// What does not change while a balancer serves it.
pub fn update(new: &Doc, old: &Doc, e: &mut ErrorList) {
    let (n, o) = (new.at("spec"), old.at("spec"));
    let balanced = |s: Ref<'_>| s.get("type").str() == "LoadBalancer";
    if balanced(n) && balanced(o) && n.get("loadBalancerClass").as_str() != o.get("loadBalancerClass").as_str() {
        e.push(FieldError::invalid("spec.loadBalancerClass", n.get("loadBalancerClass").to_value(), "may not change once set"));
    }
    let health =
        |s: Ref<'_>| if balanced(s) && s.get("externalTrafficPolicy").str() == "Local" { s.get("healthCheckNodePort").int() } else { 0 };
    if health(o) != 0 && health(n) != 0 && health(n) != health(o) {
        e.push(FieldError::forbidden("spec.healthCheckNodePort", "field is immutable"));
    }
}

/// The addresses a balancer reports.
pub fn status(d: &Doc, e: &mut ErrorList) {
    for (i, x) in d.at("status.loadBalancer.ingress").iter().enumerate() {
        let path = index("status.loadBalancer.ingress", i);
        let (ip, mode, host) = (x.get("ip").str(), x.get("ipMode"), x.get("hostname").str());
        if !ip.is_empty() && ip.parse::<IpAddr>().is_err() {
            let octets: Vec<&str> = ip.split('.').collect();
            let padded = octets.len() == 4 && octets.iter().all(|o| o.parse::<u8>().is_ok());
            e.push(FieldError::invalid(child(&path, "ip"), ip, if padded { "must not have leading 0s" } else { BAD_IP }));
        }
        if let Some(m) = mode.as_str() {
            if ip.is_empty() {
                e.push(FieldError::forbidden(child(&path, "ipMode"), "may not be specified when `ip` is not set"));
            } else if !matches!(m, "VIP" | "Proxy") {
                e.push(FieldError::not_supported(child(&path, "ipMode"), m, &["Proxy", "VIP"]));
            }
        }
        if !host.is_empty() {
            e.all_invalid(&child(&path, "hostname"), host, names::dns1123_subdomain(host));
            if host.parse::<IpAddr>().is_ok() {
                e.push(FieldError::invalid(child(&path, "hostname"), host, "must be a DNS name, not an IP address"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_from_outside_can_be_sent_to() {
        for (ip, why) in [
            ("1.2.3.4", ""),
            ("127.0.0.1", "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
            ("0.0.0.0", "may not be unspecified (0.0.0.0)"),
            ("fe80::1", "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
            ("x", BAD_IP),
        ] {
            let mut e = ErrorList::new();
            reachable(ip, "p", &mut e);
            let got: Vec<String> = e.iter().map(ToString::to_string).collect();
            let want: Vec<String> = if why.is_empty() { Vec::new() } else { vec![format!("p: Invalid value: {ip:?}: {why}")] };
            assert_eq!(got, want);
        }
    }
}
