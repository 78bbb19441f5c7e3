//! The Kubernetes scheduler: watches pods without a node and binds each to the best one.
//!
//! Placement is pure ([`schedule`], [`plugins`], [`preemption`], [`queue`], [`snapshot`], [`state`]); [`run`] is the I/O around it.

pub mod framework;
pub mod metrics;
pub mod options;
pub mod plugins;
pub mod preemption;
pub mod queue;
pub mod resources;
pub mod run;
pub mod schedule;
pub mod snapshot;
pub mod state;
pub mod types;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use k8s_client::{CancellationToken, Check, Client, Config, EventRecorder, LeaderElector, ServeConfig, serve};

use crate::metrics::Metrics;
use crate::options::Options;
use crate::run::Scheduler;

/// The program: parses flags, runs until SIGTERM or until the lease is lost.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let options = match Options::try_parse_from(args) {
        Ok(options) => options,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(error.exit_code().clamp(0, 255) as u8);
        }
    };
    component_base::start_logging("kube-scheduler", options.verbosity);
    // An error means a provider is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("kube-scheduler: start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kube-scheduler: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> anyhow::Result<()> {
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
    let client = Client::new(Config::load(options.kubeconfig.as_deref())?.with_user_agent("kube-scheduler"))?;
    let reviewer = match options.authentication_kubeconfig.as_deref().or(options.authorization_kubeconfig.as_deref()) {
        Some(path) => Client::new(Config::load(Some(path))?.with_user_agent("kube-scheduler"))?,
        None => client.clone(),
    };
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_string();
    let metrics = Arc::new(Metrics::default());
    let shown = Arc::clone(&metrics);
    let health = ServeConfig {
        bind: options.bind(),
        tls: true,
        checks: vec![Check { name: "ping", check: Arc::new(|| Ok(())) }],
        metrics: Some(Arc::new(move || shown.text())),
        reviewer: Some(reviewer),
    };
    serve(health, stop.clone()).await?;
    let events = EventRecorder::spawn(client.clone(), state::SCHEDULER_NAME, &host, stop.clone());
    if !options.leader_election.leader_elect {
        Scheduler::new(client, events, metrics, stop).run().await;
        return Ok(());
    }
    let elector = LeaderElector::new(client.clone(), options.leader_election.config("kube-scheduler", &host));
    elector.run(stop, |stop| Scheduler::new(client, events, metrics, stop).run()).await?;
    Ok(())
}
