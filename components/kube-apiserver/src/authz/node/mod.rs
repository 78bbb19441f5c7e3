//! What a kubelet may do: what the role `system:node` says, and of secrets, config maps, claims and tokens only what pods bound to
//! its own node use, as the [`graph`] knows it.

mod graph;

use std::{sync::Arc, time::Duration};

use graph::{Graph, vertex};
use parking_lot::Mutex;

use super::{Attributes, Decision, rbac::Rule};
use crate::{authn::User, objects::Objects};

const NODES: &str = "system:nodes";
const PREFIX: &str = "system:node:";

/// The node a user is the kubelet of.
pub fn node_of(user: &User) -> Option<&str> {
    if user.in_group(NODES) { user.name.strip_prefix(PREFIX).filter(|n| !n.is_empty()) } else { None }
}

pub struct NodeAuthorizer {
    objects: Arc<Objects>,
    rules: Vec<Rule>,
    graph: Mutex<Graph>,
}

/// The graph follows the caches this often while nobody asks, so that who asks next does not have much to wait for.
const FOLLOW: Duration = Duration::from_secs(1);

impl NodeAuthorizer {
    pub fn new(objects: Arc<Objects>) -> Self {
        let rules = crate::bootstrap::rbac::rules_of("system:node");
        Self { objects, rules, graph: Mutex::default() }
    }

    /// Keeps the graph, once it is there, close behind the pods; never ends.
    pub async fn follow(&self) {
        let Some(pods) = self.objects.reflector.cache("pods") else { return };
        let mut heads = pods.subscribe();
        while heads.changed().await.is_ok() {
            {
                let mut graph = self.graph.lock();
                if graph.is_built() {
                    graph.catch_up(&self.objects);
                }
            }
            tokio::time::sleep(FOLLOW).await;
        }
    }

    pub fn authorize(&self, user: &User, a: &Attributes) -> Decision {
        let no = |why: &str| Decision::NoOpinion(why.to_owned());
        let Some(node) = node_of(user) else {
            return no("");
        };
        if a.is_resource {
            match (a.group.as_str(), a.resource.as_str()) {
                ("", "secrets") => return self.read(node, a),
                ("", "configmaps") => return self.read(node, a),
                ("", "persistentvolumeclaims") if a.subresource == "status" => {
                    return if matches!(a.verb.as_str(), "update" | "patch") {
                        self.related(node, a, &a.resource)
                    } else {
                        no("can only get/update/patch this type")
                    };
                }
                ("", "persistentvolumeclaims") => return self.get(node, a),
                ("", "persistentvolumes") => return self.persistent_volume(node, a),
                ("resource.k8s.io", "resourceclaims") => return self.get(node, a),
                ("storage.k8s.io", "volumeattachments") => return self.attachment(node, a),
                ("", "serviceaccounts") => {
                    if a.subresource == "token" && a.verb == "create" {
                        return self.related(node, a, &a.resource);
                    }
                    return if a.subresource.is_empty() { self.get(node, a) } else { no("only 'create' of 'token' is supported") };
                }
                ("coordination.k8s.io", "leases") => return lease(node, a),
                ("resource.k8s.io", "resourceslices") => return self.slice(node, a),
                ("storage.k8s.io", "csinodes") => {
                    return if !matches!(a.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") || !a.subresource.is_empty() {
                        no("can only get, create, update, patch, or delete a CSINode")
                    } else if a.verb != "create" && a.name != node {
                        no("can only access CSINode with the same name as the requesting node")
                    } else {
                        Decision::Allow(String::new())
                    };
                }
                ("", "nodes") if a.subresource.is_empty() || a.subresource == "status" => {
                    let own = a.verb == "create" || a.name == node;
                    if matches!(a.verb.as_str(), "get" | "list" | "watch" | "update" | "patch") && !own {
                        return if a.name.is_empty() {
                            no("node '{}' cannot read all nodes, only its own Node object").replace(node, "")
                        } else {
                            no("node '{}' cannot read '{}', only its own Node object").replace(node, &a.name)
                        };
                    }
                }
                ("", "pods") if matches!(a.verb.as_str(), "get" | "list" | "watch") && a.subresource.is_empty() => {
                    let pinned = a.field_selector.split(',').any(|r| r == format!("spec.nodeName={node}"));
                    if a.verb != "get" && !pinned {
                        return no("can only list/watch pods with spec.nodeName field selector");
                    }
                    if a.verb == "get" && !a.name.is_empty() && !self.is_bound(node, a) {
                        return unrelated(node);
                    }
                }
                _ => {}
            }
        }
        if self.rules.iter().any(|r| r.allows(a)) { Decision::Allow(String::new()) } else { no("") }
    }

    fn is_bound(&self, node: &str, a: &Attributes) -> bool {
        let Some(pod) = self.objects.reflector.cache("pods").and_then(|c| c.get(&format!("{}/{}", a.namespace, a.name))) else {
            // What is not there cannot be told apart by whom it belongs to; the answer will be 404.
            return true;
        };
        pod.field("spec.nodeName") == Some(node)
    }

    fn read(&self, node: &str, a: &Attributes) -> Decision {
        if !matches!(a.verb.as_str(), "get" | "list" | "watch") {
            return Decision::NoOpinion("can only read resources of this type".into());
        }
        self.related(node, a, &a.resource)
    }

    fn get(&self, node: &str, a: &Attributes) -> Decision {
        if a.verb != "get" {
            return Decision::NoOpinion("can only get individual resources of this type".into());
        }
        self.related(node, a, &a.resource)
    }

    /// Whether a pod of the node uses what is asked for, taken for an object of `resource`.
    fn related(&self, node: &str, a: &Attributes, resource: &str) -> Decision {
        if a.name.is_empty() {
            return Decision::NoOpinion("No Object name found".into());
        }
        let vertex = vertex(resource, &a.namespace, &a.name);
        let mut graph = self.graph.lock();
        graph.catch_up(&self.objects);
        let related = if resource == "secrets" { graph.uses_secret(node, &vertex) } else { graph.uses(node, &vertex) };
        if related { Decision::Allow(String::new()) } else { unrelated(node) }
    }

    fn persistent_volume(&self, node: &str, a: &Attributes) -> Decision {
        if a.verb != "get" || a.name.is_empty() {
            return Decision::NoOpinion("can only get individual resources of this type".into());
        }
        let Some(pv) = self.objects.get("persistentvolumes", &a.name) else {
            return unrelated(node);
        };
        let claim = pv.at("spec.claimRef");
        let of_claim =
            Attributes { namespace: claim.get("namespace").str().to_owned(), name: claim.get("name").str().to_owned(), ..a.clone() };
        self.related(node, &of_claim, "persistentvolumeclaims")
    }

    /// What drivers on this node publish; whose node a new slice names is looked at when it is admitted.
    fn slice(&self, node: &str, a: &Attributes) -> Decision {
        let no = |why: &str| Decision::NoOpinion(why.to_owned());
        if !a.subresource.is_empty() {
            return no("cannot authorize ResourceSlice subresources");
        }
        match a.verb.as_str() {
            "create" => Decision::Allow(String::new()),
            "get" | "update" | "patch" | "delete" => {
                let own = self.objects.get("resourceslices", &a.name).is_some_and(|s| s.at("spec.nodeName").str() == node);
                if own { Decision::Allow(String::new()) } else { unrelated(node) }
            }
            "watch" | "list" | "deletecollection" if a.field_selector.split(',').any(|r| r == format!("spec.nodeName={node}")) => {
                Decision::Allow(String::new())
            }
            "watch" | "list" | "deletecollection" => {
                no("can only list/watch/deletecollection resourceslices with spec.nodeName field selector")
            }
            _ => no(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection",
            ),
        }
    }

    fn attachment(&self, node: &str, a: &Attributes) -> Decision {
        if a.verb != "get" {
            return Decision::NoOpinion("can only get individual resources of this type".into());
        }
        let own = self.objects.get("volumeattachments", &a.name).is_some_and(|v| v.at("spec.nodeName").str() == node);
        if own { Decision::Allow(String::new()) } else { unrelated(node) }
    }
}

fn unrelated(node: &str) -> Decision {
    Decision::NoOpinion(format!("no relationship found between node '{node}' and this object"))
}

impl Decision {
    /// Puts names where a reason has `{}`.
    fn replace(self, a: &str, b: &str) -> Self {
        match self {
            Self::NoOpinion(r) => Self::NoOpinion(r.replacen("{}", a, 1).replacen("{}", b, 1)),
            d => d,
        }
    }
}

fn lease(node: &str, a: &Attributes) -> Decision {
    let no = |why: &str| Decision::NoOpinion(why.to_owned());
    if !a.subresource.is_empty() || a.namespace != "kube-node-lease" {
        return no("can only access leases in the \"kube-node-lease\" system namespace");
    }
    if !matches!(a.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
        return no("can only get, create, update, patch, or delete a node lease");
    }
    if a.verb != "create" && a.name != node {
        return no("can only access node lease with the same name as the requesting node");
    }
    Decision::Allow(String::new())
}
