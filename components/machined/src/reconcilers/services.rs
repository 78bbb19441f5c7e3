//! The services beside containerd: kubelet and kube-proxy, started through init with the arguments that the config calls
//! for. init restarts what ends; here it is only told what is wanted.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use super::{Context, Outcome, ReconcileError, Reconciler};
use crate::service_words;

/// Starts what the config wants.
pub struct Services;

#[tonic::async_trait]
impl Reconciler for Services {
    fn name(&self) -> &'static str {
        "services"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["images", "kubernetes"]
    }

    async fn reconcile(&mut self, cx: &Context) -> Result<Outcome, ReconcileError> {
        let wanted = crate::kubernetes::services(cx)?;
        let names: Vec<String> = wanted.iter().map(|service| service.name.clone()).collect();
        for service in wanted {
            cx.machine.init.start(&service.name, service.args, service.env).await?;
        }
        let states = cx.machine.init.services().await?;
        let shown: BTreeMap<_, _> = states
            .iter()
            .map(|service| {
                let spec = json!({
                    "state": service_words::state_name(service.state), "restarts": service.restarts, "pid": service.pid,
                    "detail": service_words::detail(service),
                });
                (service.name.clone(), spec)
            })
            .collect();
        cx.machine.store.replace("services", shown);
        let down: Vec<String> = states
            .iter()
            .filter(|service| names.contains(&service.name) && service.state != node_ipc::init::ServiceState::Running)
            .map(|service| format!("{} is {}", service.name, service_words::state_name(service.state)))
            .collect();
        if down.is_empty() {
            return Ok(Outcome::ready(names.join(", "), Duration::from_secs(10)));
        }
        Ok(Outcome::waiting(down.join(", ")))
    }
}
