//! The whole table for small clusters, compared with committed goldens, and properties of the transactions between tables.

use std::collections::BTreeSet;
use std::net::IpAddr;

use kube_proxy::plan::{Settings, TABLE, plan};
use kube_proxy::ruleset::{Ruleset, replace, update};
use kube_proxy::services::forwards;
use kube_proxy::types::{EndpointSlice, Service};
use nftables::Family;
use serde_json::{Value, json};

fn settings() -> Settings {
    Settings {
        family: Family::Ip,
        node_port_addresses: BTreeSet::from([IpAddr::from([10, 5, 0, 11])]),
        cluster_cidr: Some((IpAddr::from([10, 244, 0, 0]), 16)),
        service_cidrs: vec![(IpAddr::from([10, 96, 0, 0]), 16)],
        masquerade_mark: 0x4000,
        masquerade_all: false,
    }
}

fn table(services: &[Value], slices: &[Value]) -> Ruleset {
    let services: Vec<Service> = services.iter().map(|s| serde_json::from_value(s.clone()).unwrap()).collect();
    let slices: Vec<EndpointSlice> = slices.iter().map(|s| serde_json::from_value(s.clone()).unwrap()).collect();
    plan(&settings(), &forwards(&services, &slices, Family::Ip, "me").0)
}

fn service(name: &str, ip: &str, spec: Value) -> Value {
    let mut all = json!({"clusterIPs": [ip], "type": "ClusterIP", "ports": [{"name": "web", "protocol": "TCP", "port": 80}]});
    for (k, v) in spec.as_object().unwrap() {
        all[k] = v.clone();
    }
    json!({"metadata": {"namespace": "d", "name": name}, "spec": all})
}

fn slice(service: &str, endpoints: &[(&str, &str)]) -> Value {
    let endpoints: Vec<_> =
        endpoints.iter().map(|(ip, node)| json!({"addresses": [ip], "nodeName": node, "conditions": {"ready": true}})).collect();
    json!({"metadata": {"namespace": "d", "name": format!("{service}-x"), "labels": {"kubernetes.io/service-name": service}}, "addressType": "IPv4",
        "ports": [{"name": "web", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints})
}

fn golden(name: &str, rules: &Ruleset) {
    let path = format!("{}/tests/golden/{name}.nft", env!("CARGO_MANIFEST_DIR"));
    let text = rules.to_string();
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(text == expected, "{name} differs from its golden (UPDATE_GOLDENS=1 rewrites it):\n{text}");
}

#[test]
fn a_cluster_ip_service_with_two_endpoints() {
    golden("cluster-ip", &table(&[service("s", "10.96.0.7", json!({}))], &[slice("s", &[("10.244.0.2", "me"), ("10.244.1.3", "other")])]));
}

#[test]
fn a_node_port_service_that_keeps_clients() {
    let node_port = json!({"type": "NodePort", "ports": [{"name": "web", "protocol": "TCP", "port": 80, "nodePort": 30080}], "sessionAffinity": "ClientIP"});
    golden("node-port-affinity", &table(&[service("s", "10.96.0.7", node_port)], &[slice("s", &[("10.244.0.2", "me")])]));
}

#[test]
fn local_traffic_policies_and_source_ranges() {
    let lb = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "loadBalancerSourceRanges": ["192.0.2.0/24"],
        "ports": [{"name": "web", "protocol": "TCP", "port": 80, "nodePort": 30080}]});
    let mut here = service("here", "10.96.0.7", lb.clone());
    here["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.5"}]}});
    let away = service(
        "away",
        "10.96.0.8",
        json!({"type": "NodePort", "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
        "ports": [{"name": "web", "protocol": "TCP", "port": 80, "nodePort": 30081}]}),
    );
    let slices = [slice("here", &[("10.244.0.2", "me"), ("10.244.1.3", "other")]), slice("away", &[("10.244.1.4", "other")])];
    golden("local-policies", &table(&[here, away], &slices));
}

#[test]
fn a_service_without_endpoints_is_refused() {
    let rules = table(&[service("s", "10.96.0.7", json!({}))], &[]);
    let text = rules.to_string();
    assert!(text.contains("10.96.0.7 . tcp . 80 : goto reject-chain"), "{text}");
    assert!(!text.contains("goto service-"), "{text}");
}

#[test]
fn an_update_touches_only_what_changed() {
    let one = |endpoints: &[(&str, &str)]| {
        table(
            &[service("s", "10.96.0.7", json!({})), service("t", "10.96.0.8", json!({}))],
            &[slice("s", endpoints), slice("t", &[("10.244.0.9", "me")])],
        )
    };
    let (old, new) = (one(&[("10.244.0.2", "me")]), one(&[("10.244.0.2", "me"), ("10.244.1.3", "other")]));
    assert!(update(Family::Ip, TABLE, &old, &old).is_empty());
    // A new endpoint chain with two rules, the service's chain flushed and its three parts (mark rule, map with elements, rule) made anew.
    assert_eq!(update(Family::Ip, TABLE, &old, &new).len(), 1 + 1 + 1 + 3 + 2);
    assert!(replace(Family::Ip, TABLE, &new).len() > 40);
}
