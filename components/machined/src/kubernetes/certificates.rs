//! Which certificates a machine issues to itself, and which of them are due. Only control-plane machines hold authorities, so only they do.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use jiff::Timestamp;
use machine_config::Config;
use machine_config::values::Host;
use pki::{Certificate, LeafSpec, PrivateKey, Renewal};

use super::{NodeFacts, uid};

/// How long a leaf lives; it is renewed after two thirds of that, and at every boot.
pub const LIFETIME: Duration = Duration::from_secs(7 * 86400);

/// The authorities that sign leaves here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signer {
    /// Kubernetes.
    Cluster,
    /// etcd.
    Etcd,
    /// Aggregated API servers.
    FrontProxy,
}

/// A certificate that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The path of the certificate; the key is beside it.
    pub cert: String,
    /// The path of the key; the same as `cert` when both are in one file.
    pub key: String,
    /// Who signs it.
    pub signer: Signer,
    /// What it says.
    pub spec: LeafSpec,
    /// Who owns the files.
    pub uid: u32,
}

/// What is on the disk of a wanted certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// What the certificate says.
    pub certificate: Certificate,
    /// Whether its signer's present key signed it.
    pub signed: bool,
    /// Whether the key beside it is its own.
    pub key_matches: bool,
}

/// Why a certificate is issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is none, or it cannot be read.
    Missing,
    /// Two thirds of its life are over.
    Due,
    /// It is no longer valid, or not yet.
    Invalid,
    /// It is for other names or addresses, or another identity.
    Differs,
    /// Another authority signed it.
    OtherSigner,
    /// The key is another's.
    OtherKey,
}

/// Whether to issue, and until when the present one does.
pub fn plan(wanted: &Wanted, observed: Option<&Observed>, now: Timestamp) -> Result<Timestamp, Reason> {
    let found = observed.ok_or(Reason::Missing)?;
    if !found.key_matches {
        return Err(Reason::OtherKey);
    }
    if !found.signed {
        return Err(Reason::OtherSigner);
    }
    if !says(&found.certificate, &wanted.spec) {
        return Err(Reason::Differs);
    }
    match pki::renewal(now, found.certificate.not_before, found.certificate.not_after) {
        Renewal::Keep { until } => Ok(until),
        Renewal::Due => Err(Reason::Due),
        Renewal::Invalid => Err(Reason::Invalid),
    }
}

/// Whether a certificate says what is wanted, whatever its lifetime.
fn says(certificate: &Certificate, spec: &LeafSpec) -> bool {
    let sorted = |list: &[String]| {
        let mut list = list.to_vec();
        list.sort();
        list
    };
    let addresses = |list: &[IpAddr]| {
        let mut list = list.to_vec();
        list.sort();
        list
    };
    certificate.common_name == spec.common_name
        && certificate.organizations == spec.organization.iter().cloned().collect::<Vec<_>>()
        && certificate.server == spec.server
        && certificate.client == spec.client
        && sorted(&certificate.dns_names) == sorted(&spec.dns_names)
        && addresses(&certificate.addresses) == addresses(&spec.addresses)
}

/// Looks at what is on the disk: the texts of the certificate's and the key's file, and the signer's certificate.
pub fn observe(cert: &str, key: &str, signer: &str) -> Option<Observed> {
    let certificate = Certificate::from_pem(cert).ok()?;
    let der = pki::pem::certificates(cert).ok()?;
    let signer = pki::pem::certificates(signer).ok()?;
    let signed = Certificate::signed_by(der.first()?, signer.first()?).unwrap_or(false);
    let public = PrivateKey::from_pem(key).ok().map(|k| k.public_pem());
    let key_matches = public.as_deref() == Some(pki::pem::encode("PUBLIC KEY", &certificate.public_key).as_str());
    Some(Observed { certificate, signed, key_matches })
}

/// Every certificate that a control-plane machine issues to itself, but for its kubelet's.
pub fn control_plane(config: &Config, facts: &NodeFacts) -> Vec<Wanted> {
    let client = |name: &str, group: Option<&str>| LeafSpec {
        common_name: name.to_owned(),
        organization: group.map(str::to_owned),
        client: true,
        lifetime: LIFETIME,
        ..LeafSpec::default()
    };
    let at = |path: &str, signer, spec, uid| Wanted {
        cert: format!("/etc/kubernetes/{path}.crt"),
        key: format!("/etc/kubernetes/{path}.key"),
        signer,
        spec,
        uid,
    };
    let etcd = |path: &str| {
        let mut spec =
            LeafSpec { common_name: facts.hostname.clone(), server: true, client: true, lifetime: LIFETIME, ..LeafSpec::default() };
        add_own_names(&mut spec, facts);
        at(path, Signer::Etcd, spec, uid::ETCD)
    };
    vec![
        at("kube-apiserver/server", Signer::Cluster, api_server(config, facts), uid::API_SERVER),
        at("kube-apiserver/kubelet-client", Signer::Cluster, client("kube-apiserver-kubelet-client", None), uid::API_SERVER),
        at("kube-apiserver/etcd-client", Signer::Etcd, client("kube-apiserver-etcd-client", None), uid::API_SERVER),
        at("kube-apiserver/front-proxy-client", Signer::FrontProxy, client("front-proxy-client", None), uid::API_SERVER),
        etcd("etcd/server"),
        etcd("etcd/peer"),
        at("kube-controller-manager/client", Signer::Cluster, client("system:kube-controller-manager", None), uid::CONTROLLER_MANAGER),
        at("kube-scheduler/client", Signer::Cluster, client("system:kube-scheduler", None), uid::SCHEDULER),
        at(
            "cloud-controller-manager/client",
            Signer::Cluster,
            client("system:cloud-controller-manager", None),
            uid::CLOUD_CONTROLLER_MANAGER,
        ),
        at("kube-proxy/client", Signer::Cluster, client("system:kube-proxy", Some("system:node-proxier")), 0),
        at("admin/client", Signer::Cluster, client("admin", Some("system:masters")), 0),
        at("admin/etcd-client", Signer::Etcd, client("machined", None), 0),
    ]
}

/// The first certificate of a control plane's kubelet, which could not ask an API server that it is yet to start. The kubelet renews
/// it itself, so this one is looked at only when it is missing or no longer valid.
pub fn kubelet_client(facts: &NodeFacts) -> LeafSpec {
    LeafSpec {
        common_name: format!("system:node:{}", facts.hostname),
        organization: Some("system:nodes".to_owned()),
        client: true,
        lifetime: LIFETIME,
        ..LeafSpec::default()
    }
}

/// Whether the kubelet's certificate must be issued here.
pub fn kubelet_client_missing(observed: Option<&Observed>, facts: &NodeFacts, now: Timestamp) -> bool {
    let spec = kubelet_client(facts);
    observed.is_none_or(|o| {
        !(o.signed && o.key_matches && o.certificate.valid_at(now) && o.certificate.common_name == spec.common_name && o.certificate.client)
    })
}

/// Names and addresses under which the API server is reached.
fn api_server(config: &Config, facts: &NodeFacts) -> LeafSpec {
    let domain = &config.cluster.network.dns_domain;
    let mut spec = LeafSpec { common_name: "kube-apiserver".to_owned(), server: true, lifetime: LIFETIME, ..LeafSpec::default() };
    for name in ["kubernetes", "kubernetes.default", "kubernetes.default.svc"] {
        spec.dns_names.push(name.to_owned());
    }
    spec.dns_names.push(format!("kubernetes.default.svc.{domain}"));
    spec.addresses.extend(config.kubernetes_service_address());
    add_own_names(&mut spec, facts);
    for host in std::iter::once(&config.cluster.control_plane.endpoint.host).chain(&config.cluster.api_server.cert_sans) {
        match host {
            Host::Address(address) => push_new(&mut spec.addresses, *address),
            Host::Name(name) => push_new(&mut spec.dns_names, name.clone()),
        }
    }
    spec
}

fn add_own_names(spec: &mut LeafSpec, facts: &NodeFacts) {
    push_new(&mut spec.dns_names, "localhost".to_owned());
    push_new(&mut spec.dns_names, facts.hostname.clone());
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].into_iter().chain(facts.addresses.iter().copied()) {
        push_new(&mut spec.addresses, address);
    }
}

fn push_new<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::testing;

    const DAY: i64 = 86400;

    #[test]
    fn a_certificate_is_issued_for_the_reason_that_holds() {
        let now = testing::now();
        let ca = testing::authority();
        let wanted = &control_plane(&testing::control_plane_config(), &testing::facts())[0];
        let issued = ca.issue(&wanted.spec, now).unwrap();
        let good = observe(&issued.cert_pem, &issued.key_pem, ca.cert_pem()).unwrap();
        let later = |days: i64| now + jiff::SignedDuration::from_secs(days * DAY);

        assert!(plan(wanted, Some(&good), now).is_ok());
        assert_eq!(plan(wanted, None, now), Err(Reason::Missing));
        assert_eq!(plan(wanted, Some(&good), later(5)), Err(Reason::Due));
        assert_eq!(plan(wanted, Some(&good), later(8)), Err(Reason::Invalid));
        let mut moved = wanted.clone();
        moved.spec.addresses.push([10, 5, 0, 99].into());
        assert_eq!(plan(&moved, Some(&good), now), Err(Reason::Differs));
        let other = testing::authority();
        let foreign = observe(&issued.cert_pem, &issued.key_pem, other.cert_pem()).unwrap();
        assert_eq!(plan(wanted, Some(&foreign), now), Err(Reason::OtherSigner));
        let swapped = observe(&issued.cert_pem, &ca.issue(&wanted.spec, now).unwrap().key_pem, ca.cert_pem()).unwrap();
        assert_eq!(plan(wanted, Some(&swapped), now), Err(Reason::OtherKey));
    }

    #[test]
    fn the_api_server_answers_to_every_name_it_is_reached_by() {
        let spec = api_server(&testing::control_plane_config(), &testing::facts());
        assert_eq!(
            spec.dns_names,
            ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost", "cp-1"]
        );
        let addresses: Vec<String> = spec.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.96.0.1", "127.0.0.1", "::1", "10.5.0.11"]);
    }

    #[test]
    fn nobody_but_the_admin_gets_system_masters() {
        let wanted = control_plane(&testing::control_plane_config(), &testing::facts());
        let masters: Vec<&str> =
            wanted.iter().filter(|w| w.spec.organization.as_deref() == Some("system:masters")).map(|w| w.cert.as_str()).collect();
        assert_eq!(masters, ["/etc/kubernetes/admin/client.crt"]);
    }

    #[test]
    fn the_kubelets_own_renewals_are_left_alone() {
        let (now, ca, facts) = (testing::now(), testing::authority(), testing::facts());
        let see = |spec: &LeafSpec| {
            let issued = ca.issue(spec, now).unwrap();
            observe(&issued.cert_pem, &issued.key_pem, ca.cert_pem()).unwrap()
        };
        let good = see(&kubelet_client(&facts));
        assert!(!kubelet_client_missing(Some(&good), &facts, now + jiff::SignedDuration::from_secs(6 * DAY)));
        assert!(kubelet_client_missing(Some(&good), &facts, now + jiff::SignedDuration::from_secs(8 * DAY)));
        assert!(kubelet_client_missing(None, &facts, now));
        let renamed = see(&LeafSpec { common_name: "system:node:old".into(), ..kubelet_client(&facts) });
        assert!(kubelet_client_missing(Some(&renamed), &facts, now));
    }
}
