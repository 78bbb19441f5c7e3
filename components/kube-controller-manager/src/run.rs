//! Starting up: health server, leader election, then every selected controller until the process is told to stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use k8s_client::{Client, Config, EventRecorder, LeaderElector, ServeConfig, hostname, serve, stop_on_signals};

use crate::context::{Context, Informers};
use crate::credentials::Credentials;
use crate::options::Options;
use crate::registry::{Controller, select};

/// Runs until a signal or the loss of the lease.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let selected = select(&options.controllers)?;
    let config = Config::load(options.kubeconfig.as_deref())?.with_user_agent("kube-controller-manager");
    let client = Client::new(config)?;
    let stop = stop_on_signals().context("listening for signals")?;
    let host = hostname();

    if options.secure_port != 0 {
        let reviewer = match &options.authentication_kubeconfig {
            Some(path) => Client::new(Config::from_kubeconfig(path)?.with_user_agent("kube-controller-manager"))?,
            None => client.clone(),
        };
        let bind = SocketAddr::new(options.bind_address, options.secure_port);
        let metrics = Arc::new(|| format!("kubernetes_build_info{{git_version=\"v1.36.0-strake.{}\"}} 1\n", env!("CARGO_PKG_VERSION")));
        let server = ServeConfig { bind, tls: true, checks: Vec::new(), metrics: Some(metrics), reviewer: Some(reviewer) };
        serve(server, stop.clone()).await?;
    }

    let leader = options.leader_election.config("kube-controller-manager", &host);
    let elect = options.leader_election.leader_elect;
    let context = Context {
        credentials: Credentials::new(client.clone(), options.use_service_account_credentials)?,
        recorder: EventRecorder::spawn(client.clone(), "kube-controller-manager", &host, stop.clone()),
        informers: Arc::new(Informers::new(client.clone(), stop.clone())),
        options: Arc::new(options),
        root: client.clone(),
        stop: stop.clone(),
    };
    if elect {
        LeaderElector::new(client, leader).run(stop, |_| lead(context, selected)).await?;
    } else {
        lead(context, selected).await;
    }
    Ok(())
}

async fn lead(context: Context, selected: Vec<&'static Controller>) {
    let mut tasks = tokio::task::JoinSet::new();
    let credentials = context.credentials.clone();
    let fresh = tokio::spawn(async move { credentials.keep_fresh().await });
    for controller in selected {
        let context = context.clone();
        tasks.spawn(async move {
            let mut pause = Duration::from_millis(200);
            while let Err(error) = context.credentials.prepare(controller.account).await {
                tracing::warn!(controller = controller.name, error = &error as &dyn std::error::Error, "no credentials yet, trying again");
                tokio::select! {
                    () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_secs(10)),
                    () = context.stop.cancelled() => return,
                }
            }
            tracing::info!(controller = controller.name, "started");
            let stop = context.stop.clone();
            tokio::select! {
                () = (controller.start)(context) => {}
                () = stop.cancelled() => {}
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            // A controller that panicked left its work undone; a fresh process starts clean.
            std::panic::resume_unwind(error.into_panic());
        }
    }
    context.stop.cancelled().await;
    fresh.abort();
}
