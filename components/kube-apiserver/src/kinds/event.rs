//! Events, in both of their forms: the old one of the core group takes almost anything, the new one has rules.

use k8s_schema::{Doc, Ref};
use serde_json::{Map, Value};

use super::{PLAIN, Strategy};
use crate::validation::{ErrorList, FieldError, names};

pub const CORE: Strategy = Strategy { name: names::path_segment, create_on_update: true, validate_create: core, ..PLAIN };
pub const EVENTS: Strategy = Strategy {
    name: names::path_segment,
    create_on_update: true,
    validate_create: create,
    validate_update: |_, n, o, e| update(n, o, e),
    ..PLAIN
};

/// What is reported about has a namespace of its own, which is the event's; of things without one the event stands in `default`.
fn involved(d: &Doc, object: &str, e: &mut ErrorList, strict: bool) {
    let (object, ns) = (d.at(object), d.meta().namespace());
    let theirs = object.get("namespace").str();
    let wrong = if theirs.is_empty() {
        ns != "default"
    } else {
        // Objects of core kinds without a namespace may be named with any.
        strict && ns != theirs && !(object.get("apiVersion").str() == "v1" && object.get("kind").str() == "Node")
    };
    if wrong {
        e.push(FieldError::invalid("involvedObject.namespace", theirs, "does not match event.namespace"));
    }
}

fn core(d: &Doc, e: &mut ErrorList) {
    involved(d, "involvedObject", e, true);
    // What has a time with microseconds was written by a client that knows the new rules.
    if d.at("eventTime").time_seconds().is_some() {
        reporter(d.at("reportingComponent").str(), "reportingComponent", e);
        texts(d, e);
    }
}

fn reporter(name: &str, field: &str, e: &mut ErrorList) {
    if name.is_empty() {
        e.push(FieldError::required(field, ""));
    }
    e.all_invalid(field, name, names::qualified_name(name));
}

fn texts(d: &Doc, e: &mut ErrorList) {
    for field in ["reportingInstance", "action", "reason"] {
        match d.at(field).str().len() {
            0 => e.push(FieldError::required(field, "")),
            1..=128 => {}
            _ => e.push(FieldError::invalid(field, "", "can have at most 128 characters")),
        }
    }
}

fn create(d: &Doc, e: &mut ErrorList) {
    involved(d, "regarding", e, false);
    if d.at("eventTime").time_seconds().is_none() {
        e.push(FieldError::required("eventTime", ""));
    }
    series(d, e);
    reporter(d.at("reportingController").str(), "reportingController", e);
    texts(d, e);
    if d.at("note").str().len() > 1024 {
        e.push(FieldError::invalid("message", "", "can have at most 1024 characters"));
    }
    let kind = d.at("type").str();
    if !matches!(kind, "Normal" | "Warning") {
        e.push(FieldError::invalid("type", "", format!("has invalid value: {kind}")));
    }
    for (field, core) in [("deprecatedFirstTimestamp", "firstTimestamp"), ("deprecatedLastTimestamp", "lastTimestamp")] {
        if d.at(field).time_seconds().is_some() {
            e.push(FieldError::invalid(core, "", "needs to be unset"));
        }
    }
    if d.at("deprecatedCount").int() != 0 {
        e.push(FieldError::invalid("count", "", "needs to be unset"));
    }
    let source = d.at("deprecatedSource");
    if !source.get("component").str().is_empty() || !source.get("host").str().is_empty() {
        e.push(FieldError::invalid("source", "", "needs to be unset"));
    }
}

fn series(d: &Doc, e: &mut ErrorList) {
    let series = d.at("series");
    if !series.exists() {
        return;
    }
    if series.get("count").int() < 2 {
        e.push(FieldError::invalid("series.count", "", "should be at least 2"));
    }
    if series.get("lastObservedTime").time_seconds().is_none() {
        e.push(FieldError::required("series.lastObservedTime", ""));
    }
}

/// A reference as Go prints it.
fn reference(r: Ref<'_>) -> Value {
    const FIELDS: [(&str, &str); 7] = [
        ("Kind", "kind"),
        ("Namespace", "namespace"),
        ("Name", "name"),
        ("UID", "uid"),
        ("APIVersion", "apiVersion"),
        ("ResourceVersion", "resourceVersion"),
        ("FieldPath", "fieldPath"),
    ];
    Value::Object(FIELDS.iter().map(|(go, json)| ((*go).to_owned(), r.get(json).str().into())).collect::<Map<_, _>>())
}

fn update(new: &Doc, old: &Doc, e: &mut ErrorList) {
    // The fields as the core group names them.
    const FIXED: [(&str, &str); 13] = [
        ("regarding", "involvedObject"),
        ("reason", "reason"),
        ("note", "message"),
        ("deprecatedSource", "source"),
        ("deprecatedFirstTimestamp", "firstTimestamp"),
        ("deprecatedLastTimestamp", "lastTimestamp"),
        ("deprecatedCount", "count"),
        ("type", "type"),
        ("eventTime", "eventTime"),
        ("action", "action"),
        ("related", "related"),
        ("reportingController", "reportingController"),
        ("reportingInstance", "reportingInstance"),
    ];
    for (field, core) in FIXED {
        let (n, o) = (new.at(field), old.at(field));
        if !n.semantic_eq(o) {
            let shown = if matches!(field, "regarding" | "related") { reference(n) } else { n.to_value() };
            e.push(FieldError::invalid(core, shown, "field is immutable"));
        }
    }
    series(new, e);
}

#[cfg(test)]
mod tests {
    use k8s_schema::Schema;
    use serde_json::json;

    use super::*;

    #[test]
    fn new_events_say_when_what_and_who() {
        let schema = Schema::builtin();
        let ty = schema.kind("events.k8s.io", "v1", "Event").unwrap();
        let event = |v: Value| Doc::from_value(&schema, ty, &v).unwrap().doc;
        let good = json!({"metadata": {"name": "e", "namespace": "ns"}, "eventTime": "2020-01-01T00:00:00.123456Z", "regarding": {"namespace": "ns"},
            "reportingController": "a.b/c", "reportingInstance": "i", "action": "A", "reason": "R", "type": "Normal"});
        let mut e = ErrorList::new();
        create(&event(good.clone()), &mut e);
        assert!(e.is_empty(), "{e:?}");
        let mut bad = good.clone();
        bad["type"] = "X".into();
        bad["series"] = json!({"count": 1, "lastObservedTime": "2020-01-01T00:00:00.123456Z"});
        create(&event(bad), &mut e);
        let all: Vec<String> = e.iter().map(ToString::to_string).collect();
        assert_eq!(all, ["series.count: Invalid value: \"\": should be at least 2", "type: Invalid value: \"\": has invalid value: X"]);
        let mut e = ErrorList::new();
        let mut other = good.clone();
        other["reason"] = "Z".into();
        update(&event(other), &event(good), &mut e);
        assert_eq!(e.iter().next().unwrap().to_string(), "reason: Invalid value: \"Z\": field is immutable");
    }
}
