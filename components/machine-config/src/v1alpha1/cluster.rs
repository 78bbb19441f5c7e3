//! `ClusterConfig`: what all machines of a cluster agree on.

use std::collections::BTreeMap;

use crate::model::{Check, Decoder, Value as _};
use crate::object;
use crate::path::FieldPath;
use crate::values::{Cidr, Endpoint, Host, ImageReference, KubernetesVersion, Quantity, Span, check_dns_name};

use super::machine::check_flags;

object! {
    /// What all machines of a cluster agree on.
    pub struct ClusterConfig {
        /// The cluster's name.
        name ("name"): String,
        /// How the control plane is reached.
        control_plane ("controlPlane"): ControlPlaneEndpoint,
        /// Address ranges and names inside the cluster.
        network ("network"): ClusterNetwork,
        /// The version of Kubernetes the cluster runs.
        kubernetes_version ("kubernetesVersion"): KubernetesVersion = crate::BUILT_IN_KUBERNETES,
        /// Whether ordinary pods may run on control-plane machines.
        allow_scheduling_on_control_planes ("allowSchedulingOnControlPlanes"): bool = false,
        /// The API server.
        api_server ("apiServer"): ApiServerConfig,
        /// The controller manager.
        controller_manager ("controllerManager"): ComponentConfig,
        /// The scheduler.
        scheduler ("scheduler"): ComponentConfig,
        /// The bare-metal cloud controller manager.
        cloud_controller_manager ("cloudControllerManager"): ComponentConfig,
        /// kube-proxy; it runs on the host, so it takes flags only.
        proxy ("proxy"): ComponentConfig,
        /// The cluster DNS.
        dns ("dns"): DnsConfig,
        /// etcd and its snapshots.
        etcd ("etcd"): EtcdConfig,
    }
}

object! {
    /// How the control plane is reached.
    pub struct ControlPlaneEndpoint {
        /// The Kubernetes API as every machine and person reaches it, such as `https://10.5.0.11:6443`.
        endpoint ("endpoint"): Endpoint,
    }
}

object! {
    /// Address ranges and names inside the cluster.
    pub struct ClusterNetwork {
        /// The ranges pods get their addresses from.
        pod_subnets ("podSubnets"): Vec<Cidr> = vec![fixed_cidr([10, 244, 0, 0], 16)],
        /// The ranges services get their addresses from.
        service_subnets ("serviceSubnets"): Vec<Cidr> = vec![fixed_cidr([10, 96, 0, 0], 16)],
        /// The prefix length of each node's share of an IPv4 pod range.
        node_mask ("nodeMask"): u8 = 24,
        /// The domain of the cluster's DNS names.
        dns_domain ("dnsDomain"): String = "cluster.local".to_owned(),
    }
}

object! {
    /// Flags, image and resources of one component.
    pub struct ComponentConfig {
        /// Replaces the built-in program by this image.
        image ("image"): Option<ImageReference>,
        /// Further command-line flags, without dashes; they win over the generated ones.
        extra_args ("extraArgs"): BTreeMap<String, String>,
        /// Resource requests and limits.
        resources ("resources"): Resources,
    }
}

object! {
    /// Resource requests and limits of a component.
    pub struct Resources {
        /// What is set aside for it.
        requests ("requests"): BTreeMap<String, Quantity>,
        /// What it may use at most.
        limits ("limits"): BTreeMap<String, Quantity>,
    }
}

object! {
    /// The API server.
    pub struct ApiServerConfig {
        /// Replaces the built-in program by this image.
        image ("image"): Option<ImageReference>,
        /// Further command-line flags, without dashes; they win over the generated ones.
        extra_args ("extraArgs"): BTreeMap<String, String>,
        /// Resource requests and limits.
        resources ("resources"): Resources,
        /// More names and addresses for the serving certificate.
        cert_sans ("certSANs"): Vec<Host>,
    }
}

object! {
    /// The cluster DNS.
    pub struct DnsConfig {
        /// Whether the built-in one is deployed.
        enabled ("enabled"): bool = true,
        /// Replaces the built-in program by this image.
        image ("image"): Option<ImageReference>,
        /// Further command-line flags, without dashes; they win over the generated ones.
        extra_args ("extraArgs"): BTreeMap<String, String>,
        /// Resource requests and limits.
        resources ("resources"): Resources,
        /// How many replicas run.
        replicas ("replicas"): u8 = 1,
    }
}

object! {
    /// etcd and its snapshots.
    pub struct EtcdConfig {
        /// Replaces the built-in program by this image.
        image ("image"): Option<ImageReference>,
        /// Further command-line flags, without dashes; they win over the generated ones.
        extra_args ("extraArgs"): BTreeMap<String, String>,
        /// Resource requests and limits.
        resources ("resources"): Resources,
        /// When snapshots are taken and how many are kept.
        snapshots ("snapshots"): EtcdSnapshots,
    }
}

object! {
    /// When snapshots of etcd are taken and how many are kept.
    pub struct EtcdSnapshots {
        /// Whether they are taken on a schedule.
        enabled ("enabled"): bool = true,
        /// The time between two.
        interval ("interval"): Span = Span::minutes(30),
        /// How many are kept.
        keep ("keep"): u16 = 48,
    }
}

const fn fixed_cidr(octets: [u8; 4], prefix: u8) -> Cidr {
    let [a, b, c, d] = octets;
    // The assertion holds for every prefix up to 32, and the callers are the constants above.
    Cidr(ipnet::IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(a, b, c, d), prefix)))
}

impl ClusterConfig {
    /// A cluster with every default; says what is wrong with a name that cannot be one.
    pub fn new(name: &str, endpoint: Endpoint) -> Result<Self, String> {
        let (name, endpoint) = (name.to_owned().encode(), ControlPlaneEndpoint { endpoint }.encode());
        let mut decoder = Decoder::default();
        let decoded = Self::decode_entries(&[("name", &name), ("controlPlane", &endpoint)], &mut decoder);
        decoded.ok_or_else(|| decoder.findings.first().map(|f| format!("{}: {}", f.path, f.reason)).unwrap_or_default())
    }
}

impl ComponentConfig {
    fn check_flags(extra_args: &BTreeMap<String, String>, d: &mut Decoder) {
        check_flags(extra_args, &FieldPath::fields("extraArgs"), d);
    }
}

impl Check for ComponentConfig {
    fn check(&self, d: &mut Decoder) {
        Self::check_flags(&self.extra_args, d);
    }
}

impl Check for ApiServerConfig {
    fn check(&self, d: &mut Decoder) {
        ComponentConfig::check_flags(&self.extra_args, d);
    }
}

impl Check for DnsConfig {
    fn check(&self, d: &mut Decoder) {
        ComponentConfig::check_flags(&self.extra_args, d);
        if self.replicas == 0 {
            d.report_at(&FieldPath::fields("replicas"), "must be at least 1; use enabled: false to have none");
        }
    }
}

impl Check for EtcdConfig {
    fn check(&self, d: &mut Decoder) {
        ComponentConfig::check_flags(&self.extra_args, d);
    }
}

impl Check for EtcdSnapshots {
    fn check(&self, d: &mut Decoder) {
        if self.interval < Span::minutes(1) {
            d.report_at(&FieldPath::fields("interval"), "must be at least 1m");
        }
        if self.keep == 0 || self.keep > 1000 {
            d.report_at(&FieldPath::fields("keep"), "must be between 1 and 1000");
        }
    }
}

impl Check for Resources {
    fn check(&self, d: &mut Decoder) {
        for (list, name) in [(&self.requests, "requests"), (&self.limits, "limits")] {
            for key in list.keys().filter(|k| !["cpu", "memory", "ephemeral-storage"].contains(&k.as_str())) {
                d.report_at(&FieldPath::fields(name).field(key), "is not one of cpu, memory, ephemeral-storage");
            }
        }
    }
}

impl Check for ControlPlaneEndpoint {}

impl Check for ClusterNetwork {
    fn check(&self, d: &mut Decoder) {
        if let Err(reason) = check_dns_name(&self.dns_domain) {
            d.report_at(&FieldPath::fields("dnsDomain"), reason);
        }
        for (list, name) in [(&self.pod_subnets, "podSubnets"), (&self.service_subnets, "serviceSubnets")] {
            let at = FieldPath::fields(name);
            let families: Vec<bool> = list.iter().map(|c| c.0.addr().is_ipv4()).collect();
            if !matches!(families[..], [_] | [true, false] | [false, true]) {
                d.report_at(&at, "must hold one range, or one IPv4 and one IPv6 range");
            }
        }
        for (i, service) in self.service_subnets.iter().enumerate() {
            let at = FieldPath::fields("serviceSubnets").index(i);
            for pod in &self.pod_subnets {
                if pod.0.contains(&service.0) || service.0.contains(&pod.0) {
                    d.report_at(&at, format!("{service} overlaps the pod range {pod}"));
                }
            }
            let host_bits = service.0.max_prefix_len() - service.0.prefix_len();
            if !(4..=20).contains(&host_bits) {
                d.report_at(&at, format!("{service} must leave between 4 and 20 bits for services, not {host_bits}"));
            }
        }
        for (i, pod) in self.pod_subnets.iter().enumerate().filter(|(_, p)| p.0.addr().is_ipv4()) {
            let (prefix, mask) = (pod.0.prefix_len(), self.node_mask);
            if mask < prefix || mask - prefix > 16 || mask > 30 {
                let reason = format!(
                    "{pod} cannot be divided into node shares of /{mask}: nodeMask must be between {prefix} and {}",
                    (prefix + 16).min(30)
                );
                d.report_at(&FieldPath::fields("podSubnets").index(i), reason);
            }
        }
    }
}

impl Check for ClusterConfig {
    fn check(&self, d: &mut Decoder) {
        if check_dns_name(&self.name).is_err() || self.name.contains('.') {
            d.report_at(&FieldPath::fields("name"), format!("{:?} must be lower-case letters, digits and '-', at most 63", self.name));
        }
        if self.proxy.image.is_some() {
            d.report_at(&FieldPath::fields("proxy.image"), "kube-proxy runs on the host, not from an image");
        }
        if self.proxy.resources != (Resources { requests: BTreeMap::new(), limits: BTreeMap::new() }) {
            d.report_at(&FieldPath::fields("proxy.resources"), "kube-proxy runs on the host; its resources are the system's");
        }
    }
}
