//! Name resolution of a pod.

use crate::cri::v1::DnsConfig;
use crate::model::pod::Pod;

/// Limits of the C library.
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;

/// The node's resolver settings.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HostResolver {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// Reads `resolv.conf`; lines that mean nothing here are skipped.
pub fn parse_resolv_conf(text: &str) -> HostResolver {
    let mut result = HostResolver::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => result.servers.extend(words.next().map(str::to_owned)),
            Some("search") => result.searches = words.map(|w| w.trim_end_matches('.').to_owned()).filter(|w| !w.is_empty()).collect(),
            Some("options") => result.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    result
}

/// The resolver settings of a pod by its DNS policy.
pub fn pod_dns(pod: &Pod, host: &HostResolver, cluster_dns: &[String], cluster_domain: &str) -> DnsConfig {
    let policy = pod.spec.dns_policy.as_str();
    let cluster = match policy {
        "None" | "Default" => false,
        "ClusterFirstWithHostNet" => !cluster_dns.is_empty(),
        _ => !pod.spec.host_network && !cluster_dns.is_empty(),
    };
    let mut dns = if policy == "None" {
        DnsConfig::default()
    } else if cluster {
        let mut searches = Vec::new();
        if !cluster_domain.is_empty() {
            searches.push(format!("{}.svc.{cluster_domain}", pod.metadata.namespace));
            searches.push(format!("svc.{cluster_domain}"));
            searches.push(cluster_domain.to_owned());
        }
        searches.extend(host.searches.iter().cloned());
        DnsConfig { servers: cluster_dns.to_vec(), searches, options: vec!["ndots:5".into()] }
    } else {
        DnsConfig { servers: host.servers.clone(), searches: host.searches.clone(), options: host.options.clone() }
    };
    if let Some(extra) = &pod.spec.dns_config {
        dns.servers.extend(extra.nameservers.iter().cloned());
        dns.searches.extend(extra.searches.iter().cloned());
        for option in &extra.options {
            dns.options.retain(|o| o.split(':').next() != Some(option.name.as_str()));
            dns.options.push(match option.value.as_deref() {
                Some(value) if !value.is_empty() => format!("{}:{value}", option.name),
                _ => option.name.clone(),
            });
        }
    }
    dedup(&mut dns.servers);
    dedup(&mut dns.searches);
    dns.servers.truncate(MAX_SERVERS);
    dns.searches.truncate(MAX_SEARCHES);
    while dns.searches.iter().map(|s| s.len() + 1).sum::<usize>() > MAX_SEARCH_CHARS + 1 {
        dns.searches.pop();
    }
    dns
}

fn dedup(list: &mut Vec<String>) {
    let mut seen = std::collections::HashSet::new();
    list.retain(|item| seen.insert(item.clone()));
}

/// The pod's host name: its own or its name, at most 63 characters, not ending in a separator.
pub fn hostname(pod: &Pod) -> String {
    let name = if pod.spec.hostname.is_empty() { &pod.metadata.name } else { &pod.spec.hostname };
    let cut: String = name.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// The pod's domain within the cluster, when it has a subdomain.
pub fn domain(pod: &Pod, cluster_domain: &str) -> Option<String> {
    let subdomain = &pod.spec.subdomain;
    (!subdomain.is_empty()).then(|| format!("{subdomain}.{}.svc.{cluster_domain}", pod.metadata.namespace))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn policies() {
        let host = parse_resolv_conf("# c\nnameserver 10.5.0.2\nnameserver 10.5.0.3\nsearch lan. corp\noptions rotate timeout:1\nbogus\n");
        assert_eq!(host.searches, ["lan", "corp"]);
        let cluster = vec!["10.96.0.10".to_owned()];
        let dns = |spec: serde_json::Value| {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": spec})).unwrap();
            pod_dns(&pod, &host, &cluster, "cluster.local")
        };
        let first = dns(json!({}));
        assert_eq!(first.servers, ["10.96.0.10"]);
        assert_eq!(first.searches, ["ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "lan", "corp"]);
        assert_eq!(first.options, ["ndots:5"]);
        assert_eq!(dns(json!({"hostNetwork": true})).servers, ["10.5.0.2", "10.5.0.3"]);
        assert_eq!(dns(json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"})).servers, ["10.96.0.10"]);
        assert_eq!(dns(json!({"dnsPolicy": "Default"})).options, ["rotate", "timeout:1"]);
        let none = dns(
            json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["x", "x"], "options": [{"name": "ndots", "value": "2"}]}}),
        );
        assert_eq!((none.servers, none.searches, none.options), (vec!["1.1.1.1".into()], vec!["x".into()], vec!["ndots:2".into()]));
        let merged = dns(json!({"dnsConfig": {"options": [{"name": "ndots", "value": "1"}, {"name": "edns0"}]}}));
        assert_eq!(merged.options, ["ndots:1", "edns0"]);
    }

    #[test]
    fn host_names_fit() {
        let mut pod = Pod::default();
        pod.metadata.name = format!("{}-x", "a".repeat(62));
        assert_eq!(hostname(&pod), "a".repeat(62));
        pod.spec.hostname = "h".into();
        assert_eq!(hostname(&pod), "h");
    }
}
