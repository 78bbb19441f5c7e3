//! APIServices of what this server serves itself: those of built-in groups are written at start, those of definitions come and go with
//! them. An APIService that somebody else made for the same group and version is left alone.

use std::{sync::Arc, time::Duration};

use serde_json::json;

use super::PREFIX;
use crate::{bootstrap, http::ApiError, server::Server, storage::StoreError};

const LABEL: &str = "kube-aggregator.kubernetes.io/automanaged";

/// What has to be made and taken away.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    create: Vec<(String, String)>,
    delete: Vec<String>,
}

/// `defined`: groups and versions of definitions; `there`: names of APIServices, and whether they are managed for definitions.
fn plan(defined: &[(String, Vec<String>)], builtin: &[(String, Vec<String>)], there: &[(String, bool)]) -> Plan {
    let name = |g: &str, v: &str| format!("{v}.{g}");
    let mut plan = Plan::default();
    let mut wanted = Vec::new();
    for (group, versions) in defined {
        for v in versions {
            if builtin.iter().any(|(g, known)| g == group && known.contains(v)) {
                continue;
            }
            let n = name(group, v);
            if !there.iter().any(|(t, _)| *t == n) {
                plan.create.push((group.clone(), v.clone()));
            }
            wanted.push(n);
        }
    }
    plan.delete = there.iter().filter(|(n, managed)| *managed && !wanted.contains(n)).map(|(n, _)| n.clone()).collect();
    plan
}

async fn step(server: &Arc<Server>) -> Result<(), ApiError> {
    let stored = server.objects.list(PREFIX, "");
    let there: Vec<(String, bool)> = stored.iter().map(|s| (s.name().to_owned(), s.label(LABEL) == Some("true"))).collect();
    let dynamic = server.registry.dynamic();
    let res = server.registry.stored("apiregistration.k8s.io", "apiservices").cloned().ok_or_else(ApiError::no_resource)?;
    let plan = plan(dynamic.groups(), server.registry.builtin_groups(), &there);
    for (group, version) in plan.create {
        let v = json!({
            "metadata": {"name": format!("{version}.{group}"), "labels": {LABEL: "true"}},
            "spec": {"group": group, "version": version, "groupPriorityMinimum": 1000, "versionPriority": 100},
            "status": {"conditions": [super::availability::Condition::local().to_value()]},
        });
        bootstrap::create(server, &res, v).await?;
    }
    for s in stored.iter().filter(|s| plan.delete.iter().any(|n| n == s.name())) {
        match server.etcd.delete(&format!("{}{PREFIX}/{}", server.root, s.key), s.rev).await {
            Ok(_) | Err(StoreError::Changed { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Runs until the server stops.
pub async fn run(server: Arc<Server>) {
    let reflector = &server.objects.reflector;
    let (Some(services), Some(definitions)) = (reflector.cache(PREFIX), reflector.cache(crate::custom::PREFIX)) else { return };
    let (mut services, mut definitions) = (services.subscribe(), definitions.subscribe());
    loop {
        let mut again = Duration::from_secs(600);
        if let Err(e) = step(&server).await {
            tracing::warn!(error = %e, "APIServices of definitions cannot be written; trying again");
            again = Duration::from_secs(1);
        }
        tokio::select! {
            _ = services.changed() => {}
            _ = definitions.changed() => {}
            () = tokio::time::sleep(again) => {}
            () = server.stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_have_api_services_and_those_of_others_stay() {
        let own = |l: &[(&str, &[&str])]| -> Vec<(String, Vec<String>)> {
            l.iter().map(|(g, v)| ((*g).to_owned(), v.iter().map(|v| (*v).to_owned()).collect())).collect()
        };
        let defined = own(&[("a.io", &["v1", "v2"]), ("apps", &["v1"]), ("b.io", &["v1"])]);
        let builtin = own(&[("apps", &["v1"])]);
        let there = [("v1.a.io", true), ("v1.b.io", false), ("v1.gone.io", true), ("v1.theirs.io", false), ("v1.apps", false)];
        let there = there.map(|(n, m)| (n.to_owned(), m));
        let p = plan(&defined, &builtin, &there);
        assert_eq!(p, Plan { create: vec![("a.io".into(), "v2".into())], delete: vec!["v1.gone.io".into()] });
    }
}
