//! A text's documents, and the complete config of a machine.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::model::{Decoder, Finding};
use crate::path::FieldPath;
use crate::problem::{ConfigErrors, Problem};
use crate::v1alpha1::{
    ClusterConfig, DocumentKind, HostnameConfig, LinkConfig, MachineConfig, MachineSecrets, ResolverConfig, Role, TimeConfig,
    UserVolumeConfig, VolumeConfig, VolumeEncryption, VolumeName,
};
use crate::values::KubernetesVersion;
use crate::yaml::{self, Node};

/// A document and where it came from.
#[derive(Clone, Debug)]
struct Sourced {
    document: DocumentKind,
    /// Which text of [`Documents::sources`] it came from, and its index there.
    source: usize,
    index: usize,
}

#[derive(Clone, Debug)]
struct Source {
    file: String,
    text: String,
}

impl Source {
    fn problem(&self, index: usize, document: String, finding: Finding) -> Problem {
        let (line, column) = yaml::locate(&self.text, index, &finding.path.0, finding.key).unwrap_or_default();
        Problem { file: self.file.clone(), line, column, document, path: finding.path, reason: finding.reason }
    }
}

/// Documents of one or several texts, each right by itself; no two have the same identity.
#[derive(Clone, Debug, Default)]
pub struct Documents {
    sources: Vec<Source>,
    documents: Vec<Sourced>,
}

impl Documents {
    /// Reads every document of a text. `file` is only what problems call it.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigErrors> {
        Self::parse_all([(file, text)])
    }

    /// Reads the documents of several texts as if they were one.
    pub fn parse_all<'a>(texts: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, ConfigErrors> {
        let mut all = Self::default();
        let mut errors = ConfigErrors::default();
        for (file, text) in texts {
            all.read(file, text, &mut errors);
        }
        errors.or(all)
    }

    /// Documents made by a program.
    pub fn from_documents(documents: impl IntoIterator<Item = DocumentKind>) -> Result<Self, ConfigErrors> {
        // Through the text, so that whatever a reader would refuse is refused here, and problems have a place.
        Self::parse("generated", &render(documents))
    }

    fn read(&mut self, file: &str, text: &str, errors: &mut ConfigErrors) {
        let source = Source { file: file.to_owned(), text: text.to_owned() };
        let (trees, syntax) = yaml::parse(text);
        for (index, tree) in trees {
            let mut decoder = Decoder::default();
            let decoded = DocumentKind::decode(&tree, &mut decoder);
            let name = tree.get("kind").and_then(Node::as_str).map_or_else(|| format!("document {}", index + 1), str::to_owned);
            for finding in decoder.findings {
                errors.push(source.problem(index, name.clone(), finding));
            }
            let Some(document) = decoded else { continue };
            if self.documents.iter().any(|d| d.document.identity() == document.identity()) {
                let path = FieldPath::fields(if DocumentKind::is_named(document.kind()) { "name" } else { "kind" });
                let reason = format!("there is already a document {}", document.identity());
                errors.push(source.problem(index, name, Finding { path, key: false, reason }));
            }
            self.documents.push(Sourced { document, source: self.sources.len(), index });
        }
        if let Some(error) = syntax {
            errors.push(Problem {
                file: file.to_owned(),
                line: error.line,
                column: error.column,
                document: String::new(),
                path: FieldPath::default(),
                reason: error.reason,
            });
        }
        self.sources.push(source);
    }

    /// The documents.
    pub fn iter(&self) -> impl Iterator<Item = &DocumentKind> {
        self.documents.iter().map(|d| &d.document)
    }

    /// The documents as YAML, defaults left out.
    pub fn render(&self) -> String {
        render(self.iter().cloned())
    }
}

/// Documents as YAML, defaults left out.
pub fn render(documents: impl IntoIterator<Item = DocumentKind>) -> String {
    let trees: Vec<Node> = documents.into_iter().map(|d| d.encode()).collect();
    yaml::render(&trees)
}

/// The complete config of a machine: every document defaulted, and all of them checked against one another.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What this machine is.
    pub machine: MachineConfig,
    /// What all machines of the cluster agree on.
    pub cluster: ClusterConfig,
    /// Authorities and tokens.
    pub secrets: MachineSecrets,
    /// Network interfaces, in the order of the text.
    pub links: Vec<LinkConfig>,
    /// The machine's name; without one it is derived from a hardware address.
    pub hostname: Option<HostnameConfig>,
    /// DNS servers.
    pub resolver: Option<ResolverConfig>,
    /// The clock.
    pub time: Option<TimeConfig>,
    /// Volumes of the system's disk that are kept otherwise than by default.
    pub volumes: Vec<VolumeConfig>,
    /// Volumes on other disks.
    pub user_volumes: Vec<UserVolumeConfig>,
}

impl Config {
    /// Reads and checks a complete config.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigErrors> {
        Self::from_documents(&Documents::parse(file, text)?)
    }

    /// Checks that documents make a complete config.
    pub fn from_documents(documents: &Documents) -> Result<Self, ConfigErrors> {
        let mut errors = ConfigErrors::default();
        let (mut machine, mut cluster, mut secrets, mut hostname, mut resolver, mut time) = (None, None, None, None, None, None);
        let (mut links, mut volumes, mut user_volumes) = (Vec::new(), Vec::new(), Vec::new());
        for document in documents.iter().cloned() {
            match document {
                DocumentKind::MachineConfig(v) => machine = Some(v),
                DocumentKind::ClusterConfig(v) => cluster = Some(v),
                DocumentKind::MachineSecrets(v) => secrets = Some(v),
                DocumentKind::LinkConfig(v) => links.push(v),
                DocumentKind::HostnameConfig(v) => hostname = Some(v),
                DocumentKind::ResolverConfig(v) => resolver = Some(v),
                DocumentKind::TimeConfig(v) => time = Some(v),
                DocumentKind::VolumeConfig(v) => volumes.push(v),
                DocumentKind::UserVolumeConfig(v) => user_volumes.push(v),
            }
        }
        let file = documents.sources.first().map_or("config", |s| s.file.as_str());
        let missing = [("MachineConfig", machine.is_none()), ("ClusterConfig", cluster.is_none()), ("MachineSecrets", secrets.is_none())];
        for (kind, _) in missing.iter().filter(|(_, missing)| *missing) {
            errors.push(Problem {
                file: file.to_owned(),
                line: 0,
                column: 0,
                document: String::new(),
                path: FieldPath::default(),
                reason: format!("a machine needs a {kind} document and there is none"),
            });
        }
        let (Some(machine), Some(cluster), Some(secrets)) = (machine, cluster, secrets) else {
            return errors.or(()).and_then(|()| Err(ConfigErrors::default()));
        };
        let config = Self { machine, cluster, secrets, links, hostname, resolver, time, volumes, user_volumes };
        for (identity, finding) in config.check() {
            let place = documents.documents.iter().find(|d| d.document.identity() == identity);
            let problem = place.and_then(|d| documents.sources.get(d.source).map(|s| (s, d.index)));
            match problem {
                Some((source, index)) => errors.push(source.problem(index, identity, finding)),
                None => errors.push(Problem {
                    file: file.to_owned(),
                    line: 0,
                    column: 0,
                    document: identity,
                    path: finding.path,
                    reason: finding.reason,
                }),
            }
        }
        errors.or(config)
    }

    /// The documents this config is made of.
    pub fn documents(&self) -> Vec<DocumentKind> {
        let mut documents = vec![
            DocumentKind::MachineConfig(self.machine.clone()),
            DocumentKind::ClusterConfig(self.cluster.clone()),
            DocumentKind::MachineSecrets(self.secrets.clone()),
        ];
        documents.extend(self.hostname.clone().map(DocumentKind::HostnameConfig));
        documents.extend(self.links.iter().cloned().map(DocumentKind::LinkConfig));
        documents.extend(self.resolver.clone().map(DocumentKind::ResolverConfig));
        documents.extend(self.time.clone().map(DocumentKind::TimeConfig));
        documents.extend(self.volumes.iter().cloned().map(DocumentKind::VolumeConfig));
        documents.extend(self.user_volumes.iter().cloned().map(DocumentKind::UserVolumeConfig));
        documents
    }

    /// The config as YAML, with its secrets; take care where it goes.
    pub fn render(&self) -> String {
        render(self.documents())
    }

    /// The config as YAML for people to look at, without keys and tokens.
    pub fn render_redacted(&self) -> String {
        let trees: Vec<Node> = self.documents().iter().map(|d| crate::diff::redact(d.encode())).collect();
        yaml::render(&trees)
    }

    /// Whether this machine is part of the control plane.
    pub fn is_control_plane(&self) -> bool {
        self.machine.role == Role::ControlPlane
    }

    /// How a volume is encrypted, if it is.
    pub fn encryption(&self, name: VolumeName) -> Option<&VolumeEncryption> {
        self.volumes.iter().find(|volume| volume.name == name)?.encryption.as_ref()
    }

    /// The cluster DNS service's address: the tenth of the first service range.
    pub fn dns_service_address(&self) -> Option<IpAddr> {
        self.service_address(10)
    }

    /// The `kubernetes` Service's address: the first of the first service range.
    pub fn kubernetes_service_address(&self) -> Option<IpAddr> {
        self.service_address(1)
    }

    fn service_address(&self, n: u8) -> Option<IpAddr> {
        let net = self.cluster.network.service_subnets.first()?.0;
        let address = match net.network() {
            IpAddr::V4(a) => IpAddr::V4(u32::from(a).checked_add(n.into())?.into()),
            IpAddr::V6(a) => IpAddr::V6(u128::from(a).checked_add(n.into())?.into()),
        };
        net.contains(&address).then_some(address)
    }

    /// What does not fit together, with the identity of the document to change.
    fn check(&self) -> Vec<(String, Finding)> {
        let mut found = Vec::new();
        let mut report =
            |identity: &str, path: FieldPath, reason: String| found.push((identity.to_owned(), Finding { path, key: false, reason }));

        let control_plane = self.is_control_plane();
        for (path, present) in self.secrets.keys_present() {
            match (control_plane, present) {
                (true, false) => report("MachineSecrets", FieldPath::fields(path), "a control-plane machine needs this key".to_owned()),
                (false, true) => report(
                    "MachineSecrets",
                    FieldPath::fields(path),
                    "a worker must not hold this key; remove it (gen cluster writes a worker's secrets without it)".to_owned(),
                ),
                _ => {}
            }
        }

        for volume in self.volumes.iter().filter(|volume| volume.name == VolumeName::Etcd && !control_plane) {
            report(&format!("VolumeConfig {}", volume.name), FieldPath::fields("name"), "a worker has no volume ETCD".to_owned());
        }

        if let Err(reason) = check_skew(
            self.cluster.kubernetes_version,
            crate::BUILT_IN_KUBERNETES,
            !control_plane || self.cluster.api_server.image.is_some(),
        ) {
            report("ClusterConfig", FieldPath::fields("kubernetesVersion"), reason);
        }

        let mut addresses: BTreeMap<IpAddr, &str> = BTreeMap::new();
        let mut macs = BTreeMap::new();
        for link in &self.links {
            let identity = format!("LinkConfig {}", link.name);
            for (i, address) in link.addresses.iter().enumerate() {
                let at = FieldPath::fields("addresses").index(i);
                if let Some(other) = addresses.insert(address.0.addr(), &link.name).filter(|other| *other != link.name) {
                    report(&identity, at.clone(), format!("{} is also an address of link {other}", address.0.addr()));
                }
                let ranges = self
                    .cluster
                    .network
                    .pod_subnets
                    .iter()
                    .map(|c| (c, "pod"))
                    .chain(self.cluster.network.service_subnets.iter().map(|c| (c, "service")));
                for (range, what) in ranges {
                    if range.0.contains(&address.0.addr()) || address.0.trunc().contains(&range.0.network()) {
                        report(&identity, at.clone(), format!("{address} overlaps the cluster's {what} range {range}"));
                    }
                }
            }
            if let Some(mac) = link.matches.mac
                && let Some(other) = macs.insert(mac, &link.name)
            {
                report(&identity, FieldPath::fields("match.mac"), format!("{mac} is already the link {other}"));
            }
        }
        if let crate::values::Host::Address(endpoint) = &self.cluster.control_plane.endpoint.host {
            for (range, what) in [(&self.cluster.network.pod_subnets, "pod"), (&self.cluster.network.service_subnets, "service")] {
                if let Some(range) = range.iter().find(|r| r.0.contains(endpoint)) {
                    report(
                        "ClusterConfig",
                        FieldPath::fields("controlPlane.endpoint"),
                        format!("{endpoint} lies in the cluster's {what} range {range}"),
                    );
                }
            }
        }
        found
    }
}

/// Whether a cluster of this version can use our components: kubelets may be up to three minor versions older than the API server and never newer, and the
/// built-in control plane is what it is unless images replace it.
fn check_skew(wanted: KubernetesVersion, built_in: KubernetesVersion, control_plane_replaced: bool) -> Result<(), String> {
    let here = format!("v{}.{}", built_in.major, built_in.minor);
    if wanted.major != built_in.major || wanted.minor < built_in.minor {
        return Err(format!(
            "{wanted} is older than the built-in components ({here}), and a kubelet must not be newer than its API server"
        ));
    }
    if wanted.minor > built_in.minor + 3 {
        return Err(format!("{wanted} is more than three minor versions newer than the built-in kubelet ({here})"));
    }
    if wanted.minor > built_in.minor && !control_plane_replaced {
        return Err(format!(
            "{wanted} is newer than the built-in API server ({here}); set apiServer.image, controllerManager.image and scheduler.image or use {built_in}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_within_the_skew_policy_are_accepted() {
        let v = |text: &str| text.parse::<KubernetesVersion>().expect(text);
        let cases = [
            ("v1.36.0", false, true),
            ("v1.36.9", false, true),
            ("v1.35.4", false, false),
            ("v1.37.0", false, false),
            ("v1.37.0", true, true),
            ("v1.39.1", true, true),
            ("v1.40.0", true, false),
            ("v2.36.0", true, false),
        ];
        for (wanted, replaced, accepted) in cases {
            assert_eq!(check_skew(v(wanted), v("v1.36.2"), replaced).is_ok(), accepted, "{wanted} {replaced}");
        }
    }
}
