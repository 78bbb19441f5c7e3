//! The health gate: whether a system that is on trial is at least as healthy as the one before was. The rule looks at this machine alone:
//! trouble elsewhere never flips a slot.

use std::collections::BTreeMap;
use std::time::Duration;

/// For how long everything must be healthy before a system counts as good.
pub const SETTLED: Duration = Duration::from_secs(30);
/// How long a system on trial has when nobody says otherwise, and the bounds of what may be said.
pub const DEADLINE: Duration = Duration::from_secs(600);
/// See [`DEADLINE`].
pub const SHORTEST: Duration = Duration::from_secs(60);
/// See [`DEADLINE`].
pub const LONGEST: Duration = Duration::from_secs(3600);

/// The parts of a machine and whether each is healthy. A part that is not named does not exist.
pub type Health = BTreeMap<String, bool>;

/// What is to be done about a system on trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is good.
    Good,
    /// Everything is as healthy as it was, for so long already.
    Settling(Duration),
    /// These were healthy before and are not now.
    Wait(Vec<String>),
}

/// The gate's memory between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gate {
    healthy_since: Option<Duration>,
}

impl Gate {
    /// Compares what is seen at `now`, on a clock that never goes back, with what was seen before the upgrade.
    pub fn look(&mut self, baseline: &Health, seen: &Health, now: Duration) -> Decision {
        let missing = worse(baseline, seen);
        if !missing.is_empty() {
            self.healthy_since = None;
            return Decision::Wait(missing);
        }
        let since = *self.healthy_since.get_or_insert(now);
        match now.saturating_sub(since) {
            long if long >= SETTLED => Decision::Good,
            long => Decision::Settling(long),
        }
    }
}

/// The parts that were healthy and are not.
pub fn worse(baseline: &Health, seen: &Health) -> Vec<String> {
    let was_healthy = baseline.iter().filter(|(_, healthy)| **healthy);
    was_healthy.map(|(name, _)| name).filter(|name| seen.get(*name) != Some(&true)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(parts: &[(&str, bool)]) -> Health {
        parts.iter().map(|(name, healthy)| ((*name).to_owned(), *healthy)).collect()
    }

    #[test]
    fn only_what_was_healthy_before_must_be_healthy_now() {
        let baseline = health(&[("containerd", true), ("kubelet", true), ("pod etcd", false)]);
        for (seen, expected) in [
            (&[("containerd", true), ("kubelet", true), ("pod etcd", false)][..], &[][..]),
            (&[("containerd", true), ("kubelet", true)], &[]),
            (&[("containerd", true), ("kubelet", true), ("new", false)], &[]),
            (&[("containerd", true), ("kubelet", false), ("pod etcd", true)], &["kubelet"]),
            (&[("kubelet", true)], &["containerd"]),
            (&[], &["containerd", "kubelet"]),
        ] {
            assert_eq!(worse(&baseline, &health(seen)), expected, "{seen:?}");
        }
        assert!(worse(&Health::new(), &Health::new()).is_empty());
    }

    #[test]
    fn good_is_who_stays_healthy_for_the_whole_time() {
        let (baseline, well, ill) = (health(&[("a", true)]), health(&[("a", true)]), health(&[("a", false)]));
        let mut gate = Gate::default();
        let at = Duration::from_secs;
        assert_eq!(gate.look(&baseline, &ill, at(5)), Decision::Wait(vec!["a".to_owned()]));
        assert_eq!(gate.look(&baseline, &well, at(10)), Decision::Settling(at(0)));
        assert_eq!(gate.look(&baseline, &well, at(39)), Decision::Settling(at(29)));
        assert_eq!(gate.look(&baseline, &ill, at(39)), Decision::Wait(vec!["a".to_owned()]));
        assert_eq!(gate.look(&baseline, &well, at(41)), Decision::Settling(at(0)), "the time begins anew");
        assert_eq!(gate.look(&baseline, &well, at(71)), Decision::Good);
    }
}
