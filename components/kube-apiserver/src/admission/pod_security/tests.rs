//! Every check, failing and passing, in the words that clients read; and how checks are put together.

use k8s_schema::{Doc, Schema};
use serde_json::{Value, json};

use super::{
    checks::{CHECKS, Pod, judge},
    policy::{Level, Standard, Version},
    significant, summary,
};

fn pod(v: &Value) -> Doc {
    let schema = Schema::builtin();
    let ty = schema.kind("", "v1", "Pod").unwrap();
    Doc::from_value(&schema, ty, v).unwrap().doc
}

fn found(id: &str, minor: u64, v: &Value) -> Option<String> {
    let d = pod(v);
    let c = CHECKS.iter().find(|c| c.id == id).unwrap_or_else(|| panic!("no check {id}"));
    (c.run)(Pod { meta: d.at("metadata"), spec: d.at("spec") }, minor).map(|v| format!("{}: {}", v.reason, v.detail))
}

fn one(security: Value) -> Value {
    json!({"spec": {"containers": [{"name": "a", "securityContext": security}]}})
}

fn whole(security: Value) -> Value {
    json!({"spec": {"securityContext": security, "containers": [{"name": "a"}]}})
}

#[test]
fn every_check_fails_and_passes_where_it_should() {
    let plain = json!({"spec": {"containers": [{"name": "a"}]}});
    let user_namespace = |mut v: Value| {
        v["spec"]["hostUsers"] = json!(false);
        v
    };
    let windows = json!({"spec": {"os": {"name": "windows"}, "containers": [{"name": "a"}]}});
    // check, minor version, pod, what is found
    let cases: Vec<(&str, u64, Value, Option<&str>)> = vec![
        ("appArmorProfile", 35, plain.clone(), None),
        ("appArmorProfile", 35, one(json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": "p"}})), None),
        (
            "appArmorProfile",
            35,
            whole(json!({"appArmorProfile": {"type": "Unconfined"}})),
            Some("forbidden AppArmor profile: pod must not set AppArmor profile type to \"Unconfined\""),
        ),
        (
            "appArmorProfile",
            0,
            json!({"metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/a": "unconfined"}}, "spec": {"containers": [{"name": "a", "securityContext": {"appArmorProfile": {"type": "Unconfined"}}}]}}),
            Some(
                "forbidden AppArmor profiles: container \"a\" and annotation must not set AppArmor profile type to \"Unconfined\", \"container.apparmor.security.beta.kubernetes.io/a=\"unconfined\"\"",
            ),
        ),
        (
            "appArmorProfile",
            0,
            json!({"metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/a": "localhost/x"}}, "spec": {}}),
            None,
        ),
        ("capabilities_baseline", 35, one(json!({"capabilities": {"add": ["CHOWN", "KILL"]}})), None),
        (
            "capabilities_baseline",
            35,
            one(json!({"capabilities": {"add": ["SYS_ADMIN", "CHOWN", "NET_RAW"]}})),
            Some(
                "non-default capabilities: container \"a\" must not include \"NET_RAW\", \"SYS_ADMIN\" in securityContext.capabilities.add",
            ),
        ),
        ("hostNamespaces", 35, plain.clone(), None),
        (
            "hostNamespaces",
            35,
            json!({"spec": {"hostNetwork": true, "hostPID": true, "hostIPC": true}}),
            Some("host namespaces: hostNetwork=true, hostPID=true, hostIPC=true"),
        ),
        ("hostPathVolumes", 35, json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}), None),
        (
            "hostPathVolumes",
            35,
            json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/"}}, {"name": "w", "hostPath": {"path": "/"}}]}}),
            Some("hostPath volumes: volumes \"v\", \"w\""),
        ),
        ("hostPorts", 35, json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 1}]}]}}), None),
        (
            "hostPorts",
            35,
            json!({"spec": {"initContainers": [{"name": "i", "ports": [{"containerPort": 1, "hostPort": 9}]}], "containers": [{"name": "a", "ports": [{"containerPort": 1, "hostPort": 80}]}]}}),
            Some("hostPort: containers \"i\", \"a\" use hostPorts 80, 9"),
        ),
        (
            "hostPorts",
            35,
            json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 1, "hostPort": 80}]}]}}),
            Some("hostPort: container \"a\" uses hostPort 80"),
        ),
        (
            "hostProbesAndHostLifecycle",
            35,
            json!({"spec": {"containers": [{"name": "a", "livenessProbe": {"httpGet": {"port": 1}}}]}}),
            None,
        ),
        (
            "hostProbesAndHostLifecycle",
            35,
            json!({"spec": {"containers": [{"name": "a", "livenessProbe": {"httpGet": {"port": 1, "host": "h"}}, "lifecycle": {"preStop": {"tcpSocket": {"port": 1, "host": "k"}}}}]}}),
            Some("probe or lifecycle host: container \"a\" uses probe or lifecycle hosts \"h\", \"k\""),
        ),
        ("privileged", 35, one(json!({"privileged": false})), None),
        (
            "privileged",
            35,
            one(json!({"privileged": true})),
            Some("privileged: container \"a\" must not set securityContext.privileged=true"),
        ),
        (
            "privileged",
            35,
            json!({"spec": {"containers": [{"name": "a"}], "ephemeralContainers": [{"name": "e", "securityContext": {"privileged": true}}]}}),
            Some("privileged: container \"e\" must not set securityContext.privileged=true"),
        ),
        ("procMount", 35, one(json!({"procMount": "Default"})), None),
        (
            "procMount",
            35,
            one(json!({"procMount": "Unmasked"})),
            Some("procMount: container \"a\" must not set securityContext.procMount to \"Unmasked\""),
        ),
        ("procMount", 35, user_namespace(one(json!({"procMount": "Unmasked"}))), None),
        (
            "procMount",
            34,
            user_namespace(one(json!({"procMount": "Unmasked"}))),
            Some("procMount: container \"a\" must not set securityContext.procMount to \"Unmasked\""),
        ),
        ("seLinuxOptions", 35, one(json!({"seLinuxOptions": {"type": "container_engine_t", "level": "x"}})), None),
        (
            "seLinuxOptions",
            30,
            one(json!({"seLinuxOptions": {"type": "container_engine_t"}})),
            Some("seLinuxOptions: container \"a\" set forbidden securityContext.seLinuxOptions: type \"container_engine_t\""),
        ),
        (
            "seLinuxOptions",
            35,
            json!({"spec": {"securityContext": {"seLinuxOptions": {"user": "u", "role": "r"}}, "containers": [{"name": "a", "securityContext": {"seLinuxOptions": {"type": "foo"}}}]}}),
            Some(
                "seLinuxOptions: pod and container \"a\" set forbidden securityContext.seLinuxOptions: type \"foo\"; user may not be set; role may not be set",
            ),
        ),
        ("seccompProfile_baseline", 35, plain.clone(), None),
        (
            "seccompProfile_baseline",
            19,
            one(json!({"seccompProfile": {"type": "Unconfined"}})),
            Some("seccompProfile: container \"a\" must not set securityContext.seccompProfile.type to \"Unconfined\""),
        ),
        (
            "seccompProfile_baseline",
            18,
            json!({"metadata": {"annotations": {"seccomp.security.alpha.kubernetes.io/pod": "unconfined"}}, "spec": {}}),
            Some("seccompProfile: forbidden annotation seccomp.security.alpha.kubernetes.io/pod=\"unconfined\""),
        ),
        (
            "seccompProfile_baseline",
            18,
            json!({"metadata": {"annotations": {"container.seccomp.security.alpha.kubernetes.io/a": "docker/default"}}, "spec": {"containers": [{"name": "a"}]}}),
            None,
        ),
        ("sysctls", 35, whole(json!({"sysctls": [{"name": "net.ipv4.tcp_rmem", "value": "1"}]})), None),
        (
            "sysctls",
            31,
            whole(json!({"sysctls": [{"name": "net.ipv4.tcp_rmem", "value": "1"}, {"name": "kernel.msgmax", "value": "1"}]})),
            Some("forbidden sysctls: net.ipv4.tcp_rmem, kernel.msgmax"),
        ),
        ("windowsHostProcess", 35, whole(json!({"windowsOptions": {"hostProcess": false}})), None),
        (
            "windowsHostProcess",
            35,
            json!({"spec": {"securityContext": {"windowsOptions": {"hostProcess": true}}, "containers": [{"name": "a", "securityContext": {"windowsOptions": {"hostProcess": true}}}]}}),
            Some("hostProcess: pod and container \"a\" must not set securityContext.windowsOptions.hostProcess=true"),
        ),
        ("allowPrivilegeEscalation", 35, one(json!({"allowPrivilegeEscalation": false})), None),
        (
            "allowPrivilegeEscalation",
            35,
            plain.clone(),
            Some("allowPrivilegeEscalation != false: container \"a\" must set securityContext.allowPrivilegeEscalation=false"),
        ),
        ("allowPrivilegeEscalation", 35, windows.clone(), None),
        (
            "allowPrivilegeEscalation",
            24,
            windows.clone(),
            Some("allowPrivilegeEscalation != false: container \"a\" must set securityContext.allowPrivilegeEscalation=false"),
        ),
        ("capabilities_restricted", 35, one(json!({"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}})), None),
        (
            "capabilities_restricted",
            35,
            one(json!({"capabilities": {"drop": ["KILL"], "add": ["CHOWN"]}})),
            Some(
                "unrestricted capabilities: container \"a\" must set securityContext.capabilities.drop=[\"ALL\"]; container \"a\" must not include \"CHOWN\" in securityContext.capabilities.add",
            ),
        ),
        ("capabilities_restricted", 35, windows.clone(), None),
        ("procMount_restricted", 35, one(json!({"procMount": "Default"})), None),
        (
            "procMount_restricted",
            35,
            user_namespace(one(json!({"procMount": "Unmasked"}))),
            Some("procMount: container \"a\" must not set securityContext.procMount to \"Unmasked\""),
        ),
        (
            "restrictedVolumes",
            35,
            json!({"spec": {"volumes": [{"name": "a", "image": {"reference": "x"}}, {"name": "b", "csi": {"driver": "d"}}, {"name": "c", "ephemeral": {}}]}}),
            None,
        ),
        (
            "restrictedVolumes",
            35,
            json!({"spec": {"volumes": [{"name": "a", "nfs": {"server": "s", "path": "/"}}, {"name": "b", "hostPath": {"path": "/"}}]}}),
            Some("restricted volume types: volumes \"a\", \"b\" use restricted volume types \"hostPath\", \"nfs\""),
        ),
        ("runAsNonRoot", 35, whole(json!({"runAsNonRoot": true})), None),
        ("runAsNonRoot", 35, one(json!({"runAsNonRoot": true})), None),
        (
            "runAsNonRoot",
            35,
            plain.clone(),
            Some("runAsNonRoot != true: pod or container \"a\" must set securityContext.runAsNonRoot=true"),
        ),
        (
            "runAsNonRoot",
            35,
            json!({"spec": {"securityContext": {"runAsNonRoot": false}, "containers": [{"name": "a", "securityContext": {"runAsNonRoot": false}}]}}),
            Some("runAsNonRoot != true: pod and container \"a\" must not set securityContext.runAsNonRoot=false"),
        ),
        ("runAsNonRoot", 35, user_namespace(plain.clone()), None),
        (
            "runAsNonRoot",
            34,
            user_namespace(plain.clone()),
            Some("runAsNonRoot != true: pod or container \"a\" must set securityContext.runAsNonRoot=true"),
        ),
        ("runAsUser", 35, one(json!({"runAsUser": 1})), None),
        ("runAsUser", 35, whole(json!({"runAsUser": 0})), Some("runAsUser=0: pod must not set runAsUser=0")),
        ("runAsUser", 35, user_namespace(whole(json!({"runAsUser": 0}))), None),
        ("seccompProfile_restricted", 35, whole(json!({"seccompProfile": {"type": "RuntimeDefault"}})), None),
        (
            "seccompProfile_restricted",
            35,
            plain.clone(),
            Some(
                "seccompProfile: pod or container \"a\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
            ),
        ),
        (
            "seccompProfile_restricted",
            35,
            whole(json!({"seccompProfile": {"type": "Unconfined"}})),
            Some("seccompProfile: pod must not set securityContext.seccompProfile.type to \"Unconfined\""),
        ),
        ("seccompProfile_restricted", 35, windows, None),
    ];
    for (id, minor, v, want) in &cases {
        assert_eq!(found(id, *minor, v).as_deref(), *want, "{id} at 1.{minor}: {v}");
    }
    for c in CHECKS {
        let of = |wrong: bool| cases.iter().any(|(id, _, _, want)| *id == c.id && want.is_some() == wrong);
        assert!(of(true) && of(false), "{} is not tried both ways", c.id);
    }
}

#[test]
fn checks_stand_in_the_order_in_which_they_are_told() {
    let ids = |level| CHECKS.iter().filter(|c| c.level == level).map(|c| c.id).collect::<Vec<_>>();
    for level in [Level::Baseline, Level::Restricted] {
        assert!(ids(level).is_sorted(), "{level:?}");
    }
    for c in CHECKS.iter().filter(|c| !c.replaces.is_empty()) {
        assert!(c.level == Level::Restricted && CHECKS.iter().any(|b| b.id == c.replaces && b.level == Level::Baseline), "{}", c.id);
    }
}

#[test]
fn a_standard_is_all_its_checks_of_its_version() {
    let bad = pod(&json!({"spec": {"hostNetwork": true, "containers": [{"name": "c", "securityContext": {"privileged": true}}],
        "volumes": [{"name": "h", "hostPath": {"path": "/"}}]}}));
    let of = |level, version| judge(Standard { level, version }, Pod { meta: bad.at("metadata"), spec: bad.at("spec") });
    assert!(of(Level::Privileged, Version::Latest).allowed());
    assert_eq!(of(Level::Baseline, Version::Latest).reasons(), "host namespaces, hostPath volumes, privileged");
    let latest = "host namespaces (hostNetwork=true), privileged (container \"c\" must not set securityContext.privileged=true), allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), restricted volume types (volume \"h\" uses restricted volume type \"hostPath\"), runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")";
    for version in [Version::Latest, Version::Minor(35), Version::Minor(99)] {
        assert_eq!(of(Level::Restricted, version).details(), latest);
    }
    assert_eq!(
        of(Level::Restricted, Version::Minor(7)).reasons(),
        "host namespaces, privileged, restricted volume types, runAsNonRoot != true"
    );
}

#[test]
fn only_updates_of_what_is_judged_are_judged_again() {
    let old = pod(&json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "a", "image": "x"}]}}));
    for (new, want) in [
        (json!({"metadata": {"labels": {"a": "c"}}, "spec": {"containers": [{"name": "a", "image": "x"}]}}), false),
        (json!({"spec": {"containers": [{"name": "a", "image": "y"}]}}), true),
        (json!({"spec": {"containers": [{"name": "a", "image": "x"}], "ephemeralContainers": [{"name": "e"}]}}), true),
        (
            json!({"metadata": {"annotations": {"seccomp.security.alpha.kubernetes.io/pod": "x"}}, "spec": {"containers": [{"name": "a", "image": "x"}]}}),
            true,
        ),
    ] {
        assert_eq!(significant(&pod(&new), &old), want, "{new}");
    }
}

#[test]
fn pods_that_are_there_already_are_told_in_groups() {
    let standard = Standard { level: Level::Baseline, version: Version::Latest };
    let judged = [("b", "hostPort"), ("z", "privileged"), ("a", "hostPort"), ("c", "hostPort")].map(|(n, r)| (n.to_owned(), r.to_owned()));
    assert_eq!(
        summary("ns", standard, 4000, judged.into_iter()),
        [
            "new PodSecurity enforce level only checked against the first 3000 of 4000 existing pods",
            "existing pods in namespace \"ns\" violate the new PodSecurity enforce level \"baseline:latest\"",
            "a (and 2 other pods): hostPort",
            "z: privileged",
        ]
    );
    assert!(summary("ns", standard, 1, std::iter::empty()).is_empty());
}
