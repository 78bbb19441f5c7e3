//! The bootstrap roles: their rules for those who need them before they are stored, and the gathering of aggregated roles.

use k8s_schema::selector::LabelSelector;
use serde_json::Value;

use crate::{authz::rbac::Rule, handlers::write, http::ApiError, server::Server, storage::StoreError};

/// The rules of a bootstrap cluster role.
pub fn rules_of(name: &str) -> Vec<Rule> {
    let data = super::data();
    let strings = |v: &Value| v.as_array().into_iter().flatten().filter_map(|s| s.as_str().map(str::to_owned)).collect::<Vec<_>>();
    data["clusterroles"]["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|r| r["metadata"]["name"] == name)
        .flat_map(|r| r["rules"].as_array().into_iter().flatten())
        .map(|r| Rule {
            verbs: strings(&r["verbs"]),
            groups: strings(&r["apiGroups"]),
            resources: strings(&r["resources"]),
            names: strings(&r["resourceNames"]),
            urls: strings(&r["nonResourceURLs"]),
        })
        .collect()
}

/// Gathers the rules of aggregated cluster roles from the roles they select. The controller manager does this too; until it runs,
/// `admin`, `edit` and `view` would be empty.
pub async fn aggregate(server: &Server) -> Result<(), ApiError> {
    let objects = &server.objects;
    let res = super::resource(server, "rbac.authorization.k8s.io", "clusterroles")?;
    let all: Vec<_> = objects.list(&res.prefix, "").into_iter().filter_map(|s| objects.doc(&s).map(|d| (s, d))).collect();
    for (stored, role) in &all {
        let selectors: Vec<LabelSelector> =
            role.at("aggregationRule.clusterRoleSelectors").iter().filter_map(|s| LabelSelector::from_ref(s).ok()).collect();
        if selectors.is_empty() {
            continue;
        }
        let mut rules: Vec<Value> = Vec::new();
        for s in &selectors {
            for (other, d) in all.iter().filter(|(o, _)| o.key != stored.key && s.matches(|k| o.label(k))) {
                let _ = other;
                for r in d.at("rules").iter().map(|r| r.to_value()) {
                    if !rules.contains(&r) {
                        rules.push(r);
                    }
                }
            }
        }
        let mut new = role.clone();
        new.set("rules", Value::from(rules)).map_err(ApiError::internal)?;
        if new.at("rules").semantic_eq(role.at("rules")) {
            continue;
        }
        let key = format!("{}{}/{}", server.root, res.prefix, stored.key);
        match server.etcd.update(&key, stored.rev, write::to_storage(&objects.schema, &res, &new)?, 0).await {
            Ok(_) | Err(StoreError::Changed { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::Attributes;

    fn may(role: &str, verb: &str, group: &str, resource: &str) -> bool {
        let a =
            Attributes { verb: verb.into(), is_resource: true, group: group.into(), resource: resource.into(), ..Attributes::default() };
        rules_of(role).iter().any(|r| r.allows(&a))
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
