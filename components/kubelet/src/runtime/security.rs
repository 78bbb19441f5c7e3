//! Security settings of sandboxes and containers.

use crate::cri::v1;
use crate::model::pod::{Container, Pod, PodSecurityContext, SecurityContext, SecurityProfile};

const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Sysctls every pod may set: they are namespaced and cannot hurt others.
const SAFE_SYSCTLS: [&str; 13] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "net.ipv4.tcp_notsent_lowat",
];

/// The sysctl of a pod that is neither safe nor allowed on this node, if there is one.
pub fn forbidden_sysctl<'a>(pod: &'a Pod, allowed: &[String]) -> Option<&'a str> {
    let context = pod.spec.security_context.as_ref()?;
    context.sysctls.iter().map(|s| s.name.as_str()).find(|name| {
        let name = name.replace('/', ".");
        !SAFE_SYSCTLS.contains(&name.as_str())
            && !allowed.iter().any(|a| match a.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => *a == name,
            })
    })
}

fn profile(profile: &SecurityProfile, seccomp_root: &std::path::Path) -> v1::SecurityProfile {
    use v1::security_profile::ProfileType;
    let (kind, localhost_ref) = match profile.r#type.as_str() {
        "RuntimeDefault" => (ProfileType::RuntimeDefault, String::new()),
        "Localhost" => (ProfileType::Localhost, seccomp_root.join(&profile.localhost_profile).to_string_lossy().into_owned()),
        _ => (ProfileType::Unconfined, String::new()),
    };
    v1::SecurityProfile { profile_type: kind.into(), localhost_ref }
}

fn selinux(options: &crate::model::pod::SeLinuxOptions) -> v1::SeLinuxOption {
    v1::SeLinuxOption {
        user: options.user.clone(),
        role: options.role.clone(),
        r#type: options.r#type.clone(),
        level: options.level.clone(),
    }
}

/// Which namespaces of the host or the pod a container shares.
pub fn namespaces(pod: &Pod) -> v1::NamespaceOption {
    use v1::NamespaceMode::{Container, Node, Pod as PodMode};
    let pid = if pod.spec.host_pid {
        Node
    } else if pod.spec.share_process_namespace == Some(true) {
        PodMode
    } else {
        Container
    };
    v1::NamespaceOption {
        network: if pod.spec.host_network { Node } else { PodMode }.into(),
        pid: pid.into(),
        ipc: if pod.spec.host_ipc { Node } else { PodMode }.into(),
        ..Default::default()
    }
}

/// Groups every container of the pod belongs to.
fn supplemental_groups(context: &PodSecurityContext) -> Vec<i64> {
    context.supplemental_groups.iter().copied().chain(context.fs_group).collect()
}

fn groups_policy(context: &PodSecurityContext) -> i32 {
    let strict = context.supplemental_groups_policy == "Strict";
    if strict { v1::SupplementalGroupsPolicy::Strict } else { v1::SupplementalGroupsPolicy::Merge }.into()
}

/// The sandbox's settings. Its process only waits, so it always gets the runtime's seccomp profile.
pub fn sandbox_context(pod: &Pod) -> v1::LinuxSandboxSecurityContext {
    let mut result = v1::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod)),
        privileged: pod.all_containers().any(|c| c.security_context.as_ref().is_some_and(|s| s.privileged == Some(true))),
        seccomp: Some(v1::SecurityProfile { profile_type: v1::security_profile::ProfileType::RuntimeDefault.into(), ..Default::default() }),
        ..Default::default()
    };
    if let Some(context) = &pod.spec.security_context {
        result.run_as_user = context.run_as_user.map(|value| v1::Int64Value { value });
        // A group alone is refused by runtimes.
        result.run_as_group = context.run_as_user.and(context.run_as_group).map(|value| v1::Int64Value { value });
        result.supplemental_groups = supplemental_groups(context);
        result.supplemental_groups_policy = groups_policy(context);
        result.selinux_options = context.se_linux_options.as_ref().map(selinux);
    }
    result
}

/// The user of an image as the runtime reports it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ImageUser {
    pub uid: Option<i64>,
    pub name: String,
}

/// The container's settings, its own before the pod's. The error explains why it may not run.
pub fn container_context(
    pod: &Pod,
    container: &Container,
    image_user: &ImageUser,
    seccomp_root: &std::path::Path,
    seccomp_default: bool,
) -> Result<v1::LinuxContainerSecurityContext, String> {
    let none_pod = PodSecurityContext::default();
    let none = SecurityContext::default();
    let pod_context = pod.spec.security_context.as_ref().unwrap_or(&none_pod);
    let own = container.security_context.as_ref().unwrap_or(&none);
    let user = own.run_as_user.or(pod_context.run_as_user);
    let group = own.run_as_group.or(pod_context.run_as_group);
    let privileged = own.privileged == Some(true);
    verify_non_root(own.run_as_non_root.or(pod_context.run_as_non_root) == Some(true), user, image_user, &container.name)?;

    let seccomp = match own.seccomp_profile.as_ref().or(pod_context.seccomp_profile.as_ref()) {
        _ if privileged => SecurityProfile { r#type: "Unconfined".into(), ..Default::default() },
        Some(set) => set.clone(),
        None => SecurityProfile { r#type: if seccomp_default { "RuntimeDefault" } else { "Unconfined" }.into(), ..Default::default() },
    };
    let mut result = v1::LinuxContainerSecurityContext {
        privileged,
        namespace_options: Some(namespaces(pod)),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        seccomp: Some(profile(&seccomp, seccomp_root)),
        apparmor: own.app_armor_profile.as_ref().or(pod_context.app_armor_profile.as_ref()).map(|p| {
            let mut converted = profile(p, seccomp_root);
            converted.localhost_ref.clone_from(&p.localhost_profile);
            converted
        }),
        selinux_options: own.se_linux_options.as_ref().or(pod_context.se_linux_options.as_ref()).map(selinux),
        supplemental_groups: supplemental_groups(pod_context),
        supplemental_groups_policy: groups_policy(pod_context),
        ..Default::default()
    };
    if let Some(capabilities) = &own.capabilities {
        result.capabilities = Some(v1::Capability {
            add_capabilities: capabilities.add.clone(),
            drop_capabilities: capabilities.drop.clone(),
            ..Default::default()
        });
    }
    match user {
        Some(value) => result.run_as_user = Some(v1::Int64Value { value }),
        None => match image_user.uid {
            Some(value) => result.run_as_user = Some(v1::Int64Value { value }),
            None => result.run_as_username.clone_from(&image_user.name),
        },
    }
    result.run_as_group = group.map(|value| v1::Int64Value { value });
    if !privileged && own.proc_mount != "Unmasked" {
        result.masked_paths = MASKED.iter().map(|s| (*s).to_owned()).collect();
        result.readonly_paths = READ_ONLY.iter().map(|s| (*s).to_owned()).collect();
    }
    Ok(result)
}

fn verify_non_root(required: bool, user: Option<i64>, image: &ImageUser, name: &str) -> Result<(), String> {
    if !required {
        return Ok(());
    }
    match (user, image.uid, image.name.as_str()) {
        (Some(0), ..) => Err(format!("container's runAsUser breaks non-root policy (container: {name})")),
        (Some(_), ..) => Ok(()),
        (None, Some(0), _) => Err(format!("container has runAsNonRoot and image will run as root (container: {name})")),
        (None, Some(_), _) => Ok(()),
        (None, None, "") => Err(format!("container has runAsNonRoot and image will run as root (container: {name})")),
        (None, None, user) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (container: {name})"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn context(p: &Pod, image: &ImageUser) -> Result<v1::LinuxContainerSecurityContext, String> {
        container_context(p, &p.spec.containers[0], image, std::path::Path::new("/seccomp"), false)
    }

    #[test]
    fn the_container_wins_over_the_pod() {
        let p = pod(
            json!({"securityContext": {"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4], "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "securityContext": {"runAsUser": 9, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}}}]}),
        );
        let c = context(&p, &ImageUser::default()).unwrap();
        assert_eq!((c.run_as_user.unwrap().value, c.run_as_group.unwrap().value), (9, 2));
        assert_eq!(c.supplemental_groups, [4, 3]);
        assert!(c.no_new_privs && c.readonly_rootfs && !c.masked_paths.is_empty());
        assert_eq!(c.capabilities.unwrap().drop_capabilities, ["ALL"]);
        assert_eq!(c.seccomp.unwrap().profile_type, v1::security_profile::ProfileType::RuntimeDefault as i32);
    }

    #[test]
    fn privileged_containers_see_everything() {
        let p = pod(
            json!({"containers": [{"name": "c", "securityContext": {"privileged": true, "seccompProfile": {"type": "RuntimeDefault"}}}]}),
        );
        let c = context(&p, &ImageUser::default()).unwrap();
        assert!(c.privileged && c.masked_paths.is_empty());
        assert_eq!(c.seccomp.unwrap().profile_type, v1::security_profile::ProfileType::Unconfined as i32);
        assert!(sandbox_context(&p).privileged);
    }

    #[test]
    fn non_root_is_verified() {
        let image = |uid, name: &str| ImageUser { uid, name: name.into() };
        for (user, image, ok) in [
            (json!(0), image(None, ""), false),
            (json!(5), image(Some(0), ""), true),
            (json!(null), image(Some(0), ""), false),
            (json!(null), image(Some(7), ""), true),
            (json!(null), image(None, "app"), false),
            (json!(null), image(None, ""), false),
        ] {
            let p = pod(
                json!({"securityContext": {"runAsNonRoot": true}, "containers": [{"name": "c", "securityContext": {"runAsUser": user}}]}),
            );
            assert_eq!(context(&p, &image).is_ok(), ok, "{user} {image:?}");
        }
    }

    #[test]
    fn unsafe_sysctls_need_the_nodes_consent() {
        let p = pod(
            json!({"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_syncookies", "value": "1"}, {"name": "kernel.msgmax", "value": "1"}]}}),
        );
        assert_eq!(forbidden_sysctl(&p, &[]), Some("kernel.msgmax"));
        assert_eq!(forbidden_sysctl(&p, &["kernel.msg*".into()]), None);
    }
}
