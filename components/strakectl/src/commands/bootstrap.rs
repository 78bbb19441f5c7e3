//! `strakectl bootstrap`: makes a control plane the first of a new cluster.

use machine_api::v1alpha1::BootstrapRequest;

use super::{Cx, refused};

/// Make a control-plane machine the first of its cluster. Works once per cluster.
#[derive(Debug, clap::Args)]
pub struct Bootstrap {}

impl Bootstrap {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        let machine = cx.control_plane().await?;
        let response = machine.machine().bootstrap(BootstrapRequest {}).await.map_err(refused)?.into_inner();
        super::print(&format!("{}: bootstrapping cluster {}\n", machine.node, response.cluster_id))
    }
}
