//! The one string that a machine in maintenance mode shows on its console: a prefix of the fingerprint of its
//! certificate, so that the client knows it talks to this machine, and a code, so that the machine knows the client has
//! seen the console. The client checks the fingerprint during the TLS handshake, before it sends the code.
//!
//! 28 characters of Crockford's base 32 in groups of four: 20 of fingerprint (100 bits), 8 of code (40 bits).

use std::fmt;
use std::str::FromStr;

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const FINGERPRINT_CHARS: usize = 20;
const CODE_CHARS: usize = 8;

/// Bytes of randomness in a code.
pub const CODE_BYTES: usize = 5;

/// A parsed pairing string.
#[derive(Clone, PartialEq, Eq)]
pub struct Pairing {
    fingerprint: String,
    code: String,
}

/// Why a text is not a pairing string.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PairingError {
    /// Too short or too long.
    #[error("a pairing string has {expected} letters and digits, this one has {found}; copy it from the machine's console")]
    Length { expected: usize, found: usize },
    /// A character that the alphabet lacks.
    #[error("a pairing string has no {0:?}; copy it from the machine's console")]
    Character(char),
}

impl Pairing {
    /// The pairing string for a certificate with this SHA-256 fingerprint and these random bytes.
    pub fn new(fingerprint: &[u8; 32], code: &[u8; CODE_BYTES]) -> Pairing {
        Pairing { fingerprint: encode(fingerprint, FINGERPRINT_CHARS), code: encode(code, CODE_CHARS) }
    }

    /// The code, as it is sent in the request header.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// Whether a certificate with this SHA-256 fingerprint is the one the string names.
    pub fn matches(&self, fingerprint: &[u8; 32]) -> bool {
        same(self.fingerprint.as_bytes(), encode(fingerprint, FINGERPRINT_CHARS).as_bytes())
    }

    /// Whether this code, as received, is the right one. Takes the same time for every wrong code of the right length.
    pub fn accepts(&self, code: &str) -> bool {
        same(self.code.as_bytes(), code.as_bytes())
    }
}

/// Compares without an early exit, so that time says nothing about where two values differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && std::hint::black_box(a.iter().zip(b).fold(0, |differences, (a, b)| differences | (a ^ b))) == 0
}

/// The first `chars` groups of five bits.
pub(crate) fn encode(bytes: &[u8], chars: usize) -> String {
    let bit = |index: usize| usize::from(bytes.get(index / 8).is_some_and(|byte| byte & (0x80 >> (index % 8)) != 0));
    (0..chars)
        .map(|position| {
            let value = (0..5).fold(0, |value, offset| value << 1 | bit(position * 5 + offset));
            char::from(ALPHABET[value])
        })
        .collect()
}

/// The characters of the alphabet that a text stands for, or the first that is none.
pub(crate) fn meant(text: &str) -> Result<String, char> {
    let mut characters = String::new();
    for character in text.chars().filter(|c| !c.is_whitespace() && *c != '-') {
        // Crockford's rule: what people confuse reads as what was meant.
        let meant = match character.to_ascii_uppercase() {
            'O' => '0',
            'I' | 'L' => '1',
            other => other,
        };
        if !meant.is_ascii() || !ALPHABET.contains(&(meant as u8)) {
            return Err(character);
        }
        if characters.len() < 1024 {
            characters.push(meant);
        }
    }
    Ok(characters)
}

/// Writes groups of four.
pub(crate) fn grouped(characters: impl Iterator<Item = char>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (index, character) in characters.enumerate() {
        if index > 0 && index % 4 == 0 {
            f.write_str("-")?;
        }
        write!(f, "{character}")?;
    }
    Ok(())
}

impl fmt::Display for Pairing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        grouped(self.fingerprint.chars().chain(self.code.chars()), f)
    }
}

impl fmt::Debug for Pairing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pairing({}…)", &self.fingerprint[..4])
    }
}

impl FromStr for Pairing {
    type Err = PairingError;

    fn from_str(text: &str) -> Result<Self, PairingError> {
        let mut characters = meant(text).map_err(PairingError::Character)?;
        if characters.len() != FINGERPRINT_CHARS + CODE_CHARS {
            return Err(PairingError::Length { expected: FINGERPRINT_CHARS + CODE_CHARS, found: characters.len() });
        }
        let code = characters.split_off(FINGERPRINT_CHARS);
        Ok(Pairing { fingerprint: characters, code })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn shows_groups_of_four() {
        let pairing = Pairing::new(&[0xff; 32], &[0; 5]);
        assert_eq!(pairing.to_string(), "ZZZZ-ZZZZ-ZZZZ-ZZZZ-ZZZZ-0000-0000");
        assert_eq!(pairing.code(), "00000000");
    }

    #[test]
    fn reads_what_people_type() {
        let shown = Pairing::new(&[0x08; 32], &[1, 2, 3, 4, 5]);
        let typed = shown.to_string().to_lowercase().replace('0', "o").replace('1', "l").replace('-', " ");
        assert_eq!(typed.parse::<Pairing>(), Ok(shown));
    }

    #[test]
    fn refuses_what_is_not_a_pairing_string() {
        assert_eq!("ABCD".parse::<Pairing>(), Err(PairingError::Length { expected: 28, found: 4 }));
        assert_eq!("ABCU".parse::<Pairing>(), Err(PairingError::Character('U')));
        assert!("é".repeat(28).parse::<Pairing>().is_err());
    }

    proptest! {
        #[test]
        fn round_trips(fingerprint: [u8; 32], code: [u8; 5]) {
            let pairing = Pairing::new(&fingerprint, &code);
            prop_assert_eq!(pairing.to_string().parse::<Pairing>(), Ok(pairing.clone()));
            prop_assert!(pairing.matches(&fingerprint));
        }

        #[test]
        fn other_codes_and_certificates_are_refused(fingerprint: [u8; 32], other: [u8; 32], code: [u8; 5], guess: [u8; 5]) {
            let pairing = Pairing::new(&fingerprint, &code);
            prop_assert_eq!(pairing.accepts(Pairing::new(&fingerprint, &guess).code()), guess == code);
            prop_assert_eq!(pairing.matches(&other), fingerprint[..12] == other[..12] && fingerprint[12] >> 4 == other[12] >> 4);
        }

        #[test]
        fn parsing_never_panics(text in ".{0,64}") {
            let _ = text.parse::<Pairing>();
        }
    }
}
