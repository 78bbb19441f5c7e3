//! The floor under the images that open this machine's volumes, raised when the image that runs proved good. What a volume was opened with in this boot is kept in memory
//! for that: only what the TPM has just confirmed counts, not what stands on a disk.

use serde::{Deserialize, Serialize};
use tpm::{Floor, Tpm, Transport};

use super::sealed::{self, SealError};
use crate::api::chain;
use crate::paths::Paths;

/// Where it is kept until the machine goes down.
const FILE: &str = "/run/strake/tpm-floor";

/// A key that the TPM gave in this boot.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Known {
    /// The security version of the image that runs.
    pub running: u32,
    /// The counter when the key was sealed.
    pub counter: u64,
    /// The oldest version that got it then.
    pub version: u32,
}

impl Known {
    /// The floor of the key.
    pub fn floor(&self) -> Floor {
        Floor { counter: self.counter, version: self.version }
    }

    /// What the counter may hold at most for the image that runs to get the key again, which is what it is raised to.
    fn most(&self) -> Option<u64> {
        self.floor().most(self.running)
    }
}

/// Keeps what opened a volume. Of several keys the one that allows the least counts: raised further, the image that runs would lose it.
pub fn remember(paths: &Paths, new: Known) {
    if known(paths).is_some_and(|before| before.most() <= new.most()) {
        return;
    }
    let written = serde_json::to_vec(&new).map_err(std::io::Error::other).and_then(|text| std::fs::write(paths.at(FILE), text));
    if let Err(error) = written {
        tracing::warn!(error = %chain(&error), "keep what the TPM's floor is; it is not raised in this boot");
    }
}

/// What was kept.
pub fn known(paths: &Paths) -> Option<Known> {
    serde_json::from_slice(&std::fs::read(paths.at(FILE)).ok()?).ok()
}

/// The image that runs proved good: older security versions get no key of this machine any more. What the lowest version is then, if that changed
/// anything. Blocks.
pub fn raise(paths: &Paths) -> Result<Option<u32>, SealError> {
    let Some(known) = known(paths) else { return Ok(None) };
    raise_in(&mut sealed::machine_tpm(paths)?, &known)
}

fn raise_in<T: Transport>(tpm: &mut Tpm<T>, known: &Known) -> Result<Option<u32>, SealError> {
    let Some(most) = known.most() else { return Ok(None) };
    let before = tpm.read_counter(tpm::floor::COUNTER)?.ok_or(SealError::NoCounter)?;
    if before >= most {
        return Ok(None);
    }
    Ok(Some(known.floor().lowest(tpm.raise_floor(most)?)))
}

#[cfg(test)]
mod tests {
    use super::super::emulator::Emulator;
    use super::*;

    #[test]
    fn the_key_that_allows_the_least_says_how_far_the_floor_is_raised() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        std::fs::create_dir_all(dir.path().join("run/strake")).unwrap();
        assert_eq!(known(&paths), None);
        assert_eq!(raise(&paths).unwrap(), None, "nothing was opened by a TPM, and none is asked for");
        let [low, high] = [10, 12].map(|counter| Known { running: 5, counter, version: 3 });
        for (order, expected) in [([low, high], low), ([high, low], low)] {
            let _ = std::fs::remove_file(dir.path().join("run/strake/tpm-floor"));
            order.iter().for_each(|one| remember(&paths, *one));
            assert_eq!(known(&paths), Some(expected));
        }
    }

    #[test]
    fn the_floor_is_raised_to_the_image_that_runs_and_no_further() {
        let machine = Emulator::start();
        let mut tpm = machine.tpm();
        let known = Known { running: 6, counter: tpm.floor_counter().unwrap(), version: 4 };
        assert_eq!(raise_in(&mut tpm, &known).unwrap(), Some(6));
        assert_eq!(tpm.floor_counter().unwrap(), known.counter + 2);
        assert_eq!(raise_in(&mut tpm, &known).unwrap(), None, "once");
        assert_eq!(raise_in(&mut tpm, &Known { running: 5, ..known }).unwrap(), None, "an older image lowers nothing");
        assert_eq!(tpm.floor_counter().unwrap(), known.counter + 2);
        tpm.remove_counter(tpm::floor::COUNTER).unwrap();
        assert!(matches!(raise_in(&mut tpm, &known), Err(SealError::NoCounter)));
    }
}
