//! Whether someone may do something: group `system:masters`, then who is configured: the Node authorizer, RBAC, webhooks. Nothing else
//! allows anything.

pub mod config;
pub mod node;
pub mod rbac;
mod webhook;

use std::sync::Arc;

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use webhook::WebhookAuthorizer;

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
    /// Somebody forbids it, and nobody else is asked.
    Deny(String),
    /// Nobody allows it; with what there is to say about it.
    NoOpinion(String),
}

impl Decision {
    pub fn allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }
}

/// Who is asked.
#[derive(Clone)]
pub enum Mode {
    Node,
    Rbac,
    Webhook(Arc<WebhookAuthorizer>),
}

pub struct Authorizer {
    modes: ArcSwap<Vec<Mode>>,
    pub rbac: rbac::Rbac,
    pub node: node::NodeAuthorizer,
}

impl Authorizer {
    pub fn new(modes: Vec<Mode>, objects: Arc<Objects>) -> Self {
        Self { modes: ArcSwap::from_pointee(modes), rbac: rbac::Rbac::new(Arc::clone(&objects)), node: node::NodeAuthorizer::new(objects) }
    }

    /// Asks others from now on.
    pub fn replace(&self, modes: Vec<Mode>) {
        self.modes.store(Arc::new(modes));
    }

    /// Whether one of them cannot say what rules somebody has.
    pub fn asks_webhooks(&self) -> bool {
        self.modes.load().iter().any(|m| matches!(m, Mode::Webhook(_)))
    }

    /// Whoever is configured is asked in turn, until one allows or forbids it.
    pub async fn decide(&self, user: &User, a: &Attributes) -> Decision {
        if user.in_group(crate::authn::MASTERS) {
            return Decision::Allow(String::new());
        }
        let mut reasons = Vec::new();
        for mode in self.modes.load_full().iter() {
            let heard = match mode {
                Mode::Node => self.node.authorize(user, a),
                Mode::Rbac => self.rbac.authorize(user, a),
                Mode::Webhook(w) => w.decide(user, a).await,
            };
            match heard {
                Decision::NoOpinion(r) => reasons.extend(Some(r).filter(|r| !r.is_empty())),
                settled => return settled,
            }
        }
        Decision::NoOpinion(reasons.join(", "))
    }

    /// As [`decide`](Self::decide), for an expression in the middle of its evaluation: a webhook that has to be asked holds up the thread.
    pub fn decide_at_once(&self, user: &User, a: &Attributes) -> Decision {
        let mut deciding = std::pin::pin!(self.decide(user, a));
        match deciding.as_mut().now_or_never() {
            Some(decision) => decision,
            None => tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(deciding)),
        }
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
