//! Which names machines have joined under, from which addresses. A name belongs to the address that asked for it first,
//! until the machine gives it back, or its Node was there and is deleted. Kept in STATE of the control plane.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::state::{StateDir, StateError};

/// The file in STATE.
const FILE: &str = "joined.json";
/// Machines that can join a cluster.
const MAX: usize = 10_000;

/// A machine that joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub struct Machine {
    /// Where it asked from.
    pub address: IpAddr,
    /// Whether its Node was seen: only then does a missing Node mean that it was deleted.
    pub node: bool,
}

/// As the file may have it: the address alone was how it began.
#[derive(Deserialize)]
#[serde(untagged)]
enum Stored {
    Address(IpAddr),
    Machine { address: IpAddr, node: bool },
}

impl From<Stored> for Machine {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::Address(address) => Machine { address, node: false },
            Stored::Machine { address, node } => Machine { address, node },
        }
    }
}

/// Why the names could not be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum JoinedError {
    /// STATE failed.
    #[error(transparent)]
    State(#[from] StateError),
    /// The file is not what was written.
    #[error("read the names of machines that joined")]
    Parse(#[source] serde_json::Error),
}

/// All names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined(pub BTreeMap<String, Machine>);

impl Joined {
    /// Reads them.
    pub fn load(state: &StateDir) -> Result<Joined, JoinedError> {
        match state.text(FILE)? {
            Some(text) => serde_json::from_str(&text).map_err(JoinedError::Parse),
            None => Ok(Joined::default()),
        }
    }

    /// Writes them.
    pub fn save(&self, state: &StateDir) -> Result<(), JoinedError> {
        let text = serde_json::to_vec(self).map_err(JoinedError::Parse)?;
        Ok(state.write(FILE, &text)?)
    }

    /// Gives a name to an address. Whether it had it already; an error when the name is another's.
    pub fn claim(&mut self, hostname: &str, address: IpAddr) -> Result<bool, String> {
        match self.0.get(hostname) {
            Some(holder) if holder.address == address => Ok(true),
            Some(Machine { address: holder, .. }) => Err(format!(
                "the name {hostname} belongs to the machine at {holder}, and {address} asked for it: give the machine another name, \
                 or delete the Node {hostname} if that machine is gone"
            )),
            None if self.0.len() >= MAX => Err(format!("the cluster already has {MAX} machines")),
            None => {
                self.0.insert(hostname.to_owned(), Machine { address, node: false });
                Ok(false)
            }
        }
    }

    /// Takes a name back from its holder. Whether there was one.
    pub fn release(&mut self, hostname: &str, address: IpAddr) -> Result<bool, String> {
        match self.0.get(hostname) {
            None => Ok(false),
            Some(holder) if holder.address == address => Ok(self.0.remove(hostname).is_some()),
            Some(Machine { address: holder, .. }) => {
                Err(format!("the name {hostname} belongs to the machine at {holder}, not to {address}"))
            }
        }
    }

    /// Compares with the Nodes there are: new ones are noted, and names whose Node was deleted become free. Gives those, and
    /// whether anything changed.
    pub fn compare(&mut self, nodes: &BTreeSet<String>) -> (Vec<String>, bool) {
        let mut changed = false;
        for (name, machine) in &mut self.0 {
            if !machine.node && nodes.contains(name) {
                machine.node = true;
                changed = true;
            }
        }
        let gone: Vec<String> =
            self.0.iter().filter(|(name, machine)| machine.node && !nodes.contains(*name)).map(|(name, _)| name.clone()).collect();
        for name in &gone {
            self.0.remove(name);
        }
        changed |= !gone.is_empty();
        (gone, changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_belongs_to_the_first_address_that_asked_until_it_is_given_back() {
        let mut joined = Joined::default();
        let (first, second) = (address("10.5.0.21"), address("10.5.0.22"));
        assert_eq!(joined.claim("worker-1", first), Ok(false));
        assert_eq!(joined.claim("worker-1", first), Ok(true));
        assert!(joined.claim("worker-1", second).unwrap_err().contains("belongs to the machine at 10.5.0.21"));
        assert!(joined.release("worker-1", second).unwrap_err().contains("10.5.0.21"));
        assert_eq!(joined.release("worker-1", first), Ok(true));
        assert_eq!(joined.release("worker-1", first), Ok(false));
        assert_eq!(joined.claim("worker-1", second), Ok(false));
    }

    #[test]
    fn a_deleted_node_frees_its_name_and_one_that_never_was_does_not() {
        let mut joined = Joined::default();
        joined.claim("worker-1", address("10.5.0.21")).unwrap();
        joined.claim("worker-2", address("10.5.0.22")).unwrap();
        let nodes = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(joined.compare(&nodes(&["cp-1"])), (vec![], false), "they have not registered yet");
        assert_eq!(joined.compare(&nodes(&["cp-1", "worker-1"])), (vec![], true));
        assert_eq!(joined.compare(&nodes(&["cp-1", "worker-1"])), (vec![], false));
        assert_eq!(joined.compare(&nodes(&["cp-1"])), (vec!["worker-1".to_owned()], true));
        assert_eq!(joined.0.keys().collect::<Vec<_>>(), ["worker-2"]);
    }

    #[test]
    fn what_is_kept_is_read_again_in_both_forms() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        assert_eq!(Joined::load(&state).unwrap(), Joined::default());
        state.write(FILE, br#"{"old":"10.9.9.9"}"#).unwrap();
        let mut joined = Joined::load(&state).unwrap();
        assert_eq!(joined.0["old"], Machine { address: address("10.9.9.9"), node: false });
        joined.claim("new", address("10.9.9.8")).unwrap();
        joined.save(&state).unwrap();
        assert_eq!(Joined::load(&state).unwrap(), joined);
        state.write(FILE, b"[").unwrap();
        assert!(Joined::load(&state).is_err());
    }
}
