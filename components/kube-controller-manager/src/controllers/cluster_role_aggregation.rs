//! Fills ClusterRoles that are made of others: `admin`, `edit` and `view` get their rules this way.

use std::sync::Arc;

use k8s_client::{
    Action, Change, Error, Informer, LabelSelector, Named, Object, ObjectKey, ObjectMeta, Patch, Request, Resource, WorkQueue,
    null_default, resources::CLUSTER_ROLES, run_workers,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::context::Context;

/// A ClusterRole as far as aggregation needs it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterRole {
    metadata: ObjectMeta,
    #[serde(deserialize_with = "null_default")]
    rules: Vec<Value>,
    aggregation_rule: Option<AggregationRule>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AggregationRule {
    #[serde(deserialize_with = "null_default")]
    cluster_role_selectors: Vec<LabelSelector>,
}

impl Object for ClusterRole {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl Named for ClusterRole {
    const RESOURCE: Resource = CLUSTER_ROLES;
}

/// The rules of all roles the selectors match, ordered by selector and then by name, each once. Nothing when the role is not aggregated or
/// already right.
fn plan(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<Value>> {
    let aggregation = role.aggregation_rule.as_ref()?;
    let mut rules: Vec<Value> = Vec::new();
    for selector in &aggregation.cluster_role_selectors {
        for other in all.iter().filter(|other| other.metadata.name != role.metadata.name && selector.matches(&other.metadata.labels)) {
            for rule in &other.rules {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    (rules != role.rules).then_some(rules)
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let client = context.client("clusterrole-aggregation-controller");
    let roles: Informer<ClusterRole> = context.informers.narrow("", "");
    let queue = WorkQueue::new("clusterrole-aggregation");
    let (sink, known) = (queue.clone(), roles.clone());
    roles.add_handler(move |_: Change<'_, ClusterRole>| {
        known.list().iter().filter(|role| role.aggregation_rule.is_some()).for_each(|role| sink.add(role.metadata.key()));
    });
    roles.wait_synced().await;
    run_workers(queue, 1, context.stop.clone(), move |key: ObjectKey| {
        let (client, roles) = (client.clone(), roles.clone());
        async move {
            let Some(rules) = roles.get_key(&key).and_then(|role| plan(&role, &roles.list())) else { return Ok(Action::Done) };
            // Apply, as upstream: the rules of an aggregated role belong to this controller.
            let body = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": key.name}, "rules": rules});
            let patch = Patch::apply(&body, "clusterrole-aggregation-controller", true);
            match client.execute(&Request::patch(&CLUSTER_ROLES, "", &key.name, &patch)).await {
                Err(error) if !error.is_not_found() => Err::<_, Error>(error),
                _ => Ok(Action::Done),
            }
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(name: &str, label: &str, rules: &[&str], aggregates: &[&str]) -> Arc<ClusterRole> {
        let selectors: Vec<Value> = aggregates.iter().map(|label| json!({"matchLabels": {*label: "true"}})).collect();
        let mut value = json!({"metadata": {"name": name, "labels": {label: "true"}}, "rules": rules.iter().map(|r| json!({"resources": [r]})).collect::<Vec<_>>()});
        if !selectors.is_empty() {
            value["aggregationRule"] = json!({"clusterRoleSelectors": selectors});
        }
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn rules_come_from_the_selected_roles_once_each() {
        let admin = role("admin", "", &[], &["to-admin", "to-edit"]);
        let all = [
            admin.clone(),
            role("a", "to-admin", &["x", "y"], &[]),
            role("b", "to-edit", &["y", "z"], &[]),
            role("c", "other", &["w"], &[]),
        ];
        let rules = plan(&admin, &all).unwrap();
        assert_eq!(rules, [json!({"resources": ["x"]}), json!({"resources": ["y"]}), json!({"resources": ["z"]})]);
        let right = ClusterRole { rules, ..(*admin).clone() };
        assert_eq!(plan(&right, &all), None);
        assert_eq!(plan(&all[1], &all), None, "not an aggregated role");
    }
}
