//! The objects of flow control: those that every cluster has are written and kept, schemas are told whether their level is there, and
//! what is configured is followed.

use std::{sync::Arc, time::Duration};

use k8s_schema::{Doc, Schema};
use serde_json::{Value, json};

use super::{FlowControl, Gate};
use crate::{bootstrap, handlers::write, http::ApiError, registry::Resource, server::Server, storage::StoreError};

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const LEVELS: &str = "prioritylevelconfigurations";
const SCHEMAS: &str = "flowschemas";
/// Without these two nothing could be mended; nobody changes them.
const MANDATORY: &[&str] = &["exempt", "catch-all"];
const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";
/// How often seats are moved among levels.
const ADJUST: Duration = Duration::from_secs(10);

/// What every cluster has.
#[derive(Debug)]
pub struct Defaults {
    pub levels: Vec<Doc>,
    pub schemas: Vec<Doc>,
}

impl Defaults {
    pub fn new(schema: &Schema) -> Self {
        let all = |set: &str, kind: &str| {
            let ty = schema.kind(GROUP, "v1", kind);
            let doc = |v: &Value| Some(Doc::from_value(schema, ty?, v).ok()?.doc);
            bootstrap::items(set).iter().filter_map(doc).collect()
        };
        Self { levels: all(LEVELS, "PriorityLevelConfiguration"), schemas: all(SCHEMAS, "FlowSchema") }
    }
}

/// Puts the configuration in force for the first time.
pub fn begin(server: &Server) {
    if let Gate::Fair(control) = &server.gate {
        follow(server, control, &Defaults::new(&server.objects.schema));
    }
}

/// Follows the configuration while the server runs.
pub async fn run(server: Arc<Server>) {
    let Gate::Fair(control) = &server.gate else { return };
    let reflector = &server.objects.reflector;
    let (Some(levels), Some(schemas)) = (reflector.cache(LEVELS), reflector.cache(SCHEMAS)) else { return };
    let (mut levels_changed, mut schemas_changed) = (levels.subscribe(), schemas.subscribe());
    let defaults = Defaults::new(&server.objects.schema);
    let mut tick = tokio::time::interval(ADJUST);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        follow(&server, control, &defaults);
        if let Err(e) = conditions(&server).await {
            tracing::warn!(error = %e, "the conditions of flow schemas cannot be written; they are tried again");
        }
        loop {
            tokio::select! {
                // The senders live as long as the server.
                _ = levels_changed.changed() => break,
                _ = schemas_changed.changed() => break,
                _ = tick.tick() => control.adjust(),
                () = server.stop.cancelled() => return,
            }
        }
    }
}

fn docs(server: &Server, prefix: &str) -> Vec<Doc> {
    server.objects.list(prefix, "").iter().filter_map(|s| server.objects.doc(s)).collect()
}

/// Puts in force what the caches show, and of the mandatory objects always what they must be.
fn follow(server: &Server, control: &FlowControl, defaults: &Defaults) {
    let with = |mut there: Vec<Doc>, defaults: &[Doc]| {
        for d in defaults.iter().filter(|d| MANDATORY.contains(&d.meta().name())) {
            match there.iter_mut().find(|t| t.meta().name() == d.meta().name()) {
                Some(t) => {
                    // The same field of the same type: this cannot fail.
                    let _ = t.copy_from("spec", d.at("spec"));
                }
                None => there.push(d.clone()),
            }
        }
        there
    };
    let (levels, schemas) = (docs(server, LEVELS), docs(server, SCHEMAS));
    // Before anything is read, everything that there will be holds.
    if levels.is_empty() && schemas.is_empty() {
        return;
    }
    control.configure(&with(levels, &defaults.levels), &with(schemas, &defaults.schemas));
}

/// Every schema says whether its level is there.
async fn conditions(server: &Server) -> Result<(), ApiError> {
    let Some(res) = server.registry.stored(GROUP, SCHEMAS) else { return Ok(()) };
    let levels: Vec<String> = docs(server, LEVELS).iter().map(|d| d.meta().name().to_owned()).collect();
    for stored in server.objects.list(SCHEMAS, "") {
        let Some(mut doc) = server.objects.doc(&stored) else { continue };
        let level = doc.at("spec.priorityLevelConfiguration.name").str().to_owned();
        let there = levels.contains(&level);
        let Some(wanted) = dangling(&doc, &level, there, &write::now()) else { continue };
        doc.set("status.conditions", wanted).map_err(ApiError::internal)?;
        put(server, res, stored.rev, &doc).await?;
    }
    Ok(())
}

/// The conditions of a schema as they should be; none: they are.
fn dangling(schema: &Doc, level: &str, there: bool, now: &str) -> Option<Value> {
    let about = format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?}");
    let (status, reason, message) = match there {
        true => ("False", "Found", format!("{about} and it exists")),
        false => ("True", "NotFound", format!("{about} but there is no such object")),
    };
    let before = schema.at("status.conditions").find("type", "Dangling");
    let same = |f: &str, v: &str| before.get(f).str() == v;
    if same("status", status) && same("reason", reason) && same("message", &message) {
        return None;
    }
    let since = if same("status", status) && before.get("lastTransitionTime").exists() {
        before.get("lastTransitionTime").to_value()
    } else {
        now.into()
    };
    let mut all: Vec<Value> =
        schema.at("status.conditions").iter().filter(|c| c.get("type").str() != "Dangling").map(|c| c.to_value()).collect();
    all.push(json!({"type": "Dangling", "status": status, "lastTransitionTime": since, "reason": reason, "message": message}));
    Some(all.into())
}

async fn put(server: &Server, res: &Resource, rev: i64, doc: &Doc) -> Result<(), ApiError> {
    let key = format!("{}{}/{}", server.root, res.prefix, doc.meta().name());
    match server.etcd.update(&key, rev, write::to_storage(&server.objects.schema, res, doc)?, 0).await {
        Ok(_) | Err(StoreError::Changed { .. }) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// What becomes of an object that is there.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Nothing,
    /// Its spec, its annotation.
    Set(bool, Option<&'static str>),
    Delete,
}

/// `wanted` is the object as it should be, if it is one of those that every cluster has.
fn plan(there: &Doc, wanted: Option<&Doc>) -> Change {
    let annotation = there.meta().annotation(AUTO_UPDATE);
    let Some(wanted) = wanted else {
        // One that a former version brought, and that is no more.
        return if annotation == Some("true") { Change::Delete } else { Change::Nothing };
    };
    let mandatory = MANDATORY.contains(&there.meta().name());
    let automatic = mandatory
        || match annotation {
            Some("true") => true,
            Some("false") => false,
            // Who changed it wants to keep it.
            _ => there.meta().generation() == 1,
        };
    let spec = automatic && !there.at("spec").semantic_eq(wanted.at("spec"));
    let text = if automatic { "true" } else { "false" };
    let note = (annotation != Some(text)).then_some(text);
    if spec || note.is_some() { Change::Set(spec, note) } else { Change::Nothing }
}

/// Writes the objects that every cluster has as they should be, and removes what is no more.
pub async fn defaults(server: &Server) -> Result<(), ApiError> {
    let defaults = Defaults::new(&server.objects.schema);
    for (plural, wanted) in [(LEVELS, &defaults.levels), (SCHEMAS, &defaults.schemas)] {
        let Some(res) = server.registry.stored(GROUP, plural) else { continue };
        let there = server.objects.list(plural, "");
        for stored in &there {
            let Some(mut doc) = server.objects.doc(stored) else { continue };
            let wanted = wanted.iter().find(|w| w.meta().name() == doc.meta().name());
            match (plan(&doc, wanted), wanted) {
                (Change::Set(spec, note), Some(wanted)) => {
                    if spec {
                        doc.copy_from("spec", wanted.at("spec")).map_err(ApiError::internal)?;
                        let generation = doc.meta().generation() + 1;
                        doc.set("metadata.generation", generation).map_err(ApiError::internal)?;
                    }
                    if let Some(note) = note {
                        doc.set(&format!("metadata.annotations[{AUTO_UPDATE}]"), note).map_err(ApiError::internal)?;
                    }
                    put(server, res, stored.rev, &doc).await?;
                }
                (Change::Delete, _) => {
                    let key = format!("{}{}/{}", server.root, res.prefix, stored.name());
                    match server.etcd.delete(&key, stored.rev).await {
                        Ok(_) | Err(StoreError::Changed { .. }) => {}
                        Err(e) => return Err(e.into()),
                    }
                }
                _ => {}
            }
        }
        for w in wanted.iter().filter(|w| !there.iter().any(|s| s.name() == w.meta().name())) {
            bootstrap::create(server, res, w.to_value()).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(v: Value) -> Doc {
        let s = Schema::builtin();
        Doc::from_value(&s, s.kind(GROUP, "v1", "FlowSchema").unwrap(), &v).unwrap().doc
    }

    #[test]
    fn every_cluster_has_the_levels_and_schemas_of_upstream() {
        let d = Defaults::new(&Schema::builtin());
        let names = |docs: &[Doc]| docs.iter().map(|d| d.meta().name().to_owned()).collect::<Vec<_>>();
        for m in MANDATORY {
            assert!(names(&d.levels).iter().any(|n| n == m) && names(&d.schemas).iter().any(|n| n == m), "{m}");
        }
        assert_eq!(d.levels.len(), 8);
        for s in &d.schemas {
            assert!(names(&d.levels).iter().any(|n| n == s.at("spec.priorityLevelConfiguration.name").str()), "{}", s.meta().name());
        }
    }

    #[test]
    fn objects_are_kept_unless_somebody_wants_them_otherwise() {
        let of = |name: &str, annotation: Option<&str>, generation: i64, precedence: i64| {
            let mut v = json!({"metadata": {"name": name, "generation": generation}, "spec": {"matchingPrecedence": precedence, "priorityLevelConfiguration": {"name": "l"}}});
            if let Some(a) = annotation {
                v["metadata"]["annotations"] = json!({AUTO_UPDATE: a});
            }
            schema(v)
        };
        let wanted = of("x", None, 1, 7);
        for (there, wanted, want) in [
            (of("x", Some("true"), 4, 7), Some(&wanted), Change::Nothing),
            (of("x", Some("true"), 4, 8), Some(&wanted), Change::Set(true, None)),
            (of("x", Some("false"), 1, 8), Some(&wanted), Change::Nothing),
            (of("x", None, 1, 8), Some(&wanted), Change::Set(true, Some("true"))),
            (of("x", None, 2, 8), Some(&wanted), Change::Set(false, Some("false"))),
            (of("exempt", Some("false"), 2, 8), Some(&wanted), Change::Set(true, Some("true"))),
            (of("old", Some("true"), 1, 8), None, Change::Delete),
            (of("own", None, 1, 8), None, Change::Nothing),
        ] {
            assert_eq!(plan(&there, wanted), want, "{:?}", there.to_value());
        }
    }

    #[test]
    fn a_schema_tells_when_its_level_is_gone() {
        let s = schema(
            json!({"metadata": {"name": "x"}, "status": {"conditions": [{"type": "Dangling", "status": "False", "reason": "Found", "lastTransitionTime": "2026-01-01T00:00:00Z",
            "message": "This FlowSchema references the PriorityLevelConfiguration object named \"l\" and it exists"}]}}),
        );
        assert_eq!(dangling(&s, "l", true, "now"), None);
        let gone = dangling(&s, "l", false, "2026-01-02T00:00:00Z").unwrap();
        assert_eq!(gone[0]["status"], "True");
        assert_eq!(gone[0]["lastTransitionTime"], "2026-01-02T00:00:00Z");
        assert_eq!(
            gone[0]["message"],
            "This FlowSchema references the PriorityLevelConfiguration object named \"l\" but there is no such object"
        );
        let other = dangling(&s, "m", true, "now").unwrap();
        assert_eq!((&other[0]["status"], &other[0]["lastTransitionTime"]), (&json!("False"), &json!("2026-01-01T00:00:00Z")));
    }
}
