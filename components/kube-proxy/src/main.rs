//! `kube-proxy`: flags, logging, signals; the rest is the library.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use k8s_client::{CancellationToken, Client};
use kube_proxy::config::{Options, load};
use kube_proxy::health::Health;
use kube_proxy::run::run;

fn main() -> ExitCode {
    let options = Options::parse();
    component_base::start_logging("kube-proxy", options.verbosity);
    // An error means a provider is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let outcome = (tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build())
        .context("start the runtime")
        .and_then(|runtime| runtime.block_on(start(&options)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kube-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn start(options: &Options) -> anyhow::Result<()> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let config = load(options, host.trim())?;
    let stop = CancellationToken::new();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).context("listen for SIGTERM")?;
    let on_signal = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        on_signal.cancel();
    });
    let client = Client::new(k8s_client::Config::load(config.kubeconfig.as_deref())?.with_user_agent("kube-proxy"))?;
    let health = Arc::new(Health::default());
    health.serve(config.healthz, false, stop.clone()).await.with_context(|| format!("listen on {}", config.healthz))?;
    health.serve(config.metrics, true, stop.clone()).await.with_context(|| format!("listen on {}", config.metrics))?;
    run(config, client, health, stop).await
}
