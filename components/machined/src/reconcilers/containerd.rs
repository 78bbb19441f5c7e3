//! containerd: started once its disk and config are there, ready when its socket answers.

use std::time::Duration;

use super::{Context, Outcome, ReconcileError, Reconciler};
use crate::containerd::Containerd;

/// The container runtime.
#[derive(Default)]
pub struct ContainerRuntime {
    started: bool,
}

#[tonic::async_trait]
impl Reconciler for ContainerRuntime {
    fn name(&self) -> &'static str {
        "containerd"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["volumes", "hostname", "containerd-config"]
    }

    async fn reconcile(&mut self, cx: &Context) -> Result<Outcome, ReconcileError> {
        let service = crate::kubernetes::containerd_service();
        cx.machine.init.start(&service.name, service.args, service.env).await?;
        let images = async { Containerd::connect(&cx.machine.paths.containerd_socket()).await?.images().await };
        match tokio::time::timeout(Duration::from_secs(10), images).await {
            Ok(Ok(images)) => {
                self.started = true;
                Ok(Outcome::ready(format!("{} images", images.len()), Duration::from_secs(30)))
            }
            // Starting takes seconds; only what lasts is a failure.
            Ok(Err(error)) if self.started => Err(error.into()),
            Err(_) if self.started => Err("containerd does not answer".into()),
            _ => Ok(Outcome::waiting("containerd is starting")),
        }
    }
}
