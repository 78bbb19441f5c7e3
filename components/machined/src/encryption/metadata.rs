//! What a LUKS2 header says of the keys that open it, and what we write there: a token for each key slot, of our own types (LUKS2 On-Disk Format
//! 3.4). So a disk carries all that opening it takes but the key itself. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tpm::Floor;

/// The first bytes of a LUKS header, and the version behind them.
const MAGIC: [u8; 8] = *b"LUKS\xba\xbe\0\x02";

/// Whether these are the first bytes of a LUKS2 volume.
pub fn is_luks2(start: &[u8]) -> bool {
    start.starts_with(&MAGIC)
}

/// What `cryptsetup luksDump --dump-json-metadata` says, as far as it matters here.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub struct Metadata {
    /// By number.
    #[serde(default)]
    pub keyslots: BTreeMap<String, serde_json::Value>,
    /// By number.
    #[serde(default)]
    tokens: BTreeMap<String, serde_json::Value>,
}

/// One key that opens a volume.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "type")]
pub enum Token {
    /// Sealed to the TPM.
    #[serde(rename = "strake-tpm2")]
    Tpm2(TpmToken),
    /// In a file on another volume.
    #[serde(rename = "strake-keyfile")]
    KeyFile {
        /// The slots, as LUKS2 wants them; one here.
        keyslots: Vec<String>,
        /// The other volume's label.
        volume: String,
        /// The file.
        path: String,
    },
    /// Known to a person.
    #[serde(rename = "strake-passphrase")]
    Passphrase {
        /// See above.
        keyslots: Vec<String>,
    },
    /// Kept by a person.
    #[serde(rename = "strake-recovery")]
    Recovery {
        /// See above.
        keyslots: Vec<String>,
    },
}

/// A key that is sealed to the TPM.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TpmToken {
    /// See [`Token`].
    pub keyslots: Vec<String>,
    /// The sealed key's encrypted part.
    #[serde(with = "base64_bytes")]
    pub private: Vec<u8>,
    /// The sealed key's public part.
    #[serde(with = "base64_bytes")]
    pub public: Vec<u8>,
    /// PCRs that must be as they were.
    pub pcrs: Vec<u8>,
    /// Who signs what may be started: a SubjectPublicKeyInfo.
    #[serde(with = "base64_bytes")]
    pub signer: Vec<u8>,
    /// What the TPM's counter of the floor held when this was sealed.
    pub counter: u64,
    /// The oldest security version of an image that got the key then.
    pub version: u32,
}

impl TpmToken {
    /// The floor that the key was sealed with. Written otherwise here, the TPM gives no key.
    pub fn floor(&self) -> Floor {
        Floor { counter: self.counter, version: self.version }
    }
}

impl Token {
    /// Its key slot.
    pub fn slot(&self) -> Option<u8> {
        let (Self::Tpm2(TpmToken { keyslots, .. })
        | Self::KeyFile { keyslots, .. }
        | Self::Passphrase { keyslots }
        | Self::Recovery { keyslots }) = self;
        keyslots.first()?.parse().ok()
    }

    /// The word that a config has for it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Tpm2(_) => "tpm2",
            Self::KeyFile { .. } => "keyFile",
            Self::Passphrase { .. } => "passphrase",
            Self::Recovery { .. } => "recoveryKey",
        }
    }
}

impl Metadata {
    /// Our tokens by their numbers; those of others are none of our business.
    pub fn tokens(&self) -> Vec<(u8, Token)> {
        let ours = |(id, token): (&String, &serde_json::Value)| Some((id.parse().ok()?, serde_json::from_value(token.clone()).ok()?));
        let mut found: Vec<(u8, Token)> = self.tokens.iter().filter_map(ours).collect();
        found.sort_by_key(|(_, token)| token.slot());
        found
    }

    /// Whether no key opens it any more.
    pub fn is_erased(&self) -> bool {
        self.keyslots.is_empty()
    }
}

mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_tokens_are_found_among_others() {
        let (keyslots, private, public) = (vec!["3".into()], vec![1, 2], vec![3]);
        let tpm = Token::Tpm2(TpmToken { keyslots, private, public, pcrs: vec![7], signer: vec![4], counter: 90, version: 1 });
        let text = serde_json::json!({
            "keyslots": {"0": {"type": "luks2"}, "3": {"type": "luks2"}},
            "tokens": {
                "0": {"type": "systemd-tpm2", "keyslots": ["1"]},
                "1": serde_json::to_value(&tpm).unwrap(),
                "2": {"type": "strake-recovery", "keyslots": ["0"]},
                "x": {"type": "strake-recovery", "keyslots": ["0"]},
                "4": {"type": "strake-tpm2", "keyslots": ["0"], "private": "no base64"},
            },
            "segments": {}, "digests": {}, "config": {},
        });
        let metadata: Metadata = serde_json::from_value(text).unwrap();
        let found = metadata.tokens();
        assert_eq!(found, [(2, Token::Recovery { keyslots: vec!["0".into()] }), (1, tpm)]);
        assert_eq!(
            found.iter().map(|(_, token)| (token.slot(), token.kind())).collect::<Vec<_>>(),
            [(Some(0), "recoveryKey"), (Some(3), "tpm2")]
        );
        assert!(!metadata.is_erased());
        let erased: Metadata = serde_json::from_str("{\"keyslots\": {}}").unwrap();
        assert!(erased.is_erased() && erased.tokens().is_empty());
    }

    #[test]
    fn only_the_second_version_is_taken_for_luks2() {
        assert!(is_luks2(b"LUKS\xba\xbe\0\x02more"));
        for other in [&b"LUKS\xba\xbe\0\x01"[..], b"LUKS", b""] {
            assert!(!is_luks2(other));
        }
    }
}
