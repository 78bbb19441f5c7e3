//! Whether someone may do something: group `system:masters`, then the Node authorizer, then RBAC. Nothing else allows anything.

pub mod node;
pub mod rbac;

use std::sync::Arc;

use crate::{authn::User, objects::Objects};

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    pub verb: String,
    /// False: `path` is what is asked for.
    pub is_resource: bool,
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub path: String,
    /// The exact name a list or watch is narrowed to by `metadata.name=`, or the node by `spec.nodeName=`.
    pub field_selector: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Allow(String),
    /// Nobody allows it; with what there is to say about it.
    NoOpinion(String),
}

impl Decision {
    pub fn allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Node,
    Rbac,
}

pub struct Authorizer {
    modes: Vec<Mode>,
    pub rbac: rbac::Rbac,
    node: node::NodeAuthorizer,
}

impl Authorizer {
    pub fn new(modes: Vec<Mode>, objects: Arc<Objects>) -> Self {
        Self { modes, rbac: rbac::Rbac::new(Arc::clone(&objects)), node: node::NodeAuthorizer::new(objects) }
    }

    pub fn authorize(&self, user: &User, a: &Attributes) -> Decision {
        if user.in_group(crate::authn::MASTERS) {
            return Decision::Allow(String::new());
        }
        let mut reasons = Vec::new();
        for mode in &self.modes {
            let d = match mode {
                Mode::Node => self.node.authorize(user, a),
                Mode::Rbac => self.rbac.authorize(user, a),
            };
            match d {
                Decision::Allow(_) => return d,
                Decision::NoOpinion(r) if !r.is_empty() => reasons.push(r),
                Decision::NoOpinion(_) => {}
            }
        }
        Decision::NoOpinion(reasons.join(", "))
    }
}

/// Upstream's sentence about a refusal, without the object it is about.
pub fn refusal(user: &User, a: &Attributes, reason: &str) -> String {
    let who = format!("User {:?} cannot {}", user.name, a.verb);
    let mut message = if !a.is_resource {
        format!("{who} path {:?}", a.path)
    } else {
        let mut resource = a.resource.clone();
        if !a.subresource.is_empty() {
            resource = format!("{resource}/{}", a.subresource);
        }
        let what = format!("{who} resource {resource:?} in API group {:?}", a.group);
        if a.namespace.is_empty() { format!("{what} at the cluster scope") } else { format!("{what} in the namespace {:?}", a.namespace) }
    };
    if !reason.is_empty() {
        message = format!("{message}: {reason}");
    }
    message
}
