//! ControllerRevisions: the history of a DaemonSet's or StatefulSet's template.

use std::sync::Arc;

use k8s_client::{Client, DeleteOptions, Error, Informer, ObjectKey, ObjectMeta, OwnerReference, Request, resources::CONTROLLER_REVISIONS};
use serde_json::{Value, json};

use super::deployment::hash::{same_template, template_hash};
use crate::api::ControllerRevision;
use crate::expectations::Expectations;
use crate::ownership;

/// The label that carries the hash, on revisions and pods.
pub const HASH: &str = "controller-revision-hash";

/// The revisions an owner has, oldest first.
pub fn of(informer: &Informer<ControllerRevision>, owner: &ObjectMeta) -> Vec<Arc<ControllerRevision>> {
    let mut found: Vec<_> = informer
        .list_namespace(&owner.namespace)
        .into_iter()
        .filter(|revision| revision.metadata.controller().is_some_and(|reference| reference.uid == owner.uid))
        .collect();
    found.sort_by_key(|revision| revision.revision);
    found
}

/// The template a revision holds.
pub fn template_of(revision: &ControllerRevision) -> Value {
    let mut template = revision.data.pointer("/spec/template").cloned().unwrap_or_default();
    if let Some(map) = template.as_object_mut() {
        map.remove("$patch");
    }
    template
}

/// What to do so that the current template is the newest revision.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// Nothing: this revision is it.
    Current {
        hash: String,
    },
    /// An older revision becomes the newest again.
    Renumber {
        name: String,
        uid: String,
        hash: String,
        revision: i64,
    },
    Create {
        hash: String,
        revision: i64,
    },
}

impl Plan {
    /// The hash of the current template's revision.
    pub fn hash(&self) -> &str {
        match self {
            Self::Current { hash } | Self::Renumber { hash, .. } | Self::Create { hash, .. } => hash,
        }
    }
}

/// The plan for a template, given the revisions there are, oldest first.
pub fn plan(template: &Value, revisions: &[Arc<ControllerRevision>], collisions: Option<i32>) -> Plan {
    let newest = revisions.last().map_or(0, |revision| revision.revision);
    let Some(known) = revisions.iter().rev().find(|revision| same_template(&template_of(revision), template)) else {
        return Plan::Create { hash: template_hash(template, collisions), revision: newest + 1 };
    };
    let hash = known.metadata.labels.get(HASH).cloned().unwrap_or_default();
    if known.revision == newest {
        Plan::Current { hash }
    } else {
        Plan::Renumber { name: known.metadata.name.clone(), uid: known.metadata.uid.clone(), hash, revision: newest + 1 }
    }
}

/// What went wrong, or that another object has the name and the hash must change.
pub enum Applied {
    Done { version: Option<String> },
    Collision,
}

/// Carries a plan out.
pub async fn apply(
    client: &Client,
    plan: &Plan,
    owner: &ObjectMeta,
    reference: &OwnerReference,
    template: &Value,
) -> Result<Applied, Error> {
    match plan {
        Plan::Current { .. } => Ok(Applied::Done { version: None }),
        Plan::Renumber { name, uid, revision, .. } => {
            let written = client
                .update(&CONTROLLER_REVISIONS, (&owner.namespace, name), uid, "", |object| object["revision"] = json!(revision))
                .await?;
            Ok(Applied::Done { version: Some(written.meta().resource_version.clone()) })
        }
        Plan::Create { hash, revision } => {
            let name = format!("{}-{hash}", owner.name);
            let mut data = template.clone();
            data["$patch"] = json!("replace");
            let mut labels = crate::api::template_labels(template);
            labels.insert(HASH.into(), hash.clone());
            let body = json!({"apiVersion": "apps/v1", "kind": "ControllerRevision",
                "metadata": {"name": name, "namespace": owner.namespace, "labels": labels, "ownerReferences": [reference]},
                "revision": revision, "data": {"spec": {"template": data}}});
            match client.call::<ControllerRevision>(&Request::create(&CONTROLLER_REVISIONS, &owner.namespace, &body)).await {
                Ok(created) => Ok(Applied::Done { version: Some(created.metadata.resource_version) }),
                Err(error) if error.is_already_exists() => {
                    let known: ControllerRevision = client.call(&Request::get(&CONTROLLER_REVISIONS, &owner.namespace, &name)).await?;
                    let ours = known.metadata.controller().is_some_and(|owner| owner.uid == reference.uid);
                    if ours && same_template(&template_of(&known), template) {
                        Ok(Applied::Done { version: Some(known.metadata.resource_version) })
                    } else {
                        Ok(Applied::Collision)
                    }
                }
                Err(error) => Err(error),
            }
        }
    }
}

/// Deletes the oldest revisions that are neither current nor of a pod, beyond the limit.
pub async fn prune(
    client: &Client,
    revisions: &[Arc<ControllerRevision>],
    current: &str,
    live: &[&str],
    limit: usize,
) -> Result<(), Error> {
    let unused: Vec<_> = revisions
        .iter()
        .filter(|revision| revision.metadata.labels.get(HASH).is_none_or(|hash| hash != current && !live.contains(&hash.as_str())))
        .collect();
    for revision in unused.iter().take(unused.len().saturating_sub(limit)) {
        let meta = &revision.metadata;
        let request = Request::delete(&CONTROLLER_REVISIONS, &meta.namespace, &meta.name, &DeleteOptions::uid(&meta.uid));
        ownership::ignore_missing(client, &request).await?;
    }
    Ok(())
}

/// The history of an owner is expected under a key of its own, because it is another cache than the pods'.
fn history_key(owner: &ObjectKey) -> ObjectKey {
    ObjectKey::new(owner.namespace.clone(), format!("{}/history", owner.name))
}

/// The cache of revisions must reach this version.
pub fn expect_version(expectations: &Expectations, owner: &ObjectKey, version: &str) {
    expectations.wrote(&history_key(owner), version);
}

/// Whether the cache of revisions, now at `version`, still lacks what was written.
pub fn version_pending(expectations: &Expectations, owner: &ObjectKey, version: u64) -> bool {
    !expectations.met(&history_key(owner), version, |_| false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(number: i64, image: &str) -> Arc<ControllerRevision> {
        Arc::new(
            serde_json::from_value(
                json!({"metadata": {"name": format!("r{number}"), "uid": format!("u{number}"), "labels": {HASH: format!("h{number}")}},
                "revision": number, "data": {"spec": {"template": {"$patch": "replace", "spec": {"image": image}}}}}),
            )
            .unwrap(),
        )
    }

    #[test]
    fn a_template_seen_before_is_renumbered() {
        let template = |image: &str| json!({"spec": {"image": image}});
        let history = [revision(1, "a"), revision(2, "b")];
        assert_eq!(plan(&template("b"), &history, None), Plan::Current { hash: "h2".into() });
        assert_eq!(
            plan(&template("a"), &history, None),
            Plan::Renumber { name: "r1".into(), uid: "u1".into(), hash: "h1".into(), revision: 3 }
        );
        assert!(matches!(plan(&template("c"), &history, None), Plan::Create { revision: 3, .. }));
        assert!(matches!(plan(&template("a"), &[], None), Plan::Create { revision: 1, .. }));
    }
}
