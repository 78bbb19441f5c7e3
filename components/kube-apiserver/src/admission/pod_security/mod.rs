//! PodSecurity: pods must keep to the Pod Security Standard that their namespace's labels name.
//!
//! Pods are refused; what makes pods (deployments, jobs and so on) is only warned of and noted in the audit log, as the pods themselves
//! come later. The standards are a table of pure checks (`checks`); this file knows when to ask them and what to answer.

mod baseline;
mod checks;
mod config;
mod policy;
mod restricted;
#[cfg(test)]
mod tests;

use std::collections::HashSet;

use k8s_schema::{Doc, Ref};

use checks::{NEWEST, Pod, Verdict, judge};
pub use config::{Config, ConfigError};
use policy::{Level, Policy, Standard, Version};

use super::{Attributes, Operation};
use crate::{
    http::{ApiError, Group},
    validation::ErrorList,
};

/// Annotations of the audit log begin with this.
const ANNOTATION: &str = "pod-security.kubernetes.io/";
/// Pods that are looked at when a namespace gets a stricter policy.
const MAX_PODS: usize = 3000;

/// The paths of pod subresources that say nothing about the pod's spec.
const UNASKED: &[&str] = &["exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status"];

/// Where the resources that make pods have their template.
const TEMPLATES: &[(&str, &str, &str)] = &[
    ("", "replicationcontrollers", "spec.template"),
    ("", "podtemplates", "template"),
    ("apps", "replicasets", "spec.template"),
    ("apps", "deployments", "spec.template"),
    ("apps", "statefulsets", "spec.template"),
    ("apps", "daemonsets", "spec.template"),
    ("batch", "jobs", "spec.template"),
    ("batch", "cronjobs", "spec.jobTemplate.spec.template"),
];

pub fn validate(a: &Attributes<'_>, new: Option<&Doc>, old: Option<&Doc>) -> Result<(), ApiError> {
    let Some(new) = new.filter(|_| matches!(a.operation, Operation::Create | Operation::Update)) else { return Ok(()) };
    match (a.res.group.as_str(), a.res.plural.as_str()) {
        ("", "namespaces") if a.subresource.is_empty() => namespace(a, new, old),
        ("", "pods") if !UNASKED.contains(&a.subresource) => pod(a, new, old),
        (group, plural) if a.subresource.is_empty() => {
            if let Some((.., path)) = TEMPLATES.iter().find(|(g, p, _)| *g == group && *p == plural) {
                template(a, new.at(path));
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The policy of the request's namespace, from the labels that its cache entry carries.
fn policy_of(a: &Attributes<'_>, config: &Config) -> Option<(Policy, ErrorList)> {
    let stored = a.ctx.server.objects.reflector.cache("namespaces")?.get(&a.ctx.info.namespace)?;
    Some(policy::of_labels(|k| stored.label(k), &config.defaults))
}

/// Why nothing is asked of a request, if so.
fn exemption(a: &Attributes<'_>, config: &Config) -> Option<&'static str> {
    if config.namespaces.contains(&a.ctx.info.namespace) {
        Some("namespace")
    } else if config.users.contains(&a.ctx.user.name) {
        Some("user")
    } else {
        None
    }
}

fn is_privileged(s: Standard) -> bool {
    s.level == Level::Privileged
}

fn exempted(a: &Attributes<'_>, why: &str) {
    a.ctx.server.metrics.pod_security.exemptions.add(&[operation(a), kind(a), a.subresource]);
    a.ctx.annotate(format!("{ANNOTATION}exempt"), why);
}

fn pod(a: &Attributes<'_>, pod: &Doc, old: Option<&Doc>) -> Result<(), ApiError> {
    let config = &a.ctx.server.admission.pod_security;
    if let Some(why) = exemption(a, config) {
        exempted(a, why);
        return Ok(());
    }
    let Some((policy, errors)) = policy_of(a, config) else {
        a.ctx.server.metrics.pod_security.errors.add(&["true", operation(a), kind(a), a.subresource]);
        return Err(ApiError::internal(format!("failed to lookup namespace {}", a.ctx.info.namespace)));
    };
    if errors.is_empty() && [policy.enforce, policy.warn, policy.audit].into_iter().all(is_privileged) {
        evaluated(a, "allow", policy.enforce, "enforce");
        a.ctx.annotate(format!("{ANNOTATION}enforce-policy"), "privileged:latest");
        return Ok(());
    }
    if old.is_some_and(|old| !significant(pod, old)) {
        return Ok(());
    }
    evaluate(a, config, &policy, &errors, Pod { meta: pod.at("metadata"), spec: pod.at("spec") }, true)
}

fn template(a: &Attributes<'_>, template: Ref<'_>) {
    let config = &a.ctx.server.admission.pod_security;
    if !template.exists() {
        return;
    }
    if let Some(why) = exemption(a, config) {
        return exempted(a, why);
    }
    let Some((policy, errors)) = policy_of(a, config) else {
        a.ctx.server.metrics.pod_security.errors.add(&["true", operation(a), kind(a), a.subresource]);
        return a.ctx.annotate(format!("{ANNOTATION}error"), &format!("failed to lookup namespace {}", a.ctx.info.namespace));
    };
    if errors.is_empty() && is_privileged(policy.warn) && is_privileged(policy.audit) {
        return;
    }
    let pod = Pod { meta: template.get("metadata"), spec: template.get("spec") };
    // Without enforcement nothing is refused.
    let _ = evaluate(a, config, &policy, &errors, pod, false);
}

fn evaluate(a: &Attributes<'_>, config: &Config, policy: &Policy, errors: &ErrorList, pod: Pod<'_>, enforce: bool) -> Result<(), ApiError> {
    let class = pod.spec.get("runtimeClassName").str();
    if !class.is_empty() && config.runtime_classes.iter().any(|c| c == class) {
        exempted(a, "runtimeClass");
        return Ok(());
    }
    if !errors.is_empty() {
        let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let shown = if let [one] = all.as_slice() { one.clone() } else { format!("[{}]", all.join(", ")) };
        a.ctx.annotate(format!("{ANNOTATION}error"), &format!("Failed to parse policy: {shown}"));
        a.ctx.server.metrics.pod_security.errors.add(&["false", operation(a), kind(a), a.subresource]);
    }
    // Mostly the three are the same standard or none.
    let mut known: Vec<(Standard, Verdict)> = Vec::new();
    let mut verdict = |s: Standard| -> usize {
        known.iter().position(|(k, _)| *k == s).unwrap_or_else(|| {
            known.push((s, judge(s, pod)));
            known.len() - 1
        })
    };
    let (enforced, audited, warned) = (enforce.then(|| verdict(policy.enforce)), verdict(policy.audit), verdict(policy.warn));
    let known = known;
    let mut refusal = None;
    if let Some((standard, verdict)) = enforced.map(|i| &known[i]) {
        a.ctx.annotate(format!("{ANNOTATION}enforce-policy"), &standard.to_string());
        evaluated(a, if verdict.allowed() { "allow" } else { "deny" }, *standard, "enforce");
        if !verdict.allowed() {
            let name = pod.meta.get("name").str();
            let why = format!("violates PodSecurity \"{standard}\": {}", verdict.details());
            refusal = Some(ApiError::forbidden(Group(&a.res.group, &a.res.plural), name, why));
        }
    }
    let would = |(standard, verdict): &(Standard, Verdict)| format!("would violate PodSecurity \"{standard}\": {}", verdict.details());
    if !known[audited].1.allowed() {
        a.ctx.annotate(format!("{ANNOTATION}audit-violations"), &would(&known[audited]));
        evaluated(a, "deny", known[audited].0, "audit");
    }
    // Who is refused needs no warning.
    if refusal.is_none() && !known[warned].1.allowed() {
        a.ctx.warn(would(&known[warned]));
        evaluated(a, "deny", known[warned].0, "warn");
    }
    refusal.map_or(Ok(()), Err)
}

fn operation(a: &Attributes<'_>) -> &'static str {
    if a.operation == Operation::Create { "create" } else { "update" }
}

fn kind(a: &Attributes<'_>) -> &'static str {
    match a.res.plural.as_str() {
        "pods" => "pod",
        "namespaces" => "namespace",
        _ => "controller",
    }
}

fn evaluated(a: &Attributes<'_>, decision: &str, standard: Standard, mode: &str) {
    let version = match standard.version {
        // The minor version of this server; rules of the future are today's.
        Version::Minor(n) if n > NEWEST + 1 => "future".to_owned(),
        v => v.to_string(),
    };
    let labels = [decision, standard.level.name(), &version, mode, operation(a), kind(a), a.subresource];
    a.ctx.server.metrics.pod_security.evaluations.add(&labels);
}

/// Whether an update touched what the checks look at and an update may change: images, and the annotations for seccomp.
fn significant(new: &Doc, old: &Doc) -> bool {
    let annotation = |d: &Doc, k: &str| d.at("metadata.annotations").get(k).as_str().map(str::to_owned);
    let container = |n: Ref<'_>, o: Ref<'_>| {
        let key = format!("container.seccomp.security.alpha.kubernetes.io/{}", n.get("name").str());
        n.get("image").str() != o.get("image").str() || annotation(new, &key) != annotation(old, &key)
    };
    let pod_profile = "seccomp.security.alpha.kubernetes.io/pod";
    let list = |d: &'_ Doc, l: &str| d.at("spec").get(l).len();
    annotation(new, pod_profile) != annotation(old, pod_profile)
        || ["containers", "initContainers"].into_iter().any(|l| {
            list(new, l) != list(old, l) || new.at("spec").get(l).iter().zip(old.at("spec").get(l).iter()).any(|(n, o)| container(n, o))
        })
        || new.at("spec.ephemeralContainers").iter().any(|n| {
            let o = old.at("spec.ephemeralContainers").find("name", n.get("name").str());
            !o.exists() || container(n, o)
        })
}

/// Labels must be good; when what is enforced gets stricter, who does it hears of the pods that are there already.
fn namespace(a: &Attributes<'_>, new: &Doc, old: Option<&Doc>) -> Result<(), ApiError> {
    let config = &a.ctx.server.admission.pod_security;
    let of = |d: &Doc| {
        let (policy, errors) = {
            let labels = d.at("metadata.labels");
            policy::of_labels(|k| labels.get(k).as_str(), &config.defaults)
        };
        (policy, errors)
    };
    let name = new.at("metadata.name").str();
    let invalid = |errors: &ErrorList| ApiError::invalid(Group("", "Namespace"), name, errors);
    let (policy, errors) = of(new);
    let Some(old) = old.filter(|_| a.operation == Operation::Update) else {
        return if errors.is_empty() { Ok(()) } else { Err(invalid(&errors)) };
    };
    let (before, old_errors) = of(old);
    let told = |e: &ErrorList| e.iter().map(ToString::to_string).collect::<Vec<_>>();
    if !errors.is_empty() && told(&errors) != told(&old_errors) {
        return Err(invalid(&errors));
    }
    let relaxed = policy.enforce.version == before.enforce.version && policy.enforce.level <= before.enforce.level;
    if policy.enforce == before.enforce || is_privileged(policy.enforce) || relaxed {
        return Ok(());
    }
    if config.namespaces.iter().any(|n| n == name) {
        a.ctx.annotate(format!("{ANNOTATION}exempt"), "namespace");
        return Ok(());
    }
    for w in existing_pods(a, config, name, policy.enforce) {
        a.ctx.warn(w);
    }
    Ok(())
}

/// What to say of the pods of a namespace that do not keep to its new standard.
fn existing_pods(a: &Attributes<'_>, config: &Config, namespace: &str, standard: Standard) -> Vec<String> {
    let objects = &a.ctx.server.objects;
    let all = objects.list("pods", &format!("{namespace}/"));
    let total = all.len();
    // Pods of one controller look alike: the first of each comes before the others of all.
    let mut controllers = HashSet::new();
    let (mut first, mut others) = (Vec::new(), Vec::new());
    for stored in all.iter().take(MAX_PODS) {
        let Some(doc) = objects.doc(stored) else { continue };
        if config.runtime_classes.iter().any(|c| c == doc.at("spec.runtimeClassName").str()) {
            continue;
        }
        let again = doc.meta().controller().is_some_and(|c| !controllers.insert(c.uid.to_owned()));
        if again { others.push(doc) } else { first.push(doc) }
    }
    first.append(&mut others);
    let judged = first.iter().filter_map(|d| {
        let verdict = judge(standard, Pod { meta: d.at("metadata"), spec: d.at("spec") });
        (!verdict.allowed()).then(|| (d.at("metadata.name").str().to_owned(), verdict.reasons()))
    });
    summary(namespace, standard, total, judged)
}

/// One line per set of reasons, with the first pod by name and the number of the others.
fn summary(namespace: &str, standard: Standard, total: usize, judged: impl Iterator<Item = (String, String)>) -> Vec<String> {
    let mut groups: Vec<(String, String, usize)> = Vec::new();
    for (pod, reasons) in judged {
        match groups.iter_mut().find(|(r, ..)| *r == reasons) {
            Some((_, name, n)) => {
                *n += 1;
                if pod < *name {
                    *name = pod;
                }
            }
            None => groups.push((reasons, pod, 1)),
        }
    }
    let mut lines: Vec<String> = groups
        .iter()
        .map(|(reasons, name, n)| match n {
            1 => format!("{name}: {reasons}"),
            2 => format!("{name} (and 1 other pod): {reasons}"),
            n => format!("{name} (and {} other pods): {reasons}", n - 1),
        })
        .collect();
    lines.sort();
    let mut out = Vec::new();
    if total > MAX_PODS {
        out.push(format!("new PodSecurity enforce level only checked against the first {MAX_PODS} of {total} existing pods"));
    }
    if !lines.is_empty() {
        out.push(format!("existing pods in namespace \"{namespace}\" violate the new PodSecurity enforce level \"{standard}\""));
    }
    out.append(&mut lines);
    out
}
