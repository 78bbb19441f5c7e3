//! The Container Runtime Interface: generated types and a client over a unix socket.
//!
//! Every call has a deadline. The channel connects lazily and reconnects by itself, so a restart of the runtime shows as failed calls for a
//! moment and nothing more.

#[allow(clippy::all, rustdoc::all, missing_docs)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

use hyper_util::rt::TokioIo;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use v1::{image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient};

/// A failed call, named for what was asked.
#[derive(Debug, thiserror::Error)]
#[error("{operation}: {message}")]
pub struct CriError {
    pub operation: &'static str,
    pub code: tonic::Code,
    pub message: String,
}

impl CriError {
    /// Whether the object asked about does not exist.
    pub fn is_not_found(&self) -> bool {
        self.code == tonic::Code::NotFound
    }
}

/// A client for one runtime; cheap to clone.
#[derive(Clone)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    image: ImageServiceClient<Channel>,
    timeout: Duration,
}

/// Longest time an image pull may take.
const PULL_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Answers larger than this are refused (a node's full list of containers is far below it).
const MAX_MESSAGE: usize = 16 << 20;

macro_rules! call {
    ($self:ident, $client:ident, $method:ident, $timeout:expr, $request:expr) => {{
        let mut client = $self.$client.clone();
        let mut request = tonic::Request::new($request);
        request.set_timeout($timeout);
        // The transport's own deadline only covers the server side, so the wait here is bounded as well.
        match tokio::time::timeout($timeout + Duration::from_secs(1), client.$method(request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(CriError { operation: stringify!($method), code: status.code(), message: status.message().to_owned() }),
            Err(_) => Err(CriError {
                operation: stringify!($method),
                code: tonic::Code::DeadlineExceeded,
                message: format!("no answer within {:?}", $timeout),
            }),
        }
    }};
}

impl Cri {
    /// A client for the socket; connects when first used.
    pub fn connect(socket: &Path, timeout: Duration) -> Self {
        let socket: PathBuf = socket.into();
        // The URI only names the authority; the connector below decides where the connection goes.
        let channel = Endpoint::from_static("http://localhost").connect_timeout(Duration::from_secs(5)).connect_with_connector_lazy(
            tower::service_fn(move |_| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            }),
        );
        Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            image: ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
            timeout,
        }
    }

    pub async fn version(&self) -> Result<v1::VersionResponse, CriError> {
        call!(self, runtime, version, Duration::from_secs(5), v1::VersionRequest { version: "v1".into() })
    }

    pub async fn status(&self) -> Result<v1::StatusResponse, CriError> {
        call!(self, runtime, status, Duration::from_secs(10), v1::StatusRequest { verbose: false })
    }

    pub async fn list_pod_sandboxes(&self, filter: Option<v1::PodSandboxFilter>) -> Result<Vec<v1::PodSandbox>, CriError> {
        Ok(call!(self, runtime, list_pod_sandbox, self.timeout, v1::ListPodSandboxRequest { filter })?.items)
    }

    pub async fn list_containers(&self, filter: Option<v1::ContainerFilter>) -> Result<Vec<v1::Container>, CriError> {
        Ok(call!(self, runtime, list_containers, self.timeout, v1::ListContainersRequest { filter })?.containers)
    }

    /// The sandbox's status; `None` when it does not exist.
    pub async fn pod_sandbox_status(&self, id: &str) -> Result<Option<v1::PodSandboxStatus>, CriError> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
        match call!(self, runtime, pod_sandbox_status, self.timeout, request) {
            Ok(response) => Ok(response.status),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The container's status; `None` when it does not exist.
    pub async fn container_status(&self, id: &str) -> Result<Option<v1::ContainerStatus>, CriError> {
        let request = v1::ContainerStatusRequest { container_id: id.into(), verbose: false };
        match call!(self, runtime, container_status, self.timeout, request) {
            Ok(response) => Ok(response.status),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub async fn run_pod_sandbox(&self, config: v1::PodSandboxConfig, runtime_handler: String) -> Result<String, CriError> {
        let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler };
        // Setting up a sandbox may include pulling its image and calling every CNI plugin.
        Ok(call!(self, runtime, run_pod_sandbox, self.timeout * 2, request)?.pod_sandbox_id)
    }

    pub async fn stop_pod_sandbox(&self, id: &str) -> Result<(), CriError> {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.into() };
        ignore_missing(call!(self, runtime, stop_pod_sandbox, self.timeout, request))
    }

    pub async fn remove_pod_sandbox(&self, id: &str) -> Result<(), CriError> {
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        ignore_missing(call!(self, runtime, remove_pod_sandbox, self.timeout, request))
    }

    pub async fn create_container(
        &self,
        sandbox: &str,
        config: v1::ContainerConfig,
        sandbox_config: v1::PodSandboxConfig,
    ) -> Result<String, CriError> {
        let request =
            v1::CreateContainerRequest { pod_sandbox_id: sandbox.into(), config: Some(config), sandbox_config: Some(sandbox_config) };
        Ok(call!(self, runtime, create_container, self.timeout, request)?.container_id)
    }

    pub async fn start_container(&self, id: &str) -> Result<(), CriError> {
        call!(self, runtime, start_container, self.timeout, v1::StartContainerRequest { container_id: id.into() }).map(drop)
    }

    /// Stops a container: its stop signal first, SIGKILL after `grace` seconds.
    pub async fn stop_container(&self, id: &str, grace: i64) -> Result<(), CriError> {
        let request = v1::StopContainerRequest { container_id: id.into(), timeout: grace };
        let wait = self.timeout + Duration::from_secs(u64::try_from(grace).unwrap_or(0));
        ignore_missing(call!(self, runtime, stop_container, wait, request))
    }

    pub async fn remove_container(&self, id: &str) -> Result<(), CriError> {
        ignore_missing(call!(self, runtime, remove_container, self.timeout, v1::RemoveContainerRequest { container_id: id.into() }))
    }

    pub async fn reopen_log(&self, id: &str) -> Result<(), CriError> {
        call!(self, runtime, reopen_container_log, self.timeout, v1::ReopenContainerLogRequest { container_id: id.into() }).map(drop)
    }

    pub async fn exec_sync(&self, id: &str, cmd: Vec<String>, timeout: Duration) -> Result<v1::ExecSyncResponse, CriError> {
        let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
        let request = v1::ExecSyncRequest { container_id: id.into(), cmd, timeout: seconds };
        call!(self, runtime, exec_sync, timeout + Duration::from_secs(10), request)
    }

    pub async fn exec(&self, request: v1::ExecRequest) -> Result<String, CriError> {
        Ok(call!(self, runtime, exec, self.timeout, request)?.url)
    }

    pub async fn attach(&self, request: v1::AttachRequest) -> Result<String, CriError> {
        Ok(call!(self, runtime, attach, self.timeout, request)?.url)
    }

    pub async fn port_forward(&self, request: v1::PortForwardRequest) -> Result<String, CriError> {
        Ok(call!(self, runtime, port_forward, self.timeout, request)?.url)
    }

    pub async fn list_container_stats(&self) -> Result<Vec<v1::ContainerStats>, CriError> {
        Ok(call!(self, runtime, list_container_stats, self.timeout, v1::ListContainerStatsRequest { filter: None })?.stats)
    }

    /// The stream of what happens to containers, from now on. It ends with the runtime.
    pub async fn container_events(&self) -> Result<tonic::Streaming<v1::ContainerEventResponse>, CriError> {
        // No deadline: the stream is to last as long as the runtime.
        let mut client = self.runtime.clone();
        match client.get_container_events(v1::GetEventsRequest {}).await {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(CriError { operation: "get_container_events", code: status.code(), message: status.message().to_owned() }),
        }
    }

    pub async fn list_images(&self) -> Result<Vec<v1::Image>, CriError> {
        Ok(call!(self, image, list_images, self.timeout, v1::ListImagesRequest { filter: None })?.images)
    }

    /// The image's record; `None` when it is not on this machine.
    pub async fn image_status(&self, image: v1::ImageSpec) -> Result<Option<v1::Image>, CriError> {
        Ok(call!(self, image, image_status, self.timeout, v1::ImageStatusRequest { image: Some(image), verbose: false })?.image)
    }

    pub async fn pull_image(
        &self,
        image: v1::ImageSpec,
        auth: Option<v1::AuthConfig>,
        sandbox_config: v1::PodSandboxConfig,
    ) -> Result<String, CriError> {
        let request = v1::PullImageRequest { image: Some(image), auth, sandbox_config: Some(sandbox_config) };
        Ok(call!(self, image, pull_image, PULL_TIMEOUT, request)?.image_ref)
    }
}

fn ignore_missing<T>(result: Result<T, CriError>) -> Result<(), CriError> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}
