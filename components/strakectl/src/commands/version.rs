//! `strakectl version`: what this program is and what the machines run.

use machine_api::v1alpha1::{Mode, VersionRequest};
use serde_json::json;

use super::{Cx, refused};
use crate::output;

/// Show what machines run, and in which mode they are.
#[derive(Debug, clap::Args)]
pub struct Version {
    /// Only this program's version; asks no machine.
    #[arg(long)]
    client: bool,
}

impl Version {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        if self.client {
            let row = output::row(json!({"name": "strakectl", "version": env!("CARGO_PKG_VERSION")}));
            return super::print(&output::render(cx.output, &["NAME", "VERSION"], &[row])?);
        }
        cx.rows(&["HOSTNAME", "ROLE", "MODE", "VERSION", "KUBERNETES", "KERNEL"], |machine| async move {
            let version = machine.machine().version(VersionRequest {}).await.map_err(refused)?.into_inner();
            Ok(vec![json!({
                "mode": mode(version.mode()),
                "hostname": version.hostname,
                "role": version.role,
                "name": version.name,
                "version": version.version,
                "kubernetes": version.kubernetes,
                "kernel": version.kernel,
                "rootUUID": version.root_uuid,
                "bootID": version.boot_id,
            })])
        })
        .await
    }
}

pub fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Maintenance => "maintenance",
        Mode::Running => "running",
        Mode::Unspecified => "unknown",
    }
}
