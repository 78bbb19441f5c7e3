//! How a rollout over machines goes on: what is seen of a machine after it was told to try a new system, and what follows. Only decisions; asking
//! and waiting is the verb's.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::output::Row;

/// What a machine says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Another one after every boot.
    pub boot_id: String,
    /// How its last upgrade stands.
    pub state: String,
    /// Why.
    pub reason: String,
}

impl Seen {
    /// From the resource `upgrade/last`, if there is one.
    pub fn new(boot_id: &str, last: Option<&Value>) -> Seen {
        let word = |field: &str| last.and_then(|last| last[field].as_str()).unwrap_or_default().to_owned();
        Seen { boot_id: boot_id.to_owned(), state: word("state"), reason: word("reason") }
    }
}

/// What follows for the rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is not over; with what is waited for.
    Wait(String),
    /// The new system runs and stays.
    Good,
    /// It does not.
    Failed(String),
}

/// What follows from what is seen of a machine that was in the boot `before` when it was told to restart.
pub fn next(before: &str, seen: Option<&Seen>) -> Next {
    let Some(seen) = seen else { return Next::Wait("does not answer".to_owned()) };
    match (seen.boot_id == before, seen.state.as_str()) {
        (true, "failed") | (_, "failed" | "rolled-back") => {
            let why = if seen.reason.is_empty() { String::new() } else { format!(": {}", seen.reason) };
            Next::Failed(format!("the upgrade is {}{why}", seen.state))
        }
        (true, _) => Next::Wait("is about to restart".to_owned()),
        (false, "good") => Next::Good,
        (false, "trying") if seen.reason.is_empty() => Next::Wait("the new system is on trial".to_owned()),
        (false, "trying") => Next::Wait(format!("the new system is on trial: {}", seen.reason)),
        (false, other) => Next::Failed(format!("it restarted, and its upgrade is {other:?}")),
    }
}

/// The checks that fail now and did not before, by name; what was wrong before an upgrade is not its fault.
pub fn worse(before: &[Row], now: &[Row]) -> Vec<String> {
    let failing = |rows: &[Row]| -> BTreeSet<String> {
        let bad = rows.iter().filter(|row| row.get("healthy") != Some(&Value::Bool(true)));
        bad.filter_map(|row| row.get("check")?.as_str().map(str::to_owned)).collect()
    };
    failing(now).difference(&failing(before)).cloned().collect()
}

/// What is said when a rollout stops: what was done, and what was not.
pub fn stopped(done: &[String], left: &[String]) -> String {
    let done = if done.is_empty() { "no machine was upgraded".to_owned() } else { format!("upgraded: {}", done.join(", ")) };
    let left = if left.is_empty() { String::new() } else { format!("; not touched: {}", left.join(", ")) };
    format!("the rollout stopped; {done}{left}; the same command goes on when the trouble is over")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_machine_is_done_when_it_runs_the_new_system_for_good() {
        let seen = |boot: &str, state: &str, reason: &str| Some(Seen::new(boot, Some(&json!({"state": state, "reason": reason}))));
        let wait = |text: &str| Next::Wait(text.to_owned());
        let failed = |text: &str| Next::Failed(text.to_owned());
        for (seen, expected) in [
            (None, wait("does not answer")),
            (seen("1", "trying", ""), wait("is about to restart")),
            // What an upgrade before this one left behind.
            (seen("1", "good", ""), wait("is about to restart")),
            (seen("1", "failed", "x"), failed("the upgrade is failed: x")),
            (seen("2", "trying", ""), wait("the new system is on trial")),
            (seen("2", "trying", "kubelet"), wait("the new system is on trial: kubelet")),
            (seen("2", "good", ""), Next::Good),
            (seen("2", "failed", "not healthy"), failed("the upgrade is failed: not healthy")),
            (seen("2", "rolled-back", "asked for by admin"), failed("the upgrade is rolled-back: asked for by admin")),
            (Some(Seen::new("2", None)), failed("it restarted, and its upgrade is \"\"")),
        ] {
            assert_eq!(next("1", seen.as_ref()), expected, "{seen:?}");
        }
    }

    #[test]
    fn only_what_became_worse_counts() {
        let rows = |checks: &[(&str, bool)]| -> Vec<Row> {
            checks.iter().map(|(name, healthy)| crate::output::row(json!({"check": name, "healthy": healthy}))).collect()
        };
        let before = rows(&[("mode", true), ("time", false), ("service kubelet", true)]);
        for (now, expected) in [
            (rows(&[("mode", true), ("time", false), ("service kubelet", true)]), &[][..]),
            (rows(&[("mode", true), ("time", true)]), &[]),
            (rows(&[("service kubelet", false), ("time", false), ("etcd", false)]), &["etcd", "service kubelet"]),
        ] {
            assert_eq!(worse(&before, &now), expected);
        }
    }

    #[test]
    fn who_comes_back_to_a_rollout_that_stopped_knows_where_it_stands() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert!(stopped(&names(&["a", "b"]), &names(&["d"])).contains("upgraded: a, b; not touched: d"));
        assert!(stopped(&[], &[]).contains("no machine was upgraded;"));
    }
}
