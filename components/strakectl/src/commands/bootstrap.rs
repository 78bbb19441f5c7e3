//! `strakectl bootstrap`: makes a control plane the first of a new cluster.

use machine_api::v1alpha1::BootstrapRequest;
use serde_json::json;

use super::{Cx, refused};

/// Make a control-plane machine the first of its cluster. Works once per cluster.
#[derive(Debug, clap::Args)]
pub struct Bootstrap {}

impl Bootstrap {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        let machine = cx.control_plane().await?;
        let response = machine.machine().bootstrap(BootstrapRequest {}).await.map_err(refused)?.into_inner();
        let row = json!({"clusterID": response.cluster_id, "result": format!("bootstrapping cluster {}", response.cluster_id)});
        super::show(cx, &machine.node, &["RESULT"], vec![row])
    }
}
