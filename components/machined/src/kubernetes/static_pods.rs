//! The control plane as static pods. Each component says its flags, mounts, user and health; one function makes pods of them all.
//!
//! A pod's image is the stub, and its program is mounted read-only from the verified root. `image:` in the config replaces both.

use std::collections::BTreeMap;

use machine_config::values::{ImageReference, Quantity};
use machine_config::{Config, Resources, to_yaml};
use serde_json::{Map, Value, json};

use super::files::File;
use super::{NodeFacts, STUB_IMAGE, uid};

/// Where the kubelet looks for static pods.
pub const DIRECTORY: &str = "/etc/kubernetes/manifests";

/// One mount from the host.
struct Mount {
    path: &'static str,
    kind: &'static str,
    read_only: bool,
}

impl Mount {
    const fn file(path: &'static str) -> Self {
        Self { path, kind: "File", read_only: true }
    }
    const fn directory(path: &'static str) -> Self {
        Self { path, kind: "Directory", read_only: true }
    }
    const fn data(path: &'static str) -> Self {
        Self { path, kind: "Directory", read_only: false }
    }
}

/// Where a component answers about its health.
struct Health {
    scheme: &'static str,
    host: String,
    port: u16,
    live: &'static str,
    ready: &'static str,
    /// Seconds that starting may take.
    start: u32,
}

/// What distinguishes one component from another.
struct Component<'a> {
    name: &'static str,
    uid: u32,
    /// The program and the words before its flags when it comes from the root.
    built_in: &'static [&'static str],
    /// Mounts that the program from the root needs.
    built_in_mounts: &'static [Mount],
    mounts: Vec<Mount>,
    flags: BTreeMap<String, String>,
    health: Health,
    image: Option<&'a ImageReference>,
    extra_args: &'a BTreeMap<String, String>,
    resources: &'a Resources,
    /// Requests when the config says nothing.
    requests: [(&'static str, &'static str); 2],
    grace_seconds: u32,
}

const KUBE_MOUNTS: &[Mount] = &[Mount::file("/usr/bin/kube")];
const ETCD_MOUNTS: &[Mount] =
    &[Mount::file("/usr/bin/etcd"), Mount::directory("/usr/lib/x86_64-linux-gnu"), Mount::directory("/usr/lib64")];

/// The manifests of a control-plane machine. Without `etcd` (it is halted) that one is left out.
pub fn render(config: &Config, facts: &NodeFacts, etcd: bool) -> Vec<File> {
    let mut components = vec![api_server(config, facts), controller_manager(config), scheduler(config), cloud_controller_manager(config)];
    if etcd {
        components.insert(0, self::etcd(config, facts));
    }
    // 0600: a manifest's flags are nobody else's business, and the kubelet is root.
    components.iter().map(|c| File::private(format!("{DIRECTORY}/{}.yaml", c.name), to_yaml(&pod(c)), 0)).collect()
}

/// Whether the pod of a manifest is a client of the API server, and of no use before it answers.
pub fn needs_api_server(path: &str) -> bool {
    !(path.ends_with("/etcd.yaml") || path.ends_with("/kube-apiserver.yaml"))
}

/// The paths of every manifest that may ever be there.
pub fn all_paths() -> Vec<String> {
    ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "cloud-controller-manager"]
        .iter()
        .map(|name| format!("{DIRECTORY}/{name}.yaml"))
        .collect()
}

fn flags<const N: usize>(pairs: [(&str, String); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}

fn join<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn etcd<'a>(config: &'a Config, facts: &NodeFacts) -> Component<'a> {
    let (ip, own) = (host(facts), "/etc/kubernetes/etcd");
    let (client, peer) = (format!("https://{ip}:2379"), etcd_peer_url(facts));
    Component {
        name: "etcd",
        uid: uid::ETCD,
        built_in: &["/usr/bin/etcd"],
        built_in_mounts: ETCD_MOUNTS,
        mounts: vec![Mount::directory("/etc/kubernetes/etcd"), Mount::data("/system/etcd/data")],
        flags: flags([
            ("advertise-client-urls", client.clone()),
            ("cert-file", format!("{own}/server.crt")),
            ("client-cert-auth", "true".into()),
            ("data-dir", super::etcd::DATA_DIR.into()),
            ("experimental-initial-corrupt-check", "true".into()),
            ("experimental-watch-progress-notify-interval", "5s".into()),
            ("initial-advertise-peer-urls", peer.clone()),
            ("initial-cluster", format!("{}={peer}", facts.hostname)),
            ("initial-cluster-state", "new".into()),
            ("initial-cluster-token", config.secrets.cluster_id.clone()),
            ("key-file", format!("{own}/server.key")),
            ("listen-client-urls", format!("https://127.0.0.1:2379,{client}")),
            ("listen-metrics-urls", "http://127.0.0.1:2381".into()),
            ("listen-peer-urls", peer),
            ("name", facts.hostname.clone()),
            ("peer-cert-file", format!("{own}/peer.crt")),
            ("peer-client-cert-auth", "true".into()),
            ("peer-key-file", format!("{own}/peer.key")),
            ("peer-trusted-ca-file", format!("{own}/ca.crt")),
            ("snapshot-count", "10000".into()),
            ("trusted-ca-file", format!("{own}/ca.crt")),
        ]),
        health: Health {
            scheme: "HTTP",
            host: "127.0.0.1".into(),
            port: 2381,
            // A full disk (NOSPACE) is not cured by a restart.
            live: "/health?exclude=NOSPACE&serializable=true",
            ready: "/health?serializable=false",
            start: 240,
        },
        image: config.cluster.etcd.image.as_ref(),
        extra_args: &config.cluster.etcd.extra_args,
        resources: &config.cluster.etcd.resources,
        requests: [("cpu", "100m"), ("memory", "100Mi")],
        grace_seconds: 30,
    }
}

fn api_server<'a>(config: &'a Config, facts: &NodeFacts) -> Component<'a> {
    let own = |file: &str| format!("/etc/kubernetes/kube-apiserver/{file}");
    let api = &config.cluster.api_server;
    let network = &config.cluster.network;
    Component {
        name: "kube-apiserver",
        uid: uid::API_SERVER,
        built_in: &["/usr/bin/kube", "kube-apiserver"],
        built_in_mounts: KUBE_MOUNTS,
        mounts: vec![Mount::directory("/etc/kubernetes/kube-apiserver")],
        flags: flags([
            ("advertise-address", facts.node_ip.to_string()),
            ("allow-privileged", "true".into()),
            ("authorization-mode", "Node,RBAC".into()),
            ("client-ca-file", own("ca.crt")),
            ("enable-admission-plugins", "NodeRestriction".into()),
            ("enable-bootstrap-token-auth", "true".into()),
            ("etcd-cafile", own("etcd-ca.crt")),
            ("etcd-certfile", own("etcd-client.crt")),
            ("etcd-keyfile", own("etcd-client.key")),
            ("etcd-servers", "https://127.0.0.1:2379".into()),
            ("kubelet-certificate-authority", own("ca.crt")),
            ("kubelet-client-certificate", own("kubelet-client.crt")),
            ("kubelet-client-key", own("kubelet-client.key")),
            ("kubelet-preferred-address-types", "InternalIP,ExternalIP,Hostname".into()),
            ("proxy-client-cert-file", own("front-proxy-client.crt")),
            ("proxy-client-key-file", own("front-proxy-client.key")),
            ("requestheader-allowed-names", "front-proxy-client".into()),
            ("requestheader-client-ca-file", own("front-proxy-ca.crt")),
            ("requestheader-extra-headers-prefix", "X-Remote-Extra-".into()),
            ("requestheader-group-headers", "X-Remote-Group".into()),
            ("requestheader-username-headers", "X-Remote-User".into()),
            ("secure-port", super::API_SERVER_PORT.to_string()),
            ("service-account-issuer", format!("https://kubernetes.default.svc.{}", network.dns_domain)),
            ("service-account-key-file", own("sa.pub")),
            ("service-account-signing-key-file", own("sa.key")),
            ("service-cluster-ip-range", join(&network.service_subnets)),
            ("tls-cert-file", own("server.crt")),
            ("tls-private-key-file", own("server.key")),
        ]),
        health: Health {
            scheme: "HTTPS",
            host: facts.node_ip.to_string(),
            port: super::API_SERVER_PORT,
            live: "/livez",
            ready: "/readyz",
            start: 240,
        },
        image: api.image.as_ref(),
        extra_args: &api.extra_args,
        resources: &api.resources,
        requests: [("cpu", "200m"), ("memory", "64Mi")],
        grace_seconds: 30,
    }
}

fn controller_manager(config: &Config) -> Component<'_> {
    let own = |file: &str| format!("/etc/kubernetes/kube-controller-manager/{file}");
    let network = &config.cluster.network;
    let mut flags = flags([
        ("allocate-node-cidrs", "true".into()),
        ("authentication-kubeconfig", own("kubeconfig")),
        ("authorization-kubeconfig", own("kubeconfig")),
        ("bind-address", "127.0.0.1".into()),
        ("client-ca-file", own("ca.crt")),
        ("cluster-cidr", join(&network.pod_subnets)),
        ("cluster-name", config.cluster.name.clone()),
        ("cluster-signing-cert-file", own("ca.crt")),
        ("cluster-signing-key-file", own("ca.key")),
        ("kubeconfig", own("kubeconfig")),
        ("leader-elect", "true".into()),
        ("root-ca-file", own("ca.crt")),
        ("service-account-private-key-file", own("sa.key")),
        ("service-cluster-ip-range", join(&network.service_subnets)),
        ("use-service-account-credentials", "true".into()),
    ]);
    if network.pod_subnets.iter().any(|s| s.0.addr().is_ipv4()) {
        let flag = if network.pod_subnets.len() > 1 { "node-cidr-mask-size-ipv4" } else { "node-cidr-mask-size" };
        flags.insert(flag.to_owned(), network.node_mask.to_string());
    }
    controller(
        "kube-controller-manager",
        uid::CONTROLLER_MANAGER,
        &["/usr/bin/kube", "kube-controller-manager"],
        10257,
        flags,
        Parts {
            directory: "/etc/kubernetes/kube-controller-manager",
            component: &config.cluster.controller_manager,
            requests: [("cpu", "100m"), ("memory", "32Mi")],
        },
    )
}

fn scheduler(config: &Config) -> Component<'_> {
    let own = "/etc/kubernetes/kube-scheduler/kubeconfig";
    let flags = flags([
        ("authentication-kubeconfig", own.into()),
        ("authorization-kubeconfig", own.into()),
        ("bind-address", "127.0.0.1".into()),
        ("kubeconfig", own.into()),
        ("leader-elect", "true".into()),
    ]);
    controller(
        "kube-scheduler",
        uid::SCHEDULER,
        &["/usr/bin/kube", "kube-scheduler"],
        10259,
        flags,
        Parts {
            directory: "/etc/kubernetes/kube-scheduler",
            component: &config.cluster.scheduler,
            requests: [("cpu", "50m"), ("memory", "24Mi")],
        },
    )
}

fn cloud_controller_manager(config: &Config) -> Component<'_> {
    let own = "/etc/kubernetes/cloud-controller-manager/kubeconfig";
    let flags = flags([
        ("authentication-kubeconfig", own.into()),
        ("authorization-kubeconfig", own.into()),
        ("bind-address", "127.0.0.1".into()),
        ("cloud-provider", "strake".into()),
        ("cluster-cidr", join(&config.cluster.network.pod_subnets)),
        ("cluster-name", config.cluster.name.clone()),
        ("kubeconfig", own.into()),
        ("leader-elect", "true".into()),
    ]);
    controller(
        "cloud-controller-manager",
        uid::CLOUD_CONTROLLER_MANAGER,
        &["/usr/bin/kube", "cloud-controller-manager"],
        10258,
        flags,
        Parts {
            directory: "/etc/kubernetes/cloud-controller-manager",
            component: &config.cluster.cloud_controller_manager,
            requests: [("cpu", "20m"), ("memory", "16Mi")],
        },
    )
}

struct Parts<'a> {
    directory: &'static str,
    component: &'a machine_config::ComponentConfig,
    requests: [(&'static str, &'static str); 2],
}

/// Twice upstream's defaults: a machine that is short of processor or disk for some seconds must not lose its leader over it, which would
/// cost a restart of every controller at the worst moment.
const LEASE: &[(&str, &str)] =
    &[("leader-elect-lease-duration", "30s"), ("leader-elect-renew-deadline", "20s"), ("leader-elect-retry-period", "4s")];

/// What the scheduler and the controller managers have in common.
fn controller<'a>(
    name: &'static str,
    uid: u32,
    built_in: &'static [&'static str],
    port: u16,
    mut flags: BTreeMap<String, String>,
    parts: Parts<'a>,
) -> Component<'a> {
    flags.extend(LEASE.iter().map(|(flag, value)| ((*flag).to_owned(), (*value).to_owned())));
    Component {
        name,
        uid,
        built_in,
        built_in_mounts: KUBE_MOUNTS,
        mounts: vec![Mount::directory(parts.directory)],
        flags,
        health: Health { scheme: "HTTPS", host: "127.0.0.1".into(), port, live: "/healthz", ready: "/healthz", start: 240 },
        image: parts.component.image.as_ref(),
        extra_args: &parts.component.extra_args,
        resources: &parts.component.resources,
        requests: parts.requests,
        grace_seconds: 10,
    }
}

/// Where this machine's etcd speaks to other members.
pub fn etcd_peer_url(facts: &NodeFacts) -> String {
    format!("https://{}:2380", host(facts))
}

/// The node's address as it stands in URLs.
fn host(facts: &NodeFacts) -> String {
    if facts.node_ip.is_ipv6() { format!("[{}]", facts.node_ip) } else { facts.node_ip.to_string() }
}

/// A component as a pod.
fn pod(component: &Component<'_>) -> Value {
    let mut flags = component.flags.clone();
    flags.extend(component.extra_args.iter().map(|(k, v)| (k.clone(), v.clone())));
    // Upstream's images have the program in their PATH, under the component's name.
    let program: Vec<String> = match component.image {
        Some(_) => vec![component.name.to_owned()],
        None => component.built_in.iter().map(|s| (*s).to_owned()).collect(),
    };
    let command: Vec<String> = program.into_iter().chain(flags.iter().map(|(k, v)| format!("--{k}={v}"))).collect();

    let built_in = if component.image.is_none() { component.built_in_mounts } else { &[] };
    let mounts: Vec<(String, &Mount)> =
        built_in.iter().chain(&component.mounts).enumerate().map(|(i, m)| (format!("host-{i}"), m)).collect();
    let volume_mounts: Vec<Value> = mounts
        .iter()
        .map(|(name, m)| {
            let mut mount = json!({"name": name, "mountPath": m.path});
            if m.read_only {
                mount["readOnly"] = json!(true);
            }
            mount
        })
        .collect();
    let volumes: Vec<Value> = mounts.iter().map(|(name, m)| json!({"name": name, "hostPath": {"path": m.path, "type": m.kind}})).collect();

    let health = &component.health;
    let probe = |path: &str, period: u32, failures: u32| {
        json!({
            "httpGet": {"host": health.host, "path": path, "port": health.port, "scheme": health.scheme},
            "periodSeconds": period,
            "timeoutSeconds": 15,
            "failureThreshold": failures,
        })
    };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": component.name,
            "namespace": "kube-system",
            "labels": {"component": component.name, "tier": "control-plane"},
        },
        "spec": {
            "hostNetwork": true,
            "dnsPolicy": "Default",
            "priority": 2_000_001_000,
            "priorityClassName": "system-node-critical",
            "terminationGracePeriodSeconds": component.grace_seconds,
            "enableServiceLinks": false,
            "automountServiceAccountToken": false,
            "securityContext": {
                "runAsUser": component.uid,
                "runAsGroup": component.uid,
                "runAsNonRoot": true,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": component.name,
                "image": component.image.map_or_else(|| STUB_IMAGE.to_owned(), ToString::to_string),
                "imagePullPolicy": "IfNotPresent",
                "command": command,
                "resources": resources(component),
                "livenessProbe": probe(health.live, 10, 8),
                "readinessProbe": probe(health.ready, 5, 3),
                "startupProbe": probe(health.live, 2, health.start / 2),
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "capabilities": {"drop": ["ALL"]},
                    "readOnlyRootFilesystem": true,
                },
                "volumeMounts": volume_mounts,
            }],
            "volumes": volumes,
        },
    })
}

/// Requests and limits: the config's, and for what it leaves out the component's own requests.
fn resources(component: &Component<'_>) -> Value {
    let as_map =
        |list: &BTreeMap<String, Quantity>| -> Map<String, Value> { list.iter().map(|(k, v)| (k.clone(), json!(v.to_string()))).collect() };
    let mut requests = as_map(&component.resources.requests);
    for (key, value) in component.requests {
        requests.entry(key).or_insert_with(|| json!(value));
    }
    let limits = as_map(&component.resources.limits);
    if limits.is_empty() { json!({"requests": requests}) } else { json!({"requests": requests, "limits": limits}) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::testing;

    #[test]
    fn manifests_are_as_recorded() {
        let config = testing::control_plane_config();
        for file in render(&config, &testing::facts(), true) {
            let name = file.path.rsplit('/').next().unwrap();
            testing::golden(&format!("static-pods/{name}"), &String::from_utf8(file.content).unwrap());
        }
    }

    #[test]
    fn every_manifest_that_is_written_can_be_removed_again() {
        let rendered: Vec<String> = render(&testing::control_plane_config(), &testing::facts(), true).into_iter().map(|f| f.path).collect();
        assert_eq!(rendered, all_paths());
    }

    #[test]
    fn a_halted_etcd_has_no_manifest() {
        let rendered = render(&testing::control_plane_config(), &testing::facts(), false);
        assert!(rendered.iter().all(|f| !f.path.contains("etcd")));
        assert_eq!(rendered.len(), 4);
    }

    #[test]
    fn an_image_replaces_the_program_and_flags_of_the_config_win() {
        let mut config = testing::control_plane_config();
        config.cluster.api_server.image = "registry.k8s.io/kube-apiserver:v1.36.2".parse().ok();
        config.cluster.api_server.extra_args.insert("authorization-mode".into(), "RBAC".into());
        config.cluster.api_server.extra_args.insert("v".into(), "4".into());
        config.cluster.api_server.resources.limits.insert("memory".into(), "1Gi".parse().unwrap());
        let pod = pod(&api_server(&config, &testing::facts()));
        let container = &pod["spec"]["containers"][0];
        assert_eq!(container["image"], "registry.k8s.io/kube-apiserver:v1.36.2");
        let command: Vec<&str> = container["command"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert_eq!(command[0], "kube-apiserver");
        assert!(command.contains(&"--authorization-mode=RBAC") && command.contains(&"--v=4"));
        assert!(!command.iter().any(|c| c.contains("Node,RBAC")));
        assert_eq!(container["resources"]["limits"]["memory"], "1Gi");
        assert_eq!(container["resources"]["requests"]["memory"], "64Mi");
        let mounts = container["volumeMounts"].as_array().unwrap();
        assert!(mounts.iter().all(|m| m["mountPath"] != "/usr/bin/kube"));
    }
}
