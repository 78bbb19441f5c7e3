//! `strakectl reboot`, `shutdown` and `reset`.

use anyhow::bail;
use machine_api::v1alpha1::{RebootRequest, ResetRequest, ShutdownRequest, VersionRequest};
use serde_json::json;

use super::{Cx, refused};

/// Reboot machines.
#[derive(Debug, clap::Args)]
pub struct Reboot {}

/// Power machines off.
#[derive(Debug, clap::Args)]
pub struct Shutdown {}

/// Wipe a machine's config, etcd and data. It comes back in maintenance mode.
#[derive(Debug, clap::Args)]
pub struct Reset {
    /// Really do it.
    #[arg(long)]
    yes: bool,
}

impl Reboot {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        cx.rows(&["RESULT"], |machine| async move {
            machine.machine().reboot(RebootRequest {}).await.map_err(refused)?;
            Ok(vec![json!({"result": "rebooting"})])
        })
        .await
    }
}

impl Shutdown {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        cx.rows(&["RESULT"], |machine| async move {
            machine.machine().shutdown(ShutdownRequest {}).await.map_err(refused)?;
            Ok(vec![json!({"result": "shutting down"})])
        })
        .await
    }
}

impl Reset {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        let machine = cx.one().await?;
        let version = machine.machine().version(VersionRequest {}).await.map_err(refused)?.into_inner();
        if !self.yes {
            bail!("this wipes everything that {} ({}) keeps: say --yes", version.hostname, machine.node);
        }
        machine.machine().reset(ResetRequest { confirm_hostname: version.hostname.clone() }).await.map_err(refused)?;
        let result = format!("{} is being reset and comes back in maintenance mode", version.hostname);
        super::show(cx, &machine.node, &["RESULT"], vec![json!({"result": result})])
    }
}
