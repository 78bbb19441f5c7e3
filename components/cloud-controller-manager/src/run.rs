//! Starting up: health server, leader election, then the controllers until the process is told to stop.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use k8s_client::{
    CancellationToken, Client, Config, EventRecorder, LeaderElector, Lease, ReflectorOptions, ServeConfig, hostname, serve,
    spawn_reflector, stop_on_signals,
};

use crate::api::Node;
use crate::options::Options;
use crate::{lifecycle, nodes, routes};

const NAME: &str = "cloud-controller-manager";

/// Runs until a signal or the loss of the lease.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let client = Client::new(Config::load(options.kubeconfig.as_deref())?.with_user_agent(NAME))?;
    let stop = stop_on_signals().context("listening for signals")?;
    let host = hostname();
    if options.secure_port != 0 {
        let reviewer = match &options.authentication_kubeconfig {
            Some(path) => Client::new(Config::from_kubeconfig(path)?.with_user_agent(NAME))?,
            None => client.clone(),
        };
        let metrics = Arc::new(|| format!("kubernetes_build_info{{git_version=\"v1.36.0-strake.{}\"}} 1\n", env!("CARGO_PKG_VERSION")));
        let bind = SocketAddr::new(options.bind_address, options.secure_port);
        let server = ServeConfig { bind, tls: true, checks: Vec::new(), metrics: Some(metrics), reviewer: Some(reviewer) };
        serve(server, stop.clone()).await?;
    }
    let recorder = EventRecorder::spawn(client.clone(), NAME, &host, stop.clone());
    let leader = options.leader_election.config(NAME, &host);
    if options.leader_election.leader_elect {
        let elector = LeaderElector::new(client.clone(), leader);
        elector.run(stop, |stop| lead(client, options, recorder, stop)).await?;
    } else {
        lead(client, options, recorder, stop).await;
    }
    Ok(())
}

async fn lead(client: Client, options: Options, recorder: EventRecorder, stop: CancellationToken) {
    let all = spawn_reflector::<Node>(client.clone(), ReflectorOptions::of::<Node>(), stop.clone());
    let leases = ReflectorOptions { namespace: "kube-node-lease".into(), ..ReflectorOptions::of::<Lease>() };
    let leases = spawn_reflector::<Lease>(client.clone(), leases, stop.clone());
    let routes = async {
        if options.configure_cloud_routes {
            routes::run(client.clone(), all.clone(), options.cluster_cidr.clone(), stop.clone()).await;
        } else {
            stop.cancelled().await;
        }
    };
    let gone = (options.node_gone_after, options.machine_port);
    tokio::join!(
        nodes::run(client.clone(), all.clone(), recorder.clone(), stop.clone()),
        lifecycle::run(client.clone(), all.clone(), leases, recorder.clone(), gone, stop.clone()),
        routes,
    );
}
