//! `strakectl services` and `strakectl service restart`.

use machine_api::v1alpha1::{ServiceListRequest, ServiceRestartRequest};
use serde_json::json;

use super::{Cx, refused};
use crate::output;

/// List the host services.
#[derive(Debug, clap::Args)]
pub struct Services {}

impl Services {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        cx.rows(&["SERVICE=name", "STATE", "PID", "MEMORY|bytes", "RESTARTS", "SINCE", "DETAIL"], |machine| async move {
            let list = machine.services().list(ServiceListRequest {}).await.map_err(refused)?.into_inner();
            Ok(list
                .services
                .into_iter()
                .map(|service| {
                    json!({
                        "name": service.name,
                        "state": service.state,
                        "pid": (service.pid > 0).then_some(service.pid),
                        "memory": (service.memory_bytes > 0).then_some(service.memory_bytes),
                        "restarts": service.restarts,
                        "since": output::date(service.since_unix),
                        "detail": service.detail,
                    })
                })
                .collect())
        })
        .await
    }
}

/// Act on one host service.
#[derive(Debug, clap::Subcommand)]
pub enum Service {
    /// Stop a service and start it again.
    Restart {
        /// Its name.
        name: String,
    },
}

impl Service {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        let Service::Restart { name } = self;
        cx.rows(&["RESULT"], |machine| {
            let name = name.clone();
            async move {
                machine.services().restart(ServiceRestartRequest { name: name.clone() }).await.map_err(refused)?;
                Ok(vec![json!({"result": format!("{name} restarted")})])
            }
        })
        .await
    }
}
