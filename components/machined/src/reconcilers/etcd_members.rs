//! Shows etcd's members as resources, and whether this machine's member answers. Changes nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use etcd_client::Client;
use serde_json::{Value, json};

use super::{Context, Outcome, ReconcileError, Reconciler};
use crate::etcd;

const KIND: &str = "etcd-members";
const EVERY: Duration = Duration::from_secs(10);
/// How long etcd may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Looks at the members.
#[derive(Default)]
pub struct EtcdMembers {
    client: Option<Client>,
}

#[tonic::async_trait]
impl Reconciler for EtcdMembers {
    fn name(&self) -> &'static str {
        "etcd"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["kubernetes"]
    }

    async fn reconcile(&mut self, cx: &Context) -> Result<Outcome, ReconcileError> {
        if let Some(idle) = cx.idle_here()? {
            return Ok(idle);
        }
        let paths = &cx.machine.paths;
        match tokio::time::timeout(ANSWER, self.look(cx)).await {
            Ok(Ok((members, detail))) => {
                cx.machine.store.replace(KIND, members);
                Ok(Outcome::ready(detail, EVERY))
            }
            failed => {
                // The next look begins with new certificates.
                self.client = None;
                cx.machine.store.replace(KIND, BTreeMap::new());
                if let Some(reason) = crate::kubernetes::etcd::halted(paths) {
                    return Err(format!("etcd is halted: {reason}").into());
                }
                let why = match failed {
                    Ok(Err(error)) => crate::api::chain(error.as_ref()),
                    _ => format!("no answer within {} s", ANSWER.as_secs()),
                };
                Ok(Outcome::waiting(format!("etcd does not answer: {why}")))
            }
        }
    }
}

impl EtcdMembers {
    async fn look(&mut self, cx: &Context) -> Result<(BTreeMap<String, Value>, String), ReconcileError> {
        let client = match &mut self.client {
            Some(client) => client,
            None => self.client.insert(etcd::connect(&cx.machine.paths).await?),
        };
        let status = client.status().await?;
        let own = status.header().map_or(0, |header| header.member_id());
        let list = client.member_list().await?;
        let members: BTreeMap<String, Value> = list
            .members()
            .iter()
            .map(|member| {
                let spec = json!({
                    "name": member.name(), "peers": member.peer_urls(), "clients": member.client_urls(), "learner": member.is_learner(),
                    "leader": member.id() == status.leader(), "own": member.id() == own,
                });
                (format!("{:016x}", member.id()), spec)
            })
            .collect();
        let role = if status.is_learner() {
            "learner"
        } else if status.leader() == own {
            "leader"
        } else {
            "follower"
        };
        let detail = format!("{role} of {} member{}", members.len(), if members.len() == 1 { "" } else { "s" });
        Ok((members, detail))
    }
}
