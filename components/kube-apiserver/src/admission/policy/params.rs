//! The parameters of a binding: objects of the policy's kind, by name or by labels.

use k8s_schema::{Doc, selector::LabelSelector};
use serde_json::Value as Json;

use crate::admission::Attributes;

/// Every parameter to judge with; one that is none where the policy has no parameters.
pub fn of(a: &Attributes<'_>, kind: Option<&(String, String)>, reference: Option<&Json>) -> Result<Vec<Option<Json>>, String> {
    let Some((api_version, kind)) = kind else { return Ok(vec![None]) };
    // Without a reference, params is null.
    let Some(reference) = reference else { return Ok(vec![Some(Json::Null)]) };
    let registry = &a.ctx.server.registry;
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let of_version = registry.of_group_version(group, version);
    let Some(res) = of_version.iter().find(|r| r.kind == *kind && !r.prefix.is_empty()) else {
        return Err(format!("failed to find resource referenced by paramKind: '{group}/{version}, Kind={kind}'"));
    };
    let text = |f: &str| reference[f].as_str().unwrap_or("");
    let namespace = match (res.namespaced, text("namespace")) {
        (false, "") => "",
        (false, _) => return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into()),
        (true, "") if a.res.namespaced => a.ctx.info.namespace.as_str(),
        (true, "") => return Err("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".into()),
        (true, given) => given,
    };
    let objects = &a.ctx.server.objects;
    let read = |d: Doc| match &res.custom {
        Some(custom) => custom.read(&d).ok().map(|d| d.to_value()),
        None => crate::kinds::convert::to_version(&objects.schema, d, res).ok().map(|d| d.to_value()),
    };
    let found: Vec<Option<Json>> = match text("name") {
        "" => {
            let selector = selector(&reference["selector"])?;
            let start = if res.namespaced { format!("{namespace}/") } else { String::new() };
            let all = objects.list(&res.prefix, &start).into_iter().filter(|s| selector.matches(|k| s.label(k)));
            all.filter_map(|s| objects.doc(&s)).filter_map(read).map(Some).collect()
        }
        name => objects.get(&res.prefix, &res.key(namespace, name)).and_then(read).map(Some).into_iter().collect(),
    };
    if found.is_empty() && text("parameterNotFoundAction") == "Deny" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
    }
    Ok(found)
}

fn selector(v: &Json) -> Result<LabelSelector, String> {
    let doc = crate::custom::to_doc(&serde_json::json!({ "selector": v }));
    LabelSelector::from_ref(doc.at("selector")).map_err(|e| e.to_string())
}
