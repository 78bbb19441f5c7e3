//! The gate of maintenance mode: who calls must know the code that the console shows. Five wrong codes change it.

use std::sync::Mutex;

use machine_api::pairing::{CODE_BYTES, Pairing};
use tokio::sync::watch;

/// Wrong codes until a new one is made.
const ATTEMPTS: u32 = 5;

/// What a call with a code leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The code is right.
    Accepted,
    /// The code is wrong; this many tries are left.
    Wrong { left: u32 },
    /// The code is wrong, and there is a new one now.
    Changed,
}

/// Checks codes. Callers that have no code at all are refused before they get here.
#[derive(Debug)]
pub struct Gate {
    fingerprint: [u8; 32],
    wrong: Mutex<u32>,
    shown: watch::Sender<Pairing>,
    used: watch::Sender<bool>,
    random: fn() -> [u8; CODE_BYTES],
}

impl Gate {
    /// A gate for the certificate with this fingerprint, with a random code.
    pub fn new(fingerprint: [u8; 32]) -> Gate {
        Gate::with_random(fingerprint, rand::random)
    }

    fn with_random(fingerprint: [u8; 32], random: fn() -> [u8; CODE_BYTES]) -> Gate {
        Gate {
            fingerprint,
            wrong: Mutex::new(0),
            shown: watch::Sender::new(Pairing::new(&fingerprint, &random())),
            used: watch::Sender::new(false),
            random,
        }
    }

    /// The string to show, now and whenever it changes.
    pub fn shown(&self) -> watch::Receiver<Pairing> {
        self.shown.subscribe()
    }

    /// Whether somebody showed the right code, now and whenever that changes.
    pub fn used(&self) -> watch::Receiver<bool> {
        self.used.subscribe()
    }

    /// Checks a code. A right one does not reset the count: whoever guesses beside a person gets five tries in all.
    pub fn check(&self, code: &str) -> Verdict {
        // Held during the comparison, so that parallel guesses are counted one by one.
        let mut wrong = self.wrong.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.shown.borrow().accepts(code) {
            self.used.send_replace(true);
            return Verdict::Accepted;
        }
        *wrong += 1;
        if *wrong < ATTEMPTS {
            return Verdict::Wrong { left: ATTEMPTS - *wrong };
        }
        *wrong = 0;
        self.shown.send_replace(Pairing::new(&self.fingerprint, &(self.random)()));
        Verdict::Changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fifth_wrong_code_changes_it() {
        let gate = Gate::new([7; 32]);
        let before = gate.shown().borrow().clone();
        for left in [4, 3, 2, 1] {
            assert_eq!(gate.check("00000000x"), Verdict::Wrong { left });
            assert_eq!(*gate.used().borrow(), left < 4);
            assert_eq!(gate.check(before.code()), Verdict::Accepted);
        }
        assert_eq!(gate.check(""), Verdict::Changed);
        let after = gate.shown().borrow().clone();
        assert_ne!(before.code(), after.code());
        assert!(after.matches(&[7; 32]));
        assert_ne!(gate.check(before.code()), Verdict::Accepted);
        assert_eq!(gate.check(after.code()), Verdict::Accepted);
    }
}
