//! What META says of the slots: which system each of them holds that proved good, and how the last upgrade stands. Its states, and what
//! follows from them at the next boot, whoever that boots.

use node_ipc::init::Slot;
use serde::{Deserialize, Serialize};
use verity::Parameters;

use crate::gate::Health;
use crate::loader::other;
use crate::meta::Meta;

const UPGRADE: &str = "upgrade";
/// META's key while ETCD, DATA and STATE are being wiped.
pub const RESETTING: &str = "resetting";
/// The longest reason; it has to fit into META and onto a console.
const REASON: usize = 600;

/// A system that a slot holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct System {
    /// Strake's version.
    pub version: String,
    /// The Kubernetes version of its components.
    pub kubernetes: String,
    /// What its root is verified against.
    pub root: Parameters,
}

/// How far an upgrade is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Its slot is being written.
    Writing,
    /// Its slot is complete and is started once, at the next boot or in this one.
    Trying,
    /// It passed the health gate; its slot is what is started.
    Good,
    /// The other slot runs, for the reason that is told.
    Failed,
    /// Somebody asked for the other slot.
    RolledBack,
}

impl State {
    /// As people are shown it.
    pub fn word(self) -> &'static str {
        match self {
            State::Writing => "writing",
            State::Trying => "trying",
            State::Good => "good",
            State::Failed => "failed",
            State::RolledBack => "rolled-back",
        }
    }
}

/// The last upgrade.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgrade {
    /// The slot it is written to.
    pub slot: Slot,
    /// How far it is.
    pub state: State,
    /// The system that ran before.
    pub from: System,
    /// The new one.
    pub to: System,
    /// Why it is as it is, for people.
    #[serde(default)]
    pub reason: String,
    /// How healthy the machine was before.
    #[serde(default)]
    pub baseline: Health,
    /// How long the trial may take, from the start of init.
    pub deadline_seconds: u64,
    /// Whether the node was cordoned for it and is to be uncordoned in the end.
    #[serde(default)]
    pub cordoned: bool,
    /// Whether the new system saw the end of its time come.
    #[serde(default)]
    pub timed_out: bool,
    /// Whether this is the second trial, because the first one was cut off.
    #[serde(default)]
    pub again: bool,
    /// When it began.
    #[serde(default)]
    pub begun_unix: i64,
    /// When it came to its end.
    #[serde(default)]
    pub ended_unix: i64,
}

/// What the boot of a system means for the last upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtBoot {
    /// It is over, or there was none.
    Nothing,
    /// This is the new system, and it has to prove itself.
    OnTrial,
    /// This is the old system, although the new one was to be tried, or was only half written.
    CameBack,
}

impl Upgrade {
    /// What it means that this slot with this root was booted.
    pub fn at_boot(&self, slot: Slot, root: &Parameters) -> AtBoot {
        match self.state {
            State::Trying if slot == self.slot && *root == self.to.root => AtBoot::OnTrial,
            State::Writing | State::Trying => AtBoot::CameBack,
            // The new system was good, and lost power before the loader was told.
            State::Good if slot != self.slot => AtBoot::CameBack,
            State::Good | State::Failed | State::RolledBack => AtBoot::Nothing,
        }
    }

    /// The slot that the loader should start from now on, when this one runs and the upgrade is over.
    pub fn default_slot(&self, booted: Slot) -> Option<Slot> {
        let ran = if self.state == State::Good { self.slot } else { other(self.slot) };
        (!matches!(self.state, State::Writing | State::Trying) && booted == ran).then_some(ran)
    }

    /// Whether the trial was cut off, and is to be begun once more: the new system had come so far that it said what it waited for, and its time was not over. The
    /// power failed; what else stops a system will stop it again.
    pub fn was_cut_off(&self) -> bool {
        self.state == State::Trying && !self.reason.is_empty() && !self.timed_out && !self.again
    }

    /// The second trial, which is the last.
    pub fn try_again(&mut self) {
        self.again = true;
        self.reason.clear();
    }

    /// The old system runs again: why. What the new one said last is the best that is known.
    pub fn came_back(&mut self, now_unix: i64) {
        self.reason = match (self.state, self.reason.as_str()) {
            (State::Writing, _) => "the machine was restarted while the slot was being written".to_owned(),
            (State::Good, _) => "it was good, but the power failed before the boot loader knew".to_owned(),
            (_, "") => "the new system said nothing: its kernel or init stopped or hung, the power failed, or the firmware forgot that it was to be \
                        tried"
                .to_owned(),
            (_, said) => format!("the new system was not good in time; the last that it said: {said}"),
        };
        if self.again {
            self.reason.push_str(" (its second trial: the first one was cut off)");
        }
        self.state = State::Failed;
        self.ended_unix = now_unix;
    }

    /// Keeps a reason, shortened if need be.
    pub fn because(&mut self, reason: &str) {
        self.reason = reason.chars().take(REASON).collect();
    }
}

/// The last upgrade; one that cannot be read is none.
pub fn upgrade(meta: &Meta) -> Option<Upgrade> {
    serde_json::from_str(meta.get(UPGRADE)?).ok()
}

/// Notes how the last upgrade stands.
pub fn set_upgrade(meta: &mut Meta, upgrade: &Upgrade) {
    meta.set(UPGRADE, serde_json::to_string(upgrade).ok());
}

fn good_key(slot: Slot) -> &'static str {
    match slot {
        Slot::A => "good-a",
        Slot::B => "good-b",
    }
}

/// The system in a slot that proved good there.
pub fn good(meta: &Meta, slot: Slot) -> Option<System> {
    serde_json::from_str(meta.get(good_key(slot))?).ok()
}

/// Notes which good system a slot holds, or that it holds none.
pub fn set_good(meta: &mut Meta, slot: Slot, system: Option<&System>) {
    meta.set(good_key(slot), system.and_then(|system| serde_json::to_string(system).ok()));
}

/// A slot's root is damaged. When the other slot holds a good system, notes what happened and returns that slot; it is what must be started
/// now.
pub fn fall_back(meta: &mut Meta, damaged: Slot, reason: &str) -> Option<Slot> {
    let to = other(damaged);
    let refuge = good(meta, to)?;
    let broken = good(meta, damaged).unwrap_or_else(|| refuge.clone());
    set_good(meta, damaged, None);
    // A trial that is still to be judged is judged by this.
    let mut record = upgrade(meta).filter(|upgrade| upgrade.slot == damaged).unwrap_or(Upgrade {
        slot: damaged,
        state: State::Failed,
        from: refuge,
        to: broken,
        reason: String::new(),
        baseline: Health::new(),
        deadline_seconds: 0,
        cordoned: false,
        timed_out: false,
        again: false,
        begun_unix: 0,
        ended_unix: 0,
    });
    record.state = State::Failed;
    record.because(reason);
    set_upgrade(meta, &record);
    Some(to)
}

/// How long the system that was just started has to prove itself, in seconds; nothing when it is not on trial.
pub fn trial_seconds(meta: &Meta, slot: Slot, root: &Parameters) -> Option<u64> {
    let upgrade = upgrade(meta).filter(|upgrade| upgrade.at_boot(slot, root) == AtBoot::OnTrial)?;
    Some(upgrade.deadline_seconds.clamp(crate::gate::SHORTEST.as_secs(), crate::gate::LONGEST.as_secs()))
}

#[cfg(test)]
mod tests {
    use verity::Digest;

    use super::*;

    fn system(version: &str, fill: u8) -> System {
        let root = Parameters::new(Digest([fill; 32]), Digest([9; 32]), 300).unwrap();
        System { version: version.into(), kubernetes: "v1.36.2".into(), root }
    }

    fn record(state: State) -> Upgrade {
        Upgrade {
            slot: Slot::B,
            state,
            from: system("0.1.0", 1),
            to: system("0.2.0", 2),
            reason: String::new(),
            baseline: Health::from([("kubelet".to_owned(), true)]),
            deadline_seconds: 600,
            cordoned: false,
            timed_out: false,
            again: false,
            begun_unix: 5,
            ended_unix: 0,
        }
    }

    #[test]
    fn what_a_boot_means_follows_from_the_state_and_from_what_was_booted() {
        let (old, new) = (system("0.1.0", 1).root, system("0.2.0", 2).root);
        for (state, slot, root, expected, default) in [
            (State::Writing, Slot::A, old, AtBoot::CameBack, None),
            (State::Trying, Slot::A, old, AtBoot::CameBack, None),
            (State::Trying, Slot::B, new, AtBoot::OnTrial, None),
            // Another system in the slot than the one that was written there is none that is tried.
            (State::Trying, Slot::B, old, AtBoot::CameBack, None),
            (State::Good, Slot::B, new, AtBoot::Nothing, Some(Slot::B)),
            (State::Good, Slot::A, old, AtBoot::CameBack, None),
            (State::Failed, Slot::A, old, AtBoot::Nothing, Some(Slot::A)),
            (State::Failed, Slot::B, new, AtBoot::Nothing, None),
            (State::RolledBack, Slot::A, old, AtBoot::Nothing, Some(Slot::A)),
            (State::RolledBack, Slot::B, new, AtBoot::Nothing, None),
        ] {
            assert_eq!(record(state).at_boot(slot, &root), expected, "{state:?} {slot:?}");
            assert_eq!(record(state).default_slot(slot), default, "{state:?} {slot:?}");
        }
    }

    #[test]
    fn a_trial_that_was_cut_off_is_begun_once_more_and_no_other() {
        let spoke = Upgrade { reason: "as healthy as before".into(), ..record(State::Trying) };
        assert!(spoke.was_cut_off());
        let silent = record(State::Trying);
        let late = Upgrade { timed_out: true, ..spoke.clone() };
        let over = [State::Writing, State::Good, State::Failed, State::RolledBack].map(|state| Upgrade { state, ..spoke.clone() });
        for other in over.iter().chain([&silent, &late]) {
            assert!(!other.was_cut_off(), "{other:?}");
        }
        let mut second = spoke;
        second.try_again();
        assert_eq!((second.at_boot(Slot::B, &second.to.root), second.reason.as_str()), (AtBoot::OnTrial, ""));
        second.because("not as healthy as before: kubelet");
        assert!(!second.was_cut_off(), "once");
        second.came_back(77);
        assert!(second.reason.contains("kubelet") && second.reason.contains("its second trial"), "{}", second.reason);
    }

    #[test]
    fn the_reason_of_a_way_back_is_what_the_new_system_said_last() {
        for (state, said, told) in [
            (State::Trying, "kubelet is back-off", "the last that it said: kubelet is back-off"),
            (State::Trying, "", "kernel or init stopped"),
            (State::Writing, "", "while the slot was being written"),
            (State::Good, "", "power failed"),
        ] {
            let mut upgrade = record(state);
            upgrade.because(said);
            upgrade.came_back(77);
            assert_eq!((upgrade.state, upgrade.ended_unix), (State::Failed, 77));
            assert!(upgrade.reason.contains(told), "{}", upgrade.reason);
            assert!(upgrade.reason.len() <= REASON);
        }
    }

    #[test]
    fn records_survive_meta_and_only_a_trial_has_a_deadline() {
        let mut meta = Meta::default();
        assert_eq!(upgrade(&meta), None);
        let root = record(State::Trying).to.root;
        for (state, seconds, expected) in
            [(State::Trying, 600, Some(600)), (State::Trying, 1, Some(60)), (State::Trying, u64::MAX, Some(3600)), (State::Good, 600, None)]
        {
            let wanted = Upgrade { deadline_seconds: seconds, ..record(state) };
            set_upgrade(&mut meta, &wanted);
            assert_eq!(upgrade(&meta), Some(wanted));
            assert_eq!(trial_seconds(&meta, Slot::B, &root), expected, "{state:?}");
            assert_eq!(trial_seconds(&meta, Slot::A, &root), None);
        }
        meta.set(UPGRADE, Some("{".to_owned()));
        assert_eq!(upgrade(&meta), None);
    }

    #[test]
    fn what_a_later_system_notes_is_read_by_this_one_and_the_other_way_round() {
        let mut later = serde_json::to_value(record(State::Trying)).unwrap();
        later["of_a_later_system"] = serde_json::json!({"a": 1});
        later["to"]["of_a_later_system"] = 1.into();
        let mut earlier = serde_json::to_value(record(State::Trying)).unwrap();
        for field in ["timed_out", "again", "cordoned", "reason", "begun_unix", "ended_unix"] {
            earlier.as_object_mut().unwrap().remove(field).unwrap();
        }
        for (text, expected) in [(later, record(State::Trying)), (earlier, Upgrade { begun_unix: 0, ..record(State::Trying) })] {
            let mut meta = Meta::default();
            meta.set(UPGRADE, Some(text.to_string()));
            assert_eq!(upgrade(&meta), Some(expected), "{text}");
        }
    }

    #[test]
    fn a_damaged_root_leads_to_the_other_slot_only_when_that_holds_a_good_system() {
        let mut meta = Meta::default();
        set_good(&mut meta, Slot::B, Some(&system("0.2.0", 2)));
        assert_eq!(fall_back(&mut meta, Slot::B, "damaged"), None);
        set_good(&mut meta, Slot::A, Some(&system("0.1.0", 1)));
        assert_eq!(fall_back(&mut meta, Slot::B, "ROOT-B is damaged"), Some(Slot::A));
        let found = upgrade(&meta).unwrap();
        assert_eq!((found.state, found.slot, found.reason.as_str()), (State::Failed, Slot::B, "ROOT-B is damaged"));
        assert_eq!((found.from.version.as_str(), found.to.version.as_str()), ("0.1.0", "0.2.0"));
        assert_eq!(found.default_slot(Slot::A), Some(Slot::A));
        assert_eq!(good(&meta, Slot::B), None);
        assert_eq!(fall_back(&mut meta, Slot::A, "damaged too"), None, "there is no good system left to fall back to");
    }
}
