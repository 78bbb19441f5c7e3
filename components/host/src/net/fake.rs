//! A network stack in memory, for tests of what plans and applies.

use std::sync::Mutex;

use super::{Address, NetError, Network, Observed, Route, Step};
use crate::block::locked;

/// Does what it is told, and remembers it.
#[derive(Debug, Default)]
pub struct FakeNetwork {
    pub state: Mutex<Observed>,
    pub applied: Mutex<Vec<Step>>,
}

impl FakeNetwork {
    pub fn new(state: Observed) -> Self {
        Self { state: Mutex::new(state), applied: Mutex::default() }
    }
}

impl Network for FakeNetwork {
    async fn observe(&self) -> Result<Observed, NetError> {
        Ok(locked(&self.state).clone())
    }

    async fn apply(&self, step: &Step) -> Result<(), NetError> {
        locked(&self.applied).push(step.clone());
        let state = &mut *locked(&self.state);
        let index = |name: &str| {
            state.link(name).map(|link| link.index).ok_or_else(|| NetError::NoLink { step: step.to_string(), link: name.to_owned() })
        };
        match step {
            Step::SetMtu { link, .. } | Step::SetUp { link, .. } => {
                index(link)?;
                for known in state.links.iter_mut().filter(|known| known.name == *link) {
                    match step {
                        Step::SetMtu { mtu, .. } => known.mtu = *mtu,
                        Step::SetUp { up, .. } => known.up = *up,
                        _ => {}
                    }
                }
            }
            Step::AddAddress { link, net } => {
                let link = index(link)?;
                state.addresses.push(Address { link, net: *net });
            }
            Step::RemoveAddress { link, net } => {
                let link = index(link)?;
                state.addresses.retain(|address| address.link != link || address.net != *net);
            }
            Step::AddRoute { route, protocol } => {
                let link = route.link.as_deref().map(index).transpose()?;
                let conflict = |other: &Route| other.destination == route.destination.trunc() && other.metric == route.metric;
                if state.routes.iter().any(conflict) {
                    return Err(NetError::Fake(format!("{step}: exists")));
                }
                let (destination, gateway) = (route.destination.trunc(), route.gateway);
                state.routes.push(Route { destination, gateway, link, metric: route.metric, protocol: *protocol });
            }
            Step::RemoveRoute { route } => state.routes.retain(|other| other != route),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Desired, DesiredLink, DesiredRoute, Link, apply_all, plan};
    use super::*;

    #[tokio::test]
    async fn applying_a_plan_leaves_nothing_to_plan() {
        let link = Link { index: 2, name: "eth0".into(), mtu: 1500, ..Link::default() };
        let network = FakeNetwork::new(Observed { links: vec![link], ..Observed::default() });
        let mut desired = Desired {
            links: vec![DesiredLink { name: "eth0".into(), up: true, mtu: Some(1400), addresses: vec!["10.0.0.2/24".parse().unwrap()] }],
            routes: vec![DesiredRoute {
                destination: "0.0.0.0/0".parse().unwrap(),
                gateway: "10.0.0.1".parse().ok(),
                link: Some("eth0".into()),
                metric: 0,
            }],
            route_protocol: 83,
        };
        for gateway in ["10.0.0.1", "10.0.0.254"] {
            desired.routes[0].gateway = gateway.parse().ok();
            let steps = plan(&desired, &network.observe().await.unwrap());
            assert!(!steps.is_empty());
            for (step, result) in apply_all(&network, steps).await {
                result.unwrap_or_else(|error| panic!("{step}: {error}"));
            }
            assert_eq!(plan(&desired, &network.observe().await.unwrap()), []);
        }
    }
}
