//! One APIService with a service behind it, and the order of all groups and versions.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use k8s_schema::Doc;

use super::{GroupVersion, Identity, Services, connect::Pool};
use crate::registry::priority;

const REGISTRATION: &str = "apiregistration.k8s.io";

/// What of an APIService decides where and how to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    pub namespace: String,
    pub name: String,
    pub port: u16,
    /// PEM; empty: what the system trusts.
    pub ca_bundle: Vec<u8>,
    pub insecure: bool,
}

/// An extension server.
#[derive(Debug)]
pub struct Remote {
    pub group: String,
    pub version: String,
    pub spec: Spec,
    /// What the condition says.
    available: AtomicBool,
    pub pool: Pool,
}

impl Remote {
    pub fn available(&self) -> bool {
        self.available.load(Ordering::Acquire)
    }

    /// `/apis/<group>/<version>`
    pub fn path(&self) -> String {
        format!("/apis/{}/{}", self.group, self.version)
    }

    pub fn key(&self) -> GroupVersion {
        (self.group.clone(), self.version.clone())
    }
}

pub fn is_available(d: &Doc) -> bool {
    d.at("status.conditions").iter().any(|c| c.get("type").str() == "Available" && c.get("status").str() == "True")
}

fn spec(d: &Doc) -> Option<Spec> {
    let service = d.at("spec.service");
    if !service.exists() {
        return None;
    }
    Some(Spec {
        namespace: service.get("namespace").str().to_owned(),
        name: service.get("name").str().to_owned(),
        port: service.get("port").as_i64().and_then(|p| u16::try_from(p).ok()).unwrap_or(443),
        ca_bundle: d.at("spec.caBundle").bytes().to_vec(),
        insecure: d.at("spec.insecureSkipTLSVerify").bool(),
    })
}

impl Services {
    pub(super) fn of(docs: &[Doc], old: &Self, identity: Option<&Arc<Identity>>) -> Self {
        let mut remotes = HashMap::new();
        for d in docs {
            let Some(spec) = spec(d) else { continue };
            let key = (d.at("spec.group").str().to_owned(), d.at("spec.version").str().to_owned());
            let available = is_available(d);
            let same = old.remotes.get(&key).filter(|r| r.spec == spec && r.pool.current(identity));
            let remote = match same {
                Some(r) => {
                    r.available.store(available, Ordering::Release);
                    Arc::clone(r)
                }
                None => Arc::new(Remote {
                    pool: Pool::new(&spec, identity.cloned()),
                    group: key.0.clone(),
                    version: key.1.clone(),
                    spec,
                    available: AtomicBool::new(available),
                }),
            };
            remotes.insert(key, remote);
        }
        Self { remotes, order: order(docs) }
    }

    /// `local` and the extension servers' groups, ordered by their APIServices; what has none yet comes last.
    pub(super) fn merge(&self, local: Vec<(String, Vec<String>)>) -> Vec<(String, Vec<String>)> {
        let mut out: Vec<(String, Vec<String>)> = Vec::new();
        let served = |g: &str, v: &str| {
            local.iter().any(|(n, versions)| n == g && versions.iter().any(|x| x == v))
                || self.remotes.contains_key(&(g.to_owned(), v.to_owned()))
        };
        // Who registers others is registered by nobody, and comes first.
        out.extend(local.iter().find(|(g, _)| g == REGISTRATION).cloned());
        for (group, versions) in self.order.iter().filter(|(g, _)| g != REGISTRATION) {
            let versions: Vec<String> = versions.iter().filter(|v| served(group, v)).cloned().collect();
            if !versions.is_empty() {
                out.push((group.clone(), versions));
            }
        }
        for (group, versions) in local {
            match out.iter_mut().find(|(g, _)| *g == group) {
                Some((_, known)) => known.extend(versions.into_iter().filter(|v| !known.contains(v)).collect::<Vec<_>>()),
                None => out.push((group, versions)),
            }
        }
        out
    }
}

/// Groups by the highest priority that one of their versions has, versions by their own priorities.
fn order(docs: &[Doc]) -> Vec<(String, Vec<String>)> {
    let mut groups: HashMap<&str, (i64, Vec<(i64, &str)>)> = HashMap::new();
    for d in docs {
        let spec = d.at("spec");
        let (group, version) = (spec.get("group").str(), spec.get("version").str());
        if group.is_empty() {
            continue;
        }
        let entry = groups.entry(group).or_default();
        entry.0 = entry.0.max(spec.get("groupPriorityMinimum").int());
        entry.1.push((spec.get("versionPriority").int(), version));
    }
    let mut all: Vec<_> = groups.into_iter().collect();
    all.sort_by(|(a, (p, _)), (b, (q, _))| q.cmp(p).then_with(|| a.cmp(b)));
    all.into_iter()
        .map(|(group, (_, mut versions))| {
            versions.sort_by(|(p, a), (q, b)| q.cmp(p).then_with(|| priority(b).cmp(&priority(a))).then_with(|| a.cmp(b)));
            (group.to_owned(), versions.into_iter().map(|(_, v)| v.to_owned()).collect())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use k8s_schema::Schema;
    use serde_json::{Value, json};

    use super::*;

    pub fn api_service(group: &str, version: &str, priorities: (i64, i64), service: Value) -> Doc {
        let schema = Schema::builtin();
        let ty = schema.kind("apiregistration.k8s.io", "v1", "APIService").unwrap();
        let mut spec = json!({"group": group, "version": version, "groupPriorityMinimum": priorities.0, "versionPriority": priorities.1});
        if !service.is_null() {
            spec["service"] = service;
        }
        Doc::from_value(&schema, ty, &json!({"metadata": {"name": format!("{version}.{group}")}, "spec": spec})).unwrap().doc
    }

    fn groups(list: &[(&str, &[&str])]) -> Vec<(String, Vec<String>)> {
        list.iter().map(|(g, v)| ((*g).to_owned(), v.iter().map(|v| (*v).to_owned()).collect())).collect()
    }

    #[test]
    fn priorities_order_groups_and_versions() {
        let there = json!({"namespace": "n", "name": "s", "port": 443});
        let docs = [
            api_service("", "v1", (18_000, 1), Value::Null),
            api_service("apps", "v1", (17_800, 15), Value::Null),
            api_service("example.com", "v1beta1", (1000, 100), Value::Null),
            api_service("metrics.k8s.io", "v1beta1", (100, 100), there.clone()),
            api_service("first.io", "v1alpha1", (17_900, 10), there.clone()),
            api_service("first.io", "v1", (10, 10), there.clone()),
            api_service("first.io", "v2alpha1", (10, 20), there),
        ];
        let services = Services::of(&docs, &Services::default(), None);
        let local = groups(&[("apps", &["v1"]), ("apiregistration.k8s.io", &["v1"]), ("example.com", &["v1beta1"]), ("new.io", &["v1"])]);
        let all = groups(&[
            ("apiregistration.k8s.io", &["v1"]),
            ("first.io", &["v2alpha1", "v1", "v1alpha1"]),
            ("apps", &["v1"]),
            ("example.com", &["v1beta1"]),
            ("metrics.k8s.io", &["v1beta1"]),
            ("new.io", &["v1"]),
        ]);
        assert_eq!(services.merge(local), all);
    }

    #[test]
    fn a_server_that_stays_keeps_its_connections() {
        let one = [api_service("a.io", "v1", (1, 1), json!({"namespace": "n", "name": "s", "port": 443}))];
        let two = [api_service("a.io", "v1", (2, 1), json!({"namespace": "n", "name": "s", "port": 443}))];
        let other = [api_service("a.io", "v1", (2, 1), json!({"namespace": "n", "name": "s", "port": 444}))];
        let key = ("a.io".to_owned(), "v1".to_owned());
        let first = Services::of(&one, &Services::default(), None);
        let same = Services::of(&two, &first, None);
        assert!(Arc::ptr_eq(&first.remotes[&key], &same.remotes[&key]));
        let moved = Services::of(&other, &same, None);
        assert!(!Arc::ptr_eq(&same.remotes[&key], &moved.remotes[&key]));
    }
}
