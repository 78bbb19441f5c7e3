//! The files of the node's own services: kubelet, kube-proxy, containerd, CNI, and what is in `/etc`.

use std::net::IpAddr;

use ipnet::IpNet;
use machine_config::{Config, Role, to_yaml};
use serde_json::{Value, json};

use super::files::File;
use super::kubeconfig::{self, Credentials, ServerAuthority};
use super::{NodeFacts, STUB_IMAGE};

/// The kubelet's certificate and key, in one file, as upstream names it.
pub const KUBELET_CLIENT_PEM: &str = "/var/lib/kubelet/pki/kubelet-client-current.pem";
/// containerd's socket.
pub const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
/// Where CNI configs are.
pub const CNI_CONFIG: &str = "/etc/cni/net.d/10-strake.conflist";

/// Taint of control planes that take no ordinary pods.
const CONTROL_PLANE_TAINT: &str = "node-role.kubernetes.io/control-plane";

/// The kubelet's files: its config, the authority, and how it reaches the API.
pub fn kubelet(config: &Config, facts: &NodeFacts) -> Vec<File> {
    let server = super::api_server_url(config);
    let ca = "/etc/kubernetes/kubelet/ca.crt";
    let name = format!("system:node:{}", facts.hostname);
    let own = Credentials::Files { cert: KUBELET_CLIENT_PEM, key: KUBELET_CLIENT_PEM };
    let kubeconfig = kubeconfig::render(&config.cluster.name, &server, ServerAuthority::File(ca), &name, &own);
    let mut files = vec![
        File::public(ca, config.secrets.authorities.cluster.cert.as_str()),
        File::private("/etc/kubernetes/kubelet/config.yaml", to_yaml(&kubelet_config(config)), 0),
        File::private("/etc/kubernetes/kubelet/kubeconfig", kubeconfig, 0),
    ];
    if config.machine.role == Role::Worker {
        let token = Credentials::Token(config.secrets.join_token.reveal());
        let bootstrap = kubeconfig::render(&config.cluster.name, &server, ServerAuthority::File(ca), "kubelet-bootstrap", &token);
        files.push(File::private("/etc/kubernetes/kubelet/bootstrap-kubeconfig", bootstrap, 0));
    }
    files
}

fn kubelet_config(config: &Config) -> Value {
    let mut taints: Vec<Value> =
        config.machine.kubelet.node_taints.iter().map(|t| json!({"key": t.key, "value": t.value, "effect": t.effect.as_str()})).collect();
    if config.is_control_plane() && !config.cluster.allow_scheduling_on_control_planes {
        taints.push(json!({"key": CONTROL_PLANE_TAINT, "effect": "NoSchedule"}));
    }
    let dns: Vec<String> = config.dns_service_address().iter().map(ToString::to_string).collect();
    let mut value = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true, "cacheTTL": "2m0s"},
            "x509": {"clientCAFile": "/etc/kubernetes/kubelet/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "clusterDNS": dns,
        "clusterDomain": config.cluster.network.dns_domain,
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
        "failSwapOn": false,
        "healthzBindAddress": "127.0.0.1",
        "healthzPort": 10248,
        "maxPods": config.machine.kubelet.max_pods,
        "resolvConf": "/etc/resolv.conf",
        "rotateCertificates": true,
        "seccompDefault": true,
        "serverTLSBootstrap": true,
        "staticPodPath": super::static_pods::DIRECTORY,
    });
    if !taints.is_empty() {
        value["registerWithTaints"] = json!(taints);
    }
    value
}

/// The kubelet's command line.
pub fn kubelet_args(config: &Config, facts: &NodeFacts) -> Vec<String> {
    let own = |file: &str| format!("/etc/kubernetes/kubelet/{file}");
    let mut labels = config.machine.kubelet.node_labels.clone();
    if config.is_control_plane() {
        // Kubelets may not give themselves a role under node-role.kubernetes.io; the role label is set with the default manifests.
        labels.insert("node.strake.dev/role".to_owned(), "control-plane".to_owned());
    } else {
        labels.insert("node.strake.dev/role".to_owned(), "worker".to_owned());
    }
    let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let mut flags: Vec<(String, String)> = vec![
        ("config".into(), own("config.yaml")),
        ("kubeconfig".into(), own("kubeconfig")),
        ("cert-dir".into(), "/var/lib/kubelet/pki".into()),
        ("hostname-override".into(), facts.hostname.clone()),
        ("node-ip".into(), facts.node_ip.to_string()),
        ("cloud-provider".into(), "external".into()),
        ("node-labels".into(), labels.join(",")),
    ];
    if config.machine.role == Role::Worker {
        flags.push(("bootstrap-kubeconfig".into(), own("bootstrap-kubeconfig")));
    }
    let extra = &config.machine.kubelet.extra_args;
    flags.retain(|(name, _)| !extra.contains_key(name));
    flags.extend(extra.iter().map(|(k, v)| (k.clone(), v.clone())));
    flags.into_iter().map(|(k, v)| format!("--{k}={v}")).collect()
}

/// kube-proxy's files; its certificate is beside them.
pub fn kube_proxy(config: &Config, facts: &NodeFacts) -> Vec<File> {
    let own = |file: &str| format!("/etc/kubernetes/kube-proxy/{file}");
    let (ca, cert, key) = (own("ca.crt"), own("client.crt"), own("client.key"));
    let files = Credentials::Files { cert: &cert, key: &key };
    let kubeconfig =
        kubeconfig::render(&config.cluster.name, &super::api_server_url(config), ServerAuthority::File(&ca), "system:kube-proxy", &files);
    let cluster_cidr: Vec<String> = config.cluster.network.pod_subnets.iter().map(ToString::to_string).collect();
    let proxy = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "bindAddress": "0.0.0.0",
        "clientConnection": {"kubeconfig": own("kubeconfig")},
        "clusterCIDR": cluster_cidr.join(","),
        "healthzBindAddress": "0.0.0.0:10256",
        "hostnameOverride": facts.hostname,
        "metricsBindAddress": "127.0.0.1:10249",
        "mode": "nftables",
    });
    vec![
        File::public(ca.clone(), config.secrets.authorities.cluster.cert.as_str()),
        File::private(own("kubeconfig"), kubeconfig, 0),
        File::public(own("config.yaml"), to_yaml(&proxy)),
    ]
}

/// kube-proxy's command line.
pub fn kube_proxy_args(config: &Config) -> Vec<String> {
    let mut args = vec!["--config=/etc/kubernetes/kube-proxy/config.yaml".to_owned()];
    args.extend(config.cluster.proxy.extra_args.iter().map(|(k, v)| format!("--{k}={v}")));
    args
}

/// containerd's config (version 3, containerd 2): the stub as sandbox image, cgroupfs, and no registry that is needed.
pub fn containerd() -> File {
    let text = format!(
        "\
version = 3
root = \"/var/lib/containerd\"
state = \"/run/containerd\"
oom_score = -999
disabled_plugins = [
  \"io.containerd.internal.v1.opt\",
  \"io.containerd.internal.v1.tracing\",
  \"io.containerd.tracing.processor.v1.otlp\",
  \"io.containerd.nri.v1.nri\",
  \"io.containerd.snapshotter.v1.blockfile\",
  \"io.containerd.snapshotter.v1.btrfs\",
  \"io.containerd.snapshotter.v1.devmapper\",
  \"io.containerd.snapshotter.v1.zfs\",
]

[grpc]
  address = \"{CONTAINERD_SOCKET}\"

[plugins.'io.containerd.cri.v1.images']
  snapshotter = \"overlayfs\"
  image_pull_with_sync_fs = true
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = \"{STUB_IMAGE}\"
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = \"/etc/containerd/certs.d\"

[plugins.'io.containerd.cri.v1.runtime']
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = [\"/usr/lib/cni\"]
    conf_dir = \"/etc/cni/net.d\"
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = \"runc\"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = \"io.containerd.runc.v2\"
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        BinaryName = \"/usr/bin/runc\"
        SystemdCgroup = false
"
    );
    File::public("/etc/containerd/config.toml", text)
}

/// containerd's command line.
pub fn containerd_args() -> Vec<String> {
    vec!["--config".to_owned(), "/etc/containerd/config.toml".to_owned()]
}

/// The node's CNI network, from its share of the pod ranges: a bridge with hairpin, addresses by host-local, ports by portmap. What leaves the cluster is
/// masqueraded by the node's own rules, not by the plugin, which would also hide pods from pods on other nodes.
pub fn cni(pod_cidrs: &[IpNet], cluster_mtu: Option<u32>) -> File {
    let ranges: Vec<Value> = pod_cidrs.iter().map(|c| json!([{"subnet": c.to_string()}])).collect();
    let mut routes = Vec::new();
    if pod_cidrs.iter().any(|c| c.addr().is_ipv4()) {
        routes.push(json!({"dst": "0.0.0.0/0"}));
    }
    if pod_cidrs.iter().any(|c| c.addr().is_ipv6()) {
        routes.push(json!({"dst": "::/0"}));
    }
    let mut bridge = json!({
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": true,
        "isDefaultGateway": false,
        "hairpinMode": true,
        "ipMasq": false,
        "ipam": {"type": "host-local", "dataDir": "/run/cni/networks", "ranges": ranges, "routes": routes},
    });
    if let Some(mtu) = cluster_mtu {
        bridge["mtu"] = json!(mtu);
    }
    let list = json!({
        "cniVersion": "1.0.0",
        "name": "strake",
        "plugins": [bridge, {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}, "snat": true}],
    });
    // Writing a tree of plain values into a String has no failing case.
    File::public(CNI_CONFIG, serde_json::to_string_pretty(&list).unwrap_or_default() + "\n")
}

/// `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`.
pub fn etc(config: &Config, facts: &NodeFacts, learned_nameservers: &[IpAddr]) -> Vec<File> {
    let mut hosts = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
    hosts.push_str(&format!("{} {}\n", facts.node_ip, facts.hostname));
    let mut resolv = String::new();
    let (servers, search) = match &config.resolver {
        Some(resolver) if !resolver.nameservers.is_empty() => {
            (resolver.nameservers.iter().map(|a| a.0).collect::<Vec<_>>(), resolver.search_domains.clone())
        }
        other => (learned_nameservers.to_vec(), other.as_ref().map(|r| r.search_domains.clone()).unwrap_or_default()),
    };
    if !search.is_empty() {
        resolv.push_str(&format!("search {}\n", search.join(" ")));
    }
    for server in servers.iter().take(3) {
        resolv.push_str(&format!("nameserver {server}\n"));
    }
    vec![
        File::public("/etc/hosts", hosts),
        File::public("/etc/hostname", format!("{}\n", facts.hostname)),
        File::public("/etc/resolv.conf", resolv),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::testing;

    fn check(prefix: &str, files: Vec<File>) {
        for file in files {
            let name = file.path.trim_start_matches("/etc/").replace('/', "_");
            testing::golden(&format!("{prefix}/{name}"), &String::from_utf8(file.content).unwrap());
        }
    }

    #[test]
    fn files_of_both_roles_are_as_recorded() {
        let (config, facts) = (testing::control_plane_config(), testing::facts());
        check("controlplane", kubelet(&config, &facts));
        check("controlplane", kube_proxy(&config, &facts));
        let (config, facts) = (testing::worker_config(), testing::worker_facts());
        check("worker", kubelet(&config, &facts));
        check("worker", kube_proxy(&config, &facts));
        check("worker", etc(&config, &facts, &[]));
        check("worker", vec![containerd(), cni(&["10.244.1.0/24".parse().unwrap()], None)]);
    }

    #[test]
    fn kubelet_flags_of_both_roles() {
        let text = |args: Vec<String>| args.join("\n") + "\n";
        testing::golden("controlplane/kubelet.args", &text(kubelet_args(&testing::control_plane_config(), &testing::facts())));
        let mut worker = testing::worker_config();
        worker.machine.kubelet.extra_args.insert("v".into(), "5".into());
        worker.machine.kubelet.extra_args.insert("node-ip".into(), "10.5.0.99".into());
        testing::golden("worker/kubelet.args", &text(kubelet_args(&worker, &testing::worker_facts())));
    }

    #[test]
    fn a_control_plane_is_tainted_unless_pods_may_run_there() {
        let mut config = testing::control_plane_config();
        config.cluster.allow_scheduling_on_control_planes = false;
        assert_eq!(kubelet_config(&config)["registerWithTaints"][0]["key"], CONTROL_PLANE_TAINT);
        config.cluster.allow_scheduling_on_control_planes = true;
        assert!(kubelet_config(&config).get("registerWithTaints").is_none());
    }

    #[test]
    fn nameservers_of_the_config_win_over_learned_ones() {
        let mut config = testing::worker_config();
        let facts = testing::worker_facts();
        let resolv = |config: &Config| String::from_utf8(etc(config, &facts, &[[10, 0, 2, 3].into()])[2].content.clone()).unwrap();
        assert_eq!(resolv(&config), "nameserver 10.5.0.3\n");
        config.resolver = None;
        assert_eq!(resolv(&config), "nameserver 10.0.2.3\n");
    }
}
