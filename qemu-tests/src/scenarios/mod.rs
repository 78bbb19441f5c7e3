//! The scenarios, one file each, and the list of all of them.

mod bad_services;
mod bad_systems;
mod boot;
mod clock_jump;
mod dead_worker;
mod disk_faults;
mod encrypted;
pub(crate) mod first_cluster;
mod legacy_bios;
mod media;
mod power_cut;
mod power_cut_replay;
mod power_gate;
mod rejoin;
mod restarts;
mod secure_boot;
pub(crate) mod upgrade;
mod user_volumes;
mod verity;

use crate::scenario::Scenario;

/// Every scenario.
pub const ALL: &[Scenario] = &[
    legacy_bios::SCENARIO,
    boot::SCENARIO,
    first_cluster::SCENARIO,
    power_cut::SCENARIO,
    power_cut_replay::SCENARIO,
    restarts::SCENARIO,
    dead_worker::SCENARIO,
    rejoin::SCENARIO,
    verity::SCENARIO,
    upgrade::SHORT,
    upgrade::FAULTS,
    bad_systems::SCENARIO,
    bad_services::SCENARIO,
    clock_jump::SCENARIO,
    power_gate::SCENARIO,
    disk_faults::SCENARIO,
    secure_boot::SCENARIO,
    media::UNATTENDED,
    media::PXE,
    media::CONTINUE,
    media::RAW,
    encrypted::SCENARIO,
    user_volumes::SCENARIO,
    user_volumes::ENCRYPTED,
];

/// Those that `cargo xtask test` runs every time; the others are asked for by name.
pub const IN_CI: &[Scenario] = &[legacy_bios::SCENARIO, boot::SCENARIO, upgrade::SHORT, first_cluster::SCENARIO];

/// Of these it runs one more, so that none rots. Each takes ten minutes at most on a slow machine, and has been seen to pass.
pub const IN_TURN: &[Scenario] =
    &[verity::SCENARIO, rejoin::SCENARIO, power_cut::SCENARIO, restarts::SCENARIO, dead_worker::SCENARIO, disk_faults::SCENARIO];

/// The one whose turn it is: of one commit always the same, of many commits each about as often.
pub fn in_turn(commit: &str) -> &'static Scenario {
    // FNV-1a, to spread what differs in a few digits.
    let hash = commit.trim().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    &IN_TURN[(hash >> 32) as usize % IN_TURN.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_its_turn_and_a_commit_always_the_same() {
        let mut turns = vec![0; IN_TURN.len()];
        for number in 0..1000_u64 {
            let commit = format!("{:040x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let chosen = in_turn(&commit).name;
            assert_eq!(chosen, in_turn(&format!("{commit}\n")).name);
            turns[IN_TURN.iter().position(|scenario| scenario.name == chosen).unwrap()] += 1;
        }
        assert!(turns.iter().all(|count| *count > 500 / IN_TURN.len()), "{turns:?}");
        for scenario in IN_TURN {
            assert!(
                ALL.iter().any(|one| one.name == scenario.name) && IN_CI.iter().all(|one| one.name != scenario.name),
                "{}",
                scenario.name
            );
        }
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<&str> = ALL.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), ALL.len());
    }
}
