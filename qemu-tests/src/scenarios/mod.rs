//! The scenarios, one file each, and the list of all of them.

mod boot;
mod legacy_bios;

use crate::scenario::Scenario;

/// Every scenario, in the order in which they are run.
pub const ALL: &[Scenario] = &[legacy_bios::SCENARIO, boot::SCENARIO];
