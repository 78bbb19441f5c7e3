//! `strakectl kubeconfig`: an administrator's access to the Kubernetes API.

use std::path::PathBuf;

use anyhow::Context;
use machine_api::v1alpha1::KubeconfigRequest;

use super::{Cx, refused};
use crate::output;

/// Get an administrator's kubeconfig from a control plane.
#[derive(Debug, clap::Args)]
pub struct Kubeconfig {
    /// Where to write it; - is standard output.
    #[arg(default_value = "kubeconfig")]
    file: PathBuf,
    /// The URL of the API server, when it is not the cluster's endpoint (a forwarded port, for example).
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// The user's name in the certificate; by default your own name.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
}

impl Kubeconfig {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        let machine = cx.control_plane().await?;
        let request = KubeconfigRequest { server: self.server.unwrap_or_default(), user: self.user.unwrap_or_default() };
        let response = machine.machine().kubeconfig(request).await.map_err(refused)?.into_inner();
        if self.file.as_os_str() == "-" {
            return super::print(&response.kubeconfig);
        }
        crate::context::write_private(&self.file, response.kubeconfig.as_bytes())
            .with_context(|| format!("write {}", self.file.display()))?;
        eprintln!("{} written; its certificate is good until {}", self.file.display(), output::date(response.not_after_unix));
        Ok(())
    }
}
