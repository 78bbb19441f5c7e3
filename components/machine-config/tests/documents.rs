//! Whole texts: what is accepted, what is refused and with which words.

use machine_config::diff::{Effect, diff, requires_reboot};
use machine_config::{Config, Documents, KeyKind, VolumeName, json_schema};
use proptest::prelude::*;

const CERT: &str = "|\n      -----BEGIN CERTIFICATE-----\n      AAAA\n      -----END CERTIFICATE-----\n";
const KEY: &str = "|\n      -----BEGIN PRIVATE KEY-----\n      AAAA\n      -----END PRIVATE KEY-----\n";

fn control_plane() -> String {
    format!(
        "\
apiVersion: strake.dev/v1alpha1
kind: MachineConfig
role: controlplane
install:
  disk:
    size: '>= 10GB'
---
apiVersion: strake.dev/v1alpha1
kind: ClusterConfig
name: test
controlPlane:
  endpoint: https://10.5.0.11:6443
network:
  podSubnets: [10.244.0.0/16]
  serviceSubnets: [10.96.0.0/16]
---
apiVersion: strake.dev/v1alpha1
kind: MachineSecrets
clusterID: 0123456789abcdef
joinToken: abcdef.0123456789abcdef
certificateAuthorities:
  cluster:
    cert: {CERT}    key: {KEY}
  machine:
    cert: {CERT}    key: {KEY}
  etcd:
    cert: {CERT}    key: {KEY}
  frontProxy:
    cert: {CERT}    key: {KEY}
serviceAccountKey: |
  -----BEGIN PRIVATE KEY-----
  AAAA
  -----END PRIVATE KEY-----
---
apiVersion: strake.dev/v1alpha1
kind: LinkConfig
name: uplink
match:
  mac: 52:54:00:00:00:11
addresses: [10.5.0.11/24]
routes:
- network: 0.0.0.0/0
  gateway: 10.5.0.2
---
apiVersion: strake.dev/v1alpha1
kind: HostnameConfig
hostname: cp-1
"
    )
}

fn refused(text: &str) -> String {
    Config::parse("c.yaml", text).expect_err("must be refused").to_string()
}

#[test]
fn a_complete_config_is_read_with_its_defaults_and_survives_writing() {
    let config = Config::parse("c.yaml", &control_plane()).expect("accepted");
    assert_eq!(config.cluster.etcd.snapshots.keep, 48);
    assert_eq!(config.cluster.etcd.snapshots.interval.to_string(), "30m");
    assert_eq!(config.dns_service_address().map(|a| a.to_string()).as_deref(), Some("10.96.0.10"));
    assert_eq!(config.kubernetes_service_address().map(|a| a.to_string()).as_deref(), Some("10.96.0.1"));
    let again = Config::parse("again.yaml", &config.render()).expect("accepted");
    assert_eq!(config, again);
}

/// Everything wrong in one text is told at once, in the order of the text, each with its place.
#[test]
fn every_problem_is_reported_with_its_place() {
    let text = "\
apiVersion: strake.dev/v1alpha1
kind: MachineConfig
role: controlplain
instal: {}
install:
  disk: {size: 10GB}
---
apiVersion: strake.dev/v1alpha1
kind: ClusterConfig
name: test
name: again
controlPlane:
  endpoint: 10.5.0.11
network:
  podSubnets:
  - 10.244.0.0/33
  dnsDomain: 7
kubernetesVersion: 1.36
apiServer:
  extraArgs: {--v: '4'}
---
apiVersion: strake.dev/v1alpha1
kind: LinkConfg
";
    let expected = "\
c.yaml:3:7: MachineConfig: role: \"controlplain\" is not one of controlplane, worker
c.yaml:4:1: MachineConfig: instal: unknown field (did you mean \"install\"?)
c.yaml:6:16: MachineConfig: install.disk.size: \"10GB\" is not a condition on a size such as \">= 10GB\" or \"> 100GiB && < 2TB\"
c.yaml:11:1: ClusterConfig: name: the key appears twice in the same mapping
c.yaml:13:13: ClusterConfig: controlPlane.endpoint: \"10.5.0.11\" is not an endpoint such as https://10.5.0.11:6443
c.yaml:16:5: ClusterConfig: network.podSubnets[0]: \"10.244.0.0/33\" is not a CIDR such as 10.244.0.0/16
c.yaml:17:14: ClusterConfig: network.dnsDomain: must be a string, not a whole number (quote it)
c.yaml:18:20: ClusterConfig: kubernetesVersion: must be a string, not a number (quote it)
c.yaml:20:20: ClusterConfig: apiServer.extraArgs.--v: is not a flag's name: write it without dashes in front, such as v or audit-log-path
c.yaml:23:7: LinkConfg: kind: \"LinkConfg\" is not one of MachineConfig, ClusterConfig, MachineSecrets, LinkConfig, HostnameConfig, ResolverConfig, TimeConfig, VolumeConfig, UserVolumeConfig";
    assert_eq!(refused(text), expected);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let base = control_plane();
    let cases = [
        (
            "serviceSubnets: [10.96.0.0/16]",
            "serviceSubnets: [10.244.128.0/20]",
            "c.yaml:15:20: ClusterConfig: network.serviceSubnets[0]: 10.244.128.0/20 overlaps the pod range 10.244.0.0/16",
        ),
        (
            "podSubnets: [10.244.0.0/16]",
            "podSubnets: [10.244.0.0/25]",
            "c.yaml:14:16: ClusterConfig: network.podSubnets[0]: 10.244.0.0/25 cannot be divided into node shares of /24: nodeMask must be between 25 and 30",
        ),
        ("addresses: [10.5.0.11/24]", "addresses: [10.5.0.11/24, 10.244.1.1/24]", "overlaps the cluster's pod range 10.244.0.0/16"),
        ("gateway: 10.5.0.2", "gateway: 10.6.0.2", "LinkConfig: routes[0].gateway: 10.6.0.2 is in none of this link's networks"),
        ("gateway: 10.5.0.2", "gateway: 10.5.0.11", "is this link's own address"),
        ("name: test\n", "name: test\nkubernetesVersion: v1.35.0\n", "v1.35.0 is older than the built-in components (v1.36)"),
        ("role: controlplane", "role: worker", "MachineSecrets: certificateAuthorities.cluster.key: a worker must not hold this key"),
        ("hostname: cp-1", "hostname: CP_1", "HostnameConfig: hostname: \"CP_1\" is not a DNS name"),
        ("kind: HostnameConfig\nhostname: cp-1", "kind: LinkConfig\nname: uplink", "there is already a document LinkConfig uplink"),
        ("kind: HostnameConfig\nhostname: cp-1", "kind: HostnameConfig", "HostnameConfig: hostname is required"),
        ("size: '>= 10GB'", "serial: null", "install.disk.serial: must be a string, not nothing"),
        ("joinToken: abcdef.0123456789abcdef", "joinToken: abcdef.0123456789abcde", "joinToken: is not a token"),
        (
            "apiVersion: strake.dev/v1alpha1\nkind: HostnameConfig",
            "apiVersion: strake.dev/v2\nkind: HostnameConfig",
            "\"strake.dev/v2\" is not known; use strake.dev/v1alpha1",
        ),
    ];
    for (from, to, expected) in cases {
        let text = base.replace(from, to);
        assert_ne!(text, base, "{from}");
        let message = refused(&text);
        assert!(message.contains(expected), "{to}\n{message}");
    }
    assert!(
        refused("apiVersion: strake.dev/v1alpha1\nkind: HostnameConfig\nhostname: a\n")
            .contains("a machine needs a ClusterConfig document")
    );
    assert!(refused("").contains("a machine needs a MachineConfig document"));
}

#[test]
fn encrypted_volumes_say_what_opens_them() {
    let volume = |encryption: &str| {
        format!("{}---\napiVersion: strake.dev/v1alpha1\nkind: VolumeConfig\nname: STATE\nencryption: {encryption}\n", control_plane())
    };
    let text =
        volume("{keys: [{slot: 0, tpm2: {}}, {slot: 3, keyFile: {volume: KEYS, path: a/b.key}}, {slot: 6, passphrase: {memoryMiB: 32}}]}");
    let config = Config::parse("c.yaml", &text).expect("accepted");
    let state = config.encryption(VolumeName::State).expect("encrypted");
    assert!(state.recovery_key && config.encryption(VolumeName::Data).is_none());
    assert!(matches!(state.keys[0].kind(), Some(KeyKind::Tpm2(tpm)) if tpm.pcrs == [7]));
    assert_eq!(Config::parse("again", &config.render()).expect("round trip"), config);
    let changes = diff(&Config::parse("c.yaml", &control_plane()).expect("accepted"), &config);
    assert_eq!(machine_config::diff::strongest(&changes), Effect::Reinstall);

    for (encryption, expected) in [
        ("{keys: []}", "encryption.keys: names nothing that opens the volume"),
        ("{keys: [{slot: 7, tpm2: {}}]}", "encryption.keys[0].slot: must be between 0 and 6"),
        ("{keys: [{slot: 0}]}", "must have exactly one of tpm2, keyFile and passphrase"),
        ("{keys: [{slot: 0, tpm2: {}, passphrase: {}}]}", "must have exactly one of tpm2, keyFile and passphrase"),
        ("{keys: [{slot: 0, tpm2: {}}, {slot: 0, passphrase: {}}]}", "slot 0 is given twice"),
        ("{keys: [{slot: 0, tpm2: {}}, {slot: 1, tpm2: {}}]}", "there is already a key of kind tpm2"),
        ("{keys: [{slot: 0, tpm2: {pcrs: [7, 11]}}]}", "PCR 11 is always looked at"),
        ("{keys: [{slot: 0, tpm2: {pcrs: [24]}}]}", "must be between 0 and 23"),
        ("{keys: [{slot: 0, keyFile: {volume: KEYS, path: ../a}}]}", "must be a path from the top of the volume"),
        ("{keys: [{slot: 0, passphrase: {memoryMiB: 4096}}]}", "must be between 16 and 1024"),
        ("{provider: luks1, keys: [{slot: 0, tpm2: {}}]}", "\"luks1\" is not one of luks2"),
    ] {
        let message = refused(&volume(encryption));
        assert!(message.contains(expected), "{encryption}\n{message}");
    }
}

#[test]
fn a_volume_on_another_disk_is_encrypted_as_the_systems_are() {
    let volume = |encryption: &str| {
        let head = "apiVersion: strake.dev/v1alpha1\nkind: UserVolumeConfig\nname: data\ndisk: {serial: a}\n";
        format!("{}---\n{head}encryption: {encryption}\n", control_plane())
    };
    let config = Config::parse("c.yaml", &volume("{recoveryKey: false, keys: [{slot: 2, tpm2: {}}]}")).expect("accepted");
    let encryption = config.user_volumes[0].encryption.as_ref().expect("encrypted");
    assert!(!encryption.recovery_key && matches!(encryption.keys[0].kind(), Some(KeyKind::Tpm2(_))));
    assert_eq!(Config::parse("again", &config.render()).expect("round trip"), config);
    for (encryption, expected) in [
        ("{keys: []}", "encryption.keys: names nothing that opens the volume"),
        ("{keys: [{slot: 0, passphrase: {}}, {slot: 0, tpm2: {}}]}", "slot 0 is given twice"),
    ] {
        let message = refused(&volume(encryption));
        assert!(message.contains("UserVolumeConfig") && message.contains(expected), "{encryption}\n{message}");
    }
}

#[test]
fn a_refused_token_is_not_repeated_and_shown_configs_hold_no_secret() {
    let text = control_plane().replace("abcdef.0123456789abcdef", "abcdef.SECRET6789abcdef");
    assert!(!refused(&text).contains("SECRET"));
    let config = Config::parse("c.yaml", &control_plane()).expect("accepted");
    let shown = config.render_redacted();
    assert!(!shown.contains("abcdef.0123456789abcdef"));
    assert!(!shown.contains("PRIVATE KEY"));
    assert!(shown.contains("BEGIN CERTIFICATE"));
}

#[test]
fn a_diff_names_fields_and_what_they_ask_for() {
    let old = Config::parse("c.yaml", &control_plane()).expect("accepted");
    let changed = control_plane()
        .replace("gateway: 10.5.0.2", "gateway: 10.5.0.3")
        .replace("hostname: cp-1", "hostname: cp-2")
        .replace("joinToken: abcdef.0123456789abcdef", "joinToken: abcdef.0123456789abcdee")
        .replace("size: '>= 10GB'", "size: '>= 20GB'");
    let new = Config::parse("c.yaml", &changed).expect("accepted");
    let changes = diff(&old, &new);
    let shown: Vec<String> = changes.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "MachineConfig: install.disk.size: \">= 10GB\" -> \">= 20GB\"  [needs a reinstallation]",
            "MachineSecrets: joinToken: \"<redacted>\" -> \"<redacted>\"",
            "HostnameConfig: hostname: \"cp-1\" -> \"cp-2\"  [needs a reboot]",
            "LinkConfig uplink: routes: [{\"network\":\"0.0.0.0/0\",\"gateway\":\"10.5.0.2\"}] -> [{\"network\":\"0.0.0.0/0\",\"gateway\":\"10.5.0.3\"}]",
        ]
    );
    assert!(requires_reboot(&changes));
    assert_eq!(machine_config::diff::strongest(&changes), Effect::Reinstall);
    assert!(diff(&old, &old).is_empty());
}

#[test]
fn the_schema_knows_every_kind_and_refuses_unknown_fields() {
    let schema = json_schema();
    let kinds = schema["oneOf"].as_array().expect("kinds");
    assert_eq!(kinds.len(), machine_config::DocumentKind::KINDS.len());
    assert!(kinds.iter().all(|k| k["additionalProperties"] == false));
    assert_eq!(kinds[1]["properties"]["network"]["properties"]["podSubnets"]["default"][0], "10.244.0.0/16");
    assert_eq!(kinds[0]["required"], serde_json::json!(["apiVersion", "kind", "role", "install"]));
}

fn words() -> impl Strategy<Value = String> {
    "[ -~]{0,12}"
}

proptest! {
    #[test]
    fn no_text_panics(text in "[ -~\\n\\t\u{e9}\u{2028}&*!|>%@`-]{0,200}") {
        let _ = Documents::parse("f", &text);
    }

    #[test]
    fn no_damage_to_a_config_panics(at in 0usize..2000, len in 0usize..40, with in words()) {
        let mut text = control_plane();
        let at = at.min(text.len());
        let end = (at + len).min(text.len());
        text.replace_range(at..end, &with);
        if let Err(errors) = Config::parse("f", &text) {
            prop_assert!(!errors.problems.is_empty());
        }
    }

    #[test]
    fn what_is_written_is_read_back_the_same(
        args in proptest::collection::btree_map("[a-z][a-z0-9-]{0,8}", words(), 0..4),
        labels in proptest::collection::btree_map("[a-z]{1,8}", "[a-z0-9]{0,8}", 0..3),
        mtu in proptest::option::of(576u32..9000),
        sans in proptest::collection::vec("[a-z]{1,8}\\.[a-z]{1,3}", 0..3),
        seconds in 60u64..100_000,
        replicas in 1u8..5,
    ) {
        let mut config = Config::parse("c.yaml", &control_plane()).expect("accepted");
        config.cluster.api_server.extra_args = args;
        config.machine.kubelet.node_labels = labels;
        config.links[0].mtu = mtu;
        config.machine.cert_sans = sans.iter().filter_map(|s| s.parse().ok()).collect();
        config.cluster.etcd.snapshots.interval = machine_config::values::Span(std::time::Duration::from_secs(seconds));
        config.cluster.dns.replicas = replicas;
        let again = Config::parse("again.yaml", &config.render()).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(config, again);
    }
}

#[test]
fn the_example_patches_are_valid_documents() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/examples");
    for name in ["cp-1.yaml", "worker-1.yaml"] {
        let text = std::fs::read_to_string(dir.join(name)).expect(name);
        Documents::parse(name, &text).expect("valid");
    }
}

/// The schema that editors use is published beside the examples; `UPDATE_GOLDENS=1` writes it anew.
#[test]
fn the_published_schema_is_the_types() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/machine-config.schema.json");
    let actual = serde_json::to_string_pretty(&json_schema()).expect("JSON") + "\n";
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        std::fs::write(&path, &actual).expect("write the schema");
    }
    assert_eq!(std::fs::read_to_string(&path).expect("read the schema"), actual, "UPDATE_GOLDENS=1 writes it anew");
}
