//! On a control plane: shows which machines have joined, and frees the name of one whose Node was deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_client::resources::NODES;
use k8s_client::{Client, List, ListOptions, Partial, Request};
use serde_json::json;

use super::{Context, Outcome, ReconcileError, Reconciler};
use crate::events::Severity;
use crate::joined;
use crate::kubernetes::{self, ADMIN_KUBECONFIG};

const KIND: &str = "joined";
const EVERY: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(10);

/// Compares the names with the Nodes.
#[derive(Default)]
pub struct Joined {
    client: Option<Client>,
}

#[tonic::async_trait]
impl Reconciler for Joined {
    fn name(&self) -> &'static str {
        "joined"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["kubernetes"]
    }

    async fn reconcile(&mut self, cx: &Context) -> Result<Outcome, ReconcileError> {
        if let Some(idle) = cx.idle_here()? {
            return Ok(idle);
        }
        let client = match &self.client {
            Some(client) => client.clone(),
            None => {
                let client = kubernetes::client(&cx.machine.paths, ADMIN_KUBECONFIG)?;
                self.client.insert(client).clone()
            }
        };
        let options = ListOptions { metadata_only: true, ..ListOptions::default() };
        let request = Request::list(&NODES, "", &options).with_timeout(TIMEOUT);
        let nodes: List<Partial> = match client.call(&request).await {
            Ok(nodes) => nodes,
            Err(error) => return Ok(Outcome::waiting(format!("the API server does not answer: {}", crate::api::chain(&error)))),
        };
        let nodes: BTreeSet<String> = nodes.items.into_iter().map(|node| node.metadata.name).collect();
        // Without this machine's own Node the list says nothing about others.
        if !nodes.contains(&cx.hostname()) {
            return Ok(Outcome::waiting("this machine's Node has not registered yet"));
        }

        let _changing = cx.machine.changing.lock().await;
        let mut joined = joined::Joined::load(&cx.machine.state)?;
        let (freed, changed) = joined.compare(&nodes);
        if changed {
            joined.save(&cx.machine.state)?;
        }
        for name in freed {
            let message = format!("the Node {name} was deleted; another machine may join under its name");
            cx.machine.event(Severity::Normal, "NameReleased", &message);
        }
        let shown = joined.0.iter().map(|(name, machine)| (name.clone(), json!({"address": machine.address, "registered": machine.node})));
        cx.machine.store.replace(KIND, shown.collect::<BTreeMap<_, _>>());
        Ok(Outcome::ready(format!("{} machines", joined.0.len()), EVERY))
    }
}
