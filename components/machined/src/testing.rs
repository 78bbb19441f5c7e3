//! Configs for tests.

use machine_config::Config;

/// A worker's config whose disk selector is this.
pub fn worker_config(selector: &str) -> Config {
    worker_config_with(&format!("{{disk: {selector}}}"))
}

/// A worker's config with this install section.
pub fn worker_config_with(install: &str) -> Config {
    let (text, _) = worker_text(install);
    Config::parse("test", &text).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The text of a worker's config, and the machine CA that it trusts.
pub fn worker_text(install: &str) -> (String, pki::Issued) {
    let (ca, other) = (authority("machine"), authority("cluster"));
    (config_text("worker", install, &ca.cert_pem, None, &other.cert_pem, None), ca)
}

/// An authority that is good for a day.
pub fn authority(name: &str) -> pki::Issued {
    pki::Authority::generate(name, jiff::Timestamp::now(), std::time::Duration::from_secs(86_400)).unwrap()
}

fn config_text(
    role: &str,
    install: &str,
    machine_ca: &str,
    machine_key: Option<&str>,
    cluster_ca: &str,
    cluster_key: Option<&str>,
) -> String {
    let ca = |cert: &str, key: Option<&str>| {
        let indent = |pem: &str| pem.trim().replace('\n', "\n      ");
        let key = key.map(|key| format!("\n    key: |\n      {}", indent(key))).unwrap_or_default();
        format!("\n    cert: |\n      {}{key}", indent(cert))
    };
    format!(
        "apiVersion: strake.dev/v1alpha1\nkind: MachineConfig\nrole: {role}\ninstall: {install}\n---\n\
         apiVersion: strake.dev/v1alpha1\nkind: ClusterConfig\nname: test\ncontrolPlane: {{endpoint: \"https://10.5.0.11:6443\"}}\n---\n\
         apiVersion: strake.dev/v1alpha1\nkind: MachineSecrets\nclusterID: test-cluster-id\njoinToken: abcdef.0123456789abcdef\n\
         certificateAuthorities:\n  cluster:{}\n  machine:{}\n",
        ca(cluster_ca, cluster_key),
        ca(machine_ca, machine_key),
    )
}
