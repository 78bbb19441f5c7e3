//! The bootstrap roles: their rules for those who need them before they are stored.

use k8s_schema::Doc;
use serde_json::Value;

use crate::authz::rbac::{Rule, uncovered};

/// People who change a bootstrap role and mean to keep it so say this.
const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// A stored bootstrap role or binding with what it lacks: rules that those it has do not cover, subjects, labels. What was added to
/// it stays. None: nothing is lacking, or it is not to be changed.
pub fn reconciled(stored: &Doc, wanted: &Value) -> Option<Doc> {
    if stored.at("metadata.annotations").get(AUTO_UPDATE).str() == "false" {
        return None;
    }
    let mut new = stored.clone();
    let mut change = false;
    let list = |field: &str| wanted[field].as_array().cloned().unwrap_or_default();
    // The rules of aggregated roles are the controller manager's.
    if wanted.get("aggregationRule").is_none() {
        let owned: Vec<Rule> = stored.at("rules").iter().map(Rule::from_ref).collect();
        for rule in list("rules") {
            if !uncovered(&owned, &[rule_of(&rule)]).is_empty() {
                new.push("rules", rule).ok()?;
                change = true;
            }
        }
    }
    let subjects: Vec<Value> = stored.at("subjects").iter().map(|s| s.to_value()).collect();
    let same =
        |a: &Value, b: &Value| ["kind", "namespace", "name"].iter().all(|f| a[f].as_str().unwrap_or("") == b[f].as_str().unwrap_or(""));
    for subject in list("subjects") {
        if !subjects.iter().any(|s| same(s, &subject)) {
            new.push("subjects", subject).ok()?;
            change = true;
        }
    }
    for kind in ["labels", "annotations"] {
        for (k, v) in wanted["metadata"][kind].as_object().into_iter().flatten() {
            let path = format!("metadata.{kind}[{k}]");
            if !stored.at(&path).exists() {
                new.set(&path, v.clone()).ok()?;
                change = true;
            }
        }
    }
    change.then_some(new)
}

fn rule_of(r: &Value) -> Rule {
    let strings = |field: &str| r[field].as_array().into_iter().flatten().filter_map(|s| s.as_str().map(str::to_owned)).collect();
    Rule {
        verbs: strings("verbs"),
        groups: strings("apiGroups"),
        resources: strings("resources"),
        names: strings("resourceNames"),
        urls: strings("nonResourceURLs"),
    }
}

/// The rules of a bootstrap cluster role.
pub fn rules_of(name: &str) -> Vec<Rule> {
    let data = super::data();
    data["clusterroles"]["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|r| r["metadata"]["name"] == name)
        .flat_map(|r| r["rules"].as_array().into_iter().flatten())
        .map(rule_of)
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::authz::Attributes;

    fn may(role: &str, verb: &str, group: &str, resource: &str) -> bool {
        let a =
            Attributes { verb: verb.into(), is_resource: true, group: group.into(), resource: resource.into(), ..Attributes::default() };
        rules_of(role).iter().any(|r| r.allows(&a))
    }

    #[test]
    fn what_a_role_lacks_is_added_and_nothing_taken_away() {
        let schema = k8s_schema::Schema::builtin();
        let ty = schema.kind("rbac.authorization.k8s.io", "v1", "ClusterRole").unwrap();
        let role = |rules: Value, annotations: Value| {
            let v = json!({"metadata": {"name": "r", "annotations": annotations, "labels": {"a": "b"}}, "rules": rules});
            Doc::from_value(&schema, ty, &v).unwrap().doc
        };
        let rule = |verbs: &[&str]| json!({"verbs": verbs, "apiGroups": [""], "resources": ["pods"]});
        let wanted = json!({"metadata": {"name": "r", "labels": {"a": "b"}}, "rules": [rule(&["get", "list"])]});
        for (what, stored, after) in [
            ("all there", role(json!([rule(&["list", "get"])]), json!({})), None),
            ("more there", role(json!([rule(&["*"])]), json!({})), None),
            ("split", role(json!([rule(&["get"]), rule(&["list"])]), json!({})), None),
            ("part missing", role(json!([rule(&["get"])]), json!({})), Some(json!([rule(&["get"]), rule(&["get", "list"])]))),
            ("nothing there", role(json!(null), json!({})), Some(json!([rule(&["get", "list"])]))),
            ("kept so", role(json!(null), json!({AUTO_UPDATE: "false"})), None),
        ] {
            let new = reconciled(&stored, &wanted);
            let rules = new.map(|d| d.at("rules").iter().map(|r| r.to_value()).collect::<Value>());
            let same = |a: &Value, b: &Value| a.as_array().map(Vec::len) == b.as_array().map(Vec::len);
            assert!(
                rules.as_ref().zip(after.as_ref()).map_or(rules.is_none() == after.is_none(), |(a, b)| same(a, b)),
                "{what}: {rules:?}"
            );
        }
    }

    #[test]
    fn bootstrap_roles_allow_what_their_holders_need_and_no_more() {
        for (role, verb, group, resource, want) in [
            ("cluster-admin", "delete", "apps", "deployments", true),
            ("system:node", "create", "", "nodes", true),
            ("system:node", "delete", "apps", "deployments", false),
            ("system:kube-scheduler", "delete", "", "nodes", false),
            ("system:kube-scheduler", "list", "", "nodes", true),
            ("system:node-bootstrapper", "create", "certificates.k8s.io", "certificatesigningrequests", true),
            ("system:node-proxier", "watch", "discovery.k8s.io", "endpointslices", true),
            ("system:basic-user", "list", "", "secrets", false),
        ] {
            assert_eq!(may(role, verb, group, resource), want, "{role} {verb} {resource}");
        }
    }
}
