//! Cluster DNS: services and pods by name (Kubernetes DNS-Based Service Discovery 1.1.0), forwarding for the rest.
//!
//! [`zone`] and [`message`] are pure; [`resolver`] and [`server`] do the I/O. Nothing is kept but the informers' stores and a bounded cache of
//! forwarded answers.

pub mod message;
pub mod resolver;
pub mod server;
pub mod types;
pub mod zone;

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::Context;
use clap::Parser;
use k8s_client::{CancellationToken, Client, Config, Informer, ReflectorOptions, spawn_reflector};

use crate::resolver::{Resolver, name_servers};
use crate::server::{Server, Watched};
use crate::types::{EndpointSlice, Service};
use crate::zone::Zone;

/// Cluster DNS: services and pods by name, forwarding for the rest.
#[derive(Debug, Clone, Parser)]
#[command(name = "cluster-dns", version)]
struct Options {
    /// Kubeconfig; in-cluster configuration when unset.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Domain of the cluster.
    #[arg(long, default_value = "cluster.local")]
    domain: String,
    /// Address to serve DNS on.
    #[arg(long, default_value = "0.0.0.0")]
    bind_address: IpAddr,
    /// Port to serve DNS on, UDP and TCP.
    #[arg(long, default_value_t = 53)]
    port: u16,
    /// Port of /health and /ready.
    #[arg(long, default_value_t = 8080)]
    health_port: u16,
    /// File that names the resolvers for everything outside the cluster.
    #[arg(long, default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
    /// Log verbosity.
    #[arg(short = 'v', long = "v", default_value_t = 0)]
    verbosity: u8,
}

/// The program.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let options = match Options::try_parse_from(args) {
        Ok(options) => options,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(error.exit_code().clamp(0, 255) as u8);
        }
    };
    component_base::start_logging("cluster-dns", options.verbosity);
    // An error means a provider is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let outcome = (tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build())
        .context("start the runtime")
        .and_then(|runtime| runtime.block_on(run(options)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cluster-dns: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).context("listen for SIGTERM")?;
    let client = Client::new(Config::load(options.kubeconfig.as_deref())?.with_user_agent("cluster-dns"))?;
    let text = std::fs::read_to_string(&options.resolv_conf).with_context(|| format!("read {}", options.resolv_conf.display()))?;
    let servers = name_servers(&text);
    if servers.is_empty() {
        tracing::warn!(file = %options.resolv_conf.display(), "no resolvers: names outside the cluster will not resolve");
    }
    let services: Informer<Service> = spawn_reflector(client.clone(), ReflectorOptions::of::<Service>(), stop.clone());
    let slices: Informer<EndpointSlice> = spawn_reflector(client, ReflectorOptions::of::<EndpointSlice>(), stop.clone());
    let watched = Watched {
        by_address: services.index(|s| s.addresses().map(|a| a.to_string()).collect()),
        by_namespace: services.index(|s| vec![s.metadata.namespace.clone()]),
        slices: slices.index(|s| s.service().into_iter().collect()),
        slices_by_address: slices
            .index(|s| s.endpoints.iter().flat_map(|e| e.addresses().map(|a| a.to_string()).collect::<Vec<_>>()).collect()),
        services: services.clone(),
    };
    let ready = Arc::new(AtomicBool::new(false));
    health((options.bind_address, options.health_port).into(), Arc::clone(&ready), stop.clone()).await?;
    let address: SocketAddr = (options.bind_address, options.port).into();
    let (udp, tcp) = server::bind(address).await.with_context(|| format!("listen on {address}"))?;
    let zone = Zone { domain: options.domain.trim_matches('.').to_lowercase() };
    let server = Arc::new(Server { zone, cluster: watched, resolver: Resolver::new(servers), answered: AtomicUsize::new(0) });
    tokio::select! {
        _ = async { tokio::join!(services.wait_synced(), slices.wait_synced()) } => {}
        _ = terminate.recv() => return Ok(()),
    }
    ready.store(true, Ordering::Relaxed);
    tracing::info!(%address, domain = server.zone.domain, services = services.len(), "serving");
    let serving = async { tokio::join!(Arc::clone(&server).udp(udp, stop.clone()), Arc::clone(&server).tcp(tcp, stop.clone())) };
    tokio::select! {
        _ = serving => {}
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    stop.cancel();
    Ok(())
}

/// `/health` always, `/ready` once the names are known; plain HTTP for probes.
async fn health(address: SocketAddr, ready: Arc<AtomicBool>, stop: CancellationToken) -> anyhow::Result<()> {
    use http::{Request, Response, StatusCode};
    use http_body_util::Full;
    let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    tokio::spawn(async move {
        let permits = Arc::new(tokio::sync::Semaphore::new(16));
        loop {
            let permit = permits.clone().acquire_owned().await;
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            };
            let ready = Arc::clone(&ready);
            tokio::spawn(async move {
                let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                    let (status, text) = match request.uri().path() {
                        "/health" => (StatusCode::OK, "OK"),
                        "/ready" if ready.load(Ordering::Relaxed) => (StatusCode::OK, "OK"),
                        "/ready" => (StatusCode::SERVICE_UNAVAILABLE, "services are not known yet"),
                        _ => (StatusCode::NOT_FOUND, "not found"),
                    };
                    let mut response = Response::new(Full::new(bytes::Bytes::from_static(text.as_bytes())));
                    *response.status_mut() = status;
                    async move { Ok::<_, std::convert::Infallible>(response) }
                });
                let mut server = hyper::server::conn::http1::Builder::new();
                server.timer(hyper_util::rt::TokioTimer::new()).header_read_timeout(std::time::Duration::from_secs(10));
                // A client that hangs up is no news.
                let _ = server.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
                drop(permit);
            });
        }
    });
    Ok(())
}
