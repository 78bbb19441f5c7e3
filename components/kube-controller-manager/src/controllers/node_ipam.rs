//! Gives each node its pod address ranges from the cluster's.
//!
//! One worker, so that two nodes never get the same range; what it gave is remembered until the node object shows it.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_client::{Action, Change, Error, EventType, ObjectKey, Patch, Request, WorkQueue, resources::NODES, run_workers};
use parking_lot::Mutex;
use serde_json::json;

use crate::api::Node;
use crate::context::Context;
use crate::options::Options;

/// A cluster range and the size of a node's part of it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Pool {
    range: IpNet,
    node_prefix: u8,
}

/// Why there is nothing to allocate from.
#[derive(Debug, PartialEq, thiserror::Error)]
enum PoolError {
    #[error("--cluster-cidr {0}: the node mask size /{1} must be longer than the range's and at most 16 bits longer")]
    Mask(IpNet, u8),
    #[error("--allocate-node-cidrs needs --cluster-cidr")]
    Missing,
}

fn pools(options: &Options) -> Result<Vec<Pool>, PoolError> {
    if options.cluster_cidr.is_empty() {
        return Err(PoolError::Missing);
    }
    options
        .cluster_cidr
        .iter()
        .map(|range| {
            let node_prefix = match range {
                IpNet::V4(_) => options.node_cidr_mask_size_ipv4.or(options.node_cidr_mask_size).unwrap_or(24),
                IpNet::V6(_) => options.node_cidr_mask_size_ipv6.or(options.node_cidr_mask_size).unwrap_or(64),
            };
            let bits = i16::from(node_prefix) - i16::from(range.prefix_len());
            if !(0..=16).contains(&bits) || node_prefix > range.max_prefix_len() {
                return Err(PoolError::Mask(*range, node_prefix));
            }
            Ok(Pool { range: range.trunc(), node_prefix })
        })
        .collect()
}

impl Pool {
    fn size(&self) -> u32 {
        1 << (self.node_prefix - self.range.prefix_len())
    }

    fn part(&self, index: u32) -> Option<IpNet> {
        match self.range {
            IpNet::V4(range) => {
                let base = u32::from(range.network()) | index.checked_shl(32 - u32::from(self.node_prefix)).unwrap_or(0);
                Ipv4Net::new(Ipv4Addr::from(base), self.node_prefix).ok().map(IpNet::V4)
            }
            IpNet::V6(range) => {
                let base = u128::from(range.network()) | u128::from(index).checked_shl(128 - u32::from(self.node_prefix)).unwrap_or(0);
                Ipv6Net::new(Ipv6Addr::from(base), self.node_prefix).ok().map(IpNet::V6)
            }
        }
    }

    /// The first part that touches nothing in use.
    fn free(&self, used: &HashSet<IpNet>) -> Option<IpNet> {
        let mine: Vec<&IpNet> = used.iter().filter(|net| overlaps(net, &self.range)).collect();
        (0..self.size()).filter_map(|index| self.part(index)).find(|part| {
            !used.contains(part)
                && (mine.iter().all(|net| net.prefix_len() == self.node_prefix) || !mine.iter().any(|net| overlaps(net, part)))
        })
    }
}

fn overlaps(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// One free range per pool, or nothing when a pool is exhausted.
fn allocate(pools: &[Pool], used: &HashSet<IpNet>) -> Option<Vec<IpNet>> {
    pools.iter().map(|pool| pool.free(used)).collect()
}

/// Runs until the context stops; does nothing without `--allocate-node-cidrs`.
pub async fn run(context: Context) {
    if !context.options.allocate_node_cidrs {
        return context.stop.cancelled().await;
    }
    let pools = match pools(&context.options) {
        Ok(pools) => Arc::new(pools),
        Err(error) => {
            tracing::error!(%error, "nodes get no pod ranges");
            return context.stop.cancelled().await;
        }
    };
    let reserved: Vec<IpNet> = context.options.service_cluster_ip_range.clone();
    let client = context.client("node-controller");
    let nodes = context.informers.nodes();
    let given: Arc<Mutex<HashMap<String, Vec<IpNet>>>> = Arc::default();
    let queue = WorkQueue::new("node-ipam");
    let (sink, ended) = (queue.clone(), given.clone());
    nodes.add_handler(move |change: Change<'_, Node>| match change {
        Change::Deleted(node) => drop(ended.lock().remove(&node.metadata.name)),
        Change::Added(node) | Change::Updated { new: node, .. } => {
            if node.spec.pod_cidrs.is_empty() && node.spec.pod_cidr.is_empty() {
                sink.add(node.metadata.key());
            } else {
                ended.lock().remove(&node.metadata.name);
            }
        }
    });
    nodes.wait_synced().await;
    let recorder = context.clone();
    let process = move |key: ObjectKey| {
        let (client, nodes, given, pools, recorder, reserved) =
            (client.clone(), nodes.clone(), given.clone(), pools.clone(), recorder.clone(), reserved.clone());
        async move {
            let Some(node) = nodes.get_key(&key).filter(|node| node.spec.pod_cidrs.is_empty() && node.spec.pod_cidr.is_empty()) else {
                return Ok(Action::Done);
            };
            let known = given.lock().get(&key.name).cloned();
            let ranges = known.or_else(|| {
                let used = nodes
                    .list()
                    .iter()
                    .flat_map(|node| node.spec.pod_cidrs.iter().chain(std::iter::once(&node.spec.pod_cidr)).cloned().collect::<Vec<_>>())
                    .filter_map(|text| text.parse().ok())
                    .chain(given.lock().values().flatten().copied())
                    .chain(reserved)
                    .collect();
                allocate(&pools, &used)
            });
            let Some(ranges) = ranges else {
                let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
                recorder.event(&NODES, &node.metadata, EventType::Normal, "CIDRNotAvailable", message);
                return Ok(Action::Retry);
            };
            given.lock().insert(key.name.clone(), ranges.clone());
            let texts: Vec<String> = ranges.iter().map(IpNet::to_string).collect();
            let body = json!({"metadata": {"uid": node.metadata.uid}, "spec": {"podCIDR": texts[0], "podCIDRs": texts}});
            match client.execute(&Request::patch(&NODES, "", &key.name, &Patch::strategic(&body))).await {
                Ok(()) => tracing::info!(node = key.name, ranges = texts.join(","), "pod range given"),
                Err(error) if error.is_not_found() => drop(given.lock().remove(&key.name)),
                Err(error) => return Err::<_, Error>(error),
            }
            Ok(Action::Done)
        }
    };
    run_workers(queue, 1, context.stop.clone(), process).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(range: &str, node_prefix: u8) -> Pool {
        Pool { range: range.parse().unwrap(), node_prefix }
    }

    fn used(texts: &[&str]) -> HashSet<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_first_free_part_is_given() {
        for (pool, taken, want) in [
            (pool("10.244.0.0/16", 24), &[][..], Some("10.244.0.0/24")),
            (pool("10.244.0.0/16", 24), &["10.244.0.0/24", "10.244.2.0/24"], Some("10.244.1.0/24")),
            (pool("10.0.0.0/23", 24), &["10.0.0.0/24", "10.0.1.0/24"], None),
            // another size in use, as after a change of the flag
            (pool("10.0.0.0/22", 24), &["10.0.0.0/23"], Some("10.0.2.0/24")),
            // the service range lies inside the pod range
            (pool("10.0.0.0/22", 24), &["10.0.0.0/25"], Some("10.0.1.0/24")),
            (pool("10.0.0.0/24", 24), &[], Some("10.0.0.0/24")),
            (pool("fd00::/56", 64), &["fd00::/64"], Some("fd00:0:0:1::/64")),
        ] {
            let got = allocate(&[pool], &used(taken)).map(|ranges| ranges[0]);
            assert_eq!(got, want.map(|text| text.parse().unwrap()), "{pool:?} {taken:?}");
        }
    }

    #[test]
    fn giving_everything_away_never_overlaps() {
        let pool = pool("10.8.0.0/16", 22);
        let mut taken = HashSet::new();
        while let Some(part) = pool.free(&taken) {
            assert!(pool.range.contains(&part.network()) && taken.iter().all(|net| !overlaps(net, &part)));
            taken.insert(part);
        }
        assert_eq!(taken.len(), 64);
    }

    #[test]
    fn impossible_masks_are_refused() {
        use clap::Parser as _;
        for (flags, ok) in [
            (&["--cluster-cidr=10.244.0.0/16"][..], true),
            (&["--cluster-cidr=10.244.0.0/16,fd00::/48"], true),
            (&["--cluster-cidr=10.244.0.0/16", "--node-cidr-mask-size=12"], false),
            (&["--cluster-cidr=10.0.0.0/8", "--node-cidr-mask-size=25"], false),
            (&[], false),
        ] {
            let options = Options::try_parse_from(std::iter::once(&"kcm").chain(flags)).unwrap();
            assert_eq!(pools(&options).is_ok(), ok, "{flags:?}");
        }
    }
}
