//! The subsets of Endpoints: what they may say, and the form in which they are kept.

use std::collections::BTreeMap;

use k8s_schema::{Doc, Ref};
use serde_json::{Value, json};

use super::service_rules;
use crate::validation::{ErrorList, FieldError, addresses, child, index, names, values};

pub fn check(d: &Doc, e: &mut ErrorList) {
    for (i, subset) in d.at("subsets").iter().enumerate() {
        let path = index("subsets", i);
        let lists = ["addresses", "notReadyAddresses"];
        if lists.iter().all(|list| subset.get(list).is_empty()) {
            e.push(FieldError::required(path.clone(), "must specify `addresses` or `notReadyAddresses`"));
        }
        for list in lists {
            subset.get(list).iter().enumerate().for_each(|(j, a)| address(a, &index(&child(&path, list), j), e));
        }
        let ports = subset.get("ports");
        for (j, p) in ports.iter().enumerate() {
            port(p, ports.len() > 1, &index(&child(&path, "ports"), j), e);
        }
    }
}

fn address(a: Ref<'_>, path: &str, e: &mut ErrorList) {
    let (ip, host) = (a.get("ip").str(), a.get("hostname").str());
    if ip.parse::<std::net::IpAddr>().is_err() {
        let why = if addresses::is_padded_v4(ip) { "must not have leading 0s" } else { addresses::BAD_IP };
        e.push(FieldError::invalid(child(path, "ip"), ip, why));
    }
    if !host.is_empty() {
        e.all_invalid(&child(path, "hostname"), host, names::dns1123_label(host));
    }
    if let Some(node) = a.get("nodeName").as_str() {
        e.all_invalid(&child(path, "nodeName"), node, names::dns1123_subdomain(node));
    }
    service_rules::reachable(ip, &child(path, "ip"), e);
}

fn port(p: Ref<'_>, named: bool, path: &str, e: &mut ErrorList) {
    let (name, protocol, number) = (p.get("name").str(), p.get("protocol").str(), p.get("port").int());
    if !name.is_empty() {
        e.all_invalid(&child(path, "name"), name, names::dns1123_label(name));
    } else if named {
        e.push(FieldError::required(child(path, "name"), ""));
    }
    if let Some(why) = values::port(number) {
        e.push(FieldError::invalid(child(path, "port"), number, why));
    }
    if !matches!(protocol, "TCP" | "UDP" | "SCTP") {
        e.push(FieldError::not_supported(child(path, "protocol"), protocol, &["SCTP", "TCP", "UDP"]));
    }
    if let Some(protocol) = p.get("appProtocol").as_str() {
        e.all_invalid(&child(path, "appProtocol"), protocol, names::qualified_name(protocol));
    }
}

/// Brings subsets into the form in which they are kept: ports of the very same addresses share a subset, every address stands once, ready only
/// where nobody says otherwise, in the order of their bytes. Upstream also puts ports and subsets in the order of a hash, which nobody can
/// know; here they stay as they came. What is invalid is left alone: errors name the places that the client knows.
pub fn settle(d: &mut Doc) {
    let mut errors = ErrorList::new();
    check(d, &mut errors);
    if !errors.is_empty() || d.at("subsets").is_empty() {
        return;
    }
    type Address = (Vec<u8>, String);
    let mut known: BTreeMap<Address, Value> = BTreeMap::new();
    let mut by_port: Vec<(Value, BTreeMap<Address, bool>)> = Vec::new();
    for subset in d.at("subsets").iter() {
        let mut ports: Vec<Value> = subset.get("ports").iter().map(Ref::to_value).collect();
        if ports.is_empty() {
            ports.push(Value::Null);
        }
        for (list, ready) in [("addresses", true), ("notReadyAddresses", false)] {
            for a in subset.get(list).iter() {
                let bytes = match a.get("ip").str().parse() {
                    Ok(std::net::IpAddr::V4(v4)) => v4.to_ipv6_mapped().octets().to_vec(),
                    Ok(std::net::IpAddr::V6(v6)) => v6.octets().to_vec(),
                    Err(_) => return,
                };
                let key = (bytes, a.at("targetRef.uid").str().to_owned());
                known.entry(key.clone()).or_insert_with(|| a.to_value());
                for port in &ports {
                    let at = by_port.iter().position(|(p, _)| p == port).unwrap_or_else(|| {
                        by_port.push((port.clone(), BTreeMap::new()));
                        by_port.len() - 1
                    });
                    by_port[at].1.entry(key.clone()).and_modify(|before| *before &= ready).or_insert(ready);
                }
            }
        }
    }
    let mut grouped: Vec<(BTreeMap<Address, bool>, Vec<Value>)> = Vec::new();
    for (port, users) in by_port {
        let port = (!port.is_null()).then_some(port);
        match grouped.iter_mut().find(|(same, _)| *same == users) {
            Some((_, ports)) => ports.extend(port),
            None => grouped.push((users, port.into_iter().collect())),
        }
    }
    let subset = |(users, ports): (BTreeMap<Address, bool>, Vec<Value>)| {
        let of = |wanted: bool| -> Vec<&Value> {
            users.iter().filter(|(_, ready)| **ready == wanted).filter_map(|(key, _)| known.get(key)).collect()
        };
        let mut all = json!({});
        for (field, list) in [("addresses", json!(of(true))), ("notReadyAddresses", json!(of(false))), ("ports", json!(ports))] {
            if list.as_array().is_some_and(|l| !l.is_empty()) {
                all[field] = list;
            }
        }
        all
    };
    let settled: Vec<Value> = grouped.into_iter().map(subset).collect();
    // Values of the very fields that they were read from: this cannot fail.
    let _ = d.set("subsets", settled);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(subsets: Value) -> Doc {
        let schema = k8s_schema::Schema::builtin();
        let mut d = Doc::of_kind(&schema, "", "v1", "Endpoints").unwrap();
        d.set("subsets", subsets).unwrap();
        d
    }

    #[test]
    fn addresses_are_of_others_and_ports_have_names() {
        let errors = |subset: Value| {
            let mut e = ErrorList::new();
            check(&endpoints(json!([subset])), &mut e);
            e.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let tcp = |port: i32| json!({"port": port, "protocol": "TCP"});
        assert!(errors(json!({"addresses": [{"ip": "10.0.0.1"}], "ports": [tcp(80)]})).is_empty());
        assert_eq!(errors(json!({"ports": [tcp(80)]})), ["subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`"]);
        assert_eq!(
            errors(json!({"addresses": [{"ip": "127.0.0.1"}]})),
            ["subsets[0].addresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)"]
        );
        assert_eq!(
            errors(json!({"addresses": [{"ip": "10.0.0.1"}], "ports": [tcp(80), {"name": "x", "port": 0, "protocol": "ICMP"}]})),
            [
                "subsets[0].ports[0].name: Required value",
                "subsets[0].ports[1].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "subsets[0].ports[1].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            ]
        );
    }

    #[test]
    fn ports_of_the_same_addresses_share_a_subset() {
        let (a, b) = (json!({"ip": "10.0.0.1"}), json!({"ip": "10.0.0.2"}));
        let port = |name: &str, port: i32| json!({"name": name, "port": port, "protocol": "TCP"});
        let settled = |subsets: Value| {
            let mut d = endpoints(subsets);
            settle(&mut d);
            d.at("subsets").to_value()
        };
        let one = json!([{"addresses": [a, b], "ports": [port("x", 1), port("y", 2)]}]);
        assert_eq!(settled(json!([{"addresses": [b, a], "ports": [port("x", 1)]}, {"addresses": [a, b], "ports": [port("y", 2)]}])), one);
        assert_eq!(
            settled(json!([{"addresses": [a], "notReadyAddresses": [a, b], "ports": [port("x", 1)]}])),
            json!([{"notReadyAddresses": [a, b], "ports": [port("x", 1)]}]),
            "who is said not to be ready is not"
        );
        assert_eq!(settled(json!([{"addresses": [b, a]}])), json!([{"addresses": [a, b]}]), "of headless services");
        let broken = json!([{"addresses": [b, {"ip": "x"}]}]);
        assert_eq!(settled(broken.clone()), broken);
    }
}
