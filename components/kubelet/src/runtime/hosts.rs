//! The `/etc/hosts` file of a pod.

use super::dns;
use crate::model::pod::Pod;
use std::fmt::Write as _;

const HEADER: &str = "# Kubernetes-managed hosts file.\n";
const HEADER_HOST: &str = "# Kubernetes-managed hosts file (host network).\n";

/// The file's text. A pod on the host's network starts from the host's own file.
pub fn content(pod: &Pod, pod_ips: &[String], host_file: &str, cluster_domain: &str) -> String {
    let mut text = String::new();
    if pod.spec.host_network {
        text.push_str(HEADER_HOST);
        text.push_str(host_file);
    } else {
        text.push_str(HEADER);
        text.push_str("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n");
        let host = dns::hostname(pod);
        for ip in pod_ips {
            match dns::domain(pod, cluster_domain) {
                Some(domain) => {
                    let _ = writeln!(text, "{ip}\t{host}.{domain}\t{host}");
                }
                None => {
                    let _ = writeln!(text, "{ip}\t{host}");
                }
            }
        }
    }
    if !pod.spec.host_aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in &pod.spec.host_aliases {
            let _ = writeln!(text, "{}\t{}", alias.ip, alias.hostnames.join("\t"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pod_and_host_network() {
        let pod = |spec| -> Pod { serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": spec})).unwrap() };
        let own = content(
            &pod(json!({"subdomain": "sub", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]})),
            &["10.0.0.1".into()],
            "",
            "cluster.local",
        );
        assert!(own.starts_with(HEADER) && own.contains("10.0.0.1\tp.sub.ns.svc.cluster.local\tp\n") && own.ends_with("1.2.3.4\ta\tb\n"));
        let host = content(&pod(json!({"hostNetwork": true})), &[], "127.0.0.1 localhost\n", "cluster.local");
        assert_eq!(host, format!("{HEADER_HOST}127.0.0.1 localhost\n"));
    }
}
