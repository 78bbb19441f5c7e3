//! Endpoints, EndpointSlice and Lease.

use k8s_schema::Doc;

use super::{Action, PLAIN, Strategy, endpoints, immutable};
use crate::validation::{ErrorList, FieldError, child, index, names};

pub const ENDPOINTS: Strategy = Strategy {
    create_on_update: true,
    prepare_create: endpoints::settle,
    prepare_update: |_, n, _| endpoints::settle(n),
    validate_create: endpoints::check,
    validate_update: |_, n, o, e| {
        // What was good enough once may stay.
        if !n.at("subsets").semantic_eq(o.at("subsets")) {
            endpoints::check(n, e);
        }
    },
    warnings: |_, _| vec!["v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".into()],
    ..PLAIN
};
pub const ENDPOINT_SLICE: Strategy = Strategy {
    generation: true,
    prepare_create: |d| {
        // Topology of the old API has no place here; what a client may not send is dropped.
        let dropped = d.for_each("endpoints", |mut ep| {
            ep.remove("deprecatedTopology");
            Ok::<_, std::convert::Infallible>(())
        });
        let Ok(()) = dropped;
    },
    labels_count: true,
    warnings: |d, _| match d.at("addressType").str() {
        "FQDN" => vec!["spec.addressType: FQDN endpoints are deprecated".into()],
        _ => Vec::new(),
    },
    validate_create: slice,
    validate_update: |_, n, o, e| {
        // What an address has to look like follows from the type that it cannot change.
        let same = n.at("addressType").semantic_eq(o.at("addressType"));
        immutable(n, o, "addressType", e);
        if same {
            slice(n, e);
        }
    },
    ..PLAIN
};
pub const LEASE: Strategy = Strategy {
    create_on_update: true,
    unconditional_update: false,
    prepare_create: coordination,
    prepare_update: |_, n, _| coordination(n),
    validate_create: lease,
    validate_update: |_: Action, n, _, e| lease(n, e),
    ..PLAIN
};

fn slice(d: &Doc, e: &mut ErrorList) {
    let kind = d.at("addressType").str();
    if kind.is_empty() {
        e.push(FieldError::required("addressType", ""));
    } else if !matches!(kind, "IPv4" | "IPv6" | "FQDN") {
        e.push(FieldError::not_supported("addressType", kind, &["FQDN", "IPv4", "IPv6"]));
    }
    if d.at("endpoints").len() > 1000 {
        e.push(FieldError::too_many("endpoints", d.at("endpoints").len(), 1000));
        return;
    }
    for (i, ep) in d.at("endpoints").iter().enumerate() {
        endpoint(ep, &index("endpoints", i), e);
        let p = child(&index("endpoints", i), "addresses");
        let list = p.clone();
        let n = ep.get("addresses").len();
        if n == 0 {
            e.push(FieldError::required(p.clone(), "must contain at least 1 address"));
        } else if n > 100 {
            e.push(FieldError::too_many(p.clone(), n, 100));
        }
        for (j, a) in ep.get("addresses").iter().enumerate() {
            let (p, a) = (index(&p, j), a.str());
            match (kind, a.parse::<std::net::IpAddr>()) {
                ("IPv4", Ok(ip @ std::net::IpAddr::V4(_))) | ("IPv6", Ok(ip @ std::net::IpAddr::V6(_))) => {
                    if ip.to_string() != a {
                        e.push(FieldError::invalid(p.as_str(), a, format!("must be in canonical form ({:?})", ip.to_string())));
                    }
                    super::service_rules::reachable(a, &p, e);
                }
                ("IPv4", Ok(_)) => e.push(FieldError::invalid(list.as_str(), a, "must be an IPv4 address")),
                ("IPv6", Ok(_)) => e.push(FieldError::invalid(list.as_str(), a, "must be an IPv6 address")),
                ("IPv4" | "IPv6", Err(_)) => {
                    e.push(FieldError::invalid(p, a, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"));
                }
                ("FQDN", _) => e.all_invalid(&p, a, names::dns1123_subdomain(a)),
                _ => {}
            }
        }
    }
    if d.at("ports").len() > 20_000 {
        e.push(FieldError::too_many("ports", d.at("ports").len(), 20_000));
        return;
    }
    let mut seen: Vec<&str> = Vec::new();
    for (i, port) in d.at("ports").iter().enumerate() {
        let p = index("ports", i);
        let name = port.get("name").str();
        if !name.is_empty() {
            e.all_invalid(&child(&p, "name"), name, names::dns1123_label(name));
        }
        if seen.contains(&name) {
            e.push(FieldError::duplicate(child(&p, "name"), name));
        }
        seen.push(name);
        if let Some(protocol) = port.get("appProtocol").as_str() {
            e.all_invalid(&child(&p, "appProtocol"), protocol, names::qualified_name(protocol));
        }
        let protocol = port.get("protocol").str();
        if !matches!(protocol, "TCP" | "UDP" | "SCTP") {
            e.push(FieldError::not_supported(child(&p, "protocol"), protocol, &["SCTP", "TCP", "UDP"]));
        }
    }
}

/// What else an endpoint says of itself.
fn endpoint(ep: k8s_schema::Ref<'_>, path: &str, e: &mut ErrorList) {
    if let Some(host) = ep.get("hostname").as_str() {
        e.all_invalid(&child(path, "hostname"), host, names::dns1123_label(host));
    }
    if let Some(node) = ep.get("nodeName").as_str() {
        e.all_invalid(&child(path, "nodeName"), node, names::dns1123_subdomain(node));
    }
    for list in ["forZones", "forNodes"] {
        let at = child(&child(path, "hints"), list);
        let all: Vec<&str> = ep.get("hints").get(list).iter().map(|z| z.get("name").str()).collect();
        if all.len() > 8 {
            e.push(FieldError::too_many(at.as_str(), all.len(), 8));
            continue;
        }
        for (i, z) in all.iter().enumerate() {
            let at = child(&index(&at, i), "name");
            if all[..i].contains(z) {
                e.push(FieldError::duplicate(at.as_str(), *z));
            }
            e.all_invalid(&at, *z, names::label_value(z));
        }
    }
}

/// Fields of coordinated leader election, which is off by default: what says them is not stored.
fn coordination(d: &mut Doc) {
    d.remove("spec.strategy");
    d.remove("spec.preferredHolder");
}

fn lease(d: &Doc, e: &mut ErrorList) {
    if let Some(s) = d.at("spec.leaseDurationSeconds").as_i64().filter(|s| *s <= 0) {
        e.push(FieldError::invalid("spec.leaseDurationSeconds", s, "must be greater than 0"));
    }
    if let Some(s) = d.at("spec.leaseTransitions").as_i64().filter(|s| *s < 0) {
        e.push(FieldError::invalid("spec.leaseTransitions", s, "must be greater than or equal to 0"));
    }
}
