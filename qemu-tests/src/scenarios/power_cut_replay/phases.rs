//! What a cut may leave, from one mark of the log to the next. Pure.

use serde::{Deserialize, Serialize};

use crate::power::checker::{Config, Outcome, Runs};

/// The marks, in their order: an operation begins, and what it does is acknowledged.
pub const INSTALL: &str = "install";
/// See [`INSTALL`].
pub const INSTALLED: &str = "install: acknowledged";
/// A start of the installed system, which writes META.
pub const START: &str = "start";
/// Another config is applied.
pub const CONFIG: &str = "config";
/// See [`CONFIG`].
pub const CONFIG_DONE: &str = "config: acknowledged";
/// A new system is written.
pub const UPGRADE: &str = "upgrade";
/// It is to be tried at the next start.
pub const UPGRADE_DONE: &str = "upgrade: acknowledged";
/// The restart that tries it.
pub const TRIAL: &str = "trial";
/// It proved good.
pub const TRIAL_DONE: &str = "trial: acknowledged";
/// Back to the slot before.
pub const ROLLBACK: &str = "rollback";
/// See [`ROLLBACK`].
pub const ROLLBACK_DONE: &str = "rollback: acknowledged";
/// Everything but the system is wiped.
pub const RESET: &str = "reset";
/// See [`RESET`].
pub const RESET_DONE: &str = "reset: acknowledged";

/// The operation that a mark belongs to.
pub fn operation(mark: &str) -> &str {
    mark.split(':').next().unwrap_or(mark)
}

/// What the recorded machine was before and after its operations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// The version that was installed, and the one that was upgraded to.
    pub versions: [String; 2],
    /// The SHA-256 of the config of the installation, and of the later one.
    pub configs: [String; 2],
}

impl Expected {
    /// Whether this is what a cut after this mark may lead to.
    pub fn allows(&self, mark: &str, outcome: &Outcome) -> bool {
        let old = |config: usize| self.runs("ROOT-A", 0, false, config);
        let back = |config: usize| Some(Box::new(Outcome::Runs(old(config))));
        let trial = Runs { then: back(1), ..self.runs("ROOT-B", 1, true, 1) };
        let new = self.runs("ROOT-B", 1, false, 1);
        let empty = Runs { config: Config::None, ..old(1) };
        let allowed = match mark {
            INSTALL => return matches!(outcome, Outcome::NotInstalled(_)) || *outcome == Outcome::Runs(old(0)),
            INSTALLED | START => vec![old(0)],
            CONFIG => vec![old(0), old(1)],
            CONFIG_DONE => vec![old(1)],
            UPGRADE => vec![old(1), trial],
            UPGRADE_DONE => vec![trial],
            // The loader forgets before it starts: until the new system is good, the old one is next.
            TRIAL => vec![trial, old(1), new],
            TRIAL_DONE => vec![new],
            ROLLBACK => vec![new, old(1)],
            ROLLBACK_DONE => vec![old(1)],
            RESET => vec![old(1), empty],
            RESET_DONE => vec![empty],
            // Before the first mark nothing is written.
            _ => Vec::new(),
        };
        matches!(outcome, Outcome::Runs(runs) if allowed.contains(runs))
    }

    fn runs(&self, slot: &'static str, version: usize, trial: bool, config: usize) -> Runs {
        let (version, config) = (self.versions[version].clone(), Config::Text(self.configs[config].clone()));
        Runs { slot, version, trial, config, then: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_an_acknowledgement_only_the_new_state_is_allowed() {
        let expected = Expected { versions: ["1".into(), "2".into()], configs: ["a".into(), "b".into()] };
        let nothing = Outcome::NotInstalled("no partition table".into());
        let runs = |slot, version, trial, config| Outcome::Runs(expected.runs(slot, version, trial, config));
        let with_way_back = |then| Outcome::Runs(Runs { then: Some(Box::new(then)), ..expected.runs("ROOT-B", 1, true, 1) });
        let (old, changed, new) = (runs("ROOT-A", 0, false, 0), runs("ROOT-A", 0, false, 1), runs("ROOT-B", 1, false, 1));
        let trial = with_way_back(changed.clone());
        let empty = Outcome::Runs(Runs { config: Config::None, ..expected.runs("ROOT-A", 0, false, 1) });
        let never = Outcome::Never("broken".into());
        let all = [&nothing, &old, &changed, &trial, &new, &empty, &never];
        for (mark, allowed) in [
            ("", &[][..]),
            (INSTALL, &[&nothing, &old]),
            (INSTALLED, &[&old]),
            (START, &[&old]),
            (CONFIG, &[&old, &changed]),
            (CONFIG_DONE, &[&changed]),
            (UPGRADE, &[&changed, &trial]),
            (UPGRADE_DONE, &[&trial]),
            (TRIAL, &[&changed, &trial, &new]),
            (TRIAL_DONE, &[&new]),
            (ROLLBACK, &[&new, &changed]),
            (ROLLBACK_DONE, &[&changed]),
            (RESET, &[&changed, &empty]),
            (RESET_DONE, &[&empty]),
        ] {
            for outcome in all {
                assert_eq!(expected.allows(mark, outcome), allowed.contains(&outcome), "{mark}: {outcome}");
            }
        }
        assert!(!expected.allows(TRIAL, &with_way_back(new)), "a trial must lead back");
        assert!(!expected.allows(CONFIG, &runs("ROOT-A", 1, false, 0)), "another version in the slot");
        assert_eq!((operation(UPGRADE_DONE), operation(START)), (UPGRADE, START));
    }
}
