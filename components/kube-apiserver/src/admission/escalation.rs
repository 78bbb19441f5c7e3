//! Nobody gives away more than they have, unless a role lets them (`escalate`, `bind`).

use k8s_schema::Doc;

use super::{Attributes, Operation};
use crate::{
    authz::{
        self,
        rbac::{Rule, uncovered},
    },
    http::{ApiError, Group},
};

const RBAC: &str = "rbac.authorization.k8s.io";

pub async fn check(a: &Attributes<'_>, new: Option<&Doc>, old: Option<&Doc>) -> Result<(), ApiError> {
    let Some(new) = new.filter(|_| a.res.group == RBAC && a.operation != Operation::Delete) else { return Ok(()) };
    if a.ctx.user.in_group(crate::authn::MASTERS) {
        return Ok(());
    }
    let rules_of = |d: &Doc| d.at("rules").iter().map(Rule::from_ref).collect::<Vec<_>>();
    let ns = new.at("metadata.namespace").str();
    let wanted: Vec<Rule> = match a.res.plural.as_str() {
        "roles" | "clusterroles" => {
            // Only what is new is asked about.
            if old.is_some_and(|o| rules_of(o) == rules_of(new) && o.at("aggregationRule").semantic_eq(new.at("aggregationRule"))) {
                return Ok(());
            }
            if allowed(a, "escalate", &a.res.plural, new.at("metadata.name").str()).await {
                return Ok(());
            }
            let mut r = rules_of(new);
            if new.at("aggregationRule").exists() && !old.is_some_and(|o| o.at("aggregationRule").semantic_eq(new.at("aggregationRule"))) {
                // What will be gathered nobody knows, so it counts as everything.
                let all = || vec!["*".to_owned()];
                r.push(Rule { verbs: all(), groups: all(), resources: all(), ..Rule::default() });
                r.push(Rule { verbs: all(), urls: all(), ..Rule::default() });
            }
            r
        }
        _ => {
            if old.is_some_and(|o| o.at("subjects").semantic_eq(new.at("subjects")) && o.at("roleRef").semantic_eq(new.at("roleRef"))) {
                return Ok(());
            }
            let (kind, name) = (new.at("roleRef.kind").str(), new.at("roleRef.name").str());
            let plural = if kind == "ClusterRole" { "clusterroles" } else { "roles" };
            if allowed(a, "bind", plural, name).await {
                return Ok(());
            }
            match a.ctx.server.authz.rbac.role(kind, ns, name) {
                Some(r) => r.to_vec(),
                None => return Err(ApiError::not_found(Group(RBAC, &plural[..plural.len() - 1]), name)),
            }
        }
    };
    let owned = a.ctx.server.authz.rbac.rules_for(&a.ctx.user, ns);
    let missing = uncovered(&owned, &wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let user = &a.ctx.user;
    let shown: Vec<String> = missing.iter().map(|r| format!("\n{}", compact(r))).collect();
    let why = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:{}",
        user.name,
        serde_json::to_string(&user.groups).unwrap_or_default(),
        shown.concat()
    );
    Err(ApiError::forbidden(Group(&a.res.group, &a.res.plural), new.at("metadata.name").str(), why))
}

async fn allowed(a: &Attributes<'_>, verb: &str, resource: &str, name: &str) -> bool {
    let attributes = authz::Attributes {
        verb: verb.into(),
        is_resource: true,
        group: RBAC.into(),
        version: "v1".into(),
        resource: resource.into(),
        namespace: a.ctx.info.namespace.clone(),
        name: name.into(),
        ..authz::Attributes::default()
    };
    a.ctx.server.authz.decide(&a.ctx.user, &attributes).await.allowed()
}

/// A rule in upstream's short notation.
fn compact(r: &Rule) -> String {
    let list = |l: &[String]| serde_json::to_string(l).unwrap_or_default();
    let mut parts = Vec::new();
    for (name, l) in [
        ("APIGroups", &r.groups),
        ("Resources", &r.resources),
        ("ResourceNames", &r.names),
        ("NonResourceURLs", &r.urls),
        ("Verbs", &r.verbs),
    ] {
        if !l.is_empty() {
            parts.push(format!("{name}:{}", list(l)));
        }
    }
    format!("{{{}}}", parts.join(", "))
}
