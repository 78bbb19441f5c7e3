//! What a controller must see in its cache before it may plan again.
//!
//! After creating or deleting objects the cache lags; planning on it would create or delete twice. Creations are expected by their
//! resourceVersion (the cache includes them once its own version reached it), deletions by uid. An expectation that is not met within five
//! minutes is dropped, as upstream does: something was lost, and planning on the truth we have is better than never planning again.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use k8s_client::ObjectKey;
use parking_lot::Mutex;

const TIMEOUT: Duration = Duration::from_secs(300);

/// Expectations of one controller, by the key of the owner. Bounded by the number of owners with changes in flight.
#[derive(Default)]
pub struct Expectations {
    by_owner: Mutex<HashMap<ObjectKey, Expected>>,
}

struct Expected {
    version: u64,
    deleted: HashSet<String>,
    since: Instant,
}

impl Expectations {
    /// The cache must reach this resourceVersion.
    pub fn wrote(&self, owner: &ObjectKey, resource_version: &str) {
        if let Ok(version) = resource_version.parse::<u64>() {
            self.with(owner, |expected| expected.version = expected.version.max(version));
        }
    }

    /// The object with this uid must be gone or being deleted.
    pub fn deleted(&self, owner: &ObjectKey, uid: &str) {
        self.with(owner, |expected| {
            expected.deleted.insert(uid.to_string());
        });
    }

    fn with(&self, owner: &ObjectKey, change: impl FnOnce(&mut Expected)) {
        let mut by_owner = self.by_owner.lock();
        let expected =
            by_owner.entry(owner.clone()).or_insert_with(|| Expected { version: 0, deleted: HashSet::new(), since: Instant::now() });
        expected.since = Instant::now();
        change(expected);
    }

    /// Whether the cache, now at `version`, includes everything expected. `alive` tells whether a uid is still there and not being deleted.
    pub fn met(&self, owner: &ObjectKey, version: u64, alive: impl Fn(&str) -> bool) -> bool {
        let mut by_owner = self.by_owner.lock();
        let Some(expected) = by_owner.get_mut(owner) else { return true };
        expected.deleted.retain(|uid| alive(uid));
        let met = (expected.version <= version && expected.deleted.is_empty()) || expected.since.elapsed() > TIMEOUT;
        if met {
            by_owner.remove(owner);
        }
        met
    }

    /// Forgets an owner that is gone.
    pub fn forget(&self, owner: &ObjectKey) {
        self.by_owner.lock().remove(owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planning_waits_for_the_cache() {
        let expectations = Expectations::default();
        let owner = ObjectKey::new("d", "web");
        assert!(expectations.met(&owner, 0, |_| true));
        expectations.wrote(&owner, "12");
        expectations.wrote(&owner, "11");
        expectations.deleted(&owner, "u1");
        assert!(!expectations.met(&owner, 11, |_| false));
        assert!(expectations.met(&owner, 12, |_| false));
        expectations.deleted(&owner, "u1");
        assert!(!expectations.met(&owner, 12, |uid| uid == "u1"));
        expectations.forget(&owner);
        assert!(expectations.met(&owner, 0, |_| true));
    }
}
