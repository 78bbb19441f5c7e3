//! `strakectl health` and `strakectl wait`: whether machines are what they should be.

use std::time::{Duration, Instant};

use anyhow::bail;
use clap::ValueEnum;
use machine_api::v1alpha1::{Mode, ServiceListRequest, VersionRequest};
use serde_json::{Value, json};

use super::{Cx, refused};
use crate::client::Connection;
use crate::output::{self, Row};

/// Show whether machines are healthy: every reconciler is ready and every wanted service runs.
#[derive(Debug, clap::Args)]
pub struct Health {}

/// Wait until machines are healthy.
#[derive(Debug, clap::Args)]
pub struct Wait {
    /// What to wait for.
    #[arg(long = "for", value_enum, default_value_t)]
    until: Until,
    /// Give up after so many seconds.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    deadline: u64,
}

/// How much a machine must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Until {
    /// The machine's API answers and the machine is installed.
    Api,
    /// Also the host is in order: volumes, network, time, certificates, services.
    Services,
    /// Also the machine is a node of its cluster and has a pod network.
    #[default]
    Kubernetes,
}

/// What only a machine in a running cluster can have.
const NEED_A_CLUSTER: &[&str] = &["pod-network", "manifests", "etcd", "etcd-snapshots", "joined"];

const COLUMNS: &[&str] = &["NODE", "CHECK", "STATE", "DETAIL"];

impl Health {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        let (rows, failed) = cx.collect(|machine| checks(machine, Until::Kubernetes)).await?;
        super::print(&output::render(cx.output, COLUMNS, &rows)?)?;
        super::fail(failed)?;
        let bad = unhealthy(&rows);
        if bad > 0 {
            bail!("{bad} of {} checks failed", rows.len());
        }
        Ok(())
    }
}

impl Wait {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        let end = Instant::now() + Duration::from_secs(self.deadline);
        let mut last = String::new();
        loop {
            let (rows, failed) = cx.collect(|machine| checks(machine, self.until)).await?;
            let mut missing: Vec<String> = failed.iter().map(|(node, error)| format!("{node}: {error:#}")).collect();
            missing.extend(rows.iter().filter(|row| !good(row)).map(|row| {
                let text = |name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
                format!("{}: {} is {} {}", text("node"), text("check"), text("state"), text("detail"))
            }));
            if missing.is_empty() {
                return Ok(());
            }
            let now = missing.join("\n");
            if now != last {
                eprintln!("{now}\n");
                last = now;
            }
            if Instant::now() >= end {
                bail!("not healthy after {} s:\n{last}", self.deadline);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

fn good(row: &Row) -> bool {
    row.get("healthy") == Some(&Value::Bool(true))
}

fn unhealthy(rows: &[Row]) -> usize {
    rows.iter().filter(|row| !good(row)).count()
}

pub(super) async fn checks(machine: Connection, until: Until) -> anyhow::Result<Vec<Value>> {
    let version = machine.machine().version(VersionRequest {}).await.map_err(refused)?.into_inner();
    let running = version.mode() == Mode::Running;
    let mode = super::version::mode(version.mode());
    let mut rows = vec![json!({"check": "mode", "state": mode, "detail": "", "healthy": running})];
    if until == Until::Api || !running {
        return Ok(rows);
    }
    for status in super::resources::list(machine.clone(), "status".to_owned(), String::new()).await? {
        let name = status["id"].as_str().unwrap_or_default();
        if until == Until::Kubernetes || !NEED_A_CLUSTER.contains(&name) {
            let state = status["state"].as_str().unwrap_or_default();
            rows.push(json!({"check": name, "state": state, "detail": status["detail"], "healthy": state == "ready"}));
        }
    }
    let services = machine.services().list(ServiceListRequest {}).await.map_err(refused)?.into_inner();
    for service in services.services {
        let healthy = service.state == "running";
        rows.push(
            json!({"check": format!("service {}", service.name), "state": service.state, "detail": service.detail, "healthy": healthy}),
        );
    }
    Ok(rows)
}
