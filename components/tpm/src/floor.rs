//! A floor under the images that get a sealed key. Every image has a security version, which its signature for PolicyAuthorize names as the policy's
//! reference; the TPM has a counter that only rises. A key is sealed under one branch for each version from its floor on: "signed as version
//! `v`, and the counter is at most what it was plus `v` minus the floor". Raising the counter by one takes the key from the oldest version that still
//! had it, whatever copies of the sealed key there are. A counter that is removed and made anew begins above what it was (part 1, "NV counters").

use crate::policy::{self, Digest};
use crate::public::nv_name;
use crate::{Session, Tpm, TpmError, Transport};

/// Where the counter is: in the range of the machine's owner.
pub const COUNTER: u32 = 0x0180_5712;
/// For how many versions a key is sealed: eight PolicyORs of eight branches under one of eight.
pub const SPAN: u32 = 64;

/// `TPM_RC_POLICY`, of TPM2_PolicyNV whose comparison does not hold.
const TOO_HIGH: u32 = 0x126;

/// The oldest version that gets a key, as long as the counter is where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floor {
    /// What the counter held.
    pub counter: u64,
    /// The version.
    pub version: u32,
}

/// What a signature refers to that is made for an image of this version.
pub fn reference(version: u32) -> Vec<u8> {
    format!("strake-version-{version:010}").into_bytes()
}

impl Floor {
    /// The most that the counter may hold for an image of this version; nothing when the key is not sealed for it.
    pub fn most(&self, version: u32) -> Option<u64> {
        let above = version.checked_sub(self.version).filter(|above| *above < SPAN)?;
        Some(self.counter.saturating_add(above.into()))
    }

    /// The oldest version that gets the key while the counter holds this.
    pub fn lowest(&self, counter: u64) -> u32 {
        let raised = counter.saturating_sub(self.counter);
        self.version.saturating_add(u32::try_from(raised).unwrap_or(u32::MAX))
    }

    /// The policy: signed with the key of this name, and not below the floor.
    pub fn policy(&self, signer: &[u8]) -> Digest {
        policy::any_of(&self.groups(signer))
    }

    fn groups(&self, signer: &[u8]) -> Vec<Digest> {
        let branches = self.branches(signer);
        branches.chunks(policy::BRANCHES).map(policy::any_of).collect()
    }

    fn branches(&self, signer: &[u8]) -> Vec<Digest> {
        let counter = nv_name(COUNTER);
        let branch = |above: u32| {
            let signed = policy::authorize(signer, &reference(self.version.saturating_add(above)));
            policy::counter_at_most(&signed, self.counter.saturating_add(above.into()), &counter)
        };
        (0..SPAN).map(branch).collect()
    }
}

impl<T: Transport> Tpm<T> {
    /// Goes on in a session in which a signature for this version was authorized, to what [`Floor::policy`] is. False when the version is below the floor, or
    /// too far above it.
    pub fn policy_floor(&mut self, session: Session, signer: &[u8], floor: &Floor, version: u32) -> Result<bool, TpmError> {
        let Some(most) = floor.most(version) else { return Ok(false) };
        match self.policy_counter_at_most(session, COUNTER, most) {
            Err(TpmError::Refused { code: TOO_HIGH, .. }) => return Ok(false),
            other => other?,
        }
        let branches = floor.branches(signer);
        let group = usize::try_from(version - floor.version).unwrap_or(usize::MAX) / policy::BRANCHES;
        let Some(mine) = branches.chunks(policy::BRANCHES).nth(group) else { return Ok(false) };
        self.policy_any_of(session, mine)?;
        self.policy_any_of(session, &floor.groups(signer))?;
        Ok(true)
    }

    /// What the floor's counter holds. It is made when there is none.
    pub fn floor_counter(&mut self) -> Result<u64, TpmError> {
        if let Some(count) = self.read_counter(COUNTER)? {
            return Ok(count);
        }
        match self.define_counter(COUNTER) {
            // It is there, and was never raised: TPM_RC_NV_DEFINED.
            Err(TpmError::Refused { code: 0x14c, .. }) => {}
            other => other?,
        }
        self.raise_counter(COUNTER)?;
        // TPM_RC_NV_UNINITIALIZED: it was raised, and holds nothing.
        self.read_counter(COUNTER)?.ok_or(TpmError::Refused { operation: "make a counter", code: 0x14a })
    }

    /// Raises the floor's counter to `least`, if it is lower and less than [`SPAN`] away. What it holds then.
    pub fn raise_floor(&mut self, least: u64) -> Result<u64, TpmError> {
        let mut count = self.floor_counter()?;
        for _ in 0..SPAN {
            if count >= least {
                break;
            }
            self.raise_counter(COUNTER)?;
            count = self.floor_counter()?;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_has_its_own_limit_and_those_out_of_the_span_have_none() {
        let floor = Floor { counter: 100, version: 7 };
        let cases = [(6, None), (7, Some(100)), (8, Some(101)), (70, Some(163)), (71, None), (0, None), (u32::MAX, None)];
        for (version, most) in cases {
            assert_eq!(floor.most(version), most, "{version}");
        }
        assert_eq!([99, 100, 103, u64::MAX].map(|counter| floor.lowest(counter)), [7, 7, 10, u32::MAX]);
    }

    #[test]
    fn a_policy_depends_on_the_signer_the_version_and_the_counter() {
        let policy = Floor { counter: 5, version: 1 }.policy(b"signer");
        assert_eq!(policy, Floor { counter: 5, version: 1 }.policy(b"signer"));
        for other in [
            Floor { counter: 6, version: 1 }.policy(b"signer"),
            Floor { counter: 5, version: 2 }.policy(b"signer"),
            Floor { counter: 5, version: 1 }.policy(b"another"),
        ] {
            assert_ne!(policy, other);
        }
        // The widest numbers do not overflow.
        Floor { counter: u64::MAX, version: u32::MAX }.policy(b"signer");
    }

    #[test]
    fn references_are_short_enough_for_every_tpm() {
        // At most as long as the digest of SHA-256.
        assert!([0, 1, u32::MAX].iter().all(|version| reference(*version).len() == 25));
    }
}
