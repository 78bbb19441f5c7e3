//! What upstream fills in when a client says nothing, beyond what the schema table can say. Runs on every decoded object.

use base64::{Engine, engine::general_purpose::STANDARD as B64};
use k8s_schema::{Doc, EditError, Mut, Quantity};
use serde_json::{Value, json};

use crate::registry::Resource;

type Done = Result<(), EditError>;

pub const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

/// Fills in the defaults of `doc`, which is of the kind that `res` serves.
pub fn apply(res: &Resource, doc: &mut Doc) {
    if let Some(custom) = &res.custom {
        custom.default(doc);
        return;
    }
    let result = match (res.group.as_str(), res.kind.as_str()) {
        ("", "Pod") => pod(doc.root_mut()),
        ("", "PodTemplate") => template(doc.root_mut(), "template"),
        ("", "ReplicationController") => replication_controller(doc.root_mut()),
        ("", "Service") => service(doc.root_mut()),
        ("", "Secret") => secret(doc.root_mut()),
        ("", "Endpoints") => doc.for_each("subsets", |mut s| s.for_each("ports", |mut p| set(&mut p, "protocol", "TCP"))),
        ("", "Namespace") => namespace(doc.root_mut()),
        ("", "Node") => node(doc.root_mut()),
        ("", "PersistentVolume") => persistent_volume(doc.root_mut()),
        ("", "PersistentVolumeClaim") => claim(doc.root_mut()),
        ("", "LimitRange") => doc.for_each("spec.limits", limit_range_item),
        ("apps", "Deployment") => deployment(doc.root_mut()),
        ("apps", "ReplicaSet") => both(set(&mut doc.root_mut(), "spec.replicas", 1), || template(doc.root_mut(), "spec.template")),
        ("apps", "DaemonSet") => daemon_set(doc.root_mut()),
        ("apps", "StatefulSet") => stateful_set(doc.root_mut()),
        ("batch", "Job") => job(doc.root_mut()),
        ("batch", "CronJob") => cron_job(doc.root_mut()),
        ("resource.k8s.io", "ResourceClaim") => super::dra::default(doc, "spec.devices.requests"),
        ("resource.k8s.io", "ResourceClaimTemplate") => super::dra::default(doc, "spec.spec.devices.requests"),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => crate::custom::crd::default(doc.root_mut()),
        ("discovery.k8s.io", "EndpointSlice") => doc.for_each("ports", |mut p| {
            set(&mut p, "name", "")?;
            set(&mut p, "protocol", "TCP")
        }),
        ("networking.k8s.io", "NetworkPolicy") => network_policy(doc.root_mut()),
        ("networking.k8s.io", "IngressClass") => {
            if doc.at("spec.parameters").exists() {
                set(&mut doc.root_mut(), "spec.parameters.scope", "Cluster")
            } else {
                Ok(())
            }
        }
        ("autoscaling", "HorizontalPodAutoscaler") => autoscaler(doc.root_mut(), &res.version),
        ("storage.k8s.io", "StorageClass") => {
            both(set(&mut doc.root_mut(), "reclaimPolicy", "Delete"), || set(&mut doc.root_mut(), "volumeBindingMode", "Immediate"))
        }
        ("storage.k8s.io", "CSIDriver") => csi_driver(doc.root_mut()),
        ("scheduling.k8s.io", "PriorityClass") => set(&mut doc.root_mut(), "preemptionPolicy", "PreemptLowerPriority"),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => binding(doc.root_mut()),
        ("admissionregistration.k8s.io", "MutatingWebhookConfiguration") => doc.for_each("webhooks", |mut w| {
            set(&mut w, "reinvocationPolicy", "Never")?;
            webhook(w)
        }),
        ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration") => doc.for_each("webhooks", webhook),
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy") => admission_policy(doc.root_mut()),
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => set(&mut doc.root_mut(), "spec.matchingPrecedence", 1000),
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => priority_level(doc.root_mut()),
        ("apiregistration.k8s.io", "APIService") => {
            if doc.at("spec.service").exists() {
                set(&mut doc.root_mut(), "spec.service.port", 443)
            } else {
                Ok(())
            }
        }
        _ => Ok(()),
    };
    if let Err(e) = result {
        // Constants that don't fit the schema are a mistake in this file.
        tracing::error!(kind = res.kind, error = %e, "a default does not fit");
    }
}

/// Sets what is absent. In Go a field that is no pointer is absent when it is empty.
fn set(m: &mut Mut<'_>, path: &str, value: impl Into<Value>) -> Done {
    let now = m.get(path);
    let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
    let parent = if parent.is_empty() { m.read() } else { m.get(parent) };
    let empty = now.exists() && now.as_str() == Some("") && parent.ty().field(name).is_some_and(|f| !f.is_pointer());
    if empty { m.set(path, value) } else { m.set_default(path, value).map(drop) }
}

/// A quantity that is finer than a thousandth, rounded up to one.
fn whole_milli(text: &str) -> Option<String> {
    // Others need not be read.
    if !text.ends_with(['n', 'u']) && !text.contains('.') {
        return None;
    }
    let q = Quantity::parse(text).ok()?;
    let nano = q.scaled(-9);
    (nano != i64::MAX && nano % 1_000_000 != 0).then(|| Quantity::from_milli(q.milli_value()).to_string())
}

fn both(a: Done, b: impl FnOnce() -> Done) -> Done {
    a.and_then(|()| b())
}

fn pod(mut m: Mut<'_>) -> Done {
    // Only pods, not templates: requests follow limits, and links to services are on.
    for list in ["spec.containers", "spec.initContainers"] {
        m.for_each(list, |mut c| {
            let limits: Vec<(String, Value)> = c.get("resources.limits").entries().map(|(k, v)| (k.to_owned(), v.to_value())).collect();
            for (k, v) in limits {
                c.set_default(&format!("resources.requests[{k}]"), v)?;
            }
            Ok::<_, EditError>(())
        })?;
    }
    pod_requests(&mut m)?;
    set(&mut m, "spec.enableServiceLinks", true)?;
    if m.get("spec.hostNetwork").bool() {
        host_ports(&mut m, "spec")?;
    }
    pod_spec(m.at_mut("spec")?)
}

/// A pod that says something of its resources as a whole asks for what its containers do together, or else for its limits.
fn pod_requests(m: &mut Mut<'_>) -> Done {
    let own = m.get("spec.resources");
    if own.get("limits").is_empty() && own.get("requests").is_empty() {
        return Ok(());
    }
    let sum = super::pod_resources::aggregated(m.get("spec"));
    let mut wanted: Vec<(String, Value)> = sum.into_iter().map(|(k, q)| (k, q.to_string().into())).collect();
    wanted.extend(own.get("limits").entries().map(|(k, v)| (k.to_owned(), v.to_value())));
    wanted.retain(|(k, _)| super::pod_resources::of_pods(k));
    for (k, v) in wanted {
        m.set_default(&format!("spec.resources.requests[{k}]"), v)?;
    }
    Ok(())
}

/// What is written as text becomes data, and wins over data of the same name.
fn secret(mut m: Mut<'_>) -> Done {
    let texts: Vec<(String, String)> = m.get("stringData").entries().map(|(k, v)| (k.to_owned(), B64.encode(v.str()))).collect();
    for (k, v) in texts {
        m.set(&format!("data[{k}]"), v)?;
    }
    m.remove("stringData");
    set(&mut m, "type", "Opaque")
}

/// A node's first range of pods is told twice; the old field counts when the two differ.
fn node(mut m: Mut<'_>) -> Done {
    // What nobody keeps back can be given out.
    if !m.get("status.allocatable").exists() && m.get("status.capacity").exists() {
        let capacity = m.get("status.capacity").to_value();
        m.set("status.allocatable", capacity)?;
    }
    let first = m.get("spec.podCIDR").str().to_owned();
    let listed = m.get("spec.podCIDRs").iter().next().map(|c| c.str().to_owned());
    match listed {
        Some(l) if first.is_empty() => m.set("spec.podCIDR", l),
        Some(l) if l == first => Ok(()),
        None if first.is_empty() => Ok(()),
        _ => m.set("spec.podCIDRs", json!([first])),
    }
}

fn host_ports(m: &mut Mut<'_>, spec: &str) -> Done {
    for list in ["containers", "initContainers"] {
        m.for_each(&format!("{spec}.{list}"), |mut c| {
            c.for_each("ports", |mut p| {
                let port = p.get("containerPort").int();
                if p.get("hostPort").int() == 0 && port != 0 { p.set("hostPort", port) } else { Ok(()) }
            })
        })?;
    }
    Ok(())
}

fn template(mut m: Mut<'_>, path: &str) -> Done {
    pod_spec(m.at_mut(&format!("{path}.spec"))?)
}

fn pod_spec(mut s: Mut<'_>) -> Done {
    set(&mut s, "dnsPolicy", "ClusterFirst")?;
    set(&mut s, "restartPolicy", "Always")?;
    set(&mut s, "securityContext", json!({}))?;
    set(&mut s, "terminationGracePeriodSeconds", 30)?;
    if s.get("terminationGracePeriodSeconds").int() < 0 {
        s.set("terminationGracePeriodSeconds", 1)?;
    }
    set(&mut s, "schedulerName", "default-scheduler")?;
    let account = s.get("serviceAccountName").str().to_owned();
    let old = s.get("serviceAccount").str().to_owned();
    if !account.is_empty() && old != account {
        s.set("serviceAccount", account)?;
    } else if account.is_empty() && !old.is_empty() {
        s.set("serviceAccountName", old)?;
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        s.for_each(list, container)?;
    }
    s.for_each("volumes", volume)
}

/// The tag of an image reference; none: `latest`.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        // A digest pins the content, whatever the tag.
        let before = image.split('@').next().unwrap_or("");
        let last = before.rsplit('/').next().unwrap_or("");
        return last.split_once(':').is_some_and(|(_, t)| t == "latest");
    }
    let last = image.rsplit('/').next().unwrap_or("");
    last.split_once(':').is_none_or(|(_, t)| t == "latest")
}

fn container(mut c: Mut<'_>) -> Done {
    let policy = if is_latest(c.get("image").str()) { "Always" } else { "IfNotPresent" };
    set(&mut c, "imagePullPolicy", policy)?;
    set(&mut c, "terminationMessagePath", "/dev/termination-log")?;
    set(&mut c, "terminationMessagePolicy", "File")?;
    set(&mut c, "resources", json!({}))?;
    for list in ["limits", "requests"] {
        let fine = c.get("resources").get(list).entries().filter_map(|(k, v)| Some((k.to_owned(), whole_milli(v.str())?)));
        for (k, v) in fine.collect::<Vec<_>>() {
            c.set(&format!("resources.{list}[{k}]"), v)?;
        }
    }
    c.for_each("ports", |mut p| set(&mut p, "protocol", "TCP"))?;
    c.for_each(
        "env",
        |mut e| {
            if e.get("valueFrom.fieldRef").exists() { set(&mut e, "valueFrom.fieldRef.apiVersion", "v1") } else { Ok(()) }
        },
    )?;
    c.for_each(
        "env",
        |mut e| {
            if e.get("valueFrom.fileKeyRef").exists() { set(&mut e, "valueFrom.fileKeyRef.optional", false) } else { Ok(()) }
        },
    )?;
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if c.get(name).exists() {
            probe(c.at_mut(name)?)?;
        }
    }
    for hook in ["lifecycle.postStart.httpGet", "lifecycle.preStop.httpGet"] {
        if c.get(hook).exists() {
            http_get(c.at_mut(hook)?)?;
        }
    }
    Ok(())
}

fn http_get(mut h: Mut<'_>) -> Done {
    set(&mut h, "path", "/")?;
    set(&mut h, "scheme", "HTTP")
}

fn probe(mut p: Mut<'_>) -> Done {
    for (field, value) in [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)] {
        // Zero means unset.
        if p.get(field).int() == 0 {
            p.set(field, value)?;
        }
    }
    if p.get("httpGet").exists() {
        http_get(p.at_mut("httpGet")?)?;
    }
    if p.get("grpc").exists() {
        set(&mut p, "grpc.service", "")?;
    }
    Ok(())
}

fn field_refs(m: &mut Mut<'_>, path: &str) -> Done {
    m.for_each(path, |mut i| if i.get("fieldRef").exists() { set(&mut i, "fieldRef.apiVersion", "v1") } else { Ok(()) })
}

fn volume(mut v: Mut<'_>) -> Done {
    let sources: Vec<String> = v.read().fields().map(|(n, _)| n.to_owned()).filter(|n| n != "name").collect();
    if sources.is_empty() {
        return v.set("emptyDir", json!({}));
    }
    for source in sources {
        let mut s = v.at_mut(&source)?;
        match source.as_str() {
            "secret" | "configMap" => set(&mut s, "defaultMode", 420)?,
            "downwardAPI" => {
                set(&mut s, "defaultMode", 420)?;
                field_refs(&mut s, "items")?;
            }
            "projected" => {
                set(&mut s, "defaultMode", 420)?;
                s.for_each("sources", |mut p| {
                    if p.get("serviceAccountToken").exists() {
                        set(&mut p, "serviceAccountToken.expirationSeconds", 3600)?;
                    }
                    field_refs(&mut p, "downwardAPI.items")
                })?;
            }
            "hostPath" => set(&mut s, "type", "")?,
            "iscsi" => set(&mut s, "iscsiInterface", "default")?,
            "rbd" => {
                set(&mut s, "pool", "rbd")?;
                set(&mut s, "user", "admin")?;
                set(&mut s, "keyring", "/etc/ceph/keyring")?;
            }
            "azureDisk" => {
                set(&mut s, "cachingMode", "ReadWrite")?;
                set(&mut s, "kind", "Shared")?;
                set(&mut s, "fsType", "ext4")?;
                set(&mut s, "readOnly", false)?;
            }
            "scaleIO" => {
                set(&mut s, "storageMode", "ThinProvisioned")?;
                set(&mut s, "fsType", "xfs")?;
            }
            "ephemeral" if s.get("volumeClaimTemplate").exists() => set(&mut s, "volumeClaimTemplate.spec.volumeMode", "Filesystem")?,
            "image" => {
                let policy = if is_latest(s.get("reference").str()) { "Always" } else { "IfNotPresent" };
                set(&mut s, "pullPolicy", policy)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn replication_controller(mut m: Mut<'_>) -> Done {
    let labels = m.get("spec.template.metadata.labels").to_value();
    if labels.as_object().is_some_and(|l| !l.is_empty()) {
        if m.get("spec.selector").is_empty() {
            m.set("spec.selector", labels.clone())?;
        }
        if m.get("metadata.labels").is_empty() {
            m.set("metadata.labels", labels)?;
        }
    }
    set(&mut m, "spec.replicas", 1)?;
    // Only here the template is optional.
    if m.get("spec.template").exists() { template(m, "spec.template") } else { Ok(()) }
}

fn service(mut m: Mut<'_>) -> Done {
    set(&mut m, "spec.sessionAffinity", "None")?;
    if m.get("spec.sessionAffinity").str() == "None" {
        m.remove("spec.sessionAffinityConfig");
    }
    if m.get("spec.sessionAffinity").str() == "ClientIP" && !m.get("spec.sessionAffinityConfig.clientIP.timeoutSeconds").exists() {
        m.set("spec.sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10800}}))?;
    }
    set(&mut m, "spec.type", "ClusterIP")?;
    m.for_each("spec.ports", |mut p| {
        set(&mut p, "protocol", "TCP")?;
        let target = p.get("targetPort").to_value();
        if target.is_null() || target == json!(0) || target == json!("") {
            let port = p.get("port").int();
            p.set("targetPort", port)?;
        }
        Ok::<_, EditError>(())
    })?;
    let kind = m.get("spec.type").str().to_owned();
    let external_ips = !m.get("spec.externalIPs").is_empty();
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && external_ips) {
        set(&mut m, "spec.externalTrafficPolicy", "Cluster")?;
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer" | "ClusterIP") {
        set(&mut m, "spec.internalTrafficPolicy", "Cluster")?;
    }
    if kind == "LoadBalancer" {
        set(&mut m, "spec.allocateLoadBalancerNodePorts", true)?;
        m.for_each(
            "status.loadBalancer.ingress",
            |mut i| {
                if i.get("ip").str().is_empty() { Ok(()) } else { set(&mut i, "ipMode", "VIP") }
            },
        )?;
    }
    Ok(())
}

fn namespace(mut m: Mut<'_>) -> Done {
    let name = m.get("metadata.name").str().to_owned();
    // With generateName the name comes later; the strategy sets the label then.
    if name.is_empty() { Ok(()) } else { m.set("metadata.labels[kubernetes.io/metadata.name]", name) }
}

fn persistent_volume(mut m: Mut<'_>) -> Done {
    set(&mut m, "status.phase", "Pending")?;
    set(&mut m, "spec.persistentVolumeReclaimPolicy", "Retain")?;
    set(&mut m, "spec.volumeMode", "Filesystem")?;
    if m.get("spec.hostPath").exists() {
        set(&mut m, "spec.hostPath.type", "")?;
    }
    Ok(())
}

fn claim(mut m: Mut<'_>) -> Done {
    set(&mut m, "status.phase", "Pending")?;
    claim_spec(m.at_mut("spec")?)
}

fn claim_spec(mut s: Mut<'_>) -> Done {
    set(&mut s, "volumeMode", "Filesystem")
}

fn limit_range_item(mut l: Mut<'_>) -> Done {
    if l.get("type").str() != "Container" {
        return Ok(());
    }
    let copy = |l: &mut Mut<'_>, from: &str, to: &str| -> Done {
        let values: Vec<(String, Value)> = l.get(from).entries().map(|(k, v)| (k.to_owned(), v.to_value())).collect();
        values.into_iter().try_for_each(|(k, v)| l.set_default(&format!("{to}[{k}]"), v).map(drop))
    };
    copy(&mut l, "max", "default")?;
    copy(&mut l, "default", "defaultRequest")?;
    copy(&mut l, "min", "defaultRequest")
}

fn deployment(mut m: Mut<'_>) -> Done {
    set(&mut m, "spec.replicas", 1)?;
    set(&mut m, "spec.strategy.type", "RollingUpdate")?;
    if m.get("spec.strategy.type").str() == "RollingUpdate" {
        set(&mut m, "spec.strategy.rollingUpdate.maxUnavailable", "25%")?;
        set(&mut m, "spec.strategy.rollingUpdate.maxSurge", "25%")?;
    }
    set(&mut m, "spec.revisionHistoryLimit", 10)?;
    set(&mut m, "spec.progressDeadlineSeconds", 600)?;
    template(m, "spec.template")
}

fn daemon_set(mut m: Mut<'_>) -> Done {
    // The generation of old clients lives on as an annotation.
    set(&mut m, &format!("metadata.annotations[{TEMPLATE_GENERATION}]"), "0")?;
    set(&mut m, "spec.updateStrategy.type", "RollingUpdate")?;
    if m.get("spec.updateStrategy.type").str() == "RollingUpdate" {
        set(&mut m, "spec.updateStrategy.rollingUpdate.maxUnavailable", 1)?;
    }
    if m.get("spec.updateStrategy.rollingUpdate").exists() {
        set(&mut m, "spec.updateStrategy.rollingUpdate.maxSurge", 0)?;
    }
    set(&mut m, "spec.revisionHistoryLimit", 10)?;
    template(m, "spec.template")
}

fn stateful_set(mut m: Mut<'_>) -> Done {
    set(&mut m, "spec.podManagementPolicy", "OrderedReady")?;
    set(&mut m, "spec.updateStrategy.type", "RollingUpdate")?;
    if m.get("spec.updateStrategy.type").str() == "RollingUpdate" {
        set(&mut m, "spec.updateStrategy.rollingUpdate.partition", 0)?;
    }
    set(&mut m, "spec.persistentVolumeClaimRetentionPolicy.whenDeleted", "Retain")?;
    set(&mut m, "spec.persistentVolumeClaimRetentionPolicy.whenScaled", "Retain")?;
    set(&mut m, "spec.replicas", 1)?;
    set(&mut m, "spec.revisionHistoryLimit", 10)?;
    m.for_each("spec.volumeClaimTemplates", |mut c| {
        c.set("apiVersion", "v1")?;
        c.set("kind", "PersistentVolumeClaim")?;
        set(&mut c, "status.phase", "Pending")?;
        claim_spec(c.at_mut("spec")?)
    })?;
    template(m, "spec.template")
}

fn job(mut m: Mut<'_>) -> Done {
    if !m.get("spec.completions").exists() && !m.get("spec.parallelism").exists() {
        m.set("spec.completions", 1)?;
        m.set("spec.parallelism", 1)?;
    }
    set(&mut m, "spec.parallelism", 1)?;
    set(&mut m, "spec.manualSelector", false)?;
    job_spec(m.reborrow(), "spec")?;
    let labels = m.get("spec.template.metadata.labels").to_value();
    if m.get("metadata.labels").is_empty() && labels.as_object().is_some_and(|l| !l.is_empty()) {
        m.set("metadata.labels", labels)?;
    }
    template(m, "spec.template")
}

fn job_spec(mut m: Mut<'_>, at: &str) -> Done {
    let mut s = m.at_mut(at)?;
    let indexed_limit = s.get("backoffLimitPerIndex").exists();
    set(&mut s, "backoffLimit", if indexed_limit { i64::from(i32::MAX) } else { 6 })?;
    set(&mut s, "completionMode", "NonIndexed")?;
    set(&mut s, "suspend", false)?;
    let policy = if s.get("podFailurePolicy").exists() { "Failed" } else { "TerminatingOrFailed" };
    set(&mut s, "podReplacementPolicy", policy)?;
    s.for_each("podFailurePolicy.rules", |mut r| r.for_each("onPodConditions", |mut c| set(&mut c, "status", "True")))
}

fn cron_job(mut m: Mut<'_>) -> Done {
    set(&mut m, "spec.concurrencyPolicy", "Allow")?;
    set(&mut m, "spec.suspend", false)?;
    set(&mut m, "spec.successfulJobsHistoryLimit", 3)?;
    set(&mut m, "spec.failedJobsHistoryLimit", 1)?;
    template(m, "spec.jobTemplate.spec.template")
}

fn network_policy(mut m: Mut<'_>) -> Done {
    for list in ["spec.ingress", "spec.egress"] {
        m.for_each(list, |mut r| r.for_each("ports", |mut p| set(&mut p, "protocol", "TCP")))?;
    }
    if m.get("spec.policyTypes").is_empty() {
        let types = if !m.get("spec.egress").is_empty() { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        m.set("spec.policyTypes", types)?;
    }
    Ok(())
}

fn autoscaler(mut m: Mut<'_>, version: &str) -> Done {
    set(&mut m, "spec.minReplicas", 1)?;
    // The first version keeps other metrics in an annotation.
    if version == "v1" && !m.get("metadata.annotations[autoscaling.alpha.kubernetes.io/metrics]").exists() {
        return set(&mut m, "spec.targetCPUUtilizationPercentage", 80);
    }
    if m.read().ty().field("spec").is_some() && m.get("spec").ty().field("metrics").is_some() && m.get("spec.metrics").is_empty() {
        let cpu = json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]);
        m.set("spec.metrics", cpu)?;
    }
    // Who says anything of how fast it goes says it of both directions.
    if m.get("spec.behavior").exists() {
        let all = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
        set(&mut m, "spec.behavior.scaleUp.stabilizationWindowSeconds", 0)?;
        for (direction, policies) in
            [("scaleUp", json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, all])), ("scaleDown", json!([all]))]
        {
            set(&mut m, &format!("spec.behavior.{direction}.selectPolicy"), "Max")?;
            set(&mut m, &format!("spec.behavior.{direction}.policies"), policies)?;
        }
    }
    Ok(())
}

fn csi_driver(mut m: Mut<'_>) -> Done {
    for (path, value) in [("spec.attachRequired", true), ("spec.podInfoOnMount", false), ("spec.storageCapacity", false)] {
        set(&mut m, path, value)?;
    }
    set(&mut m, "spec.fsGroupPolicy", "ReadWriteOnceWithFSType")?;
    if m.get("spec.volumeLifecycleModes").is_empty() {
        m.set("spec.volumeLifecycleModes", json!(["Persistent"]))?;
    }
    set(&mut m, "spec.requiresRepublish", false)?;
    set(&mut m, "spec.seLinuxMount", false)
}

fn binding(mut m: Mut<'_>) -> Done {
    let empty = m.get("roleRef.apiGroup").str().is_empty();
    if empty {
        m.set("roleRef.apiGroup", "rbac.authorization.k8s.io")?;
    }
    m.for_each("subjects", |mut s| {
        if !s.get("apiGroup").str().is_empty() || !matches!(s.get("kind").str(), "User" | "Group") {
            return Ok(());
        }
        s.set("apiGroup", "rbac.authorization.k8s.io")
    })
}

fn webhook(mut w: Mut<'_>) -> Done {
    set(&mut w, "failurePolicy", "Fail")?;
    set(&mut w, "matchPolicy", "Equivalent")?;
    set(&mut w, "namespaceSelector", json!({}))?;
    set(&mut w, "objectSelector", json!({}))?;
    set(&mut w, "timeoutSeconds", 10)?;
    if w.get("clientConfig.service").exists() {
        set(&mut w, "clientConfig.service.port", 443)?;
    }
    w.for_each("rules", |mut r| set(&mut r, "scope", "*"))
}

fn admission_policy(mut m: Mut<'_>) -> Done {
    set(&mut m, "spec.failurePolicy", "Fail")?;
    if m.get("spec.matchConstraints").exists() {
        let mut c = m.at_mut("spec.matchConstraints")?;
        set(&mut c, "matchPolicy", "Equivalent")?;
        set(&mut c, "namespaceSelector", json!({}))?;
        set(&mut c, "objectSelector", json!({}))?;
        for list in ["resourceRules", "excludeResourceRules"] {
            c.for_each(list, |mut r| set(&mut r, "scope", "*"))?;
        }
    }
    Ok(())
}

fn priority_level(mut m: Mut<'_>) -> Done {
    if m.get("spec.limited").exists() {
        set(&mut m, "spec.limited.nominalConcurrencyShares", 30)?;
        set(&mut m, "spec.limited.lendablePercent", 0)?;
        if m.get("spec.limited.limitResponse.type").str() == "Queue" {
            for (f, v) in [("queues", 64), ("queueLengthLimit", 50), ("handSize", 8)] {
                set(&mut m, &format!("spec.limited.limitResponse.queuing.{f}"), v)?;
            }
        }
    }
    if m.get("spec.exempt").exists() {
        set(&mut m, "spec.exempt.nominalConcurrencyShares", 0)?;
        set(&mut m, "spec.exempt.lendablePercent", 0)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use k8s_schema::{Doc, Schema};
    use serde_json::json;

    use super::{is_latest, secret};

    #[test]
    fn text_of_a_secret_becomes_its_data() {
        let schema = Schema::builtin();
        let given = json!({"data": {"a": "b2xk", "tls.crt": "eA=="}, "stringData": {"a": "new", "b.c": ""}});
        let mut doc = Doc::from_value(&schema, schema.kind("", "v1", "Secret").unwrap(), &given).unwrap().doc;
        secret(doc.root_mut()).unwrap();
        assert_eq!(doc.to_value()["data"], json!({"a": "bmV3", "b.c": "", "tls.crt": "eA=="}));
        assert!(!doc.at("stringData").exists());
        assert_eq!(doc.at("type").str(), "Opaque");
    }

    #[test]
    fn images_without_a_tag_are_latest() {
        for (image, latest) in [
            ("nginx", true),
            ("nginx:latest", true),
            ("nginx:1.2", false),
            ("host:5000/nginx", true),
            ("host:5000/nginx:1", false),
            ("nginx@sha256:00", false),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }
}
