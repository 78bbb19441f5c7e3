//! Measures the control plane's release binaries on loopback. `cargo xtask bench` starts it, in namespaces of its own where the host allows
//! that, and sets its figures beside the goals.
//!
//! Standard output has one JSON object per figure (`{"name":…,"value":…,"unit":…}`); what it is doing goes to standard error.
//! Every process it starts ends with it.

mod apiserver;
mod certificates;
mod client;
mod control_plane;
mod figure;
mod idle;
mod load;
mod pods;
mod process;
mod start;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    programs: Programs,
    #[command(subcommand)]
    part: Part,
}

/// What is measured and with what.
#[derive(Args, Clone, Debug)]
pub struct Programs {
    /// Directory with `kube` and `kube-proxy`
    #[arg(long)]
    pub binaries: PathBuf,
    /// A real etcd
    #[arg(long)]
    pub etcd: PathBuf,
    /// Directory for data and logs; what was in it is removed
    #[arg(long)]
    pub dir: PathBuf,
    /// Speak to etcd without TLS, as upstream's figures were measured
    #[arg(long)]
    pub plain_etcd: bool,
}

#[derive(Subcommand)]
enum Part {
    /// From the start of kube-apiserver, with an empty etcd, to its first good /readyz
    Start {
        #[arg(long, default_value_t = 7)]
        rounds: usize,
    },
    /// Memory of every component when nothing happens
    Idle {
        #[arg(long, default_value_t = 300)]
        seconds: u64,
        /// A real containerd to run the kubelet on (needs root)
        #[arg(long)]
        containerd: Option<PathBuf>,
        /// Run kube-proxy too; this process has a network namespace of its own
        #[arg(long)]
        own_network: bool,
    },
    /// Requests to kube-apiserver: throughput, latency, processor time and memory
    Apiserver {
        #[arg(long, default_value_t = 4000)]
        objects: usize,
        #[arg(long, default_value_t = 32)]
        in_flight: usize,
    },
    /// Memory of kube-apiserver with very many pods
    Pods {
        #[arg(long, default_value_t = 100_000)]
        pods: usize,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("bench: {problem:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(Arguments { programs, part }: &Arguments) -> Result<()> {
    // It can only have been installed before by this function.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            done = measure(programs, part) => done,
            // Returning drops what runs, which ends the processes.
            signal = ended() => signal,
        }
    })
}

async fn measure(programs: &Programs, part: &Part) -> Result<()> {
    match part {
        Part::Start { rounds } => start::measure(programs, *rounds).await,
        Part::Idle { seconds, containerd, own_network } => idle::measure(programs, *seconds, containerd.as_deref(), *own_network).await,
        Part::Pods { pods } => pods::measure(programs, *pods).await,
        Part::Apiserver { objects, in_flight } => apiserver::measure(programs, *objects, *in_flight).await,
    }
}

async fn ended() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => anyhow::bail!("interrupted"),
        _ = terminate.recv() => anyhow::bail!("terminated"),
    }
}
