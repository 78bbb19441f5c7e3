//! What nodes use, as a graph: a pod that is bound to a node leads from it to secrets, config maps, claims and accounts.
//!
//! The graph follows the caches by their events, each of which has the object before and after, so that it keeps no pods of its own: of an
//! object it only knows how many pods of which nodes use it. It is built when the first kubelet asks. Volumes stand beside it: they lead
//! from a claim to the secrets that their drivers need.

use std::{collections::HashMap, sync::Arc};

use k8s_schema::{Doc, Ref};

use crate::{
    objects::Objects,
    storage::{Cursor, Event, Stored},
};

/// Events that are looked at under one lock.
const STEP: usize = 512;
/// Static pods show up as pods that say so. Nodes make them, so they give nodes nothing.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What a node may need to read, with the resource's name before namespace and name.
type Vertex = Arc<str>;

pub fn vertex(resource: &str, namespace: &str, name: &str) -> String {
    format!("{resource}/{namespace}/{name}")
}

/// The nodes that use an object, sorted, with how many of their pods do.
#[derive(Debug, Default)]
struct Users(Vec<(Arc<str>, u32)>);

impl Users {
    fn place(&self, node: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(n, _)| (**n).cmp(node))
    }

    fn add(&mut self, node: &Arc<str>) {
        match self.place(node) {
            Ok(i) => self.0[i].1 += 1,
            Err(i) => {
                // Most objects are used by one node.
                if self.0.len() < 4 {
                    self.0.reserve_exact(1);
                }
                self.0.insert(i, (Arc::clone(node), 1));
            }
        }
    }

    fn remove(&mut self, node: &str) {
        if let Ok(i) = self.place(node) {
            self.0[i].1 -= 1;
            if self.0[i].1 == 0 {
                self.0.remove(i);
            }
        }
    }
}

#[derive(Debug, Default)]
pub struct Graph {
    users: HashMap<Vertex, Users>,
    /// Claims whose volumes need a secret, by the secret, each as often as there are such volumes.
    claims: HashMap<Vertex, Vec<Vertex>>,
    pods: Option<Cursor>,
    volumes: Option<Cursor>,
}

impl Graph {
    pub fn is_built(&self) -> bool {
        self.pods.is_some()
    }

    /// Takes in what happened since the last time.
    pub fn catch_up(&mut self, objects: &Objects) {
        let (Some(pods), Some(volumes)) = (objects.reflector.cache("pods"), objects.reflector.cache("persistentvolumes")) else { return };
        let mut fresh = true;
        for (cache, cursor, is_pod) in [(&pods, self.pods, true), (&volumes, self.volumes, false)] {
            let Some(mut cursor) = cursor else {
                fresh = false;
                break;
            };
            loop {
                let Ok(events) = cache.read(&mut cursor, STEP) else {
                    fresh = false;
                    break;
                };
                if events.is_empty() {
                    break;
                }
                for e in &events {
                    self.follow(objects, e, is_pod);
                }
            }
            *(if is_pod { &mut self.pods } else { &mut self.volumes }) = Some(cursor);
        }
        if fresh {
            return;
        }
        // Nothing is known yet, or more happened than the caches remember.
        *self = Self::default();
        let (all, _, cursor) = pods.snapshot_and_cursor();
        all.range("", None).for_each(|(_, s)| self.change(None, pod(objects, s)));
        self.pods = Some(cursor);
        let (all, _, cursor) = volumes.snapshot_and_cursor();
        all.range("", None).for_each(|(_, s)| self.change_volume(None, volume(objects, s)));
        self.volumes = Some(cursor);
    }

    fn follow(&mut self, objects: &Objects, e: &Event, is_pod: bool) {
        let now = (e.kind == crate::storage::EventKind::Put).then_some(&e.object);
        let before = e.previous.as_ref();
        if is_pod {
            self.change(before.and_then(|s| pod(objects, s)), now.and_then(|s| pod(objects, s)));
        } else {
            self.change_volume(before.and_then(|s| volume(objects, s)), now.and_then(|s| volume(objects, s)));
        }
    }

    fn change(&mut self, before: Option<Uses>, now: Option<Uses>) {
        if before == now {
            return;
        }
        if let Some(u) = before {
            for v in u.vertices {
                if let Some(users) = self.users.get_mut(v.as_str()) {
                    users.remove(&u.node);
                    if users.0.is_empty() {
                        self.users.remove(v.as_str());
                    }
                }
            }
        }
        if let Some(u) = now {
            for v in u.vertices {
                match self.users.get_mut(v.as_str()) {
                    Some(users) => users.add(&u.node),
                    None => self.users.entry(v.into()).or_default().add(&u.node),
                }
            }
        }
    }

    fn change_volume(&mut self, before: Option<Needs>, now: Option<Needs>) {
        if before == now {
            return;
        }
        if let Some(n) = before {
            for secret in n.secrets {
                if let Some(claims) = self.claims.get_mut(secret.as_str()) {
                    if let Some(i) = claims.iter().position(|c| **c == *n.claim) {
                        claims.swap_remove(i);
                    }
                    if claims.is_empty() {
                        self.claims.remove(secret.as_str());
                    }
                }
            }
        }
        if let Some(n) = now {
            for secret in n.secrets {
                self.claims.entry(secret.into()).or_default().push(n.claim.as_str().into());
            }
        }
    }

    /// Whether a pod of the node uses an object itself.
    pub fn uses(&self, node: &str, vertex: &str) -> bool {
        self.users.get(vertex).is_some_and(|u| u.place(node).is_ok())
    }

    /// As [`uses`](Self::uses), of a secret, or whether a volume does that a pod of the node uses.
    pub fn uses_secret(&self, node: &str, vertex: &str) -> bool {
        self.uses(node, vertex) || self.claims.get(vertex).is_some_and(|claims| claims.iter().any(|c| self.uses(node, c)))
    }
}

/// What a pod on a node uses, each once.
#[derive(Debug, PartialEq, Eq)]
struct Uses {
    node: Arc<str>,
    vertices: Vec<String>,
}

fn pod(objects: &Objects, stored: &Stored) -> Option<Uses> {
    // Pods that wait for a node are many, and need not be decoded.
    let node = stored.fields.iter().find(|(k, _)| *k == "spec.nodeName").map(|(_, v)| v).filter(|n| !n.is_empty())?;
    let doc = objects.doc(stored)?;
    Some(Uses { node: Arc::clone(node), vertices: used_by(&doc, stored.namespace()) })
}

/// What a pod uses, sorted, each once.
fn used_by(pod: &Doc, namespace: &str) -> Vec<String> {
    if pod.meta().annotation(MIRROR).is_some() {
        return Vec::new();
    }
    let mut out = Vec::new();
    let mut add = |resource: &str, name: &str| {
        if !name.is_empty() {
            out.push(vertex(resource, namespace, name));
        }
    };
    let spec = pod.at("spec");
    add("serviceaccounts", spec.get("serviceAccountName").str());
    spec.get("imagePullSecrets").iter().for_each(|s| add("secrets", s.get("name").str()));
    for c in ["containers", "initContainers", "ephemeralContainers"].iter().flat_map(|list| spec.get(list).iter()) {
        for from in c.get("env").iter().map(|e| e.get("valueFrom")) {
            add("secrets", from.get("secretKeyRef").get("name").str());
            add("configmaps", from.get("configMapKeyRef").get("name").str());
        }
        for from in c.get("envFrom").iter() {
            add("secrets", from.get("secretRef").get("name").str());
            add("configmaps", from.get("configMapRef").get("name").str());
        }
    }
    for v in spec.get("volumes").iter() {
        add("configmaps", v.get("configMap").get("name").str());
        for (_, source) in v.fields() {
            // Of secrets, Azure's files; of flex volumes, Ceph, RBD and others; of CSI.
            add("secrets", source.get("secretName").str());
            add("secrets", source.get("secretRef").get("name").str());
            add("secrets", source.get("nodePublishSecretRef").get("name").str());
        }
        for s in v.get("projected").get("sources").iter() {
            add("secrets", s.get("secret").get("name").str());
            add("configmaps", s.get("configMap").get("name").str());
        }
        add("persistentvolumeclaims", v.get("persistentVolumeClaim").get("claimName").str());
        if v.get("ephemeral").exists() {
            add("persistentvolumeclaims", &format!("{}-{}", pod.meta().name(), v.get("name").str()));
        }
    }
    spec.get("resourceClaims").iter().for_each(|c| add("resourceclaims", c.get("resourceClaimName").str()));
    pod.at("status.resourceClaimStatuses").iter().for_each(|c| add("resourceclaims", c.get("resourceClaimName").str()));
    add("resourceclaims", pod.at("status.extendedResourceClaimStatus.resourceClaimName").str());
    out.sort_unstable();
    out.dedup();
    out
}

/// The secrets that a volume needs, which is bound to a claim.
#[derive(Debug, PartialEq, Eq)]
struct Needs {
    claim: String,
    secrets: Vec<String>,
}

fn volume(objects: &Objects, stored: &Stored) -> Option<Needs> {
    objects.doc(stored).and_then(|d| needed_by(&d))
}

fn needed_by(volume: &Doc) -> Option<Needs> {
    const REFERENCES: &[&str] = &[
        "secretRef",
        "controllerPublishSecretRef",
        "nodePublishSecretRef",
        "nodeStageSecretRef",
        "controllerExpandSecretRef",
        "nodeExpandSecretRef",
    ];
    let spec = volume.at("spec");
    let claim = spec.get("claimRef");
    let (name, namespace) = (claim.get("name").str(), claim.get("namespace").str());
    if name.is_empty() {
        return None;
    }
    let mut secrets = Vec::new();
    let mut add = |r: Ref<'_>, key: &str, of: &str| {
        if !r.get(key).str().is_empty() {
            // A reference without a namespace is to one beside the claim.
            let ns = Some(r.get(of).str()).filter(|n| !n.is_empty()).unwrap_or(namespace);
            secrets.push(vertex("secrets", ns, r.get(key).str()));
        }
    };
    for (_, source) in spec.fields() {
        add(source, "secretName", "secretNamespace");
        REFERENCES.iter().for_each(|r| add(source.get(r), "name", "namespace"));
    }
    secrets.sort_unstable();
    secrets.dedup();
    (!secrets.is_empty()).then(|| Needs { claim: vertex("persistentvolumeclaims", namespace, name), secrets })
}

#[cfg(test)]
mod tests {
    use k8s_schema::Schema;
    use serde_json::{Value, json};

    use super::*;

    fn doc(kind: &str, v: Value) -> Doc {
        let schema = Schema::builtin();
        let ty = schema.kind("", "v1", kind).unwrap();
        Doc::from_value(&schema, ty, &v).unwrap().doc
    }

    fn on(node: &str, v: Value) -> Option<Uses> {
        Some(Uses { node: node.into(), vertices: used_by(&doc("Pod", v), "ns") })
    }

    #[test]
    fn everything_a_pod_refers_to_is_found() {
        let pod = doc(
            "Pod",
            json!({"metadata": {"name": "p"}, "spec": {"serviceAccountName": "sa", "imagePullSecrets": [{"name": "pull"}],
                "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "from"}}, {"configMapRef": {"name": "cfrom"}}]}],
                "containers": [{"name": "c", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "env", "key": "k"}}},
                    {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "cenv", "key": "k"}}}]}],
                "resourceClaims": [{"name": "d", "resourceClaimName": "device"}],
                "volumes": [{"name": "a", "secret": {"secretName": "vol"}}, {"name": "b", "configMap": {"name": "cvol"}},
                    {"name": "c", "projected": {"sources": [{"secret": {"name": "proj"}}, {"configMap": {"name": "cproj"}}]}},
                    {"name": "d", "persistentVolumeClaim": {"claimName": "claim"}}, {"name": "e", "ephemeral": {}},
                    {"name": "f", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "csi"}}},
                    {"name": "g", "azureFile": {"secretName": "azure", "shareName": "s"}},
                    {"name": "h", "flexVolume": {"driver": "d", "secretRef": {"name": "flex"}}}]},
                "status": {"resourceClaimStatuses": [{"name": "t", "resourceClaimName": "made"}],
                    "extendedResourceClaimStatus": {"requestMappings": [], "resourceClaimName": "extended"}}}),
        );
        let names = |resource: &str| -> Vec<String> {
            let prefix = format!("{resource}/ns/");
            used_by(&pod, "ns").into_iter().filter_map(|v| v.strip_prefix(&prefix).map(str::to_owned)).collect()
        };
        assert_eq!(names("secrets"), ["azure", "csi", "env", "flex", "from", "proj", "pull", "vol"]);
        assert_eq!(names("configmaps"), ["cenv", "cfrom", "cproj", "cvol"]);
        assert_eq!(names("persistentvolumeclaims"), ["claim", "p-e"]);
        assert_eq!(names("resourceclaims"), ["device", "extended", "made"]);
        assert_eq!(names("serviceaccounts"), ["sa"]);
    }

    #[test]
    fn a_mirror_pod_gives_its_node_nothing() {
        let mirror = json!({"metadata": {"name": "m", "annotations": {MIRROR: "x"}}, "spec": {"containers": [], "imagePullSecrets": [{"name": "s"}]}});
        assert_eq!(used_by(&doc("Pod", mirror), "ns"), [""; 0]);
    }

    #[test]
    fn an_object_is_readable_as_long_as_a_pod_of_the_node_uses_it() {
        let with = |secret: &str| json!({"metadata": {"name": "p"}, "spec": {"containers": [], "imagePullSecrets": [{"name": secret}]}});
        let mut g = Graph::default();
        g.change(None, on("a", with("s")));
        g.change(None, on("a", with("s")));
        g.change(None, on("b", with("s")));
        assert!(g.uses("a", "secrets/ns/s") && g.uses("b", "secrets/ns/s") && !g.uses("c", "secrets/ns/s"));
        assert!(!g.uses("a", "secrets/other/s") && !g.uses("a", "configmaps/ns/s"));
        g.change(on("a", with("s")), None);
        assert!(g.uses("a", "secrets/ns/s"), "another pod still uses it");
        g.change(on("a", with("s")), on("a", with("t")));
        assert!(!g.uses("a", "secrets/ns/s") && g.uses("a", "secrets/ns/t") && g.uses("b", "secrets/ns/s"));
        g.change(on("a", with("t")), None);
        g.change(on("b", with("s")), None);
        assert!(g.users.is_empty(), "nothing is left behind");
    }

    #[test]
    fn the_secrets_of_a_volume_are_for_the_nodes_of_its_claim() {
        let pv = |claim: &str| {
            needed_by(&doc(
                "PersistentVolume",
                json!({"metadata": {"name": "v"}, "spec": {"claimRef": {"namespace": "ns", "name": claim},
                    "csi": {"driver": "d", "volumeHandle": "h", "nodeStageSecretRef": {"name": "stage", "namespace": "drivers"}}}}),
            ))
        };
        let pod = || {
            on(
                "a",
                json!({"metadata": {"name": "p"}, "spec": {"containers": [], "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}}),
            )
        };
        let mut g = Graph::default();
        g.change_volume(None, pv("c"));
        assert!(!g.uses_secret("a", "secrets/drivers/stage"));
        g.change(None, pod());
        assert!(g.uses_secret("a", "secrets/drivers/stage") && !g.uses_secret("b", "secrets/drivers/stage"));
        g.change_volume(pv("c"), pv("other"));
        assert!(!g.uses_secret("a", "secrets/drivers/stage"));
        g.change_volume(pv("other"), None);
        assert!(g.claims.is_empty());
        assert_eq!(pv(""), None);
    }
}
