//! The key that opens a machine's encrypted volumes when nothing else does: made by strakectl, kept by people on paper or in a safe, given to the machine
//! once at installation and again on the day it is needed. 160 random bits as 32 characters of Crockford's base 32 in groups of four.

use std::fmt;
use std::str::FromStr;

use crate::pairing::{encode, grouped, meant};

/// Bytes of randomness.
pub const BYTES: usize = 20;
const CHARS: usize = BYTES * 8 / 5;

/// A recovery key.
#[derive(Clone, PartialEq, Eq)]
pub struct RecoveryKey(String);

/// Why a text is not a recovery key. Says nothing of the text.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a recovery key has {CHARS} letters and digits in groups of four; this is none")]
pub struct NoRecoveryKey;

impl RecoveryKey {
    /// The key of these random bytes.
    pub fn new(random: &[u8; BYTES]) -> Self {
        Self(encode(random, CHARS))
    }

    /// What the disk knows it by: the same however it was typed.
    pub fn key(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Display for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        grouped(self.0.chars(), f)
    }
}

impl fmt::Debug for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoveryKey(..)")
    }
}

impl FromStr for RecoveryKey {
    type Err = NoRecoveryKey;

    fn from_str(text: &str) -> Result<Self, NoRecoveryKey> {
        let characters = meant(text).map_err(|_| NoRecoveryKey)?;
        if characters.len() == CHARS { Ok(Self(characters)) } else { Err(NoRecoveryKey) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_key_survives_being_written_down(random: [u8; BYTES]) {
            let key = RecoveryKey::new(&random);
            let shown = key.to_string();
            prop_assert_eq!(shown.len(), 39);
            let typed = shown.to_lowercase().replace('0', "o").replace('1', "i").replace('-', "  ");
            prop_assert_eq!(typed.parse::<RecoveryKey>(), Ok(key.clone()));
            prop_assert!(!format!("{key:?}").contains(&shown[..4]) && shown[..38].parse::<RecoveryKey>().is_err());
        }

        #[test]
        fn other_texts_are_refused_without_being_repeated(text in ".{0,64}") {
            if let Err(error) = text.parse::<RecoveryKey>() {
                prop_assert_eq!(error, NoRecoveryKey);
            }
        }
    }
}
