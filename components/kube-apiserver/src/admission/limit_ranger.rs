//! LimitRanger: defaults of a namespace's limit ranges for pods, and the limits that pods and claims must keep.

use std::collections::BTreeMap;

use k8s_schema::{Doc, Quantity, Ref};
use serde_json::Value;

use super::{Attributes, Operation};
use crate::http::{ApiError, Group};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";
/// Beyond this, quantities are compared in whole units.
const MAX_MILLI: i64 = i64::MAX / 1000;

type Amounts = BTreeMap<String, Quantity>;

fn ranges(a: &Attributes<'_>) -> Vec<Doc> {
    let objects = &a.ctx.server.objects;
    objects.list("limitranges", &format!("{}/", a.ctx.info.namespace)).iter().filter_map(|s| objects.doc(s)).collect()
}

fn amounts(r: Ref<'_>) -> Amounts {
    r.entries().filter_map(|(k, v)| Some((k.to_owned(), v.quantity()?))).collect()
}

/// Gives containers what the limit ranges say they have when they don't say.
pub fn admit(a: &Attributes<'_>, pod: &mut Doc, _: Option<&Doc>) -> Result<(), ApiError> {
    if a.operation != Operation::Create || !a.is("", "pods") {
        return Ok(());
    }
    let (mut requests, mut limits) = (BTreeMap::new(), BTreeMap::new());
    for range in ranges(a) {
        for item in range.at("spec.limits").iter().filter(|l| l.get("type").str() == "Container") {
            requests.extend(item.get("defaultRequest").entries().map(|(k, v)| (k.to_owned(), v.str().to_owned())));
            limits.extend(item.get("default").entries().map(|(k, v)| (k.to_owned(), v.str().to_owned())));
        }
    }
    if requests.is_empty() && limits.is_empty() {
        return Ok(());
    }
    let mut notes = Vec::new();
    for (list, what) in [("spec.containers", "container"), ("spec.initContainers", "init container")] {
        pod.for_each(list, |mut c| -> Result<(), k8s_schema::EditError> {
            let name = c.get("name").str().to_owned();
            for (defaults, field, noun) in [(&requests, "requests", "request"), (&limits, "limits", "limit")] {
                let mut set = Vec::new();
                for (resource, amount) in defaults {
                    let path = format!("resources.{field}[{resource}]");
                    if c.set_default(&path, amount.as_str())? {
                        set.push(resource.as_str());
                    }
                }
                if !set.is_empty() {
                    notes.push(format!("{} {noun} for {what} {name}", set.join(", ")));
                }
            }
            Ok(())
        })
        .map_err(ApiError::internal)?;
    }
    if !notes.is_empty() {
        let note = format!("LimitRanger plugin set: {}", notes.join("; "));
        pod.set(&format!("metadata.annotations[{ANNOTATION}]"), Value::from(note)).map_err(ApiError::internal)?;
    }
    Ok(())
}

/// The larger of two amounts per resource.
fn at_least(all: &mut Amounts, other: &Amounts) {
    for (k, v) in other {
        if all.get(k).is_none_or(|x| x < v) {
            all.insert(k.clone(), v.clone());
        }
    }
}

fn add(all: &mut Amounts, other: &Amounts) {
    for (k, v) in other {
        match all.get_mut(k) {
            Some(x) => x.add(v),
            None => {
                all.insert(k.clone(), v.clone());
            }
        }
    }
}

/// What a pod takes as a whole: its containers together, or an init container (with the sidecars started before it) that takes more.
pub fn of_pod(pod: Ref<'_>, field: &str) -> Amounts {
    let spec = pod.get("spec");
    let of = |c: Ref<'_>| amounts(c.get("resources").get(field));
    let (mut total, mut sidecars, mut init) = (Amounts::new(), Amounts::new(), Amounts::new());
    spec.get("containers").iter().for_each(|c| add(&mut total, &of(c)));
    for c in spec.get("initContainers").iter() {
        if c.get("restartPolicy").str() == "Always" {
            add(&mut total, &of(c));
            add(&mut sidecars, &of(c));
            at_least(&mut init, &sidecars);
        } else {
            let mut with = sidecars.clone();
            add(&mut with, &of(c));
            at_least(&mut init, &with);
        }
    }
    at_least(&mut total, &init);
    total
}

/// Numbers to compare: in thousandths when none is too large for that.
fn numbers(all: [&Quantity; 2]) -> [i64; 2] {
    if all.iter().all(|q| q.value() <= MAX_MILLI) { all.map(Quantity::milli_value) } else { all.map(Quantity::value) }
}

fn less(a: &Quantity, b: &Quantity) -> bool {
    let [a, b] = numbers([a, b]);
    a < b
}

fn minimum(kind: &str, name: &str, enforced: &Quantity, request: &Amounts, limit: &Amounts) -> Option<String> {
    let what = format!("minimum {name} usage per {kind} is {enforced}");
    match (request.get(name), limit.get(name)) {
        (None, _) => Some(format!("{what}.  No request is specified")),
        (Some(r), _) if less(r, enforced) => Some(format!("{what}, but request is {r}")),
        (_, Some(l)) if less(l, enforced) => Some(format!("{what}, but limit is {l}")),
        _ => None,
    }
}

fn maximum(kind: &str, name: &str, enforced: &Quantity, request: &Amounts, limit: &Amounts) -> Option<String> {
    let what = format!("maximum {name} usage per {kind} is {enforced}");
    match (limit.get(name), request.get(name)) {
        (None, _) => Some(format!("{what}.  No limit is specified")),
        (Some(l), _) if less(enforced, l) => Some(format!("{what}, but limit is {l}")),
        (_, Some(r)) if less(enforced, r) => Some(format!("{what}, but request is {r}")),
        _ => None,
    }
}

fn ratio(kind: &str, name: &str, enforced: &Quantity, request: &Amounts, limit: &Amounts) -> Option<String> {
    let what = format!("{name} max limit to request ratio per {kind} is {enforced}");
    let given = |q: Option<&Quantity>| q.filter(|q| !q.is_zero()).cloned();
    let Some(r) = given(request.get(name)) else { return Some(format!("{what}, but no request is specified or request is 0")) };
    let Some(l) = given(limit.get(name)) else { return Some(format!("{what}, but no limit is specified or limit is 0")) };
    let [l, r] = numbers([&l, &r]);
    let observed = l as f64 / r as f64;
    (observed > enforced.as_f64()).then(|| format!("{what}, but provided ratio is {observed:.6}"))
}

fn check_all(kind: &str, item: Ref<'_>, request: &Amounts, limit: &Amounts, out: &mut Vec<String>) {
    type Check = fn(&str, &str, &Quantity, &Amounts, &Amounts) -> Option<String>;
    for (field, check) in [("min", minimum as Check), ("max", maximum), ("maxLimitRequestRatio", ratio)] {
        for (name, enforced) in amounts(item.get(field)) {
            out.extend(check(kind, &name, &enforced, request, limit));
        }
    }
}

fn check_pod(range: &Doc, pod: &Doc, out: &mut Vec<String>) {
    for item in range.at("spec.limits").iter() {
        match item.get("type").str() {
            "Container" => {
                for c in pod.at("spec.containers").iter().chain(pod.at("spec.initContainers").iter()) {
                    let of = |f: &str| amounts(c.get("resources").get(f));
                    check_all("Container", item, &of("requests"), &of("limits"), out);
                }
            }
            "Pod" => check_all("Pod", item, &of_pod(pod.root(), "requests"), &of_pod(pod.root(), "limits"), out),
            _ => {}
        }
    }
}

fn check_claim(range: &Doc, claim: &Doc, out: &mut Vec<String>) {
    let request = amounts(claim.at("spec.resources.requests"));
    let kind = "PersistentVolumeClaim";
    for item in range.at("spec.limits").iter().filter(|i| i.get("type").str() == kind) {
        for (field, word, wrong) in [("min", "minimum", less as fn(&Quantity, &Quantity) -> bool), ("max", "maximum", |r, e| less(e, r))] {
            for (name, enforced) in amounts(item.get(field)) {
                let what = format!("{word} {name} usage per {kind} is {enforced}");
                match request.get(&name) {
                    None => out.push(format!("{what}.  No request is specified")),
                    Some(r) if wrong(r, &enforced) => out.push(format!("{what}, but request is {r}")),
                    Some(_) => {}
                }
            }
        }
    }
}

/// Holds pods and claims to the limit ranges of their namespace.
pub fn validate(a: &Attributes<'_>, doc: Option<&Doc>, _: Option<&Doc>) -> Result<(), ApiError> {
    let Some(doc) = doc else { return Ok(()) };
    let pods = a.res.group.is_empty() && a.res.plural == "pods";
    let pod = a.operation == Operation::Create && a.is("", "pods") || a.operation == Operation::Update && pods && a.subresource == "resize";
    let claim = a.is("", "persistentvolumeclaims");
    if !pod && !claim {
        return Ok(());
    }
    let mut wrong: Vec<String> = Vec::new();
    for range in ranges(a) {
        if pod {
            check_pod(&range, doc, &mut wrong);
        } else {
            check_claim(&range, doc, &mut wrong);
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(ApiError::forbidden(Group("", &a.res.plural), doc.meta().name(), several(&wrong))) }
}

/// Several errors as one text; the same one is told once.
pub fn several(all: &[String]) -> String {
    let mut seen: Vec<&str> = Vec::new();
    for m in all {
        if !seen.contains(&m.as_str()) {
            seen.push(m);
        }
    }
    if seen.len() == 1 { seen[0].to_owned() } else { format!("[{}]", seen.join(", ")) }
}

#[cfg(test)]
mod tests {
    use k8s_schema::Schema;
    use serde_json::json;

    use super::*;

    fn doc(kind: &str, v: &Value) -> Doc {
        let schema = Schema::builtin();
        Doc::from_value(&schema, schema.kind("", "v1", kind).unwrap(), v).unwrap().doc
    }

    #[test]
    fn limits_are_told_with_upstreams_words() {
        let range = doc(
            "LimitRange",
            &json!({"spec": {"limits": [
                {"type": "Container", "max": {"cpu": "2"}, "min": {"cpu": "100m"}, "maxLimitRequestRatio": {"cpu": "4"}},
                {"type": "Pod", "max": {"cpu": "3"}}]}}),
        );
        let pod = |limit: &str, request: &str| {
            doc(
                "Pod",
                &json!({"spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": limit}, "requests": {"cpu": request}}}]}}),
            )
        };
        let told = |p: Doc| {
            let mut out = Vec::new();
            check_pod(&range, &p, &mut out);
            out
        };
        assert_eq!(told(pod("1", "500m")), [""; 0]);
        assert_eq!(
            told(pod("9", "10m")),
            [
                "minimum cpu usage per Container is 100m, but request is 10m",
                "maximum cpu usage per Container is 2, but limit is 9",
                "cpu max limit to request ratio per Container is 4, but provided ratio is 900.000000",
                "maximum cpu usage per Pod is 3, but limit is 9"
            ]
        );
        assert_eq!(
            told(pod("0", "0")),
            [
                "minimum cpu usage per Container is 100m, but request is 0",
                "cpu max limit to request ratio per Container is 4, but no request is specified or request is 0"
            ]
        );
    }

    #[test]
    fn a_pod_takes_what_its_containers_do_or_an_init_container_that_takes_more() {
        let c = |cpu: &str| json!({"name": "x", "resources": {"limits": {"cpu": cpu}}});
        let pod = doc("Pod", &json!({"spec": {"containers": [c("1"), c("1")], "initContainers": [c("5")]}}));
        assert_eq!(of_pod(pod.root(), "limits")["cpu"].to_string(), "5");
    }
}
