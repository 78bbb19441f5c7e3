//! Where a webhook is: a URL, or a service of the cluster, found as upstream's default resolver does.

use std::time::Duration;

use http::Uri;
use k8s_schema::Ref;

use crate::{objects::Objects, services::endpoint};

/// A configuration's `clientConfig`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientConfig {
    pub place: Place,
    /// PEM; empty: what the system trusts.
    pub ca_bundle: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    Url(String),
    Service { namespace: String, name: String, path: String, port: u16 },
}

/// Where to connect, and what to ask for there.
#[derive(Debug, PartialEq, Eq)]
pub struct Target {
    /// The name that the certificate must be for.
    pub name: String,
    /// `host:port` as the request names it.
    pub authority: String,
    pub path: String,
    pub host: String,
    pub port: u16,
}

/// `host:port` with the brackets of an IPv6 address.
fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

impl ClientConfig {
    pub fn of(client: Ref<'_>) -> Self {
        let service = client.get("service");
        let text = |f: &str| service.get(f).str().to_owned();
        let place = if service.exists() {
            let path = text("path");
            Place::Service {
                namespace: text("namespace"),
                name: text("name"),
                path: if path.starts_with('/') { path } else { format!("/{path}") },
                // Validation lets no other port in.
                port: service.get("port").as_i64().and_then(|p| u16::try_from(p).ok()).unwrap_or(443),
            }
        } else {
            Place::Url(client.get("url").str().to_owned())
        };
        Self { place, ca_bundle: client.get("caBundle").bytes().to_vec() }
    }

    /// The URL of a call, as messages show it.
    pub fn url(&self, timeout: Duration) -> String {
        let base = match &self.place {
            Place::Url(u) => u.clone(),
            Place::Service { namespace, name, path, port } => format!("https://{name}.{namespace}.svc:{port}{path}"),
        };
        format!("{base}?timeout={}s", timeout.as_secs())
    }

    pub fn target(&self, objects: &Objects) -> Result<Target, String> {
        match &self.place {
            Place::Url(u) => of_url(u),
            Place::Service { namespace, name, path, port } => {
                let (host, to) = resolve(objects, namespace, name, *port)?;
                let server = format!("{name}.{namespace}.svc");
                Ok(Target { authority: join(&server, *port), name: server, path: path.clone(), host, port: to })
            }
        }
    }
}

pub fn of_url(u: &str) -> Result<Target, String> {
    let uri: Uri = u.parse().map_err(|e| format!("the URL cannot be read: {e}"))?;
    if uri.scheme_str() != Some("https") {
        return Err("only https is spoken to webhooks".into());
    }
    let host = uri.host().ok_or("the URL names no host")?.trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(443);
    let authority = uri.authority().map_or_else(|| join(&host, port), ToString::to_string);
    Ok(Target { name: host.clone(), authority, path: uri.path().to_owned(), host, port })
}

/// The address and port behind a service's port: its cluster IP, its external name, or without a cluster IP a ready endpoint.
pub fn resolve(objects: &Objects, namespace: &str, name: &str, port: u16) -> Result<(String, u16), String> {
    let service = objects.get("services/specs", &format!("{namespace}/{name}")).ok_or_else(|| format!("service {name:?} not found"))?;
    let spec = service.at("spec");
    let ip = spec.get("clusterIP").str();
    let known = spec.get("ports").iter().find(|p| p.get("port").int() == i64::from(port));
    let missing = || format!("no service port {port} found for service {name:?}");
    match spec.get("type").str() {
        "ExternalName" => Ok((spec.get("externalName").str().to_owned(), port)),
        "ClusterIP" if ip == "None" => {
            let port_name = known.ok_or_else(missing)?.get("name").str().to_owned();
            endpoint(objects, namespace, name, &port_name).ok_or_else(|| format!("no endpoints available for service {name:?}"))
        }
        "ClusterIP" | "NodePort" | "LoadBalancer" if known.is_some() && !ip.is_empty() => Ok((ip.to_owned(), port)),
        "ClusterIP" | "NodePort" | "LoadBalancer" => Err(missing()),
        other => Err(format!("unsupported service type {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_say_where_to_connect() {
        let t = of_url("https://hooks.example.com/convert").unwrap();
        assert_eq!(
            (t.name.as_str(), t.authority.as_str(), t.port, t.path.as_str()),
            ("hooks.example.com", "hooks.example.com", 443, "/convert")
        );
        let t = of_url("https://[::1]:8443").unwrap();
        assert_eq!((t.host.as_str(), t.authority.as_str(), t.port, t.path.as_str()), ("::1", "[::1]:8443", 8443, "/"));
        for bad in ["http://a", "", "::", "https://"] {
            assert!(of_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn messages_show_the_service_and_the_time() {
        let place = Place::Service { namespace: "ns".into(), name: "hook".into(), path: "/".into(), port: 443 };
        let c = ClientConfig { place, ca_bundle: Vec::new() };
        assert_eq!(c.url(Duration::from_secs(2)), "https://hook.ns.svc:443/?timeout=2s");
    }
}
