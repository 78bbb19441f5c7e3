//! Two plain bounds, of requests that change something and of those that don't, where priority and fairness are off.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::{authn::User, http::RequestInfo};

#[derive(Debug, Default)]
struct Bound {
    /// 0: any number.
    most: u64,
    running: AtomicU64,
}

#[derive(Debug)]
pub struct MaxInFlight {
    read_only: Arc<Bound>,
    mutating: Arc<Bound>,
}

/// One that runs.
#[derive(Debug)]
pub struct Counted(Arc<Bound>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::AcqRel);
    }
}

impl MaxInFlight {
    pub fn new(read_only: u64, mutating: u64) -> Self {
        let bound = |most| Arc::new(Bound { most, running: AtomicU64::new(0) });
        Self { read_only: bound(read_only), mutating: bound(mutating) }
    }

    /// None: there are too many. Administrators always get in, or nobody could help.
    pub fn enter(&self, user: &User, info: &RequestInfo) -> Option<Counted> {
        let reads = matches!(info.verb.as_str(), "get" | "list" | "watch" | "head" | "options");
        let bound = if reads { &self.read_only } else { &self.mutating };
        let before = bound.running.fetch_add(1, Ordering::AcqRel);
        let counted = Counted(Arc::clone(bound));
        (bound.most == 0 || before < bound.most || user.in_group(crate::authn::MASTERS)).then_some(counted)
    }

    /// How many run: reading, and changing.
    pub fn running(&self) -> (u64, u64) {
        (self.read_only.running.load(Ordering::Relaxed), self.mutating.running.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_own_bound_and_administrators_have_none() {
        let m = MaxInFlight::new(1, 1);
        let user = User::default();
        let info = |verb: &str| RequestInfo { verb: verb.into(), ..RequestInfo::default() };
        let first = m.enter(&user, &info("get")).unwrap();
        assert!(m.enter(&user, &info("list")).is_none());
        let other = m.enter(&user, &info("create")).unwrap();
        let admin = User { groups: vec![crate::authn::MASTERS.into()], ..User::default() };
        assert!(m.enter(&admin, &info("get")).is_some());
        drop((first, other));
        assert_eq!(m.running(), (0, 0));
        assert!(m.enter(&user, &info("list")).is_some());
        assert!(MaxInFlight::new(0, 0).enter(&user, &info("get")).is_some());
    }
}
