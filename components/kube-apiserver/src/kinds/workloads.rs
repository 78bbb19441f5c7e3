//! Deployment, ReplicaSet, DaemonSet, StatefulSet, ReplicationController, PodTemplate, ControllerRevision.

use k8s_schema::{Doc, Ref, selector::LabelSelector};
use serde_json::json;

use super::{Action, PLAIN, SPEC_AND_STATUS, Strategy, immutable, pod_spec, warnings, workload_status};
use crate::validation::{ErrorList, FieldError, names, values};

pub const DEPLOYMENT: Strategy = Strategy {
    annotations_count: true,
    unmanaged_labels: true,
    warnings: warnings::templated,
    prepare_update: |a, n, o| {
        if a == Action::Status {
            super::restore(n, o, "metadata.labels");
        }
    },
    validate_create: deployment,
    validate_update: |a, n, o, e| {
        if a == Action::Main {
            deployment(n, e);
            immutable(n, o, "spec.selector", e);
        } else if a == Action::Status {
            workload_status::deployment(n, o, e);
        }
    },
    ..SPEC_AND_STATUS
};
pub const REPLICA_SET: Strategy = Strategy {
    warnings: warnings::templated,
    validate_create: replica_set,
    validate_update: |a, n, o, e| {
        if a == Action::Main {
            replica_set(n, e);
            immutable(n, o, "spec.selector", e);
        } else if a == Action::Status {
            workload_status::replica_set(n, o, e);
        }
    },
    ..SPEC_AND_STATUS
};
pub const DAEMON_SET: Strategy = Strategy {
    warnings: warnings::templated,
    prepare_create: |d| {
        let g = template_generation(d).max(1);
        // A string among annotations: this cannot fail.
        let _ = d.set(&generation_path(), g.to_string());
    },
    prepare_update: |a, n, o| {
        let changed = a == Action::Main && !n.at("spec.template").semantic_eq(o.at("spec.template"));
        let g = template_generation(o) + i64::from(changed);
        // A string among annotations: this cannot fail.
        let _ = n.set(&generation_path(), g.to_string());
    },
    validate_create: daemon_set,
    validate_update: |a, n, o, e| {
        if a == Action::Main {
            immutable(n, o, "spec.selector", e);
            daemon_set(n, e);
        } else if a == Action::Status {
            workload_status::daemon_set(n, o, e);
        }
    },
    ..SPEC_AND_STATUS
};
pub const STATEFUL_SET: Strategy = Strategy {
    // Its pods are named after it, which makes it a label of theirs.
    name: |name, prefix| if name.contains('.') { vec!["must not contain dots".into()] } else { names::label_name(name, prefix) },
    warnings: warnings::templated,
    prepare_create: drop_max_unavailable,
    prepare_update: |_, n, o| {
        if !o.at(MAX_UNAVAILABLE).exists() {
            drop_max_unavailable(n);
        }
    },
    validate_create: stateful_set,
    validate_update: stateful_set_update,
    ..SPEC_AND_STATUS
};
pub const REPLICATION_CONTROLLER: Strategy = Strategy {
    warnings: warnings::templated,
    orphans_by_default: true,
    validate_create: replication_controller,
    validate_update: |a, n, o, e| {
        if a == Action::Main {
            replication_controller(n, e);
        } else if a == Action::Status {
            workload_status::replica_set(n, o, e);
        }
    },
    ..SPEC_AND_STATUS
};
pub const POD_TEMPLATE: Strategy = Strategy {
    returns_deleted: true,
    generation: true,
    create_on_update: true,
    validate_create: |d, e| pod_spec::validate_template(d.at("template"), "template", e),
    validate_update: |_, d, _, e| pod_spec::validate_template(d.at("template"), "template", e),
    ..PLAIN
};
pub const CONTROLLER_REVISION: Strategy = Strategy {
    validate_create: revision,
    validate_update: |_, n, o, e| {
        revision(n, e);
        immutable(n, o, "data", e);
    },
    ..PLAIN
};

fn revision(d: &Doc, e: &mut ErrorList) {
    let data = d.at("data");
    if !data.exists() || data.raw() == b"null" {
        e.push(FieldError::required("data", "data is mandatory"));
    } else if !data.to_value().is_object() {
        e.push(FieldError::required("data", "data must be a valid JSON object"));
    }
    values::non_negative(d.at("revision").int(), "revision", e);
}

/// A field whose feature is off by default: what says it is not stored.
const MAX_UNAVAILABLE: &str = "spec.updateStrategy.rollingUpdate.maxUnavailable";

fn drop_max_unavailable(d: &mut Doc) {
    d.remove(MAX_UNAVAILABLE);
}

fn generation_path() -> String {
    format!("metadata.annotations[{}]", super::defaults::TEMPLATE_GENERATION)
}

fn template_generation(d: &Doc) -> i64 {
    d.at(&generation_path()).str().parse().unwrap_or(0)
}

fn selector_and_template(d: &Doc, e: &mut ErrorList) {
    let s = d.at("spec.selector");
    if !s.exists() {
        // Upstream forgets to ask daemon sets for it.
        if d.kind() != "DaemonSet" {
            e.push(FieldError::required("spec.selector", ""));
        }
    } else {
        let before = e.len();
        values::label_selector(s, "spec.selector", e);
        if e.len() > before && d.kind() != "DaemonSet" {
            let why = if d.kind() == "StatefulSet" { "" } else { "invalid label selector" };
            e.push(FieldError::invalid("spec.selector", s.to_value(), why));
        }
        if s.get("matchLabels").len() + s.get("matchExpressions").len() == 0 {
            e.push(FieldError::invalid(
                "spec.selector",
                s.to_value(),
                // Upstream took this text over from deployments.
                format!(
                    "empty selector is invalid for {}",
                    if d.kind() == "ReplicaSet" { "deployment".into() } else { d.kind().to_lowercase() }
                ),
            ));
        }
    }
    matches(d, LabelSelector::from_ref(s).ok(), e);
}

fn matches(d: &Doc, selector: Option<LabelSelector>, e: &mut ErrorList) {
    let labels = d.at("spec.template.metadata.labels");
    if let Some(s) = selector.filter(|s| !s.is_empty())
        && !s.matches(|k| labels.get(k).as_str())
    {
        e.push(FieldError::invalid("spec.template.metadata.labels", labels.to_value(), "`selector` does not match template `labels`"));
    }
    pod_spec::validate_template(d.at("spec.template"), "spec.template", e);
}

fn always(d: &Doc, e: &mut ErrorList) {
    let r = d.at("spec.template.spec.restartPolicy").str();
    if !matches!(r, "Always" | "") {
        e.push(FieldError::not_supported("spec.template.spec.restartPolicy", r, &["Always"]));
    }
    if d.at("spec.template.spec.activeDeadlineSeconds").exists() {
        e.push(FieldError::forbidden(
            "spec.template.spec.activeDeadlineSeconds",
            format!("activeDeadlineSeconds in {} is not Supported", if d.kind() == "Deployment" { "ReplicaSet" } else { d.kind() }),
        ));
    }
}

fn non_negative(d: &Doc, fields: &[&str], e: &mut ErrorList) {
    for f in fields {
        if let Some(v) = d.at(f).as_i64() {
            values::non_negative(v, f, e);
        }
    }
}

/// A count or a percentage.
pub fn int_or_percent(r: Ref<'_>, path: &str, e: &mut ErrorList) -> Option<i64> {
    match r.to_value() {
        serde_json::Value::Number(n) => {
            let n = n.as_i64().unwrap_or(0);
            values::non_negative(n, path, e);
            Some(n)
        }
        serde_json::Value::String(s) => {
            let n = s.strip_suffix('%').and_then(|n| n.parse::<i64>().ok()).filter(|_| s.bytes().all(|b| b.is_ascii_digit() || b == b'%'));
            if n.is_none() {
                e.push(FieldError::invalid(path, s.as_str(), "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')"));
            }
            n
        }
        _ => None,
    }
}

fn deployment(d: &Doc, e: &mut ErrorList) {
    non_negative(d, &["spec.replicas"], e);
    selector_and_template(d, e);
    always(d, e);
    let s = d.at("spec.strategy");
    match s.get("type").str() {
        "Recreate" if s.get("rollingUpdate").exists() => {
            e.push(FieldError::forbidden("spec.strategy.rollingUpdate", "may not be specified when strategy `type` is 'Recreate'"));
        }
        "Recreate" => {}
        "RollingUpdate" => {
            let r = s.get("rollingUpdate");
            let u = int_or_percent(r.get("maxUnavailable"), "spec.strategy.rollingUpdate.maxUnavailable", e);
            let m = int_or_percent(r.get("maxSurge"), "spec.strategy.rollingUpdate.maxSurge", e);
            if (u, m) == (Some(0), Some(0)) {
                e.push(FieldError::invalid(
                    "spec.strategy.rollingUpdate.maxUnavailable",
                    r.get("maxUnavailable").to_value(),
                    "may not be 0 when `maxSurge` is 0",
                ));
            }
            let too_much = r.get("maxUnavailable").as_str().is_some() && u.is_some_and(|u| u > 100);
            if too_much {
                e.push(FieldError::invalid(
                    "spec.strategy.rollingUpdate.maxUnavailable",
                    r.get("maxUnavailable").to_value(),
                    "must not be greater than 100%",
                ));
            }
        }
        other => {
            // As Go prints it.
            let shown = json!({"Type": other, "RollingUpdate": s.get("rollingUpdate").to_value()});
            e.push(FieldError::not_supported("spec.strategy", shown, &["Recreate", "RollingUpdate"]));
        }
    }
    non_negative(d, &["spec.minReadySeconds", "spec.revisionHistoryLimit", "spec.progressDeadlineSeconds"], e);
    if let Some(p) = d.at("spec.progressDeadlineSeconds").as_i64()
        && p <= d.at("spec.minReadySeconds").int()
    {
        e.push(FieldError::invalid("spec.progressDeadlineSeconds", p, "must be greater than minReadySeconds"));
    }
}

fn replica_set(d: &Doc, e: &mut ErrorList) {
    non_negative(d, &["spec.replicas", "spec.minReadySeconds"], e);
    selector_and_template(d, e);
    always(d, e);
}

fn daemon_set(d: &Doc, e: &mut ErrorList) {
    selector_and_template(d, e);
    always(d, e);
    non_negative(d, &["spec.minReadySeconds", "spec.revisionHistoryLimit"], e);
    let s = d.at("spec.updateStrategy");
    let r = s.get("rollingUpdate");
    let path = "spec.updateStrategy.rollingUpdate";
    match s.get("type").str() {
        "OnDelete" => {}
        "RollingUpdate" => {
            let (unavailable, surge) = (r.get("maxUnavailable"), r.get("maxSurge"));
            let u = int_or_percent(unavailable, &format!("{path}.maxUnavailable"), e);
            let m = int_or_percent(surge, &format!("{path}.maxSurge"), e);
            for (v, n, f) in [(unavailable, u, "maxUnavailable"), (surge, m, "maxSurge")] {
                if v.as_str().is_some() && n.is_some_and(|n| n > 100) {
                    e.push(FieldError::invalid(format!("{path}.{f}"), v.to_value(), "must not be greater than 100%"));
                }
            }
            match (u.unwrap_or(0), m.unwrap_or(0)) {
                (0, 0) => e.push(FieldError::required(format!("{path}.maxUnavailable"), "cannot be 0 when maxSurge is 0")),
                (u, m) if u != 0 && m != 0 => {
                    let why = "may not be set when maxUnavailable is non-zero";
                    e.push(FieldError::invalid(format!("{path}.maxSurge"), surge.to_value(), why));
                }
                _ => {}
            }
        }
        other => {
            let shown = json!({"Type": other, "RollingUpdate": r.to_value()});
            e.push(FieldError::not_supported("spec.updateStrategy", shown, &["RollingUpdate", "OnDelete"]));
        }
    }
}

/// A strategy as Go prints it.
fn shown_strategy(s: Ref<'_>, number: &str) -> serde_json::Value {
    let r = s.get("rollingUpdate");
    let rolling = if r.exists() { json!({number: r.get("partition").to_value(), "MaxUnavailable": null}) } else { serde_json::Value::Null };
    json!({"Type": s.get("type").str(), "RollingUpdate": rolling})
}

fn stateful_set(d: &Doc, e: &mut ErrorList) {
    let policy = d.at("spec.podManagementPolicy").str();
    if !matches!(policy, "OrderedReady" | "Parallel") {
        e.push(FieldError::invalid("spec.podManagementPolicy", policy, "must be 'OrderedReady' or 'Parallel'"));
    }
    let strategy = d.at("spec.updateStrategy");
    let rolling = strategy.get("rollingUpdate");
    match strategy.get("type").str() {
        "OnDelete" if rolling.exists() => {
            let shown = shown_strategy(strategy, "Partition")["RollingUpdate"].clone();
            let why = "only allowed for updateStrategy 'RollingUpdate'";
            e.push(FieldError::invalid("spec.updateStrategy.rollingUpdate", shown, why));
        }
        "OnDelete" => {}
        "RollingUpdate" => non_negative(d, &["spec.updateStrategy.rollingUpdate.partition"], e),
        _ => {
            let why = "must be 'RollingUpdate' or 'OnDelete'";
            e.push(FieldError::invalid("spec.updateStrategy", shown_strategy(strategy, "Partition"), why));
        }
    }
    for f in ["whenDeleted", "whenScaled"] {
        let path = format!("spec.persistentVolumeClaimRetentionPolicy.{f}");
        if let Some(v) = d.at(&path).as_str().filter(|v| !matches!(*v, "Retain" | "Delete")) {
            e.push(FieldError::not_supported(path, v, &["Retain", "Delete"]));
        }
    }
    non_negative(d, &["spec.replicas", "spec.minReadySeconds", "spec.ordinals.start"], e);
    for (i, c) in d.at("spec.volumeClaimTemplates").iter().enumerate() {
        super::storage::claim_spec(c.get("spec"), &format!("spec.volumeClaimTemplates[{i}].spec"), e);
    }
    // Each is a volume of the pods, before those that the template has itself.
    for (i, c) in d.at("spec.volumeClaimTemplates").iter().enumerate() {
        let (path, name) = (format!("spec.template.spec.volumes[{i}]"), c.at("metadata.name").str());
        if name.is_empty() {
            e.push(FieldError::required(format!("{path}.persistentVolumeClaim.claimName"), ""));
            e.push(FieldError::required(format!("{path}.name"), ""));
        } else {
            e.all_invalid(&format!("{path}.name"), name, names::dns1123_label(name));
        }
    }
    selector_and_template(d, e);
    always(d, e);
    let name = d.at("spec.serviceName").str();
    if !name.is_empty() {
        e.all_invalid("spec.serviceName", name, names::dns1123_label(name));
    }
}

fn stateful_set_update(a: Action, new: &Doc, old: &Doc, e: &mut ErrorList) {
    if a == Action::Status {
        workload_status::stateful_set(new, old, e);
    }
    if a != Action::Main {
        return;
    }
    stateful_set(new, e);
    let fixed = |d: &Doc| {
        let mut v = d.at("spec").to_value();
        if let Some(m) = v.as_object_mut() {
            for f in [
                "replicas",
                "ordinals",
                "template",
                "updateStrategy",
                "revisionHistoryLimit",
                "persistentVolumeClaimRetentionPolicy",
                "minReadySeconds",
            ] {
                m.remove(f);
            }
        }
        v
    };
    if fixed(new) != fixed(old) {
        e.push(FieldError::forbidden(
            "spec",
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
             'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        ));
    }
}

fn replication_controller(d: &Doc, e: &mut ErrorList) {
    non_negative(d, &["spec.replicas", "spec.minReadySeconds"], e);
    let s = d.at("spec.selector");
    if s.is_empty() {
        e.push(FieldError::required("spec.selector", ""));
    }
    let pairs: Vec<(&str, &str)> = s.entries().map(|(k, v)| (k, v.str())).collect();
    if !d.at("spec.template").exists() {
        e.push(FieldError::required("spec.template", ""));
    } else {
        matches(d, Some(LabelSelector::from_set(pairs)), e);
        always(d, e);
    }
}
