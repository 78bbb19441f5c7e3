//! What the machine is, as resources: disks, links, addresses, routes. Looks every few seconds and changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use host::net::{LinuxNetwork, Network as _, Observed};
use serde_json::{Value, json};

use crate::machine::Machine;

const EVERY: Duration = Duration::from_secs(5);

/// Observes until it is dropped.
pub async fn observe(machine: Arc<Machine>) {
    let mut network = None;
    loop {
        disks(&machine);
        if network.is_none() {
            network = LinuxNetwork::connect().inspect_err(|error| tracing::warn!(%error, "observe the network")).ok();
        }
        if let Some(linux) = &network {
            match linux.observe().await {
                Ok(observed) => show_network(&machine, &observed),
                Err(error) => {
                    tracing::warn!(error = %crate::api::chain(&error), "observe the network");
                    network = None;
                }
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn disks(machine: &Machine) {
    let disks = match machine.disks.observe() {
        Ok(disks) => disks,
        Err(error) => {
            tracing::warn!(%error, "observe the disks");
            return;
        }
    };
    let shown = disks.into_iter().map(|observed| {
        let disk = observed.disk;
        let used = match () {
            () if disk.boot_medium => "boot medium",
            () if disk.read_only => "read-only",
            () if machine.boot.source == node_ipc::init::BootSource::Disk
                && machine.boot.device.starts_with(&observed.node.display().to_string()) =>
            {
                "system"
            }
            () => "",
        };
        let spec = json!({
            "path": observed.node.display().to_string(), "size": disk.size, "bus": disk.bus, "model": disk.model, "serial": disk.serial,
            "wwid": disk.wwid, "rotational": disk.rotational, "readOnly": disk.read_only, "sector": observed.sector, "use": used,
        });
        (disk.name, spec)
    });
    machine.store.replace("disks", shown.collect());
}

fn show_network(machine: &Machine, observed: &Observed) {
    let names: BTreeMap<u32, &str> = observed.links.iter().map(|link| (link.index, link.name.as_str())).collect();
    let name = |index: u32| names.get(&index).copied().unwrap_or("?");
    let links = observed.links.iter().map(|link| {
        let state = match (link.up, link.carrier) {
            (true, true) => "up",
            (true, false) => "no carrier",
            (false, _) => "down",
        };
        let spec = json!({"type": if link.loopback { "loopback" } else if link.kind.is_empty() { "hardware" } else { &link.kind },
            "mac": link.mac.map(mac), "mtu": link.mtu, "state": state, "index": link.index});
        (link.name.clone(), spec)
    });
    machine.store.replace("links", links.collect());
    let addresses = observed.addresses.iter().map(|address| (address.net.to_string(), json!({"link": name(address.link)})));
    machine.store.replace("addresses", addresses.collect());
    let routes = observed.routes.iter().map(|route| {
        let link = route.link.map(name);
        let origin = match route.protocol {
            2 => "kernel",
            9 => "router",
            super::network::PROTOCOL => "strake",
            _ => "other",
        };
        let gateway = route.gateway.map(|gateway| gateway.to_string());
        let id = format!("{} {} {} {}", route.destination, gateway.as_deref().unwrap_or("-"), link.unwrap_or("-"), route.metric);
        let spec = json!({"destination": route.destination.to_string(), "gateway": gateway, "link": link, "metric": route.metric, "origin": origin});
        (id, spec)
    });
    machine.store.replace("routes", routes.collect::<BTreeMap<String, Value>>());
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
