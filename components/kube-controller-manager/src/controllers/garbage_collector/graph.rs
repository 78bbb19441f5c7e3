//! Who owns whom, as far as the watches have told.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_client::{Object, ObjectKey, ObjectMeta, OwnerReference, Resource, Time, null_default};
use serde::{Deserialize, Deserializer};

use super::plan::{Dependent, FOREGROUND, ORPHAN};

/// Any object, reduced to what ownership needs: labels and annotations are not even kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slim {
    pub metadata: ObjectMeta,
}

impl<'de> Deserialize<'de> for Slim {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Wire {
            metadata: Meta,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Meta {
            #[serde(default)]
            name: String,
            #[serde(default, deserialize_with = "null_default")]
            namespace: String,
            #[serde(default)]
            uid: String,
            #[serde(default)]
            resource_version: String,
            deletion_timestamp: Option<Time>,
            #[serde(default, deserialize_with = "null_default")]
            owner_references: Vec<OwnerReference>,
            #[serde(default, deserialize_with = "null_default")]
            finalizers: Vec<String>,
        }
        let Wire { metadata: meta } = Wire::deserialize(deserializer)?;
        Ok(Self {
            metadata: ObjectMeta {
                name: meta.name,
                namespace: meta.namespace,
                uid: meta.uid,
                resource_version: meta.resource_version,
                deletion_timestamp: meta.deletion_timestamp,
                owner_references: meta.owner_references,
                finalizers: meta.finalizers,
                ..ObjectMeta::default()
            },
        })
    }
}

impl Object for Slim {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

/// Objects by uid, and dependents by the uid of their owner. As large as the cluster; the API server's limits bound it.
#[derive(Default)]
pub struct Graph {
    objects: HashMap<String, (Resource, Arc<Slim>)>,
    dependents: HashMap<String, HashSet<String>>,
}

impl Graph {
    /// Takes in a new or changed object; returns the uids to look at.
    pub fn put(&mut self, resource: &Resource, object: &Arc<Slim>) -> Vec<String> {
        let uid = object.metadata.uid.clone();
        let before = self.objects.insert(uid.clone(), (resource.clone(), object.clone())).map(|(_, old)| old);
        if let Some(old) = &before {
            self.unlink(&uid, old);
        }
        for owner in &object.metadata.owner_references {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
        }
        let mut look = Vec::new();
        // An owner that is not known may be gone, or not seen yet: the live API tells.
        let unknown = |owner: &OwnerReference| !self.objects.contains_key(&owner.uid);
        let changed = before.as_ref().is_none_or(|old| old.metadata.owner_references != object.metadata.owner_references);
        if changed && object.metadata.owner_references.iter().any(unknown) {
            look.push(uid.clone());
        }
        if object.metadata.is_deleting() && object.metadata.finalizers.iter().any(|f| f == FOREGROUND || f == ORPHAN) {
            look.push(uid);
        }
        // An owner in foreground deletion waits for exactly such changes.
        for owner in before.iter().flat_map(|old| &old.metadata.owner_references).chain(&object.metadata.owner_references) {
            if let Some((_, owner)) = self.objects.get(&owner.uid)
                && waits(&owner.metadata)
            {
                look.push(owner.metadata.uid.clone());
            }
        }
        look
    }

    /// Takes out a deleted object; returns the uids to look at: its dependents, and owners that waited for it.
    pub fn remove(&mut self, uid: &str) -> Vec<String> {
        let Some((_, object)) = self.objects.remove(uid) else { return Vec::new() };
        self.unlink(uid, &object);
        let mut look: Vec<String> = self.dependents.get(uid).map(|found| found.iter().cloned().collect()).unwrap_or_default();
        look.extend(
            object.metadata.owner_references.iter().map(|owner| owner.uid.clone()).filter(|owner| self.objects.contains_key(owner)),
        );
        look
    }

    fn unlink(&mut self, uid: &str, object: &Slim) {
        for owner in &object.metadata.owner_references {
            if let Some(found) = self.dependents.get_mut(&owner.uid) {
                found.remove(uid);
                if found.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
    }

    /// Where an object lives.
    pub fn get(&self, uid: &str) -> Option<(Resource, ObjectKey)> {
        self.objects.get(uid).map(|(resource, object)| (resource.clone(), object.metadata.key()))
    }

    /// What depends on an object.
    pub fn dependents(&self, uid: &str) -> Vec<Dependent> {
        let found = self.dependents.get(uid).into_iter().flatten();
        found
            .filter_map(|dependent| {
                let (_, object) = self.objects.get(dependent)?;
                let reference = object.metadata.owner_references.iter().find(|owner| owner.uid == uid)?;
                Some(Dependent {
                    uid: dependent.clone(),
                    blocks: reference.block_owner_deletion == Some(true),
                    is_deleting: object.metadata.is_deleting(),
                    waits: waits(&object.metadata),
                })
            })
            .collect()
    }
}

/// Whether an object is being deleted in the foreground.
fn waits(object: &ObjectMeta) -> bool {
    object.is_deleting() && object.finalizers.iter().any(|f| f == FOREGROUND)
}

#[cfg(test)]
mod tests {
    use k8s_client::resources::{PODS, REPLICA_SETS};

    use super::*;

    fn object(uid: &str, owner: Option<&str>, finalizer: Option<&str>) -> Arc<Slim> {
        let owner = owner.map(|uid| OwnerReference { uid: uid.into(), block_owner_deletion: Some(true), ..Default::default() });
        Arc::new(Slim {
            metadata: ObjectMeta {
                uid: uid.into(),
                name: uid.into(),
                owner_references: owner.into_iter().collect(),
                finalizers: finalizer.map(str::to_string).into_iter().collect(),
                deletion_timestamp: finalizer.map(|_| Time::now()),
                ..Default::default()
            },
        })
    }

    #[test]
    fn dependents_are_looked_at_when_their_owner_goes() {
        let mut graph = Graph::default();
        assert_eq!(graph.put(&PODS, &object("pod", Some("set"), None)), ["pod"], "its owner is not known yet");
        assert!(graph.put(&REPLICA_SETS, &object("set", None, None)).is_empty());
        assert!(graph.put(&PODS, &object("pod", Some("set"), None)).is_empty(), "nothing about ownership changed");
        assert_eq!(graph.dependents("set").len(), 1);
        assert_eq!(graph.remove("set"), ["pod"]);
    }

    #[test]
    fn a_foreground_owner_is_looked_at_when_a_dependent_changes_or_goes() {
        let mut graph = Graph::default();
        graph.put(&REPLICA_SETS, &object("set", None, None));
        graph.put(&PODS, &object("pod", Some("set"), None));
        assert_eq!(graph.put(&REPLICA_SETS, &object("set", None, Some(FOREGROUND))), ["set"]);
        assert_eq!(graph.put(&PODS, &object("pod", Some("set"), None)), ["set", "set"]);
        assert_eq!(graph.remove("pod"), ["set"]);
        graph.put(&PODS, &object("pod", Some("set"), Some(FOREGROUND)));
        assert!(graph.dependents("set")[0].waits);
        graph.remove("pod");
        assert!(graph.dependents("set").is_empty() && graph.remove("pod").is_empty());
    }

    #[test]
    fn only_ownership_is_kept_of_an_object() {
        let slim: Slim =
            serde_json::from_str(r#"{"metadata":{"name":"a","uid":"u","labels":{"x":"y"},"annotations":{"big":"..."},"finalizers":null}}"#)
                .unwrap();
        assert_eq!(slim.metadata, ObjectMeta { name: "a".into(), uid: "u".into(), ..Default::default() });
    }
}
