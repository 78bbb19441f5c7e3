//! What the tests of this folder share: a cluster's configs, made the way `gen` makes them, and goldens.

use std::fs;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use machine_config::{Config, DocumentKind, Documents};
use pki::{Authority, PrivateKey};

use super::NodeFacts;

pub fn now() -> Timestamp {
    "2026-11-22T20:00:00Z".parse().unwrap()
}

pub fn authority() -> Authority {
    let made = Authority::generate("test", now(), Duration::from_secs(3650 * 86400)).unwrap();
    Authority::from_pem(&made.cert_pem, &made.key_pem).unwrap()
}

pub fn facts() -> NodeFacts {
    NodeFacts { hostname: "cp-1".into(), node_ip: [10, 5, 0, 11].into(), addresses: vec![[10, 5, 0, 11].into()] }
}

pub fn worker_facts() -> NodeFacts {
    NodeFacts { hostname: "worker-1".into(), node_ip: [10, 5, 0, 21].into(), addresses: vec![[10, 5, 0, 21].into()] }
}

fn indent(pem: &str) -> String {
    pem.lines().map(|l| format!("      {l}\n")).collect()
}

/// The documents of a control plane with fresh keys.
pub fn control_plane_config() -> Config {
    let ca = |name: &str| {
        let made = Authority::generate(name, now(), Duration::from_secs(3650 * 86400)).unwrap();
        format!("  {name}:\n    cert: |\n{}    key: |\n{}", indent(&made.cert_pem), indent(&made.key_pem))
    };
    let head = "apiVersion: strake.dev/v1alpha1\nkind:";
    let text = format!(
        "{head} MachineConfig\nrole: controlplane\ninstall: {{disk: {{size: '>= 10GB'}}}}\n---\n\
         {head} ClusterConfig\nname: test\ncontrolPlane: {{endpoint: 'https://10.5.0.11:6443'}}\nallowSchedulingOnControlPlanes: true\n---\n\
         {head} HostnameConfig\nhostname: cp-1\n---\n\
         {head} ResolverConfig\nnameservers: [10.5.0.3]\n---\n\
         {head} MachineSecrets\nclusterID: 0123456789abcdef\njoinToken: abcdef.0123456789abcdef\ncertificateAuthorities:\n{}{}{}{}serviceAccountKey: |\n{}",
        ca("cluster"),
        ca("machine"),
        ca("etcd"),
        ca("frontProxy"),
        indent(&PrivateKey::generate().unwrap().to_pem()),
    );
    Config::parse("test", &text).unwrap()
}

/// The worker of the same cluster.
pub fn worker_config() -> Config {
    let mut config = control_plane_config();
    config.machine.role = machine_config::Role::Worker;
    config.secrets = config.secrets.for_worker();
    config.hostname = Some(machine_config::HostnameConfig { hostname: "worker-1".into() });
    let documents: Vec<DocumentKind> = config.documents();
    Config::from_documents(&Documents::from_documents(documents).unwrap()).unwrap()
}

/// Compares with a recorded file; `UPDATE_GOLDENS=1` records. Certificates are not recorded: they are new each time.
pub fn golden(name: &str, actual: &str) {
    if actual.starts_with("-----BEGIN") {
        return;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kubernetes/goldens").join(name);
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, actual).unwrap();
        return;
    }
    let recorded = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(actual, recorded, "{name} differs; UPDATE_GOLDENS=1 records it anew");
}
