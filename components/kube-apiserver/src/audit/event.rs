//! The event of one stage of one request, as audit.k8s.io/v1 or as a line of text.

use jiff::Timestamp;
use k8s_schema::{Doc, Schema};
use serde_json::{Map, Value, json};

use super::{Level, Payload, Record, Stage, State, log::Format};
use crate::authn::User;

/// A body as a JSON value; none: it is in no encoding that can be shown.
pub fn decode(schema: &Schema, p: &Payload) -> Option<Value> {
    if p.bytes.starts_with(crate::objects::PROTOBUF_MAGIC) {
        return Doc::from_protobuf(schema, p.bytes.clone()).ok().map(|d| d.to_value());
    }
    if p.content_type.contains("yaml") {
        return serde_yaml::from_slice(&p.bytes).ok();
    }
    serde_json::from_slice(&p.bytes).ok()
}

fn without_managed_fields(v: &mut Value) {
    let clean = |v: &mut Value| {
        if let Some(m) = v.get_mut("metadata").and_then(Value::as_object_mut) {
            m.shift_remove("managedFields");
        }
    };
    clean(v);
    v.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten().for_each(clean);
}

fn user(u: &User) -> Value {
    let mut m = Map::new();
    if !u.name.is_empty() {
        m.insert("username".into(), u.name.as_str().into());
    }
    if !u.uid.is_empty() {
        m.insert("uid".into(), u.uid.as_str().into());
    }
    if !u.groups.is_empty() {
        m.insert("groups".into(), json!(u.groups));
    }
    if !u.extra.is_empty() {
        m.insert("extra".into(), u.extra.iter().map(|(k, v)| (k.clone(), json!(v))).collect::<Map<_, _>>().into());
    }
    m.into()
}

/// With six digits, as a MicroTime.
fn micros(t: Timestamp) -> String {
    format!("{t:.6}")
}

/// The event of a stage with a newline at its end. One that is longer than `limit` loses its objects; none: it is too long even so.
pub fn line(r: &Record, s: &State, stage: Stage, now: Timestamp, format: Format, limit: Option<usize>) -> Option<Vec<u8>> {
    let text = match format {
        Format::Legacy => legacy(r, s, stage, now),
        Format::Json => {
            let mut v = value(r, s, stage, now);
            let text = v.to_string();
            if limit.is_some_and(|limit| text.len() > limit) {
                truncate(&mut v);
                v.to_string()
            } else {
                text
            }
        }
    };
    let mut out = text.into_bytes();
    out.push(b'\n');
    // The newline does not count.
    limit.is_none_or(|limit| out.len() <= limit + 1).then_some(out)
}

/// Takes the objects out of an event, and says so in it.
fn truncate(event: &mut Value) {
    let Some(e) = event.as_object_mut() else { return };
    e.shift_remove("requestObject");
    e.shift_remove("responseObject");
    let annotations = e.entry("annotations").or_insert_with(|| json!({}));
    annotations["audit.k8s.io/truncated"] = "true".into();
}

fn value(r: &Record, s: &State, stage: Stage, now: Timestamp) -> Value {
    let mut e = json!({
        "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": r.ruling.level.name(), "auditID": r.id, "stage": stage.name(),
        "requestURI": r.uri, "verb": r.verb, "user": user(&r.user),
    });
    if let Some(u) = &s.impersonated {
        e["impersonatedUser"] = user(u);
    }
    if let Some(c) = &s.constraint {
        e["authenticationMetadata"] = json!({ "impersonationConstraint": c });
    }
    e["sourceIPs"] = json!(r.sources);
    if !r.agent.is_empty() {
        e["userAgent"] = r.agent.as_str().into();
    }
    if let Some(o) = &s.object {
        let fields = [
            ("resource", &o.resource),
            ("namespace", &o.namespace),
            ("name", &o.name),
            ("uid", &o.uid),
            ("apiGroup", &o.group),
            ("apiVersion", &o.version),
            ("resourceVersion", &o.resource_version),
            ("subresource", &o.subresource),
        ];
        let set = fields.into_iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| (k.to_owned(), Value::from(v.as_str())));
        e["objectRef"] = set.collect::<Map<_, _>>().into();
    }
    let answered = stage != Stage::RequestReceived;
    if answered {
        e["responseStatus"] = status(s, stage);
    }
    let body = |p: &Payload| {
        let mut v = decode(&r.audit.schema, p)?;
        if r.ruling.omit_managed_fields {
            without_managed_fields(&mut v);
        }
        Some(v)
    };
    if answered && let Some(v) = s.request.as_ref().and_then(body) {
        e["requestObject"] = v;
    }
    if matches!(stage, Stage::ResponseComplete | Stage::Panic)
        && r.ruling.level == Level::RequestResponse
        && let Some(v) = s.response.as_ref().and_then(body)
    {
        e["responseObject"] = v;
    }
    e["requestReceivedTimestamp"] = micros(r.received).into();
    e["stageTimestamp"] = micros(now).into();
    if !s.annotations.is_empty() {
        e["annotations"] = json!(s.annotations);
    }
    e
}

/// What became of the request, in short.
fn status(s: &State, stage: Stage) -> Value {
    let mut out = json!({"metadata": {}});
    if stage == Stage::Panic {
        out["status"] = "Failure".into();
        out["message"] = "APIServer panic'd".into();
        out["reason"] = "InternalError".into();
    } else if let Some(status) = &s.status {
        for f in ["status", "message", "reason", "details"] {
            if !status[f].is_null() {
                out[f] = status[f].clone();
            }
        }
    }
    out["code"] = s.code.into();
    out
}

fn legacy(r: &Record, s: &State, stage: Stage, now: Timestamp) -> String {
    let groups = |g: &[String], none: &str| {
        if g.is_empty() { none.to_owned() } else { g.iter().map(|g| format!("{g:?}")).collect::<Vec<_>>().join(",") }
    };
    let or = |v: &str, none: &str| if v.is_empty() { none.to_owned() } else { v.to_owned() };
    let (as_, as_groups) = match &s.impersonated {
        Some(u) => (u.name.clone(), groups(&u.groups, "<lookup>")),
        None => ("<self>".into(), "<lookup>".into()),
    };
    let response = if stage == Stage::RequestReceived { "<deferred>".to_owned() } else { s.code.to_string() };
    let namespace = or(s.object.as_ref().map_or("", |o| o.namespace.as_str()), "<none>");
    format!(
        "{} AUDIT: id={:?} stage={:?} ip={:?} method={:?} user={:?} groups={} as={as_:?} asgroups={as_groups} user-agent={:?} namespace={namespace:?} uri=\"{}\" response=\"{response}\"",
        micros(r.received.max(now)),
        r.id,
        stage.name(),
        r.sources.first().map_or("<unknown>", String::as_str),
        r.verb,
        or(&r.user.name, "<none>"),
        groups(&r.user.groups, "<none>"),
        r.agent,
        r.uri,
    )
}
