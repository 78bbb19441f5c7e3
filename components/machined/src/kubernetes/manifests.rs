//! What every cluster has beside what the API server makes by itself: the bootstrap token, who may do what, and the cluster DNS.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_client::Resource;
use k8s_client::resources::{CLUSTER_ROLES, DEPLOYMENTS, SECRETS, SERVICE_ACCOUNTS, SERVICES};
use machine_config::Config;
use serde_json::{Map, Value, json};

use super::{STUB_IMAGE, uid};

const RBAC: &str = "rbac.authorization.k8s.io";
const ROLES: Resource = Resource::new(RBAC, "v1", "roles", "Role", true);
const ROLE_BINDINGS: Resource = Resource::new(RBAC, "v1", "rolebindings", "RoleBinding", true);
const CLUSTER_ROLE_BINDINGS: Resource = Resource::new(RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", false);

/// The group of machines that join with the token.
const BOOTSTRAP_GROUP: &str = "system:bootstrappers:strake:default-node-token";
/// Where the cloud controller manager leaves the routes it planned.
pub const ROUTES_CONFIG_MAP: &str = "strake-pod-routes";
/// Ports of the cluster DNS: not 53, so that it needs no capability; its Service maps it.
const DNS_PORT: u16 = 10053;
const DNS_HEALTH_PORT: u16 = 10054;

/// An object that shall be in the cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// What it is.
    pub resource: Resource,
    /// Its namespace, or nothing.
    pub namespace: &'static str,
    /// Its name.
    pub name: String,
    /// All of it.
    pub object: Value,
}

/// Every default manifest, in an order in which later ones find what they refer to.
pub fn render(config: &Config) -> Vec<Manifest> {
    let mut all = vec![bootstrap_token(config)];
    all.extend(node_roles());
    all.extend(cloud_controller_manager());
    if config.cluster.dns.enabled {
        all.extend(cluster_dns(config));
    }
    all
}

fn manifest(resource: Resource, namespace: &'static str, name: &str, rest: Value) -> Manifest {
    let mut metadata = json!({"name": name, "labels": {"app.kubernetes.io/managed-by": "strake"}});
    if !namespace.is_empty() {
        metadata["namespace"] = json!(namespace);
    }
    let mut object = Map::new();
    object.insert("apiVersion".into(), json!(resource.api_version()));
    object.insert("kind".into(), json!(resource.kind));
    object.insert("metadata".into(), metadata);
    if let Value::Object(rest) = rest {
        object.extend(rest);
    }
    Manifest { resource, namespace, name: name.to_owned(), object: Value::Object(object) }
}

/// The join token as a Kubernetes bootstrap token, with which a worker's kubelet asks for its first certificate.
fn bootstrap_token(config: &Config) -> Manifest {
    let token = &config.secrets.join_token;
    let text = |value: &str| STANDARD.encode(value);
    manifest(
        SECRETS,
        "kube-system",
        &format!("bootstrap-token-{}", token.id()),
        json!({
            "type": "bootstrap.kubernetes.io/token",
            "data": {
                "token-id": text(token.id()),
                "token-secret": text(token.secret()),
                "usage-bootstrap-authentication": text("true"),
                "auth-extra-groups": text(BOOTSTRAP_GROUP),
                "description": text("The join token of the machine config."),
            },
        }),
    )
}

fn group(name: &str) -> Value {
    json!({"kind": "Group", "apiGroup": RBAC, "name": name})
}

fn user(name: &str) -> Value {
    json!({"kind": "User", "apiGroup": RBAC, "name": name})
}

fn service_account(name: &str) -> Value {
    json!({"kind": "ServiceAccount", "namespace": "kube-system", "name": name})
}

fn cluster_role_binding(name: &str, role: &str, subject: Value) -> Manifest {
    manifest(
        CLUSTER_ROLE_BINDINGS,
        "",
        name,
        json!({
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
            "subjects": [subject],
        }),
    )
}

fn role_binding(name: &str, role: &str, subject: Value) -> Manifest {
    manifest(
        ROLE_BINDINGS,
        "kube-system",
        name,
        json!({
            "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": role},
            "subjects": [subject],
        }),
    )
}

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

const READ: &[&str] = &["get", "list", "watch"];

/// How kubelets get and renew certificates, and what nodes may read.
fn node_roles() -> Vec<Manifest> {
    let mut routes = rule(&[""], &["configmaps"], READ);
    routes["resourceNames"] = json!([ROUTES_CONFIG_MAP]);
    let mut serving = rule(&["certificates.k8s.io"], &["signers"], &["approve"]);
    serving["resourceNames"] = json!(["kubernetes.io/kubelet-serving"]);
    vec![
        cluster_role_binding("strake:kubelet-bootstrap", "system:node-bootstrapper", group(BOOTSTRAP_GROUP)),
        cluster_role_binding(
            "strake:node-autoapprove-bootstrap",
            "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
            group(BOOTSTRAP_GROUP),
        ),
        cluster_role_binding(
            "strake:node-autoapprove-certificate-rotation",
            "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
            group("system:nodes"),
        ),
        cluster_role_binding("strake:apiserver-kubelet-client", "system:kubelet-api-admin", user("kube-apiserver-kubelet-client")),
        // Our controller manager also approves serving certificates, of names and addresses that are the machine's own; upstream's leaves them to people.
        manifest(CLUSTER_ROLES, "", "strake:kubelet-serving-approval", json!({"rules": [serving]})),
        cluster_role_binding(
            "strake:kubelet-serving-approval",
            "strake:kubelet-serving-approval",
            service_account("certificate-controller"),
        ),
        cluster_role_binding("strake:node-proxier", "system:node-proxier", group("system:node-proxier")),
        manifest(ROLES, "kube-system", "strake:pod-routes", json!({"rules": [routes]})),
        role_binding("strake:pod-routes", "strake:pod-routes", group("system:nodes")),
    ]
}

/// The bare-metal cloud controller manager: nodes, the routes it plans, the addresses it gives to Services.
fn cloud_controller_manager() -> Vec<Manifest> {
    let name = "system:cloud-controller-manager";
    let subject = || user(name);
    vec![
        manifest(
            CLUSTER_ROLES,
            "",
            name,
            json!({"rules": [
                rule(&[""], &["nodes"], &["get", "list", "watch", "update", "patch", "delete"]),
                rule(&[""], &["nodes/status", "services/status"], &["update", "patch"]),
                rule(&[""], &["services"], &["get", "list", "watch", "update", "patch"]),
                rule(&["discovery.k8s.io"], &["endpointslices"], READ),
                rule(&["coordination.k8s.io"], &["leases"], READ),
                rule(&["", "events.k8s.io"], &["events"], &["create", "update", "patch"]),
                rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
                rule(&["authorization.k8s.io"], &["subjectaccessreviews"], &["create"]),
            ]}),
        ),
        cluster_role_binding(name, name, subject()),
        manifest(
            ROLES,
            "kube-system",
            name,
            json!({"rules": [
                rule(&[""], &["configmaps"], &["get", "list", "watch", "create", "update", "patch"]),
                rule(&["coordination.k8s.io"], &["leases"], &["get", "list", "watch", "create", "update", "patch"]),
            ]}),
        ),
        role_binding(name, name, subject()),
    ]
}

fn cluster_dns(config: &Config) -> Vec<Manifest> {
    let name = "cluster-dns";
    let role = "system:cluster-dns";
    let labels = json!({"k8s-app": "kube-dns"});
    let mut service = json!({
        "selector": labels,
        "ports": [
            {"name": "dns", "port": 53, "targetPort": DNS_PORT, "protocol": "UDP"},
            {"name": "dns-tcp", "port": 53, "targetPort": DNS_PORT, "protocol": "TCP"},
        ],
    });
    if let Some(address) = config.dns_service_address() {
        service["clusterIP"] = json!(address.to_string());
    }
    vec![
        manifest(SERVICE_ACCOUNTS, "kube-system", name, json!({})),
        manifest(
            CLUSTER_ROLES,
            "",
            role,
            json!({"rules": [
                rule(&[""], &["services", "pods", "namespaces"], READ),
                rule(&["discovery.k8s.io"], &["endpointslices"], READ),
            ]}),
        ),
        cluster_role_binding(role, role, service_account(name)),
        with_labels(manifest(SERVICES, "kube-system", "kube-dns", json!({"spec": service})), &labels),
        with_labels(manifest(DEPLOYMENTS, "kube-system", name, json!({"spec": dns_deployment(config, &labels)})), &labels),
    ]
}

fn with_labels(mut manifest: Manifest, labels: &Value) -> Manifest {
    if let (Some(own), Some(more)) = (manifest.object["metadata"]["labels"].as_object_mut(), labels.as_object()) {
        own.extend(more.clone());
    }
    manifest
}

fn dns_deployment(config: &Config, labels: &Value) -> Value {
    let dns = &config.cluster.dns;
    let mut flags = vec![
        ("domain".to_owned(), config.cluster.network.dns_domain.clone()),
        ("port".to_owned(), DNS_PORT.to_string()),
        ("health-port".to_owned(), DNS_HEALTH_PORT.to_string()),
    ];
    flags.retain(|(name, _)| !dns.extra_args.contains_key(name));
    flags.extend(dns.extra_args.iter().map(|(k, v)| (k.clone(), v.clone())));
    let program: &[&str] = if dns.image.is_some() { &["cluster-dns"] } else { &["/usr/bin/kube", "cluster-dns"] };
    let command: Vec<String> = program.iter().map(|s| (*s).to_owned()).chain(flags.iter().map(|(k, v)| format!("--{k}={v}"))).collect();
    let (mounts, volumes) = if dns.image.is_some() {
        (json!([]), json!([]))
    } else {
        (
            json!([{"name": "kube", "mountPath": "/usr/bin/kube", "readOnly": true}]),
            json!([{"name": "kube", "hostPath": {"path": "/usr/bin/kube", "type": "File"}}]),
        )
    };
    let mut requests = Map::new();
    for (key, value) in [("cpu", "50m"), ("memory", "16Mi")] {
        let value = dns.resources.requests.get(key).map_or_else(|| value.to_owned(), ToString::to_string);
        requests.insert(key.to_owned(), json!(value));
    }
    let mut resources = json!({"requests": requests});
    if !dns.resources.limits.is_empty() {
        resources["limits"] = dns.resources.limits.iter().map(|(k, v)| (k.clone(), json!(v.to_string()))).collect::<Map<_, _>>().into();
    }
    let probe = |path: &str, period: u32, failures: u32| {
        json!({
            "httpGet": {"path": path, "port": DNS_HEALTH_PORT}, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures,
        })
    };
    json!({
        "replicas": dns.replicas,
        "selector": {"matchLabels": labels},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": "25%"}},
        "template": {
            "metadata": {"labels": labels},
            "spec": {
                "serviceAccountName": "cluster-dns",
                "priorityClassName": "system-cluster-critical",
                // The node's own servers answer what is not the cluster's.
                "dnsPolicy": "Default",
                "enableServiceLinks": false,
                "nodeSelector": {"kubernetes.io/os": "linux"},
                "tolerations": [
                    {"key": "CriticalAddonsOnly", "operator": "Exists"},
                    {"key": "node-role.kubernetes.io/control-plane", "operator": "Exists", "effect": "NoSchedule"},
                ],
                "securityContext": {
                    "runAsUser": uid::CLUSTER_DNS,
                    "runAsGroup": uid::CLUSTER_DNS,
                    "runAsNonRoot": true,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [{
                    "name": "cluster-dns",
                    "image": dns.image.as_ref().map_or_else(|| STUB_IMAGE.to_owned(), ToString::to_string),
                    "imagePullPolicy": "IfNotPresent",
                    "command": command,
                    "ports": [
                        {"name": "dns", "containerPort": DNS_PORT, "protocol": "UDP"},
                        {"name": "dns-tcp", "containerPort": DNS_PORT, "protocol": "TCP"},
                    ],
                    "resources": resources,
                    "livenessProbe": probe("/health", 10, 5),
                    "readinessProbe": probe("/ready", 5, 3),
                    // However slow the machine is when it comes up.
                    "startupProbe": probe("/health", 2, 60),
                    "securityContext": {
                        "allowPrivilegeEscalation": false,
                        "capabilities": {"drop": ["ALL"]},
                        "readOnlyRootFilesystem": true,
                    },
                    "volumeMounts": mounts,
                }],
                "volumes": volumes,
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::testing;

    #[test]
    fn the_default_manifests_are_as_recorded() {
        let all = render(&testing::control_plane_config());
        let text: Vec<String> = all.iter().map(|m| machine_config::to_yaml(&m.object)).collect();
        testing::golden("manifests.yaml", &text.join("---\n"));
    }

    #[test]
    fn without_dns_nothing_of_it_is_made() {
        let mut config = testing::control_plane_config();
        config.cluster.dns.enabled = false;
        assert!(render(&config).iter().all(|m| !m.name.contains("dns")));
    }

    #[test]
    fn names_are_unique_within_their_kind() {
        let all = render(&testing::control_plane_config());
        let mut keys: Vec<_> = all.iter().map(|m| (m.resource.to_string(), m.namespace, m.name.clone())).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), all.len());
    }
}
