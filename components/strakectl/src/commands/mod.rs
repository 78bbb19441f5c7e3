//! The verbs, one file each, and what they share: which machines are meant, who the person is, how results are shown.

mod apply_config;
mod bootstrap;
mod completion;
mod config;
mod config_key;
mod context;
mod etcd;
mod explain;
mod files;
mod r#gen;
mod health;
mod images;
mod kubeconfig;
mod lifecycle;
mod logs;
mod media;
mod recovery_key;
mod resources;
mod rollout;
mod secureboot_keys;
mod services;
mod stats;
mod unlock;
mod upgrade;
mod version;

use std::future::Future;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use machine_api::pairing::Pairing;
use serde_json::Value;

use crate::client::{Connection, Trust};
use crate::context::StrakeConfig;
use crate::output::{self, Format, Row};

/// What a new person needs to begin.
const FIRST_STEPS: &str = "\
First steps:
  # secrets, configs and a strakeconfig
  strakectl gen cluster prod https://10.5.0.11:6443 --out prod
  export STRAKECONFIG=$PWD/prod/strakeconfig
  # installs; STRING is on the machine's console
  strakectl apply-config -n 10.5.0.11 --pairing STRING -f prod/controlplane.yaml
  # once, on the first control plane
  strakectl bootstrap
  # from here on kubectl works
  strakectl wait && strakectl kubeconfig";

/// Manage Strake machines.
#[derive(Debug, Parser)]
#[command(name = "strakectl", version, max_term_width = 120, after_help = FIRST_STEPS)]
pub struct Cli {
    #[command(flatten)]
    cx: Cx,
    #[command(subcommand)]
    command: Command,
}

/// What every verb needs to know.
#[derive(Clone, Debug, clap::Args)]
pub struct Cx {
    /// The strakeconfig file.
    #[arg(long, global = true, env = "STRAKECONFIG", value_name = "PATH", help_heading = "Global options")]
    pub strakeconfig: Option<PathBuf>,
    /// The context of the strakeconfig; by default the current one.
    #[arg(long, global = true, value_name = "NAME", help_heading = "Global options")]
    pub context: Option<String>,
    /// Machines to talk to, HOST or HOST:PORT; by default those of the context.
    #[arg(short, long, global = true, value_delimiter = ',', value_name = "HOST[:PORT]", help_heading = "Global options")]
    pub nodes: Vec<String>,
    /// The pairing string on the console of a machine in maintenance mode.
    #[arg(long, global = true, value_name = "STRING", help_heading = "Global options")]
    pub pairing: Option<Pairing>,
    /// How to show results: table, json or yaml.
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        hide_possible_values = true,
        help_heading = "Global options"
    )]
    pub output: Format,
    /// How long to wait for a connection, and for answers that are not streams, in seconds.
    #[arg(long, global = true, default_value_t = 10, value_name = "SECONDS", help_heading = "Global options")]
    pub timeout: u64,
}

#[derive(Debug, Subcommand)]
enum Command {
    Version(version::Version),
    ApplyConfig(apply_config::ApplyConfig),
    ConfirmConfig(apply_config::ConfirmConfig),
    Bootstrap(bootstrap::Bootstrap),
    Kubeconfig(kubeconfig::Kubeconfig),
    Health(health::Health),
    Wait(health::Wait),
    Services(services::Services),
    #[command(subcommand)]
    Service(services::Service),
    Stats(stats::Stats),
    Logs(logs::Logs),
    Dmesg(logs::Dmesg),
    Get(resources::Get),
    Disks(resources::Disks),
    Links(resources::Links),
    Ls(files::Ls),
    Read(files::Read),
    #[command(subcommand)]
    Images(images::Images),
    #[command(subcommand)]
    Etcd(etcd::Etcd),
    Reboot(lifecycle::Reboot),
    Shutdown(lifecycle::Shutdown),
    Reset(lifecycle::Reset),
    Unlock(unlock::Unlock),
    Upgrade(upgrade::Upgrade),
    Rollback(upgrade::Rollback),
    Media(media::Media),
    #[command(subcommand)]
    Gen(r#gen::Gen),
    #[command(subcommand)]
    Config(config::Config),
    #[command(subcommand)]
    Context(context::Context),
    Completion(completion::Completion),
}

impl Cli {
    /// Does what the command line says.
    pub async fn run(self) -> anyhow::Result<()> {
        let cx = self.cx;
        match self.command {
            Command::Version(verb) => verb.run(&cx).await,
            Command::ApplyConfig(verb) => verb.run(&cx).await,
            Command::ConfirmConfig(verb) => verb.run(&cx).await,
            Command::Bootstrap(verb) => verb.run(&cx).await,
            Command::Kubeconfig(verb) => verb.run(&cx).await,
            Command::Health(verb) => verb.run(&cx).await,
            Command::Wait(verb) => verb.run(&cx).await,
            Command::Services(verb) => verb.run(&cx).await,
            Command::Service(verb) => verb.run(&cx).await,
            Command::Stats(verb) => verb.run(&cx).await,
            Command::Logs(verb) => verb.run(&cx).await,
            Command::Dmesg(verb) => verb.run(&cx).await,
            Command::Get(verb) => verb.run(&cx).await,
            Command::Disks(verb) => verb.run(&cx).await,
            Command::Links(verb) => verb.run(&cx).await,
            Command::Ls(verb) => verb.run(&cx).await,
            Command::Read(verb) => verb.run(&cx).await,
            Command::Images(verb) => verb.run(&cx).await,
            Command::Etcd(verb) => verb.run(&cx).await,
            Command::Reboot(verb) => verb.run(&cx).await,
            Command::Shutdown(verb) => verb.run(&cx).await,
            Command::Reset(verb) => verb.run(&cx).await,
            Command::Unlock(verb) => verb.run(&cx).await,
            Command::Upgrade(verb) => verb.run(&cx).await,
            Command::Rollback(verb) => verb.run(&cx).await,
            Command::Media(verb) => verb.run(),
            Command::Gen(verb) => verb.run(&cx),
            Command::Config(verb) => verb.run(&cx),
            Command::Context(verb) => verb.run(&cx),
            Command::Completion(verb) => verb.run(),
        }
    }
}

impl Cx {
    /// Where the strakeconfig is.
    pub fn strakeconfig_path(&self) -> anyhow::Result<PathBuf> {
        match (&self.strakeconfig, std::env::var_os("HOME")) {
            (Some(path), _) => Ok(path.clone()),
            (None, Some(home)) => Ok(PathBuf::from(home).join(".strake/config")),
            (None, None) => bail!("name the strakeconfig with --strakeconfig or STRAKECONFIG"),
        }
    }

    /// The strakeconfig, or what to do when there is none.
    pub fn strakeconfig(&self, path: &std::path::Path) -> anyhow::Result<StrakeConfig> {
        StrakeConfig::load(path).map_err(|error| match error {
            crate::context::ContextError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => anyhow::anyhow!(
                "there is no strakeconfig {}: name yours with --strakeconfig or STRAKECONFIG, write one with `strakectl gen cluster`, or name a \
                 machine in maintenance mode with --nodes and --pairing",
                path.display()
            ),
            other => other.into(),
        })
    }

    /// The time that one answer may take.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout.max(1))
    }

    /// The machines that are meant, and how to trust them.
    pub fn targets(&self) -> anyhow::Result<(Vec<String>, Trust)> {
        if let Some(pairing) = &self.pairing {
            if self.nodes.len() != 1 {
                bail!("a pairing string belongs to one machine: name it with --nodes");
            }
            return Ok((self.nodes.clone(), Trust::Pairing(pairing.clone())));
        }
        let path = self.strakeconfig_path()?;
        let config = self.strakeconfig(&path)?;
        let (name, context) = config.select(self.context.as_deref(), &path)?;
        let mut nodes = self.nodes.clone();
        if nodes.is_empty() {
            nodes = context.nodes.clone();
        }
        if nodes.is_empty() {
            nodes.extend(context.endpoints.first().cloned());
        }
        if nodes.is_empty() {
            bail!("context {name:?} names no machine: name one with --nodes");
        }
        Ok((nodes, Trust::Cluster(context.credentials()?)))
    }

    /// Connections to every machine that is meant; one that can't be reached is an error.
    pub async fn all(&self) -> anyhow::Result<Vec<Connection>> {
        let (nodes, trust) = self.targets()?;
        let connections = nodes.iter().map(|node| Connection::open(node, &trust, self.timeout()));
        Ok(futures_util::future::try_join_all(connections).await?)
    }

    /// A connection to the one machine that is meant.
    pub async fn one(&self) -> anyhow::Result<Connection> {
        let (nodes, trust) = self.targets()?;
        match nodes.as_slice() {
            [node] => Ok(Connection::open(node, &trust, self.timeout()).await?),
            _ => bail!("this works on one machine at a time: choose one of {} with --nodes", nodes.join(", ")),
        }
    }

    /// A connection to the first control plane (or to the machine named with --nodes).
    pub async fn control_plane(&self) -> anyhow::Result<Connection> {
        self.of_control_planes()?.one().await
    }

    /// The same, but when no machine is named the first control plane is meant, whatever machines the context names.
    pub fn of_control_planes(&self) -> anyhow::Result<Cx> {
        let mut cx = self.clone();
        if cx.nodes.is_empty() && cx.pairing.is_none() {
            let path = self.strakeconfig_path()?;
            let config = self.strakeconfig(&path)?;
            let (name, context) = config.select(self.context.as_deref(), &path)?;
            let first = context.endpoints.first();
            cx.nodes.push(first.with_context(|| format!("context {name:?} has no endpoint: name a machine with --nodes"))?.clone());
        }
        Ok(cx)
    }

    /// Asks every machine at once and shows all rows; machines that fail are reported and make the command fail.
    pub async fn rows<F, Fut>(&self, columns: &[&str], ask: F) -> anyhow::Result<()>
    where
        F: Fn(Connection) -> Fut,
        Fut: Future<Output = anyhow::Result<Vec<Value>>>,
    {
        let (rows, failed) = self.collect(ask).await?;
        let columns: Vec<&str> = std::iter::once("NODE").chain(columns.iter().copied()).collect();
        if !rows.is_empty() || failed.is_empty() {
            print(&output::render(self.output, &columns, &rows)?)?;
        }
        fail(failed)
    }

    /// Asks every machine at once. Gives all rows, with the machine in the field `node`, and what failed.
    pub async fn collect<F, Fut>(&self, ask: F) -> anyhow::Result<(Vec<Row>, Vec<(String, anyhow::Error)>)>
    where
        F: Fn(Connection) -> Fut,
        Fut: Future<Output = anyhow::Result<Vec<Value>>>,
    {
        let (nodes, trust) = self.targets()?;
        let (ask, trust) = (&ask, &trust);
        let answers = futures_util::future::join_all(nodes.into_iter().map(|node| async move {
            let answer = async { ask(Connection::open(&node, trust, self.timeout()).await?).await };
            // Connecting has its own limit; this one is for the answer.
            let answer = match tokio::time::timeout(self.timeout() * 2, answer).await {
                Ok(answer) => answer,
                Err(_) => Err(anyhow::anyhow!("no answer within {} s", self.timeout * 2)),
            };
            (node, answer)
        }))
        .await;
        let (mut rows, mut failed) = (Vec::new(), Vec::new());
        for (node, answer) in answers {
            match answer {
                Ok(values) => rows.extend(values.into_iter().map(|value| with_node(&node, value))),
                Err(error) => failed.push((node, error)),
            }
        }
        Ok((rows, failed))
    }
}

/// Rows of one machine's answer, shown with its name as what every machine is asked is.
pub fn show(cx: &Cx, node: &str, columns: &[&str], values: Vec<Value>) -> anyhow::Result<()> {
    let columns: Vec<&str> = std::iter::once("NODE").chain(columns.iter().copied()).collect();
    let rows: Vec<Row> = values.into_iter().map(|value| with_node(node, value)).collect();
    print(&output::render(cx.output, &columns, &rows)?)
}

fn with_node(node: &str, value: Value) -> Row {
    let mut row = Row::from_iter([("node".to_owned(), Value::from(node))]);
    row.extend(output::row(value));
    row
}

/// An error that names every machine that failed.
pub fn fail(failed: Vec<(String, anyhow::Error)>) -> anyhow::Result<()> {
    if failed.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = failed.iter().map(|(node, error)| format!("{node}: {error:#}")).collect();
    bail!("{}", lines.join("\nstrakectl: "))
}

/// What a machine answered instead of doing it, without gRPC's vocabulary.
pub fn refused(status: tonic::Status) -> anyhow::Error {
    match status.code() {
        tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Internal => {
            anyhow::anyhow!("{:?}: {}", status.code(), status.message())
        }
        _ => anyhow::anyhow!("{}", status.message()),
    }
}

/// Writes to standard output; a closed pipe ends the program quietly.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.context("write to standard output"),
    }
}
