//! The parts of Services and EndpointSlices that names are made of.

use std::net::IpAddr;

use k8s_client::resources::{ENDPOINT_SLICES, SERVICES};
use k8s_client::{Named, Object, ObjectMeta, Resource, null_default};
use serde::Deserialize;

/// Label on an EndpointSlice that names its Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A Service.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Service {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Spec.
    pub spec: ServiceSpec,
}

/// A Service's spec.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `ClusterIP`, `ExternalName`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// Cluster addresses; `None` makes the service headless.
    #[serde(rename = "clusterIPs", deserialize_with = "null_default")]
    pub cluster_ips: Vec<String>,
    /// Alias, for `ExternalName`.
    pub external_name: String,
    /// Ports.
    #[serde(deserialize_with = "null_default")]
    pub ports: Vec<ServicePort>,
}

impl Service {
    /// Has no address of its own.
    pub fn is_headless(&self) -> bool {
        self.spec.cluster_ips.first().is_none_or(|ip| ip == "None" || ip.is_empty())
    }

    /// Cluster addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.spec.cluster_ips.iter().filter_map(|ip| ip.parse().ok())
    }
}

/// A port of a Service.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// Name.
    pub name: String,
    /// Protocol.
    pub protocol: String,
    /// Number.
    pub port: u16,
}

/// An EndpointSlice.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct EndpointSlice {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Endpoints.
    #[serde(deserialize_with = "null_default")]
    pub endpoints: Vec<Endpoint>,
    /// Ports.
    #[serde(deserialize_with = "null_default")]
    pub ports: Vec<EndpointPort>,
}

impl EndpointSlice {
    /// `namespace/service`, if the slice belongs to one.
    pub fn service(&self) -> Option<String> {
        self.metadata.labels.get(SERVICE_NAME).map(|name| format!("{}/{name}", self.metadata.namespace))
    }
}

/// An endpoint.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Endpoint {
    /// Addresses.
    #[serde(deserialize_with = "null_default")]
    pub addresses: Vec<String>,
    /// Conditions.
    pub conditions: Conditions,
    /// The pod's host name, when it asked for one.
    pub hostname: Option<String>,
}

impl Endpoint {
    /// Takes traffic; unknown counts as yes.
    pub fn is_ready(&self) -> bool {
        self.conditions.ready.unwrap_or(true)
    }

    /// Its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().filter_map(|ip| ip.parse().ok())
    }

    /// The label below the service's name: the host name, or the address with dashes.
    pub fn label(&self, address: IpAddr) -> String {
        match self.hostname.as_deref() {
            Some(hostname) if !hostname.is_empty() => hostname.to_string(),
            _ => address.to_string().replace(['.', ':'], "-"),
        }
    }
}

/// Conditions of an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// Takes traffic.
    pub ready: Option<bool>,
}

/// A port of an EndpointSlice.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct EndpointPort {
    /// Name.
    pub name: Option<String>,
    /// Protocol.
    pub protocol: Option<String>,
    /// Number.
    pub port: Option<u16>,
}

impl Object for Service {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl Named for Service {
    const RESOURCE: Resource = SERVICES;
}

impl Object for EndpointSlice {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl Named for EndpointSlice {
    const RESOURCE: Resource = ENDPOINT_SLICES;
}
