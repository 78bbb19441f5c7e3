//! `strakectl get`, and the short forms `disks` and `links`.

use anyhow::Context;
use machine_api::v1alpha1::resource_event::Type;
use machine_api::v1alpha1::{Resource, ResourceGetRequest, ResourceKindsRequest, ResourceWatchRequest};
use serde_json::{Value, json};
use tokio_stream::StreamExt;

use super::{Cx, refused};
use crate::client::Connection;
use crate::output::{self, Format};

/// Show what a machine knows about itself: status, disks, links, addresses, routes, volumes…
#[derive(Debug, clap::Args)]
pub struct Get {
    /// The kind; without one the kinds are listed.
    kind: Option<String>,
    /// Only the resource with this name.
    id: Option<String>,
    /// Stay and show changes.
    #[arg(short, long)]
    watch: bool,
}

/// List the disks of a machine.
#[derive(Debug, clap::Args)]
pub struct Disks {}

/// List the network links of a machine.
#[derive(Debug, clap::Args)]
pub struct Links {}

impl Get {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        let Some(kind) = self.kind else {
            return cx
                .rows(&["KIND"], |machine| async move {
                    let kinds = machine.resources().kinds(ResourceKindsRequest {}).await.map_err(refused)?.into_inner().kinds;
                    Ok(kinds.into_iter().map(|kind| json!({"kind": kind})).collect())
                })
                .await;
        };
        let id = self.id.unwrap_or_default();
        if self.watch {
            return watch(cx, kind, id).await;
        }
        get(cx, &kind, &id).await
    }
}

impl Disks {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        get(cx, "disks", "").await
    }
}

impl Links {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        get(cx, "links", "").await
    }
}

/// The fields that a table shows of each kind.
fn columns(kind: &str) -> &'static [&'static str] {
    match kind {
        "status" => &["NAME=id", "STATE", "SINCE", "DETAIL"],
        "events" => &["LAST", "SEVERITY", "REASON", "COUNT", "MESSAGE"],
        "boot" => &["MILESTONE=id", "SECONDS", "SINCE POWER ON=sincePowerOn"],
        "root" => &["SLOT=id", "DEVICE", "VERITY", "ROOT HASH=rootHash"],
        "security" => &["NAME=id", "SECURE BOOT=secureBoot", "LOCKDOWN", "MODULES", "UPGRADES", "UPGRADE KEYS=upgradeKeys"],
        "upgrade" => &["NAME=id", "SLOT", "STATE", "FROM", "TO", "ENDED", "REASON"],
        "etcd-members" => &["ID", "NAME", "PEERS", "CLIENTS", "LEARNER", "LEADER"],
        "etcd-snapshots" => &["NAME=id", "SIZE|bytes", "TAKEN", "REVISION", "KEYS", "SHA256"],
        "joined" => &["NAME=id", "ADDRESS", "NODE REGISTERED=registered"],
        "time" => &["NAME=id", "SYNCHRONIZED", "DETAIL"],
        "disks" => &["NAME=id", "PATH", "SIZE|bytes", "BUS", "MODEL", "SERIAL", "WWID", "USE"],
        "links" => &["NAME=id", "KIND=type", "MAC", "MTU", "STATE"],
        "addresses" => &["ADDRESS=id", "LINK", "ORIGIN"],
        "routes" => &["DESTINATION", "GATEWAY", "LINK", "METRIC", "ORIGIN"],
        "volumes" => &["LABEL=id", "DEVICE", "ENCRYPTED", "MOUNTED", "SIZE|bytes", "USED|bytes", "PROBLEM"],
        "services" => &["NAME=id", "STATE", "RESTARTS", "DETAIL"],
        "certificates" => &["NAME=id", "SUBJECT", "EXPIRES"],
        _ => &["ID=id", "SPEC"],
    }
}

async fn get(cx: &Cx, kind: &str, id: &str) -> anyhow::Result<()> {
    cx.rows(columns(kind), |machine| list(machine, kind.to_owned(), id.to_owned())).await
}

/// The resources of a kind as rows.
pub async fn list(machine: Connection, kind: String, id: String) -> anyhow::Result<Vec<Value>> {
    let response = machine.resources().get(ResourceGetRequest { kind: kind.clone(), id }).await.map_err(refused)?.into_inner();
    let mut rows = response.resources.iter().map(row).collect::<anyhow::Result<Vec<Value>>>()?;
    if kind == "boot" {
        in_order_of_time(&mut rows);
    }
    Ok(rows)
}

/// People read a boot in the order in which it went. What was before the kernel has no seconds of its clock.
fn in_order_of_time(milestones: &mut [Value]) {
    let at = |row: &Value| (row["seconds"].as_f64().unwrap_or(-1.0), row["sincePowerOn"].as_f64().unwrap_or(0.0));
    milestones.sort_by(|one, other| {
        let (one, other) = (at(one), at(other));
        one.0.total_cmp(&other.0).then(one.1.total_cmp(&other.1))
    });
}

fn row(resource: &Resource) -> anyhow::Result<Value> {
    let spec: Value = serde_json::from_str(&resource.spec).context("the machine sent a resource that is not JSON")?;
    let mut row = output::row(json!({"kind": resource.kind, "id": resource.id, "version": resource.version}));
    match spec {
        Value::Object(fields) => {
            let known = columns(&resource.kind).contains(&"SPEC");
            if known {
                row.insert("spec".to_owned(), Value::from(Value::Object(fields.clone()).to_string()));
            }
            // A resource's own fields never hide its name, nor the machine's.
            row.extend(fields.into_iter().filter(|(name, _)| !["kind", "id", "version", "node"].contains(&name.as_str())));
        }
        other => {
            row.insert("spec".to_owned(), other);
        }
    }
    Ok(Value::Object(row))
}

/// Shows changes of every machine as they come, until all of them end.
async fn watch(cx: &Cx, kind: String, id: String) -> anyhow::Result<()> {
    let machines = cx.all().await?;
    let several = machines.len() > 1;
    let mut failed = Vec::new();
    let watches = machines.into_iter().map(|machine| {
        let request = ResourceWatchRequest { kind: kind.clone(), id: id.clone() };
        async move {
            let ended = watch_one(cx, &machine, request, several).await;
            (machine.node.clone(), ended)
        }
    });
    for (node, ended) in futures_util::future::join_all(watches).await {
        failed.extend(ended.err().map(|error| (node, error)));
    }
    super::fail(failed)
}

async fn watch_one(cx: &Cx, machine: &Connection, request: ResourceWatchRequest, several: bool) -> anyhow::Result<()> {
    let mut events = machine.resources().watch(request).await.map_err(refused)?.into_inner();
    while let Some(event) = events.next().await {
        let event = event.map_err(refused)?;
        let word = match event.r#type() {
            Type::Set => "set",
            Type::Deleted => "deleted",
            Type::Synced | Type::Unspecified => continue,
        };
        let Some(resource) = &event.resource else { continue };
        let node = if several { format!("{}: ", machine.node) } else { String::new() };
        let text = match cx.output {
            Format::Table => format!("{node}{word:<8} {} {}\n", resource.id, resource.spec),
            _ => json!({"node": machine.node, "event": word, "resource": row(resource)?}).to_string() + "\n",
        };
        super::print(&text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milestones_are_shown_as_they_came() {
        let mut rows = vec![
            json!({"id": "etcd", "seconds": 12.5}),
            json!({"id": "loader", "seconds": null, "sincePowerOn": 2.0}),
            json!({"id": "init", "seconds": 0.8}),
            json!({"id": "firmware", "seconds": null, "sincePowerOn": 1.5}),
        ];
        in_order_of_time(&mut rows);
        assert_eq!(rows.iter().map(|row| row["id"].as_str().unwrap()).collect::<Vec<_>>(), ["firmware", "loader", "init", "etcd"]);
    }

    #[test]
    fn a_resource_never_hides_its_name_nor_its_machine() {
        let resource =
            Resource { kind: "joined".into(), id: "w".into(), version: 3, spec: r#"{"id":"x","node":"y","address":"z"}"#.into() };
        assert_eq!(row(&resource).unwrap(), json!({"kind": "joined", "id": "w", "version": 3, "address": "z"}));
        assert!(row(&Resource { spec: "{".into(), ..resource }).is_err());
    }
}
