//! The scenarios, one file each, and the list of all of them.

mod boot;
mod dead_worker;
mod encrypted;
mod first_cluster;
mod legacy_bios;
mod media;
mod power_cut;
mod power_cut_replay;
mod rejoin;
mod restarts;
mod secure_boot;
mod upgrade;
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
    secure_boot::SCENARIO,
    media::UNATTENDED,
    media::PXE,
    encrypted::SCENARIO,
    user_volumes::SCENARIO,
];

/// Those that `cargo xtask test` runs; the others are asked for by name.
pub const IN_CI: &[Scenario] = &[legacy_bios::SCENARIO, boot::SCENARIO, upgrade::SHORT, first_cluster::SCENARIO];
