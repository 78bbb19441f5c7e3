//! Job.

use k8s_schema::Doc;
use serde_json::json;

use super::{Action, SPEC_AND_STATUS, Strategy, job_policy, pod_spec, warnings};
use crate::validation::{ErrorList, FieldError, values};

pub const JOB: Strategy = Strategy {
    prepare_create,
    warnings: warnings::templated,
    validate_create: validate,
    validate_update,
    orphans_by_default: true,
    delete_warning: Some(
        "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set \
         propagationPolicy=Orphan to suppress this warning",
    ),
    ..SPEC_AND_STATUS
};

/// A job selects its pods by its own uid unless it is told to select otherwise.
fn prepare_create(d: &mut Doc) {
    if d.at("spec.manualSelector").bool() {
        return;
    }
    let before = d.at("spec.template.metadata.labels").to_value();
    let follows = d.at("metadata.labels").is_empty() || d.at("metadata.labels").to_value() == before;
    let (uid, name) = (d.at("metadata.uid").str().to_owned(), d.at("metadata.name").str().to_owned());
    // Constant paths of the type: these cannot fail.
    for (k, v) in [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("job-name", &name),
    ] {
        let path = format!("spec.template.metadata.labels[{k}]");
        if !d.at(&path).exists() {
            let _ = d.set(&path, v.as_str());
        }
    }
    if !d.at("spec.selector").exists() {
        let _ = d.set("spec.selector", json!({"matchLabels": {}}));
    }
    let _ = d.set("spec.selector.matchLabels[batch.kubernetes.io/controller-uid]", uid);
    if follows {
        // A job without labels of its own has those of its pods.
        let labels = d.at("spec.template.metadata.labels").to_value();
        let _ = d.set("metadata.labels", labels);
    }
}

pub fn spec(d: &Doc, path: &str, e: &mut ErrorList) {
    for f in ["parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished", "backoffLimitPerIndex"] {
        let p = format!("{path}.{f}");
        if let Some(v) = d.at(&p).as_i64() {
            values::non_negative(v, &p, e);
        }
    }
    let mode = d.at(&format!("{path}.completionMode")).str();
    if !matches!(mode, "NonIndexed" | "Indexed") {
        e.push(FieldError::not_supported(format!("{path}.completionMode"), mode, &["NonIndexed", "Indexed"]));
    }
    if mode == "Indexed" && !d.at(&format!("{path}.completions")).exists() {
        e.push(FieldError::required(format!("{path}.completions"), "when completion mode is Indexed"));
    }
    if mode == "Indexed" {
        let parallelism = d.at(&format!("{path}.parallelism")).int();
        if parallelism > 100_000 {
            e.push(FieldError::invalid(
                format!("{path}.parallelism"),
                parallelism,
                "must be less than or equal to 100000 when completion mode is Indexed",
            ));
        }
    }
    let (per_index, failed) = (d.at(&format!("{path}.backoffLimitPerIndex")), d.at(&format!("{path}.maxFailedIndexes")));
    if per_index.exists() && mode != "Indexed" {
        e.push(FieldError::invalid(format!("{path}.backoffLimitPerIndex"), per_index.int(), "requires indexed completion mode"));
    }
    if failed.exists() && !per_index.exists() {
        e.push(FieldError::required(format!("{path}.backoffLimitPerIndex"), "when maxFailedIndexes is specified"));
    }
    let completions = d.at(&format!("{path}.completions"));
    if failed.exists() && completions.exists() && failed.int() > completions.int() {
        e.push(FieldError::invalid(format!("{path}.maxFailedIndexes"), failed.int(), "must be less than or equal to completions"));
    }
    let managed = d.at(&format!("{path}.managedBy"));
    if let Some(by) = managed.as_str() {
        let good = by.split_once('/').is_some_and(|(domain, rest)| {
            !rest.is_empty() && domain.contains('.') && crate::validation::names::dns1123_subdomain(domain).is_empty()
        });
        if !good {
            e.push(FieldError::invalid(format!("{path}.managedBy"), by, "must be a domain-prefixed path (such as \"acme.io/foo\")"));
        }
    }
    if d.at(&format!("{path}.podFailurePolicy")).exists() {
        job_policy::pod_failure(d.at(path), path, e);
    }
    if d.at(&format!("{path}.successPolicy")).exists() {
        job_policy::success(d.at(path), path, e);
    }
    let failure_policy = d.at(&format!("{path}.podFailurePolicy")).exists();
    let replacement = d.at(&format!("{path}.podReplacementPolicy")).str();
    let known: &[&str] = if failure_policy { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
    if !replacement.is_empty() && !known.contains(&replacement) {
        e.push(FieldError::not_supported(format!("{path}.podReplacementPolicy"), replacement, known));
    }
    let template = format!("{path}.template");
    pod_spec::validate_template(d.at(&template), &template, e);
    let restart = d.at(&format!("{template}.spec.restartPolicy")).str();
    if restart == "Always" || restart.is_empty() {
        e.push(FieldError::required(format!("{template}.spec.restartPolicy"), "valid values: \"OnFailure\", \"Never\""));
    } else if !matches!(restart, "OnFailure" | "Never") {
        e.push(FieldError::not_supported(format!("{template}.spec.restartPolicy"), restart, &["OnFailure", "Never"]));
    } else if failure_policy && restart != "Never" {
        let why = "only \"Never\" is supported when podFailurePolicy is specified";
        e.push(FieldError::invalid(format!("{template}.spec.restartPolicy"), restart, why));
    }
}

fn validate(d: &Doc, e: &mut ErrorList) {
    let (name, completions) = (d.meta().name(), d.at("spec.completions").as_i64());
    if let Some(n) = completions.filter(|n| d.at("spec.completionMode").str() == "Indexed" && *n > 0) {
        // The name of the last of its pods.
        let pod = format!("{name}-{}", n - 1);
        if !crate::validation::names::dns1123_label(&pod).is_empty() {
            e.push(FieldError::invalid("metadata.name", name, format!("will not able to create pod with invalid DNS label: {pod}")));
        }
    }
    validate_selected(d, e);
    spec(d, "spec", e);
}

fn validate_selected(d: &Doc, e: &mut ErrorList) {
    if !d.at("spec.selector").exists() {
        e.push(FieldError::required("spec.selector", ""));
    } else {
        values::label_selector(d.at("spec.selector"), "spec.selector", e);
    }
    let (own, name) = (d.at("metadata.uid").str(), d.at("metadata.name").str());
    let labels = d.at("spec.template.metadata.labels");
    if !d.at("spec.manualSelector").bool() {
        for (key, value) in [("batch.kubernetes.io/controller-uid", own), ("batch.kubernetes.io/job-name", name)] {
            if labels.get(key).str() != value {
                let path = format!("spec.template.metadata.labels[{key}]");
                e.push(FieldError::invalid(path, labels.to_value(), format!("must be '{value}'")));
            }
        }
        let selector = d.at("spec.selector.matchLabels");
        if selector.len() != 1 || selector.get("batch.kubernetes.io/controller-uid").str() != own {
            e.push(FieldError::invalid("spec.selector", d.at("spec.selector").to_value(), "`selector` not auto-generated"));
        }
    }
    if let Ok(s) = k8s_schema::selector::LabelSelector::from_ref(d.at("spec.selector"))
        && !s.matches(|k| labels.get(k).as_str())
    {
        e.push(FieldError::invalid("spec.template.metadata.labels", labels.to_value(), "`selector` does not match template `labels`"));
    }
}

/// The parts of a pod template that say where its pods may run.
const SCHEDULING: &[&str] =
    &["metadata.labels", "metadata.annotations", "spec.nodeSelector", "spec.affinity", "spec.tolerations", "spec.schedulingGates"];

fn validate_update(a: Action, new: &Doc, old: &Doc, e: &mut ErrorList) {
    if a == Action::Status {
        job_policy::status(new, old, e);
    }
    if a != Action::Main {
        return;
    }
    validate_selected(new, e);
    spec(new, "spec", e);
    completions(new, old, e);
    super::immutable(new, old, "spec.selector", e);
    // Work that has not begun may still be moved elsewhere.
    let movable = old.at("spec.suspend").bool() && !old.at("status.startTime").exists();
    let template = |d: &Doc| {
        let mut t = d.at("spec.template").to_value();
        for path in SCHEDULING.iter().filter(|_| movable) {
            if let Some((part, field)) = path.split_once('.')
                && let Some(m) = t[part].as_object_mut()
            {
                m.remove(field);
            }
        }
        t
    };
    if template(new) != template(old) {
        let path = if movable { "spec.template.spec" } else { "spec.template" };
        e.push(FieldError::invalid(path, new.at(path).to_value(), "field is immutable"));
    }
    for f in ["spec.completionMode", "spec.podFailurePolicy", "spec.backoffLimitPerIndex", "spec.managedBy", "spec.successPolicy"] {
        super::immutable(new, old, f, e);
    }
}

/// An indexed job changes its size only as a whole.
fn completions(new: &Doc, old: &Doc, e: &mut ErrorList) {
    let path = "spec.completions";
    if new.at("spec.completionMode").str() != "Indexed" {
        super::immutable(new, old, path, e);
    } else if !new.at(path).semantic_eq(old.at(path)) && !new.at(path).semantic_eq(new.at("spec.parallelism")) {
        e.push(FieldError::invalid(path, new.at(path).to_value(), "can only be modified in tandem with spec.parallelism"));
    }
}
