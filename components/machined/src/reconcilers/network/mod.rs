//! Links, addresses, routes and resolvers: what the config says, and what DHCP gave. In maintenance mode there is no
//! config, and every wired link asks for an address.

mod plan;

pub use plan::PROTOCOL;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use host::dhcp::{self, Lease};
use host::net::{LinuxNetwork, Network as _, Observed, apply_all};
use machine_config::Config;
use tokio::sync::watch;

use super::{Context, Outcome, ReconcileError, Reconciler};
use crate::paths::Paths;
use plan::{LinkFacts, Wanted};

/// How long one round waits for an answer by DHCP. Servers answer at once; the next round asks again.
const DHCP: Duration = Duration::from_secs(6);
/// Links and carriers are looked at this often.
const AGAIN: Duration = Duration::from_secs(10);

/// The network of this machine.
pub struct Network {
    linux: LinuxNetwork,
    leases: BTreeMap<String, Held>,
    addresses: watch::Sender<Vec<IpAddr>>,
}

#[derive(Clone, Debug)]
struct Held {
    lease: Lease,
    since: Instant,
    /// When it was last asked for again, which may have failed.
    asked: Instant,
}

impl Network {
    /// Connects to the kernel.
    pub fn connect() -> Result<Network, host::net::NetError> {
        Ok(Network { linux: LinuxNetwork::connect()?, leases: BTreeMap::new(), addresses: watch::Sender::new(Vec::new()) })
    }

    /// The machine's addresses, the node's own first; kept current.
    pub fn addresses(&self) -> watch::Receiver<Vec<IpAddr>> {
        self.addresses.subscribe()
    }

    /// Looks, plans and applies once.
    pub async fn round(&mut self, paths: &Paths, config: Option<&Config>, hostname: &str) -> Result<Outcome, ReconcileError> {
        let observed = self.linux.observe().await?;
        let facts: Vec<LinkFacts> = observed.links.iter().map(|link| facts(paths, link)).collect();
        let (wanted, mut problems) = plan::wanted(config, &facts);
        // A link must be up before it can be asked on, so that comes first.
        self.apply(&wanted, &observed, &mut problems).await?;
        let observed = self.linux.observe().await?;
        self.ask(&wanted, &observed, hostname, &mut problems).await;
        self.apply(&wanted, &observed, &mut problems).await?;

        let observed = self.linux.observe().await?;
        let subnets = config.map(|config| config.machine.kubelet.node_ip_subnets.as_slice()).unwrap_or_default();
        let addresses = plan::node_addresses(&wanted, &observed, subnets);
        self.addresses.send_if_modified(|current| {
            let changed = *current != addresses;
            current.clone_from(&addresses);
            changed
        });
        let leases: Vec<&Lease> = self.leases.values().map(|held| &held.lease).collect();
        let resolv = plan::resolv_conf(config, &leases);
        super::hostname::write_if_different(&paths.at("/etc/resolv.conf"), &resolv)?;
        if !problems.is_empty() {
            return Err(problems.join("; ").into());
        }
        if addresses.is_empty() {
            return Ok(Outcome::waiting("no link has an address yet"));
        }
        let shown: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        Ok(Outcome::ready(shown.join(", "), AGAIN))
    }

    async fn apply(&self, wanted: &[Wanted], observed: &Observed, problems: &mut Vec<String>) -> Result<(), ReconcileError> {
        let leases: BTreeMap<&str, &Lease> = self.leases.iter().map(|(link, held)| (link.as_str(), &held.lease)).collect();
        let desired = plan::desired(wanted, &leases, observed);
        let mut steps = host::net::plan(&desired, observed);
        // Removing an address takes routes with it, which a second look puts back.
        for _ in 0..2 {
            if steps.is_empty() {
                break;
            }
            for (step, result) in apply_all(&self.linux, steps).await {
                match result {
                    Ok(()) => tracing::info!(?step, "network"),
                    Err(error) => problems.push(format!("{step:?}: {}", crate::api::chain(&error))),
                }
            }
            steps = host::net::plan(&desired, &self.linux.observe().await?);
            if !problems.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Asks by DHCP where it is due, on all links at once.
    async fn ask(&mut self, wanted: &[Wanted], observed: &Observed, hostname: &str, problems: &mut Vec<String>) {
        self.leases.retain(|name, held| {
            let still_wanted = wanted.iter().any(|link| link.name == *name && link.dhcp);
            still_wanted && held.since.elapsed() < held.lease.duration
        });
        let mut asking = Vec::new();
        for link in wanted.iter().filter(|link| link.dhcp) {
            let Some(there) = observed.link(&link.name) else { continue };
            let (Some(mac), true) = (there.mac, there.carrier) else { continue };
            let held = self.leases.get(&link.name).cloned();
            if held.as_ref().is_some_and(|held| !renewal_is_due(held, Instant::now())) {
                continue;
            }
            let on = dhcp::Link { name: link.name.clone(), index: there.index, mac };
            let hostname = (!hostname.is_empty()).then(|| hostname.to_owned());
            let transaction: u32 = rand::random();
            asking.push(tokio::task::spawn_blocking(move || {
                let answer = match &held {
                    Some(held) => dhcp::renew(&on, hostname.as_deref(), &held.lease, transaction, DHCP),
                    None => dhcp::acquire(&on, hostname.as_deref(), transaction, DHCP),
                };
                (on.name, held, answer)
            }));
        }
        for task in asking {
            let now = Instant::now();
            match task.await {
                Ok((name, _, Ok(lease))) => {
                    tracing::info!(link = name, address = %lease.address, server = %lease.server, "DHCP lease");
                    self.leases.insert(name, Held { lease, since: now, asked: now });
                }
                Ok((name, Some(held), Err(error))) => {
                    tracing::warn!(link = name, error = %crate::api::chain(&error), "renew the DHCP lease");
                    self.leases.insert(name, Held { asked: now, ..held });
                }
                Ok((name, None, Err(error))) => tracing::info!(link = name, error = %crate::api::chain(&error), "no DHCP lease yet"),
                Err(error) => problems.push(format!("DHCP: {error}")),
            }
        }
    }
}

/// Half of the lease is over, and it was not asked for just now.
fn renewal_is_due(held: &Held, now: Instant) -> bool {
    now.duration_since(held.since) >= held.lease.renew_after() && now.duration_since(held.asked) >= Duration::from_secs(60)
}

fn facts(paths: &Paths, link: &host::net::Link) -> LinkFacts {
    let device = paths.at(&format!("/sys/class/net/{}/device", link.name));
    let resolved = std::fs::canonicalize(&device).map(|path| path.display().to_string()).unwrap_or_default();
    let driver = std::fs::read_link(device.join("driver")).ok();
    LinkFacts {
        name: link.name.clone(),
        mac: link.permanent_mac.or(link.mac),
        path: resolved.split_once("/sys/devices/").map(|(_, path)| path.to_owned()).unwrap_or_default(),
        driver: driver.and_then(|path| path.file_name().map(|name| name.to_string_lossy().into_owned())).unwrap_or_default(),
        hardware: !link.loopback && link.kind.is_empty(),
    }
}

/// What a config says of links that this machine does not have, or has several of.
pub async fn missing_links(paths: &Paths, config: &Config) -> Result<Vec<String>, ReconcileError> {
    let observed = LinuxNetwork::connect()?.observe().await?;
    let facts: Vec<LinkFacts> = observed.links.iter().map(|link| facts(paths, link)).collect();
    Ok(plan::wanted(Some(config), &facts).1)
}

#[tonic::async_trait]
impl Reconciler for Network {
    fn name(&self) -> &'static str {
        "network"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["hostname"]
    }

    async fn reconcile(&mut self, cx: &Context) -> Result<Outcome, ReconcileError> {
        self.round(&cx.machine.paths, Some(cx.config()), &cx.hostname()).await
    }
}
