//! Between the versions of a kind. Most versions of a kind have the same fields; the others have a function per edge.

use k8s_schema::{Doc, Schema, TypeId};
use serde_json::{Value, json};

use crate::registry::Resource;

/// From the version in etcd to the one that is served.
pub fn to_version(schema: &Schema, doc: Doc, res: &Resource) -> Result<Doc, String> {
    match res.type_id {
        Some(ty) if ty != doc.type_id() => convert(schema, &doc, ty, &res.api_version(), &res.kind),
        _ => Ok(doc),
    }
}

/// From the version that is served to the one in etcd.
pub fn to_storage(schema: &Schema, doc: Doc, res: &Resource) -> Result<Doc, String> {
    match res.storage_type {
        Some(ty) if ty != doc.type_id() => {
            let av = if res.storage_group.is_empty() {
                res.storage_version.clone()
            } else {
                format!("{}/{}", res.storage_group, res.storage_version)
            };
            convert(schema, &doc, ty, &av, &res.kind)
        }
        _ => Ok(doc),
    }
}

fn convert(schema: &Schema, doc: &Doc, ty: TypeId, api_version: &str, kind: &str) -> Result<Doc, String> {
    let mut v = doc.to_value();
    let from = doc.api_version().to_owned();
    match (from.as_str(), api_version) {
        ("events.k8s.io/v1", "v1") => rename(&mut v, EVENT, false),
        ("v1", "events.k8s.io/v1") => rename(&mut v, EVENT, true),
        ("autoscaling/v1", "autoscaling/v2") => hpa_v1_to_v2(&mut v),
        ("autoscaling/v2", "autoscaling/v1") => hpa_v2_to_v1(&mut v),
        _ => {}
    }
    v["apiVersion"] = api_version.into();
    v["kind"] = kind.into();
    Doc::from_value(schema, ty, &v).map(|d| d.doc).map_err(|e| format!("converting {kind} from {from} to {api_version}: {e}"))
}

/// Names of Event fields: core, events.k8s.io.
const EVENT: &[(&str, &str)] = &[
    ("message", "note"),
    ("involvedObject", "regarding"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

fn rename(v: &mut Value, names: &[(&str, &str)], forward: bool) {
    let Some(m) = v.as_object_mut() else { return };
    for (a, b) in names {
        let (from, to) = if forward { (a, b) } else { (b, a) };
        if let Some(x) = m.remove(*from) {
            m.insert((*to).into(), x);
        }
    }
}

const HPA_METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const HPA_BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const HPA_CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const HPA_CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";

fn annotation(v: &mut Value, key: &str) -> Option<Value> {
    let text = v["metadata"]["annotations"].as_object_mut()?.remove(key)?;
    serde_json::from_str(text.as_str()?).ok()
}

fn hpa_v1_to_v2(v: &mut Value) {
    let cpu = v["spec"].as_object_mut().and_then(|s| s.remove("targetCPUUtilizationPercentage"));
    let mut metrics = annotation(v, HPA_METRICS).and_then(|m| m.as_array().cloned()).unwrap_or_default();
    if let Some(n) = cpu.filter(|n| !n.is_null()) {
        metrics.insert(
            0,
            json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": n}}}),
        );
    }
    if !metrics.is_empty() {
        v["spec"]["metrics"] = metrics.into();
    }
    if let Some(b) = annotation(v, HPA_BEHAVIOR) {
        v["spec"]["behavior"] = b;
    }
    if v["status"].is_object() {
        let cpu = v["status"].as_object_mut().and_then(|s| s.remove("currentCPUUtilizationPercentage"));
        let mut current = annotation(v, HPA_CURRENT).and_then(|m| m.as_array().cloned()).unwrap_or_default();
        if let Some(n) = cpu.filter(|n| !n.is_null()) {
            current.insert(0, json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": n}}}));
        }
        if !current.is_empty() {
            v["status"]["currentMetrics"] = current.into();
        }
        if let Some(c) = annotation(v, HPA_CONDITIONS) {
            v["status"]["conditions"] = c;
        }
    }
    if v["metadata"]["annotations"].as_object().is_some_and(serde_json::Map::is_empty)
        && let Some(m) = v["metadata"].as_object_mut()
    {
        m.remove("annotations");
    }
}

fn is_cpu(m: &Value) -> bool {
    m["type"] == "Resource" && m["resource"]["name"] == "cpu" && !m["resource"]["target"]["averageUtilization"].is_null()
}

fn hpa_v2_to_v1(v: &mut Value) {
    let mut metrics = v["spec"].as_object_mut().and_then(|s| s.remove("metrics")).and_then(|m| m.as_array().cloned()).unwrap_or_default();
    if let Some(i) = metrics.iter().position(is_cpu) {
        let m = metrics.remove(i);
        v["spec"]["targetCPUUtilizationPercentage"] = m["resource"]["target"]["averageUtilization"].clone();
    }
    let mut notes = Vec::new();
    if !metrics.is_empty() {
        notes.push((HPA_METRICS, Value::from(metrics)));
    }
    if let Some(b) = v["spec"].as_object_mut().and_then(|s| s.remove("behavior")) {
        notes.push((HPA_BEHAVIOR, b));
    }
    if let Some(s) = v["status"].as_object_mut() {
        let mut current = s.remove("currentMetrics").and_then(|m| m.as_array().cloned()).unwrap_or_default();
        if let Some(i) = current.iter().position(|m| m["type"] == "Resource" && m["resource"]["name"] == "cpu") {
            let m = current.remove(i);
            if !m["resource"]["current"]["averageUtilization"].is_null() {
                s.insert("currentCPUUtilizationPercentage".into(), m["resource"]["current"]["averageUtilization"].clone());
            }
        }
        if !current.is_empty() {
            notes.push((HPA_CURRENT, current.into()));
        }
        if let Some(c) = s.remove("conditions") {
            notes.push((HPA_CONDITIONS, c));
        }
    }
    for (k, x) in notes {
        v["metadata"]["annotations"][k] = x.to_string().into();
    }
}
