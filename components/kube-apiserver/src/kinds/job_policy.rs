//! When a job has failed and when it has succeeded: its policies, and what may be said of it.

use k8s_schema::{Doc, Ref};
use serde_json::{Value, json};

use crate::validation::{ErrorList, FieldError, child, index, names, values};

/// An invalid value that is not shown.
fn wrong(path: &str, why: impl Into<String>) -> FieldError {
    FieldError::invalid_raw(path, "", why)
}

fn one_of(v: &str, path: String, known: &[&str], e: &mut ErrorList) {
    if v.is_empty() {
        let all: Vec<String> = known.iter().map(|k| format!("{k:?}")).collect();
        e.push(FieldError::required(path, format!("valid values: [{}]", all.join(" "))));
    } else if !known.contains(&v) {
        e.push(FieldError::not_supported(path, v, known));
    }
}

pub fn pod_failure(spec: Ref<'_>, path: &str, e: &mut ErrorList) {
    let rules = spec.at("podFailurePolicy.rules");
    let at = format!("{path}.podFailurePolicy.rules");
    if rules.len() > 20 {
        e.push(FieldError::too_many(at.as_str(), rules.len(), 20));
    }
    let template = spec.at("template.spec");
    let containers: Vec<&str> =
        ["containers", "initContainers"].iter().flat_map(|l| template.get(l).iter()).map(|c| c.get("name").str()).collect();
    for (i, r) in rules.iter().enumerate() {
        let at = index(&at, i);
        let action = r.get("action").str();
        if action == "FailIndex" && !spec.get("backoffLimitPerIndex").exists() {
            e.push(FieldError::invalid(child(&at, "action"), action, "requires the backoffLimitPerIndex to be set"));
        }
        one_of(action, child(&at, "action"), &["Count", "FailIndex", "FailJob", "Ignore"], e);
        let (codes, conditions) = (r.get("onExitCodes"), r.get("onPodConditions"));
        if codes.exists() {
            exit_codes(codes, &child(&at, "onExitCodes"), &containers, e);
        }
        if conditions.len() > 20 {
            e.push(FieldError::too_many(child(&at, "onPodConditions"), conditions.len(), 20));
        }
        for (j, c) in conditions.iter().enumerate() {
            let at = index(&child(&at, "onPodConditions"), j);
            let ty = c.get("type").str();
            e.all_invalid(&child(&at, "type"), ty, names::qualified_name(ty));
            one_of(c.get("status").str(), child(&at, "status"), &["False", "True", "Unknown"], e);
        }
        match (codes.exists(), conditions.is_empty()) {
            (true, false) => e.push(wrong(&at, "specifying both OnExitCodes and OnPodConditions is not supported")),
            (false, true) => e.push(wrong(&at, "specifying one of OnExitCodes and OnPodConditions is required")),
            _ => {}
        }
    }
}

fn exit_codes(codes: Ref<'_>, at: &str, containers: &[&str], e: &mut ErrorList) {
    let operator = codes.get("operator").str();
    one_of(operator, child(at, "operator"), &["In", "NotIn"], e);
    if let Some(name) = codes.get("containerName").as_str().filter(|n| !containers.contains(n)) {
        let why = "must be one of the container or initContainer names in the pod template";
        e.push(FieldError::invalid(child(at, "containerName"), name, why));
    }
    let list: Vec<i64> = codes.get("values").iter().map(Ref::int).collect();
    let path = child(at, "values");
    if list.is_empty() {
        e.push(FieldError::invalid(path.as_str(), json!([]), "at least one value is required"));
    } else if list.len() > 255 {
        e.push(FieldError::too_many(path.as_str(), list.len(), 255));
    }
    for (i, v) in list.iter().enumerate() {
        if operator == "In" && *v == 0 {
            e.push(FieldError::invalid(index(&path, i), 0i64, "must not be 0 for the In operator"));
        }
        if list[..i].contains(v) {
            e.push(FieldError::duplicate(index(&path, i), *v));
        }
    }
    if !list.is_sorted() {
        e.push(FieldError::invalid(path, json!(list), "must be ordered"));
    }
}

/// Indexes such as `1,3-5` of a job with so many completions: how many they are.
pub fn indexes(text: &str, completions: i64) -> Result<i64, String> {
    let (mut last, mut count) = (None::<i64>, 0);
    if text.is_empty() {
        return Ok(0);
    }
    for part in text.split(',') {
        let ends: Vec<&str> = part.split('-').collect();
        if ends.len() > 2 {
            return Err(format!(
                "the fragment {part:?} violates the requirement that an index interval can have at most two parts separated by '-'"
            ));
        }
        for end in &ends {
            let n: i64 = end.parse().map_err(|_| format!("cannot convert string to integer for index: {end:?}"))?;
            if n >= completions {
                return Err(format!("too large index: {end:?}"));
            }
            if let Some(previous) = last.filter(|l| *l >= n) {
                return Err(format!("non-increasing order, previous: {previous}, current: {n}"));
            }
            last = Some(n);
        }
        let (a, b) = (ends[0].parse::<i64>().unwrap_or(0), last.unwrap_or(0));
        count += b - a + 1;
    }
    Ok(count)
}

pub fn success(spec: Ref<'_>, path: &str, e: &mut ErrorList) {
    let policy = spec.get("successPolicy");
    let at = child(path, "successPolicy");
    if spec.get("completionMode").str() != "Indexed" {
        let rules: Vec<Value> = policy
            .get("rules")
            .iter()
            .map(
                |r| json!({"SucceededIndexes": r.get("succeededIndexes").to_value(), "SucceededCount": r.get("succeededCount").to_value()}),
            )
            .collect();
        e.push(FieldError::invalid(at, json!({"Rules": rules}), "requires indexed completion mode"));
        return;
    }
    let rules = policy.get("rules");
    let at = child(&at, "rules");
    if rules.is_empty() {
        e.push(FieldError::required(at.as_str(), "at least one rules must be specified when the successPolicy is specified"));
    }
    if rules.len() > 20 {
        e.push(FieldError::too_many(at.as_str(), rules.len(), 20));
    }
    let completions = spec.get("completions").int();
    for (i, r) in rules.iter().enumerate() {
        let at = index(&at, i);
        let (named, wanted) = (r.get("succeededIndexes"), r.get("succeededCount"));
        if !named.exists() && !wanted.exists() {
            e.push(FieldError::required(at.as_str(), "at least one of succeededCount or succeededIndexes must be specified"));
        }
        let mut of = (completions, "specified completions");
        if let Some(text) = named.as_str() {
            match indexes(text, completions) {
                Ok(n) => of = (n, "indexes in the specified succeededIndexes field"),
                Err(why) => {
                    e.push(FieldError::invalid(child(&at, "succeededIndexes"), text, format!("error parsing succeededIndexes: {why}")))
                }
            }
        }
        if let Some(n) = wanted.as_i64() {
            let at = child(&at, "succeededCount");
            values::non_negative(n, &at, e);
            if n > of.0 {
                e.push(FieldError::invalid(at, n, format!("must be less than or equal to {} (the number of {})", of.0, of.1)));
            }
        }
    }
}

/// What the controller reports of a job.
pub fn status(new: &Doc, old: &Doc, e: &mut ErrorList) {
    let s = new.at("status");
    for f in ["active", "succeeded", "failed", "ready"] {
        if let Some(n) = s.get(f).as_i64() {
            values::non_negative(n, &format!("status.{f}"), e);
        }
    }
    if s.get("ready").exists() && s.get("ready").int() > s.get("active").int() {
        e.push(FieldError::invalid("status.ready", s.get("ready").int(), "cannot set more ready pods than active"));
    }
    let is = |d: &Doc, ty: &str| d.at("status.conditions").find("type", ty).get("status").str() == "True";
    let complete = is(new, "Complete");
    let finished = complete || is(new, "Failed");
    let (start, end) = (s.get("startTime"), s.get("completionTime"));
    if complete && end.time_seconds().is_none() {
        e.push(FieldError::required("status.completionTime", "completionTime is required for Complete jobs"));
    }
    if !complete && end.time_seconds().is_some() {
        e.push(FieldError::invalid(
            "status.completionTime",
            end.to_value(),
            "cannot set completionTime when there is no Complete=True condition",
        ));
    }
    if finished && start.time_seconds().is_none() {
        e.push(FieldError::required("status.startTime", "startTime is required for finished job"));
    }
    let begun = old.at("status.startTime");
    if begun.time_seconds().is_some() && !new.at("spec.suspend").bool() && !start.semantic_eq(begun) {
        e.push(FieldError::invalid("status.startTime", start.to_value(), "field is immutable for unsuspended job once set"));
    }
    if complete && !is(new, "SuccessCriteriaMet") {
        e.push(wrong("status.conditions", "cannot set Complete=True condition without the SuccessCriteriaMet=true condition"));
    }
    for ty in ["Complete", "Failed"].into_iter().filter(|ty| is(old, ty) && !is(new, ty)) {
        e.push(wrong("status.conditions", format!("cannot disable the terminal {ty}=True condition")));
    }
    for ty in ["FailureTarget", "SuccessCriteriaMet"].into_iter().filter(|ty| is(old, ty) && !is(new, ty)) {
        e.push(wrong("status.conditions", format!("cannot disable the {ty}=True condition")));
    }
    if finished && s.get("active").int() > 0 {
        e.push(FieldError::invalid("status.active", s.get("active").int(), "active>0 is invalid for finished job"));
    }
    // An indexed job that shrinks counts fewer successes.
    let indexed = new.at("spec.completionMode").str() == "Indexed";
    for f in ["failed", "succeeded"].into_iter().filter(|f| !(indexed && *f == "succeeded")) {
        let n = s.get(f).int();
        if n < old.at("status").get(f).int() {
            e.push(FieldError::invalid(format!("status.{f}"), n, format!("cannot decrease the {f} counter")));
        }
    }
    let path = "status.uncountedTerminatedPods";
    for list in ["succeeded", "failed"] {
        let all: Vec<&str> = s.get("uncountedTerminatedPods").get(list).strings().collect();
        for (i, uid) in all.iter().enumerate().filter(|(i, uid)| all[..*i].contains(uid)) {
            e.push(FieldError::duplicate(index(&child(path, list), i), *uid));
        }
    }
    let pods = s.get("uncountedTerminatedPods");
    if finished && !(pods.get("succeeded").is_empty() && pods.get("failed").is_empty()) {
        let list = |f: &str| if pods.get(f).is_empty() { Value::Null } else { pods.get(f).to_value() };
        let shown = json!({"Succeeded": list("succeeded"), "Failed": list("failed")});
        e.push(FieldError::invalid(path, shown, "must be empty for finished job"));
    }
    if let Some(text) = s.get("completedIndexes").as_str().filter(|t| !t.is_empty()) {
        let path = "status.completedIndexes";
        if let Err(why) = indexes(text, new.at("spec.completions").int()) {
            e.push(FieldError::invalid(path, text, format!("error parsing completedIndexes: {why}")));
        }
        if new.at("spec.completionMode").str() != "Indexed" {
            e.push(FieldError::invalid(path, text, "cannot set non-empty completedIndexes when non-indexed completion mode"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_grow_and_are_counted() {
        for (text, want) in [
            ("", Ok(0)),
            ("0", Ok(1)),
            ("0-2,4", Ok(4)),
            ("3-1", Err("non-increasing order, previous: 3, current: 1")),
            ("1,1", Err("non-increasing order, previous: 1, current: 1")),
            ("9", Err("too large index: \"9\"")),
            ("x", Err("cannot convert string to integer for index: \"x\"")),
        ] {
            assert_eq!(indexes(text, 5), want.map_err(str::to_owned), "{text}");
        }
    }
}
